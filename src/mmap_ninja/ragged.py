"""Arrays of any shapes: images, audio, token sequences, point clouds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from mmap_ninja._encode import Ahead, Array, ArrayEncoder, Gathered, fit_in_place
from mmap_ninja._making import Plan, plan_of_arrays
from mmap_ninja._reading import AnyPath
from mmap_ninja._storage.index import MISSING, MISSING_IN_ROW, OUT_OF_RANGE
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.manifest import DATA, RAGGED, Manifest
from mmap_ninja._storage.snapshot import Snapshot
from mmap_ninja._storage.writer import Batch
from mmap_ninja._writing import Encoder, many
from mmap_ninja.base import Mmap
from mmap_ninja.errors import MapCorruptError
from mmap_ninja.indexing import out_of_range

_SCALARS = "biuf"  # 0-d samples of these kinds read as Python scalars, as in 0.9.0


class RaggedMmap(Mmap):
    """A map of arrays of one dtype and any shapes, which may also differ in their number of axes.

    `m[i]` is a view of the sample's own shape, read-only but in `mode="c"`; many samples are a list of such views.
    `mode="r+"` allows assignment of samples of the same size; `append` and `extend` work in both modes. A folder that
    does not exist is an empty map; the first `append` makes it. The `*_key` arguments name the subfolders of maps
    that were written by mmap_ninja 0.9.0 with names of their own.

    Examples:
        >>> m = RaggedMmap.from_lists("rows", [np.arange(3), np.arange(5)])
        >>> m.append(np.arange(2))
        >>> m[-1], m.lengths.tolist()
        (array([0, 1]), [3, 5, 2])
    """

    kind = RAGGED

    def __init__(
        self,
        out_dir: AnyPath,
        wrapper_fn: Callable[[Any], Any] | None = None,
        mode: str = "r",
        starts_key: str = "starts",
        ends_key: str = "ends",
        shapes_key: str = "shapes",
        flattened_shapes_key: str = "flattened_shapes",
        copy_before_wrapper_fn: bool = True,
        *,
        check: bool = False,
        expect: Mapping[str, Any] | None = None,
    ) -> None:
        keys = Keys(starts_key, ends_key, shapes_key, flattened_shapes_key)
        self._open(out_dir, mode, wrapper_fn, copy_before_wrapper_fn, keys, check=check, expect=expect)

    def _options(self) -> dict[str, Any]:
        keys = self._keys
        return {
            **super()._options(),
            "starts_key": keys.starts,
            "ends_key": keys.ends,
            "shapes_key": keys.shapes,
            "flattened_shapes_key": keys.flattened_shapes,
        }

    @classmethod
    def from_lists(
        cls,
        out_dir: AnyPath,
        lists: Sequence[Any],
        dtype: Any = None,
        mode: str = "r+",
        wrapper_fn: Callable[[Any], Any] | None = None,
        starts_key: str = "starts",
        ends_key: str = "ends",
        shapes_key: str = "shapes",
        flattened_shapes_key: str = "flattened_shapes",
        copy_before_wrapper_fn: bool = True,
        *,
        metadata: Mapping[str, Any] | None = None,
        sync: bool = True,
        timeout: float = 0.0,
    ) -> RaggedMmap:
        """Make a map of arrays, lists or numbers that are all in memory.

        The dtype is that of the first sample, and all others have to fit it exactly; `dtype` allows rounding of
        floats, in this call and all later ones. Durable when the call returns.
        """
        samples = many(lists)
        plan = cls._plan(
            dtype=dtype,
            metadata=metadata,
            mode=mode,
            wrapper_fn=wrapper_fn,
            starts_key=starts_key,
            ends_key=ends_key,
            shapes_key=shapes_key,
            flattened_shapes_key=flattened_shapes_key,
            copy_before_wrapper_fn=copy_before_wrapper_fn,
        )
        batches = [samples] if len(samples) else []
        return cls._build(out_dir, lambda start: batches, plan, sync=sync, timeout=timeout)  # type: ignore[no-any-return]

    @classmethod
    def _plan(cls, **options: Any) -> Plan:
        return plan_of_arrays(RAGGED, **options)

    @classmethod
    def _encoder(cls, dictionary: bytes | None, dictionary_size: int | None, ahead: Ahead | None = None) -> Encoder:
        return ArrayEncoder(_batch, ahead)

    def _reader(self, snapshot: Snapshot) -> Callable[[int], Any]:
        manifest = snapshot.manifest
        if manifest.mixed or manifest.ndim == 0:
            return _mixed_reader(snapshot)
        if manifest.ndim == 1:
            return _row_reader(snapshot)
        length, data, index = snapshot.length, snapshot.data.bytes, snapshot.index
        unpack, source, step = index.unpack, index.source, index.step
        dtype = manifest.layout(DATA)[0]
        ndarray, itemsize = np.ndarray, dtype.itemsize

        def read(i: int) -> Any:
            try:
                place = unpack(source, i * step)
            except OUT_OF_RANGE:
                raise out_of_range(i, length) from None
            try:
                # Not by `offset=`: numpy adds it to the size without a look at overflow, and a wrong row would pass.
                return ndarray(place[1:], dtype, data[place[0] * itemsize :])
            except (TypeError, ValueError, OverflowError) as error:
                raise _bad_row(snapshot, i, error) from None

        return read

    @property
    def memmap(self) -> Array:
        """All values of all samples end to end, `(total,)`: a view, read-only but in `mode="c"`."""
        snapshot = self._opened()
        return _values(self._bytes(snapshot), snapshot.manifest.dtype)

    def _new_bytes(self, snapshot: Snapshot, i: int, value: Any) -> bytes:
        self._reader(snapshot)(i)  # refuses a wrong row, before anything is written there
        _, *shape = _trimmed(snapshot.index.row(i))
        return fit_in_place(snapshot.manifest, i, tuple(shape), value).tobytes()


def _values(raw: memoryview, dtype: np.dtype[Any] | None) -> Array:
    """The bytes of samples as one read-only array of their elements."""
    return np.frombuffer(raw, np.dtype(np.float64) if dtype is None else dtype)


def _row_reader(snapshot: Snapshot) -> Callable[[int], Any]:
    """The fastest one: samples of one axis are slices of all values."""
    length, index = snapshot.length, snapshot.index
    unpack, source, step = index.unpack, index.source, index.step
    values = _values(snapshot.data.bytes, snapshot.manifest.dtype)
    total = len(values)

    def read(i: int) -> Any:
        try:
            start, count = unpack(source, i * step)
        except OUT_OF_RANGE:
            raise out_of_range(i, length) from None
        stop = start + count
        if stop > total:
            raise _bad_row(snapshot, i, f"there are {total} elements")
        return values[start:stop]

    return read


def _mixed_reader(snapshot: Snapshot) -> Callable[[int], Any]:
    """As the other reader, for maps in which a sample may have fewer axes than its row, or none."""
    manifest, length = snapshot.manifest, snapshot.length
    row, data, dtype = snapshot.index.row, snapshot.data.bytes, snapshot.manifest.dtype
    itemsize = manifest.layout(DATA)[0].itemsize
    is_scalar = manifest.layout(DATA)[0].kind in _SCALARS

    def read(i: int) -> Any:
        try:
            place = row(i)
        except OUT_OF_RANGE:
            raise out_of_range(i, length) from None
        if place[-1] == MISSING_IN_ROW:
            place = _trimmed(place)
        try:
            array = np.ndarray(place[1:], dtype, data[place[0] * itemsize :])
        except (TypeError, ValueError, OverflowError) as error:
            raise _bad_row(snapshot, i, error) from None
        return array.item() if is_scalar and array.ndim == 0 else array

    return read


def _trimmed(row: tuple[int, ...]) -> tuple[int, ...]:
    """The row without the axes that the sample does not have."""
    start, *shape = row
    return (start, *shape[: shape.index(MISSING_IN_ROW)]) if MISSING_IN_ROW in shape else row


def _bad_row(snapshot: Snapshot, i: int, error: object) -> MapCorruptError:
    return MapCorruptError(f"{snapshot.folder}: the index row {snapshot.index.row(i)} of sample {i} is wrong: {error}")


def _batch(state: Manifest, chunk: Gathered) -> Batch:
    """The batch of a chunk of arrays of any shapes."""
    count, axes = len(chunk.shapes), set(map(len, chunk.shapes))
    has_index = state.length > 0
    ndim = max(axes | ({state.ndim} if has_index else set()))
    mixed = state.mixed or len(axes) > 1 or (has_index and axes != {state.ndim})
    rows = np.zeros((count, 1 + ndim), np.int64)
    if axes == {ndim}:
        rows[:, 1:] = np.fromiter(chain.from_iterable(chunk.shapes), np.int64, count * ndim).reshape(count, ndim)
        sizes = rows[:, 1:].prod(axis=1)
    else:
        rows[:, 1:] = [shape + (MISSING,) * (ndim - len(shape)) for shape in chunk.shapes]
        sizes = np.fromiter(map(prod, chunk.shapes), np.int64, count)
    rows[1:, 0] = sizes[:-1].cumsum()
    return Batch(count, chunk.chunks, rows, changes={"dtype": chunk.dtype, "ndim": ndim, "mixed": mixed})
