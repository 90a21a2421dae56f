"""Reading a manifest: every type, range, name and size is checked before anybody relies on it."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

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
    MOST_DICTIONARY,
    MOST_LEVEL,
    MOST_NESTED,
    NEXT,
    PREFIX,
    STRINGS,
    Building,
    Codec,
    File,
    Manifest,
    check_shape,
    nesting,
)
from mmap_ninja.errors import MapCorruptError, MapVersionError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_ID = re.compile(r"[0-9a-f]{32}")
_RESERVED = {MANIFEST, BUILDING, MANIFEST + NEXT, BUILDING + NEXT}
_MOST_GENERATIONS = 2**62


def decode(raw: bytes, path: str) -> Manifest:
    """Read a manifest; anything but a well-formed one raises `MapCorruptError` that names `path`."""
    return _decode_again(raw, path) if len(raw) <= _REMEMBERED else decode_once(raw, path)


def decode_once(raw: bytes, path: str) -> Manifest:
    """The same, for what nobody will ask for again."""
    found = raw[len(PREFIX) : CRC_END - 1]
    if not raw.startswith(PREFIX) or raw[CRC_END - 1 : CRC_END] != b'"':
        raise MapCorruptError(f"{path} is not a manifest of mmap_ninja: it does not begin with a checksum")
    expected = f"{zlib.crc32(raw[CRC_END:]):08x}".encode()
    if found != expected:
        raise MapCorruptError(
            f"{path} is damaged: checksum {found.decode('ascii', 'replace')}, expected {expected.decode()}"
        )
    try:
        return _manifest(_parse(raw.decode()))
    except MapVersionError as error:
        raise MapVersionError(f"{path}: {error}") from None
    except (ValueError, RecursionError, OverflowError) as error:
        raise MapCorruptError(f"{path} is not a valid manifest: {error}") from None


# The same bytes are the same manifest: a program that opens a map time and again decodes it once.
_REMEMBERED = 4096  # bytes
_decode_again = lru_cache(maxsize=256)(decode_once)


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


_MANIFEST_TYPES = {
    "kind": str,
    "id": str,
    "generation": int,
    "length": int,
    "dtype_given": bool,
    "ndim": int,
    "mixed": bool,
    "synced": bool,
    "metadata": dict,
    "files": dict,
    "obsolete": list,
}
_FILE_TYPES = {"name": str, "offset": int, "size": int, "tail_crc": int, "blocks_crc": int, "checked": bool}


def _checked(value: Any, types: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object that has these keys, each of its type, and no negative integer among them."""
    if type(value) is not dict:
        raise ValueError(f"{value!r}, expected an object")
    for key, kind in types.items():
        found = value.get(key)
        if type(found) is not kind:
            raise ValueError(f"{key} is {found!r}, expected {kind.__name__}")
        if type(found) is int and not 0 <= found <= MAX_INT:
            raise ValueError(f"{key} is {found}, expected 0 to {MAX_INT}")
    fields: dict[str, Any] = value
    return fields


def _optional(value: Any, parse: Callable[[Any], Any]) -> Any:
    return None if value is None else parse(value)


def _manifest(value: Any) -> Manifest:
    version = _checked(value, {"format": int})["format"]
    if version > FORMAT:
        needs = value.get("needs")  # what later formats say of themselves
        who = f"mmap_ninja {needs} or newer" if type(needs) is str and _NAME.fullmatch(needs) else "a newer mmap_ninja"
        raise MapVersionError(f"format {version} needs {who}; this one reads up to format {FORMAT}")
    fields = _checked(value, _MANIFEST_TYPES)
    if version != FORMAT or fields["kind"] not in KINDS or not _ID.fullmatch(fields["id"]):
        raise ValueError(f"format {version}, kind {fields['kind']!r}, id {fields['id']!r}; kinds are {KINDS}")
    if fields["generation"] > _MOST_GENERATIONS:
        raise ValueError(f"generation is {fields['generation']}")
    if nesting(fields["metadata"]) > MOST_NESTED:
        raise ValueError(f"metadata is nested more than {MOST_NESTED} deep")
    if fields["ndim"] > MAX_AXES:
        raise ValueError(f"ndim is {fields['ndim']}, expected 0 to {MAX_AXES}")
    manifest = Manifest(
        kind=fields["kind"],
        id=fields["id"],
        generation=fields["generation"],
        length=fields["length"],
        dtype=_optional(fields.get("dtype"), parse_dtype),
        dtype_given=fields["dtype_given"],
        sample_shape=_optional(fields.get("sample_shape"), _shape),
        ndim=fields["ndim"],
        mixed=fields["mixed"],
        codec=_optional(fields.get("codec"), _codec),
        synced=fields["synced"],
        lost=_optional(fields.get("lost"), _flag) or False,
        metadata=MappingProxyType(fields["metadata"]),
        files=MappingProxyType({role: _file(entry) for role, entry in fields["files"].items()}),
        obsolete=tuple(map(_path, fields["obsolete"])),
        building=_optional(fields.get("building"), _building),
    )
    _check_kind(manifest)
    _check_names(manifest)
    _check_sizes(manifest)
    return manifest


def _file(value: Any) -> File:
    fields = _checked(value, _FILE_TYPES)
    if not _NAME.fullmatch(fields["name"]):
        raise ValueError(f"file name {fields['name']!r}")
    if fields["offset"] > CAP or max(fields["tail_crc"], fields["blocks_crc"]) > 2**32 - 1:
        raise ValueError(f"offset {fields['offset']}, checksums {fields['tail_crc']}, {fields['blocks_crc']}")
    return File(**{key: fields[key] for key in _FILE_TYPES})


def _codec(value: Any) -> Codec:
    fields = _checked(value, {"name": str, "level": int})
    if fields["name"] != "zstd" or not 1 <= fields["level"] <= MOST_LEVEL:
        raise ValueError(f"codec {fields['name']!r}, level {fields['level']}")
    return Codec(fields["name"], fields["level"])


def _building(value: Any) -> Building:
    fields = _checked(value, {"upgrade": bool})
    if fields.get("boot_id") is not None:
        _checked(value, {"boot_id": str})
    return Building(fields.get("boot_id"), fields["upgrade"])


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"lost is {value!r}")
    return value


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
    if is_text and manifest.dtype is not None and manifest.dtype != np.uint8:  # numpy: float64 == None
        raise ValueError(f"dtype {manifest.dtype} in a {manifest.kind} map")
    if (manifest.length or manifest.kind != DENSE) and (manifest.kind == DENSE) != (manifest.sample_shape is not None):
        raise ValueError(f"sample_shape {manifest.sample_shape} in a {manifest.kind} map")


def _check_names(manifest: Manifest) -> None:
    """The right files, each of its own name, and none of them obsolete."""
    files: Mapping[str, File] = manifest.files
    needed = {DATA} if manifest.kind == DENSE else {DATA, INDEX}
    more = {DICTIONARY} if manifest.codec is not None else set()
    if not files.keys() <= needed | more:
        raise ValueError(f"files {sorted(files)}, expected {sorted(needed | more)}")
    if manifest.length and (manifest.dtype is None or not needed <= files.keys()):
        raise ValueError(f"length {manifest.length}, but no dtype or no files")
    names = manifest.names()
    if len(names) != 2 * len(files) or not names.isdisjoint((*manifest.obsolete, *_RESERVED)):
        raise ValueError(f"files {sorted(names)} beside the obsolete {manifest.obsolete}")
    if manifest.obsolete and not _RESERVED.isdisjoint(manifest.obsolete):
        raise ValueError(f"the obsolete {manifest.obsolete}")


def _check_sizes(manifest: Manifest) -> None:
    """Counts, shapes and file sizes have to agree before anything is mapped."""
    if manifest.sample_shape is not None:
        check_shape(manifest.itemsize, (manifest.length, *manifest.sample_shape))
    for role, file in manifest.files.items():
        if role == DICTIONARY:
            if file.size > MOST_DICTIONARY:
                raise ValueError(f"a dictionary of {file.size} bytes, expected at most {MOST_DICTIONARY}")
            continue
        if manifest.dtype is None and file.size:
            raise ValueError(f"{file.name} has {file.size} bytes, but nothing says of what")
        dtype, shape = manifest.layout(role)
        if math.prod(shape) * dtype.itemsize != file.size:
            raise ValueError(f"{file.name} has {file.size} bytes, expected shape {shape} of {dtype}")
