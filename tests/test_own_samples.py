"""A map as the source of what is written to it: assignments, appends and builds equal those of a list."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plain_reader
from mmap_ninja import (
    BytesMmap,
    DenseMmap,
    Mmap,
    RaggedMmap,
    StringsMmap,
    Wrapped,
    np_extend_dir,
    np_from_ndarray,
    np_open_existing,
    open_map,
    select,
    split,
    verify,
    windows,
)
from mmap_ninja.errors import UpgradeWarning
from model.kinds import same
from test_golden import FORMAT_1, GOLDEN

N = 8
RNG = np.random.default_rng(3)
KINDS: dict[str, tuple[type[Mmap], list[Any]]] = {
    "dense": (DenseMmap, list(RNG.integers(0, 99, (N, 2, 3)))),
    "large": (DenseMmap, list(RNG.random((N, 70_000)))),  # samples of more than half a block
    "rows": (RaggedMmap, list(RNG.integers(0, 99, (N, 5)))),
    "images": (RaggedMmap, list(RNG.integers(0, 99, (N, 2, 3)))),
    "mixed": (RaggedMmap, [*RNG.integers(0, 99, (N - 1, 4)), 3]),  # the last one is in no assignment
    "bytes": (BytesMmap, [f"sample {i}".encode() for i in range(N)]),
    "strings": (StringsMmap, [f"sample {i}" for i in range(N)]),
}


class Lazy:
    """A sequence whose samples are read while it is iterated."""

    def __init__(self, source: Any, numbers: list[int]) -> None:
        self.source, self.numbers = source, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Any]:
        return (self.source[i] for i in self.numbers)


# From the handle that is assigned to, and samples by number, to the values that are assigned.
SOURCES: dict[str, Callable[[Any, list[int]], Any]] = {
    "samples": lambda m, numbers: [m[i] for i in numbers],
    "take": lambda m, numbers: m.take(numbers),
    "lazy": Lazy,
    "select": lambda m, numbers: select(m, numbers),
    "select twice": lambda m, numbers: select(select(m, slice(None, None, -1)), [len(m) - 1 - i for i in numbers]),
    "split": lambda m, numbers: select(split(m, [len(m)], seed=None)[0], numbers),
    "Wrapped": lambda m, numbers: Wrapped(select(m, numbers), lambda sample: sample),
    "another handle": lambda m, numbers: Lazy(open_map(m.out_dir), numbers),
    "samples of another handle": lambda m, numbers: [open_map(m.out_dir)[i] for i in numbers],
    "private": lambda m, numbers: [open_map(m.out_dir, mode="c")[i] for i in numbers],
    "wrapper_fn": lambda m, numbers: Lazy(
        type(m)(m.out_dir, wrapper_fn=lambda sample: sample, copy_before_wrapper_fn=False), numbers
    ),
}
PLACES = {
    "swap": ([0, 1], [1, 0]),
    "rotation": ([0, 1, 2], [1, 2, 0]),
    "reversal": (slice(0, N - 1), list(reversed(range(N - 1)))),
    "shift up": (slice(1, 7), list(range(6))),
    "shift down": (slice(0, 6), list(range(1, 7))),
    "mask": (np.arange(N) % 2 == 0, [1, 3, 5, 0]),
    "all the same": (slice(0, N - 1), [3] * (N - 1)),
    "one twice": ([0, 2, 0], [1, 0, 2]),
}


def assigned(samples: list[Any], index: Any, numbers: list[int]) -> list[Any]:
    """What a list holds after that."""
    expected, places = list(samples), np.arange(len(samples))[index]
    for place, value in zip(places.tolist(), [samples[i] for i in numbers], strict=True):
        expected[place] = value
    return expected


def check(m: Any, expected: list[Any]) -> None:
    assert same(list(m), expected)
    m.close()
    assert same(list(open_map(m.out_dir)), expected)
    assert verify(m.out_dir) == []
    plain_reader.check(m.out_dir)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[type[Mmap], list[Any]]:
    return KINDS[request.param]


@pytest.mark.parametrize("source", SOURCES)
def test_samples_of_a_map_are_assigned_to_it(kind: tuple[Any, list[Any]], source: str, tmp_path: Path) -> None:
    cls, samples = kind
    m = cls.from_generator(tmp_path / "map", iter(samples), 3, sync=False)
    for index, numbers in PLACES.values():
        m[index] = SOURCES[source](m, numbers)
        samples = assigned(samples, index, numbers)
        assert same(list(m), samples)
    check(m, samples)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["1-dense", "1-dense-fortran", "1-dense-row", "1-ragged-integers"])
def test_samples_of_a_map_of_format_1_are_assigned_to_it(name: str, source: str, tmp_path: Path) -> None:
    """The first assignment upgrades the folder, which may move the samples."""
    shutil.copytree(GOLDEN / name, tmp_path / "map")
    samples, numbers = list(FORMAT_1[name].samples), [1, 0, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UpgradeWarning)
        m: Any = (DenseMmap if "dense" in name else RaggedMmap)(tmp_path / "map", mode="r+")
        m[[0, 1, 2]] = SOURCES[source](m, numbers)
    check(m, assigned(samples, [0, 1, 2], numbers))


@pytest.mark.parametrize("step", [-1, 1])
def test_slices_of_dense_maps_are_assigned_as_those_of_arrays(step: int, tmp_path: Path) -> None:
    expected = np.arange(60).reshape(10, 2, 3)
    m = DenseMmap.from_ndarray(tmp_path / "map", expected)
    for target, value in [
        (slice(None), slice(None, None, step)),
        (slice(1, 6), slice(0, 5)),
        (slice(0, 5), slice(1, 6)),
    ]:
        m[target] = m[value]
        expected[target] = expected[value].copy()
        assert m[:].tolist() == expected.tolist()
        m[target] = np_open_existing(tmp_path / "map")[value]  # another mapping of the file
        expected[target] = expected[value].copy()
        assert m[:].tolist() == expected.tolist()
    check(m, list(expected))


def test_values_of_the_memmap_and_of_windows_are_assigned(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(4) + 10 * i for i in range(5)])
    before = m.memmap.copy()
    m[0:4] = [m.memmap[2 + 4 * i : 6 + 4 * i] for i in range(4)]  # each overlaps with two samples
    expected = [*before[2:18].reshape(4, 4), before[16:]]
    assert same(list(m), expected)
    m[1:4] = windows(m, 4)[0:3]
    expected[1:4] = expected[0:3]
    assert same(list(m), expected)
    m[[4, 3]] = windows(m, 4)[[0, 4]]
    expected[4], expected[3] = expected[0], expected[4]
    check(m, expected)


def test_one_buffer_for_all_values_is_read_when_each_arrives(tmp_path: Path) -> None:
    class Refilled:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[np.ndarray]:
            buffer = np.zeros(2, np.int64)
            for i in range(3):
                buffer[:] = i
                yield buffer

    m = RaggedMmap.from_lists(tmp_path / "map", [np.zeros(2, np.int64)] * 3)
    m[:] = Refilled()
    check(m, [np.full(2, i) for i in range(3)])


def test_a_value_that_is_refused_leaves_all_samples(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [[1, 2], [3, 4], [5]])
    with pytest.raises(ValueError, match="sample 2: the new value has shape"):
        m[[0, 1, 2]] = [m[1], m[0], m[0]]
    check(m, [np.array([1, 2]), np.array([3, 4]), np.array([5])])


# What adds, and what builds.


@pytest.mark.parametrize("source", SOURCES)
def test_samples_of_a_map_are_added_to_it(kind: tuple[Any, list[Any]], source: str, tmp_path: Path) -> None:
    cls, samples = kind
    m = cls.from_generator(tmp_path / "map", iter(samples), 3, sync=False)
    expected = list(samples)
    for numbers in ([2, 0, 2], list(range(N)), [7]):
        m.extend(SOURCES[source](m, numbers), sync=False)
        m.append(m[numbers[0]], sync=False)
        expected += [samples[i] for i in [*numbers, numbers[0]]]
    m.extend(m)
    check(m, expected * 2)


def test_an_array_is_extended_by_its_own_memmap(tmp_path: Path) -> None:
    array = np.arange(12).reshape(4, 3)
    np_extend_dir(tmp_path / "map", np_from_ndarray(tmp_path / "map", array)[::-1])
    check(open_map(tmp_path / "map"), [*array, *array[::-1]])


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_a_map_is_built_anew_from_its_own_samples(kind: tuple[Any, list[Any]], batch: int, tmp_path: Path) -> None:
    cls, samples = kind
    m = cls.from_generator(tmp_path / "map", iter(samples), 3, sync=False)
    for source in SOURCES.values():
        m = cls.from_generator(tmp_path / "map", iter(source(m, list(reversed(range(N))))), batch, sync=False)
        samples = samples[::-1]
        assert same(list(m), samples)
    again = cls.from_indexable(tmp_path / "map", m, batch, sync=False)
    check(again, samples)


def test_an_array_is_built_anew_from_its_own_memmap(tmp_path: Path) -> None:
    array = np.arange(12).reshape(4, 3)
    made = np_from_ndarray(tmp_path / "map", array)
    check(DenseMmap.from_ndarray(tmp_path / "map", made[::-1]), list(array[::-1]))


@pytest.mark.parametrize("size", [2, 4000])  # small windows are joined before they are copied, large ones are not
def test_windows_of_a_private_map_are_taken_into_it(size: int, tmp_path: Path) -> None:
    before = np.arange(6.0 * size)
    DenseMmap.from_ndarray(tmp_path / "dense", before.reshape(3, 2 * size))
    RaggedMmap.from_lists(tmp_path / "rows", [before[: 2 * size], before[2 * size :]])
    for folder in (tmp_path / "dense", tmp_path / "rows"):
        m: Any = open_map(folder, mode="c")
        values = m.memmap if folder.name == "rows" else m[:].reshape(-1)
        windows(m, size).take([2, 1, 0, 3], out=values[: 4 * size].reshape(4, size))
        expected = before.reshape(6, size)[[2, 1, 0, 3, 4, 5]].reshape(-1)
        assert np.array_equal(values, expected)
