"""Hostile folders: mutants of small maps of every kind and both formats, and everything that a reader does to one.

`mutant(seeds, number)` is a pure function: a failure is reported by its number, and can be made again. What is mutated
is a value of the manifest (sealed with a right checksum), a row of an index, a small file of format 1, a zstd frame, or
plain bytes; the sizes around it are made to agree with it half of the time, or nothing would get past the first check.
"""

import contextlib
import os
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.exercise import WAYS, Ears, Exercise, Failure
from fuzz.mutants import Mutant, mutant
from fuzz.seed import Seed, files_of, seeds
from fuzz.values import DTYPES, FRAME, Raw, sealed
from mmap_ninja.errors import PartBuiltWarning, UpgradeWarning

__all__ = [
    "ALLOWED",
    "DTYPES",
    "FRAME",
    "SLOW",
    "WAYS",
    "Ears",
    "Exercise",
    "Failure",
    "Mutant",
    "Raw",
    "Seed",
    "files_of",
    "mutant",
    "quiet_disk",
    "restrained",
    "sealed",
    "seeds",
    "strict_warnings",
    "try_mutants",
]

ALLOWED = 64 << 20  # bytes that reading any mutant may take
SLOW = 5  # seconds after which one mutant is a hang


def quiet_disk() -> None:
    """Syncs cost milliseconds, and no power is cut here."""
    os.fsync = os.fdatasync = lambda fd: None


def restrained(room: int = ALLOWED) -> None:
    """Leave the process no more memory than reading any mutant may take."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))


@contextlib.contextmanager
def strict_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", PartBuiltWarning)
        warnings.simplefilter("ignore", UpgradeWarning)
        yield


def write_files(folder: Path, files: dict[str, bytes | None]) -> None:
    for name, raw in files.items():
        path = folder / name
        if path.is_dir():  # a name that a mutant has made of nothing
            continue
        if raw is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)


def try_mutants(
    all_seeds: list[Seed], numbers: range, work: Path, began: Callable[[int], None], *, writes_each: int = 16
) -> Iterator[Failure]:
    """Every mutant of these numbers, one after another in a folder of its seed; for a child process of its own."""
    ears = Ears()
    quiet_disk()
    restrained()
    ready: set[str] = set()
    with strict_warnings():
        for number in numbers:
            began(number)
            signal.setitimer(signal.ITIMER_REAL, SLOW)  # the signal ends the child: a hang
            made = mutant(all_seeds, number)
            folder = work / made.seed.name
            if made.seed.name not in ready:
                shutil.rmtree(folder, ignore_errors=True)
                write_files(folder, made.seed.files)
                ready.add(made.seed.name)
            write_files(folder, made.changes)
            exercise = Exercise(folder, made.seed, number, made.what, ears)
            exercise.read()
            if number % writes_each == 0:
                exercise.write()
                ready.remove(made.seed.name)
            else:
                write_files(folder, {name: made.seed.files.get(name) for name in made.changes})
            yield from exercise.failures
    signal.setitimer(signal.ITIMER_REAL, 0)
