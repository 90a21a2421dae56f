"""What can be mended without a guess: leftovers, headers; and checksums of values that the user vouches for."""

from __future__ import annotations

from types import MappingProxyType

from mmap_ninja._storage import disk
from mmap_ninja._storage.commit import Opened, checksum, remove_files, write_headers
from mmap_ninja._storage.flatfile import MappedFile
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.lock import Lock
from mmap_ninja._storage.manifest import BUILDING
from mmap_ninja._storage.renew import taken_apart
from mmap_ninja._storage.snapshot import find_finished
from mmap_ninja._storage.unfinished import is_unreadable, settle
from mmap_ninja._storage.writer import Writer


def accept(folder: str, keys: Keys, timeout: float) -> None:
    """Take values that were assigned in place as they are now: make them durable, then checksum them anew.

    Raises as `repair` does. A map of format 1 has no checksums, and gets none.
    """
    with Lock(folder, timeout) as lock:
        state = find_finished(folder, keys)
        if state is None or state.format_1:
            return
        state = taken_apart(lock, state)
        files = dict(state.files)
        with Opened(lock) as opened:
            for role, file in state.files.items():
                if not file.checked:
                    disk.sync_data(opened.file(file.name))
                    files[role] = checksum(lock, file, MappedFile(folder, file).bytes)
        if files != state.files:
            Writer(lock, state).change(files=MappingProxyType(files))


def repair(folder: str, keys: Keys, timeout: float) -> None:
    """Do what the next writer would do. Raises `MapLockedError`, `DiskError`, `MapPermissionError`."""
    with Lock(folder, timeout) as lock:
        settle(lock, keys)
        state = find_finished(folder, keys)
        if state is not None and is_unreadable(folder):
            remove_files(lock, [BUILDING])
        if state is None or state.format_1:
            return
        remove_files(lock, state.obsolete)
        state = taken_apart(lock, state)
        with Opened(lock) as opened:
            for file in state.files.values():
                opened.file(file.name)
            write_headers(state, state.files, opened)
