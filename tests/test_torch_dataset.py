"""`MmapDataset`: the samples of maps of every kind as tensors, one by one and many at once."""

from __future__ import annotations

import pickle
import traceback
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch.utils.data import DataLoader  # noqa: E402

from meanwhile import flip, refuses_damage  # noqa: E402
from mmap_ninja import DenseMmap, RaggedMmap, StringsMmap, open_map, select, split, verify, windows  # noqa: E402
from mmap_ninja.errors import (  # noqa: E402
    ArgumentError,
    ArgumentTypeError,
    IndexTypeError,
    MapChangedError,
    MapCorruptError,
    MapNotFoundError,
    SampleIndexError,
)
from mmap_ninja_torch import MmapDataset  # noqa: E402
from torch_data import ARRAYS, COUNT, DENSE, SAMPLES, files, make_maps, same, tensor_of, tensors  # noqa: E402

LARGEST = 4000  # bytes of a pickle
Pair = namedtuple("Pair", "row label")


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by tests that only read."""
    return make_maps(tmp_path_factory.mktemp("maps"))


def everything(dataset: MmapDataset) -> list[Any]:
    return [dataset[i] for i in range(len(dataset))]


# -- what samples become ---------------------------------------------------------------------------------------------


def cut(rows: list[Any], length: int) -> list[Any]:
    """All windows of rows, one after the other."""
    return [row[at : at + length] for row in rows for at in range(0, len(row) - length + 1, length)]


ROWS, LABELS, TEXTS = tensors("rows"), tensors("labels"), tensors("texts")
Made = tuple[Any, list[Any]]  # a source, and what a dataset of it has to give
SOURCES: dict[str, Callable[[Path], Made]] = {
    **{name: lambda maps, name=name: (maps / name, tensors(name)) for name in SAMPLES},
    "path as a str": lambda maps: (str(maps / "rows"), ROWS),
    "map object": lambda maps: (open_map(maps / "rows", mode="c"), ROWS),
    "array": lambda maps: (DENSE["points"].copy(), tensors("points")),
    "array of numbers": lambda maps: (DENSE["labels"].copy(), LABELS),
    "dict": lambda maps: (
        {"row": maps / "rows", "text": maps / "texts", "label": DENSE["labels"].copy()},
        [dict(zip(("row", "text", "label"), parts, strict=True)) for parts in zip(ROWS, TEXTS, LABELS, strict=True)],
    ),
    "tuple": lambda maps: ((maps / "rows", maps / "labels"), list(zip(ROWS, LABELS, strict=True))),
    "named tuple": lambda maps: (Pair(maps / "rows", maps / "labels"), list(map(Pair, ROWS, LABELS))),
    "nested": lambda maps: (
        {"pair": Pair(maps / "rows", maps / "labels"), "more": ({"text": maps / "texts"},)},
        [
            {"pair": Pair(row, label), "more": ({"text": text},)}
            for row, label, text in zip(ROWS, LABELS, TEXTS, strict=True)
        ],
    ),
    "selection": lambda maps: (
        select(open_map(maps / "rows", mode="c"), [7, -1, 0, 7]),
        [ROWS[k] for k in (7, 12, 0, 7)],
    ),
    "dense selection": lambda maps: (
        select(open_map(maps / "points", mode="c"), slice(None, None, -2)),
        tensors("points")[::-2],
    ),
    "split": lambda maps: split_of(maps / "images"),
    "windows": lambda maps: (windows(open_map(maps / "rows", mode="c"), 2), cut(ROWS, 2)),
    "windows of a selection": lambda maps: (
        windows(select(open_map(maps / "clips", mode="c"), range(9)), 2),
        cut(tensors("clips")[:9], 2),
    ),
}
every_source = pytest.mark.parametrize("made", SOURCES.values(), ids=SOURCES)
every_copy = pytest.mark.parametrize("copy", [True, False], ids=["copy", "no copy"])


def split_of(path: Path) -> Made:
    part = split(open_map(path, mode="c"), (0.7, 0.3), seed=1)[0]
    return part, [tensor_of(SAMPLES[path.name][k]) for k in part.indices]


@every_copy
@every_source
def test_samples_are_those_that_were_stored(maps: Path, made: Callable[[Path], Made], copy: bool) -> None:
    source, expected = made(maps)
    dataset = MmapDataset(source, copy=copy)
    assert len(dataset) == len(expected) > 0
    assert same(everything(dataset), expected)
    assert same([dataset[-k - 1] for k in range(len(dataset))], expected[::-1])


@every_copy
@every_source
def test_many_samples_at_once_are_what_they_are_one_by_one(
    maps: Path, made: Callable[[Path], Made], copy: bool
) -> None:
    source, expected = made(maps)
    dataset = MmapDataset(source, copy=copy)
    for indices in ([], [0], range(len(dataset)), [-1, 0, 2, -2, 2], np.array([3, 1])):
        assert same(dataset.__getitems__(indices), [expected[k] for k in indices])
        assert same(dataset.__getitems__(indices), [dataset[k] for k in indices])


FROM_ML_DTYPES = ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]
DTYPES = [
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *(name for name in FROM_ML_DTYPES if hasattr(ml_dtypes, name) and hasattr(torch, name)),
    *(">i2", ">u4", ">i8", ">f2", ">f4", ">f8", ">c8", ">c16"),
]


def any_bits(dtype: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
    """Values of every bit pattern, NaNs included."""
    raw = np.random.default_rng(7).integers(0, 2 if dtype.kind == "b" else 256, count * dtype.itemsize, np.uint8)
    return raw.view(dtype)


def bits(tensor: Any) -> bytes:
    raw: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return raw


@every_copy
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_that_torch_has_goes_over_bit_by_bit(tmp_path: Path, name: str, copy: bool) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)
    array = any_bits(dtype, 24).reshape(4, 2, 3)
    native = array if dtype.isnative else array.byteswap().view(dtype.newbyteorder("="))
    DenseMmap.from_ndarray(tmp_path / "dense", array, sync=False)
    DenseMmap.from_ndarray(tmp_path / "numbers", array[:, 0, 0], sync=False)
    RaggedMmap.from_lists(tmp_path / "ragged", [*array], sync=False)
    RaggedMmap.from_lists(tmp_path / "scalars", [*array[:, :1, 0].reshape(4)], sync=False)
    expected = {"dense": native, "ragged": native, "numbers": native[:, 0, 0], "scalars": native[:, 0, 0]}
    for key, values in expected.items():
        dataset = MmapDataset(tmp_path / key, copy=copy)
        for samples in (everything(dataset), dataset.__getitems__(range(4))):
            assert [sample.dtype for sample in samples] == [getattr(torch, dtype.name)] * 4
            assert [tuple(sample.shape) for sample in samples] == [values.shape[1:]] * 4
            assert [bits(sample) for sample in samples] == [value.tobytes() for value in values]


UNKNOWN = {
    "datetime64": np.array(["2020-01-01", "2021-01-01"], "M8[D]"),
    "timedelta64": np.arange(2).astype("m8[s]"),
    "structured": np.zeros(2, [("x", "f4"), ("y", "i4")]),
    "texts": np.array(["a", "bc"]),
    "byte strings": np.array([b"a", b"bc"]),
    "int4": np.array([1, -2], ml_dtypes.int4),  # torch has the name, but no operation
}


@pytest.mark.parametrize("array", UNKNOWN.values(), ids=UNKNOWN)
def test_a_dtype_that_torch_lacks_is_refused_at_once_and_works_with_a_wrapper_fn(tmp_path: Path, array: Any) -> None:
    DenseMmap.from_ndarray(tmp_path / "dense", array, sync=False)
    RaggedMmap.from_lists(tmp_path / "ragged", [array, array], sync=False)
    for part in (tmp_path / "dense", tmp_path / "ragged", array):
        with pytest.raises(ArgumentTypeError, match=r"^source: torch has no dtype for .*wrapper_fn"):
            MmapDataset(part)
        with pytest.raises(ArgumentTypeError, match=r"^source\['b'\]: torch has no dtype for .*wrapper_fn"):
            MmapDataset({"a": np.zeros(2), "b": part})
        dataset = MmapDataset((np.zeros(2), part), (None, np.array2string))
        assert dataset[1] == (torch.tensor(0.0, dtype=torch.float64), np.array2string(open_or(part)[1]))


def open_or(part: Any) -> Any:
    return open_map(part) if isinstance(part, Path) else part


# -- memory of their own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARRAYS)
def test_writing_into_a_tensor_changes_neither_the_file_nor_what_is_read_later(tmp_path: Path, name: str) -> None:
    make_maps(tmp_path, name)
    before, dataset = files(tmp_path), MmapDataset(tmp_path / name)
    for sample in [*everything(dataset), *dataset.__getitems__(range(COUNT))]:
        sample.fill_(99)
    assert same(everything(dataset), tensors(name))
    assert same(dataset.__getitems__(range(COUNT)), tensors(name))
    assert files(tmp_path) == before


def test_an_array_in_memory_is_not_changed_either() -> None:
    array = np.zeros((4, 2))
    dataset = MmapDataset(array)
    dataset[0].fill_(1)
    dataset.__getitems__([1, 1])[0].fill_(1)
    assert not array.any()


@pytest.mark.parametrize("name", ARRAYS)
def test_the_same_sample_twice_is_two_tensors(maps: Path, name: str) -> None:
    first, second = MmapDataset(maps / name).__getitems__([7, 7])
    assert first.numel() > 0
    first.fill_(99)
    assert same(second, tensors(name)[7])


def test_samples_that_are_kept_stay_what_they_are(tmp_path: Path) -> None:
    """Though memory that nobody has any more is used again."""
    array = np.arange(8 * 40_000).reshape(8, 40_000)
    DenseMmap.from_ndarray(tmp_path / "dense", array, sync=False)
    RaggedMmap.from_lists(tmp_path / "ragged", [*array], sync=False)
    for name in ("dense", "ragged"):
        dataset = MmapDataset(tmp_path / name)
        kept = [dataset.__getitems__([k, (k + 1) % 8])[0] for k in range(8)]
        assert same(kept, [torch.from_numpy(row.copy()) for row in array])


def test_a_tensor_outlives_dataset_and_map(tmp_path: Path) -> None:
    make_maps(tmp_path, "points")
    m = open_map(tmp_path / "points")
    dataset = MmapDataset(m)
    kept = [dataset[3], *dataset.__getitems__([4])]
    m.close()
    del dataset
    assert same(kept, tensors("points")[3:5])


# -- copy=False ------------------------------------------------------------------------------------------------------

SHARED = ["rows", "clips", "grids", "images", "halves", "points"]  # arrays of the machine's byte order


@pytest.mark.parametrize("name", SHARED)
def test_without_a_copy_writes_are_seen_by_later_reads_and_never_by_the_file(tmp_path: Path, name: str) -> None:
    make_maps(tmp_path, name)
    before, expected = files(tmp_path), tensors(name)
    dataset = MmapDataset(tmp_path / name, copy=False)
    sample = dataset[7]
    assert sample.numel() > 0
    assert sample.data_ptr() == dataset[7].data_ptr() == dataset.__getitems__([0, 7])[1].data_ptr()
    sample.fill_(99)
    expected[7] = torch.full_like(expected[7], 99)
    assert same(everything(dataset), expected)
    assert same(dataset.__getitems__(range(COUNT)), expected)
    for other in (MmapDataset(tmp_path / name), MmapDataset(tmp_path / name, copy=False)):
        assert same(everything(other), tensors(name))
    assert np.array_equal(open_map(tmp_path / name)[7], SAMPLES[name][7])
    assert verify(tmp_path / name) == []
    assert files(tmp_path) == before


def test_a_map_opened_copy_on_write_is_shared_with_the_dataset(maps: Path) -> None:
    m = open_map(maps / "points", mode="c")
    MmapDataset(m, copy=False)[2].fill_(-1)
    assert (m[2] == -1).all()
    MmapDataset(m)[3].fill_(-1)
    assert np.array_equal(m[3], DENSE["points"][3])


@pytest.mark.parametrize("view", [lambda m: m, lambda m: select(m, [2, 1]), lambda m: windows(m, 1)])
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_without_a_copy_maps_have_to_be_opened_copy_on_write(maps: Path, view: Any, mode: str) -> None:
    source = view(open_map(maps / "points", mode=mode))
    with pytest.raises(ArgumentError, match=r'copy=False needs paths, or maps .* mode="c"; source is none'):
        MmapDataset(source, copy=False)
    with pytest.raises(ArgumentError, match=r"source\['b'\] is none"):
        MmapDataset({"b": source}, copy=False)
    assert len(MmapDataset(source)) == len(source)


def test_without_a_copy_an_array_that_is_read_only_is_refused() -> None:
    array = np.zeros((2, 2))
    array.flags.writeable = False
    with pytest.raises(ArgumentError, match="copy=False"):
        MmapDataset(array, copy=False)
    assert same(MmapDataset(array)[0], torch.zeros(2, dtype=torch.float64))


def test_without_a_copy_a_pickled_dataset_begins_with_what_is_in_the_file(maps: Path) -> None:
    dataset = MmapDataset(maps / "points", copy=False)
    dataset[0].fill_(99)
    again = pickle.loads(pickle.dumps(dataset))
    assert same(everything(again), tensors("points"))
    again[1].fill_(98)
    assert again[1].unique().tolist() == [98]
    assert same(dataset[1], tensors("points")[1])


def one_more(sample: Any) -> Any:
    return sample.add_(1)


def test_without_a_copy_a_forked_worker_writes_for_itself(tmp_path: Path) -> None:
    make_maps(tmp_path, "points")
    before, points = files(tmp_path), torch.from_numpy(DENSE["points"])
    dataset = MmapDataset(tmp_path / "points", transform=one_more, copy=False)
    loader = DataLoader(
        dataset, COUNT, num_workers=1, multiprocessing_context="fork", persistent_workers=True, timeout=60
    )
    for epoch in (1, 2):
        assert same(list(loader), [points + epoch])
    assert same(dataset[0], points[0] + 1)
    assert files(tmp_path) == before


# -- functions -------------------------------------------------------------------------------------------------------


def doubled(value: Any) -> Any:
    return value * 2


def test_a_wrapper_fn_gets_what_numpy_has_and_makes_the_sample(maps: Path) -> None:
    for name, samples in SAMPLES.items():
        seen: list[Any] = []
        dataset = MmapDataset(maps / name, lambda value, seen=seen: (seen.append(value), "made")[1])
        assert dataset[3] == "made"
        assert dataset.__getitems__([0, -1]) == ["made", "made"]
        for value, expected in zip(seen, (samples[3], samples[0], samples[-1]), strict=True):
            assert not isinstance(value, torch.Tensor)
            assert np.array_equal(value, expected)


@pytest.mark.parametrize("name", ["rows", "points", "big"])
def test_the_array_that_a_wrapper_fn_gets_is_its_own(maps: Path, name: str) -> None:
    def ruin(array: Any) -> Any:
        array[...] = 99
        return 0

    ruined = MmapDataset(maps / name, ruin)
    ruined[4], ruined.__getitems__([5])
    assert same(everything(MmapDataset(maps / name)), tensors(name))
    assert same([ruined[4], *ruined.__getitems__([4])], [0, 0])


def test_parts_have_wrapper_functions_of_their_own(maps: Path) -> None:
    source = {"row": maps / "rows", "pair": Pair(maps / "labels", maps / "texts")}
    dataset = MmapDataset(source, {"row": np.sum, "pair": (None, len)})
    expected = [
        {"row": row.sum(), "pair": Pair(torch.tensor(label), len(text))}
        for row, label, text in zip(SAMPLES["rows"], SAMPLES["labels"].copy(), SAMPLES["texts"], strict=True)
    ]
    assert same(everything(dataset), expected)
    assert same(dataset.__getitems__(range(COUNT)), expected)
    pair = MmapDataset((maps / "rows", maps / "texts"), (None, len))
    assert same(everything(pair), list(zip(ROWS, map(len, SAMPLES["texts"]), strict=True)))


WRONG = {
    "no function": (
        lambda maps: maps / "rows",
        3,
        ArgumentTypeError,
        "wrapper_fn for source is 3, expected a function",
    ),
    "dict for a map": (lambda maps: maps / "rows", {"a": len}, ArgumentTypeError, "expected a function"),
    "function for a dict": (lambda maps: {"a": maps / "rows"}, len, ArgumentTypeError, "transform gets the whole"),
    "unknown key": (lambda maps: {"a": maps / "rows"}, {"b": len}, ArgumentError, r"for 'b', .* are \['a'\]"),
    "too many": (lambda maps: (maps / "rows",), (len, len), ArgumentError, r"for 1, .* are \[0\]"),
    "number in a dict": (lambda maps: {"a": maps / "rows"}, {"a": 3}, ArgumentTypeError, r"for source\['a'\] is 3"),
    "nested": (lambda maps: {"a": (maps / "rows",)}, {"a": (3,)}, ArgumentTypeError, r"for source\['a'\]\[0\] is 3"),
}


@pytest.mark.parametrize(("source", "given", "error", "words"), WRONG.values(), ids=WRONG)
def test_wrong_wrapper_functions_are_refused(maps: Path, source: Any, given: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        MmapDataset(source(maps), given)


def test_a_map_that_was_opened_with_a_wrapper_fn_keeps_it(maps: Path) -> None:
    for name in ("rows", "points", "halves"):
        dataset = MmapDataset(open_map(maps / name, wrapper_fn=doubled))
        expected = [tensor_of(sample * 2) for sample in SAMPLES[name]]
        assert same(everything(dataset), expected)
        assert same(dataset.__getitems__([3, -1]), [expected[3], expected[-1]])
        both = MmapDataset(open_map(maps / name, wrapper_fn=doubled), doubled)
        assert np.array_equal(both[4], SAMPLES[name][4] * 4)
    shouted = MmapDataset(open_map(maps / "texts", wrapper_fn=str.upper))
    assert everything(shouted) == [text.upper() for text in SAMPLES["texts"]]


def test_a_map_of_unknown_values_is_read_by_the_wrapper_fn_that_it_was_opened_with(tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "days", np.arange(3).astype("M8[D]"))
    dataset = MmapDataset(open_map(tmp_path / "days", wrapper_fn=lambda day: day.astype(np.int64)))
    assert same(everything(dataset), [torch.tensor(k) for k in range(3)])


def test_a_transform_gets_whole_samples_of_tensors(maps: Path) -> None:
    def total(sample: Any) -> Any:
        return {"sum": sample["row"].sum() + sample["label"], "text": sample["text"]}

    source = {"row": maps / "rows", "label": maps / "labels", "text": maps / "texts"}
    dataset = MmapDataset(source, {"text": str.upper}, total)
    expected = [
        {"sum": row.sum() + label, "text": text.upper()} for row, label, text in zip(ROWS, LABELS, TEXTS, strict=True)
    ]
    assert same(everything(dataset), expected)
    assert same(dataset.__getitems__([5, 0, -1]), [expected[5], expected[0], expected[-1]])


def test_a_transform_has_to_be_a_function(maps: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="transform is 3, expected a function"):
        MmapDataset(maps / "rows", transform=3)


# -- pickles ---------------------------------------------------------------------------------------------------------


@every_copy
def test_a_pickle_is_small_whatever_the_number_of_samples(tmp_path: Path, copy: bool) -> None:
    sizes = []
    for count in (10, 100_000):
        folder = tmp_path / str(count)
        RaggedMmap.from_lists(folder / "rows", [np.zeros(2)] * count, sync=False)
        DenseMmap.from_ndarray(folder / "points", np.zeros((count, 3)), sync=False)
        StringsMmap.from_strings(folder / "texts", ["text"] * count, sync=False)
        source = {"row": folder / "rows", "pair": Pair(folder / "points", folder / "texts")}
        view = split(open_map(folder / "rows", mode="c"), (0.5, 0.5))[0]
        for dataset in (
            MmapDataset(source, {"row": np.sum}, dict, copy=copy),
            MmapDataset((view, windows(view, 2)), copy=copy),
        ):
            dataset[0]
            sizes.append(len(pickle.dumps(dataset)))
    assert max(sizes) < LARGEST
    assert sizes[2:] == pytest.approx(sizes[:2], abs=60)


@every_copy
@every_source
def test_a_pickled_dataset_is_the_same(maps: Path, made: Callable[[Path], Made], copy: bool) -> None:
    source, expected = made(maps)
    assert same(everything(pickle.loads(pickle.dumps(MmapDataset(source, copy=copy)))), expected)


def test_a_pickled_dataset_has_the_samples_that_it_had_when_the_map_has_grown(tmp_path: Path) -> None:
    make_maps(tmp_path, "rows", "labels")
    dataset = MmapDataset({"row": tmp_path / "rows", "label": tmp_path / "labels"})
    raw = pickle.dumps(dataset)
    open_map(tmp_path / "rows").append([1])
    again = pickle.loads(raw)
    assert len(again) == len(dataset) == COUNT
    assert same(everything(again), [{"row": row, "label": label} for row, label in zip(ROWS, LABELS, strict=True)])


@every_copy
def test_a_pickle_of_a_map_that_was_replaced_is_an_error(tmp_path: Path, copy: bool) -> None:
    make_maps(tmp_path, "rows")
    dataset = MmapDataset({"row": tmp_path / "rows"}, copy=copy)
    raw = pickle.dumps(dataset)
    RaggedMmap.from_lists(tmp_path / "rows", [np.zeros(1, np.int32)] * COUNT)
    sent = pickle.loads(raw)
    with pytest.raises(MapChangedError, match="was replaced"):
        sent[3]
    assert same(dataset[3], {"row": ROWS[3]})


# -- bad input -------------------------------------------------------------------------------------------------------


def test_maps_of_unequal_length_are_refused(maps: Path) -> None:
    with pytest.raises(ArgumentError, match=r"source\['a'\] has 13, source\['b'\]\[0\] has 4"):
        MmapDataset({"a": maps / "rows", "b": (np.zeros(4),)})


def test_a_path_without_a_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MapNotFoundError, match=r"there is no map at .*nothing"):
        MmapDataset({"a": tmp_path / "nothing"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", [3, None, {}, (), ["rows"], np.array(3), {"a": [1, 2]}], ids=str)
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="expected a map, a view or the path of one, an array, or a dict or"):
        MmapDataset(source)


@every_source
def test_an_index_out_of_range_is_an_index_error(maps: Path, made: Callable[[Path], Made]) -> None:
    dataset = MmapDataset(made(maps)[0])
    n = len(dataset)
    for index in (n, -n - 1, 10**6):
        with pytest.raises(IndexError, match=str(index)):
            dataset[index]
        with pytest.raises(IndexError, match=str(index)):
            dataset.__getitems__([0, index])


def test_a_loop_over_a_dataset_ends(maps: Path) -> None:
    assert same(list(MmapDataset(maps / "rows")), ROWS)


@every_copy
def test_an_empty_map_is_an_empty_dataset(tmp_path: Path, copy: bool) -> None:
    RaggedMmap.from_lists(tmp_path / "rows", [])
    DenseMmap.from_ndarray(tmp_path / "points", np.zeros((0, 3)))
    for source in (tmp_path / "rows", tmp_path / "points", {"a": tmp_path / "points"}, np.zeros((0, 2))):
        dataset = MmapDataset(source, copy=copy)
        assert len(dataset) == 0
        assert dataset.__getitems__([]) == []
        with pytest.raises(IndexError, match="0"):
            dataset[0]
    assert list(DataLoader(MmapDataset(tmp_path / "points", copy=copy), 2)) == []


def test_an_index_that_is_no_integer_is_refused(maps: Path) -> None:
    for name in ("rows", "points", "texts"):
        for index in ("a", 1.0, None):
            with pytest.raises(TypeError, match="integer"):
                MmapDataset(maps / name)[index]


def test_the_error_of_an_index_is_that_of_maps(maps: Path) -> None:
    with pytest.raises(SampleIndexError, match="index 13 is out of range for a map of 13 samples"):
        MmapDataset({"a": maps / "rows"})[13]


def test_it_says_what_it_is_made_of(maps: Path) -> None:
    assert repr(MmapDataset({"a": maps / "rows"})).startswith("MmapDataset({'a': <RaggedMmap '")


@pytest.mark.parametrize("index", [slice(0, 2), [0, 1], np.array([0, 1]), None, "0"], ids=repr)
def test_a_sample_goes_by_one_integer(maps: Path, index: Any) -> None:
    with pytest.raises(IndexTypeError, match=r"indexed by one integer, not by .*; MmapLoader makes batches"):
        MmapDataset(maps / "rows")[index]


def test_check_refuses_what_is_damaged(tmp_path: Path) -> None:
    refuses_damage(MmapDataset, tmp_path)


def test_check_in_workers(tmp_path: Path) -> None:
    """They believe their parent, but compare what has changed since."""
    m = DenseMmap.from_ndarray(tmp_path / "map", np.arange(40_000.0).reshape(4, -1))
    loader = DataLoader(MmapDataset(m, check=True), 2, num_workers=1, multiprocessing_context="spawn")
    assert len(list(loader)) == 2
    flip(tmp_path / "map" / "data.npy", 100_000)
    with pytest.raises(MapCorruptError, match="damaged in 1 of 1 blocks"):
        list(loader)


# -- functions that raise what ends an iterator ------------------------------------------------------------------------


def stop_at(number: int, error: Exception) -> Callable[[Any], Any]:
    def function(sample: Any) -> Any:
        if int(np.asarray(sample)) == number:
            raise error
        return torch.as_tensor(np.asarray(sample))

    return function


@pytest.mark.parametrize("given", ["transform", "wrapper_fn"])
@pytest.mark.parametrize(
    ("batch_size", "num_workers", "copy"),
    [(None, 0, True), (None, 0, False), (1, 0, True), (4, 0, True), (4, 0, False), (4, 1, True)],
)
def test_a_function_that_stops_drops_no_sample(
    tmp_path: Path, given: str, batch_size: int | None, num_workers: int, copy: bool
) -> None:
    DenseMmap.from_ndarray(tmp_path / "m", np.arange(10))
    dataset = MmapDataset(tmp_path / "m", **{given: stop_at(6, StopIteration("enough"))}, copy=copy)
    loader = DataLoader(dataset, batch_size, num_workers=num_workers)
    with pytest.raises(RuntimeError, match="a function raised StopIteration") as caught:
        list(loader)
    told = "\n".join(traceback.format_exception(caught.value))
    assert "while making sample 6" in told
    assert "enough" in told


@pytest.mark.parametrize("error", [StopIteration("mine"), IndexError("mine")], ids=repr)
def test_a_loop_over_the_dataset_itself_goes_to_its_end(error: Exception) -> None:
    dataset = MmapDataset(np.arange(10))
    assert [int(sample) for sample in dataset] == list(range(10))
    assert [int(sample) for sample in reversed(dataset)] == list(range(10))[::-1]
    stopping = MmapDataset(np.arange(10), transform=stop_at(6, error))
    for loop in (iter(stopping), reversed(stopping)):
        with pytest.raises((RuntimeError, IndexError), match="mine"):
            list(loop)
