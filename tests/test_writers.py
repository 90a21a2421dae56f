"""One writer at a time: owners that are killed, others that go on, and nobody who keeps the lock by mistake."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import plain_reader
from children import Children, ready
from faults import KILLED, recorded, start_child
from mmap_ninja import DenseMmap, RaggedMmap, StringsMmap, np_extend_dir, open_map
from mmap_ninja._storage.lock import Lock
from unwarned import unwarned

OWNERS, LONG_OWNERS = 10, 50  # killed


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

    with unwarned(), Children() as children:
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
