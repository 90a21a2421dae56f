"""`verify` finds every kind of damage, calls nothing damaged that is right, and mends what needs no guess."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import plain_reader
from changes import copied, format_1_rows
from contracts import locked
from faults import KILLED, Strike, exit_code, killed_at, recorded, start_child, tree
from mmap_ninja import (
    BytesMmap,
    DenseMmap,
    Finding,
    RaggedMmap,
    StringsMmap,
    np_from_ndarray,
    np_open_existing,
    open_map,
    upgrade,
    verify,
)
from mmap_ninja._storage import disk
from mmap_ninja.cli import main
from mmap_ninja.errors import (
    DiskError,
    MapLockedError,
    MapNotFoundError,
    MapPathError,
    MapPermissionError,
    MapVersionError,
)
from plain_reader import BLOCK, fields, forge

DAMAGES, LONG_DAMAGES = 120, 900  # of each kind of map: more than ten thousand in the long run
RNG = np.random.default_rng(17)
ROWS = [RNG.integers(0, 2**62, size) for size in (150_000, 3, 0, 140_000, 2)]  # two complete blocks and a part
TEXTS = [f"text number {i} ".ljust(40 + i % 7) for i in range(200)]


def dictionary_map(folder: Path) -> None:
    StringsMmap.from_strings(folder, TEXTS, zstd_level=3, zstd_train_dictionary_size=1000)


MAPS = {
    "ragged": lambda folder: RaggedMmap.from_lists(folder, ROWS),
    "mixed": lambda folder: RaggedMmap.from_lists(folder, [*ROWS[1:3], np.ones((2, 3), int), np.array(5)]),
    "scalars": lambda folder: RaggedMmap.from_lists(folder, [1.5, 2.5]),
    "dense": lambda folder: DenseMmap.from_ndarray(folder, RNG.random((3, 100, 600))),
    "dense of nothing": lambda folder: DenseMmap.from_ndarray(folder, np.zeros((4, 0))),
    "bytes": lambda folder: BytesMmap.from_bytes(folder, [b"", b"one", bytes(1_200_000), b"two"]),
    "strings": lambda folder: StringsMmap.from_strings(folder, TEXTS),
    "compressed": lambda folder: BytesMmap.from_bytes(folder, [b"", b"one", bytes(99)], zstd_level=3),
    "dictionary": dictionary_map,
    "empty": lambda folder: RaggedMmap.from_lists(folder, []),
    "upgraded": lambda folder: (format_1_rows(folder), upgrade(folder)),
    "grown": lambda folder: RaggedMmap.from_lists(folder, ROWS[:2]).extend([*ROWS[2:], np.ones((2, 2), int)]),
}


@pytest.fixture(params=MAPS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    MAPS[request.param](tmp_path / "map")
    return tmp_path / "map"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    MAPS["ragged"](tmp_path / "map")
    return tmp_path / "map"


def kinds(findings: list[Finding]) -> list[str]:
    return [finding.kind for finding in findings]


def test_nothing_is_wrong_with_what_was_just_made(folder: Path) -> None:
    before = tree(folder)
    assert verify(folder) == []
    assert verify(str(folder), repair=True) == []
    assert tree(folder) == before


# Every byte class that a map's checksums or the manifest vouch for.


def vouched(folder: Path) -> dict[str, tuple[int, int]]:
    """The ranges of bytes that belong to the map, by the name of their file: headers, values, checksums, manifest."""
    found = {"manifest.json": (0, (folder / "manifest.json").stat().st_size)}
    for file in fields(folder)["files"].values():
        found[file["name"]] = (0, file["offset"] + file["size"])
        if file["size"] >= BLOCK:
            found[plain_reader.crc_name(file)] = (0, 4 * (file["size"] // BLOCK))
    return {name: span for name, span in found.items() if span[1]}


def damages(folder: Path, count: int, seed: int) -> Iterator[tuple[str, int, bytes]]:
    """Flips of a single bit, and pages of zeros, in every file alike; each changes at least one byte."""
    draw = random.Random(seed)
    spans = vouched(folder)
    raws = {name: (folder / name).read_bytes() for name in spans}
    while count:
        name = draw.choice(list(spans))
        at = draw.randrange(*spans[name])
        if draw.random() < 0.7:
            new = bytes([raws[name][at] ^ 1 << draw.randrange(8)])
        else:
            at = at // 4096 * 4096
            new = bytes(min(4096, spans[name][1] - at))
        if raws[name][at : at + len(new)] != new:
            count -= 1
            yield name, at, new


def assert_all_found(folder: Path, count: int, seed: int) -> None:
    for name, at, new in damages(folder, count, seed):
        with open(folder / name, "r+b") as file:
            file.seek(at)
            old = file.read(len(new))
            file.seek(at)
            file.write(new)
            file.flush()
            found = verify(folder)
            assert found, (name, at, new)
            assert all(one.kind == "damaged" or (one.kind == "header" and at < 128) for one in found), found
            file.seek(at)
            file.write(old)
    assert verify(folder) == []


def test_every_damage_is_found(folder: Path) -> None:
    assert_all_found(folder, DAMAGES, 1)


@pytest.mark.long
def test_very_many_damages_are_found(folder: Path) -> None:
    assert_all_found(folder, LONG_DAMAGES, 2)


def test_bytes_that_belong_to_no_sample_may_be_anything(rows: Path) -> None:
    for name in ("data.npy", "index.npy", "data.crc"):
        with open(rows / name, "ab") as file:
            file.write(b"junk")
    (rows / "notes.txt").write_text("mine")
    assert verify(rows) == []


def test_an_equal_sized_swap_is_found(rows: Path, tmp_path: Path) -> None:
    other = [RNG.integers(0, 2**62, len(row)) for row in ROWS]
    RaggedMmap.from_lists(tmp_path / "other", other)
    whole = tmp_path / "whole"
    for names in (["data.npy"], ["data.crc"], ["data.npy", "data.crc"]):
        shutil.copytree(rows, whole, dirs_exist_ok=True)
        for name in names:
            shutil.copy(tmp_path / "other" / name, whole / name)
        assert kinds(verify(whole)) == ["damaged"], names


@pytest.mark.parametrize("name", ["manifest.json", "data.npy", "index.npy", "data.crc"])
def test_a_file_that_is_missing_or_cut_is_named(rows: Path, name: str) -> None:
    raw = (rows / name).read_bytes()
    (rows / name).write_bytes(raw[:-1])
    [found] = verify(rows)
    assert (found.kind, found.path) == ("damaged", str(rows / name))
    (rows / name).unlink()
    [found] = verify(rows)
    if name == "manifest.json":
        assert "holds data.crc, but no manifest.json: an incomplete copy of a map" in found.what
    else:
        assert (found.kind, found.path, found.what) == ("damaged", str(rows / name), "missing")
    (rows / name).mkdir()
    [found] = verify(rows)
    assert "is not a regular file" in str(found)


def test_damaged_blocks_are_counted(tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", RNG.integers(0, 256, (9, BLOCK), np.uint8))
    with open(tmp_path / "map/data.npy", "r+b") as file:
        for block in (0, 1, 2, 7):
            file.seek(128 + block * BLOCK + 5)
            file.write(b"\1\2\3\4")
    [found] = verify(tmp_path / "map")
    assert str(found) == f"{tmp_path}/map/data.npy: damaged in 4 of 9 blocks of 1048576 bytes: 0-2, 7"


@pytest.mark.parametrize(
    ("row", "value"), [(0, [1, 2]), (1, [2, 3]), (3, [10**9, 1]), (4, [0, -1]), (4, [0, 2**62]), (2, [-1, 0])]
)
def test_a_row_of_the_index_that_cannot_be_is_found_though_its_checksum_is_right(
    rows: Path, row: int, value: list[int]
) -> None:
    import zlib

    raw = bytearray((rows / "index.npy").read_bytes())
    raw[128 + 16 * row : 128 + 16 * (row + 1)] = np.array(value, "<i8").tobytes()
    (rows / "index.npy").write_bytes(raw)
    files = fields(rows)["files"]
    files["index"]["tail_crc"] = zlib.crc32(raw[128:])
    forge(rows, files=files)
    [found] = verify(rows)
    assert found.path == str(rows / "index.npy")
    assert found.what.startswith("the row [") or "elements" in found.what


# What is not vouched for.


def test_values_that_were_assigned_and_not_flushed_are_not_checked(rows: Path) -> None:
    m = RaggedMmap(rows, mode="r+")
    m[1] = [7, 8, 9]
    [found] = verify(rows)
    assert (found.kind, found.path) == ("unchecked", str(rows / "data.npy"))
    assert "not checked: values were assigned in place and their checksums were not renewed; they differ" in found.what
    assert "in 1 of 3 blocks of 1048576 bytes: 1; `accept` (`verify --accept`) takes them" in found.what
    assert verify(rows, repair=True) == [found]
    m.flush()
    assert verify(rows) == []


def test_values_that_were_assigned_can_be_accepted(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a crash there is no handle that could flush them."""
    open_map(rows, mode="r+")[0] = ROWS[0][::-1].copy()  # over two blocks
    assert kinds(verify(rows, repair=True)) == ["unchecked"]
    assert main(["verify", "--accept", str(rows)]) == 0
    assert capsys.readouterr().out.endswith("; accepted\n")
    assert verify(rows) == []
    plain_reader.check(rows)
    assert open_map(rows)[0].tolist() == ROWS[0][::-1].tolist()
    with open(rows / "data.npy", "r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    assert kinds(verify(rows, accept=True)) == ["damaged"]  # that was not assigned


def test_values_of_a_memmap_can_be_accepted(tmp_path: Path) -> None:
    np_from_ndarray(tmp_path / "map", np.arange(12).reshape(4, 3))
    np_open_existing(tmp_path / "map", mode="r+")[1] = 7
    assert kinds(verify(tmp_path / "map")) == ["unchecked"]
    [found] = verify(tmp_path / "map", accept=True)
    assert found.repaired
    assert verify(tmp_path / "map") == []
    assert open_map(tmp_path / "map")[1].tolist() == [7, 7, 7]


def test_who_assigns_after_others_have_accepted_takes_that_back(rows: Path) -> None:
    m = RaggedMmap(rows, mode="r+")
    m[1] = [7, 8, 9]
    verify(rows, accept=True)
    m[1] = [9, 8, 7]
    m.flush()
    assert kinds(verify(rows)) == ["unchecked"]


def test_nothing_is_accepted_in_format_1(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    before = tree(tmp_path / "map")
    [found] = verify(tmp_path / "map", accept=True)
    assert (found.kind, found.repaired) == ("unchecked", False)
    assert {name: raw for name, raw in tree(tmp_path / "map").items() if name != ".lock"} == before


def test_a_flush_vouches_for_nothing_else(rows: Path) -> None:
    """Damage in the blocks that were not assigned to is still found."""
    m = RaggedMmap(rows, mode="r+")
    m[4] = [7, 8]  # in the last block
    with open(rows / "data.npy", "r+b") as file:
        file.seek(128 + 100)
        file.write(b"damage")
    m.flush()
    assert kinds(verify(rows)) == ["damaged"]


def test_format_1_has_no_checksums(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    [found] = verify(tmp_path / "map")
    assert (found.kind, found.path) == ("unchecked", str(tmp_path / "map"))
    (tmp_path / "map/ends/data.ninja").write_bytes(b"\1" * 32)
    assert "damaged" in kinds(verify(tmp_path / "map"))
    format_1_rows(tmp_path / "torn")
    (tmp_path / "torn/starts/data.ninja").write_bytes(b"")
    assert "damaged" in kinds(verify(tmp_path / "torn"))


# What an interrupted writer leaves.


def interrupted(folder: Path, samples: int = 3) -> None:
    def loader() -> Iterator[np.ndarray]:
        yield from ROWS[:samples]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        RaggedMmap.from_generator(folder, loader(), 1)


def test_an_unfinished_map_is_reported_and_checked(tmp_path: Path) -> None:
    interrupted(tmp_path / "map")
    [found] = verify(tmp_path / "map", repair=True)
    assert found.kind == "unfinished"
    assert "interrupted after 3 samples; the same call with resume=True finishes it" in found.what
    with open(tmp_path / "map/data.npy", "r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    assert kinds(verify(tmp_path / "map")) == ["unfinished", "damaged"]


def test_an_unfinished_build_beside_a_map_is_reported_and_kept(rows: Path) -> None:
    interrupted(rows)
    assert kinds(verify(rows, repair=True)) == ["unfinished"]
    assert RaggedMmap.from_generator(rows, iter(ROWS), 1, resume=True)[:][0].tolist() == ROWS[0].tolist()
    assert verify(rows) == []


def leave_behind(rows: Path) -> dict[str, str]:
    """What kills at several moments leave, all at once; returns the files and their kinds."""
    m = open_map(rows)
    shutil.copy(rows / "index.npy", rows / "kept")
    m.append(np.ones((2, 2), int))
    shutil.move(rows / "kept", rows / "index.npy")
    forge(rows, obsolete=["index.npy", "index.crc"])
    (rows / "manifest.json.new").write_bytes(b'{"crc32": "half of')
    shutil.copy(rows / "manifest.json", rows / "building.json")
    with open(rows / "data.npy", "r+b") as file:
        file.seek(60)
        file.write(b"9")
    return {
        "index.npy": "leftover",
        "manifest.json.new": "leftover",
        "building.json": "leftover",
        "data.npy": "header",
    }


def test_leftovers_and_headers_are_repaired(rows: Path) -> None:
    left = leave_behind(rows)
    before = tree(rows)
    found = verify(rows)
    assert {os.path.basename(one.path): one.kind for one in found} == left
    assert not any(one.repaired for one in found)
    assert tree(rows) == before
    repaired = verify(rows, repair=True)
    assert [one.path for one in repaired] == [one.path for one in found]
    assert all(one.repaired for one in repaired)
    assert str(repaired[0]).endswith("; repaired")
    assert verify(rows) == []
    assert {path.name for path in rows.iterdir()} == plain_reader.names(rows) | {".lock"}
    np.load(rows / "data.npy", mmap_mode="r")


def test_a_repair_leaves_what_is_damaged(rows: Path) -> None:
    leave_behind(rows)
    with open(rows / "data.npy", "r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    found = verify(rows, repair=True)
    assert {one.kind for one in found if not one.repaired} == {"damaged"}


def test_a_repair_waits_for_the_lock(rows: Path) -> None:
    leave_behind(rows)
    with locked(rows):
        assert verify(rows) == []  # their writer may be about to remove them
        with pytest.raises(MapLockedError, match="is being written"):
            verify(rows, repair=True)


# How it is called.


def test_where_there_is_no_map(tmp_path: Path) -> None:
    with pytest.raises(MapNotFoundError, match="there is no map at"):
        verify(tmp_path / "nowhere")
    with pytest.raises(MapNotFoundError, match="there is no map at"):
        verify(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(MapPathError, match="is a file, expected the folder of a map"):
        verify(tmp_path / "file")


def test_a_device_that_fails_is_a_finding(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read, not mapped: there, a bad sector would be a signal."""
    real = disk.read_into

    def read_into(fd: int, view: memoryview, offset: int, path: str) -> None:
        if path.endswith("data.npy") and offset > BLOCK:
            raise DiskError(5, "cannot read this part of a map: Input/output error", path)
        real(fd, view, offset, path)

    monkeypatch.setattr(disk, "read_into", read_into)
    [found] = verify(rows)
    assert (found.kind, found.path) == ("damaged", str(rows / "data.npy"))
    assert "Input/output error" in found.what


def test_a_map_that_changes_meanwhile_is_looked_at_again(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of the old manifest finds files gone; that is no damage."""
    from mmap_ninja._storage import check

    real, looks = check.find_finished, []

    def find_finished(*arguments: object) -> object:
        found = real(*arguments)
        looks.append(found)
        if len(looks) == 1:
            RaggedMmap.from_lists(rows, ROWS[:2])
        return found

    monkeypatch.setattr(check, "find_finished", find_finished)
    assert verify(rows) == []
    assert len(looks) == 2


def test_a_map_that_is_being_written_is_not_blamed_for_it(rows: Path) -> None:
    """Headers, leftovers and unfinished builds of a writer that lives are none."""

    def write() -> None:
        m = RaggedMmap(rows)
        while True:
            m.extend([np.arange(5)] * 3, sync=False)
            RaggedMmap.from_generator(rows, iter(ROWS[1:3]), 1, sync=False)
            m.refresh()

    pid = start_child(write)
    try:
        found = [one for _ in range(100) for one in verify(rows)]
    finally:
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == KILLED
    assert found == []
    assert {one.kind for one in verify(rows)} <= {"leftover", "header", "unfinished"}  # now it is dead


def test_what_cannot_be_read_is_not_damaged(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forge(rows, format=3, needs="2.1.0")
    with pytest.raises(MapVersionError, match=r"format 3 needs mmap_ninja 2\.1\.0 or newer"):
        verify(rows)

    def refuse(path: str, *arguments: object) -> int:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "open", refuse)
        with pytest.raises(MapPermissionError, match="no permission to read"):
            verify(rows)


def test_nothing_is_accepted_where_something_is_damaged(rows: Path) -> None:
    RaggedMmap(rows, mode="r+")[1] = [7, 8, 9]
    with open(rows / "index.npy", "r+b") as file:
        file.seek(140)
        file.write(b"damage")
    before = tree(rows)
    assert sorted(kinds(verify(rows, accept=True))) == ["damaged", "unchecked"]
    assert tree(rows) == before


def test_an_unreadable_build_beside_a_map_is_removed(rows: Path) -> None:
    (rows / "building.json").write_bytes(bytes(300))  # what a power cut leaves
    [found] = verify(rows, repair=True)
    assert (found.kind, found.repaired) == ("leftover", True)
    assert not (rows / "building.json").exists()


def test_a_map_whose_sync_has_failed_is_not_checked(rows: Path) -> None:
    """Its checksums agree with the page cache, which may be all that has the bytes."""
    forge(rows, synced=False, lost=True)
    [found] = verify(rows)
    assert (found.kind, found.path) == ("unchecked", str(rows))
    assert "a sync has failed" in found.what
    open_map(rows).append(ROWS[1])
    assert verify(rows) == []


def test_an_interrupted_upgrade_is_unfinished(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    calls = recorded(lambda: upgrade(copied(tmp_path / "map", tmp_path / "whole"))).calls
    at = next(at for at, call in enumerate(calls) if call[:2] == ("write_at", "index.npy"))
    killed_at(Strike(at), lambda: upgrade(tmp_path / "map"))
    assert kinds(verify(tmp_path / "map")) == ["unchecked", "unfinished"]
    upgrade(tmp_path / "map")
    assert verify(tmp_path / "map") == []


def test_surplus_bytes_of_format_1_are_named(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    with open(tmp_path / "map/data.ninja", "ab") as file:
        file.write(bytes(24))
    assert any("24 bytes belong to no sample" in one.what for one in verify(tmp_path / "map"))


def test_it_writes_nothing_and_needs_no_permission_to_write(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "open_to_write", None)
    monkeypatch.setattr(disk, "create_temporary", None)
    before = tree(rows)
    assert verify(rows) == []
    assert tree(rows) == before


def test_the_command(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(rows)]) == 0
    assert capsys.readouterr().out == f"{rows}: nothing is wrong\n"
    leave_behind(rows)
    assert main(["verify", str(rows)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["verify", "--repair", str(rows)]) == 0
    assert capsys.readouterr().out.count("; repaired\n") == 4
    assert main(["verify", str(rows / "nowhere"), str(rows)]) == 1
    shown = capsys.readouterr()
    assert "there is no map at" in shown.err
    assert "nothing is wrong" in shown.out


def test_the_command_names_what_it_could_not_repair(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (rows / "manifest.json.new").write_text("")
    with locked(rows):
        assert main(["verify", "--repair", "--timeout", "0.01", str(rows)]) == 1
    assert "is being written" in capsys.readouterr().err


def test_the_command_is_interrupted(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> list:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmap_ninja.cli.verify", interrupt)
    assert main(["verify", str(rows)]) == 130


def test_nobody_reads_what_the_command_prints(rows: Path) -> None:
    command = f"{sys.executable} -m mmap_ninja verify {rows} {rows} {rows} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Error" not in done.stderr


def test_the_module_is_a_command(rows: Path) -> None:
    with open(rows / "data.npy", "r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    done = subprocess.run([sys.executable, "-m", "mmap_ninja", "verify", str(rows)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"{rows}/data.npy: damaged in 1 of 3 blocks of 1048576 bytes: 0\n"


def test_a_progress_bar_of_bytes(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(rows, verbose=True)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "2.32M/2.32M" in shown  # bytes, as the manifest says
    verify(rows)
    assert capsys.readouterr().err == ""
