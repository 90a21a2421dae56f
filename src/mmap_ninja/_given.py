"""Batches that the user has chosen: weighted sampling, a curriculum, batches of similar lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any

from mmap_ninja._progress import Int64s, Progress
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, IndexTypeError, SampleIndexError, StateError
from mmap_ninja.indexing import is_single, listed, positions
from mmap_ninja.order import ReaderShard


class GivenOrder(Progress):
    """Any iterable of index arrays, one a batch, as an order of `n` samples.

    Each epoch goes through it from the start, after a call of its own `set_epoch(epoch)` if it has one; going on from
    batch k passes over k of its batches. An iterator can be gone through once only. If it has `may_be_empty`, batches
    may have no samples; its `identity` is what the states of two of them have to agree on; its `shard`, a
    `ReaderShard`, says how many readers there are (`PackedOrder` has all three).
    """

    _unit = "batches_seen"

    def __init__(self, batches: Any, n: int) -> None:
        if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | dict):
            raise ArgumentTypeError(f"order is {batches!r:.100}, expected an iterable of index arrays, one a batch")
        super().__init__()
        self._given, self._n = batches, n
        self._is_used_up = False

    def __len__(self) -> int:
        if isinstance(self._given, Sized):
            return len(self._given)
        raise TypeError("the order that was given has no length")

    def batches(self, epoch: int, start: int = 0) -> Iterator[Int64s]:
        """The samples of each batch, from batch `start` on; they are looked at as they come."""
        given = self._begun(epoch)
        passed = sum(1 for _ in islice(given, start))
        if passed < start:
            raise StateError(f"the state is of batch {start}, but the order that was given has only {passed}")
        for k, indices in enumerate(given, start):
            if is_single(indices) and getattr(indices, "ndim", 0) == 0:  # tensors of any size have __index__
                raise ArgumentTypeError(
                    f"batch {k} of the order that was given is {indices!r}, expected the indices of several samples"
                )
            try:
                found = positions(listed(indices), self._n)
            except (IndexTypeError, SampleIndexError) as error:
                raise type(error)(f"batch {k} of the order that was given: {error}") from None
            if len(found) == 0 and not getattr(self._given, "may_be_empty", False):
                raise ArgumentError(f"batch {k} of the order that was given has no samples")
            yield found

    def _begun(self, epoch: int) -> Iterator[Any]:
        if self._is_used_up:
            raise ArgumentError(
                "the order that was given is an iterator, which can be gone through once; give a list, or an object "
                "whose __iter__ begins anew"
            )
        if hasattr(self._given, "set_epoch"):
            if hasattr(self._given, "load_state_dict"):  # it has a position, which it keeps if it is in this epoch
                self._given.set_epoch(epoch ^ 1)
            self._given.set_epoch(epoch)
        found = iter(self._given)
        self._is_used_up = found is self._given
        return found

    def _first(self) -> tuple[int, int, Int64s]:
        if iter(self._given) is self._given:
            raise ArgumentError(
                "the order that was given is an iterator, which can be gone through once: a look would use it up; give "
                "a list, or an object whose __iter__ begins anew"
            )
        return super()._first()

    def _identity(self) -> dict[str, Any]:
        return {"n": self._n, "order": getattr(self._given, "identity", "given")}

    def _seen(self, batch: int) -> int:
        return batch

    def _batch(self, seen: int) -> int:
        if isinstance(self._given, Sized) and seen > len(self._given):
            raise StateError(f"the state is of batch {seen}, but the order that was given has only {len(self._given)}")
        return seen

    def _is_over(self, batch: int) -> bool:
        return isinstance(self._given, Sized) and batch >= len(self._given)

    @property
    def _readers(self) -> int:
        shard = getattr(self._given, "shard", None)
        return shard.count if isinstance(shard, ReaderShard) else 1

    @property
    def _has_more(self) -> bool:
        return not self._is_used_up

    def __repr__(self) -> str:
        return f"<an order of {type(self._given).__name__} for {self._n} samples>"
