"""Stories: each change of the table in `changes`, and changes that follow one another."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from changes import CHANGES, KINDS, METADATA, ORDERED, Change, Kind, tear
from mmap_ninja import open_map, upgrade, verify
from mmap_ninja._storage import disk
from power.story import Step, Story


def story_of(change: Change) -> Story:
    """A change of the table as a story of one call."""
    about = change.operation
    step = Step(
        change.act,
        change.new,
        is_safe="unsynced" not in about and about != "flush",  # before a flush there are unsynced samples
        is_durable="unsynced" not in about,
        is_build=change.is_build,
        assigned=change.assigned,
        metadata=METADATA if about == "metadata" else None,
    )
    kind = KINDS["dense" if change.kind == ORDERED else change.kind]
    return Story(change.begin, change.old, (step,), kind, starts_unfinished=about in ("resume", "resume widening"))


def extend(kind: Kind, first: int, stop: int | None = None, *, sync: bool = True, large: bool = False) -> Step:
    """Extend a map of the first samples by the next ones."""
    samples = kind.large if large else kind.samples
    return Step(
        lambda f: open_map(f).extend(samples[first:stop], sync=sync), samples[:stop], is_safe=sync, is_durable=sync
    )


def create(kind: Kind, samples: list, *, sync: bool = True, **options: object) -> Step:
    return Step(
        lambda f: kind.build(f, samples, sync=sync, **options), samples, is_safe=sync, is_durable=sync, is_build=True
    )


def set_metadata(samples: list) -> Step:
    def act(folder: Path) -> None:
        open_map(folder).metadata = METADATA

    return Step(act, samples, metadata=METADATA)


def assign(kind: Kind, samples: list, place: int) -> Step:
    new = [kind.changed(sample) if i == place else sample for i, sample in enumerate(samples)]

    def act(folder: Path) -> None:
        m = open_map(folder, mode="r+")
        m[place] = new[place]
        m.close()

    return Step(act, new, assigned=(place,))


def with_orphans(kind: Kind, count: int) -> Callable[[Path], None]:
    """A map of the first samples, and behind its end what a writer left who was killed before the commit."""

    def begin(folder: Path) -> None:
        m = kind.build(folder, kind.samples[:count])
        manifest = (folder / "manifest.json").read_bytes()
        m.extend([kind.changed(sample) for sample in kind.samples[count:]])
        (folder / "manifest.json").rename(folder / "manifest.json.new")
        (folder / "manifest.json").write_bytes(manifest)

    return begin


def fail_to_extend(kind: Kind, first: int) -> Step:
    """An extend that finds the disk full when it comes to its manifest, and gives its room back."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def act(folder: Path) -> None:
        m = open_map(folder)
        with mock.patch.object(disk, "create_temporary", side_effect=full), pytest.raises(OSError, match="No space"):
            m.extend([kind.changed(sample) for sample in kind.samples[first:]])

    return Step(act, kind.samples[:first])


def made(kind: Kind, samples: list) -> Callable[[Path], object]:
    return lambda folder: kind.build(folder, samples)


def nothing(folder: Path) -> None:
    """There is no map to begin with."""


def stories(name: str, kind: Kind) -> dict[str, Story]:
    """Several calls, one after another."""
    samples, first, large = kind.samples, kind.first, kind.large
    begun, half = len(first), len(large) - 4
    found = {
        "two extends": Story(made(kind, first), first, (extend(kind, begun, begun + 1), extend(kind, begun + 1)), kind),
        "create, extend, replace": Story(
            nothing, None, (create(kind, first), extend(kind, begun), create(kind, samples[::-1])), kind
        ),
        "metadata, then extend": Story(made(kind, first), first, (set_metadata(first), extend(kind, begun)), kind),
        "extend over what was left by a killed writer": Story(
            with_orphans(kind, begun), first, (extend(kind, begun),), kind
        ),
        "extend after one that failed": Story(
            made(kind, first), first, (fail_to_extend(kind, begun), extend(kind, begun)), kind
        ),
        "repair of what was left by a killed writer": Story(
            with_orphans(kind, begun), first, (Step(lambda f: verify(f, repair=True), first), extend(kind, begun)), kind
        ),
        "repair of what was left by a killed build": Story(
            CHANGES[f"{name}: resume beside a map"].begin,
            samples[::-1],
            (Step(lambda f: verify(f, repair=True), samples[::-1]), create(kind, first)),
            kind,
        ),
        "unsynced, over what was left by a killed writer": Story(
            with_orphans(kind, begun), first, (extend(kind, begun, sync=False),), kind
        ),
        "extend after an unsynced extend": Story(
            made(kind, first), first, (extend(kind, begun, begun + 1, sync=False), extend(kind, begun + 1)), kind
        ),
        "extend after an unsynced create": Story(
            nothing, None, (create(kind, first, sync=False), extend(kind, begun)), kind
        ),
        "metadata after an unsynced extend": Story(
            made(kind, first), first, (extend(kind, begun, sync=False), set_metadata(samples)), kind
        ),
        "replace after an unsynced extend": Story(
            made(kind, first), first, (extend(kind, begun, sync=False), create(kind, samples[::-1])), kind
        ),
        "two unsynced extends": Story(
            made(kind, first),
            first,
            (extend(kind, begun, begun + 1, sync=False), extend(kind, begun + 1, sync=False)),
            kind,
        ),
        "extend after an unsynced extend over blocks": Story(
            made(kind, large[:half]),
            large[:half],
            (extend(kind, half, half + 3, sync=False, large=True), extend(kind, half + 3, large=True)),
            kind,
        ),
    }
    if "zstd_level" not in kind.options:
        found |= {
            "assign after an unsynced extend": Story(
                made(kind, first), first, (extend(kind, begun, sync=False), assign(kind, samples, 0)), kind
            ),
            "extend after an assignment": Story(
                made(kind, first),
                first,
                (
                    assign(kind, first, 0),
                    Step(
                        lambda f: open_map(f).append(samples[begun]),
                        [kind.changed(samples[0]), *samples[1 : begun + 1]],
                    ),
                ),
                kind,
            ),
            "assign to the last sample after an unsynced extend over blocks": Story(
                made(kind, large[:half]),
                large[:half],
                (extend(kind, half, sync=False, large=True), assign(kind, large, len(large) - 1)),
                kind,
            ),
        }
    return {f"{name}: {about}": story for about, story in found.items()}


def torn(layout: str) -> Story:
    """What 0.9.0 leaves when it is killed while it extends, and its rescue."""
    kind, begin = KINDS[layout], lambda folder: tear(layout, folder)
    return Story(begin, None, (Step(lambda f: upgrade(f, salvage=True), kind.first),), kind, starts_torn=True)


STORIES = {about: story for name, kind in KINDS.items() for about, story in stories(name, kind).items()}
STORIES |= {f"{layout}: salvage": torn(layout) for layout in ("rows", "mixed", "images", "strings", "zstd strings")}
