"""What a folder says about its map: a frozen value, and how it is written as one small JSON file.

`docs/format.md` lists every key; `decode` reads the file and checks each of them, so that the layers above can rely
on the types and ranges of a `Manifest`, whoever wrote the folder.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from mmap_ninja._storage.dtypes import describe_dtype
from mmap_ninja.errors import ArgumentError

MANIFEST = "manifest.json"
BUILDING = "building.json"
NEXT = ".new"  # after the name of a manifest: the one that will take its place
FORMAT = 2
CAP = 1 << 20
MAX_AXES = 63  # of a sample; one more is numpy's limit for all of them
MAX_INT = 2**63 - 1
MOST_DICTIONARY = 1 << 24  # bytes; it is held in memory
MOST_LEVEL = 22  # of zstd
MOST_NESTED = 100  # levels of the user's metadata
MOST_EMPTY = 2**20  # samples of no elements in a dense map

DENSE, RAGGED, BYTES, STRINGS = "dense", "ragged", "bytes", "strings"
KINDS = (DENSE, RAGGED, BYTES, STRINGS)
DATA, INDEX, DICTIONARY = "data", "index", "dictionary"

PREFIX = b'{"crc32": "'
CRC_END = len(PREFIX) + 9  # the digits and their closing quote
_ROWS = np.dtype("<i8")
_NUMPY_AXES: int = getattr(np, "MAXDIMS", 64)  # 32 before NumPy 2
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class File:
    """The committed part of one file: `size` bytes after the first `offset`.

    `tail_crc` is the CRC-32 of the last, unfinished block; the complete blocks have theirs in the file `crc_name`,
    and `blocks_crc` is the CRC-32 of those. `checked` is false while values assigned in place may differ from them.
    """

    name: str
    offset: int = 0
    size: int = 0
    tail_crc: int = 0
    blocks_crc: int = 0
    checked: bool = True

    @property
    def crc_name(self) -> str:
        return self.name.rpartition(".")[0] + ".crc"

    @property
    def end(self) -> int:
        """Where the next byte goes, in bytes from the start of the file."""
        return self.offset + self.size


_FILE_FIELDS = fields(File)


@dataclass(frozen=True)
class Codec:
    """How each sample of a bytes or strings map is compressed by itself."""

    name: str
    level: int


@dataclass(frozen=True)
class Building:
    """The mark of a map that is not finished: who built it, on which boot of the machine."""

    boot_id: str | None
    upgrade: bool = False


@dataclass(frozen=True)
class Manifest:
    """One committed state of a map, the same for both formats.

    `dtype` is None until the first sample; `dtype_given` means that rounding to it was asked for.
    `sample_shape` is set for dense maps, `ndim` (the axes in an index row) for all others; `mixed` maps
    may hold samples of fewer axes. `synced` is false while bytes of it may not be on the disk, `lost` is true
    after a sync of those has failed. `obsolete` names files of earlier states that the next writer removes.
    `order` and `format_1` (all its files) are never other than `"C"` and empty in format 2.
    """

    kind: str
    id: str
    generation: int = 0
    length: int = 0
    dtype: np.dtype[Any] | None = None
    dtype_given: bool = False
    sample_shape: tuple[int, ...] | None = None
    ndim: int = 0
    mixed: bool = False
    order: str = "C"
    codec: Codec | None = None
    synced: bool = True
    lost: bool = False
    metadata: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    files: Mapping[str, File] = field(default_factory=lambda: _EMPTY)
    obsolete: tuple[str, ...] = ()
    building: Building | None = None
    format_1: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Columns of the index: the start, the shape, and the raw size where samples are compressed."""
        return 1 + self.ndim + (self.codec is not None)

    @property
    def is_upgrade(self) -> bool:
        """Whether it is of an upgrade from format 1 that is not finished."""
        return self.building is not None and self.building.upgrade

    @property
    def itemsize(self) -> int:
        """Bytes of one element; 1 until there is a dtype."""
        return 1 if self.dtype is None else self.dtype.itemsize

    def names(self) -> set[str]:
        """Every file that belongs to this state, checksums included."""
        if self.format_1:
            return set(self.format_1)
        return {name for file in self.files.values() for name in (file.name, file.crc_name)}

    def used_names(self) -> set[str]:
        """These, and those that it says were there before."""
        return self.names() | set(self.obsolete)

    def takes_same(self, other: Manifest) -> bool:
        """Whether a batch that was made for one of these states fits the other as it is."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("kind", "id", "dtype", "dtype_given", "sample_shape", "ndim", "mixed", "codec")
        ) and bool(self.length) == bool(other.length)

    def layout(self, role: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """The dtype and shape that the `.npy` header of this file should have."""
        if role == INDEX:
            return _ROWS, (self.length, self.width)
        dtype = self.dtype if self.dtype is not None else np.dtype(np.uint8)
        if self.sample_shape is not None:
            return dtype, (self.length, *self.sample_shape)
        size = self.files[role].size if role in self.files else 0
        return dtype, (size // dtype.itemsize,)

    def with_files(self, **files: File) -> Manifest:
        """The same state with some of its files replaced."""
        return replace(self, files=MappingProxyType({**self.files, **files}))


def check_shape(itemsize: int, shape: tuple[int, ...]) -> None:
    """Refuse a shape `(length, *sample_shape)` that numpy cannot count, or of more than `MOST_EMPTY` empty samples.

    A shape of no elements has no bytes on the disk that would bound it.
    """
    if len(shape) > _NUMPY_AXES:
        raise ValueError(f"{len(shape)} axes, of which this NumPy knows {_NUMPY_AXES}")
    if math.prod(axis or 1 for axis in shape) * max(itemsize, 8) > MAX_INT:
        raise ValueError(f"shape {shape} is too large")
    if 0 in shape[1:] and shape[0] > MOST_EMPTY:
        raise ValueError(f"shape {shape}: at most {MOST_EMPTY} samples of no elements")


def nesting(value: Any) -> int:
    """How many levels of lists and objects a JSON value has; counted without recursion, which has its own limit."""
    depth, level = 0, [value]
    while level:
        inner = [child for child in level if isinstance(child, dict | list)]
        depth += bool(inner)
        level = [child for one in inner for child in (one.values() if isinstance(one, dict) else one)]
    return depth


def encode(manifest: Manifest) -> bytes:
    """The bytes of the JSON file, the checksum first."""
    keys: dict[str, Any] = {
        "format": FORMAT,
        "kind": manifest.kind,
        "id": manifest.id,
        "generation": manifest.generation,
        "length": manifest.length,
        "dtype": None if manifest.dtype is None else describe_dtype(manifest.dtype),
        "dtype_given": manifest.dtype_given,
        "sample_shape": None if manifest.sample_shape is None else list(manifest.sample_shape),
        "ndim": manifest.ndim,
        "mixed": manifest.mixed,
        "codec": None if manifest.codec is None else {"name": manifest.codec.name, "level": manifest.codec.level},
        "synced": manifest.synced,
        "files": {
            role: {field.name: getattr(file, field.name) for field in _FILE_FIELDS}
            for role, file in manifest.files.items()
        },
        "obsolete": list(manifest.obsolete),
        "metadata": dict(manifest.metadata),
    }
    if manifest.lost:
        keys["lost"] = True
    if manifest.building is not None:
        keys["building"] = {"boot_id": manifest.building.boot_id, "upgrade": manifest.building.upgrade}
    rest = b", " + json.dumps(keys, indent=1, allow_nan=False).encode()[1:].lstrip() + b"\n"
    raw = PREFIX + f'{zlib.crc32(rest):08x}"'.encode() + rest
    if len(raw) > CAP:
        raise ArgumentError(f"the manifest would have {len(raw)} bytes, at most {CAP}: keep less in `metadata`")
    return raw
