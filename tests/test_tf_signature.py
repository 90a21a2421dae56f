"""`to_tf_dataset`: what elements are like is known before the first one, and what cannot work is refused by then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="the adapter for TensorFlow needs it")

import adapter_data  # noqa: E402
from adapter_data import COUNT, DENSE, ROWS, SIZE, Pair  # noqa: E402
from mmap_ninja import DenseMmap, Padding, RaggedMmap, ReaderShard, StringsMmap, open_map  # noqa: E402
from mmap_ninja.errors import (  # noqa: E402
    ArgumentError,
    ArgumentTypeError,
    MapNotFoundError,
    SampleError,
    SampleTypeError,
)
from mmap_ninja_tf import to_tf_dataset  # noqa: E402
from tf_data import check_all, check_same, epoch_of  # noqa: E402

maps = adapter_data.maps


def tensor(dtype: Any, *shape: int | None) -> Any:
    return tf.TensorSpec(shape, dtype)


def ragged(dtype: Any, rank: int, *shape: int | None) -> Any:
    return tf.RaggedTensorSpec(shape, dtype, rank, tf.int64)


# -- of stored samples -----------------------------------------------------------------------------------------------

STORED: dict[str, tuple[str, int, list[int | None]]] = {  # the dtype, the axes that are ragged, and the shape
    "rows": ("int32", 1, [None]),
    "big rows": ("int32", 1, [None]),
    "long rows": ("int64", 1, [None]),
    "halves": ("bfloat16", 1, [None]),
    "clips": ("float32", 1, [None, 3]),
    "grids": ("float32", 2, [None, None]),
    "images": ("float32", 2, [None, None, 3]),
    "tails": ("float32", 1, [None, 2, 2]),
    "cubes": ("float32", 3, [None, None, None]),
    "even": ("float32", 1, [None, 3]),
    "numbers": ("float32", 0, []),
    "points": ("float32", 0, [2, 3]),
    "labels": ("int64", 0, []),
    "texts": ("string", 0, []),
    "files": ("string", 0, []),
}


@pytest.mark.parametrize("name", STORED)
def test_the_signature_is_that_of_the_map(maps: Path, name: str) -> None:
    dtype, rank, shape = STORED[name]
    assert to_tf_dataset(maps / name).element_spec == tensor(dtype, *shape)
    for count, drop in ((None, False), (SIZE, True)):
        of_batch = ragged(dtype, rank, count, *shape) if rank else tensor(dtype, count, *shape)
        assert to_tf_dataset(maps / name, SIZE, drop_remainder=drop).element_spec == of_batch
        padded = to_tf_dataset(maps / name, SIZE, layout="padded", drop_remainder=drop)
        assert padded.element_spec == tensor(dtype, count, *shape)


def test_parts_have_signatures_of_their_own(maps: Path) -> None:
    source = {"b": Pair(maps / "rows", DENSE["labels"]), "a": (maps / "texts",)}
    shard = ReaderShard(1, 2)
    dataset = to_tf_dataset(
        source, SIZE, layout={"b": ("padded", "ragged")}, with_lengths=True, drop_remainder=True, shard=shard
    )
    padded = {"values": tensor("int32", 2, None), "lengths": tensor("int64", 2)}
    assert dataset.element_spec == {"b": Pair(padded, tensor("int64", 2)), "a": (tensor("string", 2),)}
    assert type(dataset.element_spec["b"]) is Pair


@pytest.mark.parametrize(
    ("padding", "name", "shape"),
    [
        (Padding(length=6), "rows", [None, 6]),
        (Padding(length=(None, 5)), "grids", [None, None, 5]),
        (Padding(length=(5, 4, 3)), "images", [None, 5, 4, 3]),
        (Padding(multiple_of=8), "clips", [None, None, 3]),
        (Padding(multiple_of=(None, 8)), "clips", [None, None, 8]),
        (Padding(buckets=(8,)), "rows", [None, 8]),
        (Padding(buckets=(4, 8)), "rows", [None, None]),
    ],
)
def test_lengths_that_the_padding_says_are_static(maps: Path, padding: Padding, name: str, shape: list[Any]) -> None:
    dataset = to_tf_dataset(maps / name, SIZE, layout="padded", pad_value=padding)
    assert dataset.element_spec.shape.as_list() == shape
    check_all(dataset, epoch_of(maps / name, layout="padded", pad_value=padding))


@pytest.mark.parametrize("size", [None, SIZE])
def test_maps_without_samples_give_none(tmp_path: Path, size: int | None) -> None:
    StringsMmap.from_strings(tmp_path / "texts", [])
    dataset = to_tf_dataset({"t": tmp_path / "texts", "x": np.zeros((0, 3), np.int16)}, size)
    assert dataset.element_spec["x"] == (tensor("int16", 3) if size is None else tensor("int16", None, 3))
    check_all(dataset, [])
    assert int(dataset.repeat(3).cardinality()) == 0


# -- dtypes ----------------------------------------------------------------------------------------------------------

UNKNOWN = {
    "datetime64": np.array(["2020-01-01", "2021-01-01"], "M8[D]"),
    "timedelta64": np.arange(2).astype("m8[s]"),
    "structured": np.zeros(2, [("x", "f4"), ("y", "i4")]),
    "longdouble": np.ones(2, np.longdouble),
    "float8_e8m0fnu": np.ones(2, ml_dtypes.float8_e8m0fnu),
    "float8_e5m2": np.ones(2, ml_dtypes.float8_e5m2),  # which no graph of TensorFlow takes
}


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("array", UNKNOWN.values(), ids=UNKNOWN)
def test_a_dtype_that_tensorflow_lacks_is_refused_and_works_with_a_wrapper_fn(
    tmp_path: Path, array: Any, size: int | None
) -> None:
    DenseMmap.from_ndarray(tmp_path / "dense", array, sync=False)
    RaggedMmap.from_lists(tmp_path / "ragged", [array, array], sync=False)
    for part in (array, tmp_path / "dense", tmp_path / "ragged"):
        with pytest.raises(ArgumentTypeError, match=r"^source: TensorFlow has no .*wrapper_fn"):
            to_tf_dataset(part, size)
        with pytest.raises(ArgumentTypeError, match=r"^source\['b'\]\[0\]: TensorFlow has no .*wrapper_fn"):
            to_tf_dataset({"a": np.zeros(2), "b": (part,)}, size)
    wrapped = open_map(tmp_path / "dense", wrapper_fn=str)
    texts = [str(value).encode() for value in open_map(tmp_path / "dense")]
    found = [text for batch in to_tf_dataset(wrapped, size) for text in np.atleast_1d(batch.numpy())]
    assert found == texts
    made = to_tf_dataset(tmp_path / "dense", size, transform=str)
    assert [text for batch in made for text in np.atleast_1d(batch.numpy())] == texts


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int4"])
def test_a_dtype_that_ragged_tensors_lack_is_refused_and_works_padded(tmp_path: Path, name: str) -> None:
    rows = [np.ones(k).astype(getattr(ml_dtypes, name)) for k in (1, 3)]
    RaggedMmap.from_lists(tmp_path / "rows", rows, sync=False)
    check_all(to_tf_dataset(tmp_path / "rows", 2, layout="padded"), epoch_of(tmp_path / "rows", layout="padded"))
    check_all(to_tf_dataset(tmp_path / "rows"), rows)
    with pytest.raises(ArgumentTypeError, match=r"^source: .*padded"):
        to_tf_dataset(tmp_path / "rows", 2)


# -- columns ---------------------------------------------------------------------------------------------------------

X, Y, Z = (lambda: tensor("int32", None, 2)), (lambda: tensor("int64", None)), (lambda: tensor("float32", None, 2, 3))
CHOSEN: dict[str, tuple[Any, Any, Any]] = {
    "all": (None, None, lambda: {"x": X(), "y": Y(), "z": Z()}),
    "a column": ("x", None, X),
    "a list of one": (["x"], None, lambda: {"x": X()}),
    "some in an order of their own": (("z", "x"), None, lambda: {"z": Z(), "x": X()}),
    "labels of the rest": (None, "y", lambda: ({"x": X(), "z": Z()}, Y())),
    "a column and labels": ("x", "y", lambda: (X(), Y())),
    "lists of both": (["x", "z"], ["y"], lambda: ({"x": X(), "z": Z()}, {"y": Y()})),
    "a column that is a label too": ("x", ["x", "y"], lambda: (X(), {"x": X(), "y": Y()})),
}


@pytest.mark.parametrize("function", [None, "batch_transform", "transform"])
@pytest.mark.parametrize(("columns", "label_cols", "expected"), CHOSEN.values(), ids=CHOSEN)
def test_columns_are_chosen_by_name(columns: Any, label_cols: Any, expected: Any, function: str | None) -> None:
    source = {"x": np.arange(6, dtype=np.int32).reshape(3, 2), "y": np.arange(3), "z": DENSE["points"][:3]}
    functions = {function: lambda parts: parts} if function else {}
    dataset = to_tf_dataset(source, 2, columns=columns, label_cols=label_cols, **functions)
    assert dataset.element_spec == expected()

    def chosen(names: Any) -> Any:
        return source[names][:2] if isinstance(names, str) else {name: source[name][:2] for name in names}

    labels = [label_cols] if isinstance(label_cols, str) else label_cols or []
    features = chosen(columns or [name for name in source if name not in labels])
    check_same(next(iter(dataset)), features if label_cols is None else (features, chosen(label_cols)))


def test_samples_have_columns_too() -> None:
    source = {"x": np.arange(3.0), "y": np.arange(3)}
    assert [(float(x), int(y)) for x, y in to_tf_dataset(source, columns="x", label_cols="y")] == [
        (0, 0),
        (1, 1),
        (2, 2),
    ]


def test_parts_that_are_not_wanted_are_not_read() -> None:
    source = {"x": np.arange(3.0), "when": UNKNOWN["datetime64"][[0, 0, 1]]}
    assert to_tf_dataset(source, 2, columns="x").element_spec == tensor("float64", None)
    with pytest.raises(ArgumentTypeError, match=r"^source\['when'\]"):
        to_tf_dataset(source, 2, columns=["x", "when"])


# -- what is refused before the first batch --------------------------------------------------------------------------

PARTS = {"x": np.zeros(3), "y": np.zeros(3)}
MIXED = [np.zeros((2,) * (k % 3)) for k in range(6)]
REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (PARTS, {"columns": "z"}, ArgumentError, "no column 'z'; there are 'x', 'y'"),
    (PARTS, {"columns": ["x", "w"]}, ArgumentError, "no column 'w'"),
    (PARTS, {"label_cols": "z"}, ArgumentError, "no column 'z'"),
    (PARTS, {"columns": []}, ArgumentTypeError, r"columns is \[\], expected the name"),
    (PARTS, {"label_cols": 3}, ArgumentTypeError, "label_cols is 3, expected the name"),
    (PARTS, {"columns": ["x", 0]}, ArgumentTypeError, "columns is"),
    ((np.zeros(3),), {"columns": "x"}, ArgumentError, "names of parts of a dict, and there is a tuple"),
    (np.zeros(3), {"label_cols": "x"}, ArgumentError, "names of parts of a dict"),
    ((np.zeros(3), np.zeros(4)), {}, ArgumentError, r"maps of one length: source\[0\] has 3, source\[1\] has 4"),
    ({"x": "rows", "y": np.zeros(4)}, {}, ArgumentError, "maps of one length"),
    ("nowhere", {}, MapNotFoundError, "nowhere"),
    ("mixed", {}, ArgumentError, "^source: .*number of axes"),
    ("mixed", {"layout": "padded"}, ArgumentError, "^source: .*number of axes"),
    ("none", {"transform": len}, ArgumentError, "no samples.*output_signature"),
    ("none", {}, ArgumentError, "no samples"),
    ([1, 2], {}, ArgumentTypeError, "expected a map"),
    (np.array(["a", None], object), {}, ArgumentTypeError, "expected a map"),
    (np.array(3), {}, ArgumentTypeError, "expected a map"),
    ({}, {}, ArgumentTypeError, "expected a map"),
    ("rows", {"batch_size": 0}, ArgumentError, "batch_size is 0"),
    ("rows", {"batch_size": -1}, ArgumentError, "batch_size is -1"),
    ("rows", {"batch_size": 2.0}, ArgumentTypeError, "batch_size is 2.0"),
    ("rows", {"batch_size": "2"}, ArgumentTypeError, "batch_size is '2'"),
    ("rows", {"threads": 0}, ArgumentError, "threads is 0"),
    ("rows", {"threads": 1.5}, ArgumentTypeError, "threads is 1.5"),
    ("rows", {"prefetch": -2}, ArgumentError, "prefetch is -2"),
    ("rows", {"prefetch": "2"}, ArgumentTypeError, "prefetch is '2'"),
    ("rows", {"seed": -1}, ArgumentError, "seed is -1"),
    ("rows", {"shuffle": 2}, ArgumentTypeError, "shuffle is 2"),
    ("rows", {"drop_remainder": "no"}, ArgumentTypeError, "drop_remainder is 'no'"),
    ("rows", {"shard": (0, 2)}, ArgumentTypeError, r"shard is \(0, 2\), expected a ReaderShard"),
    ("rows", {"shard": ReaderShard(0, 3)}, ArgumentError, "batch_size is 4, which 3 readers cannot share"),
    ("rows", {"layout": "list"}, ArgumentError, "layout is 'list', expected one of 'ragged', 'padded', 'stack'"),
    ("rows", {"layout": "jagged"}, ArgumentError, "layout is 'jagged'"),
    ("rows", {"layout": 3}, ArgumentError, "layout is 3"),
    ("rows", {"layout": ("padded",)}, ArgumentError, "no dict or tuple"),
    (PARTS, {"layout": {"z": "padded"}}, ArgumentError, "layout has an entry for 'z'"),
    ("rows", {"pad_value": 1}, ArgumentError, "pad_value is for layout='padded'"),
    ("rows", {"layout": "padded", "pad_value": "x"}, ArgumentTypeError, "^source: pad_value"),
    ("rows", {"layout": "padded", "pad_value": Padding(length=(1, 2))}, ArgumentError, "^source: length"),
    ("rows", {"with_lengths": True}, ArgumentError, "with_lengths is for layout='padded'"),
    ("rows", {"transform": 3}, ArgumentTypeError, "transform is 3"),
    ("rows", {"transform": lambda row: None}, Exception, "NoneType"),
    ("rows", {"transform": lambda row: row}, SampleError, "shape.*'padded'"),
    ("rows", {"batch_transform": lambda batch: 5}, ArgumentTypeError, "an axis for its samples, not of 5"),
    ("rows", {"batch_transform": lambda batch: None}, SampleTypeError, "numbers or texts, got a NoneType"),
    ("rows", {"batch_transform": lambda batch: np.zeros(2, "M8[D]")}, ArgumentTypeError, "TensorFlow has no dtype"),
    ("rows", {"output_signature": 3}, ArgumentTypeError, "output_signature is 3"),
    ("rows", {"output_signature": {"a": "x"}}, ArgumentTypeError, r"output_signature\['a'\] is 'x'"),
    ("rows", {"batch_size": None, "layout": "padded"}, ArgumentError, "layout='padded' is for batches"),
    ("rows", {"batch_size": None, "drop_remainder": True}, ArgumentError, "drop_remainder is for batches"),
    ("rows", {"batch_size": None, "batch_transform": len}, ArgumentError, "batch_transform is for batches"),
    ("rows", {"batch_size": None, "with_lengths": True}, ArgumentError, "with_lengths is for batches"),
    ("rows", {"batch_size": None, "pad_value": 3}, ArgumentError, "pad_value is for"),
    ("rows", {"batch_size": None, "threads": 0}, ArgumentError, "threads is 0"),
    ("mixed", {"batch_size": None}, ArgumentError, "^source: .*number of axes"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refused")
    for name, rows in {"rows": ROWS, "mixed": MIXED, "none": []}.items():
        RaggedMmap.from_lists(folder / name, rows, sync=False)
    return folder


@pytest.mark.parametrize(("source", "options", "error", "text"), REFUSED)
def test_what_cannot_work_is_refused_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: Any, options: dict[str, Any], error: Any, text: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=text):
        to_tf_dataset(source, **{"batch_size": 4, **options})


# -- functions -------------------------------------------------------------------------------------------------------


def at(number: int, then: Any, otherwise: Any = lambda n: n) -> Any:
    """A function of a number, or of a batch of numbers, that does something else at one of them."""
    return lambda n: then(n) if np.max(n) >= number else otherwise(n)


def stop(_: Any) -> None:
    raise StopIteration("enough")


def fail(_: Any) -> None:
    raise ValueError("this one is odd")


DIFFER: dict[str, tuple[Any, str]] = {
    "shape": (lambda n: np.zeros((len(np.atleast_1d(n)), 2)), "shape"),
    "dtype": (lambda n: np.float32(n), "dtype float32 and shape .*signature says .*int64"),
    "parts": (lambda n: {"a": n}, "signature"),
    "kind": (lambda n: (n, n), "signature"),
}


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize(("then", "text"), DIFFER.values(), ids=DIFFER)
def test_a_function_that_makes_something_else_later_is_an_error_that_says_so(
    then: Any, text: str, size: int | None
) -> None:
    name = "transform" if size is None else "batch_transform"
    dataset = to_tf_dataset(np.arange(10), size, **{name: at(6, then)})
    with pytest.raises(tf.errors.OpError, match=f"SampleError: .*{text}"):
        list(dataset)


@pytest.mark.parametrize(("raising", "text"), [(stop, "StopIteration"), (fail, "ValueError: this one is odd")])
@pytest.mark.parametrize(
    ("size", "name"),
    [(2, "transform"), (2, "batch_transform"), (2, "wrapper_fn"), (None, "transform"), (None, "wrapper_fn")],
)
def test_an_error_of_a_function_never_is_a_shorter_epoch(
    tmp_path: Path, size: int | None, name: str, raising: Any, text: str
) -> None:
    function = at(507 if size is None else 15, raising)  # samples are read 256 at a time
    map_ = DenseMmap.from_ndarray(
        tmp_path / "m", np.arange(520 if size is None else 20), wrapper_fn=function if name == "wrapper_fn" else None
    )
    options = {} if name == "wrapper_fn" else {name: function}
    dataset = to_tf_dataset(map_, size, **options)
    for made in (dataset, dataset.repeat(2)):
        with pytest.raises(tf.errors.OpError, match=text) as error:
            list(made)
        assert not isinstance(error.value, tf.errors.OutOfRangeError)
    with pytest.raises(tf.errors.OpError, match=text):
        dataset.reduce(np.int64(0), lambda total, n: total + tf.reduce_sum(n))


def test_an_error_at_the_first_samples_is_raised_as_it_is() -> None:
    for size in (2, None):
        with pytest.raises(ValueError, match="this one is odd"):
            to_tf_dataset(np.arange(4), size, transform=fail)


def test_output_signature_is_taken_for_what_functions_make_and_they_are_not_called() -> None:
    def cut(numbers: np.ndarray) -> dict[str, Any]:
        return {"n": numbers[: numbers[0] % 3], "m": np.ones((len(numbers), numbers[0] + 1))}

    signature = {"n": tensor("int64", None), "m": tensor("float64", None, None)}
    dataset = to_tf_dataset(np.arange(10), 4, batch_transform=cut, output_signature=signature)
    assert dataset.element_spec == signature
    check_all(dataset, epoch_of(np.arange(10), batch_transform=cut))
    assert to_tf_dataset(np.arange(4), 2, transform=fail, output_signature=signature).element_spec == signature
    any_shape = to_tf_dataset(
        np.arange(9), transform=lambda n: np.zeros((n,) * (n % 3)), output_signature=tf.TensorSpec(None, tf.float64)
    )
    assert [tuple(sample.shape) for sample in any_shape] == [(n,) * (n % 3) for n in range(9)]


@pytest.mark.parametrize(
    "signature",
    [
        lambda: ragged("int64", 1, None, None),
        lambda: ragged("int32", 1, 3, None),
        lambda: ragged("int32", 2, None, None, None),
        lambda: tensor("int32", None, None),
        lambda: tf.TensorSpec(None, tf.int32),
        lambda: {"a": ragged("int32", 1, None, None)},
        lambda: (ragged("int32", 1, None, None),) * 2,
    ],
)
def test_an_output_signature_that_is_wrong_is_refused_at_once(maps: Path, signature: Any) -> None:
    with pytest.raises(SampleError, match=r" came, but the signature"):
        to_tf_dataset(maps / "rows", SIZE, output_signature=signature())


def test_row_splits_may_have_32_bits(maps: Path) -> None:
    spec = tf.RaggedTensorSpec([None, None], tf.int32, 1, tf.int32)
    narrow = list(to_tf_dataset(maps / "rows", SIZE, output_signature=spec))
    assert [batch.row_splits.dtype for batch in narrow] == [tf.int32] * len(narrow)
    wide = to_tf_dataset(maps / "rows", SIZE)
    assert [batch.to_list() for batch in narrow] == [batch.to_list() for batch in wide]


def test_only_the_first_axis_of_what_functions_make_may_change() -> None:
    options = {"transform": lambda n: np.zeros((n % 2, 3), np.float32)}
    of = {layout: to_tf_dataset(np.arange(6), 4, layout=layout, **options) for layout in ("padded", "ragged")}
    assert of["padded"].element_spec == tensor("float32", None, None, None)
    assert of["ragged"].element_spec == ragged("float32", 2, None, None, None)
    static = to_tf_dataset(np.arange(6), 4, drop_remainder=True, transform=lambda n: (n, str(n)))
    assert static.element_spec == (tensor("int64", 4), tensor("string", 4))
    assert to_tf_dataset(np.arange(COUNT), 4, batch_transform=lambda n: n[:, None]).element_spec == tensor(
        "int64", None, 1
    )
