"""A sync that fails is an error at once and for good: nothing that it may have lost is ever said to be durable."""

import ctypes
import errno
import gc
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import plain_reader
from changes import CHANGES, KINDS, Change, check, copied, opened, others, quietly
from faults import in_child, in_memory, recorded, tree
from mmap_ninja import Mmap, RaggedMmap, open_map, upgrade
from mmap_ninja._storage import disk
from mmap_ninja.errors import SyncError
from plain_reader import same

SOME = {
    *("rows: " + operation for operation in ("append", "create", "extend over blocks", "extend unsynced")),
    *(
        "rows: " + operation
        for operation in ("first append", "flush", "metadata", "replace", "resume", "upgrade", "widen")
    ),
    *("bytes: flush", "dense: assign", "dense: extend", "dense fortran: upgrade", "images: extend format 1"),
    *("mixed: resume widening", "rows: assign over blocks", "strings: extend an empty map", "zstd dictionary: create"),
}
ROWS = [np.arange(5), np.arange(3)]
SAFE, DIRTY, LOST = range(3)


def sometimes(names: Iterable[str]) -> list:
    """Some of the changes in every run, the others in the long one."""
    return [name if name in SOME else pytest.param(name, marks=pytest.mark.long) for name in names]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as folder:
        yield folder


class Kernel:
    """What Linux does with written bytes and names, of which the sync number `bad` fails.

    They are dirty until their file, or folder, is synced. A sync that fails marks them as clean: they are lost, a
    second sync has nothing to say about them, and only writing them again makes them dirty again. The names of one
    folder are one thing here, as in a folder of one block: any new one writes all of them.
    """

    def __init__(self, bad: int | None = None, number: int = errno.EIO) -> None:
        self.count = 0
        self.bad, self._number = bad, number
        self._bytes: dict[int, bytearray] = {}
        self._names: dict[int, int] = {}

    @contextmanager
    def installed(self) -> Iterator["Kernel"]:
        doubles = {"fsync": self._sync, "fdatasync": self._sync, "open": self._open, "replace": self._named}
        doubles |= {"mkdir": self._named, "pwrite": self._written, "pwritev": self._written, "ftruncate": self._cut}
        with mock.patch.multiple(os, **{name: double(getattr(os, name)) for name, double in doubles.items()}):
            yield self

    def _sync(self, real):
        def sync(fd: int) -> None:
            self.count += 1
            is_bad = self.count - 1 == self.bad
            status, becomes = os.fstat(fd), LOST if is_bad else SAFE
            if stat.S_ISDIR(status.st_mode) and self._names.get(status.st_ino) == DIRTY:
                self._names[status.st_ino] = becomes
            else:
                was = self._bytes.get(status.st_ino, bytearray())
                self._bytes[status.st_ino] = was.replace(bytes([DIRTY]), bytes([becomes]))
            if is_bad:
                raise OSError(self._number, os.strerror(self._number))

        return sync

    def _open(self, real):
        def open_(path: str, flags: int, *mode: int) -> int:
            is_new = flags & os.O_CREAT and not os.path.lexists(path)
            fd = real(path, flags, *mode)
            if is_new:
                self._dirty(path)
            if is_new or flags & os.O_TRUNC:
                self._bytes[os.fstat(fd).st_ino] = bytearray()
            return fd

        return open_

    def _named(self, real):
        def change(*paths: str) -> None:
            real(*paths)
            for path in paths:
                self._dirty(path)

        return change

    def _dirty(self, path: str) -> None:
        self._names[os.stat(os.path.dirname(path) or ".").st_ino] = DIRTY

    def _written(self, real):
        def write(fd: int, chunks: object, offset: int) -> int:
            size = real(fd, chunks, offset)
            found = self._bytes.setdefault(os.fstat(fd).st_ino, bytearray())
            found.extend(bytes(max(0, offset + size - len(found))))
            found[offset : offset + size] = bytes([DIRTY]) * size
            return size

        return write

    def _cut(self, real):
        def cut(fd: int, size: int) -> None:
            real(fd, size)
            del self._bytes.get(os.fstat(fd).st_ino, bytearray())[size:]

        return cut

    def unsafe(self, folder: Path) -> set[str]:
        """What a power cut would take from a map that says it is synced: files, or the folder's names."""
        found = plain_reader.fields(folder)
        assert found["synced"]
        spans = [("manifest.json", 0, None)]
        for file in found["files"].values():
            if file["checked"]:  # else values may have been assigned, for which nobody vouches
                spans.append((file["name"], file["offset"], file["offset"] + file["size"]))
                spans.append((plain_reader.crc_name(file), 0, 4 * (file["size"] // plain_reader.BLOCK)))
        lost = {name for name, start, stop in spans if stop != 0 and any(self._of(folder / name)[start:stop])}
        return lost | ({folder.name} if self._names.get(folder.stat().st_ino) else set())

    def is_named(self, folder: Path) -> bool:
        """Whether the folder itself survives a power cut."""
        return not self._names.get(folder.parent.stat().st_ino)

    def _of(self, path: Path) -> bytearray:
        return self._bytes.get(path.stat().st_ino, bytearray()) if path.exists() else bytearray()


def number_of_syncs(change: Change, folder: Path) -> int:
    change.begin(folder)
    with Kernel().installed() as kernel:
        change.act(folder)
    return kernel.count


def begun(change: Change, folder: Path) -> Path:
    """A fresh copy of what is there before."""
    start = folder.parent / "start"
    if not start.exists():
        change.begin(start)
    return copied(start, folder)


@pytest.mark.parametrize("name", sometimes(CHANGES))
def test_what_a_failed_sync_may_have_lost_is_written_again(name: str, tmp_path: Path) -> None:
    change = CHANGES[name]
    count = number_of_syncs(change, tmp_path / "whole")
    assert count > 1 or change.operation.endswith("unsynced")
    for bad in range(count):
        for resume in (False, True) if change.is_build else (False,):
            folder, kernel = begun(change, tmp_path / f"{bad} {resume}"), Kernel(bad)
            with kernel.installed():
                with pytest.raises(SyncError) as caught:
                    change.act(folder)
                assert caught.value.errno == errno.EIO
                assert str(tmp_path) in str(caught.value)
                check(change, folder)
                m, is_part = opened(folder)
                if m is None or is_part:
                    if change.operation in ("first append", "extend an empty map"):
                        change.act(folder)
                    else:
                        change.of.build(folder, change.new, resume=resume)
                    expected = change.new
                else:
                    expected = [*m[:], *others(m)]
                    quietly(lambda folder, m=m: type(m)(folder).extend(others(m)), folder)
                assert same(list(open_map(folder)), expected)
                plain_reader.check(folder)
                assert kernel.unsafe(folder) == set(), bad


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", ["rows: extend", "rows: create"])
def test_what_is_told_late_keeps_its_number(name: str, number: int, tmp_path: Path) -> None:
    """Disks that find room only when they write (ext4, NFS) tell of a full one in a sync."""
    change = CHANGES[name]
    for bad in range(number_of_syncs(change, tmp_path / "whole")):
        folder = begun(change, tmp_path / str(bad))
        with Kernel(bad, number).installed(), pytest.raises(SyncError, match=os.strerror(number)) as caught:
            change.act(folder)
        assert caught.value.errno == number
        check(change, folder)


ON_HANDLES = [
    name
    for name, change in CHANGES.items()
    if change.opening is change.of.cls or change.operation.startswith(("flush", "assign to format", "assign over"))
    if not change.operation.endswith("unsynced")
]


def failed(change: Change, folder: Path, bad: int) -> Mmap:
    """A handle that was open when its sync number `bad` failed."""
    m = change.opening(begun(change, folder))
    with Kernel(bad).installed(), pytest.raises(SyncError, match="a sync failed"):
        quietly(change.call, m)
    return m


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(SyncError, match="open the map again") as caught:
        act()
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("name", sometimes(ON_HANDLES))
def test_the_handle_writes_no_more_and_reads_on(name: str, tmp_path: Path) -> None:
    change = CHANGES[name]
    for bad in range(number_of_syncs(change, tmp_path / "whole")):
        folder = tmp_path / str(bad)
        m = failed(change, folder, bad)
        before, seen = tree(folder), len(m)
        for _ in range(2):
            refused(lambda m=m: m.append(change.new[0]))
            refused(lambda m=m: m.extend(change.new[:2]))
            if change.old is not None:
                refused(lambda m=m: setattr(m, "metadata", {"a": 1}))
        assert tree(folder) == before
        check(change, folder)
        newest, is_part = opened(folder)
        assert same(list(m), list(newest or [])[:seen])
        if newest is not None and not is_part and not change.assigned:
            m.refresh()
            assert same(list(m), list(newest))


def test_it_refreshes_where_assignments_are_pending(tmp_path: Path) -> None:
    change = CHANGES["rows: assign"]
    for bad in range(number_of_syncs(change, tmp_path / "whole")):
        m = failed(change, tmp_path / str(bad), bad)
        open_map(m.out_dir).append(change.new[0])
        m.refresh()
        assert len(m) == len(change.new) + 1


def test_its_flush_does_not_say_that_all_is_well(tmp_path: Path) -> None:
    for bad in range(4):
        refused(failed(CHANGES["rows: extend"], tmp_path / str(bad), bad).flush)


@pytest.mark.parametrize("name", ["rows: assign", "dense: assign"])
def test_its_assignments_are_refused(name: str, tmp_path: Path) -> None:
    change = CHANGES[name]
    for bad in range(number_of_syncs(change, tmp_path / "whole")):
        m = failed(change, tmp_path / str(bad), bad)
        before = [sample.copy() for sample in m]
        refused(lambda m=m: m.__setitem__(1, change.of.changed(m[1])))
        assert same(list(open_map(m.out_dir)), before)


@pytest.mark.parametrize("name", ["rows: extend", "rows: flush", "rows: assign"])
def test_closing_lets_go_of_the_files(name: str, tmp_path: Path) -> None:
    change = CHANGES[name]
    for bad in range(number_of_syncs(change, tmp_path / "whole")):
        m = failed(change, tmp_path / str(bad), bad)
        with suppress(SyncError):  # told already; both are fine
            m.close()
        m.close()
        with pytest.raises(ValueError, match="closed"):
            len(m)
        assert not [name for name in descriptors() if name.startswith(str(tmp_path))]


@pytest.mark.parametrize("name", ["rows: flush", "rows: assign"])
def test_a_sync_that_fails_in_close_is_told_and_the_files_are_let_go_of(name: str, tmp_path: Path) -> None:
    change = CHANGES[name]
    for bad in range(2):
        m = change.opening(begun(change, tmp_path / str(bad)))
        if change.assigned:
            m[0] = change.new[0]
        with Kernel(bad).installed(), pytest.raises(SyncError, match="a sync failed"):
            m.close()
        m.close()
        with pytest.raises(ValueError, match="closed"):
            len(m)
        assert not [name for name in descriptors() if name.startswith(str(tmp_path))]


def descriptors() -> list[str]:
    """The paths of all open files of this process."""
    gc.collect()  # a traceback may hold what a handle has let go of
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


@pytest.mark.parametrize("kind", ["rows", "dense", "zstd strings"])
@pytest.mark.parametrize("first", ["flush", "extend"])
@pytest.mark.parametrize("then", ["flush of another handle", "extend of a new handle"])
def test_samples_that_a_failed_sync_has_lost_are_not_vouched_for_by_the_next(
    kind: str, first: str, then: str, tmp_path: Path
) -> None:
    """They were committed with sync=False, so that the failed call is not the one that would write them again."""
    of = KINDS[kind]
    for bad in range(3):  # the last one is that of the folder
        folder, kernel = tmp_path / str(bad), Kernel()
        of.build(folder, of.first)
        with kernel.installed():
            writer, other = of.cls(folder), of.cls(folder)
            writer.extend(of.rest, sync=False)
            kernel.bad = kernel.count + bad
            with pytest.raises(SyncError):
                other.append(of.rest[0]) if first == "extend" else other.refresh() or writer.flush()
            handle = writer if first == "extend" and then.startswith("flush") else of.cls(folder)
            handle.flush() if handle is writer else handle.extend(of.rest)
            assert kernel.unsafe(folder) == set()
        assert same(list(open_map(folder))[: len(of.samples)], of.samples)


def test_a_second_upgrade_does_not_vouch_for_data_that_the_first_could_not_sync(tmp_path: Path) -> None:
    """Version 0.9.0 synced nothing, so its data may still be on its way to the disk."""
    change = CHANGES["rows: upgrade"]
    count = number_of_syncs(change, tmp_path / "whole")
    for bad in range(count):
        folder = begun(change, tmp_path / str(bad))
        data = folder / "data.ninja"
        with Kernel().installed() as kernel:
            fd = os.open(data, os.O_RDWR)
            os.pwrite(fd, data.read_bytes(), 0)
            os.close(fd)
            kernel.bad = bad
            with pytest.raises(SyncError, match="a sync failed"):
                upgrade(folder)
            is_done = bad == count - 1  # only its name may not last
            assert upgrade(folder) is not is_done
            assert kernel.unsafe(folder) == ({folder.name} if is_done else set())


def test_a_build_that_can_not_even_note_the_failure_is_not_resumed_from_what_it_noted_before(tmp_path: Path) -> None:
    kernel = Kernel(number=errno.ENOSPC)
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def loader():
        yield from ROWS
        kernel.bad = kernel.count  # the first sync of those at the end
        note.start()

    note = mock.patch.object(disk, "create_temporary", full)
    with kernel.installed(), mock.patch("mmap_ninja._storage.build._SAVE_EVERY", 0):
        with pytest.raises(SyncError):
            RaggedMmap.from_generator(tmp_path / "map", loader(), 1)
        note.stop()
        full.assert_called()
        RaggedMmap.from_generator(tmp_path / "map", iter(ROWS), 1, resume=True)
        assert kernel.unsafe(tmp_path / "map") == set()
        assert same(open_map(tmp_path / "map")[:], ROWS)


def test_a_flush_makes_the_checksums_of_unsynced_blocks_durable(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", ROWS)
    with Kernel().installed() as kernel:
        m.append(np.arange(140_000), sync=False)
        m.append(np.arange(3), sync=False)
        m[3] = np.arange(3) + 7  # behind the last whole block
        m.flush()
    assert plain_reader.fields(tmp_path / "map")["files"]["data"]["checked"]
    assert kernel.unsafe(tmp_path / "map") == set()


@pytest.mark.parametrize("operation", ["create", "first append"])
def test_the_name_of_a_folder_is_synced_by_who_finds_it_too(operation: str, tmp_path: Path) -> None:
    change = CHANGES[f"rows: {operation}"]
    folder = tmp_path / "a" / "b" / "map"
    for bad in range(3):
        with Kernel(bad).installed() as kernel:
            with pytest.raises(SyncError):
                change.act(folder)
            change.act(folder)
        assert kernel.is_named(folder)
        shutil.rmtree(tmp_path / "a")


def test_these_checks_see_a_sync_that_is_left_out_or_tried_again(tmp_path: Path) -> None:
    change = CHANGES["rows: extend over blocks"]

    def unsafe(folder: Path, bad: int | None, sync: Callable[[int], None]) -> set[str]:
        begun(change, folder)
        with Kernel(bad).installed() as kernel, mock.patch.object(disk, "sync_data", sync):
            change.act(folder)
        return kernel.unsafe(folder)

    real = disk.sync_data

    def again(fd: int) -> None:
        with suppress(SyncError):
            return real(fd)
        real(fd)

    assert unsafe(tmp_path / "right", None, real) == set()
    assert unsafe(tmp_path / "left out", None, lambda fd: None) == {"data.npy", "index.npy", "data.crc"}
    assert len(unsafe(tmp_path / "again", 0, again)) == 1


def test_the_model_counts_what_the_recorded_calls_count(tmp_path: Path) -> None:
    change = CHANGES["rows: extend over blocks"]
    count = number_of_syncs(change, tmp_path / "whole")
    folder = begun(change, tmp_path / "recorded")
    assert len(recorded(lambda: change.act(folder)).of("sync", "sync_data", "sync_folder")) == count


NOT_MOUNTED = 77
MOUNTED = """
mount --make-rprivate / && mkdir small disk && mount -t tmpfs -o size=24m tmpfs small && truncate -s 64m small/image &&
mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=0,nodiscard small/image && mount -o loop,nodiscard small/image disk
"""
REMOUNTED = "umount disk && mount -o loop small/image disk"


@pytest.mark.parametrize("operation", ["extend", "flush", "build", "resume"])
def test_samples_that_linux_has_really_lost_are_not_lost_again(operation: str, tmp_path: Path) -> None:
    """A file system on a file that finds no room any more: its writes fail when the kernel does them at last."""
    if os.getuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("only root can mount a file system on a file")
    rows = [np.random.default_rng(k).random(30_000) for k in range(12)]
    folder, ballast = tmp_path / "disk" / "map", tmp_path / "small" / "ballast"

    def fill() -> None:
        with open(ballast, "wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def loader() -> Iterator[np.ndarray]:
        yield from rows
        fill()

    def fails_and_is_done_again() -> None:
        if operation in ("extend", "flush"):
            m = RaggedMmap.from_lists(folder, rows[:2])
            os.sync()
            fill()
            if operation == "flush":
                m.extend(rows[2:], sync=False)
            with pytest.raises(SyncError, match="a sync failed"):
                m.flush() if operation == "flush" else m.extend(rows[2:])
            ballast.unlink()
            RaggedMmap(folder).extend(rows[2:])
            return
        with pytest.raises(SyncError, match="a sync failed"):
            RaggedMmap.from_generator(folder, loader(), 2)
        ballast.unlink()
        RaggedMmap.from_generator(folder, iter(rows), 2, resume=operation == "resume")

    def run() -> None:
        if ctypes.CDLL(None).unshare(0x20000) or subprocess.run(MOUNTED, shell=True, cwd=tmp_path).returncode:
            os._exit(NOT_MOUNTED)
        RaggedMmap.from_lists(tmp_path / "disk" / "other", rows[:1])
        os.sync()  # the file system has made its own blocks by now
        fails_and_is_done_again()
        assert plain_reader.fields(folder)["synced"]
        gc.collect()
        subprocess.run(REMOUNTED, shell=True, cwd=tmp_path, check=True)  # no cache survives that
        assert same(open_map(folder)[:12], rows)
        plain_reader.check(folder)

    code = in_child(run)
    if code == NOT_MOUNTED:
        pytest.skip("no loop devices here to mount a file system on a file")
    assert code == 0
