"""Items that are made ahead in a background thread, as long as that saves time."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import suppress
from time import perf_counter
from typing import Generic, TypeVar

from mmap_ninja._ahead import Ahead, Retired

T = TypeVar("T")

_COST = 300e-6  # seconds to hand an item over, with both threads waiting for the interpreter's lock in turn
_PERIOD = 128  # blocks that a thread makes until it is looked at again whether it pays


class Pace:
    """Whether a thread that is up to `most` items ahead pays, by how long items take to be made and to be used.

    Of making some items while others are used, the shorter of both times is saved. Where that is less than handing
    them over takes, as with small batches and a quick step, they come faster without a thread. Both times are measured
    without one, as each thread waits for the other: of some items at first, and of as many now and then.
    """

    def __init__(self, most: int) -> None:
        self._block = most + 1  # items that can be made while one is used, or used while one is made
        self._begin(pays=False)

    def _begin(self, *, pays: bool) -> None:
        self.pays = pays
        self._making = self._using = 0.0
        self._count = -1  # the first one may be longer in use than others: a step is compiled

    def count(self, making: float, using: float, *, is_ahead: bool) -> None:
        """Take the seconds of another item into account, which a thread has made ahead or not."""
        if is_ahead != self.pays:  # of those that were on their way when it changed
            return
        self._count += 1
        if is_ahead:
            if self._count >= _PERIOD * self._block:
                self._begin(pays=False)
        elif self._count > 0:
            self._making, self._using = self._making + making, self._using + using
            if self._count >= self._block:
                saved = min(self._making, self._using) / self._count
                self._begin(pays=saved > _COST)


class Paced(Generic[T]):
    """An iterator over `items`, which are made by a thread up to `most` ahead while it pays, else by whoever asks.

    Whoever makes them calls what they call: nothing that depends on the thread. All else is as with `Ahead`, but that
    an error may be raised only once. What is learned stays in `pace`.
    """

    def __init__(self, items: Generator[T, None, None], most: int, stopped: threading.Event, pace: Pace) -> None:
        self._items, self._most, self._stopped, self._pace = items, most, stopped, pace
        self._ahead: Ahead[T] | None = None
        self._making, self._is_ahead = 0.0, False  # seconds, of the last item, and whether a thread has made it
        self._given: float | None = None  # when it was handed out

    def __iter__(self) -> Paced[T]:
        return self

    def __next__(self) -> T:
        if self._given is not None:
            self._pace.count(self._making, perf_counter() - self._given, is_ahead=self._is_ahead)
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
                self._is_ahead = True
                return next(self._ahead)
            except Retired:
                self._ahead = None
        started = perf_counter()
        item = next(self._items)
        self._making, self._is_ahead = perf_counter() - started, False
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
