"""What a folder says about its map: one small JSON file, and the frozen value that it is read into.

`docs/format.md` lists every key. Everything that is read is checked here, so that the layers above can rely on
the types and ranges of a `Manifest`, whoever wrote the folder.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from mmap_ninja._storage.dtypes import describe_dtype, parse_dtype
from mmap_ninja.errors import ArgumentError, MapCorruptError, MapVersionError

MANIFEST = "manifest.json"
BUILDING = "building.json"
FORMAT = 2
CAP = 1 << 20
MAX_AXES = 63  # of a sample; one more is numpy's limit for all of them
MAX_INT = 2**63 - 1

DENSE, RAGGED, BYTES, STRINGS = "dense", "ragged", "bytes", "strings"
KINDS = (DENSE, RAGGED, BYTES, STRINGS)
DATA, INDEX, DICTIONARY = "data", "index", "dictionary"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_ID = re.compile(r"[0-9a-f]{32}")
PREFIX = b'{"crc32": "'
_CRC_END = len(PREFIX) + 9  # the digits and their closing quote
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

    def names(self) -> set[str]:
        """Every file that belongs to this state, checksums included."""
        if self.format_1:
            return set(self.format_1)
        return {name for file in self.files.values() for name in (file.name, file.crc_name)}

    def with_metadata(self, metadata: Mapping[str, Any]) -> Manifest:
        """The same state with other metadata of the user."""
        return replace(self, metadata=metadata)

    def takes_same(self, other: Manifest) -> bool:
        """Whether a batch that was made for one of these states fits the other as it is."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("kind", "id", "dtype", "dtype_given", "sample_shape", "ndim", "mixed", "codec")
        ) and bool(self.length) == bool(other.length)

    def layout(self, role: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """The dtype and shape that the `.npy` header of this file should have."""
        if role == INDEX:
            return np.dtype("<i8"), (self.length, self.width)
        dtype = self.dtype if self.dtype is not None else np.dtype(np.uint8)
        if self.sample_shape is not None:
            return dtype, (self.length, *self.sample_shape)
        size = self.files[role].size if role in self.files else 0
        return dtype, (size // max(dtype.itemsize, 1),)

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


def decode(raw: bytes, path: str) -> Manifest:
    """Read a manifest; anything but a well-formed one raises `MapCorruptError` that names `path`."""
    found = raw[len(PREFIX) : _CRC_END - 1]
    if not raw.startswith(PREFIX) or raw[_CRC_END - 1 : _CRC_END] != b'"':
        raise MapCorruptError(f"{path} is not a manifest of mmap_ninja: it does not begin with a checksum")
    expected = f"{zlib.crc32(raw[_CRC_END:]):08x}".encode()
    if found != expected:
        raise MapCorruptError(f"{path} is damaged: checksum {found!r}, expected {expected!r} for its content")
    try:
        return _Reader(_parse(raw.decode())).manifest()
    except MapVersionError as error:
        raise MapVersionError(f"{path}: {error}") from None
    except (ValueError, RecursionError, OverflowError) as error:
        raise MapCorruptError(f"{path} is not a valid manifest: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice")
    return fields


def _refuse_constant(text: str) -> None:
    raise ValueError(f"the number {text}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text}")
    return number


# Made once: a decoder costs more than the decoding.
_parse = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite).decode


@dataclass
class _Reader:
    """Takes the fields of a manifest apart, each with its check."""

    fields: Any

    def manifest(self) -> Manifest:
        version = self.integer("format") if isinstance(self.fields, dict) and "format" in self.fields else 0
        if version > FORMAT:
            raise MapVersionError(
                f"format {version} needs a newer mmap_ninja than this one, which reads up to {FORMAT}"
            )
        kind = self.take("kind", str)
        if version != FORMAT or kind not in KINDS:
            raise ValueError(f"format {version}, kind {kind!r}; expected format {FORMAT} and one of {KINDS}")
        manifest = Manifest(
            kind=kind,
            id=self.matching("id", _ID),
            generation=self.integer("generation"),
            length=self.integer("length"),
            dtype=None if self.fields.get("dtype") is None else parse_dtype(self.fields["dtype"]),
            dtype_given=self.take("dtype_given", bool),
            sample_shape=self.optional("sample_shape", _shape),
            ndim=self.integer("ndim", MAX_AXES),
            mixed=self.take("mixed", bool),
            codec=self.optional("codec", lambda value: _Reader(value).codec()),
            synced=self.take("synced", bool),
            metadata=MappingProxyType(self.take("metadata", dict)),
            files=MappingProxyType({r: _Reader(f).file() for r, f in self.take("files", dict).items()}),
            obsolete=tuple(_path(name) for name in self.take("obsolete", list)),
            building=self.optional("building", lambda value: _Reader(value).building()),
        )
        _check_sizes(manifest)
        return manifest

    def file(self) -> File:
        return File(
            name=self.matching("name", _NAME),
            offset=self.integer("offset", CAP),
            size=self.integer("size"),
            tail_crc=self.integer("tail_crc", 2**32 - 1),
            checked=self.take("checked", bool),
        )

    def codec(self) -> Codec:
        name = self.take("name", str)
        if name != "zstd":
            raise ValueError(f"codec {name!r}")
        level = self.take("level", int)
        return Codec(name, level)

    def building(self) -> Building:
        return Building(self.optional("boot_id", str), self.take("upgrade", bool))

    def take(self, key: str, kind: type) -> Any:
        value = self.fields.get(key) if isinstance(self.fields, dict) else None
        if type(value) is not kind:
            raise ValueError(f"{key} is {value!r}, expected {kind.__name__}")
        return value

    def integer(self, key: str, most: int = MAX_INT) -> int:
        value: int = self.take(key, int)
        if not 0 <= value <= most:
            raise ValueError(f"{key} is {value}, expected 0 to {most}")
        return value

    def matching(self, key: str, pattern: re.Pattern[str]) -> str:
        value: str = self.take(key, str)
        if not pattern.fullmatch(value):
            raise ValueError(f"{key} is {value!r}")
        return value

    def optional(self, key: str, parse: Callable[[Any], Any]) -> Any:
        value = self.fields.get(key) if isinstance(self.fields, dict) else None
        return None if value is None else parse(value)


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_AXES:
        raise ValueError(f"sample_shape is {value!r}")
    if any(type(axis) is not int or not 0 <= axis <= MAX_INT for axis in value):
        raise ValueError(f"sample_shape is {value!r}")
    return tuple(value)


def _path(value: Any) -> str:
    """A file of the folder, or of a subfolder of it as format 1 had them."""
    if not isinstance(value, str) or not 1 <= len(value.split("/")) <= 3:
        raise ValueError(f"file name {value!r}")
    if not all(_NAME.fullmatch(part) for part in value.split("/")):
        raise ValueError(f"file name {value!r}")
    return value


def _check_sizes(manifest: Manifest) -> None:
    """Counts, shapes and file sizes have to agree before anything is mapped."""
    expected = {DATA} if manifest.kind == DENSE else {DATA, INDEX}
    is_text = manifest.kind in (BYTES, STRINGS)
    if (manifest.codec is not None and not is_text) or (is_text and (manifest.ndim, manifest.mixed) != (1, False)):
        raise ValueError(f"a {manifest.kind} map with codec {manifest.codec}, ndim {manifest.ndim}")
    if {MANIFEST, BUILDING} & (manifest.names() | set(manifest.obsolete)) or manifest.names() & set(manifest.obsolete):
        raise ValueError(f"files {sorted(manifest.names())} beside the obsolete {manifest.obsolete}")
    if not set(manifest.files) <= expected | ({DICTIONARY} if manifest.codec else set()):
        raise ValueError(f"files {sorted(manifest.files)}, expected {sorted(expected)}")
    if manifest.length and (manifest.dtype is None or not expected <= set(manifest.files)):
        raise ValueError(f"length {manifest.length}, but no dtype or no files")
    if (manifest.kind == DENSE) != (manifest.sample_shape is not None) and manifest.length:
        raise ValueError(f"sample_shape {manifest.sample_shape} in a {manifest.kind} map")
    for role, file in manifest.files.items():
        if role == DICTIONARY:
            continue
        dtype, shape = manifest.layout(role)
        if math.prod(axis or 1 for axis in shape) * dtype.itemsize > MAX_INT:  # numpy counts no zeros here either
            raise ValueError(f"shape {shape} of {dtype} is too large")
        if math.prod(shape) * dtype.itemsize != file.size:
            raise ValueError(f"{file.name} has {file.size} bytes, expected shape {shape} of {dtype}")
