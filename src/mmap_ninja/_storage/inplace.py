"""Values assigned in place: written at once, their checksums renewed at the end."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from mmap_ninja._storage import disk
from mmap_ninja._storage.commit import Opened
from mmap_ninja._storage.flatfile import BLOCK, MappedFile, complete_crcs
from mmap_ninja._storage.lock import Lock
from mmap_ninja._storage.manifest import DATA, File
from mmap_ninja._storage.writer import Writer
from mmap_ninja.errors import MapChangedError


def mark_unchecked(writer: Writer) -> None:
    """Commit that the data may differ from its checksums, before the first byte of it changes."""
    file = replace(writer.state.files[DATA], checked=False)
    writer.change(files=MappingProxyType({**writer.state.files, DATA: file}))


class InPlace:
    """The assignments of one handle, from the first one until `finish`."""

    def __init__(self, writer: Writer) -> None:
        file = writer.state.files[DATA]
        self._may_check, self._path = file.checked, writer.lock.path(file.name)
        self._fd = disk.open_to_write(self._path)
        self._identity = disk.identity(self._fd)
        mark_unchecked(writer)  # the last thing that can fail before a byte is written
        self._state, self._file = (writer.state.id, writer.state.generation), file
        self._owner = os.getpid()
        self._blocks: set[int] = set()
        self._crcs: np.ndarray[Any, Any] | None = None  # of the complete blocks, as they were

    def write(self, at: int, raw: bytes) -> None:
        """Overwrite bytes of the data, `at` bytes from its first value."""
        self._blocks.update(range(at // BLOCK, (at + len(raw) - 1) // BLOCK + 1))
        disk.write_at(self._fd, [raw], self._file.offset + at)

    def finish(self, writer: Writer) -> None:
        """Make the values durable and renew the checksums of the blocks that they lie in.

        If anybody else has changed the map meanwhile, it stays marked as not checksummed: their assignments would
        be vouched for unseen.
        """
        found, file, name = writer.found, writer.state.files[DATA], self._file.name
        if file.name != name:  # taken apart from a hard link, or copied because a sync of another handle has failed
            is_there = not found.lost and writer.lock.copied.get(name) == self._identity
        else:
            is_there = disk.is_at(self._identity, self._path)
        if not is_there:
            raise MapChangedError(
                f"{self._path} has been replaced, and with it what was assigned: refresh, and assign to the map that "
                "is there now"
            )
        disk.sync_data(self._fd)
        if self._may_check and (found.id, found.generation) == self._state and self.is_own():
            file = self._renewed(writer.lock, replace(file, checked=True))
            writer.change(files=MappingProxyType({**writer.state.files, DATA: file}))
        elif writer.state.files[DATA].checked:  # somebody has vouched for it meanwhile
            mark_unchecked(writer)

    def _renewed(self, lock: Lock, file: File) -> File:
        values = MappedFile(lock.folder, file).bytes
        crcs = {block: zlib.crc32(values[block * BLOCK : (block + 1) * BLOCK]) for block in self._blocks}
        tail = file.size // BLOCK
        file = replace(file, tail_crc=crcs.pop(tail, file.tail_crc))
        if crcs:
            if self._crcs is None:  # once: where the commit fails, they are renewed already when it is done again
                self._crcs = complete_crcs(lock.folder, file).copy()
            self._crcs[list(crcs)] = list(crcs.values())
            file = replace(file, blocks_crc=zlib.crc32(self._crcs.tobytes()))
            with Opened(lock) as opened:
                for block, crc in sorted(crcs.items()):
                    disk.write_at(opened.file(file.crc_name), [crc.to_bytes(4, "little")], 4 * block)
                opened.sync()
        return file

    def is_shared(self) -> bool:
        """True if the file got a second name, a hard link, since the first assignment."""
        return disk.has_links(self._fd)

    def is_own(self) -> bool:
        """Whether this process has made the assignments, and not the one that it was forked from."""
        return os.getpid() == self._owner

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):  # what counts was synced, or somebody has heard that it was not
                disk.close(fd)

    def __del__(self, is_over: Callable[[], bool] = sys.is_finalizing) -> None:
        if hasattr(self, "_fd") and not is_over():  # then the names of this module may be gone, and the file is closed
            self.close()
