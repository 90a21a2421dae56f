"""Samples cut into windows of one length, read from the mapping where they lie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmap_ninja import gather
from mmap_ninja._grid import EvenGrid, Grid, Span, UnevenGrid
from mmap_ninja._storage.index import Table
from mmap_ninja._storage.manifest import BYTES, DENSE, STRINGS
from mmap_ninja._storage.mappings import is_hidden
from mmap_ninja._storage.snapshot import Snapshot
from mmap_ninja._taking import LIST, Layout
from mmap_ninja._view import View
from mmap_ninja.base import Mmap
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, MapCorruptError, SampleIndexError
from mmap_ninja.gather import Array, Empty, Even, Integers, Rows, Slices
from mmap_ninja.indexing import Positions


class Windows(View):
    """The windows of all samples of a map or view; made by `windows`."""

    def __init__(self, source: Mmap | View, span: Span) -> None:
        self._span = span
        super().__init__(source)

    def __reduce__(self) -> tuple[Any, ...]:
        return Windows, (self._held(), self._span)

    def _load(self, source: Any) -> None:
        super()._load(source)
        self._counted = _Counted(self._span, source)

    @property
    def _grid(self) -> Grid:
        self._held()
        return self._counted.grid

    def _check(self) -> None:
        source = self._held()
        if source.kind == STRINGS:
            raise ArgumentTypeError(
                "a window of a text would cut characters; store bytes (BytesMmap) or tokens (RaggedMmap) instead"
            )
        if source.wrapper_fn is not None:
            raise ArgumentError(
                "windows go by what is stored, before any wrapper_fn; open the map without one, and call the function "
                "on the windows: Wrapped(windows(...), wrapper_fn), or Batches(..., transform=...)"
            )
        if source._opened().manifest.codec is not None:
            raise ArgumentError("the map is compressed: each window would decompress its whole sample")
        shape = self._grid.shape or ()  # its errors are raised here
        itemsize = 8 if source.dtype is None else source.dtype.itemsize
        if math.prod(max(axis, 1) for axis in shape) * itemsize >= 2**63:
            raise ArgumentError(f"no array can have the shape {shape} of a window; take a shorter length")

    def close(self) -> None:
        """Let go of the map, which stays open; a second call does nothing."""
        super().close()
        self._counted = _Counted(self._span, None)

    def __len__(self) -> int:
        return self._grid.count

    @property
    def kind(self) -> str:  # type: ignore[override]
        """`"dense"` where all windows have one shape, else that of the map."""
        return super().kind if self._grid.shape is None else DENSE

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of every window, `AttributeError` where they differ."""
        shape = self._grid.shape
        if shape is None:
            raise AttributeError("these windows have no sample_shape: they are bytes, or differ in their other axes")
        return shape

    @property
    def uncovered(self) -> int:
        """How many elements along the first axes of the samples lie in no window."""
        return self._grid.uncovered

    def _places_of(self, found: Positions) -> tuple[Positions, Positions]:
        """The samples that these windows are of, and where each begins on their first axis."""
        samples, windows = self._grid.find(found)
        return samples, windows * self._span.stride

    def _read(self, i: int) -> Any:
        counted = self._counted
        sample, window = counted.grid.find_one(i)
        return counted.source.window(sample, window * self._span.stride, self._span.length)

    def _window(self, i: int, start: int, length: int) -> Any:
        if not 0 <= start <= start + length <= self._span.length:
            raise SampleIndexError(
                f"sample {i} has length {self._span.length}, the window is [{start}, {start + length})"
            )
        sample, window = self._grid.find_one(i)
        return self._held().window(sample, window * self._span.stride + start, length)

    def _each(self, found: Positions) -> Iterator[Any]:
        rows, is_bytes = self._rows(self._opened(), found), super().kind == BYTES
        for shape, part in zip(rows.shapes.tolist(), rows.parts(0, len(found)), strict=True):
            yield bytes(part) if is_bytes else np.ndarray([size for size in shape if size >= 0], rows.dtype, part)

    def _gathered(self, found: Positions, layout: Layout, empty: Empty) -> Any:
        shape = self._grid.shape
        if layout == LIST and shape is None:
            return list(self._each(found))
        rows = self._rows(self._opened(), found)
        if not isinstance(layout, str):
            return layout.gather(rows, empty)
        jagged = gather.jagged(rows, empty)
        return jagged if layout != LIST or shape is None else gather.reshaped(jagged.values, (len(found), *shape))

    def _fill(self, out: Any, found: Positions) -> Any:
        if self._grid.shape is None:
            raise ArgumentTypeError("take(out=...) is for windows of one shape; these may differ")
        snapshot = self._opened()
        rows, shape = self._rows(snapshot, found), (len(found), *self._grid.shape)
        fits = isinstance(out, np.ndarray) and (out.dtype, out.shape, out.flags.writeable) == (rows.dtype, shape, True)
        if not fits:
            raise ArgumentTypeError(f"out has to be a writable array of {rows.dtype} and shape {shape}")
        stored = np.frombuffer(snapshot.data.bytes, np.uint8)
        if out.flags.c_contiguous and not np.may_share_memory(out, stored) and not is_hidden(stored, out):
            rows.into(out)
        else:
            out[...] = gather.jagged(rows).values.reshape(shape)
        return out

    def _rows(self, snapshot: Snapshot, found: Positions) -> Rows:
        samples, begins = self._places_of(found)
        rows, shape = self._held()._rows(snapshot, samples), self._grid.shape
        if len(found) == 0:
            return rows if shape is None else Even.of(np.empty((0, *shape), rows.dtype), found)
        rows = _cut(rows, begins, self._span.length, snapshot)
        if shape is not None and rows.shapes.shape[1] > len(shape):  # other samples of a mixed map have more axes
            rows = replace(rows, shapes=np.ascontiguousarray(rows.shapes[:, : len(shape)]))
        return rows

    def _shapes(self, snapshot: Snapshot, found: Positions | None = None) -> Table:
        grid, count = self._grid, len(self) if found is None else len(found)
        if grid.shape is not None:
            return np.broadcast_to(np.array(grid.shape, np.int64), (count, len(grid.shape)))
        samples, _ = self._places_of(np.arange(count, dtype=np.int64) if found is None else found)
        shapes: Table = self._held()._shapes(snapshot, samples).copy()
        if count:  # the samples of an empty map may have no axis
            shapes[:, 0] = self._span.length
        return shapes

    def _places(self, snapshot: Snapshot, found: Positions | None = None) -> tuple[Table, Table]:
        samples, begins = self._places_of(np.arange(len(self), dtype=np.int64) if found is None else found)
        source = self._held()
        starts, sizes = source._places(snapshot, samples)
        if len(samples) == 0:  # the samples of an empty map may have no axis
            return starts, sizes
        inner = sizes // np.maximum(source._shapes(snapshot, samples)[:, 0], 1)
        return starts + begins * inner, inner * self._span.length


class _Counted:
    """The grid of one state, made at the first use, for a view and its twins together."""

    def __init__(self, span: Span, source: Any) -> None:
        self.span, self.source = span, source
        self._grid: Grid | None = None

    @property
    def grid(self) -> Grid:
        grid, source = self._grid, self.source
        if grid is None:  # two threads may both make it: a lock would have to be renewed in forked children
            is_even = hasattr(source, "sample_shape")
            n = len(source)
            grid = EvenGrid(self.span, n, source.sample_shape) if is_even else UnevenGrid(self.span, n, source)
            self._grid = grid
        return grid


def _cut(rows: Rows, begins: Integers, length: int, snapshot: Snapshot) -> Rows:
    """The windows `[begins[k], begins[k] + length)` of the first axes of these samples."""
    shapes = rows.shapes.copy()
    lengths = shapes[:, 0]
    is_bad = (begins < 0) | (begins + length > lengths)
    if is_bad.any():
        k = int(is_bad.argmax())
        raise MapCorruptError(
            f"{snapshot.folder}: sample {rows.numbers[k]} has length {lengths[k]} now, it was longer when its windows "
            "were counted"
        )
    inner = rows.sizes // np.maximum(lengths, 1)
    shapes[:, 0] = length
    sizes, offsets = inner * length, begins * inner
    if isinstance(rows, Slices):
        return replace(rows, shapes=shapes, sizes=sizes, starts=rows.starts + offsets)
    if isinstance(rows, _Strided):
        return replace(rows, shapes=shapes, sizes=sizes, begins=rows.begins + begins, length=length)
    assert isinstance(rows, Even)
    if not rows.array.flags.c_contiguous:
        return _Strided(rows.dtype, shapes, sizes, rows.numbers, rows.array, begins, length)
    data = rows.array.reshape(-1).view(np.uint8).data
    return Slices(rows.dtype, shapes, sizes, rows.numbers, data, rows.numbers * rows.sizes + offsets)


@dataclass(frozen=True)
class _Strided(Rows):
    """Windows of samples that do not lie end to end: dense maps of format 1 may be in Fortran order."""

    array: Array
    begins: Integers
    length: int

    def some(self, part: slice) -> Rows:
        """A part of them."""
        numbers, begins = self.numbers[part], self.begins[part]
        return replace(self, shapes=self.shapes[part], sizes=self.sizes[part], numbers=numbers, begins=begins)

    def parts(self, first: int, stop: int) -> list[memoryview]:
        """Copies."""
        places = zip(self.numbers[first:stop].tolist(), self.begins[first:stop].tolist(), strict=True)
        windows = (self.array[number, begin : begin + self.length] for number, begin in places)
        return [np.ascontiguousarray(window).reshape(-1).view(np.uint8).data.toreadonly() for window in windows]
