"""A shuffled epoch from a cold disk: how close to the disk's own limit does `Batches` get?

The images are 48 kB each, in one file; before each pass the page cache is dropped. `np.load` is the loop `x[i].copy()`
over an array opened with `mmap_mode="r"`, one page fault after the other. `preadv` reads image by image with so many
threads, each into memory that is there already; O_DIRECT reads the blocks around each image past the page cache and
copies it out of them. Neither makes batches: the threads never wait for each other. The best of all is called the
limit. All go by the same order, and every byte gets into memory of the process.

"Read" is what the process has made the kernel read from the disk, in terms of the bytes of its images: where it is less
than that, the pages were not cold, and there is no figure. It is much more where the kernel reads around each fault,
as far as the disk's read-ahead says. In a whole epoch that pays, if the memory holds all data: early faults bring in
what later ones would need; then nothing may be as fast, compared with `np.load`, as is asked for. The first tenth of
an epoch shows what reading around costs where memory does not hold all data; so does a control group that permits less
memory than there is data (and no fewer than some hundred MB, for the processes themselves):
`systemd-run --scope -p MemoryMax=400M python -m benchmarks.bench_cold --rounds 3`. That takes long: `np.load` crawls.
"""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import mmap_ninja

from . import samples
from .harness import Rate, Report, Size, Times, arguments, at_least, medians, scratch, stopwatch
from .workers import OURS, started

BATCH, SIZE = 256, 48_000  # samples, bytes
BLOCK = 4096  # what O_DIRECT reads are multiples of
BATCHES, PLAIN, LIMIT = "Batches", "np.load", "the limit"
OF_PLAIN, OF_LIMIT = 2.5, 0.9  # at least
COLD = 0.95  # of the data has to come from the disk
DROP = Path("/proc/sys/vm/drop_caches")

Order = list[int]


def by_batches(path: Path, order: Order) -> int:
    """The sum of the images' numbers."""
    chunks = [np.array(order[first : first + BATCH]) for first in range(0, len(order), BATCH)]
    with mmap_ninja.DenseMmap(path.parent) as dense:
        return sum(sum(samples.numbers_of(batch)) for batch in mmap_ninja.Batches(dense, order=chunks))


def by_mapping(path: Path, order: Order) -> int:
    """The same, image by image."""
    x = np.load(path, mmap_mode="r")
    return sum(number_in(x[i].copy().data.cast("B")) for i in order)


def by_reads(path: Path, order: Order, threads: int, is_direct: bool) -> int:
    """The same by system calls, each thread taking one of so many parts of the order."""
    start = np.load(path, mmap_mode="r").offset
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if is_direct else 0))
    read_part = partial(read_around if is_direct else read_exactly, fd, start)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(read_part, [order[part::threads] for part in range(threads)]))
    finally:
        os.close(fd)


def read_exactly(fd: int, start: int, order: Order) -> int:
    """Reads images into memory that is used again."""
    image, total = memoryview(bytearray(SIZE)), 0
    for i in order:
        assert os.preadv(fd, [image], start + i * SIZE) == SIZE
        total += number_in(image)
    return total


def read_around(fd: int, start: int, order: Order) -> int:
    """The same past the page cache: whole blocks, and the image copied out of them."""
    image, total = memoryview(bytearray(SIZE)), 0
    blocks = memoryview(mmap.mmap(-1, SIZE + 2 * BLOCK))  # begins with a page, as it has to
    for i in order:
        skip = (start + i * SIZE) % BLOCK
        size = -(-(skip + SIZE) // BLOCK) * BLOCK
        assert os.preadv(fd, [blocks[:size]], start + i * SIZE - skip) >= skip + SIZE  # less at the end of the file
        image[:] = blocks[skip : skip + SIZE]
        total += number_in(image)
    return total


def number_in(image: memoryview) -> int:
    return int.from_bytes(image[:8], "little")


WAYS: dict[str, Callable[[Path, Order], int]] = {
    BATCHES: by_batches,
    PLAIN: by_mapping,
    "preadv, 16 threads": partial(by_reads, threads=16, is_direct=False),
    "preadv, 64 threads": partial(by_reads, threads=64, is_direct=False),
    "O_DIRECT, 16 threads": partial(by_reads, threads=16, is_direct=True),
    "O_DIRECT, 64 threads": partial(by_reads, threads=64, is_direct=True),
}


def ways(path: Path) -> list[str]:
    """Those that this disk knows."""
    try:
        by_reads(path, [0], 1, is_direct=True)
    except (AttributeError, OSError):
        print("\nO_DIRECT is left out: it is not to be had here")
        return [way for way in WAYS if "O_DIRECT" not in way]
    return list(WAYS)


def drop(path: Path) -> None:
    """Empties the page cache, or, where that is not permitted, takes this file out of it."""
    os.sync()
    try:
        DROP.write_text("3")
    except OSError:
        if hasattr(os, "posix_fadvise"):
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def bytes_read() -> int:
    """What this process has made the kernel read from disks so far, all threads together."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_inblock * 512
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def read_ahead(path: Path) -> str:
    """How far the disk's setting lets the kernel read around a page fault."""
    number = path.stat().st_dev
    try:
        found = Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb").read_text()
    except OSError:
        return "unknown"
    return f"{int(found):,} kB"


def one_pass(way: str, path: str, count: int, reads: int) -> tuple[float, int]:
    """In a worker: the seconds of so many reads, and the bytes that came from the disk."""
    order = np.random.default_rng(1).permutation(count)[:reads].tolist()
    before = bytes_read()
    with stopwatch() as elapsed:
        total = WAYS[way](Path(path), order)
    assert total == sum(order), f"{way} does not read what is stored"
    return elapsed(), bytes_read() - before


def measured(one: Callable[..., Any], names: list[str], reads: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Of each way: the bytes a second, and the bytes from the disk in terms of those asked for, of the least pass."""
    parts: dict[str, list[float]] = {way: [] for way in names}

    def cold_pass(way: str) -> float:
        seconds, read = one(way, reads)
        parts[way].append(read / (reads * SIZE))
        return seconds

    seconds = medians({way: partial(cold_pass, way) for way in parts}, rounds)
    return {way: (reads * SIZE / seconds[way], min(parts[way])) for way in parts}


def table(figures: Mapping[str, tuple[float, float]], *, full_size: bool) -> Iterator[dict[str, Any]]:
    """Each way, compared with others, as far as they were cold."""
    rates = {way: rate for way, (rate, read) in figures.items() if read >= COLD}
    bases = {PLAIN: (rates.get(PLAIN), OF_PLAIN), LIMIT: (max(rates.values(), default=None), OF_LIMIT)}
    for way, (_, read) in figures.items():
        row = {"way": way, "read": Times(read), "rate": Rate(rates[way]) if way in rates else "was in memory"}
        for name, (base, least) in bases.items():
            if way in rates and base is not None:
                row[f"of {name}"] = ratio = Times(rates[way] / base)
                is_possible = max(rates.values()) >= least * base
                required = at_least(ratio, least, full_size=full_size) if is_possible else "beyond the limit"
                row[f"required of {name}"] = required if way == BATCHES else ""
        yield row


def main() -> None:
    args = arguments(__doc__, size=(1_200, 64))
    report, count = Report(args), args.size * 10**6 // SIZE
    with scratch(args) as folder, started(OURS) as (worker,):
        mmap_ninja.DenseMmap.from_generator(folder / "images", samples.numbered(count), BATCH)
        path = folder / "images" / "data.npy"
        names = ways(path)

        def one(way: str, reads: int) -> Any:
            drop(path)
            return worker(one_pass, way, str(path), count, reads)

        about = f"of {count:,} images, {Size(count * SIZE)}; read-ahead of the disk: {read_ahead(path)}"
        for part, reads in (("A whole epoch", count), ("The first tenth of an epoch", count // 10)):
            figures = measured(one, names, reads, args.rounds)
            report.section(f"{part} {about}", table(figures, full_size=args.size >= 1_000))
    report.finish()


if __name__ == "__main__":
    main()
