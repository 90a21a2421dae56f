"""Short samples side by side in rows of one length, so that little of a batch is padding.

Rows are filled by first fit: each sample goes into the first row of a batch that still has room for it. A batch is
complete when a sample fits into none of its rows; that sample begins the next one. Which samples go where follows from
their lengths and their order alone, so every reader finds its rows without asking the others.

First fit: D. S. Johnson, Near-optimal bin packing algorithms, MIT 1973. For training on packed rows: M. Krell et al.,
Efficient Sequence Packing without Cross-contamination, arXiv:2107.02027.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from mmap_ninja._taking import padding_value
from mmap_ninja.errors import ArgumentError, SampleError
from mmap_ninja.gather import Array, Empty, Integers, Jagged
from mmap_ninja.indexing import boolean, integer
from mmap_ninja.order import Order, ReaderShard, checked_shard


class Packed(NamedTuple):
    """Samples side by side in rows: `values`, `segment_ids` and `positions`, each `(rows, length)`.

    `segment_ids` is int32, 1, 2, ... for the samples of a row, 0 where there is none; `positions` is int32, the place
    of each value in its sample.

    Examples:
        >>> samples = Jagged(np.array([5, 6, 7, 8, 9]), np.array([0, 2, 4, 5]), np.array([[2], [2], [1]]))
        >>> packed(samples, rows=2, length=3)
        Packed(values=array([[5, 6, 9],
               [7, 8, 0]]), segment_ids=array([[1, 1, 2],
               [1, 1, 0]], dtype=int32), positions=array([[0, 1, 0],
               [0, 1, 0]], dtype=int32))
    """

    values: Array
    segment_ids: Array
    positions: Array


class _Rows:
    """The rows of a batch while they are filled."""

    def __init__(self, rows: int, length: int) -> None:
        self.room = np.full(rows, length, np.int64)

    def place(self, size: int) -> int | None:
        """The row that a sample of this length goes into; None where no row has room for it."""
        row = int((self.room >= size).argmax())
        if self.room[row] < size:
            return None
        self.room[row] -= size
        return row


def check_pad_value(pad_value: Any, dtype: np.dtype[Any]) -> None:
    """Refuse a value that a dtype lacks. Raises `ArgumentError`, `ArgumentTypeError`."""
    padding_value(pad_value, dtype)


def packed(samples: Jagged, *, rows: int, length: int, pad_value: Any = 0, empty: Empty = np.empty) -> Packed:
    """These samples of one axis, in their order, as a batch of rows.

    Raises `SampleError` for samples of another number of axes, or that do not fit; `ArgumentError` for a `pad_value`
    that their dtype lacks.
    """
    rows, length = integer("rows", rows, 1), integer("length", length, 1)
    pad = padding_value(pad_value, samples.values.dtype)
    if samples.shapes.shape[1] != 1 or (samples.shapes < 0).any():
        raise SampleError("rows are packed with samples of one axis each")
    sizes = samples.shapes[:, 0]
    filled, counts = _Rows(rows, length), [0] * rows
    starts, segments = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int32)
    for k, size in enumerate(sizes.tolist()):
        row = filled.place(size)
        if row is None:
            raise SampleError(f"samples of lengths {sizes.tolist()!r:.100} do not fit into {rows} rows of {length}")
        counts[row] += size > 0
        starts[k], segments[k] = (row + 1) * length - filled.room[row] - size, counts[row]
    firsts = samples.offsets[:-1]
    at = np.arange(len(samples.values)) + np.repeat(starts - firsts, sizes)
    values = empty((rows, length), samples.values.dtype)
    segment_ids, positions = empty((rows, length), np.dtype(np.int32)), empty((rows, length), np.dtype(np.int32))
    for array, fill in ((values, pad), (segment_ids, 0), (positions, 0)):
        array[...] = fill
    values.reshape(-1)[at] = samples.values
    segment_ids.reshape(-1)[at] = np.repeat(segments, sizes)
    positions.reshape(-1)[at] = np.arange(len(samples.values)) - np.repeat(firsts, sizes)
    return Packed(values, segment_ids, positions)


class PackedOrder:
    """The samples of each batch of packed rows, as the `order` of a `Batches`.

    Args:
        lengths: The length of each sample, int64 `(n,)`.
        rows: Rows a batch, of all readers together: a multiple of their number.
        length: Values a row. No sample may be longer.
        shuffle, seed: Those of an `Order`, which says in what order the samples are packed.
        drop_last: Whether to leave out the last batch of an epoch, which may have empty rows.
        shard: Which reader this is; it gets the samples of its rows.

    How many batches an epoch has depends on its order, so there is no `len`. A reader may get no samples of a last
    batch; all readers have equally many batches nevertheless.

    >>> list(PackedOrder(np.array([3, 2, 2, 1, 4]), rows=2, length=4))
    [array([0, 1, 2, 3]), array([4])]
    """

    may_be_empty = True  # a batch

    def __init__(
        self,
        lengths: Integers,
        rows: int,
        length: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        shard: ReaderShard = ReaderShard(),  # noqa: B008 - it cannot be changed
    ) -> None:
        self._rows, self._length = integer("rows", rows, 1), integer("length", length, 1)
        self.shard: Final = checked_shard(shard)
        if self._rows % shard.count:
            raise ArgumentError(f"rows is {rows}, which {shard.count} readers cannot share evenly")
        lengths = np.asarray(lengths, np.int64)
        longest = int(np.max(lengths, initial=0))
        if longest > self._length:
            raise ArgumentError(f"a sample has length {longest}, more than a row of {length} takes")
        self._lengths, self._drop_last, self._epoch = lengths, boolean("drop_last", drop_last), 0
        self._order = Order(len(lengths), 1 << 14, shuffle=shuffle, seed=seed)
        part = self._rows // shard.count
        self._own = range(shard.index * part, (shard.index + 1) * part)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is."""
        self._epoch = epoch

    @property
    def identity(self) -> dict[str, Any]:
        """What the states of two of these have to agree on."""
        order = self._order
        return {"rows": self._rows, "length": self._length, "shuffle": order.shuffle, "seed": order.seed}

    def __iter__(self) -> Iterator[Integers]:
        return self._batches(self._epoch)

    def _batches(self, epoch: int) -> Iterator[Integers]:
        rows, own = _Rows(self._rows, self._length), list[int]()
        for numbers in self._order.batches(epoch):
            for number, size in zip(numbers.tolist(), self._lengths[numbers].tolist(), strict=True):
                row = rows.place(size)
                if row is None:
                    yield np.array(own, np.int64)
                    rows, own = _Rows(self._rows, self._length), []
                    row = rows.place(size)
                if row in self._own:
                    own.append(number)
        if not self._drop_last and len(self._lengths):
            yield np.array(own, np.int64)
