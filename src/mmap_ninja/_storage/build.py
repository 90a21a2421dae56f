"""Maps that are made or replaced, and the one door to a map that is written to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import Any

from mmap_ninja._storage import disk
from mmap_ninja._storage.commit import (
    Ahead,
    Appends,
    Opened,
    append,
    cut_back,
    publish,
    remove_files,
    sweep,
    undone,
    write_manifest,
)
from mmap_ninja._storage.legacy import DEFAULT_KEYS, Keys
from mmap_ninja._storage.lock import LOCK, Lock
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
from mmap_ninja._storage.names import file_name, free_number
from mmap_ninja._storage.renew import renewed, taken_apart
from mmap_ninja._storage.snapshot import boot_id, find, find_finished, open_snapshot, unfinished
from mmap_ninja._storage.unfinished import resumed, settle
from mmap_ninja._storage.upgrade import upgrade
from mmap_ninja._storage.writer import Batch, Writer
from mmap_ninja.errors import (
    BEFORE_COMMIT,
    DiskError,
    MapChangedError,
    MapCorruptError,
    MapKindError,
    PartBuiltError,
    SyncError,
    Telling,
    UpgradeWarning,
    committed,
    set_committed,
    warn,
)

_SAVE_EVERY = 0.1  # seconds of work that a killed build may lose


@contextmanager
def writing(
    folder: str, template: Manifest, keys: Keys = DEFAULT_KEYS, *, timeout: float = 0.0, may_make: bool = True
) -> Iterator[Writer]:
    """Lock a map and hand out its writer, at the newest commit.

    Where there is no map, or one of no samples, that is a build from `template`, which the caller finishes; with
    `may_make=False`, no map is a `MapChangedError`.
    """
    if find(folder, keys) is None:
        if not may_make:
            raise MapChangedError(f"the map at {folder} is gone since it was opened")
        disk.make_folder(folder)
    with Lock(folder, timeout) as lock:
        with BEFORE_COMMIT:
            settle(lock, keys)
            manifest = find(folder, keys)
        if manifest is None or not (manifest.length or manifest.format_1):
            if template.length:
                raise MapChangedError(f"the map at {folder} was replaced since it was opened; open it again")
            is_made = manifest is not None and manifest.building is None
            base = manifest if manifest is not None and is_made else template  # an empty map keeps its id and metadata
            with Build(folder, base, keys, lock=lock) as build:
                yield build
            return
        if manifest.building is not None:
            raise PartBuiltError(
                f"{folder} was never finished ({manifest.length} samples so far); finish it with resume=True"
            )
        if manifest.format_1 and manifest.kind != template.kind:
            raise MapKindError(f"{folder} is a {manifest.kind} map, not a {template.kind} one")
        with BEFORE_COMMIT:
            state = _made_writable(lock, manifest)
        yield Writer(lock, state, manifest)


def _made_writable(lock: Lock, manifest: Manifest) -> Manifest:
    """The state of a map after all that has to be done before something is added to it."""
    sweep(lock, manifest.obsolete)
    if manifest.format_1:
        manifest = upgrade(lock, manifest)
        warn(f"{lock.folder} is a map of mmap_ninja 0.9.0; writing to it upgrades it to format 2", UpgradeWarning)
    return renewed(lock, manifest) if manifest.lost else taken_apart(lock, manifest)


def change_map(writer: Writer, **fields: Any) -> None:
    """Commit what a map says about itself, durably; an empty one is published anew."""
    if isinstance(writer, Build):
        writer.state = replace(writer.state, **fields)
        writer.finish()
    else:
        writer.change(**fields)


class Build(Writer):
    """Makes a map beside whatever is there, and puts it in its place when it is finished.

    `template` says what the map will be; `resume` goes on with a build that was interrupted, if there is one.
    Nothing on the disk changes before the first bytes come, so that a bad first sample leaves no trace. Leaving the
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
        super().__init__(Lock(folder, timeout, at_once=False) if lock is None else lock, template)
        self._template, self._keys = template, keys
        self._replaced: Manifest | None = None
        self._has_begun, self._owner = False, os.getpid()
        self._opened = Opened(self.lock)
        self._is_resumable = lock is None  # a first `append` is done again, not resumed
        self._ahead: Ahead | None = None  # what was written of the next batch
        self._due = 0.0  # when the next manifest is written
        try:
            if not self.lock.is_held and disk.exists(os.path.join(folder, LOCK)):
                self._take_lock()  # a second writer has to hear of it before it converts anything
            if resume and disk.exists(os.path.join(folder, BUILDING)):
                self._begin(resume=True)
        except BaseException:
            self._release()
            raise

    def _take_lock(self) -> None:
        disk.make_folder(self.folder)
        self.lock.acquire()

    def _begin(self, *, resume: bool = False) -> None:
        """Name the files of the map, or take over those of the interrupted build."""
        if not self.lock.is_held:
            self._look_for_foreign_files()
            self._take_lock()
        try:
            settle(self.lock, self._keys)
            self._replaced = _committed(self.folder, self._keys)
            left = unfinished(self.folder)
            if self._replaced is not None:
                remove_files(self.lock, set(self._replaced.obsolete) - (left.names() if left else set()))
            if resume and left is not None and left.length and not left.is_upgrade:
                kept = set() if self._replaced is None else self._replaced.names()
                remove_files(self.lock, set(left.obsolete) - kept)
                self.state = taken_apart(self.lock, resumed(self.folder, left, self.state))
            else:
                self.state = self._reserved(self.state, left)
        except BaseException:
            self._release()
            raise
        self._has_begun = True

    def _look_for_foreign_files(self) -> None:
        """Raise what would be raised later, while there is not even a lock file."""
        known = _committed(self.folder, self._keys), unfinished(self.folder)
        free_number(self.folder, _roles(self.state), _used_names(*known))

    def dictionary(self) -> bytes | None:
        """The dictionary of the build so far."""
        return open_snapshot(self.folder, state=self.state).dictionary if self.state.length else None

    def _reserved(self, template: Manifest, left: Manifest | None) -> Manifest:
        """Name the files before they are made, so that a crash leaves nothing behind that nobody knows."""
        kept = set() if self._replaced is None else self._replaced.names()
        swept = _used_names(left)
        roles = _roles(template)
        number = free_number(self.folder, roles, _used_names(self._replaced) | swept)
        state = replace(
            template,
            files=MappingProxyType({role: File(file_name(role, number)) for role in roles}),
            building=Building(boot_id()),
            synced=False,
            obsolete=tuple(sorted(swept - kept)),
        )
        write_manifest(self.lock, state, BUILDING, sync=True)
        remove_files(self.lock, state.obsolete)
        return state

    @property
    def _nothing(self) -> Manifest:
        """The build as it was when it had only names."""
        files = {role: File(file.name) for role, file in self.state.files.items()}
        state = self.state
        return replace(
            self._template,
            generation=state.generation,
            files=MappingProxyType(files),
            building=Building(boot_id()),
            synced=False,
            obsolete=state.obsolete,
        )

    def ahead(self, changes: Mapping[str, Any]) -> Callable[..., None]:
        """A function that writes the first bytes of the next batch, of which only the others are to be its `chunks`.

        They lie where no reader looks, and count when that batch is appended; if it never is, they are cut off.
        `changes` are those of the batch, as far as the header of the data needs them.
        """
        if not self._has_begun:
            self._begin()
        with undone(self.state, self._opened):
            self._ahead = Ahead(self.state if self.state.length else replace(self.state, **changes), self._opened)
        return self._ahead.write

    def append(self, batch: Batch, *, sync: bool = False) -> None:
        """Write a batch; syncs come at the end, for everything at once."""
        if not self._has_begun:
            self._begin()
        super().append(batch, sync=False)

    def _commit(self, new: Manifest, appends: Appends, *, sync: bool) -> None:
        with undone(self.state, self._opened):
            for role, chunks in appends.items():
                ahead = self._ahead if role == DATA else None
                new = append(new, role, chunks, self._opened) if ahead is None else ahead.finish(new, chunks)
        self.state, self._ahead = new, None if appends else self._ahead
        if not appends or new.obsolete or (self._is_resumable and time.monotonic() >= self._due):
            self._save()

    def _sweep(self, obsolete: Iterable[str]) -> None:
        """Remove what an append has made obsolete; nothing is committed before `finish`."""
        sweep(self.lock, obsolete)

    def _save(self) -> None:
        """Commit what was written so far to `building.json`.

        Not after each batch: a rename over a file makes ext4 write that file out at once, 1 or 2 ms each time.
        """
        write_manifest(self.lock, self.state, BUILDING, sync=False)
        self._due = time.monotonic() + _SAVE_EVERY

    def finish(self, *, sync: bool = True) -> None:
        """Make the map durable and put it in its place: the commit point of the whole build."""
        if not self._has_begun:
            self._begin()
        used = {role: file for role, file in self.state.files.items() if role != DICTIONARY or file.size}
        files = MappingProxyType(used if self.state.length else {})
        # Also names of files that are not used, without which their number would begin again.
        gone = self._not_removed() | self.state.names()
        if self._replaced is not None:
            gone |= self._replaced.names()
        state = replace(self.state, files=files, building=None)
        state = replace(state, obsolete=tuple(sorted(gone - state.names())))
        try:
            self.state = publish(state, self._opened, sync=sync)
        except BaseException as error:
            # After a failed sync nobody knows what is on the disk: resuming has to write it again. And what is not
            # resumed is done again: it must not be there already.
            if isinstance(error, SyncError) or not self._is_resumable:
                self.state = self._nothing
            said = committed(error)
            # What is there may say that it is finished, and is what readers see where there was nothing before.
            unsaved = None if said is False and self._replaced is None else said
            with Telling(unsaved):
                is_kept = self._keep(is_lost=isinstance(error, SyncError))
            set_committed(error, said if is_kept else unsaved)
            raise

    def _release(self) -> None:
        try:
            with suppress(OSError):  # what counts was synced before
                self._opened.close()
        finally:
            self.lock.release()

    def __enter__(self) -> Build:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with Telling(committed(error)):
            try:
                if os.getpid() != self._owner:
                    return  # a forked child that leaves its parent's build
                if error is not None and self._ahead is not None:
                    self._cut_ahead()
                if error is not None and self._opened and (self._is_resumable or isinstance(error, SyncError)):
                    self._keep(is_lost=isinstance(error, SyncError))
                self.lock.explain(error)
            finally:
                self._release()

    def _cut_ahead(self) -> None:
        """Give back the room of a batch that was not appended; where it was the first one, there is no build."""
        with suppress(OSError):  # the error that led here is the one to hear of
            cut_back(self.state, self._opened)
            if self.state.length == 0:
                self._opened.close()
                self._remove_all()

    def _keep(self, *, is_lost: bool) -> bool:
        """Save what there is to resume from; what a failed sync has lost must not stay as it was saved last.

        Returns False where it cannot be saved, so that readers may still see what was saved last.
        """
        try:
            if not disk.exists(os.path.join(self.folder, BUILDING)):
                return True  # it was published: only the sync of that has failed
        except DiskError:
            return False
        try:
            self._save()
            return True
        except (OSError, MapChangedError):  # the error that led here is the one to hear of
            if is_lost:
                self._remove_all()
            return False

    def _remove_all(self) -> None:
        """Remove the files of the build, then what names them: without that, they would be those of others."""
        names = self.state.names()
        for name in names:
            sweep(self.lock, [name])
        with suppress(OSError, MapChangedError):
            if not any(disk.exists(os.path.join(self.folder, name)) for name in names):
                remove_files(self.lock, [BUILDING])


def _committed(folder: str, keys: Keys) -> Manifest | None:
    """The finished map in this folder, of either format."""
    try:
        return find_finished(folder, keys)
    except MapCorruptError as error:
        raise MapCorruptError(f"{error}; remove the folder to build a new map there") from error


def _used_names(*states: Manifest | None) -> set[str]:
    return set().union(*(state.used_names() for state in states if state is not None))


def _roles(template: Manifest) -> list[str]:
    """The files that a map of this kind may need."""
    return [DATA] + [INDEX] * (template.kind != DENSE) + [DICTIONARY] * (template.codec is not None)
