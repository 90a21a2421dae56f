"""The bytes of one state of a map, copied from file to file and compared with their checksums on arrival."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType

import numpy as np

from mmap_ninja._storage import disk
from mmap_ninja._storage.check import ranges
from mmap_ninja._storage.commit import Opened
from mmap_ninja._storage.flatfile import BLOCK
from mmap_ninja._storage.manifest import File, Manifest
from mmap_ninja.errors import MapCorruptError

_PIECE = 4 * BLOCK
_AT_ONCE = 1 << 18  # bytes that are read back together: few enough to stay in a cache of the processor

Tick = Callable[[int], object]


class Sources(dict[str, tuple[int, int]]):
    """The descriptor and size of each file of a state, by its name; closed at the end of a `with` block."""

    def __init__(self, folder: str, state: Manifest) -> None:
        super().__init__()
        self.folder = folder
        try:
            for name in _names(folder, state):
                self[name] = disk.open_to_read(self.path(name))
        except FileNotFoundError as error:
            self.close()
            raise MapCorruptError(f"{error.filename} is missing, but {folder} names it") from error
        except BaseException:
            self.close()
            raise

    def path(self, name: str) -> str:
        """Where a file is."""
        return os.path.join(self.folder, name)

    def close(self) -> None:
        """Close all, also if Ctrl-C comes; a second call does nothing."""
        if self:
            try:
                disk.close_read(self.popitem()[1][0])
            finally:
                self.close()

    def __enter__(self) -> Sources:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _names(folder: str, state: Manifest) -> list[str]:
    """The files that make a state: those of format 1 that are there, of format 2 all that have bytes."""
    if state.format_1:
        return [name for name in state.format_1 if disk.exists(os.path.join(folder, name))]
    files = state.files.values()
    return [file.name for file in files if file.end] + [file.crc_name for file in files if file.size >= BLOCK]


def copy_file(sources: Sources, file: File, opened: Opened, tick: Tick) -> None:
    """Copy the committed bytes of one file and its checksums, which what has arrived must agree with."""
    (source, size), path = sources[file.name], sources.path(file.name)
    if size < file.end:
        raise MapCorruptError(f"{path} has {size} bytes, expected at least {file.end}")
    crcs = _crcs(sources, file)
    fd = opened.file(file.name, create=True)
    is_shared = disk.clone(source, fd)
    if is_shared:
        disk.cut(fd, file.end)
    else:
        disk.copy_range(source, fd, 0, file.offset, path)
    tail = [file.tail_crc] if file.size % BLOCK else []
    expected = np.concatenate([np.frombuffer(crcs, "<u4"), np.array(tail, "<u4")])
    bad: list[int] = []

    def work(start: int, stop: int) -> None:
        if not is_shared:
            disk.copy_range(source, fd, file.offset + start, stop - start, path)
        for at in range(start, stop, BLOCK) if file.checked else ():
            if _crc(fd, file.offset + at, min(BLOCK, stop - at), path) != expected[at // BLOCK]:
                bad.append(at // BLOCK)

    _in_two_threads(pieces(file.size, tick), work, alone=file.size <= _PIECE)
    if bad:
        what = f"damaged in {len(bad)} of {len(expected)} blocks of {BLOCK} bytes: {ranges(sorted(bad))}"
        raise MapCorruptError(f"{path} is {what}; nothing was copied: a damaged map is no backup")
    if crcs:
        disk.write_at(opened.file(file.crc_name, create=True), [crcs], 0)


def _crcs(sources: Sources, file: File) -> bytearray:
    """The recorded checksums of the complete blocks of a file."""
    raw = bytearray(4 * (file.size // BLOCK))
    if raw:
        path = sources.path(file.crc_name)
        disk.read_into(sources[file.crc_name][0], memoryview(raw), 0, path)
        if file.checked and zlib.crc32(raw) != file.blocks_crc:
            raise MapCorruptError(
                f"{path} is damaged: checksum {zlib.crc32(raw):08x}, expected {file.blocks_crc:08x}; nothing was copied"
            )
    return raw


def pieces(size: int, tick: Tick) -> Iterator[tuple[int, int]]:
    """Parts of so many bytes; `tick` hears of each."""
    for start in range(0, size, _PIECE):
        stop = min(start + _PIECE, size)
        tick(stop - start)
        yield start, stop


def _crc(fd: int, at: int, size: int, path: str) -> int:
    """The checksum of bytes that have been written, read a few at a time."""
    crc, buffer = 0, memoryview(bytearray(min(_AT_ONCE, size)))
    for start in range(at, at + size, _AT_ONCE):
        part = buffer[: at + size - start]
        disk.read_into(fd, part, start, path)
        crc = zlib.crc32(part, crc)
    return crc


def _in_two_threads(pieces: Iterator[tuple[int, int]], work: Callable[[int, int], None], *, alone: bool) -> None:
    """Do the work, piece by piece, here and in a second thread; neither goes on after an error of either."""
    errors: list[BaseException] = []
    taking = threading.Lock()

    def run() -> None:
        try:
            while not errors:
                with taking:
                    piece = next(pieces, None)
                if piece is None:
                    return
                work(*piece)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="mmap_ninja")
    if not alone:
        with suppress(RuntimeError):  # there may be no more threads
            thread.start()
    run()
    while thread.is_alive():  # whatever interrupts that: the descriptors are in use until then
        try:
            thread.join()
        except BaseException as error:
            errors.append(error)
    if errors:
        raise errors[0]
