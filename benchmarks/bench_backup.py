"""Backing up a map, against `cp --reflink=never` of the same folder, which compares nothing.

Both copy a folder that lies in the page cache, and neither waits for the disk (`sync=False`). `backup` reads what has
arrived back and compares it with its checksums, on the second core; the copy is removed after each round.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mmap_ninja

from .bench_verify import made
from .harness import Rate, Report, Size, Times, arguments, at_least, medians, scratch, stopwatch

REQUIRED = 0.6


def seconds(work: Callable[[], object], copy: Path) -> float:
    """What one copy takes; it is removed after that, which is not counted."""
    with stopwatch() as elapsed:
        work()
    shutil.rmtree(copy)
    return elapsed()


def row(work: str, folder: Path, rounds: int, *, full_size: bool) -> dict[str, Any]:
    """Gigabytes a second of both."""
    copy, size = folder.with_name("copy"), sum(path.stat().st_size for path in folder.iterdir())

    def backup() -> None:
        assert mmap_ninja.backup(folder, copy, sync=False) == []

    def cp() -> None:
        subprocess.run(["cp", "-r", "--reflink=never", str(folder), str(copy)], check=True)

    sides: Mapping[str, Callable[[], float]] = {
        "backup": lambda: seconds(backup, copy),
        "cp": lambda: seconds(cp, copy),
    }
    took = medians(sides, rounds)
    ratio = took["cp"] / took["backup"]
    return {
        "map": work,
        "bytes": Size(size),
        "backup": Rate(size / took["backup"]),
        "cp": Rate(size / took["cp"]),
        "ratio": Times(ratio),
        "required": at_least(ratio, REQUIRED, full_size=full_size),
    }


def main() -> None:
    args = arguments(__doc__, megabytes=(400, 20))
    report = Report(args)
    with scratch(args) as folder:
        maps = made(folder, args.megabytes)
        rows = [row(work, path, args.rounds, full_size=not args.quick) for work, path in maps.items()]
        report.section("A copy of a map", rows)
    report.finish()


if __name__ == "__main__":
    main()
