"""One writer at a time: an advisory lock on `.lock`, which the kernel releases when its owner dies."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain
from types import MappingProxyType, TracebackType

from mmap_ninja._storage import disk
from mmap_ninja._storage.manifest import NEXT
from mmap_ninja.errors import (
    ArgumentTypeError,
    MapChangedError,
    MapLockedError,
    MapNotFoundError,
    MmapNinjaError,
    Telling,
    committed,
    set_committed,
)

_flock: Callable[[int, int], None] | None
try:
    import fcntl

    _flock, _EXCLUSIVE, _UNLOCK = fcntl.flock, fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN
except ImportError:  # Windows: best effort, no lock
    _flock, _EXCLUSIVE, _UNLOCK = None, 0, 0

LOCK = ".lock"
# The descriptors of all locks. Those whose lock an interrupt has left behind are closed when the next one is taken: a
# finalizer would do it at once, but Python drops each Ctrl-C that comes while one runs.
_held: list[tuple[weakref.ref[Lock], list[int]]] = []
_is_changing = threading.RLock()  # no fork falls between opening a descriptor and knowing of it


def _close_in_child() -> None:
    # A forked worker must not keep its parent's lock alive. Closing a copy does not release it (flock).
    try:
        for fd in chain.from_iterable(fds for _, fds in _held):
            with suppress(OSError):
                os.close(fd)
        for _, fds in _held:
            fds.clear()
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
    """The right to change one folder, held from construction until `release` or the end of the `with` block.

    Whatever changes the folder has to have one, and asks it for the `path` of each file. The folder must exist, but
    not before `acquire` where `at_once` is False. `timeout` is how many seconds to wait for another writer (0: do not
    wait). Raises `MapLockedError`.
    """

    _owner = 0  # no process: an interrupt may come before anything else is set

    def __init__(self, folder: str, timeout: float = 0.0, *, at_once: bool = True) -> None:
        self.folder, self.was_shared = folder, False  # by a hard-linked copy of the folder
        self.copied: dict[str, disk.Identity | None] = {}  # files that were copied to new ones, by their names
        self._path, self._timeout, self._owner = os.path.join(folder, LOCK), timeout, os.getpid()
        self._fds: list[int] = []  # that of the file, from the moment that it is open
        self._identity = (0, 0)
        given: object = timeout
        if not isinstance(given, int | float) or isinstance(given, bool) or given != given:  # NaN waits for ever
            raise ArgumentTypeError(f"timeout is {timeout!r}, expected a number of seconds")
        if at_once:
            self.acquire()

    @property
    def is_held(self) -> bool:
        """True between `acquire` and `release`."""
        return bool(self._fds)

    def acquire(self) -> None:
        """Lock the folder."""
        deadline = time.monotonic() + self._timeout
        try:
            self._open()
            while not self._is_locked_here():
                if time.monotonic() >= deadline:
                    raise MapLockedError(
                        f"{self.folder} is being written by another process or handle; wait for it with timeout=seconds"
                    )
                time.sleep(min(0.01, max(self._timeout, 0.0)))
            if self._fds and disk.had_links(self._fds[0]):
                self._take_apart()
        except BaseException:
            self.release()
            raise

    def path(self, name: str) -> str:
        """The path of a file of the folder, to change it. Raises `MapChangedError`; see `check`."""
        self.check()
        return os.path.join(self.folder, name)

    def explain(self, error: BaseException | None) -> None:
        """Raise `MapChangedError` for an error that may have come of a folder that is not here any more."""
        if isinstance(error, MmapNinjaError) and self.is_held and not isinstance(error, MapChangedError):
            try:
                self.check()
            except MapChangedError as change:
                set_committed(change, error.committed)
                raise change from error
            except MmapNinjaError:  # it cannot be told: the error that led here is the one to hear of
                return

    def check(self, files: Mapping[str, disk.Identity] = MappingProxyType({})) -> None:
        """Raise `MapChangedError` if the folder was moved, removed or replaced since it was locked.

        Also if one of `files`, open ones by their names, was. SQLite looks at device and inode in this way
        (https://sqlite.org/howtocorrupt.html, section 2.5).
        """
        if not self._is_here():
            raise self._changed(self.folder)
        for name, identity in files.items():
            if not disk.is_at(identity, path := os.path.join(self.folder, name)):
                raise self._changed(path)

    @staticmethod
    def _changed(what: str) -> MapChangedError:
        return MapChangedError(
            f"{what} was moved, removed or replaced while the map was written to; what is there now was left alone: "
            "open the map that is meant, and make the call again"
        )

    def _open(self) -> None:
        with _is_changing:
            for fds in [fds for owner, fds in _held if owner() is None]:
                _release(fds)
            _held.append((weakref.ref(self), self._fds))
            fd = disk.open_to_write(self._path, create=True, keep=self._fds)
        self._identity = disk.identity(fd)

    def _is_here(self) -> bool:
        return self.is_held and disk.is_at(self._identity, self._path)

    def _is_locked_here(self) -> bool:
        """Lock the file that has the name now, unless another writer has locked it."""
        while self._fds and _is_locked(self._fds[0], self._path):
            if self._is_here():
                return True
            self.release()
            try:
                self._open()
            except MapNotFoundError:
                raise self._changed(self.folder) from None
        return False

    def _take_apart(self) -> None:
        """Give the folder a lock of its own, where a hard-linked copy of the folder shares this one.

        The new one is held before it has the name. Who waits for the old one finds that it is not there any more.
        """
        shared, self._fds, self.was_shared = self._fds, [], True
        try:
            with _is_changing:
                _held.append((weakref.ref(self), self._fds))
                fd = disk.create_temporary(self._path + NEXT, keep=self._fds)
            self._identity = disk.identity(fd)
            _is_locked(fd, self._path)
            disk.replace(self._path + NEXT, self._path)
        finally:
            _release(shared)

    def release(self) -> None:
        """Let the next writer in; a second call does nothing."""
        if self._owner != os.getpid():  # a forked child has closed it already
            return
        try:
            _release(self._fds)
        except BaseException:  # Ctrl-C
            _release(self._fds)
            raise

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with Telling(committed(error)):
            try:
                self.explain(error)
            finally:
                self.release()


def _is_locked(fd: int, path: str) -> bool:
    """Lock an open file, unless another one has."""
    with disk.explained(path, "lock this map"):
        try:
            if _flock is not None:
                _flock(fd, _EXCLUSIVE)
        except BlockingIOError:
            return False
    return True


def _release(fds: list[int]) -> None:
    """Unlock and close the file of a lock; whatever interrupts that, it can be done again."""
    if fds:
        with suppress(OSError):
            if _flock is not None:  # a child between fork and exec has a copy, which closing would not unlock
                _flock(fds[0], _UNLOCK)
        with _is_changing:
            with suppress(OSError):
                disk.close_kept(fds)
            _held[:] = [held for held in _held if held[1]]
