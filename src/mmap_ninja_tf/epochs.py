"""Which batch comes next, for datasets that are asked for batches by number."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from mmap_ninja import Batches
from mmap_ninja.errors import EpochWarning, warn

_GIVEN_UP = (
    "an iterator was given up, and the next one is the next epoch: if the datasets of other readers have begun fewer "
    "iterators, they are an epoch behind; let all readers begin equally many, or call FitPosition(dataset).fit, which "
    "sets the epoch as set_epoch does elsewhere"
)


class Epochs:
    """The batches of all epochs, numbered without end, for one reader or for several that take turns.

    Each iteration begins where the one before it began, an epoch later; or where `go_to` has said, once. May be shared
    between threads.

    Args:
        batches: Those of each reader: the parts of the same global batches.
        is_shared: Whether readers elsewhere have to be in the same epoch.
    """

    def __init__(self, batches: Sequence[Batches], *, is_shared: bool = False) -> None:
        self._batches, self._lock = batches, threading.Lock()
        self._next, self._made = 0, 0  # the numbers after what was begun, and after what was made of it
        self._may_warn = is_shared

    def __len__(self) -> int:
        """Batches an epoch, of these readers together."""
        return self.steps * len(self._batches)

    @property
    def steps(self) -> int:
        """Global batches an epoch."""
        return len(self._batches[0])

    @property
    def next(self) -> int:
        """The number of the first batch of the next iteration."""
        return self._next

    def begin(self) -> int:
        """The same, for an iteration that begins now."""
        with self._lock:
            number, is_given_up = self._next, self._made < self._next
            self._next, self._made = number + len(self), number
        if is_given_up and self._may_warn:
            self._may_warn = False
            warn(_GIVEN_UP, EpochWarning)
        return number

    def go_to(self, step: int) -> None:
        """Let the next iteration begin with this global batch, counted from the beginning of epoch 0."""
        with self._lock:
            self._next = self._made = step * len(self._batches)

    def is_at(self, step: int) -> bool:
        """Whether the next iteration begins with this global batch."""
        return self._next == step * len(self._batches)

    def batch(self, number: int) -> Any:
        """The batch of this number."""
        step, reader = divmod(number, len(self._batches))
        batch = self._batches[reader].batch(*divmod(step, self.steps))
        with self._lock:
            self._made = max(self._made, number + 1)
        return batch

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def state_dict(self, step: int) -> dict[str, Any]:
        """The state, as `Batches` has it, of which this global batch comes next."""
        return self._batches[0].state_at(*divmod(step, self.steps))

    def step_of(self, state: Mapping[str, Any]) -> int:
        """The global batch that comes next by such a state. Raises `StateError`."""
        epoch, k = self._batches[0].position_of(state)
        return epoch * self.steps + k
