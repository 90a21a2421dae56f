"""Real file systems in a file, and real cuts of their power: what the kernel had not written is lost.

A disk lives in a mount namespace of its own process: with that process, its mounts are gone.
"""

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MIB = 1 << 20
_NEW_NAMESPACE = 0x20000  # CLONE_NEWNS
_GET_STATUS, _SET_STATUS = 0x4C05, 0x4C04  # LOOP_GET_STATUS64, LOOP_SET_STATUS64
_STATUS, _LIMIT = 232, 32  # bytes of a struct loop_info64, and where its lo_sizelimit is
_SHUT_DOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
_LOG_FLUSHED, _LOG_LOST = 1, 2
_LIBC = ctypes.CDLL(None, use_errno=True)


class NoDisk(Exception):
    """This machine cannot mount the file system; says why."""


@dataclass(frozen=True)
class FileSystem:
    """How to make and mount one; `shuts_down` says whether it has an ioctl for that."""

    make: str
    options: str = ""
    mib: int = 64
    shuts_down: bool = True

    @property
    def ways(self) -> tuple[str, ...]:
        """How its power can be cut."""
        return ("device gone", "log lost", "log flushed") if self.shuts_down else ("device gone",)


_EXT4 = "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0,nodiscard"
FILE_SYSTEMS = {
    "ext4": FileSystem(_EXT4),
    "ext4 data=writeback": FileSystem(_EXT4, "data=writeback"),
    "ext4 nodelalloc": FileSystem(_EXT4, "nodelalloc"),
    "ext4 data=writeback,nodelalloc": FileSystem(_EXT4, "data=writeback,nodelalloc"),
    "ext4 data=writeback,noauto_da_alloc": FileSystem(_EXT4, "data=writeback,noauto_da_alloc"),
    "ext4 data=journal": FileSystem(_EXT4, "data=journal"),
    "xfs": FileSystem("mkfs.xfs -q -K", mib=320),  # the least that it takes
    "btrfs": FileSystem("mkfs.btrfs -q -K", "nodiscard", mib=160, shuts_down=False),
}


def missing(file_system: FileSystem) -> str:
    """Why this machine cannot have such a disk, as far as that is seen without trying; empty if it can."""
    tool = file_system.make.split()[0]
    if not hasattr(os, "getuid") or os.getuid() != 0:
        return "only root can mount a file system on a file"
    if shutil.which(tool) is None:
        return f"{tool} is not installed"
    return "" if os.path.exists("/dev/loop-control") else "there are no loop devices here"


class RealDisk:
    """One file system on a loop device, below the folder `work`. Each block that it has not written yet holds junk."""

    def __init__(self, work: Path, file_system: FileSystem) -> None:
        self.folder, self.file_system = work / "disk", file_system
        self.memory = work / "memory"
        self._image = self.memory / "image"
        if _LIBC.unshare(_NEW_NAMESPACE):
            raise NoDisk(f"no mount namespace: {os.strerror(ctypes.get_errno())}")
        for folder in (self.memory, self.folder):
            folder.mkdir()
        _run("mount --make-rprivate /")
        _run(f"mount -t tmpfs -o size={file_system.mib + 128}m tmpfs {self.memory}")
        self._make()
        self._mount()

    def _make(self) -> None:
        junk = os.urandom(_MIB)
        with open(self._image, "wb") as file:
            for _ in range(min(self.file_system.mib, 64)):
                file.write(junk)
            file.truncate(self.file_system.mib * _MIB)
        _run(f"{self.file_system.make} {self._image}")

    def _mount(self) -> None:
        options = ",".join(["loop", *filter(None, [self.file_system.options])])
        _run(f"mount -o {options} {self._image} {self.folder}")

    def restart(self) -> None:
        """Let the power come back: what was in memory is gone, the file system replays its journal."""
        _patiently(lambda: _run(f"umount {self.folder}"))
        _patiently(self._mount)

    def sync(self) -> None:
        """Make all that is there durable, and nothing of any other file system."""
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            if _LIBC.syncfs(fd):
                raise OSError(ctypes.get_errno(), "syncfs")
        finally:
            os.close(fd)

    def cut(self, way: str) -> None:
        """From now on nothing reaches the disk, and what was in memory only is lost with the next unmount."""
        if way == "device gone":
            self._take_device_away()
            return
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUT_DOWN, struct.pack("I", _LOG_FLUSHED if way == "log flushed" else _LOG_LOST))
        finally:
            os.close(fd)

    def _take_device_away(self) -> None:
        """Let the device end after one sector. That waits for what it is writing, and refuses all that comes later."""
        fd = os.open(self._device(), os.O_RDONLY)
        try:
            status = bytearray(_STATUS)
            fcntl.ioctl(fd, _GET_STATUS, status)
            struct.pack_into("<Q", status, _LIMIT, 512)
            fcntl.ioctl(fd, _SET_STATUS, bytes(status))
        finally:
            os.close(fd)

    def _device(self) -> str:
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return next(fields[-2] for fields in mounts if fields[4] == str(self.folder))


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise NoDisk(f"{command}: {done.stderr.strip().partition(chr(10))[0]}")


def _patiently(act: Callable[[], None]) -> None:
    """Do it again for some seconds: others may look at a new device for a moment, and keep it busy."""
    for _ in range(50):
        with suppress(NoDisk):
            return act()
        time.sleep(0.1)
    act()
