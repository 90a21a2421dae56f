"""What can be saved of a folder that 0.9.0 was interrupted in.

0.9.0 adds to one file after the other: data, starts, ends, counts, shapes (texts: starts, ends, data), each with
the rows that it was given, then their number. A writer that dies leaves the later files behind the earlier ones. A
sample is whole if all of them have its row, the rows say the same, its bytes are there, and no later row points into
it; the longest beginning of such samples is what comes back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mmap_ninja._storage import legacy
from mmap_ninja._storage.disk import read_small
from mmap_ninja._storage.flatfile import MappedFile
from mmap_ninja._storage.legacy import HINT, Keys, Torn
from mmap_ninja._storage.manifest import DATA, DENSE, DICTIONARY, STRINGS, Manifest
from mmap_ninja._storage.rows import bad_rows
from mmap_ninja._storage.snapshot import Snapshot
from mmap_ninja.codec import Zstd
from mmap_ninja.errors import ArgumentError, MapCorruptError

Column = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Check = Callable[[slice], Flags]  # of some rows, each by itself

_AT_ONCE = 1 << 16  # rows
_MOST = int(np.iinfo(np.int64).max)


def salvage(folder: str, keys: Keys, sample_shape: tuple[int, ...] | None) -> tuple[Manifest, list[str]] | None:
    """The state with all that is whole, and a line for everything that is not; None where there is no map.

    Raises `MapCorruptError` where no sample is whole, or nothing tells what samples are.
    """
    try:
        found = legacy.read(folder, keys, Torn(sample_shape))
    except MapCorruptError as error:
        what = str(error).replace(HINT, "")
        more = "; if its subfolders have other names, give those (--starts-key ...)" if "is missing" in what else ""
        raise MapCorruptError(f"{what}{more}") from None
    if found is None:
        return None
    if sample_shape is not None and sample_shape != found.sample_shape:
        raise ArgumentError(f"{folder} knows better: sample_shape is {found.sample_shape}, not {sample_shape}")
    saved, lost = _dense(folder, found) if found.kind == DENSE else _indexed(folder, found)
    whole = None if found.kind == DENSE else _readable_as_it_is(folder, keys)
    if whole is not None and whole.length > saved.length:
        return whole, [f"{folder}: there are gaps between samples; they are kept as they are"]
    if saved.length == 0:
        raise MapCorruptError(f"{folder}: no sample is whole")
    return saved, [f"{folder}: {line}" for line in lost]


def _readable_as_it_is(folder: str, keys: Keys) -> Manifest | None:
    """The state if it is not torn: each sample lies in the data, behind the one before."""
    try:
        whole = legacy.read(folder, keys)
        if whole is None or bad_rows(whole, Snapshot(folder, whole)) is not None:
            return None
    except MapCorruptError:
        return None
    if whole.kind == STRINGS:
        starts, ends = (_column(folder, whole, role) for role in ("starts", "ends"))
        if _readable(folder, whole, starts, ends, whole.length) < whole.length:
            return None
    return whole


def _dense(folder: str, found: Manifest) -> tuple[Manifest, list[str]]:
    """All whole samples that there are bytes for; what is counted, where those do not come out even."""
    raw = read_small(os.path.join(folder, "shape.ninja"), 4096)
    counted = int.from_bytes(raw[:8], "little") if raw and len(raw) % 8 == 0 else None
    size = os.path.getsize(os.path.join(folder, found.files[DATA].name))
    rest = size - found.files[DATA].size
    lost = [f"the last {rest} bytes of data.ninja are no whole sample"] if rest else []
    if counted is None:
        return found, lost
    if rest and found.length > counted:  # nobody knows where the part of a sample lies
        sample = found.files[DATA].size // found.length
        found = _cut(found, counted, {DATA: counted * sample})
        return found, [f"{size - counted * sample} bytes of data.ninja are not counted in shape.ninja"]
    if found.length < counted:
        lost.append(f"samples {found.length} to {counted - 1} are not in data.ninja")
    if found.length > counted:
        lost.append(f"samples {counted} to {found.length - 1} were not counted in shape.ninja; they are saved")
    return found, lost


def _indexed(folder: str, found: Manifest) -> tuple[Manifest, list[str]]:
    columns = {role: _column(folder, found, role) for role in found.files if role not in (DATA, DICTIONARY)}
    starts, ends = columns["starts"], columns["ends"]
    total = os.path.getsize(os.path.join(folder, found.files[DATA].name)) // found.itemsize
    checks: list[Check] = [_Placed(starts, ends, total)]
    if found.kind != STRINGS:
        checks += _shape_checks(columns)
    length = _beginning(checks, min(len(column) for role, column in columns.items() if role != "shape_values"))
    if found.kind == STRINGS:
        length = _readable(folder, found, starts, ends, length)
    stop = int(ends[length - 1]) if length else 0
    sizes = dict.fromkeys(columns, 8 * length) | {DATA: stop * found.itemsize}
    if "shape_values" in columns:
        sizes["shape_values"] = 8 * int(columns["shape_ends"][length - 1]) if length else 0
    rows = max(len(column) for role, column in columns.items() if role != "shape_values")
    lost = []
    if rows > length:
        lost.append(f"of samples {length} to {rows - 1} some rows or bytes are missing")
    if total > stop:
        lost.append(
            f"{(total - stop) * found.itemsize} bytes of data.ninja belong to no sample that is whole; "
            "if 0.9.0 went on writing after it was interrupted, samples since then may be wrong"
        )
    return _cut(found, length, sizes), lost


def _column(folder: str, found: Manifest, role: str) -> Column:
    return np.frombuffer(MappedFile(folder, found.files[role]).bytes, "<i8")


def _cut(found: Manifest, length: int, sizes: dict[str, int]) -> Manifest:
    """The state with its first samples only; of `ends`, which nobody needs any more, with none."""
    files = {role: replace(file, size=sizes.get(role, file.size)) for role, file in found.files.items()}
    if found.kind != STRINGS:
        files.pop("ends", None)
    return replace(found, length=length, files=files)


def _beginning(checks: list[Check], count: int) -> int:
    """How many of so many rows pass all checks before the first that does not."""
    for first in range(0, count, _AT_ONCE):
        part = slice(first, min(first + _AT_ONCE, count))
        for check in checks:  # each of what the ones before have passed
            wrong = np.flatnonzero(~check(part))
            part = slice(first, first + int(wrong[0])) if len(wrong) else part
        if part.stop < min(first + _AT_ONCE, count):
            return part.stop
    return count


class _Placed:
    """Whether each sample lies behind the one before and in the data, and no later row points into it."""

    def __init__(self, starts: Column, ends: Column, total: int) -> None:
        self._starts, self._ends, self._total = starts, ends, total
        self._behind = [_least_behind(column) for column in (starts, ends)]

    def __call__(self, part: slice) -> Flags:
        starts, ends = self._starts[part], self._ends[part]
        before = np.zeros_like(starts)
        before[1:], before[:1] = ends[:-1], self._ends[part.start - 1] if part.start else 0
        placed: Flags = (starts == before) & (ends >= starts) & (ends <= self._total)
        for column, behind in zip((self._starts, self._ends), self._behind, strict=True):
            placed &= _least_after(column, part, behind) >= ends
        return placed


def _least_behind(column: Column) -> list[int]:
    """For each part of a column the least of all rows behind it."""
    found = [_MOST]
    for first in reversed(range(_AT_ONCE, len(column), _AT_ONCE)):
        found.append(min(found[-1], int(column[first : first + _AT_ONCE].min())))
    return found[::-1]


def _least_after(column: Column, part: slice, behind: list[int]) -> Column:
    """For each row of a part the least of all rows behind it."""
    end = (part.start // _AT_ONCE + 1) * _AT_ONCE
    rows = column[part.start + 1 : end]
    least = np.full(len(rows) + 1, behind[part.start // _AT_ONCE])
    least[:-1] = np.minimum(np.minimum.accumulate(rows[::-1])[::-1], least[-1])
    return least[: part.stop - part.start]


def _shape_checks(columns: dict[str, Column]) -> list[Check]:
    """Whether the shape of each sample has as many elements as the sample."""
    starts, ends, counts = columns["starts"], columns["ends"], columns["counts"]

    def is_counted(part: slice) -> Flags:
        return np.asarray(counts[part] == ends[part] - starts[part])

    if "shapes" in columns:  # of one axis; a scalar has the shape (0,)
        shapes = columns["shapes"]
        return [is_counted, lambda part: (shapes[part] == counts[part]) | ((shapes[part] == 0) & (counts[part] == 1))]
    begins, stops, values = columns["shape_starts"], columns["shape_ends"], columns["shape_values"]

    def has_shape(part: slice) -> Flags:
        bounds = zip(begins[part].tolist(), stops[part].tolist(), strict=True)
        products = np.array([int(np.prod(values[begin:stop])) for begin, stop in bounds], np.int64)
        is_scalar = (counts[part] == 1) & (products == 0) & (stops[part] - begins[part] == 1)
        return np.asarray((products == counts[part]) | is_scalar)

    return [is_counted, _Placed(begins, stops, len(values)), has_shape]


def _readable(folder: str, found: Manifest, starts: Column, ends: Column, length: int) -> int:
    """How many texts can be read before the first that cannot: not where its bytes were, or not the whole of it."""
    data = MappedFile(folder, found.files[DATA]).bytes
    dictionary = found.files.get(DICTIONARY)
    codec = None
    if found.codec is not None:
        codec = Zstd(found.codec.level, None if dictionary is None else bytes(MappedFile(folder, dictionary).bytes))
    for i in range(length):
        stored = data[starts[i] : ends[i]]
        try:
            bytes(stored if codec is None else codec.decompress(stored, None)).decode()
        except (MapCorruptError, UnicodeDecodeError):
            return i
    return length
