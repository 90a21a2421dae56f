"""`take_jagged` and `take_padded` of every kind of map, against the samples one by one."""

import inspect
import itertools
import json
import pickle
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import strategies
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, open_map
from mmap_ninja._taking import JAGGED, LIST, Padding
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    IndexTypeError,
    MapClosedError,
    MapCorruptError,
    SampleError,
    SampleIndexError,
)
from old import run_old
from plain_reader import fields
from take_contract import check_jagged, check_padded, stored

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text("utf-8"))
CLASSES = {"dense": DenseMmap, "ragged": RaggedMmap, "bytes": BytesMmap, "strings": StringsMmap}
RNG = np.random.default_rng(11)
TEXTS = ["one", "", "zwölf", "🥧" * 5, "e", "six", "a longer one, which needs some room"]

quick = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
fresh = itertools.count()


def new(tmp_path):
    return tmp_path / str(next(fresh))


def rows(*sizes, dtype=np.int32):
    return [np.arange(size, dtype=dtype) + 100 * size for size in sizes]


def images(*shapes):
    return [RNG.integers(0, 256, shape, np.uint8) for shape in shapes]


RAGGED = {
    "rows": rows(3, 0, 5, 1, 5, 2, 9),
    "long rows": rows(3000, 10, 2500, 0, 4000, 3000),
    "floats": [row / 3 for row in rows(4, 2, 0, 7)],
    "big-endian rows": rows(3, 0, 5, dtype=">i2"),
    "images": images((4, 3, 3), (1, 7, 3), (0, 2, 3), (5, 5, 3)),
    "images of one width": images((4, 6, 3), (1, 6, 3), (0, 6, 3), (5, 6, 3)),
    "large images": images((40, 60, 3), (50, 45, 3), (20, 60, 3)),
    "large images of one width": images((40, 60, 3), (50, 60, 3), (20, 60, 3)),
    "images of one shape": images((4, 6, 3), (4, 6, 3), (4, 6, 3)),
    "four axes": [np.arange(np.prod(s), dtype=float).reshape(s) for s in ((1, 2, 3, 2), (2, 1, 1, 4), (1, 1, 0, 1))],
    "scalars": [3, -1, 7],
    "dates": [np.arange(n).astype("M8[D]") for n in (3, 1, 4)],
    "durations": [np.arange(n).astype("m8[ms]") for n in (3, 1, 4)],
    "bools": [np.ones(n, bool) for n in (3, 1, 4)],
    "complex": [np.arange(n) * 1j for n in (3, 1, 4)],
    "names": [np.array(["ab", "c", "d"][:n]) for n in (3, 1, 2)],
    "records": [np.array([(1, 2.5)] * n, [("a", "<i2"), ("b", ">f8")]) for n in (3, 1, 2)],
    "nothing": [np.zeros(0)] * 3,
}


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Maps of each kind, only to be read."""
    folder = tmp_path_factory.mktemp("taken")
    made = {name: RaggedMmap.from_lists(folder / name, samples, sync=False) for name, samples in RAGGED.items()}
    made["dense"] = DenseMmap.from_ndarray(folder / "dense", RNG.random((7, 2, 3)), sync=False)
    made["dense scalars"] = DenseMmap.from_ndarray(folder / "labels", np.arange(7), sync=False)
    made["dense of nothing"] = DenseMmap.from_ndarray(folder / "dense of nothing", np.zeros((4, 0, 2)), sync=False)
    for level in (None, 3):
        options = {"zstd_level": level, "sync": False}
        made[f"texts {level}"] = StringsMmap.from_strings(folder / f"texts {level}", TEXTS, **options)
        raw = [text.encode() for text in TEXTS]
        made[f"bytes {level}"] = BytesMmap.from_bytes(folder / f"bytes {level}", raw, **options)
    many = [f"{text} number {i}".ljust(60) for i in range(40) for text in TEXTS]
    made["texts with a dictionary"] = StringsMmap.from_strings(
        folder / "dictionary", many, zstd_level=3, zstd_train_dictionary_size=256, sync=False
    )
    return {name: type(m)(m.out_dir, mode="r") for name, m in made.items()}


NAMES = [
    *RAGGED,
    "dense",
    "dense scalars",
    "dense of nothing",
    *(f"{kind} {level}" for kind in ("texts", "bytes") for level in (None, 3)),
    "texts with a dictionary",
]
INDICES = {
    "one": lambda n: [n - 1],
    "in order": lambda n: range(n),
    "some in order": lambda n: slice(1, 3),
    "backwards": lambda n: slice(None, None, -1),
    "twice": lambda n: [0, 0, -1, 1, -n],
    "an array": lambda n: np.array([2, 0, 1], np.uint8),
    "a mask": lambda n: np.arange(n) % 2 == 0,
    "a list of bools": lambda n: [True] + [False] * (n - 1),
    "a generator": lambda n: iter([1, 2]),
}


def listed(index):
    """An iterator can be read only once."""
    return list(index) if hasattr(index, "__next__") else index


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("indices", INDICES)
def test_jagged(maps, name, indices):
    m, index = maps[name], INDICES[indices](len(maps[name]))
    if hasattr(index, "__next__"):
        assert m.take_jagged(index).values.tobytes() == m.take_jagged([1, 2]).values.tobytes()
        index = [1, 2]
    check_jagged(m, index)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padded(maps, name, indices, side):
    m, index = maps[name], listed(INDICES[indices](len(maps[name])))
    check_padded(m, index, side=side)
    if m.lengths.size and m.shapes.shape[1]:
        check_padded(m, index, side=side, multiple_of=4)
        check_padded(m, index, side=side, length=int(m.lengths.max()) + 3)
        check_padded(m, index, side=side, buckets=[1, 2, 6, 5000])


@pytest.mark.parametrize("side", ["right", "left"])
def test_each_axis_has_its_own_options(maps, side):
    for name in ("images", "images of one width", "large images", "dense"):
        m = maps[name]
        rest = (None,) * (m.shapes.shape[1] - 2)
        check_padded(m, [0, 2, 1], side=side, length=(64, 80, *rest))
        check_padded(m, [0, 2, 1], side=side, length=(None, 61, *rest))
        check_padded(m, [0, 2, 1], side=side, multiple_of=(None, 7, *rest))
        check_padded(m, [0, 2, 1], side=side, multiple_of=(8, 16, *rest))
        check_padded(m, [0, 2, 1], side=side, length=(99, None, *rest[:-1], *(4 for _ in rest[-1:])))


@pytest.mark.parametrize(
    ("name", "pad_value"),
    [
        ("rows", -1),
        ("rows", np.int64(7)),
        ("rows", np.array(2**31 - 1)),
        ("rows", 2.0),
        ("floats", float("nan")),
        ("floats", -0.0),
        ("big-endian rows", 258),
        ("images", 255),
        ("images of one width", 255),
        ("bools", True),
        ("complex", 1 - 2j),
        ("dates", np.datetime64("NaT", "D")),
        ("durations", np.timedelta64(5, "ms")),
        ("names", np.str_("xy")),
        ("records", np.array((7, 0.5), [("a", "<i2"), ("b", ">f8")])),
        ("texts None", 32),
        ("bytes 3", 255),
        ("dense", 0.5),
    ],
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_pad_values(maps, name, pad_value, side):
    check_padded(maps[name], [2, 0, 1], pad_value, side)
    check_padded(maps[name], [2, 0, 1], pad_value, side, length=60)


def test_zero_is_an_empty_value_of_every_dtype(maps):
    assert maps["dates"].take_padded([0, 1]).values[1, 1:].tolist() == [np.datetime64(0, "D").item()] * 2
    assert maps["names"].take_padded([0, 1]).values[1].tolist() == ["ab", "", ""]
    assert maps["records"].take_padded([0, 1]).values[1, 1].item() == (0, 0.0)
    assert maps["bools"].take_padded([0, 1]).values[1].tolist() == [True, False, False]


def test_what_it_is_for(maps):
    values, offsets, shapes = maps["rows"].take_jagged([0, 2])
    assert values.tolist() == [300, 301, 302, 500, 501, 502, 503, 504]
    assert (offsets.tolist(), shapes.tolist()) == ([0, 3, 8], [[3], [5]])
    values, lengths, shapes = maps["rows"].take_padded([0, 3], pad_value=-1, multiple_of=4)
    assert values.tolist() == [[300, 301, 302, -1], [100, -1, -1, -1]]
    assert (lengths.tolist(), shapes.tolist()) == ([3, 1], [[3], [1]])
    assert maps["rows"].take_padded([0, 3], side="left").values.tolist() == [[300, 301, 302], [0, 0, 100]]
    assert maps["scalars"].take_padded([2, 0]).values.tolist() == [7, 3]
    assert maps["scalars"].take_padded([2, 0]).lengths.tolist() == [1, 1]


# -- drawn ------------------------------------------------------------------------------------------------------------


def check_drawn(m, data):
    """Any index; padded in any way, where the samples have the same number of axes."""
    n = len(m)
    if n == 0:
        return
    index = data.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=6) | st.just(slice(None)))
    check_jagged(m, index)
    arrays = stored(m, index)
    if len({array.ndim for array in arrays}) > 1:
        with pytest.raises(SampleError, match="they have no padded shape in common; take_jagged takes them"):
            m.take_padded(index)
        return
    sides = st.sampled_from(["right", "left"])
    check_padded(m, index, side=data.draw(sides))
    if arrays[0].ndim:
        steps = tuple(data.draw(st.none() | st.integers(1, 4)) for _ in arrays[0].shape)
        check_padded(m, index, side=data.draw(sides), multiple_of=steps)
        limits = [max(axis) for axis in zip(*(array.shape for array in arrays), strict=True)]
        more = tuple(data.draw(st.sampled_from([None, limit, limit + 2])) for limit in limits)
        check_padded(m, index, side=data.draw(sides), length=more)
        check_padded(m, index, side=data.draw(sides), buckets=[0, 1, limits[0] + 2, limits[0] + 3])


@pytest.mark.parametrize("dtype", strategies.ALL, ids=str)
@quick
@given(data=st.data())
def test_any_arrays(tmp_path, dtype, data):
    axes = data.draw(st.none() | st.integers(0, 3))
    shape = strategies.shapes if axes is None else st.tuples(*[st.integers(0, 3)] * axes)
    arrays = data.draw(st.lists(strategies.arrays(dtype, shape), min_size=1, max_size=5))
    check_drawn(RaggedMmap.from_lists(new(tmp_path), arrays, sync=False), data)


@pytest.mark.parametrize("dtype", strategies.ALL, ids=str)
@quick
@given(data=st.data())
def test_any_dense_arrays(tmp_path, dtype, data):
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
    array = data.draw(strategies.arrays(dtype, st.just((3, *shape))))
    check_drawn(DenseMmap.from_ndarray(new(tmp_path), array, sync=False), data)


@settings(quick, max_examples=40)
@given(data=st.data(), texts=st.lists(st.text(max_size=9), min_size=1, max_size=6), level=st.sampled_from([None, 1]))
def test_any_texts(tmp_path, data, texts, level):
    check_drawn(StringsMmap.from_strings(new(tmp_path), texts, zstd_level=level, sync=False), data)


# -- more than fits into one join -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(5, 10), (3000, 5000), (5, 60)], ids=["joined", "one by one", "two axes"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_many_samples(tmp_path, sizes, side):
    sizes = RNG.integers(*sizes, (600, 2 if sizes == (5, 60) else 1))
    m = RaggedMmap.from_lists(new(tmp_path), [RNG.integers(0, 99, shape, np.uint8) for shape in sizes], sync=False)
    order = RNG.permutation(600)
    check_jagged(m, order)
    check_padded(m, order, 7, side)
    check_padded(m, order[:257], 7, side, multiple_of=64)


# -- no samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("rows", {}, (0, 0)),
        ("rows", {"length": 7}, (0, 7)),
        ("rows", {"multiple_of": 8}, (0, 0)),
        ("rows", {"buckets": [4, 9]}, (0, 4)),
        ("images", {}, (0, 0, 0, 0)),
        ("images", {"length": (7, None, 3)}, (0, 7, 0, 3)),
        ("scalars", {}, (0,)),
        ("dense", {}, (0, 2, 3)),
        ("dense", {"length": 7}, (0, 7, 3)),
        ("dense", {"length": 1}, (0, 1, 3)),  # of no samples, none is too long
        ("dense", {"length": (1, 2)}, (0, 1, 2)),
        ("dense", {"buckets": (1,)}, (0, 1, 3)),
        ("texts 3", {}, (0, 0)),
    ],
)
@pytest.mark.parametrize(
    "index", [[], range(0), slice(2, 2), np.zeros(7, bool)], ids=["list", "range", "slice", "mask"]
)
def test_no_indices(maps, name, options, shape, index):
    m = maps[name]
    index = index[: len(m)] if isinstance(index, np.ndarray) else index
    found = m.take_padded(index, **options)
    assert found.values.shape == shape
    assert found.values.dtype == m.dtype
    assert (found.lengths.shape, found.shapes.shape) == ((0,), (0, m.shapes.shape[1]))
    values, offsets, shapes = m.take_jagged(index)
    assert (values.shape, offsets.tolist(), shapes.shape) == ((0,), [0], (0, m.shapes.shape[1]))
    assert values.dtype == m.dtype


@pytest.mark.parametrize("kind", [RaggedMmap, DenseMmap, StringsMmap, BytesMmap])
def test_no_map(tmp_path, kind):
    m = kind(tmp_path / "none")
    assert m.take_jagged([]).values.shape == (0,)
    assert m.take_padded([]).values.shape in ((0,), (0, 0))
    assert m.take_padded([], length=5).values.shape == (0, 5)
    assert m.take_padded([], multiple_of=3).values.shape == (0, 0)
    for take in (m.take_jagged, m.take_padded):
        with pytest.raises(SampleIndexError, match="index 0 is out of range for a map of 0 samples"):
            take([0])
    assert list(tmp_path.iterdir()) == []


def test_an_empty_map_may_come_to_have_any_number_of_axes(tmp_path):
    assert RaggedMmap(tmp_path / "none").take_padded([], length=(4, 5)).values.shape == (0, 4, 5)
    assert RaggedMmap(tmp_path / "none").take_padded([], multiple_of=(4, 5, 6)).values.shape == (0, 0, 0, 0)


# -- stored values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows", "dense", "texts None", "bytes 3"])
def test_a_wrapper_is_left_out(maps, name):
    m = maps[name]
    wrapped = type(m)(m.out_dir, wrapper_fn=lambda sample: 1 / 0)
    assert wrapped.take_jagged([1, 0]).values.tobytes() == m.take_jagged([1, 0]).values.tobytes()
    assert wrapped.take_padded([1, 0]).values.tobytes() == m.take_padded([1, 0]).values.tobytes()


def test_the_file_is_never_written_to(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "map", rows(4, 4))
    for values in (m.take_jagged([0]).values, m.take_padded([0]).values, m.take_jagged([0, 1]).values):
        values += 1
    assert [row.tolist() for row in m] == [row.tolist() for row in rows(4, 4)]


# -- arguments that make no sense -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows", "dense", "texts None", "bytes 3"])
@pytest.mark.parametrize(
    ("index", "error", "match"),
    [
        ([0, 99], SampleIndexError, "index 99 is out of range for a map of 7 samples"),
        ([-8], SampleIndexError, "index -8 is out of range for a map of 7 samples"),
        ([2**70], SampleIndexError, f"index {2**70} is out of range"),
        ([0.5], IndexTypeError, "a map is indexed by integers"),
        (3, IndexTypeError, "a map is indexed by integers"),
        (None, IndexTypeError, "a map is indexed by integers"),
        (np.zeros(3, bool), SampleIndexError, "a boolean mask of 3 values for a map of 7 samples"),
    ],
)
def test_wrong_indices(maps, name, index, error, match):
    for take in (maps[name].take_jagged, maps[name].take_padded):
        with pytest.raises(error, match=match):
            take(index)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"side": "top"}, ArgumentError, "side is 'top', expected 'right' or 'left'"),
        ({"length": 9, "multiple_of": 4}, ArgumentError, "length and multiple_of contradict each other"),
        ({"length": 9, "buckets": [10]}, ArgumentError, "length and buckets contradict each other"),
        ({"multiple_of": 4, "buckets": [10]}, ArgumentError, "multiple_of and buckets contradict each other"),
        ({"length": -1}, ArgumentError, "length is -1, expected at least 0"),
        ({"length": 1.5}, ArgumentTypeError, "length is 1.5, expected an integer"),
        ({"length": True}, ArgumentTypeError, "length is True, expected an integer"),
        ({"length": "9"}, ArgumentTypeError, "length is '9', expected an integer"),
        ({"length": (9, 9)}, ArgumentError, r"length is \(9, 9\), expected one entry for each of the 1 axes"),
        ({"length": ()}, ArgumentError, r"length is \(\), expected one entry for each of the 1 axes"),
        ({"length": ((9,),)}, ArgumentTypeError, r"length is \(9,\), expected an integer"),
        ({"multiple_of": 0}, ArgumentError, "multiple_of is 0, expected at least 1"),
        ({"multiple_of": (0,)}, ArgumentError, "multiple_of is 0, expected at least 1"),
        ({"multiple_of": (4, 4)}, ArgumentError, r"multiple_of is \(4, 4\), expected one entry for each of the 1 axes"),
        ({"buckets": []}, ArgumentError, r"buckets is \[\], expected ascending lengths"),
        ({"buckets": [8, 4]}, ArgumentError, r"buckets is \[8, 4\], expected ascending lengths"),
        ({"buckets": [4, 4]}, ArgumentError, r"buckets is \[4, 4\], expected ascending lengths"),
        ({"buckets": [-1, 4]}, ArgumentError, "a bucket is -1, expected at least 0"),
        ({"buckets": [4, 8.5]}, ArgumentTypeError, "a bucket is 8.5, expected an integer"),
        ({"buckets": 8}, ArgumentTypeError, "buckets is 8, expected ascending lengths"),
        ({"buckets": "48"}, ArgumentTypeError, "buckets is '48', expected ascending lengths"),
        ({"pad_value": 0.5}, ArgumentError, "pad_value: the float64 value 0.5 cannot be stored exactly as int32"),
        (
            {"pad_value": 2**31},
            ArgumentError,
            "pad_value: the int64 value 2147483648 cannot be stored",
        ),
        (
            {"pad_value": None},
            ArgumentTypeError,
            "pad_value: a NoneType is no array of values",
        ),
        ({"pad_value": "x"}, ArgumentTypeError, "pad_value: a str is no array"),
        ({"pad_value": [1]}, ArgumentTypeError, r"pad_value: an array of shape \(1,\), expected a single value"),
    ],
)
def test_wrong_options(maps, options, error, match):
    with pytest.raises(error, match=match):
        maps["rows"].take_padded([0, 1], **options)


@pytest.mark.parametrize("options", [{"length": 3}, {"multiple_of": 3}, {"buckets": [3]}])
@pytest.mark.parametrize("name", ["scalars", "dense scalars"])
def test_scalars_have_no_axis_to_pad(maps, name, options):
    with pytest.raises(ArgumentError, match=f"{next(iter(options))} was given, but the samples are scalars"):
        maps[name].take_padded([0], **options)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        (
            "rows",
            {"length": 4},
            "sample 2 has length 5, more than the 4 that it would be padded to",
        ),
        ("rows", {"length": 0}, "sample 0 has length 3, more than the 0"),
        ("rows", {"buckets": [2, 4]}, "sample 2 has length 5, more than the 4"),
        ("images", {"length": (None, 6, None)}, "sample 1 has length 7 on axis 1, more than the 6"),
        ("images of one width", {"length": (None, None, 2)}, "sample 0 has length 3 on axis 2, more than the 2"),
        ("dense", {"length": 1}, "sample 0 has length 2, more than the 1"),
        ("texts None", {"length": 5}, "sample 2 has length 6, more than the 5"),
        ("texts 3", {"buckets": [5]}, "sample 2 has length 6, more than the 5"),
    ],
)
def test_nothing_is_cut_off(maps, name, options, match):
    for index in ([0, 1, 2], [-len(maps[name]), 1, 2]):
        with pytest.raises(SampleError, match=match):
            maps[name].take_padded(index, **options)


def test_samples_of_different_numbers_of_axes(tmp_path):
    mixed = [np.arange(3), np.zeros((2, 2), int), 7, np.zeros((0, 1), int), np.arange(2)]
    m = RaggedMmap.from_lists(tmp_path / "map", mixed)
    for index in (slice(None), [4, 2], [1, 1, 0]):
        check_jagged(m, index)
        with pytest.raises(SampleError, match=r"sample \d has \d axes, sample \d has \d: they have no padded shape"):
            m.take_padded(index)
    with pytest.raises(SampleError, match="sample 4 has 1 axes, sample 2 has 0: they have no padded shape in common"):
        m.take_padded([4, 2])
    for index in ([0, 4], [3, 1], [2, 2]):  # those that agree
        check_padded(m, index)


# -- one state of the map ---------------------------------------------------------------------------------------------


def test_a_handle_that_was_pickled_sees_what_it_saw(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "map", rows(3, 1, 2))
    again = pickle.dumps(m)
    m.extend(rows(5, 6))
    old = pickle.loads(again)
    assert len(old) == 3
    check_jagged(old, slice(None))
    check_padded(old, [-1, 0])
    for take in (old.take_jagged, old.take_padded):
        with pytest.raises(SampleIndexError, match="index 3 is out of range for a map of 3 samples"):
            take([3])


def test_a_closed_map(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "map", rows(3))
    found = m.take_jagged([0])
    m.close()
    for take in (m.take_jagged, m.take_padded):
        with pytest.raises(MapClosedError, match="was closed"):
            take([0])
    assert found.values.tolist() == [300, 301, 302]


@pytest.mark.parametrize("kind", ["ragged", "dense", "strings"])
def test_threads_that_extend(tmp_path, kind):
    """Every batch is of one state: indices from the end, lengths and values agree."""
    if kind == "dense":
        m = DenseMmap.from_ndarray(tmp_path / "map", np.zeros((1, 3), int))
        sample = lambda i: np.full(3, i)
    elif kind == "strings":
        m = StringsMmap.from_strings(tmp_path / "map", ["\0"])
        sample = lambda i: chr(i % 128) * (i % 5 + 1)
    else:
        m = RaggedMmap.from_lists(tmp_path / "map", [np.zeros(1, int)])
        sample = lambda i: np.full(i % 5 + 1, i)
    wrong, done, read = [], threading.Event(), [0, 0]

    def reading(number):
        take = (m.take_jagged, m.take_padded)[number]
        try:
            while not done.is_set() or not read[number]:
                whole = take(slice(None, None, -1))
                last = int(np.ravel(whole.values)[0])
                n = len(whole.shapes)
                if last != (n - 1) % (128 if kind == "strings" else 2**60):
                    wrong.append((n, last))
                read[number] += 1
        except BaseException as error:
            wrong.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    threads = [threading.Thread(target=reading, args=(number,)) for number in range(2)]
    try:
        for thread in threads:
            thread.start()
        for i in range(1, 60):
            m.append(sample(i), sync=False)
            if i % 7 == 0:
                m.refresh()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert wrong == []
    assert min(read) > 0
    assert len(m) == 60


def test_what_views_and_batches_build_on(maps):
    """One method for every layout, which fills the arrays that it is given."""
    given = []

    def empty(shape, dtype):
        given.append(np.full(int(np.prod(shape)) * dtype.itemsize, 0xAB, np.uint8).view(dtype).reshape(shape))
        return given[-1]

    for name in ("rows", "long rows", "images", "dense", "texts 3", "scalars", "dense scalars"):
        m = maps[name]
        assert m._gather([1, 0], JAGGED, empty).values is given.pop()
        assert m._gather([1, 0], JAGGED, empty).values.tobytes() == m.take_jagged([1, 0]).values.tobytes()
        assert m._gather([1, 0], Padding(), empty=empty).values is given[-1]
        assert given.pop().tobytes() == m.take_padded([1, 0]).values.tobytes()
        given.clear()
        listed = m._gather([1, 0], LIST, empty)
        if name.startswith("dense"):
            assert listed is given.pop()
            assert listed.tolist() == m.take([1, 0]).tolist()
        else:
            assert type(listed) is list
            assert list(map(str, listed)) == list(map(str, m.take([1, 0])))
        assert given == []
    wrapped = DenseMmap(maps["dense"].out_dir, wrapper_fn=np.negative)
    assert np.array_equal(wrapped._gather([1, 0], LIST), wrapped.take([1, 0]))


def test_the_signature_is_that_of_the_padding():
    parameters = list(inspect.signature(RaggedMmap.take_padded).parameters.values())[2:]
    assert [(p.name, p.default) for p in parameters] == [
        (p.name, p.default) for p in inspect.signature(Padding).parameters.values()
    ]


# -- maps of long ago -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(EXPECTED))
@pytest.mark.filterwarnings("ignore:the map at .* was never finished")
def test_golden_maps(name):
    expected = EXPECTED[name]
    m = CLASSES[expected["kind"]](GOLDEN / name, mode="r", **expected["keys"])
    n = len(m)
    for index in (slice(None), range(0, n, 2), [n - 1, 0, -1] if n else [], slice(None, None, -1), []):
        check_jagged(m, index)
        arrays = stored(m, index)
        if len({array.ndim for array in arrays}) > 1:
            with pytest.raises(SampleError, match="they have no padded shape in common"):
                m.take_padded(index)
        elif arrays:
            check_padded(m, index)
            check_padded(m, index, side="left")


MAKE_LARGE = """
import numpy as np
from mmap_ninja import RaggedMmap, StringsMmap, numpy
rng = np.random.default_rng(3)
RaggedMmap.from_lists("rows", [rng.integers(0, 99, n) for n in rng.integers(1, 40, 3000)])
shapes = rng.integers(1, 9, (3000, 3))
RaggedMmap.from_lists("images", [rng.integers(0, 99, shape).astype(np.uint8) for shape in shapes])
RaggedMmap.from_lists("mixed", [np.ones((2,) * (i % 3 + 1)) * i for i in range(3000)])
RaggedMmap.from_lists("numbers", [i if i % 2 else [i] * 3 for i in range(3000)])
StringsMmap.from_strings("strings", ["text %d" % i * (i % 5) for i in range(3000)])
StringsMmap.from_strings("zstd", ["text %d" % i * (i % 5 + 1) for i in range(300)], zstd_level=3)
numpy.from_ndarray("fortran", np.asfortranarray(rng.random((3000, 40, 30))))
"""


@pytest.fixture(scope="module")
def old_maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made-by-0-9")
    run_old(MAKE_LARGE, cwd=folder)
    return folder


@pytest.mark.parametrize("name", ["rows", "images", "mixed", "numbers", "strings", "zstd", "fortran"])
def test_maps_of_0_9_0(old_maps, name):
    m = open_map(old_maps / name)
    for index in (RNG.permutation(len(m))[:50], range(20, 70), slice(None, None, -7)):
        check_jagged(m, index)
        if name not in ("mixed", "numbers"):
            check_padded(m, index)
            check_padded(m, index, 9, "left", multiple_of=8)
    if name == "mixed":
        check_padded(m, range(0, 3000, 3))
    if name == "numbers":
        check_padded(m, range(0, 3000, 2))
        assert m.take_padded(range(1, 9, 2)).values.tolist() == [1, 3, 5, 7]


@pytest.mark.parametrize("name", ["rows", "images", "strings", "fortran", "format 2"])
def test_only_the_samples_that_are_asked_for_cost_anything(old_maps, name, tmp_path):
    """No column of the whole index is made for a few samples, and no copy of the whole data."""
    if name == "format 2":
        m = RaggedMmap.from_lists(tmp_path / "map", rows(*[3] * 3000), sync=False)
    else:
        m = open_map(old_maps / name)
    most = 60_000 if name == "fortran" else 20_000  # bytes; one column of all samples is 24 kB, all of them are 29 MB
    for use in (m.take_jagged, m.take_padded, m.take, m.will_need):
        use([5, 17])
        tracemalloc.start()
        use([5, 17])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most, use


# -- damaged maps -----------------------------------------------------------------------------------------------------

HOSTILE = [
    ("rows", [-1, 2]),
    ("rows", [0, -2]),
    ("rows", [0, 2**62]),
    ("rows", [2**62, 2**62]),
    ("rows", [2**63 - 1, 2**63 - 1]),
    ("rows", [-(2**63), 2**63 - 1]),
    ("rows", [-(2**63), -(2**63)]),
    ("rows", [16, 1]),
    ("rows", [17, 0]),
    ("rows", [0, 17]),
    ("images", [0, 2**32, 2**32, 1]),
    ("images", [0, 2**32, 2**31, 3]),
    ("images", [0, -1, -1, 4]),
    ("images", [0, -3, -4, 1]),
    ("images", [0, 2**62, 4, 1]),
    ("images", [30, 2, 2, 2]),
    ("images", [-4, 2, 2, 1]),
    ("images", [100, 0, 2, 2]),
    ("mixed", [0, 2, -1, 2]),
    ("mixed", [0, -1, 2, -1]),
    ("mixed", [10**9, -1, -1, -1]),
    ("texts", [3, 2**63 - 1]),
    ("texts", [-5, 3]),
    ("zstd", [-5, 3, 3]),
    ("zstd", [0, 2**63 - 1, 3]),
    ("zstd", [0, 12, -1]),
    ("zstd", [0, 12, 2**62]),
]


@pytest.mark.parametrize(("name", "row"), HOSTILE)
def test_a_damaged_row(tmp_path, name, row):
    folder = tmp_path / "map"
    if name == "rows":
        RaggedMmap.from_lists(folder, rows(4, 4, 4, 4))
    elif name == "images":
        RaggedMmap.from_lists(folder, images((2, 2, 2), (2, 2, 2), (2, 4, 2)))
    elif name == "mixed":
        RaggedMmap.from_lists(folder, [np.arange(3), np.zeros((2, 2, 2), int), np.zeros((1, 2), int)])
    else:
        StringsMmap.from_strings(folder, TEXTS, zstd_level=3 if name == "zstd" else None)
    with open(folder / "index.npy", "r+b") as file:
        file.seek(fields(folder)["files"]["index"]["offset"] + 8 * len(row))
        file.write(np.array(row, "<i8").tobytes())
    m = open_map(folder)
    for index in ([1], [0, 1], [2, 1, 0], slice(None)):
        for take in (m.take_jagged, m.take_padded):
            with pytest.raises(MapCorruptError, match=rf"{folder}.* sample 1\b"):
                take(index)
    for i in (0, 2):
        assert m.take_jagged([i]).values.size > 0
    m.will_need([0, 1, 2])


def test_samples_of_nothing_that_claim_to_be_huge(tmp_path):
    """Shapes without an element fit into any file, but not side by side."""
    RaggedMmap.from_lists(tmp_path / "map", images((2, 2), (2, 2), (2, 2)))
    rows_of_nothing = np.array([[0, 2**60, 0], [0, 0, 2**60], [0, 2, 2]], "<i8")
    with open(tmp_path / "map/index.npy", "r+b") as file:
        file.seek(fields(tmp_path / "map")["files"]["index"]["offset"])
        file.write(rows_of_nothing.tobytes())
    m = open_map(tmp_path / "map")
    assert m.take_jagged([0, 1]).values.shape == (0,)
    for index in ([0, 1], [0, 2]):
        with pytest.raises(SampleError, match="there is no memory for a batch of shape"):
            m.take_padded(index)


DAMAGED_COLUMNS = [
    ("rows", "starts", -1),
    ("rows", "starts", 2**62),
    ("rows", "flattened_shapes", -1),
    ("rows", "flattened_shapes", 2**63 - 1),
    ("rows", "shapes", 3000),
    ("images", "starts", -(2**63)),
    ("images", "starts", 2**62),
    ("images", "flattened_shapes", 5),
    ("images", "shapes/starts", -1),
    ("images", "shapes/starts", 2**40),
    ("images", "shapes/ends", -(2**63)),
    ("images", "shapes/ends", 2**63 - 1),
    ("images", "shapes", -1),
    ("images", "shapes", 2**62),
    ("strings", "starts", -1),
    ("strings", "starts", 2**63 - 1),
    ("strings", "ends", 0),
    ("strings", "ends", 2**62),
    ("zstd", "ends", 2**62),
]


@pytest.mark.parametrize(("name", "column", "value"), DAMAGED_COLUMNS)
def test_a_damaged_column_of_0_9_0(tmp_path, name, column, value):
    folder = tmp_path / name
    folder.mkdir()
    samples = {"rows": rows(4, 4, 4, 4), "images": images((2, 2, 2), (2, 2, 2), (2, 4, 2))}.get(name, TEXTS[:4])
    kind = "RaggedMmap.from_lists" if name in ("rows", "images") else "StringsMmap.from_strings"
    options = ", zstd_level=3" if name == "zstd" else ""
    given = repr([sample.tolist() for sample in samples]) if name in ("rows", "images") else repr(samples)
    code = f"from mmap_ninja import *\nimport numpy as np\nsamples = {given}\n"
    if name in ("rows", "images"):
        code += "samples = [np.array(sample) for sample in samples]\n"
    run_old(code + f"{kind}('map', samples{options})", cwd=folder)
    number = 4 if column == "shapes" and name == "images" else 1
    with open(folder / "map" / column / "data.ninja", "r+b") as file:
        file.seek(8 * number)
        file.write(np.array([value], "<i8").tobytes())
    m = open_map(folder / "map")
    for index in ([1], [2, 1, 0], slice(None)):
        for take in (m.take_jagged, m.take_padded):
            with pytest.raises(MapCorruptError, match=rf"{folder}.*(sample|text) 1\b"):
                take(index)
