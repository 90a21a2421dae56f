"""One pass over a whole collection, kept in several ways: the table that bench_images and bench_texts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .harness import Report, Seconds, Size, Times, medians
from .workers import OLD, has_old, started


@dataclass(frozen=True)
class Questions:
    """What a worker is asked about the collection as one side keeps it.

    All three take the side, the folder and the number of samples; `seconds_a_pass` also what the pass does.
    """

    bytes_on_disk: Callable[..., int]  # writes the collection first
    seconds_a_pass: Callable[..., float]
    private_bytes: Callable[..., int]  # asked in a fresh process, once all is written


def report_passes(
    report: Report, questions: Questions, ways: Mapping[str, tuple[str, str]], folder: str, count: int
) -> None:
    """Measures each way, `label: (side, what the pass does)`; the first is what the others are compared with."""
    ways = {label: way for label, way in ways.items() if way[0] != OLD or has_old()}
    sides = list(dict.fromkeys(side for side, _ in ways.values()))
    with started(*sides) as workers:
        by_name = {worker.name: worker for worker in workers}
        disk = {side: by_name[side](questions.bytes_on_disk, side, folder, count) for side in sides}
        seconds = medians(
            {
                label: partial(by_name[side], questions.seconds_a_pass, side, folder, count, what)
                for label, (side, what) in ways.items()
            },
            report.args.rounds,
        )
    memory = {}
    for side in sides:
        with started(side) as (worker,):
            memory[side] = worker(questions.private_bytes, side, folder, count)
    slowest = next(iter(seconds.values()))
    rows: list[dict[str, Any]] = [
        {
            "way": label,
            "a pass": Seconds(seconds[label]),
            "a sample": Seconds(seconds[label] / count),
            "faster": Times(slowest / seconds[label]),
            "disk": Size(disk[side]),
            "RAM": Size(memory[side]),
        }
        for label, (side, _) in ways.items()
    ]
    report.section(f"One pass over {count:,} samples in shuffled order, pages in memory", rows)
