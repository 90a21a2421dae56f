"""Checking every byte of a map, against the same checksums of bytes that are in memory.

`verify` reads the files, takes the CRC-32 of each block of 1 MiB and compares every row of the index. `zlib.crc32` over
the same bytes in one piece of memory is what the checksums alone cost: nothing that compares them can be faster. The
page cache is warm; seconds are those of the one core that it uses.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import mmap_ninja

from .harness import Report, Size, Times, arguments, medians, scratch
from .samples import texts

REQUIRED = 1.0  # GB/s a core


def made(folder: Path, megabytes: int) -> Mapping[str, Path]:
    """A map of each kind, of about so many bytes."""
    rng, size = np.random.default_rng(1), megabytes * 10**6
    images = [rng.integers(0, 256, (100, 160, 3), np.uint8) for _ in range(50)]
    rows = [rng.integers(0, 2**15, length, np.int32) for length in rng.integers(150, 260, 2000)]
    mmap_ninja.DenseMmap.from_generator(folder / "dense", (images[i % 50] for i in range(size // 48_000)), 256)
    mmap_ninja.RaggedMmap.from_generator(folder / "rows", (rows[i % 2000] for i in range(size // 820)), 4096)
    sources = texts(2000, mean=1000)
    mmap_ninja.StringsMmap.from_generator(folder / "texts", (sources[i % 2000] for i in range(size // 1000)), 4096)
    return {
        "dense samples of 48 kB": folder / "dense",
        "token rows of 820 B": folder / "rows",
        "texts of 1 kB": folder / "texts",
    }


def cpu_seconds(work: Callable[[], object]) -> float:
    """What one call takes of a core."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def row(work: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Gigabytes a second of both."""
    raw = b"".join(path.read_bytes() for path in sorted(folder.glob("*.npy")))

    def verify() -> None:
        assert mmap_ninja.verify(folder) == []

    seconds = medians(
        {"verify": lambda: cpu_seconds(verify), "crc32": lambda: cpu_seconds(lambda: zlib.crc32(raw))}, rounds
    )
    rate = len(raw) / seconds["verify"] / 1e9
    return {
        "map": work,
        "bytes": Size(len(raw)),
        "verify": f"{rate:.2f} GB/s",
        "crc32 alone": f"{len(raw) / seconds['crc32'] / 1e9:.2f} GB/s",
        "ratio": Times(seconds["crc32"] / seconds["verify"]),
        "required": f"{REQUIRED:g} GB/s{'' if rate >= REQUIRED else '  MISSED'}",
    }


def main() -> None:
    args = arguments(__doc__, megabytes=(400, 20))
    report = Report(args)
    with scratch(args) as folder:
        maps = made(folder, args.megabytes)
        report.section("Every byte of a map", [row(work, path, args.rounds) for work, path in maps.items()])
    report.finish()


if __name__ == "__main__":
    main()
