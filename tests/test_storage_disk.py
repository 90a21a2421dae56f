"""Copying bytes from file to file: by the kernel, by sharing blocks, or through this process where it must be."""

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults import in_child
from mmap_ninja._storage import disk
from mmap_ninja.errors import DiskError, MapCorruptError

RAW = os.urandom(3_000_001)
NOT_MOUNTED, NEWNS = 77, 0x20000
IMAGE = "mount --make-rprivate / && mkdir disk && truncate -s 512m image && {} && mount -o loop image disk"
SHARING = {"xfs": "mkfs.xfs -q -m reflink=1 image", "btrfs": "mkfs.btrfs -q image"}


@contextmanager
def pair(folder: Path, raw: bytes = RAW) -> Iterator[tuple[int, int]]:
    """A file with these bytes, opened to read, and a new one, opened to write."""
    folder.mkdir(exist_ok=True)
    (folder / "source").write_bytes(raw)
    source, _ = disk.open_to_read(str(folder / "source"))
    fd = disk.open_to_write(str(folder / "copy"), create=True)
    try:
        yield source, fd
    finally:
        disk.close(fd)
        disk.close_read(source)


def refusing(number: int, after: int = 0):
    """A `copy_file_range` that works so many times, half-way, and then fails."""
    real, left = os.copy_file_range, [after]

    def call(source: int, fd: int, size: int, start: int, offset: int) -> int:
        if left[0] == 0:
            raise OSError(number, os.strerror(number))
        left[0] -= 1
        return real(source, fd, size // 2, start, offset)

    return call


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EXDEV, errno.EPERM])
def test_a_kernel_that_cannot_copy_leaves_the_rest_to_us(
    tmp_path: Path, number: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", refusing(number, after))
    with pair(tmp_path) as (source, fd):
        disk.copy_range(source, fd, 0, len(RAW), "source")
    assert (tmp_path / "copy").read_bytes() == RAW


def test_a_system_that_has_no_such_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "copy_file_range")
    with pair(tmp_path) as (source, fd):
        disk.copy_range(source, fd, 0, len(RAW), "source")
    assert (tmp_path / "copy").read_bytes() == RAW


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_range_goes_to_the_same_place(tmp_path: Path, by_hand: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_hand:
        monkeypatch.delattr(os, "copy_file_range")
    with pair(tmp_path) as (source, fd):
        disk.copy_range(source, fd, 1_000_003, 1_500_000, "source")
        disk.copy_range(source, fd, 7, 0, "source")
    found = (tmp_path / "copy").read_bytes()
    assert found == bytes(1_000_003) + RAW[1_000_003:2_500_003]


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_source_that_ends_too_early(tmp_path: Path, by_hand: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_hand:
        monkeypatch.delattr(os, "copy_file_range")
    with pair(tmp_path) as (source, fd), pytest.raises(MapCorruptError, match="source has 3000001 bytes"):
        disk.copy_range(source, fd, 0, len(RAW) + 1, "source")


def test_what_the_system_refuses_is_an_error_of_the_file_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", refusing(errno.ENOSPC, 1))
    with pair(tmp_path) as (source, fd), pytest.raises(DiskError) as caught:
        disk.copy_range(source, fd, 0, len(RAW), "source")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "copy"))


def test_a_clone_is_refused_quietly_where_blocks_cannot_be_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pair(tmp_path) as (source, fd):
        monkeypatch.setattr(disk, "_FICLONE", 0)  # what the kernel knows nothing of
        assert not disk.clone(source, fd)
        monkeypatch.setattr(disk, "_FICLONE", None)  # what other systems have
        assert not disk.clone(source, fd)
    assert (tmp_path / "copy").read_bytes() == b""


def on_a_sharing_disk(kind: str, tmp_path: Path, act: Callable[[], object]) -> None:
    """Do it in a child for which a file system that shares blocks is mounted on `tmp_path / "disk"`, or skip."""
    if os.getuid() != 0 or shutil.which(f"mkfs.{kind}") is None:
        pytest.skip("only root can mount a file system on a file")

    def run() -> None:
        make = IMAGE.format(SHARING[kind])
        if ctypes.CDLL(None).unshare(NEWNS) or subprocess.run(make, shell=True, cwd=tmp_path).returncode:
            os._exit(NOT_MOUNTED)
        act()

    code = in_child(run)
    if code == NOT_MOUNTED:
        pytest.skip(f"no {kind} here, or no loop devices to mount it on a file")
    assert code == 0


@pytest.mark.parametrize("kind", SHARING)
def test_a_clone_shares_blocks_until_one_is_written(kind: str, tmp_path: Path) -> None:
    def run() -> None:
        folder = tmp_path / "disk" / "work"
        with pair(folder) as (source, fd):
            assert disk.clone(source, fd)
            assert (folder / "copy").read_bytes() == RAW
            disk.write_at(fd, [b"other"], 10)
            disk.cut(fd, 2_000_000)
        assert (folder / "source").read_bytes() == RAW
        assert (folder / "copy").read_bytes() == RAW[:10] + b"other" + RAW[15:2_000_000]
        assert (folder / "copy").stat().st_ino != (folder / "source").stat().st_ino

    on_a_sharing_disk(kind, tmp_path, run)
