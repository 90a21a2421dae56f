"""Adding samples to a map, finished or not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from mmap_ninja._storage import disk
from mmap_ninja._storage.commit import (
    Appends,
    commit,
    sweep,
    with_header,
    write_rows,
)
from mmap_ninja._storage.disk import Buffer
from mmap_ninja._storage.flatfile import read_part
from mmap_ninja._storage.index import tables, widened
from mmap_ninja._storage.lock import Lock
from mmap_ninja._storage.manifest import DATA, DICTIONARY, INDEX, File, Manifest
from mmap_ninja._storage.names import file_name, free_number
from mmap_ninja._storage.snapshot import open_snapshot
from mmap_ninja.errors import AFTER_COMMIT, BEFORE_COMMIT, MapChangedError


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


def unexpected(folder: str, length: int, expected: int) -> MapChangedError:
    """What is raised where a map has not the length that a call expects, and not the samples that it would add."""
    end = ", and does not end with those given" if length > expected else ""
    return MapChangedError(f"{folder} has {length} samples, expected {expected}{end}; look at what others have added")


class Writer:
    """Adds to one map, under the lock of its folder.

    `found` is the state that the lock was taken for, before anything was done to make it writable.
    """

    def __init__(self, lock: Lock, state: Manifest, found: Manifest | None = None) -> None:
        self.lock, self.folder, self.state = lock, lock.folder, state
        self.found = state if found is None else found

    def append(self, batch: Batch, *, sync: bool = True) -> None:
        """Write a batch behind the committed samples and commit it."""
        if batch.count == 0:
            if self.state.length == 0:  # an array of no samples still tells their shape
                self.state = replace(self.state, **batch.changes)
            return
        appends: dict[str, list[Buffer]] = {}
        obsolete = self._not_removed()
        new = replace(self.state, **batch.changes)
        files = dict(self.state.files)
        if batch.dictionary is not None:
            appends[DICTIONARY] = [batch.dictionary]
        if batch.rows is not None:
            if self.state.length and new.width > self.state.width:
                obsolete |= {files[INDEX].name, files[INDEX].crc_name}
                files[INDEX] = self._wider_index(new, sync=sync)
            appends[INDEX] = [self._placed(batch.rows, new)]
        appends[DATA] = batch.chunks
        new = replace(
            new,
            files=MappingProxyType(files),
            length=self.state.length + batch.count,
            generation=self.state.generation + 1,
            obsolete=tuple(sorted(obsolete)),
        )
        new = new.with_files(**{role: with_header(new, role) for role in appends})
        self._commit(new, appends, sync=sync)
        self._sweep(obsolete)

    def has(self, batch: Batch, length: int, *, sync: bool) -> bool:
        """True if this batch was appended to the first `length` samples, and nothing since; durable, with `sync`.

        False where there are no more samples than these. Raises `MapChangedError` where there are others.
        """
        if self.state.length == length:
            return False
        if self.state.length != length + batch.count or not self._ends_with(batch):
            raise unexpected(self.folder, self.state.length, length)
        if sync:
            self.change()  # the call that has written them may have failed to sync
        return True

    def _ends_with(self, batch: Batch) -> bool:
        """True if the last samples are those of a batch, byte by byte."""
        state, raw = self.state, b"".join(batch.chunks)
        data, length, size = state.files[DATA], state.length, len(raw)
        if size > data.size or read_part(self.folder, data, data.end - size, size) != raw:
            return False
        if batch.rows is None:
            return bool(batch.changes["sample_shape"] == state.sample_shape)
        table = open_snapshot(self.folder, state=state).index.table(length - batch.count, length)
        rows = batch.rows.copy()
        rows[:, 0] += (data.size - size) // state.itemsize
        return bool(np.array_equal(table, rows))

    def finish(self, *, sync: bool = True) -> None:
        """Publish what is not: every append of a writer is, those of a build are not."""

    def change(self, *, sync: bool = True, **fields: Any) -> None:
        """Commit a state that differs in nothing but what it says about itself."""
        obsolete = tuple(sorted(self._not_removed() | set(fields.pop("obsolete", ()))))
        new = replace(self.state, generation=self.state.generation + 1, obsolete=obsolete, **fields)
        self._commit(new, {}, sync=sync)

    def _not_removed(self) -> set[str]:
        """Obsolete files that are still there: the next state has to name them as well."""
        return {name for name in self.state.obsolete if disk.exists(os.path.join(self.folder, name))}

    def _commit(self, new: Manifest, appends: Appends, *, sync: bool) -> None:
        self.state = commit(self.lock, self.state, new, appends, sync=sync)

    def _sweep(self, obsolete: Iterable[str]) -> None:
        """Remove what an append has made obsolete: it is committed."""
        with AFTER_COMMIT:
            sweep(self.lock, obsolete)

    def _placed(self, rows: np.ndarray[Any, Any], state: Manifest) -> Buffer:
        """The rows with their starts counted from the first value of the map."""
        placed = rows.astype("<i8")
        placed[:, 0] += self.state.files[DATA].size // state.itemsize
        return placed.tobytes()

    def _wider_index(self, wide: Manifest, *, sync: bool) -> File:
        """Copy the index to a new file with more columns."""
        new = File(file_name(INDEX, free_number(self.folder, [INDEX], [self.state.files[INDEX].name])))
        # Named before it is made, so that a crash leaves nothing behind that nobody knows.
        with BEFORE_COMMIT:
            self.change(sync=sync, obsolete=(new.name, new.crc_name))
        index = open_snapshot(self.folder, state=self.state).index
        state = replace(wide, length=self.state.length).with_files(**{INDEX: new})
        state = state.with_files(**{INDEX: with_header(state, INDEX)})
        rows = (widened(table, wide.width) for table in tables(index))
        return write_rows(self.lock, state, rows, sync=sync).files[INDEX]
