"""`pad_collate`, `jagged_collate` and `list_collate` against torch's own functions and a plain loop."""

from __future__ import annotations

import pickle
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch.nn.utils.rnn import pad_sequence  # noqa: E402
from torch.utils.data import DataLoader, default_collate  # noqa: E402

from mmap_ninja.errors import ArgumentError, SampleError  # noqa: E402
from mmap_ninja_torch import MmapDataset, Padded, jagged_collate, list_collate, pad_collate  # noqa: E402
from torch_data import COUNT, make_maps, same, tensors  # noqa: E402

PATIENCE = 120  # seconds after which a loader that waits for a worker gives up
Pair = namedtuple("Pair", "row label")

ROWS = [torch.arange(k, dtype=torch.int32) + 10 * k for k in (3, 0, 5, 1)]
CLIPS = [torch.full((k, 2), k / 2) for k in (2, 3, 0)]
GRIDS = [torch.arange(float(h * w)).reshape(h, w) for h, w in ((2, 3), (1, 4), (0, 2), (3, 1))]
HALVES = [row.to(torch.bfloat16) for row in ROWS]
LABELS = [torch.tensor(k) for k in (7, 8, 9, 7)]
every_kind = pytest.mark.parametrize("samples", [ROWS, CLIPS, GRIDS, HALVES], ids=["rows", "clips", "grids", "halves"])
first_axis = pytest.mark.parametrize("samples", [ROWS, CLIPS, HALVES], ids=["rows", "clips", "halves"])


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_maps(tmp_path_factory.mktemp("maps"))


# -- padded ----------------------------------------------------------------------------------------------------------


def padded(samples: Sequence[Any], shape: Sequence[int] | None = None, value: Any = 0, side: str = "right") -> Any:
    """The oracle: each sample put into its corner."""
    if shape is None:
        shape = [max(sizes) for sizes in zip(*(sample.shape for sample in samples), strict=True)]
    values = torch.full((len(samples), *shape), value, dtype=samples[0].dtype)
    for place, sample in zip(values, samples, strict=True):
        corner = tuple(
            slice(0, k) if side == "right" else slice(n - k, n) for k, n in zip(sample.shape, shape, strict=True)
        )
        place[corner] = sample
    shapes = torch.tensor([tuple(sample.shape) for sample in samples])
    return Padded(values, shapes[:, 0], shapes)


@every_kind
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("value", [0, -1])
def test_padded_samples_lie_in_a_corner(samples: list[Any], side: str, value: int) -> None:
    assert same(pad_collate(value, side=side)(samples), padded(samples, None, value, side))


@first_axis
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_of_the_first_axis_is_that_of_torch(samples: list[Any], side: str) -> None:
    values = pad_collate(2, side=side)(samples).values
    assert same(values, pad_sequence(samples, batch_first=True, padding_value=2, padding_side=side))


OPTIONS = {
    "length": ({"length": 7}, (7, 4)),
    "length by axis": ({"length": (None, 6)}, (3, 6)),
    "multiple": ({"multiple_of": 8}, (8, 4)),
    "multiples": ({"multiple_of": (2, 3)}, (4, 6)),
    "buckets": ({"buckets": (2, 4, 9)}, (4, 4)),
    "bucket that fits": ({"buckets": [3]}, (3, 4)),
}


@pytest.mark.parametrize(("options", "shape"), OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_options_give_the_shape(options: dict[str, Any], shape: tuple[int, ...], side: str) -> None:
    assert same(pad_collate(9, side=side, **options)(GRIDS), padded(GRIDS, shape, 9, side))


def test_a_sample_that_is_too_long_is_refused() -> None:
    for options in ({"length": 4}, {"buckets": (2, 4)}):
        with pytest.raises(SampleError, match="sample 2 has length 5, more than the 4"):
            pad_collate(**options)(ROWS)


def test_options_that_make_no_sense_are_refused_before_there_is_a_batch() -> None:
    with pytest.raises(ArgumentError, match="side is 'top', expected 'right' or 'left'"):
        pad_collate(side="top")
    with pytest.raises(ArgumentError, match="length and buckets contradict each other"):
        pad_collate(length=3, buckets=(3,))
    with pytest.raises(ArgumentError, match=r"buckets is .*expected ascending"):
        pad_collate({"a": 0}, buckets=(3, 2))


def test_a_padding_value_that_the_dtype_lacks_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"pad_value: .*0\.5"):
        pad_collate(0.5)(ROWS)
    assert pad_collate(0.5)(CLIPS).values[0, 2].tolist() == [0.5, 0.5]
    assert pad_collate(float("-inf"))(HALVES).values[1].unique().tolist() == [float("-inf")]


def test_zero_length_samples_alone_are_padded() -> None:
    assert same(pad_collate()([ROWS[1]] * 2), padded([ROWS[1]] * 2))
    assert same(pad_collate(5, length=2)([ROWS[1]] * 2), padded([ROWS[1]] * 2, (2,), 5))


def test_a_padding_value_of_each_part_and_the_others_stacked() -> None:
    samples = [
        {"ids": row, "pair": (row, label), "fixed": torch.ones(2), "text": str(k)}
        for k, (row, label) in enumerate(zip(ROWS, LABELS, strict=True))
    ]
    found = pad_collate({"ids": 1, "pair": (-100,)}, multiple_of=2)(samples)
    expected = {
        "ids": padded(ROWS, (6,), 1),
        "pair": (padded(ROWS, (6,), -100), torch.stack(LABELS)),
        "fixed": torch.ones(4, 2),
        "text": ["0", "1", "2", "3"],
    }
    assert same(found, expected)
    tuples = [(row, torch.zeros(2), label) for row, label in zip(ROWS, LABELS, strict=True)]
    assert same(pad_collate((3,))(tuples), (padded(ROWS, None, 3), torch.zeros(4, 2), torch.stack(LABELS)))
    # One value is for every part, also one that would not need it.
    assert same(pad_collate(3)(tuples), (padded(ROWS, None, 3), padded([torch.zeros(2)] * 4), torch.stack(LABELS)))


def test_a_part_without_a_padding_value_has_to_be_of_one_shape() -> None:
    with pytest.raises(SampleError, match=r"sample 0 .* shape \(3,\), sample 1 .* \(0,\)"):
        pad_collate({"a": 0})([{"a": row, "b": row} for row in ROWS])


def test_a_padding_value_for_a_part_that_is_not_there_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"'labels', but the parts of a batch are \['ids'\]"):
        pad_collate({"labels": 0})([{"ids": row} for row in ROWS])


# -- jagged ----------------------------------------------------------------------------------------------------------


def assert_nested(found: Any, samples: list[Any]) -> None:
    """Compare with what torch makes of the same samples."""
    expected = torch.nested.nested_tensor(samples, layout=torch.jagged)
    assert found.is_nested
    assert found.layout == torch.jagged
    assert found.dtype == expected.dtype
    assert found.dim() == expected.dim()
    assert same(list(found.unbind()), list(expected.unbind()))
    assert same(list(found.unbind()), samples)
    assert torch.equal(found.offsets(), expected.offsets())
    assert torch.equal(found.values(), expected.values())


@first_axis
def test_jagged_is_the_nested_tensor_of_torch(samples: list[Any]) -> None:
    assert_nested(jagged_collate(samples), samples)


def test_a_jagged_batch_knows_its_lengths_and_can_be_padded() -> None:
    made = jagged_collate(ROWS)
    assert torch.equal(made.offsets().diff(), torch.tensor([3, 0, 5, 1]))
    assert same(made.to_padded_tensor(0), padded(ROWS).values)
    assert same(jagged_collate(CLIPS).to_padded_tensor(-1.0), padded(CLIPS, None, -1.0).values)


def test_a_jagged_batch_of_zero_length_samples() -> None:
    made = jagged_collate([ROWS[1], ROWS[1]])
    assert same(list(made.unbind()), [ROWS[1], ROWS[1]])
    assert made.offsets().tolist() == [0, 0, 0]


def test_jagged_parts_numbers_and_texts() -> None:
    samples = [
        {"pair": Pair(row, label), "half": half, "number": k, "text": str(k), "raw": b"%d" % k}
        for k, (row, label, half) in enumerate(zip(ROWS, LABELS, HALVES, strict=True))
    ]
    found = jagged_collate(samples)
    assert type(found["pair"]) is Pair
    assert_nested(found["pair"].row, ROWS)
    assert_nested(found["half"], HALVES)
    assert same(found["pair"].label, torch.stack(LABELS))
    assert same(found["number"], torch.tensor([0, 1, 2, 3]))
    assert (found["text"], found["raw"]) == (["0", "1", "2", "3"], [b"0", b"1", b"2", b"3"])


def test_two_ragged_axes_are_refused_with_the_remedy() -> None:
    words = r'shapes \(2, 3\) and \(1, 4\) differ on more than their first axis.*layout="padded" or "list" takes them'
    with pytest.raises(SampleError, match=words):
        jagged_collate(GRIDS)
    with pytest.raises(SampleError, match=words):
        jagged_collate([{"a": grid} for grid in GRIDS])


# -- lists -----------------------------------------------------------------------------------------------------------


def test_lists_are_the_samples_themselves() -> None:
    for samples in (ROWS, CLIPS, GRIDS, HALVES, [*ROWS, *GRIDS]):
        found = list_collate(samples)
        assert all(one is other for one, other in zip(found, samples, strict=True))
        assert type(found) is list


def test_lists_of_parts_numbers_and_texts() -> None:
    samples = [
        {"grid": grid, "pair": Pair(row, label), "number": k / 2, "is_even": k % 2 == 0, "text": str(k)}
        for k, (grid, row, label) in enumerate(zip(GRIDS, ROWS, LABELS, strict=True))
    ]
    found = list_collate(samples)
    assert same(found["grid"], GRIDS)
    assert same(found["pair"], Pair(ROWS, torch.stack(LABELS)))
    for key in ("number", "is_even", "text"):
        assert same(found[key], default_collate([sample[key] for sample in samples]))


# -- all of them -----------------------------------------------------------------------------------------------------

every_collate = pytest.mark.parametrize(
    "collate", [pad_collate(), jagged_collate, list_collate], ids=["padded", "jagged", "list"]
)


@every_collate
def test_scalars_are_stacked(collate: Any) -> None:
    assert same(collate(LABELS), torch.stack(LABELS))
    halves = [torch.tensor(k / 2, dtype=torch.bfloat16) for k in range(3)]
    assert same(collate(halves), torch.stack(halves))
    assert same(collate([1, 2]), torch.tensor([1, 2]))
    assert same(collate([0.5, 2.0]), torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert same(collate([True, False]), torch.tensor([True, False]))
    assert same(collate([np.float32(1), np.float32(2)]), torch.tensor([1.0, 2.0]))


@every_collate
def test_texts_and_bytes_are_lists(collate: Any) -> None:
    assert collate(["a", "ß"]) == ["a", "ß"]
    assert collate([b"a", b"b"]) == [b"a", b"b"]


both = pytest.mark.parametrize("collate", [pad_collate(), jagged_collate], ids=["padded", "jagged"])


@both
def test_samples_of_different_dtypes_are_refused(collate: Any) -> None:
    with pytest.raises(SampleError, match=r"sample 0 .* dtype int32, sample 1 .* float64"):
        collate([ROWS[0], ROWS[0].double()])
    with pytest.raises(SampleError, match=r"sample 0 .* dtype int32, sample 2 .* bfloat16"):
        collate([ROWS[0], ROWS[1], HALVES[2]])


@both
def test_samples_of_different_numbers_of_axes_are_refused(collate: Any) -> None:
    with pytest.raises(SampleError, match=r"sample 0 .* ndim 1, sample 1 .* 2"):
        collate([GRIDS[0][0], GRIDS[0]])
    with pytest.raises(SampleError, match=r"sample 0 .* ndim 0, sample 1 .* 1"):
        collate([LABELS[0], LABELS[0][None]])


@both
def test_samples_of_different_parts_are_refused(collate: Any) -> None:
    with pytest.raises(SampleError, match="sample 0 became a dict of 'a', sample 1 a dict of 'b'"):
        collate([{"a": ROWS[0]}, {"b": ROWS[0]}])
    with pytest.raises(SampleError, match="sample 0 became a tuple of 2, sample 1 a tuple of 1"):
        collate([(ROWS[0], ROWS[0]), (ROWS[0],)])


@both
def test_a_batch_is_memory_of_its_own(collate: Any) -> None:
    samples = [row.clone() for row in ROWS]
    made = collate(samples)
    (made.values if isinstance(made, Padded) else made.values()).fill_(99)
    assert same(samples, ROWS)


@every_collate
def test_samples_that_need_a_gradient_and_transposed_ones(collate: Any) -> None:
    samples = [clip.clone().requires_grad_() for clip in CLIPS]
    made = collate(samples)
    if isinstance(made, Padded):
        assert same(made, padded(CLIPS))
        assert same(collate([grid.T for grid in GRIDS]), padded([grid.T for grid in GRIDS]))
    elif isinstance(made, list):
        assert made[0] is samples[0]
    else:
        turned = [torch.arange(6).reshape(2, 3).T, torch.arange(8).reshape(2, 4).T]
        assert_nested(made, CLIPS)
        assert same(list(collate(turned).unbind()), turned)


def test_collates_can_be_pickled() -> None:
    samples = [(row, label) for row, label in zip(ROWS, LABELS, strict=True)]
    for collate in (pad_collate((-1,), multiple_of=4), list_collate):
        assert same(pickle.loads(pickle.dumps(collate))(samples), collate(samples))
    assert_nested(pickle.loads(pickle.dumps(jagged_collate))(samples)[0], ROWS)


# -- in a loader -----------------------------------------------------------------------------------------------------

BATCHES = [range(0, 5), range(5, 10), range(10, COUNT)]


def loader(maps: Path, collate: Any, names: Sequence[str], workers: int, method: str = "fork") -> Any:
    dataset = MmapDataset({name: maps / name for name in names})
    options: dict[str, Any] = {}
    if workers:
        options = {"num_workers": workers, "multiprocessing_context": method, "timeout": PATIENCE}
    return DataLoader(dataset, 5, collate_fn=collate, **options)


def part(name: str, indices: range) -> list[Any]:
    return [tensors(name)[k] for k in indices]


@pytest.mark.parametrize(("workers", "method"), [(0, "fork"), (2, "fork"), (1, "spawn")])
def test_padded_batches_of_a_loader(maps: Path, workers: int, method: str) -> None:
    ragged = ("rows", "clips", "grids", "images", "halves")
    collate = pad_collate(dict.fromkeys(ragged, 1))
    found = list(loader(maps, collate, (*ragged, "points", "labels", "texts", "files"), workers, method))
    assert len(found) == len(BATCHES)
    for batch, indices in zip(found, BATCHES, strict=True):
        expected: dict[str, Any] = {name: padded(part(name, indices), None, 1) for name in ragged}
        expected |= {name: torch.stack(part(name, indices)) for name in ("points", "labels")}
        expected |= {name: part(name, indices) for name in ("texts", "files")}
        assert same(batch, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_jagged_batches_of_a_loader(maps: Path, workers: int) -> None:
    found = list(loader(maps, jagged_collate, ("rows", "clips", "halves", "numbers", "texts"), workers))
    for batch, indices in zip(found, BATCHES, strict=True):
        for name in ("rows", "clips", "halves"):
            assert_nested(batch[name], part(name, indices))
        assert same(batch["numbers"], torch.stack(part("numbers", indices)))
        assert batch["texts"] == part("texts", indices)


@pytest.mark.parametrize("workers", [0, 2])
def test_lists_of_a_loader(maps: Path, workers: int) -> None:
    found = list(loader(maps, list_collate, ("images", "grids", "labels", "texts"), workers))
    for batch, indices in zip(found, BATCHES, strict=True):
        expected = {name: part(name, indices) for name in ("images", "grids", "labels", "texts")}
        assert same(batch, {**expected, "labels": torch.stack(expected["labels"])})


def test_an_error_of_a_collate_comes_through(maps: Path) -> None:
    with pytest.raises(SampleError, match="differ on more than their first axis"):
        next(iter(loader(maps, jagged_collate, ["images"], 0)))
