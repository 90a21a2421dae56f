"""What every kind of map does, once: a kind inherits `MapContract` and says which samples it holds."""

import contextlib
import copy
import ctypes
import fcntl
import hashlib
import json
import multiprocessing
import os
import pickle
import re
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import mmap_ninja
from mmap_ninja import MmapNinjaError, open_map
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    IndexTypeError,
    MapChangedError,
    MapClosedError,
    MapLockedError,
    MapNotFoundError,
    MapReadOnlyError,
    PartBuiltError,
    PartBuiltWarning,
    SampleError,
    SampleIndexError,
    SampleTypeError,
)

N = 9  # samples of every contract map

SINGLE = [0, 3, N - 1, -1, -N, np.int64(2), np.int8(-3), np.uint8(4), np.array(5)]
MANY = [
    slice(None),
    slice(2, 5),
    slice(None, None, 3),
    slice(None, None, -1),
    slice(-2, None),
    slice(7, 1, -2),
    slice(5, 2),
    slice(20, 30),
    [],
    [3],
    [0, -1, 4, 4],
    range(1, 8, 3),
    range(0),
    np.array([2, 0, -9]),
    np.array([], int),
    np.array([1, 8], np.uint8),
    np.arange(N)[::-2],
    np.arange(N) % 2 == 0,
    np.zeros(N, bool),
    [True, False, False, True, True, False, False, False, True],
]
OUTSIDE = [N, -N - 1, -2 * N, 10**6, 2**70, np.int64(N), [0, N], [-N - 1], np.array([0, 99]), np.array([200], np.uint8)]
WRONG_TYPES = [
    True,
    np.True_,
    1.0,
    np.float64(1),
    None,
    "1",
    (0, 1),
    Ellipsis,
    [0.5],
    ["a"],
    [[0], [1]],
    [[0], [1, 2]],
    np.zeros((2, 2), int),
    np.zeros((3, 3), bool),
    np.array([1.0]),
    np.array(1.0),
    np.array(True),
    slice("a", "b"),
]


# -- what the tests compare with -------------------------------------------------------------------------------------


def same(found, expected):
    """Whether two samples are the same in type, dtype, shape and every bit."""
    if isinstance(expected, np.ndarray | np.generic):
        found_array, expected = np.asarray(found), np.asarray(expected)
        return (
            isinstance(found, np.ndarray | np.generic)
            and found_array.dtype == expected.dtype
            and found_array.shape == expected.shape
            and found_array.tobytes() == expected.tobytes()
        )
    return type(found) is type(expected) and found == expected


def assert_same(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert same(one, other), f"sample {i}: {one!r}, expected {other!r}"


def pick(samples, index):
    """`samples[index]` for a list and everything that a map takes as an index for many."""
    if isinstance(index, slice):
        return samples[index]
    index = np.asarray(index)
    if index.dtype == bool:
        index = np.flatnonzero(index)
    return [samples[int(i)] for i in index]


def tree(folder):
    """Every file and folder below: what it contains, when it was written, its permissions."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        status = path.stat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        found[str(path.relative_to(folder))] = (content, status.st_mtime_ns, status.st_mode)
    return found


def manifest(folder):
    return json.loads((Path(folder) / "manifest.json").read_text())


def notes(error):
    """The message of an error with everything that was added to it."""
    return " ".join([str(error), *getattr(error, "__notes__", [])])


class Unsized:
    """An indexable that has no `len`."""

    def __init__(self, samples):
        self.samples = samples

    def __getitem__(self, i):
        return self.samples[i]


class FailsAt:
    """An indexable that raises at one number."""

    def __init__(self, samples, number, error):
        self.samples, self.number, self.error = samples, number, error

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        if i == self.number:
            raise self.error
        return self.samples[i]


def failing(samples, number, error):
    """A generator that raises instead of sample `number`."""
    yield from samples[:number]
    raise error


def tagged(sample):
    return ("wrapped", sample)


# -- what other processes run ----------------------------------------------------------------------------------------


def read_all(m):
    return list(m)


def read_pickled(raw):
    return list(pickle.loads(raw))


def open_and_read(path):
    m = open_map(path)
    return list(m), m[:2], m.lengths.tolist(), repr(m)


def extend_by_one(m, sample):
    m.append(sample)
    return len(m)


def drop_privileges():
    """Root may do everything; without its capabilities it is bound by permissions like everybody else."""
    if os.geteuid() == 0:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
            raise OSError(ctypes.get_errno(), "capset")


def in_process(function, *args, method="fork", unprivileged=False):
    """What `function(*args)` returns in another process."""
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, context, drop_privileges if unprivileged else None) as pool:
        return pool.submit(function, *args).result()


class MapContract:
    """Tests that hold for every kind. A subclass sets what follows."""

    kind = None  # the class
    samples = None  # N different samples as they go in
    more = None  # three further ones
    bad = None  # one that the kind refuses ...
    bad_match = None  # ... because
    options = {}  # of the kind's constructor method
    new_values = {}  # samples of the same size to assign, by number
    wrong_size = None  # a value that does not fit any sample

    def make(self, path, samples=None, **options):
        """By the kind's own constructor method."""
        raise NotImplementedError

    def read(self, sample):
        """The sample as it comes out."""
        return sample

    def all_read(self, samples=None):
        return [self.read(sample) for sample in (self.samples if samples is None else samples)]

    def window(self, sample, start, length):
        """The part of a sample as it comes out, None where a sample has no parts."""
        return sample[start : start + length]

    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "map"

    @pytest.fixture
    def m(self, path):
        self.make(path, sync=False)
        return self.kind(path, mode="r")

    @pytest.fixture(scope="class")
    @classmethod
    def reader(cls, tmp_path_factory):
        """A map that is only read, made once for all tests of the kind."""
        path = tmp_path_factory.mktemp("read") / "map"
        cls().make(path, sync=False)
        return cls.kind(path, mode="r")

    # -- making ------------------------------------------------------------------------------------------------------

    def test_constructor_method(self, path):
        assert_same(self.make(path), self.all_read())
        assert_same(self.kind(path), self.all_read())

    def test_constructor_method_returns_a_map_to_assign_to(self, path):
        made = self.make(path)
        assert type(made) is self.kind
        assert made.mode in ("r+", "r+b")
        assert made.out_dir == path

    @pytest.mark.parametrize("as_path", [str, Path])
    def test_folder_may_be_text_or_path(self, tmp_path, as_path):
        folder = as_path(tmp_path / "a" / "b")
        self.make(folder)
        assert_same(self.kind(folder), self.all_read())

    def test_folder_may_be_relative_and_the_working_folder_change(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        m = self.make("map")
        monkeypatch.chdir("/")
        m.append(self.more[0])
        assert_same(pickle.loads(pickle.dumps(m)), [*self.all_read(), self.read(self.more[0])])

    @pytest.mark.parametrize("batch_size", [1, 4, N, 1000, np.int64(2)])
    def test_from_generator(self, path, batch_size):
        made = self.kind.from_generator(path, iter(self.samples), 100 if self.options else batch_size, **self.options)
        assert_same(made, self.all_read())
        assert_same(self.kind(path), self.all_read())

    def test_from_generator_in_batches(self, path):
        made = self.kind.from_generator(path, iter(self.samples * 2), N, **self.options)
        assert_same(made, self.all_read() * 2)

    @pytest.mark.parametrize(
        ("indexable", "n_jobs"), [("sized", None), ("unsized", None), ("function", 1), ("sized", 2)]
    )
    def test_from_indexable(self, path, indexable, n_jobs):
        source = {"sized": list, "unsized": Unsized, "function": lambda s: s.__getitem__}[indexable](self.samples)
        made = self.kind.from_indexable(path, source, N, n_jobs, **self.options)
        assert_same(made, self.all_read())
        assert_same(self.kind(path), self.all_read())

    def test_no_samples(self, path):
        for made in (self.make(path, []), self.kind.from_generator(path, [], 4, **self.options), self.kind(path)):
            assert len(made) == 0
            assert list(made) == []
            assert len(made[:]) == 0
            assert len(made.take([])) == 0
            assert len(made.lengths) == len(made.starts) == len(made.ends) == 0
            with pytest.raises(SampleIndexError, match="index 0 is out of range for a map of 0 samples"):
                made[0]
        made.extend(self.samples)
        assert_same(self.kind(path), self.all_read())

    def test_without_syncs_it_reads_the_same(self, path):
        self.kind.from_generator(path, iter(self.samples), N, sync=False, **self.options)
        m = self.kind(path)
        m.append(self.more[0], sync=False)
        m.extend(self.more[1:], sync=False)
        m.flush()
        assert_same(self.kind(path), self.all_read(self.samples + self.more))

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_batch_size_below_one(self, path, batch_size):
        match = f"batch_size is {batch_size}, expected at least 1"
        with pytest.raises(ArgumentError, match=match):
            self.kind.from_generator(path, self.samples, batch_size)
        with pytest.raises(ArgumentError, match=match):
            self.kind.from_indexable(path, self.samples, batch_size)
        assert not path.exists()

    @pytest.mark.parametrize("batch_size", [None, True, 2.0, "2"])
    def test_batch_size_of_a_wrong_type(self, path, batch_size):
        match = f"batch_size is {batch_size!r}, expected an integer"
        with pytest.raises(ArgumentTypeError, match=re.escape(match)):
            self.kind.from_generator(path, self.samples, batch_size)
        with pytest.raises(ArgumentTypeError, match=re.escape(match)):
            self.kind.from_indexable(path, self.samples, batch_size)
        assert not path.exists()

    @pytest.mark.parametrize("samples", [5, None, "text", b"bytes", {"a": 1}])
    def test_from_generator_of_no_iterable_of_samples(self, path, samples):
        with pytest.raises(ArgumentTypeError, match=f"expected an iterable of samples, got a {type(samples).__name__}"):
            self.kind.from_generator(path, samples, 4)
        assert not path.exists()

    @pytest.mark.parametrize("indexable", [5, None])
    def test_from_indexable_of_no_indexable(self, path, indexable):
        with pytest.raises(ArgumentTypeError, match="neither indexable nor a function of one integer"):
            self.kind.from_indexable(path, indexable, 4)
        assert not path.exists()

    def test_unknown_option_is_refused_before_anything_is_made(self, path):
        with pytest.raises(TypeError, match="colour"):
            self.kind.from_generator(path, self.samples, 4, colour="red")
        assert not path.exists()

    def test_unknown_mode_is_refused_before_anything_is_made(self, path):
        with pytest.raises(ArgumentError, match="mode is 'w', expected 'r' to read or 'r\\+' to assign"):
            self.make(path, mode="w")
        assert not path.exists()
        with pytest.raises(ArgumentError, match="mode is 'w', expected 'r' to read or 'r\\+' to assign"):
            self.kind(path, mode="w")

    def test_progress_bar_knows_the_total(self, path, capsys):
        self.kind.from_indexable(path, self.samples, N, verbose=True, **self.options)
        assert f"{N}/{N}" in capsys.readouterr().err
        self.kind.from_generator(path, (s for s in self.samples), N, verbose=True, **self.options)
        assert f"{N}samples" in capsys.readouterr().err.replace(" ", "")
        self.kind.from_generator(path, self.samples, N, **self.options)
        assert capsys.readouterr().err == ""

    # -- failures while making ---------------------------------------------------------------------------------------

    def test_error_in_a_generator_keeps_its_type_and_tells_the_sample(self, path):
        with pytest.raises(ZeroDivisionError, match="mine") as caught:
            self.kind.from_generator(path, failing(self.samples, 5, ZeroDivisionError("mine")), 4)
        assert "while loading sample 5" in notes(caught.value)

    @pytest.mark.parametrize("error", [KeyError("mine"), IndexError("mine"), OSError(5, "mine")], ids=repr)
    def test_error_in_an_indexable_keeps_its_type_and_tells_the_sample(self, path, error):
        with pytest.raises(type(error), match="mine") as caught:
            self.kind.from_indexable(path, FailsAt(self.samples, 5, error), 4)
        assert "while loading sample 5" in notes(caught.value)

    def test_bad_first_sample_leaves_no_folder(self, path):
        with pytest.raises((SampleError, SampleTypeError), match=self.bad_match) as caught:
            self.make(path, [self.samples[0], self.bad])
        assert "sample 1" in str(caught.value)
        assert not path.exists()

    def test_bad_sample_in_a_later_batch_leaves_what_was_built(self, path):
        samples = [*self.samples, *self.more, self.bad]
        with pytest.raises((SampleError, SampleTypeError), match=self.bad_match) as caught:
            self.kind.from_generator(path, samples, N, **self.options)
        assert f"sample {N + 3}" in str(caught.value)
        with pytest.warns(PartBuiltWarning, match=f"has the {N} samples .* resume=True"):
            m = self.kind(path)
        assert_same(m, self.all_read())

    def test_part_built_map_reads_and_refuses_to_grow(self, path):
        with pytest.raises(ZeroDivisionError):
            self.kind.from_generator(path, failing(self.samples * 2, N + 2, ZeroDivisionError()), N, **self.options)
        with pytest.warns(PartBuiltWarning, match=f"has the {N} samples that were converted so far.*resume=True"):
            m = self.kind(path)
        assert_same(m, self.all_read())
        before = tree(path)
        with pytest.raises(
            PartBuiltError, match=f"never finished \\({N} samples so far\\); finish it with resume=True"
        ):
            m.append(self.more[0])
        assert tree(path) == before

    def test_part_built_warning_points_to_the_line_that_opened_the_map(self, path):
        with pytest.raises(ZeroDivisionError):
            self.kind.from_generator(path, failing(self.samples * 2, N, ZeroDivisionError()), N, **self.options)
        with pytest.warns(PartBuiltWarning, match="resume=True") as caught:
            self.kind(path)
        assert [warning.filename for warning in caught] == [__file__]

    @pytest.mark.parametrize("number", [0, 3, N, 2 * N + 1])
    def test_resumed_equals_uninterrupted(self, path, tmp_path, number):
        samples = self.samples * 3
        with pytest.raises(ZeroDivisionError):
            self.kind.from_generator(path, failing(samples, number, ZeroDivisionError()), N, **self.options)
        taken = []
        resumed = self.kind.from_generator(
            path, (taken.append(1) or s for s in samples), N, resume=True, **self.options
        )
        self.kind.from_generator(tmp_path / "other", iter(samples), N, **self.options)
        assert_same(resumed, self.all_read(samples))
        assert len(taken) == len(samples)
        assert not (path / "building.json").exists()
        for name in os.listdir(tmp_path / "other"):
            if name != "manifest.json":
                assert (path / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name

    def test_resumed_indexable_loads_only_what_is_missing(self, path):
        samples, loaded = self.samples * 2, []
        with pytest.raises(ZeroDivisionError):
            self.kind.from_indexable(path, FailsAt(samples, N + 1, ZeroDivisionError()), N, **self.options)
        resumed = self.kind.from_indexable(path, Recording(samples, loaded), N, resume=True, **self.options)
        assert_same(resumed, self.all_read(samples))
        assert loaded == list(range(N, 2 * N))

    def test_without_resume_a_build_starts_again(self, path):
        with pytest.raises(ZeroDivisionError):
            self.kind.from_generator(path, failing(self.samples * 2, N + 2, ZeroDivisionError()), N, **self.options)
        assert_same(self.kind.from_generator(path, self.samples, N, **self.options), self.all_read())
        assert set(os.listdir(path)) <= {"manifest.json", "data-2.npy", "index-2.npy", "zstd-2.dict", ".lock"}

    # -- replacing ---------------------------------------------------------------------------------------------------

    def test_failed_replacement_leaves_the_old_map(self, m, path):
        with pytest.raises(ZeroDivisionError):
            self.kind.from_generator(
                path, failing(self.samples[::-1] * 2, N + 1, ZeroDivisionError()), N, **self.options
            )
        assert_same(self.kind(path), self.all_read())
        assert_same(m, self.all_read())
        m.append(self.more[0])
        assert_same(self.kind(path), self.all_read([*self.samples, self.more[0]]))

    @pytest.mark.parametrize("factor", [1, 3])
    def test_open_reader_keeps_a_replaced_map(self, m, path, factor):
        held = [m[0], m[-1]]
        self.make(path, self.samples[::-1] * factor)
        assert_same(m, self.all_read())
        assert_same(held, [self.read(self.samples[0]), self.read(self.samples[-1])])
        with pytest.raises(MapChangedError, match="was replaced since it was opened; open it again"):
            m.append(self.more[0])
        m.refresh()
        assert_same(m, self.all_read(self.samples[::-1] * factor))
        assert len([name for name in os.listdir(path) if name.startswith("data")]) == 1

    def test_map_transformed_into_its_own_folder(self, m, path):
        self.kind.from_generator(path, reversed(m), N, **self.options)
        assert_same(self.kind(path), self.all_read()[::-1])

    # -- reading -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("index", SINGLE, ids=repr)
    def test_one(self, reader, index):
        assert same(reader[index], self.all_read()[int(index)])

    @pytest.mark.parametrize("index", MANY, ids=repr)
    def test_many(self, reader, index):
        found = reader[index]
        assert isinstance(found, np.ndarray if self.kind is mmap_ninja.DenseMmap else list)
        assert_same(found, pick(self.all_read(), index))

    @pytest.mark.parametrize("index", OUTSIDE, ids=repr)
    def test_out_of_range(self, reader, index):
        bad = index if np.ndim(index) == 0 else next(i for i in index if not -N <= i < N)
        with pytest.raises(SampleIndexError, match=f"index {bad} is out of range for a map of {N} samples"):
            reader[index]

    @pytest.mark.parametrize("index", WRONG_TYPES, ids=repr)
    def test_index_of_a_wrong_type(self, reader, index):
        with pytest.raises(
            IndexTypeError, match=r"a map is indexed by integers, slices, lists or 1-D arrays|a slice of a map goes by"
        ):
            reader[index]

    @pytest.mark.parametrize("length", [0, 1, N - 1, N + 1])
    @pytest.mark.parametrize("as_mask", [list, np.array])
    def test_mask_of_a_wrong_length(self, reader, length, as_mask):
        if length == 0 and as_mask is list:
            pytest.skip("an empty list has no type")
        with pytest.raises(SampleIndexError, match=f"a boolean mask of {length} values for a map of {N} samples"):
            reader[as_mask([True] * length) if length else np.zeros(0, bool)]

    def test_index_of_an_object_that_is_an_integer(self, reader):
        class Two:
            def __index__(self):
                return 2

        assert same(reader[Two()], self.all_read()[2])

    def test_iteration(self, reader):
        assert_same(iter(reader), self.all_read())
        assert_same(reversed(reader), self.all_read()[::-1])
        assert len(reader) == N

    def test_membership(self, reader):
        assert all(sample in reader for sample in self.all_read())
        assert self.read(self.more[0]) not in reader
        for other in (None, object(), "nowhere", b"nowhere", 10**40):
            assert other not in reader

    @pytest.mark.parametrize("as_indices", [list, tuple, np.array, iter])
    def test_take(self, reader, as_indices):
        assert_same(reader.take(as_indices([5, -1, 0, 5])), [self.all_read()[i] for i in (5, -1, 0, 5)])
        assert_same(reader.take(range(0, N, 4)), self.all_read()[::4])
        assert len(reader.take([])) == 0

    def test_take_refuses_what_indexing_refuses(self, reader):
        with pytest.raises(SampleIndexError, match=f"index {N} is out of range for a map of {N} samples"):
            reader.take([0, N])
        for bad in ([0.5], "ab", [[1]], 3, None):
            with pytest.raises(IndexTypeError, match="indexed by"):
                reader.take(bad)

    def test_what_the_index_knows(self, reader):
        starts, ends, lengths, shapes = reader.starts, reader.ends, reader.lengths, reader.shapes
        assert all(column.dtype == np.int64 for column in (starts, ends, lengths, shapes))
        assert starts[0] == 0
        assert ends.tolist()[:-1] == starts.tolist()[1:]
        assert len(starts) == len(ends) == len(lengths) == len(shapes) == N
        assert lengths.tolist() == [self.length(sample) for sample in self.all_read()]
        assert shapes.ndim == 2
        for row, sample in zip(shapes.tolist(), self.all_read(), strict=True):
            assert tuple(axis for axis in row if axis != -1) == self.shape(sample)
        assert reader.nbytes == int(ends[-1]) * reader.dtype.itemsize
        assert (reader.out_dir / "data.npy").stat().st_size == reader.nbytes + 128

    def length(self, sample):
        return len(sample) if np.ndim(sample) or isinstance(sample, bytes) else 1

    def shape(self, sample):
        return np.shape(sample)

    def test_window(self, reader):
        for i in (0, 4, -1):
            sample = self.all_read()[i]
            length = self.length(sample)
            for start, count in ((0, length), (0, 0), (length, 0), (length // 2, length - length // 2)):
                expected = self.window(sample, start, count)
                if expected is None:
                    with pytest.raises(SampleError, match=f"sample {i} is a scalar, it has no window"):
                        reader.window(i, start, count)
                else:
                    assert same(reader.window(i, start, count), expected)

    def test_window_out_of_range(self, reader):
        if self.window(self.all_read()[0], 0, 0) is None:
            pytest.skip("scalars have no window")
        length = self.length(self.all_read()[0])
        for start, count in ((0, length + 1), (length, 1), (-1, 1), (0, -1), (length + 1, 0)):
            with pytest.raises(SampleIndexError, match=f"sample 0 has length {length}, the window is"):
                reader.window(0, start, count)
        with pytest.raises(SampleIndexError, match=f"index {N} is out of range for a map of {N} samples"):
            reader.window(N, 0, 0)
        for wrong in ((0, "0", 1), (0, 0, 1.5), (0, None, 1), ("0", 0, 1), (True, 0, 1), (1.0, 0, 1)):
            with pytest.raises(MmapNinjaError) as caught:
                reader.window(*wrong)
            assert isinstance(caught.value, TypeError)

    @pytest.mark.parametrize("indices", [[], [0], [3, 1, -1], range(N), np.array([2, 2]), slice(None)], ids=repr)
    def test_will_need(self, reader, indices):
        assert reader.will_need(indices) is None
        assert_same(reader, self.all_read())

    def test_will_need_out_of_range(self, reader):
        with pytest.raises(SampleIndexError, match=f"index {N} is out of range for a map of {N} samples"):
            reader.will_need([N])

    def test_repr_tells_kind_folder_and_length(self, m, path):
        assert repr(m).startswith(f"<{self.kind.__name__} {str(path)!r} of length: {N}, dtype: {m.dtype}")
        m.close()
        assert repr(m) == f"<{self.kind.__name__} {str(path)!r}, closed>"

    def test_metadata(self, path):
        m = self.make(path, metadata={"labels": ["a", "b"], "scale": 0.5})
        assert m.metadata == self.kind(path).metadata == {"labels": ["a", "b"], "scale": 0.5}
        m.metadata = {"labels": []}
        assert m.metadata == self.kind(path).metadata == {"labels": []}
        m.append(self.more[0])
        assert self.kind(path).metadata == {"labels": []}
        assert_same(m, self.all_read([*self.samples, self.more[0]]))

    def test_metadata_is_a_copy(self, path):
        m = self.make(path, metadata={"labels": ["a"]})
        m.metadata["labels"].append("b")
        m.metadata["more"] = 1
        assert m.metadata == {"labels": ["a"]}

    @pytest.mark.parametrize("metadata", [{"a": {1, 2}}, {"a": float("nan")}, [1], "text", {"a": b"x"}])
    def test_metadata_that_json_cannot_hold(self, m, path, metadata):
        before = tree(path)
        with pytest.raises(ArgumentTypeError, match="metadata has to be a dict of JSON values"):
            m.metadata = metadata
        with pytest.raises(ArgumentTypeError, match="metadata has to be a dict of JSON values"):
            self.make(path, metadata=metadata)
        assert tree(path) == before

    def test_metadata_that_is_too_large(self, m, path):
        before = tree(path)
        with pytest.raises(ArgumentError, match="keep less in `metadata`"):
            m.metadata = {"text": "x" * 2**20}
        assert tree(path).keys() - before.keys() <= {"manifest.json.new"}
        assert_same(self.kind(path), self.all_read())

    # -- wrapper_fn --------------------------------------------------------------------------------------------------

    def test_wrapper_fn_is_applied_to_every_sample(self, path):
        self.make(path)
        m = self.kind(path, wrapper_fn=tagged)
        assert m[2][0] == "wrapped"
        for found in (m[:], m[list(range(N))], m.take(range(N)), list(m), list(reversed(m))[::-1]):
            assert [tag for tag, _ in found] == ["wrapped"] * N
            assert_same([sample for _, sample in found], self.all_read())

    def test_wrapper_fn_of_the_constructor_methods(self, path):
        made = self.make(path, wrapper_fn=tagged)
        assert made[0][0] == "wrapped"
        made = self.kind.from_generator(path, self.samples, N, wrapper_fn=tagged, **self.options)
        assert made[0][0] == "wrapped"
        assert_same(self.kind(path), self.all_read())

    def test_wrapper_fn_gets_a_copy_unless_told_otherwise(self, path):
        self.make(path)

        def is_view(copied):
            m = self.kind(path, wrapper_fn=lambda sample: sample, copy_before_wrapper_fn=copied)
            return isinstance(m[0], np.ndarray) and not m[0].flags.owndata

        assert not is_view(True)
        assert is_view(False) == isinstance(self.kind(path)[0], np.ndarray)

    # -- promises about reading --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("mode", ["r", "rb", "r+", "r+b"])
    def test_samples_are_read_only(self, path, mode):
        self.make(path)
        m = self.kind(path, mode=mode)
        if not isinstance(m[0], np.ndarray):
            pytest.skip("immutable anyway")
        for sample in (m[0], m.window(0, 0, 1)):
            assert not sample.flags.owndata
            with pytest.raises(ValueError, match="read-only"):
                sample[...] = 0
            with pytest.raises(ValueError, match="WRITEABLE"):
                sample.flags.writeable = True
        assert_same(self.kind(path), self.all_read())

    def test_reading_writes_nothing(self, path):
        self.make(path)
        before = tree(path.parent)
        for m in (self.kind(path), self.kind(path, mode="r+"), open_map(path), mmap_ninja.open_existing(path)):
            list(m), m[:], m[[0, 1]]
        m = self.kind(path)
        m.take([0]), m.window(0, 0, 0) if self.window(self.all_read()[0], 0, 0) is not None else None
        m.will_need([0]), m.lengths, m.starts, m.ends, m.shapes, m.nbytes, m.metadata, repr(m), len(m)
        pickle.loads(pickle.dumps(m)), m.refresh(), m.flush(), m.close()
        assert tree(path.parent) == before

    def test_reading_needs_no_write_permission(self, path):
        self.make(path)
        files = [path / name for name in os.listdir(path)]
        for name in files:
            name.chmod(0o400)
        path.chmod(0o500)
        try:
            samples, two, lengths, text = in_process(open_and_read, path, unprivileged=True)
            assert_same(samples, self.all_read())
            assert_same(two, self.all_read()[:2])
            assert lengths == [self.length(sample) for sample in self.all_read()]
            assert self.kind.__name__ in text
            m = self.kind(path)
            with pytest.raises(PermissionError):
                in_process(extend_by_one, m, self.more[0], unprivileged=True)
        finally:
            path.chmod(0o700)
        assert_same(m, self.all_read())

    def test_missing_folder_is_an_empty_map_until_the_first_append(self, path):
        m = self.kind(path)
        assert len(m) == 0
        assert list(m) == []
        with pytest.raises(SampleIndexError, match="index 0 is out of range for a map of 0 samples"):
            m[0]
        with pytest.raises(SampleIndexError, match="index -1 is out of range for a map of 0 samples"):
            m[-1]
        assert repr(m).startswith(f"<{self.kind.__name__} ")
        m.extend([])
        m.refresh(), m.flush(), m.close()
        assert not path.exists()
        m = self.kind(path)
        m.append(self.samples[0])
        m.extend(self.samples[1:])
        assert_same(m, self.all_read())
        assert_same(self.kind(path), self.all_read())

    def test_missing_folder_is_an_error_for_the_openers(self, path):
        for opener in (open_map, mmap_ninja.open_existing):
            with pytest.raises(MapNotFoundError, match=f"there is no map at {re.escape(str(path))}"):
                opener(path)
        assert not path.exists()

    def test_open_map_gives_the_kind(self, m, path):
        opened = open_map(path)
        assert type(opened) is self.kind
        assert opened.mode == "r"
        assert_same(opened, self.all_read())
        assert open_map(path, tagged)[0][0] == "wrapped"

    # -- growing -----------------------------------------------------------------------------------------------------

    def test_append_and_extend(self, m, path):
        m.append(self.more[0])
        assert_same(m, self.all_read([*self.samples, self.more[0]]))
        m.extend(self.more[1:])
        expected = self.all_read(self.samples + self.more)
        assert_same(m, expected)
        assert_same(self.kind(path), expected)
        m.extend(sample for sample in self.samples)
        assert_same(self.kind(path), expected + self.all_read())
        assert len(m.lengths) == len(m) == 2 * N + 3

    def test_extend_by_nothing_changes_nothing(self, m, path):
        before = tree(path)
        m.extend([])
        m.extend(iter([]))
        assert tree(path) == before

    @pytest.mark.parametrize("samples", ["text", b"bytes", {"a": 1}, None, 5, np.array(5)], ids=repr)
    def test_extend_by_what_is_no_list_of_samples(self, m, path, samples):
        before = tree(path)
        with pytest.raises(ArgumentTypeError, match=f"expected a list of samples, got a {type(samples).__name__}"):
            m.extend(samples)
        if samples is not None:  # which `make` takes for the usual ones
            with pytest.raises(ArgumentTypeError, match=f"expected a list of samples, got a {type(samples).__name__}"):
                self.make(path, samples)
        assert tree(path) == before

    @pytest.mark.parametrize("place", [0, 1, 3])
    def test_bad_sample_stores_nothing_of_its_batch(self, m, path, place):
        before = tree(path)
        samples = [*self.more[:place], self.bad, *self.more[place:]]
        with pytest.raises((SampleError, SampleTypeError), match=self.bad_match) as caught:
            m.extend(samples)
        assert f"sample {N + place} (item {place} of this batch)" in str(caught.value)
        with pytest.raises((SampleError, SampleTypeError), match=self.bad_match):
            m.append(self.bad)
        assert tree(path) == before
        assert_same(m, self.all_read())
        m.append(self.more[0])
        assert_same(self.kind(path), self.all_read([*self.samples, self.more[0]]))

    @pytest.mark.parametrize(
        "sample", [None, {"a": 1}, object(), {1, 2}, np.array([None])], ids=lambda sample: type(sample).__name__
    )
    def test_sample_that_no_map_can_hold(self, m, path, sample):
        before = tree(path)
        with pytest.raises(SampleTypeError, match=f"sample {N} "):
            m.append(sample)
        assert tree(path) == before

    def test_error_in_an_iterable_stores_nothing(self, m, path):
        before = tree(path)
        with pytest.raises(ZeroDivisionError):
            m.extend(failing(self.more, 2, ZeroDivisionError()))
        assert tree(path) == before

    def test_other_handles_see_new_samples_after_refresh(self, m, path):
        other = self.kind(path)
        m.extend(self.more)
        assert_same(other, self.all_read())
        with pytest.raises(SampleIndexError, match=f"index {N} is out of range for a map of {N} samples"):
            other[N]
        other.refresh()
        assert_same(other, self.all_read(self.samples + self.more))

    def test_handle_of_a_missing_map_sees_it_after_refresh(self, path):
        m = self.kind(path)
        self.make(path)
        assert len(m) == 0
        m.refresh()
        assert_same(m, self.all_read())

    def test_stale_handle_keeps_the_samples_of_both(self, m, path):
        stale = self.kind(path)
        m.append(self.more[0])
        stale.append(self.more[1])
        m.append(self.more[2])
        assert_same(m, self.all_read(self.samples + self.more))
        assert_same(self.kind(path), self.all_read(self.samples + self.more))

    def test_handle_of_a_missing_map_appends_to_one_made_meanwhile(self, path):
        stale = self.kind(path)
        self.make(path)
        with contextlib.suppress(MapChangedError):
            stale.append(self.more[0])
            assert_same(self.kind(path), self.all_read([*self.samples, self.more[0]]))
        assert_same(self.kind(path)[:N], self.all_read())

    def test_second_writer_is_refused_at_once(self, m, path):
        before = tree(path)
        with locked(path):
            for write in (lambda: m.append(self.more[0]), lambda: m.extend(self.more), lambda: self.make(path)):
                with pytest.raises(MapLockedError, match="is being written by another process or handle"):
                    write()
        assert tree(path) == before
        m.append(self.more[0])

    def test_writer_waits_as_long_as_it_is_told(self, m, path):
        with locked(path) as release:
            timer = threading.Timer(0.05, release)
            timer.start()
            m.append(self.more[0], timeout=10)
            timer.join()
        assert len(self.kind(path)) == N + 1

    # -- the end -----------------------------------------------------------------------------------------------------

    def test_closed_map_refuses_everything(self, m, path):
        held = m[0]
        m.close()
        m.close()
        uses = [
            lambda: m[0],
            lambda: m[-1],
            lambda: m[N],
            lambda: m[:],
            lambda: m[[0]],
            lambda: m[np.zeros(N, bool)],
            lambda: len(m),
            lambda: list(m),
            lambda: list(reversed(m)),
            lambda: held in m,
            lambda: m.take([0]),
            lambda: m.window(0, 0, 0),
            lambda: m.will_need([0]),
            lambda: m.lengths,
            lambda: m.shapes,
            lambda: m.starts,
            lambda: m.ends,
            lambda: m.dtype,
            lambda: m.nbytes,
            lambda: m.metadata,
            lambda: setattr(m, "metadata", {}),
            lambda: m.append(self.more[0]),
            lambda: m.extend(self.more),
            lambda: m.__setitem__(0, self.samples[0]),
            lambda: m.flush(),
            lambda: m.refresh(),
            lambda: pickle.dumps(m),
            lambda: m.__enter__(),
        ]
        for number, use in enumerate(uses):
            with pytest.raises(MapClosedError, match="was closed"):
                assert use() is number, f"use {number} of a closed map is not refused"
        assert same(held, self.all_read()[0])
        assert_same(self.kind(path), self.all_read())

    def test_context_manager(self, path):
        with self.make(path) as m:
            m.append(self.more[0])
            assert len(m) == N + 1
        with pytest.raises(MapClosedError, match="closed"):
            m[0]
        with pytest.raises(ZeroDivisionError), self.kind(path) as m:
            raise ZeroDivisionError
        with pytest.raises(MapClosedError, match="closed"):
            m[0]

    # -- pickling, processes, threads --------------------------------------------------------------------------------

    def test_pickle_is_a_path(self, m, path):
        other = pickle.loads(pickle.dumps(m))
        assert type(other) is self.kind
        assert other.mode == m.mode
        assert_same(other, self.all_read())
        small = len(pickle.dumps(m))
        for _ in range(6):
            m.extend(self.all_read(list(m)) if not self.options else self.samples * 20)
        assert small <= len(pickle.dumps(m)) + 8 <= small + 32
        assert small < 2048

    def test_pickle_keeps_options(self, path):
        self.make(path)
        m = pickle.loads(pickle.dumps(self.kind(path, mode="r+", wrapper_fn=tagged, copy_before_wrapper_fn=False)))
        assert m.mode == "r+"
        assert m.copy_before_wrapper_fn is False
        assert m[0][0] == "wrapped"

    def test_pickled_handle_keeps_its_snapshot(self, m):
        raw = pickle.dumps(m)
        m.extend(self.more)
        other = pickle.loads(raw)
        assert_same(other, self.all_read())
        assert_same(other[:], self.all_read())
        assert len(other.lengths) == N
        assert other.nbytes == int(other.ends[-1]) * other.dtype.itemsize
        other.refresh()
        assert_same(other, self.all_read(self.samples + self.more))

    def test_copies_are_handles_of_the_same_snapshot(self, m):
        for other in (copy.copy(m), copy.deepcopy(m)):
            assert other is not m
            assert_same(other, self.all_read())

    def test_pickle_of_a_replaced_map(self, m, path):
        raw = pickle.dumps(m)
        self.make(path)
        with pytest.raises(MapChangedError, match="was replaced since this handle was made; open it again"):
            pickle.loads(raw)

    def test_pickle_of_a_map_that_is_gone(self, m, path):
        raw = pickle.dumps(m)
        path.rename(path.with_name("moved"))
        with pytest.raises(MapNotFoundError, match="there is no map at"):
            pickle.loads(raw)

    def test_pickle_of_an_empty_map(self, path):
        m = pickle.loads(pickle.dumps(self.kind(path)))
        assert len(m) == 0
        assert not path.exists()

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_workers_read_the_same_snapshot(self, m, path, method):
        raw = pickle.dumps(m)
        self.kind(path).extend(self.more)
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(1, context) as pool:
            assert_same(pool.submit(read_all, m).result(), self.all_read())
            assert_same(pool.submit(read_pickled, raw).result(), self.all_read())
            self.make(path)
            with pytest.raises(MapChangedError, match="was replaced since this handle was made"):
                pool.submit(read_pickled, raw).result()

    def test_forked_worker_may_write(self, m, path):
        assert in_process(extend_by_one, m, self.more[0]) == N + 1
        m.append(self.more[1])
        assert_same(m, self.all_read([*self.samples, *self.more[:2]]))

    def test_threads_read_while_the_map_grows(self, m):
        expected = self.all_read()

        def check(_):
            for i in range(N):
                assert same(m[i], expected[i])
            assert_same(m.take(range(N)), expected)

        with ThreadPoolExecutor(4) as pool:
            checks = [pool.submit(check, k) for k in range(40)]
            for _ in range(5):
                m.extend(self.more, sync=False)
                m.refresh()
            for done in checks:
                done.result()
        assert len(m) == N + 15

    # -- assignment --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("mode", ["r", "rb"])
    def test_assignment_to_a_map_open_for_reading(self, path, mode):
        self.make(path)
        before = tree(path)
        m = self.kind(path, mode=mode)
        with pytest.raises(MapReadOnlyError, match=f'mode "{mode}".*mode="r\\+"'):
            m[0] = self.samples[0]
        assert tree(path) == before

    def test_assignment(self, path):
        if not self.new_values:
            pytest.skip("compressed")
        m = self.make(path)
        expected = self.all_read()
        for i, value in self.new_values.items():
            m[i] = value
            expected[i] = self.read(value)
        assert_same(m, expected)
        assert_same(self.kind(path), expected)
        m.close()
        assert_same(self.kind(path), expected)

    def test_assignment_of_many(self, path):
        if not self.new_values:
            pytest.skip("compressed")
        m = self.make(path)
        expected = self.all_read()
        numbers, values = list(self.new_values), list(self.new_values.values())
        m[numbers] = values
        m[[i - N for i in numbers]] = values
        m[np.array(numbers[:1])] = values[:1]
        m[2:2] = []
        for i, value in self.new_values.items():
            expected[i] = self.read(value)
        assert_same(m, expected)
        m[:] = self.samples
        assert_same(m, self.all_read())

    def test_assignment_marks_the_data_as_unchecked_until_flush(self, path):
        if not self.new_values:
            pytest.skip("compressed")
        m = self.make(path)
        tail = manifest(path)["files"]["data"]["tail_crc"]
        [i, *_] = self.new_values
        assert manifest(path)["files"]["data"]["checked"] is True
        m[i] = self.new_values[i]
        first = manifest(path)
        assert first["files"]["data"]["checked"] is False
        m[i] = self.samples[i]
        m[i] = self.new_values[i]
        assert manifest(path) == first, "only the first assignment commits"
        m.flush()
        assert manifest(path)["files"]["data"]["checked"] is True
        assert manifest(path)["files"]["data"]["tail_crc"] != tail
        m[i] = self.samples[i]
        assert manifest(path)["files"]["data"]["checked"] is False
        m.close()
        assert manifest(path)["files"]["data"]["checked"] is True
        assert manifest(path)["files"]["data"]["tail_crc"] == tail

    def test_append_after_an_assignment(self, path):
        if not self.new_values:
            pytest.skip("compressed")
        m = self.make(path)
        [i, *_] = self.new_values
        m[i] = self.new_values[i]
        m.append(self.more[0])
        expected = self.all_read([*self.samples, self.more[0]])
        expected[i] = self.read(self.new_values[i])
        assert_same(self.kind(path), expected)
        assert manifest(path)["files"]["data"]["checked"] is True

    def test_refused_assignment_changes_nothing(self, path):
        if not self.new_values:
            pytest.skip("compressed")
        m = self.make(path)
        [i, *_] = self.new_values
        before = tree(path)
        refused = [
            (i, self.wrong_size, SampleError, f"sample {i}: the new value has"),
            (i, None, SampleTypeError, f"sample {i}: "),
            (i, {"a": 1}, SampleTypeError, f"sample {i}: "),
            ([i, i], [self.new_values[i]], SampleError, "expected a sequence of 2 samples to assign"),
            ([i, i], 5, SampleError, "expected a sequence of 2 samples to assign"),
            ([i, i], "ab", SampleError, "expected a sequence of 2 samples to assign"),
            ([i, i], [self.new_values[i], self.wrong_size], SampleError, f"sample {i}: the new value has"),
            (N, self.samples[0], SampleIndexError, f"index {N} is out of range for a map of {N} samples"),
            (-N - 1, self.samples[0], SampleIndexError, f"index {-N - 1} is out of range for a map of {N} samples"),
            (1.0, self.samples[0], IndexTypeError, "a map is indexed by"),
            (True, self.samples[0], IndexTypeError, "a map is indexed by"),
            ("a", self.samples[0], IndexTypeError, "a map is indexed by"),
        ]
        for index, value, error, match in refused:
            with pytest.raises(error, match=match):
                m[index] = value
        assert tree(path) == before
        assert_same(m, self.all_read())

    def test_assignment_to_a_compressed_map(self, path):
        if self.new_values:
            pytest.skip("not compressed")
        m = self.make(path)
        before = tree(path)
        with pytest.raises(MapReadOnlyError, match="is compressed; its samples cannot be assigned in place"):
            m[0] = self.samples[0]
        assert tree(path) == before

    def test_assignment_to_a_replaced_map(self, path):
        if not self.new_values:
            pytest.skip("compressed")
        m = self.make(path)
        self.make(path)
        before = tree(path)
        [i, *_] = self.new_values
        with pytest.raises(MapChangedError, match="was replaced since it was opened; open it again"):
            m[i] = self.new_values[i]
        assert tree(path) == before

    def test_assignments_of_two_handles_are_vouched_for_by_nobody(self, path):
        if not self.new_values:
            pytest.skip("compressed")
        one, other = self.make(path), self.kind(path, mode="r+")
        [i, *_] = self.new_values
        one[i] = self.new_values[i]
        other[i] = self.new_values[i]
        one.close()
        assert manifest(path)["files"]["data"]["checked"] is False
        other.close()
        assert manifest(path)["files"]["data"]["checked"] is False

    # -- warnings ----------------------------------------------------------------------------------------------------

    def test_ordinary_use_warns_of_nothing(self, path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            m = self.make(path)
            m.extend(self.more)
            list(m)
            m.close()


class Recording:
    """An indexable that writes down what was asked for."""

    def __init__(self, samples, asked):
        self.samples, self.asked = samples, asked

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        self.asked.append(i)
        return self.samples[i]


@contextlib.contextmanager
def locked(path):
    """Hold the writer's lock of a map, as another process would; yields a function that lets go of it."""
    with open(path / ".lock", "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)
