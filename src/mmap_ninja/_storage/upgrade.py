"""From format 1 to format 2 in place: the data stays where it is, an index and checksums are written beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from mmap_ninja._storage.commit import (
    Opened,
    append,
    checksum,
    publish,
    remove_files,
    with_header,
    write_manifest,
    write_rows,
)
from mmap_ninja._storage.index import MISSING, Index, tables
from mmap_ninja._storage.manifest import BUILDING, DATA, DENSE, DICTIONARY, INDEX, Building, File, Manifest
from mmap_ninja._storage.snapshot import Snapshot, boot_id, read_json
from mmap_ninja.errors import ForeignFileError, MapCorruptError

_BYTES_AT_ONCE = 1 << 26


def upgrade(folder: str, old: Manifest) -> Manifest:
    """Write what format 2 needs and publish it; the caller holds the lock. Reads the data once, copies none.

    Fortran order of two or more axes has no place in format 2: such data is written anew.
    """
    snapshot = Snapshot(folder, old)
    is_copied = old.order == "F"
    kept = {} if is_copied else {DATA: old.files[DATA]}
    if DICTIONARY in old.files:
        kept[DICTIONARY] = old.files[DICTIONARY]
    new = {DATA: File("data.npy")} if is_copied else {}
    if old.kind != DENSE:
        new[INDEX] = File("index.npy")
    _reserve(folder, old, {**kept, **new})
    ndim, mixed = (0, False) if old.kind == DENSE else _axes(snapshot.index)
    state = replace(old, format_1=(), order="C", ndim=ndim, mixed=mixed, files=MappingProxyType(new))
    for role, file in kept.items():
        values = snapshot.data.bytes if role == DATA else memoryview(snapshot.dictionary or b"")
        state = state.with_files(**{role: checksum(folder, file, values)})
    if is_copied:
        state = _in_c_order(folder, state, snapshot)
    if INDEX in new:
        state = state.with_files(**{INDEX: with_header(state, INDEX)})
        state = write_rows(folder, state, _new_rows(snapshot), sync=True)
    gone = set(old.format_1) - {file.name for file in kept.values()}
    state = replace(state, generation=old.generation + 1, synced=True, obsolete=tuple(sorted(gone)))
    with Opened() as opened:
        publish(folder, state, opened, sync=True)
    return state


def _reserve(folder: str, old: Manifest, files: dict[str, File]) -> None:
    """Name the new files before they are made, so that a crash leaves nothing behind that nobody knows."""
    try:
        interrupted = read_json(folder, BUILDING)
    except MapCorruptError:
        interrupted = None
    empty = {role: File(file.name) for role, file in files.items()}
    state = replace(
        old,
        length=0,
        format_1=(),
        order="C",
        files=MappingProxyType(empty),
        building=Building(boot_id(), upgrade=True),
    )
    if interrupted is not None:
        remove_files(folder, interrupted.names() - old.names())
    elif not os.path.lexists(os.path.join(folder, BUILDING)):
        for path in (os.path.join(folder, name) for name in sorted(state.names() - old.names())):
            if os.path.lexists(path):
                raise ForeignFileError(f"{path} is not of the map, but has the name of one of its files")
    write_manifest(folder, state, BUILDING, sync=True)


def _axes(index: Index) -> tuple[int, bool]:
    """How many axes the samples have, and whether some have fewer."""
    mixed = False
    for table in tables(index):
        mixed = mixed or bool((table[:, 1 : 1 + index.ndim] == MISSING).any())
    return index.ndim, mixed


def _new_rows(snapshot: Snapshot) -> Iterator[np.ndarray[Any, Any]]:
    """The rows of the new index; where samples are compressed, with the raw sizes that their frames tell."""
    values = snapshot.data.bytes
    for table in tables(snapshot.index):
        if snapshot.manifest.codec is not None:
            import zstandard

            table[:, -1] = [zstandard.frame_content_size(values[at : at + size]) for at, size, _ in table.tolist()]
        yield table


def _in_c_order(folder: str, state: Manifest, snapshot: Snapshot) -> Manifest:
    dtype, shape = state.layout(DATA)
    values = np.ndarray(shape, dtype, snapshot.data.bytes, order="F")
    rows = max(1, _BYTES_AT_ONCE // max(values.nbytes // max(len(values), 1), 1))
    state = state.with_files(**{DATA: with_header(state, DATA)})
    with Opened() as opened:
        for first in range(0, len(values), rows):
            state = append(folder, state, DATA, [values[first : first + rows].tobytes()], opened)
        opened.sync()
    return state
