"""What users of PyTorch take for granted: autograd on parts of a batch, containers, devices, ranks, messages."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from collections import OrderedDict, UserDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch import Tensor, distributed  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_sequence  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from mmap_ninja import DenseMmap, RaggedMmap, ReaderShard, np_open_existing, select  # noqa: E402
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, SampleError, StateError  # noqa: E402
from mmap_ninja_torch import (  # noqa: E402
    MmapDataset,
    MmapLoader,
    OrderBatchSampler,
    OrderSampler,
    jagged_collate,
    list_collate,
    pad_collate,
)
from mmap_ninja_torch import device as devices  # noqa: E402

ROWS = [torch.arange(1, n + 2, dtype=torch.float32) for n in (3, 0, 2, 4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    RaggedMmap.from_lists(tmp_path / "rows", [row.numpy() for row in ROWS])
    DenseMmap.from_ndarray(tmp_path / "dense", np.arange(8, dtype=np.float32).reshape(4, 2))
    DenseMmap.from_ndarray(tmp_path / "numbers", np.arange(24))
    return tmp_path


# --- parts of a batch are tensors like any other


def lists_of_rows(folder: Path) -> dict[str, list[Tensor]]:
    dataset = MmapDataset(folder / "rows")
    return {
        "loader": next(iter(MmapLoader(folder / "rows", 4))),
        "collate": next(iter(DataLoader(dataset, 4, collate_fn=list_collate))),
        "many": dataset.__getitems__([0, 1, 2, 3]),
        "dense": MmapDataset(folder / "dense").__getitems__([0, 1, 2]),
        "device": next(devices.sent(iter([next(iter(MmapLoader(folder / "rows", 4)))]), torch.device("cpu"))),
    }


@pytest.mark.parametrize("name", ["loader", "collate", "many", "dense", "device"])
def test_samples_of_a_batch_may_be_changed_while_autograd_needs_others(folder: Path, name: str) -> None:
    weight, loss = torch.ones(1, requires_grad=True), torch.zeros(())
    rows = lists_of_rows(folder)[name]
    for row in rows:
        row.sub_(1)
        loss = loss + (row * weight).sum()
    loss.backward()
    assert weight.grad == sum(row.sum() for row in rows)
    rows[0].add_(weight)
    assert rows[0].requires_grad


def test_nested_tensors_of_equal_lengths_can_be_combined(folder: Path) -> None:
    batch = next(iter(MmapLoader({"a": folder / "rows", "b": (folder / "rows",)}, 4, layout="jagged")))
    assert torch.equal((batch["a"] * batch["b"][0]).values(), batch["a"].values() ** 2)
    one, other = jagged_collate([(row, 2 * row) for row in ROWS])
    assert torch.equal((one + other).values(), 3 * one.values())
    (batch,) = devices.sent(iter([batch]), torch.device("cpu"))
    assert torch.equal((batch["a"] - batch["b"][0]).values(), torch.zeros(13))


def test_numbers_are_one_tensor_in_a_list_layout_too(folder: Path) -> None:
    source = (folder / "rows", torch.tensor([5, 6, 7, 8]))
    for transform in (None, lambda sample: sample, lambda sample: (sample[0], int(sample[1]))):
        rows, labels = next(iter(MmapLoader(source, 4, layout="list", transform=transform)))
        assert [type(row) for row in rows] == [Tensor] * 4
        assert torch.equal(labels, source[1])


def test_tensors_in_memory_are_a_source(folder: Path) -> None:
    images = torch.arange(8.0).reshape(4, 2)
    assert torch.equal(MmapDataset({"image": images})[1]["image"], images[1])
    assert torch.equal(next(iter(MmapLoader((folder / "dense", images), 4)))[1], images)


def test_an_array_that_runs_backwards_is_copied() -> None:
    array = np.arange(4.0)[::-1]
    assert MmapDataset(array.reshape(2, 2), copy=False)[0].tolist() == [3.0, 2.0]
    assert MmapDataset(np.arange(6.0).reshape(2, 3)[:, ::-1], copy=False)[1].tolist() == [5.0, 4.0, 3.0]


@pytest.mark.parametrize("empty", [[], np.zeros(0), torch.tensor([])], ids=["list", "array", "tensor"])
def test_what_has_no_elements_fits_to_the_others(folder: Path, empty: Any) -> None:
    def tokenized(row: Tensor) -> Any:
        return row.long() if len(row) > 1 else empty

    batch = next(iter(MmapLoader(folder / "rows", 4, transform=tokenized, layout="padded")))
    assert batch.values.dtype == torch.int64
    assert batch.lengths.tolist() == [4, 0, 3, 5]
    first = next(iter(MmapLoader(select(DenseMmap(folder / "numbers"), [1, 0]), 2, transform=lambda n: [2] * int(1 - n),
                                 layout="jagged")))  # fmt: skip
    assert first.values().tolist() == [2]
    assert first.values().dtype == torch.int64


def test_samples_of_other_dtypes_are_still_refused(folder: Path) -> None:
    def mixed(row: Tensor) -> Any:
        return row if len(row) > 1 else row.long()

    with pytest.raises(SampleError, match="sample 0 became an array of dtype float32, sample 1 one of int64"):
        list(MmapLoader(folder / "rows", 4, transform=mixed, layout="padded"))


# --- collates


def test_pad_collate_without_its_parentheses_says_so(folder: Path) -> None:
    with pytest.raises(ArgumentTypeError, match=r"pad_collate makes a collate_fn: collate_fn=pad_collate\(\)"):
        list(DataLoader(MmapDataset(folder / "rows"), 2, collate_fn=pad_collate))


@pytest.mark.parametrize("keys", [("a", "b"), (0, 1)], ids=["dict", "tuple"])
def test_jagged_collate_of_some_parts_stacks_the_others(keys: Any) -> None:
    pairs = [(row, torch.ones(2)) for row in ROWS]
    samples = pairs if keys == (0, 1) else [dict(zip(keys, pair, strict=True)) for pair in pairs]
    batch = functools.partial(jagged_collate, parts=[keys[0]])(samples)
    assert batch[keys[0]].is_nested
    assert batch[keys[1]].shape == (4, 2)


def test_errors_of_a_collate_are_in_its_words() -> None:
    with pytest.raises(SampleError, match="differ on more than their first axis") as caught:
        jagged_collate([torch.ones(2, 3), torch.ones(3, 2)])
    assert "are pad_collate, jagged_collate and list_collate" in str(getattr(caught.value, "__notes__", caught.value))


# --- on the way to a device


@dataclass
class Boxes:
    """What has a `to` of its own."""

    corners: Tensor

    def to(self, device: Any, *, non_blocking: bool = False) -> Boxes:
        return replace(self, corners=self.corners.to(device, non_blocking=non_blocking))


def on_meta(value: Any) -> Any:
    (sent,) = devices.sent(iter([value]), torch.device("meta"))
    return sent


def test_containers_stay_what_they_are_on_a_device() -> None:
    ordered = on_meta(OrderedDict(b=torch.ones(1), a=[torch.ones(2), "text"]))
    assert type(ordered) is OrderedDict
    assert list(ordered) == ["b", "a"]
    assert ordered["a"][0].is_meta
    user = UserDict(a=torch.ones(1))
    assert type(on_meta(user)) is UserDict
    assert on_meta(user)["a"].is_meta
    assert not user["a"].is_meta, "the one that was given has changed"


def test_what_has_a_way_of_its_own_goes_it() -> None:
    boxes = on_meta((Boxes(torch.ones(4)), [Boxes(torch.ones(4))]))
    assert boxes[0].corners.is_meta
    assert boxes[1][0].corners.is_meta
    packed = on_meta(pack_sequence([torch.ones(3), torch.ones(2)]))
    assert isinstance(packed, PackedSequence)
    assert packed.data.is_meta
    assert not packed.batch_sizes.is_meta


def test_parts_of_memory_that_begins_elsewhere_go_one_by_one() -> None:
    whole = torch.arange(10.0)
    parts = list(whole[5:].data.split(2))
    (sent,) = devices.sent(iter([parts]), torch.device("cpu"))
    assert [part.tolist() for part in sent] == [[5.0, 6.0], [7.0, 8.0], [9.0]]


# --- where `copy=False` ends


def test_without_a_copy_a_writable_mapping_of_a_file_is_refused(folder: Path) -> None:
    np.save(folder / "array.npy", np.zeros((3, 2)))
    sources = {
        "memmap": np.load(folder / "array.npy", mmap_mode="r+"),
        "part of one": np.asarray(np.load(folder / "array.npy", mmap_mode="r+"))[1:],
        "ours": np_open_existing(folder / "dense", mode="r+"),
        "numbers": DenseMmap(folder / "numbers"),
        "view": select(DenseMmap(folder / "dense"), [1, 0]),
    }
    for name, source in sources.items():
        with pytest.raises(ArgumentError, match='copy=False needs paths, or maps that were opened with mode="c"'):
            MmapDataset(source, copy=False)
        assert len(MmapDataset(source)), name
    private = np.load(folder / "array.npy", mmap_mode="c")
    MmapDataset(private, copy=False)[0].fill_(1)
    assert not np.load(folder / "array.npy").any()
    assert MmapDataset(select(DenseMmap(folder / "dense", mode="c"), [1, 0]), copy=False)[0].tolist() == [2.0, 3.0]


def test_a_dataset_that_was_sent_opens_its_maps_at_the_first_sample(folder: Path) -> None:
    sent = pickle.loads(pickle.dumps(MmapDataset({"row": folder / "rows"})))
    assert "_fields" not in vars(sent)
    assert len(sent) == 4
    assert "_fields" not in vars(sent)
    assert torch.equal(sent[2]["row"], ROWS[2])
    again = pickle.loads(pickle.dumps(sent))
    assert torch.equal(again.__getitems__([2])[0]["row"], ROWS[2])
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sent.nothing


# --- trainers, ranks, states


def test_a_loader_has_a_dataset_and_a_batch_size(folder: Path) -> None:
    loader = MmapLoader(folder / "rows", 3, transform=lambda row: row * 2)
    assert (len(loader.dataset), loader.batch_size) == (4, 3)
    assert torch.equal(loader.dataset[2], ROWS[2] * 2)
    assert OrderBatchSampler(4, 3, drop_last=True).drop_last
    assert OrderBatchSampler(4, 3).batch_size == 3


def test_a_batch_sampler_may_give_tensors(folder: Path) -> None:
    batches = [torch.tensor([3, 1]), torch.tensor([0])]
    assert [batch.tolist() for batch in MmapLoader(folder / "numbers", batch_sampler=batches)] == [[3, 1], [0]]


@pytest.fixture
def group(tmp_path: Path) -> Any:
    yield lambda: distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def test_what_was_made_before_the_ranks_were_known_is_refused(
    folder: Path, group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        "loader": MmapLoader(folder / "numbers", 4),
        "batches": OrderBatchSampler(24, 4),
        "samples": OrderSampler(24),
    }
    given = MmapLoader(folder / "numbers", 4, shard=ReaderShard())
    sampled = MmapLoader(folder / "numbers", batch_sampler=[[1, 2]])
    group()
    assert len(list(made["loader"])) == 6  # a group of one
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    for one in made.values():
        with pytest.raises(ArgumentError, match="made for reader 0 of 1, and is used in 1 of 2: make it after init"):
            iter(one)
    assert len(list(given)) == 6
    assert len(list(sampled)) == 1
    assert next(iter(MmapLoader(folder / "numbers", 4))).tolist() == [4, 5, 6, 7]


def test_samples_go_on_with_another_number_of_ranks() -> None:
    def rest(state: Any, count: int) -> list[int]:
        samplers = [OrderSampler(24, shard=ReaderShard(index, count)) for index in range(count)]
        for sampler in samplers:
            sampler.load_state_dict(state)
        return sorted(index for sampler in samplers for index in sampler)

    sampler, everything = OrderSampler(24, shard=ReaderShard(0, 2)), list(OrderSampler(24))
    running = iter(sampler)
    for _ in range(6):
        next(running)
    for count in (1, 2, 3, 4):
        assert rest(sampler.state_dict(), count) == sorted(everything[12:])
    next(running)
    with pytest.raises(StateError, match="batch_size is 2 there and 3 here"):
        rest(sampler.state_dict(), 3)


def test_a_state_of_another_number_of_ranks_says_what_its_batch_size_is(folder: Path) -> None:
    state = MmapLoader(folder / "numbers", 4).state_dict()
    for other in (
        MmapLoader(folder / "numbers", 4, shard=ReaderShard(0, 2)),
        OrderBatchSampler(24, 4, shard=ReaderShard(0, 2)),
    ):
        with pytest.raises(StateError, match="batch_size is 4 there and 8 here") as caught:
            other.load_state_dict(state)
        assert "of all ranks together" in str(getattr(caught.value, "__notes__", caught.value))


def test_a_batch_size_that_is_missing(folder: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="batch_size is missing"):
        MmapLoader(folder / "numbers")


def test_without_torch_the_extra_is_named() -> None:
    program = "import sys; sys.modules['torch'] = None\nimport mmap_ninja_torch"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "mmap_ninja.errors.MissingExtraError: mmap_ninja_torch needs PyTorch: pip install 'mmap-ninja[torch]'"
    )
