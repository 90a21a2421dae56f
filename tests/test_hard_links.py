"""Copies of a folder that share its files by hard links: a writer copies what it is about to write to."""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from changes import CHANGES, SMALL, check, format_1_rows, opened, quietly
from faults import tree
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, np_open_existing, open_map, verify
from mmap_ninja._storage import disk
from mmap_ninja.errors import HardLinkWarning, MapChangedError, UpgradeWarning
from plain_reader import same

OPERATIONS = (
    "append",
    "extend",
    "extend over blocks",
    "extend format 1",
    "widen",
    "flush",
    "metadata",
    "replace",
    "resume",
    "resume beside a map",
    "upgrade",
    "assign",
    "assign over blocks",
    "assign to format 1",
    "assign to the memmap",
)
NAMES = [
    name
    for name, change in CHANGES.items()
    if change.operation in OPERATIONS and change.kind in ("rows", "dense", "dense fortran", "zstd dictionary")
]
ROWS = [np.arange(n) for n in (3, 0, 5)]


def linked(folder: Path, copy: Path) -> Path:
    """What `cp -al` makes of a folder."""
    return Path(shutil.copytree(folder, copy, copy_function=os.link))


@pytest.mark.parametrize("may_clone", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_no_byte_of_a_linked_copy_changes(
    tmp_path: Path, name: str, may_clone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not may_clone:
        monkeypatch.setattr(disk, "clone", lambda source, target: False)
    written_to_both(tmp_path, name)


@pytest.mark.parametrize("name", ["rows: append", "dense: assign", "rows: upgrade"])
def test_a_writer_that_does_not_look_is_caught(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "is_linked", lambda path: False)
    with pytest.raises(AssertionError):
        written_to_both(tmp_path, name)


def written_to_both(tmp_path: Path, name: str) -> None:
    """The change is made to a folder, then to its linked copy."""
    change, folder, copy = CHANGES[name], tmp_path / "map", tmp_path / "copy"
    change.begin(folder)
    linked(folder, copy)
    before = tree(copy)
    change.act(folder)
    assert tree(copy) == before
    check(change, folder, may_be_old=False)
    after = tree(folder)
    change.act(copy)
    assert tree(folder) == after
    check(change, copy, may_be_old=False)
    assert verify(folder) == verify(copy) or change.operation == "assign to the memmap"
    assert not [path for path in (*folder.rglob("*"), *copy.rglob("*")) if path.is_file() and path.stat().st_nlink > 1]


def test_the_writer_says_so_once(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", ROWS)
    linked(tmp_path / "map", tmp_path / "copy")
    with pytest.warns(HardLinkWarning, match=r"map shared files with another folder, by hard links") as told:
        m.append(ROWS[0])
    assert len(told) == 1
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m.append(ROWS[0])
        RaggedMmap(tmp_path / "copy").append(ROWS[2])
    assert same(open_map(tmp_path / "copy")[:], [*ROWS, ROWS[2]])
    assert same(open_map(tmp_path / "map")[:], [*ROWS, ROWS[0], ROWS[0]])


@pytest.mark.parametrize("name", [".lock", "data.npy", "index.npy", "manifest.json"])
def test_a_single_file_is_shared(tmp_path: Path, name: str) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", ROWS)
    os.link(tmp_path / "map" / name, tmp_path / "second")
    before = (tmp_path / "second").read_bytes()
    quietly(lambda m: m.append(ROWS[2]), m)
    assert (tmp_path / "second").read_bytes() == before
    assert (tmp_path / "second").stat().st_nlink == 1
    assert same(open_map(tmp_path / "map")[:], [*ROWS, ROWS[2]])
    assert verify(tmp_path / "map") == []


def test_a_copy_is_linked_between_two_assignments(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", ROWS)
    m = RaggedMmap(tmp_path / "map", mode="r+")
    m[0] = ROWS[0] + 10
    linked(tmp_path / "map", tmp_path / "copy")
    before = tree(tmp_path / "copy")
    with pytest.warns(HardLinkWarning):
        m[2] = ROWS[2] + 10
    m.close()
    assert tree(tmp_path / "copy") == before
    assert same(open_map(tmp_path / "map")[:], [ROWS[0] + 10, ROWS[1], ROWS[2] + 10])
    assert verify(tmp_path / "map") == []


@pytest.mark.parametrize("mend", [{"repair": True}, {"accept": True}])
def test_what_verify_mends_stays_out_of_a_linked_copy(tmp_path: Path, mend: dict) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(300_000))
    if "accept" in mend:
        np_open_existing(tmp_path / "map", mode="r+")[5] = 7
    else:
        with open(tmp_path / "map/data.npy", "r+b") as file:
            file.seek(60)
            file.write(b"1")
    linked(tmp_path / "map", tmp_path / "copy")
    before = tree(tmp_path / "copy")
    with pytest.warns(HardLinkWarning):
        assert all(one.repaired for one in verify(tmp_path / "map", **mend))
    assert verify(tmp_path / "map") == []
    assert tree(tmp_path / "copy") == before


@pytest.mark.parametrize("swap", [lambda data: data, lambda data: data[::-1]])
def test_two_writers_of_linked_folders_do_not_wait_for_each_other(tmp_path: Path, swap: Callable[[list], list]) -> None:
    BytesMmap.from_bytes(tmp_path / "map", [b"one"])
    linked(tmp_path / "map", tmp_path / "copy")
    first, second = swap([tmp_path / "map", tmp_path / "copy"])

    def loader():
        yield b"two"
        quietly(lambda m: m.append(b"three"), BytesMmap(second))
        yield b"four"

    BytesMmap.from_generator(first, loader(), 1)
    assert open_map(first)[:] == [b"two", b"four"]
    assert open_map(second)[:] == [b"one", b"three"]
    assert opened(first)[1] is opened(second)[1] is False


def test_assigned_values_are_not_taken_for_those_of_a_linked_copy_in_their_place(tmp_path: Path) -> None:
    """The map is moved while values are assigned to it, and a copy restored by hard links."""
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(5))
    m = DenseMmap(tmp_path / "map", mode="r+")
    m[0] = 100
    shutil.move(tmp_path / "map", tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "whole")
    linked(tmp_path / "whole", tmp_path / "map")
    m[1] = 101
    with pytest.raises(MapChangedError, match="has been replaced, and with it what was assigned"):
        quietly(lambda m: m.flush(), m)
    assert [one.kind for one in verify(tmp_path / "map")] == ["unchecked"]


@pytest.mark.parametrize("begin", ["map", "format 1"])
def test_where_warnings_are_errors_the_next_call_goes_through(tmp_path: Path, begin: str) -> None:
    if begin == "map":
        RaggedMmap.from_lists(tmp_path / "map", SMALL[:4])
    else:
        format_1_rows(tmp_path / "map")
    copy = tree(linked(tmp_path / "map", tmp_path / "copy"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", HardLinkWarning)
        warnings.simplefilter("ignore", UpgradeWarning)
        with pytest.raises(HardLinkWarning, match="they were copied") as caught:
            RaggedMmap(tmp_path / "map").append(ROWS[0])
        assert getattr(caught.value, "committed", False) is False
        RaggedMmap(tmp_path / "map").append(ROWS[0])
    assert same(open_map(tmp_path / "map")[:], [*SMALL[:4], ROWS[0]])
    assert tree(tmp_path / "copy") == copy


def test_what_a_killed_lock_has_left_is_removed(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", ROWS)
    (tmp_path / "map/.lock.new").write_bytes(b"")
    assert [one.kind for one in verify(tmp_path / "map")] == ["leftover"]
    m.append(ROWS[0])
    assert not (tmp_path / "map/.lock.new").exists()
