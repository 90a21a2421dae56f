"""Training loops in TensorFlow: `to_tf_dataset`, `from_generator` over 0.9.0, arrays in RAM, and other libraries.

Batches are of 256 samples, shuffled: images of 48 kB, token rows of 820 B as ragged tensors, and texts of 1 kB, whose
pages are in memory. The consumer reads one element of a batch and wants the next one. Figures include the shuffling and
the start of an iterator for each epoch. `from_generator` yields `x[i]` for shuffled `i`, one sample after the other.
`from_tensor_slices(...).shuffle(n).batch(256)` has all samples in RAM. TFRecord has the bytes of a sample in a record,
takes the records in the order of the file through a shuffle buffer of 1,024, and decodes by `decode_raw`. Hugging Face
datasets, asked for `--slow` samples only, makes int64 of integers, and pads rows by a hand-written collate.

`fit` trains a dense network with one hidden layer of 64, on rows of 2 kB of float32 with a label each. Memory is what
is resident of a process that has done nothing else so far, pages of the map in the page cache included.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from . import samples, stores, tf_stores
from .harness import TIMES, Rate, Report, Seconds, Size, Times, arguments, medians, ratios, scratch, stopwatch
from .tf_stores import BATCH, BATCHED, EACH, EACH_PADDED, FIXED, OTHERS, PADDED, RAM, ROWS, TEXTS, WAYS, look_at
from .workers import OLD, OURS, Worker, started

BYTES = {FIXED: 48_000, ROWS: 820, TEXTS: 1_000}  # of a sample, on average
WIDTH, CLASSES = 512, 10  # numbers of a row, for `fit`
PAUSE = 0.2  # seconds
MOST_GROWTH = 5e6  # bytes, from the first epoch to the last one: less than half a batch of images
MOST_OF_RAM, FIT_ROUNDS = 1.15, 3  # so many times as many rounds: one training takes a third longer than the next
ARRAYS, DATASET, PY_DATASET = "arrays in RAM", "to_tf_dataset", "MmapPyDataset"
REQUIRED = {  # how many times faster than what
    FIXED: [(BATCHED, EACH, 16), (BATCHED, RAM, 0.75)],
    ROWS: [(BATCHED, EACH, 10), (PADDED, EACH_PADDED, None), (BATCHED, RAM, None)],
    TEXTS: [(BATCHED, EACH, None), (BATCHED, RAM, None)],
}


def prepare() -> None:
    """In a worker: what takes it seconds."""
    import tensorflow as tf

    tf.data.Dataset.range(1).get_single_element()
    gc.freeze()  # or each stopwatch, which collects, takes a third of a second for what TensorFlow has


def seconds_a_sample(kind: str, label: str, folder: str, count: int, epochs: int) -> float:
    """In a worker: one sample of some epochs of a way."""
    dataset = tf_stores.dataset_of(kind, label, folder, count)
    with stopwatch() as elapsed:
        for _ in range(epochs):
            for batch in dataset:  # the batch stays until the next one has come, as in the loops that people write
                look_at(batch)
    return elapsed() / (epochs * count)


def report_rates(report: Report, workers: dict[str, Worker], folder: str, kind: str, count: int) -> None:
    """All ways to go through samples of a kind, and how they compare."""
    args, sides = report.args, {}
    for label, way in WAYS[kind].items():
        if way.is_installed and way.process in workers:
            epochs = args.epochs if way.is_fast else 1
            measured = partial(workers[way.process], seconds_a_sample, kind, label, folder)
            sides[label] = partial(measured, min(count, args.slow) if way.is_slow else count, epochs)
    seconds = medians(sides, args.rounds)
    rows = []
    for label, value in seconds.items():
        row: dict[str, Any] = {"way": label, "an epoch": Seconds(value * count), "a batch": Seconds(value * BATCH)}
        row |= {"a sample": Seconds(value), "rate": Rate(BYTES[kind] / value)}
        if EACH in seconds:
            row["faster than 0.9.0"] = Times(seconds[EACH] / value)
        rows.append(row)
    report.section(f"An epoch of {count:,} {kind}", rows)
    ratios(report, kind, seconds, REQUIRED[kind])


@cache
def learned(folder: str, count: int) -> tuple[Any, np.ndarray, np.ndarray, dict[str, Any]]:
    """A model, what it learns from, and the same as what `fit` takes, every row of which has come once."""
    import keras

    import mmap_ninja_tf

    random = np.random.default_rng(1)
    x, y = random.random((count, WIDTH), np.float32), random.integers(0, CLASSES, count)
    maps = tuple(Path(folder) / f"fit-{name}" for name in "xy")
    for below, array in zip(maps, (x, y), strict=True):
        stores.build(samples.DENSE, below, array)
    taken: dict[str, Any] = {
        DATASET: mmap_ninja_tf.to_tf_dataset(maps, BATCH, shuffle=True),
        PY_DATASET: mmap_ninja_tf.MmapPyDataset(maps, BATCH, shuffle=True),
    }
    for label, dataset in taken.items():
        rows, labels = (np.concatenate(parts) for parts in zip(*dataset, strict=True))
        is_same = sorted(zip(rows[:, 0], labels, strict=True)) == sorted(zip(x[:, 0], y, strict=True))
        assert is_same, f"{label} does not read what is stored"
    model = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(CLASSES)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, x, y, taken


def seconds_a_fit(label: str, folder: str, count: int, epochs: int) -> float:
    """In a worker: some epochs of training."""
    model, x, y, taken = learned(folder, count)
    with stopwatch() as elapsed:
        if label == ARRAYS:
            model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
        else:
            model.fit(taken[label], epochs=epochs, shuffle=False, verbose=0)  # they come shuffled
    return elapsed()


def report_fit(report: Report, worker: Worker, folder: str) -> None:
    """Training on a map and on arrays."""
    args = report.args
    ways = ARRAYS, DATASET, PY_DATASET
    measured = {label: partial(worker, seconds_a_fit, label, folder, args.fit_rows, args.fit_epochs) for label in ways}
    seconds = medians(measured, FIT_ROUNDS * args.rounds)
    rows = []
    for label, value in seconds.items():
        ratio = Times(value / seconds[ARRAYS])
        verdict = " at full size" if args.quick else "" if ratio <= MOST_OF_RAM else "  MISSED"
        row: dict[str, Any] = {"fit on": label, "all epochs": Seconds(value), "of that in RAM": ratio}
        row["a step"] = Seconds(value / (args.fit_epochs * -(-args.fit_rows // BATCH)))
        row["required"] = f"at most {MOST_OF_RAM:g} {TIMES}{verdict}" if label == DATASET else ""
        rows.append(row)
    report.section(f"fit, {args.fit_epochs} epochs of {args.fit_rows:,} rows of {WIDTH * 4 / 1000:.3g} kB", rows)


def resident_memory() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def with_a_pause(batches: Iterable[Any]) -> Iterator[Any]:
    """They come once all that is made ahead is there, besides two: no moment needs more memory, in whichever epoch."""
    batches = iter(batches)
    held = list(islice(batches, 2))
    time.sleep(PAUSE)
    while held:
        yield held.pop(0)
    yield from batches


def memory_by_epoch(kind: str, folder: str, count: int, epochs: int) -> list[int]:
    """In a worker: its resident memory after each epoch."""
    dataset, found = tf_stores.ours(kind, Path(folder), count), []
    for _ in range(epochs):
        assert (
            sum(sum(tf_stores.numbers_of(kind, batch)) for batch in with_a_pause(dataset)) == count * (count - 1) // 2
        )
        gc.collect()
        found.append(resident_memory())
    return found


def report_memory(report: Report, worker: Worker, folder: str, counts: dict[str, int]) -> None:
    """Whether a process takes more memory the more epochs it has gone through."""
    if not Path("/proc/self/statm").exists():
        print("\nThis system does not tell what memory is resident: nothing about that")
        return
    args, rows = report.args, []
    for kind, count in counts.items():
        found = worker(memory_by_epoch, kind, folder, count, args.memory_epochs)
        growth = found[-1] - found[0]
        row: dict[str, Any] = {BATCHED: f"{count:,} {kind}"}
        row |= {f"after epoch {number}": Size(size) for number, size in enumerate(found, 1)}
        verdict = " at full size" if args.quick else "" if growth <= MOST_GROWTH else "  MISSED"
        row |= {"growth": f"{growth / 1e6:,.1f} MB", "required": f"at most {Size(MOST_GROWTH)}{verdict}"}
        rows.append(row)
    report.section("Resident memory", rows)


def main() -> None:
    args = arguments(
        __doc__,
        images=(12_288, 512),
        rows=(12_288, 512),
        texts=(12_288, 512),
        slow=(512, 64),
        epochs=(4, 1),
        fit_rows=(12_288, 512),
        fit_epochs=(3, 2),
        memory_epochs=(5, 3),
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # of all workers
    counts = {FIXED: args.images, ROWS: args.rows, TEXTS: args.texts}
    report = Report(args)
    with scratch(args) as folder, started(OURS, OLD, OTHERS) as found:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda worker: worker(prepare), found))
        workers = {worker.name: worker for worker in found}
        report_memory(report, workers[OURS], str(folder), counts)  # before it has done anything else
        for kind, count in counts.items():
            report_rates(report, workers, str(folder), kind, count)
        report_fit(report, workers[OURS], str(folder))
    report.finish()


if __name__ == "__main__":
    main()
