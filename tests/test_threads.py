"""Threads that read a map while the same object extends, refreshes and flushes it."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plain_reader
from children import Children
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap
from mmap_ninja._storage.lock import Lock
from numbered import line, pair, plain, row
from plain_reader import same

READS, LONG_READS = 20_000, 200_000  # of each kind of map
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
