"""One writer at a time: who has to wait, who is told, and what becomes of a lock whose owner is gone."""

import errno
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from faults import exit_code, in_child, start_child
from mmap_ninja import DenseMmap, RaggedMmap, np_extend_dir, np_open_existing, open_map
from mmap_ninja._storage.lock import Lock
from mmap_ninja.errors import ArgumentTypeError, DiskError, MapChangedError, MapKindError, MapLockedError
from plain_reader import check, same

OLD = [np.arange(3), np.arange(5)]


@pytest.fixture
def m(tmp_path: Path) -> RaggedMmap:
    return RaggedMmap.from_lists(tmp_path / "map", OLD)


@contextmanager
def owner(folder: Path, and_then: Callable[[], object] = lambda: None) -> Iterator[int]:
    """Another process that holds the lock until it is killed; `and_then` is what it does first."""
    read, write = os.pipe()

    def hold() -> None:
        lock = Lock(str(folder))
        and_then()
        os.write(write, b"held")
        time.sleep(60)
        lock.release()

    pid = start_child(hold)
    try:
        assert os.read(read, 4) == b"held"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
        os.close(read)
        os.close(write)


def owner_for_a_while(folder: Path) -> int:
    """Another process that holds the lock for 0.3 s from now on."""
    read, write = os.pipe()

    def hold() -> None:
        with Lock(str(folder)):
            os.write(write, b"held")
            time.sleep(0.3)

    pid = start_child(hold)
    assert os.read(read, 4) == b"held"
    os.close(read)
    os.close(write)
    return pid


def refused(act: Callable[[], object]) -> None:
    """It raises at once: promised are 0.1 s, the rest is for a busy machine."""
    begun = time.monotonic()
    with pytest.raises(MapLockedError, match=r"is being written by another process or handle.*timeout="):
        act()
    assert time.monotonic() - begun < 1


def test_a_second_handle_of_the_same_process(m: RaggedMmap) -> None:
    with Lock(str(m.out_dir)):
        refused(lambda: m.append(OLD[0]))
        refused(lambda: RaggedMmap(m.out_dir).extend(OLD))
        refused(lambda: RaggedMmap.from_lists(m.out_dir, OLD))
        refused(lambda: RaggedMmap.from_generator(m.out_dir, iter(OLD), 1, resume=True))
        refused(lambda: RaggedMmap(m.out_dir, mode="r+").__setitem__(0, OLD[0]))
        assert same(open_map(m.out_dir)[:], OLD)  # readers take no lock
    m.append(OLD[0])
    assert same(open_map(m.out_dir)[:], [*OLD, OLD[0]])


def test_a_build_is_a_writer_until_it_ends(m: RaggedMmap) -> None:
    def loader():
        yield OLD[1]
        refused(lambda: m.append(OLD[0]))
        refused(lambda: RaggedMmap.from_lists(m.out_dir, OLD))
        yield OLD[0]

    RaggedMmap.from_generator(m.out_dir, loader(), batch_size=1)
    RaggedMmap(m.out_dir).append(OLD[0])
    assert same(open_map(m.out_dir)[:], [OLD[1], OLD[0], OLD[0]])


def test_a_build_is_refused_before_its_samples_are_loaded(m: RaggedMmap) -> None:
    def loader():
        raise AssertionError("nobody should ask for this")
        yield

    with Lock(str(m.out_dir)):
        refused(lambda: RaggedMmap.from_generator(m.out_dir, loader(), 1))


def test_another_process(m: RaggedMmap) -> None:
    with owner(m.out_dir):
        refused(lambda: m.append(OLD[0]))
        refused(lambda: RaggedMmap(m.out_dir).append(OLD[0]))
    assert same(open_map(m.out_dir)[:], OLD)


def test_the_functions_for_dense_maps_take_the_same_lock(tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(3))
    with owner(tmp_path / "map"):
        refused(lambda: np_extend_dir(tmp_path / "map", np.arange(3)))
        refused(lambda: np_open_existing(tmp_path / "map", mode="r+"))
        assert np_open_existing(tmp_path / "map").tolist() == [0, 1, 2]


def test_a_timeout_waits_for_the_other_writer(m: RaggedMmap) -> None:
    pid = owner_for_a_while(m.out_dir)
    begun = time.monotonic()
    m.append(OLD[0], timeout=30)
    assert time.monotonic() - begun > 0.1
    assert exit_code(pid) == 0
    assert len(open_map(m.out_dir)) == 3


def test_a_timeout_ends(m: RaggedMmap) -> None:
    with Lock(str(m.out_dir)):
        begun = time.monotonic()
        with pytest.raises(MapLockedError, match="map"):
            m.append(OLD[0], timeout=0.2)
        assert time.monotonic() - begun >= 0.2


def test_a_killed_owner_frees_the_lock(m: RaggedMmap) -> None:
    for _ in range(5):
        with owner(m.out_dir):
            refused(lambda: m.append(OLD[0]))
        m.append(OLD[0])
    assert len(open_map(m.out_dir)) == 7


def test_the_children_of_a_killed_owner_do_not_keep_the_lock(m: RaggedMmap) -> None:
    read, write = os.pipe()

    def worker() -> None:
        os.close(write)
        select.select([read], [], [], 60)  # until the test is over

    def start_worker() -> None:
        start_child(worker)
        os.close(write)

    with owner(m.out_dir, and_then=start_worker):
        refused(lambda: m.append(OLD[0]))
    m.append(OLD[0])  # the worker lives
    os.close(write)
    os.close(read)


def test_a_worker_forked_during_a_build_does_not_keep_the_lock(m: RaggedMmap) -> None:
    read, write = os.pipe()

    def worker() -> None:
        os.close(write)
        assert os.read(read, 1) == b""  # until the parent closes its end
        RaggedMmap(m.out_dir).append(OLD[0])

    workers = []

    def loader():
        yield OLD[0]
        workers.append(start_child(worker))
        yield OLD[1]

    RaggedMmap.from_generator(m.out_dir, loader(), batch_size=1).append(OLD[1])
    os.close(write)
    assert [exit_code(pid) for pid in workers] == [0]
    os.close(read)
    assert same(open_map(m.out_dir)[:], [OLD[0], OLD[1], OLD[1], OLD[0]])


def test_a_forked_child_cannot_release_the_lock_of_its_parent(m: RaggedMmap) -> None:
    with Lock(str(m.out_dir)) as lock:
        assert in_child(lock.release) == 0
        refused(lambda: m.append(OLD[0]))
        assert in_child(lambda: refused(lambda: m.append(OLD[0]))) == 0


def test_a_stale_handle_keeps_what_others_wrote(m: RaggedMmap) -> None:
    for k in range(3):
        assert in_child(lambda k=k: RaggedMmap(m.out_dir).append(np.array([k, 7]))) == 0
        m.append(np.array([k]))
    expected = [*OLD, *(row for k in range(3) for row in (np.array([k, 7]), np.array([k])))]
    assert same(m[:], expected)
    assert same(open_map(m.out_dir)[:], expected)
    check(m.out_dir)


def test_a_stale_handle_learns_of_a_wider_index_and_a_dtype(m: RaggedMmap) -> None:
    empty = RaggedMmap(m.out_dir.parent / "empty")
    other = RaggedMmap(m.out_dir.parent / "empty")
    other.append(np.arange(3, dtype=np.int16))
    with pytest.raises(ValueError, match="int16"):
        empty.append(np.array([0.5]))
    empty.append(np.arange(2, dtype=np.int16))
    assert same(open_map(empty.out_dir)[:], [np.arange(3, dtype=np.int16), np.arange(2, dtype=np.int16)])
    RaggedMmap(m.out_dir).append(np.ones((2, 2), np.int64))
    m.append(OLD[0])
    assert same(open_map(m.out_dir)[:], [*OLD, np.ones((2, 2), np.int64), OLD[0]])


def test_two_handles_of_no_map_yet_both_append(tmp_path: Path) -> None:
    first, second = RaggedMmap(tmp_path / "map"), RaggedMmap(tmp_path / "map")
    first.append(OLD[0])
    second.append(OLD[1])
    first.append(OLD[1])
    assert same(open_map(tmp_path / "map")[:], [OLD[0], OLD[1], OLD[1]])


def test_many_processes_append_in_turn(m: RaggedMmap) -> None:
    def append(tag: int) -> None:
        handle = RaggedMmap(m.out_dir)
        for k in range(10):
            handle.append(np.array([tag, k]), sync=False, timeout=60)

    pids = [start_child(lambda tag=tag: append(tag)) for tag in range(4)]
    assert [exit_code(pid) for pid in pids] == [0] * 4
    found = open_map(m.out_dir)[len(OLD) :]
    assert sorted(map(tuple, found)) == [(tag, k) for tag in range(4) for k in range(10)]
    check(m.out_dir)


def test_a_replaced_map_is_not_written_to_through_an_old_handle(m: RaggedMmap) -> None:
    writable = RaggedMmap(m.out_dir, mode="r+")
    RaggedMmap.from_lists(m.out_dir, [np.arange(9)])
    for act in (lambda: m.append(OLD[0]), lambda: writable.__setitem__(0, OLD[0])):
        with pytest.raises(MapChangedError, match="was replaced since it was opened"):
            act()
    assert same(m[:], OLD)  # what it has open stays
    m.refresh()
    m.append(OLD[0])
    assert same(open_map(m.out_dir)[:], [np.arange(9), OLD[0]])


def test_a_map_of_another_kind_in_its_place(m: RaggedMmap) -> None:
    DenseMmap.from_ndarray(m.out_dir, np.arange(4))
    with pytest.raises((MapChangedError, MapKindError), match="map"):
        m.append(OLD[0])
    assert open_map(m.out_dir)[:].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_folder_that_was_removed_is_not_written_to(m: RaggedMmap, mode: str) -> None:
    """Its samples are gone; a map of the new ones alone would pretend otherwise."""
    m = RaggedMmap(m.out_dir, mode=mode)
    shutil.rmtree(m.out_dir)
    act = (lambda: m.append(OLD[0])) if mode == "r" else (lambda: m.__setitem__(0, OLD[0]))
    with pytest.raises((MapChangedError, FileNotFoundError), match="map"):
        act()
    assert not (m.out_dir / "manifest.json").exists()
    assert same(m[:], OLD)


def test_the_lock_file_stays_the_same(m: RaggedMmap) -> None:
    before = (m.out_dir / ".lock").stat().st_ino
    m.append(OLD[0])
    RaggedMmap.from_lists(m.out_dir, OLD)
    assert (m.out_dir / ".lock").stat().st_ino == before


@pytest.mark.parametrize("timeout", ["1", None, True, float("nan")])
def test_a_timeout_that_is_no_number_leaves_no_descriptor(tmp_path: Path, timeout: object) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(3)])
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ArgumentTypeError, match="timeout is"):
        m.append(np.arange(2), timeout=timeout)
    assert os.listdir("/proc/self/fd") == before
    m.append(np.arange(2))


def test_a_lock_that_nobody_holds_any_more_is_free(m: RaggedMmap) -> None:
    """An interrupt may fall between two lines of whoever was about to hold it."""
    lock = Lock(str(m.out_dir))
    refused(lambda: m.append(OLD[0]))
    del lock
    m.append(OLD[0])


def test_a_file_system_without_locks_is_an_error_of_ours(m: RaggedMmap, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("mmap_ninja._storage.lock._flock", refuse)
    with pytest.raises(DiskError, match="cannot lock this map: No locks available"):
        m.append(OLD[0])


def test_leaving_a_with_block_waits_as_long_as_its_calls(m: RaggedMmap) -> None:
    """The samples are there; an error of the last flush would say otherwise."""
    with RaggedMmap(m.out_dir) as handle:
        handle.append(OLD[0], sync=False, timeout=30)
        pid = owner_for_a_while(m.out_dir)
    assert exit_code(pid) == 0
    assert len(open_map(m.out_dir)) == 3
