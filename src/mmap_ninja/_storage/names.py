"""The names of a map's files: `data.npy`, then `data-2.npy` for the next ones, and none of them twice."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable

from mmap_ninja._storage import disk
from mmap_ninja._storage.manifest import BUILDING, DATA, DICTIONARY, INDEX, File
from mmap_ninja.errors import ForeignFileError

_STEMS = {DATA: "data{}.npy", INDEX: "index{}.npy", DICTIONARY: "zstd{}.dict"}
_FORMAT_1 = {"data.ninja", "dtype.ninja", "shape.ninja", "order.ninja"}
_NUMBER = re.compile(r"(?:data|index|zstd)(?:-([0-9]{1,9}))?\.(?:npy|crc|dict)")


def file_name(role: str, number: int) -> str:
    """The name of a map's file; each time that a folder gets another one, it gets the next number."""
    return _STEMS[role].format("" if number == 1 else f"-{number}")


def _numbers(names: Iterable[str]) -> list[int]:
    """The numbers in those names that are of a map's files."""
    found = (_NUMBER.fullmatch(name) for name in names)
    return [int(match[1] or 1) for match in found if match]


def _taken_names(folder: str, roles: Iterable[str], number: int) -> list[str]:
    """Which names of new files with this number, their checksums included, somebody has already."""
    files = [File(file_name(role, number)) for role in roles]
    names = [name for file in files for name in (file.name, file.crc_name)]
    return [name for name in names if disk.exists(os.path.join(folder, name))]


def files_of_maps(folder: str) -> list[str]:
    """Which files in a folder have names that those of maps have, in order; none where it cannot be listed."""
    try:
        return sorted(name for name in os.listdir(folder) if name in _FORMAT_1 or _NUMBER.fullmatch(name))
    except OSError:
        return []


def foreign_file(folder: str, name: str) -> ForeignFileError:
    """What is raised where somebody else has taken one of our names."""
    return ForeignFileError(f"{os.path.join(folder, name)} is not of a map, but has the name of one of its files")


def free_number(folder: str, roles: Iterable[str], used: Collection[str]) -> int:
    """The number in the names of new files: greater than all in `used`, the names that the map has or had.

    Raises `ForeignFileError` if somebody else has such a name; where a build was interrupted it is passed over.
    """
    number = max(_numbers(used), default=0) + 1
    while taken := _taken_names(folder, roles, number):
        if not used and not disk.exists(os.path.join(folder, BUILDING)):
            raise foreign_file(folder, taken[0])
        number += 1
    return number
