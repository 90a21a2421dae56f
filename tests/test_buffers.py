"""Memory is used again when nobody can see it any more, and never before."""

from __future__ import annotations

import gc
import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_ninja.buffers import Pool

MB = 1 << 20


def place(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">f8", "c16", "?", "M8[ns]", "S3", [("a", "<i4"), ("b", "u1")]])
@pytest.mark.parametrize("shape", [(1 << 17,), (300, 7, 101), (1, 99_991)])
def test_arrays_are_aligned_writable_and_of_the_shape_asked_for(dtype: object, shape: tuple[int, ...]) -> None:
    array = Pool().empty(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert place(array) % 64 == 0


@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 0, 2)])
def test_small_arrays_are_numpys_own(shape: tuple[int, ...]) -> None:
    array = Pool().empty(shape, np.float32)
    assert array.shape == shape
    assert array.base is None


def test_memory_is_used_again_once_it_is_free() -> None:
    pool = Pool()
    array = pool.empty((MB,), "u1")
    before = place(array)
    del array
    assert place(pool.empty((MB // 4,), "i4")) == before


HOLDERS = {
    "the array": lambda array: array,
    "a slice": lambda array: array[5:9],
    "a slice of a slice": lambda array: array[5:9][1:2][:1],
    "a row": lambda array: array.reshape(-1, 16)[3],
    "another dtype": lambda array: array.view("<f8"),
    "a subclass": lambda array: array.view(np.matrix),
    "a transposed one": lambda array: array.reshape(16, -1).T,
    "a memoryview": lambda array: memoryview(array),
    "a memoryview of a slice": lambda array: memoryview(array[7:8]),
    "an array over a memoryview": lambda array: np.frombuffer(memoryview(array), "u1")[3:4],
    "a window": lambda array: np.lib.stride_tricks.sliding_window_view(array, 4)[17],
    "a broadcast one": lambda array: np.broadcast_to(array[:1], (3, 1)),
    "what it was made over": lambda array: array.base.base[64 : MB // 2],
    "a structured view": lambda array: array.view([("a", "u1"), ("b", "u1")])["b"],
}


@pytest.mark.parametrize("name", HOLDERS)
def test_what_somebody_holds_never_changes(name: str) -> None:
    pool = Pool()
    array = pool.empty((MB,), "u1")
    array[:] = 1
    held = HOLDERS[name](array)
    del array
    gc.collect()
    for _ in range(5):
        pool.empty((MB,), "u1")[:] = 2
    assert np.all(np.asarray(held).view("u1") == 1)
    waiting = sum(memory.nbytes for memory in pool._free)
    del held
    gc.collect()
    # And then it is free; but memory that somebody has reached past the array is never used again.
    assert (sum(memory.nbytes for memory in pool._free) > waiting) == (name != "what it was made over")


def test_no_more_than_the_limit_waits_for_its_next_use() -> None:
    pool = Pool(kept=3 * MB)
    arrays = [pool.empty((MB,), "u1") for _ in range(8)]
    assert len({place(array) for array in arrays}) == 8
    del arrays  # at once, not when somebody next asks for memory
    assert 0 < sum(memory.nbytes for memory in pool._free) <= 3 * MB


def test_a_small_array_does_not_hold_large_memory() -> None:
    pool = Pool()
    large = pool.empty((16 * MB,), "u1")
    before = place(large)
    del large
    assert place(pool.empty((MB,), "u1")) != before


@given(sizes=st.lists(st.integers(1 << 16, 1 << 18), min_size=1, max_size=30), kept=st.integers(0, MB))
def test_arrays_that_live_at_the_same_time_never_overlap(sizes: list[int], kept: int) -> None:
    pool, living = Pool(kept), []
    for number, size in enumerate(sizes):
        array = pool.empty((size,), "u1")
        array[:] = number
        living.append((number, array))
        if number % 3 == 2:
            del living[number % len(living)]
        del array
        assert all((other == value).all() for value, other in living)


def test_threads_share_a_pool() -> None:
    pool, wrong = Pool(), []

    def work(value: int) -> None:
        for _ in range(200):
            array = pool.empty((1 << 16,), "u1")
            array[:] = value
            if (array != value).any():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_has_a_pool_of_its_own_and_no_lock_that_nobody_releases() -> None:
    pool = Pool()
    held = pool.empty((MB,), "u1")
    held[:] = 7
    with pool._lock:  # as a thread would, in the middle of its work
        child = os.fork()
        if child == 0:
            array = pool.empty((MB,), "u1")
            array[:] = 9
            os._exit(0 if (held == 7).all() and place(array) != place(held) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (held == 7).all()
