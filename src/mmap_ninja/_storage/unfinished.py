"""What a build that was interrupted has left, and how to go on from it."""

from __future__ import annotations

import os
from dataclasses import replace

from mmap_ninja._storage import disk, half, legacy
from mmap_ninja._storage.commit import remove_files
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.lock import LOCK, Lock
from mmap_ninja._storage.manifest import BUILDING, MANIFEST, NEXT, Building, Manifest
from mmap_ninja._storage.snapshot import boot_id, check_survived, is_ours, read_json, unfinished
from mmap_ninja.errors import ArgumentError, MapCorruptError

NEXT_ONES = (MANIFEST + NEXT, BUILDING + NEXT, LOCK + NEXT)


def is_unreadable(folder: str) -> bool:
    """Whether there is a `building.json` of ours that says nothing any more."""
    return is_ours(folder, BUILDING) and unfinished(folder) is None


def settle(lock: Lock, keys: Keys) -> None:
    """Go through with a publication that was interrupted between its two renames, or forget what it has left.

    Where readers still see the old map, of format 2 or of format 1, it stays: only its upgrade is gone through with.
    What a killed backup has left is removed.
    """
    folder = lock.folder
    half.sweep(lock)
    remove_files(lock, [name for name in NEXT_ONES if disk.is_regular(os.path.join(folder, name))])
    left = unfinished(folder)
    manifest = None if left is None else read_json(folder, MANIFEST)
    if left is not None and manifest is None and left.building is None and _is_old_gone(folder, keys, left.id):
        disk.replace(lock.path(BUILDING), lock.path(MANIFEST))
        disk.sync_folder(folder)
    elif left is not None and manifest is not None and left.id == manifest.id:
        remove_files(lock, left.names() - manifest.names())
        remove_files(lock, [BUILDING])


def _is_old_gone(folder: str, keys: Keys, id: str) -> bool:
    try:
        old = legacy.read(folder, keys)
    except MapCorruptError:
        return False
    return old is None or old.id == id


def resumed(folder: str, left: Manifest, template: Manifest) -> Manifest:
    """The state to go on from, if it is of the same map and its bytes are still right.

    They are compared with their checksums: a device may have lost them without a reboot.
    """
    if left.kind != template.kind or left.codec != template.codec:
        raise ArgumentError(
            f"{folder} holds an unfinished {left.kind} map (codec {left.codec}), "
            f"not a {template.kind} map (codec {template.codec}); build it without resume=True"
        )
    dtype = template.dtype if left.dtype is None else left.dtype
    if template.dtype is not None and template.dtype_given and template.dtype != dtype:
        raise ArgumentError(f"{folder} holds an unfinished map of {left.dtype}, not {template.dtype}")
    check_survived(folder, left)
    return replace(
        left,
        building=Building(boot_id()),
        obsolete=(),
        dtype=dtype,
        dtype_given=left.dtype_given or template.dtype_given,
        metadata=template.metadata or left.metadata,
    )
