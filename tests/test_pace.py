"""Whether a thread makes items ahead, by what it saves; and that no item is lost where that changes."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import our_threads
from mmap_ninja import Batches, DenseMmap, _ahead, open_map
from mmap_ninja._ahead import Ahead
from mmap_ninja._pace import Pace, Paced
from our_threads import threads

BLOCK = 3  # items that belong together with two of them ahead


none_left = our_threads.none_left


class Items:
    """Numbers, with the threads that have made them, and whether they were closed."""

    def __init__(self, count: int, failing: int | None = None) -> None:
        self._count, self._failing = count, failing
        self.makers: list[str] = []
        self.is_closed = False

    def made(self) -> Generator[int, None, None]:
        try:
            for k in range(self._count):
                if k == self._failing:
                    raise OSError(f"item {k}")
                self.makers.append(threading.current_thread().name)
                yield k
        finally:
            self.is_closed = True


def paced(items: Items, pace: Pace, most: int = 2) -> Paced[int]:
    return Paced(items.made(), most, threading.Event(), pace)


class Set(Pace):
    """It changes only when a test says so."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.pays = True

    def count(self, making: float, using: float, *, is_ahead: bool) -> None:
        assert making >= 0
        assert using >= 0


@pytest.mark.parametrize(
    ("making", "using", "pays"),
    [(1e-5, 1.0, False), (1.0, 1e-5, False), (1e-3, 1e-3, True), (2.9e-4, 2.9e-4, False), (3.1e-4, 3.1e-4, True)],
)
def test_a_thread_pays_where_both_sides_take_longer_than_handing_over(making: float, using: float, pays: bool) -> None:
    pace = Pace(2)
    for _ in range(BLOCK):
        pace.count(making, using, is_ahead=False)
        assert not pace.pays
    pace.count(making, using, is_ahead=False)
    assert pace.pays == pays


def test_it_is_looked_at_again_when_a_thread_has_made_many() -> None:
    pace = Pace(2)
    for seconds in [1e-3, 1e-5, 1e-3]:
        for _ in range(BLOCK + 1):
            pace.count(seconds, seconds, is_ahead=False)
        assert pace.pays == (seconds > 1e-4)
        for k in range(128 * BLOCK + 1 if pace.pays else 0):
            assert pace.pays, k
            pace.count(0.0, 1e-5, is_ahead=True)  # as if it took no time
        assert not pace.pays
        for _ in range(BLOCK):  # they are on their way yet
            pace.count(1.0, 1.0, is_ahead=True)
        assert not pace.pays


def test_what_is_used_in_bursts_is_made_ahead_if_it_may_be_that_far_ahead() -> None:
    pace = Pace(32)
    for using in [0.1, *[1e-6] * 31, 0.1, 1e-6]:  # a step after every 32nd batch
        assert not pace.pays
        pace.count(1e-3, using, is_ahead=False)
    assert pace.pays


def test_one_long_step_at_the_start_does_not_decide() -> None:
    pace = Pace(2)
    for using in [30.0, *[1e-5] * 20]:  # a step that is compiled
        pace.count(2e-3, using, is_ahead=False)
        assert not pace.pays


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("seed", range(20))
def test_items_come_in_order_whenever_it_changes(seed: int, most: int) -> None:
    drawn, pace, items = random.Random(seed), Set(2), Items(60)
    pace.pays = drawn.random() < 0.5
    found = []
    for k in paced(items, pace, most):
        found.append(k)
        pace.pays ^= drawn.random() < 0.3
    assert found == list(range(60))
    assert items.is_closed


def test_it_is_the_thread_or_whoever_asks_who_makes_them() -> None:
    pace, items, here = Set(2), Items(100), threading.current_thread().name
    iterator = paced(items, pace)
    assert [next(iterator) for _ in range(10)] == list(range(10))
    assert set(items.makers) == {"mmap_ninja"}
    pace.pays = False
    assert [next(iterator) for _ in range(10)] == list(range(10, 20))
    assert items.makers[-5:] == [here] * 5
    assert len(items.makers) == 20  # nothing is made ahead
    pace.pays = True
    assert [next(iterator) for _ in range(80)] == list(range(20, 100))
    assert items.makers[20:] == ["mmap_ninja"] * 80
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize("changes", list(itertools.product([True, False], repeat=3)))
def test_it_may_be_closed_at_any_time(changes: tuple[bool, ...]) -> None:
    pace, items = Set(2), Items(10**9)
    pace.pays = changes[0]
    iterator = paced(items, pace)
    for pays in changes[1:]:
        next(iterator)
        pace.pays = pays
    next(iterator)
    iterator.close()
    assert items.is_closed
    assert threads() == []


@pytest.mark.parametrize("asked", range(6))
@pytest.mark.parametrize("most", [1, 4])
def test_it_may_be_closed_while_the_thread_retires(asked: int, most: int) -> None:
    pace, items = Set(2), Items(10**9)
    iterator = paced(items, pace, most)
    next(iterator)
    pace.pays = False
    for _ in range(asked):
        next(iterator)
    iterator.close()
    assert items.is_closed


@pytest.mark.parametrize("pays", [True, False])
def test_it_may_be_let_go_of_at_any_time(pays: bool) -> None:
    pace, items = Set(2), Items(10**9)
    iterator = paced(items, pace)
    next(iterator)
    pace.pays = pays
    next(iterator)
    del iterator
    gc.collect()
    for thread in threads():
        thread.join(10)
    assert items.is_closed


@pytest.mark.parametrize("failing", range(6))
def test_an_error_comes_in_its_turn_whenever_it_changes(failing: int) -> None:
    pace = Set(2)
    iterator = paced(Items(10, failing), pace)
    for k in range(failing):
        assert next(iterator) == k
        pace.pays = not pace.pays
    with pytest.raises(OSError, match=f"item {failing}"):
        next(iterator)


def test_what_it_has_stopped_does_not_stop_what_comes_after_it() -> None:
    pace, stopped = Set(2), threading.Event()
    iterator = Paced(Items(100).made(), 2, stopped, pace)
    for k in range(100):
        assert next(iterator) == k
        pace.pays = k % 20 > 10
        gc.collect()  # of the threads that have retired
        assert not stopped.is_set()
    assert list(iterator) == []


@pytest.mark.parametrize("pays", [True, False])
def test_where_no_thread_can_be_had_none_is_needed(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pace, stopped = Set(2), threading.Event()
    pace.pays = pays
    monkeypatch.setattr(threading.Thread, "start", fail)
    iterator = Paced(Items(20).made(), 2, stopped, pace)
    found = []
    for k in iterator:
        found.append(k)
        pace.pays = not pace.pays
        gc.collect()
    assert found == list(range(20))
    assert not stopped.is_set()


@pytest.mark.parametrize("left", [None, 2, 5])
@pytest.mark.parametrize("failing", [None, 7])
@pytest.mark.parametrize("make", [Ahead, lambda *given: Paced(*given, Set(2))], ids=["ahead", "paced"])
def test_nothing_stays_of_what_is_done_or_was_left(
    make: Callable[..., Any], failing: int | None, left: int | None
) -> None:
    class Big:
        """Something that the items hold."""

    stopped = threading.Event()

    def items(big: Big) -> Generator[int, None, None]:
        for k in range(20):
            if k == failing or stopped.is_set():
                raise OSError
            assert big
            yield k

    def gone_through() -> weakref.ref[Big]:
        big = Big()
        iterator = make(items(big), 2, stopped)
        with suppress(OSError):
            for k in iterator:
                if k == left:
                    break
                if isinstance(iterator, Paced):
                    iterator._pace.pays = k % 6 < 3
        iterator.close()
        return weakref.ref(big)

    before = len(_ahead._running)
    reference = gone_through()
    gc.collect()
    assert reference() is None
    assert len(_ahead._running) <= before


# --- as Batches have it


def makers_of(batches: Batches, epochs: int = 2) -> list[str]:
    """The threads that have made the batches of some epochs."""
    found: list[str] = []

    def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        found.append(threading.current_thread().name)
        return np.empty(shape, dtype)

    batches._recipe = replace(batches._recipe, empty=empty)
    for epoch in range(epochs):
        expected = [batches.batch(epoch, k).tolist() for k in range(len(batches))]
        found.clear()
        assert [batch.tolist() for batch in batches] == expected
    return found


def test_small_batches_for_a_quick_loop_are_made_in_its_own_thread(tmp_path: Path) -> None:
    m = DenseMmap.from_ndarray(tmp_path / "m", np.arange(4_000))
    assert set(makers_of(Batches(m, 2, shuffle=True))[-1_000:]) == {threading.current_thread().name}


def same(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: Batches(folder / "m", 2, transform=same, layout="stack"),
        lambda folder: Batches(folder / "m", 2, batch_transform=same),
        lambda folder: Batches(open_map(folder / "m", wrapper_fn=same), 2, layout="stack"),
    ],
    ids=["transform", "batch_transform", "wrapper_fn"],
)
def test_functions_of_the_users_are_called_in_one_thread(tmp_path: Path, make: Callable[[Path], Batches]) -> None:
    DenseMmap.from_ndarray(tmp_path / "m", np.arange(400))
    assert set(makers_of(make(tmp_path))) == {"mmap_ninja"}


@pytest.mark.parametrize("options", [{}, {"transform": same, "layout": "stack"}], ids=["none", "transform"])
def test_batches_come_where_no_thread_can_be_had(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    large = DenseMmap.from_ndarray(tmp_path / "m", np.arange(64 << 17).reshape(64, 1 << 17))
    monkeypatch.setattr(threading.Thread, "start", fail)
    memory = []
    for k, batch in enumerate(Batches(large, 8, empty=np.empty, **options)):
        np.testing.assert_array_equal(batch, large[8 * k : 8 * k + 8])
        memory.append(weakref.ref(batch))
        del batch
    assert len(memory) == 8
    assert [reference() for reference in memory] == [None] * 8


def test_an_order_of_the_users_is_gone_through_in_one_thread(tmp_path: Path) -> None:
    found: list[str] = []

    class Noting:
        def __iter__(self) -> Iterator[list[int]]:
            for k in range(400):
                found.append(threading.current_thread().name)
                yield [k]

    for _ in range(2):
        list(Batches(DenseMmap.from_ndarray(tmp_path / "m", np.arange(400)), order=Noting()))
    assert set(found) == {"mmap_ninja"}
