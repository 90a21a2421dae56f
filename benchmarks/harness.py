"""What every benchmark shares: its arguments, fair timing, memory, and the table and JSON that come out."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .workers import BUILD, OLD, OURS

TIMES = "\N{MULTIPLICATION SIGN}"


def arguments(
    description: str | None, flags: Mapping[str, str] | None = None, **sizes: tuple[int, int]
) -> argparse.Namespace:
    """Reads the command line. Each size is an option whose default is its (full, quick) number."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: some seconds in all")
    parser.add_argument("--rounds", type=int, help="how often each side is measured (9; quick: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--folder", type=Path, default=BUILD, help="the disk to measure on (build/benchmarks)")
    for name, meaning in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    for name, (full, quick) in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"{full:,} (quick: {quick:,})")
    args = parser.parse_args()
    args.description = (description or "").strip()
    args.rounds = args.rounds or (5 if args.quick else 9)
    for name, numbers in sizes.items():
        if getattr(args, name) is None:
            setattr(args, name, numbers[args.quick])
    return args


@contextmanager
def scratch(args: argparse.Namespace) -> Iterator[Path]:
    """An empty folder on the disk to measure, removed afterwards."""
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="run-") as folder:
        yield Path(folder)


def medians(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each side's figure.

    Each round asks every side once, in alternating order, so that a busy machine disturbs all alike. A first
    round, which builds what is missing and fills the caches, is thrown away.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            figure = sides[name]()
            if number:
                figures[name].append(figure)
    return {name: statistics.median(of_side) for name, of_side in figures.items()}


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Times a block, the garbage collector being off.

    What it gives is called after the block: `with stopwatch() as elapsed: work()`, then `elapsed()` is seconds.
    """
    gc.collect()
    give_back_memory()
    gc.disable()
    stopped: list[float] = []
    try:
        started = time.perf_counter()
        yield lambda: stopped[0]
        stopped.append(time.perf_counter() - started)
    finally:
        gc.enable()


def give_back_memory() -> None:
    """Returns freed memory to the kernel, as far as the C library can, so that each round starts like a new program.

    Otherwise what needs much memory would find it there already, from the second round on.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def private_memory() -> int:
    """Bytes of anonymous memory: what this process alone holds and the kernel cannot drop. -1 where it cannot be told.

    Pages of mapped files do not count: they are the page cache's, shared by all readers, and free for the taking.
    """
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return -1
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def disk_used(folder: Path) -> int:
    """Bytes that the files under a folder take on the disk, whole blocks counted."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


@dataclass
class Report:
    """The rows of one benchmark: printed section by section, and kept for the JSON file."""

    args: argparse.Namespace
    sections: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machine = machine(self.args.folder)
        print(self.args.description + "\n")
        print("Measured with " + ", ".join(f"{name} {value}" for name, value in self.machine.items()))

    def section(self, title: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Prints rows under a heading; the first row's keys are the columns."""
        kept = [dict(row) for row in rows]
        self.sections[title] = kept
        print(f"\n{title}")
        headers = list(dict.fromkeys(key for row in kept for key in row))
        print_table(headers, [[str(row.get(header, "")) for header in headers] for row in kept])

    def finish(self) -> None:
        """Writes the JSON file, if one was asked for."""
        if self.args.json:
            sizes = {name: value for name, value in vars(self.args).items() if isinstance(value, int)}
            made = {"benchmark": self.args.description.partition("\n")[0], "machine": self.machine, "arguments": sizes}
            self.args.json.write_text(json.dumps(made | {"sections": self.sections}, indent=2) + "\n")


def versus(
    work: str, seconds: Mapping[str, float], required: float | None = None, ours: str = OURS, *, full_size: bool = True
) -> dict[str, Any]:
    """A row of seconds by side, with how many times faster than 0.9.0 ours is and has to be at full size."""
    row: dict[str, Any] = {"work": work, **{name: Seconds(value) for name, value in seconds.items()}}
    if OLD in seconds:
        row["faster than 0.9.0"] = ratio = Times(seconds[OLD] / seconds[ours])
        if required is not None:
            verdict = " at full size" if not full_size else "" if ratio >= required else "  MISSED"
            row["required"] = f"{required:g} {TIMES}{verdict}"
    return row


def at_least(figure: float, least: float, *, full_size: bool = True) -> str:
    """The ratio that is required at full size, and whether the figure misses it."""
    verdict = " at full size" if not full_size else "" if figure >= least else "  MISSED"
    return f"at least {least:g} {TIMES}{verdict}"


def ratios(
    report: Report, kind: str, seconds: Mapping[str, float], required: Iterable[tuple[str, str, float | None]]
) -> None:
    """A table of how many times faster one way is than another, of those that were measured, and what is required."""
    rows = []
    for fast, slow, least in required:
        if fast in seconds and slow in seconds:
            ratio = Times(seconds[slow] / seconds[fast])
            verdict = "" if least is None else at_least(ratio, least, full_size=not report.args.quick)
            rows.append({"how many times faster": fast, "than": slow, "measured": ratio, "required": verdict})
    if rows:
        report.section(f"The same in ratios: {kind}", rows)


class Seconds(float):
    """Shown with the unit that suits it."""

    def __str__(self) -> str:
        for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
            if self >= size:
                return f"{self / size:.3g} {unit}"
        return f"{self / 1e-9:.0f} ns"


class Times(float):
    """A ratio."""

    def __str__(self) -> str:
        return f"{self:,.0f} {TIMES}" if self >= 100 else f"{self:.3g} {TIMES}"


class Rate(float):
    """Bytes a second, shown in gigabytes."""

    def __str__(self) -> str:
        return f"{self / 1e9:.3g} GB/s"


class Size(float):
    """Bytes, shown in megabytes; a negative number is one that could not be measured."""

    def __str__(self) -> str:
        return "?" if self < 0 else f"{self / 1e6:,.1f} MB"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, ["-" * width for width in widths], *rows):
        first, *others = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  " + "   ".join([first, *others]))
    sys.stdout.flush()


def machine(folder: Path) -> dict[str, Any]:
    """What the figures depend on; nothing that tells whose machine it is."""
    return {
        "Python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "CPUs": os.cpu_count(),
        "filesystem": filesystem(folder),
        "one sync": str(sync_time(folder)),
    }


def filesystem(folder: Path) -> str:
    """The type of the filesystem that a folder lies on."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    above = {str(folder.resolve()), *map(str, folder.resolve().parents)}
    return max((len(mount[1]), mount[2]) for mount in mounts if mount[1] in above)[1]


def sync_time(folder: Path) -> Seconds:
    """What one small sync costs on this disk: the median of ten."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        seconds = []
        for _ in range(10):
            file.write(bytes(4096))
            file.flush()
            with stopwatch() as elapsed:
                os.fsync(file.fileno())
            seconds.append(elapsed())
    return Seconds(statistics.median(seconds))
