"""What one random sample costs, what it costs to open a map, and the memory that an open map takes.

Speaks to the targets "random ragged image", "random ragged 1-D row", "random text", "random dense sample",
"open a map of 2 M samples", "private memory of an open map of 10 M samples" and "import".

Two figures a kind, both the mean of one loop `for i in indices: ...` over random numbers drawn beforehand as
Python ints, the loop's own 10 ns included, pages in memory: `x[i]` makes the sample and drops it (for arrays
a view: no byte of the data is read; for texts the whole `str`); `and first element` also reads one element of
the array by `.item(0)`, some 30 ns in themselves, or the text's `len`. What reading *all* bytes costs is the
question of bench_images and bench_texts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from . import samples, stores
from .harness import Report, Seconds, Size, Times, arguments, medians, private_memory, scratch, stopwatch, versus
from .workers import BUILD, LIST, OLD, OURS, Worker, environment, has_old, started

# Sample kinds with the option that says how many, and how many times faster than 0.9.0 a read has to be.
KINDS = {
    samples.IMAGES: ("images", 15),
    samples.TOKENS: ("rows", 9),
    samples.TEXTS: ("texts", 1.8),
    samples.LONG_TEXTS: ("texts", None),
    samples.DENSE: ("dense", 5),
}
# Found among the modules that `import mmap_ninja` brings, any of these is a miss.
UNWANTED = {"torch", "tensorflow", "jax", "keras", "joblib", "zstandard", "tqdm"}
TIME_IMPORT = """
import json, sys, time, numpy
before = set(sys.modules)
started = time.perf_counter()
import mmap_ninja
print(json.dumps([time.perf_counter() - started, sorted({name.split(".")[0] for name in set(sys.modules) - before})]))
"""


@cache
def opened(side: str, folder: str, kind: str, count: int) -> Any:
    """In a worker: the store of that side, written the first time it is asked for."""
    below = Path(folder) / side
    below.mkdir(exist_ok=True)
    stored = samples.make(kind, count)
    store = stores.KEEPERS[side](kind, below / kind, stored)
    for i in (0, count // 2, count - 1):  # a store that reads something else has nothing to be fast about
        assert np.array_equal(store[i], stored[i]), f"sample {i} of {kind} came back changed"
    return store


@cache
def drawn(count: int, reads: int) -> list[int]:
    """Random sample numbers, as Python ints."""
    return np.random.default_rng(5).integers(0, count, reads).tolist()


def seconds_a_read(side: str, folder: str, kind: str, count: int, reads: int, touch: bool) -> float:
    """In a worker: the mean over one loop of random reads."""
    store, indices = opened(side, folder, kind, count), drawn(count, reads)
    loop = (touch_texts if kind in stores.TEXT_KINDS else touch_arrays) if touch else make_samples
    with stopwatch() as elapsed:
        loop(store, indices)
    return elapsed() / reads


def make_samples(store: Any, indices: list[int]) -> None:
    for i in indices:
        store[i]


def touch_arrays(store: Any, indices: list[int]) -> None:
    for i in indices:
        store[i].item(0)


def touch_texts(store: Any, indices: list[int]) -> None:
    for i in indices:
        len(store[i])


def write_short_rows(side: str, folder: str, count: int) -> None:
    """In a worker: a map of many rows, for those below to open."""
    stores.build(samples.SHORT, short_rows(side, folder, count), samples.short_rows(count))


def short_rows(side: str, folder: str, count: int) -> Path:
    below = Path(folder) / side
    below.mkdir(exist_ok=True)
    return below / f"short-{count}"


def seconds_an_open(side: str, folder: str, count: int, read: bool) -> float:
    """In a worker: the mean of ten openings, each with a `len` and, if asked, one sample.

    All ten stay open until the clock stops, as a map does in a program that has opened it: memory that one of them
    gives back would make the next one look cheap.
    """
    path = short_rows(side, folder, count)
    kept = []
    with stopwatch() as elapsed:
        for _ in range(10):
            opened_map = stores.open_(samples.SHORT, path)
            if len(opened_map) == count and read:
                opened_map[count // 2].item(0)
            kept.append(opened_map)
    return elapsed() / 10


def memory_of_open_map(side: str, folder: str, count: int) -> int:
    """In a fresh worker: how much an open map with 1,000 random reads behind it adds to the private memory."""
    stores.open_(samples.SHORT, short_rows(side, folder, 10))[0]  # so that what the first map ever loads is there
    indices = drawn(count, 1000)
    before = private_memory()
    opened_map = stores.open_(samples.SHORT, short_rows(side, folder, count))
    touch_arrays(opened_map, indices)
    return private_memory() - before


def time_import(side: str) -> tuple[float, list[str]]:
    """Seconds of `import mmap_ninja` after `import numpy` in a fresh process, and the packages that came with it."""
    # Compiled before, like an installed package, whatever this shell says about writing bytecode.
    variables = environment(side) | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(BUILD / "bytecode")}
    command = [sys.executable, "-c", TIME_IMPORT]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    seconds, packages = json.loads(done.stdout)
    return seconds, packages


def asked(workers: list[Worker], function: Callable[..., float], *args: Any) -> dict[str, Callable[[], float]]:
    """For `medians`: the same question to each worker."""
    return {worker.name: partial(worker, function, worker.name, *args) for worker in workers}


def report_reads(report: Report, folder: str) -> None:
    """One random sample of each kind."""
    args = report.args
    others = stores.installed_others() if args.others else []
    with started(OURS, OLD, LIST, *others) as workers:
        rows = []
        for kind, (option, required) in KINDS.items():
            count = getattr(args, option)
            for touch, work in ((False, f"{kind}: x[i]"), (True, "  and first element")):
                questions = asked(workers, seconds_a_read, folder, kind, count, args.reads, touch)
                rows.append(versus(work, medians(questions, args.rounds), None if touch else required))
    report.section(f"One random sample ({args.reads:,} reads a round)", rows)


def report_opening(report: Report, folder: str) -> None:
    """Opening a small and a large map."""
    args = report.args
    small, large = 10_000, args.open
    with started(OURS, OLD) as workers:
        for worker in workers:
            for count in (small, large):
                worker(write_short_rows, worker.name, folder, count)
        rows = []
        for read, work in ((False, "open, len"), (True, "open, len, one sample")):
            seconds = {}
            for count, required in ((small, None), (large, None if read else 60)):
                seconds[count] = medians(asked(workers, seconds_an_open, folder, count, read), args.rounds)
                row = versus(f"{work}: {count:,} samples", seconds[count], required, full_size=large >= 2_000_000)
                rows.append(row)
            growth = {side: Times(seconds[large][side] / seconds[small][side]) for side in seconds[large]}
            rows.append({"work": f"  times as long as at {small:,}", **growth, "required": "flat"})
    report.section("Opening a map", rows)


def report_memory(report: Report, folder: str) -> None:
    """Private memory of an open map, each in a fresh process."""
    count = report.args.memory
    sizes = {}
    for side in (OURS, OLD) if has_old() else (OURS,):
        with started(side) as (worker,):
            for length in (10, count):
                worker(write_short_rows, side, folder, length)
        with started(side) as (worker,):
            sizes[side] = Size(worker(memory_of_open_map, side, folder, count))
    row = {"work": f"open map of {count:,} samples, 1,000 reads", **sizes}
    row["required"] = "< 1 MB" + ("  MISSED" if sizes[OURS] >= 1e6 else "")
    report.section("Private memory (anonymous pages; the kernel can drop those of mapped files)", [row])


def report_import(report: Report) -> None:
    """Import time beyond numpy's."""
    sides = (OURS, OLD) if has_old() else (OURS,)
    seconds = medians({side: lambda side=side: time_import(side)[0] for side in sides}, report.args.rounds)
    unwanted = UNWANTED & set(time_import(OURS)[1])
    row = {"work": "import mmap_ninja, numpy being there", **{side: Seconds(value) for side, value in seconds.items()}}
    row["required"] = "< 25 ms" + ("  MISSED" if seconds[OURS] >= 25e-3 else "")
    row["of torch, tf, jax, joblib, zstandard, tqdm it imports"] = ", ".join(sorted(unwanted)) or "none"
    report.section("Import", [row])


def main() -> None:
    args = arguments(
        __doc__,
        {"others": "also LMDB, Bagz, HDF5, Hugging Face datasets, as far as installed"},
        images=(2_000, 300),
        rows=(60_000, 10_000),
        texts=(30_000, 5_000),
        dense=(30_000, 5_000),
        reads=(20_000, 5_000),
        open=(2_000_000, 200_000),
        memory=(10_000_000, 500_000),
    )
    report = Report(args)
    with scratch(args) as folder:
        report_reads(report, str(folder))
        report_opening(report, str(folder))
        report_memory(report, str(folder))
        report_import(report)
    report.finish()


if __name__ == "__main__":
    main()
