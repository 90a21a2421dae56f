"""Which samples make batch k: a pure function of the seed, the epoch and k, in the same little memory for any n.

No list of n numbers is kept or shuffled. A `Permutation` is a keyed bijection of `range(n)`, so any batch of any epoch
is computed from its number alone: going on from batch 10**6 takes no longer than starting, every reader finds its own
part without asking the others, and the numbers are the same with every version of NumPy and on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mmap_ninja._progress import LARGEST, Int64s, Progress
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, StateError
from mmap_ninja.indexing import boolean, integer
from mmap_ninja.permutation import BLOCK, MOST_SAMPLES, Permutation


@dataclass(frozen=True)
class ReaderShard:
    """One of the readers that share every batch: number `index` (from 0) of `count`.

    Raises:
        ArgumentTypeError: One of them is no integer.
        ArgumentError: There is no reader of that number.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", integer("count", self.count, 1))
        object.__setattr__(self, "index", integer("index", self.index, 0, self.count - 1))


def checked_shard(shard: Any) -> ReaderShard:
    """The same, if it is one. Raises `ArgumentTypeError`."""
    if not isinstance(shard, ReaderShard):
        raise ArgumentTypeError(f"shard is {shard!r}, expected a ReaderShard(index, count)")
    return shard


class Order(Progress):
    """Which samples come when: the batches of each epoch, as arrays of sample numbers, for one reader or for many.

    `batch_size` is the global batch, which all readers share: batch k of an epoch holds the same samples for any number
    of readers. Reader r of c gets the r-th of c equal parts, so the parts end to end are the batch of a single
    reader. A last, incomplete batch is left out with `drop_last`; else it is filled up to a multiple of the number of
    readers with the samples that the epoch began with. All readers thus have equally many batches and samples.

    Each iteration gives the batches of the next epoch, whether the one before it was finished or given up; only after
    `load_state_dict` or `set_epoch`, it begins where they say. With several readers, call `set_epoch` where iterations
    are given up: an `EpochWarning` says so, once. The memory does not grow with `n`.
    The state, `{"version", "n", "batch_size", "shuffle", "seed", "epoch", "samples_seen"}`, counts the samples of all
    readers together in this epoch; it is the same for every reader, and fits any number of them, with `drop_last` or
    without.

    Args:
        n: How many samples there are, at most 2**62.
        batch_size: Samples a batch, of all readers together: a multiple of their number.
        shuffle: Whether each epoch comes in an order of its own, else it is 0, 1, 2, ...
        seed: 0 to 2**64 - 1; the same for all readers.
        epoch: The epoch to begin with.
        drop_last: Whether to leave out the last batch if it is incomplete.
        shard: Which reader this is.

    Raises:
        ArgumentTypeError: An argument is of a wrong type.
        ArgumentError: An argument is out of its range, or the readers cannot share a batch evenly.

    >>> order = Order(10, 4, shuffle=True, seed=1)
    >>> for indices in order:
    ...     print(indices)
    [7 9 4 2]
    [0 3 5 1]
    [8 6]
    >>> order.epoch
    1
    >>> order.state_dict()
    {'version': 1, 'n': 10, 'batch_size': 4, 'shuffle': True, 'seed': 1, 'epoch': 1, 'samples_seen': 0}
    >>> Order(10, 4, shuffle=True, seed=1, shard=ReaderShard(index=1, count=2)).batch(epoch=0, k=2)
    array([6])
    """

    _unit = "samples_seen"

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        drop_last: bool = False,
        shard: ReaderShard = ReaderShard(),
    ) -> None:
        self.n: Final = integer("n", n, 0, MOST_SAMPLES)
        self.batch_size: Final = integer("batch_size", batch_size, 1)
        self.shuffle: Final = boolean("shuffle", shuffle)
        self.seed: Final = integer("seed", seed, 0, LARGEST)
        self.drop_last: Final = boolean("drop_last", drop_last)
        self.shard: Final = checked_shard(shard)
        if self.batch_size % shard.count:
            below = self.batch_size - self.batch_size % shard.count
            sizes = f"{below} or {below + shard.count}" if below else f"{shard.count}"
            raise ArgumentError(
                f"batch_size is {self.batch_size}, which {shard.count} readers cannot share evenly: take {sizes}"
            )
        super().__init__(epoch)
        self._permutation: Permutation | None = None  # of the epoch last asked for

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.n // self.batch_size if self.drop_last else -(-self.n // self.batch_size)

    def batch(self, epoch: int, k: int) -> Int64s:
        """This reader's part of batch `k` of an epoch: int64, a new array `(b,)`. The position of the order stays.

        Raises:
            ArgumentTypeError: An argument is no integer.
            ArgumentError: The epoch has no such batch.
        """
        return self._samples(integer("epoch", epoch, 0, LARGEST), self._positions(k, self.shard.index, 1))

    def whole_batch(self, epoch: int, k: int) -> Int64s:
        """Batch `k` of an epoch of all readers: their parts end to end, as `batch` gives one of them."""
        return self._samples(integer("epoch", epoch, 0, LARGEST), self._positions(k, 0, self.shard.count))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Int64s]:
        """The batches of an epoch from number `start` on, as `batch` gives them. The position of the order stays.

        They are computed for about 16,000 samples at a time, which takes a tenth of the time of as many calls of
        `batch`. Any number of such iterators may run, in any threads.

        Raises:
            ArgumentTypeError: An argument is no integer.
            ArgumentError: The epoch has fewer batches than `start`.
        """
        return self._blocks(integer("epoch", epoch, 0, LARGEST), integer("start", start, 0, len(self)))

    def __repr__(self) -> str:
        return (
            f"Order({self.n}, {self.batch_size}, shuffle={self.shuffle}, seed={self.seed}, epoch={self.epoch}, "
            f"drop_last={self.drop_last}, shard={self.shard})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_permutation": None}

    def _identity(self) -> dict[str, Any]:
        return {"n": self.n, "batch_size": self.batch_size, "shuffle": self.shuffle, "seed": self.seed}

    def _seen(self, batch: int) -> int:
        return min(batch * self.batch_size, self.n)

    def _batch(self, seen: int) -> int:
        if seen > self.n:
            raise StateError(f"a damaged state: samples_seen is {seen}, expected 0 to {self.n}")
        if seen % self.batch_size and seen != self.n:
            raise StateError(f"a damaged state: samples_seen is {seen}, no multiple of batch_size, {self.batch_size}")
        return -(-seen // self.batch_size)

    def _is_over(self, batch: int) -> bool:
        return batch >= len(self)

    @property
    def _readers(self) -> int:
        return self.shard.count

    def _positions(self, k: int, reader: int, count: int) -> Int64s:
        """Where in an epoch the samples of batch `k` stand that `count` readers get, from number `reader` on."""
        k = integer("k", k, 0)
        if k >= len(self):
            raise ArgumentError(f"k is {k}, but an epoch has {len(self)} batches")
        part = -(-min(self.batch_size, self.n - k * self.batch_size) // self.shard.count)
        first = (k * self.batch_size + reader * part) % self.n
        positions = np.arange(first, first + count * part, dtype=np.int64)
        if first + count * part > self.n:
            positions %= self.n
        return positions

    def _blocks(self, epoch: int, k: int) -> Iterator[Int64s]:
        complete, part = self.n // self.batch_size, self.batch_size // self.shard.count
        while k < complete:
            stop = min(k + max(1, BLOCK // part), complete)
            first = np.arange(k, stop, dtype=np.int64) * self.batch_size + self.shard.index * part
            yield from self._samples(epoch, first[:, np.newaxis] + np.arange(part, dtype=np.int64))
            k = stop
        if k < len(self):
            yield self.batch(epoch, k)

    def _samples(self, epoch: int, positions: Int64s) -> Int64s:
        if not self.shuffle:
            return positions
        permutation = self._permutation  # read once: other threads may ask for other epochs
        if permutation is None or permutation.epoch != epoch:
            self._permutation = permutation = Permutation(self.n, self.seed, epoch)
        return permutation(positions)
