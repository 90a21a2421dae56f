"""MmapLoader against a plain loop over the map, and against `mmap_ninja.Batches` with the same options."""

from __future__ import annotations

import gc
import itertools
import json
import os
import pickle
import re
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch import Tensor  # noqa: E402
from torch.utils.data import BatchSampler, WeightedRandomSampler  # noqa: E402

from faults import in_child  # noqa: E402
from mmap_ninja import (  # noqa: E402
    Batches,
    BytesMmap,
    DenseMmap,
    Padding,
    RaggedMmap,
    ReaderShard,
    StringsMmap,
    select,
    split,
    windows,
)
from mmap_ninja import gather as core  # noqa: E402
from mmap_ninja.errors import (  # noqa: E402
    ArgumentError,
    ArgumentTypeError,
    MapNotFoundError,
    SampleError,
    SampleIndexError,
    StateError,
)
from mmap_ninja_torch import MmapLoader, OrderBatchSampler, Padded, convert  # noqa: E402
from mmap_ninja_torch import device as devices  # noqa: E402

N = 23
ROWS = [np.arange(k * 100, k * 100 + k % 5, dtype=np.int16) for k in range(N)]
DENSE = np.arange(N * 6, dtype=np.float32).reshape(N, 2, 3)
TEXTS = [f"text {k} ü" for k in range(N)]
IMAGES = [np.full((1 + k % 3, 2 + k % 2), k, np.uint8) for k in range(N)]
TALL = [np.full((k % 4, 6), k / 8, np.float32) for k in range(N)]  # ragged on the first axis only
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


class Pair(NamedTuple):
    x: Any
    y: Any


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    RaggedMmap.from_lists(folder / "rows", ROWS)
    RaggedMmap.from_lists(folder / "big", [row.astype(">i4") for row in ROWS])
    RaggedMmap.from_lists(folder / "images", IMAGES)
    RaggedMmap.from_lists(folder / "tall", TALL)
    RaggedMmap.from_lists(folder / "scalars", [np.float64(k) for k in range(N)])
    RaggedMmap.from_lists(folder / "mixed", [[np.float32(k), ROWS[k].astype("f4"), DENSE[k]][k % 3] for k in range(N)])
    DenseMmap.from_ndarray(folder / "dense", DENSE)
    DenseMmap.from_ndarray(folder / "numbers", np.arange(N))
    DenseMmap.from_ndarray(folder / "big dense", DENSE.astype(">f8"))
    StringsMmap.from_strings(folder / "texts", TEXTS)
    BytesMmap.from_bytes(folder / "bytes", [text.encode() for text in TEXTS], zstd_level=3)
    return folder


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    if ours := [thread for thread in threading.enumerate() if thread.name.startswith("mmap_ninja")]:
        gc.collect()  # a traceback may have been the last to hold an iterator
        for thread in ours:
            thread.join(10)
            assert not thread.is_alive(), thread.name


def plain(batch: Any) -> Any:
    """A batch as nested lists, to compare it."""
    if isinstance(batch, dict):
        return {key: plain(part) for key, part in batch.items()}
    if isinstance(batch, tuple | list):
        return [plain(part) for part in batch]
    if isinstance(batch, Tensor) and batch.is_nested:
        return [part.tolist() for part in batch.unbind()]
    return batch.tolist() if isinstance(batch, np.ndarray | np.generic | Tensor) else batch


def as_tensor(value: Any) -> Any:
    """What a tensor of these values has to be, made without the adapter."""
    if isinstance(value, str | bytes):
        return value
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))


def check_same(found: Any, expected: Any) -> None:
    """One tensor for each array, of its values, dtype and shape; what is neither, as it is."""
    expected = as_tensor(expected) if isinstance(expected, np.ndarray | np.generic) else expected
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected)
    elif isinstance(expected, core.Padded):
        assert type(found) is Padded
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    elif isinstance(expected, core.Jagged):
        check_same(found.offsets(), expected.offsets // max(1, int(np.prod(expected.shapes[0][1:]))))
        check_same(found.values(), expected.values.reshape(-1, *expected.shapes[0][1:]))
        assert (found.layout, found.shape[0]) == (torch.jagged, len(expected.shapes))
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, part in expected.items():
            check_same(found[key], part)
    elif isinstance(expected, tuple | list):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    else:
        assert type(found) is type(expected)
        assert found == expected


def read(source: Any, i: int) -> Any:
    """Sample `i`, as a plain loop gets it."""
    if isinstance(source, dict):
        return {key: read(part, i) for key, part in source.items()}
    if isinstance(source, tuple):
        parts = [read(part, i) for part in source]
        return type(source)(*parts) if hasattr(source, "_fields") else tuple(parts)
    sample = source[i]
    return sample if isinstance(sample, str | bytes) else np.asarray(sample, source.dtype)  # of a number of Python too


def unbatched(batch: Any, k: int) -> Any:
    """Sample `k` of a batch."""
    if isinstance(batch, dict):
        return {key: unbatched(part, k) for key, part in batch.items()}
    if isinstance(batch, tuple):
        parts = [unbatched(part, k) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch[k]


def lengths(source: Any) -> int:
    if isinstance(source, dict | tuple):
        return lengths(next(iter(source.values() if isinstance(source, dict) else source)))
    return len(source)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "dense": lambda folder: DenseMmap(folder / "dense"),
    "big-endian dense": lambda folder: DenseMmap(folder / "big dense"),
    "numbers": lambda folder: DenseMmap(folder / "numbers"),
    "rows": lambda folder: RaggedMmap(folder / "rows"),
    "big-endian rows": lambda folder: RaggedMmap(folder / "big"),
    "tall": lambda folder: RaggedMmap(folder / "tall"),
    "images": lambda folder: RaggedMmap(folder / "images"),
    "scalars": lambda folder: RaggedMmap(folder / "scalars"),
    "mixed": lambda folder: RaggedMmap(folder / "mixed"),
    "texts": lambda folder: StringsMmap(folder / "texts"),
    "bytes": lambda folder: BytesMmap(folder / "bytes"),
    "array": lambda folder: DENSE,
    "big-endian array": lambda folder: DENSE.astype(">f8"),
    "columns": lambda folder: np.asfortranarray(DENSE),
    "dict": lambda folder: {"x": RaggedMmap(folder / "rows"), "y": DenseMmap(folder / "numbers")},
    "tuple": lambda folder: (RaggedMmap(folder / "rows"), StringsMmap(folder / "texts")),
    "tuple of one": lambda folder: (RaggedMmap(folder / "rows"),),
    "named tuple": lambda folder: Pair(RaggedMmap(folder / "rows"), DenseMmap(folder / "dense")),
    "nested": lambda folder: {
        "in": (RaggedMmap(folder / "rows"), Pair(DenseMmap(folder / "dense"), BytesMmap(folder / "bytes"))),
        "out": np.arange(N) % 3 == 1,
    },
    "selection": lambda folder: select(RaggedMmap(folder / "rows"), [20, 3, 3, 7, 0]),
    "selection of dense": lambda folder: select(DenseMmap(folder / "dense"), np.arange(N) % 2 == 0),
    "split": lambda folder: split(RaggedMmap(folder / "rows"), (0.7, 0.3), seed=1)[0],
    "windows": lambda folder: windows(RaggedMmap(folder / "rows"), 2, stride=1),
}
every_source = pytest.mark.parametrize("name", SOURCES)


@every_source
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_hold_what_a_plain_loop_over_the_map_gives(folder: Path, name: str, prefetch: int) -> None:
    source, seen = SOURCES[name](folder), 0
    for batch in MmapLoader(source, 4, prefetch=prefetch):
        for k in range(min(4, lengths(source) - seen)):
            expected = read(source, seen)
            check_same(unbatched(batch, k), as_tensors(expected))
            seen += 1
    assert seen == lengths(source)


def as_tensors(sample: Any) -> Any:
    if isinstance(sample, dict):
        return {key: as_tensors(part) for key, part in sample.items()}
    if isinstance(sample, tuple):
        parts = [as_tensors(part) for part in sample]
        return type(sample)(*parts) if hasattr(sample, "_fields") else tuple(parts)
    return as_tensor(sample)


REFUSED = {  # by layouts that the samples do not fit
    ("images", "jagged"),
    ("scalars", "jagged"),
    ("mixed", "jagged"),
    ("mixed", "padded"),
    *((name, "stack") for name, make in SOURCES.items() if name in {"rows", "big-endian rows", "tall", "images"}),
    *((name, "stack") for name in ("mixed", "dict", "tuple", "tuple of one", "named tuple", "nested")),
    *((name, "stack") for name in ("selection", "split")),
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [case for case in itertools.product(SOURCES, ["padded", "jagged", "stack"]) if case not in REFUSED],
)
def test_batches_are_those_of_numpy(folder: Path, name: str, layout: str) -> None:
    options = {"shuffle": True, "seed": 5, "layout": layout, "drop_last": True}
    found, expected = (kind(SOURCES[name](folder), 3, **options) for kind in (MmapLoader, Batches))
    assert len(found) == len(expected)
    for _ in range(2):
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)


@pytest.mark.parametrize(("name", "layout"), sorted(REFUSED))
def test_samples_that_a_layout_does_not_take_name_another_layout(folder: Path, name: str, layout: str) -> None:
    with pytest.raises(SampleError, match=r"layout=|take_jagged takes them"):
        list(MmapLoader(SOURCES[name](folder), N, layout=layout))


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in {"scalars", "mixed"}])  # numbers of Python
def test_lists_are_those_of_numpy(folder: Path, name: str) -> None:
    options = {"shuffle": True, "seed": 5}
    found, expected = (kind(SOURCES[name](folder), 3, **options) for kind in (MmapLoader, Batches))
    for _ in range(2):
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_are_maps(folder: Path, kind: Callable[[Any], Any]) -> None:
    source = {"rows": kind(folder / "rows"), "texts": kind(folder / "texts")}
    expected = Batches(source, 4, layout="padded")
    for one, other in zip(MmapLoader(source, 4, layout="padded"), expected, strict=True):
        check_same(one, other)


def test_layouts_and_paddings_of_each_part(folder: Path) -> None:
    rows, numbers = folder / "rows", folder / "numbers"
    source = {"tokens": rows, "targets": Pair(rows, (rows, rows)), "y": numbers}
    layout = {"tokens": "padded", "targets": Pair("padded", ("jagged",))}
    options = {"layout": layout}
    padding = {"targets": (Padding(-100, side="left", multiple_of=8),)}
    found = MmapLoader(source, 4, padding_value=padding, **options)
    for one, other in zip(found, Batches(source, 4, pad_value=padding, **options), strict=True):
        check_same(one, other)
        assert one["targets"].x.values.shape[1] % 8 == 0
        assert [type(part) for part in one["targets"].y] == [type(one["targets"].y[0]), list]


@pytest.mark.parametrize("padding", [-1, Padding(7, side="left", buckets=(2, 4, 8)), Padding(length=3)], ids=str)
def test_paddings(tmp_path: Path, padding: Any) -> None:
    m = RaggedMmap.from_lists(tmp_path / "m", [row[:3] for row in ROWS])
    options = {"layout": "padded", "shuffle": True}
    found = MmapLoader(m, 5, padding_value=padding, **options)
    for one, other in zip(found, Batches(m, 5, pad_value=padding, **options), strict=True):
        check_same(one, other)


def test_samples_without_a_transform_are_a_list_and_what_it_returns_is_stacked(folder: Path) -> None:
    (batch,) = MmapLoader(folder / "rows", N)
    assert [type(part) for part in batch] == [Tensor] * N
    (batch,) = MmapLoader(folder / "rows", N, transform=lambda row: row.sum())
    check_same(batch, torch.tensor([int(row.sum()) for row in ROWS]))
    (batch,) = MmapLoader(folder / "rows", N, transform=lambda row: row + 1, layout="list")
    check_same(batch, [torch.from_numpy(row + 1) for row in ROWS])


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_dtypes_of_ml_dtypes(tmp_path: Path, name: str) -> None:
    dtype = getattr(pytest.importorskip("ml_dtypes", reason="NumPy has no such dtype without it"), name)
    rows = [row.astype(np.float32).astype(dtype) for row in ([np.arange(k % 4) for k in range(8)])]
    m = RaggedMmap.from_lists(tmp_path / "m", rows)
    expected = [torch.arange(k % 4).float().to(getattr(torch, name)) for k in range(8)]

    def bits(one: Tensor) -> Any:
        assert one.dtype == getattr(torch, name)
        return one.float().tolist()

    for k, batch in enumerate(MmapLoader(m, 4)):
        assert list(map(bits, batch)) == list(map(bits, expected[4 * k : 4 * k + 4]))
    for k, batch in enumerate(MmapLoader(m, 4, layout="padded")):
        filled = torch.nn.utils.rnn.pad_sequence([row.float() for row in expected[4 * k : 4 * k + 4]], batch_first=True)
        assert bits(batch.values) == filled.tolist()
    for k, batch in enumerate(MmapLoader(m, 4, layout="jagged")):
        assert bits(batch.values()) == bits(torch.cat(expected[4 * k : 4 * k + 4]))
    changed = MmapLoader(m, 4, transform=lambda row: row.float().flip(0).to(row.dtype), layout="list")
    assert [bits(row) for batch in changed for row in batch] == [bits(row)[::-1] for row in expected]


def test_an_empty_map(tmp_path: Path) -> None:
    for layout in ("list", "padded", "jagged", "stack"):
        loader = MmapLoader(RaggedMmap(tmp_path / "none"), 4, layout=layout, shuffle=True)
        assert (len(loader), list(loader)) == (0, [])


def test_its_repr_says_what_it_is(folder: Path) -> None:
    assert re.search("MmapLoader.*layout='padded'", repr(MmapLoader(folder / "rows", 4, layout="padded")))


# --- jagged


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The arrays that loaders gather into, which are kept."""
    arrays: list[np.ndarray] = []

    def kept(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        arrays.append(np.empty(shape, dtype))
        return arrays[-1]

    monkeypatch.setattr(devices, "empty", kept)
    return arrays


@pytest.mark.parametrize("name", ["rows", "tall"])
def test_a_jagged_batch_is_the_memory_that_was_gathered_into(folder: Path, name: str, made: list[np.ndarray]) -> None:
    for batch in MmapLoader(folder / name, 4, layout="jagged", prefetch=0):
        assert batch.values().numel() > 0
        assert any(np.shares_memory(batch.values().numpy(), array) for array in made)


@pytest.mark.parametrize("layout", ["list", "padded", "stack"])
def test_so_is_one_of_any_other_layout(folder: Path, layout: str, made: list[np.ndarray]) -> None:
    tensor_of = {"list": lambda batch: batch[-1], "padded": lambda batch: batch.values, "stack": lambda batch: batch}
    for batch in MmapLoader(folder / "dense" if layout == "stack" else folder / "rows", 5, layout=layout, prefetch=0):
        part = tensor_of[layout](batch)
        assert part.numel() > 0
        assert any(np.shares_memory(part.numpy(), array) for array in made)


def test_a_jagged_batch_knows_its_offsets_and_lengths(folder: Path) -> None:
    for k, batch in enumerate(MmapLoader(folder / "tall", 3, layout="jagged")):
        part = TALL[3 * k : 3 * k + 3]
        sizes = list(map(len, part))
        assert batch.offsets().tolist() == [0, *itertools.accumulate(sizes)]
        assert (batch._get_min_seqlen(), batch._get_max_seqlen()) == (min(sizes), max(sizes))
        assert (batch.shape[0], batch.shape[2], batch.dtype) == (len(part), 6, torch.float32)
        assert plain(batch) == plain(part)


def test_a_jagged_batch_of_empty_samples_only(folder: Path) -> None:
    empty = select(RaggedMmap(folder / "rows"), [0, 5, 10])
    (batch,) = MmapLoader(empty, 3, layout="jagged")
    assert (batch.offsets().tolist(), batch.values().shape) == ([0, 0, 0, 0], (0,))
    assert (batch._get_min_seqlen(), batch._get_max_seqlen()) == (0, 0)


def test_a_model_takes_jagged_batches(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    linear, embedding = torch.nn.Linear(6, 3), torch.nn.Embedding(5, 4)
    tokens = RaggedMmap.from_lists(tmp_path / "tokens", [np.arange(k, k + k % 4) % 5 for k in range(N)])
    seen = 0
    for rows, ids in MmapLoader((folder / "tall", tokens), 4, layout="jagged", shuffle=False):
        of_rows, of_ids = linear(rows).unbind(), embedding(ids).unbind()
        for one, other in zip(of_rows, of_ids, strict=True):
            assert torch.allclose(one, linear(torch.from_numpy(TALL[seen])))
            assert torch.equal(other, embedding(torch.from_numpy(np.array(tokens[seen]))))
            seen += 1
    assert seen == N


def test_a_gradient_goes_through_a_jagged_batch(folder: Path) -> None:
    linear = torch.nn.Linear(6, 3)
    (batch,) = MmapLoader(folder / "tall", N, layout="jagged")
    linear(batch).values().sum().backward()
    expected = sum(torch.from_numpy(rows).sum(0) for rows in TALL)
    assert torch.allclose(linear.weight.grad, expected.expand(3, 6))


@pytest.mark.parametrize("transform", [None, torch.clone], ids=["stored", "transformed"])
def test_samples_that_are_ragged_on_two_axes_make_no_nested_tensor(folder: Path, transform: Any) -> None:
    message = r"shapes \(1, 2\) and \(2, 3\) differ on more than their first axis.*layout=\"padded\" or \"list\" takes"
    with pytest.raises(SampleError, match=message) as caught:
        list(MmapLoader(folder / "images", 4, layout="jagged", transform=transform))
    assert "while making batch 0 of epoch 0" in notes(caught.value)


@pytest.mark.parametrize("source", ["scalars", "mixed"])
def test_samples_that_have_no_axis_in_common_make_no_nested_tensor(folder: Path, source: str) -> None:
    with pytest.raises(SampleError, match=r'samples of one number of axes.*layout="stack" takes scalars, "list" every'):
        list(MmapLoader(folder / source, 4, layout="jagged"))


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


# --- functions of the user


def notes(error: BaseException) -> str:
    return " ".join([str(error), *getattr(error, "__notes__", [])])


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
    expected = plain(list(loader))
    loader.set_epoch(0)
    one, other = iter(loader), iter(loader)
    pairs = list(zip(one, other, strict=True))
    assert [plain(first) for first, _ in pairs] == expected
    assert [plain(second) for _, second in pairs] == expected


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


def check_every_position(make: Callable[[], MmapLoader], epochs: int = 2) -> None:
    """Start again from each state that there is, and see the rest of what was not interrupted."""
    loader = make()
    expected = [comparable(batch) for _ in range(epochs) for batch in loader]
    loader, states, position = make(), [], 0
    states.append((0, loader.state_dict()))
    for _ in range(epochs):
        for _ in loader:
            position += 1
            states.append((position, loader.state_dict()))
        states.append((position, loader.state_dict()))
    assert position == len(expected) > 0
    for position, state in states:
        again, rest = make(), []
        again.load_state_dict(json.loads(json.dumps(state)))
        assert again.state_dict()["version"] == 1
        while len(rest) < len(expected) - position:
            rest += map(comparable, again)
        assert rest == expected[position:]


def comparable(batch: Any) -> Any:
    """A batch as plain values; of a tensor without any, what there is to see."""
    if isinstance(batch, tuple | list):
        return [comparable(part) for part in batch]
    if isinstance(batch, Tensor) and batch.device.type == "meta":
        return str(batch.device), str(batch.dtype), tuple(batch.shape)
    return plain(batch)


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


# --- devices


def tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict | list | tuple):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from tensors(part)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), torch.device("cpu", 0)], ids=str)
def test_on_the_cpu_batches_stay_where_they_were_gathered(folder: Path, device: Any, made: list[np.ndarray]) -> None:
    loader = MmapLoader(folder / "dense", 4, device=device, prefetch=0)
    for batch, expected in zip(loader, Batches(folder / "dense", 4), strict=True):
        check_same(batch, expected)
        assert batch.device.type == "cpu"
        assert any(np.shares_memory(batch.numpy(), array) for array in made)


@pytest.mark.parametrize("device", ["meta", torch.device("meta")], ids=repr)
def test_every_tensor_goes_to_the_device(folder: Path, device: Any) -> None:
    source = {
        "padded": folder / "rows",
        "rest": Pair(folder / "rows", (folder / "tall", folder / "dense")),
        "texts": folder / "texts",
    }
    layout = {"padded": "padded", "rest": Pair("list", ("jagged", "list"))}
    here, there = (MmapLoader(source, 4, layout=layout, device=where) for where in (None, device))
    for one, other in zip(here, there, strict=True):
        assert {tensor.device.type for tensor in tensors(other)} == {"meta"}
        assert type(other["padded"]) is Padded
        assert type(other["rest"]) is Pair
        assert other["texts"] == one["texts"]
        assert other["rest"].y[0]._get_max_seqlen() == one["rest"].y[0]._get_max_seqlen()
        pairs = list(zip(tensors(one), tensors(other), strict=True))
        assert len(pairs) == 3 + len(one["texts"]) + 2
        for here_one, there_one in pairs:
            assert (here_one.dtype, here_one.layout, here_one.ndim) == (
                there_one.dtype,
                there_one.layout,
                there_one.ndim,
            )
            assert here_one.is_nested or here_one.shape == there_one.shape


def test_a_batch_transform_sees_the_batch_before_it_goes_to_the_device(folder: Path) -> None:
    seen = []
    loader = MmapLoader(folder / "dense", 4, device="meta", batch_transform=lambda batch: seen.append(batch) or [batch])
    assert {tensor.device.type for batch in loader for tensor in batch} == {"meta"}
    assert np.array_equal(torch.cat(seen).numpy(), DENSE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here, which pinned memory is for")
def test_pinned_memory_without_a_cuda_device_warns_and_works(folder: Path) -> None:
    with pytest.warns(UserWarning, match="pin_memory=True does nothing: there is no CUDA device here") as caught:
        loader = MmapLoader(folder / "dense", 4, pin_memory=True)
    assert caught[0].filename == __file__
    for batch, expected in zip(loader, Batches(folder / "dense", 4), strict=True):
        check_same(batch, expected)


# --- the way to a CUDA device, without one


class Host(Tensor):
    """A tensor that a copy to the fake device can be made of."""

    fake: FakeCuda

    def to(self, device: Any, *, non_blocking: bool) -> Tensor:
        assert (device.type, non_blocking) == ("cuda", True)
        return self.fake.copy(self)


class Device(Tensor):
    """Its copy there: of no use until the copy was made, in memory of the stream that it was made on."""

    users: list[Any]
    is_cpu = False

    def record_stream(self, stream: Any) -> None:
        self.users.append(stream)


class FakeStream:
    def __init__(self, fake: FakeCuda, name: str) -> None:
        self.fake, self.name = fake, name

    def record_event(self) -> FakeEvent:
        return FakeEvent(self.fake)

    def wait_event(self, event: FakeEvent) -> None:
        self.fake.waited.append(event.number)
        assert self.name == "main", "the stream of the copies waits for itself"
        if self.fake.is_fast:
            self.fake.finish(event.number)

    def synchronize(self) -> None:
        assert self.name == "side"
        self.fake.finish(self.fake.begun)
        self.fake.synchronized += 1


class FakeEvent:
    """Done when all copies are that were begun before it was recorded."""

    def __init__(self, fake: FakeCuda) -> None:
        self.fake, self.number = fake, fake.begun

    def query(self) -> bool:
        return self.fake.done >= self.number


class FakeCuda:
    """Copies that are made when somebody waits for them, as those of `torch.cuda` may be, out of host memory that has
    to be there still."""

    def __init__(self, is_fast: bool) -> None:
        self.is_fast = is_fast
        self.begun = self.done = self.synchronized = 0
        self.under_way: deque[tuple[Any, Tensor]] = deque()
        self.hosts: list[Any] = []
        self.waited: list[int] = []
        self.main, self.current = FakeStream(self, "main"), FakeStream(self, "main")

    def Stream(self, device: Any) -> FakeStream:
        return FakeStream(self, "side")

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def current_stream(self, device: Any) -> FakeStream:
        return self.current

    def copy(self, host: Tensor) -> Tensor:
        assert self.current.name == "side", "a copy on the stream that computes"
        there = torch.full(host.shape, -1, dtype=host.dtype).as_subclass(Device)
        there.users = []
        self.begun += 1
        self.hosts.append(weakref.ref(host))
        self.under_way.append((self.hosts[-1], there))
        return there

    def finish(self, number: int) -> None:
        while self.done < number:
            host, there = self.under_way.popleft()
            assert host() is not None, "host memory was given away while a copy out of it was under way"
            there.as_subclass(Tensor).copy_(host().as_subclass(Tensor))
            self.done += 1

    def held(self) -> int:
        return sum(host() is not None for host in self.hosts)


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(request.param)
    monkeypatch.setattr(Host, "fake", fake, raising=False)
    names = {name: getattr(torch, name) for name in ("device", "empty", "jagged", "nested", "strided")}
    monkeypatch.setattr(devices, "torch", SimpleNamespace(cuda=fake, **names))
    devices._side_stream.cache_clear()
    monkeypatch.setattr(devices, "device_of", torch.device)
    monkeypatch.setattr(devices, "memory", lambda pin_memory, device: devices.empty)
    return fake


def hosted(batch: Tensor) -> Tensor:
    return batch.as_subclass(Host)


def on_fake(folder: Path, **options: Any) -> MmapLoader:
    return MmapLoader(folder / "numbers", 4, shuffle=True, device="cuda:0", batch_transform=hosted, **options)


def values(batch: Tensor, fake: FakeCuda, number: int) -> list[int]:
    """The values of batch `number`, counted from 1, which the stream that uses them has waited for."""
    assert fake.waited[-1] >= number
    assert [stream.name for stream in batch.users] == ["main"], "the allocator has to know who uses the memory"
    fake.finish(fake.waited[-1])
    return batch.tolist()


@pytest.mark.parametrize("name", ["rows", "images"])
def test_a_list_goes_to_a_device_in_one_copy(folder: Path, name: str) -> None:
    for batch in MmapLoader(folder / name, 4, device="meta"):
        assert len({id(tensor._base) for tensor in batch}) == 1
    expected = list(MmapLoader(folder / name, 4))
    for batch, sent in zip(expected, devices.sent(iter(expected), torch.device("cpu")), strict=True):
        assert all(torch.equal(one, other) and one.shape == other.shape for one, other in zip(batch, sent, strict=True))


def lists_of_parts() -> dict[str, list[Any]]:
    whole = torch.arange(12.0)
    return {
        "not all of it": list(whole.split(3))[1:],
        "twice": [*whole.split(6), whole[:0], whole[:6]],
        "other dtypes": [whole[:6], whole[6:].view(torch.int32)],
        "not contiguous": list(torch.arange(12).view(3, 4).t().unbind(0)),
        "others": [torch.ones(2), "text", torch.zeros(0), None],
        "nothing": [],
    }


@pytest.mark.parametrize("name", lists_of_parts())
def test_a_list_of_other_tensors_goes_to_a_device_one_by_one(name: str) -> None:
    given = lists_of_parts()[name]
    (sent,) = devices.sent(iter([given]), torch.device("cpu"))
    assert len(sent) == len(given)
    for one, other in zip(given, sent, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("prefetch", [0, 2])
def test_each_batch_goes_to_cuda_once_in_order_and_one_ahead(folder: Path, fake: FakeCuda, prefetch: int) -> None:
    loader, expected = on_fake(folder, prefetch=prefetch), list(OrderBatchSampler(N, 4, shuffle=True))
    found = []
    for number, batch in enumerate(loader, 1):
        assert fake.begun == min(number + 1, 6)
        assert loader.state_dict()["samples_seen"] == min(4 * number, N)
        found.append(values(batch, fake, number))
    assert found == expected
    assert fake.synchronized == 1


def test_host_memory_is_held_until_its_copy_was_made(folder: Path, fake: FakeCuda) -> None:
    fake.is_fast = False
    running = iter(on_fake(folder, prefetch=0))
    for number in range(1, 5):
        next(running)
        assert fake.held() == number + 1  # none of the copies was made yet
    fake.finish(fake.begun)
    next(running)
    assert fake.held() <= 2  # the last one that was copied, and the one that was just begun


def test_leaving_early_waits_for_the_copies_under_way(folder: Path, fake: FakeCuda) -> None:
    running = iter(on_fake(folder))
    next(running), next(running)
    running.close()
    assert (fake.synchronized, fake.done) == (1, fake.begun)
    assert fake.held() == 0


def test_batches_on_cuda_that_are_kept_do_not_change(folder: Path, fake: FakeCuda) -> None:
    kept = list(on_fake(folder))
    assert [batch.tolist() for batch in kept] == list(OrderBatchSampler(N, 4, shuffle=True))


def test_going_on_from_every_position_on_cuda(folder: Path, fake: FakeCuda) -> None:
    fake.is_fast = True
    check_every_position(lambda: on_fake(folder))
    check_every_position(lambda: on_fake(folder, drop_last=True, prefetch=0))


def test_an_error_comes_in_its_turn_on_cuda(folder: Path, fake: FakeCuda) -> None:
    def fail(batch: Tensor) -> Tensor:
        if batch[0] == 12:
            raise KeyError("on purpose")
        return hosted(batch)

    loader = MmapLoader(folder / "numbers", 4, device="cuda", batch_transform=fail)
    running, found = iter(loader), []
    with pytest.raises(KeyError, match="on purpose"):
        found.extend(values(batch, fake, number) for number, batch in enumerate(running, 1))
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert loader.state_dict()["samples_seen"] == 12
    assert fake.synchronized == 1


# --- CUDA


@cuda
def test_batches_on_cuda_are_those_of_the_cpu(folder: Path) -> None:
    source = {"x": (folder / "rows", folder / "dense"), "texts": folder / "texts"}
    for layout in ("list", "padded"):
        here, there = (MmapLoader(source, 4, layout=layout, shuffle=True, device=where) for where in (None, "cuda"))
        for _ in range(2):
            for one, other in zip(here, there, strict=True):
                assert {str(tensor.device) for tensor in tensors(other)} == {f"cuda:{torch.cuda.current_device()}"}
                check_same(plain(other), plain(one))


@cuda
def test_batches_are_gathered_into_pinned_memory_for_cuda(folder: Path) -> None:
    seen = []
    options = {"batch_transform": lambda batch: seen.append(batch.is_pinned()) or batch}
    for given, device, expected in (
        (None, "cuda", True),
        (True, None, True),
        (False, "cuda", False),
        (None, None, False),
    ):
        seen.clear()
        batches = list(MmapLoader(folder / "dense", 4, pin_memory=given, device=device, **options))
        assert seen == [expected] * 6
        assert np.array_equal(torch.cat(batches).cpu().numpy(), DENSE)


@cuda
@pytest.mark.parametrize("layout", ["padded", "jagged", "stack"])
def test_batches_on_cuda_may_be_kept(tmp_path: Path, layout: str) -> None:
    samples = np.random.default_rng(0).integers(0, 255, (80, 250_000), np.uint8)
    RaggedMmap.from_lists(tmp_path / "m", list(samples))
    DenseMmap.from_ndarray(tmp_path / "numbers", np.arange(len(samples)))
    loader = MmapLoader((tmp_path / "m", tmp_path / "numbers"), 4, layout=layout, shuffle=True, device="cuda")
    kept = [batch for _ in range(3) for batch in loader]
    assert len(kept) == 60
    for batch, numbers in kept:
        found = {"padded": lambda b: b.values, "jagged": lambda b: b.values().view(4, -1), "stack": lambda b: b}
        assert np.array_equal(found[layout](batch).cpu().numpy(), samples[numbers.cpu().numpy()])


@cuda
def test_batches_on_cuda_are_safe_on_another_stream(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 255, (80, 1_000_000), np.uint8)
    m = DenseMmap.from_ndarray(tmp_path / "m", samples)
    sums = []
    with torch.cuda.stream(torch.cuda.Stream()):
        for batch in MmapLoader(m, 4, device="cuda"):
            torch.cuda._sleep(10_000_000)  # the stream is far behind when the batch is let go of
            sums.append(batch.sum(dim=1, dtype=torch.int64))
            del batch
    torch.cuda.synchronize()
    assert torch.cat(sums).tolist() == samples.sum(axis=1, dtype=np.int64).tolist()


@cuda
def test_the_state_counts_what_was_handed_out_on_cuda(folder: Path) -> None:
    loader = MmapLoader(folder / "numbers", 4, device="cuda")
    for number, batch in enumerate(loader, 1):
        assert loader.state_dict()["samples_seen"] == min(4 * number, N)
        assert batch[-1] == min(4 * number, N) - 1
    check_every_position(lambda: MmapLoader(folder / "numbers", 4, shuffle=True, device="cuda"))


@cuda
def test_jagged_batches_on_cuda_go_through_a_model(folder: Path) -> None:
    linear = torch.nn.Linear(6, 3).cuda()
    for k, batch in enumerate(MmapLoader(folder / "tall", 3, layout="jagged", device="cuda")):
        part = TALL[3 * k : 3 * k + 3]
        sizes = list(map(len, part))
        assert (batch.is_nested, batch.layout, batch.device.type) == (True, torch.jagged, "cuda")
        assert batch.offsets().device.type == "cuda"
        assert (batch._get_min_seqlen(), batch._get_max_seqlen()) == (min(sizes), max(sizes))
        for one, rows in zip(linear(batch).unbind(), part, strict=True):
            assert torch.allclose(one, linear(torch.from_numpy(rows).cuda()), atol=1e-5)


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


def test_it_is_the_sampler_for_trainers_that_set_the_epoch_there(folder: Path) -> None:
    loader, other = MmapLoader(folder / "numbers", 4, shuffle=True), MmapLoader(folder / "numbers", 4, shuffle=True)
    loader.batch_sampler.sampler.set_epoch(3)
    other.set_epoch(3)
    assert all(torch.equal(*pair) for pair in zip(loader, other, strict=True))
