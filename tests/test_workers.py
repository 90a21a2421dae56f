"""A handle in other processes: the same snapshot everywhere, or `MapChangedError`; its pickle is small."""

import multiprocessing
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from changes import format_1_column, format_1_rows
from faults import exit_code, in_child, killed_at, recorded, start_child
from mmap_ninja import BytesMmap, DenseMmap, Mmap, RaggedMmap, StringsMmap, np_open_existing, open_map, upgrade
from mmap_ninja.errors import MapChangedError, MapNotFoundError, PartBuiltWarning
from plain_reader import fields, same

TASKS = 60  # for the workers of each start method, while the map changes; a hundred times as many in the long run
LARGEST = 2048  # bytes of a pickle

ROWS = [np.arange(n % 40) + n for n in range(60)]
MIXED = [np.arange(6).reshape(2, 3), np.arange(4), np.array(7)] * 5
TABLE = np.arange(600).reshape(60, 10)
TEXTS = [f"{n} ß" * (n % 20) for n in range(60)]


def format_1_texts(folder: Path) -> None:
    raw = [text.encode() for text in TEXTS]
    sizes = np.array([len(text) for text in raw])
    folder.mkdir()
    (folder / "data.ninja").write_bytes(b"".join(raw))
    (folder / "type.ninja").write_text("string")
    format_1_column(folder / "starts", sizes.cumsum() - sizes)
    format_1_column(folder / "ends", sizes.cumsum())


FORMAT_1: dict[str, tuple[Callable[[Path], object], Callable[..., Any]]] = {
    "format 1 ragged": (format_1_rows, RaggedMmap),
    "format 1 dense": (lambda f: format_1_column(f, TABLE), DenseMmap),
    "format 1 Fortran": (lambda f: format_1_column(f, np.asfortranarray(TABLE), "F"), DenseMmap),
    "format 1 memmap": (lambda f: format_1_column(f, np.asfortranarray(TABLE), "F"), np_open_existing),
    "format 1 strings": (format_1_texts, StringsMmap),
}
HANDLES: dict[str, tuple[Callable[[Path], object], Callable[..., Any]]] = {
    "ragged": (lambda f: RaggedMmap.from_lists(f, ROWS, sync=False), RaggedMmap),
    "mixed": (lambda f: RaggedMmap.from_lists(f, MIXED, sync=False), RaggedMmap),
    "dense": (lambda f: DenseMmap.from_ndarray(f, TABLE, sync=False), DenseMmap),
    "memmap": (lambda f: DenseMmap.from_ndarray(f, TABLE, sync=False), np_open_existing),
    "memmap to write": (
        lambda f: DenseMmap.from_ndarray(f, TABLE, sync=False),
        lambda f: np_open_existing(f, mode="r+"),
    ),
    "bytes": (lambda f: BytesMmap.from_bytes(f, [text.encode() for text in TEXTS], sync=False), BytesMmap),
    "strings": (lambda f: StringsMmap.from_strings(f, TEXTS, sync=False), StringsMmap),
    "zstd": (
        lambda f: StringsMmap.from_strings(f, TEXTS * 9, zstd_level=3, zstd_train_dictionary_size=500, sync=False),
        StringsMmap,
    ),
    **FORMAT_1,
}


def made(name: str, folder: Path) -> tuple[Any, bytes, list]:
    """A handle of a new map, its pickle, and its samples."""
    make, opening = HANDLES[name]
    make(folder)
    m = opening(folder)
    return m, pickle.dumps(m), read(m)


# -- what the workers run --------------------------------------------------------------------------------------------


def read(m: Any) -> list:
    """All samples of a handle that was sent, as arrays of their own."""
    return [np.array(sample) if isinstance(sample, np.ndarray) else sample for sample in m]


def read_pickled(raw: bytes) -> list:
    return read(pickle.loads(raw))


kept: list = []


def keep(m: Any) -> int:
    kept[:] = [m]
    return os.getpid()


def read_kept() -> list:
    return read(kept[0])


def read_kept_after_refresh() -> list:
    kept[0].refresh()
    return read_kept()


def with_sum(sample: Any) -> tuple:
    """A wrapper function: what pickle needs is that it can be imported."""
    return np.array(sample), int(np.sum(sample))


def samples_of(handle: Any) -> tuple[str, list] | None:
    """What a worker has read, None where it was told that the map had changed."""
    try:
        m = pickle.loads(handle)
    except MapChangedError:
        return None
    return m.metadata["name"], read(m)


@pytest.fixture(scope="module", params=["fork", "spawn", "forkserver"])
def pool(request: pytest.FixtureRequest) -> Iterator[ProcessPoolExecutor]:
    """One worker, which lives as long as the tests of its start method."""
    with ProcessPoolExecutor(1, multiprocessing.get_context(request.param)) as workers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's idle threads make Python warn of the fork
            workers.submit(os.getpid).result()
        yield workers


def extended(folder: Path) -> None:
    """By another process, with what the map has already."""
    kind = open_map(folder)
    more = kind.take(range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the upgrade
        assert in_child(lambda: kind.extend(more, sync=False)) == 0


# -- the same snapshot -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HANDLES)
def test_a_worker_sees_what_the_handle_sees(pool: ProcessPoolExecutor, tmp_path: Path, name: str) -> None:
    m, raw, expected = made(name, tmp_path / "map")
    assert same(pool.submit(read, m).result(), expected)
    pool.submit(keep, m).result()
    for _ in range(2):
        extended(tmp_path / "map")
        assert len(open_map(tmp_path / "map")) > len(m)
        assert same(pool.submit(read, m).result(), expected)
        assert same(pool.submit(read_pickled, raw).result(), expected)
        assert same(pool.submit(read_kept).result(), expected)
    assert same(read(m), expected)


OTHERS: dict[str, Callable[[Path], object]] = {
    "the same": lambda f: None,
    "smaller": lambda f: RaggedMmap.from_lists(f, ROWS[:2], sync=False),
    "larger": lambda f: RaggedMmap.from_lists(f, ROWS * 20, sync=False),
    "dense": lambda f: DenseMmap.from_ndarray(f, np.arange(500), sync=False),
    "strings": lambda f: StringsMmap.from_strings(f, TEXTS * 5, sync=False),
}


@pytest.mark.parametrize("name", ["ragged", "memmap", "strings", "zstd", "format 1 ragged", "format 1 memmap"])
def test_a_worker_is_told_that_the_map_was_replaced(pool: ProcessPoolExecutor, tmp_path: Path, name: str) -> None:
    make, _ = HANDLES[name]
    for number, (other, replace) in enumerate(OTHERS.items()):
        folder = tmp_path / str(number)
        m, raw, expected = made(name, folder)
        pool.submit(keep, m).result()
        if other != "the same":
            replace(folder)
        elif "format 1" not in name:
            make(folder)
        else:
            continue
        for again in (raw, pickle.dumps(m)):  # as bytes: an error while arguments are unpickled would end the worker
            with pytest.raises(MapChangedError, match="was replaced since") as caught:
                pool.submit(read_pickled, again).result()
            assert caught.type is MapChangedError, other
        assert same(pool.submit(read_kept).result(), expected)  # who had it open reads on


def test_a_worker_is_told_that_the_map_is_gone(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", ROWS)
    raw = pickle.dumps(m)
    shutil.rmtree(tmp_path / "map")
    with pytest.raises(MapNotFoundError, match="there is no map at"):
        pool.submit(read_pickled, raw).result()


def test_a_wrapper_function_goes_along(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", ROWS, wrapper_fn=with_sum)
    found = pool.submit(read, m).result()
    assert same([array for array, _ in found], ROWS)
    assert [total for _, total in found] == [row.sum() for row in ROWS]


def test_a_handle_of_no_samples_stays_empty(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Whether the map is there and empty or not there yet, and whatever is appended meanwhile."""
    RaggedMmap.from_lists(tmp_path / "empty", [], dtype=np.int64)
    for name in ("empty", "none"):
        m = RaggedMmap(tmp_path / name)
        raw = pickle.dumps(m)
        pool.submit(keep, m).result()
        RaggedMmap(tmp_path / name).append(ROWS[5])
        assert len(m) == 0
        assert pool.submit(read_kept).result() == []
        assert pool.submit(read_pickled, raw).result() == [], name
        assert same(pool.submit(read_kept_after_refresh).result(), [ROWS[5]])


def test_a_part_built_map_that_is_finished_meanwhile(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    def samples() -> Iterator[np.ndarray]:
        yield from ROWS[:7]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        RaggedMmap.from_generator(tmp_path / "map", samples(), 1)
    with pytest.warns(PartBuiltWarning, match="resume=True"):
        m = RaggedMmap(tmp_path / "map")
    raw = pickle.dumps(m)
    RaggedMmap.from_generator(tmp_path / "map", iter(ROWS), 1, resume=True)
    assert same(pool.submit(read_pickled, raw).result(), ROWS[:7])
    RaggedMmap.from_generator(tmp_path / "map", iter(ROWS), 1)
    with pytest.raises(MapChangedError, match="was replaced since"):
        pool.submit(read_pickled, raw).result()


def test_a_memmap_to_write_sent_to_workers_changes_nothing(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Many workers, one writer: opening it there neither takes the lock nor commits."""
    DenseMmap.from_ndarray(tmp_path / "map", TABLE)
    memmap = np_open_existing(tmp_path / "map", mode="r+")
    memmap[3] = -5
    before = fields(tmp_path / "map")
    assert pool.submit(read, memmap).result()[3].tolist() == [-5] * 10
    assert fields(tmp_path / "map") == before


def test_a_forked_child_reads_on_what_it_has_inherited(tmp_path: Path) -> None:
    """Not a page of it was read before the map was extended, replaced and removed."""
    for name, (make, opening) in HANDLES.items():
        folder = tmp_path / name
        make(folder)
        m, expected = opening(folder), read(opening(folder))
        begin, end = os.pipe()
        pid = start_child(lambda m=m, expected=expected, begin=begin: assert_reads(m, expected, begin))
        extended(folder)
        StringsMmap.from_strings(folder, ["other"])
        shutil.rmtree(folder)
        os.write(end, b".")
        assert exit_code(pid) == 0, name
        os.close(begin)
        os.close(end)


def assert_reads(m: Any, expected: list, begin: int) -> None:
    os.read(begin, 1)
    assert same(read(m), expected)


# -- maps of format 1 that are upgraded meanwhile --------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMAT_1)
def test_a_map_that_is_upgraded_meanwhile_is_the_same_map(pool: ProcessPoolExecutor, tmp_path: Path, name: str) -> None:
    m, raw, expected = made(name, tmp_path / "map")
    pool.submit(keep, m).result()
    assert in_child(lambda: upgrade(tmp_path / "map")) == 0
    assert (tmp_path / "map/manifest.json").exists()
    for found in (pool.submit(read, m), pool.submit(read_pickled, raw), pool.submit(read_kept)):
        assert same(found.result(), expected)
    again = HANDLES[name][1](tmp_path / "map")
    assert same(pool.submit(read, again).result(), expected)


@pytest.mark.parametrize("name", ["format 1 ragged", "format 1 memmap", "format 1 strings"])
def test_a_map_whose_upgrade_was_killed_is_the_same_map(tmp_path: Path, name: str) -> None:
    make, _ = HANDLES[name]
    make(tmp_path / "count")
    for strike in recorded(lambda: upgrade(tmp_path / "count")).strikes(seen=True):
        folder = tmp_path / f"{strike.at} {strike.moment}"
        _, raw, expected = made(name, folder)
        killed_at(strike, lambda folder=folder: upgrade(folder))
        assert same(read_pickled(raw), expected)
        upgrade(folder)
        assert same(read_pickled(raw), expected)


# -- while the map is extended and replaced in a loop ----------------------------------------------------------------


def written_to(folder: Path, kinds: list[type[Mmap]]) -> None:
    """Extend a map a few times, replace it, and so on."""
    number = 0
    while True:
        kind, number = kinds[number % len(kinds)], number + 1
        sample = f"{number} ß" if kind is StringsMmap else np.full(number % 5 + 2, number)
        m = kind.from_generator(folder, [sample] * (number % 20 + 1), 7, metadata={"name": str(number)}, sync=False)
        for _ in range(6):
            time.sleep(0.002)
            m.extend([sample] * 2, sync=False)


@pytest.mark.parametrize("kinds", [[RaggedMmap], [RaggedMmap, DenseMmap, StringsMmap]], ids=["one kind", "any kind"])
@pytest.mark.parametrize("tasks", [TASKS, pytest.param(100 * TASKS, marks=pytest.mark.long)])
def test_workers_see_the_snapshot_or_are_told_while_a_map_changes(
    pool: ProcessPoolExecutor, tmp_path: Path, kinds: list[type[Mmap]], tasks: int
) -> None:
    RaggedMmap.from_lists(tmp_path / "map", ROWS, metadata={"name": "first"})
    writer = start_child(lambda: written_to(tmp_path / "map", kinds))
    seen, changed = 0, 0
    rng = np.random.default_rng(41)
    try:
        while seen + changed < tasks or not (seen and changed):
            m = open_map(tmp_path / "map")
            raw, expected = pickle.dumps(m), (m.metadata["name"], read(m))
            time.sleep(float(rng.choice([0, 0, 0.004, 0.02])))
            found = pool.submit(samples_of, raw).result()
            if found is None:
                changed += 1
            else:
                seen += 1
                assert found[0] == expected[0]
                assert same(found[1], expected[1])
    finally:
        os.kill(writer, 9)
        assert exit_code(writer) == -9


# -- the size of a pickle --------------------------------------------------------------------------------------------

MANY = 100_000
COUNTED: dict[str, tuple[Callable[[Path, int], object], Callable[..., Any]]] = {
    "ragged": (lambda f, n: RaggedMmap.from_lists(f, [np.zeros(1)] * n, sync=False), RaggedMmap),
    "wrapped": (
        lambda f, n: RaggedMmap.from_lists(f, [np.zeros(1)] * n, sync=False),
        lambda f: RaggedMmap(f, with_sum),
    ),
    "dense": (lambda f, n: DenseMmap.from_ndarray(f, np.zeros((n, 5)), sync=False), DenseMmap),
    "memmap": (lambda f, n: DenseMmap.from_ndarray(f, np.zeros((n, 5)), sync=False), np_open_existing),
    "bytes": (lambda f, n: BytesMmap.from_bytes(f, [b"abc"] * n, sync=False), BytesMmap),
    "zstd": (
        lambda f, n: StringsMmap.from_strings(
            f, [f"text {k}" * 5 for k in range(n)], zstd_level=1, zstd_train_dictionary_size=500, sync=False
        ),
        StringsMmap,
    ),
    "format 1": (lambda f, n: format_1_column(f, np.zeros((n, 5))), DenseMmap),
    "format 1 memmap": (lambda f, n: format_1_column(f, np.zeros((n, 5))), np_open_existing),
}


@pytest.mark.parametrize("name", COUNTED)
def test_a_pickle_is_small_whatever_the_number_of_samples(tmp_path: Path, name: str) -> None:
    make, opening = COUNTED[name]
    sizes = []
    for count in (200, MANY):
        make(tmp_path / str(count), count)
        m = opening(tmp_path / str(count))
        assert len(m) == count
        sizes += [len(pickle.dumps(m, protocol)) for protocol in (2, 4, 5)]
    assert max(sizes) <= LARGEST
    assert max(sizes[3:]) - max(sizes[:3]) < 30
