"""The order of writes and syncs. Whoever changes a map goes through `commit`.

1. The new bytes are written behind the committed end of each file, where no reader looks.
2. They are made durable, and so are the names of files that are new.
3. The manifest is written beside the old one, made durable, and takes its place: the commit point.
4. The folder is made durable. Only now does the caller learn of success.
5. The `.npy` headers get their new shape. They are for `np.load`; our readers believe the manifest.

A crash before the commit point leaves the old state, with bytes behind its end that the next writer overwrites; an
error before it cuts them off again. No byte that a reader may have mapped is ever cut off, and none is written
through a mapping.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from mmap_ninja._storage import disk
from mmap_ninja._storage.decode import decode
from mmap_ninja._storage.disk import Buffer
from mmap_ninja._storage.flatfile import BLOCK, Growing, appended, npy_header
from mmap_ninja._storage.lock import Lock
from mmap_ninja._storage.manifest import (
    BUILDING,
    DATA,
    DICTIONARY,
    INDEX,
    MANIFEST,
    NEXT,
    File,
    Manifest,
    encode,
)
from mmap_ninja._storage.snapshot import read_json
from mmap_ninja.errors import (
    AFTER_COMMIT,
    MapChangedError,
    MmapNinjaError,
    Outcome,
    SyncError,
    Telling,
    committed,
    set_committed,
)

Appends = Mapping[str, Sequence[Buffer]]


class Opened(dict[str, int]):
    """Descriptors to write to, by the name of their file in a locked folder; closed at the end of a `with` block."""

    def __init__(self, lock: Lock) -> None:
        super().__init__()
        self.lock = lock
        self._identities: dict[str, disk.Identity] = {}
        self._folder: int | None = None

    def file(self, name: str, *, create: bool = False) -> int:
        """The descriptor of a file, which is opened, or made, at its first use."""
        if name not in self:
            path = self.lock.path(name) if create else os.path.join(self.lock.folder, name)
            fd = disk.open_to_write(path, create=create)
            try:
                self.lock.check()  # the file of another folder, which has taken this one's place, is not ours to change
            except BaseException:
                disk.close(fd)
                raise
            self[name] = fd
            self._identities[name] = disk.identity(fd)
        return self[name]

    def sync(self) -> None:
        """Make everything durable that was written to these files."""
        for fd in self.values():
            disk.sync_data(fd)

    def check(self, state: Manifest) -> None:
        """Raise `MapChangedError` unless the folder, and the open files that this state names, are still there."""
        named = state.names() & self.keys()
        self.lock.check({name: self._identities[name] for name in named})

    def open_folder(self) -> None:
        """Open the folder itself, so that nothing but the sync can fail when its names are to be made durable."""
        if self._folder is None and disk.HAS_FOLDERS:
            self._folder = disk.open_folder(self.lock.folder)

    def sync_names(self) -> None:
        """Make the names in the folder durable."""
        disk.sync_folder(self.lock.folder, self._folder)

    def close(self) -> None:
        """Close all, also if closing one fails; a second call does nothing."""
        folder, self._folder = self._folder, None
        try:
            if folder is not None:
                disk.close_read(folder)
            elif self:
                disk.close(self.popitem()[1])
        finally:
            if self:
                self.close()

    def __enter__(self) -> Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return self.close()
        with suppress(OSError):  # the error that led here is the one to hear of
            self.close()


def commit(lock: Lock, old: Manifest, new: Manifest, appends: Appends, *, sync: bool = True) -> Manifest:
    """Append chunks to files and commit the result; returns the new state.

    `old` is the committed state, `new` the next one in everything but its files, which are as they were before; a
    file of no committed bytes is created. `sync=False` leaves it to the kernel when the bytes reach the disk. An
    error says in `committed` whether readers see the new state.
    """
    opened, state = Opened(lock), new
    with Outcome() as outcome:
        try:
            with undone(old, opened):
                for role, chunks in appends.items():
                    state = append(state, role, chunks, opened)
                if sync:
                    _make_durable(lock, old, state, opened, [(new.files[role], state.files[role]) for role in appends])
                state = replace(state, synced=sync, lost=state.lost and not sync)
                _prepare(state, MANIFEST, opened, sync=sync)
            _put(state, MANIFEST, opened, sync=sync)
            outcome.committed = True
            with suppress(OSError):  # the samples are committed, whatever becomes of the headers
                write_headers(state, appends, opened)
        except BaseException as error:
            outcome.committed = outcome.committed or committed(error)
            if isinstance(error, SyncError) and error.is_uncut:
                mark_lost(lock, old, MANIFEST)  # the next one would write to the same blocks, and take them for written
            raise
        finally:
            with suppress(OSError):  # nor of the descriptors: what counts was synced before
                opened.close()
    return state


def _make_durable(
    lock: Lock, old: Manifest, state: Manifest, opened: Opened, changed: Sequence[tuple[File, File]]
) -> None:
    """Sync what was written and, as a commit is only as durable as what it builds on, what that left unsynced."""
    if old.synced:
        opened.sync()
        if any(_is_new(before, after) for before, after in changed):
            disk.sync_folder(lock.folder)
        return
    try:
        sync_files(state, opened)
    except SyncError:
        mark_lost(lock, old, MANIFEST)
        raise


def mark_lost(lock: Lock, state: Manifest, to: str) -> None:
    """Tell every later writer that a sync of this state has failed: the kernel will not tell it again.

    The next one copies the files (`renew.renewed`): to write the same bytes to the same place again is not enough,
    because ext4 then takes blocks for written that it reads as zeros after the next mount.
    """
    with suppress(OSError, MapChangedError):  # the failed sync is what to hear of
        write_manifest(lock, replace(state, generation=state.generation + 1, lost=True), to, sync=False)


@contextmanager
def undone(state: Manifest, opened: Opened) -> Iterator[None]:
    """Cut files back to where `state` ends if the block fails, so that a full disk has its room again.

    `state` is the newest that anybody knows of, and the block must end before the next one is published: what lies
    behind its ends, or in files that it does not name, has never been mapped. If that fails too, the error gets the
    attribute `is_uncut`.
    """
    try:
        yield
    except BaseException as error:
        try:
            cut_back(state, opened)
        except OSError:  # the error that led here is the one to hear of
            if isinstance(error, SyncError):
                error.is_uncut = True
        raise


def cut_back(state: Manifest, opened: Opened) -> None:
    """Cut the open files back to where `state` ends."""
    ends = {file.name: file.end for file in state.files.values()}
    ends |= {file.crc_name: 4 * (file.size // BLOCK) for file in state.files.values()}
    for name, fd in opened.items():
        disk.cut(fd, ends.get(name, 0))


def write_manifest(lock: Lock, state: Manifest, to: str, *, sync: bool) -> None:
    """Put a manifest in the place of the old one."""
    with Opened(lock) as opened:
        _prepare(state, to, opened, sync=sync)
        _put(state, to, opened, sync=sync)


def _prepare(state: Manifest, to: str, opened: Opened, *, sync: bool) -> None:
    """Write a manifest beside the one whose place it will take; if that fails, it leaves no file."""
    lock = opened.lock
    raw = encode(state)
    decode(raw, os.path.join(lock.folder, to))  # nothing is committed that could not be read
    if sync:
        opened.open_folder()
    path = lock.path(to + NEXT)
    fd = disk.create_temporary(path)
    try:
        try:
            disk.write_at(fd, [raw], 0)
            if sync:
                disk.sync(fd)
        finally:
            disk.close(fd)
        opened.check(state)
    except BaseException:
        sweep(lock, [to + NEXT])
        raise


def _put(state: Manifest, to: str, opened: Opened, *, sync: bool, of: str = "") -> None:
    """Rename the manifest that was prepared, or that of the name `of`, to the one whose place it takes.

    `Opened.check` comes right before.
    """
    folder = opened.lock.folder
    try:
        disk.replace(os.path.join(folder, of or to + NEXT), os.path.join(folder, to))
    except BaseException as error:
        if to == MANIFEST:
            with Telling(None):
                _say_if_published(error, folder, state)
        raise
    if sync:
        with AFTER_COMMIT if to == MANIFEST else nullcontext():
            opened.sync_names()


def _say_if_published(error: BaseException, folder: str, state: Manifest) -> None:
    """Tell an error of a rename whether it took place all the same, as it may on a file system over a network."""
    try:
        found = read_json(folder, MANIFEST)
        is_published: bool | None = found is not None and (found.id, found.generation) == (state.id, state.generation)
    except (MmapNinjaError, OSError):
        is_published = None
    set_committed(error, is_published)


def sync_files(state: Manifest, opened: Opened) -> None:
    """Make every byte that the state names durable, and the names too."""
    for file in state.files.values():
        opened.file(file.name)
        if file.size >= BLOCK:
            opened.file(file.crc_name)
    opened.sync()
    opened.sync_names()


def publish(state: Manifest, opened: Opened, *, sync: bool) -> Manifest:
    """Put a build in the place of what is there: the commit point of everything it has written; returns its state.

    `opened` has the descriptors of those of its files that `append` has written to.
    """
    lock = opened.lock
    for file in state.files.values():
        opened.file(file.name)
    write_headers(state, state.files, opened)
    if sync:
        sync_files(state, opened)
        with suppress(PermissionError):  # whoever has made the folder may have died before it synced that
            disk.sync_folder(os.path.dirname(lock.folder))
        opened.open_folder()
    state = replace(state, synced=sync, lost=state.lost and not sync)
    write_manifest(lock, state, BUILDING, sync=sync)
    opened.check(state)
    _put(state, MANIFEST, opened, sync=sync, of=BUILDING)
    with AFTER_COMMIT:
        sweep(lock, state.obsolete)
    return state


def remove_files(lock: Lock, names: Iterable[str]) -> None:
    """Remove files that no committed state names any more."""
    for name in sorted(names):
        lock.check()
        disk.remove(lock.folder, name)


def sweep(lock: Lock, obsolete: Iterable[str]) -> None:
    """Remove what a commit has made obsolete. It stands, whatever becomes of this; the next writer tries again."""
    with suppress(OSError, MapChangedError):
        remove_files(lock, obsolete)


def append(state: Manifest, role: str, chunks: Sequence[Buffer], opened: Opened) -> Manifest:
    """Write chunks to one file, and the checksums of the blocks that they complete; commits nothing.

    The files stay open in `opened`, for the caller to sync and close.
    """
    file = state.files[role]
    after, crcs = appended(file, chunks)
    state = state.with_files(**{role: after})
    fd = opened.file(file.name, create=file.size == 0)
    if file.size == 0 and file.offset:
        disk.write_at(fd, [npy_header(*state.layout(role))], 0)
    disk.write_at(fd, chunks, file.end)
    _append_crcs(file, crcs, opened)
    return state


def _append_crcs(file: File, crcs: bytes, opened: Opened) -> None:
    """Write the checksums of the blocks that were completed after the `file` as it was before."""
    if crcs:
        fd = opened.file(file.crc_name, create=file.size < BLOCK)
        disk.write_at(fd, [crcs], 4 * (file.size // BLOCK))


class Ahead:
    """Bytes that are written behind the end of the data before all of their batch is known; commits nothing.

    `state` has the fields that this batch sets. The files stay open in `opened`.
    """

    def __init__(self, state: Manifest, opened: Opened) -> None:
        self._file, self._opened = with_header(state, DATA), opened
        if self._file.size == 0:  # it is made, with its header
            append(state.with_files(**{DATA: self._file}), DATA, [], opened)
        self._fd, self._growing = opened.file(self._file.name), Growing(self._file)

    def write(self, *chunks: Buffer) -> None:
        """Write chunks, of which nothing is kept."""
        at = self._growing.end
        for chunk in chunks:
            self._growing.add(chunk)
        disk.write_at(self._fd, chunks, at)

    def finish(self, state: Manifest, chunks: Sequence[Buffer]) -> Manifest:
        """Write the last chunks; returns the state with all that was written."""
        if chunks:
            self.write(*chunks)
        file, crcs = self._growing.done()
        _append_crcs(self._file, crcs, self._opened)
        return state.with_files(**{DATA: file})


def checksum(lock: Lock, file: File, values: memoryview) -> File:
    """Write the checksums of a file that is there already; returns its entry with all of `values` committed."""
    done = File(file.name, offset=file.offset)
    with Opened(lock) as opened:
        while done.size < len(values):
            at = done.size
            done, crcs = appended(done, [values[at : at + BLOCK]])
            if crcs:
                disk.write_at(opened.file(file.crc_name, create=True), [crcs], 4 * (at // BLOCK))
        opened.sync()
    return done


def _is_new(before: File, after: File) -> bool:
    """Whether an append has made a file: the file itself, or that of its checksums."""
    return before.size == 0 or before.size < BLOCK <= after.size


def write_headers(state: Manifest, roles: Iterable[str], opened: Opened) -> None:
    """Tell `np.load` of the new shapes; a header that would not fit in front of the values is left as it is."""
    for role in roles:
        file = state.files[role]
        header = npy_header(*state.layout(role)) if file.offset else b""
        if header and len(header) == file.offset:
            disk.write_at(opened[file.name], [header], 0)


def write_rows(lock: Lock, state: Manifest, tables: Iterable[np.ndarray[Any, Any]], *, sync: bool) -> Manifest:
    """Write a whole index file, table by table, uncommitted; returns the state with that file."""
    with Opened(lock) as opened, undone(state, opened):
        for table in tables:
            state = append(state, INDEX, [table.astype("<i8").tobytes()], opened)
        if sync:
            opened.sync()
            disk.sync_folder(lock.folder)
    return state


def with_header(state: Manifest, role: str) -> File:
    """The entry of a file with room for its `.npy` header, once the dtype is known."""
    file = state.files[role]
    if file.size or role == DICTIONARY:
        return file
    return replace(file, offset=len(npy_header(*state.layout(role))))
