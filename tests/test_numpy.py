"""Dense maps as `np.memmap`: the `np_*` functions."""

import collections
import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import mmap_ninja
from contracts import in_process, manifest, same, tree
from mmap_ninja import DenseMmap, RaggedMmap
from mmap_ninja import numpy as np_ninja
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    MapChangedError,
    MapKindError,
    MapLockedError,
    MapNotFoundError,
    PartBuiltWarning,
    SampleError,
    SampleTypeError,
)
from plain_reader import forge

ARRAY = np.arange(12.0).reshape(4, 3)


class HandsOut:
    """What NumPy asks for an array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map"


@pytest.fixture
def memmap(path):
    return mmap_ninja.np_from_ndarray(path, ARRAY)


def checked(path):
    return manifest(path)["files"]["data"]["checked"]


def total(memmap):
    return float(memmap.sum()), type(memmap).__name__


@pytest.mark.parametrize("as_path", [str, os.fspath, lambda p: p])
def test_made_from_an_array(path, as_path):
    made = mmap_ninja.np_from_ndarray(as_path(path), ARRAY)
    assert isinstance(made, np.memmap)
    assert np.array_equal(made, ARRAY)
    assert Path(made.filename).parent == path
    opened = mmap_ninja.np_open_existing(as_path(path))
    assert isinstance(opened, np.memmap)
    assert np.array_equal(opened, ARRAY)
    assert Path(opened.filename).parent == path


def test_made_from_a_generator(path):
    made = mmap_ninja.np_from_generator(path, iter(ARRAY), 3)
    assert isinstance(made, np.memmap)
    assert np.array_equal(made, ARRAY)
    assert np.array_equal(mmap_ninja.np_from_generator(path, [1, 2, 3], 2, dtype="f2"), np.array([1, 2, 3], "f2"))
    with pytest.raises(ArgumentError, match="batch_size is 0, expected at least 1"):
        mmap_ninja.np_from_generator(path, ARRAY, 0)


def test_extended_and_appended(path, memmap):
    mmap_ninja.np_extend(memmap, ARRAY[:2])
    mmap_ninja.np_append(memmap, ARRAY[3])
    mmap_ninja.np_extend_dir(path, ARRAY[1:2])
    mmap_ninja.np_extend_dir(str(path), [[1, 2, 3]])
    assert memmap.shape == (4, 3)
    expected = np.concatenate([ARRAY, ARRAY[:2], ARRAY[3:], ARRAY[1:2], [[1, 2, 3]]])
    assert np.array_equal(mmap_ninja.np_open_existing(path), expected)
    mmap_ninja.np_append(mmap_ninja.np_open_existing(path)[2:], ARRAY[0])
    assert len(mmap_ninja.np_open_existing(path)) == 10


def test_extended_by_what_does_not_fit(path, memmap):
    before = tree(path)
    with pytest.raises(SampleError, match=r"shape \(2,\), expected \(3,\)"):
        mmap_ninja.np_append(memmap, np.zeros(2))
    with pytest.raises(SampleError, match=r"shape \(4,\), expected \(3,\)"):
        mmap_ninja.np_extend(memmap, np.zeros((2, 4)))
    with pytest.raises((SampleError, SampleTypeError), match=r"cannot be stored|no array of values"):
        mmap_ninja.np_extend(memmap, [["a", "b", "c"]])
    with pytest.raises(ArgumentTypeError, match="expected a list of samples"):
        mmap_ninja.np_extend_dir(path, {"a": 1})
    assert tree(path) == before


@pytest.mark.parametrize("thing", [ARRAY, "folder", None, [1]], ids=["array", "text", "none", "list"])
def test_extend_of_what_is_no_memmap(thing):
    with pytest.raises(ArgumentTypeError, match=f"expected an np.memmap of a map, got a {type(thing).__name__}"):
        mmap_ninja.np_extend(thing, ARRAY)
    with pytest.raises(ArgumentTypeError, match=f"expected an np.memmap of a map, got a {type(thing).__name__}"):
        mmap_ninja.np_append(thing, ARRAY[0])


def test_missing_folder(path):
    for use in (mmap_ninja.np_open_existing, lambda p: mmap_ninja.np_extend_dir(p, ARRAY)):
        with pytest.raises(MapNotFoundError, match="there is no map at"):
            use(path)
    assert not path.exists()


def test_folder_of_another_kind(path):
    RaggedMmap.from_lists(path, [[1]])
    before = tree(path)
    for mode in ("r", "r+", "c"):
        with pytest.raises(MapKindError, match="is a ragged map, not a dense one; use open_map"):
            mmap_ninja.np_open_existing(path, mode)
    with pytest.raises(MapKindError, match="is a ragged map, not a dense one"):
        mmap_ninja.np_extend_dir(path, ARRAY)
    assert tree(path) == before


def test_no_samples(path):
    DenseMmap.from_generator(path, [], 2)
    for mode in ("r", "c", "r+"):
        found = mmap_ninja.np_open_existing(path, mode)
        assert isinstance(found, np.memmap)
        assert found.shape == (0,)
    mmap_ninja.np_append(found, np.arange(3))
    assert mmap_ninja.np_open_existing(path).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("mode", ["w", "w+", "rb", "", None])
def test_unknown_mode(path, memmap, mode):
    before = tree(path)
    with pytest.raises(ArgumentError, match=r"mode is .*, expected one of \('r', 'r\+', 'c'\)"):
        mmap_ninja.np_open_existing(path, mode)
    assert tree(path) == before


def test_mode_r_is_read_only(path, memmap):
    before = tree(path)
    opened = mmap_ninja.np_open_existing(path)
    with pytest.raises(ValueError, match="read-only"):
        opened[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        opened.flags.writeable = True
    assert tree(path) == before


def test_mode_c_stays_in_memory(path, memmap):
    before = tree(path)
    opened = mmap_ninja.np_open_existing(path, "c")
    opened[0] = 100
    opened += 1
    assert opened[0].tolist() == [101] * 3
    assert np.array_equal(mmap_ninja.np_open_existing(path), ARRAY)
    assert tree(path) == before


def test_mode_r_plus_writes_and_says_so_first(path, memmap):
    assert checked(path) is True
    opened = mmap_ninja.np_open_existing(path, "r+")
    assert checked(path) is False
    opened[1] = [7, 8, 9]
    opened[2] += 1
    opened.flush()
    expected = ARRAY.copy()
    expected[1], expected[2] = [7, 8, 9], expected[2] + 1
    assert np.array_equal(mmap_ninja.np_open_existing(path), expected)
    assert np.array_equal(DenseMmap(path)[:], expected)
    assert checked(path) is False


def test_mode_r_plus_waits_for_no_writer(path, memmap):
    from contracts import locked

    with locked(path), pytest.raises(MapLockedError, match="is being written by another process or handle"):
        mmap_ninja.np_open_existing(path, "r+")
    assert checked(path) is True


def test_one_that_was_just_made_takes_assignments(path, memmap):
    assert checked(path) is True
    memmap[1] = [7, 8, 9]
    assert checked(path) is False
    memmap[2, 1] = -1
    expected = ARRAY.copy()
    expected[1], expected[2, 1] = [7, 8, 9], -1
    assert np.array_equal(memmap, expected)
    assert np.array_equal(mmap_ninja.np_open_existing(path), expected)


def test_one_that_was_just_made_takes_assignments_through_views(path, memmap):
    view = memmap[1:]
    view[0] = 5
    assert checked(path) is False
    assert mmap_ninja.np_open_existing(path)[1].tolist() == [5] * 3


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.__setitem__(0, a[0] + 1),
        lambda a: a[0].__iadd__(1),
        lambda a: a.__iadd__(1),
        lambda a: np.add(a, 1, out=a),
        lambda a: a.fill(3),
        lambda a: np.copyto(a, 3),
        lambda a: a[::-1].sort(axis=0),
    ],
    ids=["setitem", "iadd-row", "iadd", "out", "fill", "copyto", "sort"],
)
def test_one_that_was_just_made_changes_as_an_array_does(path, memmap, change):
    """With 0.9.0 it was an `np.memmap` of mode "w+", which all of NumPy may change."""
    expected = ARRAY.copy()
    change(expected)
    change(memmap)
    assert np.array_equal(mmap_ninja.np_open_existing(path), expected)
    assert checked(path) is False


def test_one_that_was_just_made_is_only_written_when_it_is_assigned_to(path, memmap):
    before = tree(path)
    memmap + 1, memmap.sum(), memmap[0], memmap.copy(), memmap[:2].tolist(), repr(memmap), pickle.dumps(memmap)
    memmap.copy()[0] = 5
    assert tree(path) == before


def test_pickles_as_a_path(path, memmap):
    opened = mmap_ninja.np_open_existing(path, "r")
    raw = pickle.dumps(opened)
    other = pickle.loads(raw)
    assert isinstance(other, np.memmap)
    assert other.filename == opened.filename
    assert other.mode == "r"
    assert np.array_equal(other, ARRAY)
    assert len(raw) < 500
    big = mmap_ninja.np_from_ndarray(path, np.zeros((1000, 1000)))
    assert len(pickle.dumps(big)) < 500


def test_pickled_one_that_was_just_made_takes_assignments(path, memmap):
    other = pickle.loads(pickle.dumps(memmap))
    other[0] = 9
    assert checked(path) is False
    assert mmap_ninja.np_open_existing(path)[0].tolist() == [9] * 3


def test_pickle_keeps_the_length(path, memmap):
    raw = pickle.dumps(mmap_ninja.np_open_existing(path))
    mmap_ninja.np_extend_dir(path, ARRAY)
    assert np.array_equal(pickle.loads(raw), ARRAY)
    mmap_ninja.np_from_ndarray(path, ARRAY)
    with pytest.raises(MapChangedError, match="was replaced since this handle was made; open it again"):
        pickle.loads(raw)


def test_views_and_results_pickle_as_arrays(path, memmap):
    opened = mmap_ninja.np_open_existing(path)
    for part in (
        opened[1:],
        opened[0],
        opened[::2],
        opened.T,
        opened + 1,
        opened.astype("f4"),
        opened.copy(),
        opened[:],
    ):
        other = pickle.loads(pickle.dumps(part))
        assert type(other) is np.ndarray
        assert same(other, np.asarray(part))
    assert same(copy.deepcopy(opened[1:]), np.asarray(opened[1:]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers(path, memmap, method):
    opened = mmap_ninja.np_open_existing(path)
    assert in_process(total, opened, method=method) == (ARRAY.sum(), "Memmap")
    assert in_process(total, opened[1:], method=method)[0] == ARRAY[1:].sum()


def test_old_one_keeps_a_replaced_map(path, memmap):
    opened = mmap_ninja.np_open_existing(path)
    mmap_ninja.np_from_ndarray(path, ARRAY[:1] * 100)
    assert np.array_equal(opened, ARRAY)
    assert np.array_equal(memmap, ARRAY)
    assert np.array_equal(mmap_ninja.np_open_existing(path), ARRAY[:1] * 100)


def test_one_that_was_just_made_does_not_write_to_its_replacement(path, memmap):
    mmap_ninja.np_from_ndarray(path, ARRAY * 100)
    before = tree(path)
    with pytest.raises(MapChangedError, match="was replaced"):
        memmap[0] = 5
    assert tree(path) == before


def test_aliases_are_the_functions():
    for name in ("append", "extend", "extend_dir", "from_generator", "from_ndarray", "open_existing"):
        assert getattr(mmap_ninja, f"np_{name}") is getattr(np_ninja, name)


def test_private_changes_are_pickled_with_it(path, memmap):
    private = mmap_ninja.np_open_existing(path, "c")
    private[0] = -1
    assert np.array_equal(pickle.loads(pickle.dumps(private)), private)


def test_many_workers_take_no_lock_to_open_one_that_may_be_written(path, memmap):
    raw = pickle.dumps(mmap_ninja.np_open_existing(path, "r+"))
    generation = manifest(path)["generation"]
    first, second = pickle.loads(raw), pickle.loads(raw)
    assert manifest(path)["generation"] == generation
    first[0] = -1
    assert second[0].tolist() == [-1] * 3


def test_changes_at_indices_mark_the_map(path, memmap):
    np.add.at(memmap, [0, 0], 1)
    assert checked(path) is False
    assert mmap_ninja.np_open_existing(path)[0].tolist() == (ARRAY[0] + 2).tolist()


def test_one_of_an_unfinished_map_warns(path):
    def loader():
        yield from ARRAY
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        mmap_ninja.np_from_generator(path, loader(), 2)
    with pytest.warns(PartBuiltWarning, match="resume=True"):
        assert len(mmap_ninja.np_open_existing(path)) == len(ARRAY)


def test_a_memmap_whose_files_were_copied_is_not_written_to(tmp_path):
    """A sync has failed, and a writer has copied the map: nobody reads the old files any more."""
    memmap = mmap_ninja.np_from_ndarray(tmp_path / "map", np.arange(5))
    forge(tmp_path / "map", synced=False, lost=True)
    with pytest.raises(MapChangedError, match=r"files of .* were replaced since this memmap was made"):
        memmap[0] = 7
    mmap_ninja.np_open_existing(tmp_path / "map", mode="r+")[0] = 7
    assert mmap_ninja.open_map(tmp_path / "map")[0] == 7


DAY, NANOSECOND = np.datetime64("5000-01-01", "D"), np.datetime64(1, "ns")
LOSSY = {
    "integer": (np.zeros(1), (2**53 + 1, 0.5)),
    "integers in rows": (np.zeros((1, 1)), ([2**53 + 1], [0.5])),
    "text": (np.array(["ab"]), collections.deque(["a\0", "b"])),
    "times": (np.zeros(1, "M8[ns]"), (DAY, NANOSECOND)),
    "mask": (np.zeros((1, 2)), (np.ma.masked_array([1.0, 2.0], [True, False]), np.zeros(2))),
    "masked rows": (np.zeros((1, 2)), np.ma.masked_array([[1.0, 2.0]], [[True, False]])),
    "masked, handed out": (np.zeros((1, 2)), HandsOut(np.ma.masked_array([[1.0, 2.0]], [[True, False]]))),
}


@pytest.mark.parametrize("name", LOSSY)
def test_nothing_is_lost_before_it_is_looked_at(path, name):
    there, samples = LOSSY[name]
    memmap = mmap_ninja.np_from_ndarray(path, there)
    before = tree(path)
    for add in (
        lambda: mmap_ninja.np_extend(memmap, samples),
        lambda: mmap_ninja.np_extend_dir(path, samples),
        lambda: mmap_ninja.np_append(memmap, samples),
        lambda: mmap_ninja.np_from_ndarray(path.parent / "other", samples),
    ):
        with pytest.raises((SampleError, SampleTypeError)):
            add()
    assert tree(path) == before
    assert not (path.parent / "other").exists()


@pytest.mark.parametrize(
    "samples",
    [
        ([1.0, 2, 3], [4, 5, 6]),
        collections.deque([np.arange(1, 4), [4, 5, 6]]),
        HandsOut(np.arange(1.0, 7).reshape(2, 3)),
        memoryview(np.arange(1.0, 7).reshape(2, 3)),
        np.ma.masked_array([[1, 2, 3], [4, 5, 6]]),
        [HandsOut(np.arange(1.0, 4)), (4, 5, 6)],
        (row for row in ([1, 2, 3], [4, 5, 6])),
    ],
    ids=["tuple", "deque", "what hands out an array", "memoryview", "masked", "list", "generator"],
)
def test_extended_by_all_that_holds_samples(path, memmap, samples):
    mmap_ninja.np_extend(memmap, samples)
    assert mmap_ninja.np_open_existing(path)[4:].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("sample", [(1, 2, 3), collections.deque([1.0, 2, 3]), range(1, 4), HandsOut(np.arange(1, 4))])
def test_one_sample_of_any_class_is_appended_as_one(path, memmap, sample):
    mmap_ninja.np_append(memmap, sample)
    assert mmap_ninja.np_open_existing(path)[4:].tolist() == [[1, 2, 3]]


def test_bytes_are_samples_as_0_9_0_has_taken_them(path):
    memmap = mmap_ninja.np_from_ndarray(path, np.zeros(1, "u1"))
    mmap_ninja.np_extend(memmap, bytearray(b"ab"))
    assert mmap_ninja.np_open_existing(path).tolist() == [0, 97, 98]
