"""Reading: what an index means, what a map knows of itself, and that nothing is written."""

import os
import pickle
import re

import numpy as np
import pytest

import mmap_ninja
from contracts.comparison import assert_same, same, tree
from contracts.indices import MANY, OUTSIDE, SINGLE, WRONG_TYPES, N, pick
from contracts.kind import KindContract, tagged
from contracts.processes import extend_by_one, in_process, open_and_read
from mmap_ninja import MmapNinjaError, open_map
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    IndexTypeError,
    MapNotFoundError,
    SampleError,
    SampleIndexError,
)


class ReadingContract(KindContract):
    """Tests of what reads a map."""

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

    @pytest.mark.parametrize(
        ("metadata", "match"),
        [
            ({1: "a", "1": "b"}, "metadata has the key 1, which JSON would alter; the keys of metadata are texts"),
            ({"a": [{None: 1}]}, r"metadata\['a'\]\[0\] has the key None"),
            ({True: 1}, "has the key True"),
            ({0.5: 1}, "has the key 0.5"),
            ({"a": "\ud83d\ude00"}, r"metadata\['a'\] is .*, which would come back as"),
            ({"a": 10**5000}, "metadata has to be a dict of JSON values"),
        ],
        ids=["int", "nested", "bool", "float", "surrogates", "huge"],
    )
    def test_metadata_that_json_would_alter(self, m, path, metadata, match):
        before = tree(path)
        with pytest.raises(ArgumentTypeError, match=match):
            m.metadata = metadata
        with pytest.raises(ArgumentTypeError, match=match):
            self.make(path, metadata=metadata)
        assert tree(path) == before

    def test_tuples_in_metadata_become_lists(self, path):
        m = self.make(path, metadata={"shape": (3, (4, 5)), "part": np.float64(0.1)})
        assert m.metadata == self.kind(path).metadata == {"shape": [3, [4, 5]], "part": 0.1}

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
