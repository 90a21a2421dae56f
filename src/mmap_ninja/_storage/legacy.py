"""Format 1, as mmap_ninja 0.9.0 writes it: read into the same `Manifest`, never written.

A dense map is a folder with `data.ninja` (raw bytes) and small files for its dtype, shape and order. A ragged map
is a dense one of all samples end to end, with dense int64 maps for starts, ends, counts and shapes in subfolders;
texts have `data.ninja` and two of those. Nothing in such a folder is checksummed, and a writer that died leaves
counts that disagree: they are compared here, before anything is mapped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from mmap_ninja._storage import disk
from mmap_ninja._storage.dtypes import parse_dtype
from mmap_ninja._storage.index import SALVAGE
from mmap_ninja._storage.manifest import (
    DATA,
    DENSE,
    DICTIONARY,
    MAX_AXES,
    MAX_INT,
    RAGGED,
    STRINGS,
    Codec,
    File,
    Manifest,
)
from mmap_ninja.errors import MapCorruptError, MapKindError

KIND = "type.ninja"
_SMALL = 4096
_DENSE_FILES = ("data.ninja", "dtype.ninja", "shape.ninja", "order.ninja", KIND)


@dataclass(frozen=True)
class Keys:
    """The names of the subfolders, which 0.9.0 lets its users choose."""

    starts: str = "starts"
    ends: str = "ends"
    shapes: str = "shapes"
    flattened_shapes: str = "flattened_shapes"


DEFAULT_KEYS = Keys()


@dataclass(frozen=True)
class _Array:
    """One dense map of format 1."""

    file: File
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: str


def read(folder: str, keys: Keys) -> Manifest | None:
    """The state of a folder of format 1; None where there is none. Raises `MapCorruptError`, `MapKindError`."""
    kind = _text(folder, KIND)
    if kind is None:
        return None
    if kind == "numpy":
        return _dense(folder)
    if kind == "ragged":
        return _ragged(folder, keys)
    if kind == "string":
        return _strings(folder, keys)
    raise MapKindError(f"{folder} holds an unknown kind of map, {kind!r}")


def _id(folder: str) -> str:
    """A name for a map that has none: that of its data file, which stays when the folder is upgraded."""
    path = os.path.join(folder, "data.ninja")
    status = os.stat(path, follow_symlinks=False)
    return f"{status.st_dev % 2**64:016x}{status.st_ino % 2**64:016x}"


def _dense(folder: str) -> Manifest:
    array = _array(folder, "")
    return Manifest(
        kind=DENSE,
        id=_id(folder),
        length=array.shape[0],
        dtype=array.dtype,
        sample_shape=array.shape[1:],
        order=array.order,
        files=MappingProxyType({DATA: array.file}),
        format_1=_DENSE_FILES,
    )


def _ragged(folder: str, keys: Keys) -> Manifest:
    data = _array(folder, "")
    starts, counts, ends = (_column(folder, key) for key in (keys.starts, keys.flattened_shapes, keys.ends))
    files = {DATA: data.file, "starts": starts.file, "counts": counts.file}
    flat = _integer(folder, "shapes_are_flat.ninja")
    names = [*_DENSE_FILES, "shapes_are_flat.ninja"]
    for key in (keys.starts, keys.ends, keys.flattened_shapes, keys.shapes):
        names += [f"{key}/{name}" for name in _DENSE_FILES]
    if flat:
        shapes = _column(folder, keys.shapes)
        files["shapes"], lengths = shapes.file, [starts, counts, ends, shapes]
    else:
        inside = f"{keys.shapes}/starts", f"{keys.shapes}/ends", f"{keys.shapes}/flattened_shapes"
        begins, stops, sizes = (_column(folder, key) for key in inside)
        files["shape_values"] = _array(folder, keys.shapes).file
        files["shape_starts"], files["shape_ends"] = begins.file, stops.file
        lengths = [starts, counts, ends, begins, stops, sizes]
        names += [f"{keys.shapes}/shapes_are_flat.ninja"]
        names += [f"{keys.shapes}/{key}/{name}" for key in _INNER for name in _DENSE_FILES]
    _same_length(folder, lengths)
    _check_end(folder, ends, math.prod(data.shape))
    return Manifest(
        kind=RAGGED,
        id=_id(folder),
        length=starts.shape[0],
        dtype=data.dtype,
        ndim=1,
        mixed=True,
        files=MappingProxyType(files),
        format_1=tuple(names),
    )


_INNER = ("starts", "ends", "flattened_shapes", "shapes")


def _strings(folder: str, keys: Keys) -> Manifest:
    starts, ends = _column(folder, keys.starts), _column(folder, keys.ends)
    _same_length(folder, [starts, ends])
    level = _text(folder, "zstd_level.ninja")
    files = {
        DATA: File("data.ninja", size=_size(folder, "data.ninja"), checked=False),
        "starts": starts.file,
        "ends": ends.file,
    }
    names = [KIND, "data.ninja", "zstd_level.ninja", "zstd_dict.ninja"]
    if level is not None and os.path.exists(os.path.join(folder, "zstd_dict.ninja")):
        size = _size(folder, "zstd_dict.ninja")
        files[DICTIONARY] = File("zstd_dict.ninja", size=size, checked=False)
    _check_end(folder, ends, files[DATA].size)
    return Manifest(
        kind=STRINGS,
        id=_id(folder),
        length=starts.shape[0],
        dtype=np.dtype(np.uint8),
        ndim=1,
        codec=None if level is None else Codec("zstd", _number(folder, level)),
        files=MappingProxyType(files),
        format_1=tuple(names + [f"{key}/{name}" for key in (keys.starts, keys.ends) for name in _DENSE_FILES]),
    )


def _array(folder: str, sub: str) -> _Array:
    """One dense map, its size compared with its shape. More bytes than the shape says are fine."""
    path = os.path.join(folder, sub)
    raw = _bytes(path, "shape.ninja")
    if len(raw) % 8 or not 8 <= len(raw) <= 8 * (1 + MAX_AXES):
        raise _corrupt(path, "shape.ninja", f"has {len(raw)} bytes, expected 8 for each axis")
    shape = tuple(np.frombuffer(raw, "<u8").tolist())
    name = _bytes(path, "dtype.ninja").decode("utf-8", "replace")
    try:
        dtype = parse_dtype(name)
    except ValueError as error:
        raise _corrupt(path, "dtype.ninja", f"cannot be used: {error}") from None
    order = _bytes(path, "order.ninja").decode("utf-8", "replace")
    if order not in ("C", "F"):
        raise _corrupt(path, "order.ninja", f"is {order!r}, expected 'C' or 'F'")
    expected, found = math.prod(shape) * dtype.itemsize, _size(path, "data.ninja")
    if expected > MAX_INT or found < expected:
        raise _corrupt(path, "data.ninja", f"has {found} bytes, expected {expected} for shape {shape} of {dtype}")
    file = File(os.path.join(sub, "data.ninja").replace(os.sep, "/"), size=expected, checked=False)
    return _Array(file, dtype, shape, order if len(shape) > 1 else "C")


def _column(folder: str, key: str) -> _Array:
    array = _array(folder, key)
    if array.dtype != np.int64 or math.prod(array.shape[1:]) != 1:
        raise _corrupt(os.path.join(folder, key), "dtype.ninja", f"says {array.dtype} of {array.shape}, expected int64")
    return array


def _same_length(folder: str, columns: Iterable[_Array]) -> None:
    lengths = {os.path.dirname(column.file.name): column.shape[0] for column in columns}
    if len(set(lengths.values())) > 1:
        raise MapCorruptError(
            f"{folder} was damaged by an interrupted writer: its columns have different lengths, {lengths}; {SALVAGE}"
        )


def _check_end(folder: str, ends: _Array, size: int) -> None:
    """The last sample has to end inside the data."""
    if ends.shape[0] == 0:
        return
    fd, _ = disk.open_to_read(os.path.join(folder, ends.file.name))
    with os.fdopen(fd, "rb") as file:
        file.seek(ends.file.size - 8)
        last = int.from_bytes(file.read(8), "little", signed=True)
    if not 0 <= last <= size:
        raise _corrupt(folder, "data.ninja", f"ends at {size}, but the last sample at {last}")


def _bytes(folder: str, name: str) -> bytes:
    try:
        return disk.read_small(os.path.join(folder, name), _SMALL)
    except (FileNotFoundError, NotADirectoryError):
        raise _corrupt(folder, name, "is missing") from None


def _text(folder: str, name: str) -> str | None:
    try:
        return disk.read_small(os.path.join(folder, name), _SMALL).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _integer(folder: str, name: str) -> int:
    raw = _bytes(folder, name)
    if len(raw) != 4:
        raise _corrupt(folder, name, f"has {len(raw)} bytes, expected 4")
    return int.from_bytes(raw, "little")


def _number(folder: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _corrupt(folder, "zstd_level.ninja", f"is {text!r}, expected a number") from None


def _size(folder: str, name: str) -> int:
    try:
        fd, size = disk.open_to_read(os.path.join(folder, name))
    except (FileNotFoundError, NotADirectoryError):
        raise _corrupt(folder, name, "is missing") from None
    os.close(fd)
    return size


def _corrupt(folder: str, name: str, what: str) -> MapCorruptError:
    return MapCorruptError(
        f"{os.path.join(folder, name)} {what}; if a writer of mmap_ninja 0.9.0 was interrupted here, {SALVAGE}"
    )
