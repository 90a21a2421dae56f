"""MmapLoader from epoch to epoch: positions, going on from a state, other processes, batches that others choose."""

from __future__ import annotations

import itertools
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch.utils.data import BatchSampler, WeightedRandomSampler  # noqa: E402

import torch_batches  # noqa: E402
from faults import in_child  # noqa: E402
from mmap_ninja import ReaderShard  # noqa: E402
from mmap_ninja.errors import SampleIndexError, StateError  # noqa: E402
from mmap_ninja_torch import MmapLoader, OrderBatchSampler  # noqa: E402
from torch_batches import N, check_every_position, plain  # noqa: E402

folder, no_thread_is_left = torch_batches.folder, torch_batches.no_thread_is_left


# --- epochs


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_length_and_parts_of_several_readers(folder: Path, count: int, drop_last: bool) -> None:
    options = {"shuffle": True, "drop_last": drop_last}
    loaders = [MmapLoader(folder / "numbers", 2, shard=ReaderShard(k, count), **options) for k in range(count)]
    whole = MmapLoader(folder / "numbers", 2 * count, **options)
    for _ in range(2):
        found = [plain(loader) for loader in map(list, loaders)]
        assert {len(part) for part in found} == {len(loaders[0])} == {len(whole)}
        for parts, expected in zip(zip(*found, strict=True), plain(list(whole)), strict=True):
            assert list(itertools.chain(*parts))[: len(expected)] == expected


def test_each_epoch_has_an_order_of_its_own_that_set_epoch_goes_to(folder: Path) -> None:
    loader = MmapLoader(folder / "numbers", 5, shuffle=True)
    epochs = [plain(list(loader)) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(sorted(itertools.chain(*epoch)) == list(range(N)) for epoch in epochs)
    assert loader.epoch == 3
    loader.set_epoch(1)
    assert loader.epoch == 1
    assert plain(list(loader)) == epochs[1]


def test_two_iterators_at_once(folder: Path) -> None:
    loader = MmapLoader(folder / "numbers", 5, shuffle=True)
    expected = [plain(list(loader)) for _ in range(2)]
    loader.set_epoch(0)
    one, other = iter(loader), iter(loader)
    pairs = list(zip(one, other, strict=True))
    assert [plain(first) for first, _ in pairs] == expected[0]
    assert [plain(second) for _, second in pairs] == expected[1]


@pytest.mark.parametrize("options", [{}, {"prefetch": 0}, {"transform": torch.clone, "layout": "list", "threads": 3}])
@pytest.mark.parametrize("device", [None, "meta"])
def test_leaving_early_leaves_no_thread(folder: Path, options: dict[str, Any], device: Any) -> None:
    for number, _ in enumerate(MmapLoader(folder / "rows", 2, device=device, **options)):
        if number == 3:
            break
    for thread in threading.enumerate():
        if thread.name.startswith("mmap_ninja_"):  # one that was about to end
            thread.join(10)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("mmap_ninja")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("options", [{}, {"threads": 2, "transform": torch.clone}], ids=["stored", "transformed"])
def test_it_goes_on_in_a_forked_child(folder: Path, options: dict[str, Any]) -> None:
    loader = MmapLoader(folder / "numbers", 4, shuffle=True, **options)
    expected = list(OrderBatchSampler(N, 4, shuffle=True))
    running = iter(loader)
    first = plain(next(running))

    def check() -> None:
        assert plain(list(running)) == expected[1:]
        loader.set_epoch(0)
        assert plain(list(loader)) == expected

    assert in_child(check) == 0
    assert [first, *plain(list(running))] == expected


# --- stop and go on


@pytest.mark.parametrize("device", [None, "meta"])
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True}], ids=str)
def test_going_on_from_every_position(folder: Path, options: dict[str, Any], prefetch: int, device: Any) -> None:
    source = (folder / "rows", folder / "texts")  # texts tell which samples they are on any device
    check_every_position(lambda: MmapLoader(source, 5, seed=3, prefetch=prefetch, device=device, **options))


@pytest.mark.parametrize("device", [None, "meta"])
def test_going_on_from_every_position_with_a_transform_in_threads(folder: Path, device: Any) -> None:
    source = (folder / "rows", folder / "texts")
    check_every_position(
        lambda: MmapLoader(
            source, 5, shuffle=True, device=device, transform=lambda s: (s[0].sum(), s[1]), threads=2, layout="stack"
        )
    )


def test_going_on_from_every_position_of_batches_that_were_given(folder: Path) -> None:
    check_every_position(lambda: MmapLoader(folder / "rows", batch_sampler=[[0, 1], [22, -1, 5], [7]]))
    check_every_position(
        lambda: MmapLoader(folder / "rows", batch_sampler=OrderBatchSampler(N, 5, shuffle=True, seed=2))
    )


def test_going_on_with_another_number_of_readers(folder: Path) -> None:
    whole = plain(list(MmapLoader(folder / "numbers", 6, shuffle=True)))
    for before, after in itertools.product((1, 2, 3), repeat=2):
        loader = MmapLoader(folder / "numbers", 6 // before, shuffle=True, shard=ReaderShard(before - 1, before))
        running = iter(loader)
        next(running), next(running)
        rest = []
        for k in range(after):
            other = MmapLoader(folder / "numbers", 6 // after, shuffle=True, shard=ReaderShard(k, after))
            other.load_state_dict(loader.state_dict())
            rest.append(plain(list(other)))
        found = [list(itertools.chain(*parts)) for parts in zip(*rest, strict=True)]
        assert [batch[: len(expected)] for batch, expected in zip(found, whole[2:], strict=True)] == whole[2:]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"source": np.arange(9)}, "n is 23 there and 9 here"),
        ({"batch_size": 5}, "batch_size is 4 there and 5 here"),
        ({"shard": ReaderShard(0, 2)}, "batch_size is 4 there and 8 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"shuffle": False}, "shuffle is True there and False here"),
        ({"batch_sampler": [[1]], "batch_size": None, "shuffle": False}, "the state lacks order, batches_seen"),
    ],
)
def test_a_state_of_another_loader_is_refused_with_both_values(
    folder: Path, other: dict[str, Any], message: str
) -> None:
    options = {"source": folder / "rows", "batch_size": 4, "shuffle": True}
    state = MmapLoader(**options).state_dict()
    loader = MmapLoader(**{**options, **other})
    before = loader.state_dict()
    with pytest.raises(StateError, match=message):
        loader.load_state_dict(state)
    assert loader.state_dict() == before


def test_a_pickled_loader_keeps_its_position(folder: Path) -> None:
    loader = MmapLoader((folder / "rows", folder / "numbers"), 4, shuffle=True, layout="padded", transform=same)
    expected = [plain(batch) for batch in loader]
    loader.set_epoch(0)
    running = iter(loader)
    next(running), next(running)
    pickled = pickle.dumps(loader)
    again = pickle.loads(pickled)
    assert again.state_dict() == loader.state_dict()
    assert [plain(batch) for batch in again] == expected[2:]
    assert len(pickled) < 4096


def same(sample: Any) -> Any:
    return sample


# --- batches that somebody else chooses


def test_a_batch_sampler_that_is_a_list(folder: Path) -> None:
    given = [[3, 3, -1], np.array([0]), range(2), torch.tensor([5, 6]).numpy()]
    loader = MmapLoader(folder / "numbers", batch_sampler=given)
    assert len(loader) == 4
    for _ in range(2):
        assert plain(list(loader)) == [[3, 3, N - 1], [0], [0, 1], [5, 6]]


@pytest.mark.parametrize("options", [{"shuffle": True}, {"shuffle": True, "drop_last": True}, {}], ids=str)
def test_a_batch_sampler_of_ours_gives_the_same_batches_as_the_options(folder: Path, options: dict[str, Any]) -> None:
    one = MmapLoader(folder / "numbers", 5, **options)
    other = MmapLoader(folder / "numbers", batch_sampler=OrderBatchSampler(N, 5, **options))
    assert len(one) == len(other)
    for _ in range(3):
        assert plain(list(other)) == plain(list(one))


def test_a_weighted_sampler(folder: Path) -> None:
    weights = torch.linspace(0.1, 1, N)

    def sampler() -> BatchSampler:
        generator = torch.Generator().manual_seed(7)
        return BatchSampler(WeightedRandomSampler(weights, 40, generator=generator), 6, drop_last=False)

    loader, expected = MmapLoader(folder / "numbers", batch_sampler=sampler()), sampler()
    assert len(loader) == 7
    epochs = [plain(list(loader)) for _ in range(2)]
    assert epochs == [list(expected), list(expected)]
    assert epochs[0] != epochs[1]


def test_a_batch_sampler_hears_of_the_epoch(folder: Path) -> None:
    class Sampler:
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[list[int]]:
            yield [self.epoch]

    loader = MmapLoader(folder / "numbers", batch_sampler=Sampler())
    assert [plain(batch) for _ in range(3) for batch in loader] == [[0], [1], [2]]
    with pytest.raises(TypeError, match="no length"):
        len(loader)


def test_a_batch_sampler_with_an_index_out_of_range(folder: Path) -> None:
    running = iter(MmapLoader(folder / "rows", batch_sampler=[[0], [1, N]]))
    next(running)
    with pytest.raises(SampleIndexError, match=rf"batch 1 .*index {N} is out of range for a map of {N} samples"):
        next(running)


def test_it_is_the_sampler_for_trainers_that_set_the_epoch_there(folder: Path) -> None:
    loader, other = MmapLoader(folder / "numbers", 4, shuffle=True), MmapLoader(folder / "numbers", 4, shuffle=True)
    loader.batch_sampler.sampler.set_epoch(3)
    other.set_epoch(3)
    assert all(torch.equal(*pair) for pair in zip(loader, other, strict=True))
