"""What can be mended without a guess: leftovers, headers; and checksums of values that the user vouches for."""

from __future__ import annotations

from types import MappingProxyType

from mmap_ninja._storage import disk
from mmap_ninja._storage.commit import Opened, checksum, remove_files, write_headers
from mmap_ninja._storage.flatfile import MappedFile
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.lock import Lock
from mmap_ninja._storage.manifest import BUILDING, MANIFEST, NEXT
from mmap_ninja._storage.snapshot import find_finished
from mmap_ninja._storage.unfinished import is_ours, is_unreadable, settle
from mmap_ninja._storage.writer import Writer


def accept(folder: str, keys: Keys, timeout: float) -> None:
    """Take values that were assigned in place as they are now: make them durable, then checksum them anew.

    Raises as `repair` does. A map of format 1 has no checksums, and gets none.
    """
    with Lock(folder, timeout):
        state = find_finished(folder, keys)
        if state is None or state.format_1:
            return
        files = dict(state.files)
        with Opened() as opened:
            for role, file in state.files.items():
                if not file.checked:
                    disk.sync_data(opened.file(folder, file.name))
                    files[role] = checksum(folder, file, MappedFile(folder, file).bytes)
        if files != state.files:
            Writer(folder, state).change(files=MappingProxyType(files))


def repair(folder: str, keys: Keys, timeout: float) -> None:
    """Do what the next writer would do. Raises `MapLockedError`, `DiskError`, `MapPermissionError`."""
    with Lock(folder, timeout):
        settle(folder, keys)
        state = find_finished(folder, keys)
        for name in (MANIFEST + NEXT, BUILDING + NEXT):
            if is_ours(folder, name):
                disk.remove(folder, name)
        if state is not None and is_unreadable(folder):
            disk.remove(folder, BUILDING)
        if state is None or state.format_1:
            return
        remove_files(folder, state.obsolete)
        with Opened() as opened:
            for file in state.files.values():
                opened.file(folder, file.name)
            write_headers(state, state.files, opened)
