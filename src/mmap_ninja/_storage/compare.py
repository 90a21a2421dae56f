"""Compare a file with its checksums, also while it is written.

A block that equals a checksum that a manifest vouches for is right, whatever is committed afterwards. One that
differs is damaged only if nothing was committed between reading its checksum and reading the block; else the newest
checksum is fetched, and the block read again at once.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mmap_ninja._storage import disk
from mmap_ninja._storage.flatfile import BLOCK, complete_crcs, has_crcs, read_part
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.manifest import BUILDING, CAP, MANIFEST, File, Manifest
from mmap_ninja._storage.snapshot import find_finished, read_json
from mmap_ninja.errors import MapCorruptError, MmapNinjaError

PATIENCE = 1.0  # seconds for what goes on changing; a quarter of it for what is unchecked, which may be flushed soon
_PAUSE = 0.002  # seconds
_RENEWALS = 20

RIGHT, DIFFERS, UNVOUCHED, UNSURE = range(4)

Tick = Callable[[int], object]


def manifests(folder: str) -> list[bytes | None]:
    """What tells one state of a folder from the next; no state ever comes again."""
    found: list[bytes | None] = []
    for name in (MANIFEST, BUILDING):
        try:
            found.append(disk.read_small(os.path.join(folder, name), CAP))
        except (MmapNinjaError, NotADirectoryError):
            found.append(None)
    return found


class Replaced(Exception):
    """No manifest names the file any more, or it changes too fast for a look at it."""


class Comparison:
    """The blocks of one file that are not what its checksums say, sorted by why.

    `damaged` differ from what the manifest vouches for, `unvouched` differ while it vouches for nothing (values are
    being assigned), and `unsure` never held still. `file` is the newest entry of the manifest that was compared with.
    Raises `Replaced`; and as reading a file does, but only for what is so under the newest manifest.
    """

    _crcs: np.ndarray[Any, Any] | None  # None while they are being renewed

    def __init__(self, folder: str, keys: Keys, file: File, tick: Tick) -> None:
        self._folder, self._keys, self.file = folder, keys, file
        self._path, self.count = os.path.join(folder, file.name), -(-file.size // BLOCK)
        self._buffer, self._fd = np.empty(BLOCK, np.uint8).data, -1
        try:
            self._renew()
            found = self._settled(dict(self._first_look(tick)))
        finally:
            if self._fd >= 0:
                disk.close_read(self._fd)
        self.damaged, self.unvouched, self.unsure = (
            [number for number, verdict in sorted(found.items()) if verdict == kind]
            for kind in (DIFFERS, UNVOUCHED, UNSURE)
        )

    @property
    def has_crcs(self) -> bool:
        """Whether there are checksums to compare with; not while a flush renews them, or where one was interrupted."""
        return self._crcs is not None

    def _first_look(self, tick: Tick) -> Iterator[tuple[int, int]]:
        for number in range(self.count):
            verdict = self._look(number)
            if verdict != RIGHT:
                yield number, verdict
            tick(min(BLOCK, self.file.size - number * BLOCK))

    def _settled(self, doubted: dict[int, int]) -> dict[int, int]:
        """Look again at what is not certain, as long as the map goes on changing."""
        begin = time.monotonic()
        while not set(doubted.values()) <= {RIGHT, DIFFERS}:
            patience = PATIENCE if UNSURE in doubted.values() else PATIENCE / 4
            if time.monotonic() > begin + patience:
                break
            if UNSURE not in doubted.values() and self._is_newest():
                time.sleep(_PAUSE)
                continue
            uncertain = [number for number, verdict in doubted.items() if verdict in (UNVOUCHED, UNSURE)]
            doubted |= {number: self._look(number) for number in uncertain}
        return doubted

    def _look(self, number: int) -> int:
        """Compare a block, twice where something was committed meanwhile."""
        verdict = self._compared(number)
        if verdict != RIGHT and not self._is_newest():
            self._renew()
            verdict = self._compared(number)
            if verdict != RIGHT and not self._is_newest():
                return UNSURE
        return verdict

    def _compared(self, number: int) -> int:
        if self._crcs is None:
            return UNVOUCHED
        if number * BLOCK >= self.file.size:  # an older copy has taken its place
            return UNSURE
        part = self._buffer[: self.file.size - number * BLOCK]
        disk.read_into(self._fd, part, self.file.offset + number * BLOCK, self._path)
        expected = self._crcs[number] if number < len(self._crcs) else self.file.tail_crc
        if zlib.crc32(part) == expected:
            return RIGHT
        return DIFFERS if self.file.checked else UNVOUCHED

    def _is_newest(self) -> bool:
        return manifests(self._folder) == self._seen

    def _renew(self) -> None:
        """Fetch the newest entry of the manifest and its checksums."""
        for _ in range(_RENEWALS):
            self._seen = manifests(self._folder)
            try:
                self.file = self._newest()
                read_part(self._folder, self.file, self.file.end - 1, 1)  # it is there, and long enough
                if self._fd < 0:
                    self._fd, _ = disk.open_to_read(self._path)
                self._crcs = self._vouched()
                return
            except (MapCorruptError, FileNotFoundError):  # damaged, if it was not replaced between two of these reads
                if self._is_newest():
                    raise
        raise Replaced

    def _vouched(self) -> np.ndarray[Any, Any] | None:
        """The checksums; None where a flush has begun to renew them."""
        try:
            return complete_crcs(self._folder, self.file)
        except MapCorruptError:
            if self.file.checked:
                raise
        has_crcs(self._folder, self.file)  # raises where they are cut
        return None

    def _newest(self) -> File:
        finished = find_finished(self._folder, self._keys)
        found = self._entry(finished) or self._entry(read_json(self._folder, BUILDING))
        if found is None:
            raise Replaced
        return found

    def _entry(self, state: Manifest | None) -> File | None:
        files = () if state is None else state.files.values()
        return next((file for file in files if file.name == self.file.name), None)
