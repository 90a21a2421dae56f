"""Every call that changes a disk, and the few that open files for reading.

The rest of the package reaches the disk through these functions only, by their module (`disk.replace(...)`), so
that a test can record, fail or kill at each one. None of them retries: what fails raises the `OSError` of the
operating system.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from mmap_ninja.errors import ForeignFileError, MapCorruptError, MapPathError, MapPermissionError, SyncError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Buffer = bytes | bytearray | memoryview

_BASE_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
# A FIFO under one of our names must not block the open.
_READ_FLAGS = os.O_RDONLY | _BASE_FLAGS | getattr(os, "O_NONBLOCK", 0)


def open_to_read(path: str) -> tuple[int, int]:
    """Open a regular file; returns its descriptor and its size in bytes."""
    try:
        fd = os.open(path, _READ_FLAGS)
    except PermissionError as error:
        raise MapPermissionError(error.errno, "no permission to read this part of a map", path) from error
    except OSError as error:
        if os.path.islink(path):
            raise MapCorruptError(f"{path} is a symbolic link, expected a regular file") from error
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise MapCorruptError(f"{path} is not a regular file")
    return fd, status.st_size


def read_small(path: str, cap: int) -> bytes:
    """The whole of a small file; one of more than `cap` bytes is refused before it is read."""
    fd, size = open_to_read(path)
    try:
        if size > cap:
            raise MapCorruptError(f"{path} has {size} bytes, expected at most {cap}")
        return os.read(fd, size)
    finally:
        os.close(fd)


def make_folder(path: str) -> None:
    """Create a folder and its missing parents, each made durable in its own parent."""
    missing, above = [], path
    while not os.path.lexists(above):
        missing.append(above)
        above = os.path.dirname(above) or "."
    if not os.path.isdir(above):
        raise MapPathError(f"{above} is a file, expected the folder of a map")
    for folder in reversed(missing):
        try:
            os.mkdir(folder)
        except FileExistsError:  # made by somebody else meanwhile
            continue
        except PermissionError as error:
            raise MapPermissionError(error.errno, "no permission to make this folder", folder) from error
        sync_folder(os.path.dirname(folder) or ".")


def create_temporary(path: str, start: bytes) -> int:
    """Create a file that is never mapped and never read in place, such as the next manifest.

    One that is there is written over if it is a leftover of ours: it begins as `start` does, or with nothing.
    """
    try:
        return _open_to_change(path, os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        found = read_small(path, _SMALL)[: len(start)]
        if found != start[: len(found)] and any(found):
            raise ForeignFileError(f"{path} is not of a map, but has the name of one of its files") from None
    return _open_to_change(path, os.O_CREAT | os.O_TRUNC)


def open_to_write(path: str, create: bool = False) -> int:
    """Open a file to write to it in place; `create` makes one that is missing, and never cuts one that is there."""
    return _open_to_change(path, os.O_CREAT if create else 0)


def _open_to_change(path: str, flags: int) -> int:
    try:
        return os.open(path, os.O_RDWR | flags | _BASE_FLAGS, 0o666)
    except PermissionError as error:
        raise MapPermissionError(error.errno, "no permission to write this part of a map", path) from error


def close(fd: int) -> None:
    """Close a descriptor that was opened to write."""
    os.close(fd)


_SMALL = 1 << 20
_AT_ONCE = 1024  # buffers in one call: IOV_MAX on Linux and macOS


def _write_once(fd: int, views: Sequence[memoryview], offset: int) -> int:
    """Write some of the views; returns how many bytes."""
    if hasattr(os, "pwritev"):
        return os.pwritev(fd, views, offset)
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, views[0], offset)
    os.lseek(fd, offset, os.SEEK_SET)  # Windows
    return os.write(fd, views[0])


def write_at(fd: int, chunks: Sequence[Buffer], offset: int) -> None:
    """Write the chunks one after another, the first at `offset` bytes from the start of the file."""
    views = [memoryview(chunk) for chunk in chunks]
    first = 0
    while first < len(views):
        written = _write_once(fd, views[first : first + _AT_ONCE], offset)
        offset += written
        while first < len(views) and written >= len(views[first]):
            written -= len(views[first])
            first += 1
        if written:  # the disk took a part of a chunk
            views[first] = views[first][written:]


def _full_sync(fd: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone leaves data in the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def sync_data(fd: int) -> None:
    """Make the content of a file durable, and its size where that changed."""
    try:
        os.fdatasync(fd) if hasattr(os, "fdatasync") else _full_sync(fd)
    except OSError as error:
        raise SyncError(error.errno, f"a sync failed: {error.strerror}") from error


def sync(fd: int) -> None:
    """Make the content and all attributes of a file durable."""
    try:
        _full_sync(fd)
    except OSError as error:
        raise SyncError(error.errno, f"a sync failed: {error.strerror}") from error


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    if os.name == "nt":  # a folder cannot be opened there; NTFS journals names by itself
        return
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        sync(fd)
    finally:
        os.close(fd)


def replace(source: str, target: str) -> None:
    """Give `target` the content of `source` in one step: the commit point."""
    os.replace(source, target)


def remove(folder: str, name: str) -> None:
    """Remove a file of the folder, or of a subfolder that is none of a link; one that is gone is fine."""
    parent, path = folder, os.path.join(folder, name)
    for part in name.split("/")[:-1]:
        parent = os.path.join(parent, part)
        if os.path.islink(parent):
            return
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if parent != folder:
        remove_empty_folder(parent)


def remove_empty_folder(path: str) -> None:
    """Remove a folder if nothing is left in it."""
    try:
        os.rmdir(path)
    except OSError:
        return
