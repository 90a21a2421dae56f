"""Assigning to samples in place, where the kind allows it."""

import numpy as np
import pytest

from contracts.comparison import assert_same, manifest, tree
from contracts.indices import N
from contracts.kind import KindContract
from mmap_ninja.errors import (
    IndexTypeError,
    MapChangedError,
    MapReadOnlyError,
    SampleError,
    SampleIndexError,
    SampleTypeError,
)


class AssigningContract(KindContract):
    """Tests of what changes samples."""

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
