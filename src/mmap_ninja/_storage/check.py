"""What is wrong with a folder: every byte is compared with its checksum, every index row with the data."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mmap_ninja._storage import disk
from mmap_ninja._storage.compare import PATIENCE, Comparison, Replaced, manifests
from mmap_ninja._storage.flatfile import BLOCK, npy_header, read_part
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.lock import is_held
from mmap_ninja._storage.manifest import BUILDING, DATA, DENSE, INDEX, MANIFEST, File, Manifest
from mmap_ninja._storage.rows import bad_rows, places
from mmap_ninja._storage.snapshot import Snapshot, find, find_finished, is_ours, read_json
from mmap_ninja._storage.unfinished import NEXT_ONES, is_unreadable
from mmap_ninja.errors import (
    DiskError,
    MapNotFoundError,
    MapPathError,
    MapPermissionError,
    MapVersionError,
    MmapNinjaError,
)

DAMAGED, CHANGED, UNCHECKED = "damaged", "changed", "unchecked"
UNFINISHED, LEFTOVER, HEADER = "unfinished", "leftover", "header"
_OF_THE_MAP = (DAMAGED, CHANGED, UNCHECKED)
_TRIES = 5  # at least, for a map that changes while it is looked at
_SHOWN = 8  # ranges of damaged blocks

Tick = Callable[[int], object] | None  # None: look at everything but the bytes


@dataclass(frozen=True)
class Finding:
    """Something about one file of a map, or about its folder, that is not as it should be.

    `kind` is `"damaged"` (not what was written), `"changed"` (its writer was faster than the check: check again when
    it rests), `"unchecked"` (nothing vouches for it), `"unfinished"` (a build that was interrupted), `"leftover"` (a
    file that nobody needs) or `"header"` (`np.load` would read another shape; our readers believe the manifest). The
    last two can be repaired, and what is unchecked can be accepted as it is.
    """

    path: str
    what: str
    kind: str
    repaired: bool = False

    def __str__(self) -> str:
        where = "" if self.path in self.what else f"{self.path}: "
        done = "accepted" if self.kind == UNCHECKED else "repaired"
        return f"{where}{self.what}{f'; {done}' if self.repaired else ''}"


def check(folder: str, keys: Keys, tick: Tick, *, is_in_use: bool = True) -> list[Finding]:
    """Everything that is wrong with a map; `tick` hears of each number of bytes that was checked.

    Raises `MapNotFoundError`, `MapPathError` where there is no map, `MapPermissionError`, `MapVersionError` where it
    cannot be read. Of a map that is being written, only what lasts is reported: its writer is about to remove
    leftovers and to renew headers, and what may have changed is looked at again. `is_in_use=False` reports those as
    well.
    """
    begin, tries, is_same = time.monotonic(), 0, False
    while not is_same and (tries < _TRIES or time.monotonic() < begin + PATIENCE):
        before, tries = manifests(folder), tries + 1
        found = list(_findings(folder, keys, tick))
        is_same = manifests(folder) == before
        if not any(one.kind == CHANGED for one in found):
            break
    kind, why = (DAMAGED, "") if is_same else (CHANGED, "changed while it was read; at the last look: ")
    found = [replace(one, kind=kind, what=why + one.what) if one.kind == CHANGED else one for one in found]
    return _lasting(folder, keys, found, before) if is_in_use else found


def _lasting(folder: str, keys: Keys, found: list[Finding], before: list[bytes | None]) -> list[Finding]:
    """What is wrong with the map itself; and all else, if no writer is about to see to it."""
    is_quiet = bool(found) and not is_held(folder) and manifests(folder) == before
    again = [(one.path, one.kind) for one in _findings(folder, keys, None)] if is_quiet else []
    return [one for one in found if one.kind in _OF_THE_MAP or (one.path, one.kind) in again]


def total(folder: str, keys: Keys) -> int | None:
    """How many bytes `check` will read; None where the manifest cannot tell."""
    try:
        states = find_finished(folder, keys), read_json(folder, BUILDING)
    except (MmapNinjaError, FileNotFoundError):
        return None
    return sum(
        file.size for state in states if state is not None and not state.format_1 for file in state.files.values()
    )


def _findings(folder: str, keys: Keys, tick: Tick) -> Iterator[Finding]:
    """One look at a folder. `CHANGED` is what is damaged if no manifest has changed meanwhile."""
    finished, problem = _read(folder, MANIFEST, lambda: find_finished(folder, keys))
    building, other = _read(folder, BUILDING, lambda: read_json(folder, BUILDING))
    if finished is None and building is None and problem is None and other is None:
        newest, incomplete = _read(folder, MANIFEST, lambda: find(folder, keys))
        if newest is None and incomplete is None:
            raise MapNotFoundError(f"there is no map at {folder}")
        yield incomplete or Finding(folder, "replaced", CHANGED)  # published or upgraded between two looks
        return
    if problem is not None:
        yield problem
    if other is not None and finished is not None and is_unreadable(folder):
        yield replace(other, what="left unreadable by a build that was interrupted; nobody needs it", kind=LEFTOVER)
    elif other is not None:
        yield other
    if finished is not None:
        yield from check_state(folder, keys, finished, tick)
        yield from _leftovers(folder, finished.obsolete, "of an earlier state, which the next writer removes")
    if building is not None:
        yield from _check_building(folder, keys, finished, building, tick)
    next_ones = tuple(name for name in NEXT_ONES if is_ours(folder, name))
    yield from _leftovers(folder, next_ones, "of a commit that was interrupted, which the next one removes")


def _read(folder: str, name: str, read: Callable[[], Manifest | None]) -> tuple[Manifest | None, Finding | None]:
    try:
        return read(), None
    except (MmapNinjaError, FileNotFoundError) as error:
        path = os.path.join(folder, name)  # else it is of format 1, which has no such file
        return None, Finding(path if os.path.lexists(path) else folder, _damage(error), CHANGED)


def _damage(error: Exception) -> str:
    """What an error says of the folder; one that says nothing of it is raised."""
    if isinstance(error, MapPermissionError | MapVersionError | MapPathError):
        raise error
    if isinstance(error, DiskError) and error.errno != errno.EIO:
        raise error
    return str(error)


def _check_building(
    folder: str, keys: Keys, finished: Manifest | None, building: Manifest, tick: Tick
) -> Iterator[Finding]:
    """What an interrupted build has left."""
    path = os.path.join(folder, BUILDING)
    if building.is_upgrade:
        yield Finding(path, "left by an upgrade that was interrupted; the next one begins anew", UNFINISHED)
        return
    if (finished is not None and finished.id == building.id) or (finished is None and building.building is None):
        yield Finding(path, "left by a commit that was interrupted; the next writer sees to it", LEFTOVER)
    if finished is not None and finished.id == building.id:
        return
    found = list(check_state(folder, keys, building, tick))
    if building.building is not None:
        is_whole = not any(one.kind in (DAMAGED, CHANGED) for one in found)
        remedy = "the same call with resume=True finishes it" if is_whole else "not all of it is whole: build it anew"
        yield Finding(path, f"a build was interrupted after {building.length} samples; {remedy}", UNFINISHED)
    for one in found:  # beside a finished map it is in nobody's way, damaged or not
        yield replace(one, kind=UNFINISHED) if finished is not None else one


def _leftovers(folder: str, names: tuple[str, ...], what: str) -> Iterator[Finding]:
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            yield Finding(path, f"a leftover {what}", LEFTOVER)


def check_state(folder: str, keys: Keys, state: Manifest, tick: Tick) -> Iterator[Finding]:
    """The files of one state, then, where they are whole, the rows of its index."""
    found = [one for role, file in state.files.items() for one in _check_file(folder, keys, state, role, file, tick)]
    yield from found
    if state.lost:
        what = "not checked: a sync has failed, so its files may not be on the disk; the next writer copies them"
        yield Finding(folder, what, UNCHECKED)
    if state.format_1:
        yield Finding(folder, "not checked: format 1 has no checksums; `upgrade` gives it some", UNCHECKED)
    if any(one.kind in (DAMAGED, CHANGED) for one in found):
        return
    kind, problem = DAMAGED, None
    try:
        snapshot = Snapshot(folder, state)
        problem = bad_rows(state, snapshot)
        if state.format_1 and problem is None:
            yield from _surplus(folder, state, snapshot)
    except (MmapNinjaError, FileNotFoundError) as error:
        kind, problem = CHANGED, _damage(error)
    if problem is not None:
        name = state.files[INDEX].name if INDEX in state.files else ""
        yield Finding(os.path.join(folder, name), problem, kind)


def _surplus(folder: str, state: Manifest, snapshot: Snapshot) -> Iterator[Finding]:
    """Bytes that 0.9.0 has written and not counted."""
    used = state.files[DATA].size
    if state.kind != DENSE and state.length:
        starts, sizes, _ = places(state, snapshot.index.ndim, snapshot.index.table(state.length - 1, state.length))
        used = int(starts[0] + sizes[0]) * state.itemsize
    path = os.path.join(folder, state.files[DATA].name)
    fd, size = disk.open_to_read(path)
    disk.close_read(fd)
    if size > used:
        what = f"{size - used} bytes belong to no sample; if 0.9.0 was interrupted and used again, samples may be wrong"
        yield Finding(path, what, UNCHECKED)


def _check_file(folder: str, keys: Keys, state: Manifest, role: str, file: File, tick: Tick) -> Iterator[Finding]:
    """The bytes of one file and its header."""
    path = os.path.join(folder, file.name)
    if file.end == 0:
        return
    is_compared = tick is not None and not state.format_1  # then what is wrong is so in the newest state
    try:
        if tick is None or state.format_1:
            read_part(folder, file, file.end - 1, 1)
        else:
            yield from _check_bytes(folder, keys, file, tick)
    except Replaced:
        yield Finding(path, "replaced", CHANGED)
        return
    except (MmapNinjaError, FileNotFoundError) as error:
        yield _unreadable(folder, file, error, DAMAGED if is_compared else CHANGED)
        return
    try:
        if state.building is None and not _has_header(folder, state, role, file):
            yield Finding(path, "its header is of another state: np.load reads another shape", HEADER)
    except (MmapNinjaError, FileNotFoundError) as error:
        yield _unreadable(folder, file, error, CHANGED)


def _unreadable(folder: str, file: File, error: Exception, kind: str) -> Finding:
    if isinstance(error, FileNotFoundError):
        return Finding(error.filename, "missing", kind)
    what, crc_path = _damage(error), os.path.join(folder, file.crc_name)
    return Finding(crc_path if crc_path in what else os.path.join(folder, file.name), what, kind)


def _check_bytes(folder: str, keys: Keys, file: File, tick: Callable[[int], object]) -> Iterator[Finding]:
    """Compare a file with its checksums, also one that may differ from them."""
    path, found = os.path.join(folder, file.name), Comparison(folder, keys, file, tick)
    if found.damaged:
        yield Finding(path, f"damaged in {_blocks(found.damaged, found.count)}", DAMAGED)
    if found.unsure:
        yield Finding(path, f"they differ in {_blocks(found.unsure, found.count)}", CHANGED)
    if not found.file.checked:
        what = "not checked: values were assigned in place and their checksums were not renewed; "
        if not found.has_crcs:
            what += "they differ in its checksums, which were being renewed"
        elif found.unvouched:
            what += f"they differ in {_blocks(found.unvouched, found.count)}"
        else:
            what += "all of them agree"
        yield Finding(path, f"{what}; `accept` (`verify --accept`) takes them as they are", UNCHECKED)


def _blocks(numbers: list[int], count: int) -> str:
    return f"{len(numbers)} of {count} blocks of {BLOCK} bytes: {ranges(numbers)}"


def _has_header(folder: str, state: Manifest, role: str, file: File) -> bool:
    """Whether `np.load` finds what the manifest says; files without a header are not for it."""
    return not file.offset or read_part(folder, file, 0, file.offset) == npy_header(*state.layout(role))


def ranges(numbers: list[int]) -> str:
    """Numbers in ascending order, neighbours as a range."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in parts[:_SHOWN]]
    return ", ".join(shown) + (", ..." if len(parts) > _SHOWN else "")
