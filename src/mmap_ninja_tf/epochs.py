"""Which batch comes next, for datasets that are asked for batches by number."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from mmap_ninja import Batches


class Epochs:
    """The batches of all epochs, numbered without end, for one reader or for several that take turns.

    Each iteration begins where the one before it began, an epoch later; or where `go_to` has said, once. May be shared
    between threads.

    Args:
        batches: Those of each reader: the parts of the same global batches.
    """

    def __init__(self, batches: Sequence[Batches]) -> None:
        self._batches, self._lock = batches, threading.Lock()
        self._next = 0

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
            number, self._next = self._next, self._next + len(self)
        return number

    def go_to(self, step: int) -> None:
        """Let the next iteration begin with this global batch, counted from the beginning of epoch 0."""
        with self._lock:
            self._next = step * len(self._batches)

    def is_at(self, step: int) -> bool:
        """Whether the next iteration begins with this global batch."""
        return self._next == step * len(self._batches)

    def batch(self, number: int) -> Any:
        """The batch of this number."""
        step, reader = divmod(number, len(self._batches))
        return self._batches[reader].batch(*divmod(step, self.steps))

    def __getstate__(self) -> dict[str, Any]:
        return {"_batches": self._batches, "_next": self._next}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def state_dict(self, step: int) -> dict[str, Any]:
        """The state, as `Batches` has it, of which this global batch comes next."""
        return self._batches[0].state_at(*divmod(step, self.steps))

    def step_of(self, state: Mapping[str, Any]) -> int:
        """The global batch that comes next by such a state. Raises `StateError`."""
        epoch, k = self._batches[0].position_of(state)
        return epoch * self.steps + k
