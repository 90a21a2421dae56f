"""Every call that changes a disk, and the few that open files for reading.

The rest of the package reaches the disk through these functions only, by their module (`disk.replace(...)`), so
that a test can record, fail or kill at each one. None of them retries: what the operating system refuses is a
`DiskError`, `SyncError`, `MapPermissionError` or `MapNotFoundError` with its errno and the name of the file.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from mmap_ninja.errors import (
    DiskError,
    ForeignFileError,
    MapCorruptError,
    MapNotFoundError,
    MapPathError,
    MapPermissionError,
    MmapNinjaError,
    SyncError,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Buffer = bytes | bytearray | memoryview

HAS_FOLDERS = os.name != "nt"  # that can be opened and synced; NTFS journals names by itself

_BASE_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
# A FIFO under one of our names must not block the open.
_READ_FLAGS = os.O_RDONLY | _BASE_FLAGS | getattr(os, "O_NONBLOCK", 0)


_paths: dict[int, str] = {}  # of the descriptors that were opened to write, for the errors
_statuses: dict[int, os.stat_result] = {}  # what those were when they were opened


class explained:
    """What the operating system refuses in the block is raised as an error of this package, its errno kept.

    Except for a file that is there already, or not a folder: those mean something else at each place. (A class,
    because opening a map goes through four of these, and a generator takes three times as long.)
    """

    __slots__ = ("_path", "_what")

    def __init__(self, path: str, what: str = "write this part of a map") -> None:
        self._path, self._what = path, what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, OSError) or isinstance(error, MmapNinjaError | FileExistsError | NotADirectoryError):
            return
        if isinstance(error, PermissionError):
            raise MapPermissionError(error.errno, f"no permission to {self._what}", self._path) from error
        if isinstance(error, FileNotFoundError):
            raise MapNotFoundError(error.errno, f"cannot {self._what}: it is gone", self._path) from error
        raise DiskError(error.errno, f"cannot {self._what}: {error.strerror}", self._path) from error


def open_to_read(path: str) -> tuple[int, int]:
    """Open a regular file; returns its descriptor and its size in bytes."""
    with explained(path, "read this part of a map"):
        fd = _opened(path, _READ_FLAGS)
    try:
        return fd, _looked_at(fd, path).st_size
    except BaseException:
        close_read(fd)
        raise


def _open(path: str, flags: int, keep: list[int] | None = None) -> int:
    """Open a file; a Ctrl-C that comes right after that loses no descriptor: it is in `keep`, or closed.

    Python looks for signals when a call returns, before its result has a name. `extend` keeps the result first.
    """
    found: list[int] = [] if keep is None else keep
    try:
        found.extend(map(os.open, (path,), (flags,), (0o666,)))
    except BaseException:
        for fd in found if keep is None else ():
            close_read(fd)
        raise
    return found[-1]


def _opened(path: str, flags: int, keep: list[int] | None = None) -> int:
    """A descriptor of the file, if no symbolic link leads there."""
    try:
        return _open(path, flags, keep)
    except FileNotFoundError:
        raise
    except OSError as error:
        if os.path.islink(path):
            raise MapCorruptError(f"{path} is a symbolic link, expected a regular file") from error
        if error.errno in (errno.ENXIO, errno.EISDIR):  # a socket, a folder
            raise MapCorruptError(f"{path} is not a regular file") from error
        raise


def _looked_at(fd: int, path: str) -> os.stat_result:
    """The status of an open file; what is no regular file is refused."""
    with explained(path, "look at this part of a map"):
        status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise MapCorruptError(f"{path} is not a regular file")
    return status


def read_small(path: str, cap: int) -> bytes:
    """The whole of a small file; one of more than `cap` bytes is refused before it is read."""
    fd, size = open_to_read(path)
    try:
        if size > cap:
            raise MapCorruptError(f"{path} has {size} bytes, expected at most {cap}")
        with explained(path, "read this part of a map"):
            return _read(fd, size)
    finally:
        close_read(fd)


def _read(fd: int, size: int) -> bytes:
    """The next bytes of a file, fewer only where it ends: one call may read a part of them."""
    raw = os.read(fd, size)
    while len(raw) < size and (more := os.read(fd, size - len(raw))):
        raw += more
    return raw


def read_into(fd: int, view: memoryview, offset: int, path: str) -> None:
    """Fill a buffer with the bytes of a file from `offset` on; one that ends before that raises `MapCorruptError`."""
    done = 0
    while done < len(view):
        with explained(path, "read this part of a map"):
            count = _read_once(fd, view[done:], offset + done)
        if count == 0:
            raise MapCorruptError(f"{path} has {offset + done} bytes, expected at least {offset + len(view)}")
        done += count


def _read_once(fd: int, view: memoryview, offset: int) -> int:
    """Read some of the bytes; returns how many."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    os.lseek(fd, offset, os.SEEK_SET)  # Windows
    raw = os.read(fd, len(view))
    view[: len(raw)] = raw
    return len(raw)


def close_read(fd: int) -> None:
    """Close a descriptor that was opened to read: nothing can be lost by that."""
    with suppress(OSError):
        os.close(fd)


def _status(path: str, *, follow_symlinks: bool = False) -> os.stat_result | None:
    """What is at this path; None if nothing is. What cannot be looked at is an error, not an absence."""
    try:
        return os.stat(path, follow_symlinks=follow_symlinks)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        with explained(path, "look at this part of a map"):
            raise


def exists(path: str) -> bool:
    """True if there is something at this path, be it a link."""
    return _status(path) is not None


def is_regular(path: str) -> bool:
    """True if there is a regular file at this path, and no link to one."""
    status = _status(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_link(path: str) -> bool:
    """True if there is a symbolic link at this path."""
    status = _status(path)
    return status is not None and stat.S_ISLNK(status.st_mode)


def is_folder(path: str) -> bool:
    """True if there is a folder at this path, or a link to one."""
    status = _status(path, follow_symlinks=True)
    return status is not None and stat.S_ISDIR(status.st_mode)


def is_no_folder(path: str) -> bool:
    """True if there is something else than a folder at this path."""
    status = _status(path, follow_symlinks=True)
    return status is not None and not stat.S_ISDIR(status.st_mode)


Identity = tuple[int, int]  # device and inode


def identity(fd: int) -> Identity:
    """What tells a file that was opened to write from all others, as long as it is open."""
    status = _statuses[fd]
    return status.st_dev, status.st_ino


def had_links(fd: int) -> bool:
    """True if a file had a second name, a hard link, when it was opened to write."""
    return _statuses[fd].st_nlink > 1


def has_links(fd: int) -> bool:
    """True if a file that was opened to write has a second name now."""
    with explained(_paths[fd], "look at this part of a map"):
        return os.fstat(fd).st_nlink > 1


def identity_at(path: str) -> Identity | None:
    """That of the file at this path; None where there is none."""
    status = _status(path)
    return None if status is None else (status.st_dev, status.st_ino)


def is_at(identity: Identity, path: str) -> bool:
    """True if this very file, which is open, is the one at this path."""
    return identity_at(path) == identity


def is_linked(path: str) -> bool:
    """True if there is a file at this path that has a second name: a hard link."""
    status = _status(path)
    return status is not None and status.st_nlink > 1


def make_folder(path: str) -> None:
    """Create a folder and its missing parents, each made durable in its own parent."""
    missing, above = [], path
    while not exists(above):
        missing.append(above)
        above = os.path.dirname(above) or "."
    if not is_folder(above):
        what = "a file" if is_no_folder(above) else "a link to nowhere"
        raise MapPathError(f"{above} is {what}, expected the folder of a map")
    for folder in reversed(missing):
        try:
            with explained(folder, "make this folder"):
                os.mkdir(folder)
        except FileExistsError:  # made by somebody else meanwhile
            continue
        try:
            sync_folder(os.path.dirname(folder) or ".")
        except SyncError:  # whoever finds the folder would take it for durable
            remove_empty_folder(folder)
            raise


def create_temporary(path: str, keep: list[int] | None = None) -> int:
    """Create a file that is never mapped and never read in place, such as the next manifest; `keep` as `open_to_write`.

    One of that name is a leftover, whatever it holds: a power cut leaves anything in what was not synced. It is
    removed, not written over: after another power cut, the old content could be back under the new name.
    """
    try:
        return _open_to_change(path, os.O_CREAT | os.O_EXCL, keep)
    except FileExistsError:
        if not is_regular(path):
            raise ForeignFileError(f"{path} is no regular file, but has the name of one of a map's files") from None
    with explained(path):
        os.unlink(path)
    return _open_to_change(path, os.O_CREAT | os.O_EXCL, keep)


def open_to_write(path: str, create: bool = False, keep: list[int] | None = None) -> int:
    """Open a file to write to it in place; `create` makes one that is missing, and never cuts one that is there.

    `keep` is a list that has the descriptor from the moment that there is one, for `close_kept`.
    """
    return _open_to_change(path, os.O_CREAT if create else 0, keep)


def _open_to_change(path: str, flags: int, keep: list[int] | None) -> int:
    with explained(path):
        fd = _opened(path, os.O_RDWR | flags | _BASE_FLAGS, keep)
    try:
        status = _looked_at(fd, path)  # a FIFO or a device under one of our names is not written to
    except BaseException:
        with suppress(OSError):  # the error that led here is the one to hear of
            close_kept([fd] if keep is None else keep)
        raise
    _paths[fd], _statuses[fd] = path, status
    return fd


def close_kept(keep: list[int]) -> None:
    """Close the descriptor in a list, which has none then: no Ctrl-C comes between the two."""
    path = _paths.get(keep[0], "")
    with explained(path):
        deque(map(os.close, map(list.pop, (keep,))), maxlen=0)


def close(fd: int) -> None:
    """Close a descriptor that was opened to write."""
    with explained(_paths.get(fd, "")):
        os.close(fd)
    _paths.pop(fd, None)
    _statuses.pop(fd, None)


def cut(fd: int, size: int) -> None:
    """Give back what lies past the first `size` bytes of a file; never makes it longer.

    Only for bytes that no manifest has named: nobody has those mapped.
    """
    with explained(_paths[fd]):
        if os.fstat(fd).st_size > size:
            os.ftruncate(fd, size)


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
        try:
            written = _write_once(fd, views[first : first + _AT_ONCE], offset)
        except OSError:
            with explained(_paths[fd]):  # only here, as it takes as long as a small write
                raise
        offset += written
        while first < len(views) and written >= len(views[first]):
            written -= len(views[first])
            first += 1
        if written:  # the disk took a part of a chunk
            views[first] = views[first][written:]


def _full_sync(fd: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone leaves data in the drive's cache
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOTTY, errno.EINVAL):  # a file system that has no such thing
                raise
    os.fsync(fd)


def sync_data(fd: int) -> None:
    """Make the content of a file durable, and its size where that changed."""
    with _syncing(_paths[fd]):
        os.fdatasync(fd) if hasattr(os, "fdatasync") else _full_sync(fd)


def sync(fd: int) -> None:
    """Make the content and all attributes of a file durable."""
    with _syncing(_paths[fd]):
        _full_sync(fd)


class _syncing(explained):
    """The same for a sync."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise SyncError(error.errno, f"a sync failed: {error.strerror}", self._path) from error


def open_folder(path: str) -> int:
    """Open a folder, to sync it later; to be closed by `close_read`."""
    with explained(path, "open this folder to sync it"):
        return _open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))


def sync_folder(path: str, fd: int | None = None) -> None:
    """Make the names in a folder durable; `fd` is that of `open_folder`, which stays open."""
    if not HAS_FOLDERS:
        return
    folder = open_folder(path) if fd is None else fd
    try:
        with _syncing(path):
            _full_sync(folder)
    except SyncError as error:
        if error.errno != errno.EINVAL:  # how a file system says that it has no sync for folders
            raise
    finally:
        if fd is None:
            close_read(folder)


def replace(source: str, target: str) -> None:
    """Give `target` the content of `source` in one step: the commit point."""
    with explained(target):
        os.replace(source, target)


def remove(folder: str, name: str) -> None:
    """Remove a file of the folder, or of a subfolder that is none of a link; one that is gone is fine."""
    parent, path = folder, os.path.join(folder, name)
    for part in name.split("/")[:-1]:
        parent = os.path.join(parent, part)
        if is_link(parent):
            return
    try:
        with explained(path, "remove this part of a map"):
            os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except DiskError as error:
        if error.errno != errno.EISDIR:  # a folder of that name is none of ours
            raise
    finally:  # also if the file was removed before, or an error says that it was not
        if parent != folder:
            remove_empty_folder(parent)


def remove_empty_folder(path: str) -> None:
    """Remove a folder if nothing is left in it."""
    try:
        os.rmdir(path)
    except OSError:
        return


_FICLONE: int | None = getattr(fcntl, "FICLONE", 0x40049409 if sys.platform == "linux" else None)
_READ_AT_ONCE = 1 << 20


def clone(source: int, fd: int) -> bool:
    """Let an empty file share the blocks of a whole other file, copy-on-write; False where that cannot be done.

    The copy has its own inode: what is written to one is never seen in the other. `copy_range` does the same work
    on every file system, and raises what stands in the way.
    """
    if _FICLONE is None:
        return False
    try:
        fcntl.ioctl(fd, _FICLONE, source)
    except OSError:
        return False
    return True


def copy_range(source: int, fd: int, at: int, size: int, path: str) -> None:
    """Copy bytes `[at, at + size)` of one file to the same place in another, inside the kernel where it can.

    `source` is a descriptor that was opened to read, `path` its file, `fd` one that was opened to write. A source that
    ends before that raises `MapCorruptError`.
    """
    end = at + size
    while at < end and (count := _copied_once(source, fd, at, end - at)):
        at += count
    buffer = memoryview(bytearray(min(_READ_AT_ONCE, end - at)))
    while at < end:
        part = buffer[: end - at]
        read_into(source, part, at, path)
        write_at(fd, [part], at)
        at += len(part)


# It has no such call, cannot do it for these two files, or a sandbox forbids it.
_CANNOT_COPY = {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}


def _copied_once(source: int, fd: int, at: int, size: int) -> int:
    """Copy some of the bytes without a way through this process; returns how many, 0 where the kernel does not."""
    if not hasattr(os, "copy_file_range"):
        return 0
    with explained(_paths[fd]):
        try:
            return os.copy_file_range(source, fd, size, at, at)
        except OSError as error:
            if error.errno in _CANNOT_COPY:
                return 0
            raise
