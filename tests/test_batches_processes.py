"""Batches and processes: forked in the middle, sent to workers, left running at the end; no thread stays behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import our_threads
from mmap_ninja import DenseMmap, RaggedMmap
from mmap_ninja.batches import Batches
from mmap_ninja.order import ReaderShard

always_ahead = our_threads.always_ahead
ROWS = [np.arange(k, k + k % 7) for k in range(40)]
METHODS = sorted(set(multiprocessing.get_all_start_methods()) & {"fork", "spawn", "forkserver"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    RaggedMmap.from_lists(tmp_path / "rows", ROWS)
    return tmp_path / "rows"


def threads() -> list[str]:
    """The names of our threads, those left out that are about to end."""
    found = [thread for thread in threading.enumerate() if thread.name.startswith("mmap_ninja_")]
    for thread in found:
        thread.join(5)
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mmap_ninja")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    assert threads() == []
    yield
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("mmap_ninja"):
            thread.join(10)  # one that was let go of under a lock ends after that
    assert threads() == []


def sums(batches: Any) -> list[int]:
    return [int(sum(row.sum() for row in batch)) for batch in batches]


def total(row: np.ndarray) -> int:
    return int(row.sum())


OPTIONS = {
    "plain": {},
    "transform": {"transform": np.copy},
    "threads": {"transform": np.copy, "threads": 3},
    "no prefetch": {"prefetch": 0, "transform": np.copy, "threads": 2},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@every_option
def test_leaving_early_leaves_no_thread(folder: Path, options: dict[str, Any]) -> None:
    for number, _ in enumerate(Batches(folder, 2, **options)):
        if number == 3:
            break
    assert threads() == []


@every_option
def test_an_exception_in_the_loop_leaves_no_thread(folder: Path, options: dict[str, Any]) -> None:
    def step() -> None:
        for _ in Batches(folder, 2, **options):
            raise RuntimeError("in the training step")

    with pytest.raises(RuntimeError, match="training step"):
        step()
    gc.collect()  # the traceback was the last to hold the iterator
    assert threads() == []


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Batches of two samples are large enough for two threads."""
    DenseMmap.from_ndarray(tmp_path / "large", np.zeros((16, 1 << 21), np.uint8), sync=False)
    return tmp_path / "large"


def test_two_threads_that_gather_end_with_the_loop(large: Path) -> None:
    for number, _ in enumerate(Batches(large, 2)):
        if number == 3:
            break
    assert threads() == []
    assert len(list(Batches(large, 2))) == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_two_threads_that_gather_are_two_in_a_forked_child_too(large: Path) -> None:
    running = iter(Batches(large, 2, with_indices=True))
    first, _ = next(running)
    child = os.fork()
    if child == 0:
        rest = [indices.tolist() for indices, _ in running]
        os._exit(0 if rest == [[i, i + 1] for i in range(2, 16, 2)] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len([first, *running]) == 8


@pytest.mark.parametrize("options", [{"threads": 2}, {"threads": 2, "prefetch": 0}, {}, {"prefetch": 0}], ids=str)
def test_an_iterator_may_be_dropped_under_a_lock_that_a_transform_needs(folder: Path, options: dict[str, Any]) -> None:
    lock, is_waiting = threading.Lock(), threading.Event()

    def locked(row: np.ndarray) -> np.ndarray:
        if lock.locked():
            is_waiting.set()
        with lock:
            return row

    running = iter(Batches(folder, 2, transform=locked, **options))
    next(running)
    with lock:
        next_one = threading.Thread(target=lambda: None)
        next_one.start()
        if options.get("prefetch") != 0 or "threads" in options:
            is_waiting.wait(1)
        del running  # returns, however long the threads have to wait
    next_one.join()


def test_iterators_in_circles_may_be_collected_in_any_thread(folder: Path) -> None:
    def littering(row: np.ndarray) -> list[list[int]]:
        return [[i] for i in range(1000)]  # what makes the garbage collector run, in this thread

    for _ in range(5):
        running = iter(Batches(folder, 2, transform=littering, threads=2))
        next(running)
        circle: dict[str, Any] = {"running": running}
        circle["itself"] = circle
        del running, circle
    assert len(list(Batches(folder, 2, transform=littering, threads=2))) == 20


def test_an_iterator_that_never_began_has_no_thread(folder: Path) -> None:
    running = iter(Batches(folder, 2))
    assert threads() == []
    next(running)
    assert threads() == ["mmap_ninja"]
    del running
    assert threads() == []


def test_iterators_side_by_side(folder: Path) -> None:
    batches, other = Batches(folder, 3, shuffle=True), Batches(folder, 3, shuffle=True)
    expected = list(zip(sums(other), sums(other), strict=True))  # two epochs
    found = [tuple(sum(map(total, batch)) for batch in pair) for pair in zip(batches, batches, strict=True)]
    assert found == expected


def test_an_iterator_may_be_used_in_another_thread(folder: Path) -> None:
    running, found = iter(Batches(folder, 2)), []
    next(running)
    thread = threading.Thread(target=lambda: found.extend(sums(running)))
    thread.start()
    thread.join()
    assert found == sums(Batches(folder, 2))[1:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@every_option
def test_a_forked_child_goes_on_with_a_thread_of_its_own(folder: Path, options: dict[str, Any]) -> None:
    expected = sums(Batches(folder, 2))
    running = iter(Batches(folder, 2, **options))
    for _ in range(5):
        next(running)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # waiting for a thread of the parent would be for ever
        try:
            rest = sums(running)
            again = sums(Batches(folder, 2, **options))
            ended = [thread for thread in threads() if thread == "mmap_ninja"]
            os.write(write, repr((rest, again, ended)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answers:
        found = answers.read()
    assert os.waitpid(child, 0)[1] == 0
    assert found == repr((expected[5:], expected, []))
    assert sums(running) == expected[5:]


def work(batches: Batches, answers: Any) -> None:
    answers.put(sums(batches))


@pytest.mark.parametrize("method", METHODS)
def test_workers_of_every_kind(folder: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    readers = [Batches(folder, 4, shuffle=True, transform=np.copy, shard=ReaderShard(k, 2)) for k in range(2)]
    expected = [sums(reader) for reader in readers]
    for reader in readers:
        reader.set_epoch(0)
    workers = [context.Process(target=work, args=(reader, answers)) for reader in readers]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(found) == sorted(expected)


PROGRAM = """
import sys
import numpy as np
from mmap_ninja.batches import Batches

batches = Batches(sys.argv[1], 1, {options})
running = iter(batches)
next(running)
{end}
"""
# A shell lets programs in the background ignore SIGINT, and the tests may run there.
INTERRUPTED = "import os, signal; signal.signal(2, signal.default_int_handler); os.kill(os.getpid(), 2)"
ENDS = ["", "raise SystemExit(3)", "raise RuntimeError('on purpose')", INTERRUPTED]


def test_large_batches_in_a_thread_that_outlives_the_main_one(large: Path) -> None:
    program = """
import sys, threading, time
from mmap_ninja.batches import Batches

def run():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    time.sleep(0.2)
    print([batch.shape[0] for batch in Batches(sys.argv[1], 4)])

threading.Thread(target=run).start()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(large)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("[4, 4, 4, 4]\n", "")


@pytest.mark.parametrize("end", ENDS)
def test_the_interpreter_ends_while_two_threads_gather(large: Path, end: str) -> None:
    test_the_interpreter_ends_while_batches_are_made(large, "", end)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("options", ["", "transform=np.copy, threads=3", "transform=np.copy, prefetch=0, threads=2"])
def test_the_interpreter_ends_while_batches_are_made(folder: Path, options: str, end: str) -> None:
    program = PROGRAM.format(options=options, end=end)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == [0, 3, 1, -signal.SIGINT][ENDS.index(end)], done.stderr
    expected = {"": "", "raise SystemExit(3)": ""}.get(end)
    if expected is None:
        assert done.stderr.rstrip().endswith(("on purpose", "KeyboardInterrupt"))
        assert done.stderr.count("Traceback") == 1
    else:
        assert done.stderr == expected
