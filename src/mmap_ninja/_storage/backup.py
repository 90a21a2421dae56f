"""A copy of one committed state of a map in a folder of its own, each byte compared with its checksum.

1. The source is opened: every file of its newest state. No lock is taken, and writers go on: they only write behind
   what is committed, and names are never used twice.
2. The target is locked and marked (`half`), so that a killed backup can be swept.
3. Committed bytes are copied: blocks are shared where the file system can, else the kernel copies them. What has
   arrived is read back and compared with the checksums of the source.
4. The manifest is put in its place: before that, there is no map.

Values that are assigned in place meanwhile do not fit the checksums. The source then says itself that it has changed,
and is copied anew; where it says that it is not checked, the copy says so too.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace

from mmap_ninja._storage import disk, half
from mmap_ninja._storage.check import CHANGED, DAMAGED, UNCHECKED, Finding, check_state
from mmap_ninja._storage.commit import Opened, write_headers, write_manifest
from mmap_ninja._storage.copying import Sources, Tick, copy_file, pieces
from mmap_ninja._storage.legacy import KIND, Keys
from mmap_ninja._storage.lock import LOCK, Lock
from mmap_ninja._storage.manifest import BUILDING, MANIFEST, NEXT, File, Manifest
from mmap_ninja._storage.snapshot import find_finished, read_json
from mmap_ninja.errors import (
    ArgumentError,
    ForeignFileError,
    MapChangedError,
    MapCorruptError,
    MapNotFoundError,
    MapPathError,
    MmapNinjaError,
    PartBuiltError,
    Telling,
    set_committed,
)

_TRIES = 5  # for a source that changes in place


def back_up(source: str, target: str, keys: Keys, tick: Tick, *, sync: bool) -> list[Finding]:
    """Copy the newest state of a map to a folder that is new or empty; returns what nothing vouches for.

    `tick` hears of each number of bytes that is copied, from any thread. Where this raises, nothing is left.
    """
    newest(source, keys)  # raises what is wrong with it before anything is made
    _refuse_inside(source, target)
    _refuse_if_used(target)
    is_new = not disk.exists(target)
    try:
        disk.make_folder(target)
        with Lock(target) as lock:
            try:
                half.sweep(lock)
                _refuse_if_used(target)
                return _copied(source, lock, keys, tick, sync=sync)
            except BaseException:
                half.undo(lock, is_new=is_new)
                raise
    except BaseException as error:
        with Telling(None):
            if is_new:
                disk.remove_empty_folder(target)
            set_committed(error, _is_there(target, keys))
        raise


def _is_there(target: str, keys: Keys) -> bool | None:
    """True if there is a finished map in a folder; None where that cannot be told."""
    try:
        return find_finished(target, keys) is not None
    except (MmapNinjaError, OSError):
        return None


def total(folder: str, keys: Keys) -> int | None:
    """How many bytes a backup will copy; None where that is not known."""
    state = newest(folder, keys)
    return None if state.format_1 else sum(file.size for file in state.files.values())


def newest(folder: str, keys: Keys) -> Manifest:
    """The newest state of a finished map. Raises what opening would, and `PartBuiltError` for one that is not."""
    try:
        state = find_finished(folder, keys)
    except (MapCorruptError, FileNotFoundError):  # upgraded between two reads, or damaged
        state = read_json(folder, MANIFEST)
        if state is None:
            raise
    if state is not None:
        return state
    if read_json(folder, BUILDING) is not None:
        raise PartBuiltError(f"{folder} was never finished; finish it with resume=True, then back it up")
    if disk.is_no_folder(folder):
        raise MapPathError(f"{folder} is a file, expected the folder of a map")
    raise MapNotFoundError(f"there is no map at {folder}")


def _refuse_inside(source: str, target: str) -> None:
    """Refuse a folder in the map itself, with which the backup would be lost, or copied."""
    above, below = os.path.realpath(source), os.path.realpath(target)
    if below.startswith(os.path.join(above, "")):
        raise ArgumentError(f"{target} is in the folder of the map, {source}: a backup goes to another place")


def _refuse_if_used(target: str) -> None:
    """Refuse a folder in which there is anything but what a killed backup has left."""
    if not disk.is_folder(target):
        return
    with disk.explained(target, "list this folder"):
        found = set(os.listdir(target))
    marked = half.marked(target)
    if marked is not None and MANIFEST not in found and KIND not in found:
        found -= {half.MARK, *(name.split("/")[0] for name in marked)}
    found.discard(LOCK)
    if found:
        raise ForeignFileError(
            f"{target} has a {min(found)} in it: a backup goes to a new or an empty folder; "
            "choose another one, or remove this one"
        )


def _copied(source: str, target: Lock, keys: Keys, tick: Tick, *, sync: bool) -> list[Finding]:
    """Copy the state that is the newest, or, where that has changed meanwhile and no longer fits, the next one."""
    problem: Exception | None = None
    for _ in range(_TRIES):
        state = newest(source, keys)
        try:
            with Sources(source, state) as sources:
                if _have_same_files(newest(source, keys), state):  # else it is not known whose they are
                    copy = format_1 if state.format_1 else format_2
                    return copy(sources, target, state, keys, tick, sync=sync)
        except (MapCorruptError, FileNotFoundError) as error:
            if newest(source, keys) == state:
                raise
            problem = error
            half.remove(target, half.marked(target.folder) or ())
    what = f"{source} was changed {_TRIES} times while it was copied: try again, or wait for its writer"
    raise MapChangedError(what) from problem


def _have_same_files(state: Manifest, other: Manifest) -> bool:
    return state.id == other.id and state.names() == other.names()


def format_2(sources: Sources, target: Lock, state: Manifest, keys: Keys, tick: Tick, *, sync: bool) -> list[Finding]:
    """Copy the committed bytes of each file, and publish them as the same state of the same map."""
    half.mark(target, [MANIFEST, MANIFEST + NEXT, *sources])
    roles = [role for role, file in state.files.items() if file.end]
    with Opened(target) as opened:
        for role in roles:
            copy_file(sources, state.files[role], opened, tick)
        write_headers(state, roles, opened)
        if sync:
            opened.sync()
            opened.sync_names()
    write_manifest(target, replace(state, synced=sync, lost=False, obsolete=()), MANIFEST, sync=sync)
    _publish(target, sync=sync)
    return [_unchecked(target.folder, file) for file in state.files.values() if not file.checked]


def _publish(target: Lock, *, sync: bool) -> None:
    """Take the mark away, which must not be gone after a power cut while that which makes a map is not there yet."""
    if not sync:
        disk.sync_folder(target.folder)
    with suppress(OSError):  # the copy is there, whatever becomes of its mark
        half.unmark(target)


def _unchecked(target: str, file: File) -> Finding:
    what = (
        "not checked: copied as it is, with values that were assigned in place and not flushed; flush the map and back "
        "it up again, or accept the values of the copy (`verify --accept`)"
    )
    return Finding(os.path.join(target, file.name), what, UNCHECKED)


def format_1(sources: Sources, target: Lock, state: Manifest, keys: Keys, tick: Tick, *, sync: bool) -> list[Finding]:
    """Copy each file as it is: there is nothing to compare its bytes with but the other files."""
    names = [name for name in sources if name != KIND]
    half.mark(target, [KIND, KIND + NEXT, *names])
    for part in sorted({os.path.dirname(name) for name in names} - {""}):
        disk.make_folder(target.path(part))
    with Opened(target) as opened:
        for name in [*names, KIND]:
            fd = opened.file(name if name != KIND else KIND + NEXT, create=True)
            (source, size), path = sources[name], sources.path(name)
            if not disk.clone(source, fd):
                for start, stop in pieces(size, tick):
                    disk.copy_range(source, fd, start, stop - start, path)
        if sync:
            opened.sync()
    if newest(sources.folder, keys) != state:  # 0.9.0 takes no lock, and changes what is there
        raise MapCorruptError(f"{sources.folder} was changed while it was copied")
    for part in sorted({os.path.dirname(name) for name in names}) if sync else ():
        disk.sync_folder(os.path.join(target.folder, part))
    disk.replace(target.path(KIND + NEXT), target.path(KIND))
    found = list(check_state(target.folder, keys, newest(target.folder, keys), None))
    for one in found:
        if one.kind in (DAMAGED, CHANGED):
            raise MapCorruptError(f"{one}; nothing was copied: a damaged map is no backup")
    if sync:
        disk.sync_folder(target.folder)
    _publish(target, sync=sync)
    return found
