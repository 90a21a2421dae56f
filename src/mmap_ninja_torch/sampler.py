"""The order of mmap_ninja for a stock DataLoader: shuffled in no memory, shared between ranks, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from itertools import chain
from typing import Any, Generic, TypeVar

from torch.utils.data import Sampler

from mmap_ninja import Order, ReaderShard
from mmap_ninja.errors import StateError, noted
from mmap_ninja.indexing import integer
from mmap_ninja_torch.process import BATCH_SIZE_OF_STATES, Reader

T = TypeVar("T")


class _Ordered(Sampler[T], Generic[T]):
    """Goes by an `Order`."""

    def __init__(
        self,
        data_source: Sized | int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        shard: ReaderShard | None,
    ) -> None:
        n = len(data_source) if isinstance(data_source, Sized) else data_source
        self._reader = Reader(shard)
        size = integer("batch_size", batch_size, 1) * self._reader.shard.count
        self._order = Order(n, size, shuffle=shuffle, seed=seed, drop_last=drop_last, shard=self._reader.shard)
        self._epoch = 0  # the one that was begun last

    @property
    def shard(self) -> ReaderShard:
        """Which reader this is, and of how many."""
        return self._reader.shard

    @property
    def epoch(self) -> int:
        """The epoch that is being gone through, or was given up; else the one that comes next."""
        return self._order.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; a position in that very epoch that was loaded just before stays."""
        self._order.set_epoch(epoch)
        self._epoch = self._order.epoch

    def state_dict(self, seen: int | None = None) -> dict[str, Any]:
        """The position, as a dict of plain values.

        A DataLoader with workers asks for indices ahead of its batches. `seen` is how many of them (batches of a batch
        sampler, samples of a sampler) were got of the epoch that was begun last, by an earlier process too if a state
        was loaded; without it, all that were asked for count, which is right without workers and in torchdata's
        `StatefulDataLoader`. The state of an iteration that was given up is where it was left, until the next begins.
        """
        state = self._order.state_dict()
        if seen is not None:
            handed_out = integer("seen", seen, 0, len(self._order)) * self._order.batch_size
            state.update(epoch=self._epoch, samples_seen=min(handed_out, self._order.n))
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was called, also with another number of ranks. Raises `StateError`."""
        try:
            self._order.load_state_dict(state)
        except StateError as error:
            raise noted(error, BATCH_SIZE_OF_STATES)  # noqa: B904 - the same error, with a note
        self._epoch = self._order.epoch

    def _begun(self, batches: Callable[[int, int], Iterator[T]]) -> Iterator[T]:
        self._reader.check()
        return _Iteration(self, batches)

    def _from(self, epoch: int, start: int) -> Iterator[list[int]]:
        self._epoch = epoch
        return (indices.tolist() for indices in self._order.batches(epoch, start))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._order!r})"


class _Iteration(Iterator[T], Generic[T]):
    """An iteration that knows its epoch, for torchdata's `StatefulDataLoader`.

    That saves an iterator beside the sampler, and when it goes on it begins iterations that give nothing to the user:
    one that was over has to be over again, so that the epoch after it is left for the next one.
    """

    def __init__(self, sampler: _Ordered[T], batches: Callable[[int, int], Iterator[T]]) -> None:
        self._sampler, begun = sampler, list[int]()
        self._begun = begun  # the epoch, as soon as it has one

        def source(epoch: int, start: int) -> Iterator[T]:
            begun.append(epoch)
            return batches(epoch, start)

        self._items: Iterator[T] = sampler._order.through(source)

    def __next__(self) -> T:
        return next(self._items)

    def state_dict(self) -> dict[str, Any]:
        """The epoch. How much of it is left is what the sampler says."""
        return {"epoch": self._begun[0] if self._begun else self._sampler._order.begins_at()[0]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be the rest of that epoch, by the state that the sampler has loaded."""
        if self._sampler.epoch > state["epoch"]:
            self._items, self._begun = iter(()), [state["epoch"]]
        self._sampler.set_epoch(max(self._sampler.epoch, state["epoch"]))


class OrderBatchSampler(_Ordered[list[int]]):
    """Batches of indices: `DataLoader(dataset, batch_sampler=OrderBatchSampler(dataset, 32, shuffle=True))`.

    The same batches as those of `MmapLoader` with the same options, and of any number of ranks together: `batch_size`
    is that of one process. Each iteration is the next epoch, from its first batch on, whether the one before it was
    finished or given up; only after `load_state_dict` or `set_epoch`, it begins where they say. With several ranks,
    call `set_epoch` where iterations are given up: an `EpochWarning` says so, once. Accelerate divides batches by
    itself: there, `shard` has to be `ReaderShard()`.

    Args:
        data_source: A dataset, or how many samples there are.
        batch_size: Samples a batch, of this process.
        shuffle: Whether each epoch comes in an order of its own, which (seed, epoch) decide.
        seed: 0 to 2**64 - 1; the same for all ranks.
        drop_last: Whether to leave out the last batch if it is incomplete; if not, it is filled up to a multiple of
            the number of ranks with samples from the start of the epoch.
        shard: Which reader this is, and of how many; by default rank and world size of `torch.distributed`.

    Raises `ArgumentError` or `ArgumentTypeError`.

    Examples:
        >>> list(OrderBatchSampler(5, 2))
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        data_source: Sized | int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        shard: ReaderShard | None = None,
    ) -> None:
        super().__init__(data_source, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, shard=shard)
        self.batch_size, self.drop_last = batch_size, drop_last

    @property
    def sampler(self) -> OrderBatchSampler:
        """Itself: trainers look for a `set_epoch` here, as Lightning's does."""
        return self

    def __len__(self) -> int:
        """Batches an epoch, of this process."""
        return len(self._order)

    def __iter__(self) -> Iterator[list[int]]:
        return self._begun(self._from)


class OrderSampler(_Ordered[int]):
    """Indices one by one: `DataLoader(dataset, batch_size=32, sampler=OrderSampler(dataset))`.

    Instead of a `RandomSampler`, which needs a list of all indices, and a `DistributedSampler`: ranks take turns, and
    all get equally many. Each iteration is the next epoch, as that of an `OrderBatchSampler` is. Accelerate divides
    samples by itself, and so does Lightning unless `Trainer(use_distributed_sampler=False)`: `shard` has to be
    `ReaderShard()` there.

    Args:
        data_source: A dataset, or how many samples there are.
        shuffle: Whether each epoch comes in an order of its own, which (seed, epoch) decide.
        seed: 0 to 2**64 - 1; the same for all ranks.
        drop_last: Whether to leave out samples that do not suffice for all ranks; if not, some come twice.
        shard: Which reader this is, and of how many; by default rank and world size of `torch.distributed`.

    Raises `ArgumentError` or `ArgumentTypeError`.

    Examples:
        >>> sorted(OrderSampler(5))
        [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        data_source: Sized | int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        shard: ReaderShard | None = None,
    ) -> None:
        super().__init__(data_source, 1, shuffle=shuffle, seed=seed, drop_last=drop_last, shard=shard)

    def __len__(self) -> int:
        """Samples an epoch, of this process."""
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return self._begun(lambda epoch, start: chain.from_iterable(self._from(epoch, start)))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was called, also with another number of ranks that divides what was seen."""
        ranks = self._order.batch_size
        given: Any = state
        seen = given.get("samples_seen") if isinstance(given, Mapping) else None
        if isinstance(seen, int) and seen % ranks == 0:
            given = {**given, "batch_size": ranks}  # which is the number of ranks
        super().load_state_dict(given)
