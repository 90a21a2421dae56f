"""Values that lie in the file that is written, in another mapping of it: as right as those of memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmap_ninja import DenseMmap, RaggedMmap, np_from_ndarray, np_open_existing, select, split, windows
from mmap_ninja._storage.mappings import is_hidden

N = 7
BEFORE = np.arange(1, 2 * N + 1).reshape(N, 2)
BACK = np.arange(N)[::-1]
SOURCES: dict[str, Callable[[Path], Any]] = {
    "a map": lambda folder: DenseMmap(folder)[:],
    "a private map": lambda folder: DenseMmap(folder, mode="c")[:],
    "a memmap": np_open_existing,
    "a memmap to assign": lambda folder: np_open_existing(folder, mode="r+"),
    "a private memmap": lambda folder: np_open_existing(folder, mode="c"),
    "np.load": lambda folder: np.load(folder / "data.npy", mmap_mode="r"),
    "the file, mapped": lambda folder: by_hand(folder / "data.npy"),
}


def by_hand(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        return np.frombuffer(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[128:], int).reshape(N, 2)


def assign(x: Any, y: Any) -> None:
    x[:] = y[::-1]


def assign_by_positions(x: Any, y: Any) -> None:
    x[np.arange(N)] = y[::-1]


def assign_to_a_view(x: Any, y: Any) -> None:
    x[1:][...] = y[:-1]


def assign_samples(x: Any, y: Any) -> None:
    x[:] = [y[i] for i in BACK]


def assign_parts_of_samples(x: Any, y: Any) -> None:
    x[:] = [[y[i, 0], y[i, 1:].reshape(())] for i in BACK]


def add(x: Any, y: Any) -> None:
    x += y[::-1]


def add_some(x: Any, y: Any) -> None:
    np.add.at(x, BACK, y)


def put(x: Any, y: Any) -> None:
    x.put(np.arange(x.size), y[::-1])


def along_an_axis(x: Any, y: Any) -> None:
    np.put_along_axis(x, np.arange(N)[:, None], y[::-1], 0)


def where(x: Any, y: Any) -> None:
    np.negative(x, out=x, where=y[::-1].view(bool)[:, ::8])


# What it does to `x`, given values that lie in the same file.
CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "x[:] =": assign,
    "x[positions] =": assign_by_positions,
    "x[1:][...] =": assign_to_a_view,
    "x[:] = samples": assign_samples,
    "x[:] = parts of samples": assign_parts_of_samples,
    "+=": add,
    "out=": lambda x, y: np.subtract(y[::-1], x, out=x),
    "add.at": add_some,
    "accumulate": lambda x, y: np.add.accumulate(y[::-1], out=x),
    "where": where,
    "copyto": lambda x, y: np.copyto(x, y[::-1]),
    "copyto by name": lambda x, y: np.copyto(dst=x, src=y[::-1]),
    "place": lambda x, y: np.place(x, np.full(x.shape, True), y[::-1]),
    "putmask": lambda x, y: np.putmask(x, np.full(x.shape, True), y[::-1]),
    "put": put,
    "np.put": lambda x, y: np.put(x, np.arange(x.size), y[::-1]),
    "put_along_axis": along_an_axis,
    "np.take": lambda x, y: np.take(y, BACK, axis=0, out=x),
    "concatenate": lambda x, y: np.concatenate([y[3:], y[:3]], out=x),
    "clip": lambda x, y: np.clip(y[::-1], 3, 9, out=x),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("change", CHANGES)
def test_the_result_is_that_of_memory(tmp_path: Path, change: str, source: str) -> None:
    np_from_ndarray(tmp_path / "map", BEFORE)
    x, expected = np_open_existing(tmp_path / "map", mode="r+"), BEFORE.copy()
    CHANGES[change](expected, BEFORE.copy())
    CHANGES[change](x, SOURCES[source](tmp_path / "map"))
    assert x.tolist() == expected.tolist() != BEFORE.tolist()
    assert DenseMmap(tmp_path / "map")[:].tolist() == expected.tolist()


@pytest.mark.parametrize(
    "view",
    [
        lambda m: select(m, BACK),
        lambda m: select(split(m, [N], seed=None)[0], BACK),
        lambda m: windows(select(m, BACK), 2),
        lambda m: DenseMmap(m.out_dir, wrapper_fn=lambda sample: sample[::-1], copy_before_wrapper_fn=False),
    ],
)
def test_maps_and_views_are_assigned(tmp_path: Path, view: Callable) -> None:
    np_from_ndarray(tmp_path / "map", BEFORE)
    x, y = np_open_existing(tmp_path / "map", mode="r+"), view(DenseMmap(tmp_path / "map"))
    expected = np.array([np.array(sample) for sample in y])
    x[:] = y
    assert x.tolist() == expected.tolist()


@pytest.mark.parametrize("target", ["assigned to", "np.memmap", "a part"])
@pytest.mark.parametrize("make", [lambda m: m, lambda m: select(m, slice(None)), lambda m: windows(m, 2)])
def test_samples_are_taken_into_their_own_file(tmp_path: Path, make: Callable, target: str) -> None:
    np_from_ndarray(tmp_path / "map", BEFORE)
    x: Any = np_open_existing(tmp_path / "map", mode="r+")
    if target == "np.memmap":
        x = np.memmap(tmp_path / "map" / "data.npy", int, "r+", 128, (N, 2))
    source = make(DenseMmap(tmp_path / "map"))
    if target == "a part":
        assert np.shares_memory(source.take(BACK[:-1], out=x[1:]), x)
        assert x.tolist() == [*BEFORE[:1].tolist(), *BEFORE[:0:-1].tolist()]
    else:
        assert source.take(BACK, out=x) is x
        assert x.tolist() == BEFORE[::-1].tolist()


def test_an_index_that_lies_in_the_file(tmp_path: Path) -> None:
    np_from_ndarray(tmp_path / "map", BACK)
    x, y = np_open_existing(tmp_path / "map", mode="r+"), DenseMmap(tmp_path / "map")[:]
    expected = BACK.copy()
    expected[BACK] = np.arange(N) % 3
    x[y] = np.arange(N) % 3
    assert x.tolist() == expected.tolist()
    expected[(expected.copy(),)] = 5
    x[(y,)] = 5
    assert x.tolist() == expected.tolist()


def test_nothing_is_copied_that_lies_elsewhere(tmp_path: Path) -> None:
    """In memory, in the same mapping, which numpy sees, or in another file."""
    for name in ("map", "other"):
        np_from_ndarray(tmp_path / name, BEFORE)
    x = np_open_existing(tmp_path / "map", mode="r+")
    own, own_map = np_open_existing(tmp_path / "map"), DenseMmap(tmp_path / "map")
    rows = RaggedMmap.from_lists(tmp_path / "rows", [[1, 2]])
    for array in (
        BEFORE,
        x,
        x[::-1],
        np.asarray(x)[1:],
        np_open_existing(tmp_path / "other"),
        DenseMmap(tmp_path / "other")[:][::-1],
        rows[0],
        np.empty((0, 2)),
    ):
        assert not is_hidden(array, x)
        assert not is_hidden(array, np.asarray(x[1:]))
    assert not is_hidden(own_map[:], BEFORE.copy())
    assert not is_hidden(own_map[0], own_map[:])
    for array in (own, own[1:, :1].T, own_map[0], np.frombuffer(own_map[0].data, np.uint8)):
        assert is_hidden(array, x)
        assert is_hidden(array, np.asarray(x)[::2])


def test_a_mapping_that_nothing_is_known_of_may_be_of_the_file(tmp_path: Path) -> None:
    np_from_ndarray(tmp_path / "map", BEFORE)
    x = np_open_existing(tmp_path / "map", mode="r+")
    assert is_hidden(np.frombuffer(mmap.mmap(-1, 8), int), x)
    np_from_ndarray(tmp_path / "map", BEFORE)  # `x` sees a file that has no name any more
    assert is_hidden(np_open_existing(tmp_path / "map"), x)


def test_what_is_no_array_is_assigned_as_before(tmp_path: Path) -> None:
    np_from_ndarray(tmp_path / "map", BEFORE)
    x, expected = np_open_existing(tmp_path / "map", mode="r+"), BEFORE.copy()
    for value in (5, np.int64(6), (7, 8), [9, 10], [[11, 12]] * N, range(2), b"1", "2", [np.int64(3), 4], 2.5):
        x[:] = value
        expected[:] = value
        assert x.tolist() == expected.tolist()
    records = np.zeros(3, [("a", int), ("b", float)])
    np_from_ndarray(tmp_path / "records", records)
    z = np_open_existing(tmp_path / "records", mode="r+")
    z[0], records[0] = ((1, 2.5),) * 2
    z[1:], records[1:] = ([(3, 4.5), (5, 6.5)],) * 2
    z["a"], records["a"] = ([7, 8, 9],) * 2
    assert z.tolist() == records.tolist()
