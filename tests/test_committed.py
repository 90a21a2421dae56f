"""What an error says of the call that raised it, and calls that may be made again."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from changes import CHANGES, KINDS
from faults import in_child, tree
from mmap_ninja import BytesMmap, DenseMmap, Mmap, RaggedMmap, StringsMmap, open_map, upgrade, verify
from mmap_ninja._storage import build, disk, snapshot
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    DiskError,
    MapChangedError,
    MapPermissionError,
    SampleError,
    SyncError,
)
from plain_reader import same

ROWS = [np.arange(3), np.arange(5)]
NEW = [np.arange(7), np.arange(2)]


@pytest.fixture
def m(tmp_path: Path) -> RaggedMmap:
    return RaggedMmap.from_lists(tmp_path / "map", ROWS)


def refuse(path: str, *others: object) -> None:
    raise DiskError(errno.EIO, "Input/output error", path)


def lost_sync(path: str, *others: object) -> None:
    raise SyncError(errno.EIO, "a sync failed: Input/output error", path)


def interrupt(path: str, *others: object) -> None:
    raise KeyboardInterrupt


def error_of(act: Callable[[], object]) -> BaseException:
    """What a call raises."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - each test looks at it
        act()
    return caught.value


def test_nothing_is_committed_by_default(m: RaggedMmap) -> None:
    with pytest.raises(SampleError) as caught:
        m.append([1.5])
    assert caught.value.committed is False


@pytest.mark.parametrize("fault", [refuse, interrupt])
def test_a_rename_that_did_not_take_place(m: RaggedMmap, fault: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(disk, "replace", fault)
        error = error_of(lambda: m.extend(NEW))
    assert getattr(error, "committed", False) is False
    assert "visible" not in str(error)
    m.extend(NEW)
    assert same(open_map(m.out_dir)[:], [*ROWS, *NEW])


@pytest.mark.parametrize("fault", [refuse, interrupt])
@pytest.mark.parametrize("is_read", [True, False])
def test_a_rename_that_took_place_and_failed_all_the_same(
    m: RaggedMmap, fault: Callable, is_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over a network; whether the new manifest is there can be read, or everything fails from then on."""
    real = disk.replace

    def replace(source: str, target: str) -> None:
        real(source, target)
        if not is_read:
            patch.setattr(disk, "open_to_read", refuse)
        fault(target)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "replace", replace)
        error = error_of(lambda: m.extend(NEW))
    assert error.committed is (True if is_read else None)
    if fault is refuse:
        assert f"the new state {'is' if is_read else 'may be'} visible" in str(error)
    RaggedMmap(m.out_dir).extend(NEW, expected_length=len(ROWS))
    assert same(open_map(m.out_dir)[:], [*ROWS, *NEW])


def lose_syncs_once(patch: pytest.MonkeyPatch, is_time: Callable[[], bool]) -> None:
    """Let the syncs of folders fail when it is time."""
    real = disk.sync_folder
    patch.setattr(disk, "sync_folder", lambda path, fd=None: (lost_sync if is_time() else real)(path, fd))


@pytest.mark.parametrize("act", [lambda f: RaggedMmap(f).append(NEW[0]), lambda f: RaggedMmap.from_lists(f, NEW)])
def test_the_names_of_a_folder_cannot_be_synced(
    tmp_path: Path, act: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both what is added to, and what is made."""
    with monkeypatch.context() as patch:
        lose_syncs_once(patch, (tmp_path / "map/manifest.json").exists)
        error = error_of(lambda: act(tmp_path / "map"))
    assert isinstance(error, SyncError)
    assert "the new state is visible, but may not survive a power cut" in str(error)
    assert error.committed is True
    assert same(open_map(tmp_path / "map")[:1], NEW[:1])


def test_a_map_was_made_and_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_made = (tmp_path / "map/manifest.json").exists
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "find_finished", lambda folder, keys: refuse(folder) if is_made() else None)
        error = error_of(lambda: RaggedMmap.from_lists(tmp_path / "map", NEW))
    assert isinstance(error, DiskError)
    assert error.committed is True
    assert same(open_map(tmp_path / "map")[:], NEW)


def test_what_is_committed_to_prepare_for_a_call_does_not_count(m: RaggedMmap, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wider index is named before it is made; that commit is visible, its samples are not."""
    before = (m.out_dir / "manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        lose_syncs_once(patch, lambda: (m.out_dir / "manifest.json").read_bytes() != before)
        error = error_of(lambda: m.append(np.ones((2, 2), int)))
    assert isinstance(error, SyncError)
    assert error.committed is False
    assert "visible" not in str(error)
    assert len(open_map(m.out_dir)) == len(ROWS)


def test_some_values_may_be_assigned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(5))
    m = DenseMmap(tmp_path / "map", mode="r+")
    m[0] = 7
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", lambda fd, chunks, offset: refuse("data.npy"))
        error = error_of(lambda: m.__setitem__(1, 8))
    assert isinstance(error, DiskError)
    assert error.committed is None


NOBODY = 65534


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without rights")
@pytest.mark.parametrize("is_first", [True, False])
def test_a_folder_that_may_not_be_read(tmp_path: Path, is_first: bool) -> None:
    """Its names could not be made durable: that is said before anything is written."""
    folder = tmp_path / "map"
    if not is_first:
        StringsMmap.from_strings(folder, ["one"])
    folder.mkdir(exist_ok=True)
    for path in (*folder.iterdir(), tmp_path, *tmp_path.parents):
        path.chmod(path.stat().st_mode | (stat.S_IXOTH if path.is_dir() else stat.S_IRWXO))
    folder.chmod(0o333)

    def append() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with pytest.raises(MapPermissionError, match="open this folder to sync it") as caught:
            StringsMmap(folder).append("two")
        assert caught.value.committed is False
        if not is_first:  # which is named, durably, before it is made
            StringsMmap(folder).append("two", sync=False)

    assert in_child(append) == 0
    folder.chmod(0o777)
    assert StringsMmap(folder)[:] == ([] if is_first else ["one", "two"])


# Calls that may be made again.


@pytest.mark.parametrize("kind", list(KINDS.values()), ids=list(KINDS))
@pytest.mark.parametrize("sync", [True, False])
def test_a_call_that_went_through_is_made_again(tmp_path: Path, kind: object, sync: bool) -> None:
    m = kind.build(tmp_path / "map", kind.first)
    m.extend(kind.rest, sync=sync, expected_length=len(kind.first))
    for handle in (m, kind.cls(tmp_path / "map"), open_map(tmp_path / "map")):
        handle.extend(kind.rest, sync=sync, expected_length=len(kind.first))
        assert same(handle[:], kind.samples)
    m.append(kind.samples[0], expected_length=len(kind.samples))
    m.append(kind.samples[0], expected_length=len(kind.samples))
    m.append(kind.samples[0], expected_length=len(kind.samples) + 1)
    assert same(open_map(tmp_path / "map")[:], [*kind.samples, kind.samples[0], kind.samples[0]])
    m.flush()
    assert verify(tmp_path / "map") == []


@pytest.mark.parametrize("cls", [RaggedMmap, DenseMmap, BytesMmap, StringsMmap])
def test_the_first_samples_of_a_map_are_appended_again(tmp_path: Path, cls: type[Mmap]) -> None:
    samples = {"strings": ["a", "b"], "bytes": [b"a", b"b"]}.get(cls.kind, [np.arange(3), np.arange(3) + 1])
    for _ in range(2):
        cls(tmp_path / "map").extend(samples, expected_length=0)
    assert same(open_map(tmp_path / "map")[:], samples)


@pytest.mark.parametrize(
    ("samples", "length", "found"),
    [
        (NEW, 1, "has 2 samples, expected 1"),
        (NEW, 3, "has 2 samples, expected 3"),
        ([ROWS[0], ROWS[1] + 1], 0, "has 2 samples, expected 0"),
        ([ROWS[1], ROWS[0]], 0, "has 2 samples, expected 0"),  # the same bytes in other shapes would be the next
        ([np.array([0, 1]), np.array([2, 0, 1, 2, 3, 4])], 0, "does not end with those given"),
        ([np.arange(100), np.arange(3)], 0, "does not end with those given"),
    ],
)
def test_other_samples_are_there(m: RaggedMmap, samples: list, length: int, found: str) -> None:
    before = tree(m.out_dir)
    with pytest.raises(MapChangedError, match=found) as caught:
        m.extend(samples, expected_length=length)
    assert caught.value.committed is False
    assert tree(m.out_dir) == before


def test_another_writer_was_faster(m: RaggedMmap) -> None:
    RaggedMmap(m.out_dir).append(NEW[1])
    with pytest.raises(MapChangedError, match="has 3 samples, expected 2"):
        m.append(NEW[0], expected_length=len(m))
    m.append(NEW[0], expected_length=3)
    assert same(open_map(m.out_dir)[:], [*ROWS, NEW[1], NEW[0]])


def test_an_expected_length_of_no_samples_or_of_no_map(m: RaggedMmap, tmp_path: Path) -> None:
    m.extend([], expected_length=2)
    with pytest.raises(MapChangedError, match="has 2 samples, expected 77"):
        m.extend([], expected_length=77)
    with pytest.raises(MapChangedError, match="has 0 samples, expected 5; look at what others"):
        RaggedMmap(tmp_path / "nowhere").append(ROWS[0], expected_length=5)
    assert not (tmp_path / "nowhere").exists()


def test_what_a_source_says_of_its_own_calls_does_not_count(m: RaggedMmap, tmp_path: Path) -> None:
    error = DiskError(errno.EIO, "of another map")
    error.committed = True

    def loader():
        yield NEW[0]
        raise error

    for act in (lambda: m.extend(loader()), lambda: RaggedMmap.from_generator(tmp_path / "made", loader(), 1)):
        error.committed = True
        assert error_of(act) is error
        assert error.committed is False


def test_an_expected_length_is_a_number(m: RaggedMmap) -> None:
    with pytest.raises(ArgumentError, match="expected_length"):
        m.append(ROWS[0], expected_length=-1)
    with pytest.raises(ArgumentTypeError, match="expected_length"):
        m.append(ROWS[0], expected_length="2")


def change_metadata(m: RaggedMmap) -> None:
    m.metadata = {"a": 1}


@pytest.mark.parametrize(
    ("act", "name"),
    [(lambda m: m.extend(NEW), name) for name in ("close", "close_read", "close_kept")]
    + [(change_metadata, name) for name in ("close_read", "close_kept")],
)
def test_ctrl_c_while_files_are_closed(
    m: RaggedMmap, act: Callable[[RaggedMmap], object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, real = m.out_dir / "manifest.json", getattr(disk, name)
    before, count = manifest.read_bytes(), len(os.listdir("/proc/self/fd"))

    def close(fd: int) -> None:
        real(fd)
        if manifest.read_bytes() != before:
            patch.undo()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk, name, close)
        error = error_of(lambda: act(m))
    assert isinstance(error, KeyboardInterrupt)
    assert error.committed is True
    assert len(os.listdir("/proc/self/fd")) <= count + 2 * 2  # the two files of the new state, where they are mapped
    RaggedMmap(m.out_dir).extend(NEW, expected_length=len(ROWS))
    assert same(open_map(m.out_dir)[:], [*ROWS, *NEW])


def test_a_build_is_not_committed_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though each of its batches removes what an earlier one has made obsolete."""
    RaggedMmap.from_lists(tmp_path / "map", ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(build, "sweep", interrupt)
        error = error_of(lambda: RaggedMmap.from_generator(tmp_path / "map", iter(NEW), 1))
    assert getattr(error, "committed", False) is False
    assert same(open_map(tmp_path / "map")[:], ROWS)


def test_an_upgrade_that_took_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CHANGES["rows: upgrade"].begin(tmp_path / "map")
    with monkeypatch.context() as patch:
        lose_syncs_once(patch, (tmp_path / "map/manifest.json").exists)
        error = error_of(lambda: upgrade(tmp_path / "map"))
    assert error.committed is True
    assert upgrade(tmp_path / "map") is False
