"""MmapLoader against a plain loop over the map, and against `mmap_ninja.Batches` with the same options."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch import Tensor  # noqa: E402

import torch_batches  # noqa: E402
from meanwhile import refuses_damage  # noqa: E402
from mmap_ninja import (  # noqa: E402
    Batches,
    BytesMmap,
    DenseMmap,
    Padding,
    RaggedMmap,
    StringsMmap,
    select,
    split,
    windows,
)
from mmap_ninja.errors import SampleError  # noqa: E402
from mmap_ninja_torch import MmapLoader  # noqa: E402
from torch_batches import DENSE, ROWS, TALL, N, Pair, as_tensors, check_same, notes, plain  # noqa: E402

folder, made, no_thread_is_left = torch_batches.folder, torch_batches.made, torch_batches.no_thread_is_left


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


def test_check_refuses_what_is_damaged(tmp_path: Path) -> None:
    refuses_damage(lambda source, check: MmapLoader(source, 2, check=check), tmp_path)
