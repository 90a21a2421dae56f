"""Items that are made in a background thread, some ahead of the one who takes them."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Generator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")

NAME = "mmap_ninja"  # of all threads that are ours, or the beginning of their names
PATIENCE = 1.0  # seconds
_END = object()


class Retired(Exception):
    """The thread makes no more items: whoever takes them goes on with the generator himself."""


def is_ours() -> bool:
    """Whether this is one of our threads, which must not wait for the others."""
    return threading.current_thread().name.startswith(NAME)


class _Channel(Generic[T]):
    """What the two threads share. It does not know the one who takes, so that the thread does not keep him alive.

    Two queues written in C: a small batch is made in the time that a `threading.Condition` takes to hand it over.
    """

    def __init__(self, items: Generator[T, None, None], most: int, stopped: threading.Event) -> None:
        self._items, self._stopped = items, stopped
        self.thread = threading.Thread(target=self.fill, name=NAME, daemon=True)
        self._ready: SimpleQueue[Any] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()  # one for each item that may be made
        for _ in range(most + 1):  # while `most` are ready, the next one is made
            self._room.put(None)
        self.is_orphan = self.is_over = self.is_retiring = False
        self._error: BaseException | None = None
        self._has_retired = False

    def fill(self) -> None:
        """Make items until there are no more of them, or nobody wants one."""
        try:
            try:
                self._fill()
            finally:
                if not self._has_retired:
                    self._items.close()  # it lets go in the thread that has run it
        except BaseException as error:
            self._error = error
        finally:
            self._ready.put(_END)

    def _fill(self) -> None:
        while True:
            self._room.get()
            if self.is_retiring and not self._stopped.is_set():
                self._has_retired = True
                return
            item = _END if self._stopped.is_set() else next(self._items, _END)
            if item is _END or self._stopped.is_set():
                return
            self._ready.put(item)
            del item  # the one who takes it may be the last to hold it

    def get(self) -> T:
        item = self._ready.get()
        if item is _END:
            self._ready.put(_END)  # for the next call
            if self._has_retired:
                self.is_over = True  # others go on with the items, until they are stopped
                raise Retired
            if self._error is not None:
                raise self._error
            raise StopIteration
        self._room.put(None)
        taken: T = item
        return taken

    def leave(self) -> None:
        """Begin anew in a forked child, where the thread is missing."""
        self._stopped, self.is_orphan = threading.Event(), True
        self._error = RuntimeError("the thread that makes items ahead is in the process that this one was forked from")
        self._ready, self._room = SimpleQueue(), SimpleQueue()
        self._ready.put(_END)

    def retire(self) -> None:
        self.is_retiring = True
        self._room.put(None)

    def stop(self) -> None:
        self._stopped.set()
        self._room.put(None)
        with suppress(Empty):
            while self._ready.get_nowait() is not _END:
                pass
            self._ready.put(_END)


class Ahead(Generic[T]):
    """An iterator over `items`, which a thread goes through up to `most` items ahead.

    An error of `items` is raised when its turn has come, and again at each later call. The thread ends with the last
    item, an error, `close`, when nobody holds the iterator any more, and before the interpreter does. It does not
    exist in a forked child: whoever goes on there needs another one. `stopped` is set when no item is wanted any
    more, for items that take long.
    """

    def __init__(self, items: Generator[T, None, None], most: int, stopped: threading.Event | None = None) -> None:
        self._channel: _Channel[T] = _Channel(items, most, stopped or threading.Event())
        _running.add(self._channel)
        try:
            self._channel.thread.start()
        except RuntimeError:  # there are no more threads
            self._channel.is_over = True
            raise

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        return self._channel.get()

    def retire(self) -> None:
        """Let the thread end without closing `items`; after those that are ready, `Retired` is raised."""
        self._channel.retire()

    def close(self) -> None:
        """Let the thread end, and wait for it, but not for ever.

        An iterator may be let go of anywhere: by the garbage collector in the very thread that this one waits for,
        or under a lock that a function of the user is waiting for in there.
        """
        if self._channel.is_over:
            return
        self._channel.stop()
        if not self._channel.is_orphan and not is_ours():
            self._channel.thread.join(PATIENCE)

    def __del__(self) -> None:
        # Without waiting: the thread may be in a function of the user that needs what this one holds.
        if not self._channel.is_over:
            self._channel.stop()


# Only a thread that runs keeps its channel, whose error may refer to all that was there when it was raised.
_running: weakref.WeakSet[_Channel[Any]] = weakref.WeakSet()


def _leave_all() -> None:
    for channel in _running:
        channel.leave()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)


@atexit.register
def _stop_all() -> None:
    # A daemon thread that still runs while the interpreter is taken apart can crash it.
    for channel in list(_running):
        channel.stop()
        with suppress(RuntimeError):  # it was never started
            channel.thread.join()
        channel.is_over = True  # what is taken apart later does not need the names of this module
