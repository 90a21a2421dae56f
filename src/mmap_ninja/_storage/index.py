"""Where each sample begins and which shape it has, as rows `(start, *shape)` in elements.

`PackedIndex` reads the `index.npy` of format 2; `FlatColumns`, `ShapeColumns` and `TextColumns` read the separate
columns of format 1. All have the same methods: `row(i)` for one sample, as fast as Python allows; `table(first, stop)`
and `rows(positions)` for many, an int64 array `(count, 1 + ndim)` in which missing axes are -1.

A row is unpacked as unsigned: numpy would take a negative start for one, and read in front of the file. There is no
check of i: the columns have exactly as many rows as there are samples, negative numbers count from their end, and
beyond it `OUT_OF_RANGE` is raised.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from struct import Struct
from struct import error as struct_error
from typing import Any, Protocol

import numpy as np

from mmap_ninja.errors import MapCorruptError

Row = Callable[[int], tuple[int, ...]]
Unpack = Callable[[Any, int], tuple[int, ...]]
Table = np.ndarray[Any, np.dtype[np.int64]]
Places = slice | Table  # which rows: one after another, or any

SALVAGE = "`python -m mmap_ninja upgrade --salvage` rescues what is whole"  # of a folder that 0.9.0 has torn
OUT_OF_RANGE = (struct_error, OverflowError)

MISSING = -1  # an axis that a sample of a mixed map does not have, a raw size that the index does not know
_MAX_AXES = 64
_AT_ONCE = 1 << 20  # bytes of rows; what is calculated of them takes a few times as much
MISSING_IN_ROW = 2**64 - 1  # the same, as it reads in a row


class Index(Protocol):
    """What every index can do.

    Row i is `unpack(source, i * step)`: where that is a C function, no Python frame stands between a sample and
    its reader. `row(i)` is the same, for those who are in no hurry.
    """

    length: int
    unpack: Unpack
    source: Any
    step: int

    @property
    def ndim(self) -> int:
        """How many axes a row has room for."""

    @property
    def width(self) -> int:
        """How many numbers a row has."""

    def row(self, i: int) -> tuple[int, ...]:
        """One row."""

    def table(self, first: int, stop: int) -> Table:
        """The rows `[first, stop)` as an int64 array."""

    def rows(self, positions: Table) -> Table:
        """The rows at these positions, which are those of samples, as an int64 array; costs nothing for all others."""


class PackedIndex:
    """Rows one after another; `table` is a view of the mapped file."""

    __slots__ = ("length", "ndim", "source", "step", "unpack", "width")

    def __init__(self, values: memoryview, length: int, ndim: int, width: int) -> None:
        self.width, self.length, self.ndim = width, length, ndim
        self.unpack: Unpack = Struct(f"<{width}Q").unpack_from
        self.source, self.step = values, 8 * width

    def row(self, i: int) -> tuple[int, ...]:
        return self.unpack(self.source, i * self.step)

    def table(self, first: int, stop: int) -> Table:
        return np.ndarray((stop - first, self.width), "<i8", self.source, first * self.step)

    def rows(self, positions: Table) -> Table:
        return np.take(self.table(0, self.length), positions, axis=0, mode="clip")


class _Columns(ABC):
    """Rows that a function puts together."""

    __slots__ = ("length", "row", "source", "step", "unpack")

    def __init__(self, length: int, row: Row) -> None:
        self.length, self.row = length, row
        self.unpack: Unpack = lambda _, i: row(i)
        self.source, self.step = None, 1

    def table(self, first: int, stop: int) -> Table:
        return self._in_parts(stop - first, lambda part: self._at(slice(first + part.start, first + part.stop)))

    def rows(self, positions: Table) -> Table:
        return self._in_parts(len(positions), lambda part: self._at(positions[part]))

    def _in_parts(self, count: int, rows: Callable[[slice], Table]) -> Table:
        """So many rows; what is calculated for them takes no more memory than for some of them."""
        found = list(parts(count, self.width))
        if len(found) == 1:
            return rows(found[0])
        table = np.empty((count, self.width), np.int64)
        for part in found:
            table[part] = rows(part)
        return table

    @property
    @abstractmethod
    def width(self) -> int:
        """How many numbers a row has."""

    @abstractmethod
    def _at(self, where: Places) -> Table:
        """These rows."""


def _number(where: Places, k: int) -> int:
    """Which sample row k of these belongs to."""
    return where.start + k if isinstance(where, slice) else int(where[k])


def _column(values: memoryview) -> Table:
    return np.frombuffer(values, "<i8")


_read = Struct("<Q").unpack_from


@cache
def _reader_of(axes: int) -> Callable[[memoryview, int], tuple[int, ...]]:
    return Struct(f"<{axes}Q").unpack_from


class FlatColumns(_Columns):
    """Samples of one axis, or none: `shapes` repeats the count, or is 0 for a scalar of one element."""

    __slots__ = ("_counts", "_shapes", "_starts")
    ndim, width = 1, 2

    def __init__(self, starts: memoryview, counts: memoryview, shapes: memoryview) -> None:
        self._starts, self._counts, self._shapes = _column(starts), _column(counts), _column(shapes)

        def row(i: int) -> tuple[int, ...]:
            at = 8 * i
            start, count, shape = _read(starts, at)[0], _read(counts, at)[0], _read(shapes, at)[0]
            if shape == count:
                return start, count
            return _scalar_row(i, start, count, (shape,))

        super().__init__(len(starts) // 8, row)

    def _at(self, where: Places) -> Table:
        counts, shapes = self._counts[where], self._shapes[where]
        scalar = (shapes == 0) & (counts == 1)
        bad = np.flatnonzero((shapes != counts) & ~scalar)
        if len(bad):
            _scalar_row(_number(where, int(bad[0])), 0, int(counts[bad[0]]), (int(shapes[bad[0]]),))
        return np.stack([self._starts[where], np.where(scalar, MISSING, counts)], axis=1)


class ShapeColumns(_Columns):
    """Samples of any number of axes: their shapes lie end to end, from `[begins[i]` to `ends[i])`."""

    __slots__ = ("_begins", "_counts", "_ends", "_ndim", "_starts", "_values")

    def __init__(self, columns: Mapping[str, memoryview]) -> None:
        starts, counts = columns["starts"], columns["counts"]
        begins, ends, values = columns["shape_starts"], columns["shape_ends"], columns["shape_values"]
        self._starts, self._counts = _column(starts), _column(counts)
        self._values = _column(values[: len(values) // 8 * 8])  # which a hostile folder may say to be bytes
        self._begins, self._ends = _column(begins), _column(ends)
        self._ndim: int | None = None

        def row(i: int) -> tuple[int, ...]:
            at = 8 * i
            start, count, begin = _read(starts, at)[0], _read(counts, at)[0], _read(begins, at)[0]
            axes = _read(ends, at)[0] - begin
            if not 0 <= axes <= _MAX_AXES or 8 * (begin + axes) > len(values):
                raise MapCorruptError(f"the shape of sample {i} is said to have {axes} axes; {SALVAGE}")
            shape = _reader_of(axes)(values, 8 * begin)
            if math.prod(shape) == count:
                return start, *shape
            return _scalar_row(i, start, count, shape)

        super().__init__(len(starts) // 8, row)

    @property
    def ndim(self) -> int:
        """The most axes that a sample has; reads the whole index, once."""
        if self._ndim is None:
            axes = (self._ends[part] - self._begins[part] for part in parts(self.length, 1))
            self._ndim = max(0, min(max(int(some.max(initial=0)) for some in axes), _MAX_AXES))
        return self._ndim

    @property
    def width(self) -> int:
        return 1 + self.ndim

    def _at(self, where: Places) -> Table:
        starts, counts, begins = self._starts[where], self._counts[where], self._begins[where]
        axes, ndim = self._ends[where] - begins, self.ndim
        is_bad = (starts < 0) | (begins < 0) | (axes < 0) | (axes > ndim) | (begins > len(self._values) - axes)
        if is_bad.any():
            return self._one_by_one(where)
        table = np.full((len(starts), 1 + ndim), MISSING, np.int64)
        table[:, 0] = starts
        for axis in range(ndim):
            has_axis = axes > axis
            table[has_axis, 1 + axis] = self._values[begins[has_axis] + axis]
        shapes = np.where(np.arange(ndim) < axes[:, None], table[:, 1:], 1)
        is_sound = (shapes >= 0).all(axis=1) & (shapes.prod(axis=1) == counts)
        if not is_sound.all() or (shapes.astype(float).prod(axis=1) > 2.0**62).any():
            return self._one_by_one(where)
        return table

    def _one_by_one(self, where: Places) -> Table:
        """The same for rows among which there are scalars, or damaged ones: says which one it is."""
        numbers = range(self.length)[where] if isinstance(where, slice) else where.tolist()
        table = np.full((len(numbers), 1 + self.ndim), MISSING, np.int64)
        for k, i in enumerate(numbers):
            row = self.row(i)
            try:
                table[k, : len(row)] = row
            except OverflowError:
                raise MapCorruptError(f"sample {i} is said to lie at {row}; {SALVAGE}") from None
        return table


class TextColumns(_Columns):
    """Texts, by the bytes where they begin and end; where they are compressed, the raw size is not known."""

    __slots__ = ("_ends", "_raw", "_starts")
    ndim = 1

    def __init__(self, starts: memoryview, ends: memoryview, compressed: bool) -> None:
        self._starts, self._ends = _column(starts), _column(ends)
        self._raw: tuple[int, ...] = (MISSING_IN_ROW,) if compressed else ()
        raw = self._raw

        def row(i: int) -> tuple[int, ...]:
            start, end = _read(starts, 8 * i)[0], _read(ends, 8 * i)[0]
            if end < start:
                raise MapCorruptError(f"text {i} is said to lie at [{start}, {end}); {SALVAGE}")
            return start, end - start, *raw

        super().__init__(len(starts) // 8, row)

    @property
    def width(self) -> int:
        return 2 + len(self._raw)

    def _at(self, where: Places) -> Table:
        starts, ends = self._starts[where], self._ends[where]
        raw = [np.full(len(starts), MISSING, np.int64) for _ in self._raw]
        return np.stack([starts, ends - starts, *raw], axis=1)


def _scalar_row(i: int, start: int, count: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Format 1 marks a scalar by the shape (0,) and one element; everything else that disagrees is damage."""
    if shape == (0,) and count == 1:
        return (start,)
    raise MapCorruptError(f"sample {i} has shape {shape} but {count} elements; {SALVAGE}")


def parts(count: int, width: int) -> Iterator[slice]:
    """So many rows of so many numbers in parts of a bounded size, at least one part."""
    size = rows_at_once(width)
    for first in range(0, max(count, 1), size):
        yield slice(first, min(first + size, count))


def rows_at_once(width: int) -> int:
    """How many rows of so many numbers are looked at together."""
    return max(1, _AT_ONCE // (8 * width))


def tables(index: Index) -> Iterator[Table]:
    """All rows, a bounded number of them at a time."""
    for part in parts(index.length, index.width) if index.length else ():
        yield index.table(part.start, part.stop)


def widened(table: Table, width: int) -> Table:
    """The same rows with further axes, which are missing."""
    wide = np.full((len(table), width), MISSING, "<i8")
    wide[:, : table.shape[1]] = table
    return wide
