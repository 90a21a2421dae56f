"""Copy a map to another folder, as a backup of its newest state."""

from __future__ import annotations

import os
from typing import Any

from mmap_ninja._ingest import byte_progress
from mmap_ninja._reading import AnyPath, folder_of
from mmap_ninja._storage.backup import back_up, total
from mmap_ninja._storage.check import Finding
from mmap_ninja._storage.legacy import DEFAULT_KEYS, Keys
from mmap_ninja.base import Mmap
from mmap_ninja.errors import ArgumentTypeError


def backup(
    source: Any, folder: AnyPath, *, sync: bool = True, verbose: bool = False, keys: Keys = DEFAULT_KEYS
) -> list[Finding]:
    """Copy the newest committed state of a map to a folder that is new or empty.

    Args:
        source: The path of a map, or an open one; what was assigned through that is flushed before.
        folder: Where the copy is made. It is there as a whole or not at all; the half of one that was killed is no
            map, and the next backup, or the next map that is made in its place, removes it.
        sync: Whether the copy is durable when the call returns.
        verbose: Whether to show a progress bar.
        keys: The names of the subfolders in a folder of 0.9.0.

    Returns what nothing vouches for in the copy, as `verify` does: values that were being assigned in place, and
    everything of format 1, which is copied as it is. All else was compared with its checksum after it had arrived.

    Takes no lock of the map, whose writers may go on. The copy has the id of the map (not so in format 1, where the id
    is that of the data file), and no file in common with it: blocks are shared where the file system copies them on
    write. Only committed bytes of files that the map names are copied. Raises `MapCorruptError` where the map is
    damaged, `PartBuiltError` where it was never finished, `MapChangedError` where it is changed in place too often,
    `ForeignFileError` where there is anything in `folder`, `ArgumentError` where `folder` is in the folder of the map,
    `MapNotFoundError`, `MapLockedError`, `MapPermissionError`, `DiskError`; then nothing is left of the copy.

    Examples:
        >>> from mmap_ninja import RaggedMmap, open_map
        >>> m = RaggedMmap.from_lists("rows", [[1, 2], [3]])
        >>> backup(m, "rows_backup")
        []
        >>> open_map("rows_backup")[0]
        array([1, 2])
    """
    target = folder_of(folder)
    if isinstance(source, Mmap):
        source.flush()
        source._origin()
        source, keys = source._folder, source._keys
    elif not isinstance(source, str | os.PathLike):
        raise ArgumentTypeError(
            f"the source of a backup is an open map, or the path of one, not a {type(source).__name__}; a map is "
            "copied as a whole"
        )
    path = folder_of(source)
    with byte_progress(path, verbose, total(path, keys) if verbose else None) as tick:
        return back_up(path, target, keys, tick, sync=sync)
