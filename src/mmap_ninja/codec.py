"""Compression of single samples: each is a zstd frame of its own, with a common dictionary if one was trained."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from mmap_ninja.errors import ArgumentError, ArgumentTypeError, MapCorruptError, MissingExtraError


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError("compressed maps need zstandard: pip install mmap-ninja[zstd]") from None
    return zstandard


class Zstd:
    """Compresses and decompresses samples; safe to use from many threads."""

    def __init__(self, level: int, dictionary: bytes | None = None) -> None:
        self._zstd, self._level = _zstandard(), level
        self._dictionary = None if dictionary is None else self._zstd.ZstdCompressionDict(dictionary)
        self._local = threading.local()  # a context must not be used by two threads at once

    def compress(self, sample: bytes) -> bytes:
        """One frame, which knows the size of its content."""
        try:
            return self._context("compressor", self._zstd.ZstdCompressor, level=self._level).compress(sample)  # type: ignore[no-any-return]
        except self._zstd.ZstdError as error:
            raise MapCorruptError(f"the dictionary of the map cannot be used: {error}") from None

    def decompress(self, frame: memoryview, size: int | None) -> bytes:
        """The content of a frame: `size` bytes, or as many as the frame says where nobody has written that down."""
        found = content_size(frame)
        if size is not None and found != size:
            raise MapCorruptError(f"a zstd frame of {found} bytes, expected {size}")
        try:
            return self._context("decompressor", self._zstd.ZstdDecompressor).decompress(frame)  # type: ignore[no-any-return]
        except self._zstd.ZstdError as error:
            raise MapCorruptError(f"a sample cannot be decompressed: {error}") from None

    def _context(self, name: str, make: Any, **options: Any) -> Any:
        context = getattr(self._local, name, None)
        if context is None:
            context = make(dict_data=self._dictionary, **options)
            setattr(self._local, name, context)
        return context


def check_level(level: Any) -> int:
    """Refuse a level that zstd does not have, and say if zstandard is missing."""
    most = _zstandard().MAX_COMPRESSION_LEVEL
    if type(level) is not int:
        raise ArgumentTypeError(f"zstd_level is {level!r}, expected an integer")
    if not 1 <= level <= most:
        raise ArgumentError(f"zstd_level is {level}, expected 1 to {most}")
    return level


def content_size(frame: memoryview) -> int:
    """How many bytes the content of a frame has, from its header; raises `MapCorruptError` for what cannot be true.

    A block takes at least 4 bytes and holds at most 128 KiB (RFC 8878, 3.1.1.2.4), so that a few bytes cannot claim
    a gigabyte, which would be allocated before anybody looks at them.
    """
    zstd = _zstandard()
    try:
        size = int(zstd.frame_content_size(frame))
    except zstd.ZstdError as error:
        raise MapCorruptError(f"a sample is no zstd frame: {error}") from None
    most = (len(frame) // 4 + 1) << 17
    if not 0 <= size <= most:
        raise MapCorruptError(f"a zstd frame of {len(frame)} bytes says that it holds {size}, expected 0 to {most}")
    return size


def train_dictionary(size: int, samples: Sequence[bytes]) -> bytes:
    """A dictionary of at most `size` bytes from typical samples."""
    zstd = _zstandard()
    try:
        return bytes(zstd.train_dictionary(size, list(samples)).as_bytes())
    except zstd.ZstdError as error:
        what = f"no dictionary of {size} bytes can be trained on {len(samples)} samples"
        raise ArgumentError(f"{what}: {error}; give more samples at once") from None
