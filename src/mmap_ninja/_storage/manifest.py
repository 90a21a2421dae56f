"""What a folder says about its map: a frozen value, and how it is written as one small JSON file.

`docs/format.md` lists every key; `decode` reads the file and checks each of them, so that the layers above can rely
on the types and ranges of a `Manifest`, whoever wrote the folder.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from mmap_ninja._storage.dtypes import describe_dtype
from mmap_ninja.errors import ArgumentError

MANIFEST = "manifest.json"
BUILDING = "building.json"
FORMAT = 2
CAP = 1 << 20
MAX_AXES = 63  # of a sample; one more is numpy's limit for all of them
MAX_INT = 2**63 - 1

DENSE, RAGGED, BYTES, STRINGS = "dense", "ragged", "bytes", "strings"
KINDS = (DENSE, RAGGED, BYTES, STRINGS)
DATA, INDEX, DICTIONARY = "data", "index", "dictionary"

PREFIX = b'{"crc32": "'
CRC_END = len(PREFIX) + 9  # the digits and their closing quote
_ROWS = np.dtype("<i8")
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class File:
    """The committed part of one file: `size` bytes after the first `offset`.

    `tail_crc` is the CRC-32 of the last, unfinished block; the complete blocks have theirs in the file
    `crc_name`. `checked` is false while values assigned in place may differ from the checksums.
    """

    name: str
    offset: int = 0
    size: int = 0
    tail_crc: int = 0
    checked: bool = True

    @property
    def crc_name(self) -> str:
        return self.name.rpartition(".")[0] + ".crc"

    @property
    def end(self) -> int:
        """Where the next byte goes, in bytes from the start of the file."""
        return self.offset + self.size


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
    may hold samples of fewer axes. `synced` is false while bytes of it may not be on the disk. `obsolete` names files
    of earlier states that the next writer removes.
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
    def itemsize(self) -> int:
        """Bytes of one element; 1 until there is a dtype."""
        return 1 if self.dtype is None else self.dtype.itemsize

    def names(self) -> set[str]:
        """Every file that belongs to this state, checksums included."""
        if self.format_1:
            return set(self.format_1)
        return {name for file in self.files.values() for name in (file.name, file.crc_name)}

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


def encode(manifest: Manifest) -> bytes:
    """The bytes of the JSON file, the checksum first."""
    fields: dict[str, Any] = {
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
            role: {"name": f.name, "offset": f.offset, "size": f.size, "tail_crc": f.tail_crc, "checked": f.checked}
            for role, f in manifest.files.items()
        },
        "obsolete": list(manifest.obsolete),
        "metadata": dict(manifest.metadata),
    }
    if manifest.building is not None:
        fields["building"] = {"boot_id": manifest.building.boot_id, "upgrade": manifest.building.upgrade}
    rest = b", " + json.dumps(fields, indent=1, allow_nan=False).encode()[1:].lstrip() + b"\n"
    raw = PREFIX + f'{zlib.crc32(rest):08x}"'.encode() + rest
    if len(raw) > CAP:
        raise ArgumentError(f"the manifest would have {len(raw)} bytes, at most {CAP}: keep less in `metadata`")
    return raw
