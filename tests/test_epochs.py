"""Each iteration is the next epoch, finished or given up: `Order`, and `Batches` of every kind of order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epoch_contract import SIZE, EpochContract, N, PeekContract, by_break
from mmap_ninja import Batches, DenseMmap, Order, RaggedMmap, ReaderShard
from mmap_ninja.errors import ArgumentError, EpochWarning, MapChangedError
from mmap_ninja.packing import PackedOrder

SOURCE = np.arange(N)


class Given:
    """An order that somebody else has written, with or without a length."""

    def __init__(self, **options: Any) -> None:
        self.order, self.epoch = order(**options), 0
        self.shard = self.order.shard

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return self.order.batches(self.epoch)


class Sized(Given):
    def __len__(self) -> int:
        return len(self.order)


def given(kind: Any, **options: Any) -> Batches:
    return Batches(SOURCE, order=kind(**options))


def packed(**options: Any) -> Batches:
    return Batches(SOURCE, order=PackedOrder(np.ones(N, int), 2, 2, shuffle=True, **options))


def order(**options: Any) -> Order:
    return Order(N, SIZE, shuffle=True, **options)


def with_functions(**options: Any) -> Batches:
    functions = {"transform": np.negative, "batch_transform": np.negative, "threads": 2}
    return Batches(SOURCE, SIZE, shuffle=True, layout="stack", **functions, **options)


MAKERS: dict[str, Callable[..., Any]] = {
    "prefetched": partial(Batches, SOURCE, SIZE, shuffle=True),
    "not prefetched": partial(Batches, SOURCE, SIZE, shuffle=True, prefetch=0),
    "with functions": with_functions,
    "an Order": lambda **options: Batches(SOURCE, order=order(**options)),
    "given": partial(given, Given),
    "given, with a length": partial(given, Sized),
    "packed": packed,
}


class TestBatches(PeekContract):
    @pytest.fixture(params=MAKERS.values(), ids=MAKERS)
    def make(self, request: pytest.FixtureRequest) -> Any:
        return request.param


class TestOrder(EpochContract):
    @pytest.fixture
    def make(self) -> Any:
        return order

    def test_where_the_next_iteration_begins(self) -> None:
        one = order()
        assert one.begins_at() == (0, 0)
        state = one.state_at(2, 3)
        one.load_state_dict(state)
        assert one.begins_at() == (2, 3)
        by_break(1, one)
        assert one.begins_at() == (3, 0)
        assert one.position_of(one.state_dict()) == (2, 4)
        one.load_state_dict(one.state_at(2, len(one)))
        assert one.begins_at() == (3, 0)
        assert Order(0, 1).begins_at() == (0, 0)

    @pytest.mark.parametrize("count", [2, 3])
    def test_the_warning_says_how_many_readers_there_are(self, count: int) -> None:
        one = Order(N, 6, shard=ReaderShard(0, count))
        by_break(1, one)
        with pytest.warns(EpochWarning, match=f"one of {count} readers"):
            by_break(1, one)

    def test_what_was_left_after_its_last_batch_is_finished(self) -> None:
        for one in (order(shard=ReaderShard(0, 2)), given(Sized, shard=ReaderShard(0, 2))):
            for epoch in range(3):
                assert (len(by_break(len(one), one)), one.epoch) == (len(one), epoch)


# --- after the last batch


class OnlyOnce:
    """An order whose epochs have no batches but for the first one."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[1], [2]] if self.epoch == 0 else [])


@pytest.mark.parametrize("prefetch", [0, 2])
def test_epochs_without_batches_are_gone_through_one_by_one(prefetch: int) -> None:
    batches = Batches(SOURCE, order=OnlyOnce(), prefetch=prefetch)
    batches.load_state_dict({**batches.state_dict(), "batches_seen": 2})
    with pytest.raises(ArgumentError, match="epoch 1 has no batch 0: there is nothing to look at"):
        batches.peek()
    for epoch in (2, 3):
        assert (list(batches), batches.epoch) == ([], epoch)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_iterator_has_no_epoch_after_its_last_batch(prefetch: int) -> None:
    batches = Batches(SOURCE, order=iter([[1], [2]]), prefetch=prefetch)
    batches.load_state_dict({**batches.state_dict(), "batches_seen": 2})
    assert list(batches) == []
    with pytest.raises(ArgumentError, match="can be gone through once"):
        list(batches)


# --- errors


def test_an_iteration_whose_first_batch_raises_counts_as_given_up() -> None:
    def once(sample: Any) -> Any:
        if errors:
            raise errors.pop()
        return sample

    options = {"shuffle": True, "layout": "stack", "prefetch": 0}
    errors, epochs = [OSError("gone"), OSError("gone")], Batches(SOURCE, SIZE, **options)
    expected = [[batch.tolist() for batch in epochs] for _ in range(2)]
    batches = Batches(SOURCE, SIZE, transform=once, **options)
    with pytest.raises(OSError, match="gone"):
        list(batches)
    assert batches.epoch == 0
    batches.set_epoch(0)
    with pytest.raises(OSError, match="gone"):
        list(batches)
    assert [batch.tolist() for batch in batches] == expected[1]
    batches.set_epoch(0)
    assert [batch.tolist() for batch in batches] == expected[0]


# --- a look at the first batch


def test_a_look_has_what_an_iteration_has() -> None:
    pairs = Batches({"x": SOURCE, "y": -SOURCE}, SIZE, with_indices=True, prefetch=0)
    indices, batch = pairs.peek()
    assert [indices.tolist(), batch["x"].tolist(), batch["y"].tolist()] == [[0, 1, 2, 3], [0, 1, 2, 3], [0, -1, -2, -3]]
    batch["x"][:] = 7  # it is nobody else's
    assert next(iter(pairs))[1]["x"].tolist() == [0, 1, 2, 3]


def test_a_look_calls_functions_for_one_batch_in_its_own_thread() -> None:
    def seen(sample: Any) -> Any:
        calls.append((int(sample), threading.current_thread()))
        return sample

    calls: list[Any] = []
    Batches(SOURCE, SIZE, transform=seen, threads=3, layout="stack").peek()
    assert calls == [(number, threading.current_thread()) for number in range(SIZE)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mmap_ninja")]


def test_readers_that_pad_together_see_one_shape(tmp_path: Path) -> None:
    rows = RaggedMmap.from_lists(tmp_path / "rows", [[1] * n for n in (1, 2, 3, 9)])
    options = {"layout": "padded", "pad_globally": True}
    readers = [Batches(rows, 4, shard=ReaderShard(k, 2), **options) for k in range(2)]
    assert [reader.peek().values.shape for reader in readers] == [(2, 9), (2, 9)]


def test_a_look_is_at_the_maps_as_they_are(tmp_path: Path) -> None:
    with DenseMmap.from_ndarray(tmp_path / "map", SOURCE) as m:
        batches = Batches(tmp_path / "map", SIZE)
        batches.batch(0, 0)
        m.append(1)
        batches.peek()
        DenseMmap.from_ndarray(tmp_path / "map", SOURCE)
        with pytest.raises(MapChangedError, match="was replaced"):
            batches.peek()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (Batches(SOURCE[:0], SIZE), "epoch 0 has no batch 0: there is nothing to look at"),
        (Batches(SOURCE[:3], SIZE, drop_last=True), "epoch 0 has no batch 0"),
        (Batches(SOURCE, order=[]), "epoch 0 has no batch 0"),
        (
            Batches(SOURCE, order=iter([[1], [2]])),
            "an iterator, which can be gone through once: a look would use it up",
        ),
    ],
    ids=["no samples", "no whole batch", "an empty order", "an iterator"],
)
def test_a_look_at_nothing_is_refused(batches: Batches, message: str) -> None:
    expected = [[1], [2]] if "iterator" in message else []
    with pytest.raises(ArgumentError, match=message):
        batches.peek()
    assert [batch.tolist() for batch in batches] == expected


def test_an_error_of_a_look_names_the_batch() -> None:
    def failing(sample: Any) -> Any:
        raise OSError("no such image")

    batches = Batches(SOURCE, SIZE, transform=failing)
    batches.load_state_dict(batches.state_at(3, 2))
    with pytest.raises(OSError, match="no such image") as error:
        batches.peek()
    assert "while making batch 2 of epoch 3" in " ".join([str(error.value), *getattr(error.value, "__notes__", [])])
