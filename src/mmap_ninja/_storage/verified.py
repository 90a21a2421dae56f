"""States of maps that this process has compared with their checksums, each byte of them, so that it is done once."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count

from mmap_ninja._storage.check import CHANGED, DAMAGED, UNCHECKED, Finding, check_state
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.manifest import BUILDING, MANIFEST, Manifest
from mmap_ninja._storage.snapshot import Snapshot, boot_id, find
from mmap_ninja.errors import MapChangedError, MapCorruptError

# The device and number of the folder, the id and the generation of the map, a checksum over those of its files; and
# of the manifest and of each file the device and number, and when it was changed.
Stamp = tuple[int, int, int, int] | None
Key = tuple[int, int, str, int, int, tuple[Stamp, ...]]
Ticket = tuple[str | None, Key]

_MOST = 65_536  # states
_SHOWN = 20  # findings in an error
_TRIES = 5  # for a map that is changed in place while it is checked
_known: dict[Key, int] = {}  # when it was asked for last; each change is one call, which no thread finds half-way
_clock = count()


def newest(folder: str, keys: Keys, look: Callable[[], Snapshot], *, is_checked: bool) -> Snapshot:
    """The state that `look` finds; compared if that was asked for, and then looked for again if it was changed."""
    for _ in range(_TRIES):
        snapshot = look()
        if not is_checked or is_compared(folder, keys, snapshot):
            return snapshot
    raise MapChangedError(f"{folder} was changed {_TRIES} times while it was checked: try again")


def is_compared(folder: str, keys: Keys, snapshot: Snapshot) -> bool:
    """As `is_right`, for the files that a snapshot has mapped: once, whatever becomes of their names."""
    snapshot.is_compared = snapshot.is_compared or is_right(folder, keys, snapshot.manifest)
    return snapshot.is_compared


def is_right(folder: str, keys: Keys, state: Manifest) -> bool:
    """Whether every byte of a state is what was written; False where it no longer is the newest, and cannot be told.

    Raises `MapCorruptError`, with what `verify` finds, where it is damaged, or where nothing vouches for it.
    """
    key = _key(folder, state)
    if _knows(key):
        return True
    kinds = (DAMAGED, UNCHECKED, CHANGED)
    found = [one for one in check_state(folder, keys, state, lambda count: None) if one.kind in kinds]
    if not found and key is not None and _are_same_files(key, _key(folder, state)):
        _remember(key)  # as it was before: what has changed since is compared again
        return True
    if not found or find(folder, keys) != state:
        return False
    raise MapCorruptError(_told(folder, found))


def _told(folder: str, found: Sequence[Finding]) -> str:
    lines = [str(one) for one in found[:_SHOWN]] + [f"and {len(found) - _SHOWN} more"] * (len(found) > _SHOWN)
    is_damaged = any(one.kind != UNCHECKED for one in found)
    what = "is damaged" if is_damaged else "cannot be vouched for"
    remedy = "; copy what is damaged from a backup, or convert again" if is_damaged else ""
    return f"{folder} {what}, and was to be opened with check=True{remedy}:\n" + "\n".join(lines)


def ticket(folder: str, state: Manifest) -> Ticket | None:
    """What tells another process on this machine that a state was compared; None where it was not."""
    key = _key(folder, state) if _known else None
    return None if key is None or not _knows(key) else (boot_id(), key)


def adopt(ticket: Ticket | None) -> None:
    """Believe a process that has compared a state on this boot of this machine."""
    if ticket is not None and ticket[0] == boot_id():
        _remember(ticket[1])


def _knows(key: Key | None) -> bool:
    if key is None or key not in _known:
        return False
    _known[key] = next(_clock)
    return True


def _remember(key: Key) -> None:
    _known[key] = next(_clock)
    if len(_known) > _MOST:
        times = _known.copy()
        for old in sorted(times, key=times.__getitem__)[: 1 + _MOST // 8]:
            _known.pop(old, None)


def _key(folder: str, state: Manifest) -> Key | None:
    """What tells a state that lies here from any other, and from a copy of it that was put in its place."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    files = zlib.crc32(repr(sorted(state.files.items())).encode())
    names = [MANIFEST if state.building is None else BUILDING, *sorted(state.names())]
    stamps = tuple(_stamp(f"{folder}/{name}") for name in names)
    return status.st_dev, status.st_ino, state.id, state.generation, files, stamps


def _stamp(path: str) -> Stamp:
    with suppress(OSError):  # not there: there are no samples, or no complete block
        status = os.stat(path)
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
    return None


def _are_same_files(key: Key, other: Key | None) -> bool:
    """Whether a state still lies in the same files: a writer may have added to them, and replaced the manifest."""
    if other is None or key[:-1] != other[:-1]:
        return False
    return all(a is None or (b is not None and a[:2] == b[:2]) for a, b in zip(key[-1][1:], other[-1][1:], strict=True))
