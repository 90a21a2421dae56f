"""A pass over texts in one .txt file each, and over the same texts in a map.

Speaks to no required figure: it is the main job with texts in the place of photographs. The texts are Python's
own sources in pieces of about 1.5 kB. A pass makes the `str` of each and adds up the lengths, so every byte is
read and decoded. The page cache is warm for all. Disk counts whole blocks; RAM is the anonymous memory that
opening (for the list: loading) and one pass add to a fresh process.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import mmap_ninja

from .harness import Report, arguments, disk_used, private_memory, scratch, stopwatch
from .passes import Questions, report_passes
from .photographs import shuffled
from .samples import texts
from .workers import LIST, OLD, OURS

FILES = "files"
LENGTHS = "sum of all lengths"
WAYS = {
    "one .txt file a text": (FILES, LENGTHS),
    "mmap_ninja": (OURS, LENGTHS),
    "0.9.0": (OLD, LENGTHS),
    "list in memory": (LIST, LENGTHS),
}


class TextFiles:
    """Texts in one file each: `files[i]` reads one."""

    def __init__(self, folder: Path, count: int) -> None:
        self.paths = [str(folder / f"{number:06}.txt") for number in range(count)]

    def __getitem__(self, i: int) -> str:
        with open(self.paths[i], encoding="utf-8", newline="") as file:
            return file.read()

    def write(self, stored: Sequence[str]) -> None:
        """Writes all files."""
        for path, text in zip(self.paths, stored, strict=True):
            Path(path).write_text(text, encoding="utf-8", newline="")


def made(count: int) -> list[str]:
    """The texts."""
    return texts(count, mean=1500)


def bytes_on_disk(side: str, folder: str, count: int) -> int:
    """In a worker: writes what this side reads."""
    path = Path(folder) / side
    if side == LIST:
        return 0
    if side == FILES:
        path.mkdir()
        TextFiles(path, count).write(made(count))
    else:
        mmap_ninja.StringsMmap.from_generator(path, made(count), batch_size=1024)
    return disk_used(path)


@cache
def opened(side: str, folder: str, count: int) -> Sequence[str]:
    """In a worker: the texts as this side keeps them."""
    path = Path(folder) / side
    if side == FILES:
        return TextFiles(path, count)
    return made(count) if side == LIST else mmap_ninja.StringsMmap(path)


def seconds_a_pass(side: str, folder: str, count: int, what: str) -> float:
    """In a worker: one pass; there is only one thing it does."""
    stored, order = opened(side, folder, count), shuffled(count)
    with stopwatch() as elapsed:
        total = sum(len(stored[i]) for i in order)
    assert total
    return elapsed()


def private_bytes(side: str, folder: str, count: int) -> int:
    """In a fresh worker: what opening and one pass add to the memory."""
    order = shuffled(count)
    before = private_memory()
    stored = opened(side, folder, count)
    assert sum(len(stored[i]) for i in order)
    return private_memory() - before


def main() -> None:
    args = arguments(__doc__, texts=(20_000, 2_000))
    report = Report(args)
    with scratch(args) as folder:
        questions = Questions(bytes_on_disk, seconds_a_pass, private_bytes)
        report_passes(report, questions, WAYS, str(folder), args.texts)
    report.finish()


if __name__ == "__main__":
    main()
