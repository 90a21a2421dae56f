"""Many samples into one array: side by side, end to end (jagged), or filled up to one shape (padded).

Plain functions over NumPy arrays and bytes; nothing here knows a map. Each takes `empty`, which makes the array that
is filled and returned, as `np.empty` does: give one that hands out buffers again, and nothing is allocated. Its
arrays have to be in C order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import gt
from typing import Any, NamedTuple

import numpy as np

from mmap_ninja.errors import SampleError

Array = np.ndarray[Any, np.dtype[Any]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Empty = Callable[[tuple[int, ...], np.dtype[Any]], Array]

_JOINED = 8192  # below this mean size in bytes, samples are joined first: a copy costs less than many assignments
_LARGE = 1 << 18  # bytes from which on a copy is left to NumPy, which lets other threads run meanwhile
_AT_ONCE = 256  # samples in one join, which so stays in the cache


class Jagged(NamedTuple):
    """Samples end to end, each in C order.

    `values` is `(total,)`, sample k lies at `values[offsets[k]:offsets[k + 1]]` and has the shape `shapes[k]`;
    `offsets` is int64 `(b + 1,)`, `shapes` int64 `(b, ndim)`, -1 for axes that a sample of a mixed map lacks.

    Examples:
        >>> batch = Jagged(np.arange(4), np.array([0, 3, 4]), np.array([[3], [1]]))
        >>> np.split(batch.values, batch.offsets[1:-1])
        [array([0, 1, 2]), array([3])]
    """

    values: Array
    offsets: Integers
    shapes: Integers


class Padded(NamedTuple):
    """Samples in one array `values` of shape `(b, *shape)`, which each of them fits into.

    `lengths` is int64 `(b,)`, the length of each sample (1 for scalars); `shapes` int64 `(b, ndim)`.

    Examples:
        >>> batch = Padded(np.array([[5, 6, 7], [8, 0, 0]]), np.array([3, 1]), np.array([[3], [1]]))
        >>> np.arange(3) < batch.lengths[:, None]
        array([[ True,  True,  True],
               [ True, False, False]])
    """

    values: Array
    lengths: Integers
    shapes: Integers


@dataclass(frozen=True)
class Rows(ABC):
    """The samples of a batch, wherever they lie.

    `shapes` is int64 `(b, ndim)`, `sizes` is how many elements each has, `numbers` is what errors call them, both
    int64 `(b,)`.
    """

    dtype: np.dtype[Any]
    shapes: Integers
    sizes: Integers
    numbers: Integers

    @property
    def longest(self) -> tuple[int, ...]:
        """How long the longest sample is on each axis, 0 where there is none."""
        return tuple(self.shapes.max(axis=0, initial=0).tolist())

    @abstractmethod
    def parts(self, first: int, stop: int) -> list[memoryview]:
        """The bytes of each of the samples `[first, stop)`."""

    def into(self, values: Array) -> None:
        """Fill an array of their dtype with all of them, end to end."""
        _write(values, len(self.sizes), self.parts)

    @abstractmethod
    def some(self, part: slice) -> Rows:
        """A part of them."""

    def joined(self, total: int, empty: Empty) -> Array:
        """The same as a new array of so many elements."""
        values = empty((total,), self.dtype)
        self.into(values)
        return values


@dataclass(frozen=True)
class Slices(Rows):
    """Samples that are slices of bytes: sample k begins `starts[k]` elements into `data`.

    Nothing is checked here: a wrong row has to be refused before.
    """

    data: memoryview
    starts: Integers

    @classmethod
    def joined_from(
        cls, dtype: np.dtype[Any], shapes: Integers, sizes: Integers, numbers: Integers, chunks: Iterable[Any]
    ) -> Slices:
        """Samples whose bytes follow one another in these chunks, which are copied."""
        starts = np.zeros(len(sizes), np.int64)
        starts[1:] = sizes[:-1].cumsum()
        return cls(dtype, shapes, sizes, numbers, memoryview(b"".join(chunks)), starts)

    def some(self, part: slice) -> Rows:
        """A part of them."""
        numbers, starts = self.numbers[part], self.starts[part]
        return replace(self, shapes=self.shapes[part], sizes=self.sizes[part], numbers=numbers, starts=starts)

    def parts(self, first: int, stop: int) -> list[memoryview]:
        """Views of the data."""
        data, starts = self.data, self.starts[first:stop] * self.dtype.itemsize
        stops = starts + self.sizes[first:stop] * self.dtype.itemsize
        return [data[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]

    def _is_scattered(self) -> bool:
        """Whether the samples do not lie end to end already."""
        starts, sizes = self.starts, self.sizes
        is_shuffled = len(starts) > 1 and starts[1] != starts[0] + sizes[0]  # seen at once, as a rule
        return len(starts) == 0 or is_shuffled or bool((starts[1:] != starts[:-1] + sizes[:-1]).any())

    def into(self, values: Array) -> None:
        """One copy, if the samples lie end to end already."""
        if self._is_scattered():
            super().into(values)
            return
        start, stop = int(self.starts[0]), int(self.starts[-1] + self.sizes[-1])
        _write(values, 1, lambda *_: [self.data[start * self.dtype.itemsize : stop * self.dtype.itemsize]])

    def joined(self, total: int, empty: Empty) -> Array:
        """Small ones are joined, if it does not matter where: that saves a copy."""
        count = len(self.sizes)
        if empty is np.empty and 0 < total * self.dtype.itemsize < _JOINED * count and self._is_scattered():
            return np.frombuffer(bytearray().join(self.parts(0, count)), self.dtype)
        return super().joined(total, empty)


@dataclass(frozen=True)
class Even(Rows):
    """Samples of one shape: `array[numbers]`. The numbers have to be from 0 to `len(array) - 1`."""

    array: Array

    @classmethod
    def of(cls, array: Array, numbers: Integers) -> Even:
        """These samples of an array `(n, *sample_shape)`."""
        shape = np.array(array.shape[1:], np.int64)
        sizes = np.full(len(numbers), shape.prod(dtype=np.int64))
        return cls(array.dtype, np.tile(shape, (len(numbers), 1)), sizes, numbers, array)

    @property
    def longest(self) -> tuple[int, ...]:
        """That of any of them, whether there is one or not."""
        return tuple(self.array.shape[1:])

    def some(self, part: slice) -> Rows:
        """A part of them."""
        return replace(self, shapes=self.shapes[part], sizes=self.sizes[part], numbers=self.numbers[part])

    def parts(self, first: int, stop: int) -> list[memoryview]:
        """Parts of a copy."""
        taken = _bytes(dense(self.array, self.numbers[first:stop]))
        size = len(taken) // max(stop - first, 1)
        return [taken[k * size : (k + 1) * size] for k in range(stop - first)]

    def into(self, values: Array) -> None:
        """One gather."""
        fill(values.reshape(len(self.numbers), *self.array.shape[1:]), self.array, self.numbers)


def dense(array: Array, positions: Integers, empty: Empty = np.empty) -> Array:
    """The samples `array[positions]`, as an array `(len(positions), *array.shape[1:])`.

    The positions have to be from 0 to `len(array) - 1`: they are not checked.
    """
    return fill(empty((len(positions), *array.shape[1:]), array.dtype), array, positions)


def fill(out: Array, array: Array, positions: Integers) -> Array:
    """The same into an array of that shape and dtype, which is returned."""
    if array.flags.c_contiguous:
        return np.take(array, positions, axis=0, out=out, mode="clip")
    out[...] = array[positions]  # np.take would first copy all of it into C order
    return out


def jagged(rows: Rows, empty: Empty = np.empty) -> Jagged:
    """The samples end to end; those that lie so already are one copy."""
    offsets = np.zeros(len(rows.sizes) + 1, np.int64)
    np.cumsum(rows.sizes, out=offsets[1:])
    return Jagged(rows.joined(int(offsets[-1]), empty), offsets, rows.shapes)


def padded(
    rows: Rows,
    shape: tuple[int, ...],
    pad: Array,
    *,
    is_left: bool = False,
    empty: Empty = np.empty,
    part: slice | None = None,
) -> Padded:
    """The samples in one array `(b, *shape)`, filled up with `pad`, a 0-d array of their dtype, on the right or left.

    Or a part of them. Raises `SampleError` for any sample that does not fit into `shape`.
    """
    if len(rows.numbers) and any(map(gt, rows.longest, shape)):  # of no samples, none is too long
        raise _too_long(rows, shape)
    rows = rows if part is None else rows.some(part)
    shapes = rows.shapes
    values = allocated(empty, (len(shapes), *shape), rows.dtype)
    if (shapes[:, 1:] == shape[1:]).all():
        _pad_ends(rows, pad, values, is_left)
    else:
        _pad_axes(rows, pad, values, is_left)
    return Padded(values, lengths(shapes), shapes)


def regular(rows: Rows) -> Rows:
    """The same rows, their shapes without the axes that none of the samples has.

    Raises `SampleError` where the samples differ in their number of axes.
    """
    if len(rows.shapes) == 0 or (rows.shapes >= 0).all():
        return rows
    axes = (rows.shapes >= 0).sum(axis=1)
    other = np.flatnonzero(axes != axes[0])
    if len(other):
        k = other[0]
        raise SampleError(
            f"sample {rows.numbers[0]} has {axes[0]} axes, sample {rows.numbers[k]} has {axes[k]}: they have no padded "
            "shape in common; take_jagged takes them"
        )
    return replace(rows, shapes=rows.shapes[:, : axes[0]])


def lengths(shapes: Integers) -> Integers:
    """The length of samples of these shapes: that of their first axis, 1 for scalars."""
    if shapes.shape[1] == 0:
        return np.ones(len(shapes), np.int64)
    return np.abs(shapes[:, 0])  # -1 for the scalars of a mixed map


def _too_long(rows: Rows, shape: tuple[int, ...]) -> SampleError:
    k, axis = (found[0] for found in np.nonzero(rows.shapes > np.array(shape)))
    where = f" on axis {axis}" if axis else ""
    return SampleError(
        f"sample {rows.numbers[k]} has length {rows.shapes[k, axis]}{where}, more than the {shape[axis]} that it would "
        "be padded to; give a larger length or bucket, or take a window of the sample"
    )


def allocated(empty: Empty, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array from `empty`; where that cannot be, `SampleError`: padding makes more of what is in a file."""
    try:
        return empty(shape, dtype)
    except (MemoryError, ValueError, OverflowError) as error:
        raise SampleError(f"there is no memory for a batch of shape {shape} and dtype {dtype}: {error}") from error


def reshaped(values: Array, shape: tuple[int, ...]) -> Array:
    """The values in this shape; `SampleError` where no array can have it, which may be so of no elements."""
    try:
        return values.reshape(shape)
    except ValueError:
        raise SampleError(f"no array of {values.dtype} can have the shape {shape}") from None


def _filled(shape: tuple[int, ...], pad: Array) -> Array:
    block = allocated(np.empty, shape, pad.dtype)
    block[...] = pad
    return block


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _write(values: Array, count: int, parts: Callable[[int, int], list[memoryview]]) -> None:
    """Fill the values with the parts of so many samples, end to end."""
    target, at = _bytes(values), 0
    is_joined = len(target) < _JOINED * count
    for first in range(0, count, _AT_ONCE):
        pieces = parts(first, min(first + _AT_ONCE, count))
        if is_joined:
            pieces = [memoryview(b"".join(pieces))]
        for piece in pieces:
            stop = at + len(piece)
            if len(piece) < _LARGE:
                target[at:stop] = piece
            else:
                np.copyto(np.frombuffer(target[at:stop], np.uint8), np.frombuffer(piece, np.uint8))
            at = stop


def _pad_ends(rows: Rows, pad: Array, values: Array, is_left: bool) -> None:
    """All axes but the first are equally long: there is one piece of padding for each sample."""
    missing = math.prod(values.shape[1:]) - rows.sizes
    if not missing.any():
        rows.into(values)
        return
    block, missing = _bytes(_filled((int(missing.max()),), pad)), missing * pad.itemsize

    def parts(first: int, stop: int) -> list[memoryview]:
        pieces = [block] * (2 * (stop - first))
        pieces[is_left::2] = rows.parts(first, stop)
        pieces[not is_left :: 2] = [block[:size] for size in missing[first:stop].tolist()]
        return pieces

    _write(values, len(missing), parts)


def _pad_axes(rows: Rows, pad: Array, values: Array, is_left: bool) -> None:
    """Any axis may need padding: each place is filled, then the sample copied into its corner."""
    block, shape = _filled(values.shape[1:], pad), np.array(values.shape[1:])
    for first in range(0, len(values), _AT_ONCE):
        stop = min(first + _AT_ONCE, len(values))
        own = rows.shapes[first:stop]
        ends = np.broadcast_to(shape, own.shape) if is_left else own
        samples = zip(rows.parts(first, stop), own.tolist(), (ends - own).tolist(), ends.tolist(), strict=True)
        for place, (part, size, begin, end) in zip(values[first:stop], samples, strict=True):
            place[...] = block
            place[tuple(map(slice, begin, end))] = np.ndarray(size, pad.dtype, part)
