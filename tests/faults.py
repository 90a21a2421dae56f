"""The disk, recorded, failing or dying at a chosen call: a double of the functions of `mmap_ninja._storage.disk`."""

import gc
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mmap_ninja._storage import disk

CHANGES = (
    "make_folder",
    "create_temporary",
    "open_to_write",
    "close",
    "close_kept",
    "write_at",
    "clone",
    "copy_range",
    "cut",
    "sync_data",
    "sync",
    "sync_folder",
    "replace",
    "remove",
    "remove_empty_folder",
)
KILLED = -signal.SIGKILL
MEMORY = "/dev/shm"


class Call(NamedTuple):
    """One call that changes the disk: the function, the name of the file, and where it writes."""

    function: str
    name: str
    offset: int | None = None
    size: int | None = None


class Strike(NamedTuple):
    """Where the double strikes: at call number `at`; `"half"` of a write is done before, or the call as a whole."""

    at: int
    moment: str = "before"


class Disk:
    """Records the calls while it is installed, and lets `fault` happen at one of them.

    Calls that the functions of `disk` make to each other count as part of the outer one. A failing `close` closes
    all the same, as Linux does.
    """

    def __init__(self, strike: Strike | None = None, fault: Callable[[], None] | None = None) -> None:
        self.calls: list[Call] = []
        self._strike, self._fault = strike, fault
        self._names: dict[int, str] = {}
        self._is_inside = False

    @contextmanager
    def installed(self) -> Iterator["Disk"]:
        real = {name: getattr(disk, name) for name in CHANGES}
        for name, function in real.items():
            setattr(disk, name, self._double(name, function))
        try:
            yield self
        finally:
            for name, function in real.items():
                setattr(disk, name, function)

    def strikes(self, *, seen: bool = False, after: bool = False) -> list[Strike]:
        """Every place where a second run of what was recorded can be struck.

        Of removals in a row the first and the last. `seen` leaves out the calls that a kill cannot tell from the
        next ones: closing and syncing change nothing that other processes see.
        """
        found = []
        for at, call in enumerate(self.calls):
            around = [call.function for call in self.calls[max(at - 1, 0) : at + 2]]
            if around == ["remove"] * 3 or (seen and call.function in ("close", "sync", "sync_data", "sync_folder")):
                continue
            found.append(Strike(at))
            if call.function in ("write_at", "copy_range"):
                found.append(Strike(at, "half"))
            if after and call.function in ("open_to_write", "create_temporary", "replace"):
                found.append(Strike(at, "after"))
        return found

    def of(self, *functions: str) -> list[Call]:
        return [call for call in self.calls if call.function in functions]

    def _double(self, name, real):
        def call(*args, **options):
            if self._is_inside:
                return real(*args, **options)
            self._is_inside = True
            try:
                return self._call(name, real, args, options)
            finally:
                self._is_inside = False

        return call

    def _call(self, name, real, args, options):
        at = len(self.calls)
        self.calls.append(self._described(name, args))
        moment = self._strike.moment if self._strike is not None and self._strike.at == at else None
        if moment == "before" and name not in ("close", "close_kept"):
            self._fault()
        if moment == "half" and name == "copy_range":
            source, fd, start, size, path = args
            real(source, fd, start, size // 2, path)
            self._fault()
        if moment == "half":
            raw = b"".join(args[1])
            real(args[0], [raw[: len(raw) // 2]], args[2])
            self._fault()
        result = real(*args, **options)
        if moment is not None:
            self._fault()
        if name in ("open_to_write", "create_temporary"):
            self._names[result] = os.path.basename(args[0])
        return result

    def _described(self, name: str, args: tuple) -> Call:
        if name == "write_at":
            return Call(name, self._name(args[0]), args[2], sum(len(memoryview(chunk)) for chunk in args[1]))
        if name == "clone":
            return Call(name, self._name(args[1]))
        if name == "copy_range":
            return Call(name, self._name(args[1]), args[2], args[3])
        if name == "cut":
            return Call(name, self._name(args[0]), args[1])
        if name == "close_kept":
            return Call("close", self._name(args[0][0]))
        if name in ("close", "sync", "sync_data"):
            return Call(name, self._name(args[0]))
        if name == "remove":
            return Call(name, args[1])
        return Call(name, os.path.basename(args[-1] if name == "replace" else args[0]))

    def _name(self, fd: int) -> str:
        """The name of an open file, also of one that was opened before this was installed."""
        return self._names.get(fd) or os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))


SYSTEM_CALLS = (
    "open",
    "read",
    "close",
    "pwritev",
    "copy_file_range",
    "ftruncate",
    "fsync",
    "fdatasync",
    "replace",
    "mkdir",
    "unlink",
    "rmdir",
)


class Os:
    """The module `os` as `disk` sees it: notes the system calls, and lets one of them fail.

    The call number `at` raises what `fault` makes: `"before"` it does anything, `"after"` it is done, or, a write,
    `"short"`: it takes half of the bytes, and the next call fails, or none where there is no fault. A failing `close`
    closes all the same, as Linux does.
    """

    def __init__(
        self, at: int | None = None, fault: Callable[[], BaseException] | None = None, moment: str = "before"
    ) -> None:
        self.calls: list[tuple[str, str]] = []  # the function and the name of the file
        self.has_fired = False
        self._read: set[int] = set()  # descriptors
        self._at, self._fault, self._moment = at, fault, moment

    @contextmanager
    def installed(self) -> Iterator["Os"]:
        disk.os = self
        try:
            yield self
        finally:
            disk.os = os

    def published(self) -> bool:
        """Whether a manifest, or what stands for it in format 1, was put in its place."""
        return any(call in self.calls for call in (("replaced", "manifest.json"), ("replaced", "type.ninja")))

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        return (lambda *args: self._call(name, real, args)) if name in SYSTEM_CALLS else real

    def _call(self, name: str, real: Callable, args: tuple) -> object:
        if name == "close" and args[0] in self._read:
            self._read.discard(args[0])
            return real(*args)
        target = args[-1] if name == "replace" else args[name == "copy_file_range"]
        target = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
        at, is_look = len(self.calls), name == "open" and not args[1] & os.O_RDWR
        self.calls.append(("open to read" if is_look else name, os.path.basename(target)))
        is_struck = at == self._at
        if is_struck and self._moment == "short":
            assert name in ("pwritev", "copy_file_range")
            self.has_fired = True
            if self._fault is not None:
                self._at, self._moment = at + 1, "before"
            if name == "copy_file_range":
                return real(*args[:2], max(args[2] // 2, 1), *args[3:])
            raw = b"".join(args[1])
            return real(args[0], [raw[: max(len(raw) // 2, 1)]], args[2])
        if is_struck and self._moment == "before" and name != "close":
            self._strike()
        try:
            result = real(*args)
        except OSError:
            if is_struck:
                self._strike()
            raise
        if is_look:
            self._read.add(result)
        if name == "replace":
            self.calls[at] = "replaced", os.path.basename(target)
        if is_struck:
            self._strike()
        return result

    def _strike(self) -> None:
        self.has_fired = True
        raise self._fault()


def recorded(act: Callable[[], object]) -> Disk:
    """The calls of `act`, which is done."""
    with Disk().installed() as double:
        act()
    return double


def killed_at(strike: Strike, act: Callable[[], object]) -> None:
    """Do `act` in a forked child that dies of SIGKILL there; one that lives on is an error."""

    def run() -> None:
        with Disk(strike, lambda: os.kill(os.getpid(), signal.SIGKILL)).installed():
            act()

    assert in_child(run) == KILLED


def start_child(act: Callable[[], object]) -> int:
    """Fork a child that does `act` and exits with 0, or 1 after printing the exception; returns its process id."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's idle threads make Python warn of the fork
        pid = os.fork()
    if pid == 0:
        status = 1
        gc.freeze()  # a collection that went through the parent's objects would copy every page of them
        try:
            act()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return pid


def exit_code(pid: int) -> int:
    """The exit status of a child, minus the number of the signal if it died of one."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(act: Callable[[], object]) -> int:
    return exit_code(start_child(act))


@contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """A folder in memory, where the system has room for one: what a kernel has taken outlives a process there too."""
    room = os.statvfs(MEMORY) if os.path.isdir(MEMORY) else None
    if room is None or room.f_bavail * room.f_frsize < 1 << 30:
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
