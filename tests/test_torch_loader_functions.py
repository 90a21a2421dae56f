"""MmapLoader and functions of the user: whose memory they see, what their errors say, which arguments are refused."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch import Tensor  # noqa: E402

import torch_batches  # noqa: E402
from faults import in_child  # noqa: E402
from mmap_ninja import Batches, DenseMmap, RaggedMmap, ReaderShard, select  # noqa: E402
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, MapNotFoundError, SampleError  # noqa: E402
from mmap_ninja_torch import MmapLoader, OrderBatchSampler, convert  # noqa: E402
from torch_batches import DENSE, ROWS, TEXTS, N, Pair, as_tensor, as_tensors, check_same, notes, plain  # noqa: E402

folder, no_thread_is_left = torch_batches.folder, torch_batches.no_thread_is_left


# --- memory


LARGE = np.random.default_rng(0).integers(0, 255, (60, 70_000), np.uint8)  # batches that are worth a pool


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    RaggedMmap.from_lists(folder / "rows", list(LARGE))
    DenseMmap.from_ndarray(folder / "dense", LARGE)
    DenseMmap.from_ndarray(folder / "numbers", np.arange(len(LARGE)))
    return folder


CUTS: dict[str, Callable[[Any], Tensor]] = {  # sample 1 of a batch, as a tensor that refers to no more than it has to
    "dense": lambda batch: batch[1][:],
    "list": lambda batch: batch[1].view(-1, 7).flatten(),
    "padded": lambda batch: batch.values[1],
    "jagged": lambda batch: batch.values()[70_000:140_000],
    "stack": lambda batch: torch.from_numpy(batch[1].numpy()),
}


@pytest.mark.parametrize("is_whole", [True, False], ids=["batches", "views"])
@pytest.mark.parametrize("layout", CUTS)
def test_batches_that_are_kept_never_change(large: Path, layout: str, is_whole: bool) -> None:
    name, options = ("dense", {}) if layout == "dense" else ("rows", {"layout": layout})
    loader = MmapLoader((large / name, large / "numbers"), 4, shuffle=True, **options)
    kept = [(numbers, batch if is_whole else CUTS[layout](batch)) for batch, numbers in loader]
    for batch, _ in itertools.chain(loader, loader):  # what was not kept is written to again
        CUTS[layout](batch).zero_()
        del batch
    assert len(kept) == 15
    for numbers, batch in kept:
        part = CUTS[layout](batch) if is_whole else batch
        assert np.array_equal(part.numpy(), LARGE[numbers[1]])


@pytest.mark.parametrize("layout", CUTS)
def test_memory_of_batches_that_are_gone_is_used_again(tmp_path: Path, layout: str) -> None:
    rows = np.zeros((240, 20_000), np.uint8)
    m = (
        DenseMmap.from_ndarray(tmp_path / "m", rows)
        if layout == "dense"
        else RaggedMmap.from_lists(tmp_path / "m", rows)
    )
    places = {
        "list": lambda batch: batch[0].data_ptr(),
        "padded": lambda batch: batch.values.data_ptr(),
        "jagged": lambda batch: batch.values().data_ptr(),
    }
    found = []
    for batch in MmapLoader(m, 4, **({} if layout == "dense" else {"layout": layout})):
        found.append(places.get(layout, Tensor.data_ptr)(batch))
        del batch
    assert len(found) == 60
    assert len(set(found)) <= 6  # two ready, one in the making, one handed out, one or two on their way back


def test_writing_to_a_batch_changes_no_map(folder: Path) -> None:
    labels = np.arange(N)
    for numbers, of_dense, rows in MmapLoader((labels, folder / "dense", folder / "rows"), 4):
        numbers.zero_()
        of_dense.zero_()
        for row in rows:
            row.zero_()
    assert labels.tolist() == list(range(N))
    assert np.array_equal(DenseMmap(folder / "dense")[:], DENSE)
    assert plain(RaggedMmap(folder / "rows")[:]) == plain(ROWS)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64", "bool"])
def test_memory_that_torch_has_allocated_stays_its_own(dtype: str) -> None:
    # Its allocator of pinned memory asks the storage which block a copy to a device reads from.
    allocated = torch.zeros(96, dtype=torch.uint8)
    array = allocated.numpy().view(dtype).reshape(-1, 2)
    for part in (array, array[1:], array[:, 1]):
        made = convert.tensor(part)
        assert made.untyped_storage()._cdata == allocated.untyped_storage()._cdata
        assert (made.data_ptr(), made.shape) == (part.__array_interface__["data"][0], part.shape)
    array[1, 1] = 1
    assert made.tolist() == [0, 1, *[0] * (len(array) - 2)]


# --- functions of the user


@pytest.mark.parametrize("is_copied", [True, False], ids=["copied", "copy_before_wrapper_fn=False"])
@pytest.mark.parametrize("name", ["dense", "rows", "big", "images", "scalars"])
def test_a_transform_gets_tensors_that_own_their_memory(folder: Path, name: str, is_copied: bool) -> None:
    kind = DenseMmap if name == "dense" else RaggedMmap
    m = kind(folder / name, copy_before_wrapper_fn=is_copied)
    before = [as_tensor(np.array(sample)) for sample in m]

    def cleared(sample: Tensor) -> Tensor:
        seen = sample.clone()
        sample.zero_()
        return seen

    def check() -> None:
        found = list(itertools.chain(*MmapLoader(m, 4, transform=cleared, layout="list")))
        for one, other in zip(found, before, strict=True):
            check_same(one, other)
        assert plain(list(m)) == plain(before)

    assert in_child(check) == 0  # who writes to a tensor of the mapping dies


def test_a_transform_gets_samples_as_the_source_has_them(folder: Path) -> None:
    seen = []
    source = {"pair": Pair(folder / "rows", folder / "texts"), "bytes": folder / "bytes", "n": folder / "numbers"}
    list(MmapLoader(source, 4, transform=lambda sample: seen.append(sample) or 0))
    for k, sample in enumerate(seen):
        expected = {"pair": Pair(ROWS[k], TEXTS[k]), "bytes": TEXTS[k].encode(), "n": np.int64(k)}
        check_same(sample, as_tensors(expected))
    assert len(seen) == N


def test_labels_in_memory_reach_a_transform_as_tensors(folder: Path) -> None:
    labels = np.arange(N, dtype=np.int8)
    loader = MmapLoader((folder / "rows", labels), N, transform=lambda sample: sample[1] + 1)
    check_same(next(iter(loader)), torch.from_numpy(labels + 1))


def test_what_a_transform_returns_makes_the_batch(folder: Path) -> None:
    def parts(row: Tensor) -> Any:
        return OrderedDict(
            row=row, total=row.sum(), text=str(len(row)), pair=Pair(float(len(row)), (np.int8(3), row[:0]))
        )

    loader = MmapLoader(
        folder / "rows", 3, transform=parts, layout={"row": "padded", "pair": Pair("stack", ("stack", "jagged"))}
    )
    batch = next(iter(loader))
    assert list(batch) == ["row", "total", "text", "pair"]
    check_same(batch["row"].values, torch.tensor([[0, 0], [100, 0], [200, 201]], dtype=torch.int16))
    check_same(batch["total"], torch.tensor([0, 100, 401]))
    assert batch["text"] == ["0", "1", "2"]
    check_same(batch["pair"].x, torch.tensor([0, 1, 2], dtype=torch.float64))
    check_same(batch["pair"].y[0], torch.tensor([3, 3, 3], dtype=torch.int8))
    assert (batch["pair"].y[1].layout, batch["pair"].y[1].offsets().tolist()) == (torch.jagged, [0, 0, 0, 0])


@pytest.mark.parametrize(
    "transform",
    [
        lambda image: image.T,
        lambda image: image[:, ::2],
        lambda image: image.expand(4, 2, 3),
        lambda image: (image * torch.ones(3, requires_grad=True)).detach(),
        lambda image: torch.complex(image, image).conj(),
        lambda image: torch.complex(image, image).conj().imag,
        lambda image: image.to(torch.bfloat16),
        lambda image: image > 5,
    ],
    ids=["transposed", "strided", "expanded", "detached", "conjugate", "negative", "bfloat16", "bool"],
)
@pytest.mark.parametrize("layout", ["list", "stack"])
def test_tensors_of_any_kind_that_a_transform_returns(folder: Path, transform: Any, layout: str) -> None:
    expected = [transform(torch.from_numpy(sample.copy())) for sample in DENSE]
    found = list(itertools.chain(*MmapLoader(folder / "dense", 4, transform=transform, layout=layout)))
    for one, other in zip(found, expected, strict=True):
        check_same(one, other.resolve_conj().resolve_neg())


@pytest.mark.parametrize("prefetch", [0, 2])
def test_threads_work_at_once_and_keep_the_order(folder: Path, prefetch: int) -> None:
    at_once = threading.Barrier(3)

    def slow(number: Tensor) -> Tensor:
        place = at_once.wait(60)  # goes on when three threads are here
        time.sleep(0.001 * place)
        return number

    options = {"transform": slow, "threads": 3, "prefetch": prefetch, "shuffle": True}
    found = list(MmapLoader(select(DenseMmap(folder / "numbers"), slice(0, 18)), 9, **options))
    expected = list(OrderBatchSampler(18, 9, shuffle=True))
    assert plain(found) == expected


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_transform_gets_the_batch_of_tensors(folder: Path, threads: int) -> None:
    source = {"rows": folder / "rows", "texts": folder / "texts", "n": folder / "numbers"}
    options = {"layout": {"rows": "padded"}, "transform": None if threads == 1 else dict, "threads": threads}
    options["layout"]["n"] = "stack"
    seen, names = [], set()

    def number(batch: Any) -> int:
        names.add(threading.current_thread().name)
        seen.append(batch)
        return len(seen)

    assert list(MmapLoader(source, 4, batch_transform=number, **options)) == [1, 2, 3, 4, 5, 6]
    for one, other in zip(seen, Batches(source, 4, **options), strict=True):
        check_same(one, other)
    assert {name.startswith("mmap_ninja") for name in names} == {True}, "it was called in the training loop"


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_of_a_transform_names_batch_and_sample(folder: Path, threads: int, prefetch: int) -> None:
    def fail(row: Tensor) -> Tensor:
        if len(row) and row[0] == 900:
            raise KeyError("on purpose")
        return row.sum()

    loader = MmapLoader(folder / "rows", 4, transform=fail, threads=threads, prefetch=prefetch)
    running = iter(loader)
    assert len(list(itertools.islice(running, 2))) == 2
    with pytest.raises(KeyError, match="on purpose") as caught:
        next(running)
    assert "while making sample 9" in notes(caught.value)
    assert "while making batch 2 of epoch 0" in notes(caught.value)
    assert loader.state_dict()["samples_seen"] == 8


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_of_a_batch_transform_names_the_batch(folder: Path, prefetch: int) -> None:
    loader = MmapLoader(folder / "rows", 4, batch_transform=lambda batch: 1 / (len(batch) - 3), prefetch=prefetch)
    with pytest.raises(ZeroDivisionError) as caught:
        list(loader)
    assert "while making batch 5 of epoch 0" in notes(caught.value)


def test_samples_that_a_transform_makes_and_that_do_not_stack(folder: Path) -> None:
    with pytest.raises(
        SampleError, match=r"sample 0 became an array of shape \(0,\), sample 1 one of \(1,\)"
    ) as caught:
        list(MmapLoader(folder / "rows", 4, transform=torch.clone))
    assert "while making batch 0 of epoch 0" in notes(caught.value)


def test_a_wrapper_fn_of_the_map_makes_the_samples(folder: Path) -> None:
    m = RaggedMmap(folder / "rows", wrapper_fn=lambda row: np.append(row, row))
    doubled = [np.append(row, row) for row in ROWS]
    found = list(itertools.chain(*MmapLoader(m, 4)))
    check_same(found, [as_tensor(row) for row in doubled])
    for k, batch in enumerate(MmapLoader(m, 4, layout="jagged")):
        assert plain(batch) == plain(doubled[4 * k : 4 * k + 4])


# --- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ArgumentError, "batch_size is 0, expected at least 1"),
        ({"batch_size": -3}, ArgumentError, "batch_size is -3, expected at least 1"),
        ({"batch_size": None}, ArgumentTypeError, "batch_size is (None|missing)"),
        ({"batch_size": 2.5}, ArgumentTypeError, "batch_size is 2.5, expected an integer"),
        ({"batch_size": "4"}, ArgumentTypeError, "batch_size is '4', expected an integer"),
        ({"batch_size": True}, ArgumentTypeError, "batch_size is True, expected an integer"),
        ({"shuffle": 1}, ArgumentTypeError, "shuffle is 1, expected True or False"),
        ({"seed": -1}, ArgumentError, "seed is -1"),
        ({"drop_last": "no"}, ArgumentTypeError, "drop_last is 'no', expected True or False"),
        (
            {"layout": "ragged"},
            ArgumentError,
            "layout is 'ragged', expected one of 'list', 'stack', 'padded', 'jagged'",
        ),
        ({"layout": {"x": "list"}}, ArgumentError, "layout is {'x': 'list'} for source, which is no dict or tuple"),
        ({"layout": ("list",)}, ArgumentError, r"layout is \('list',\) for source, which is no dict or tuple"),
        ({"padding_value": 3}, ArgumentError, "padding_value is for layout='padded', not for 'list'"),
        ({"transform": 7}, ArgumentTypeError, "transform is 7, expected a function"),
        ({"batch_transform": "x"}, ArgumentTypeError, "batch_transform is 'x', expected a function"),
        ({"threads": 0}, ArgumentError, "threads is 0, expected at least 1"),
        ({"prefetch": -1}, ArgumentError, "prefetch is -1, expected at least 0"),
        ({"readahead": "often"}, ArgumentError, "readahead is 'often'"),
        ({"shard": 1}, ArgumentTypeError, r"shard is 1, expected a ReaderShard\(index, count\)"),
        ({"shard": (0, 2)}, ArgumentTypeError, r"shard is \(0, 2\), expected a ReaderShard\(index, count\)"),
        ({"device": "gpu7"}, ArgumentError, "device is 'gpu7', which cannot be used here"),
        ({"device": "cuda:99"}, ArgumentError, "device is 'cuda:99', which cannot be used here"),
        ({"device": 0.5}, TypeError, "device"),
        ({"pin_memory": "yes"}, ArgumentTypeError, "pin_memory is 'yes', expected True or False"),
        ({"batch_sampler": [[0]]}, ArgumentError, "batch_sampler says which samples make a batch: leave out"),
        ({"batch_sampler": [[0]], "batch_size": None, "shuffle": True}, ArgumentError, "batch_sampler says"),
        ({"batch_sampler": [[0]], "batch_size": None, "seed": 1}, ArgumentError, "batch_sampler says"),
        ({"batch_sampler": [[0]], "batch_size": None, "drop_last": True}, ArgumentError, "batch_sampler says"),
        ({"batch_sampler": [[0]], "batch_size": None, "shard": ReaderShard()}, ArgumentError, "batch_sampler says"),
        ({"batch_sampler": 7, "batch_size": None}, ArgumentTypeError, "batch_sampler is 7, expected an iterable"),
        ({"source": 7}, ArgumentTypeError, "source is 7, expected a map"),
        ({"source": {}}, ArgumentTypeError, "source is {}, expected a map"),
        ({"source": (np.arange(3), [1, 2, 3])}, ArgumentTypeError, r"source\[1\] is \[1, 2, 3\], expected a map"),
        (
            {"source": {"x": np.arange(3), "y": (np.arange(3), np.arange(4))}},
            ArgumentError,
            r"of one length: source\['x'\] has 3, source\['y'\]\[0\] has 3, source\['y'\]\[1\] has 4",
        ),
        ({"source": {"x": np.arange(3)}, "layout": {"y": "list"}}, ArgumentError, "layout has an entry for 'y'"),
        ({"source": np.zeros(3, "M8[s]")}, ArgumentTypeError, r"source: torch has no dtype for datetime64\[s\]"),
        ({"source": (np.zeros(3, "M8[s]"),)}, ArgumentTypeError, r"source\[0\]: torch has no dtype for datetime64"),
        ({"source": np.zeros(3, [("x", "i4")])}, ArgumentTypeError, "source: torch has no dtype for .*wrapper_fn"),
        ({"source": np.array(["a", "b"])}, ArgumentTypeError, "source: torch has no dtype for <U1"),
    ],
)
def test_arguments_that_make_no_sense(folder: Path, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        MmapLoader(**{"source": folder / "rows", "batch_size": 4, **options})


def test_a_path_without_a_map(tmp_path: Path) -> None:
    with pytest.raises(MapNotFoundError, match=r"there is no map at .*nowhere"):
        MmapLoader(tmp_path / "nowhere", 4)


def test_batches_that_are_no_lists_of_indices(folder: Path) -> None:
    with pytest.raises(ArgumentTypeError, match=r"batch 0 .* is 3, expected the indices of several samples"):
        next(iter(MmapLoader(folder / "rows", batch_sampler=range(3, 6))))
