"""Epochs, readers and states of MmapLoader."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the adapter for JAX needs it")

import adapter_data  # noqa: E402
from adapter_data import COUNT, ROWS, SIZE  # noqa: E402
from epoch_contract import PeekContract  # noqa: E402
from jax_data import check_all, epoch_of, plain  # noqa: E402
from mmap_ninja import ReaderShard  # noqa: E402
from mmap_ninja.errors import StateError  # noqa: E402
from mmap_ninja_jax import MmapLoader  # noqa: E402

maps = adapter_data.maps

# --- epochs


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_epochs_come_one_after_the_other_and_can_be_set(maps: Path, prefetch: int, drop_last: bool) -> None:
    options = {"shuffle": True, "seed": 3, "drop_last": drop_last}
    loader = MmapLoader(maps / "labels", SIZE, prefetch=prefetch, **options)
    assert len(loader) == (5 if drop_last else 6)
    expected = [epoch_of(maps / "labels", epoch=epoch, **options) for epoch in range(3)]
    for epoch in (0, 1, 2):
        assert loader.epoch == epoch
        check_all(loader, expected[epoch])
    loader.set_epoch(1)
    assert loader.epoch == 1
    check_all(loader, expected[1])
    assert loader.epoch == 2


class TestEpochs(PeekContract):
    @pytest.fixture(params=[{}, {"prefetch": 0}, {"layout": "packed", "pack_length": 4}], ids=str)
    def make(self, request: pytest.FixtureRequest, maps: Path) -> Any:
        size = 2 if "layout" in request.param else SIZE  # rows, or samples
        return partial(MmapLoader, maps / "rows", size, shuffle=True, **request.param)

    @staticmethod
    def lists(batches: Any) -> list[Any]:
        return [plain(batch) for batch in batches]


# --- readers


@pytest.mark.parametrize("count", [1, 2, 4])
def test_readers_share_each_batch(maps: Path, count: int) -> None:
    source = (np.arange(COUNT), maps / "rows")
    whole = [batch[0].tolist() for batch in epoch_of(source, 8, shuffle=True)]
    readers = [MmapLoader(source, 8, shuffle=True, shard=ReaderShard(k, count)) for k in range(count)]
    seen = []
    for parts, expected in zip(zip(*readers, strict=True), whole, strict=True):
        assert {len(numbers) for numbers, _ in parts} == {-(-len(expected) // count)}
        joined = [number for numbers, _ in parts for number in numbers.tolist()]
        assert joined[: len(expected)] == expected  # the last one is filled up
        seen += joined[: len(expected)]
        for numbers, rows in parts:
            assert rows.lengths.tolist() == [len(ROWS[number]) for number in numbers.tolist()]
    assert sorted(seen) == [*range(COUNT)]


# --- stop and go on


@pytest.mark.parametrize("names", [("state_dict", "load_state_dict"), ("get_state", "set_state")], ids=str)
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True, "prefetch": 0}])
def test_it_goes_on_from_every_position(maps: Path, options: dict[str, Any], names: tuple[str, str]) -> None:
    def made() -> MmapLoader:
        return MmapLoader((maps / "rows", maps / "texts"), SIZE, seed=3, **options)

    loader, states, expected = made(), [], []
    states.append(getattr(loader, names[0])())
    for _ in range(2):
        for batch in loader:
            expected.append(plain(batch))
            states.append(getattr(loader, names[0])())
    for position, state in enumerate(states):
        again, rest = made(), []
        getattr(again, names[1])(json.loads(json.dumps(state)))
        while len(rest) < len(expected) - position:
            rest += map(plain, again)
        assert rest == expected[position:]


def test_it_goes_on_with_another_number_of_readers(maps: Path) -> None:
    whole = [batch.tolist() for batch in epoch_of(np.arange(24), 6, shuffle=True)]
    for before, after in itertools.product((1, 2, 3), repeat=2):
        loader = MmapLoader(np.arange(24), 6, shuffle=True, shard=ReaderShard(before - 1, before))
        running = iter(loader)
        next(running), next(running)
        others = [MmapLoader(np.arange(24), 6, shuffle=True, shard=ReaderShard(k, after)) for k in range(after)]
        for other in others:
            other.load_state_dict(loader.state_dict())
        parts = zip(*others, strict=True)
        assert [[number for part in batch for number in part.tolist()] for batch in parts] == whole[2:]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"source": np.arange(9)}, "n is 23 there and 9 here"),
        ({"batch_size": 5}, "batch_size is 4 there and 5 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"shuffle": False}, "shuffle is True there and False here"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_state_of_another_loader_is_refused_with_both_values(other: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"source": np.arange(COUNT), "batch_size": SIZE, "shuffle": True}
    state, loader = MmapLoader(**options).state_dict(), MmapLoader(**{**options, **other})
    before = loader.state_dict()
    for load in (loader.load_state_dict, loader.set_state):
        with pytest.raises(StateError, match=message):
            load(state)
    assert loader.state_dict() == before


@pytest.mark.parametrize(
    "wrong", [{}, {"samples_seen": 3}, {"samples_seen": 99}, {"version": 2}, {"epoch": "0"}], ids=str
)
def test_a_damaged_state_is_refused(wrong: dict[str, Any]) -> None:
    loader = MmapLoader(np.arange(COUNT), SIZE)
    with pytest.raises(StateError):
        loader.load_state_dict({**loader.state_dict(), **wrong} if wrong else {})
