"""Opening: whatever lies in the folder, it is a map that is right or a typed error, and never a signal or a hang."""

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from changes import SMALL, format_1_rows
from damages import device, empty, fifo, folder, half, missing, short
from faults import in_child, tree
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, np_open_existing, open_existing, open_map, upgrade
from mmap_ninja._storage import disk, snapshot
from mmap_ninja.errors import MapCorruptError, MapKindError, MapNotFoundError, MmapNinjaError
from plain_reader import fields, forge, same

NEW_USER_NAMESPACE = 0x10000000  # of <sched.h>; files are not root's own in there

OLD = [np.arange(3), np.arange(500)]
NEW = [np.arange(7)]


def link(path: Path) -> None:
    """To the file itself, elsewhere: right, but who knows for how long."""
    shutil.move(path, path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


DAMAGES = [missing, empty, short, half, folder, fifo, link, loop, device]


def make(kind: str, path: Path) -> None:
    if kind == "dense":
        DenseMmap.from_ndarray(path, np.arange(600))
    elif kind == "ragged":
        RaggedMmap.from_lists(path, OLD)
    else:
        pytest.importorskip("zstandard")
        texts = [f"number {i} ".ljust(60) for i in range(300)]
        StringsMmap.from_strings(path, texts, zstd_level=3, zstd_train_dictionary_size=1000)


FILES = [
    ("dense", "data.npy"),
    ("dense", "manifest.json"),
    ("ragged", "data.npy"),
    ("ragged", "index.npy"),
    ("strings", "data.npy"),
    ("strings", "index.npy"),
    ("strings", "zstd.dict"),
]


@pytest.mark.parametrize(("kind", "name"), FILES, ids=lambda value: value)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(tmp_path: Path, kind: str, name: str, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "map"
    make(kind, path)
    damage(path / name)
    for opening in (open_map, open_existing, {"dense": DenseMmap, "ragged": RaggedMmap, "strings": StringsMmap}[kind]):
        with pytest.raises(MapCorruptError, match=name.replace(".", r"\.")) as caught:
            opening(path)
        assert isinstance(caught.value, MmapNinjaError)


def test_what_was_found_and_expected_is_said(tmp_path: Path) -> None:
    make("dense", tmp_path / "map")
    short(tmp_path / "map/data.npy")
    with pytest.raises(MapCorruptError, match=rf"data\.npy has {128 + 4799} bytes, expected at least {128 + 4800}"):
        open_map(tmp_path / "map")


def test_a_file_of_another_map(tmp_path: Path) -> None:
    make("ragged", tmp_path / "map")
    RaggedMmap.from_lists(tmp_path / "other", NEW)
    shutil.copy(tmp_path / "other/index.npy", tmp_path / "map/index.npy")
    with pytest.raises(MapCorruptError, match=r"index\.npy has 144 bytes, expected at least 160"):
        open_map(tmp_path / "map")


def test_more_bytes_than_were_committed_are_fine(tmp_path: Path) -> None:
    make("ragged", tmp_path / "map")
    for name in ("data.npy", "index.npy"):
        with open(tmp_path / "map" / name, "ab") as file:
            file.write(b"\xff" * 5000)
    assert same(open_map(tmp_path / "map")[:], OLD)


@pytest.mark.parametrize("opening", [open_map, open_existing, np_open_existing, upgrade])
def test_no_map_there(tmp_path: Path, opening: Callable[[Path], object]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/notes.txt").write_text("x")
    for name in ("none", "empty", "foreign", "deep/er"):
        with pytest.raises(MapNotFoundError, match=f"no map at .*{name}") as caught:
            opening(tmp_path / name)
        assert isinstance(caught.value, FileNotFoundError)
    assert tree(tmp_path) == {"foreign/notes.txt": b"x"}
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "foreign"}


@pytest.mark.parametrize("opening", [open_map, open_existing, np_open_existing, RaggedMmap, DenseMmap, BytesMmap])
def test_a_path_that_is_a_file(tmp_path: Path, opening: Callable[[Path], object]) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="file is a file, expected the folder of a map") as caught:
        opening(tmp_path / "file")
    assert isinstance(caught.value, MmapNinjaError)


def test_a_map_made_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file/deep"):
        with pytest.raises(NotADirectoryError) as caught:
            RaggedMmap.from_lists(path, OLD)
        assert isinstance(caught.value, MmapNinjaError)
    assert tree(tmp_path) == {"file": b"x"}


def test_another_kind_than_asked_for(tmp_path: Path) -> None:
    make("dense", tmp_path / "map")
    for cls in (RaggedMmap, StringsMmap, BytesMmap):
        with pytest.raises(MapKindError, match=f"a dense map, not a {cls.kind} one"):
            cls(tmp_path / "map")


def test_a_link_to_the_folder_of_a_map_is_fine(tmp_path: Path) -> None:
    make("ragged", tmp_path / "map")
    (tmp_path / "link").symlink_to(tmp_path / "map")
    assert same(open_map(tmp_path / "link")[:], OLD)
    open_map(tmp_path / "link").append(NEW[0])
    assert same(open_map(tmp_path / "map")[:], OLD + NEW)


def unprivileged(act: Callable[[], None]) -> None:
    """Do it in a child that has lost the privileges of root, for whom no file is unreadable."""

    def run() -> None:
        if os.geteuid() == 0 and ctypes.CDLL(None).unshare(NEW_USER_NAMESPACE) != 0:
            os._exit(77)
        act()

    code = in_child(run)
    if code == 77:
        pytest.skip("root cannot lay down its privileges here")
    assert code == 0


@pytest.mark.parametrize("name", ["", "manifest.json", "data.npy"])
def test_what_may_not_be_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "map"
    make("ragged", path)
    (path / name).chmod(0)

    def act() -> None:
        with pytest.raises(PermissionError, match="map") as caught:
            open_map(path)
        assert isinstance(caught.value, MmapNinjaError)

    try:
        unprivileged(act)
    finally:
        (path / name).chmod(0o755)


def test_what_may_only_be_read_can_be_read(tmp_path: Path) -> None:
    """Reading needs no permission to write, in any mode."""
    path = tmp_path / "map"
    make("ragged", path)
    StringsMmap.from_strings(tmp_path / "texts", ["a", "b"])
    folders = (path, tmp_path / "texts")
    for each in folders:
        for file in each.iterdir():
            file.chmod(0o444)
        each.chmod(0o555)

    def act() -> None:
        assert same(open_map(path)[:], OLD)
        assert same(RaggedMmap(path, mode="r+")[:], OLD)
        assert StringsMmap(tmp_path / "texts")[:] == ["a", "b"]
        with pytest.raises(PermissionError, match="map"):
            RaggedMmap(path).append(NEW[0])
        with pytest.raises(PermissionError, match="map"):
            RaggedMmap(path, mode="r+")[0] = OLD[0]

    try:
        unprivileged(act)
    finally:
        for each in folders:
            each.chmod(0o755)  # so that pytest can remove them
    assert same(open_map(path)[:], OLD)


def test_a_map_that_is_replaced_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the manifest names are gone when they are looked for: the new manifest names others."""
    RaggedMmap.from_lists(tmp_path / "map", OLD)
    real, replaced = snapshot.read_json, []

    def read_and_wait(path: str, name: str) -> object:
        found = real(path, name)
        if not replaced:
            replaced.append(True)
            RaggedMmap.from_lists(tmp_path / "map", NEW)
        return found

    monkeypatch.setattr(snapshot, "read_json", read_and_wait)
    assert same(RaggedMmap(tmp_path / "map")[:], NEW)


def test_an_index_that_is_widened_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", OLD)
    real, widened = snapshot.read_json, []

    def read_and_wait(path: str, name: str) -> object:
        found = real(path, name)
        if not widened:
            widened.append(True)
            m.append(np.ones((2, 2), np.int64))
        return found

    monkeypatch.setattr(snapshot, "read_json", read_and_wait)
    assert same(RaggedMmap(tmp_path / "map")[:2], OLD)


def during(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> None:
    """Do `act` just before a small file of this name is first read."""
    real, done = disk.read_small, []

    def read_small(path: str, cap: int) -> bytes:
        if os.path.basename(path) == name and not done:
            done.append(True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(disk, "read_small", real)
                act()
        return real(path, cap)

    monkeypatch.setattr(disk, "read_small", read_small)


def test_a_build_that_is_finished_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a map at every moment, so opening finds one: `building.json`, or what it is renamed to."""
    with pytest.raises(RuntimeError, match="stop"):
        RaggedMmap.from_generator(tmp_path / "map", iter_then_stop(), 1)
    during(
        monkeypatch,
        "building.json",
        lambda: RaggedMmap.from_generator(tmp_path / "map", iter(OLD), 1, resume=True),
    )
    assert same(open_map(tmp_path / "map")[:], OLD)


def iter_then_stop():
    yield OLD[0]
    raise RuntimeError("stop")


@pytest.mark.parametrize("name", ["type.ninja", "shape.ninja", "dtype.ninja"])
def test_a_map_that_is_upgraded_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    format_1_rows(tmp_path / "map")
    during(monkeypatch, name, lambda: upgrade(tmp_path / "map"))
    assert same(open_map(tmp_path / "map")[:], SMALL[:4])
    assert (tmp_path / "map/manifest.json").exists()


def test_a_file_that_stays_missing_ends_the_retries(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", OLD)
    os.unlink(tmp_path / "map/index.npy")
    with pytest.raises(MapCorruptError, match=r"index\.npy is missing, but .*map names it"):
        open_map(tmp_path / "map")


def test_files_that_a_hostile_manifest_names_elsewhere(tmp_path: Path) -> None:
    """Neither a link nor a path leads out of the folder, also not for what a writer would remove."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/keys.npy").write_bytes(bytes(2000))
    RaggedMmap.from_lists(tmp_path / "map", OLD)
    (tmp_path / "map/inside").symlink_to(tmp_path / "secret")
    forge(tmp_path / "map", obsolete=["inside/keys.npy"])
    open_map(tmp_path / "map").append(NEW[0])
    assert (tmp_path / "secret/keys.npy").exists()
    files = fields(tmp_path / "map")["files"]
    (tmp_path / "map/data-9.npy").symlink_to(tmp_path / "secret/keys.npy")
    forge(tmp_path / "map", files={**files, "data": {**files["data"], "name": "data-9.npy"}})
    with pytest.raises(MapCorruptError, match=r"data-9\.npy is a symbolic link"):
        open_map(tmp_path / "map")
    with pytest.raises((MmapNinjaError, OSError), match=r"data-9\.npy"):
        RaggedMmap(tmp_path / "map").append(NEW[0])
    assert (tmp_path / "secret/keys.npy").read_bytes() == bytes(2000)


def test_nothing_is_executed_or_imported(tmp_path: Path) -> None:
    """A dtype is a name from a list, not an expression."""
    make("dense", tmp_path / "map")
    for name in ("__import__('os')", "os.system", "numpy.ndarray", "object", "builtins.print", "O8", "|O"):
        forge(tmp_path / "map", dtype=name)
        with pytest.raises(MapCorruptError, match="dtype"):
            open_map(tmp_path / "map")
