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
from mmap_ninja._storage.flatfile import MappedFile
from mmap_ninja._storage.index import SALVAGE
from mmap_ninja._storage.manifest import (
    DATA,
    DENSE,
    DICTIONARY,
    MAX_AXES,
    MAX_INT,
    MOST_DICTIONARY,
    MOST_LEVEL,
    RAGGED,
    STRINGS,
    Codec,
    File,
    Manifest,
    check_shape,
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
HINT = f"; if a writer of mmap_ninja 0.9.0 was interrupted here, {SALVAGE}"


@dataclass(frozen=True)
class _Array:
    """One dense map of format 1."""

    file: File
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: str


@dataclass(frozen=True)
class Torn:
    """How to read a folder that 0.9.0 was interrupted in: each file counts for as much as it has bytes for.

    `sample_shape` is that of a dense map, where nothing on the disk tells it any more.
    """

    sample_shape: tuple[int, ...] | None = None


def read(folder: str, keys: Keys, torn: Torn | None = None) -> Manifest | None:
    """The state of a folder of format 1; None where there is none. Raises `MapCorruptError`, `MapKindError`.

    With `torn`, its columns may be of different lengths, and nothing is said of where samples lie.
    """
    kind = _text(folder, KIND)
    if kind is None:
        return None
    if kind == "numpy":
        return _dense(folder, torn)
    if kind == "ragged":
        return _ragged(folder, keys, torn)
    if kind == "string":
        return _strings(folder, keys, torn)
    raise MapKindError(f"{folder} holds an unknown kind of map, {kind!r}")


def _id(folder: str) -> str:
    """A name for a map that has none: that of its data file, which stays when the folder is upgraded."""
    path = os.path.join(folder, "data.ninja")
    try:
        with disk.explained(path, "look at this part of a map"):
            status = os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        raise _corrupt(folder, "data.ninja", "is missing") from None
    return f"{status.st_dev % 2**64:016x}{status.st_ino % 2**64:016x}"


def _dense(folder: str, torn: Torn | None) -> Manifest:
    array = _array(folder, "", torn)
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


_ROWS = Torn(())  # of columns and data of one axis


def _ragged(folder: str, keys: Keys, torn: Torn | None) -> Manifest:
    torn = torn and _ROWS
    data = _array(folder, "", torn)
    starts, counts, ends = (_column(folder, key, torn) for key in (keys.starts, keys.flattened_shapes, keys.ends))
    files = {DATA: data.file, "starts": starts.file, "counts": counts.file}
    if torn is not None:
        files["ends"] = ends.file
    flat = _integer(folder, "shapes_are_flat.ninja")
    names = [*_DENSE_FILES, "shapes_are_flat.ninja"]
    for key in (keys.starts, keys.ends, keys.flattened_shapes, keys.shapes):
        names += [f"{key}/{name}" for name in _DENSE_FILES]
    if flat:
        shapes = _column(folder, keys.shapes, torn)
        files["shapes"], lengths = shapes.file, [starts, counts, ends, shapes]
    else:
        inside = f"{keys.shapes}/starts", f"{keys.shapes}/ends", f"{keys.shapes}/flattened_shapes"
        begins, stops, sizes = (_column(folder, key, torn) for key in inside)
        files["shape_values"] = _array(folder, keys.shapes, torn).file
        files["shape_starts"], files["shape_ends"] = begins.file, stops.file
        lengths = [starts, counts, ends, begins, stops, sizes]
        names += [f"{keys.shapes}/shapes_are_flat.ninja"]
        names += [f"{keys.shapes}/{key}/{name}" for key in _INNER for name in _DENSE_FILES]
    if torn is None:
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


def _strings(folder: str, keys: Keys, torn: Torn | None) -> Manifest:
    starts, ends = (_column(folder, key, torn and _ROWS) for key in (keys.starts, keys.ends))
    level = _text(folder, "zstd_level.ninja")
    files = {
        DATA: File("data.ninja", size=_size(folder, "data.ninja"), checked=False),
        "starts": starts.file,
        "ends": ends.file,
    }
    names = [KIND, "data.ninja", "zstd_level.ninja", "zstd_dict.ninja"]
    if level is not None and disk.exists(os.path.join(folder, "zstd_dict.ninja")):
        size = _size(folder, "zstd_dict.ninja")
        if size > MOST_DICTIONARY:
            raise _corrupt(folder, "zstd_dict.ninja", f"has {size} bytes, expected at most {MOST_DICTIONARY}")
        files[DICTIONARY] = File("zstd_dict.ninja", size=size, checked=False)
    if torn is None:
        _same_length(folder, [starts, ends])
        _check_end(folder, ends, files[DATA].size)
    return Manifest(
        kind=STRINGS,
        id=_id(folder),
        length=starts.shape[0],
        dtype=np.dtype(np.uint8),
        ndim=1,
        codec=None if level is None else _codec(_number(folder, level)),
        files=MappingProxyType(files),
        format_1=tuple(names + [f"{key}/{name}" for key in (keys.starts, keys.ends) for name in _DENSE_FILES]),
    )


def _codec(level: int) -> Codec:
    """With a level for what is appended: 0.9.0 also took 0, zstd's default, and negative ones, which are for speed."""
    return Codec("zstd", 3 if level == 0 else min(max(level, 1), MOST_LEVEL))


def _array(folder: str, sub: str, torn: Torn | None = None) -> _Array:
    """One dense map, its size compared with its shape. More bytes than the shape says are fine."""
    path = os.path.join(folder, sub)
    above = path
    while len(above) > len(folder) and sub:
        if disk.is_link(above):
            raise MapCorruptError(f"{above} is a symbolic link, expected a folder")
        above = os.path.dirname(above)
    raw = _bytes(path, "shape.ninja")
    if torn is not None and (len(raw) % 8 or not raw):  # it was being written
        if torn.sample_shape is None:
            what = f"has {len(raw)} bytes: give the shape of a sample, `sample_shape` (--sample-shape)"
            raise _corrupt(path, "shape.ninja", what)
        raw = np.array((0, *torn.sample_shape), "<u8").tobytes()
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
    try:
        check_shape(dtype.itemsize, shape)
    except ValueError as error:
        raise _corrupt(path, "shape.ninja", f"cannot be used: {error}") from None
    found = _size(path, "data.ninja")
    if torn is not None and (order == "C" or len(shape) == 1) and math.prod(shape[1:]):
        shape = found // (math.prod(shape[1:]) * dtype.itemsize), *shape[1:]
    expected = math.prod(shape) * dtype.itemsize
    if expected > MAX_INT or found < expected:
        raise _corrupt(path, "data.ninja", f"has {found} bytes, expected {expected} for shape {shape} of {dtype}")
    file = File(os.path.join(sub, "data.ninja").replace(os.sep, "/"), size=expected, checked=False)
    return _Array(file, dtype, shape, order if len(shape) > 1 else "C")


def _column(folder: str, key: str, torn: Torn | None) -> _Array:
    array = _array(folder, key, torn)
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
    try:
        values = MappedFile(folder, ends.file).bytes
    except FileNotFoundError:
        raise _corrupt(folder, ends.file.name, "is missing") from None
    last = int.from_bytes(values[-8:], "little", signed=True)
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
    disk.close_read(fd)
    return size


def _corrupt(folder: str, name: str, what: str) -> MapCorruptError:
    return MapCorruptError(f"{os.path.join(folder, name)} {what}{HINT}")
