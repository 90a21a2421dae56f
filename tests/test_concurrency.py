"""Many at work on one map: writers in turn, readers beside a writer, replaced maps, threads."""

import ctypes
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plain_reader
from changes import SMALL, format_1_column, format_1_rows
from faults import CHANGES, KILLED, exit_code, in_child, recorded, start_child
from mmap_ninja import (
    BytesMmap,
    DenseMmap,
    Mmap,
    RaggedMmap,
    StringsMmap,
    np_extend_dir,
    np_open_existing,
    open_map,
    upgrade,
)
from mmap_ninja._storage import disk, legacy
from mmap_ninja._storage.lock import Lock
from mmap_ninja.errors import MapNotFoundError, PartBuiltWarning, UpgradeWarning
from plain_reader import same

# Of each kind of map.
OPENS, LONG_OPENS = 500, 25_000
READS, LONG_READS = 20_000, 200_000
OWNERS, LONG_OWNERS = 10, 50  # killed


class Children(list[int]):
    """Forked children, killed and reaped at the end of a `with` block."""

    def start(self, act: Callable[[], object]) -> int:
        self.append(start_child(act))
        return self[-1]

    def wait(self, pid: int) -> int:
        self.remove(pid)
        return exit_code(pid)

    def kill(self, pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        return self.wait(pid)

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *error: object) -> None:
        for pid in self[:]:
            self.kill(pid)


def ready(read: int) -> str:
    """What another process has to say first."""
    found = os.read(read, 100).decode()
    assert found, "the other process has died"
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of unfinished maps and of upgrades."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartBuiltWarning)
        warnings.simplefilter("ignore", UpgradeWarning)
        yield


# -- one writer at a time --------------------------------------------------------------------------------------------


def live_on() -> None:
    time.sleep(120)


def no_child() -> list[int]:
    return []


def a_forked_child() -> list[int]:
    return [start_child(live_on)]


def worker(method: str) -> Callable[[], list[int]]:
    def start() -> list[int]:
        process = multiprocessing.get_context(method).Process(target=time.sleep, args=(120,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's idle threads make Python warn of the fork
            process.start()
        return [process.pid]

    return start


def free_after_a_kill(folder: Path, start: Callable[[], list[int]]) -> None:
    """Kill a process that builds a map and has started others; they live on, and the lock is free."""
    read, write = os.pipe()

    def build() -> None:
        def samples() -> Iterator[np.ndarray]:
            yield np.arange(3)
            os.write(write, " ".join(map(str, start())).encode() + b".")
            live_on()

        RaggedMmap.from_generator(folder, samples(), 1)

    with Children() as owners:
        owner = owners.start(build)
        others = [int(pid) for pid in ready(read).rstrip(".").split()]
        try:
            with pytest.raises(BlockingIOError, match="is being written"):
                Lock(str(folder))
            assert owners.kill(owner) == KILLED
            Lock(str(folder), timeout=1).release()
            for pid in others:
                os.kill(pid, 0)  # else there was nobody to keep it
        finally:
            for pid in others:
                os.kill(pid, signal.SIGKILL)
            os.close(read)
            os.close(write)


@pytest.mark.parametrize("start", [no_child, a_forked_child, worker("fork")], ids=["alone", "os.fork", "fork"])
@pytest.mark.parametrize("count", [OWNERS, pytest.param(LONG_OWNERS, marks=pytest.mark.long)])
def test_a_killed_owner_frees_the_lock_though_its_children_live(
    tmp_path: Path, start: Callable[[], list[int]], count: int
) -> None:
    for _ in range(count):
        free_after_a_kill(tmp_path / "map", start)


OWNER = """
import multiprocessing, sys, time
import numpy as np
from mmap_ninja import RaggedMmap

def samples():
    yield np.arange(3)
    process = multiprocessing.get_context(sys.argv[2]).Process(target=time.sleep, args=(120,))
    process.start()
    print(process.pid, flush=True)
    time.sleep(120)

RaggedMmap.from_generator(sys.argv[1], samples(), 1)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("count", [1, pytest.param(LONG_OWNERS, marks=pytest.mark.long)])
def test_a_killed_owner_frees_the_lock_though_its_workers_live(tmp_path: Path, method: str, count: int) -> None:
    for _ in range(count):
        command = [sys.executable, "-c", OWNER, str(tmp_path / "map"), method]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as owner:
            try:
                pid = int(owner.stdout.readline())
                with pytest.raises(BlockingIOError, match="is being written"):
                    Lock(str(tmp_path / "map"))
            finally:
                owner.kill()
            owner.wait()
            try:
                Lock(str(tmp_path / "map"), timeout=1).release()
                os.kill(pid, 0)
            finally:
                os.kill(pid, signal.SIGKILL)


def test_a_child_that_knows_nothing_of_the_lock_does_not_keep_it(tmp_path: Path) -> None:
    """A library that forks in C runs no hook of Python's: its child has a copy of the descriptor."""
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(3)])
    with Lock(str(tmp_path / "map")):
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            while True:
                signal.pause()
    try:
        m.append(np.arange(2))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert len(open_map(tmp_path / "map")) == 2


def test_a_writer_is_not_refused_by_itself_while_another_thread_starts_processes(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(3)])
    done = threading.Event()

    def write() -> int:
        while not done.is_set():
            m.append(np.arange(2), sync=False)
        return len(m)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(40):
                subprocess.run(["true"], check=True)
        finally:
            done.set()
        assert writing.result() > 1


PAIRS = {
    "ragged": (lambda folder: RaggedMmap(folder).extend, lambda tag, k: np.array([tag, k]), tuple),
    "strings": (lambda folder: StringsMmap(folder).extend, "{} {}".format, lambda s: tuple(map(int, s.split()))),
    "dense": (lambda folder: DenseMmap(folder).extend, lambda tag, k: np.array([tag, k]), tuple),
    "extend_dir": (
        lambda folder: lambda samples, **options: np_extend_dir(folder, samples, **options),
        lambda tag, k: np.array([tag, k]),
        tuple,
    ),
}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("kills", [6, pytest.param(300, marks=pytest.mark.long)])
def test_writers_that_die_and_others_that_go_on_lose_nothing(tmp_path: Path, kind: str, kills: int) -> None:
    """Four processes extend the same map by turns, from the first sample on; one that is killed has a successor."""
    opening, sample, pair = PAIRS[kind]
    folder, rng = tmp_path / "map", np.random.default_rng(21)
    if kind == "extend_dir":
        DenseMmap.from_ndarray(folder, np.empty((0, 2), np.int64))
    pipes: dict[int, int] = {}  # of the writer with this tag

    def start(children: Children) -> int:
        tag = len(pipes)
        pipes[tag], write = os.pipe()

        def extend() -> None:
            add, k = opening(folder), 0
            while True:
                size = 1 + k % 3
                add([sample(tag, k + n) for n in range(size)], sync=False, timeout=60)
                k += size
                os.write(write, size.to_bytes(1, "little"))
                time.sleep(0.001)  # else the others never get their turn

        pid = children.start(extend)
        os.close(write)
        return pid

    with quiet(), Children() as children:
        running = [start(children) for _ in range(4)]
        for _ in range(kills):
            time.sleep(float(rng.uniform(0.02, 0.08)))
            at = int(rng.integers(len(running)))
            assert children.kill(running[at]) == KILLED
            running[at] = start(children)
        time.sleep(0.1)
        assert [children.kill(pid) for pid in running] == [KILLED] * 4
        acknowledged = {tag: sum(os.read(read, 1 << 20)) for tag, read in pipes.items()}
        found = [pair(s) for s in open_map(folder)]
    assert sum(count > 0 for count in acknowledged.values()) > kills // 2
    for tag, count in acknowledged.items():
        of_tag = [k for other, k in found if other == tag]
        assert of_tag == list(range(len(of_tag))), f"writer {tag}"
        assert count <= len(of_tag) <= count + 3
    assert len(found) == len(set(found))
    plain_reader.check(folder)


def test_np_extend_dir_without_syncs_takes_the_lock_once_and_syncs_nothing(tmp_path: Path) -> None:
    """A second time would be after the samples were added: refused then, it would tell of a failure that was none."""
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(3))
    double = recorded(lambda: np_extend_dir(tmp_path / "map", np.arange(2), sync=False))
    assert [call.name for call in double.of("open_to_write")].count(".lock") == 1
    assert double.of("sync", "sync_data", "sync_folder") == []
    assert open_map(tmp_path / "map")[:].tolist() == [0, 1, 2, 0, 1]


# -- readers beside a writer -----------------------------------------------------------------------------------------


def row(i: int) -> np.ndarray:
    """Sample `i` of a map whose index gets wider twice."""
    shape = (2, 3) if i % 500 == 150 else (1, 2, 2) if i % 500 == 400 else (i % 7,)
    return np.full(shape, i)


def line(i: int) -> str:
    return f"{i} " * (i % 5) + "ß"


def pair(i: int) -> np.ndarray:
    return np.array([i, -i])


SAMPLE: dict[str, Callable[[int], Any]] = {"ragged": row, "strings": line, "dense": pair, "memmap": pair}
CLASS: dict[str, type[Mmap]] = {"ragged": RaggedMmap, "strings": StringsMmap, "dense": DenseMmap, "memmap": DenseMmap}


def consistent(m: Any, sample: Callable[[int], Any], rng: np.random.Generator) -> None:
    """Its last samples and some others are right, and so is what the index says."""
    length = len(m)
    for i in {0, length - 2, length - 1, *rng.integers(0, length, 4).tolist()}:
        assert same([m[i]], [sample(i)]), i
    if isinstance(m, np.memmap):
        assert m.shape == (length, 2)
        return
    if rng.random() < 0.05:
        assert same(list(m[-200:]), [sample(i) for i in range(max(length - 200, 0), length)])
        starts, ends = m.starts, m.ends
        assert len(starts) == len(ends) == len(m.lengths) == len(m.shapes) == length
        assert starts[0] == 0
        assert (starts[1:] == ends[:-1]).all()
        assert int(ends[-1]) * m.dtype.itemsize == m.nbytes


@pytest.mark.parametrize("kind", SAMPLE)
@pytest.mark.parametrize("opens", [OPENS, pytest.param(LONG_OPENS, marks=pytest.mark.long)])
def test_four_processes_open_while_one_extends(tmp_path: Path, kind: str, opens: int) -> None:
    folder, sample = tmp_path / "map", SAMPLE[kind]
    CLASS[kind].from_generator(folder, map(sample, range(2)), 2)

    def extend() -> None:
        m, length = CLASS[kind](folder), 2
        while True:
            size = 1 + length % 4
            m.extend([sample(length + n) for n in range(size)], sync=length % 50 == 0)
            length += size

    def open_often(seed: int) -> None:
        rng, length = np.random.default_rng(seed), 2
        for _ in range(opens // 4):
            m = np_open_existing(folder) if kind == "memmap" else open_map(folder)
            assert len(m) >= length
            length = len(m)
            consistent(m, sample, rng)
        assert length > 2  # else nobody has written

    with Children() as children:
        writer = children.start(extend)
        readers = [children.start(lambda seed=seed: open_often(seed)) for seed in range(4)]
        assert [children.wait(pid) for pid in readers] == [0] * 4
        assert children.kill(writer) == KILLED
    consistent(open_map(folder), sample, np.random.default_rng(9))
    plain_reader.check(folder)


# -- replaced maps ---------------------------------------------------------------------------------------------------

BIG = [np.full(n % 900, n) for n in range(300)]  # some pages, none of them read before the map is replaced
LINES = [line(i) * 50 for i in range(300)]


def format_1_dense(order: str) -> Callable[[Path], None]:
    return lambda folder: format_1_column(folder, np.asarray(np.arange(60_000).reshape(300, 200), order=order), order)


HELD: dict[str, tuple[Callable[[Path], object], Callable[[Path], Any]]] = {
    "ragged": (lambda f: RaggedMmap.from_lists(f, BIG, sync=False), open_map),
    "dense": (lambda f: DenseMmap.from_ndarray(f, np.arange(60_000).reshape(300, 200), sync=False), open_map),
    "memmap": (lambda f: DenseMmap.from_ndarray(f, np.arange(60_000).reshape(300, 200), sync=False), np_open_existing),
    "copy-on-write": (
        lambda f: DenseMmap.from_ndarray(f, np.arange(60_000).reshape(300, 200), sync=False),
        lambda f: np_open_existing(f, mode="c"),
    ),
    "strings": (lambda f: StringsMmap.from_strings(f, LINES, sync=False), open_map),
    "bytes": (lambda f: BytesMmap.from_bytes(f, [text.encode() for text in LINES], sync=False), open_map),
    "zstd": (lambda f: StringsMmap.from_strings(f, LINES, zstd_level=1, sync=False), open_map),
    "format 1 ragged": (format_1_rows, open_map),
    "format 1 dense": (format_1_dense("C"), open_map),
    "format 1 Fortran": (format_1_dense("F"), np_open_existing),
}
REPLACE: dict[str, Callable[[Path], object]] = {
    "smaller": lambda f: RaggedMmap.from_lists(f, [np.arange(2)], sync=False),
    "larger": lambda f: RaggedMmap.from_lists(f, BIG + BIG, sync=False),
    "dense": lambda f: DenseMmap.from_ndarray(f, np.arange(9), sync=False),
    "strings": lambda f: StringsMmap.from_strings(f, LINES * 3, sync=False),
    "twice": lambda f: [DenseMmap.from_ndarray(f, np.zeros((size, 3)), sync=False) for size in (1, 5000)],
    "removed": shutil.rmtree,
}


@pytest.mark.parametrize("kind", HELD)
def test_who_has_a_map_open_reads_it_to_the_end(tmp_path: Path, kind: str) -> None:
    """Whatever takes its place, and though not one page was read before. A signal would be the child's exit code."""
    make, opening = HELD[kind]
    for name, replace in REPLACE.items():
        make(tmp_path / name)
        expected = [np.array(s) if isinstance(s, np.ndarray) else s for s in opening(tmp_path / name)]

        def hold(folder: Path = tmp_path / name, expected: list = expected, replace: Callable = replace) -> None:
            m = opening(folder)
            view = m[len(m) - 1]
            assert in_child(lambda: replace(folder)) == 0
            assert same(list(map(plain, m)), expected)
            assert same([plain(view), plain(m[1]), *map(plain, m[-2:])], [expected[k] for k in (-1, 1, -2, -1)])

        assert in_child(hold) == 0, name


def plain(sample: Any) -> Any:
    return np.asarray(sample) if isinstance(sample, np.ndarray) else sample


@pytest.mark.parametrize("kind", ["format 1 ragged", "format 1 dense", "format 1 Fortran"])
@pytest.mark.parametrize("opening", [open_map, None], ids=["map", "memmap"])
def test_a_map_of_format_1_is_transformed_into_its_own_folder(tmp_path: Path, kind: str, opening: Any) -> None:
    if opening is None and "ragged" in kind:
        opening = RaggedMmap
    make, folder = HELD[kind][0], tmp_path / "map"
    make(folder)
    expected = [np.array(sample) * 2 for sample in open_map(folder)]

    def transform() -> None:
        old = (opening or np_open_existing)(folder)
        made = RaggedMmap.from_generator(folder, (sample * 2 for sample in old), 4)
        assert same(list(made), expected)
        assert same([np.asarray(sample) * 2 for sample in old], expected)
        RaggedMmap.from_generator(folder, (sample + 1 for sample in made), 4)
        assert same(list(open_map(folder)), [sample + 1 for sample in expected])
        assert same(list(made), expected)

    assert in_child(transform) == 0
    assert {path.name for path in folder.iterdir()} == plain_reader.names(folder) | {".lock"}


def tagged(cls: type[Mmap], folder: Path, tag: int, **options: Any) -> None:
    """A map whose samples all are `tag`, and that says how many there are."""
    count = 1 + tag * 7 % 40
    sample = {RaggedMmap: np.full(tag % 9 + 1, tag), DenseMmap: np.array([tag, tag]), StringsMmap: str(tag)}[cls]
    cls.from_generator(folder, [sample] * count, 8, metadata={"tag": tag, "count": count}, sync=False, **options)


def tag_of(folder: Path) -> int:
    """The tag of a map, if all of it belongs together."""
    m = open_map(folder)
    tag, count = m.metadata["tag"], m.metadata["count"]
    assert len(m) == count
    for sample in m:
        assert set(np.asarray(sample, np.int64).reshape(-1).tolist()) == {tag}
    return tag


@pytest.mark.parametrize("classes", [[RaggedMmap], [StringsMmap], [DenseMmap]], ids=lambda c: c[0].kind)
@pytest.mark.parametrize("opens", [OPENS, pytest.param(LONG_OPENS, marks=pytest.mark.long)])
def test_readers_open_while_a_map_is_replaced_again_and_again(tmp_path: Path, classes: list, opens: int) -> None:
    folder = tmp_path / "map"
    tagged(classes[0], folder, 0)

    def replace() -> None:
        tag = 1
        while True:
            tagged(classes[tag % len(classes)], folder, tag)
            tag += 1

    def open_often() -> None:
        seen = [tag_of(folder)]
        while len(seen) <= opens // 4 or len(set(seen)) < 4:  # else it was never replaced
            seen.append(tag_of(folder))
        assert seen == sorted(seen)

    with Children() as children:
        writer = children.start(replace)
        readers = [children.start(open_often) for _ in range(4)]
        assert [children.wait(pid) for pid in readers] == [0] * 4
        assert children.kill(writer) == KILLED


# -- every place where a writer can come between two reads -----------------------------------------------------------


# Nobody sees the others.
STOPS = [name for name in CHANGES if name not in ("close", "sync", "sync_data", "sync_folder")]


class Turns:
    """A writer in a thread that stops before each call that changes the disk, and a hook for a reader's reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._errors: list[BaseException] = []
        self._is_inside = self._is_free = False
        self._wait_for, self._then = -1, lambda: None
        self.reads = 0
        for name in STOPS:
            monkeypatch.setattr(disk, name, self._stopping(getattr(disk, name)))
        for name in ("sync", "sync_data", "sync_folder"):
            monkeypatch.setattr(disk, name, lambda _: None)
        for module, name in ((disk, "open_to_read"), (legacy, "_id"), (legacy, "_check_end")):
            monkeypatch.setattr(module, name, self._counting(getattr(module, name)))

    def _stopping(self, real: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is not self._thread or self._is_inside or self._is_free:
                return real(*args, **options)
            self._stopped.release()
            self._go.acquire()
            self._is_inside = True
            try:
                return real(*args, **options)
            finally:
                self._is_inside = False

        return call

    def _counting(self, real: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                self.reads += 1
                if self.reads - 1 == self._wait_for:
                    self._then()
            return real(*args, **options)

        return call

    def begin(self, act: Callable[[], object]) -> None:
        """Start the writer; it stops before its first call."""

        def run() -> None:
            try:
                act()
            except BaseException as error:
                self._errors.append(error)
            finally:
                self._stopped.release()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        self._stopped.acquire()

    def advance(self, calls: int) -> None:
        for _ in range(calls):
            self._go.release()
            self._stopped.acquire()

    def read(self, act: Callable[[], Any], at: int, then: Callable[[], None]) -> Any:
        """Do `act`, and `then` just before its read number `at`."""
        self.reads, self._wait_for, self._then = 0, at, then
        try:
            return act()
        finally:
            self._wait_for = -1

    def end(self) -> None:
        """Let the writer go through to its end."""
        self._is_free = True
        self._go.release()
        self._thread.join()
        assert self._errors == []
        self._go, self._stopped, self._is_free = threading.Semaphore(0), threading.Semaphore(0), False


ROWS = [np.arange(n) + 10 * n for n in (3, 0, 5)]
OTHER = [np.arange(4) + 900, np.arange(2)]
WIDE = np.ones((2, 2), np.int64)


def part_built(folder: Path) -> None:
    def samples() -> Iterator[np.ndarray]:
        yield from ROWS[:2]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        RaggedMmap.from_generator(folder, samples(), 1)


def nothing(folder: Path) -> None:
    """There is no map to begin with."""


def extended(folder: Path) -> None:
    m = RaggedMmap(folder)
    m.append(OTHER[0], sync=False)
    m.append(WIDE, sync=False)
    m.append(OTHER[1], sync=False)


def replaced_twice(folder: Path) -> None:
    RaggedMmap.from_lists(folder, OTHER, sync=False)
    RaggedMmap.from_generator(folder, iter(ROWS), 2, sync=False)


def resumed(folder: Path) -> None:
    RaggedMmap.from_generator(folder, iter(ROWS), 1, resume=True, sync=False)
    RaggedMmap.from_lists(folder, OTHER, sync=False)


def by_texts(folder: Path) -> None:
    StringsMmap.from_strings(folder, ["one", "two"], sync=False)


FORTRAN = [np.array([n, 10 * n, 7]) for n in range(4)]
# What there is, what a writer does, and the states that a reader may see, one after another.
MEETINGS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object], list]] = {
    "extend": (
        lambda f: RaggedMmap.from_lists(f, ROWS, sync=False),
        extended,
        [ROWS, [*ROWS, OTHER[0]], [*ROWS, OTHER[0], WIDE], [*ROWS, OTHER[0], WIDE, OTHER[1]]],
    ),
    "replace twice": (lambda f: RaggedMmap.from_lists(f, ROWS, sync=False), replaced_twice, [ROWS, OTHER, ROWS]),
    "make and replace": (nothing, replaced_twice, [None, [], OTHER, ROWS]),
    "resume and replace": (part_built, resumed, [ROWS[:2], ROWS, OTHER]),
    "another kind": (lambda f: RaggedMmap.from_lists(f, ROWS, sync=False), by_texts, [ROWS, ["one", "two"]]),
    "upgrade": (format_1_rows, upgrade, [SMALL[:4]]),
    "upgrade Fortran": (lambda f: format_1_column(f, np.asfortranarray(FORTRAN), "F"), upgrade, [FORTRAN]),
    "replace format 1": (format_1_rows, replaced_twice, [SMALL[:4], OTHER, ROWS]),
    "format 1 by another kind": (format_1_rows, by_texts, [SMALL[:4], ["one", "two"]]),
}


def look(folder: Path) -> list | None:
    try:
        return [plain(sample) for sample in open_map(folder)]
    except MapNotFoundError:
        return None


@pytest.mark.parametrize("name", MEETINGS)
@pytest.mark.parametrize("trials", [30, pytest.param(2000, marks=pytest.mark.long)])
def test_a_writer_between_any_two_reads_of_an_opening(
    tmp_path: Path, name: str, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader begins when the writer has done `first` calls, and at one of its reads the writer does some more.

    All such meetings of the whole change at one read, and of the rest a sample, a large one in the long run.
    """
    begin, act, states = MEETINGS[name]
    begin(tmp_path / "start")
    shutil.copytree(tmp_path / "start", tmp_path / "count") if (tmp_path / "start").exists() else None
    with quiet():
        calls = len(recorded(lambda: act(tmp_path / "count")).of(*STOPS))
        turns = Turns(monkeypatch)
        reads = 60 if "format 1" in name or "upgrade" in name else 9
        meetings = [(0, calls, at) for at in range(reads)]
        rest = [(j, k, at) for j in range(calls) for k in range(j + 1, calls + 1) for at in range(reads)]
        order = np.random.default_rng(31).permutation(len(rest))[:trials]
        for first, last, at in meetings + [rest[n] for n in order]:
            folder = tmp_path / "map"
            if (tmp_path / "start").exists():
                shutil.copytree(tmp_path / "start", folder)
            turns.begin(lambda folder=folder: act(folder))
            turns.advance(first)
            try:
                found = turns.read(lambda folder=folder: look(folder), at, lambda n=last - first: turns.advance(n))
            except Exception as error:
                raise AssertionError(f"the writer at call {first}, at {last} before read {at}: {error!r}") from error
            finally:
                turns.end()
            assert any(found is None if s is None else found is not None and same(found, s) for s in states), (
                f"the writer at call {first}, at {last} before read {at}: {found}"
            )
            shutil.rmtree(folder)


def test_an_opening_that_began_before_the_first_build_was_finished_gets_no_part_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`manifest.json` was not there yet, and `building.json` is of another map when it is looked for."""
    part_built(tmp_path / "map")
    real, done = disk.read_small, []

    def read_small(path: str, cap: int) -> bytes:
        if os.path.basename(path) == "building.json" and not done:
            done.append(True)
            RaggedMmap.from_generator(tmp_path / "map", iter(ROWS), 1, resume=True)
            part_built(tmp_path / "map")
        return real(path, cap)

    monkeypatch.setattr(disk, "read_small", read_small)
    assert same(open_map(tmp_path / "map")[:], ROWS)
    assert done


# -- threads ---------------------------------------------------------------------------------------------------------

THREADS = 8


def read_somehow(m: Any, sample: Callable[[int], Any], rng: np.random.Generator) -> int:
    """Read in one of many ways; returns how many samples were compared."""
    length = len(m)
    i = int(rng.integers(length))
    few = rng.integers(0, length, 5)
    way = int(rng.integers(9))
    if way == 0:
        where, found = [i], [m[i]]
    elif way == 1:
        where, found = [i], [m[np.int64(i)]]
    elif way == 2:
        where, found = range(i, min(i + 6, length)), list(m[i : min(i + 6, length)])
    elif way == 3:
        where, found = few.tolist(), list(m[few])
    elif way == 4:
        where, found = few.tolist(), list(m.take(few.tolist()))
    elif way == 5:
        where, found = range(5), [s for _, s in zip(range(5), m, strict=False)]
    elif way == 6:
        found = list(m[::-1])
        where = range(len(found) - 1, len(found) - 6, -1)
        assert len(found) >= length
        found = found[:5]
    elif way == 7:
        found = list(m)
        assert len(found) >= length
        where, found = range(len(found) - 5, len(found)), found[-5:]
    else:
        ends, starts = m.ends, m.starts
        assert len(ends) >= length
        common = min(len(starts), len(ends))
        assert (starts[1:common] == ends[: common - 1]).all()
        return 1
    assert same(list(map(plain, found)), [sample(k) for k in where])
    return len(found)


def short(i: int) -> np.ndarray:
    return np.full(i % 5 + 1, i)


def blob(i: int) -> bytes:
    return b"%d " % i * (i % 50 + 1)


THREADED = {
    "ragged": (RaggedMmap, short, {}),
    "mixed": (RaggedMmap, row, {}),
    "dense": (DenseMmap, pair, {}),
    "strings": (StringsMmap, line, {}),
    "zstd": (BytesMmap, blob, {"zstd_level": 1}),
}


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns a thousand times more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def with_readers(act: Callable[[int], object], read: Callable[[np.random.Generator], int], reads: int) -> None:
    """Do `act(0)`, `act(1)`, ... until eight threads have compared so many samples, at least 20 times."""
    errors: list[BaseException] = []
    counts, turn = [0] * THREADS, 0

    def run(number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            while (sum(counts) < reads or turn < 20) and not errors:
                counts[number] += read(rng)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            act(turn)
            turn += 1
    except BaseException as error:
        errors.append(error)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert min(counts) > 0


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("kind", THREADED)
@pytest.mark.parametrize("reads", [READS, pytest.param(LONG_READS, marks=pytest.mark.long)])
def test_threads_read_while_the_same_object_changes(tmp_path: Path, kind: str, reads: int) -> None:
    cls, sample, options = THREADED[kind]
    m = cls.from_generator(tmp_path / "map", map(sample, range(20)), 20, **options)

    def change(turn: int) -> None:
        """Up to 2,000 samples, so that reading all of them takes no longer in the long run."""
        if len(m) < 2000:
            m.extend([sample(len(m) + k) for k in range(1 + turn % 3)], sync=turn % 20 == 0)
        m.refresh()
        if turn % 7 == 0:
            m.flush()
        if turn % 11 == 0:
            m.metadata = {"turn": turn}

    with_readers(change, lambda rng: read_somehow(m, sample, rng), reads)
    plain_reader.check(tmp_path / "map")


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("kind", ["ragged", "mixed", "dense", "zstd"])
def test_threads_read_the_last_sample_while_the_same_object_extends(tmp_path: Path, kind: str) -> None:
    cls, sample, options = THREADED[kind]
    m = cls.from_generator(tmp_path / "map", map(sample, range(1, 20)), 20, **options)
    last = np.int64(-1)

    def read(rng: np.random.Generator) -> int:
        assert m[last] is not None
        assert m.window(-1, 0, 0) is not None
        return 2

    with_readers(lambda turn: m.append(sample(5 * turn + 1), sync=False), read, 20_000)


@pytest.mark.parametrize("name", ["refresh", "flush", "close", "append"])
def test_a_worker_forked_while_a_thread_writes_can_use_the_handle(tmp_path: Path, name: str) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(3)])
    args = [np.arange(2)] if name == "append" else []
    read, write = os.pipe()
    with Children() as children, ThreadPoolExecutor(1) as pool:
        with Lock(str(tmp_path / "map")):
            writing = pool.submit(m.append, np.arange(5), timeout=60)  # waits, and so is in the middle of a change
            while m._change.acquire(blocking=False):
                m._change.release()
                time.sleep(0.001)
            forked = children.start(lambda: (os.read(read, 1), getattr(m, name)(*args)))
        writing.result()
        os.write(write, b".")
        deadline = time.monotonic() + 5
        while (done := os.waitpid(forked, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if done != (0, 0):
            children.remove(forked)
    os.close(read)
    os.close(write)
    assert done == (forked, 0)
