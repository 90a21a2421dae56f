"""One writer at a time: an advisory lock on `.lock`, which the kernel releases when its owner dies."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from mmap_ninja._storage import disk
from mmap_ninja.errors import ArgumentTypeError, MapLockedError

_flock: Callable[[int, int], None] | None
try:
    import fcntl

    _flock, _EXCLUSIVE, _UNLOCK = fcntl.flock, fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN
except ImportError:  # Windows: best effort, no lock
    _flock, _EXCLUSIVE, _UNLOCK = None, 0, 0

LOCK = ".lock"
_held: set[int] = set()
_is_changing = threading.RLock()  # no fork falls between opening a descriptor and knowing of it


def _close_in_child() -> None:
    # A forked worker must not keep its parent's lock alive. Closing a copy does not release it (flock).
    try:
        for fd in _held:
            with suppress(OSError):
                os.close(fd)
        _held.clear()
    finally:
        _is_changing.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_is_changing.acquire, after_in_parent=_is_changing.release, after_in_child=_close_in_child
    )


def is_held(folder: str) -> bool:
    """Whether somebody is writing now, as far as the system tells without taking the lock: Linux does."""
    try:
        status = os.stat(os.path.join(folder, LOCK))
        with open("/proc/locks") as file:
            held = [line.split() for line in file]
    except OSError:
        return False
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(fields[1] == "FLOCK" and place in fields for fields in held)


class Lock:
    """Held from construction until `release` or the end of the `with` block.

    Parameters: `folder` must exist; `timeout` is how many seconds to wait for another writer (0: do not wait).
    Raises `MapLockedError`.
    """

    def __init__(self, folder: str, timeout: float = 0.0) -> None:
        self._owner, self._path = os.getpid(), os.path.join(folder, LOCK)
        self._fd: int | None = None
        given: object = timeout
        if not isinstance(given, int | float) or isinstance(given, bool) or given != given:  # NaN waits for ever
            raise ArgumentTypeError(f"timeout is {timeout!r}, expected a number of seconds")
        with _is_changing:
            self._fd = disk.open_to_write(self._path, create=True)
            _held.add(self._fd)
        try:
            self._wait(folder, timeout)
        except BaseException:
            self.release()
            raise

    def _wait(self, folder: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._try():
            if time.monotonic() >= deadline:
                raise MapLockedError(
                    f"{folder} is being written by another process or handle; wait for it with timeout=seconds"
                )
            time.sleep(min(0.01, max(timeout, 0.0)))

    def _try(self) -> bool:
        if _flock is None or self._fd is None:
            return True
        with disk.explained(self._path, "lock this map"):
            try:
                _flock(self._fd, _EXCLUSIVE)
            except BlockingIOError:
                return False
        return True

    def release(self) -> None:
        """Let the next writer in; a second call does nothing."""
        fd = self._fd
        if fd is None or fd not in _held or self._owner != os.getpid():  # a forked child has closed it already
            return
        with _is_changing:
            with suppress(OSError):
                if _flock is not None:  # a child between fork and exec has a copy, which closing would not unlock
                    _flock(fd, _UNLOCK)
            _held.discard(fd)
            with suppress(OSError):
                disk.close(fd)
        self._fd = None

    def __del__(self) -> None:  # an interrupt may have fallen between two lines of who held it
        self.release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
