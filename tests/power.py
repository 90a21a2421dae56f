"""Power cuts, replayed in the manner of ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).

`Recording` notes every call of `mmap_ninja._storage.disk` that changes the disk, with all its bytes, while it is done
in a real folder. Its `states` are what a power cut can leave: for every prefix of those calls, every subset of what
was volatile then. What is written to a file (or cut from it) is volatile until that file is synced; names that are
made, moved or removed are volatile until their folder is synced. A sync of a file does not make its name durable. A
volatile write is not there, there as a whole, its first half, or as many zeros.

`replay` puts each state into a folder, opens it as after a reboot, compares it with what was promised, writes to it
again with other values, and compares again.
"""

import hashlib
import itertools
import math
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

import plain_reader
from changes import Kind
from mmap_ninja import Mmap, open_map, verify
from mmap_ninja._storage import build, disk, legacy, snapshot, unfinished, upgrade
from mmap_ninja.errors import MapCorruptError, MapNotFoundError, MmapNinjaError, PartBuiltWarning
from plain_reader import same

ABSENT, WHOLE, HALF, ZEROS = range(4)
OF_VALUES = {"damaged", "unchecked"}  # what `verify` says where values may not be those that were written
_CACHE = 1 << 28  # bytes of contents that are kept between states
_BOOTS = itertools.count(1)
_NOT_RECORDED = {  # calls of os that `disk` does not make
    *("write", "pwrite", "truncate", "posix_fallocate", "sendfile", "copy_file_range"),
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
        return (ABSENT, WHOLE, HALF, ZEROS) if self.what == "write" else (ABSENT, WHOLE)


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
                data = call.data if fate == WHOLE else bytes(len(call.data))
                data = call.data[: len(call.data) // 2] if fate == HALF else data
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
        named = {ABSENT: "absent", WHOLE: "whole", HALF: "half", ZEROS: "zeros"}
        return f"after {self.stop} calls, { ({at: named[fate] for at, fate in self.fates.items()}) }"


@dataclass(frozen=True)
class Step:
    """One call of a user, and the samples after it.

    `is_safe`: a power cut in it leaves the old samples or the new. `is_durable`: after it, the new ones.
    `assigned` are the samples that a cut may leave in either state, or between.
    """

    act: Callable[[Path], object]
    after: list
    is_safe: bool = True
    is_durable: bool = True
    is_build: bool = False
    assigned: tuple[int, ...] = ()
    metadata: dict | None = None


@dataclass(frozen=True)
class Story:
    """What is there before, the samples of that (None: no map that can be read), and what is done."""

    begin: Callable[[Path], object]
    before: list | None
    steps: tuple[Step, ...]
    kind: Kind
    starts_unfinished: bool = False
    starts_torn: bool = False  # by 0.9.0: refused until the step, which may be done again, has put it right


@dataclass
class Figures:
    """What a replay has seen."""

    states: int = 0
    unchecked: int = 0  # different states that were enumerated, but left out for the sake of time
    exhausted: int = 0
    sampled: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.states} states {self.outcomes}, {self.unchecked} not checked; {self.exhausted} stretches of calls "
            f"in all combinations, {self.sampled} in some; {len(self.bad)} bad: {self.bad[:3]}"
        )


class BadState(Exception):
    """A power cut has left what must not be."""


def expect(is_right: bool, what: object) -> None:
    if not is_right:
        raise BadState(what)


@contextmanager
def ram() -> Iterator[Path]:
    """A folder in memory, where there is such a place."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="power-cuts-", dir=memory) as folder:
        yield Path(folder)


@contextmanager
def rebooted() -> Iterator[None]:
    """On another boot of the machine than what was written before."""
    boot = f"boot {next(_BOOTS)}"
    with ExitStack() as stack:
        for module in (snapshot, build, unfinished, upgrade):
            stack.enter_context(mock.patch.object(module, "boot_id", return_value=boot))
        yield


def same_disk() -> AbstractContextManager[object]:
    """A map of format 1 is known by the inode of its data, which a power cut does not change, but a copy does."""
    return mock.patch.object(legacy, "_id", return_value="0" * 32)


def recorded(story: Story, top: Path) -> Recording:
    """What a story does below this folder, which is made."""
    top.mkdir()
    story.begin(top / "map")
    recording = Recording(top)
    with recording.recording():
        for step in story.steps:
            step.act(top / "map")
            recording.returned()
    return recording


def replay(story: Story, *, bound: int, most: int, seed: int = 0) -> Figures:
    """Check what power cuts leave of a story: at most `most` states, of `bound` combinations for each prefix."""
    figures, rng = Figures(), random.Random(seed)
    with ram() as work, same_disk(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the upgrade, of what was never finished
        recording = recorded(story, work / "recorded")
        found = {}
        for state in recording.states(bound, rng):
            tree = recording.tree(state.stop, state.fates)
            found.setdefault((recording.acknowledged(state.stop), tree.key()), state)
        figures.exhausted, figures.sampled = recording.exhausted, recording.sampled
        chosen = spread(found, most, rng)
        figures.unchecked = len(found) - len(chosen)
        with rebooted():
            for acknowledged, state in chosen:
                top = work / "state"
                recording.tree(state.stop, state.fates).write(str(top))
                try:
                    outcome = _Judge(story, acknowledged, top / "map").outcome()
                except Exception as error:
                    outcome = "bad"
                    figures.bad.append(f"{state}: {type(error).__name__}: {str(error)[:300]}")
                figures.states += 1
                figures.outcomes[outcome] = figures.outcomes.get(outcome, 0) + 1
                shutil.rmtree(top)
    return figures


def findings(folder: Path) -> set[str]:
    """The kinds of what `verify` finds in a folder."""
    return {finding.kind for finding in verify(folder)}


def spread(found: dict[tuple[int, tuple], State], most: int, rng: random.Random) -> list[tuple[int, State]]:
    """At most so many of the states, as many of each prefix of the calls as of the next, while there are any."""
    by_prefix: dict[int, list[tuple[int, State]]] = {}
    for (acknowledged, _), state in found.items():
        by_prefix.setdefault(state.stop, []).append((acknowledged, state))
    for states in by_prefix.values():
        rng.shuffle(states)
    rounds = itertools.zip_longest(*by_prefix.values())
    return [state for states in rounds for state in states if state is not None][:most]


def others(m: Mmap) -> list:
    """Samples that a map can take, and that nobody has written before."""
    if m.kind == "strings":
        return ["other", "ß"]
    if m.kind == "bytes":
        return [b"other", b"\0\xff"]
    dtype = m.dtype or np.dtype(np.int64)
    if m.kind == "dense":
        shape = m[0].shape if len(m) else (2,)
        return [np.full(shape, value, dtype) for value in (101, 102)]
    return [(np.arange(11) - 50).astype(dtype), np.arange(2).astype(dtype)]


class _Judge:
    """Compares one state with what was promised."""

    def __init__(self, story: Story, acknowledged: int, folder: Path) -> None:
        self.story, self.folder = story, folder
        steps = story.steps
        durable = [at for at in range(acknowledged) if steps[at].is_durable]
        floor = durable[-1] + 1 if durable else 0  # how many steps have to be there
        self.open = steps[floor : acknowledged + 1]  # those that may be there in part
        states = [story.before, *(step.after for step in steps)]
        self.allowed = [state for state in states[floor : acknowledged + 2] if state is not None]
        self.had_map = floor > 0 or (story.before is not None and not story.starts_unfinished)
        # Also what stands on something that is not durable is only safe when it is done.
        self.is_safe = floor == acknowledged and all(step.is_safe for step in self.open)
        self.assigned = {i for step in self.open for i in step.assigned}
        metadata: list[dict] = [{}]
        for step in steps:
            metadata.append(step.metadata or ({} if step.is_build else metadata[-1]))
        self.metadata = metadata[floor : acknowledged + 2]

    def outcome(self) -> str:
        """Which of the states that are right this is; raises what is wrong with it."""
        try:
            m, is_part = opened(self.folder)
        except MapNotFoundError:
            expect(not self.had_map or not self.is_safe, "the map is gone")
            self._build_anew()
            return "none"
        except MmapNinjaError as error:
            return self._refused(error)
        if is_part:
            return self._part(m)
        try:
            found = self._read(m)
        except MmapNinjaError as error:
            expect(not self.is_safe, f"cannot be read: {error}")
            return "refused"
        problem = self._wrong(m, found)
        if problem is not None:
            expect(not self.is_safe, problem)
            expect(bool(findings(self.folder) & OF_VALUES), f"passes verify, but {problem}")
            return "found"
        told = findings(self.folder) & OF_VALUES
        if told and not self.is_safe:
            return "found"  # a checksum was lost
        may_be_unchecked = self.assigned or not (self.folder / "manifest.json").exists()  # or of format 1
        expect(told <= ({"unchecked"} if may_be_unchecked else set()), f"right, but verify finds {told}")
        self._extend(m, found)
        if any(step.is_build for step in self.open):
            self._build_anew()
        return "right"

    def _refused(self, error: MmapNinjaError) -> str:
        """Only what a build or an unsynced call has left may be refused, and a new build has to work."""
        expect(bool(findings(self.folder)), f"passes verify, but {error}")
        if self.is_safe and self.story.starts_torn:
            expect("--salvage" in str(error), error)
            self.open[-1].act(self.folder)
            self._whole(self.open[-1].after)
        elif self.is_safe:
            expect(not self.had_map and not (self.folder / "manifest.json").exists(), f"refused: {error}")
            expect(isinstance(error, MapCorruptError), error)
            kind, samples = self.story.kind, self.open[-1].after
            with suppress(MapCorruptError):
                m = kind.build(self.folder, samples, resume=True, sync=False)
                expect(equal(self._read(m), samples), "a build that was resumed has other samples")
            self._build_anew()
        return "refused"

    def _part(self, m: Mmap) -> str:
        expect(not self.had_map, "the old map is gone")
        found = [m[i] for i in range(len(m))]
        parts = [step.after[: len(found)] for step in self.open if step.is_build]
        expect(any(equal(found, part) for part in parts), f"a wrong part: {str(found)[:200]}")
        plain_reader.check(self.folder, "building.json")
        added = others(m)
        if "zstd_train_dictionary_size" in self.story.kind.options and not found:
            added = self.story.kind.first  # two are not enough to train a dictionary on
        self.story.kind.build(self.folder, [*found, *added], resume=True, sync=False)
        self._whole([*found, *added])
        self._build_anew()
        return "part"

    def _read(self, m: Mmap) -> list:
        """The samples; None for one that was being assigned and cannot be read."""
        try:
            return list(m[:])
        except MmapNinjaError:
            return [self._sample(m, i) for i in range(len(m))]

    def _sample(self, m: Mmap, i: int) -> object:
        try:
            return m[i]
        except MmapNinjaError:
            if i not in self.assigned:
                raise
            return None

    def _wrong(self, m: Mmap, found: list) -> str | None:
        """What is wrong with the samples, if anything is."""
        if m.metadata not in self.metadata:
            return f"metadata {m.metadata}"
        if any(equal(found, state) for state in self.allowed):
            return None
        if self.assigned and not plain_reader.fields(self.folder)["files"]["data"]["checked"]:
            new = self.open[-1].after
            rest = [i for i in range(len(new)) if i not in self.assigned]
            sizes = [size(sample) for sample in new]
            if m.lengths.tolist() == sizes and equal([found[i] for i in rest], [new[i] for i in rest]):
                return None if "unchecked" in findings(self.folder) else "verify does not tell of an assignment"
        return f"{len(found)} samples, not those before or after: {str(found)[:200]}"

    def _extend(self, m: Mmap, found: list) -> None:
        added = others(m)
        m.extend(added, sync=False)
        expect(equal([m[i] for i in range(len(found), len(m))], added), "what was added is not there")
        self._whole([*found, *added])

    def _whole(self, samples: list) -> None:
        """A finished map of these samples, for the package and for a reader of its own."""
        m, is_part = opened(self.folder)
        expect(not is_part, "still being built")
        found = self._read(m)
        expect(equal(found, samples), f"written to again, {len(found)} samples: {str(found)[:200]}")
        plain_reader.check(self.folder)
        about = plain_reader.fields(self.folder)
        is_plain = about["codec"] is None and about["files"]["data"]["offset"]  # NumPy can open it
        if is_plain and len(found) < 10_000 and all(sample is not None for sample in found):
            expect(equal(plain_reader.samples(self.folder), samples), "np.load sees others")

    def _build_anew(self) -> None:
        samples = self.story.kind.first[::-1]
        self.story.kind.build(self.folder, samples, sync=False)
        self._whole(samples)


def equal(left: list, right: list) -> bool:
    """`same`, without a call for each sample where there are no arrays."""
    return left == right if right and isinstance(right[0], str | bytes) else same(left, right)


def size(sample: object) -> int:
    """What the `lengths` of a map say of a sample."""
    if isinstance(sample, np.ndarray):
        return len(sample) if sample.ndim else 0
    return len(sample.encode() if isinstance(sample, str) else sample)


def opened(folder: Path) -> tuple[Mmap, bool]:
    """The map, and whether it was said to be unfinished."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        m = open_map(folder)
    return m, any(issubclass(warning.category, PartBuiltWarning) for warning in caught)
