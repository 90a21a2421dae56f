"""What is done to a disk, and every state that a power cut can leave of it."""

import hashlib
import itertools
import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from mmap_ninja._storage import disk

ABSENT, WHOLE, HALF, ZEROS, STALE = range(5)
_CACHE = 1 << 28  # bytes of contents that are kept between states
_NOT_RECORDED = {  # calls of os that `disk` does not make
    *("write", "pwrite", "truncate", "posix_fallocate", "sendfile"),
    *("rename", "renames", "link", "symlink", "remove", "removedirs", "makedirs", "mkfifo", "mknod", "sync"),
}


class Call(NamedTuple):
    """One call: what it does, to which file (a number, for names change) or which names, relative to the top."""

    what: str
    file: int = -1
    name: str = ""
    data: bytes = b""
    at: int = 0
    source: str = ""

    @property
    def place(self) -> int | str | None:
        """What has to be synced to make this durable: a file or a folder."""
        if self.what in ("write", "cut", "sync"):
            return self.file
        return None if self.what == "returned" else self.name if self.what == "sync folder" else parent(self.name)

    @property
    def variants(self) -> tuple[int, ...]:
        return (ABSENT, WHOLE, HALF, ZEROS, STALE) if self.what == "write" else (ABSENT, WHOLE)

    def left(self, fate: int) -> bytes:
        """What of a write that is not absent has reached the disk; stale are blocks that others have used before."""
        if fate == STALE:
            return random.Random(self.at).randbytes(len(self.data))
        if fate == ZEROS:
            return bytes(len(self.data))
        return self.data if fate == WHOLE else self.data[: len(self.data) // 2]


def parent(name: str) -> str:
    return os.path.dirname(name) or "."


class Tree(NamedTuple):
    """A disk: its folders, and the content of its files with a digest, by their names."""

    folders: frozenset[str]
    files: dict[str, tuple[bytes, bytes]]

    def key(self) -> tuple:
        return self.folders, frozenset((name, digest) for name, (_, digest) in self.files.items())

    def write(self, top: str) -> None:
        os.makedirs(top, exist_ok=True)
        for name in sorted(self.folders - {"."}):
            os.mkdir(f"{top}/{name}")
        for name, (content, _) in self.files.items():
            with open(f"{top}/{name}", "wb", buffering=0) as file:
                file.write(content)


class _Os:
    """The module `os` as `disk` sees it, which tells a recording of each call that changes something."""

    def __init__(self, recording: "Recording") -> None:
        self._to = recording

    def __getattr__(self, name: str) -> object:
        assert name not in _NOT_RECORDED, f"a call of os.{name} would not be recorded"
        return getattr(os, name)

    def open(self, path: str, flags: int, *mode: int) -> int:
        fd = os.open(path, flags, *mode)
        self._to.opened(fd, path, flags)
        return fd

    def close(self, fd: int) -> None:
        self._to.fds.pop(fd, None)
        os.close(fd)

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        written = os.pwritev(fd, views, offset)
        self._to.add(Call("write", self._to.fds[fd], data=b"".join(views)[:written], at=offset))
        return written

    def copy_file_range(self, source: int, fd: int, size: int, start: int, offset: int) -> int:
        copied = os.copy_file_range(source, fd, size, start, offset)
        self._to.add(Call("write", self._to.fds[fd], data=os.pread(source, copied, start), at=offset))
        return copied

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)
        self._to.add(Call("cut", self._to.fds[fd], at=size))

    def fsync(self, fd: int) -> None:
        os.fsync(fd)
        self._to.synced(fd)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)
        self._to.synced(fd)

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)
        self._to.replaced(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)
        self._to.removed("unlink", path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path)
        self._to.add(Call("mkdir", name=self._to.name(path)))

    def rmdir(self, path: str) -> None:
        os.rmdir(path)
        self._to.removed("rmdir", path)


class Recording:
    """The calls that change what is below the folder `top`, from now on; what is there now is durable."""

    def __init__(self, top: Path) -> None:
        self.top = os.path.realpath(top)
        self.calls: list[Call] = []
        self.fds: dict[int, int | str] = {}
        self._start = {}  # the content of each file that is there
        names = {}
        for number, path in enumerate(sorted(path for path in top.rglob("*") if path.is_file())):
            names[self.name(str(path))] = number
            self._start[number] = path.read_bytes()
        folders = {self.name(str(path)) for path in top.rglob("*") if path.is_dir()} | {"."}
        self._names_at_start, self._folders_at_start = names, folders
        self._names = dict(names)  # as processes see them
        self._count = len(names)
        self._contents: dict[tuple, tuple[bytes, bytes]] = {}
        self._cached = 0
        self.exhausted = self.sampled = 0  # stretches of calls between two syncs: all combinations, or some

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record, until the end of the `with` block."""
        with mock.patch.object(disk, "os", _Os(self)):
            yield
        self._check()

    def _check(self) -> None:
        """What the calls amount to is what is there: none was missed."""
        found = {self.name(str(path)): path.read_bytes() for path in Path(self.top).rglob("*") if path.is_file()}
        modelled = self.tree(len(self.calls), {}).files
        assert found == {name: content for name, (content, _) in modelled.items()}

    def name(self, path: str) -> str:
        return os.path.relpath(os.path.join(os.path.realpath(parent(path)), os.path.basename(path)), self.top)

    def add(self, call: Call) -> None:
        self.calls.append(call)

    def returned(self) -> None:
        """A call of the user has succeeded."""
        self.add(Call("returned"))

    def opened(self, fd: int, path: str, flags: int) -> None:
        name = self.name(path)
        if os.path.isdir(path):
            self.fds[fd] = name
            return
        if flags & os.O_CREAT and name not in self._names:
            self._names[name] = self._count
            self._start[self._count] = b""
            self.add(Call("create", self._count, name))
            self._count += 1
        if name in self._names:
            self.fds[fd] = self._names[name]
            if flags & os.O_TRUNC:
                self.add(Call("cut", self._names[name]))

    def synced(self, fd: int) -> None:
        place = self.fds[fd]
        self.add(Call("sync folder", name=place) if isinstance(place, str) else Call("sync", place))

    def replaced(self, source: str, target: str) -> None:
        source, target = self.name(source), self.name(target)
        self._names[target] = self._names.pop(source)
        self.add(Call("replace", self._names[target], target, source=source))

    def removed(self, what: str, path: str) -> None:
        self._names.pop(self.name(path), None)
        self.add(Call(what, name=self.name(path)))

    def acknowledged(self, stop: int) -> int:
        """How many calls of the user have succeeded before the call of this number."""
        return sum(call.what == "returned" for call in self.calls[:stop])

    def volatile(self, stop: int) -> list[int]:
        """Those of the first `stop` calls that a power cut can take back."""
        synced: set[object] = set()
        found = []
        for at in range(stop - 1, -1, -1):
            call = self.calls[at]
            if call.what in ("sync", "sync folder"):
                synced.add(call.place)
            elif call.what != "returned" and call.place not in synced:
                found.append(at)
        return found[::-1]

    def tree(self, stop: int, fates: dict[int, int]) -> Tree:
        """The disk after the first `stop` calls; `fates` says what has become of those that were volatile."""
        names, folders = dict(self._names_at_start), set(self._folders_at_start)
        written: dict[int, list[tuple[int, int]]] = {}
        for at in range(stop):
            call, fate = self.calls[at], fates.get(at, WHOLE)
            if fate == ABSENT:
                continue
            if call.what in ("write", "cut"):
                written.setdefault(call.file, []).append((at, fate))
            elif call.what == "create":
                names[call.name] = call.file
            elif call.what == "replace":
                names.pop(call.source, None)
                names[call.name] = call.file
            elif call.what == "unlink":
                names.pop(call.name, None)
            elif call.what == "mkdir":
                folders.add(call.name)
            elif call.what == "rmdir":
                folders.discard(call.name)
        folders = {folder for folder in folders if folder == "." or parent(folder) in folders}
        there = {name: file for name, file in names.items() if parent(name) in folders}
        files = {name: self._content(file, tuple(written.get(file, ()))) for name, file in there.items()}
        return Tree(frozenset(folders), files)

    def _content(self, file: int, written: tuple[tuple[int, int], ...]) -> tuple[bytes, bytes]:
        key = file, written
        if key not in self._contents:
            content = bytearray(self._start[file])
            for at, fate in written:
                call = self.calls[at]
                if call.what == "cut":
                    content = content[: call.at].ljust(call.at, b"\0")
                    continue
                data = call.left(fate)
                content = content.ljust(call.at, b"\0") if data else content
                content[call.at : call.at + len(data)] = data
            if self._cached > _CACHE:
                self._contents.clear()
                self._cached = 0
            self._contents[key] = bytes(content), hashlib.blake2b(content, digest_size=16).digest()
            self._cached += len(content)
        return self._contents[key]

    def states(self, bound: int, rng: random.Random) -> Iterator["State"]:
        """What a power cut can leave, as far as `bound` combinations go for each prefix of the calls.

        A state of one prefix is one of the next too (the next call being absent), unless that is a sync or the
        return of a call: so most prefixes are covered by a longer one.
        """
        stop = 0
        while stop <= len(self.calls):
            places = self.volatile(stop)
            total = math.prod(len(self.calls[at].variants) for at in places)
            is_last = stop == len(self.calls) or self.calls[stop].what in ("sync", "sync folder", "returned")
            longer = 0 if is_last else total * len(self.calls[stop].variants)
            if is_last or longer > bound:
                tried = self._combinations(places, total, bound, rng, only_few=not is_last and total > bound)
                self.sampled += is_last and total > bound
                self.exhausted += is_last and total <= bound
                for fates in tried:
                    yield State(stop, dict(zip(places, fates, strict=True)))
            stop += 1

    def _combinations(
        self, places: list[int], total: int, bound: int, rng: random.Random, only_few: bool
    ) -> list[tuple[int, ...]]:
        """All combinations; if there are too many: next to none and next to all, and some at random."""
        variants = [self.calls[at].variants for at in places]
        if total <= bound:
            return list(itertools.product(*variants))
        found: dict[tuple[int, ...], None] = {}
        for base in ([ABSENT] * len(places), [WHOLE] * len(places)):
            found[tuple(base)] = None
            for count in (1,) if only_few else (1, 2):
                for changed in itertools.combinations(range(len(places)), count):
                    if len(found) > bound and count == 2:
                        break
                    for fates in itertools.product(*(variants[at] for at in changed)):
                        combination = list(base)
                        for at, fate in zip(changed, fates, strict=True):
                            combination[at] = fate
                        found[tuple(combination)] = None
        while len(found) < bound and not only_few:
            found[tuple(map(rng.choice, variants))] = None
        return list(found)


class State(NamedTuple):
    """One power cut: after how many calls, and what has become of the volatile ones."""

    stop: int
    fates: dict[int, int]

    def __str__(self) -> str:
        named = {ABSENT: "absent", WHOLE: "whole", HALF: "half", ZEROS: "zeros", STALE: "stale"}
        return f"after {self.stop} calls, { ({at: named[fate] for at, fate in self.fates.items()}) }"
