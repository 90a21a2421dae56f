"""What is stored: samples of each kind, the same ones in every process."""

from __future__ import annotations

import itertools
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

IMAGES = "images of 48 kB"
TOKENS = "token rows of 820 B"
TEXTS = "texts of 1 kB"
LONG_TEXTS = "texts of 1.8 kB"
DENSE = "dense samples of 1 kB"
SHORT = "rows of 16 B"


@cache
def make(kind: str, count: int) -> Sequence[Any]:
    """`count` samples of a kind, all in memory (those of `SHORT` are one object, many times)."""
    return MAKERS[kind](count)


def images(count: int) -> list[np.ndarray]:
    """Random `uint8` pixels, `(height, width, 3)`, heights of 96 to 160 and about 48 kB each."""
    random = np.random.default_rng(1)
    heights = random.integers(96, 161, count).tolist()
    return [random.integers(0, 256, (height, 128 * 128 // height, 3), dtype=np.uint8) for height in heights]


def token_rows(count: int) -> list[np.ndarray]:
    """Random `uint16` rows of 205 to 615 tokens, 820 bytes on average."""
    random = np.random.default_rng(2)
    lengths = random.integers(205, 616, count).tolist()
    return [random.integers(0, 50_000, length, dtype=np.uint16) for length in lengths]


def texts(count: int, mean: int = 1000) -> list[str]:
    """The standard library's sources, cut into pieces of `mean / 2` to `mean * 3 / 2` characters."""
    lengths = np.random.default_rng(3).integers(mean // 2, mean * 3 // 2 + 1, count).tolist()
    sources = itertools.cycle(standard_library())
    pieces: list[str] = []
    source, at = next(sources), 0
    for length in lengths:
        if at + length > len(source):
            source, at = next(source for source in sources if len(source) >= 2 * mean), 0
        pieces.append(source[at : at + length])
        at += length
    return pieces


def standard_library() -> Iterator[str]:
    """The text of each of Python's own modules."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="ignore")


def dense(count: int) -> list[np.ndarray]:
    """Random `float32` vectors of 256 numbers."""
    return list(np.random.default_rng(4).random((count, 256), dtype=np.float32))


def numbered(count: int) -> Iterator[np.ndarray]:
    """Random `uint8` images of 100 x 160 x 3, 48 kB each; the first 8 bytes of each are its number."""
    noise = np.random.default_rng(7).integers(0, 256, (64, 100, 160, 3), dtype=np.uint8)
    for number in range(count):
        image = noise[number % len(noise)] ^ np.uint8(number // len(noise) % 256)
        image.reshape(-1)[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
        yield image


def numbers_of(batch: np.ndarray) -> list[int]:
    """The numbers of such images."""
    return batch.reshape(len(batch), -1)[:, :8].copy().view("<i8")[:, 0].tolist()


def short_rows(count: int) -> list[np.ndarray]:
    """One row of 8 tokens `count` times: for maps of millions of samples, whose number is all that matters."""
    return [np.arange(8, dtype=np.uint16)] * count


MAKERS: dict[str, Callable[[int], Sequence[Any]]] = {
    IMAGES: images,
    TOKENS: token_rows,
    TEXTS: texts,
    LONG_TEXTS: lambda count: texts(count, mean=1800),
    DENSE: dense,
    SHORT: short_rows,
}
