"""Each iteration is the next epoch, finished or given up: MmapLoader, the samplers, and loaders that have one."""

from __future__ import annotations

import itertools
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch.utils.data import DataLoader  # noqa: E402

from epoch_contract import SIZE, EpochContract, N, PeekContract, by_break, by_zip, every_way  # noqa: E402
from mmap_ninja import RaggedMmap, ReaderShard  # noqa: E402
from mmap_ninja.errors import ArgumentError, EpochWarning  # noqa: E402
from mmap_ninja_torch import MmapDataset, MmapLoader, OrderBatchSampler, OrderSampler  # noqa: E402

# Workers are forked, as starting others takes seconds; Python 3.12 warns of that where there are threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
SOURCE = np.arange(N)


def by_batch_sampler(**options: Any) -> MmapLoader:
    return MmapLoader(SOURCE, batch_sampler=OrderBatchSampler(N, SIZE, shuffle=True, **options))


class TestMmapLoader(PeekContract):
    @pytest.fixture(params=["prefetched", "not prefetched", "batch_sampler"])
    def make(self, request: pytest.FixtureRequest) -> Any:
        if request.param == "batch_sampler":
            return by_batch_sampler
        return partial(MmapLoader, SOURCE, SIZE, shuffle=True, prefetch=2 if request.param == "prefetched" else 0)


class TestSamplers(EpochContract):
    @pytest.fixture(params=["OrderBatchSampler", "OrderSampler"])
    def make(self, request: pytest.FixtureRequest) -> Any:
        return (
            partial(OrderBatchSampler, N, SIZE, shuffle=True) if "Batch" in request.param else partial(OrderSampler, N)
        )

    @staticmethod
    def lists(batches: Any) -> list[Any]:
        return list(batches)


def test_a_look_is_on_the_device_with_the_layout_of_the_batches(tmp_path: Path) -> None:
    rows = RaggedMmap.from_lists(tmp_path / "rows", [[1] * (1 + k % 3) for k in range(N)])
    for layout in ("list", "padded", "jagged"):
        loader = MmapLoader({"x": rows}, SIZE, layout=layout)
        peeked, first = loader.peek()["x"], next(iter(loader))["x"]
        assert type(peeked) is type(first)
        assert [row.tolist() for row in peeked[0]] == [row.tolist() for row in first[0]]
    assert MmapLoader(SOURCE, SIZE, device="meta").peek().device.type == "meta"


def test_a_look_at_nothing_is_refused() -> None:
    with pytest.raises(ArgumentError, match="epoch 0 has no batch 0"):
        MmapLoader(SOURCE[:0], SIZE).peek()


# --- loaders that ask a sampler of ours


def torchdata() -> Any:
    return pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is another package")


LOADERS: dict[str, dict[str, Any]] = {
    "in this process": {},
    "workers": {"num_workers": 2, "multiprocessing_context": "fork"},
    "workers that stay": {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": True},
}
KINDS = ["OrderBatchSampler", "OrderSampler"]
every_loader = pytest.mark.parametrize("options", LOADERS.values(), ids=LOADERS)
every_kind = pytest.mark.parametrize("kind", KINDS)
stateful_loaders = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it


def sampler_of(kind: str, **options: Any) -> dict[str, Any]:
    """The argument of a DataLoader."""
    if kind == "OrderSampler":
        return {"sampler": OrderSampler(N, **options), "batch_size": SIZE}
    return {"batch_sampler": OrderBatchSampler(N, SIZE, shuffle=True, **options)}


def lists(batches: Any) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def epochs_of(kind: str, count: int) -> list[list[list[int]]]:
    loader = DataLoader(MmapDataset(SOURCE), **sampler_of(kind))
    return [lists(loader) for _ in range(count)]


@stateful_loaders
@every_loader
@every_kind
@pytest.mark.parametrize("made_by", ["torch", "torchdata"])
def test_a_part_of_each_epoch_is_another_part_in_any_loader(made_by: str, kind: str, options: dict[str, Any]) -> None:
    make = DataLoader if made_by == "torch" else torchdata().StatefulDataLoader
    loader, epochs = make(MmapDataset(SOURCE), **options, **sampler_of(kind)), epochs_of(kind, 4)
    for epoch in range(3):
        assert lists(by_zip(2, loader)) == epochs[epoch][:2]
    assert lists(loader) == epochs[3]


@every_loader
def test_unshuffled_it_begins_anew_each_time(options: dict[str, Any]) -> None:
    for given in ({"sampler": OrderSampler(N, shuffle=False), "batch_size": SIZE}, {"batch_size": SIZE}):
        loader = DataLoader(MmapDataset(SOURCE), **options, **given)
        assert [lists(by_zip(2, loader)) for _ in range(3)] == [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 3


@every_loader
def test_the_rest_of_what_was_given_up_is_got_by_its_state(options: dict[str, Any]) -> None:
    (first, second), dataset = epochs_of("OrderBatchSampler", 2), MmapDataset(SOURCE)
    sampler = sampler_of("OrderBatchSampler")
    loader = DataLoader(dataset, **options, **sampler)
    by_break(2, loader)
    state = sampler["batch_sampler"].state_dict(seen=2)
    assert (state["epoch"], state["samples_seen"]) == (0, 2 * SIZE)
    again = sampler_of("OrderBatchSampler")
    again["batch_sampler"].load_state_dict(state)
    assert lists(DataLoader(dataset, **options, **again)) == first[2:]
    assert lists(loader) == second


@stateful_loaders
@every_loader
@every_kind
@pytest.mark.parametrize("every", [1, 4])
def test_the_state_of_torchdata_goes_on_after_iterations_that_were_given_up(
    kind: str, options: dict[str, Any], every: int
) -> None:
    epochs, dataset = epochs_of(kind, 4), MmapDataset(SOURCE)
    for steps in (0, 1, 2, 5, 6):

        def make() -> Any:
            options_of_states = {"snapshot_every_n_steps": every}
            return torchdata().StatefulDataLoader(dataset, **options, **options_of_states, **sampler_of(kind))

        loader = make()
        by_break(3, loader)  # epoch 0
        running = iter(loader)
        assert lists(itertools.islice(running, steps)) == epochs[1][:steps]
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        again = make()
        again.load_state_dict(state)
        rest = lists(again) or lists(again)  # where nothing is left of the epoch, the next one
        assert rest == (epochs[1][steps:] or epochs[2])


# --- ranks


@every_way
@every_loader
def test_ranks_are_warned_of_a_part_that_others_may_not_have_taken(part: Any, options: dict[str, Any]) -> None:
    given = sampler_of("OrderBatchSampler", shard=ReaderShard(0, 2))
    loader = DataLoader(MmapDataset(SOURCE), **options, **given, **({"prefetch_factor": 1} if options else {}))
    for epoch in range(2):
        given["batch_sampler"].set_epoch(epoch)
        part(1, loader)
    if options:  # all three batches were asked for, ahead of the loop
        part(1, loader)
    else:
        with pytest.warns(EpochWarning, match="set_epoch"):
            part(1, loader)
