"""Whether a thread makes items ahead, by what it saves; and that no item is lost where that changes."""

from __future__ import annotations

import gc
import itertools
import pickle
import random
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest

from mmap_ninja import Batches, DenseMmap
from mmap_ninja._pace import Pace, Paced

WINDOW = 16


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mmap_ninja"]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    gc.collect()
    for thread in threads():
        thread.join(10)
    assert threads() == []


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

    def count(self, making: float, using: float) -> None:
        assert making >= 0
        assert using >= 0


@pytest.mark.parametrize(
    ("making", "using", "pays"),
    [(1e-5, 1.0, False), (1.0, 1e-5, False), (1e-3, 1e-3, True), (1.4e-4, 1.4e-4, False), (1.6e-4, 1.6e-4, True)],
)
def test_a_thread_pays_where_both_sides_take_longer_than_handing_over(making: float, using: float, pays: bool) -> None:
    pace = Pace()
    for _ in range(WINDOW - 1):
        pace.count(making, using)
        assert pace.pays
    pace.count(making, using)
    assert pace.pays == pays


def test_what_does_not_pay_has_to_pay_twice_to_come_back() -> None:
    pace = Pace()
    for seconds, pays in [(1e-5, False), (2.5e-4, False), (3.5e-4, True), (2.5e-4, True), (1e-4, False)]:
        for _ in range(WINDOW):
            pace.count(seconds, seconds)
        assert pace.pays == pays


def test_one_long_step_does_not_decide() -> None:
    pace = Pace()
    for using in [30.0, *[1e-5] * (WINDOW - 1)]:  # a step that is compiled
        pace.count(2e-4, using)
    assert not pace.pays


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("seed", range(20))
def test_items_come_in_order_whenever_it_changes(seed: int, most: int) -> None:
    drawn, pace, items = random.Random(seed), Set(), Items(60)
    pace.pays = drawn.random() < 0.5
    found = []
    for k in paced(items, pace, most):
        found.append(k)
        pace.pays ^= drawn.random() < 0.3
    assert found == list(range(60))
    assert items.is_closed


def test_it_is_the_thread_or_whoever_asks_who_makes_them() -> None:
    pace, items, here = Set(), Items(100), threading.current_thread().name
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
    pace, items = Set(), Items(10**9)
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
    pace, items = Set(), Items(10**9)
    iterator = paced(items, pace, most)
    next(iterator)
    pace.pays = False
    for _ in range(asked):
        next(iterator)
    iterator.close()
    assert items.is_closed


@pytest.mark.parametrize("pays", [True, False])
def test_it_may_be_let_go_of_at_any_time(pays: bool) -> None:
    pace, items = Set(), Items(10**9)
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
    pace = Set()
    iterator = paced(Items(10, failing), pace)
    for k in range(failing):
        assert next(iterator) == k
        pace.pays = not pace.pays
    with pytest.raises(OSError, match=f"item {failing}"):
        next(iterator)


def test_small_batches_for_a_quick_consumer_are_made_where_they_are_used(tmp_path: Path) -> None:
    batches = Batches(DenseMmap.from_ndarray(tmp_path / "m", np.arange(4_000)), 2, shuffle=True)
    makers: list[str] = []

    def noting(batch: np.ndarray) -> np.ndarray:
        makers.append(threading.current_thread().name)
        return batch

    noted = Batches(tmp_path / "m", 2, shuffle=True, batch_transform=noting)
    for epoch in range(2):
        expected = [batches.batch(epoch, k).tolist() for k in range(len(batches))]
        assert [batch.tolist() for batch in noted] == expected
    assert set(makers[:WINDOW]) == {"mmap_ninja"}
    assert set(makers[-1_000:]) == {threading.current_thread().name}
    assert pickle.loads(pickle.dumps(Batches(tmp_path / "m", 2))).epoch == 0
