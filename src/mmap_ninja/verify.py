"""Compare every byte of a map with what was written."""

from __future__ import annotations

from dataclasses import replace

from mmap_ninja._ingest import byte_progress
from mmap_ninja._reading import AnyPath, folder_of
from mmap_ninja._storage.check import HEADER, LEFTOVER, Finding, check
from mmap_ninja._storage.legacy import DEFAULT_KEYS, Keys
from mmap_ninja._storage.repair import repair as mend

__all__ = ["Finding", "verify"]


def verify(
    path: AnyPath,
    *,
    verbose: bool = False,
    repair: bool = False,
    keys: Keys = DEFAULT_KEYS,
    timeout: float = 0.0,
) -> list[Finding]:
    """Check the structure of a map and all its checksums; returns what is wrong, an empty list when nothing is.

    Reads every byte once, at some GB a second, in bounded memory; changes nothing and takes no lock. Values assigned
    in place that were not flushed, and everything in format 1, are reported as not checked. `verbose` shows a
    progress bar. `repair` takes the lock (`timeout` seconds for that), removes leftovers and renews `.npy` headers;
    what is damaged stays as it is.

    Raises `MapNotFoundError` or `MapPathError` where there is no map, but never for one that is damaged.

    Examples:
        >>> from mmap_ninja import RaggedMmap
        >>> m = RaggedMmap.from_lists("rows", [[1, 2], [3]])
        >>> verify("rows")
        []
    """
    folder = folder_of(path)
    with byte_progress(folder, verbose) as tick:
        found = check(folder, keys, tick)
    if not repair or not any(one.kind in (LEFTOVER, HEADER) for one in found):
        return found
    mend(folder, keys, timeout)
    left = check(folder, keys, lambda count: None)
    return [replace(one, repaired=one not in left) for one in found] + [one for one in left if one not in found]
