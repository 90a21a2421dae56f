"""What a batch costs: 256 random samples into one array.

Speaks to the targets "take into a buffer", "jagged batch" and "padded batch". Each figure is the mean over a number of
batches of random samples, none drawn twice in a round, pages in memory. What they are compared with:

- `memcpy`: as many bytes that lie one after another, copied from the same file into the same buffer.
- `np.concatenate`: of rows that are in a Python list already, each an array of its own.
- `0.9.0`: the list of the same rows that `m[indices]` gives there, views that nobody has joined yet.

A reused buffer begins at a multiple of 64 bytes, as those of `Batches` do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from . import samples, stores
from .harness import TIMES, Report, Seconds, Times, arguments, medians, scratch, stopwatch
from .workers import OLD, OURS, started

BATCH = 256
SHAPE = (160, 100, 3)  # 48 kB
BYTES = BATCH * math.prod(SHAPE)


def buffer_of(size: int) -> np.ndarray:
    """Bytes that begin at a multiple of 64, whose pages are there."""
    memory = np.ones(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]


class Reused:
    """Makes arrays of one buffer, as `np.empty` makes them of new memory."""

    def __init__(self, size: int) -> None:
        self.memory = buffer_of(size)

    def __call__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        return self.memory[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def seconds_a_batch(work: Callable[[np.ndarray], object], batches: list[np.ndarray]) -> float:
    with stopwatch() as elapsed:
        for batch in batches:
            work(batch)
    return elapsed() / len(batches)


@cache
def shuffled(count: int, most: int) -> list[np.ndarray]:
    """Batches of random samples, each sample at most once."""
    order = np.random.default_rng(7).permutation(count)
    return [order[at : at + BATCH] for at in range(0, count - BATCH + 1, BATCH)][:most]


@cache
def images(side: str, folder: str, count: int) -> Any:
    import mmap_ninja

    pixels = np.random.default_rng(6).integers(0, 256, (64, *SHAPE), np.uint8)
    many: Iterator[np.ndarray] = (pixels[i % 64] for i in range(count))
    made = mmap_ninja.DenseMmap.from_generator(Path(folder) / f"{side}-images", many, BATCH, sync=False)
    np.asarray(made[:]).max()  # its pages are mapped
    return made


def dense_batch(side: str, folder: str, count: int, way: str) -> float:
    """In a worker: one batch of 48 kB samples."""
    m, batches = images(side, folder, count), shuffled(count, 40)
    out = buffer_of(BYTES).reshape(BATCH, *SHAPE)
    every, ways = (
        m[:],
        {
            "take(out=)": lambda batch: m.take(batch, out=out),
            "take": m.take,
            "memcpy": lambda first: np.copyto(out, every[first : first + BATCH]),
        },
    )
    if way == "memcpy":
        batches = [batch_number * BATCH for batch_number in range(len(batches))]  # type: ignore[misc]
    return seconds_a_batch(ways[way], batches)


@cache
def rows(side: str, folder: str, count: int) -> Any:
    below = Path(folder) / side
    below.mkdir(exist_ok=True)
    stored = samples.make(samples.TOKENS, count)
    return stores.KEEPERS[side](samples.TOKENS, below / "rows", stored)


@cache
def listed_rows(count: int) -> list[list[np.ndarray]]:
    """The rows of each batch, each an array of its own."""
    stored = samples.make(samples.TOKENS, count)
    return [[stored[i] for i in batch.tolist()] for batch in shuffled(count, 100)]


@cache
def buffer_of_rows() -> Reused:
    """Room for any batch of rows, padded or not, for the whole run."""
    return Reused(2 * BATCH * 820)


def rows_batch(side: str, folder: str, count: int, way: str) -> float:
    """In a worker: one batch of token rows."""
    batches = shuffled(count, 100)
    if way == "np.concatenate":
        return seconds_a_batch(np.concatenate, listed_rows(count))  # type: ignore[arg-type]
    m = rows(side, folder, count)
    if way == "a list":
        return seconds_a_batch(m.__getitem__, batches)
    from mmap_ninja._taking import JAGGED, Padding

    reused = buffer_of_rows()
    ways = {
        "take_jagged": m.take_jagged,
        "into a buffer, jagged": lambda batch: m._gather(batch, JAGGED, reused),
        "take_padded": m.take_padded,
        "into a buffer, padded": lambda batch: m._gather(batch, Padding(), reused),
    }
    assert np.array_equal(m.take_jagged(batches[0]).values, np.concatenate([m[int(i)] for i in batches[0]]))
    return seconds_a_batch(ways[way], batches)


def verdict(ratio: float, required: float | None, *, is_most: bool, full_size: bool) -> str:
    if required is None:
        return ""
    missed = ratio > required if is_most else ratio < required
    word = " at full size" if not full_size else "  MISSED" if missed else ""
    return f"{'at most' if is_most else 'at least'} {required:g} {TIMES}{word}"


def report_dense(report: Report, folder: str) -> None:
    """Samples of one shape."""
    args = report.args
    with started(OURS) as (worker,):
        ways = ("memcpy", "take(out=)", "take")
        seconds = medians(
            {way: partial(worker, dense_batch, OURS, folder, args.images, way) for way in ways}, args.rounds
        )
    found = []
    for way, required in zip(ways, (None, 0.75, None), strict=True):
        ratio = Times(seconds["memcpy"] / seconds[way])
        row = {"work": way, "a batch": Seconds(seconds[way]), "GB/s": f"{BYTES / seconds[way] / 1e9:.3g}"}
        found.append(
            row
            | {
                "of the speed of memcpy": ratio,
                "required": verdict(ratio, required, is_most=False, full_size=args.images >= 4_000),
            }
        )
    report.section(f"{BATCH} random samples of 48 kB", found)


def report_rows(report: Report, folder: str) -> None:
    """Samples of different sizes."""
    args, full_size = report.args, report.args.rows >= 60_000  # smaller ones lie in the processor's caches
    required = {"take_jagged": 0.7, "into a buffer, jagged": 0.7, "take_padded": 1.8, "into a buffer, padded": 1.8}
    with started(OURS, OLD) as workers:
        questions = {
            way: partial(workers[0], rows_batch, OURS, folder, args.rows, way) for way in ("np.concatenate", *required)
        }
        for worker in workers[1:]:
            questions[OLD] = partial(worker, rows_batch, OLD, folder, args.rows, "a list")
        seconds = medians(questions, args.rounds)
    found = []
    for way, figure in seconds.items():
        ratio = Times(figure / seconds["np.concatenate"])
        row = {"work": way if way != OLD else f"{OLD}: a list", "a batch": Seconds(figure)}
        row |= {"a row": Seconds(figure / BATCH), "of np.concatenate": ratio}
        row |= {"required": verdict(ratio, required.get(way), is_most=True, full_size=full_size)}
        if OLD in seconds and way == "take_jagged":
            faster = Times(seconds[OLD] / figure)
            row |= {
                "faster than 0.9.0": faster,
                "required of that": verdict(faster, 15, is_most=False, full_size=full_size),
            }
        found.append(row)
    report.section(f"{BATCH} random token rows of 820 B", found)


def main() -> None:
    args = arguments(__doc__, images=(4_000, 600), rows=(60_000, 10_000))
    report = Report(args)
    with scratch(args) as folder:
        report_dense(report, str(folder))
        report_rows(report, str(folder))
    report.finish()


if __name__ == "__main__":
    main()
