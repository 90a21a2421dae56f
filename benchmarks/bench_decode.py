"""Decoding photographs for training: JPEG bytes in a map and threads, against a folder of files and worker processes.

Both sides decode the same real photographs with Pillow, in shuffled order, and keep the middle 200 x 200 pixels, so
that 64 of them stack. Ours are the bytes of the files in a `BytesMmap`, the function is the `transform` of `Batches`.
The other side is a `torch.utils.data.DataLoader` over the folder, with its default collate and with workers that stay
from epoch to epoch. A plain loop over the files, which makes no batches, is what both are compared with. The page
cache is warm; the consumer adds up all pixels. For information: there is no target.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mmap_ninja

from .harness import Report, Seconds, Times, arguments, medians, scratch, stopwatch
from .photographs import make_photographs, shuffled
from .workers import OURS, Worker, started

BATCH, SIDE = 64, 200
LOOP, TORCH = "files", "torch"
NOT_THERE = "torch is not installed"
WAYS = {  # label: (process, threads or workers)
    "files, one after the other": (LOOP, 1),
    "Batches, 1 thread": (OURS, 1),
    "Batches, 2 threads": (OURS, 2),
    "DataLoader, no worker": (TORCH, 0),
    "DataLoader, 1 worker": (TORCH, 1),
    "DataLoader, 2 workers": (TORCH, 2),
}

Epoch = Callable[[], Iterable[np.ndarray]]


def decoded(file: Any) -> np.ndarray:
    """The middle of a photograph, from its path or an open file: `uint8` of shape `(200, 200, 3)`."""
    with Image.open(file) as image:
        pixels = np.asarray(image)
    top, left = (pixels.shape[0] - SIDE) // 2, (pixels.shape[1] - SIDE) // 2
    return pixels[top : top + SIDE, left : left + SIDE].copy()


def from_bytes(stored: bytes) -> np.ndarray:
    """The same from the bytes of a file."""
    return decoded(BytesIO(stored))


def of_files(paths: list[Path], count: int) -> Epoch:
    """A plain loop, without batches."""

    def epoch() -> Iterator[np.ndarray]:
        return (decoded(paths[i]) for i in shuffled(len(paths)))

    return epoch


def of_map(paths: list[Path], count: int) -> Epoch:
    """`Batches` with so many threads."""
    folder = paths[0].parent.with_name("photos-map")
    if not folder.exists():
        mmap_ninja.BytesMmap.from_generator(folder, (path.read_bytes() for path in paths), BATCH)
    stored = mmap_ninja.BytesMmap(folder)
    batches = mmap_ninja.Batches(stored, BATCH, shuffle=True, layout="stack", transform=from_bytes, threads=count)
    return lambda: batches


class Files:
    """What a `DataLoader` wants: `files[i]` is one image as a tensor."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> Any:
        import torch

        return torch.from_numpy(decoded(self._paths[i]))


def of_torch(paths: list[Path], count: int) -> Epoch:
    """A `DataLoader` with so many workers."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)  # they only stack, and would be in the way of the decoding
    loader = DataLoader(Files(paths), BATCH, shuffle=True, num_workers=count, persistent_workers=count > 0)
    return lambda: (batch.numpy() for batch in loader)


SIDES = {LOOP: of_files, OURS: of_map, TORCH: of_torch}


@cache
def epoch_of(side: str, folder: str, images: int, count: int) -> Epoch:
    return SIDES[side](make_photographs(Path(folder) / "photos", images).paths, count)


def seconds_an_epoch(side: str, folder: str, images: int, count: int) -> tuple[float, int]:
    """In a worker: one epoch, and the sum of all pixels."""
    epoch = epoch_of(side, folder, images, count)
    with stopwatch() as elapsed:
        total = sum(int(batch.sum(dtype=np.uint32)) for batch in epoch())
    return elapsed(), total


def measured(workers: dict[str, Worker], folder: str, images: int, rounds: int) -> dict[str, float]:
    """Seconds an epoch of each way, all of which see the same pixels."""
    totals = set()

    def one(side: str, count: int) -> float:
        seconds, total = workers[side](seconds_an_epoch, side, folder, images, count)
        totals.add(total)
        assert len(totals) == 1, f"{side} has read other pixels than the others"
        return seconds

    return medians({label: partial(one, *way) for label, way in WAYS.items() if way[0] in workers}, rounds)


def main() -> None:
    args = arguments(__doc__, images=(1_200, 150))
    report = Report(args)
    sides = [side for side in SIDES if side != TORCH or find_spec(TORCH)]
    with scratch(args) as folder, started(*sides) as workers:
        seconds = measured({worker.name: worker for worker in workers}, str(folder), args.images, args.rounds)
    first = next(iter(seconds.values()))
    rows = []
    for label in WAYS:
        if label in seconds:
            rate = f"{args.images / seconds[label]:,.0f}"
            rows.append({"way": label, "images a second": rate, "an image": Seconds(seconds[label] / args.images)})
            rows[-1]["faster"] = Times(first / seconds[label])
        else:
            rows.append({"way": label, "images a second": NOT_THERE})
    report.section(f"An epoch of {args.images:,} photographs in batches of {BATCH}, {os.cpu_count()} CPUs", rows)
    report.finish()


if __name__ == "__main__":
    main()
