"""The headline: a pass over a folder of JPEG photographs, and over the same images in a map.

Speaks to the main job: photographs converted once and read back without decoding. Every pass but those marked
"views only" reads each pixel, from the JPEG files by Pillow. The page cache is warm for all. Disk counts whole
blocks; RAM is the anonymous memory that opening (for the list: loading) and one pass add to a fresh process.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

import mmap_ninja

from .harness import Report, arguments, disk_used, private_memory, scratch, stopwatch
from .passes import Questions, report_passes
from .photographs import PASSES, make_photographs, shuffled
from .workers import LIST, OLD, OURS

JPEG = "JPEG"
SUM, BRIGHTEST, VIEWS = PASSES
WAYS = {
    f"decode each JPEG (Pillow): {SUM}": (JPEG, SUM),
    f"mmap_ninja: {SUM}": (OURS, SUM),
    f"0.9.0: {SUM}": (OLD, SUM),
    f"list in memory: {SUM}": (LIST, SUM),
    f"mmap_ninja: {BRIGHTEST}": (OURS, BRIGHTEST),
    f"0.9.0: {BRIGHTEST}": (OLD, BRIGHTEST),
    f"list in memory: {BRIGHTEST}": (LIST, BRIGHTEST),
    f"mmap_ninja: {VIEWS}": (OURS, VIEWS),
    f"0.9.0: {VIEWS}": (OLD, VIEWS),
    f"list in memory: {VIEWS}": (LIST, VIEWS),
}


def bytes_on_disk(side: str, folder: str, count: int) -> int:
    """In a worker: writes what this side reads."""
    photographs = make_photographs(Path(folder) / "photos", count)
    if side == JPEG:
        return sum(path.stat().st_blocks * 512 for path in photographs.paths)
    if side == LIST:
        return 0
    mmap_ninja.RaggedMmap.from_generator(Path(folder) / side, photographs, batch_size=64)
    return disk_used(Path(folder) / side)


@cache
def opened(side: str, folder: str, count: int) -> Sequence[np.ndarray]:
    """In a worker: the images as this side keeps them."""
    if side in (JPEG, LIST):
        photographs = make_photographs(Path(folder) / "photos", count)
        return photographs if side == JPEG else list(photographs)
    return mmap_ninja.RaggedMmap(Path(folder) / side)


def seconds_a_pass(side: str, folder: str, count: int, what: str) -> float:
    """In a worker: one pass."""
    images, order = opened(side, folder, count), shuffled(count)
    with stopwatch() as elapsed:
        PASSES[what](images, order)
    return elapsed()


def private_bytes(side: str, folder: str, count: int) -> int:
    """In a fresh worker: what opening and one pass add to the memory."""
    make_photographs(Path(folder) / "photos", 1)[0]  # so that what the first image ever loads is there
    order = shuffled(count)
    before = private_memory()
    PASSES[SUM](opened(side, folder, count), order)
    return private_memory() - before


def main() -> None:
    args = arguments(__doc__, images=(1_200, 150))
    report = Report(args)
    with scratch(args) as folder:
        questions = Questions(bytes_on_disk, seconds_a_pass, private_bytes)
        report_passes(report, questions, WAYS, str(folder), args.images)
    report.finish()


if __name__ == "__main__":
    main()
