"""What can be mended without a guess: leftovers of interrupted writers, and headers that say what the manifest does."""

from __future__ import annotations

import os

from mmap_ninja._storage import disk
from mmap_ninja._storage.build import settle
from mmap_ninja._storage.commit import Opened, remove_files, write_headers
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.lock import Lock
from mmap_ninja._storage.manifest import BUILDING, MANIFEST, NEXT, PREFIX
from mmap_ninja._storage.snapshot import find_finished


def repair(folder: str, keys: Keys, timeout: float) -> None:
    """Do what the next writer would do. Raises `MapLockedError`, `DiskError`, `MapPermissionError`."""
    with Lock(folder, timeout):
        settle(folder, keys)
        state = find_finished(folder, keys)
        for name in (MANIFEST + NEXT, BUILDING + NEXT):
            path = os.path.join(folder, name)
            if os.path.lexists(path):
                disk.close(disk.create_temporary(path, PREFIX))  # refuses one that is not ours
                disk.remove(folder, name)
        if state is None or state.format_1:
            return
        remove_files(folder, state.obsolete)
        with Opened() as opened:
            for file in state.files.values():
                opened.file(folder, file.name)
            write_headers(state, state.files, opened)
