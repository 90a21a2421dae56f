"""What an index means: by what lists and NumPy do, not by our code."""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import note
from hypothesis import strategies as st

from contracts import same as same_sample
from mmap_ninja.errors import ArgumentError, IndexTypeError, SampleIndexError
from model.kinds import same


@dataclass
class One:
    sample: object


def expectation(samples: list, index: object) -> object:
    """`One` sample, a list of them, or the type of the error: by what lists and NumPy do, not by our code."""
    n = len(samples)
    if isinstance(index, bool | np.bool_ | float | np.floating | str | tuple) or index is None or index is Ellipsis:
        return IndexTypeError
    if isinstance(index, slice):
        parts = [part for part in (index.start, index.stop, index.step) if part is not None]
        if any(isinstance(part, bool | np.bool_ | float | str) for part in parts):
            return IndexTypeError
        return ArgumentError if index.step == 0 and index.step is not None else samples[index]
    if isinstance(index, np.ndarray) and (index.ndim > 1 or index.dtype.kind not in "biu"):
        return IndexTypeError
    if isinstance(index, int | np.integer) or (isinstance(index, np.ndarray) and index.ndim == 0):
        if isinstance(index, np.ndarray) and index.dtype.kind == "b":
            return IndexTypeError
        try:
            return One(samples[operator.index(index)])
        except IndexError:
            return SampleIndexError
    if isinstance(index, list) and any(isinstance(each, float | str | list | type(None)) for each in index):
        return IndexTypeError
    try:
        return [
            samples[i]
            for i in np.arange(n)[index if len(index) else np.zeros(len(index), getattr(index, "dtype", int))]
        ]
    except IndexError:
        return SampleIndexError


def check_index(m: object, samples: list, index: object, *, is_dense: bool) -> str:
    """Compare `m[index]`, and `m.take(index)` where that is the same, with what is expected; returns what that was."""
    note(f"m[{index!r}] of {len(samples)}")
    expected = expectation(samples, index)
    is_many = isinstance(index, list | range | slice) or (isinstance(index, np.ndarray) and index.ndim > 0)
    for read_by in [operator.getitem] + [lambda m, index: m.take(index)] * is_many:
        if isinstance(expected, type):
            with pytest.raises(expected, match=r"out of range|indexed by|mask of|step of a slice"):
                read_by(m, index)
        elif isinstance(expected, One):
            assert same_sample(read_by(m, index), expected.sample)
        elif is_dense:
            found = read_by(m, index)
            assert isinstance(found, np.ndarray)
            assert same(list(found), expected)
        else:
            found = read_by(m, index)
            assert isinstance(found, list)
            assert same(found, expected)
    return (
        f"index {expected.__name__}" if isinstance(expected, type) else "one" if isinstance(expected, One) else "many"
    )


NUMBERS = [int, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.array]


WRONG_TYPES = [True, np.False_, 0.0, np.float32(1), None, Ellipsis, "0", (0,), (), [0.5], ["a"], [None], [[0]]]
WRONG_TYPES += [np.array(True), np.array(0.0), np.array([1.0]), np.array([], float), np.zeros((0, 0), int)]
WRONG_TYPES += [slice("a"), slice(0.5, 2), slice(True, 2)]


def indices(n: int) -> st.SearchStrategy:
    """What may stand between the brackets, right and wrong, for a map of n samples."""
    near = st.integers(-n - 2, n + 1) | st.sampled_from([-n - 1, n])
    many = st.lists(near, max_size=3)
    many |= st.lists(st.integers(-n, n - 1), max_size=4) if n else st.just([])

    def numbered(i: int, kind: Callable) -> object:
        return kind(i if i >= 0 or kind in (int, np.array) or np.iinfo(kind).min < 0 else -i)

    def array(few: list, dtype: str) -> np.ndarray:
        return np.array([abs(i) for i in few] if dtype.startswith("u") else few, dtype)

    masks = st.lists(st.booleans(), min_size=n, max_size=n) | st.lists(st.booleans(), min_size=1, max_size=n + 2)
    bounds = st.none() | near | near.map(np.int64) | st.sampled_from([2**70, -(2**70)])
    return st.one_of(
        st.builds(numbered, near, st.sampled_from(NUMBERS)),
        st.sampled_from([2**63, 2**64, -(2**70), np.uint64(2**64 - 1), np.array(n), np.array(-1, ">i2")]),
        st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, -1, -3, np.int8(-2), 5, 0])),
        many,
        st.builds(array, many, st.sampled_from(["i1", "u1", ">i4", "u8", "i8"])),
        st.builds(range, near, near, st.sampled_from([1, 2, -1])),
        masks,
        masks.map(np.array),
        st.sampled_from(WRONG_TYPES),
        st.sampled_from([np.zeros((n, n), bool), np.zeros((n, 1), int), slice(None, None, 0)]),
    )


def as_index(form: str, chosen: list[int], n: int, data: st.DataObject) -> tuple[object, list[int]]:
    """An index of the wanted form for these samples, and those that it means."""
    if form == "one" and chosen:
        i = chosen[0]
        return data.draw(st.sampled_from([i, i - n, np.int64(i), np.array(i)])), [i]
    if form == "slice" and n:
        index = slice(min(chosen, default=0), max(chosen, default=0) + 1, data.draw(st.sampled_from([1, 2])))
        return index, list(range(n))[index]
    if form == "mask" and n:
        mask = [i in chosen for i in range(n)]
        return np.array(mask), np.flatnonzero(mask).tolist()
    return data.draw(st.sampled_from([chosen, np.array(chosen, int)])), chosen
