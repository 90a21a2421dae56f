"""What it costs to build a map from a generator, to extend it, and to append to it.

Speaks to the targets "build images / token rows / texts from a generator" and "extend it by 1,000 samples".

0.9.0 never asks the disk to keep what it wrote, so like is compared with like in two pairs: `sync=False`
against 0.9.0 as it is, and our default, durable on return, against 0.9.0 followed by an fsync of each of its
files. The ratio stands on the pair that the target names. The samples are in memory before the clock starts and
the generator only hands them out; each build goes into a new folder, which is deleted after the clock stops.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from . import samples, stores
from .harness import Report, Times, arguments, medians, scratch, stopwatch, versus
from .workers import OLD, OURS, Worker, started

UNSYNCED = f"{OURS}, sync=False"
OLD_SYNCED = f"{OLD}, then fsync"
# What each side adds to a call of its library, and whether the benchmark syncs the files afterwards.
SIDES: dict[str, tuple[str, dict[str, bool], bool]] = {
    OURS: (OURS, {}, False),
    UNSYNCED: (OURS, {"sync": False}, False),
    OLD: (OLD, {}, False),
    OLD_SYNCED: (OLD, {}, True),
}
# Sample kinds with the option that says how many, and how many times faster than 0.9.0 a synced build has to be.
KINDS = {samples.IMAGES: ("images", 1), samples.TOKENS: ("rows", 2), samples.TEXTS: ("texts", 1)}


def seconds_a_build(side: str, folder: str, kind: str, count: int) -> float:
    """In a worker: one build of a new map."""
    _, options, fsync_after = SIDES[side]
    stored, path = samples.make(kind, count), Path(folder) / "built"
    with stopwatch() as elapsed:
        stores.build(kind, path, stored, **options)
        if fsync_after:
            fsync_all(path)
    shutil.rmtree(path)  # so that its pages never go to the disk while the next side is timed
    return elapsed()


def fsync_all(folder: Path) -> None:
    """Makes the kernel write what it holds of each file of a folder, and the folders themselves."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


@cache
def growing_map(version: str, folder: str, count: int) -> tuple[Path, Any]:
    """In a worker: a map of `count` short rows, open, and its folder."""
    path = Path(folder) / f"{version}-{count}"
    return path, stores.build(samples.SHORT, path, samples.short_rows(count))


def seconds_an_extend(side: str, folder: str, count: int, kind: str, added: int) -> float:
    """In a worker: one `extend`; the map grows by it at each call."""
    version, options, fsync_after = SIDES[side]
    path, grown = growing_map(version, folder, count)
    rows = samples.make(kind, added)
    with stopwatch() as elapsed:
        grown.extend(rows, **options)
        if fsync_after:
            fsync_all(path)
    return elapsed()


def seconds_an_append(side: str, folder: str, count: int) -> float:
    """In a worker: the mean of ten `append`s of one row of 820 B."""
    version, options, fsync_after = SIDES[side]
    path, grown = growing_map(version, folder, count)
    (row,) = samples.make(samples.TOKENS, 1)
    with stopwatch() as elapsed:
        for _ in range(10):
            grown.append(row, **options)
            if fsync_after:
                fsync_all(path)
    return elapsed() / 10


def asked(workers: list[Worker], function: Callable[..., float], *args: Any) -> dict[str, Callable[[], float]]:
    """For `medians`: the same question for each side, to the worker that has its version."""
    by_name = {worker.name: worker for worker in workers}
    return {
        side: partial(by_name[version], function, side, *args)
        for side, (version, _, _) in SIDES.items()
        if version in by_name
    }


def report_builds(report: Report, workers: list[Worker], folder: str) -> None:
    """Building from a generator."""
    rows = []
    for kind, (option, required) in KINDS.items():
        count = getattr(report.args, option)
        seconds = medians(asked(workers, seconds_a_build, folder, kind, count), report.args.rounds)
        rows.append(versus(f"{count:,} {kind}", seconds, required))
    report.section("Building from a generator (required: ours with its one sync against 0.9.0 with none)", rows)


def report_growing(report: Report, workers: list[Worker], folder: str) -> None:
    """Extending and appending to a small and a large map."""
    args = report.args
    small, large = 10_000, args.extend
    rows = []
    for kind, required in ((samples.SHORT, (5, 3)), (samples.TOKENS, (None, None))):
        seconds = {}
        for count in (small, large):
            questions = asked(workers, seconds_an_extend, folder, count, kind, args.added)
            seconds[count] = medians(questions, 2 * args.rounds)
            work = f"extend {count:,} samples by {args.added:,} {kind}"
            of_large = required if count == large else (None, None)
            rows += both_ratios(work, seconds[count], *of_large, full_size=large >= 2_000_000)
        growth = {side: Times(seconds[large][side] / seconds[small][side]) for side in seconds[large]}
        rows.append({"work": f"  times as long as at {small:,}", **growth, "required": "flat" if required[0] else ""})
    appends = medians(asked(workers, seconds_an_append, folder, small), args.rounds)
    rows += both_ratios(f"append one to {small:,}", appends)
    report.section("Extending (required: against 0.9.0 without a sync)", rows)


def both_ratios(
    work: str,
    seconds: dict[str, float],
    unsynced: float | None = None,
    synced: float | None = None,
    *,
    full_size: bool = True,
) -> list[dict[str, Any]]:
    """A row of seconds, and one row for each of our two ways against 0.9.0 as it is."""
    times = {name: value for name, value in versus(work, seconds).items() if name in ("work", *SIDES)}
    rows = [times]
    for ours, required, label in ((UNSYNCED, unsynced, "  sync=False"), (OURS, synced, "  with its syncs")):
        row = versus(label, seconds, required, ours, full_size=full_size)
        rows.append({name: value for name, value in row.items() if name not in SIDES})
    return rows


def main() -> None:
    args = arguments(
        __doc__,
        images=(1_500, 200),
        rows=(60_000, 8_000),
        texts=(30_000, 5_000),
        extend=(2_000_000, 200_000),
        added=(1_000, 1_000),
    )
    report = Report(args)
    with scratch(args) as folder, started(OURS, OLD) as workers:
        report_builds(report, workers, str(folder))
        report_growing(report, workers, str(folder))
    report.finish()


if __name__ == "__main__":
    main()
