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
        self._zstd = _zstandard()
        if type(level) is not int:
            raise ArgumentTypeError(f"zstd_level is {level!r}, expected an integer")
        if not 1 <= level <= self._zstd.MAX_COMPRESSION_LEVEL:
            raise ArgumentError(f"zstd_level is {level}, expected 1 to {self._zstd.MAX_COMPRESSION_LEVEL}")
        self._level = level
        self._dictionary = None if dictionary is None else self._zstd.ZstdCompressionDict(dictionary)
        self._local = threading.local()  # a context must not be used by two threads at once

    def compress(self, sample: bytes) -> bytes:
        """One frame, which knows the size of its content."""
        return self._context("compressor", self._zstd.ZstdCompressor, level=self._level).compress(sample)  # type: ignore[no-any-return]

    def decompress(self, frame: memoryview, size: int | None) -> bytes:
        """The content of a frame: `size` bytes, or as many as the frame says where nobody has written that down."""
        try:
            found = self._zstd.frame_content_size(frame)
            if found < 0 or (size is not None and found != size):
                raise MapCorruptError(f"a zstd frame of {found} bytes, expected {size}")
            return self._context("decompressor", self._zstd.ZstdDecompressor).decompress(frame)  # type: ignore[no-any-return]
        except self._zstd.ZstdError as error:
            raise MapCorruptError(f"a sample cannot be decompressed: {error}") from None

    def raw_size(self, frame: memoryview) -> int:
        """The size of a frame's content in bytes, from its header."""
        return int(self._zstd.frame_content_size(frame))

    def _context(self, name: str, make: Any, **options: Any) -> Any:
        context = getattr(self._local, name, None)
        if context is None:
            context = make(dict_data=self._dictionary, **options)
            setattr(self._local, name, context)
        return context


def train_dictionary(size: int, samples: Sequence[bytes]) -> bytes:
    """A dictionary of at most `size` bytes from typical samples."""
    zstd = _zstandard()
    try:
        return bytes(zstd.train_dictionary(size, list(samples)).as_bytes())
    except zstd.ZstdError as error:
        what = f"no dictionary of {size} bytes can be trained on {len(samples)} samples"
        raise ArgumentError(f"{what}: {error}; give more samples at once") from None
