"""Shuffled batches from `Batches`, against plain copies of the same bytes.

The images are 48 kB each, 256 a batch, in one memory-mapped file whose pages are in memory. A memcpy copies them in the
order in which they lie, 12 MB at once, into buffers whose pages were there before: a ring of four, as many as `Batches`
has in use, or the same one again and again, which stays in the cache. What `Batches` takes includes the shuffling and
the start of each epoch. The consumer looks at one byte of a batch and wants the next one.

A consumer that is busy elsewhere, as with the step of a GPU, is one that sleeps 5 ms; its loop over batches that are
in memory already is what it is compared with. For token rows, `list` and 0.9.0 are a loop over shuffled samples,
drawn beforehand: `np.concatenate([x[i] for i in numbers])`, or slices of a fresh `np.zeros`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

import mmap_ninja

from . import samples, stores
from .harness import Rate, Report, Seconds, Times, arguments, at_least, medians, scratch, stopwatch, versus
from .workers import LIST, OLD, OURS, started

BATCH = 256
STEP = 5e-3  # seconds
MOST_ADDED = 0.05  # of such a loop
BATCHES, TAKE = "Batches", "take(out=) into one buffer"
VARIANTS = {"Batches, readahead=0": {"readahead": 0}, "Batches, prefetch=0": {"prefetch": 0}}
RING, HOT = "memcpy into a ring of four buffers", "memcpy into one buffer"
OF_RING, OF_HOT = 0.8, 0.6  # of these, at least
LAYOUTS = "jagged", "padded"

Batch = Any  # an array, or what the layout makes


def aligned(count: int, like: np.ndarray) -> list[np.ndarray]:
    """Buffers for a batch that begin at multiples of 64 bytes, every page of them written."""
    buffers = []
    for _ in range(count):
        memory = np.ones(BATCH * like[0].nbytes + 64, np.uint8)
        start = -memory.ctypes.data % 64
        buffers.append(memory[start : start + BATCH * like[0].nbytes].view(like.dtype).reshape(BATCH, *like.shape[1:]))
    return buffers


def copied(array: np.ndarray, ring: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The batches in the order in which they lie."""
    for first, buffer in zip(range(0, len(array), BATCH), cycle(ring)):
        buffer[...] = array[first : first + BATCH]
        yield buffer


def taken(dense: Any, order: np.ndarray, buffer: np.ndarray) -> Iterator[np.ndarray]:
    """Shuffled ones, without a thread."""
    for first in range(0, len(order), BATCH):
        yield dense.take(order[first : first + BATCH], out=buffer)


def consumed(batches: Iterable[np.ndarray]) -> int:
    """Looks at the last byte of each batch."""
    return sum(batch.item(-1) for batch in batches)


def ways(folder: Path) -> dict[str, Callable[[], Iterable[np.ndarray]]]:
    """One epoch of each."""
    dense = mmap_ninja.DenseMmap(folder)
    array = np.asarray(np.load(folder / "data.npy", mmap_mode="r"))
    ring, order = aligned(4, array), np.random.default_rng(1).permutation(len(array))
    made = {
        way: mmap_ninja.Batches(dense, BATCH, shuffle=True, **options)
        for way, options in {BATCHES: {}, **VARIANTS}.items()
    }
    return {
        RING: lambda: copied(array, ring),
        HOT: lambda: copied(array, ring[:1]),
        **{way: lambda batches=batches: batches for way, batches in made.items()},
        TAKE: lambda: taken(dense, order, ring[0]),
    }


def check(way: str, batches: Iterable[np.ndarray], count: int) -> None:
    """Every image has come, and only once."""
    found = [number for batch in batches for number in samples.numbers_of(batch)]
    assert sorted(found) == list(range(count)), f"{way} does not read what is stored"


def seconds_of(work: Callable[[], object], times: int = 1) -> float:
    with stopwatch() as elapsed:
        for _ in range(times):
            work()
    return elapsed() / times


def report_rates(report: Report, folder: Path) -> None:
    """A consumer that does nothing."""
    args, epochs = report.args, ways(folder)
    for way, epoch in epochs.items():
        check(way, epoch(), args.images)
    sides = {
        way: lambda epoch=epoch: seconds_of(lambda: consumed(epoch()), args.epochs) for way, epoch in epochs.items()
    }
    seconds = medians(sides, args.rounds)
    rows = []
    for way in epochs:
        of_ring, of_hot = Times(seconds[RING] / seconds[way]), Times(seconds[HOT] / seconds[way])
        row = {"way": way, "rate": Rate(args.images * 48_000 / seconds[way]), "of the ring": of_ring}
        is_asked = way == BATCHES
        row["required of it"] = at_least(of_ring, OF_RING, full_size=not args.quick) if is_asked else ""
        row["of one buffer"] = of_hot
        row["required of that"] = at_least(of_hot, OF_HOT, full_size=not args.quick) if is_asked else ""
        rows.append(row)
    report.section(f"An epoch of {args.images:,} images in batches of {BATCH}, a consumer that does nothing", rows)


def report_steps(report: Report, folder: Path) -> None:
    """A consumer that is busy elsewhere."""
    args, steps, epochs = report.args, -(-report.args.images // BATCH), ways(folder)
    memory = list(islice(epochs[RING](), 4))
    loops: dict[str, Callable[[], Iterable[np.ndarray]]] = {
        "batches in memory": lambda: islice(cycle(memory), steps),
        BATCHES: epochs[BATCHES],
    }

    def loop(batches: Callable[[], Iterable[np.ndarray]]) -> None:
        for batch in batches():
            batch.item(-1)
            time.sleep(STEP)

    seconds = medians({way: partial(seconds_of, partial(loop, batches)) for way, batches in loops.items()}, args.rounds)
    least, ours = seconds.values()
    added = ours / least - 1
    verdict = " at full size" if args.quick else "" if added < MOST_ADDED else "  MISSED"
    row = {
        "loop": f"{steps} steps of {Seconds(STEP)}",
        **{way: Seconds(value) for way, value in seconds.items()},
        "added": f"{added:.1%}",
        "required": f"less than {MOST_ADDED:.0%}{verdict}",
    }
    report.section("A consumer that sleeps: what the loader adds to its loop", [row])


@cache
def opened(side: str, folder: str, count: int) -> Any:
    """In a worker: the token rows as this side keeps them."""
    below = Path(folder) / f"rows-{side}"
    return stores.KEEPERS[side](samples.TOKENS, below, samples.make(samples.TOKENS, count))


def seconds_an_epoch(side: str, folder: str, count: int, layout: str) -> float:
    """In a worker: one epoch of token rows."""
    rows = opened(side, folder, count)
    if side == OURS:
        batches: Iterable[Batch] = mmap_ninja.Batches(rows, BATCH, shuffle=True, layout=layout)
    else:
        order = np.random.default_rng(1).permutation(count).tolist()
        numbers = [order[first : first + BATCH] for first in range(0, count, BATCH)]
        batches = map(partial({"jagged": end_to_end, "padded": filled_up}[layout], rows), numbers)
    expected = sum(map(len, samples.make(samples.TOKENS, count)))
    with stopwatch() as elapsed:
        total = sum(int(lengths[-1] if layout == "jagged" else lengths.sum()) for _, lengths, *_ in batches)
    assert total == expected, f"{total} tokens, expected {expected}"
    return elapsed()


def end_to_end(rows: Any, numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets."""
    found = [rows[i] for i in numbers]
    return np.concatenate(found), np.cumsum([0, *map(len, found)])


def filled_up(rows: Any, numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Values and lengths."""
    found = [rows[i] for i in numbers]
    lengths = np.array([len(row) for row in found])
    values = np.zeros((len(found), lengths.max()), found[0].dtype)
    for place, row in zip(values, found, strict=True):
        place[: len(row)] = row
    return values, lengths


def report_rows(report: Report, folder: str) -> None:
    """Token rows, for information."""
    args, table = report.args, []
    with started(OURS, OLD, LIST) as workers:
        for layout in LAYOUTS:
            sides = {
                worker.name: partial(worker, seconds_an_epoch, worker.name, folder, args.rows, layout)
                for worker in workers
            }
            row = versus(f"{layout}, an epoch", medians(sides, args.rounds))
            row["a row"] = Seconds(row[OURS] / args.rows)
            table.append(row)
    report.section(f"An epoch of {args.rows:,} token rows of 820 B in batches of {BATCH}", table)


def main() -> None:
    args = arguments(__doc__, images=(8_192, 2_048), epochs=(4, 1), rows=(60_000, 10_000))
    args.images = -(-args.images // BATCH) * BATCH  # whole batches, for the buffers
    report = Report(args)
    with scratch(args) as folder:
        mmap_ninja.DenseMmap.from_generator(folder / "images", samples.numbered(args.images), BATCH)
        report_rates(report, folder / "images")
        report_steps(report, folder / "images")
        report_rows(report, str(folder))
    report.finish()


if __name__ == "__main__":
    main()
