"""What a reader sees: one committed state of a map, its files mapped."""

from __future__ import annotations

import os
from typing import Any

from mmap_ninja._storage import disk, half, legacy
from mmap_ninja._storage.decode import decode
from mmap_ninja._storage.flatfile import MappedFile, check_blocks
from mmap_ninja._storage.index import FlatColumns, Index, PackedIndex, ShapeColumns, TextColumns
from mmap_ninja._storage.legacy import DEFAULT_KEYS, Keys
from mmap_ninja._storage.lock import LOCK
from mmap_ninja._storage.manifest import BUILDING, CAP, DATA, DICTIONARY, INDEX, MANIFEST, File, Manifest
from mmap_ninja._storage.names import files_of_maps
from mmap_ninja.errors import MapChangedError, MapCorruptError, MapNotFoundError, MapPathError


def boot_id() -> str | None:
    """Which boot of the machine this is; None where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return None


def read_json(folder: str, name: str) -> Manifest | None:
    """The manifest of this name, None where there is none."""
    path = f"{folder}/{name}"
    try:
        return decode(disk.read_small(path, CAP), path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def find_finished(folder: str, keys: Keys = DEFAULT_KEYS) -> Manifest | None:
    """The newest committed state of a finished map, of format 2, else of format 1."""
    manifest = read_json(folder, MANIFEST)
    return legacy.read(folder, keys) if manifest is None else manifest


def unfinished(folder: str) -> Manifest | None:
    """What an interrupted build has left; None also where a power cut has left nothing readable of its manifest."""
    try:
        return read_json(folder, BUILDING)
    except MapCorruptError:
        if is_ours(folder, BUILDING):
            return None
        raise


def is_ours(folder: str, name: str) -> bool:
    """True if there is a file of this name, one of ours, beside the lock or the manifest of a map.

    It may hold anything: after a power cut there are old blocks in what was not synced.
    """
    beside = any(disk.exists(os.path.join(folder, other)) for other in (LOCK, MANIFEST))
    return beside and disk.is_regular(os.path.join(folder, name))


def find(folder: str, keys: Keys = DEFAULT_KEYS) -> Manifest | None:
    """The newest committed state: of a finished map, else of one that was never finished."""
    try:
        manifest = find_finished(folder, keys) or unfinished(folder)
    except (MapCorruptError, FileNotFoundError):  # damaged, or upgraded between two reads
        manifest = read_json(folder, MANIFEST)
        if manifest is None:
            raise
    if manifest is None or manifest.building is not None:  # or finished between two reads
        manifest = read_json(folder, MANIFEST) or manifest
    if manifest is None and disk.is_no_folder(folder):
        raise MapPathError(f"{folder} is a file, expected the folder of a map")
    if manifest is None and (names := files_of_maps(folder)):
        manifest = read_json(folder, MANIFEST) or unfinished(folder)  # made since it was looked for
        if manifest is None:
            raise _incomplete(folder, names[0])
    return manifest


def _incomplete(folder: str, name: str) -> MapCorruptError:
    """What files of a map without a manifest are."""
    lacking = f"neither {MANIFEST} nor {legacy.KIND}" if name.endswith(".ninja") else f"no {MANIFEST}"
    what = f"{folder} holds {name}, but {lacking}: "
    if half.marked(folder) is not None:
        return MapCorruptError(what + "a backup that was interrupted; make it again")
    if is_ours(folder, BUILDING):
        return MapCorruptError(what + f"a build was interrupted, and {BUILDING} has not survived it; build it again")
    return MapCorruptError(
        what
        + "an incomplete copy of a map, or files of another program; copy the whole map again, or use another folder"
    )


def is_still(folder: str, manifest: Manifest) -> bool:
    """True if a folder still holds the map of this state, so that the files opened since are its own."""
    if manifest.format_1:
        return True
    newest = read_json(folder, MANIFEST) or unfinished(folder)
    return newest is not None and newest.id == manifest.id


_NOTHING = MappedFile("", File(""))


class Snapshot:
    """The files of one state, mapped. Opening costs the same for any number of samples.

    `length` may be less than the state has: a handle that was pickled keeps seeing what it saw. The data of a private
    one may be written to, which changes no file.
    """

    __slots__ = ("data", "dictionary", "folder", "index", "is_compared", "length", "manifest", "view")

    def __init__(self, folder: str, manifest: Manifest, length: int | None = None, *, is_private: bool = False) -> None:
        self.folder, self.manifest = folder, manifest
        self.view: Any = None  # what a kind of map has made of the data
        self.is_compared = False  # with the checksums, each byte
        self.length = manifest.length if length is None else length
        files = {
            role: MappedFile(folder, file, is_private=is_private and role == DATA)
            for role, file in manifest.files.items()
        }
        self.data = files.get(DATA, _NOTHING)
        self.index = _open_index(manifest, {role: file.bytes for role, file in files.items()}, self.length)
        self.dictionary = bytes(files[DICTIONARY].bytes) if DICTIONARY in files else None


def _open_index(manifest: Manifest, values: dict[str, memoryview], length: int) -> Index:
    """The index of the first `length` samples."""
    if INDEX in values:
        return PackedIndex(values[INDEX][: 8 * manifest.width * length], length, manifest.ndim, manifest.width)
    columns = ("starts", "ends", "counts", "shapes", "shape_starts", "shape_ends")
    values |= {role: values[role][: 8 * length] for role in columns if role in values}
    if "shape_values" in values:
        return ShapeColumns(values)
    if "shapes" in values:
        return FlatColumns(values["starts"], values["counts"], values["shapes"])
    if "starts" in values:
        return TextColumns(values["starts"], values["ends"], manifest.codec is not None)
    return PackedIndex(memoryview(b""), 0, manifest.ndim, manifest.width)


def open_snapshot(
    folder: str,
    keys: Keys = DEFAULT_KEYS,
    *,
    state: Manifest | None = None,
    id: str | None = None,
    length: int | None = None,
    is_private: bool = False,
) -> Snapshot:
    """Open the newest state of a map for reading (or `state`, if it was read already); writes nothing, locks nothing.

    `id` and `length` are those of an earlier handle: another map in its place is a `MapChangedError`.
    Raises `MapNotFoundError`, `MapCorruptError`, `MapPathError`.
    """
    manifest = find(folder, keys) if state is None else state
    while True:
        if manifest is None:
            raise MapNotFoundError(f"there is no map at {folder}")
        if id is not None and (manifest.id != id or manifest.length < (length or 0)):
            raise MapChangedError(f"the map at {folder} was replaced since this handle was made; open it again")
        try:
            snapshot = _opened(folder, manifest, length, is_private)
            if state is not None or is_still(folder, manifest):
                return snapshot
            manifest = find(folder, keys)  # another map took its place between the two reads
        except FileNotFoundError as error:  # replaced between the two reads, or damaged
            newest = find(folder, keys) if state is None else state
            if newest == manifest:
                raise MapCorruptError(f"{error.filename} is missing, but {folder} names it") from error
            manifest = newest


def _opened(folder: str, manifest: Manifest, length: int | None, is_private: bool) -> Snapshot:
    """The files of a state. Nothing of an unfinished one was synced: after a reboot its checksums are compared."""
    if manifest.building is None or (manifest.building.boot_id is not None and manifest.building.boot_id == boot_id()):
        return Snapshot(folder, manifest, length, is_private=is_private)
    check_survived(folder, manifest)
    return Snapshot(folder, manifest, length, is_private=is_private)


def check_survived(folder: str, manifest: Manifest) -> None:
    """Compare every byte of an unfinished state with its checksums, as none of it was synced."""
    try:
        for file in manifest.files.values():
            check_blocks(folder, file)
    except (MapCorruptError, FileNotFoundError) as error:
        if read_json(folder, BUILDING) != manifest:  # finished, or begun anew, meanwhile
            raise
        raise MapCorruptError(
            f"{folder} was being built when the machine or its disk stopped, and not all of it has survived: {error}; "
            "build it again, without resume=True"
        ) from error
