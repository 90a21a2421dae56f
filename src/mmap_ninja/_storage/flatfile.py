"""What is in a file: a `.npy` header, values, and the CRC-32 of each complete block of them."""

from __future__ import annotations

import mmap
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from mmap_ninja._storage import disk
from mmap_ninja._storage.disk import Buffer
from mmap_ninja._storage.manifest import File
from mmap_ninja._storage.mappings import Mapping
from mmap_ninja.errors import MapCorruptError

BLOCK = 1 << 20  # bytes under one checksum

_LENGTH_DIGITS = 20  # as wide as the first axis can get, so that the header is rewritten in place
_MAP_OPTIONS = {"trackfd": False} if sys.version_info >= (3, 13) else {}
_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # else the kernel refuses what is larger than the memory


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """A `.npy` header whose length does not depend on the first axis: 128 bytes for all usual arrays.

    The layout is numpy's (NEP 1, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
    """
    descr = dtype.descr if dtype.names is not None else dtype.str
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    room = len(text) + _LENGTH_DIGITS - len(str(shape[0])) + 1
    prefix, length_bytes = (b"\x93NUMPY\x01\x00", 2) if room < 60_000 else (b"\x93NUMPY\x02\x00", 4)
    if not text.isascii():  # field names, of which only version 3 takes all
        prefix, length_bytes, room = b"\x93NUMPY\x03\x00", 4, room + len(text.encode()) - len(text)
    total = max(128, -(-(room + len(prefix) + length_bytes) // 64) * 64)
    body = total - len(prefix) - length_bytes
    return prefix + body.to_bytes(length_bytes, "little") + text.encode().ljust(body - 1) + b"\n"


class MappedFile:
    """The committed bytes of one file, mapped read-only, or privately: then they may be written to, in memory alone.

    `bytes` begins after the header, and slices of it are views. `whole` begins `offset` bytes before that, and its
    slices are copies: for small ones that are needed as `bytes` anyway, the fastest way. The size is checked
    first, so that no later access can run past the end of the file.
    """

    __slots__ = ("_map", "bytes", "offset", "whole")

    def __init__(self, folder: str, file: File, *, is_private: bool = False) -> None:
        self._map, self.offset, self.bytes = None, file.offset, memoryview(b"")
        self.whole: mmap.mmap | bytes = b""
        if file.end == 0:  # nothing was committed; the file need not be there
            return
        path = f"{folder}/{file.name}"
        fd, size = disk.open_to_read(path)
        try:
            if size < file.end:
                raise MapCorruptError(f"{path} has {size} bytes, expected at least {file.end}")
            with disk.explained(path, "map this part of a map"):
                self._map = Mapping(fd, file.end, **_access(is_private), **_MAP_OPTIONS)
                status = os.fstat(fd)
                self._map.file = status.st_dev, status.st_ino
        except (OverflowError, ValueError) as error:
            raise MapCorruptError(f"{path} cannot be mapped: {error}") from error
        finally:
            disk.close_read(fd)
        self.bytes, self.whole = memoryview(self._map)[file.offset :], self._map

    def will_need(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ask the kernel to read these ranges of bytes ahead; does nothing where it cannot be asked."""
        if self._map is None or not hasattr(self._map, "madvise"):
            return
        advice, page = mmap.MADV_WILLNEED, mmap.PAGESIZE
        for start, stop in ranges:
            start, stop = max(start, 0), min(stop, len(self.bytes))  # what a wrong index says is for the reader
            first = (self.offset + start) // page * page
            if start < stop:
                with suppress(OSError):  # it is a hint
                    self._map.madvise(advice, first, self.offset + stop - first)

    def expect(self, *, random: bool) -> None:
        """Tell the kernel whether to leave it at the pages that are asked for, or to read around each one."""
        if self._map is not None and hasattr(self._map, "madvise"):
            with suppress(OSError):  # it is a hint
                self._map.madvise(mmap.MADV_RANDOM if random else mmap.MADV_NORMAL)


def _access(is_private: bool) -> dict[str, int]:
    """How to map a file."""
    if not is_private:
        return {"access": mmap.ACCESS_READ}
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return {"access": mmap.ACCESS_COPY}
    return {"flags": mmap.MAP_PRIVATE | _NORESERVE, "prot": mmap.PROT_READ | mmap.PROT_WRITE}


class Growing:
    """A file to which chunks are added, one after another: `end` is where the next byte goes."""

    __slots__ = ("_complete", "_crc", "_file", "_room", "end")

    def __init__(self, file: File) -> None:
        self._file, self.end = file, file.end
        self._crc, self._room = file.tail_crc, BLOCK - file.size % BLOCK
        self._complete: list[int] = []

    def add(self, chunk: Buffer) -> None:
        """Take a chunk into the checksums."""
        view = memoryview(chunk)
        self.end += len(view)
        while len(view) >= self._room:
            self._complete.append(zlib.crc32(view[: self._room], self._crc))
            view, self._crc, self._room = view[self._room :], 0, BLOCK
        self._crc = zlib.crc32(view, self._crc)
        self._room -= len(view)

    def done(self) -> tuple[File, bytes]:
        """The file with all chunks, and the checksums of the blocks that they complete."""
        file, crcs = self._file, np.array(self._complete, "<u4").tobytes()
        blocks_crc = zlib.crc32(crcs, file.blocks_crc)
        return replace(file, size=self.end - file.offset, tail_crc=self._crc, blocks_crc=blocks_crc), crcs


def appended(file: File, chunks: Iterable[Buffer]) -> tuple[File, bytes]:
    """The file after the chunks were added, and the checksums of the blocks that they complete."""
    growing = Growing(file)
    for chunk in chunks:
        growing.add(chunk)
    return growing.done()


def read_part(folder: str, file: File, start: int, size: int) -> bytes:
    """Bytes of a file, counted from its first one, read without a mapping."""
    if size == 0:
        return b""
    path = f"{folder}/{file.name}"
    fd, found = disk.open_to_read(path)
    try:
        if found < start + size:  # before anything is allocated
            raise MapCorruptError(f"{path} has {found} bytes, expected at least {start + size}")
        raw = bytearray(size)
        disk.read_into(fd, memoryview(raw), start, path)
    finally:
        disk.close_read(fd)
    return bytes(raw)


def _raw_crcs(folder: str, file: File) -> bytes:
    return read_part(folder, File(file.crc_name), 0, 4 * (file.size // BLOCK))


def has_crcs(folder: str, file: File) -> bool:
    """Whether the recorded checksums are those that the manifest vouches for."""
    return zlib.crc32(_raw_crcs(folder, file)) == file.blocks_crc


def complete_crcs(folder: str, file: File) -> np.ndarray[Any, Any]:
    """The recorded checksums of the complete blocks, if they are those that the manifest vouches for."""
    raw = _raw_crcs(folder, file)
    if zlib.crc32(raw) != file.blocks_crc:
        raise MapCorruptError(
            f"{os.path.join(folder, file.crc_name)} is damaged: checksum {zlib.crc32(raw):08x}, "
            f"expected {file.blocks_crc:08x}"
        )
    return np.frombuffer(raw, "<u4") if raw else np.empty(0, "<u4")


def bad_blocks(folder: str, file: File, tick: Callable[[int], object] = id) -> Iterator[tuple[int, int, int]]:
    """The number, the checksum found and the one expected of each block whose bytes are not those that were written.

    Reads the file instead of mapping it, so that a device that fails is a `DiskError`, not a signal; `tick` hears of
    each number of bytes that was read. Raises `MapCorruptError` where the file or its checksums are cut or damaged.
    """
    expected = [*complete_crcs(folder, file).tolist(), *([file.tail_crc] if file.size % BLOCK else [])]
    if not expected:
        return
    path, buffer = f"{folder}/{file.name}", memoryview(bytearray(min(BLOCK, file.size)))
    fd, _ = disk.open_to_read(path)
    try:
        for number, crc in enumerate(expected):
            part = buffer[: file.size - number * BLOCK]
            disk.read_into(fd, part, file.offset + number * BLOCK, path)
            found = zlib.crc32(part)
            if found != crc:
                yield number, found, crc
            tick(len(part))
    finally:
        disk.close_read(fd)


def check_blocks(folder: str, file: File) -> None:
    """Compare every byte of a file with its checksums; raises `MapCorruptError` at the first bad block."""
    for number, found, expected in bad_blocks(folder, file):
        raise MapCorruptError(
            f"{os.path.join(folder, file.name)} is damaged in block {number} of {BLOCK} bytes: "
            f"checksum {found:08x}, expected {expected:08x}"
        )
