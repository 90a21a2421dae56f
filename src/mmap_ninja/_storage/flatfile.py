"""What is in a file: a `.npy` header, values, and the CRC-32 of each complete block of them."""

from __future__ import annotations

import mmap
import os
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmap_ninja._storage import disk
from mmap_ninja._storage.disk import Buffer
from mmap_ninja._storage.manifest import File
from mmap_ninja.errors import MapCorruptError

BLOCK = 1 << 20  # bytes under one checksum

_LENGTH_DIGITS = 20  # as wide as the first axis can get, so that the header is rewritten in place
_MAP_OPTIONS = {"trackfd": False} if sys.version_info >= (3, 13) else {}


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
    """The committed bytes of one file, mapped read-only.

    `bytes` begins after the header, and slices of it are views. `whole` begins `offset` bytes before that, and its
    slices are copies: for small ones that are needed as `bytes` anyway, the fastest way. The size is checked
    first, so that no later access can run past the end of the file.
    """

    __slots__ = ("_map", "bytes", "offset", "whole")

    def __init__(self, folder: str, file: File) -> None:
        self._map, self.offset, self.bytes = None, file.offset, memoryview(b"")
        self.whole: mmap.mmap | bytes = b""
        if file.end == 0:  # nothing was committed; the file need not be there
            return
        path = f"{folder}/{file.name}"
        fd, size = disk.open_to_read(path)
        try:
            if size < file.end:
                raise MapCorruptError(f"{path} has {size} bytes, expected at least {file.end}")
            self._map = mmap.mmap(fd, file.end, access=mmap.ACCESS_READ, **_MAP_OPTIONS)
        except (OverflowError, ValueError) as error:
            raise MapCorruptError(f"{path} cannot be mapped: {error}") from error
        finally:
            os.close(fd)
        self.bytes, self.whole = memoryview(self._map)[file.offset :], self._map

    def will_need(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ask the kernel to read these ranges of bytes ahead; does nothing where it cannot be asked."""
        if self._map is None or not hasattr(self._map, "madvise"):
            return
        advice, page = mmap.MADV_WILLNEED, mmap.PAGESIZE
        for start, stop in ranges:
            first = (self.offset + start) // page * page
            self._map.madvise(advice, first, self.offset + stop - first)


def appended(file: File, chunks: Sequence[Buffer]) -> tuple[File, bytes]:
    """The file after the chunks were added, and the checksums of the blocks that they complete."""
    crc, room = file.tail_crc, BLOCK - file.size % BLOCK
    complete: list[int] = []
    for chunk in chunks:
        view = memoryview(chunk)
        while len(view) >= room:
            complete.append(zlib.crc32(view[:room], crc))
            view, crc, room = view[room:], 0, BLOCK
        crc = zlib.crc32(view, crc)
        room -= len(view)
    size = file.size + sum(map(len, chunks))
    return replace(file, size=size, tail_crc=crc), np.array(complete, "<u4").tobytes()


def complete_crcs(folder: str, file: File) -> np.ndarray[Any, Any]:
    """The recorded checksums of the complete blocks."""
    count = file.size // BLOCK
    if count == 0:
        return np.empty(0, "<u4")
    crcs = MappedFile(folder, File(file.crc_name, size=4 * count))
    return np.frombuffer(crcs.bytes, "<u4")


def check_blocks(folder: str, file: File) -> None:
    """Compare every byte of a file with its checksums; raises `MapCorruptError` at the first bad block."""
    values, expected = MappedFile(folder, file).bytes, complete_crcs(folder, file).tolist()
    if file.size % BLOCK:
        expected.append(file.tail_crc)
    for number, crc in enumerate(expected):
        found = zlib.crc32(values[number * BLOCK : (number + 1) * BLOCK])
        if found != crc:
            raise MapCorruptError(
                f"{os.path.join(folder, file.name)} is damaged in block {number} of {BLOCK} bytes: "
                f"checksum {found:08x}, expected {crc:08x}"
            )
