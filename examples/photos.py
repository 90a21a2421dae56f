"""Converts a folder of JPEG photographs once, then reads them back without ever decoding one again.

Run it from anywhere: `python examples/photos.py`. The first run makes the photographs, 1,200 cut from two real ones;
each run converts them, checks every image that it reads back, and prints what a pass over all of them costs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmap_ninja import RaggedMmap

# The photographs and the table are shared with the benchmarks.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import Seconds, Size, Times, disk_used, print_table, private_memory
from benchmarks.photographs import find_brightest, make_photographs, make_views, shuffled, sum_pixels

BUILD = Path(__file__).resolve().parents[1] / "build"
Pass = Callable[[Sequence[np.ndarray], Sequence[int]], int]


def main() -> None:
    parser = argparse.ArgumentParser(description="Photographs as JPEG files, and as a map.")
    parser.add_argument("--folder", type=Path, default=BUILD / "photos", help="where all of it goes")
    parser.add_argument("--count", type=int, default=1200, help="how many photographs (1200)")
    args = parser.parse_args()

    print(f"Making {args.count:,} photographs, where they are not there yet ...")
    photographs = make_photographs(args.folder / "jpeg", args.count)

    print("Converting them into a map, once:")
    RaggedMmap.from_generator(args.folder / "map", photographs, batch_size=64, verbose=True)

    memory = private_memory()
    images = RaggedMmap(args.folder / "map")
    check(images, photographs)
    map_memory = private_memory() - memory

    in_memory = [image.copy() for image in images]
    list_memory = sum(image.nbytes for image in in_memory)
    jpeg_disk, map_disk = disk_used(args.folder / "jpeg"), disk_used(args.folder / "map")
    print_passes(
        ("decode every JPEG with Pillow, sum the pixels", photographs, sum_pixels, jpeg_disk, 0),
        ("map: sum the pixels", images, sum_pixels, map_disk, map_memory),
        ("list in memory: sum the pixels", in_memory, sum_pixels, 0, list_memory),
        ("map: find each image's brightest pixel", images, find_brightest, map_disk, map_memory),
        ("list in memory: the same", in_memory, find_brightest, 0, list_memory),
        ("map: make the arrays, read no pixel", images, make_views, map_disk, map_memory),
    )


def check(images: Sequence[np.ndarray], photographs: Sequence[np.ndarray]) -> None:
    """Every image that the map gives has to equal what its JPEG file decodes to."""
    assert len(images) == len(photographs)
    for i, photograph in enumerate(photographs):
        assert np.array_equal(images[i], photograph), f"image {i} is not what {photographs.paths[i]} holds"
    print(f"All {len(images):,} images read back equal to their decoded JPEG files.")


def print_passes(*rows: tuple[str, Sequence[np.ndarray], Pass, int, int]) -> None:
    """Times three passes in shuffled order for each row, and prints the median."""
    table: list[list[Any]] = []
    for way, images, one_pass, disk, memory in rows:
        seconds = statistics.median(timed(one_pass, images) for _ in range(3))
        table.append([way, Seconds(seconds), Seconds(seconds / len(images)), seconds, Size(disk), Size(memory)])
    slowest = table[0][3]
    for row in table:
        row[3] = Times(slowest / row[3])
    print()
    print_table(
        ["one pass over all images", "time", "an image", "times faster", "disk", "RAM kept"],
        [[str(cell) for cell in row] for row in table],
    )


def timed(one_pass: Pass, images: Sequence[np.ndarray]) -> float:
    """Seconds of one pass."""
    order = shuffled(len(images))
    started = time.perf_counter()
    one_pass(images, order)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
