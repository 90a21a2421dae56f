"""SIGKILL at any time: what a writer acknowledged is there and right, and the next writer goes on from it.

The test of every single call that changes the disk is in `test_storage_crash`; this one knows nothing of calls. It
kills writers of every kind at random times, so that it also sees what no double of `disk` sees.
"""

import itertools
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plain_reader
from faults import KILLED, exit_code, in_child, in_memory, start_child
from mmap_ninja import BytesMmap, DenseMmap, Mmap, RaggedMmap, StringsMmap, np_extend_dir
from mmap_ninja._storage import build, disk
from mmap_ninja.errors import PartBuiltWarning
from mmap_ninja.verify import verify
from plain_reader import same

KILLS = 100  # a kind
MOST_CALLS = 12  # that a writer makes before its last moment begins: some with samples larger than a block
BUILDS = 3  # a kind, of a new map and of one in the place of another
LONG_KILLS, LONG_BUILDS = 1000, 60  # in the long run
FIRST, SECOND, THIRD = 1, 2, 3  # tags: whose samples these are

BLOCK_OF_BYTES = np.random.default_rng(1).bytes(1_100_000)  # no codec makes it smaller
BLOCK_OF_TEXT = BLOCK_OF_BYTES[:700_000].hex()


def is_large(i: int) -> bool:
    """Every now and then a sample is larger than a block of 1 MiB."""
    return i % 53 == 20


def flat(i: int, tag: int) -> np.ndarray:
    return np.arange(140_000 if is_large(i) else i * 31 % 40) + 1000 * i + tag


def cube(i: int, tag: int) -> np.ndarray:
    shape = (i % 4, 300, 350) if is_large(i) else (i % 3, 2 + i % 5, 3)
    return np.full(shape, 1000 * i + tag, np.float32)


def point(i: int, tag: int) -> np.ndarray:
    return np.arange(300) + 1000 * i + tag


def text(i: int, tag: int) -> str:
    return f"{tag}, {i}: " + (BLOCK_OF_TEXT if is_large(i) else "ß🥧" * (i % 9))


def raw(i: int, tag: int) -> bytes:
    return b"%d, %d: " % (tag, i) + (BLOCK_OF_BYTES if is_large(i) else b"\0\xff" * (i % 9))


@dataclass(frozen=True)
class Kind:
    """A kind of map, the sample that belongs at place `i`, and how many samples one `extend` adds after another."""

    cls: type[Mmap]
    sample: Callable[[int, int], Any]
    sizes: tuple[int, ...] = (1, 6, 2, 17, 1, 30, 3)
    options: dict[str, Any] = field(default_factory=dict)
    extend_dir: bool = False  # through the function for dense maps
    batch: int = 5  # samples that a build commits at once, and the least that a map begins with
    made: dict[int, list] = field(default_factory=dict, compare=False)  # by tag

    def samples(self, start: int, stop: int, tag: int) -> list:
        """Made once: children find those that their parent has made, which is faster than to make them again."""
        made = self.made.setdefault(tag, [])
        made += [self.sample(i, tag) for i in range(len(made), stop)]
        return made[start:stop]

    def build(self, folder: Path, samples: Iterator, **options: Any) -> Mmap:
        return self.cls.from_generator(folder, samples, self.batch, **self.options, **options)

    def begin(self, folder: Path, start: int) -> None:
        """A map of so many samples, or of a batch, whichever is more: a copy of one that is made once."""
        first = folder.parent / f"first {max(start, self.batch)}"
        if not first.exists():
            self.build(first, iter(self.samples(0, max(start, self.batch), FIRST)), sync=False)
        shutil.copytree(first, folder)

    def extending(self, folder: Path) -> Callable[..., None]:
        """The function that adds samples, of a handle that was opened once."""
        if self.extend_dir:
            return lambda samples, **options: np_extend_dir(folder, samples, **options)
        return opened(self.cls, folder).extend


SIZES_OF_POINTS = (1, 6, 2, 500, 1, 30, 3)  # 500 of them are more than a block
KINDS = {
    "flat": Kind(RaggedMmap, flat),
    "n-D": Kind(RaggedMmap, cube),
    "dense": Kind(DenseMmap, point, SIZES_OF_POINTS),
    "extend_dir": Kind(DenseMmap, point, SIZES_OF_POINTS, extend_dir=True),
    "strings": Kind(StringsMmap, text),
    "bytes": Kind(BytesMmap, raw),
    "zstd": Kind(StringsMmap, text, options={"zstd_level": 1}),
    "zstd dictionary": Kind(StringsMmap, text, options={"zstd_level": 1, "zstd_train_dictionary_size": 400}, batch=20),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def opened(cls: type[Mmap], folder: Path) -> Mmap:
    """The map, without the warning that it was never finished."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartBuiltWarning)
        return cls(folder)


def killed(act: Callable[[Callable[[], None]], None], delay: float, calls: int = 0) -> tuple[int, int]:
    """Do `act(acknowledge)` in a child that is killed `delay` seconds after it has acknowledged so many calls.

    The very first acknowledgement says that it is ready. Returns how many others came out of it, and its exit status:
    it may have been done before.
    """
    read, write = os.pipe()
    pid = start_child(lambda: act(lambda: os.write(write, b".")))
    os.close(write)
    with open(read, "rb") as pipe:
        try:
            pipe.read(1 + calls)
            time.sleep(delay)
        finally:
            os.kill(pid, signal.SIGKILL)
            code = exit_code(pid)
        if code not in (KILLED, 0):
            pytest.fail("the writer failed by itself")
        return calls + len(pipe.read()), code


def is_torn(folder: Path) -> bool:
    """Whether the kill fell into a commit: something lies past a committed end, or a manifest was not renamed."""
    if (folder / "manifest.json.new").exists() or not (folder / "manifest.json").exists():
        return True
    files = plain_reader.fields(folder)["files"].values()
    return any((folder / file["name"]).stat().st_size > file["offset"] + file["size"] for file in files)


def check(kind: Kind, folder: Path, expected: list, left: tuple[str, ...] = ()) -> None:
    """The map has these samples, and nothing that it says about itself is wrong; `left` is what a kill may leave."""
    assert same(list(opened(kind.cls, folder)), expected)
    plain_reader.check(folder)
    assert [finding for finding in verify(folder) if finding.kind not in left] == []


AFTER_A_KILL = ("leftover", "header")  # bytes past the committed end, or a header that still has the shape before


def go_on(kind: Kind, folder: Path, at_least: int, at_most: int) -> None:
    """What a fresh process finds after the kill, and what comes of extending again, with other values."""
    m = opened(kind.cls, folder)
    length = len(m)
    assert at_least <= length <= at_most
    samples = kind.samples(0, length, FIRST)
    assert same(list(m), samples)
    if (folder / "manifest.json").exists():
        check(kind, folder, samples, AFTER_A_KILL)
    extend = kind.extending(folder)
    for size in (2, kind.sizes[3], 1):
        samples += kind.samples(len(samples), len(samples) + size, SECOND)
        extend(samples[-size:], sync=False)
        check(kind, folder, samples)


def kill_and_go_on(kind: Kind, folder: Path, rng: np.random.Generator) -> tuple[int, bool]:
    """One trial: returns how many calls were acknowledged, and whether the kill fell into one."""
    start = 4 * int(rng.integers(0, 15))
    may_be_missing = not kind.options and not kind.extend_dir
    if may_be_missing and rng.random() < 0.3:
        start = 0
    else:
        kind.begin(folder, start := max(start, kind.batch))
    first, sync = int(rng.integers(0, MOST_CALLS)), bool(rng.random() < 0.2)
    sizes = list(np.roll(kind.sizes, rng.integers(len(kind.sizes))).tolist())

    def write(acknowledge: Callable[[], None]) -> None:
        extend, at = kind.extending(folder), start
        acknowledge()
        for size in itertools.cycle(sizes):
            samples = kind.samples(at, at + size, FIRST)
            extend(samples, sync=sync)
            acknowledge()
            at += size

    calls, code = killed(write, float(rng.exponential(0.002)), first)  # within a call, long ones too, or between
    assert code == KILLED
    added = list(itertools.islice(itertools.cycle(sizes), calls + 1))
    torn = folder.exists() and is_torn(folder)
    at_least = start + sum(added[:-1])
    assert in_child(lambda: go_on(kind, folder, at_least, at_least + added[-1])) == 0
    return calls, torn


def kill_often(kind: Kind, tmp_path: Path, count: int, seed: int) -> None:
    for tag in (FIRST, SECOND):
        kind.samples(0, 200, tag)
    rng, trials, torn, first = np.random.default_rng(seed), 0, 0, 0
    while trials < count or (torn == 0 and trials < 20 * count):
        folder = tmp_path / str(trials)
        calls, was_torn = kill_and_go_on(kind, folder, rng)
        trials, torn, first = trials + 1, torn + was_torn, first + (calls == 0)
        shutil.rmtree(folder)
    print(f"{trials} kills: {torn} in a commit, {first} in the first call")
    assert torn > 0  # else nothing was tried


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """The long run is on the disk."""
    with in_memory(tmp_path) as folder:
        yield folder


@kinds
def test_a_killed_writer_leaves_every_acknowledged_sample(kind: Kind, memory: Path) -> None:
    kill_often(kind, memory, KILLS, seed=11)


@pytest.mark.long
@kinds
def test_a_writer_killed_a_thousand_times(kind: Kind, tmp_path: Path) -> None:
    kill_often(kind, tmp_path, LONG_KILLS, seed=12)


# -- builds ----------------------------------------------------------------------------------------------------------

MANY = 130


def kill_a_build(kind: Kind, folder: Path, rng: np.random.Generator, seconds: float, *, old: int) -> int:
    """One trial: returns how many samples of the new map were there to resume from, -1 if it was done.

    `old` is how many samples the map has that is replaced, 0 where there is none.
    """
    before = kind.samples(0, old and max(old, kind.batch), SECOND)
    if old:
        kind.build(folder, iter(before), sync=False)
    new = kind.samples(0, MANY, FIRST)
    sync = bool(rng.random() < 0.3)

    def rebuild(acknowledge: Callable[[], None]) -> None:
        acknowledge()
        kind.build(folder, iter(new), sync=sync)

    killed(rebuild, float(rng.uniform(0, seconds)))
    read, write = os.pipe()

    def look() -> None:
        m = opened(kind.cls, folder)
        found = list(m)
        if same(found, new) and (folder / "manifest.json").exists():
            part = -1
        elif old:
            assert same(found, before)
            part = plain_reader.fields(folder, "building.json")["length"] if (folder / "building.json").exists() else 0
        else:
            assert same(found, new[: len(found)])
            part = len(found)
        os.write(write, str(part).encode())
        if old and part >= 0:  # the map that was to be replaced takes more samples
            before.extend(kind.samples(len(before), len(before) + 3, THIRD))
            kind.extending(folder)(before[-3:], sync=False)
            check(kind, folder, before, ("unfinished", "leftover"))
        kind.build(folder, iter(new), resume=True, sync=False)
        check(kind, folder, new)
        left = {path.name for path in folder.iterdir()} - plain_reader.names(folder)
        assert left <= {".lock", "manifest.json.new"}
        kind.extending(folder)(kind.samples(MANY, MANY + 3, THIRD), sync=False)
        check(kind, folder, new + kind.samples(MANY, MANY + 3, THIRD))

    assert in_child(look) == 0
    os.close(write)
    with open(read, "rb") as pipe:
        return int(pipe.read())


def kill_builds(kind: Kind, tmp_path: Path, count: int, seed: int, old: int) -> None:
    begun = time.monotonic()
    kind.build(tmp_path / "timed", iter(kind.samples(0, MANY, FIRST)))
    seconds, rng = time.monotonic() - begun, np.random.default_rng(seed)
    parts: list[int] = []
    while len(parts) < count or (max(parts) < 0 and len(parts) < 20 * count):  # a busy machine may kill them too late
        folder = tmp_path / str(len(parts))
        parts.append(kill_a_build(kind, folder, rng, seconds, old=old))
        seconds *= 0.7 if parts[-1] < 0 else 1.1
        shutil.rmtree(folder)
    print(f"{len(parts)} kills of a build: {sum(part > 0 for part in parts)} in the middle, {parts.count(-1)} after it")
    assert max(parts) >= 0  # else nothing was tried


@pytest.fixture
def saved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds are short here: they commit every batch, not every 0.1 s, so that there is something to resume."""
    monkeypatch.setattr(build, "_SAVE_EVERY", 0.0)


@pytest.mark.usefixtures("saved_at_once")
@kinds
@pytest.mark.parametrize("old", [0, 7], ids=["new", "replaced"])
def test_a_killed_build_is_resumed(kind: Kind, memory: Path, old: int) -> None:
    kill_builds(kind, memory, BUILDS, 13, old)


@pytest.mark.long
@pytest.mark.usefixtures("saved_at_once")
@kinds
@pytest.mark.parametrize("old", [0, 7], ids=["new", "replaced"])
def test_a_build_killed_many_times(kind: Kind, tmp_path: Path, old: int) -> None:
    kill_builds(kind, tmp_path, LONG_BUILDS, 14, old)


# -- that these tests can see ----------------------------------------------------------------------------------------


REAL = {name: getattr(disk, name) for name in ("write_at", "replace")}
delayed: list[tuple[int, list, int]] = []


def in_place(source: str, target: str) -> None:
    """Write the manifest over the old one, piece by piece, as `json.dump` into the file itself does it."""
    raw = Path(source).read_bytes()
    with open(target, "wb", buffering=0) as file:
        for at in range(0, len(raw), 64):
            file.write(raw[at : at + 64])
    os.unlink(source)


def at_the_end_of_the_file(fd: int, chunks: list, offset: int) -> None:
    """Append mode: behind whatever was left over, instead of behind what was committed."""
    REAL["write_at"](fd, chunks, offset if offset == 0 else max(offset, os.fstat(fd).st_size))


def later(fd: int, chunks: list, offset: int) -> None:
    """Write nothing but manifests; all else comes after the commit that tells of it."""
    if os.readlink(f"/proc/self/fd/{fd}").endswith(".new"):
        REAL["write_at"](fd, chunks, offset)
    else:
        delayed.append((os.dup(fd), chunks, offset))


def commit_and_write(source: str, target: str) -> None:
    REAL["replace"](source, target)
    while delayed:
        fd, chunks, offset = delayed.pop(0)
        os.pwrite(fd, b"".join(chunks), offset)
        os.close(fd)


MUTANTS: dict[str, dict[str, Callable]] = {
    "manifest in place": {"replace": in_place},
    "write at the end of the file": {"write_at": at_the_end_of_the_file},
    "manifest before data": {"write_at": later, "replace": commit_and_write},
    "none": {},
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_writer_that_is_not_safe_is_found(name: str, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is safe is not, by the same kills."""
    for function, mutant in MUTANTS[name].items():
        monkeypatch.setattr(disk, function, mutant)
    monkeypatch.setattr(sys.modules[__name__], "verify", lambda folder: [])  # by the samples alone
    few = {"metadata": {"notes": "x" * 5000}}  # a manifest that takes its time
    kind = Kind(RaggedMmap, lambda i, tag: np.array([i, tag, 7]), sizes=(1, 1, 1, 2), options=few)
    rng = np.random.default_rng(15)
    for trial in range(300 if MUTANTS[name] else 30):
        try:
            kill_and_go_on(kind, memory / str(trial), rng)
        except (AssertionError, ValueError):  # of the fresh process, or of a manifest that this one cannot read
            print(f"found by kill number {trial + 1}")
            assert MUTANTS[name]
            return
    assert not MUTANTS[name]
