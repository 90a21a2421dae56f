"""How far somebody has gone through epochs of batches, and going on from there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from mmap_ninja.errors import ArgumentError, ArgumentTypeError, EpochWarning, StateError, warn
from mmap_ninja.indexing import integer

Int64s = np.ndarray[Any, np.dtype[np.int64]]
_T = TypeVar("_T")

STATE_VERSION = 1
LARGEST = 2**64 - 1  # seed and epoch


def _differ(found: Any, expected: Any) -> bool:
    return type(found) is not type(expected) or found != expected


@dataclass
class _Position:
    """The batch that comes next, whether an iteration has begun here, and whether `set_epoch` wants this very epoch."""

    epoch: int
    batch: int = 0
    taken: bool = False
    is_wanted: bool = False


class Progress(ABC):
    """Epochs of batches, which know how many of them were handed out.

    Each iteration is the next epoch, from its first `next()` on, whether the one before it was finished or given up;
    only after `load_state_dict` or `set_epoch`, the next one begins where they say. One whose first batch raises counts
    as given up.
    """

    _unit: ClassVar[str]  # the key in a state that says how far it is

    def __init__(self, epoch: int = 0) -> None:
        self._at = _Position(integer("epoch", epoch, 0, LARGEST))
        self._has_warned = False

    @abstractmethod
    def batches(self, epoch: int, start: int = 0) -> Iterator[Int64s]:
        """The batches of an epoch from number `start` on; the position stays."""

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """What a state and the object that loads it have to agree on."""

    @abstractmethod
    def _seen(self, batch: int) -> int:
        """What a state says when this batch comes next."""

    @abstractmethod
    def _batch(self, seen: int) -> int:
        """The batch that comes next when a state says this. Raises `StateError` for what none says."""

    @abstractmethod
    def _is_over(self, batch: int) -> bool:
        """Whether it is known that an epoch has no batch of this number."""

    @property
    @abstractmethod
    def _readers(self) -> int:
        """How many readers share the batches."""

    @property
    def _has_more(self) -> bool:
        """Whether there is an epoch after one that was gone through."""
        return True

    @property
    def epoch(self) -> int:
        """The epoch that is being gone through, or was given up; else the one that comes next.

        After a state was loaded of which nothing is left, that of the state, where the length of epochs is unknown.
        """
        return self._at.epoch

    def __iter__(self) -> Iterator[Int64s]:
        return self.through(self.batches)

    def through(self, source: Callable[[int, int], Iterable[_T]]) -> Iterator[_T]:
        """What `source(epoch, start)` gives, counted: `iter(self)` for things that are made of the batches.

        `source` is called at the first `next()` with the position and has to give one thing a batch, from batch
        `start` to the end of the epoch. It may prefetch: only what `next()` has returned counts as seen. Where it gives
        nothing of an epoch that was begun, it is called for the next one, from its start.

        >>> from mmap_ninja.order import Order
        >>> order = Order(5, 2)
        >>> list(order.through(lambda epoch, start: (f"batch {k}" for k in range(start, len(order)))))
        ['batch 0', 'batch 1', 'batch 2']
        """
        self._warn_if_ahead()
        places = self._places()
        self._at = at = _Position(*places[0], taken=True)
        for at.epoch, at.batch in places:
            start = at.batch
            for thing in source(at.epoch, start):
                at.batch += 1
                yield thing
                del thing  # it is not ours any more, and its memory may be for the next one
            if at.batch > start or not self._has_more:
                break
        if self._at is at:  # no younger iteration, `set_epoch` or `load_state_dict` has the word
            self._at = _Position(at.epoch + 1)

    def begins_at(self) -> tuple[int, int]:
        """The epoch, and the number in there, of the batch that the next iteration begins with; the position stays.

        >>> from mmap_ninja.order import Order
        >>> order = Order(5, 2)
        >>> for _ in zip(range(2), order):
        ...     print(order.begins_at(), order.position_of(order.state_dict()))
        (1, 0) (0, 1)
        (1, 0) (0, 2)
        """
        at = self._at
        return (at.epoch + 1, 0) if at.taken or self._is_seen(at) else (at.epoch, at.batch)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; a position in that very epoch that was loaded just before stays.

        Only needed to leave the sequence, as each iteration leads to the next epoch by itself, and where several
        readers give iterations up. An iteration that is running goes on, but no longer counts.
        """
        at = _Position(integer("epoch", epoch, 0, LARGEST))
        if self._at.taken or self._at.epoch != at.epoch:  # else a loop that sets each epoch could never be resumed
            self._at = at
        else:
            self._at.is_wanted = True

    def state_dict(self) -> dict[str, Any]:
        """The position, as a dict of plain values: JSON will do. It counts what `next()` has returned.

        That of an iteration that was given up is where it was left, until the next one begins.
        """
        return self.state_at(self._at.epoch, self._at.batch)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was called. The next iteration begins there, once.

        If nothing is left of that epoch, it is the next one; unless `set_epoch` says that it is to be that very one.

        Raises `StateError` for a state of something else, or none; the position stays as it was then.
        """
        self._at = _Position(*self.position_of(state))

    def state_at(self, epoch: int, batch: int) -> dict[str, Any]:
        """The state of which this batch of an epoch comes next; the position stays."""
        return {"version": STATE_VERSION, **self._identity(), "epoch": epoch, self._unit: self._seen(batch)}

    def position_of(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """The epoch, and the number in there, of the batch that comes next by a state; the position stays.

        Raises `StateError` for a state of something else, or none.

        >>> from mmap_ninja.order import Order
        >>> order = Order(5, 2)
        >>> order.position_of(order.state_at(3, 1)), order.position_of(order.state_at(3, 3))
        ((3, 1), (4, 0))
        """
        if not isinstance(state, Mapping):
            raise StateError(f"a state is what state_dict() gives, not a {type(state).__name__}")
        version = state.get("version", STATE_VERSION)
        if _differ(version, STATE_VERSION):
            raise StateError(f"the state is of version {version!r}, this release reads version {STATE_VERSION}")
        expected = self._identity()
        if missing := [key for key in ["version", *expected, "epoch", self._unit] if key not in state]:
            raise StateError(f"the state lacks {', '.join(missing)}; a state is what state_dict() gives")
        others = [
            f"{key} is {state[key]!r} there and {value!r} here"
            for key, value in expected.items()
            if _differ(state[key], value)
        ]
        if others:
            raise StateError(f"the state belongs to another order: {', '.join(others)}")
        try:
            epoch = integer("epoch", state["epoch"], 0, LARGEST)
            seen = integer(self._unit, state[self._unit], 0)
        except (ArgumentError, ArgumentTypeError) as error:
            raise StateError(f"a damaged state: {error}") from None
        batch = self._batch(seen)
        return (epoch + 1, 0) if batch and self._is_over(batch) else (epoch, batch)

    def __getstate__(self) -> dict[str, Any]:
        at = self._at
        at = _Position(*self.begins_at()) if self._is_seen(at) else replace(at, taken=False)
        return {**vars(self), "_at": at}

    def _first(self) -> tuple[int, int, Int64s]:
        """The epoch, the number and the samples of the batch that the next iteration begins with; the position stays.

        Raises `ArgumentError` if it has none.
        """
        for epoch, start in self._places():
            for indices in self.batches(epoch, start):
                return epoch, start, indices
        raise ArgumentError(f"epoch {epoch} has no batch {start}: there is nothing to look at")

    def _places(self) -> list[tuple[int, int]]:
        """Where the next iteration begins: at the first of these of which anything is left."""
        epoch, start = self.begins_at()
        return [(epoch, start), (epoch + 1, 0)] if start and not self._at.is_wanted else [(epoch, start)]

    def _is_seen(self, at: _Position) -> bool:
        """Whether it is known that nothing is left of an epoch that was begun."""
        return at.batch > 0 and self._is_over(at.batch)

    def _warn_if_ahead(self) -> None:
        """Warn, once, where an iteration that was given up may have been one of this reader alone."""
        at = self._at
        if self._readers > 1 and at.taken and not self._is_seen(at) and not self._has_warned:
            self._has_warned = True
            warn(
                f"an iteration of epoch {at.epoch} was given up, and the next one is epoch {at.epoch + 1}: this is one "
                f"of {self._readers} readers, and those that have begun fewer iterations are an epoch behind; let all "
                "readers call set_epoch(epoch) before each iteration, and peek() for a look at a batch",
                EpochWarning,
            )
