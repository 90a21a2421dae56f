"""The mark of a folder that a backup is being made in: which files it will have, so that a killed one can be swept.

The mark is durable before the first of those files is made, and goes when the copy is published.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from mmap_ninja._storage import disk
from mmap_ninja._storage.lock import LOCK, Lock
from mmap_ninja._storage.manifest import CAP
from mmap_ninja.errors import MapChangedError, MapCorruptError, MapPermissionError

MARK = ".backup"
_START = b"This backup is not finished: make it again, or remove this folder. Its files:\n"


def mark(lock: Lock, names: Sequence[str]) -> None:
    """Name the files that will be made, durably; the first one is that which makes them a map."""
    fd = disk.create_temporary(lock.path(MARK))
    try:
        disk.write_at(fd, [_START, os.fsencode("\n".join(names))], 0)
        disk.sync(fd)
    finally:
        disk.close(fd)
    disk.sync_folder(lock.folder)


def unmark(lock: Lock) -> None:
    """Let the files stay."""
    lock.check()
    disk.remove(lock.folder, MARK)


def marked(folder: str) -> tuple[str, ...] | None:
    """The files that the mark names; None where there is no mark of ours."""
    try:
        raw = disk.read_small(os.path.join(folder, MARK), CAP)
    except (MapCorruptError, MapPermissionError, FileNotFoundError, NotADirectoryError):
        return None
    if not any(raw) or _START.startswith(raw):  # a power cut came before anything else was made
        return ()
    if not raw.startswith(_START):
        return None
    return tuple(name for name in os.fsdecode(raw[len(_START) :]).split("\n") if _is_inside(name))


def _is_inside(name: str) -> bool:
    """Whether this is the name of a file in the folder or below it, whoever has written the mark."""
    parts = name.replace(os.sep, "/").split("/")
    return "\0" not in name and not os.path.splitdrive(name)[0] and not {"", ".", ".."}.intersection(parts)


def sweep(lock: Lock) -> None:
    """Remove what a killed backup has left; one that was published stays."""
    folder, path = lock.folder, os.path.join(lock.folder, MARK)
    names = marked(folder) if disk.exists(path) else None  # each writer looks: most find none
    if names is None:
        return
    if not names or not disk.exists(os.path.join(folder, names[0])):
        remove(lock, names)
    unmark(lock)


def remove(lock: Lock, names: Sequence[str]) -> None:
    """Remove the files of a copy, that which makes it a map first."""
    folder = lock.folder
    for name in names:
        lock.check()
        disk.remove(folder, name)
    inner = {name[:at] for name in names for at, character in enumerate(name) if character == "/"}
    for name in sorted(inner, reverse=True):  # those that nothing was put into yet
        if not any(disk.is_link(os.path.join(folder, part)) for part in inner if f"{name}/".startswith(f"{part}/")):
            disk.remove_empty_folder(os.path.join(folder, name))


def undo(lock: Lock, *, is_new: bool) -> None:
    """Remove what a failed backup has made, as far as that can be done; the folder too if that `is_new`."""
    with suppress(OSError, MapChangedError):  # the error that led here is the one to hear of
        names = marked(lock.folder)
        if names is not None:
            remove(lock, names)
            unmark(lock)
        if is_new:
            lock.check()
            try:
                disk.remove(lock.folder, LOCK)
                disk.remove_empty_folder(lock.folder)
            finally:
                lock.release()  # of a file that is gone, perhaps also where an error says that it is not
