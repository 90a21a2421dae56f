"""Training loops in JAX: `MmapLoader`, the loop that users of 0.9.0 write, Grain and tf.data.

Batches are of 256 samples, shuffled: images of 48 kB, and token rows of 820 B that are filled up to one of four
lengths. Their pages are in memory. The consumer waits until a batch is on the device, which is the CPU
(`block_until_ready`), and wants the next one. Figures include the shuffling and the start of each epoch. The memcpy
copies as many bytes in the order in which they lie, a batch at once, into one buffer, which stays in the cache.

Over 0.9.0, a batch is `np.stack([x[i] for i in numbers])`, and that is given to `jnp.asarray` or `jax.device_put`; rows
are copied into `np.zeros`. ArrayRecord is uncompressed, `group_size:1`, and read by `np.frombuffer`. Over a map, Grain
gets the map and nothing else; in RAM it gets an array, or a list of arrays, and no source is faster. It reads as it
does if nothing is said (16 threads, 500 samples ahead), without threads, as its documentation recommends for what is in
memory, or each of 2 threads makes a batch. Its rows are all filled up to the largest of the lengths, one by one.
TFRecord is shuffled by a buffer of 1,024. Grain and tf.data go through `--slow` samples only, from which the time of an
epoch is computed.

Compilations are those of a jitted step over one epoch of token rows, 8 a batch, of which the last one is incomplete.
"""

from __future__ import annotations

import gc
import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import jax_stores
from .harness import Rate, Report, Seconds, Times, arguments, medians, ratios, scratch, stopwatch
from .jax_stores import (
    BATCH,
    BUCKETS,
    FIXED,
    GRAIN,
    HOT,
    LOADER,
    LOADER_ROWS,
    LOADERS,
    OLD_ROWS,
    OVER_MAP,
    OVER_RAM,
    OVER_RECORDS,
    ROWS,
    STACK,
    STACK_PUT,
    TF,
    WAYS,
)
from .workers import OLD, Worker, started

BYTES = {FIXED: 48_000, ROWS: 820}  # of a sample, on average
FEW = 8  # rows a batch, where compilations are counted: the longest of them differs
OVER_BOTH = [(OVER_MAP[reading], OVER_RECORDS[reading], 1.5) for reading in OVER_MAP]
CEILING = [(OVER_RAM[reading], OVER_RECORDS[reading], None) for reading in OVER_RAM]  # what Grain itself takes
REQUIRED = {  # how many times faster than what
    FIXED: [
        (LOADER, HOT, 0.5),
        (LOADER, STACK, 2),
        (LOADER, STACK_PUT, 2),
        *((LOADER, label, 5) for label in OVER_RECORDS.values()),
        *OVER_BOTH,
        *CEILING,
    ],
    ROWS: [
        (LOADER_ROWS, OLD_ROWS, None),
        *((LOADER_ROWS, label, None) for label in OVER_RECORDS.values()),
        *((fast, slow, None) for fast, slow, _ in OVER_BOTH),
    ],
}
COUNTED = {  # options of `MmapLoader`, and whether a bound is set for them
    "buckets, drop_last": ({"buckets": BUCKETS, "drop_last": True}, True),
    "buckets": ({"buckets": BUCKETS}, False),
    "the longest row of each batch": ({}, False),
}


def prepare(process: str) -> None:
    """In a worker: what takes it seconds."""
    import jax

    jax.block_until_ready(jax.device_put(0))
    if (name := {GRAIN: "grain", TF: "tensorflow"}.get(process)) and find_spec(name):
        importlib.import_module(name)
    gc.freeze()  # or each stopwatch collects what JAX and the others have


def seconds_a_sample(kind: str, label: str, folder: str, count: int, epochs: int) -> float:
    """In a worker: one sample of some epochs of a way."""
    import jax

    batches = jax_stores.batches_of(kind, label, folder, count)
    with stopwatch() as elapsed:
        for _ in range(epochs):
            for batch in batches:  # the batch stays until the next one has come, as in the loops that people write
                jax.block_until_ready(batch)
    return elapsed() / (epochs * count)


def report_rates(report: Report, workers: dict[str, Worker], folder: str, kind: str, count: int) -> None:
    """All ways to go through samples of a kind, and how they compare."""
    args, sides, rows = report.args, {}, []
    for label, way in WAYS[kind].items():
        if way.is_installed and way.process in workers:
            measured = partial(workers[way.process], seconds_a_sample, kind, label, folder)
            sides[label] = partial(measured, *((min(count, args.slow), 1) if way.is_slow else (count, args.epochs)))
    seconds = medians(sides, args.rounds)
    for label, value in seconds.items():
        row: dict[str, Any] = {"way": label, "an epoch": Seconds(value * count), "a batch": Seconds(value * BATCH)}
        row["rate"] = Rate(BYTES[kind] / value)
        row |= {"of the memcpy": Times(seconds[HOT] / value)} if HOT in seconds else {"a row": Seconds(value)}
        rows.append(row)
    report.section(f"An epoch of {count:,} {kind}", rows)
    ratios(report, kind, seconds, REQUIRED[kind])


def compilations(label: str, folder: str, count: int) -> tuple[int, int, float]:
    """In a worker: batches of an epoch, how often their step was compiled, and the seconds of all that."""
    import jax

    compiled = []

    @jax.jit
    def step(table: Any, tokens: Any) -> Any:
        compiled.append(tokens.values.shape)  # Python comes here only when JAX compiles
        is_token = jax.numpy.arange(tokens.values.shape[1]) < tokens.lengths[:, None]
        return table[tokens.values].mean(where=is_token[:, :, None])

    options, _ = COUNTED[label]
    loader = jax_stores.ours(ROWS, Path(folder), count, batch_size=FEW, **options)
    table = jax.numpy.ones((50_000, 16))
    with stopwatch() as elapsed:
        found = [step(table, tokens) for tokens in loader]
        jax.block_until_ready(found)
    return len(found), len(compiled), elapsed()


def report_compilations(report: Report, worker: Worker, folder: str) -> None:
    """How often a step is compiled by how rows are padded."""
    count, rows = report.args.few_rows, []
    for label, (_, is_asked) in COUNTED.items():
        batches, found, seconds = worker(compilations, label, folder, count)
        row: dict[str, Any] = {"rows are filled up to": label, "batches": f"{batches:,}", "compilations": found}
        row |= {"the epoch, compiling included": Seconds(seconds)}
        verdict = "" if found <= len(BUCKETS) else "  MISSED"
        row["required"] = f"at most {len(BUCKETS)}{verdict}" if is_asked else ""
        rows.append(row)
    report.section(f"Compilations in an epoch of {count:,} token rows, {FEW} a batch", rows)


def main() -> None:
    args = arguments(
        __doc__, images=(8_192, 512), epochs=(4, 1), rows=(30_720, 2_048), slow=(4_096, 512), few_rows=(2_046, 190)
    )
    args.images = -(-args.images // BATCH) * BATCH  # whole batches, for the buffer
    os.environ["JAX_PLATFORMS"] = "cpu"  # of all workers
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    report = Report(args)
    with scratch(args) as folder, started(LOADERS, OLD, GRAIN, TF) as found:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda worker: worker(prepare, worker.name), found))
        workers = {worker.name: worker for worker in found}
        for kind, count in ((FIXED, args.images), (ROWS, args.rows)):
            report_rates(report, workers, str(folder), kind, count)
        report_compilations(report, workers[LOADERS], str(folder))
    report.finish()


if __name__ == "__main__":
    main()
