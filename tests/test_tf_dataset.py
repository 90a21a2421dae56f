"""`to_tf_dataset`: batches and samples of maps of every kind are those of the core, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="the adapter for TensorFlow needs it")

import adapter_data  # noqa: E402
from adapter_data import COUNT, DENSE, RAGGED, SIZE, TEXTS, Pair  # noqa: E402
from meanwhile import refuses_damage  # noqa: E402
from mmap_ninja import Batches, DenseMmap, Padding, RaggedMmap, ReaderShard, open_map  # noqa: E402
from mmap_ninja.fields import rows  # noqa: E402
from mmap_ninja_tf import to_tf_dataset  # noqa: E402
from tf_data import (  # noqa: E402
    SOURCES,
    check_all,
    check_array,
    check_same,
    check_spec,
    epoch_of,
    every_source,
)

maps = adapter_data.maps
Make = Callable[[Path], Any]

# -- batches ---------------------------------------------------------------------------------------------------------


@every_source
def test_batches_are_those_of_the_core(maps: Path, make: Make) -> None:
    dataset = to_tf_dataset(make(maps), SIZE, shuffle=True, seed=3)
    for epoch in range(2):
        check_all(dataset, epoch_of(make(maps), epoch=epoch, shuffle=True, seed=3))


@pytest.mark.parametrize("name", [*RAGGED, "points", "texts", "selection", "windows", "nested"])
def test_padded_batches_are_those_of_the_core(maps: Path, name: str) -> None:
    source = SOURCES[name](maps)
    check_all(to_tf_dataset(source, SIZE, layout="padded"), epoch_of(source, layout="padded"))


@pytest.mark.parametrize("name", ["rows", "cubes", "points", "array of texts", "nested"])
def test_without_the_remainder_all_batches_are_of_the_same_size(maps: Path, name: str) -> None:
    source = SOURCES[name](maps)
    check_all(to_tf_dataset(source, SIZE, drop_remainder=True), epoch_of(source, drop_last=True))


def test_every_row_of_a_ragged_batch_is_a_sample(maps: Path) -> None:
    for name in ("rows", "images"):
        (batch,) = to_tf_dataset(maps / name, COUNT)
        for found, sample in zip(batch, RAGGED[name], strict=True):
            dense = found.to_tensor(shape=sample.shape) if isinstance(found, tf.RaggedTensor) else found
            assert dense.shape == sample.shape
            assert (dense.numpy() == sample).all()


@pytest.mark.parametrize("source", ["even", "numbers", "points", "texts", "nested"])
def test_samples_of_one_shape_are_stacked(maps: Path, source: str) -> None:
    made = maps / source if source != "nested" else Pair(maps / "even", (maps / "points",))
    check_all(to_tf_dataset(made, SIZE, layout="stack"), epoch_of(made, layout="stack"))


PADDINGS: dict[str, Any] = {
    "value": 7,
    "length": Padding(9, length=6),
    "left": Padding(-1, side="left"),
    "multiple": Padding(multiple_of=3),
    "buckets": Padding(buckets=(2, 8)),
}


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("pad_value", PADDINGS.values(), ids=PADDINGS)
def test_padding_has_all_options_of_the_core(maps: Path, pad_value: Any, with_lengths: bool) -> None:
    options = {"layout": "padded", "pad_value": pad_value}
    dataset = to_tf_dataset(maps / "rows", SIZE, with_lengths=with_lengths, **options)
    assert isinstance(dataset.element_spec, dict) == with_lengths
    check_all(dataset, epoch_of(maps / "rows", **options))


def test_several_axes_are_padded_to_lengths_of_their_own(maps: Path) -> None:
    options = {"layout": "padded", "pad_value": Padding(0.5, length=(None, 5))}
    dataset = to_tf_dataset(maps / "grids", SIZE, **options)
    assert dataset.element_spec.shape.as_list() == [None, None, 5]
    check_all(dataset, epoch_of(maps / "grids", **options))


def test_parts_have_layouts_of_their_own(maps: Path) -> None:
    rows, grids, even = maps / "rows", maps / "grids", maps / "even"
    dataset = to_tf_dataset(
        {"a": rows, "b": grids, "c": even},
        SIZE,
        layout={"a": "padded", "b": "ragged"},  # and what has none is ragged
        pad_value={"a": 5},
        with_lengths=True,
    )
    core = {"layout": {"a": "padded", "b": "jagged", "c": "jagged"}, "pad_value": {"a": 5}}
    check_all(dataset, epoch_of({"a": rows, "b": grids, "c": even}, **core))
    dataset = to_tf_dataset((rows, (grids, even)), SIZE, layout=("padded", ("ragged", "padded")), pad_value=(3, 0))
    core = {"layout": ("padded", ("jagged", "padded")), "pad_value": (3, 0)}
    check_all(dataset, epoch_of((rows, (grids, even)), **core))


USUAL = [
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16"),
    *("float32", "float64", "complex64", "complex128", ">i2", ">u4", ">i8", ">f2", ">f4", ">f8", ">c16"),
]
DENSE_ONLY = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2fnuz", "int4", "uint4"]


def any_bits(name: str, count: int) -> np.ndarray:
    """Values of every bit pattern, NaNs included."""
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    limit = 2 if name == "bool" else 8 if name in ("int4", "uint4") else 256
    return np.random.default_rng(7).integers(0, limit, count * dtype.itemsize, np.uint8).view(dtype)


@pytest.mark.parametrize("name", [*USUAL, *DENSE_ONLY])
def test_every_dtype_goes_over_bit_by_bit(tmp_path: Path, name: str) -> None:
    array = any_bits(name, 96).reshape(8, 4, 3)
    DenseMmap.from_ndarray(tmp_path / "dense", array, sync=False)
    RaggedMmap.from_lists(tmp_path / "ragged", [one[: k % 4 + 1] for k, one in enumerate(array)], sync=False)
    source: Any = {"memory": array, "dense": tmp_path / "dense", "padded": tmp_path / "ragged"}
    source |= {"ragged": tmp_path / "ragged"} if name in USUAL else {}
    core = {key: "padded" if key == "padded" else "jagged" for key in source}
    check_all(to_tf_dataset(source, 3, layout={"padded": "padded"}), epoch_of(source, 3, layout=core))
    check_all(to_tf_dataset(source), one_by_one(epoch_of(source, 3, layout="list")))


@pytest.mark.parametrize("name", ["bool", "int8", "int32", "int64", "float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("size", [None, SIZE])
def test_scalars_of_a_ragged_map_keep_their_dtype(tmp_path: Path, name: str, size: int | None) -> None:
    numbers = np.arange(5).astype(np.dtype(getattr(ml_dtypes, name, name)))
    RaggedMmap.from_lists(tmp_path / "numbers", [*numbers], sync=False)
    assert RaggedMmap(tmp_path / "numbers").dtype == numbers.dtype
    check_all(to_tf_dataset(tmp_path / "numbers", size), [*numbers] if size is None else [numbers[:4], numbers[4:]])


def one_by_one(batches: list[Any]) -> list[Any]:
    return [sample for batch in batches for sample in rows(batch)]


# -- samples ---------------------------------------------------------------------------------------------------------


@every_source
def test_samples_come_one_by_one_in_the_order_of_batches(maps: Path, make: Make) -> None:
    options = {"shuffle": True, "seed": 5}
    dataset = to_tf_dataset(make(maps), **options)
    for epoch in range(2):
        check_all(dataset, one_by_one(epoch_of(make(maps), layout="list", epoch=epoch, **options)))


def test_many_samples_come_one_by_one_and_keep_their_values(maps: Path) -> None:
    numbers, table = np.arange(600), np.arange(4800, dtype=np.float32).reshape(600, 8)
    found = list(to_tf_dataset((numbers, table), shuffle=True, seed=1))
    assert [int(number) for number, _ in found] == np.concatenate(epoch_of(numbers, 7, shuffle=True, seed=1)).tolist()
    for number, row in found:
        check_same(row, table[number])


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("n", [23, 700])
def test_readers_of_samples_get_every_sample(n: int, count: int) -> None:
    datasets = [to_tf_dataset(np.arange(n), shuffle=True, seed=1, shard=ReaderShard(k, count)) for k in range(count)]
    found = [[int(sample) for sample in dataset] for dataset in datasets]
    assert [len(part) for part in found] == [-(-n // count)] * count == [dataset.cardinality() for dataset in datasets]
    assert {sample for part in found for sample in part} == {*range(n)}  # with -n % count of them twice


# -- readers ---------------------------------------------------------------------------------------------------------


def as_lists(batch: Any) -> list[Any]:
    return batch.to_list() if isinstance(batch, tf.RaggedTensor) else batch.numpy().tolist()


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("name", ["rows", "points", "texts"])
def test_the_parts_of_all_readers_are_the_batches_of_one(maps: Path, name: str, drop_remainder: bool) -> None:
    options = {"shuffle": True, "seed": 2, "drop_remainder": drop_remainder}
    whole = [as_lists(batch) for batch in to_tf_dataset(maps / name, 6, **options)]
    parts = [to_tf_dataset(maps / name, 6, shard=ReaderShard(k, 3), **options) for k in range(3)]
    assert [part.cardinality() for part in parts] == [len(whole)] * 3
    for batch, *found in zip(whole, *parts, strict=True):
        joined = [sample for part in found for sample in as_lists(part)]
        assert joined[: len(batch)] == batch
        assert len({len(as_lists(part)) for part in found}) == 1
        assert joined[len(batch) :] == whole[0][: -len(batch) % 3]  # filled up with what the epoch began with
        assert not drop_remainder or [part.shape[0] for part in found] == [2, 2, 2]


# -- functions -------------------------------------------------------------------------------------------------------


def test_what_a_transform_makes_is_stacked(maps: Path) -> None:
    dataset = to_tf_dataset(maps / "rows", SIZE, transform=lambda row: {"sum": row.sum(), "text": f"{len(row)} ß"})
    expected = [{"sum": row.sum(), "text": f"{len(row)} ß"} for row in RAGGED["rows"]]
    found = [{"sum": int(s), "text": t.decode()} for b in dataset for s, t in zip(b["sum"], b["text"].numpy())]  # noqa: B905
    assert found == expected
    check_spec(dataset.element_spec, next(iter(dataset)))


@pytest.mark.parametrize("layout", ["ragged", "padded", {"a": "padded", "b": "ragged"}])
def test_a_transform_may_make_samples_of_several_shapes(maps: Path, layout: Any) -> None:
    def pieces(row: np.ndarray) -> dict[str, Any]:
        row += 1  # a copy, which it may change
        return {"a": row, "b": np.outer(row, row[:2])}

    core = {"ragged": "jagged", "padded": "padded"}
    expected = core[layout] if isinstance(layout, str) else {key: core[value] for key, value in layout.items()}
    dataset = to_tf_dataset(maps / "rows", SIZE, transform=pieces, layout=layout, with_lengths=layout != "ragged")
    check_all(dataset, epoch_of(maps / "rows", transform=pieces, layout=expected))
    assert RAGGED["rows"][4].tolist() == open_map(maps / "rows")[4].tolist()


def test_a_batch_transform_gets_what_the_core_makes(maps: Path) -> None:
    source = {"j": maps / "rows", "p": maps / "grids", "t": maps / "texts", "d": maps / "points"}
    seen = []

    def inspect(batch: dict[str, Any]) -> Any:
        seen.append({key: type(part).__name__ for key, part in batch.items()})
        lengths = np.array([len(text) for text in batch["t"]])
        return (batch["j"], batch["p"], batch["t"], lengths), Pair(batch["p"].lengths, batch["d"][..., 0] * 2)

    layout = {"j": "ragged", "p": "padded"}
    dataset = to_tf_dataset(source, SIZE, layout=layout, batch_transform=inspect)
    expected = epoch_of(source, layout={"j": "jagged", "p": "padded"}, batch_transform=inspect)
    check_all(dataset, expected)
    assert all(kinds == {"j": "Jagged", "p": "Padded", "t": "list", "d": "ndarray"} for kinds in seen)


def test_both_functions_are_called_one_after_the_other(maps: Path) -> None:
    functions = {"transform": lambda row: row.sum(), "batch_transform": lambda sums: (sums, sums.max(keepdims=True))}
    check_all(to_tf_dataset(maps / "rows", SIZE, **functions), epoch_of(maps / "rows", layout="stack", **functions))


def test_samples_are_made_by_a_transform_one_by_one(maps: Path) -> None:
    def pieces(sample: Pair) -> tuple[Any, ...]:
        return sample.x[0] * 2.0, {"label": sample.y, "text": f"ß{sample.y}"}

    dataset = to_tf_dataset(Pair(maps / "points", maps / "labels"), transform=pieces)
    assert dataset.element_spec[0].shape == [3]
    check_all(dataset, [pieces(Pair(*both)) for both in zip(DENSE["points"], DENSE["labels"], strict=True)])


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_wrapper_fn_makes_the_samples(maps: Path, size: int | None) -> None:
    wrapped = open_map(maps / "rows", wrapper_fn=lambda row: {"sum": row.sum(), "text": f"{len(row)} ß"})
    source = (wrapped, open_map(maps / "texts", wrapper_fn=len), maps / "labels")
    expected = epoch_of(source, layout=("stack", "stack", "stack"))
    check_all(to_tf_dataset(source, size), expected if size else one_by_one(expected))


@pytest.mark.parametrize("layout", ["ragged", "padded"])
def test_a_wrapper_fn_may_make_samples_of_several_shapes(maps: Path, layout: str) -> None:
    wrapped = open_map(maps / "texts", wrapper_fn=lambda text: np.frombuffer(text.encode(), np.uint8))
    dataset = to_tf_dataset(wrapped, SIZE, layout=layout)
    check_all(dataset, epoch_of(wrapped, layout={"ragged": "jagged", "padded": "padded"}[layout]))
    if layout == "ragged":
        found = [bytes(row) for batch in dataset for row in batch.to_list()]
        assert found == [text.encode() for text in TEXTS]


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_keep_the_order(maps: Path, threads: int) -> None:
    source = np.arange(400)
    dataset = to_tf_dataset(source, SIZE, shuffle=True, transform=lambda n: n * 3 + np.zeros(2), threads=threads)
    found = np.concatenate([batch.numpy() for batch in dataset])
    check_array(found[:, 0], 3.0 * np.concatenate(epoch_of(source, shuffle=True)))


def test_batches_of_a_source_that_is_one_sample_long() -> None:
    (batch,) = to_tf_dataset((np.ones((1, 2)), np.zeros(1)), 64)
    check_same(batch, Batches((np.ones((1, 2)), np.zeros(1)), 64).batch(0, 0))


@pytest.mark.parametrize("size", [None, 2])
def test_check_refuses_what_is_damaged(tmp_path: Path, size: int | None) -> None:
    refuses_damage(lambda source, check: to_tf_dataset(source, size, check=check), tmp_path)
