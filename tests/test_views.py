"""Selections and splits of every kind of map, against lists of the same samples."""

import copy
import itertools
import pickle
import re
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts import MANY, OUTSIDE, WRONG_TYPES, N, assert_same, in_process, pick, same
from contracts.processes import read_all
from mmap_ninja import BytesMmap, DenseMmap, MmapNinjaError, RaggedMmap, StringsMmap, Wrapped
from mmap_ninja._taking import JAGGED, LIST, Padding
from mmap_ninja.buffers import Pool
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    IndexTypeError,
    MapChangedError,
    MapClosedError,
    MapCorruptError,
    MapReadOnlyError,
    SampleIndexError,
)
from mmap_ninja.permutation import Permutation
from mmap_ninja.views import View, _sizes, select, split, windows
from take_contract import check_jagged, check_padded
from test_resources import forged

RNG = np.random.default_rng(7)
SIZE = 13  # samples of each map

SAMPLES = {
    "dense": list(RNG.integers(0, 99, (SIZE, 3, 2))),
    "scalars": list(np.arange(SIZE) * 10),
    "ragged": [np.arange(i, dtype="f4") for i in RNG.permutation(SIZE)],
    "images": [RNG.integers(0, 256, (i % 3, 2 + i % 2, 3), np.uint8) for i in range(SIZE)],
    "bytes": [bytes(range(i)) for i in RNG.permutation(SIZE)],
    "zstd": [b"x" * i for i in range(SIZE)],
    "strings": ["ö" * i + str(i) for i in range(SIZE)],
}


def make(path, name):
    """The map of that name, and its samples as they are read."""
    samples = SAMPLES[name]
    if name in ("dense", "scalars"):
        m = DenseMmap.from_ndarray(path, np.stack(samples), sync=False)
    elif name in ("ragged", "images"):
        m = RaggedMmap.from_lists(path, samples, sync=False)
    elif name == "strings":
        m = StringsMmap.from_strings(path, samples, sync=False)
    else:
        m = BytesMmap.from_bytes(path, samples, zstd_level=3 if name == "zstd" else None, sync=False)
    return m


def in_two_steps(m):
    return select(select(m, range(SIZE - 1, 0, -1)), slice(2, 11))


def of_a_part(m):
    (part, _) = split(m, (10, 3), seed=4)
    return select(part, list(range(1, 10)))


def positions_of_part():
    return Permutation(SIZE, 4)(np.arange(10))[1:].tolist()


# Each has N samples, so that the indices of `contracts` go for all of them.
VIEWS = {
    "slice": (lambda m: select(m, slice(2, 11)), list(range(2, 11))),
    "range": (lambda m: select(m, range(8, -1, -1)), list(range(8, -1, -1))),
    "negative range": (lambda m: select(m, range(-9, 0)), list(range(SIZE - 9, SIZE))),
    "both": (lambda m: select(m, range(-4, 5)), [9, 10, 11, 12, 0, 1, 2, 3, 4]),
    "list": (lambda m: select(m, [5, 5, -1, 0, 3, 12, -13, 5, 1]), [5, 5, 12, 0, 3, 12, 0, 5, 1]),
    "mask": (lambda m: select(m, np.arange(SIZE) % 3 != 1), [0, 2, 3, 5, 6, 8, 9, 11, 12]),
    "iterator": (lambda m: select(m, iter(range(9))), list(range(9))),
    "two steps": (in_two_steps, list(range(SIZE - 1, 0, -1))[2:11]),
    "shuffled": (lambda m: split(m, (9, 4), seed=3)[0], Permutation(SIZE, 3)(np.arange(9)).tolist()),
    "unshuffled": (lambda m: split(m, (4, 9), seed=None)[1], list(range(4, SIZE))),
    "of a part": (of_a_part, positions_of_part()),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every map and every view of it that is only read."""
    folder, maps = tmp_path_factory.mktemp("views"), {}

    def get(name, view):
        if name not in maps:
            maps[name] = make(folder / name, name)
        chosen, numbers = VIEWS[view]
        return maps[name], chosen(maps[name]), numbers

    return get


@pytest.fixture(params=SAMPLES)
def name(request):
    return request.param


def read_through(made, name, view):
    """(the map, a view of it, its samples, their numbers in the map)"""
    m, view, numbers = made(name, view)
    return m, view, [m[i] for i in numbers], numbers


@pytest.fixture(params=VIEWS)
def read_any(made, name, request):
    return read_through(made, name, request.param)


@pytest.fixture(params=["both", "list", "shuffled", "of a part"])
def read(made, name, request):
    return read_through(made, name, request.param)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_samples(read_any):
    _, view, expected, _ = read_any
    assert len(view) == N
    assert_same(view, expected)
    assert_same(reversed(view), expected[::-1])
    for i in (0, 3, -1, -N, np.int8(-3), np.array(5)):
        assert same(view[i], expected[int(i)])


def test_many(read_any):
    m, view, expected, _ = read_any
    for index in MANY:
        found = view[index]
        assert type(found) is (np.ndarray if m.kind == "dense" else list)
        assert_same(found, pick(expected, index))
    for as_indices in (list, tuple, np.array, iter):
        assert_same(view.take(as_indices([5, -1, 0, 5])), [expected[i] for i in (5, -1, 0, 5)])
    assert len(view.take([])) == 0


def test_wrong_indices(read):
    _, view, _, _ = read
    for index in OUTSIDE:
        bad = index if np.ndim(index) == 0 else next(i for i in index if not -N <= i < N)
        with pytest.raises(SampleIndexError, match=f"index {bad} is out of range for a map of {N} samples"):
            view[index]
    for index in WRONG_TYPES:
        with pytest.raises(IndexTypeError, match="a map is indexed by integers, slices, lists or 1-D arrays"):
            view[index]
    with pytest.raises(SampleIndexError, match=f"a boolean mask of 2 values for a map of {N} samples"):
        view[[True, False]]


def test_membership(read):
    m, view, expected, numbers = read
    assert all(sample in view for sample in expected)
    absent = [m[i] for i in range(SIZE) if i not in numbers]
    assert not any(sample in view for sample in absent if not any(np.array_equal(sample, other) for other in expected))
    assert "nowhere" not in view


INDICES = [[], [0], [3, 1, 1, -1], range(2, 8), np.arange(N) % 2 == 0, slice(None), slice(None, None, -3)]


def test_jagged(read):
    _, view, _, _ = read
    for indices in INDICES:
        check_jagged(view, indices)


def test_padded(read):
    m, view, _, _ = read
    for indices in INDICES[1:]:
        check_padded(view, indices, side="left")
        if m.kind != "dense":
            check_padded(view, indices, 7, multiple_of=4)


def test_what_the_index_knows(read):
    m, view, _, numbers = read
    assert view.lengths.tolist() == m.lengths[numbers].tolist()
    assert view.shapes.tolist() == m.shapes[numbers].tolist()
    assert view.lengths.dtype == view.shapes.dtype == np.int64
    assert view.dtype == m.dtype
    assert view.kind == m.kind
    sizes = (m.ends - m.starts)[numbers]
    assert view.nbytes == int(sizes.sum()) * m.dtype.itemsize
    assert hasattr(view, "sample_shape") == (m.kind == "dense")
    if m.kind == "dense":
        assert view.sample_shape == m.sample_shape
    assert view.metadata == {}


def test_windows_of_one_sample(read):
    m, view, expected, numbers = read
    for i in (0, 5, -1):
        if np.ndim(expected[i]) == 0 and m.kind == "dense":
            continue
        length = int(view.lengths[i])
        assert same(view.window(i, 0, length), m.window(numbers[i], 0, length))
        with pytest.raises(SampleIndexError, match=f"sample {numbers[i]} has length {length}, the window is"):
            view.window(i, 1, length)
    with pytest.raises(SampleIndexError, match=f"index {N} is out of range for a map of {N} samples"):
        view.window(N, 0, 0)
    with pytest.raises(IndexTypeError, match="a window goes by integers"):
        view.window("0", 0, 0)


def test_will_need_advises_the_pages_of_the_samples(read, monkeypatch):
    m, view, _, numbers = read
    advised = []
    monkeypatch.setattr(type(m._opened().data), "will_need", lambda self, ranges: advised.append(list(ranges)))
    view.will_need([0, 0, -1])
    view.will_need(slice(None))
    view.will_need([])
    starts, ends = m.starts * m.dtype.itemsize, m.ends * m.dtype.itemsize
    for found, chosen in zip(advised, ([numbers[0], numbers[-1]], numbers), strict=True):
        bytes_of = {at for start, stop in found for at in range(start, stop)}
        assert bytes_of == {at for i in chosen for at in range(starts[i], ends[i])}
    with pytest.raises(SampleIndexError, match=f"index {N} is out of range"):
        view.will_need([N])


def test_the_contract_with_batches(read):
    _, view, expected, _ = read
    pool, found = Pool(), np.array([4, 0, -1 % N])
    twin = view._pinned()
    assert_same(twin._gather(found, LIST, pool.empty), [expected[i] for i in found])
    assert twin._gather(found, JAGGED, pool.empty).offsets.tolist() == view.take_jagged(found).offsets.tolist()
    assert same(twin._gather(found, Padding(), pool.empty).values, view.take_padded(found).values)
    assert view.wrapper_fn is None
    assert view.copy_before_wrapper_fn is True


def test_take_into_an_array(made):
    m, view, numbers = made("dense", "shuffled")
    out = np.empty((3, 3, 2), m.dtype)
    assert view.take([0, -1, 4], out=out) is out
    assert same(out, np.stack([m[numbers[i]] for i in (0, -1, 4)]))
    with pytest.raises(ArgumentTypeError, match=re.escape("out has to be an array of int64 and shape (2, 3, 2)")):
        view.take([0, 1], out=out)
    _, view, _ = made("ragged", "shuffled")
    with pytest.raises(ArgumentTypeError, match=re.escape("take(out=...) is for dense maps")):
        view.take([0, 1], out=out)


indices_of = st.one_of(
    st.lists(st.integers(-SIZE, SIZE - 1), max_size=12),
    st.lists(st.booleans(), min_size=SIZE, max_size=SIZE),
    st.builds(slice, *[st.none() | st.integers(-20, 20)] * 2, st.none() | st.integers(-4, 4).filter(bool)),
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_selections_of_selections_are_lists_of_lists(made, data):
    name = data.draw(st.sampled_from(sorted(SAMPLES)))
    view, _, _ = made(name, "slice")
    numbers = list(range(SIZE))
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            size = data.draw(st.integers(0, len(view)))
            seed = data.draw(st.integers(0, 5))
            view = split(view, (size, len(view) - size), seed)[0]
            numbers = [numbers[i] for i in Permutation(len(numbers), seed)(np.arange(size))]
        else:
            index = data.draw(indices_of)
            if isinstance(index, list):
                index = [i for i in index if type(i) is not bool and -len(view) <= i < len(view)]
            view, numbers = select(view, index), pick(numbers, index if index else np.array([], int))
    m, _, _ = made(name, "slice")
    assert_same(view, [m[i] for i in numbers])
    assert view.lengths.tolist() == m.lengths[numbers].tolist()
    check_jagged(view, slice(None))
    assert_same(view[::-1], [m[i] for i in numbers[::-1]])


# -- select ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index", [[13], [0, -14], range(14), range(-14, 0), range(5, 30, 24), np.array([99])], ids=repr
)
def test_selecting_what_is_not_there(made, index):
    m, _, _ = made("ragged", "slice")
    bad = next(i for i in index if not -SIZE <= i < SIZE)
    with pytest.raises(SampleIndexError, match=f"index {bad} is out of range for a map of {SIZE} samples"):
        select(m, index)


@pytest.mark.parametrize("index", [3, None, 1.0, "ab", [0.5], [[1]], np.array(True)], ids=repr)
def test_selecting_by_what_is_no_index(made, index):
    m, _, _ = made("ragged", "slice")
    with pytest.raises(IndexTypeError, match="a map is indexed by integers, slices, lists"):
        select(m, index)


@pytest.mark.parametrize(
    "source", [[1, 2], np.arange(3), "path", None, Wrapped([1], str)], ids=lambda s: type(s).__name__
)
def test_a_view_of_what_is_no_map(source):
    for make_view in (lambda: select(source, [0]), lambda: split(source, (1.0,)), lambda: windows(source, 1)):
        with pytest.raises(ArgumentTypeError, match=r"a view is of a map, or of a view, not of .*open_map"):
            make_view()


@pytest.mark.parametrize("index", [[], range(0), range(40, 30), slice(5, 5), np.zeros(SIZE, bool), np.array([], int)])
def test_an_empty_selection(made, index, name):
    m, _, _ = made(name, "slice")
    view = select(m, index)
    assert len(view) == view.nbytes == len(view.lengths) == len(view[:]) == 0
    assert list(view) == list(reversed(view)) == []
    assert view.shapes.shape == (0, m.shapes.shape[1])
    check_jagged(view, slice(None))
    view.will_need(slice(None))
    with pytest.raises(SampleIndexError, match="index 0 is out of range for a map of 0 samples"):
        view[0]


def test_the_array_of_indices_is_a_copy(made):
    m, _, _ = made("ragged", "slice")
    indices = np.array([1, 2])
    view = select(m, indices)
    indices[:] = 0
    assert_same(view, [m[1], m[2]])


def test_a_view_of_an_empty_map(tmp_path):
    m = RaggedMmap(tmp_path / "none")
    for view in (select(m, []), *split(m, (0.5, 0.5)), windows(m, 3)):
        assert len(view) == 0
        assert list(view) == []
        view.will_need([])
    assert not (tmp_path / "none").exists()


# -- split -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "n", "sizes"),
    [
        ((0.8, 0.2), 10, (8, 2)),
        ((0.8, 1 - 0.8), 10, (8, 2)),
        ((0.29, 0.71), 100, (29, 71)),
        ((1 / 3, 1 / 3, 1 / 3), 10, (4, 3, 3)),
        ((1 / 3, 1 / 3, 1 / 3), 11, (4, 4, 3)),
        ((0.5, 0.5), 1, (1, 0)),
        ((0.0, 0.5, 0.5), 1, (0, 1, 0)),
        ((1.0,), 7, (7,)),
        ((0.7, 0.2, 0.1), 0, (0, 0, 0)),
        ([np.float32(0.5), 0.25, 0.25], 8, (4, 2, 2)),
        ((0.1,) * 10, 25, (3, 3, 3, 3, 3, 2, 2, 2, 2, 2)),
        ((3, 4), 7, (3, 4)),
        (np.array([2, 0, 1]), 3, (2, 0, 1)),
    ],
)
def test_sizes_of_the_parts(tmp_path, parts, n, sizes):
    m = DenseMmap.from_ndarray(tmp_path / "map", np.arange(n), sync=False)
    found = split(m, parts)
    assert type(found) is tuple
    assert tuple(map(len, found)) == sizes
    assert sorted(np.concatenate([part[:] for part in found]).tolist()) == list(range(n))


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(weights=st.lists(st.integers(0, 1000), min_size=1, max_size=9).filter(any), n=st.integers(0, 10**15))
def test_fractions_never_lose_or_invent_a_sample(weights, n):
    total = sum(weights)
    sizes = _sizes([weight / total for weight in weights], n)
    assert sum(sizes) == n
    for size, weight in zip(sizes, weights, strict=True):
        assert abs(size - n * weight / total) <= 1 + n * 1e-13
        assert size == 0 or weight > 0


@pytest.mark.parametrize(
    ("parts", "error", "match"),
    [
        (0.8, ArgumentTypeError, r"parts is 0.8, expected several fractions or lengths, such as \(0.8, 0.2\)"),
        (10, ArgumentTypeError, "parts is 10, expected several"),
        ("ab", ArgumentTypeError, "parts is 'ab', expected several"),
        (None, ArgumentTypeError, "parts is None, expected several"),
        ((), ArgumentError, r"the fractions \[\] sum to 0.0, expected 1"),
        ((0.5, 0.4), ArgumentError, r"the fractions \[0.5, 0.4\] sum to 0.9, expected 1"),
        ((1.5, -0.5), ArgumentError, "a part is 1.5, expected fractions of 0 to 1, or only integers"),
        ((0.5, float("nan")), ArgumentError, "a part is nan, expected fractions"),
        ((0.5, float("inf")), ArgumentError, "a part is inf, expected fractions"),
        ((9, 3), ArgumentError, r"the lengths \[9, 3\] sum to 12, expected lengths for 13 samples"),
        ((14, -1), ArgumentError, r"the lengths \[14, -1\] sum to 13, expected lengths for 13 samples"),
        (("a", 0.5), ArgumentTypeError, "a part is 'a', expected a fraction or a length"),
        ((True, 0.5), ArgumentTypeError, "a part is True, expected a fraction or a length"),
        ((None, 0.5), ArgumentTypeError, "a part is None, expected a fraction or a length"),
        ({"a": 0.5}, ArgumentError, r"the fractions \[0.5\] sum to 0.5, expected 1"),
    ],
)
def test_parts_that_make_no_sense(made, parts, error, match):
    m, _, _ = made("ragged", "slice")
    with pytest.raises(error, match=match):
        split(m, parts)


@pytest.mark.parametrize(("seed", "error"), [(-1, ArgumentError), (2**64, ArgumentError), ("a", ArgumentTypeError)])
def test_seeds_that_make_no_sense(made, seed, error):
    m, _, _ = made("ragged", "slice")
    with pytest.raises(error, match=f"seed is {seed!r}, expected"):
        split(m, (0.5, 0.5), seed)


@pytest.mark.parametrize("n", [1, 17, 2**14, 2**14 + 1, 2**21 + 1, 10**9, 10**12 + 39, 2**62])
def test_one_number_of_a_permutation_is_that_of_many(n):
    permutation = Permutation(n, 8)
    positions = np.unique([0, n - 1, *np.random.default_rng(0).integers(0, n, 300)])
    assert [permutation.number(int(at)) for at in positions] == permutation(positions).tolist()
    for outside in (-1, n):
        with pytest.raises(ArgumentError, match=f"position {outside} lies outside of a permutation of {n} numbers"):
            permutation.number(outside)


def test_a_dict_of_parts(made):
    m, _, _ = made("ragged", "slice")
    found = split(m, {"train": 0.7, "validation": 0.2, 3: 0.1}, seed=5)
    assert list(found) == ["train", "validation", 3]
    for part, other in zip(found.values(), split(m, (0.7, 0.2, 0.1), seed=5), strict=True):
        assert_same(part, other)


def test_the_same_seed_splits_maps_side_by_side_alike(made):
    parts = [split(made(name, "slice")[0], (0.6, 0.4), seed=9)[1] for name in ("scalars", "strings")]
    numbers = [int(label) // 10 for label in parts[0]]
    assert_same(parts[1], [SAMPLES["strings"][i] for i in numbers])


def test_other_seeds_split_otherwise(made):
    m, _, _ = made("scalars", "slice")
    found = {tuple(sorted(split(m, (0.5, 0.5), seed)[0][:].tolist())) for seed in range(50)}
    assert len(found) > 40


def test_every_sample_gets_into_every_part_as_often(tmp_path):
    n, seeds = 20, 2000
    m = DenseMmap.from_ndarray(tmp_path / "map", np.arange(n), sync=False)
    parts = [split(m, (0.25, 0.75), seed)[0][:].tolist() for seed in range(seeds)]

    def chi_square(parts):
        counts, expected = Counter(itertools.chain.from_iterable(parts)), seeds / 4
        return sum((counts[i] - expected) ** 2 for i in range(n)) / (expected * 0.75)

    assert chi_square(parts) < 46, "of 20 samples, less than one time in 1,000 by chance"
    skewed = [[4 if i == 3 and seed % 3 == 0 else i for i in part] for seed, part in enumerate(parts)]
    assert chi_square(skewed) > 46, "it would be seen if every third draw of one sample gave its neighbour"


def test_unshuffled_parts_follow_each_other(made):
    m, _, _ = made("ragged", "slice")
    parts = split(m, (0.5, 0.3, 0.2), seed=None)
    assert_same(itertools.chain(*parts), list(m))
    assert all(part[0] in m for part in parts)


# -- any number of samples ---------------------------------------------------------------------------------------------


def test_a_billion_samples_cost_nothing(tmp_path):
    n = 10**9
    m = DenseMmap(forged(tmp_path, "dense", n))
    views = [*split(m, (0.9, 0.1)), select(m, slice(None, None, -1)), select(m, range(7, n, 3)), windows(m, 1)]
    views += [select(views[0], slice(5, None)), split(views[1], (1, 10**8 - 1))[1], windows(views[1], 2)]
    for view in views:
        raw = pickle.dumps(view)
        assert len(raw) < 1000 + len(str(m.out_dir)), (view, len(raw))
        other = pickle.loads(raw)
        assert len(other) == len(view) > 10**8 - 10
        positions = np.array([0, 5, len(view) - 1])
        assert same(other.take(positions), np.zeros((3, *view.sample_shape), np.uint8))
        assert same(view[-1], np.zeros(view.sample_shape, np.uint8))
        assert view.nbytes == len(view) * int(np.prod(view.sample_shape))
        view.will_need(positions)
    numbers = np.concatenate([view._numbers(np.arange(1000)) for view in views[:2]])
    assert len(set(numbers.tolist())) == 2000
    assert numbers.max() > 0.99 * n


@pytest.mark.parametrize("index", [slice(None), range(10**5), range(-(10**5), 0), range(-1, -(10**5), -1)], ids=repr)
def test_ranges_are_kept_as_such(tmp_path, index):
    m = DenseMmap.from_ndarray(tmp_path / "map", np.arange(10**5), sync=False)
    view = select(m, index)
    assert len(pickle.dumps(view)) < 1000 + len(str(m.out_dir))
    assert same(view[:], np.arange(10**5)[index if isinstance(index, slice) else np.array(index)])


# -- the state that a view sees ----------------------------------------------------------------------------------------


@pytest.fixture
def m(tmp_path):
    return RaggedMmap.from_lists(tmp_path / "map", [np.arange(i) for i in range(10)], sync=False)


def three_of(m):
    return select(m, [9, -1, 2]), split(m, (0.5, 0.5))[0], windows(m, 2)


def test_a_view_keeps_its_samples_when_the_map_grows(m):
    views = three_of(m)
    expected = [list(view) for view in views]
    m.extend([np.arange(40)] * 5)
    for view, samples in zip(views, expected, strict=True):
        assert_same(view, samples)
        assert_same(pickle.loads(pickle.dumps(view)), samples)


def test_a_view_keeps_its_samples_when_the_map_is_replaced(m, tmp_path):
    views = three_of(m)
    expected = [list(view) for view in views]
    other = RaggedMmap.from_lists(tmp_path / "map", [np.arange(4) + 100] * 3, sync=False)
    m.refresh()
    assert len(m) == len(other) == 3
    for view, samples in zip(views, expected, strict=True):
        assert_same(view, samples)
        with pytest.raises(MapChangedError, match="was replaced since this handle was made"):
            pickle.loads(pickle.dumps(view))


def test_refresh_moves_a_view_to_the_newest_state(m, tmp_path):
    selection, part, pairs = three_of(m)
    outer = select(pairs, [0, 3])
    before = [list(selection), list(part), list(outer)]
    m.extend([np.arange(6)])
    for view in (selection, part, pairs, outer):
        view.refresh()
    assert_same(selection, before[0])
    assert_same(part, before[1])
    assert_same(outer, before[2])
    assert pairs._counted._grid is not None, "counted already"
    assert len(pairs) == len(windows(m, 2)) == sum(i // 2 for i in range(10)) + 3
    RaggedMmap.from_lists(tmp_path / "map", [np.arange(i) - 7 for i in range(12)], sync=False)
    selection.refresh()
    outer.refresh()
    assert_same(selection, [np.arange(9) - 7, np.arange(9) - 7, np.arange(2) - 7])
    assert same(outer[:], np.array([[-7, -6], [-5, -4]]))
    assert same(pairs[0], np.array([0, 1])), "each view is refreshed by itself"


def test_refresh_to_a_map_that_is_too_short(m, tmp_path):
    selection, part, pairs = three_of(m)
    picked, ranged = select(pairs, [-1]), select(m, range(3, 8))
    expected = [list(view) for view in (selection, part, picked, ranged)]
    RaggedMmap.from_lists(tmp_path / "map", [np.arange(4)] * 3, sync=False)
    reaches = [9, 9, len(pairs) - 1, 7]
    for view, samples, reach in zip((selection, part, picked, ranged), expected, reaches, strict=True):
        with pytest.raises(MapChangedError, match=f"the samples of this selection reach to number {reach}, but there"):
            view.refresh()
        assert_same(view, samples)


def test_refresh_leaves_what_was_assigned_to_the_handle_that_has_assigned_it(m):
    view = select(m, [3])
    m[3] = [7, 8, 9]
    late = select(m, [3])
    late.refresh()
    assert view[0].tolist() == late[0].tolist() == [7, 8, 9]
    m[2] = [5, 6]
    m.close()
    assert RaggedMmap(m.out_dir)[2].tolist() == [5, 6]


def test_a_view_outlives_the_close_of_its_map(m):
    views = three_of(m)
    expected = [list(view) for view in views]
    m.close()
    for view, samples in zip(views, expected, strict=True):
        assert_same(view, samples)
    with pytest.raises(MapClosedError, match="was closed"):
        select(m, [0])


def test_close(m):
    for view in three_of(m):
        twin = copy.copy(view)
        text = repr(view)
        assert repr(m) in text
        assert f"of length: {len(view)}, " in text
        with view as entered:
            assert entered is view
        view.close()
        assert repr(view) == f"<{type(view).__name__}, closed>"
        uses = [
            lambda view: view[0],
            lambda view: view[:],
            len,
            list,
            lambda view: view.take([0]),
            lambda view: view.take_jagged([0]),
            lambda view: view.lengths,
            lambda view: view.dtype,
            lambda view: view.kind,
            lambda view: view.metadata,
            lambda view: view.will_need([0]),
            lambda view: view.refresh(),
            lambda view: view.window(0, 0, 0),
            lambda view: view.__enter__(),
            pickle.dumps,
        ]
        for use in uses:
            with pytest.raises(MapClosedError, match=f"this {type(view).__name__} was closed"):
                use(view)
        assert len(twin) > 0
        assert_same(m[:2], [np.arange(0), np.arange(1)])


def test_views_are_read_only(m):
    for view in three_of(m):
        for change in (
            lambda view: view.append(np.arange(2)),
            lambda view: view.extend([np.arange(2)]),
            lambda view: view.__setitem__(0, np.arange(2)),
        ):
            with pytest.raises(MapReadOnlyError, match="a view is read-only; change the map"):
                change(view)
        assert isinstance(view, View)
        with pytest.raises(ValueError, match="read-only"):
            view[0][...] = 1
    assert len(m) == 10


def doubled(sample):
    return sample * 2


def test_a_wrapper_fn_goes_for_the_samples_of_a_selection(m):
    wrapped = RaggedMmap(m.out_dir, wrapper_fn=doubled, copy_before_wrapper_fn=False)
    view = select(split(wrapped, (0.5, 0.5), seed=None)[1], [4, 0])
    expected = [np.arange(9) * 2, np.arange(5) * 2]
    for found in (view, view[:], view.take([0, 1]), [view[0], view[1]]):
        assert_same(found, expected)
    assert view.wrapper_fn is doubled
    assert view.copy_before_wrapper_fn is False
    assert view.take_jagged([1]).values.tolist() == list(range(5)), "what is stored"
    assert same(view.window(0, 1, 2), np.array([1, 2]))
    assert_same(in_process(read_all, view, method="spawn"), expected)


@pytest.mark.parametrize(("name", "view"), [("dense", "shuffled"), ("images", "of a part"), ("strings", "list")])
def test_views_in_other_processes(made, name, view):
    m, view, numbers = made(name, view)
    for method in ["fork", "spawn"] if name == "images" else ["fork"]:
        assert_same(in_process(read_all, view, method=method), [m[i] for i in numbers])


def test_copies(m):
    for view in three_of(m):
        for other in (copy.copy(view), copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
            assert type(other) is type(view)
            assert_same(other, list(view))


def test_metadata_is_that_of_the_map(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "map", [[1], [2]], metadata={"labels": ["a"]}, sync=False)
    view = select(m, [1])
    view.metadata["labels"].append("b")
    assert view.metadata == {"labels": ["a"]}
    with pytest.raises(AttributeError, match="metadata"):
        view.metadata = {}


# -- threads and damage ------------------------------------------------------------------------------------------------


def test_threads_read_while_the_map_grows(m):
    views = three_of(m)
    expected = [[sample.tolist() for sample in view] for view in views]
    stop, errors = threading.Event(), []

    def work():
        try:
            while not stop.is_set():
                for view, samples in zip(views, expected, strict=True):
                    assert [sample.tolist() for sample in view[:]] == samples
                    assert view[-1].tolist() == samples[-1]
                    assert len(view.lengths) == len(samples)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for size in range(40):
        m.append(np.arange(size), sync=False)
        for view in views[:2]:
            view.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_damaged_row_is_an_error_of_its_sample_only(m):
    path = m.out_dir / "index.npy"
    raw = bytearray(path.read_bytes())
    raw[128 + 16 * 4 : 128 + 16 * 4 + 8] = (10**12).to_bytes(8, "little")
    path.write_bytes(raw)
    m = RaggedMmap(m.out_dir)
    view = select(m, [1, 4, 9])
    assert_same([view[0], view[2]], [np.arange(1), np.arange(9)])
    for read in (lambda: view[1], lambda: list(view), lambda: view.take_jagged([0, 1]), lambda: view.take_padded([1])):
        with pytest.raises(MapCorruptError, match="of sample 4 is wrong"):
            read()
    view.will_need(slice(None))
    with pytest.raises(MapCorruptError, match="of sample 4 is wrong"):
        windows(m, 2)


def test_every_error_is_ours():
    for error in (MapChangedError, MapClosedError, MapReadOnlyError, SampleIndexError, ArgumentError):
        assert issubclass(error, MmapNinjaError)


def test_a_wrapper_fn_that_stops_does_not_end_an_iteration_quietly(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "m", [[i] for i in range(3000)])
    stopping = RaggedMmap(tmp_path / "m", wrapper_fn=lambda row: next(iter([])) if row[0] == 5 else row)
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(select(stopping, range(len(m))))


@pytest.mark.parametrize("index", [slice(0, 1, 2**70), slice(5, 5, -(2**70)), slice(None, None, 2**64)])
def test_steps_of_any_size(tmp_path, index):
    m = RaggedMmap.from_lists(tmp_path / "m", [[i] for i in range(10)])
    assert list(select(m, index)[:]) == m[index]


def test_which_samples_a_selection_has(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "m", [[i] for i in range(10)])
    train, test = split(m, (0.7, 0.3), seed=3)
    assert sorted([*train.indices, *test.indices]) == list(range(10))
    assert [sample[0] for sample in train] == train.indices.tolist()
    assert select(m, slice(8, None, -3)).indices.tolist() == [8, 5, 2]
