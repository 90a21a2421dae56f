"""A map whose bytes may never have reached the disk, copied to new files."""

from __future__ import annotations

import os
from dataclasses import replace
from types import MappingProxyType

from mmap_ninja._storage.commit import Opened, append, commit, sweep, undone, with_header
from mmap_ninja._storage.flatfile import BLOCK, read_part
from mmap_ninja._storage.manifest import DICTIONARY, File, Manifest
from mmap_ninja._storage.names import file_name, free_number
from mmap_ninja.errors import MapCorruptError


def renewed(folder: str, lost: Manifest) -> Manifest:
    """Copy every file of a map, durably; the caller holds the lock. Returns the new state.

    For a state of which a sync has failed: a later sync of the same files proves nothing. Each byte is compared with
    its checksum on the way. Raises `MapCorruptError` where bytes are lost already, `DiskError`.
    """
    number = free_number(folder, lost.files, lost.names())
    empty = {role: File(file_name(role, number)) for role in lost.files}
    names = {name for file in empty.values() for name in (file.name, file.crc_name)}
    # Named before they are made, so that a crash leaves nothing behind that nobody knows.
    named = replace(lost, generation=lost.generation + 1, obsolete=tuple(sorted(names | set(lost.obsolete))))
    named = commit(folder, lost, named, {}, sync=False)
    state = replace(named, files=MappingProxyType(empty))
    with Opened() as opened, undone(state, opened):
        for role, file in lost.files.items():
            if role != DICTIONARY:
                state = state.with_files(**{role: with_header(state, role)})
            state = _copied(folder, state, role, file, opened)
        opened.sync()
    gone = tuple(sorted(lost.names() | (set(named.obsolete) - names)))
    state = replace(state, generation=named.generation + 1, lost=False, obsolete=gone)
    state = commit(folder, named, state, {}, sync=True)
    sweep(folder, gone)
    return state


def _copied(folder: str, state: Manifest, role: str, file: File, opened: Opened) -> Manifest:
    for at in range(0, file.size, BLOCK):
        raw = read_part(folder, file, file.offset + at, min(BLOCK, file.size - at))
        state = append(folder, state, role, [raw], opened)
    copy = state.files[role]
    if file.checked and (copy.size, copy.tail_crc, copy.blocks_crc) != (file.size, file.tail_crc, file.blocks_crc):
        path = os.path.join(folder, file.name)
        raise MapCorruptError(f"{path} has lost bytes: the operating system could not write them, as it said in a sync")
    return state.with_files(**{role: replace(copy, checked=file.checked)})
