"""What maps cost a process: descriptors, mappings, memory and work, for many maps, many cycles and many samples."""

import gc
import mmap
import os
import pickle
import resource
import shutil
import statistics
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from faults import exit_code, recorded, start_child
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, np_open_existing, open_map
from mmap_ninja._storage import decode
from mmap_ninja.errors import MapCorruptError, PartBuiltWarning, SampleTypeError
from plain_reader import BLOCK, crc_name, fields, forge

MAPS, LONG_MAPS = 500, 5_000
CYCLES, LONG_CYCLES = 1_000, 10_000  # of opening and closing; fewer of what is dearer
MOST_GROWTH = 80_000  # bytes, whatever the number of cycles: NumPy keeps some freed blocks of each small size
FEW, MANY = 2_000_000, 50_000_000  # samples; both of several blocks, each of which has a checksum
MOST_PRIVATE = 1_000_000  # bytes

GOLDEN = Path(__file__).parent / "golden"
KEEPS_DESCRIPTORS = sys.version_info < (3, 13)  # before `mmap(trackfd=False)` each mapping has a descriptor of its own


@pytest.fixture(autouse=True)
def _what_others_have_left_is_gone() -> None:
    gc.collect()  # a test in the same process may have left descriptors in a circle of references


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings(folder: Path) -> int:
    """How many mappings this process has of files in a folder, also of those that are removed already."""
    return sum(f" {folder}" in line for line in Path("/proc/self/maps").read_text().splitlines())


@contextmanager
def room_for_descriptors(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"this process may open no more than {hard} files, and {count} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def texts(count: int) -> list[str]:
    return [f"text number {i} ".ljust(40) for i in range(count)]


MAKE: dict[str, Callable[[Path], object]] = {
    "dense": lambda path: DenseMmap.from_ndarray(path, np.arange(6).reshape(3, 2), sync=False),
    "ragged": lambda path: RaggedMmap.from_lists(path, [np.arange(n) for n in (3, 0, 5)], sync=False),
    "mixed": lambda path: RaggedMmap.from_lists(path, [np.arange(3), np.eye(2, dtype=int), 7], sync=False),
    "strings": lambda path: StringsMmap.from_strings(path, ["one", "", "zwölf"], sync=False),
    "bytes": lambda path: BytesMmap.from_bytes(path, [b"one", b"", b"\0"], sync=False),
    "dictionary": lambda path: StringsMmap.from_strings(
        path, texts(100), zstd_level=3, zstd_train_dictionary_size=256, sync=False
    ),
}
EXTENSION = {"dense": np.zeros((1, 2), int), "strings": ["new"], "dictionary": ["new"], "bytes": [b"new"]}


# -- many maps at once -----------------------------------------------------------------------------------------------


def many_maps(folder: Path, count: int) -> None:
    """At most two descriptors and two mappings each, all of which go when the maps are closed."""
    for name, make in MAKE.items():
        make(folder / name).close()
    paths = [folder / f"map {i}" for i in range(count)]
    for i, path in enumerate(paths):
        shutil.copytree(folder / list(MAKE)[i % len(MAKE)], path)
    with room_for_descriptors(2 * count + 200):
        before, mapped = descriptors(), mappings(folder)
        assert mapped == 0
        maps = [open_map(path) for path in paths]
        for m in maps:
            m[0], m[-1], m[:2]
        held = descriptors() - before
        assert count < mappings(folder) <= 2 * count
        assert count < held <= 2 * count if KEEPS_DESCRIPTORS else held == 0
        for m in maps:
            m.close()
        assert descriptors() == before
        assert mappings(folder) == 0
        memmaps = [np_open_existing(folder / "dense") for _ in range(count)]
        assert descriptors() - before <= count
        assert mappings(folder) <= count
        del memmaps
        assert (descriptors(), mappings(folder)) == (before, 0)


def test_many_maps_are_open_at_once(tmp_path: Path) -> None:
    many_maps(tmp_path, MAPS)


@pytest.mark.long
def test_very_many_maps_are_open_at_once(tmp_path: Path) -> None:
    many_maps(tmp_path, LONG_MAPS)


FORMAT_1 = {
    "1-dense": 1,
    "1-strings": 3,  # the texts, where they begin, where they end
    "1-strings-zstd-dictionary": 3,
    "1-ragged": 4,
    "1-ragged-images": 6,  # their shapes are a ragged map of their own
}


@pytest.mark.parametrize("name", FORMAT_1)
def test_a_map_of_0_9_has_a_mapping_for_each_of_its_columns(tmp_path: Path, name: str) -> None:
    """As many as that format has files for what is read; an upgrade makes two of them."""
    path = shutil.copytree(GOLDEN / name, tmp_path / "map")
    before = descriptors()
    m = open_map(path)
    m[0], m[:]
    assert mappings(tmp_path) == FORMAT_1[name]
    assert descriptors() - before == (FORMAT_1[name] if KEEPS_DESCRIPTORS else 0)
    m.close()
    assert (descriptors(), mappings(tmp_path)) == (before, 0)


# -- many cycles -----------------------------------------------------------------------------------------------------


class Cycle:
    """Something that is done over and over in a folder; `begin` prepares it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        MAKE[name](folder / "map").close()
        self.path, self.more = folder / "map", EXTENSION.get(name, [np.arange(2)])

    def begin(self) -> None:
        pass


class OpenAndClose(Cycle):
    def act(self) -> None:
        with open_map(self.path) as m:
            m[0], m[:2]


class OpenAndForget(Cycle):
    def act(self) -> None:
        m = open_map(self.path, mode="r+")
        m[0], m[:2], list(m), m.lengths


class KeepTheSamples(Cycle):
    """A sample that is still there keeps its file mapped, and no longer."""

    def begin(self) -> None:
        self.kept = []

    def act(self) -> None:
        self.kept = [open_map(self.path)[0], open_map(self.path)[:]]


class Pickle(Cycle):
    def act(self) -> None:
        pickle.loads(pickle.dumps(open_map(self.path)))[0]


class Refresh(Cycle):
    def begin(self) -> None:
        self.m = open_map(self.path)

    def act(self) -> None:
        self.m.refresh()
        self.m[-1]


class Dear(Cycle):
    pass


class Extend(Dear):
    def begin(self) -> None:
        self.m, self.other = open_map(self.path), open_map(self.path)

    def act(self) -> None:
        self.m.extend(self.more, sync=False)
        self.other.refresh()
        self.other[-1]


class Replace(Dear):
    def begin(self) -> None:
        self.m = open_map(self.path)

    def act(self) -> None:
        MAKE[self.name](self.path)
        self.m.refresh()
        self.m[-1]


class Assign(Dear):
    def begin(self) -> None:
        self.m = open_map(self.path, mode="r+")

    def act(self) -> None:
        if self.name != "dictionary":
            self.m[0] = self.m[0]
        self.m.flush()


class Refused(Dear):
    def begin(self) -> None:
        self.m = open_map(self.path)

    def act(self) -> None:
        with pytest.raises(SampleTypeError, match="sample"):
            self.m.append(None)


class Damaged(Dear):
    """One file after the other is too short; what was mapped before it was found has to go."""

    def begin(self) -> None:
        names = [file["name"] for file in fields(self.path)["files"].values()]
        self.folders = []
        for name in names:
            path = shutil.copytree(self.path, self.folder / f"damaged {name}")
            (path / name).write_bytes((path / name).read_bytes()[:-1])
            self.folders.append(path)

    def act(self) -> None:
        for path in self.folders:
            with pytest.raises(MapCorruptError, match="bytes, expected"):
                open_map(path)


class StoppedBuild(Dear):
    def begin(self) -> None:
        self.samples = [*open_map(self.path)[:3]]

    def act(self) -> None:
        def samples() -> Iterator:
            yield from self.samples
            raise ZeroDivisionError

        with suppress(ZeroDivisionError), warnings.catch_warnings():
            warnings.simplefilter("ignore", PartBuiltWarning)
            type(open_map(self.path)).from_generator(self.path, samples(), 1, sync=False)


def held(folder: Path) -> tuple[int, int]:
    return descriptors(), mappings(folder)


def memory() -> int:
    decode._decode_again.cache_clear()  # of bounded size, but every commit puts something into it
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def repeat(cycle: Cycle, count: int) -> None:
    """Do it many times; what is held afterwards is what was held after the first few times."""
    cycle.begin()
    for _ in range(20):
        cycle.act()
    gc.collect()
    first = held(cycle.folder)
    gc.disable()  # what is let go of goes at once, without the collector of cycles
    try:
        for _ in range(count // 10):
            cycle.act()
        assert held(cycle.folder) == first, "more descriptors or mappings"
    finally:
        gc.enable()
    tracemalloc.start()
    try:
        cycle.act()
        before = memory()
        for _ in range(count - count // 10):
            cycle.act()
        assert memory() - before < MOST_GROWTH, "more memory"
    finally:
        tracemalloc.stop()
    assert held(cycle.folder) == first


CYCLE_TYPES = [OpenAndClose, OpenAndForget, KeepTheSamples, Pickle, Refresh]
DEAR_TYPES = [Extend, Replace, Assign, Refused, Damaged, StoppedBuild]


@pytest.mark.parametrize("cycle", CYCLE_TYPES + DEAR_TYPES)
def test_nothing_is_left_after_many_cycles(tmp_path: Path, cycle: type[Cycle]) -> None:
    repeat(cycle(tmp_path, "ragged"), CYCLES // 20 if issubclass(cycle, Dear) else CYCLES)


@pytest.mark.long
@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("cycle", CYCLE_TYPES + DEAR_TYPES)
def test_nothing_is_left_after_very_many_cycles(tmp_path: Path, cycle: type[Cycle], name: str) -> None:
    repeat(cycle(tmp_path, name), LONG_CYCLES // 10 if issubclass(cycle, Dear) else LONG_CYCLES)


class Leak(OpenAndForget):
    """What the checks above have to see."""

    kept: list = []

    def act(self) -> None:
        self.kept.append(open_map(self.path) if self.name == "ragged" else bytes(1000))


@pytest.mark.parametrize(("name", "what"), [("ragged", "descriptors"), ("dense", "memory")])
def test_a_leak_would_be_seen(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        repeat(Leak(tmp_path, name), 200)
    Leak.kept.clear()


# -- many samples ----------------------------------------------------------------------------------------------------


def forged(folder: Path, kind: str, count: int) -> Path:
    """A map of so many samples, all bytes of which are zero; its files are sparse: only a test may do so."""
    path = folder / str(count) / kind
    if kind == "dense":
        DenseMmap.from_ndarray(path, np.zeros((1, 2), np.uint8), sync=False).close()
        sizes = {"data": 2 * count}
    elif kind == "ragged":
        RaggedMmap.from_lists(path, [np.zeros(1, np.uint8)], sync=False).close()
        sizes = {"data": count, "index": 16 * count}
    else:
        StringsMmap.from_strings(path, ["\0"], sync=False).close()
        sizes = {"data": count, "index": 16 * count}
    files = fields(path)["files"]
    for role, size in sizes.items():
        crcs = bytes(4 * (size // BLOCK))
        files[role] |= {"size": size, "blocks_crc": zlib.crc32(crcs)}
        os.truncate(path / files[role]["name"], files[role]["offset"] + size)
        (path / crc_name(files[role])).write_bytes(crcs)
    forge(path, files=files, length=count, synced=True)
    return path


def anonymous() -> int:
    """The memory of this process that is nobody else's and no file's, in bytes."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("this kernel does not tell")


def use(path: Path) -> object:
    m = open_map(path)
    n = len(m)
    m[0], m[n - 1], m[n // 2], m[[5, n - 7]], m[n - 3 :], repr(m), m.nbytes, m.dtype
    return m


def grow(path: Path) -> object:
    m = use(path)
    m.extend(m[:2], sync=False)
    m.append(m[0])
    return m


def rewrite(path: Path) -> None:
    m = open_map(path, mode="r+")
    m[0] = m[0]
    m.metadata = {"a": 1}
    m.close()


@pytest.mark.parametrize("kind", ["dense", "ragged", "strings"])
@pytest.mark.parametrize("act", [use, grow, rewrite])
def test_the_work_is_the_same_for_few_and_for_many_samples(tmp_path: Path, kind: str, act: Callable) -> None:
    """The same calls that change the disk, with the same number of bytes but for the digits of larger numbers."""
    few, many = (forged(tmp_path, kind, count) for count in (FEW, MANY))
    few, many = (recorded(lambda path=path: act(path)).calls for path in (few, many))
    assert [call[:2] for call in few] == [call[:2] for call in many]
    assert (act is use) == (few == [])
    few, many = (sum(call.size or 0 for call in calls) for calls in (few, many))
    assert abs(many - few) < 500
    assert many < 20_000


@pytest.mark.parametrize("kind", ["dense", "ragged", "strings"])
def test_the_private_memory_does_not_grow_with_the_samples(tmp_path: Path, kind: str) -> None:
    few, many = forged(tmp_path, kind, FEW), forged(tmp_path, kind, MANY)
    grow(few)  # what is made once

    def measure() -> None:
        use(few)
        before = anonymous()
        kept = [use(many), grow(many)]
        assert anonymous() - before < MOST_PRIVATE, anonymous() - before
        assert len(kept[1]) == MANY + 3

    child = start_child(measure)
    assert exit_code(child) == 0


def test_private_memory_would_be_seen() -> None:
    before = anonymous()
    kept = mmap.mmap(-1, 4 * MOST_PRIVATE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # not memory that was freed before
    kept.write(b"x" * len(kept))
    assert anonymous() - before > MOST_PRIVATE
    kept.close()


def median_of(act: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        kept = act()
        times.append(time.perf_counter() - start)
        del kept
    return statistics.median(times)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["dense", "ragged", "strings"])
def test_opening_fifty_million_samples_takes_milliseconds(tmp_path: Path, kind: str) -> None:
    for count in (10_000, 1_000_000, MANY):
        path = forged(tmp_path, kind, count)
        median = median_of(lambda path=path: open_map(path), 101)
        print(f"{kind}: open {count} samples: {1000 * median:.3f} ms")
    assert median <= 0.005


@pytest.mark.long
@pytest.mark.parametrize("kind", ["dense", "ragged", "strings"])
def test_extending_five_million_samples_takes_as_long_as_ten_thousand(tmp_path: Path, kind: str) -> None:
    """Real files; the two are extended in turn, so that the disk is as busy for one as for the other."""
    sample = {"dense": np.zeros(2), "ragged": np.zeros(2), "strings": "ab"}[kind]
    cls = {"dense": DenseMmap, "ragged": RaggedMmap, "strings": StringsMmap}[kind]
    maps, times = {}, {10_000: [], 5_000_000: []}
    for count in times:
        samples = (sample for _ in range(count))
        maps[count] = cls.from_generator(tmp_path / str(count), samples, 100_000)
    more = [sample] * 1000
    for _ in range(101):
        for count, m in maps.items():
            start = time.perf_counter()
            m.extend(more)
            times[count].append(time.perf_counter() - start)
    few, many = (statistics.median(times[count]) for count in times)
    print(f"{kind}: extend by 1,000 at 10 k: {1000 * few:.3f} ms, at 5 M: {1000 * many:.3f} ms")
    assert many <= 1.5 * few


def test_importing_and_opening_starts_no_thread_and_no_process(tmp_path: Path) -> None:
    MAKE["ragged"](tmp_path / "map").close()
    code = "import os, mmap_ninja; mmap_ninja.open_map('map')[0]; print(len(os.listdir('/proc/self/task')))"
    plain = "import os, numpy; print(len(os.listdir('/proc/self/task')))"  # NumPy's own threads
    threads = [subprocess.check_output([sys.executable, "-c", each], cwd=tmp_path, text=True) for each in (code, plain)]
    assert threads[0] == threads[1]
