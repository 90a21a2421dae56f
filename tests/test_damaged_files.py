"""Every file of every kind of map, missing, short or no file at all: an error that names it, no signal and no hang."""

import json
import os
import re
import shutil
import signal
import socket
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import mmap_ninja
from changes import KINDS, made_by_0_9, unpack
from damages import device, empty, fifo, folder, half, missing, short
from faults import exit_code, start_child, tree
from mmap_ninja import DenseMmap, Mmap, RaggedMmap, np_open_existing, open_map, verify
from mmap_ninja.errors import MapCorruptError, MmapNinjaError, PartBuiltWarning
from plain_reader import fields, same, sealed

HANG = 20  # seconds: a FIFO blocks for ever, a busy machine does not

# Layouts.


class Layout(NamedTuple):
    """A kind of map in one of the states that a folder can be in, and the samples that it has, or a build had."""

    cls: type[Mmap]
    samples: list
    make: Callable[[Path], object]


BLOCKS = [np.arange(200_000), np.arange(3)]  # more than one block of checksums


def part_built(cls: type[Mmap], samples: list) -> Callable[[Path], None]:
    """As a build leaves it that died with its machine: its checksums are looked at when it is opened."""

    def make(folder: Path) -> None:
        def loader():
            yield from samples
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            cls.from_generator(folder, loader(), 1)
        found = fields(folder, "building.json")
        found["building"]["boot_id"] = "another boot"
        (folder / "building.json").write_bytes(sealed(found))

    return make


def by_0_9(name: str, *, upgraded: bool = False) -> Layout:
    kind = KINDS[name.removesuffix(" fortran")]

    def make(folder: Path) -> None:
        unpack(made_by_0_9()[name], folder)
        if upgraded:
            mmap_ninja.upgrade(folder)

    return Layout(kind.cls, kind.first, make)


def finished(name: str) -> Layout:
    kind = KINDS[name]
    return Layout(kind.cls, kind.samples, lambda folder: kind.build(folder, kind.samples))


def unfinished(name: str) -> Layout:
    return Layout(KINDS[name].cls, KINDS[name].samples, part_built(KINDS[name].cls, KINDS[name].samples))


OLD = ["rows", "mixed", "images", "dense", "dense fortran", "strings", "zstd strings", "zstd dictionary"]
LAYOUTS = {
    **{name: finished(name) for name in KINDS},
    **{f"part {name}": unfinished(name) for name in ("rows", "dense", "strings")},
    "part over blocks": Layout(RaggedMmap, BLOCKS, part_built(RaggedMmap, BLOCKS)),
    **{f"upgraded {name}": by_0_9(name, upgraded=True) for name in ("rows", "zstd dictionary")},
    **{f"old {name}": by_0_9(name) for name in OLD},
}


@pytest.fixture(scope="session")
def files_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """The files of a map of a layout, which is made once."""
    work, made = tmp_path_factory.mktemp("layouts"), {}

    def files(layout: str) -> dict[str, bytes]:
        if layout not in made:
            LAYOUTS[layout].make(work / layout)
            made[layout] = {name: raw for name, raw in tree(work / layout).items() if name != ".lock"}
        return made[layout]

    return files


# What happens to a file.


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\xff" * 77)


def unix_socket(path: Path) -> None:
    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


def link_out(path: Path) -> None:
    """To the right file, but outside of the map: who knows for how long."""
    outside = next(parent for parent in path.parents if parent.name == "map").parent / "outside"
    shutil.copyfile(path, outside)
    path.unlink()
    path.symlink_to(outside)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


CUTS = [empty, short, half]
LINKS = [link_out, loop, device]
LINK_NAMES = {damage.__name__ for damage in LINKS}


def restore(path: Path, raw: bytes) -> None:
    """Put a file back in the place of whatever was made of it."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(raw)


# What came of it.


class Outcome(NamedTuple):
    """How far a reader came: whether it opened, the error of that or of reading, whether all samples were right."""

    opened: bool
    error: str | None = None
    text: str = ""
    is_right: bool = False

    @property
    def kind(self) -> tuple[bool, str | None, bool]:
        return self.opened, self.error, self.is_right


RIGHT = (True, None, True)
WRONG = (True, None, False)  # samples, but not those that were stored
CORRUPT = (False, "MapCorruptError", False)
UNKNOWN = (False, "MapKindError", False)
CORRUPT_SAMPLE = (True, "MapCorruptError", False)


def outcome(layout: Layout, path: Path, opening: Callable[[Path], object]) -> Outcome:
    opened = False
    try:
        m = opening(path)
        opened = True
        found = [m[i] for i in range(len(m))]
    except MmapNinjaError as error:
        return Outcome(opened, type(error).__name__, str(error))
    is_part = any(file.name == "building.json" for file in path.iterdir())
    is_whole = len(found) == len(layout.samples) or (is_part and found)
    return Outcome(True, is_right=bool(is_whole) and same(found, layout.samples[: len(found)]))


class Trial(NamedTuple):
    """What is done to one file; `by` is its name."""

    file: str
    by: str
    damage: Callable[[Path], object]


def trials(files: Iterable[str], damages: Iterable[Callable[[Path], object]]) -> list[Trial]:
    return [Trial(file, damage.__name__, damage) for damage in damages for file in sorted(files)]


def outcomes(
    name: str, files: dict[str, bytes], todo: list[Trial], tmp_path: Path
) -> list[tuple[str, str, list[Outcome]]]:
    """What each way of opening makes of each trial, in one child process: a signal or a hang ends it.

    Yields the name of the file, that of the damage, and the outcomes.
    """
    layout, log, path = LAYOUTS[name], tmp_path / "outcomes", tmp_path / "map"
    openings = [open_map, layout.cls] + ([np_open_existing] if layout.cls is DenseMmap else [])
    unpack(files, path)

    def act() -> None:
        warnings.simplefilter("ignore", PartBuiltWarning)
        found = []
        for file, by, damage in todo:
            print(f"{name}: {file}, {by}")  # shown where the test fails
            damage(path / file)
            signal.alarm(HANG)
            found.append((file, by, [outcome(layout, path, opening) for opening in openings]))
            signal.alarm(0)
            restore(path / file, files[file])
        log.write_text(json.dumps(found))

    assert exit_code(start_child(act)) == 0
    return [(file, by, [Outcome(*each) for each in found]) for file, by, found in json.loads(log.read_text())]


def is_unread(layout: str, file: str) -> bool:
    """Files that reading does without: checksums of what is finished, and what 0.9.0 wrote once too often."""
    if not layout.startswith("old "):
        return file.endswith(".crc") and not layout.startswith("part ")
    return file.endswith("/type.ninja") or file.startswith("shapes/shapes/") or file == "shapes/shapes_are_flat.ninja"


# What else may come of damage to a file of this name. Format 1 has no checksums, and no list of its files.
ELSE = {
    **{("type.ninja", cut.__name__): UNKNOWN for cut in CUTS},
    ("shapes/shape.ninja", "half"): RIGHT,  # (n,) where (n, 1) was
    ("shape.ninja", "half"): WRONG,  # (n,) where (n, 2) was, and more data than needed is fine
    ("zstd_level.ninja", "missing"): CORRUPT_SAMPLE,
    ("zstd_dict.ninja", "missing"): CORRUPT_SAMPLE,
    ("zstd_dict.ninja", "empty"): CORRUPT_SAMPLE,
    ("zstd_dict.ninja", "half"): CORRUPT_SAMPLE,
    ("zstd_dict.ninja", "short"): WRONG,
}
ELSE_IN_FORMAT_1_ONLY = {file for file, _ in ELSE if "json" not in file}
TWO_AXES = ("old dense", "old dense fortran")


def expected(layout: str, file: str, damage: str) -> tuple[bool, str | None, bool]:
    if is_unread(layout, file):
        return RIGHT
    if file in ELSE_IN_FORMAT_1_ONLY and not layout.startswith("old "):
        return CORRUPT
    if (file, damage) == ("shape.ninja", "half") and layout not in TWO_AXES:
        return CORRUPT
    if (file, damage) == ("shapes/shape.ninja", "half") and layout != "old rows":
        return CORRUPT
    return ELSE.get((file, damage), CORRUPT)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_is_missing_or_cut(layout: str, files_of: Callable, tmp_path: Path) -> None:
    files = files_of(layout)
    for file, by, found in outcomes(layout, files, trials(files, [missing, *CUTS]), tmp_path):
        kind = expected(layout, file, by)
        assert {one.kind for one in found} == {kind}, (file, by, found)
        if kind != CORRUPT:
            continue
        # A dtype that was cut may be another dtype, of which there is too little data.
        names = [Path(file).name] + ["data.ninja"] * file.endswith("dtype.ninja")
        names += ["manifest.json"] * (file == "building.json")
        assert all(any(name in one.text for name in names) for one in found), (file, by, found)
        if file.endswith((".npy", "data.ninja")):
            says = (
                "is missing|is gone"
                if by == "missing"
                else r"has \d+ bytes, expected|ends at \d+, but the last sample at \d+"
            )
            assert all(re.search(says, one.text) for one in found), (file, by, found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_no_regular_file(layout: str, files_of: Callable, tmp_path: Path) -> None:
    files = files_of(layout)
    for file, by, found in outcomes(layout, files, trials(files, [folder, fifo, unix_socket, *LINKS]), tmp_path):
        if is_unread(layout, file):
            assert {one.kind for one in found} == {RIGHT}, (file, by, found)
            continue
        says = "is a symbolic link" if by in LINK_NAMES else "is not a regular file"
        assert {one.kind for one in found} == {CORRUPT}, (file, by, found)
        assert all(f"{file} {says}" in one.text for one in found), (file, by, found)


@pytest.mark.parametrize("name", ["starts", "shapes", "shapes/starts"])
def test_a_subfolder_of_format_1_that_is_a_link(name: str, files_of: Callable, tmp_path: Path) -> None:
    unpack(files_of("old mixed"), tmp_path / "map")
    shutil.move(tmp_path / "map" / name, tmp_path / "outside")
    (tmp_path / "map" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(MapCorruptError, match=f"{name} is a symbolic link"):
        open_map(tmp_path / "map")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_junk_behind_the_committed_end(layout: str, files_of: Callable, tmp_path: Path) -> None:
    """A writer that was interrupted leaves it; nobody reads it."""
    files = files_of(layout)
    todo = trials([file for file in files if file.endswith((".npy", ".crc", "data.ninja", "zstd.dict"))], [longer])
    for file, _, found in outcomes(layout, files, todo, tmp_path):
        assert {one.kind for one in found} == {RIGHT}, (file, found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_another_map(layout: str, files_of: Callable, tmp_path: Path) -> None:
    """Typed errors, or values, where nothing tells; where it is too short, it is told at open."""
    files, todo = files_of(layout), []
    for other in LAYOUTS:
        for file, raw in files_of(other).items():
            if raw != files.get(file, raw):
                todo.append(Trial(file, f"of {other}", lambda path, raw=raw: path.write_bytes(raw)))
    for file, by, found in outcomes(layout, files, todo, tmp_path):
        assert all(one.error is None or one.error.startswith("Map") for one in found), (file, by, found)
        if file.endswith(".npy") and len(files_of(by.removeprefix("of "))[file]) < len(files[file]):
            assert {one.kind for one in found} == {CORRUPT}, (file, by, found)


# What `verify` makes of it.


def flipped(path: Path) -> None:
    """One bit, which no size tells."""
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 8
    path.write_bytes(raw)


def kinds_found(path: Path) -> list[str]:
    return [finding.kind for finding in verify(path)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_verify_finds_it_and_does_not_raise(layout: str, files_of: Callable, tmp_path: Path) -> None:
    files, path = files_of(layout), tmp_path / "map"
    unpack(files, path)
    # What is not part of a manifest is nothing to verify, and format 1 has no checksums.
    whole = set(kinds_found(path))
    assert whole <= {"unchecked", "unfinished"}

    def act() -> None:
        for file, by, damage in trials(files, [missing, *CUTS, flipped, folder, fifo, unix_socket, *LINKS]):
            damage(path / file)
            signal.alarm(HANG)
            found = kinds_found(path)
            signal.alarm(0)
            restore(path / file, files[file])
            is_seen = expected(layout, file, by) == CORRUPT and by != "flipped"
            if is_seen or (not layout.startswith("old ") and not is_surplus(file, files)):
                assert "damaged" in found or "header" in found, (file, by, found)

    assert exit_code(start_child(act)) == 0


def is_surplus(file: str, files: dict[str, bytes]) -> bool:
    """Whether a file of format 2 is none that its manifest needs: checksums of no complete block."""
    data = file.replace(".crc", ".npy")
    return file.endswith(".crc") and len(files.get(data, b"")) < 1 << 20


@pytest.mark.parametrize("name", ["rows", "mixed", "images", "dense", "bytes", "strings"])
def test_an_equal_sized_file_of_another_map_is_found_by_verify(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    kind.build(tmp_path / "map", kind.samples)
    kind.build(tmp_path / "twin", list(map(kind.changed, kind.samples)))
    files, twins = tree(tmp_path / "map"), tree(tmp_path / "twin")
    differing = [file for file in files if files[file] != twins[file]]
    assert set(differing) >= {"data.npy", "manifest.json"}
    for file in differing:
        assert len(files[file]) == len(twins[file]) or file == "manifest.json"
        (tmp_path / "map" / file).write_bytes(twins[file])
        m = open_map(tmp_path / "map")
        assert len(m[:]) == len(kind.samples)  # nobody can tell without reading all of it
        found = verify(tmp_path / "map")
        assert "damaged" in {finding.kind for finding in found}, (file, found)
        assert any("data.npy" in finding.path for finding in found), (file, found)
        (tmp_path / "map" / file).write_bytes(files[file])
    assert verify(tmp_path / "map") == []
