"""Reading a manifest: every type, range, name and size is checked before anybody relies on it."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mmap_ninja._storage.dtypes import parse_dtype
from mmap_ninja._storage.manifest import (
    BUILDING,
    BYTES,
    CAP,
    CRC_END,
    DATA,
    DENSE,
    DICTIONARY,
    FORMAT,
    INDEX,
    KINDS,
    MANIFEST,
    MAX_AXES,
    MAX_INT,
    PREFIX,
    STRINGS,
    Building,
    Codec,
    File,
    Manifest,
)
from mmap_ninja.errors import MapCorruptError, MapVersionError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_ID = re.compile(r"[0-9a-f]{32}")
_RESERVED = (MANIFEST, BUILDING)


def decode(raw: bytes, path: str) -> Manifest:
    """Read a manifest; anything but a well-formed one raises `MapCorruptError` that names `path`."""
    found = raw[len(PREFIX) : CRC_END - 1]
    if not raw.startswith(PREFIX) or raw[CRC_END - 1 : CRC_END] != b'"':
        raise MapCorruptError(f"{path} is not a manifest of mmap_ninja: it does not begin with a checksum")
    expected = f"{zlib.crc32(raw[CRC_END:]):08x}".encode()
    if found != expected:
        raise MapCorruptError(f"{path} is damaged: checksum {found!r}, expected {expected!r} for its content")
    try:
        return _manifest(_Fields(_parse(raw.decode())))
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


class _Fields:
    """The fields of a JSON object, each taken with its check."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Any) -> None:
        if type(fields) is not dict:
            raise ValueError(f"{fields!r}, expected an object")
        self._fields: dict[str, Any] = fields

    def take(self, key: str, kind: type) -> Any:
        value = self._fields.get(key)
        if type(value) is not kind:
            raise ValueError(f"{key} is {value!r}, expected {kind.__name__}")
        return value

    def integer(self, key: str, most: int = MAX_INT) -> int:
        value = self._fields.get(key)
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"{key} is {value!r}, expected an integer from 0 to {most}")
        return value

    def matching(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self._fields.get(key)
        if type(value) is not str or not pattern.fullmatch(value):
            raise ValueError(f"{key} is {value!r}")
        return value

    def optional(self, key: str, parse: Callable[[Any], Any]) -> Any:
        value = self._fields.get(key)
        return None if value is None else parse(value)


def _manifest(fields: _Fields) -> Manifest:
    version = fields.integer("format")
    if version > FORMAT:
        raise MapVersionError(f"format {version} needs a newer mmap_ninja than this one, which reads up to {FORMAT}")
    kind = fields.take("kind", str)
    if version != FORMAT or kind not in KINDS:
        raise ValueError(f"format {version}, kind {kind!r}; expected format {FORMAT} and one of {KINDS}")
    manifest = Manifest(
        kind=kind,
        id=fields.matching("id", _ID),
        generation=fields.integer("generation"),
        length=fields.integer("length"),
        dtype=fields.optional("dtype", parse_dtype),
        dtype_given=fields.take("dtype_given", bool),
        sample_shape=fields.optional("sample_shape", _shape),
        ndim=fields.integer("ndim", MAX_AXES),
        mixed=fields.take("mixed", bool),
        codec=fields.optional("codec", _codec),
        synced=fields.take("synced", bool),
        metadata=MappingProxyType(fields.take("metadata", dict)),
        files=MappingProxyType({role: _file(entry) for role, entry in fields.take("files", dict).items()}),
        obsolete=tuple(map(_path, fields.take("obsolete", list))),
        building=fields.optional("building", _building),
    )
    _check_kind(manifest)
    _check_names(manifest)
    _check_sizes(manifest)
    return manifest


def _file(value: Any) -> File:
    fields = _Fields(value)
    return File(
        name=fields.matching("name", _NAME),
        offset=fields.integer("offset", CAP),
        size=fields.integer("size"),
        tail_crc=fields.integer("tail_crc", 2**32 - 1),
        checked=fields.take("checked", bool),
    )


def _codec(value: Any) -> Codec:
    fields = _Fields(value)
    name = fields.take("name", str)
    if name != "zstd":
        raise ValueError(f"codec {name!r}")
    return Codec(name, fields.take("level", int))


def _building(value: Any) -> Building:
    fields = _Fields(value)
    return Building(fields.optional("boot_id", lambda _: fields.take("boot_id", str)), fields.take("upgrade", bool))


def _shape(value: Any) -> tuple[int, ...]:
    if type(value) is not list or len(value) > MAX_AXES:
        raise ValueError(f"sample_shape is {value!r}")
    if any(type(axis) is not int or not 0 <= axis <= MAX_INT for axis in value):
        raise ValueError(f"sample_shape is {value!r}")
    return tuple(value)


def _path(value: Any) -> str:
    """A file of the folder, or of a subfolder of it as format 1 had them."""
    if type(value) is not str or not 1 <= len(value.split("/")) <= 3:
        raise ValueError(f"file name {value!r}")
    if not all(map(_NAME.fullmatch, value.split("/"))):
        raise ValueError(f"file name {value!r}")
    return value


def _check_kind(manifest: Manifest) -> None:
    """What only some kinds have."""
    is_text = manifest.kind in (BYTES, STRINGS)
    if (manifest.codec is not None and not is_text) or (is_text and (manifest.ndim, manifest.mixed) != (1, False)):
        raise ValueError(f"a {manifest.kind} map with codec {manifest.codec}, ndim {manifest.ndim}")
    if manifest.length and (manifest.kind == DENSE) != (manifest.sample_shape is not None):
        raise ValueError(f"sample_shape {manifest.sample_shape} in a {manifest.kind} map")


def _check_names(manifest: Manifest) -> None:
    """The right files, each of its own name, and none of them obsolete."""
    files: Mapping[str, File] = manifest.files
    needed = (DATA,) if manifest.kind == DENSE else (DATA, INDEX)
    allowed = (*needed, DICTIONARY) if manifest.codec is not None else needed
    if any(role not in allowed for role in files):
        raise ValueError(f"files {sorted(files)}, expected {allowed}")
    if manifest.length and (manifest.dtype is None or any(role not in files for role in needed)):
        raise ValueError(f"length {manifest.length}, but no dtype or no files")
    names = manifest.names()
    if len(names) != 2 * len(files) or any(name in names for name in (*manifest.obsolete, *_RESERVED)):
        raise ValueError(f"files {sorted(names)} beside the obsolete {manifest.obsolete}")
    if any(name in manifest.obsolete for name in _RESERVED):
        raise ValueError(f"the obsolete {manifest.obsolete}")


def _check_sizes(manifest: Manifest) -> None:
    """Counts, shapes and file sizes have to agree before anything is mapped."""
    for role, file in manifest.files.items():
        if role == DICTIONARY:
            continue
        dtype, shape = manifest.layout(role)
        if 0 in shape and math.prod(axis or 1 for axis in shape) * dtype.itemsize > MAX_INT:  # as numpy counts
            raise ValueError(f"shape {shape} of {dtype} is too large")
        if math.prod(shape) * dtype.itemsize != file.size:
            raise ValueError(f"{file.name} has {file.size} bytes, expected shape {shape} of {dtype}")
