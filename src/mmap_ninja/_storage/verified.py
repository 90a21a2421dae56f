"""States of maps that this process has compared with their checksums, each byte of them, so that it is done once."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import Any

from mmap_ninja._storage.check import CHANGED, DAMAGED, UNCHECKED, Finding, check_state
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.manifest import Manifest
from mmap_ninja._storage.snapshot import boot_id, find
from mmap_ninja.errors import MapCorruptError

# The device and number of the folder, the id and the generation of the map, a checksum over those of its files.
Key = tuple[int, int, str, int, int]
Ticket = tuple[str | None, Key]

_MOST = 256  # states
_SHOWN = 20  # findings in an error
_known: dict[Key, None] = {}  # replaced as a whole, never changed: no thread and no fork finds it half-way


def is_right(folder: str, keys: Keys, state: Manifest) -> bool:
    """Whether every byte of a state is what was written; False where it no longer is the newest, and cannot be told.

    Raises `MapCorruptError`, with what `verify` finds, where it is damaged, or where nothing vouches for it.
    """
    key = _key(folder, state)
    if key is not None and key in _known:
        return True
    kinds = (DAMAGED, UNCHECKED, CHANGED)
    found = [one for one in check_state(folder, keys, state, lambda count: None) if one.kind in kinds]
    if not found and key is not None and key == _key(folder, state):
        _remember(key)
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
    if not _known:
        return None
    key = _key(folder, state)
    return (boot_id(), key) if key is not None and key in _known else None


def adopt(ticket: Ticket | None) -> None:
    """Believe a process that has compared a state on this boot of this machine."""
    if ticket is not None and ticket[0] == boot_id():
        _remember(ticket[1])


def _remember(key: Key) -> None:
    global _known
    newest: list[Any] = [known for known in _known if known != key][1 - _MOST :]
    _known = dict.fromkeys([*newest, key])


def _key(folder: str, state: Manifest) -> Key | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    files = zlib.crc32(repr(sorted(state.files.items())).encode())
    return status.st_dev, status.st_ino, state.id, state.generation, files
