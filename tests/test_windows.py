"""Windows of samples, against `sliding_window_view` of each sample."""

import itertools
import pickle
import re
import shutil
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from contracts import assert_same, in_process, same
from contracts.processes import read_all
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, _grid, open_map
from mmap_ninja._storage import index
from mmap_ninja._taking import LIST
from mmap_ninja.buffers import Pool
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    IndexTypeError,
    MapCorruptError,
    SampleError,
    SampleIndexError,
)
from mmap_ninja.permutation import Permutation
from mmap_ninja.views import select, split, windows
from take_contract import check_jagged, check_padded
from test_resources import forged

GOLDEN = Path(__file__).parent / "golden"
RNG = np.random.default_rng(5)
LENGTHS = [5, 0, 3, 12, 1, 0, 0, 7, 4, 30, 2]

fresh = itertools.count()


def new(tmp_path):
    return tmp_path / str(next(fresh))


def windows_of(samples, length, stride):
    """The windows of all samples in a list."""
    found = []
    for sample in samples:
        if isinstance(sample, bytes):
            found += [sample[at : at + length] for at in range(0, len(sample) - length + 1, stride)]
        elif len(sample) >= length:
            found += list(np.moveaxis(sliding_window_view(sample, length, axis=0), -1, 1)[::stride])
    return found


def uncovered_of(samples, length, stride):
    """How many elements of the samples lie in no window."""
    count = 0
    for sample in samples:
        is_covered = np.zeros(len(sample), bool)
        for at in range(0, len(sample) - length + 1, stride):
            is_covered[at : at + length] = True
        count += int((~is_covered).sum())
    return count


def images(*shapes):
    return [RNG.integers(0, 256, shape, np.uint8) for shape in shapes]


SAMPLES = {
    "dense": list(RNG.integers(0, 99, (6, 11, 2, 3)).astype(">i2")),
    "dense rows": list(RNG.normal(size=(5, 8))),
    "ragged": [np.arange(size, dtype="f4") + 100 * size for size in LENGTHS],
    "spectra": [RNG.normal(size=(size, 4)) for size in LENGTHS],
    "images": images((5, 4, 3), (0, 9, 3), (7, 2, 3), (3, 4, 3)),
    "mixed": [*images((9,), (5, 3), (2, 2, 2)), np.arange(4, dtype=np.uint8)],
    "mixed but flat where long": images((2, 2), (7,), (12,), (1, 1, 1)),
    "empty axes": [np.empty(shape) for shape in [(6, 0, 2), (3, 0, 1), (4, 0, 4)]],
    "bytes": [bytes(range(size)) for size in LENGTHS],
}
MAKERS = {"dense": DenseMmap.from_ndarray, "bytes": BytesMmap.from_bytes}
HAVE_ONE_SHAPE = {"dense", "dense rows", "ragged", "spectra", "mixed but flat where long"}


def make(path, name):
    samples = SAMPLES[name]
    if name.startswith("dense"):
        return DenseMmap.from_ndarray(path, np.stack(samples), dtype=samples[0].dtype, sync=False)
    return MAKERS.get(name, RaggedMmap.from_lists)(path, samples, sync=False)


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    return {name: make(folder / name, name) for name in SAMPLES}


SPANS = [(3, 3), (3, 1), (2, 5), (1, 1), (4, 3), (40, 1)]


@pytest.fixture(params=SAMPLES)
def name(request):
    return request.param


@pytest.mark.parametrize("span", SPANS, ids=str)
def test_all_windows(maps, name, span):
    length, stride = span
    m, samples = maps[name], SAMPLES[name]
    view, expected = windows(m, length, stride), windows_of(samples, length, stride)
    assert len(view) == len(expected)
    assert_same(view, expected)
    assert_same(reversed(view), expected[::-1])
    assert_same([view[k] for k in range(-len(view), 0)], expected)
    assert view.uncovered == uncovered_of(samples, length, stride)
    assert view.lengths.tolist() == [length] * len(expected)
    assert view.nbytes == sum(memoryview(window).nbytes for window in expected)
    if name != "bytes":
        assert [tuple(axis for axis in shape if axis >= 0) for shape in view.shapes.tolist()] == [
            window.shape for window in expected
        ]
    assert view.dtype == m.dtype


@pytest.mark.parametrize("indices", [[0, -1, 2, 2], slice(None), slice(None, 1, -2), range(1, 4), []], ids=repr)
def test_many_windows(maps, name, indices):
    m = maps[name]
    view, expected = windows(m, 3, 2), windows_of(SAMPLES[name], 3, 2)
    numbers = np.arange(len(expected))[indices if isinstance(indices, slice) else np.array(indices, int)].tolist()
    for found in (view[indices], view.take(indices), view._gather(np.array(numbers, int), LIST, Pool().empty)):
        assert type(found) is (np.ndarray if name in HAVE_ONE_SHAPE else list)
        assert_same(found, [expected[k] for k in numbers])
    if isinstance(view[indices], np.ndarray):
        assert view[indices].shape == (len(numbers), *expected[0].shape)
    if not numbers:
        assert len(view.take_padded([]).values) == 0
        return
    check_jagged(view, indices)
    if len({np.ndim(expected[k]) for k in numbers}) == 1:
        check_padded(view, indices)
        check_padded(view, indices, 1, multiple_of=5, side="left")


def test_a_view_of_one_shape_reads_like_a_dense_map(maps, name):
    view = windows(maps[name], 3)
    if name not in HAVE_ONE_SHAPE:
        assert not hasattr(view, "sample_shape")
        assert view.kind == maps[name].kind
        with pytest.raises(ArgumentTypeError, match=r"take\(out=...\) is for windows of one shape; these may differ"):
            view.take([0], out=np.empty((1, 3)))
        return
    expected = np.stack(windows_of(SAMPLES[name], 3, 3)).astype(maps[name].dtype)
    assert view.kind == "dense"
    assert view.sample_shape == expected.shape[1:]
    assert view.take_padded([]).values.shape == (0, *expected.shape[1:])
    out = np.empty((2, *expected.shape[1:]), view.dtype)
    assert view.take([-1, 0], out=out) is out
    assert same(out, expected[[-1, 0]])
    strided = np.empty((2, *expected.shape[1:], 2), view.dtype)[..., 0]
    assert view.take(np.array([-1, 0]), out=strided) is strided
    assert (strided == out).all()
    read_only = out.copy()
    read_only.flags.writeable = False
    for wrong in (out.astype("c16"), out[:1], out.tolist(), read_only):
        with pytest.raises(
            ArgumentTypeError, match=re.escape(f"out has to be a writable array of {view.dtype} and shape (2, 3")
        ):
            view.take([0, 1], out=wrong)


def test_windows_are_views_of_the_file(maps):
    for name in ("dense", "ragged", "images"):
        view = windows(maps[name], 3)
        for window in (view[0], next(iter(view))):
            assert not window.flags.owndata
            with pytest.raises(ValueError, match="WRITEABLE"):
                window.flags.writeable = True


def test_window_of_a_window(maps):
    for name in ("dense", "ragged", "bytes"):
        view, expected = windows(maps[name], 4, 3), windows_of(SAMPLES[name], 4, 3)
        assert same(view.window(-1, 1, 2), expected[-1][1:3])
        assert same(view.window(1, 4, 0), expected[1][4:4])
        for start, length in ((0, 5), (4, 1), (-1, 2), (0, -1)):
            with pytest.raises(SampleIndexError, match="sample 0 has length 4, the window is"):
                view.window(0, start, length)
        with pytest.raises(IndexTypeError, match="a window goes by integers"):
            view.window(0, 0, 1.0)


def test_windows_of_windows_and_of_selections(maps, name):
    m, samples = maps[name], SAMPLES[name]
    chosen = [2, 0, 2, -1]
    expected = windows_of([samples[i] for i in chosen], 3, 2)
    assert_same(windows(select(m, chosen), 3, 2), expected)
    part = split(m, (2, len(samples) - 2), seed=1)[1]
    numbers = Permutation(len(samples), 1)(np.arange(2, len(samples)))
    assert_same(windows(part, 2), windows_of([samples[i] for i in numbers], 2, 2))
    outer = windows(windows(m, 3, 2), 2, 1)
    expected = windows_of(windows_of(samples, 3, 2), 2, 1)
    assert_same(outer, expected)
    assert_same(outer[::-1], expected[::-1])
    check_jagged(outer, slice(None))
    assert outer.uncovered == 0
    part = select(outer, [-1, 0])
    assert_same(part, [expected[-1], expected[0]])
    assert hasattr(part, "sample_shape") == (name in HAVE_ONE_SHAPE)


def test_will_need_advises_the_pages_of_the_windows(maps, name, monkeypatch):
    m, advised = maps[name], []
    monkeypatch.setattr(type(m._opened().data), "will_need", lambda self, ranges: advised.append(list(ranges)))
    for view in (windows(m, 3, 2), windows(select(m, slice(None, None, -1)), 3, 2)):
        if len(view) == 0 or view.nbytes == 0:
            continue
        advised.clear()
        view.will_need([1, 0, 0])
        [found] = advised
        raw = b"".join(bytes(m._opened().data.bytes[start:stop]) for start, stop in found)
        parts = [memoryview(np.ascontiguousarray(view[k]) if name != "bytes" else view[k]).tobytes() for k in (0, 1)]
        assert all(part in raw for part in parts)
        assert len(raw) <= sum(map(len, parts))


spans = st.builds(lambda length, stride: (length, stride), st.integers(1, 9), st.integers(1, 12))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 25), min_size=1, max_size=40), span=spans, totals=st.integers(0, 6), data=st.data()
)
def test_any_lengths(tmp_path, monkeypatch, lengths, span, totals, data):
    """With few totals kept, so that windows are looked up in blocks of samples."""
    monkeypatch.setattr(_grid, "_MOST_TOTALS", 1 << totals)
    monkeypatch.setattr(index, "_AT_ONCE", 8 * 16)  # rows of 16 bytes
    samples = [np.arange(size) + 100 * k for k, size in enumerate(lengths)]
    m = RaggedMmap.from_lists(new(tmp_path), samples, sync=False)
    view, expected = windows(m, *span), windows_of(samples, *span)
    assert_same(view, expected)
    assert view.uncovered == uncovered_of(samples, *span)
    if expected:
        found = data.draw(st.lists(st.integers(-len(expected), len(expected) - 1), max_size=30))
        assert_same(view.take(found), [expected[k] for k in found])
        assert_same([view[k] for k in found], [expected[k] for k in found])


def test_only_so_many_totals_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(_grid, "_MOST_TOTALS", 64)
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(k % 5) for k in range(10_000)], sync=False)
    view = windows(m, 2)
    assert len(view) == 2000 * (1 + 1 + 2)
    assert view._grid._totals.size <= 65
    assert_same(view[-2:], [np.arange(2), np.arange(2, 4)])
    assert view[[]].shape == view[5:5].shape == (0, 2)
    assert len(windows(m, 9)[:]) == 0
    with pytest.raises(ArgumentError, match="stride is 18446744073709551616, expected at most 4611686018427387904"):
        windows(m, 2, 2**64)


def test_counting_takes_the_same_little_memory_for_any_number_of_samples(tmp_path):
    m = open_map(forged(tmp_path, "ragged", 2_000_000))  # their lengths alone would take 16 MB
    tracemalloc.start()
    try:
        view = windows(m, 1)
        assert tracemalloc.get_traced_memory()[1] < 8e6
        assert len(view) == 1
    finally:
        tracemalloc.stop()


def test_the_index_is_not_kept(maps):
    view = windows(maps["ragged"], 3)
    other = pickle.loads(pickle.dumps(view))
    assert other._counted._grid is None, "counted again at the first use"
    assert len(pickle.dumps(view)) < 700 + len(str(maps["ragged"].out_dir))
    assert len(pickle.dumps(windows(select(maps["ragged"], slice(1, None)), 3))) < 900 + len(
        str(maps["ragged"].out_dir)
    )
    outer = pickle.loads(pickle.dumps(select(view, [0])))
    assert outer._source._counted._grid is None
    assert_same(outer, [view[0]])
    assert outer._source._counted._grid is not None, "and once only"
    assert_same(in_process(read_all, view, method="spawn"), list(view))


def test_windows_of_a_dense_map_of_format_1_in_fortran_order(tmp_path):
    shutil.copytree(GOLDEN / "1-dense-fortran", tmp_path / "map")
    m = open_map(tmp_path / "map")
    samples = list(np.arange(24.0).reshape(4, 2, 3))
    assert_same(m, samples)
    for length, stride in ((1, 1), (2, 1)):
        view, expected = windows(m, length, stride), windows_of(samples, length, stride)
        assert_same(view, expected)
        assert_same(view[::-1], expected[::-1])
        assert_same([view[k] for k in range(len(view))], expected)
        check_jagged(view, [0, -1, 0])
        check_padded(view, [0, -1], multiple_of=4)
        assert not next(iter(view)).flags.writeable
    assert_same(windows(windows(m, 2), 1)[[3, 0]], [samples[1][1:], samples[0][:1]])


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "error", "match"),
    [
        ((0,), ArgumentError, "length is 0, expected at least 1"),
        ((-3, 1), ArgumentError, "length is -3, expected at least 1"),
        ((2, 0), ArgumentError, "stride is 0, expected at least 1"),
        ((2.0,), ArgumentTypeError, "length is 2.0, expected an integer"),
        ((True,), ArgumentTypeError, "length is True, expected an integer"),
        ((2, "1"), ArgumentTypeError, "stride is '1', expected an integer"),
    ],
)
def test_spans_that_make_no_sense(maps, span, error, match):
    with pytest.raises(error, match=match):
        windows(maps["ragged"], *span)


def identity(sample):
    return sample


def test_maps_that_have_no_windows(tmp_path, maps):
    texts = StringsMmap.from_strings(tmp_path / "texts", ["abc"], sync=False)
    packed = BytesMmap.from_bytes(tmp_path / "packed", [b"abc"], zstd_level=3, sync=False)
    wrapped = RaggedMmap(maps["ragged"].out_dir, wrapper_fn=identity)
    for source, error, match in [
        (texts, ArgumentTypeError, r"would cut characters; store bytes \(BytesMmap\) or tokens \(RaggedMmap\)"),
        (packed, ArgumentError, "the map is compressed: each window would decompress its whole sample"),
        (wrapped, ArgumentError, r"before any wrapper_fn; open the map without one, .*Wrapped\(windows\(...\)"),
    ]:
        for view in (source, select(source, [0])):
            with pytest.raises(error, match=match):
                windows(view, 2)


def test_scalars_have_no_windows(tmp_path):
    dense = DenseMmap.from_ndarray(tmp_path / "dense", np.arange(3), sync=False)
    scalars = RaggedMmap.from_lists(tmp_path / "scalars", [1, 2], sync=False)
    mixed = RaggedMmap.from_lists(tmp_path / "mixed", [[1, 2], [3], 4], sync=False)
    with pytest.raises(SampleError, match="the samples are scalars: there is no axis to cut windows along"):
        windows(dense, 1)
    with pytest.raises(SampleError, match="the samples are scalars: there is no axis"):
        windows(scalars, 1)
    with pytest.raises(SampleError, match="sample 2 is a scalar: there is no axis"):
        windows(mixed, 1)
    assert_same(windows(select(mixed, [0, 1]), 1), [np.array([1]), np.array([2]), np.array([3])])


def test_more_windows_than_can_be_numbered(tmp_path):
    huge = [np.empty((2**62, 0), np.uint8)] * 2
    m = RaggedMmap.from_lists(tmp_path / "map", huge, sync=False)
    with pytest.raises(ArgumentError, match=r"there would be \d+ windows, at most \d+; take a larger stride"):
        windows(m, 1)
    assert len(windows(m, 1, 2**40)) == 2 * 2**22


def test_windows_that_no_array_can_have(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "map", [np.zeros((2**40, 0))], sync=False)
    view = windows(m, 2**39)
    assert view[0].shape == (2**39, 0)
    with pytest.raises(SampleError, match=r"no array of float64 can have the shape \(3, .*, 0\)"):
        windows(RaggedMmap.from_lists(tmp_path / "large", [np.zeros((2**59, 0))] * 3, sync=False), 2**59)[:]
    with pytest.raises(ArgumentError, match=r"no array can have the shape \(4611686018427387904,\) of a window"):
        windows(RaggedMmap.from_lists(tmp_path / "rows", [[1, 2]], sync=False), 2**62)
    dense = DenseMmap.from_ndarray(tmp_path / "dense", np.zeros((2, 3)), sync=False)
    with pytest.raises(ArgumentError, match=r"no array can have the shape \(4611686018427387904,\) of a window"):
        windows(dense, 2**62)


def test_an_empty_map_has_no_windows(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "map", [])
    view = windows(m, 2)
    assert (len(view), view.shapes.shape, view.lengths.tolist(), view.nbytes) == (0, (0, 0), [], 0)
    assert view.take_padded([], length=3).values.shape == (0, 3)


def test_a_sample_that_was_longer_when_it_was_counted(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(6), np.arange(4)], sync=False)
    view = windows(m, 2)
    with open(tmp_path / "map/index.npy", "rb+") as file:
        file.seek(128 + 8)
        file.write((3).to_bytes(8, "little"))
    assert_same(view[[0]], [np.arange(2)])
    with pytest.raises(MapCorruptError, match="sample 0 has length 3 now, it was longer when its windows were counted"):
        view[[0, 2]]
    with pytest.raises(SampleIndexError, match="sample 0 has length 3, the window is"):
        view[2]


def test_threads_count_once_or_the_same(maps):
    view = pickle.loads(pickle.dumps(windows(maps["ragged"], 3)))
    expected, found = list(windows(maps["ragged"], 3)), []
    threads = [threading.Thread(target=lambda: found.append(list(view))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for samples in found:
        assert_same(samples, expected)
