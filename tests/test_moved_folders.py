"""A folder that is moved, removed, replaced or restored under a writer or a handle: no other map is touched."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from changes import CHANGES, check, no_syncs, quietly
from faults import Disk, Strike, tree
from mmap_ninja import DenseMmap, RaggedMmap, np_from_ndarray, np_open_existing, open_map, verify
from mmap_ninja._storage import disk
from mmap_ninja._storage.lock import Lock
from mmap_ninja.errors import MapChangedError, MapCorruptError, MmapNinjaError
from plain_reader import same

OPERATIONS = (
    "rows: create",
    "rows: append",
    "rows: extend over blocks",
    "rows: extend unsynced",
    "rows: widen",
    "rows: replace",
    "rows: resume",
    "rows: metadata",
    "rows: flush",
    "rows: extend format 1",
    "dense: assign",
    "dense: assign to the memmap",
    "zstd dictionary: extend",
    "dense fortran: upgrade",
)
PUBLISHED = "manifest.json"
ROWS = [np.arange(n) for n in (3, 0, 5)]


def move(folder: Path) -> None:
    os.rename(folder, folder.with_name("moved"))


def move_and_rebuild(folder: Path) -> None:
    move(folder)
    shutil.copytree(folder.with_name("other"), folder)


def remove_and_rebuild(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("other"), folder)


def empty_and_rebuild(folder: Path) -> None:
    """The folder stays, all that is in it goes."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(folder.with_name("other"), folder, dirs_exist_ok=True)


SWAPS = (move, move_and_rebuild, remove_and_rebuild, empty_and_rebuild)


@pytest.mark.parametrize(
    ("name", "swap"),
    [
        pytest.param(name, swap, marks=[] if at % len(SWAPS) == k else pytest.mark.long)
        for at, name in enumerate(OPERATIONS)
        for k, swap in enumerate(SWAPS)
    ],
)
def test_a_folder_is_swapped_after_any_call_of_a_writer(
    tmp_path: Path, name: str, swap: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_syncs(monkeypatch)
    swapped_after_each_call(tmp_path, name, swap)


@pytest.mark.parametrize("name", ["rows: extend over blocks", "rows: create"])
def test_a_writer_that_does_not_look_is_caught(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncs(monkeypatch)
    monkeypatch.setattr(Lock, "check", lambda self, files=(): None)
    with pytest.raises(AssertionError):
        swapped_after_each_call(tmp_path, name, remove_and_rebuild)


def swapped_after_each_call(tmp_path: Path, name: str, swap: Callable[[Path], None]) -> None:
    """Once the lock is held, the writer says so, unless it has committed by then."""
    change, folder = CHANGES[name], tmp_path / "map"
    DenseMmap.from_ndarray(tmp_path / "other", np.linspace(0, 1, 2_000))
    change.begin(tmp_path / "start")
    other = tree(tmp_path / "other")
    whole = copied_run(change, tmp_path / "start", folder, Disk())
    locked = next(at for at, call in enumerate(whole.calls) if call.name == ".lock")
    published = max(at for at, call in enumerate(whole.calls) if (call.function, call.name) == ("replace", PUBLISHED))
    for at in range(locked + 1, len(whole.calls)):
        if whole.calls[at].function == "close":
            continue
        refusal = None
        try:
            copied_run(change, tmp_path / "start", folder, Disk(Strike(at, "after"), lambda: swap(folder)))
        except MmapNinjaError as error:
            refusal = error
        assert at >= published or isinstance(refusal, MapChangedError), (whole.calls[at], refusal)
        assert tree(folder) == ({} if swap is move else other), whole.calls[at]
        if (tmp_path / "moved").exists():
            check(change, tmp_path / "moved")


def copied_run(change: object, start: Path, folder: Path, double: Disk) -> Disk:
    """Do the change to a copy of what was there before, with this double installed."""
    for path in (folder, folder.with_name("moved")):
        shutil.rmtree(path, ignore_errors=True)
    if start.exists():
        shutil.copytree(start, folder)
    handle = quietly(change.opening, folder)
    with double.installed():
        quietly(change.call, handle)
    return double


@pytest.mark.parametrize("opening", [open_map, np_open_existing])
def test_a_folder_is_swapped_between_the_manifest_and_the_files(
    tmp_path: Path, opening: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reader takes the files of one map for those of another one."""
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(900))
    DenseMmap.from_ndarray(tmp_path / "other", np.arange(2000) + 0.5)
    real, swaps = disk.open_to_read, [remove_and_rebuild]

    def open_to_read(path: str) -> tuple[int, int]:
        if path.endswith("data.npy") and swaps:
            swaps.pop()(tmp_path / "map")
        return real(path)

    monkeypatch.setattr(disk, "open_to_read", open_to_read)
    assert opening(tmp_path / "map")[:].tolist() == (np.arange(2000) + 0.5).tolist()
    assert not swaps


def grown(folder: Path) -> RaggedMmap:
    """A handle that has seen more samples than the copy of the folder that is put in its place."""
    m = RaggedMmap.from_lists(folder, ROWS, mode="r+")
    shutil.copytree(folder, folder.with_name("copy"))
    m.extend([np.arange(7), np.arange(9)])
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("copy"), folder)
    return m


@pytest.mark.parametrize(
    "act",
    [
        lambda m: m.append(ROWS[0]),
        lambda m: m.extend(ROWS),
        lambda m: m.__setitem__(0, ROWS[0] + 1),
        lambda m: setattr(m, "metadata", {"a": 1}),
    ],
)
def test_an_older_copy_is_restored_under_a_handle(tmp_path: Path, act: Callable[[RaggedMmap], object]) -> None:
    m = grown(tmp_path / "map")
    before = tree(tmp_path / "map")
    with pytest.raises(MapChangedError, match="holds an older state than this handle has seen, of 3 samples") as caught:
        act(m)
    assert caught.value.committed is False
    assert tree(tmp_path / "map") == before
    assert m.lengths.tolist() == [3, 0, 5, 7, 9]
    assert same(m[:], [*ROWS, np.arange(7), np.arange(9)])
    m.refresh()
    assert same(m[:], ROWS)
    act(m)
    m.close()
    assert verify(tmp_path / "map") == []


@pytest.mark.parametrize("opening", [RaggedMmap, open_map, verify])
@pytest.mark.parametrize("kept", ["data.npy", "index.npy", "data.crc"])
def test_files_of_a_map_without_a_manifest_are_an_incomplete_copy(
    tmp_path: Path, opening: Callable[[Path], object], kept: str
) -> None:
    RaggedMmap.from_lists(tmp_path / "map", [np.arange(300_000)])
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "map" / kept, tmp_path / "copy")
    if opening is verify:
        [finding] = verify(tmp_path / "copy")
        assert finding.kind == "damaged"
        assert "no manifest.json: an incomplete copy" in finding.what
        return
    with pytest.raises(MapCorruptError, match=rf"holds {kept}, but no manifest.json: an incomplete copy of a map"):
        opening(tmp_path / "copy")


@pytest.mark.parametrize("name", ["data.ninja", "dtype.ninja", "shape.ninja", "order.ninja"])
def test_files_of_0_9_without_their_kind_are_an_incomplete_copy(tmp_path: Path, name: str) -> None:
    (tmp_path / "map").mkdir()
    (tmp_path / "map" / name).write_bytes(b"12345678")
    with pytest.raises(MapCorruptError, match=f"holds {name}, but neither manifest.json nor type.ninja"):
        RaggedMmap(tmp_path / "map").append(ROWS[0])


def restored_and_grown(folder: Path, more: int) -> DenseMmap:
    """A handle over a copy that was restored, to which others have added so often that its generation is the newer."""
    DenseMmap.from_ndarray(folder, np.arange(1))
    m = DenseMmap(folder, mode="r+")
    shutil.copytree(folder, folder.with_name("copy"))
    m.extend(np.arange(10), sync=False)
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("copy"), folder)
    for _ in range(more):
        DenseMmap(folder).append(7)
    return m


@pytest.mark.parametrize(
    "act", [lambda m: m.flush(), lambda m: m.append(1), lambda m: m.__setitem__(5, 77), lambda m: m.extend([1, 2])]
)
def test_a_state_of_fewer_samples_is_older_however_often_it_was_written_to(
    tmp_path: Path, act: Callable[[DenseMmap], object]
) -> None:
    m = restored_and_grown(tmp_path / "map", 5)
    before = tree(tmp_path / "map")
    with pytest.raises(MapChangedError, match="holds an older state than this handle has seen, of 6 samples"):
        act(m)
    assert tree(tmp_path / "map") == before
    assert m[:].tolist() == [0, *range(10)]
    assert m.lengths.tolist() == [1] * 11


def test_a_memmap_whose_map_was_put_there_anew_takes_no_assignment(tmp_path: Path) -> None:
    """A copy with the same id and the same names is another map: what is mapped is not there any more."""
    memmap = np_from_ndarray(tmp_path / "map", np.arange(5))
    shutil.copytree(tmp_path / "map", tmp_path / "copy")
    shutil.rmtree(tmp_path / "map")
    shutil.copytree(tmp_path / "copy", tmp_path / "map")
    before = tree(tmp_path / "map")
    with pytest.raises(MapChangedError, match="were replaced since this memmap was made"):
        memmap[0] = 100
    assert tree(tmp_path / "map") == before
