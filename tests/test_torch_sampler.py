"""OrderBatchSampler and OrderSampler in stock DataLoaders: the batches of MmapLoader, from every position."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch.utils.data import DataLoader, DistributedSampler  # noqa: E402

from mmap_ninja import DenseMmap, Order, ReaderShard  # noqa: E402
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, StateError  # noqa: E402
from mmap_ninja_torch import MmapDataset, MmapLoader, OrderBatchSampler, OrderSampler  # noqa: E402

N = 23
# Workers are forked, as starting others takes seconds; Python 3.12 warns of that where there are threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
OPTIONS = [{}, {"shuffle": True}, {"shuffle": True, "seed": 9, "drop_last": True}]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map whose samples are their own numbers."""
    folder = tmp_path_factory.mktemp("maps") / "numbers"
    DenseMmap.from_ndarray(folder, np.arange(N))
    return folder


@pytest.fixture
def dataset(numbers: Path) -> MmapDataset:
    return MmapDataset(numbers)


def batches(loader: Any) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


def forked(dataset: MmapDataset, workers: int, **options: Any) -> DataLoader[Any]:
    """A stock DataLoader."""
    how = {"multiprocessing_context": "fork", "prefetch_factor": 2} if workers else {}
    return DataLoader(dataset, num_workers=workers, **how, **options)


# --- the same batches


@every_option
@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_sampler_gives_the_batches_of_the_loader(
    numbers: Path, dataset: MmapDataset, options: dict[str, Any], workers: int
) -> None:
    loader = MmapLoader(numbers, 4, **options)
    stock = forked(dataset, workers, batch_sampler=OrderBatchSampler(dataset, 4, **options))
    assert len(stock) == len(loader)
    for _ in range(2):
        assert batches(stock) == batches(loader)


@every_option
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sampler_gives_the_samples_of_the_loader(
    numbers: Path, dataset: MmapDataset, options: dict[str, Any], workers: int
) -> None:
    options = {"shuffle": False, **options}
    drop_last = options.pop("drop_last", False)
    loader = MmapLoader(numbers, 4, drop_last=drop_last, **options)
    stock = forked(dataset, workers, batch_size=4, drop_last=drop_last, sampler=OrderSampler(dataset, **options))
    assert len(stock) == len(loader)
    for _ in range(2):
        assert batches(stock) == batches(loader)


@every_option
def test_they_are_the_batches_of_the_order(options: dict[str, Any]) -> None:
    sampler, order = OrderBatchSampler(N, 4, **options), Order(N, 4, **options)
    assert len(sampler) == len(order)
    for epoch in range(3):
        assert sampler.epoch == epoch
        assert list(sampler) == [indices.tolist() for indices in order.batches(epoch)]


def test_a_sampler_shuffles_unless_it_is_told_not_to() -> None:
    sampler = OrderSampler(N)
    epochs = [list(sampler) for _ in range(2)]
    assert epochs[0] != epochs[1] != list(range(N))
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(N))
    assert list(OrderSampler(N, shuffle=False)) == list(range(N))
    assert list(OrderSampler(N, seed=1)) != epochs[0]


def test_indices_are_numbers_of_python() -> None:
    assert {type(index) for index in OrderSampler(N)} == {int}
    assert {type(index) for batch in OrderBatchSampler(N, 4) for index in batch} == {int}


def test_set_epoch_goes_to_any_epoch() -> None:
    for make in (lambda: OrderBatchSampler(N, 4, shuffle=True), lambda: OrderSampler(N)):
        sampler = make()
        epochs = [list(sampler) for _ in range(4)]
        assert len({str(epoch) for epoch in epochs}) == 4
        again = make()
        for epoch in (2, 0, 3):
            again.set_epoch(epoch)
            assert again.epoch == epoch
            assert list(again) == epochs[epoch]


def test_a_data_source_of_any_length() -> None:
    for source in (range(5), [0] * 5, np.zeros(5), 5, np.int64(5)):
        assert sorted(OrderSampler(source)) == list(range(5))
        assert list(OrderBatchSampler(source, 3)) == [[0, 1, 2], [3, 4]]
    assert list(OrderBatchSampler(0, 3)) == list(OrderSampler([])) == []


# --- going on


@every_option
def test_a_batch_sampler_goes_on_from_every_position(dataset: MmapDataset, options: dict[str, Any]) -> None:
    def make() -> tuple[OrderBatchSampler, DataLoader[Any]]:
        sampler = OrderBatchSampler(dataset, 4, **options)
        return sampler, DataLoader(dataset, batch_sampler=sampler)

    check_every_position(make, lambda sampler, seen: sampler.state_dict())
    check_every_position(make, lambda sampler, seen: sampler.state_dict(seen=seen))


@every_option
def test_a_sampler_goes_on_from_every_position(dataset: MmapDataset, options: dict[str, Any]) -> None:
    options = {"shuffle": False, **options}
    drop_last = options.pop("drop_last", False)

    def make() -> tuple[OrderSampler, DataLoader[Any]]:
        sampler = OrderSampler(dataset, **options)
        return sampler, DataLoader(dataset, batch_size=4, drop_last=drop_last, sampler=sampler)

    check_every_position(make, lambda sampler, seen: sampler.state_dict(seen=min(4 * seen, N)))


def check_every_position(
    make: Callable[[], tuple[Any, Any]], state_of: Callable[[Any, int], dict[str, Any]], epochs: int = 2
) -> None:
    """Start again from each state that there is, and see the rest of what was not interrupted."""
    sampler, loader = make()
    expected, states = [], []
    for _ in range(epochs):
        for seen, batch in enumerate(loader, 1):
            expected.append(batch.tolist())
            states.append(json.loads(json.dumps(state_of(sampler, seen))))
    assert len(states) == len(expected) > 0
    for position, state in enumerate(states, 1):
        sampler, loader = make()
        sampler.load_state_dict(state)
        rest: list[Any] = []
        while len(rest) < len(expected) - position:
            rest += batches(loader)
        assert rest == expected[position:]


def test_workers_ask_for_more_than_was_seen_so_the_loop_has_to_count(dataset: MmapDataset) -> None:
    sampler = OrderBatchSampler(dataset, 2, shuffle=True)
    states, expected, asked = [], [], []
    for _ in range(2):
        for seen, batch in enumerate(forked(dataset, 2, batch_sampler=sampler), 1):
            states.append(sampler.state_dict(seen=seen))
            asked.append(sampler.state_dict()["samples_seen"])
            expected.append(batch.tolist())
    assert asked[0] > states[0]["samples_seen"] == 2
    for position, state in enumerate(states, 1):
        again = OrderBatchSampler(dataset, 2, shuffle=True)
        again.load_state_dict(state)
        rest = [*again, *again] if len(expected) - position > 12 else list(again)
        assert rest[: len(expected) - position] == expected[position:]


def test_going_on_in_a_loader_with_workers(dataset: MmapDataset) -> None:
    expected = batches(DataLoader(dataset, batch_sampler=OrderBatchSampler(dataset, 4, shuffle=True)))
    sampler = OrderBatchSampler(dataset, 4, shuffle=True)
    running = iter(forked(dataset, 2, batch_sampler=sampler))
    first = [next(running).tolist() for _ in range(2)]
    state = sampler.state_dict(seen=2)
    del running
    sampler.load_state_dict(state)
    assert first + batches(forked(dataset, 2, batch_sampler=sampler)) == expected
    sampler.load_state_dict(state)
    assert first + batches(DataLoader(dataset, batch_sampler=sampler)) == expected


def test_the_state_is_that_of_the_loader(numbers: Path) -> None:
    loader, sampler = MmapLoader(numbers, 4, shuffle=True), OrderBatchSampler(N, 4, shuffle=True)
    running, indices = iter(loader), iter(sampler)
    next(running), next(indices)
    assert sampler.state_dict() == loader.state_dict()
    expected = batches(running)
    again = OrderBatchSampler(N, 4, shuffle=True)
    again.load_state_dict(loader.state_dict() | {"samples_seen": 4, "epoch": 0})
    assert list(again) == expected


def test_what_was_seen_is_of_the_epoch_that_the_sampler_is_at() -> None:
    for sampler, batch in ((OrderBatchSampler(N, 4, shuffle=True), 4), (OrderSampler(N), 1)):
        sampler.set_epoch(3)
        assert sampler.state_dict(seen=0) == sampler.state_dict()
        next(iter(sampler))
        assert sampler.state_dict(seen=1) == sampler.state_dict()
        assert (sampler.state_dict(seen=2)["epoch"], sampler.state_dict(seen=2)["samples_seen"]) == (3, 2 * batch)
        state = {**sampler.state_dict(), "epoch": 7}
        sampler.load_state_dict(state)
        assert sampler.state_dict(seen=1) == state


def test_what_an_earlier_process_saw_of_an_epoch_counts_too(dataset: MmapDataset) -> None:
    expected = list(OrderBatchSampler(N, 4, shuffle=True))
    sampler = OrderBatchSampler(N, 4, shuffle=True)
    sampler.load_state_dict({**sampler.state_dict(), "samples_seen": 8})
    running = iter(forked(dataset, 2, batch_sampler=sampler))
    assert next(running).tolist() == expected[2]
    state = sampler.state_dict(seen=3)
    assert (state["epoch"], state["samples_seen"]) == (0, 12)
    again = OrderBatchSampler(N, 4, shuffle=True)
    again.load_state_dict(state)
    assert list(again) == expected[3:]


def test_all_that_was_seen_leads_to_the_next_epoch() -> None:
    sampler = OrderBatchSampler(N, 4, shuffle=True, drop_last=True)
    first, second = list(sampler), list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first
    state = sampler.state_dict(seen=len(sampler))
    assert state["epoch"] == 0
    again = OrderBatchSampler(N, 4, shuffle=True, drop_last=True)
    again.load_state_dict(state)
    assert (again.epoch, list(again)) == (1, second)


def test_a_loop_that_sets_each_epoch_goes_on_too() -> None:
    sampler = OrderBatchSampler(N, 4, shuffle=True)
    expected = list(sampler)
    sampler.load_state_dict({**sampler.state_dict(), "epoch": 0, "samples_seen": 8})
    sampler.set_epoch(0)
    assert list(sampler) == expected[2:]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [OrderBatchSampler, OrderSampler])
def test_the_stateful_loader_of_torchdata_goes_on(dataset: MmapDataset, kind: Any, workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is another package")
    how = {"multiprocessing_context": "fork"} if workers else {}

    def make() -> Any:
        if kind is OrderBatchSampler:
            given = {"batch_sampler": OrderBatchSampler(dataset, 4, shuffle=True)}
        else:
            given = {"sampler": OrderSampler(dataset), "batch_size": 4}
        return stateful.StatefulDataLoader(dataset, num_workers=workers, **how, **given)

    loader = make()
    epochs = [batches(loader) for _ in range(2)]
    order = OrderBatchSampler(N, 4, shuffle=True)
    assert kind is OrderSampler or epochs == [list(order), list(order)]
    assert epochs[0] != epochs[1]
    loader = make()
    states = [(position, loader.state_dict()) for position, _ in enumerate(loader, 1)]
    states.append((6, loader.state_dict()))  # after the end of the epoch, too
    for position, state in states[::2] if workers else states:
        again, rest = make(), []
        again.load_state_dict(pickle.loads(pickle.dumps(state)))
        while len(rest) < 12 - position:
            rest += batches(again)
        assert rest == (epochs[0] + epochs[1])[position:]


# --- several readers


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_readers_share_the_batches_of_one(count: int, drop_last: bool) -> None:
    options = {"shuffle": True, "drop_last": drop_last}
    readers = [OrderBatchSampler(N, 2, shard=ReaderShard(k, count), **options) for k in range(count)]
    whole = OrderBatchSampler(N, 2 * count, **options)
    for _ in range(2):
        found = [list(reader) for reader in readers]
        assert {len(part) for part in found} == {len(whole)} == {len(reader) for reader in readers}
        for parts, expected in zip(zip(*found, strict=True), whole, strict=True):
            joined = list(itertools.chain(*parts))
            assert joined[: len(expected)] == expected  # all of them, and each once
            assert not drop_last or len(joined) == len(expected)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_readers_take_turns_at_samples_as_those_of_a_distributed_sampler_do(count: int, drop_last: bool) -> None:
    readers = [OrderSampler(N, shard=ReaderShard(k, count), drop_last=drop_last) for k in range(count)]
    stock = DistributedSampler(range(N), count, 0, drop_last=drop_last)
    whole = OrderSampler(N)
    for _ in range(2):
        found = [list(reader) for reader in readers]
        assert {len(part) for part in found} == {len(stock)} == {len(reader) for reader in readers}
        turns, expected = list(itertools.chain(*zip(*found, strict=True))), list(whole)
        assert turns[:N] == expected[: len(turns)]
        assert drop_last or set(turns) == set(range(N))


def test_unshuffled_readers_are_those_of_a_distributed_sampler() -> None:
    for k in range(3):
        stock = DistributedSampler(range(N), 3, k, shuffle=False)
        assert list(OrderSampler(N, shuffle=False, shard=ReaderShard(k, 3))) == list(stock)


def test_going_on_with_another_number_of_readers() -> None:
    whole = list(OrderBatchSampler(N, 12, shuffle=True, seed=4))
    assert len(whole) == 2
    for before, after in itertools.permutations((1, 2, 3, 4), 2):
        running = OrderBatchSampler(N, 12 // before, shuffle=True, seed=4, shard=ReaderShard(before - 1, before))
        next(iter(running))
        rest = []
        for k in range(after):
            reader = OrderBatchSampler(N, 12 // after, shuffle=True, seed=4, shard=ReaderShard(k, after))
            reader.load_state_dict(running.state_dict(seen=1))
            rest.append(list(reader))
        (parts,) = zip(*rest, strict=True)
        assert list(itertools.chain(*parts))[: len(whole[1])] == whole[1]


# --- small things


@pytest.mark.parametrize("make", [lambda: OrderBatchSampler(N, 4, shuffle=True), lambda: OrderSampler(N)])
def test_a_copy_keeps_the_position(make: Callable[[], Any]) -> None:
    sampler = make()
    expected = list(sampler)
    sampler.set_epoch(0)
    running: Iterator[Any] = iter(sampler)
    next(running), next(running)
    state = sampler.state_dict(seen=1)
    for twin in (pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)):
        assert twin.state_dict() == sampler.state_dict()
        assert twin.state_dict(seen=1) == state
        assert list(twin) == expected[2:]
    assert len(pickle.dumps(OrderSampler(10**12))) < 2048


def test_a_billion_samples_take_no_memory() -> None:
    sampler = OrderBatchSampler(10**12, 4, shuffle=True)
    assert len(sampler) == 25 * 10**10
    found = next(iter(sampler))
    assert len(set(found)) == 4
    assert max(found) > 10**9
    assert len(OrderSampler(10**12)) == 10**12


@pytest.mark.parametrize("make", [lambda: OrderBatchSampler(N, 4), lambda: OrderSampler(N)])
def test_its_repr_says_what_it_goes_by(make: Callable[[], Any]) -> None:
    sampler = make()
    assert repr(sampler).startswith(type(sampler).__name__)
    assert "23" in repr(sampler)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"data_source": -1}, ArgumentError, "n is -1"),
    ({"data_source": None}, ArgumentTypeError, "None"),
    ({"data_source": 2.5}, ArgumentTypeError, r"2\.5"),
    ({"data_source": iter([1])}, ArgumentTypeError, "iterator"),
    ({"shuffle": 1}, ArgumentTypeError, "shuffle is 1, expected True or False"),
    ({"seed": -1}, ArgumentError, "seed is -1"),
    ({"seed": "x"}, ArgumentTypeError, "seed is 'x', expected an integer"),
    ({"drop_last": 0}, ArgumentTypeError, "drop_last is 0, expected True or False"),
    ({"shard": (0, 2)}, ArgumentTypeError, r"shard is \(0, 2\), expected a ReaderShard\(index, count\)"),
]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        *BAD,
        ({"batch_size": 0}, ArgumentError, "batch_size is 0, expected at least 1"),
        ({"batch_size": None}, ArgumentTypeError, "batch_size is None, expected an integer"),
        ({"batch_size": 2.0}, ArgumentTypeError, r"batch_size is 2\.0, expected an integer"),
    ],
)
def test_arguments_of_a_batch_sampler_that_make_no_sense(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        OrderBatchSampler(**{"data_source": N, "batch_size": 4, **options})


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_arguments_of_a_sampler_that_make_no_sense(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        OrderSampler(**{"data_source": N, **options})


@pytest.mark.parametrize(
    ("seen", "error", "message"),
    [
        (-1, ArgumentError, "seen is -1, expected 0 to 6"),
        (7, ArgumentError, "seen is 7, expected 0 to 6"),
        (1.5, ArgumentTypeError, "seen is 1.5, expected an integer"),
        ("1", ArgumentTypeError, "seen is '1', expected an integer"),
    ],
)
def test_a_count_that_no_loop_has_got_to(seen: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        OrderBatchSampler(N, 4).state_dict(seen=seen)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (OrderBatchSampler(N + 1, 4), "n is 24 there and 23 here"),
        (OrderBatchSampler(N, 5), "batch_size is 5 there and 4 here"),
        (OrderBatchSampler(N, 4, shard=ReaderShard(0, 2)), "batch_size is 8 there and 4 here"),
        (OrderBatchSampler(N, 4, shuffle=True), "shuffle is True there and False here"),
        (OrderBatchSampler(N, 4, seed=1), "seed is 1 there and 0 here"),
        (OrderSampler(N, shuffle=False), "batch_size is 1 there and 4 here"),
    ],
    ids=["n", "batch_size", "readers", "shuffle", "seed", "sampler"],
)
def test_a_state_of_another_sampler_is_refused_with_both_values(other: Any, message: str) -> None:
    sampler = OrderBatchSampler(N, 4)
    before = sampler.state_dict()
    with pytest.raises(StateError, match=message):
        sampler.load_state_dict(other.state_dict())
    assert sampler.state_dict() == before


def test_a_state_that_is_none_is_refused() -> None:
    with pytest.raises(StateError, match=r"a state is what state_dict\(\) gives, not a list"):
        OrderSampler(N).load_state_dict([])
    with pytest.raises(StateError, match="the state lacks version, n, batch_size"):
        OrderBatchSampler(N, 4).load_state_dict({})
