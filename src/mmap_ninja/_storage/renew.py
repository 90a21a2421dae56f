"""Files of a map copied to new ones: those whose bytes may never have reached the disk, and those with hard links."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

from mmap_ninja._storage import disk
from mmap_ninja._storage.commit import Opened, sweep, undone, with_header, write_headers, write_manifest
from mmap_ninja._storage.flatfile import BLOCK, check_blocks, read_part
from mmap_ninja._storage.lock import Lock
from mmap_ninja._storage.manifest import BUILDING, MANIFEST, File, Manifest
from mmap_ninja._storage.names import file_name, free_number
from mmap_ninja.errors import HardLinkWarning, MapCorruptError, warn


def renewed(lock: Lock, lost: Manifest) -> Manifest:
    """Copy every file of a map, durably. Returns the new state.

    For a state of which a sync has failed: a later sync of the same files proves nothing. Each byte is compared with
    its checksum on the way. Raises `MapCorruptError` where bytes are lost already, `DiskError`.
    """
    return _moved(lock, lost, list(lost.files))


def taken_apart(lock: Lock, state: Manifest) -> Manifest:
    """Copy those files of a map that have a second name, durably. Returns the new state.

    What is written to a hard link can be seen in each copy of the folder that shares it. Where the file system can
    clone files, that is what a copy is.
    """
    roles = [role for role, file in state.files.items() if is_shared(lock.folder, file)]
    moved = _moved(lock, state, roles) if roles else state
    if roles or lock.was_shared:
        warn_of_links(lock)
    return moved


def is_shared(folder: str, file: File) -> bool:
    """True if a file of a map, or that of its checksums, has a second name."""
    return any(disk.is_linked(os.path.join(folder, name)) for name in (file.name, file.crc_name))


def warn_of_links(lock: Lock) -> None:
    """Tell the user, once for each time that a folder was locked."""
    lock.was_shared = False
    warn(
        f"{lock.folder} shared files with another folder, by hard links: they were copied before the map was written "
        "to, so that the other one stays as it is",
        HardLinkWarning,
    )


def _moved(lock: Lock, old: Manifest, roles: Sequence[str]) -> Manifest:
    """Copy these files to new ones, then name those in the manifest."""
    to = MANIFEST if old.building is None else BUILDING
    for name in (old.files[role].name for role in roles):
        lock.copied[name] = disk.identity_at(os.path.join(lock.folder, name))
    number = free_number(lock.folder, roles, old.used_names())
    empty = {role: File(file_name(role, number)) for role in roles}
    names = {name for file in empty.values() for name in (file.name, file.crc_name)}
    # Named before they are made, so that a crash leaves nothing behind that nobody knows.
    named = replace(old, generation=old.generation + 1, obsolete=tuple(sorted(names | set(old.obsolete))))
    write_manifest(lock, named, to, sync=False)
    state = replace(named, files=MappingProxyType({**old.files, **empty}))
    with Opened(lock) as opened, undone(state, opened):
        for role in roles:
            state = _copied(state, role, old.files[role], opened, may_clone=not old.lost)
        write_headers(state, roles, opened)
        opened.sync()
        opened.sync_names()
    gone = {name for role in roles for name in (old.files[role].name, old.files[role].crc_name)}
    state = replace(
        state,
        generation=named.generation + 1,
        lost=False,
        synced=old.synced or old.lost,
        obsolete=tuple(sorted(gone | set(old.obsolete))),
    )
    write_manifest(lock, state, to, sync=True)
    sweep(lock, state.obsolete)
    return state


def _copied(state: Manifest, role: str, file: File, opened: Opened, *, may_clone: bool) -> Manifest:
    """Copy a file and its checksums as they are; the bytes are compared with them, but for those of a clone."""
    offset = with_header(state, role).offset
    copy = replace(file, name=state.files[role].name, offset=offset)
    is_cloned = may_clone and offset == file.offset and _is_cloned(file, copy, opened)
    if not is_cloned:
        _copy(opened, file.name, copy.name, file.offset, offset, file.size)
    if file.size >= BLOCK:
        _copy(opened, file.crc_name, copy.crc_name, 0, 0, 4 * (file.size // BLOCK))
    if file.checked and not is_cloned:
        _check_copy(opened.lock.folder, file, copy, is_lost=not may_clone)
    return state.with_files(**{role: copy})


def _is_cloned(file: File, copy: File, opened: Opened) -> bool:
    """Let the copy share the blocks of the file, until one of them is written to; False where this cannot be done."""
    fd, _ = disk.open_to_read(os.path.join(opened.lock.folder, file.name))
    try:
        return disk.clone(fd, opened.file(copy.name, create=True))
    finally:
        disk.close_read(fd)


def _copy(opened: Opened, source: str, target: str, start: int, to: int, size: int) -> None:
    """Copy bytes of a file of the folder, from `start` on, to another one, from `to` on."""
    fd = opened.file(target, create=True)
    for at in range(0, size, BLOCK):
        raw = read_part(opened.lock.folder, File(source), start + at, min(BLOCK, size - at))
        disk.write_at(fd, [raw], to + at)


def _check_copy(folder: str, file: File, copy: File, *, is_lost: bool) -> None:
    try:
        check_blocks(folder, copy)
    except MapCorruptError as error:
        what = "has lost bytes: the operating system could not write them, as it said in a sync"
        path = os.path.join(folder, file.name)
        raise MapCorruptError(f"{path} {what if is_lost else 'is damaged: run `verify`'}") from error
