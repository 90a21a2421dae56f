"""Many samples of a map at once, and what its index knows of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from mmap_ninja import gather, lossless
from mmap_ninja._storage.index import Table
from mmap_ninja._storage.rows import places
from mmap_ninja._storage.snapshot import Snapshot
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    MapCorruptError,
    SampleError,
    SampleTypeError,
)
from mmap_ninja.gather import Array, Empty, Jagged, Padded, Rows
from mmap_ninja.indexing import Positions, integer, listed, positions

LIST, JAGGED = "list", "jagged"
_SIDES = ("right", "left")


@dataclass(frozen=True)
class Padding:
    """How samples of different shapes become one array; refuses values that make no sense.

    The first axis gets as long as the longest sample of the batch; or `length` exactly, which nothing may be longer
    than; or that rounded up to `multiple_of`; or the smallest of the ascending `buckets` that fits. `length` and
    `multiple_of` may be tuples with one entry an axis, None for the longest; all other axes get as long as the
    longest. `side` is where the padding goes, on every axis.

    Examples:
        >>> Padding(multiple_of=8).shape((13, 4))
        (16, 4)
        >>> Padding(length=(None, 6)).shape((13, 4))
        (13, 6)
    """

    pad_value: Any = 0
    length: int | Sequence[int | None] | None = None
    side: str = "right"
    multiple_of: int | Sequence[int | None] | None = None
    buckets: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.side not in _SIDES:
            raise ArgumentError(f"side is {self.side!r}, expected 'right' or 'left'")
        options = {"length": self.length, "multiple_of": self.multiple_of, "buckets": self.buckets}
        given = [name for name, option in options.items() if option is not None]
        if len(given) > 1:
            raise ArgumentError(f"{' and '.join(given)} contradict each other, expected at most one of them")
        object.__setattr__(self, "length", _entries("length", self.length, 0))
        object.__setattr__(self, "multiple_of", _entries("multiple_of", self.multiple_of, 1))
        if self.buckets is not None:
            object.__setattr__(self, "buckets", _checked_buckets(self.buckets))

    def shape(self, longest: tuple[int, ...]) -> tuple[int, ...]:
        """The padded shape of samples of which the longest on each axis is this long."""
        limits, steps = (_by_axis(name, getattr(self, name), len(longest)) for name in ("length", "multiple_of"))
        sizes = [
            limit if limit is not None else -(-size // (step or 1)) * (step or 1)
            for size, limit, step in zip(longest, limits, steps, strict=True)
        ]
        if self.buckets is not None:
            _by_axis("buckets", 0, len(longest))
            at = bisect_left(self.buckets, longest[0])
            sizes[0] = self.buckets[min(at, len(self.buckets) - 1)]
        return tuple(sizes)

    def gather(self, rows: Rows, empty: Empty = np.empty, part: slice | None = None) -> Padded:
        """These samples in one array; or a part of them, padded as all of them are."""
        rows, pad = gather.regular(rows), padding_value(self.pad_value, rows.dtype)
        longest = rows.longest
        if not longest and len(rows.numbers) == 0:  # an empty map: its samples may have any number of axes
            longest = (0,) * self._axes()
            rows = replace(rows, shapes=np.zeros((0, len(longest)), np.int64))
        return gather.padded(rows, self.shape(longest), pad, is_left=self.side == "left", empty=empty, part=part)

    def _axes(self) -> int:
        """How many axes the options speak of."""
        options = [self.length, self.multiple_of, self.buckets and 0]
        return max(0 if option is None else len(option) if isinstance(option, tuple) else 1 for option in options)


def _entries(name: str, option: Any, least: int) -> Any:
    """The option as an integer or a tuple of integers and None, each large enough."""
    if option is None:
        return None
    if isinstance(option, tuple | list):
        return tuple(None if entry is None else integer(name, entry, least) for entry in option)
    return integer(name, option, least)


def _checked_buckets(buckets: Any) -> tuple[int, ...]:
    if isinstance(buckets, str | bytes) or not hasattr(buckets, "__iter__"):
        raise ArgumentTypeError(f"buckets is {buckets!r}, expected ascending lengths")
    found = tuple(integer("a bucket", bucket, 0) for bucket in buckets)
    if not found or any(one >= other for one, other in pairwise(found)):
        raise ArgumentError(f"buckets is {buckets!r}, expected ascending lengths")
    return found


def _by_axis(name: str, option: Any, axes: int) -> tuple[int | None, ...]:
    """One entry for each axis; a single integer is for the first one."""
    if option is None:
        return (None,) * axes
    if not isinstance(option, tuple):
        if axes == 0:
            raise ArgumentError(f"{name} was given, but the samples are scalars: they have no axis to pad")
        return (option, *(None,) * (axes - 1))
    if len(option) != axes:
        raise ArgumentError(f"{name} is {option}, expected one entry for each of the {axes} axes of a sample")
    return option


@dataclass(frozen=True)
class PaddedPart:
    """A part of the samples in one array, padded as all of them are: one reader's part of a batch."""

    padding: Padding
    part: slice

    def gather(self, rows: Rows, empty: Empty = np.empty) -> Padded:
        """The part of these samples."""
        return self.padding.gather(rows, empty, self.part)


Layout = str | Padding | PaddedPart


class Taking(ABC):
    """Takes many samples at once, of a map or of a view of one."""

    kind: ClassVar[str]
    wrapper_fn: Callable[[Any], Any] | None

    @abstractmethod
    def take(self, indices: Any, out: Any = None) -> Any:
        """Many samples at once."""

    @abstractmethod
    def __getitem__(self, index: Any) -> Any:
        """One sample, or several."""

    def _getitems(self, indices: Sequence[int]) -> list[Any]:
        """Many samples, by the name under which Grain reads a batch of its sources."""
        # One by one, samples of one shape are views; together, they would be copied before they are stacked.
        return [self[index] for index in indices] if hasattr(self, "sample_shape") else self.take(indices)

    @abstractmethod
    def _gather(self, indices: Any, layout: Layout, empty: Empty = np.empty) -> Any:
        """A list of samples, `Jagged` or `Padded`, in arrays that `empty` makes, by `LIST`, `JAGGED` or a padding.

        All of one state, whatever other threads do to the handle.
        """

    def take_jagged(self, indices: Any) -> Jagged:
        """Many samples end to end in one array of their own, as `Jagged(values, offsets, shapes)`.

        `values` is `(total,)` of the map's dtype, each sample in C order; sample k of the batch is
        `values[offsets[k]:offsets[k + 1]]`, of shape `shapes[k]`. `offsets` is int64 `(b + 1,)`, `shapes` int64
        `(b, ndim)`. Texts and bytes are uint8, decompressed. Goes by what is stored, before any `wrapper_fn`.
        Raises `SampleIndexError`, `IndexTypeError`, `MapCorruptError`.
        """
        jagged: Jagged = self._gather(indices, JAGGED)
        return jagged

    def take_padded(
        self,
        indices: Any,
        pad_value: Any = 0,
        length: int | Sequence[int | None] | None = None,
        side: str = "right",
        multiple_of: int | Sequence[int | None] | None = None,
        buckets: Sequence[int] | None = None,
    ) -> Padded:
        """Many samples in one array of their own, as `Padded(values, lengths, shapes)`.

        `values` is `(b, *shape)` of the map's dtype, on each axis as long as the longest sample of the batch.
        Instead, the first axis can be `length` exactly, or a multiple of `multiple_of`, or the first of the ascending
        `buckets` that is long enough; tuples of `length` or `multiple_of` have an entry for each axis, None for the
        longest. `lengths` is int64 `(b,)`, `shapes` int64 `(b, ndim)`.

        `pad_value` fills the rest, on the right of each axis or, with `side="left"`, on the left; the map's dtype has
        to have it, and 0 stands for an empty value in every dtype. Goes by what is stored, before any `wrapper_fn`.
        Raises `SampleError` for a sample that is longer than `length` or all buckets, or where the samples differ in
        their number of axes; `ArgumentError`, `SampleIndexError`, `IndexTypeError`, `MapCorruptError`.
        """
        padded: Padded = self._gather(indices, Padding(pad_value, length, side, multiple_of, buckets))
        return padded


class Indexed(Taking):
    """Reads many samples of one state of a map, by the index of that state."""

    @abstractmethod
    def _opened(self) -> Snapshot:
        """The state that this handle sees, an empty one where there is no map yet."""

    @abstractmethod
    def _table(self, snapshot: Snapshot, found: Positions | None = None) -> Table:
        """The index rows of all samples, or of those that were found, which costs nothing for the others."""

    @abstractmethod
    def _many(self, index: Any) -> Any:
        """The samples at a slice, list, range, array or mask."""

    def take(self, indices: Any, out: Any = None) -> Any:
        """Many samples at once, `m[indices]` for any iterable of indices.

        Returns a list; for dense maps an array `(len(indices), *sample_shape)`. `out` is for dense maps only.
        Raises `SampleIndexError`, `IndexTypeError`.
        """
        if out is not None:
            raise ArgumentTypeError(f"take(out=...) is for dense maps; samples of a {self.kind} map differ in size")
        return self._many(listed(indices))

    def _gather(self, indices: Any, layout: Layout, empty: Empty = np.empty) -> Any:
        if layout == LIST:
            return self._many(listed(indices))
        snapshot = self._opened()
        rows = self._rows(snapshot, positions(listed(indices), snapshot.length))
        return gather.jagged(rows, empty) if isinstance(layout, str) else layout.gather(rows, empty)

    def _rows(self, snapshot: Snapshot, found: Positions) -> Rows:
        """These samples, of which none reaches beyond the data."""
        manifest, ndim, table = snapshot.manifest, snapshot.index.ndim, self._table(snapshot, found)
        starts, sizes, shapes = table[:, 0], table[:, -1], table[:, 1 : 1 + ndim]
        is_bad: Any = False
        if ndim != 1 or manifest.mixed:
            starts, sizes, is_bad = places(manifest, ndim, table)
        total = len(snapshot.data.bytes) // manifest.itemsize
        begin, size = starts.view(np.uint64), sizes.view(np.uint64)  # negative numbers become huge ones
        is_bad |= (size > total) | (begin > total - size)
        if is_bad.any():
            k = int(is_bad.argmax())
            row = tuple(table[k].tolist())
            raise MapCorruptError(
                f"{snapshot.folder}: the index row {row} of sample {found[k]} is wrong: there are {total} elements"
            )
        dtype = np.dtype(np.float64) if manifest.dtype is None else manifest.dtype
        return gather.Slices(dtype, shapes, sizes, found, snapshot.data.bytes, starts)


def padding_value(value: Any, dtype: np.dtype[Any]) -> Array:
    """The value as a 0-d array of the dtype, if that has it."""
    if type(value) is int and value == 0:
        return gather.allocated(np.zeros, (), dtype)
    try:
        array, leaves = lossless.read(value)
        if array.ndim:
            raise SampleTypeError(f"an array of shape {array.shape}, expected a single value")
        return lossless.fit(leaves, array, dtype, False)
    except SampleError as error:
        raise ArgumentError(f"pad_value: {error}") from None
    except SampleTypeError as error:
        raise ArgumentTypeError(f"pad_value: {error}") from None
