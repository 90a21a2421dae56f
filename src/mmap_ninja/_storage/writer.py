"""The changes that a map can go through: it is built, it grows, it is replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np

from mmap_ninja._storage import disk
from mmap_ninja._storage.commit import (
    commit,
    publish,
    remove_files,
    sync_files,
    with_header,
    write_manifest,
    write_rows,
)
from mmap_ninja._storage.disk import Buffer
from mmap_ninja._storage.index import widened
from mmap_ninja._storage.legacy import DEFAULT_KEYS, Keys
from mmap_ninja._storage.lock import LOCK, Lock
from mmap_ninja._storage.manifest import BUILDING, DATA, DENSE, DICTIONARY, INDEX, MANIFEST, Building, File, Manifest
from mmap_ninja._storage.snapshot import boot_id, find, open_snapshot, read_json
from mmap_ninja._storage.upgrade import upgrade
from mmap_ninja.errors import ArgumentError, ForeignFileError, MapCorruptError, PartBuiltError, UpgradeWarning, warn

ROWS_AT_ONCE = 1 << 16  # of an index that is written anew, to bound memory

_STEMS = {DATA: "data{}.npy", INDEX: "index{}.npy", DICTIONARY: "zstd{}.dict"}
_NUMBER = re.compile(r"(?:data|index|zstd)(?:-([0-9]{1,9}))?\.(?:npy|crc|dict)")


@dataclass(frozen=True)
class Batch:
    """Samples that were converted and checked, ready to be written.

    `changes` are the fields of the manifest that they set (a dtype, a wider index). `rows` are those of the index,
    their starts counted in elements from the first value of the batch.
    """

    count: int
    chunks: list[Buffer]
    rows: np.ndarray[Any, Any] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    dictionary: bytes | None = field(default=None, repr=False)


def new_id() -> str:
    """A random name for a map, by which handles notice that it was replaced."""
    return os.urandom(16).hex()


def _file_name(role: str, number: int) -> str:
    return _STEMS[role].format("" if number == 1 else f"-{number}")


def _numbers(names: Iterable[str]) -> list[int]:
    found = (_NUMBER.fullmatch(name) for name in names)
    return [int(match[1] or 1) for match in found if match]


class Writer:
    """Adds to one map; whoever has one holds the lock of the folder."""

    def __init__(self, folder: str, state: Manifest, to: str = MANIFEST) -> None:
        self.folder, self.state, self._to = folder, state, to

    def append(self, batch: Batch, *, sync: bool = True) -> None:
        """Write a batch behind the committed samples and commit it."""
        if batch.count == 0:
            if self.state.length == 0:  # an array of no samples still tells their shape
                self.state = replace(self.state, **batch.changes)
            return
        appends: dict[str, list[Buffer]] = {}
        obsolete: set[str] = set()
        new = replace(self.state, **batch.changes)
        if batch.dictionary is not None:
            appends[DICTIONARY] = [batch.dictionary]
        if batch.rows is not None:
            if self.state.length and new.width > self.state.width:
                obsolete = self._widen_index(new, sync=sync)
            appends[INDEX] = [self._placed(batch.rows, new)]
        appends[DATA] = batch.chunks
        new = replace(
            new,
            files=self.state.files,
            length=self.state.length + batch.count,
            generation=self.state.generation + 1,
            obsolete=tuple(sorted(obsolete)),
        )
        new = new.with_files(**{role: with_header(new, role) for role in appends})
        self.state = commit(self.folder, new, appends, to=self._to, sync=sync)
        remove_files(self.folder, obsolete)

    def finish(self, *, sync: bool = True) -> None:
        """Publish what is not: every append of a writer is, those of a build are not."""

    def change(self, *, sync: bool = True, **fields: Any) -> None:
        """Commit a state that differs in nothing but what it says about itself."""
        new = replace(self.state, **{"generation": self.state.generation + 1, "obsolete": (), **fields})
        self.state = commit(self.folder, new, {}, to=self._to, sync=sync)

    def _placed(self, rows: np.ndarray[Any, Any], state: Manifest) -> Buffer:
        """The rows with their starts counted from the first value of the map."""
        itemsize = 1 if state.dtype is None else max(state.dtype.itemsize, 1)
        placed = rows.astype("<i8")
        placed[:, 0] += self.state.files[DATA].size // itemsize
        return placed.tobytes()

    def _widen_index(self, wide: Manifest, *, sync: bool) -> set[str]:
        """Copy the index to a new file with more columns; returns the names that it replaces."""
        old = self.state.files[INDEX]
        number = _numbers([old.name])[0] + 1
        while os.path.lexists(os.path.join(self.folder, _file_name(INDEX, number))):
            number += 1
        new = File(_file_name(INDEX, number))
        # Named before it is made, so that a crash leaves nothing behind that nobody knows.
        self.change(sync=sync, obsolete=(new.name, new.crc_name))
        index = open_snapshot(self.folder, state=self.state).index
        state = replace(wide, files=self.state.files, length=self.state.length).with_files(**{INDEX: new})
        state = state.with_files(**{INDEX: with_header(state, INDEX)})
        tables = (index.table(at, min(at + ROWS_AT_ONCE, index.length)) for at in range(0, index.length, ROWS_AT_ONCE))
        state = write_rows(self.folder, state, (widened(table, wide.width) for table in tables), sync=sync)
        self.state = self.state.with_files(**{INDEX: state.files[INDEX]})
        return {old.name, old.crc_name}


@contextmanager
def writing(folder: str, template: Manifest, keys: Keys = DEFAULT_KEYS, timeout: float = 0.0) -> Iterator[Writer]:
    """Lock a map and hand out its writer, at the newest commit.

    Where there is no map, or one of no samples, that is a build from `template`, which the caller finishes.
    """
    if find(folder, keys) is None:
        disk.make_folder(folder)
    with Lock(folder, timeout) as lock:
        manifest = find(folder, keys)
        if manifest is None or not (manifest.files or manifest.building):
            with Build(folder, template if manifest is None else manifest, lock=lock) as build:
                yield build
            return
        if manifest.building is not None:
            raise PartBuiltError(
                f"{folder} was never finished ({manifest.length} samples so far); finish it with resume=True"
            )
        remove_files(folder, manifest.obsolete)
        if manifest.format_1:
            manifest = upgrade(folder, manifest)
            warn(f"{folder} is a map of mmap_ninja 0.9.0; writing to it upgrades it to format 2", UpgradeWarning)
        yield Writer(folder, manifest)


def sync_map(folder: str, state: Manifest) -> None:
    """Make a state durable that was committed without syncs, its manifest included."""
    sync_files(folder, state)
    fd = disk.open_to_write(os.path.join(folder, MANIFEST))
    try:
        disk.sync(fd)
    finally:
        disk.close(fd)
    disk.sync_folder(folder)


class Build(Writer):
    """Makes a map beside whatever is there, and puts it in its place when it is finished.

    `template` says what the map will be; `resume` goes on with a build that was interrupted, if there is one.
    Nothing on the disk changes before the first batch, so that a bad first sample leaves no trace. Leaving the
    `with` block unfinished keeps what was committed to `building.json`.
    """

    def __init__(
        self,
        folder: str,
        template: Manifest,
        keys: Keys = DEFAULT_KEYS,
        *,
        resume: bool = False,
        timeout: float = 0.0,
        lock: Lock | None = None,
    ) -> None:
        super().__init__(folder, template, BUILDING)
        self._keys, self._lock, self._timeout = keys, lock, timeout
        self._replaced: Manifest | None = None
        self._has_begun = False
        if lock is None and (resume or os.path.exists(os.path.join(folder, LOCK))):
            self._take_lock()  # a second writer has to hear of it before it converts anything
        if resume:
            self._begin(resume=True)

    def _take_lock(self) -> None:
        disk.make_folder(self.folder)
        self._lock = Lock(self.folder, self._timeout)

    def _begin(self, *, resume: bool = False) -> None:
        """Name the files of the map, or take over those of the interrupted build."""
        if self._lock is None:
            self._take_lock()
        try:
            self._replaced = _committed(self.folder, self._keys)
            unfinished = _unfinished(self.folder)
            if self._replaced is not None:
                remove_files(self.folder, self._replaced.obsolete)
            if resume and unfinished is not None and not _of_upgrade(unfinished):
                self.state = _resumed(self.folder, unfinished, self.state)
            else:
                self.state = self._reserved(self.folder, self.state, unfinished)
        except BaseException:
            self._release()
            raise
        self._has_begun = True

    def dictionary(self) -> bytes | None:
        """The dictionary of the build so far."""
        return open_snapshot(self.folder, state=self.state).dictionary if self.state.length else None

    def _reserved(self, folder: str, template: Manifest, unfinished: Manifest | None) -> Manifest:
        """Name the files before they are made, so that a crash leaves nothing behind that nobody knows."""
        kept = set() if self._replaced is None else self._replaced.names()
        swept = set() if unfinished is None else unfinished.names() | set(unfinished.obsolete)
        roles = [DATA] + [INDEX] * (template.kind != DENSE) + [DICTIONARY] * (template.codec is not None)
        number = _free_number(folder, roles, kept | swept)
        state = replace(
            template,
            files=MappingProxyType({role: File(_file_name(role, number)) for role in roles}),
            building=Building(boot_id()),
            obsolete=tuple(sorted(swept - kept)),
        )
        write_manifest(folder, state, BUILDING, sync=True)
        remove_files(folder, state.obsolete)
        return state

    def append(self, batch: Batch, *, sync: bool = False) -> None:
        """Write a batch and commit it to `building.json`; syncs come at the end, for everything at once."""
        if not self._has_begun:
            self._begin()
        super().append(batch, sync=False)

    def finish(self, *, sync: bool = True) -> None:
        """Make the map durable and put it in its place: the commit point of the whole build."""
        if not self._has_begun:
            self._begin()
        names = set() if self._replaced is None else self._replaced.names()
        used = {role: file for role, file in self.state.files.items() if role != DICTIONARY or file.size}
        files = MappingProxyType(used if self.state.length else {})
        state = replace(self.state, files=files, building=None, obsolete=tuple(sorted(names - self.state.names())))
        publish(self.folder, state, sync=sync)
        self.state = state

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Build:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()


def _committed(folder: str, keys: Keys) -> Manifest | None:
    """The finished map in this folder, of either format."""
    try:
        manifest = find(folder, keys)
    except MapCorruptError as error:
        raise MapCorruptError(f"{error}; remove the folder to build a new map there") from error
    return None if manifest is None or manifest.building is not None else manifest


def _of_upgrade(unfinished: Manifest) -> bool:
    return unfinished.building is not None and unfinished.building.upgrade


def _unfinished(folder: str) -> Manifest | None:
    """What an interrupted build has left."""
    with suppress(MapCorruptError):
        return read_json(folder, BUILDING)
    return None  # not even its manifest survived


def _resumed(folder: str, unfinished: Manifest, template: Manifest) -> Manifest:
    """The state to go on from, if it is of the same map and its bytes are still right."""
    if unfinished.kind != template.kind or unfinished.codec != template.codec:
        raise ArgumentError(
            f"{folder} holds an unfinished {unfinished.kind} map (codec {unfinished.codec}), "
            f"not a {template.kind} map (codec {template.codec}); build it without resume=True"
        )
    if template.dtype is not None and template.dtype_given and template.dtype != unfinished.dtype:
        raise ArgumentError(f"{folder} holds an unfinished map of {unfinished.dtype}, not {template.dtype}")
    open_snapshot(folder, state=unfinished)
    return replace(unfinished, building=Building(boot_id()))


def _free_number(folder: str, roles: Iterable[str], known: set[str]) -> int:
    """The number in the names of new files: never one that was used here before."""
    number = max(_numbers(known), default=0) + 1
    is_ours = bool(known) or os.path.lexists(os.path.join(folder, BUILDING))
    while True:
        files = [File(_file_name(role, number)) for role in roles]
        names = [name for file in files for name in (file.name, file.crc_name)]
        taken = [name for name in names if os.path.lexists(os.path.join(folder, name))]
        if not taken:
            return number
        if not is_ours:
            path = os.path.join(folder, taken[0])
            raise ForeignFileError(f"{path} is not of a map, but has the name of one of its files")
        number += 1
