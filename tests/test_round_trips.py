"""Every dtype through every way in, and out again bit for bit."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plain_reader
import strategies
from mmap_ninja import (
    DenseMmap,
    RaggedMmap,
    np_append,
    np_extend,
    np_extend_dir,
    np_from_generator,
    np_from_ndarray,
    np_open_existing,
)
from mmap_ninja.errors import SampleError
from model import quiet
from test_lossless import bits, exact, representable

ROUND_TRIPS, LONG_ROUND_TRIPS = 6, 200  # of each dtype
BATCHES, LONG_BATCHES = 80, 3_000


def stacked(dtype: np.dtype, data: st.DataObject) -> np.ndarray:
    """A few samples of one shape, in any layout."""
    shape = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple))
    array = data.draw(strategies.arrays(dtype, st.just(shape)))
    return array if array.ndim and len(array) else np.zeros((2, 2), dtype)


def found_bits(found: Iterator, dtype: np.dtype) -> list[bytes]:
    return [own_bits(np.asarray(sample, dtype)) for sample in found]


def own_bits(array: np.ndarray) -> bytes:
    """Every bit of every value; those between values are nobody's, and NumPy's copies need not keep them."""
    if array.dtype.char in "gG":
        return np.ascontiguousarray(array).reshape(-1).view("u1").reshape(-1, 16)[:, :10].tobytes()
    if array.dtype.names and array.dtype.itemsize > sum(array.dtype[name].itemsize for name in array.dtype.names):
        return repr(array.tolist()).encode()
    return bits(array)


def ragged_round_trip(folder: Path, dtype: np.dtype, data: st.DataObject) -> None:
    """From a generator in batches, extended, appended to and assigned to, closed, and opened again."""
    arrays = data.draw(st.lists(strategies.arrays(dtype), min_size=1, max_size=5), label="arrays")
    size = data.draw(st.sampled_from([1, 2, 100]), label="batch size")
    m = RaggedMmap.from_generator(folder, iter(arrays), size, sync=False)
    m.extend(arrays, sync=False)
    m.append(arrays[-1], sync=False)
    expected = [*arrays, *arrays, arrays[-1]]
    for i in data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=2), label="assigned"):
        layout = data.draw(strategies.arrays(dtype, st.just(expected[i].shape)), label="value")
        if layout.shape == expected[i].shape:
            m[i] = expected[i] = layout
    m.close()
    again = RaggedMmap(folder)
    assert again.dtype == dtype
    ends = np.cumsum([array.size for array in expected])
    for sample, array, values in zip(again, expected, np.split(again.memmap, ends[:-1]), strict=True):
        assert own_bits(values.reshape(array.shape)) == own_bits(array)
        assert np.shape(sample) == array.shape
        as_it_reads = array.item() if array.ndim == 0 and dtype.kind in "biuf" else array
        assert type(sample) is type(as_it_reads)
        assert own_bits(np.asarray(sample, dtype)) == own_bits(np.asarray(as_it_reads, dtype))
    plain_reader.check(folder)


def dense_round_trip(folder: Path, dtype: np.dtype, data: st.DataObject) -> None:
    """Through the functions of 0.9.0, and assigned through what they return."""
    array = stacked(dtype, data)
    samples = [array[i, ...] for i in range(len(array))]  # arrays, also of no axes: scalars forget their byte order
    if data.draw(st.booleans(), label="generator"):
        memmap = np_from_generator(folder, iter(samples), 2)
    else:
        memmap = np_from_ndarray(folder, array)
    np_extend(memmap, array, sync=False)
    np_extend_dir(folder, array, sync=False)
    np_append(memmap, samples[0], sync=False)
    expected = [*samples, *samples, *samples, samples[0]]
    i = data.draw(st.integers(0, len(expected) - 1), label="assigned")
    np_open_existing(folder, mode="r+")[i] = expected[i] = samples[-1]
    with DenseMmap(folder, mode="r+") as m:
        m[i - 1] = expected[i - 1] = samples[0]
    again = np_open_existing(folder)
    assert again.dtype == dtype
    assert again.shape == (len(expected), *array.shape[1:])
    assert found_bits(again, dtype) == list(map(own_bits, expected))
    assert found_bits(DenseMmap(folder), dtype) == list(map(own_bits, expected))
    plain_reader.check(folder)


def round_trips(folder: Path, dtype: np.dtype, examples: int) -> None:
    numbers = itertools.count()

    @settings(quiet, max_examples=examples)
    @given(data=st.data())
    def act(data: st.DataObject) -> None:
        path = folder / str(next(numbers))
        (ragged_round_trip if data.draw(st.booleans(), label="ragged") else dense_round_trip)(path, dtype, data)
        shutil.rmtree(path)

    act()


@pytest.mark.parametrize("dtype", strategies.ALL, ids=str)
def test_every_bit_comes_out_whichever_way_it_went_in(tmp_path: Path, dtype: np.dtype) -> None:
    round_trips(tmp_path, dtype, ROUND_TRIPS)


@pytest.mark.long
@pytest.mark.parametrize("dtype", strategies.ALL, ids=str)
def test_every_bit_comes_out_whichever_way_it_went_in_at_length(tmp_path: Path, dtype: np.dtype) -> None:
    round_trips(tmp_path, dtype, LONG_ROUND_TRIPS)


def mixed_batches(folder: Path, examples: int) -> None:
    """Batches of arrays of several dtypes: all of a batch is stored as it is, or none of it."""
    numbers, seen = itertools.count(), {True: 0, False: 0}

    @settings(quiet, max_examples=examples)
    @given(data=st.data())
    def act(data: st.DataObject) -> None:
        dtypes = st.sampled_from(strategies.NUMBERS)
        target, path = data.draw(dtypes, label="target"), folder / str(next(numbers))
        way = data.draw(st.sampled_from(["extend", "build", "dense"]), label="way")
        batch = [data.draw(strategies.numbers(data.draw(dtypes))) for _ in range(data.draw(st.integers(2, 4)))]
        first = np.zeros(1, target)
        if way == "dense":
            batch = [array[:1] for array in batch]
        cls = DenseMmap if way == "dense" else RaggedMmap
        values = [[exact(value) for value in array] for array in batch]
        fits = all(representable(parts, target) for each in values for parts in each)
        seen[fits] += 1
        m = cls.from_generator(path, iter([first]), 1, sync=False)
        before = (path / "manifest.json").read_bytes()
        try:
            if way == "build":
                cls.from_generator(path, iter([first, *batch]), len(batch) + 1, sync=False)
            else:
                m.extend(batch, sync=False)
        except SampleError:
            assert not fits
            assert (path / "manifest.json").read_bytes() == before
        else:
            assert fits
        found = [[exact(value) for value in np.atleast_1d(sample)] for sample in cls(path)]
        assert found == [[exact(first[0])], *(values if fits else [])]
        assert cls(path).dtype == target
        shutil.rmtree(path)

    act()
    assert min(seen.values()) > examples // 50


def test_a_batch_of_many_dtypes_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    mixed_batches(tmp_path, BATCHES)


@pytest.mark.long
def test_a_batch_of_many_dtypes_is_stored_whole_or_not_at_all_at_length(tmp_path: Path) -> None:
    mixed_batches(tmp_path, LONG_BATCHES)
