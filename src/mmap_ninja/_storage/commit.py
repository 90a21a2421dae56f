"""The order of writes and syncs. Whoever changes a map goes through `commit`.

1. The new bytes are written behind the committed end of each file, where no reader looks.
2. They are made durable, and so are the names of files that are new.
3. The manifest is written beside the old one, made durable, and takes its place: the commit point.
4. The folder is made durable. Only now does the caller learn of success.
5. The `.npy` headers get their new shape. They are for `np.load`; our readers believe the manifest.

A crash before the commit point leaves the old state, with bytes behind its end that the next writer overwrites. No
file that a reader may have mapped is ever cut, and none is written through a mapping.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from mmap_ninja._storage import disk
from mmap_ninja._storage.disk import Buffer
from mmap_ninja._storage.flatfile import BLOCK, appended, npy_header
from mmap_ninja._storage.manifest import BUILDING, DICTIONARY, INDEX, MANIFEST, PREFIX, File, Manifest, encode
from mmap_ninja.errors import SyncError

Appends = Mapping[str, Sequence[Buffer]]


class Opened(dict[str, int]):
    """Descriptors to write to, by the name of their file; closed at the end of a `with` block."""

    def file(self, folder: str, name: str, *, create: bool = False) -> int:
        """The descriptor of a file, which is opened, or made, at its first use."""
        if name not in self:
            self[name] = disk.open_to_write(os.path.join(folder, name), create=create)
        return self[name]

    def sync(self) -> None:
        """Make everything durable that was written to these files."""
        for fd in self.values():
            disk.sync_data(fd)

    def close(self) -> None:
        """Close all, also if closing one fails; a second call does nothing."""
        if self:
            try:
                disk.close(self.popitem()[1])
            finally:
                self.close()

    def __enter__(self) -> Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def commit(folder: str, state: Manifest, appends: Appends, *, sync: bool = True) -> Manifest:
    """Append chunks to files and commit the result; returns the new state.

    `state` is the new state in everything but its files, which are as they were before; a file of no committed
    bytes is created. `sync=False` leaves it to the kernel when the bytes reach the disk.
    """
    with Opened() as opened:
        before = state
        for role, chunks in appends.items():
            state = append(folder, state, role, chunks, opened)
        if sync and not before.synced:  # a commit is only as durable as what it builds on
            sync_files(folder, state, opened)
        elif sync:
            opened.sync()
            if any(_is_new(before.files[role], state.files[role]) for role in appends):
                disk.sync_folder(folder)
        state = replace(state, synced=sync)
        write_manifest(folder, state, MANIFEST, sync=sync)
        with suppress(OSError):  # the samples are committed, whatever becomes of the headers
            _write_headers(state, appends, opened)
    return state


def write_manifest(folder: str, state: Manifest, to: str, *, sync: bool) -> None:
    """Put a manifest in the place of the old one."""
    path = os.path.join(folder, to)
    fd = disk.create_temporary(path + ".new", PREFIX)
    try:
        disk.write_at(fd, [encode(state)], 0)
        if sync:
            disk.sync(fd)
    finally:
        disk.close(fd)
    disk.replace(path + ".new", path)
    if sync:
        _sync_name(folder, to)


def _sync_name(folder: str, to: str) -> None:
    """Make a rename durable; if that fails, what was renamed is there all the same."""
    try:
        disk.sync_folder(folder)
    except SyncError as error:
        if to != MANIFEST:
            raise
        what = f"{error.strerror}; the new state of {folder} is visible, but may not survive a power cut"
        raise SyncError(error.errno, what) from error


def sync_files(folder: str, state: Manifest, opened: Opened) -> None:
    """Make every byte that the state names durable, and the names too."""
    for file in state.files.values():
        opened.file(folder, file.name)
        if file.size >= BLOCK and file.checked:
            opened.file(folder, file.crc_name)
    opened.sync()
    disk.sync_folder(folder)


def publish(folder: str, state: Manifest, opened: Opened, *, sync: bool) -> None:
    """Put a build in the place of what is there: the commit point of everything it has written.

    `opened` has the descriptors of those of its files that `append` has written to.
    """
    for file in state.files.values():
        opened.file(folder, file.name)
    _write_headers(state, state.files, opened)
    if sync:
        sync_files(folder, state, opened)
    write_manifest(folder, state, BUILDING, sync=sync)
    disk.replace(os.path.join(folder, BUILDING), os.path.join(folder, MANIFEST))
    if sync:
        _sync_name(folder, MANIFEST)
    remove_files(folder, state.obsolete)


def remove_files(folder: str, names: Iterable[str]) -> None:
    """Remove files that no committed state names any more."""
    for name in sorted(names):
        disk.remove(folder, name)


def append(folder: str, state: Manifest, role: str, chunks: Sequence[Buffer], opened: Opened) -> Manifest:
    """Write chunks to one file, and the checksums of the blocks that they complete; commits nothing.

    The files stay open in `opened`, for the caller to sync and close.
    """
    file = state.files[role]
    after, crcs = appended(file, chunks)
    state = state.with_files(**{role: after})
    fd = opened.file(folder, file.name, create=file.size == 0)
    if file.size == 0 and file.offset:
        disk.write_at(fd, [npy_header(*state.layout(role))], 0)
    disk.write_at(fd, chunks, file.end)
    if crcs:
        fd = opened.file(folder, file.crc_name, create=file.size < BLOCK)
        disk.write_at(fd, [crcs], 4 * (file.size // BLOCK))
    return state


def checksum(folder: str, file: File, values: memoryview) -> File:
    """Write the checksums of a file that is there already; returns its entry with all of `values` committed."""
    done = File(file.name, offset=file.offset)
    with Opened() as opened:
        while done.size < len(values):
            at = done.size
            done, crcs = appended(done, [values[at : at + BLOCK]])
            if crcs:
                disk.write_at(opened.file(folder, file.crc_name, create=True), [crcs], 4 * (at // BLOCK))
        opened.sync()
    return done


def _is_new(before: File, after: File) -> bool:
    """Whether an append has made a file: the file itself, or that of its checksums."""
    return before.size == 0 or before.size < BLOCK <= after.size


def _write_headers(state: Manifest, roles: Iterable[str], opened: Opened) -> None:
    for role in roles:
        file = state.files[role]
        if file.offset:
            disk.write_at(opened[file.name], [npy_header(*state.layout(role))], 0)


def write_rows(folder: str, state: Manifest, tables: Iterable[np.ndarray[Any, Any]], *, sync: bool) -> Manifest:
    """Write a whole index file, table by table, uncommitted; returns the state with that file."""
    with Opened() as opened:
        for table in tables:
            state = append(folder, state, INDEX, [table.astype("<i8").tobytes()], opened)
        if sync:
            opened.sync()
            disk.sync_folder(folder)
    return state


def with_header(state: Manifest, role: str) -> File:
    """The entry of a file with room for its `.npy` header, once the dtype is known."""
    file = state.files[role]
    if file.size or role == DICTIONARY:
        return file
    return replace(file, offset=len(npy_header(*state.layout(role))))
