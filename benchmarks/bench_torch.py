"""Training loops in torch: `MmapDataset` and `MmapLoader`, a hand-written Dataset over 0.9.0, and other libraries.

Batches are of 256 samples, shuffled: images of 48 kB, all of one size or not, and token rows of 820 B, whose pages are
in memory. The consumer reads one element of a batch and wants the next one. Figures include the shuffling and the start
of each epoch, but not that of worker processes, which stay. Where nothing else is said, a way is a stock DataLoader
without workers and with its default collate; over 0.9.0 it goes through the Dataset that its users write, whose sample
`i` is `torch.from_numpy(np.array(x[i]))`. For token rows its collate is torch's `pad_sequence`. The memcpy copies as
many bytes in the order in which they lie, a batch at once, into one buffer, which stays in the cache. A DataLoader over
a list of tensors in RAM has nothing to do but to stack them: no Dataset can be faster.

Torch itself uses one thread in all processes, as it does in the workers of a DataLoader: `--threads` says how many. On
a machine that has other things to do, threads that wait for each other make the default collate many times slower.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from . import samples, stores, torch_stores
from .harness import TIMES, Rate, Report, Seconds, Size, Times, arguments, at_least, medians, ratios, scratch, stopwatch
from .torch_stores import (
    BATCH,
    FIXED,
    HOT,
    INDEXED_RAM,
    LOADER,
    LOADER_JAGGED,
    LOADER_LIST,
    LOADER_PADDED,
    LOADERS,
    OLD_DENSE,
    OLD_LIST,
    OLD_PADDED,
    OLD_RAGGED,
    OTHERS,
    RAGGED,
    RAM,
    ROWS,
    STOCK,
    STOCK_LIST,
    STOCK_RAM,
    WAYS,
    loader_of,
    look_at,
    numbers_of,
)
from .workers import LIST, OLD, OURS, Worker, started

IMAGE = 48_000  # bytes
MOST_GROWTH = 1e6  # bytes a worker, from the first epoch to the last one: a megabyte is the memory of no sample
WITHIN = 0.15  # what two equal starts differ by
SMALL = 21  # images: 1 MB
COPY, ON_DEVICE = "cudaMemcpy of one large pinned tensor", "batches that are there already"
TO_DEVICE, GATHERED = "MmapLoader(device='cuda')", "pinned batches of MmapLoader, gathered before"
STOCK_TO_DEVICE = {f"MmapDataset, DataLoader(num_workers={count}, pin_memory=True)": count for count in (0, 2)}
REQUIRED = {  # how many times faster than what
    FIXED: [
        (STOCK, OLD_DENSE, 1.4),
        (STOCK, OLD_RAGGED, 3),
        (LOADER, HOT, 0.65),
        (LOADER, OLD_DENSE, 3.5),
        (LOADER, STOCK, 1.8),
        (LOADER, INDEXED_RAM, None),
        (STOCK_RAM, OLD_DENSE, None),  # more than this no Dataset can reach
        (STOCK_RAM, OLD_RAGGED, None),
    ],
    RAGGED: [(STOCK_LIST, OLD_LIST, None), (LOADER_LIST, OLD_LIST, None), (LOADER_LIST, STOCK_LIST, None)],
    ROWS: [(LOADER_PADDED, OLD_PADDED, 5), (LOADER_JAGGED, OLD_PADDED, 5)],
}


def seconds_an_epoch(label: str, folder: str, count: int, epochs: int) -> float:
    """In a worker: an epoch of a way."""
    loader = loader_of(label, folder, count)
    with stopwatch() as elapsed:
        for _ in range(epochs):
            for batch in loader:  # the batch stays until the next one has come, as in the loops that people write
                look_at(batch)
    return elapsed() / epochs


def report_rates(report: Report, workers: dict[str, Worker], folder: str, kind: str, count: int) -> None:
    """All ways to go through samples of a kind, and how they compare."""
    args = report.args
    ways = {
        label: way for label, way in WAYS.items() if way.kind == kind and way.is_installed and way.process in workers
    }
    sides = {
        label: partial(
            workers[way.process], seconds_an_epoch, label, folder, count, 1 if way.process == OTHERS else args.epochs
        )
        for label, way in ways.items()
    }
    seconds = medians(sides, args.rounds)
    rows = [
        {
            "way": label,
            "an epoch": Seconds(value),
            "a batch": Seconds(value * BATCH / count),
            "rate": Rate(count * (820 if kind == ROWS else IMAGE) / value),
        }
        for label, value in seconds.items()
    ]
    for label, row in zip(seconds, rows, strict=True):
        for other in (OLD_DENSE, OLD_LIST, OLD_PADDED):
            if other in seconds:
                row["faster than 0.9.0"] = Times(seconds[other] / seconds[label])
    report.section(f"An epoch of {count:,} {kind}", rows)
    ratios(report, kind, seconds, REQUIRED[kind])


class ListOfBytes(torch.utils.data.Dataset):
    """Images in a list of bytes: each object is written to when it is looked at, to count the reference."""

    def __init__(self, images: Iterable[np.ndarray]) -> None:
        self._images = [image.tobytes() for image in images]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(np.frombuffer(self._images[i], np.uint8).copy())


def private_memory_of(pid: int) -> int:
    """Bytes that a process has written to and shares with none, not even with the one that it was forked from."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


def memory_by_epoch(side: str, folder: str, count: int, processes: int, epochs: int) -> list[float]:
    """In a worker: the mean private memory of forked worker processes after each epoch."""
    import mmap_ninja_torch

    dataset = ListOfBytes(samples.numbered(count)) if side == LIST else mmap_ninja_torch.MmapDataset(folder)
    loader = DataLoader(
        dataset, BATCH, shuffle=True, num_workers=processes, multiprocessing_context="fork", persistent_workers=True
    )
    found = []
    for _ in range(epochs):
        assert sum(sum(numbers_of(batch)) for batch in loader) == count * (count - 1) // 2
        forked = multiprocessing.active_children()
        assert len(forked) == processes
        found.append(mean(private_memory_of(process.pid) for process in forked))
    return found


def report_memory(report: Report, worker: Worker, folder: str, count: int) -> None:
    """Whether forked workers take more memory the more samples they have read."""
    if not Path("/proc/self/smaps_rollup").exists():
        print("\nThis system does not tell what memory is private: nothing about that of forked workers")
        return
    args, rows = report.args, []
    for side, label in ((OURS, STOCK), (LIST, "the images in a list of bytes")):
        found = worker(memory_by_epoch, side, folder, count, args.processes, args.memory_epochs)
        growth = found[-1] - found[0]
        row: dict[str, Any] = {"dataset": label}
        row |= {f"after epoch {number}": Size(size) for number, size in enumerate(found, 1)}
        read = (args.memory_epochs - 1) * count / args.processes
        row |= {"growth": Size(growth) if growth >= 0 else f"{growth / 1e6:,.1f} MB"}
        row |= {"a sample read": f"{growth / max(read, 1):,.1f} B"}
        verdict = "" if growth <= MOST_GROWTH else "  MISSED"
        row |= {"required": f"at most {Size(MOST_GROWTH)}{verdict}" if side == OURS else ""}
        rows.append(row)
    title = f"Private memory of each of {args.processes} forked workers, a map of {count * IMAGE / 1e6:,.0f} MB"
    report.section(title, rows)


def seconds_to_start(folder: str, processes: int) -> tuple[float, float]:
    """In a worker: until each of the spawned worker processes has sent a batch; and what all of them compute."""
    import mmap_ninja_torch

    loader = DataLoader(mmap_ninja_torch.MmapDataset(folder), 4, num_workers=processes, multiprocessing_context="spawn")
    before = children_seconds()
    with stopwatch() as elapsed:
        batches = iter(loader)
        found = [number for batch in islice(batches, processes) for number in numbers_of(batch)]
    assert found == list(range(4 * processes))
    del batches  # ends them
    return elapsed(), children_seconds() - before


def children_seconds() -> float:
    """Processor time of the processes that this one had, and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def pickled_size(folder: str) -> int:
    """In a worker: of the dataset, which each spawned worker gets."""
    import mmap_ninja_torch

    return len(pickle.dumps(mmap_ninja_torch.MmapDataset(folder)))


def report_start(report: Report, worker: Worker, folders: dict[str, str]) -> None:
    """Whether the size of a map shows when workers are spawned."""
    args = report.args
    computed: dict[str, list[float]] = {size: [] for size in folders}

    def one(size: str) -> float:
        seconds, of_processor = worker(seconds_to_start, folders[size], args.processes)
        computed[size].append(of_processor)
        return seconds

    seconds = medians({size: partial(one, size) for size in folders}, args.start_rounds)
    small, large = seconds.values()
    rows: list[dict[str, Any]] = [
        {
            "map": size,
            "until each has sent a batch": Seconds(value),
            "processor time of all": Seconds(median(computed[size][1:])),
            "pickled dataset": f"{worker(pickled_size, folders[size]):,} B",
        }
        for size, value in seconds.items()
    ]
    verdict = " at full size" if args.quick else "" if large <= small * (1 + WITHIN) else "  MISSED"
    rows[-1] |= {"of the small one": Times(large / small), "required": f"at most {1 + WITHIN:g} {TIMES}{verdict}"}
    report.section(f"Start of {args.processes} spawned workers, median of {args.start_rounds}", rows)


class Copied:
    """The batches of a loader, on their way to the device when they are handed out: what users write."""

    def __init__(self, loader: Iterable[torch.Tensor]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (batch.to("cuda", non_blocking=True) for batch in self._loader)


def on_device(label: str, folder: Path, count: int) -> Iterable[torch.Tensor]:
    """A loader of images that are on the CUDA device, or on their way."""
    if label == ON_DEVICE:
        return [torch.zeros((BATCH, *torch_stores.SHAPE), dtype=torch.uint8, device="cuda")] * (count // BATCH)
    if label == GATHERED:
        return Copied(list(torch_stores.ours(FIXED, folder, min(count, 8 * BATCH), pin_memory=True)))
    if label == TO_DEVICE:
        return torch_stores.ours(FIXED, folder, count, device="cuda")
    return Copied(torch_stores.stock(FIXED, folder, count, workers=STOCK_TO_DEVICE[label], pin_memory=True))


@cache
def device_loader(label: str, folder: str, count: int) -> Iterable[torch.Tensor]:
    """The same, after an epoch in which every image has come."""
    loader = on_device(label, Path(folder), count)
    if label not in (ON_DEVICE, GATHERED):
        found = sorted(number for batch in loader for number in numbers_of(batch.cpu()))
        assert found == list(range(count)), f"{label} does not read what is stored"
    return loader


@cache
def weights() -> torch.Tensor:
    return torch.ones(torch_stores.SHAPE[-2] * torch_stores.SHAPE[-1], 64, device="cuda")


def step(batch: torch.Tensor) -> None:
    """Much shorter than the way of a batch to the device."""
    (batch[:, 0].reshape(len(batch), -1).float() @ weights()).relu_().sum()


def seconds_a_copy(size: int) -> float:
    """In a worker: one byte of a single large copy from pinned memory."""
    here, there = large_tensors(size)
    torch.cuda.synchronize()
    with stopwatch() as elapsed:
        there.copy_(here, non_blocking=True)
        torch.cuda.synchronize()
    return elapsed() / size


@cache
def large_tensors(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    here = torch.ones(size, dtype=torch.uint8, pin_memory=True)
    return here, torch.empty_like(here, device="cuda")


def seconds_on_device(label: str, folder: str, count: int, epochs: int, has_step: bool) -> float:
    """In a worker: one byte of the images that a way brings to the device."""
    loader, seen = device_loader(label, folder, count), 0
    torch.cuda.synchronize()
    with stopwatch() as elapsed:
        for _ in range(epochs):
            for batch in loader:
                seen += len(batch)
                if has_step:
                    step(batch)
        torch.cuda.synchronize()
    return elapsed() / (seen * IMAGE)


def report_device(report: Report, folder: str, count: int) -> None:
    """The way to a GPU, and a loop whose step is too short to hide the loader."""
    if not torch.cuda.is_available():
        print("\nThere is no CUDA device here: nothing about copies to one")
        return
    args, ways = report.args, (TO_DEVICE, GATHERED, *STOCK_TO_DEVICE)
    with started(OURS) as (worker,):
        measured = partial(partial, worker, seconds_on_device)
        sides = {COPY: partial(worker, seconds_a_copy, args.copy_size * 1_000_000)}
        sides |= {label: measured(label, folder, count, args.epochs, False) for label in ways}
        seconds = medians(sides, args.rounds)
        loops = {label: measured(label, folder, count, args.epochs, True) for label in (ON_DEVICE, *ways)}
        in_loop = medians(loops, args.rounds)
    rows = []
    for label, value in seconds.items():
        ratio = Times(seconds[COPY] / value)
        required = at_least(ratio, 0.8, full_size=not args.quick) if label == TO_DEVICE else ""
        rows.append({"way": label, "rate": Rate(1 / value), "of cudaMemcpy": ratio, "required": required})
    report.section(f"{count:,} images to {torch.cuda.get_device_name()}", rows)
    loop_rows = [
        {"way": label, "a step": Seconds(value * BATCH * IMAGE), "images a second": f"{1 / value / IMAGE:,.0f}"}
        for label, value in in_loop.items()
    ]
    report.section("A loop whose step is too short to hide the loader", loop_rows)


def report_processes(report: Report, folder: Path) -> None:
    """Workers that are forked and spawned, with a small and a large map."""
    args = report.args
    counts = {"1 MB": SMALL, f"{args.memory_size:,} MB": max(args.memory_size * 1_000_000 // IMAGE, SMALL)}
    if shutil.disk_usage(folder).free < 2 * args.memory_size * 1_000_000:
        print(f"\nThere is no room for {args.memory_size:,} MB on this disk: nothing about worker processes")
        return
    folders = {}
    for name, count in counts.items():
        folders[name] = str(folder / f"numbered-{count}")
        stores.build(samples.DENSE, Path(folders[name]), samples.numbered(count))
    large = list(counts)[-1]
    with started(OURS) as (worker,):
        report_memory(report, worker, folders[large], counts[large])
        report_start(report, worker, folders)


def main() -> None:
    args = arguments(
        __doc__,
        images=(8_192, 512),
        epochs=(4, 1),
        rows=(60_000, 4_000),
        memory_size=(2_000, 20),
        memory_epochs=(3, 3),
        processes=(4, 1),
        start_rounds=(5, 1),
        copy_size=(1_000, 100),
        threads=(1, 1),
    )
    args.images = -(-args.images // BATCH) * BATCH  # whole batches, for the buffer
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for all workers alike
    report = Report(args)
    with scratch(args) as folder:
        with started(OURS, OLD, LOADERS, RAM, OTHERS) as found:
            workers = {worker.name: worker for worker in found}
            for kind, count in ((FIXED, args.images), (RAGGED, args.images), (ROWS, args.rows)):
                report_rates(report, workers, str(folder), kind, count)
        report_processes(report, folder)
        report_device(report, str(folder), args.images)
    report.finish()


if __name__ == "__main__":
    main()
