"""Maps that are made or replaced, and the one door to a map that is written to."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import MappingProxyType, TracebackType

from mmap_ninja._storage import disk
from mmap_ninja._storage.commit import Appends, Opened, append, publish, remove_files, sync_files, write_manifest
from mmap_ninja._storage.legacy import DEFAULT_KEYS, Keys
from mmap_ninja._storage.lock import LOCK, Lock
from mmap_ninja._storage.manifest import BUILDING, DATA, DENSE, DICTIONARY, INDEX, MANIFEST, Building, File, Manifest
from mmap_ninja._storage.snapshot import boot_id, find, open_snapshot, read_json
from mmap_ninja._storage.upgrade import upgrade
from mmap_ninja._storage.writer import Batch, Writer, file_name, numbers
from mmap_ninja.errors import ArgumentError, ForeignFileError, MapCorruptError, PartBuiltError, UpgradeWarning, warn

_SAVE_EVERY = 0.1  # seconds of work that a killed build may lose


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
    with Opened() as opened:
        disk.sync(opened.file(folder, MANIFEST))
        sync_files(folder, state, opened)


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
        super().__init__(folder, template)
        self._keys, self._lock, self._timeout = keys, lock, timeout
        self._replaced: Manifest | None = None
        self._has_begun = False
        self._opened = Opened()
        self._due = 0.0  # when the next manifest is written
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
            files=MappingProxyType({role: File(file_name(role, number)) for role in roles}),
            building=Building(boot_id()),
            obsolete=tuple(sorted(swept - kept)),
        )
        write_manifest(folder, state, BUILDING, sync=True)
        remove_files(folder, state.obsolete)
        return state

    def append(self, batch: Batch, *, sync: bool = False) -> None:
        """Write a batch; syncs come at the end, for everything at once."""
        if not self._has_begun:
            self._begin()
        super().append(batch, sync=False)

    def _commit(self, new: Manifest, appends: Appends, *, sync: bool) -> None:
        for role, chunks in appends.items():
            new = append(self.folder, new, role, chunks, self._opened)
        self.state = new
        if not appends or time.monotonic() >= self._due:
            self._save()

    def _save(self) -> None:
        """Commit what was written so far to `building.json`.

        Not after each batch: a rename over a file makes ext4 write that file out at once, 1 or 2 ms each time.
        """
        write_manifest(self.folder, self.state, BUILDING, sync=False)
        self._due = time.monotonic() + _SAVE_EVERY

    def finish(self, *, sync: bool = True) -> None:
        """Make the map durable and put it in its place: the commit point of the whole build."""
        if not self._has_begun:
            self._begin()
        names = set() if self._replaced is None else self._replaced.names()
        used = {role: file for role, file in self.state.files.items() if role != DICTIONARY or file.size}
        files = MappingProxyType(used if self.state.length else {})
        state = replace(self.state, files=files, building=None, obsolete=tuple(sorted(names - self.state.names())))
        publish(self.folder, state, self._opened, sync=sync)
        self.state = state

    def _release(self) -> None:
        self._opened.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Build:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and self._opened:
                with suppress(OSError):  # the error that led here is the one to hear of
                    self._save()
        finally:
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
    number = max(numbers(known), default=0) + 1
    is_ours = bool(known) or os.path.lexists(os.path.join(folder, BUILDING))
    while True:
        files = [File(file_name(role, number)) for role in roles]
        names = [name for file in files for name in (file.name, file.crc_name)]
        taken = [name for name in names if os.path.lexists(os.path.join(folder, name))]
        if not taken:
            return number
        if not is_ours:
            path = os.path.join(folder, taken[0])
            raise ForeignFileError(f"{path} is not of a map, but has the name of one of its files")
        number += 1
