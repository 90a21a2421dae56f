"""Every operation of the library once as it is and once struck, in the folder of the command line; prints them."""

import ctypes
import errno
import fcntl
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path

from faults_below.library import VARIABLE, Fault, Library

C = ctypes.CDLL(None, use_errno=True)
FICLONE = 0x40049409
LIBRARY: Library  # of this process, where it is run


def calls(folder: Path, fd: int) -> dict[str, list[Callable[[], object]]]:
    """For each operation the ways to do it that Python has, and that NumPy and others may take."""
    path, other = f"{folder}/file", f"{folder}/other"
    return {
        "mkdir": [lambda: os.mkdir(other), lambda: os.mkdir(other + "2")],
        "rmdir": [lambda: os.rmdir(other), lambda: os.rmdir(other + "2")],
        "create": [lambda: os.close(os.open(other, os.O_CREAT | os.O_RDWR)), lambda: open(other, "wb").close()],
        "open": [lambda: os.close(os.open(other, os.O_RDONLY)), lambda: open(other, "rb").close()],
        "write": [
            lambda: os.write(fd, b"abcd"),
            lambda: os.pwrite(fd, b"efgh", 4),
            lambda: os.pwritev(fd, [b"i", b"jkl"], 8),
            lambda: os.writev(fd, [b"abc", b"d"]),
        ],
        "read": [
            lambda: len(os.read(fd, 4)),
            lambda: len(os.pread(fd, 4, 0)),
            lambda: os.preadv(fd, [bytearray(1), bytearray(3)], 0),
            lambda: os.lseek(fd, 0, 0) or os.readv(fd, [bytearray(4)]),
        ],
        "sync": [lambda: os.fsync(fd), lambda: os.fdatasync(fd)],
        "cut": [lambda: os.ftruncate(fd, 12)],
        "stat": [
            lambda: os.stat(path),
            lambda: os.lstat(path),
            lambda: os.fstat(fd),
            lambda: os.stat("file", dir_fd=folder_fd),
            lambda: None if os.access(path, os.R_OK) else failed(),
        ],
        "map": [lambda: mmap.mmap(fd, 4).close()],
        "dup": [lambda: os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))],
        "lock": [lambda: fcntl.flock(fd, fcntl.LOCK_EX)],
        "copy": [
            lambda: os.copy_file_range(fd, fd, 4, 0, 20),
            lambda: os.sendfile(fd, fd, 0, 4),
            lambda: clone(fd),
        ],
        "list": [lambda: os.listdir(folder), lambda: os.scandir(folder).close()],
        "link": [lambda: os.link(path, other + "3")],
        "rename": [lambda: os.replace(other, other + "4"), lambda: os.rename(other + "3", other)],
        "unlink": [lambda: os.unlink(other), lambda: os.unlink("other4", dir_fd=folder_fd)],
        "close": [lambda: os.close(os.open(path, os.O_RDONLY))],
    }


def failed() -> None:
    raise OSError(errno.EIO, "as a call that only says no")


def clone(fd: int) -> None:
    try:
        fcntl.ioctl(fd, FICLONE, fd)
    except OSError as error:
        if error.errno == errno.EIO:
            raise


def struck(operation: str, act: Callable[[], object], moment: str) -> object:
    """What comes of a call that is struck."""
    LIBRARY.arm([Fault(moment, 0, errno.EIO, only=(operation,), is_lasting=True)])
    try:
        return act()
    except OSError as error:
        return error.errno
    finally:
        LIBRARY.disarm()
        assert any(call.operation == operation and call.is_struck for call in LIBRARY.calls()), (operation, moment)


def is_seen(operation: str, act: Callable[[], object], fd: int) -> None:
    """It is counted, fails when it is told to, and moves half of its bytes when it is told to."""
    assert struck(operation, act, "before") == errno.EIO, operation
    if operation in ("read", "write"):
        os.lseek(fd, 0, os.SEEK_SET)
        assert struck(operation, act, "short") == 2, operation
        os.lseek(fd, 0, os.SEEK_SET)
    LIBRARY.arm()
    act()
    LIBRARY.disarm()
    assert operation in [call.operation for call in LIBRARY.calls()]


if __name__ == "__main__":
    LIBRARY = Library(os.environ[VARIABLE])
    root = Path(sys.argv[1]) / "map"
    LIBRARY.watch(root.parent)
    root.mkdir()
    fd, folder_fd = os.open(root / "file", os.O_CREAT | os.O_RDWR), os.open(root, os.O_RDONLY)
    every = calls(root, fd)
    for operation, ways in every.items():
        for act in ways:
            is_seen(operation, act, fd)
    print(*every)
