"""What reads a map, or mends it, as changes from its samples to the same samples."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import changes
from changes import CHANGES, KINDS, Change, Kind, interrupt
from mmap_ninja import Mmap, open_map, verify
from plain_reader import same


def _operations(kind: Kind) -> dict[str, Change]:
    samples = kind.samples

    def made(folder: Path) -> None:
        kind.build(folder, samples)

    def with_leftovers(folder: Path) -> None:
        made(folder)
        interrupt(kind, folder, kind.first)
        for name in ("manifest.json.new", "building.json.new"):
            (folder / name).write_bytes((folder / "manifest.json").read_bytes()[:100])

    def read(folder: Path) -> None:
        found = open_map(folder)
        assert same([found[i] for i in range(len(found))], samples), "it reads other samples"

    def refresh(m: Mmap) -> None:
        m.refresh()
        assert same(list(m), samples), "it reads other samples"

    def checked(folder: Path, **options: bool) -> None:
        """What cannot be read is told as such, and nothing else."""
        told = os.strerror(errno.EIO)
        bad = [one for one in verify(folder, **options) if one.kind == "damaged" and told not in one.what]
        assert not bad, f"false: {bad}"

    reading = Change(made, read, samples, samples)
    found = {
        "open": reading,
        "refresh": replace(reading, call=refresh, opening=kind.cls),
        "verify": replace(reading, call=checked),
        "repair": replace(reading, begin=with_leftovers, call=lambda folder: checked(folder, repair=True)),
    }
    if "zstd_level" not in kind.options:
        found["accept"] = _acceptance(kind, lambda folder: checked(folder, accept=True))
    return found


def _acceptance(kind: Kind, call) -> Change:
    """Accept a sample that was assigned and not flushed."""
    new = [kind.changed(kind.samples[0]), *kind.samples[1:]]

    def begin(folder: Path) -> None:
        kind.build(folder, kind.samples)
        kind.cls(folder, mode="r+")[0] = new[0]

    return Change(begin, call, new, new)


READS = {
    f"{name}: {operation}": replace(change, kind=name, operation=operation)
    for name, kind in KINDS.items()
    for operation, change in _operations(kind).items()
}
EVERYTHING = CHANGES | READS
SHORT = changes.SHORT | {f"mixed: {operation}" for operation in _operations(KINDS["mixed"])}
