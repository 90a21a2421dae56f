"""Items that are made ahead in a background thread, as long as that saves time."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import suppress
from time import perf_counter
from typing import Generic, TypeVar

from mmap_ninja._ahead import Ahead, Retired

T = TypeVar("T")

_COST = 150e-6  # seconds to hand an item over, with both threads waiting for the interpreter's lock in turn
_WINDOW = 16  # items that are looked at together, or more


class Pace:
    """Whether a thread that is up to `most` items ahead pays, by how long the last ones took to be made and to be used.

    Of making some items while others are used, the shorter of both times is saved. Where that is less than handing
    them over takes, as with small batches and a quick step, they come faster without a thread.
    """

    def __init__(self, most: int) -> None:
        self.pays = True
        self._block = most + 1  # items that can be made while one is used, or used while one is made
        self._begin()

    def _begin(self) -> None:
        self._making = self._using = self._saved = 0.0
        self._count = 0

    def count(self, making: float, using: float) -> None:
        """Take the seconds of another item into account."""
        self._making, self._using, self._count = self._making + making, self._using + using, self._count + 1
        if self._count % self._block:
            return
        self._saved += min(self._making, self._using)
        self._making = self._using = 0.0
        if self._count >= _WINDOW:
            self.pays = self._saved / self._count > (_COST if self.pays else 2 * _COST)
            self._begin()


class Paced(Generic[T]):
    """An iterator over `items`, which are made by a thread up to `most` ahead while it pays, else by whoever asks.

    Whoever makes them calls what they call: nothing that depends on the thread. All else is as with `Ahead`, but that
    an error may be raised only once. What is learned stays in `pace`.
    """

    def __init__(self, items: Generator[T, None, None], most: int, stopped: threading.Event, pace: Pace) -> None:
        self._items, self._most, self._stopped, self._pace = items, most, stopped, pace
        self._ahead = self._begun()
        self._making = 0.0  # seconds, of the last item
        self._given: float | None = None  # when it was handed out

    def __iter__(self) -> Paced[T]:
        return self

    def __next__(self) -> T:
        if self._given is not None:
            self._pace.count(self._making, perf_counter() - self._given)
        item = self._next()
        self._given = perf_counter()
        return item

    def _next(self) -> T:
        if self._ahead is None:
            self._ahead = self._begun()
        if self._ahead is not None:
            if not self._pace.pays:
                self._ahead.retire()
            try:
                self._making = self._ahead.making
                return next(self._ahead)
            except Retired:
                self._ahead = None
        started = perf_counter()
        item = next(self._items)
        self._making = perf_counter() - started
        return item

    def _begun(self) -> Ahead[T] | None:
        """A thread, if it pays and can be had: at the end of the interpreter there are no new ones."""
        if self._pace.pays:
            with suppress(RuntimeError):
                return Ahead(self._items, self._most, self._stopped)
        return None

    def close(self) -> None:
        """Let the thread end, and wait for it as `Ahead.close` does."""
        if self._ahead is not None:
            self._ahead.close()
        with suppress(ValueError):  # the thread is still at an item, and closes them afterwards
            self._items.close()
