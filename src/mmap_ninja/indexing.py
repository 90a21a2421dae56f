"""One set of rules for `m[...]` of every kind of map.

An integer (Python's, NumPy's, or a 0-d integer array) gives one sample; negative ones count from the end. Slices,
lists, ranges and 1-D arrays of integers, and boolean masks of the map's length give many.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmap_ninja.errors import ArgumentError, ArgumentTypeError, IndexTypeError, SampleIndexError

Positions = np.ndarray[Any, np.dtype[np.int64]]


def is_single(index: Any) -> bool:
    """Whether the index means one sample."""
    if isinstance(index, np.ndarray):
        return index.ndim == 0 and index.dtype.kind in "iu"
    return hasattr(index, "__index__") and not isinstance(index, bool | np.bool_)


def boolean(name: str, value: Any) -> bool:
    """The value of an argument. Raises `ArgumentTypeError` for anything but True and False."""
    if not isinstance(value, bool | np.bool_):
        raise ArgumentTypeError(f"{name} is {value!r}, expected True or False")
    return bool(value)


def integer(name: str, value: Any, least: int, most: int | None = None, *, what: str = "an integer") -> int:
    """An argument as an int in these bounds. Raises `ArgumentTypeError` or `ArgumentError`, which say `what` it is."""
    if not is_single(value):
        raise ArgumentTypeError(f"{name} is {value!r}, expected {what}")
    number = operator.index(value)
    if number < least or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"{least} to {most}"
        raise ArgumentError(f"{name} is {number}, expected {bounds}")
    return number


def position(index: Any, length: int) -> int:
    """The position of one sample, counted from the start."""
    i = operator.index(index)
    if -length <= i < length:
        return i + length if i < 0 else i
    raise out_of_range(i, length)


def out_of_range(index: int, length: int) -> SampleIndexError:
    """The error for an index outside of the map."""
    return SampleIndexError(f"index {index} is out of range for a map of {length} samples")


def positions(index: Any, length: int) -> Positions:
    """The positions of many samples, as int64 array `(count,)`."""
    if isinstance(index, slice):
        return np.arange(*checked(index).indices(length), dtype=np.int64)
    if not isinstance(index, list | range | np.ndarray):
        raise _wrong_type(index)
    try:
        array = np.asarray(index)
    except ValueError:  # lists of different lengths
        raise _wrong_type(index) from None
    if array.ndim == 1 and array.dtype.kind == "b":
        if len(array) != length:
            raise SampleIndexError(f"a boolean mask of {len(array)} values for a map of {length} samples")
        return np.flatnonzero(array)
    if array.ndim == 1 and array.size == 0 and not isinstance(index, np.ndarray):
        return np.empty(0, np.int64)
    if array.dtype.hasobject and all(is_single(i) for i in array.reshape(-1)):  # too large for any integer dtype
        raise out_of_range(max(array.reshape(-1), key=abs), length)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise _wrong_type(index)
    found: Positions = array.astype(np.int64)
    if (found.view(np.uint64) < length).all():  # one comparison for both ends: negative numbers become huge ones
        return found
    bad = (array < -length) | (array >= length)
    if bad.any():
        raise out_of_range(int(array[bad][0]), length)
    return np.where(found < 0, found + length, found)


def listed(indices: Any) -> Any:
    """Any iterable of indices as something that a map is indexed by."""
    if isinstance(indices, np.ndarray | list | range | slice):
        return indices
    try:
        return list(indices)
    except TypeError:
        raise _wrong_type(indices) from None


def checked(index: slice) -> slice:
    """The slice, if its parts are integers or left out."""
    for part in (index.start, index.stop, index.step):
        if part is not None and not is_single(part):
            raise _wrong_type(index)
    if index.step is not None and operator.index(index.step) == 0:
        raise ArgumentError("the step of a slice cannot be 0")
    return index


def merged(starts: Positions, stops: Positions) -> Iterator[tuple[int, int]]:
    """Ranges in ascending order, those joined that touch, those left out that are empty."""
    tops = np.maximum.accumulate(stops)
    gaps = np.flatnonzero(starts[1:] > tops[:-1])
    firsts, lasts = np.concatenate([[0], gaps + 1]), np.concatenate([gaps, [len(starts) - 1]])
    for start, stop in zip(starts[firsts].tolist(), tops[lasts].tolist(), strict=True):
        if start < stop:
            yield start, stop


def _wrong_type(index: Any) -> IndexTypeError:
    what = f"array of {index.dtype}, {index.ndim} axes" if isinstance(index, np.ndarray) else type(index).__name__
    return IndexTypeError(f"a map is indexed by integers, slices, lists or 1-D arrays of them, or masks, not by {what}")
