"""Compare every byte of a map with what was written."""

from __future__ import annotations

from dataclasses import replace

from mmap_ninja._ingest import byte_progress
from mmap_ninja._reading import AnyPath, folder_of
from mmap_ninja._storage.check import CHANGED, DAMAGED, HEADER, LEFTOVER, UNCHECKED, Finding, check, total
from mmap_ninja._storage.legacy import DEFAULT_KEYS, Keys
from mmap_ninja._storage.repair import accept as vouch
from mmap_ninja._storage.repair import repair as mend

__all__ = ["Finding", "verify"]


def verify(
    path: AnyPath,
    *,
    verbose: bool = False,
    repair: bool = False,
    accept: bool = False,
    keys: Keys = DEFAULT_KEYS,
    timeout: float = 0.0,
) -> list[Finding]:
    """Check the structure of a map and all its checksums; returns what is wrong, an empty list when nothing is.

    Reads every byte once, at some GB a second, in bounded memory; changes nothing and takes no lock. Values assigned
    in place that were not flushed, and everything in format 1, are reported as not checked. `verbose` shows a
    progress bar.

    `repair` removes leftovers and renews `.npy` headers; what is damaged stays as it is. `accept` makes values that
    were assigned in place durable and checksums them as they are now, unless anything is damaged: after a crash, say,
    or after writing to what `np_open_existing` has opened; close all handles that assign before. Both take the lock,
    for which they wait `timeout` seconds, and both raise `MapLockedError`, `MapPermissionError` and `DiskError`.

    A map that is being written can be checked; what its writer is about to remove or renew is left out then, and
    what differs is called damaged only if no writer has changed it meanwhile.
    Raises `MapNotFoundError` or `MapPathError` where there is no map, `MapPermissionError` or `MapVersionError` where
    it cannot be read, but never for one that is damaged.

    Examples:
        >>> from mmap_ninja import RaggedMmap
        >>> m = RaggedMmap.from_lists("rows", [[1, 2], [3]])
        >>> verify("rows")
        []
    """
    folder = folder_of(path)
    with byte_progress(folder, verbose, total(folder, keys) if verbose else None) as tick:
        found = check(folder, keys, tick, is_in_use=not repair)
    kinds = {one.kind for one in found}
    is_mended = repair and bool(kinds & {LEFTOVER, HEADER})
    is_accepted = accept and UNCHECKED in kinds and not kinds & {CHANGED, DAMAGED}
    if is_mended:
        mend(folder, keys, timeout)
    if is_accepted:
        vouch(folder, keys, timeout)
    if not is_mended and not is_accepted:
        return found
    left = check(folder, keys, lambda count: None)
    return [replace(one, repaired=one not in left) for one in found] + [one for one in left if one not in found]
