"""Adding samples to a map, finished or not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from mmap_ninja._storage.commit import (
    Appends,
    commit,
    sweep,
    with_header,
    write_rows,
)
from mmap_ninja._storage.disk import Buffer
from mmap_ninja._storage.index import tables, widened
from mmap_ninja._storage.manifest import DATA, DICTIONARY, INDEX, File, Manifest
from mmap_ninja._storage.snapshot import open_snapshot
from mmap_ninja.errors import ForeignFileError

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


def file_name(role: str, number: int) -> str:
    """The name of a map's file; each time that a folder gets another one, it gets the next number."""
    return _STEMS[role].format("" if number == 1 else f"-{number}")


def numbers(names: Iterable[str]) -> list[int]:
    """The numbers in those names that are of a map's files."""
    found = (_NUMBER.fullmatch(name) for name in names)
    return [int(match[1] or 1) for match in found if match]


def taken_names(folder: str, roles: Iterable[str], number: int) -> list[str]:
    """Which names of new files with this number, their checksums included, somebody has already."""
    files = [File(file_name(role, number)) for role in roles]
    names = [name for file in files for name in (file.name, file.crc_name)]
    return [name for name in names if os.path.lexists(os.path.join(folder, name))]


def foreign_file(folder: str, name: str) -> ForeignFileError:
    """What is raised where somebody else has taken one of our names."""
    return ForeignFileError(f"{os.path.join(folder, name)} is not of a map, but has the name of one of its files")


class Writer:
    """Adds to one map; whoever has one holds the lock of the folder."""

    def __init__(self, folder: str, state: Manifest) -> None:
        self.folder, self.state = folder, state

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
        sweep(self.folder, obsolete)

    def finish(self, *, sync: bool = True) -> None:
        """Publish what is not: every append of a writer is, those of a build are not."""

    def change(self, *, sync: bool = True, **fields: Any) -> None:
        """Commit a state that differs in nothing but what it says about itself."""
        obsolete = tuple(sorted(self._not_removed() | set(fields.pop("obsolete", ()))))
        new = replace(self.state, generation=self.state.generation + 1, obsolete=obsolete, **fields)
        self._commit(new, {}, sync=sync)

    def _not_removed(self) -> set[str]:
        """Obsolete files that are still there: the next state has to name them as well."""
        return {name for name in self.state.obsolete if os.path.lexists(os.path.join(self.folder, name))}

    def _commit(self, new: Manifest, appends: Appends, *, sync: bool) -> None:
        self.state = commit(self.folder, self.state, new, appends, sync=sync)

    def _placed(self, rows: np.ndarray[Any, Any], state: Manifest) -> Buffer:
        """The rows with their starts counted from the first value of the map."""
        placed = rows.astype("<i8")
        placed[:, 0] += self.state.files[DATA].size // state.itemsize
        return placed.tobytes()

    def _wider_index(self, wide: Manifest, *, sync: bool) -> File:
        """Copy the index to a new file with more columns."""
        new = File(file_name(INDEX, self._free_number()))
        # Named before it is made, so that a crash leaves nothing behind that nobody knows.
        self.change(sync=sync, obsolete=(new.name, new.crc_name))
        index = open_snapshot(self.folder, state=self.state).index
        state = replace(wide, length=self.state.length).with_files(**{INDEX: new})
        state = state.with_files(**{INDEX: with_header(state, INDEX)})
        rows = (widened(table, wide.width) for table in tables(index))
        return write_rows(self.folder, state, rows, sync=sync).files[INDEX]

    def _free_number(self) -> int:
        """The number of a new index, whose names nobody has."""
        number = numbers([self.state.files[INDEX].name])[0] + 1
        while taken_names(self.folder, [INDEX], number):
            number += 1
        return number
