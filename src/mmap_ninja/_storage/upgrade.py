"""From format 1 to format 2 in place: the data stays where it is, an index and checksums are written beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from mmap_ninja._storage import disk
from mmap_ninja._storage.commit import (
    Opened,
    append,
    checksum,
    mark_lost,
    publish,
    remove_files,
    with_header,
    write_manifest,
    write_rows,
)
from mmap_ninja._storage.index import MISSING, SALVAGE, Index, tables
from mmap_ninja._storage.lock import Lock
from mmap_ninja._storage.manifest import (
    BUILDING,
    DATA,
    DENSE,
    DICTIONARY,
    INDEX,
    Building,
    File,
    Manifest,
)
from mmap_ninja._storage.names import file_name, foreign_file, free_number
from mmap_ninja._storage.renew import is_shared, warn_of_links
from mmap_ninja._storage.rows import places
from mmap_ninja._storage.snapshot import Snapshot, boot_id, unfinished
from mmap_ninja.codec import content_size
from mmap_ninja.errors import MapCorruptError, SyncError

_BYTES_AT_ONCE = 1 << 26


def upgrade(lock: Lock, old: Manifest) -> Manifest:
    """Write what format 2 needs and publish it. Reads the data once, copies none.

    Fortran order of two or more axes has no place in format 2: such data is written anew, and so is what another
    folder shares by hard links.
    """
    folder = lock.folder
    snapshot = Snapshot(folder, old)
    ndim, mixed = (0, False) if old.kind == DENSE else _axes(folder, old, snapshot.index)
    interrupted = unfinished(folder)
    # Where an earlier upgrade could not sync the data, which 0.9.0 never did, it is copied.
    is_lost = interrupted is not None and interrupted.lost
    kept = {role: old.files[role] for role in (DATA, DICTIONARY) if role in old.files and not is_lost}
    shared = [role for role, file in kept.items() if is_shared(folder, file)]
    for role in [*shared, *([DATA] if old.order == "F" else [])]:
        kept.pop(role, None)
    copied = [role for role in (DATA, DICTIONARY) if role in old.files and role not in kept]
    made = [*copied, INDEX] if old.kind != DENSE else copied
    number = free_number(folder, made, set() if interrupted is None else interrupted.used_names())
    new = {role: File(file_name(role, number)) for role in made}
    reserved = _reserve(lock, old, {**kept, **new}, interrupted)
    state = replace(
        reserved,
        lost=False,
        length=old.length,
        building=None,
        ndim=ndim,
        mixed=mixed,
        files=MappingProxyType(new),
    )
    for role, file in kept.items():
        values = snapshot.data.bytes if role == DATA else memoryview(snapshot.dictionary or b"")
        state = state.with_files(**{role: checksum(lock, file, values)})
    if DATA in copied:
        state = _in_c_order(lock, state, snapshot)
    if DICTIONARY in copied:
        with Opened(lock) as opened:
            state = append(state, DICTIONARY, [snapshot.dictionary or b""], opened)
            opened.sync()
    if INDEX in new:
        state = state.with_files(**{INDEX: with_header(state, INDEX)})
        state = write_rows(lock, state, _new_rows(snapshot), sync=True)
    gone = (set(old.format_1) | set(reserved.obsolete)) - {file.name for file in kept.values()}
    state = replace(state, generation=old.generation + 1, synced=True, obsolete=tuple(sorted(gone)))
    with Opened(lock) as opened:
        try:
            state = publish(state, opened, sync=True)
        except SyncError as error:  # `data.ninja` stays as it is: the next try must not believe a sync of it
            if error.committed is False:
                mark_lost(lock, reserved, BUILDING)
            raise
    if shared or lock.was_shared:
        warn_of_links(lock)
    return state


def _reserve(lock: Lock, old: Manifest, files: dict[str, File], interrupted: Manifest | None) -> Manifest:
    """Name the new files before they are made, so that a crash leaves nothing behind that nobody knows."""
    folder = lock.folder
    empty = {role: File(file.name) for role, file in files.items()}
    state = replace(
        old,
        length=0,
        format_1=(),
        order="C",
        files=MappingProxyType(empty),
        building=Building(boot_id(), upgrade=True),
        lost=interrupted is not None and interrupted.lost,
    )
    swept = set() if interrupted is None else interrupted.used_names() - old.names()
    if interrupted is None and not disk.exists(os.path.join(folder, BUILDING)):
        for name in sorted(state.names() - old.names()):
            if disk.exists(os.path.join(folder, name)):
                raise foreign_file(folder, name)
    state = replace(state, obsolete=tuple(sorted(swept - state.names())))
    write_manifest(lock, state, BUILDING, sync=True)
    remove_files(lock, swept)
    return state


def _axes(folder: str, old: Manifest, index: Index) -> tuple[int, bool]:
    """How many axes the samples have, and whether some have fewer; refuses a sample that does not lie in the data."""
    mixed, first, total = False, 0, old.files[DATA].size // old.itemsize
    for table in tables(index):
        mixed = mixed or bool((table[:, 1 : 1 + index.ndim] == MISSING).any())
        starts, sizes, is_bad = places(old, index.ndim, table)
        is_bad |= (starts < 0) | (starts > total - sizes)
        if is_bad.any():
            k = int(is_bad.argmax())
            raise MapCorruptError(
                f"{folder}: the row {table[k].tolist()} of sample {first + k} is wrong: there are {total} elements; "
                f"{SALVAGE}"
            )
        first += len(table)
    return index.ndim, mixed


def _new_rows(snapshot: Snapshot) -> Iterator[np.ndarray[Any, Any]]:
    """The rows of the new index; where samples are compressed, with the raw sizes that their frames tell."""
    values = snapshot.data.bytes
    for table in tables(snapshot.index):
        if snapshot.manifest.codec is not None:
            table[:, -1] = [content_size(values[at : at + size]) for at, size, _ in table.tolist()]
        yield table


def _in_c_order(lock: Lock, state: Manifest, snapshot: Snapshot) -> Manifest:
    dtype, shape = state.layout(DATA)
    if state.sample_shape is None:  # samples end to end
        shape = (len(snapshot.data.bytes) // dtype.itemsize,)
    values = np.ndarray(shape, dtype, snapshot.data.bytes, order="F" if snapshot.manifest.order == "F" else "C")
    rows = max(1, _BYTES_AT_ONCE // max(values.nbytes // max(len(values), 1), 1))
    state = state.with_files(**{DATA: with_header(state, DATA)})
    with Opened(lock) as opened:
        for first in range(0, len(values), rows):
            state = append(state, DATA, [values[first : first + rows].tobytes()], opened)
        opened.sync()
    return state
