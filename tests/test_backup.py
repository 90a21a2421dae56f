"""Backups: the newest state in a folder of its own, each byte compared, whatever writes, fails or dies meanwhile.

That a backup may be killed, cut from power or fail at every call is shown where that is shown of all that is written
(`changes.CHANGES` has it).
"""

import errno
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import plain_reader
from changes import KINDS, format_1_column, format_1_rows, interrupt, listed, no_syncs, quietly
from children import Children
from faults import KILLED, Disk, Os, Strike, killed_at, recorded, tree
from meanwhile import BLOCK, LARGE, assign_for_ever, extend_for_ever, flip, replace_for_ever, right, uniform
from mmap_ninja import DenseMmap, RaggedMmap, Wrapped, backup, np_open_existing, open_map, select, upgrade, verify
from mmap_ninja._storage import copying, disk, half
from mmap_ninja._storage.lock import Lock
from mmap_ninja._storage.manifest import MANIFEST
from mmap_ninja.cli import main
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    DiskError,
    ForeignFileError,
    MapChangedError,
    MapClosedError,
    MapCorruptError,
    MapLockedError,
    MapNotFoundError,
    MapPathError,
    PartBuiltError,
    PartBuiltWarning,
)
from our_threads import none_left  # noqa: F401 - a fixture
from plain_reader import same
from test_storage_disk import SHARING, on_a_sharing_disk
from test_storage_disk_full import disks, fill, free, on_a_disk, refused  # noqa: F401 - `disks` is a fixture

# What is copied.


@pytest.mark.parametrize("size", ["samples", "large"])
@pytest.mark.parametrize("name", KINDS)
def test_a_copy_is_the_same_map(tmp_path: Path, name: str, size: str) -> None:
    kind = KINDS[name]
    samples = getattr(kind, size)
    m = kind.build(tmp_path / "map", samples, metadata={"split": "train"})
    assert backup(m, tmp_path / "copy") == []
    assert verify(tmp_path / "copy") == []
    copy = open_map(tmp_path / "copy")
    assert same(listed(copy), samples)
    assert copy.metadata == {"split": "train"}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == plain_reader.names(tmp_path / "copy") | {".lock"}
    there, here = plain_reader.fields(tmp_path / "map"), plain_reader.fields(tmp_path / "copy")
    assert {**there, "obsolete": []} == here
    plain_reader.check(tmp_path / "copy")
    if kind.options == {}:
        assert same(plain_reader.samples(tmp_path / "copy"), samples)  # np.load, too
    kind.cls(tmp_path / "copy").append(samples[0])
    assert len(open_map(tmp_path / "map")) == len(samples)


def test_only_committed_bytes_of_files_that_are_named(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE[:2])
    m.append(np.ones((2, 2), int))  # widens the index: `index-2.npy`
    m.extend(LARGE[2:4])
    for name in ("data.npy", "index-2.npy"):  # what a killed writer leaves
        with open(tmp_path / "map" / name, "ab") as file:
            file.write(b"left" * 1000)
    (tmp_path / "map" / "notes.txt").write_text("the user's own")
    (tmp_path / "map" / "index.npy").write_bytes(b"of an earlier state")
    (tmp_path / "map" / "manifest.json.new").write_bytes(b"")
    assert backup(tmp_path / "map", tmp_path / "copy") == []
    found = tree(tmp_path / "copy")
    assert set(found) == {".lock", "data.crc", "data.npy", "index-2.npy", "manifest.json"}
    for file in plain_reader.fields(tmp_path / "copy")["files"].values():
        assert len(found[file["name"]]) == file["offset"] + file["size"]


def test_a_copy_has_no_file_in_common_with_the_map(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    backup(tmp_path / "map", tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        assert path.stat().st_nlink == 1
        assert path.stat().st_ino != (tmp_path / "map" / path.name).stat().st_ino
    with Lock(str(tmp_path / "map")):
        RaggedMmap(tmp_path / "copy").append([1])


def test_a_header_of_another_state_is_renewed(tmp_path: Path) -> None:
    """A writer that has not come to it yet, or that never will."""
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(6.0).reshape(3, 2))
    raw = (tmp_path / "map" / "data.npy").read_bytes()
    (tmp_path / "map" / "data.npy").write_bytes(raw.replace(b"(3, 2)", b"(2, 2)"))
    assert [finding.kind for finding in verify(tmp_path / "map")] == ["header"]
    backup(tmp_path / "map", tmp_path / "copy")
    assert verify(tmp_path / "copy") == []
    assert np.load(tmp_path / "copy" / "data.npy").shape == (3, 2)


def test_a_map_of_no_samples(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", [], metadata={"a": 1})
    assert backup(tmp_path / "map", tmp_path / "copy") == []
    assert (len(open_map(tmp_path / "copy")), open_map(tmp_path / "copy").metadata) == (0, {"a": 1})
    DenseMmap.from_ndarray(tmp_path / "flat", np.empty((4, 0)))
    assert backup(tmp_path / "flat", tmp_path / "flat copy") == []
    assert open_map(tmp_path / "flat copy")[:].shape == (4, 0)


def test_a_finished_map_beside_which_another_is_being_built(tmp_path: Path) -> None:
    kind = KINDS["rows"]
    kind.build(tmp_path / "map", kind.samples)
    interrupt(kind, tmp_path / "map", kind.first[::-1])
    assert backup(tmp_path / "map", tmp_path / "copy") == []
    assert same(listed(open_map(tmp_path / "copy")), kind.samples)


def test_a_map_of_which_a_sync_has_failed_is_whole_in_its_copy(tmp_path: Path) -> None:
    """Every byte of the copy was compared with its checksum, and synced on its own."""
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    plain_reader.forge(tmp_path / "map", lost=True, synced=False)
    assert [finding.kind for finding in verify(tmp_path / "map")] == ["unchecked"]
    assert backup(tmp_path / "map", tmp_path / "copy") == []
    assert verify(tmp_path / "copy") == []
    assert plain_reader.fields(tmp_path / "copy")["synced"]


def test_a_map_that_was_upgraded_where_it_is(tmp_path: Path) -> None:
    """Its data has no header, and a name of 0.9.0."""
    format_1_rows(tmp_path / "map")
    upgrade(tmp_path / "map")
    m = open_map(tmp_path / "map")
    m.extend([np.arange(200_000)])
    assert backup(m, tmp_path / "copy") == []
    assert set(tree(tmp_path / "copy")) == {".lock", "data.ninja", "data.crc", "index.npy", "manifest.json"}
    assert same(listed(open_map(tmp_path / "copy")), listed(m))
    assert verify(tmp_path / "copy") == []


def test_a_map_in_whose_folder_something_of_the_user_has_the_name_of_the_mark(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE[:1])
    (tmp_path / "map" / half.MARK).mkdir()
    m.append([1])
    (tmp_path / "map" / half.MARK).rmdir()
    (tmp_path / "map" / half.MARK).write_text("the user's own")
    m.append([1])
    assert backup(m, tmp_path / "copy") == []
    assert (tmp_path / "map" / half.MARK).read_text() == "the user's own"


def test_unsynced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    calls = recorded(lambda: backup(tmp_path / "map", tmp_path / "copy", sync=False)).of("sync_data", "sync")
    assert [call.name for call in calls] == [half.MARK]
    assert verify(tmp_path / "copy") == []
    assert not plain_reader.fields(tmp_path / "copy")["synced"]


# What is given.


def test_what_was_assigned_through_the_handle_is_flushed(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE)
    m[0] = m[0] + 1
    assert backup(m, tmp_path / "copy") == []
    assert same(list(open_map(tmp_path / "copy")[:1]), [LARGE[0] + 1])


def test_an_open_map_is_copied_as_it_is_now(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE[:1])
    RaggedMmap(tmp_path / "map").extend(LARGE[1:])
    assert backup(m, tmp_path / "copy") == []
    assert len(open_map(tmp_path / "copy")) == len(LARGE)
    RaggedMmap.from_lists(tmp_path / "map", [[1]])
    with pytest.raises(MapChangedError, match="was replaced since it was opened"):
        backup(m, tmp_path / "other")
    m.close()
    with pytest.raises(MapClosedError):
        backup(m, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_is_no_map(tmp_path: Path) -> None:
    kind = KINDS["rows"]
    m = kind.build(tmp_path / "map", kind.samples)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    interrupt(kind, tmp_path / "part", kind.first)
    for source, error, match in (
        (tmp_path / "nowhere", MapNotFoundError, "there is no map at"),
        (RaggedMmap(tmp_path / "nowhere"), MapNotFoundError, "there is no map at"),
        (tmp_path / "folder", MapNotFoundError, "there is no map at"),
        (tmp_path / "file", MapPathError, "is a file, expected the folder of a map"),
        (tmp_path / "part", PartBuiltError, "finish it with resume=True, then back it up"),
        (select(m, [0]), ArgumentTypeError, "an open map, or the path of one, not a Selection"),
        (Wrapped(m, len), ArgumentTypeError, "an open map, or the path of one, not a Wrapped"),
        (np.zeros(3), ArgumentTypeError, "an open map, or the path of one, not a ndarray"),
    ):
        with pytest.raises(error, match=match):
            backup(source, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


# Where it goes.


@pytest.mark.parametrize("there", ["a file", "a map", "the map itself", "a foreign mark", "a killed build"])
def test_a_target_in_which_there_is_anything_is_refused(tmp_path: Path, there: str) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE[:1])
    target = tmp_path / ("map" if there == "the map itself" else "copy")
    if there == "a file":
        target.mkdir()
        (target / "notes.txt").write_text("the user's own")
    elif there == "a map":
        RaggedMmap.from_lists(target, [[1]])
    elif there == "a foreign mark":
        target.mkdir()
        (target / half.MARK).write_text("of another program")
    elif there == "a killed build":
        interrupt(KINDS["rows"], target, KINDS["rows"].first)
    before = tree(target)
    with pytest.raises(ForeignFileError, match="a backup goes to a new or an empty folder"):
        backup(tmp_path / "map", target)
    assert tree(target) == before


def test_a_target_that_is_empty_or_a_file_or_below_nothing(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE[:1])
    (tmp_path / "empty").mkdir()
    assert backup(tmp_path / "map", tmp_path / "empty") == []
    assert backup(tmp_path / "map", str(tmp_path / "a" / "b" / "c")) == []
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MapPathError, match="is a file"):
            backup(tmp_path / "map", target)


@pytest.mark.parametrize("name", ["backup", "below/backup", "../link/backup"])
def test_a_target_in_the_map_itself_is_refused(tmp_path: Path, name: str) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE[:1])
    (tmp_path / "link").symlink_to(tmp_path / "map")
    before = tree(tmp_path / "map")
    with pytest.raises(ArgumentError, match=r"is in the folder of the map, .*: a backup goes to another place"):
        backup(tmp_path / "map", tmp_path / "map" / name)
    assert tree(tmp_path / "map") == before
    assert backup(tmp_path / "map", tmp_path / "map beside it") == []


def test_a_target_that_is_a_link(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE[:1])
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(MapPathError, match="link is a link to nowhere, expected the folder of a map"):
        backup(tmp_path / "map", tmp_path / "link")
    with pytest.raises(MapPathError, match="link is a link to nowhere, expected the folder of a map"):
        RaggedMmap.from_lists(tmp_path / "link" / "below", LARGE[:1])
    (tmp_path / "nowhere").mkdir()
    assert backup(tmp_path / "map", tmp_path / "link") == []


def test_one_backup_at_a_time(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE[:1])
    (tmp_path / "copy").mkdir()
    with Lock(str(tmp_path / "copy")), pytest.raises(MapLockedError):
        backup(tmp_path / "map", tmp_path / "copy")
    assert backup(tmp_path / "map", tmp_path / "copy") == []


# Damage.


@pytest.mark.parametrize("seed", range(8))
def test_damage_at_random_blocks_is_named_and_nothing_is_left(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    file = plain_reader.fields(tmp_path / "map")["files"]["data"]
    bad = sorted(rng.sample(range(-(-file["size"] // BLOCK)), rng.randint(1, 3)))
    for block in bad:
        flip(tmp_path / "map" / "data.npy", rng.randrange(block * BLOCK, min((block + 1) * BLOCK, file["size"])) + 128)
    with pytest.raises(MapCorruptError) as caught:
        backup(tmp_path / "map", tmp_path / "copy")
    assert f"data.npy is damaged in {len(bad)} of 12 blocks of 1048576 bytes: " in str(caught.value)
    assert str(bad[0]) in str(caught.value).rpartition("bytes: ")[2]
    assert str(verify(tmp_path / "map")[0]).partition("damaged in ")[2] in str(caught.value)  # as `verify` says it
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", KINDS)
def test_damage_in_any_file(tmp_path: Path, name: str) -> None:
    KINDS[name].build(tmp_path / "map", KINDS[name].large)
    files = plain_reader.fields(tmp_path / "map")["files"].values()
    places = [(file["name"], file["offset"] + k * (file["size"] - 1) // 3) for file in files for k in range(4)]
    places += [(plain_reader.crc_name(file), 2) for file in files if file["size"] >= BLOCK]
    for path, at in places:
        flip(tmp_path / "map" / path, at)
        with pytest.raises(MapCorruptError, match=path):
            backup(tmp_path / "map", tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        flip(tmp_path / "map" / path, at)
    assert backup(tmp_path / "map", tmp_path / "copy") == []


@pytest.mark.parametrize("what", ["missing", "cut"])
@pytest.mark.parametrize("name", ["data.npy", "data.crc", "index.npy"])
def test_a_file_that_is_not_there_or_too_short(tmp_path: Path, name: str, what: str) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    path = tmp_path / "map" / name
    raw = path.read_bytes()
    path.unlink() if what == "missing" else path.write_bytes(raw[:-1])
    with pytest.raises(MapCorruptError, match=name):
        backup(tmp_path / "map", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_an_error_in_either_thread_ends_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(8 << 20).reshape(8, -1))
    real, here = disk.copy_range, threading.get_ident()
    for is_ours in (True, False):

        def fail(*arguments: object, is_ours: bool = is_ours) -> None:
            if arguments[3] > 128 and (threading.get_ident() == here) == is_ours:
                raise DiskError(errno.EIO, "a bad device", "there")
            real(*arguments)

        monkeypatch.setattr(disk, "copy_range", fail)
        with pytest.raises(DiskError, match="a bad device"):
            backup(tmp_path / "map", tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
    monkeypatch.undo()
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (_ for _ in ()).throw(RuntimeError("no more")))
    assert backup(tmp_path / "map", tmp_path / "copy") == []  # then in one


# Values assigned in place.


def test_values_that_are_not_flushed_are_copied_as_not_checked(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE, mode="r+")
    m[3] = m[3] + 1
    [finding] = backup(tmp_path / "map", tmp_path / "copy")
    assert finding.kind == "unchecked"
    assert str(finding).startswith(f"{tmp_path / 'copy' / 'data.npy'}: not checked: copied as it is")
    [found] = verify(tmp_path / "copy")
    assert found.kind == "unchecked"
    assert "they differ in" in found.what
    assert same(listed(open_map(tmp_path / "copy")), [*LARGE[:3], LARGE[3] + 1, *LARGE[4:]])
    verify(tmp_path / "copy", accept=True)
    assert verify(tmp_path / "copy") == []
    m.flush()
    assert backup(tmp_path / "map", tmp_path / "second") == []
    assert len(backup_of_a_memmap(tmp_path)) == 1


def backup_of_a_memmap(folder: Path) -> list:
    DenseMmap.from_ndarray(folder / "dense", np.arange(6))
    np_open_existing(folder / "dense", mode="r+")[0] = 7
    return backup(folder / "dense", folder / "dense copy")


WRITERS = {"assigns": assign_for_ever, "extends": extend_for_ever, "replaces": replace_for_ever}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_process_that_writes_meanwhile(tmp_path: Path, writer: str, record_property: Callable) -> None:
    RaggedMmap.from_lists(tmp_path / "map", [uniform(k) for k in range(20)])  # 6 MB
    checked = refused_ones = 0
    with Children() as children:
        pid = children.start(lambda: quietly(WRITERS[writer], tmp_path / "map"))
        deadline = time.monotonic() + 60
        for _ in range(40):
            try:
                findings = backup(tmp_path / "map", tmp_path / "copy", sync=False)
            except MapChangedError:  # which says that it was tried often enough
                assert not (tmp_path / "copy").exists()
                refused_ones += 1
            else:
                right(tmp_path / "copy", findings)
                checked += not findings
                shutil.rmtree(tmp_path / "copy")
            if time.monotonic() > deadline:
                break
        assert children.kill(pid) == KILLED
    record_property("checked, refused", (checked, refused_ones))
    assert checked > 0


@pytest.mark.parametrize("writer", ["assigns", "extends"])
def test_a_thread_that_writes_meanwhile(tmp_path: Path, writer: str) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [uniform(k) for k in range(20)], mode="r+")
    is_over = threading.Event()

    def write() -> None:
        value = 0
        while not is_over.is_set():
            value += 1
            if writer == "extends":
                m.extend([uniform(value)] * 2, sync=False)
                time.sleep(0.005)
            else:
                m[value % 20] = uniform(value)
                if value % 7 == 0:
                    m.flush()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(15):
            right(tmp_path / f"copy {number}", backup(tmp_path / "map", tmp_path / f"copy {number}", sync=False))
            shutil.rmtree(tmp_path / f"copy {number}")
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_values_assigned_at_a_bad_moment(tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes change behind the manifest that was read: they do not fit, and are copied once more."""
    m = RaggedMmap.from_lists(tmp_path / "map", [uniform(k) for k in range(20)], mode="r+")
    real, calls = disk.copy_range, []

    def copy(source: int, fd: int, at: int, size: int, path: str) -> None:
        calls.append(path)
        is_time = len(calls) == (1 if when == "before" else 3)
        if is_time and when != "after":
            m[0], m[19] = uniform(100), uniform(119)
            if when == "before":
                m.flush()
        real(source, fd, at, size, path)
        if is_time and when == "after":
            m[0], m[19] = uniform(100), uniform(119)

    monkeypatch.setattr(disk, "copy_range", copy)
    findings = backup(tmp_path / "map", tmp_path / "copy")
    right(tmp_path / "copy", findings)
    copy_of = [int(sample[0]) for sample in open_map(tmp_path / "copy")]
    assert (copy_of[0], copy_of[19]) in ((100, 119), (0, 19))
    assert copy_of[1:19] == list(range(1, 19))


def test_a_map_that_is_assigned_to_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [uniform(k) for k in range(20)], mode="r+")
    real, values = copying.copy_file, iter(range(100, 200))

    def copy(*arguments: object) -> None:
        m[0] = uniform(next(values))
        m.flush()
        real(*arguments)

    monkeypatch.setattr("mmap_ninja._storage.backup.copy_file", copy)
    with pytest.raises(MapChangedError, match="changed 5 times while it was copied") as caught:
        backup(tmp_path / "map", tmp_path / "copy")
    assert isinstance(caught.value.__cause__, MapCorruptError)
    assert not (tmp_path / "copy").exists()


# Killed, and failing.


def test_killed_at_a_random_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncs(monkeypatch)
    rng = random.Random(1)
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    begun = time.monotonic()
    backup(tmp_path / "map", tmp_path / "whole")
    took, halves = time.monotonic() - begun, 0
    for number in range(25):
        target = tmp_path / f"copy {number}"
        with Children() as children:
            pid = children.start(lambda target=target: backup(tmp_path / "map", target))
            time.sleep(rng.random() * took * 1.5)
            children.kill(pid)
        try:
            open_map(target)
        except (MapNotFoundError, MapCorruptError):  # nothing, or files without a manifest
            halves += 1
            if number % 2:  # whatever is made there next
                backup(tmp_path / "map", target)
            else:
                RaggedMmap.from_lists(target, LARGE)
        assert verify(target) == []
        assert same(listed(open_map(target)), LARGE)
        assert {path.name for path in target.iterdir()} - {half.MARK} == plain_reader.names(target) | {".lock"}
        shutil.rmtree(target)
    assert halves > 0


@pytest.mark.parametrize("name", ["rows", "format 1"])
def test_no_error_leaves_anything(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever call fails: no target, or, once it was published, the whole of it."""
    no_syncs(monkeypatch)
    KINDS["rows"].build(tmp_path / "map", KINDS["rows"].samples) if name == "rows" else format_1_rows(tmp_path / "map")
    with Os().installed() as whole_run:
        backup(tmp_path / "map", tmp_path / "whole")
    removed, kept = 0, 0
    for at, (function, _) in enumerate(whole_run.calls):
        for fault in (lambda: OSError(errno.ENOSPC, "full"), KeyboardInterrupt):
            try:
                with Os(at, fault).installed():
                    backup(tmp_path / "map", tmp_path / "copy")
            except (OSError, KeyboardInterrupt):
                if not (tmp_path / "copy").exists():
                    removed += 1
                    continue
                assert fault is KeyboardInterrupt or function == "close", (at, whole_run.calls[at])
            kept += 1
            assert not [one for one in verify(tmp_path / "copy") if one.kind == "damaged"]
            assert len(open_map(tmp_path / "copy")) == len(open_map(tmp_path / "map"))
            shutil.rmtree(tmp_path / "copy")
    assert removed > 20
    assert kept < 20
    gc.collect()


def test_an_interrupt_of_a_folder_that_was_there_leaves_it_empty(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    (tmp_path / "copy").mkdir()
    double = Disk(Strike(6), lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
    with double.installed(), pytest.raises(KeyboardInterrupt):
        backup(tmp_path / "map", tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == [".lock"]
    assert backup(tmp_path / "map", tmp_path / "copy") == []


def test_half_a_backup_with_a_file_of_the_user_in_it_is_left_alone(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    calls = recorded(lambda: backup(tmp_path / "map", tmp_path / "whole")).calls
    at = next(k for k, call in enumerate(calls) if call[:2] == ("write_at", "manifest.json.new"))
    killed_at(Strike(at), lambda: backup(tmp_path / "map", tmp_path / "copy"))
    assert (tmp_path / "copy" / "data.npy").exists()
    (tmp_path / "copy" / "notes.txt").write_text("the user's own")
    with pytest.raises(ForeignFileError, match=r"has a notes\.txt in it"):
        backup(tmp_path / "map", tmp_path / "copy")
    assert (tmp_path / "copy" / "data.npy").exists()
    RaggedMmap.from_lists(tmp_path / "copy", [[1]])  # a map may be made beside the user's files, as ever
    assert (tmp_path / "copy" / "notes.txt").exists()
    assert plain_reader.names(tmp_path / "copy") | {".lock", "notes.txt"} == set(tree(tmp_path / "copy"))


@pytest.mark.parametrize("raw", [b"", bytes(100), half._START[:20]])
def test_a_mark_that_a_power_cut_has_left(tmp_path: Path, raw: bytes) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE[:1])
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / half.MARK).write_bytes(raw)
    assert backup(tmp_path / "map", tmp_path / "copy") == []
    assert set(tree(tmp_path / "copy")) == plain_reader.names(tmp_path / "copy") | {".lock"}


def test_a_mark_in_a_folder_that_has_a_map_removes_nothing_but_itself(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE[:1])
    with Lock(str(tmp_path / "map")) as lock:
        half.mark(lock, [MANIFEST, "data.npy", "index.npy"])
    m.append([1])
    assert verify(tmp_path / "map") == []
    assert not (tmp_path / "map" / half.MARK).exists()


def test_a_hostile_mark_reaches_nothing_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("of another")
    RaggedMmap.from_lists(tmp_path / "map", LARGE[:1])
    target = tmp_path / "copy"
    target.mkdir()
    (target / "link").symlink_to(outside)
    names = [MANIFEST, "../outside/file", str(outside / "file"), "link/file", "", ".", "..", "a\0b", "link/", "//"]
    (target / half.MARK).write_bytes(half._START + "\n".join(names).encode())
    RaggedMmap.from_lists(target, LARGE[:1])
    assert (outside / "file").exists()
    assert verify(target) == []


@pytest.mark.parametrize("left", [0, 300_000, 3_000_000])
def test_a_full_disk(tmp_path: Path, left: int, disks: None) -> None:  # noqa: F811 - the fixture
    RaggedMmap.from_lists(tmp_path / "map", LARGE[:3])  # 4 MB

    def run(work: Path) -> None:
        fill(work, left)
        for _ in range(2):
            refused(lambda: backup(tmp_path / "map", work / "copy"), errno.ENOSPC)
            assert not (work / "copy").exists()
        free(work)
        assert backup(tmp_path / "map", work / "copy") == []
        assert verify(work / "copy") == []
        assert same(listed(open_map(work / "copy")), LARGE[:3])

    assert on_a_disk(tmp_path, run) == 0


@pytest.mark.parametrize("kind", SHARING)
def test_blocks_are_shared_where_they_can_be(kind: str, tmp_path: Path) -> None:
    def run() -> None:
        work = tmp_path / "disk"
        m = RaggedMmap.from_lists(work / "map", LARGE, mode="r+")
        with open(work / "map" / "data.npy", "ab") as file:
            file.write(bytes(1_000_000))  # what a killed writer leaves
        calls = recorded(lambda: backup(m, work / "copy"))
        assert len(calls.of("clone")) == 2
        assert calls.of("copy_range") == []
        m[0] = m[0] + 1
        m.close()
        assert verify(work / "copy") == []
        assert same(listed(open_map(work / "copy")), LARGE)
        assert (work / "copy" / "data.npy").stat().st_size == 128 + sum(sample.nbytes for sample in LARGE)
        flip(work / "map" / "data.npy", 2 * BLOCK)
        with pytest.raises(MapCorruptError, match=r"data\.npy is damaged in 1 of 12 blocks"):
            backup(work / "map", work / "other")
        assert not (work / "other").exists()

    on_a_sharing_disk(kind, tmp_path, run)


def test_memory_is_bounded(tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.zeros((64, 1 << 17)))  # 64 MiB
    backup(tmp_path / "map", tmp_path / "first", sync=False)
    tracemalloc.start()
    try:
        backup(tmp_path / "map", tmp_path / "second", sync=False)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    backup(tmp_path / "map", tmp_path / "first", sync=False)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        backup(tmp_path / "map", tmp_path / str(number), sync=False)
        with pytest.raises(ForeignFileError):
            backup(tmp_path / "map", tmp_path / "first", sync=False)
    assert len(os.listdir("/proc/self/fd")) == before


# Format 1.


def test_format_1_is_copied_as_it_is(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    (tmp_path / "map" / "notes.txt").write_text("the user's own")
    [finding] = backup(tmp_path / "map", tmp_path / "copy")
    assert (finding.kind, finding.path) == ("unchecked", str(tmp_path / "copy"))
    assert "format 1 has no checksums" in finding.what
    there, here = tree(tmp_path / "map"), tree(tmp_path / "copy")
    del there["notes.txt"], here[".lock"]
    assert there == here
    assert same(listed(open_map(tmp_path / "copy")), listed(open_map(tmp_path / "map")))
    upgrade(tmp_path / "copy")
    assert verify(tmp_path / "copy") == []


def test_format_1_with_names_of_its_own(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    (tmp_path / "map" / "starts").rename(tmp_path / "map" / "begins")
    m = RaggedMmap(tmp_path / "map", starts_key="begins")
    assert [finding.kind for finding in backup(m, tmp_path / "copy")] == ["unchecked"]
    assert same(listed(RaggedMmap(tmp_path / "copy", starts_key="begins")), listed(m))
    assert main(["backup", "--starts-key", "begins", str(tmp_path / "map"), str(tmp_path / "other")]) == 0
    with pytest.raises(MapCorruptError, match="starts"):
        backup(tmp_path / "map", tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_format_1_whose_files_disagree(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    (tmp_path / "map" / "starts" / "data.ninja").write_bytes(np.array([5, 3, 4, 4]).tobytes())
    with pytest.raises(MapCorruptError, match="is wrong"):
        backup(tmp_path / "map", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_format_1_that_is_changed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied anew: by 0.9.0, which takes no lock, or by an upgrade."""
    format_1_column(tmp_path / "map", np.arange(10.0))
    real, calls = disk.copy_range, []

    def copy(*arguments: object) -> None:
        calls.append(0)
        if len(calls) == 2:
            with open(tmp_path / "map" / "data.ninja", "ab") as file:
                file.write(np.arange(10.0, 12.0).tobytes())
            (tmp_path / "map" / "shape.ninja").write_bytes(np.array([12]).tobytes())
        if len(calls) == 7:
            upgrade(tmp_path / "map")
        real(*arguments)

    monkeypatch.setattr(disk, "copy_range", copy)
    assert backup(tmp_path / "map", tmp_path / "copy") == []
    assert open_map(tmp_path / "copy")[:].tolist() == list(range(12))
    assert verify(tmp_path / "copy") == []


# The command line.


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE, mode="r+")
    arguments = ["backup", str(tmp_path / "map"), str(tmp_path / "copy")]
    assert main(arguments) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'map'}: copied to {tmp_path / 'copy'}\n", "")
    assert main(arguments) == 1
    assert "a backup goes to a new or an empty folder" in capsys.readouterr().err
    m[0] = m[0] + 1
    assert main([*arguments[:2], str(tmp_path / "second"), "--no-sync", "--quiet"]) == 0
    assert "second/data.npy: not checked: copied as it is" in capsys.readouterr().out
    m.close()
    flip(tmp_path / "map" / "data.npy", 5000)
    assert main([*arguments[:2], str(tmp_path / "third")]) == 1
    assert "data.npy is damaged in 1 of 12 blocks of 1048576 bytes: 0; nothing was copied" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_a_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    backup(tmp_path / "map", tmp_path / "copy", verbose=True)
    assert "12.0M/12.0M" in capsys.readouterr().err


def test_a_terminated_command_leaves_what_the_next_one_sweeps(tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.zeros((64, 1 << 17)))
    command = [sys.executable, "-m", "mmap_ninja", "backup", str(tmp_path / "map"), str(tmp_path / "copy")]
    process = subprocess.Popen(command)
    while process.poll() is None and not (tmp_path / "copy" / "data.npy").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    process.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartBuiltWarning)
        if not (tmp_path / "copy" / "manifest.json").exists():
            with pytest.raises((MapNotFoundError, MapCorruptError)):
                open_map(tmp_path / "copy")
            subprocess.run(command, check=True)
    assert verify(tmp_path / "copy") == []
