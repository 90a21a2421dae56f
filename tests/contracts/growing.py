"""Appending and extending, also by several handles in turn."""

import contextlib
import threading

import numpy as np
import pytest

from contracts.comparison import assert_same, tree
from contracts.indices import N
from contracts.kind import KindContract
from contracts.processes import locked
from contracts.sources import failing
from mmap_ninja.errors import (
    ArgumentTypeError,
    MapChangedError,
    MapLockedError,
    SampleError,
    SampleIndexError,
    SampleTypeError,
)


class GrowingContract(KindContract):
    """Tests of what adds samples."""

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
