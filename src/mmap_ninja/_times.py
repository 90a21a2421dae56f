"""Datetimes and timedeltas in another unit: NumPy's own cast wraps silently, averages months, and takes any number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_DAY = 24 * 3600 * 10**18
# Attoseconds in each unit that has always as many, and months in the other two.
_FIXED = {
    "W": 7 * _DAY, "D": _DAY, "h": 3600 * 10**18, "m": 60 * 10**18, "s": 10**18, "ms": 10**15, "us": 10**12,
    "ns": 10**9, "ps": 10**6, "fs": 10**3, "as": 1,
}  # fmt: skip
_MONTHS = {"Y": 12, "M": 1}
_NAT, _MOST = -(2**63), 2**63 - 1
_MOST_MONTHS = 2**52  # whose days fit 64 bits with room to spare


def cast_times(array: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """The times in the unit of the dtype, and which of them are kept exactly. NaT is."""
    ticks = array.astype(array.dtype.newbyteorder("=")).view(np.int64)
    missing = np.asarray(ticks == _NAT)
    after, kept = _changed(np.where(missing, 0, ticks), array.dtype, dtype)
    after = np.where(missing | ~kept, np.int64(_NAT), after)
    return np.asarray(after.view(dtype.newbyteorder("=")).astype(dtype)), np.asarray(kept | missing)


def _changed(ticks: Array, source: np.dtype[Any], target: np.dtype[Any]) -> tuple[Array, Array]:
    """From one unit to the other, by way of days where one has months in it."""
    (unit, step), (unit_after, step_after) = np.datetime_data(source), np.datetime_data(target)
    for sizes in (_FIXED, _MONTHS):
        if unit in sizes and unit_after in sizes:
            return _scaled(ticks, sizes[unit] * step, sizes[unit_after] * step_after)
    if source.kind != "M" or "generic" in (unit, unit_after):  # a month has no length, a plain number no unit
        return ticks, np.zeros(ticks.shape, bool)
    if unit in _MONTHS:
        months, kept = _scaled(ticks, _MONTHS[unit] * step, 1)
        days, also = _days_of(months)
        after, too = _scaled(days, _DAY, _FIXED[unit_after] * step_after)
    else:
        days, kept = _scaled(ticks, _FIXED[unit] * step, _DAY)
        months, also = _months_of(days)
        after, too = _scaled(months, 1, _MONTHS[unit_after] * step_after)
    return after, np.asarray(kept & also & too)


def _days_of(months: Array) -> tuple[Array, Array]:
    """The first day of each month, and which months the calendar of NumPy reaches."""
    kept = np.abs(months) <= _MOST_MONTHS
    return np.where(kept, months, 0).view("M8[M]").astype("M8[D]").view(np.int64), kept


def _months_of(days: Array) -> tuple[Array, Array]:
    """The month of each day, and which days are the first of theirs."""
    inside = np.abs(days) <= 28 * _MOST_MONTHS
    months = np.where(inside, days, 0).view("M8[D]").astype("M8[M]").view(np.int64)
    first, kept = _days_of(months)
    return months, np.asarray(inside & kept & (first == days))


def _scaled(ticks: Array, size: int, size_after: int) -> tuple[Array, Array]:
    """Ticks of one size as ticks of another, and which of them are whole numbers of 64 bits."""
    common = math.gcd(size, size_after)
    factor, divisor = size // common, size_after // common
    if divisor > _MOST:
        return np.zeros(ticks.shape, np.int64), np.asarray(ticks == 0)
    whole, most = ticks // divisor, _MOST // factor
    kept = np.asarray((whole * divisor == ticks) & (whole <= most) & (whole >= -most))
    return np.where(kept, whole, 0) * min(factor, _MOST), kept
