"""Items that are made in a background thread, some ahead of the one who takes them."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

NAME = "mmap_ninja"  # of all threads that are ours, or the beginning of their names
PATIENCE = 1.0  # seconds


def is_ours() -> bool:
    """Whether this is one of our threads, which must not wait for the others."""
    return threading.current_thread().name.startswith(NAME)


class _Channel(Generic[T]):
    """What the two threads share. It does not know the one who takes, so that the thread does not keep him alive."""

    def __init__(self, items: Generator[T, None, None], most: int, stopped: threading.Event) -> None:
        self._items, self._most, self._stopped = items, most, stopped
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._is_stopped = self._is_done = self.is_orphan = False
        self._error: BaseException | None = None

    def fill(self) -> None:
        """Make items until there are no more of them, or nobody wants one."""
        try:
            try:
                for item in self._items:
                    if not self._put(item):
                        break
                    del item  # the one who takes it may be the last to hold it
            finally:
                self._items.close()  # it lets go in the thread that has run it
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._is_done = True
                self._changed.notify_all()

    def _put(self, item: T) -> bool:
        with self._changed:
            while len(self._ready) >= self._most and not self._is_stopped:
                self._changed.wait()
            if not self._is_stopped:
                self._ready.append(item)
                self._changed.notify_all()
            return not self._is_stopped

    def get(self) -> T:
        with self._changed:
            while not self._ready and not self._is_done:
                self._changed.wait()
            if not self._ready:
                if self._error is not None:
                    raise self._error
                raise StopIteration
            item = self._ready.popleft()
            self._changed.notify_all()
            return item

    def leave(self) -> None:
        """Begin anew in a forked child, where the thread is missing and may have held the lock."""
        self._changed, self._stopped, self.is_orphan = threading.Condition(), threading.Event(), True

    def stop(self) -> None:
        self._stopped.set()
        with self._changed:
            self._is_stopped = True
            self._ready.clear()
            self._changed.notify_all()


class Ahead(Generic[T]):
    """An iterator over `items`, which a thread goes through up to `most` items ahead.

    An error of `items` is raised when its turn has come, and again at each later call. The thread ends with the last
    item, an error, `close`, when nobody holds the iterator any more, and before the interpreter does. It does not
    exist in a forked child: whoever goes on there needs another one. `stopped` is set when no item is wanted any
    more, for items that take long.
    """

    def __init__(self, items: Generator[T, None, None], most: int, stopped: threading.Event | None = None) -> None:
        self._channel: _Channel[T] = _Channel(items, most, stopped or threading.Event())
        self._thread = threading.Thread(target=self._channel.fill, name=NAME, daemon=True)
        _running[self._thread] = self._channel
        self._thread.start()

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        return self._channel.get()

    def close(self) -> None:
        """Let the thread end, and wait for it, but not for ever.

        An iterator may be let go of anywhere: by the garbage collector in the very thread that this one waits for,
        or under a lock that a function of the user is waiting for in there.
        """
        self._channel.stop()
        if not self._channel.is_orphan and not is_ours():
            self._thread.join(PATIENCE)

    def __del__(self) -> None:
        # Without waiting: the thread may be in a function of the user that needs what this one holds.
        self._channel.stop()


_running: weakref.WeakKeyDictionary[threading.Thread, _Channel[Any]] = weakref.WeakKeyDictionary()


def _leave_all() -> None:
    for channel in _running.values():
        channel.leave()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)


@atexit.register
def _stop_all() -> None:
    # A daemon thread that still runs while the interpreter is taken apart can crash it.
    for thread, channel in list(_running.items()):
        channel.stop()
        thread.join()
