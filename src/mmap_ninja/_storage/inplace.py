"""Values assigned in place: written at once, their checksums renewed at the end."""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from types import MappingProxyType

from mmap_ninja._storage import disk
from mmap_ninja._storage.flatfile import BLOCK, MappedFile
from mmap_ninja._storage.manifest import DATA, File
from mmap_ninja._storage.writer import Writer


def mark_unchecked(writer: Writer) -> None:
    """Commit that the data may differ from its checksums, before the first byte of it changes."""
    file = replace(writer.state.files[DATA], checked=False)
    writer.change(files=MappingProxyType({**writer.state.files, DATA: file}))


class InPlace:
    """The assignments of one handle, from the first one until `finish`."""

    def __init__(self, writer: Writer) -> None:
        file = writer.state.files[DATA]
        self._may_check = file.checked
        mark_unchecked(writer)
        self._generation, self._file = writer.state.generation, file
        self._path, self._owner = os.path.join(writer.folder, file.name), os.getpid()
        self._blocks: set[int] = set()
        self._fd = disk.open_to_write(self._path)

    def write(self, at: int, raw: memoryview) -> None:
        """Overwrite bytes of the data, `at` bytes from its first value."""
        self._blocks.update(range(at // BLOCK, (at + len(raw) - 1) // BLOCK + 1))
        disk.write_at(self._fd, [raw], self._file.offset + at)

    def finish(self, writer: Writer) -> None:
        """Make the values durable and renew the checksums of the blocks that they lie in.

        If anybody else has changed the map meanwhile, it stays marked as not checksummed: their assignments would
        be vouched for unseen.
        """
        disk.sync_data(self._fd)
        if self._may_check and writer.state.generation == self._generation and os.getpid() == self._owner:
            file = self._renewed(writer.folder)
            writer.change(files=MappingProxyType({**writer.state.files, DATA: file}))

    def _renewed(self, folder: str) -> File:
        file, values = self._file, MappedFile(folder, self._file).bytes
        crcs = {block: zlib.crc32(values[block * BLOCK : (block + 1) * BLOCK]) for block in self._blocks}
        tail = file.size // BLOCK
        file = replace(file, tail_crc=crcs.pop(tail, file.tail_crc))
        if crcs:
            fd = disk.open_to_write(os.path.join(folder, file.crc_name))
            try:
                for block, crc in sorted(crcs.items()):
                    disk.write_at(fd, [crc.to_bytes(4, "little")], 4 * block)
                disk.sync_data(fd)
            finally:
                disk.close(fd)
        return file

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            disk.close(self._fd)
