"""What is wrong with a folder: every byte is compared with its checksum, every index row with the data."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mmap_ninja._storage import disk
from mmap_ninja._storage.flatfile import BLOCK, bad_blocks, has_crcs, npy_header, read_part
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.lock import is_held
from mmap_ninja._storage.manifest import BUILDING, CAP, DATA, DENSE, INDEX, MANIFEST, NEXT, File, Manifest
from mmap_ninja._storage.rows import bad_rows, places
from mmap_ninja._storage.snapshot import Snapshot, find_finished, read_json
from mmap_ninja._storage.unfinished import is_ours, is_unreadable
from mmap_ninja.errors import (
    DiskError,
    MapNotFoundError,
    MapPathError,
    MapPermissionError,
    MapVersionError,
    MmapNinjaError,
)

DAMAGED, UNCHECKED, UNFINISHED, LEFTOVER, HEADER = "damaged", "unchecked", "unfinished", "leftover", "header"
_TRIES = 5  # for a map that changes while it is looked at
_SHOWN = 8  # ranges of damaged blocks

Tick = Callable[[int], object] | None  # None: look at everything but the bytes


@dataclass(frozen=True)
class Finding:
    """Something about one file of a map, or about its folder, that is not as it should be.

    `kind` is `"damaged"` (not what was written), `"unchecked"` (nothing vouches for it), `"unfinished"` (a build that
    was interrupted), `"leftover"` (a file that nobody needs) or `"header"` (`np.load` would read another shape; our
    readers believe the manifest). The last two can be repaired, the second accepted as it is.
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
    leftovers and to renew headers, and what is damaged is looked at again. `is_in_use=False` reports those as well.
    """
    for _ in range(_TRIES):
        before = _manifests(folder)
        found = list(_findings(folder, keys, tick))
        if not is_in_use:
            return found
        is_quiet = bool(found) and not is_held(folder) and _manifests(folder) == before
        again = [(one.path, one.kind) for one in _findings(folder, keys, None)] if is_quiet else []
        found = [one for one in found if one.kind in (DAMAGED, UNCHECKED) or (one.path, one.kind) in again]
        if not found or _manifests(folder) == before:
            return found
    return found


def total(folder: str, keys: Keys) -> int | None:
    """How many bytes `check` will read; None where the manifest cannot tell."""
    try:
        states = find_finished(folder, keys), read_json(folder, BUILDING)
    except (MmapNinjaError, FileNotFoundError):
        return None
    return sum(
        file.size for state in states if state is not None and not state.format_1 for file in state.files.values()
    )


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
    finished, problem = _read(folder, MANIFEST, lambda: find_finished(folder, keys))
    building, other = _read(folder, BUILDING, lambda: read_json(folder, BUILDING))
    if finished is None and building is None and problem is None and other is None:
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise MapPathError(f"{folder} is a file, expected the folder of a map")
        raise MapNotFoundError(f"there is no map at {folder}")
    if problem is not None:
        yield problem
    if other is not None and finished is not None and is_unreadable(folder):
        yield replace(other, what="left unreadable by a build that was interrupted; nobody needs it", kind=LEFTOVER)
    elif other is not None:
        yield other
    if finished is not None:
        yield from check_state(folder, finished, tick)
        yield from _leftovers(folder, finished.obsolete, "of an earlier state, which the next writer removes")
    if building is not None:
        yield from _check_building(folder, finished, building, tick)
    next_ones = tuple(name for name in (MANIFEST + NEXT, BUILDING + NEXT) if is_ours(folder, name))
    yield from _leftovers(folder, next_ones, "of a commit that was interrupted, which the next one removes")


def _read(folder: str, name: str, read: Callable[[], Manifest | None]) -> tuple[Manifest | None, Finding | None]:
    try:
        return read(), None
    except (MmapNinjaError, FileNotFoundError) as error:
        path = os.path.join(folder, name)  # else it is of format 1, which has no such file
        return None, Finding(path if os.path.lexists(path) else folder, _damage(error), DAMAGED)


def _damage(error: Exception) -> str:
    """What an error says of the folder; one that says nothing of it is raised."""
    if isinstance(error, MapPermissionError | MapVersionError | MapPathError):
        raise error
    if isinstance(error, DiskError) and error.errno != errno.EIO:
        raise error
    return str(error)


def _check_building(folder: str, finished: Manifest | None, building: Manifest, tick: Tick) -> Iterator[Finding]:
    """What an interrupted build has left."""
    path = os.path.join(folder, BUILDING)
    if building.is_upgrade:
        yield Finding(path, "left by an upgrade that was interrupted; the next one begins anew", UNFINISHED)
        return
    if (finished is not None and finished.id == building.id) or (finished is None and building.building is None):
        yield Finding(path, "left by a commit that was interrupted; the next writer sees to it", LEFTOVER)
    if finished is not None and finished.id == building.id:
        return
    found = list(check_state(folder, building, tick))
    if building.building is not None:
        is_whole = not any(one.kind == DAMAGED for one in found)
        remedy = "the same call with resume=True finishes it" if is_whole else "not all of it is whole: build it anew"
        yield Finding(path, f"a build was interrupted after {building.length} samples; {remedy}", UNFINISHED)
    for one in found:  # beside a finished map it is in nobody's way, damaged or not
        yield replace(one, kind=UNFINISHED) if finished is not None else one


def _leftovers(folder: str, names: tuple[str, ...], what: str) -> Iterator[Finding]:
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            yield Finding(path, f"a leftover {what}", LEFTOVER)


def check_state(folder: str, state: Manifest, tick: Tick) -> Iterator[Finding]:
    """The files of one state, then, where they are whole, the rows of its index."""
    found = [one for role, file in state.files.items() for one in _check_file(folder, state, role, file, tick)]
    yield from found
    if state.lost:
        what = "not checked: a sync has failed, so its files may not be on the disk; the next writer copies them"
        yield Finding(folder, what, UNCHECKED)
    if state.format_1:
        yield Finding(folder, "not checked: format 1 has no checksums; `upgrade` gives it some", UNCHECKED)
    if any(one.kind == DAMAGED for one in found):
        return
    try:
        snapshot = Snapshot(folder, state)
        problem = bad_rows(state, snapshot)
        if state.format_1 and problem is None:
            yield from _surplus(folder, state, snapshot)
    except (MmapNinjaError, FileNotFoundError) as error:
        problem = _damage(error)
    if problem is not None:
        name = state.files[INDEX].name if INDEX in state.files else ""
        yield Finding(os.path.join(folder, name), problem, DAMAGED)


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


def _check_file(folder: str, state: Manifest, role: str, file: File, tick: Tick) -> Iterator[Finding]:
    """The bytes of one file and its header."""
    path, crc_path = os.path.join(folder, file.name), os.path.join(folder, file.crc_name)
    if file.end == 0:
        return
    try:
        if state.format_1 or tick is None:
            read_part(folder, file, file.end - 1, 1)
        else:
            yield from _check_bytes(folder, file, tick)
        if state.building is None and not _has_header(folder, state, role, file):
            yield Finding(path, "its header is of another state: np.load reads another shape", HEADER)
    except FileNotFoundError as error:
        yield Finding(error.filename, "missing", DAMAGED)
    except MmapNinjaError as error:
        what = _damage(error)
        yield Finding(crc_path if crc_path in what else path, what, DAMAGED)


def _check_bytes(folder: str, file: File, tick: Callable[[int], object]) -> Iterator[Finding]:
    """Compare a file with its checksums, also one that may differ from them."""
    path, count = os.path.join(folder, file.name), -(-file.size // BLOCK)
    if file.checked or has_crcs(folder, file):
        bad = [number for number, _, _ in bad_blocks(folder, file, tick)]
        differ = f"{len(bad)} of {count} blocks of {BLOCK} bytes: {ranges(bad)}"
    else:
        bad, differ = [0], "its checksums, which were being renewed"
    if file.checked and bad:
        yield Finding(path, f"damaged in {differ}", DAMAGED)
    elif not file.checked:
        what = "not checked: values were assigned in place and their checksums were not renewed"
        what += f"; they differ in {differ}" if bad else "; all of them agree"
        yield Finding(path, f"{what}; `accept` (`verify --accept`) takes them as they are", UNCHECKED)


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
