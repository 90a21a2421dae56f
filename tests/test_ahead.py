"""The thread that makes items ahead: in order, not too far, and never left behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Generator

import pytest

import our_threads
from mmap_ninja._ahead import Ahead
from our_threads import threads

none_left = our_threads.none_left


def counted(made: list[int], stop: int = 10**9) -> Generator[int, None, None]:
    for i in range(stop):
        made.append(i)
        yield i


def wait_until(condition) -> None:
    """For what another thread is about to do."""
    waited = threading.Event()
    for _ in range(10_000):
        if condition():
            return
        waited.wait(0.001)
    raise AssertionError("it never came true")


@pytest.mark.parametrize("most", [1, 2, 7])
def test_items_come_in_order(most: int) -> None:
    assert list(Ahead(counted([], 100), most)) == list(range(100))


def test_no_items() -> None:
    ahead = Ahead(counted([], 0), 2)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(ahead)


@pytest.mark.parametrize("most", [1, 3])
def test_it_is_ahead_but_not_further_than_asked_for(most: int) -> None:
    made: list[int] = []
    ahead = Ahead(counted(made), most)
    wait_until(lambda: len(made) == most + 1)  # the last one waits for room
    assert next(ahead) == 0
    wait_until(lambda: len(made) == most + 2)
    threading.Event().wait(0.05)
    assert len(made) == most + 2
    ahead.close()


def test_an_error_comes_in_its_turn_and_stays() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise KeyError("third")

    ahead = Ahead(items(), 5)
    assert next(ahead) == 1
    for _ in range(3):
        with pytest.raises(KeyError, match="third"):
            next(ahead)


def test_close_waits_until_the_thread_is_gone_and_the_items_are_closed() -> None:
    closed = []

    def items() -> Generator[int, None, None]:
        try:
            yield from counted([])
        finally:
            closed.append(threading.current_thread().name)

    ahead = Ahead(items(), 2)
    assert next(ahead) == 0
    ahead.close()
    assert closed == ["mmap_ninja"]
    assert threads() == []
    ahead.close()
    with pytest.raises(StopIteration):
        next(ahead)


def test_the_thread_ends_when_nobody_holds_the_iterator() -> None:
    ahead = Ahead(counted([]), 2)
    assert next(ahead) == 0
    del ahead
    gc.collect()
    for thread in threads():
        thread.join(10)
    assert threads() == []


def test_it_does_not_hold_what_was_taken() -> None:
    class Item:
        alive = 0

        def __init__(self) -> None:
            Item.alive += 1

        def __del__(self) -> None:
            Item.alive -= 1

    def items() -> Generator[Item, None, None]:
        while True:
            yield Item()

    ahead = Ahead(items(), 1)
    for _ in range(20):
        next(ahead)
        # one is ready, one waits for room, and the one that was taken is gone
        assert Item.alive <= 3
    ahead.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_does_not_wait_for_a_thread_that_is_missing() -> None:
    ahead = Ahead(counted([]), 2)
    assert next(ahead) == 0
    child = os.fork()
    if child == 0:
        try:
            next(ahead)
        except RuntimeError:  # and not the end of the items
            ahead.close()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert next(ahead) == 1
    ahead.close()


EXIT = """
import threading
from mmap_ninja._ahead import Ahead

def items():
    try:
        while True:
            yield bytes(100_000)
    finally:
        print("closed", flush=True)

ahead = Ahead(items(), 2)
next(ahead)
{end}
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "raise RuntimeError('on purpose')"])
def test_the_interpreter_ends_at_once_and_the_items_are_closed(end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT.format(end=end)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "closed\n"
    assert done.returncode == {"": 0, "raise SystemExit(3)": 3}.get(end, 1)
    assert done.stderr == "" or "on purpose" in done.stderr
