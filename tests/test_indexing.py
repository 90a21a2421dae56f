"""The rules of `m[...]`, against those of Python lists."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import MANY, OUTSIDE, WRONG_TYPES, N, pick
from mmap_ninja.errors import IndexTypeError, SampleIndexError
from mmap_ninja.indexing import is_single, position, positions

modest = settings(max_examples=300, deadline=None, derandomize=True)


@modest
@given(length=st.integers(0, 20), index=st.integers(-30, 30))
def test_position_is_that_of_a_list(length, index):
    numbers = list(range(length))
    for same_index in (index, np.int8(index), np.array(index)):
        assert is_single(same_index)
        try:
            expected = numbers[index]
        except IndexError:
            with pytest.raises(SampleIndexError, match=f"index {index} is out of range for a map of {length} samples"):
                position(same_index, length)
        else:
            assert position(same_index, length) == expected


@modest
@given(length=st.integers(0, 20), bounds=st.tuples(*[st.none() | st.integers(-30, 30)] * 2), step=st.integers(-5, 5))
def test_slice_is_that_of_a_list(length, bounds, step):
    index = slice(*bounds, step or None)
    assert positions(index, length).tolist() == list(range(length))[index]


@modest
@given(length=st.integers(1, 20), data=st.data())
def test_list_and_array_and_mask(length, data):
    index = data.draw(st.lists(st.integers(-length, length - 1), min_size=1))
    for same_index in (index, np.array(index), np.array(index, "i1"), np.array(index, ">i4")):
        assert positions(same_index, length).tolist() == [list(range(length))[i] for i in index]
    mask = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    for same_mask in (mask, np.array(mask)):
        assert positions(same_mask, length).tolist() == [i for i in range(length) if mask[i]]


@pytest.mark.parametrize("index", MANY, ids=repr)
def test_many(index):
    found = positions(index, N)
    assert found.dtype == np.int64
    assert found.tolist() == pick(list(range(N)), index)
    assert not is_single(index)


@pytest.mark.parametrize("index", OUTSIDE, ids=repr)
def test_out_of_range(index):
    with pytest.raises(SampleIndexError, match=rf"index -?\d+ is out of range for a map of {N} samples"):
        position(index, N) if is_single(index) else positions(index, N)


@pytest.mark.parametrize("index", WRONG_TYPES, ids=repr)
def test_wrong_type(index):
    assert not is_single(index)
    with pytest.raises(
        IndexTypeError, match=r"a map is indexed by integers, slices, lists or 1-D arrays|a slice of a map goes by"
    ):
        positions(index, N)


def test_huge_number_in_a_list_is_out_of_range():
    with pytest.raises(SampleIndexError, match=f"index {2**70} is out of range for a map of {N} samples"):
        positions([2**70], N)
    with pytest.raises(SampleIndexError, match=f"index {2**64 - 1} is out of range for a map of {N} samples"):
        positions(np.array([2**64 - 1], "u8"), N)


def test_unsigned_indices_do_not_wrap():
    assert positions(np.array([0, 255], "u1"), 256).tolist() == [0, 255]
    assert positions(np.array([5], "u8"), 6).tolist() == [5]
