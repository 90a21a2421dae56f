"""What is wrong with a folder: every byte is compared with its checksum, every index row with the data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmap_ninja._storage import disk
from mmap_ninja._storage.flatfile import BLOCK, bad_blocks, npy_header, read_part
from mmap_ninja._storage.index import MISSING, Table, tables
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.manifest import BUILDING, CAP, DATA, INDEX, MANIFEST, NEXT, File, Manifest
from mmap_ninja._storage.snapshot import Snapshot, find_finished, read_json
from mmap_ninja.errors import MapNotFoundError, MapPathError, MmapNinjaError

DAMAGED, UNCHECKED, UNFINISHED, LEFTOVER, HEADER = "damaged", "unchecked", "unfinished", "leftover", "header"
_TRIES = 5  # for a map that changes while it is looked at
_SHOWN = 8  # ranges of damaged blocks

Tick = Callable[[int], object]


@dataclass(frozen=True)
class Finding:
    """Something about one file of a map, or about its folder, that is not as it should be.

    `kind` is `"damaged"` (not what was written), `"unchecked"` (nothing vouches for it), `"unfinished"` (a build that
    was interrupted), `"leftover"` (a file that nobody needs) or `"header"` (`np.load` would read another shape; our
    readers believe the manifest). The last two can be repaired.
    """

    path: str
    what: str
    kind: str
    repaired: bool = False

    def __str__(self) -> str:
        where = "" if self.path in self.what else f"{self.path}: "
        return f"{where}{self.what}{'; repaired' if self.repaired else ''}"


def check(folder: str, keys: Keys, tick: Tick) -> list[Finding]:
    """Everything that is wrong with a map; `tick` hears of each number of bytes that was checked.

    Raises `MapNotFoundError`, `MapPathError` where there is no map. One that is changed meanwhile is looked at again.
    """
    for _ in range(_TRIES):
        before = _manifests(folder)
        found = list(_findings(folder, keys, tick))
        if not found or _manifests(folder) == before:
            break
    return found


def _manifests(folder: str) -> list[bytes | None]:
    """What tells one state of a folder from the next."""
    found: list[bytes | None] = []
    for name in (MANIFEST, BUILDING):
        try:
            found.append(disk.read_small(os.path.join(folder, name), CAP))
        except (MmapNinjaError, NotADirectoryError):
            found.append(None)
    return found


def _findings(folder: str, keys: Keys, tick: Tick) -> Iterator[Finding]:
    finished, problems = _read(folder, MANIFEST, lambda: find_finished(folder, keys))
    building, more = _read(folder, BUILDING, lambda: read_json(folder, BUILDING))
    yield from problems
    if finished is not None:  # beside a finished map it is in nobody's way
        more = [replace(one, kind=UNFINISHED) for one in more]
    yield from more
    if finished is None and building is None and not problems and not more:
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise MapPathError(f"{folder} is a file, expected the folder of a map")
        raise MapNotFoundError(f"there is no map at {folder}")
    if finished is not None:
        yield from _check_state(folder, finished, tick)
        yield from _leftovers(folder, finished.obsolete, "of an earlier state, which the next writer removes")
    yield from _check_building(folder, finished, building, tick)
    next_ones = (MANIFEST + NEXT, BUILDING + NEXT)
    yield from _leftovers(folder, next_ones, "of a commit that was interrupted, which the next one writes over")


def _read(folder: str, name: str, read: Callable[[], Manifest | None]) -> tuple[Manifest | None, list[Finding]]:
    try:
        return read(), []
    except (MmapNinjaError, FileNotFoundError) as error:
        if isinstance(error, MapPathError):
            raise
        path = os.path.join(folder, name)  # else it is of format 1, which has no such file
        return None, [Finding(path if os.path.lexists(path) else folder, str(error), DAMAGED)]


def _check_building(folder: str, finished: Manifest | None, building: Manifest | None, tick: Tick) -> Iterator[Finding]:
    """What an interrupted build has left."""
    path = os.path.join(folder, BUILDING)
    if building is None:
        return
    if (finished is not None and finished.id == building.id) or (finished is None and building.building is None):
        yield Finding(path, "left by a commit that was interrupted; the next writer sees to it", LEFTOVER)
    elif building.building is not None and building.building.upgrade:
        yield Finding(path, "left by an upgrade that was interrupted; the next one begins anew", UNFINISHED)
        return
    else:
        what = f"a build was interrupted after {building.length} samples; the same call with resume=True finishes it"
        yield Finding(path, what, UNFINISHED)
    if finished is None:
        yield from _check_state(folder, building, tick)
    elif finished.id != building.id:  # it is in nobody's way, damaged or not
        for one in _check_state(folder, building, tick):
            yield replace(one, what=f"{one.what}; what is resumed has to be whole, build it anew", kind=UNFINISHED)


def _leftovers(folder: str, names: tuple[str, ...], what: str) -> Iterator[Finding]:
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            yield Finding(path, f"a leftover {what}", LEFTOVER)


def _check_state(folder: str, state: Manifest, tick: Tick) -> Iterator[Finding]:
    """The files of one state, then, where they are whole, the rows of its index."""
    found = [one for role, file in state.files.items() for one in _check_file(folder, state, role, file, tick)]
    yield from found
    if state.format_1:
        yield Finding(folder, "not checked: format 1 has no checksums; `upgrade` gives it some", UNCHECKED)
    if any(one.kind == DAMAGED for one in found):
        return
    try:
        problem = _bad_rows(state, Snapshot(folder, state))
    except (MmapNinjaError, FileNotFoundError) as error:
        problem = str(error)
    if problem is not None:
        name = state.files[INDEX].name if INDEX in state.files else ""
        yield Finding(os.path.join(folder, name), problem, DAMAGED)


def _check_file(folder: str, state: Manifest, role: str, file: File, tick: Tick) -> Iterator[Finding]:
    """The bytes of one file and its header."""
    path = os.path.join(folder, file.name)
    if file.end == 0:
        return
    try:
        if file.checked:
            bad = [number for number, _, _ in bad_blocks(folder, file, tick)]
            if bad:
                count = -(-file.size // BLOCK)
                what = f"damaged in {len(bad)} of {count} blocks of {BLOCK} bytes: {_ranges(bad)}"
                yield Finding(path, what, DAMAGED)
        else:
            read_part(folder, file, file.end - 1, 1)
        if state.building is None and not _has_header(folder, state, role, file):
            yield Finding(path, "its header is of another state: np.load reads another shape", HEADER)
    except FileNotFoundError as error:
        yield Finding(error.filename, "missing", DAMAGED)
    except MmapNinjaError as error:
        crc_path = os.path.join(folder, file.crc_name)
        yield Finding(crc_path if crc_path in str(error) else path, str(error), DAMAGED)
    if not file.checked and not state.format_1:
        what = (
            "not checked: values were assigned in place, and the map was not flushed since; "
            "`verify --accept` takes them as they are"
        )
        yield Finding(path, what, UNCHECKED)


def _has_header(folder: str, state: Manifest, role: str, file: File) -> bool:
    """Whether `np.load` finds what the manifest says; files without a header are not for it."""
    return not file.offset or read_part(folder, file, 0, file.offset) == npy_header(*state.layout(role))


def _ranges(numbers: list[int]) -> str:
    """Numbers in ascending order, neighbours as a range."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    shown = [str(first) if first == last else f"{first}–{last}" for first, last in parts[:_SHOWN]]
    return ", ".join(shown) + (", ..." if len(parts) > _SHOWN else "")


def _bad_rows(state: Manifest, snapshot: Snapshot) -> str | None:
    """What is wrong with the first row that is wrong: a sample that does not lie in the data, behind the one before.

    In maps that this package made from the start, the samples fill the data without a gap.
    """
    if state.kind == "dense":
        return None
    is_whole = state.files[DATA].offset > 0 if DATA in state.files else False
    total, end, first = state.files[DATA].size // state.itemsize if DATA in state.files else 0, 0, 0
    for table in tables(snapshot.index):
        starts, sizes, is_bad = _places(state, snapshot.index.ndim, table)
        before = np.concatenate([[end], (starts + sizes)[:-1]])
        is_bad |= (starts != before) if is_whole else (starts < before)
        is_bad |= (starts < 0) | (starts > total) | (starts + sizes > total)
        bad = np.flatnonzero(is_bad)
        if len(bad):
            row = table[bad[0]].tolist()
            return f"the row {row} of sample {first + int(bad[0])} is wrong: the samples have {total} elements"
        if len(table):
            end = int(starts[-1] + sizes[-1])
        first += len(table)
    if is_whole and end != total:
        return f"the last sample ends at {end}, but there are {total} elements"
    return None


def _places(state: Manifest, ndim: int, table: Table) -> tuple[Table, Table, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Where samples begin, how many elements they have, and which rows cannot be."""
    shapes = table[:, 1 : 1 + ndim]
    is_missing = shapes == MISSING
    is_bad = ((shapes < 0) & ~is_missing).any(axis=1)
    is_bad |= (is_missing[:, :-1] & ~is_missing[:, 1:]).any(axis=1)
    if not state.mixed:
        is_bad |= is_missing.any(axis=1)
    if state.codec is not None and not state.format_1:
        is_bad |= table[:, -1] < 0
    counted = np.where(is_missing, 1, shapes)
    is_bad |= counted.astype(float).prod(axis=1) > 2.0**62
    return table[:, 0], np.where(is_bad, 0, counted.prod(axis=1)), is_bad
