"""Samples of one shape and dtype: a map that reads like one large array."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mmap_ninja import gather, lossless
from mmap_ninja._encode import Ahead, Array, ArrayEncoder, Gathered, Samples, fit_in_place, raw, storable
from mmap_ninja._making import Plan, plan_of_arrays
from mmap_ninja._reading import AnyPath
from mmap_ninja._storage.index import Table
from mmap_ninja._storage.manifest import DENSE, Manifest, check_shape
from mmap_ninja._storage.mappings import is_hidden
from mmap_ninja._storage.snapshot import Snapshot
from mmap_ninja._storage.writer import Batch
from mmap_ninja._taking import LIST, Layout
from mmap_ninja._writing import Encoder
from mmap_ninja.base import Mmap
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, MapCorruptError, SampleError, SampleTypeError
from mmap_ninja.gather import Empty
from mmap_ninja.indexing import Positions, checked, listed, merged, out_of_range, positions


class DenseMmap(Mmap):
    """A map whose samples all have the same shape and dtype, stored as one array `(n, *sample_shape)`.

    `m[i]` is a view `(*sample_shape)`, read-only but in `mode="c"`, a slice a view `(k, *sample_shape)`, a list,
    integer array or mask an array of its own. `mode="r+"` allows assignment; `append` and `extend` work in both
    modes. A folder that does not exist is an empty map; the first `append` makes it.

    Examples:
        >>> m = DenseMmap.from_ndarray("digits", np.arange(6).reshape(3, 2))
        >>> m.append([6, 7])
        >>> m[-1], m[:2].shape
        (array([6, 7]), (2, 2))
    """

    kind = DENSE

    def __init__(
        self,
        out_dir: AnyPath,
        wrapper_fn: Callable[[Any], Any] | None = None,
        mode: str = "r",
        copy_before_wrapper_fn: bool = True,
        *,
        check: bool = False,
        expect: Mapping[str, Any] | None = None,
    ) -> None:
        self._open(out_dir, mode, wrapper_fn, copy_before_wrapper_fn, check=check, expect=expect)

    @classmethod
    def from_ndarray(
        cls,
        out_dir: AnyPath,
        arr: Any,
        *,
        dtype: Any = None,
        mode: str = "r+",
        wrapper_fn: Callable[[Any], Any] | None = None,
        copy_before_wrapper_fn: bool = True,
        metadata: Mapping[str, Any] | None = None,
        sync: bool = True,
        timeout: float = 0.0,
    ) -> DenseMmap:
        """Make a map of the samples `arr[0]`, `arr[1]`, ... of an array `(n, *sample_shape)`.

        Durable when the call returns. `dtype` allows rounding of floats, in this call and all later ones.
        """
        array = lossless.as_array(arr)
        if array.ndim == 0:
            raise SampleTypeError("an array of no axes has no samples; expected at least one axis")
        plan = cls._plan(
            dtype=dtype,
            mode=mode,
            wrapper_fn=wrapper_fn,
            copy_before_wrapper_fn=copy_before_wrapper_fn,
            metadata=metadata,
        )
        return cls._build(out_dir, lambda start: [array], plan, sync=sync, timeout=timeout)  # type: ignore[no-any-return]

    @classmethod
    def _plan(cls, **options: Any) -> Plan:
        return plan_of_arrays(DENSE, **options)

    @classmethod
    def _encoder(cls, dictionary: bytes | None, dictionary_size: int | None, ahead: Ahead | None = None) -> Encoder:
        return DenseEncoder(ahead)

    def _reader(self, snapshot: Snapshot) -> Callable[[int], Any]:
        array, length = _samples(snapshot), snapshot.length

        def read(i: int) -> Any:
            try:
                return array[i]
            except (IndexError, OverflowError):
                raise out_of_range(i, length) from None
            except (ValueError, SystemError) as error:  # a text of numpy's whose bytes are no characters
                raise MapCorruptError(f"{snapshot.folder}: sample {i} is damaged: {error}") from None

        return read

    def _many(self, index: Any) -> Any:
        array = _samples(self._opened())  # one state for the check and for the read, whatever other threads do
        if self.wrapper_fn is not None:
            return super()._many(index)
        if type(index) is slice:
            return array[checked(index)]
        return gather.dense(array, positions(index, len(array)))

    def take(self, indices: Any, out: Any = None) -> Any:
        """Many samples at once, as an array `(len(indices), *sample_shape)`.

        `out` is an array of that shape and of the map's dtype to fill, which saves an allocation.
        """
        if out is None:
            return super().take(indices)
        if self.wrapper_fn is not None:
            raise ArgumentTypeError("take(out=...) copies stored samples; it knows no wrapper_fn")
        array = _samples(self._opened())
        found = positions(listed(indices), len(array))
        shape = (len(found), *array.shape[1:])
        if not isinstance(out, np.ndarray) or out.dtype != array.dtype or out.shape != shape:
            raise ArgumentTypeError(f"out has to be an array of {array.dtype} and shape {shape}")
        if not out.flags.writeable:
            raise ArgumentError("out is read-only, expected an array that can be filled")
        if not is_hidden(array, out):
            return gather.fill(out, array, found)
        out[...] = gather.dense(array, found)
        return out

    def _gather(self, indices: Any, layout: Layout, empty: Empty = np.empty) -> Any:
        if layout != LIST or self.wrapper_fn is not None:
            return super()._gather(indices, layout, empty)
        array = _samples(self._opened())
        return gather.dense(array, positions(listed(indices), len(array)), empty)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of every sample."""
        return self._opened().manifest.sample_shape or ()

    def _table(self, snapshot: Snapshot, found: Positions | None = None) -> Table:
        size = math.prod(snapshot.manifest.sample_shape or ())
        return _numbers(snapshot, found)[:, None] * size

    @property
    def lengths(self) -> Array:
        """`len` of each sample, from the index alone: int64 `(n,)`; 1 for scalars."""
        return gather.lengths(self.shapes)

    def _places(self, snapshot: Snapshot, found: Positions | None = None) -> tuple[Table, Table]:
        size = math.prod(snapshot.manifest.sample_shape or ())
        numbers = _numbers(snapshot, found)
        return numbers * size, np.full(len(numbers), size, np.int64)

    def _shapes(self, snapshot: Snapshot, found: Positions | None = None) -> Table:
        shape = snapshot.manifest.sample_shape or ()
        return np.broadcast_to(np.array(shape, np.int64), (len(_numbers(snapshot, found)), len(shape)))

    def _ranges(self, snapshot: Snapshot, found: Positions) -> Iterable[tuple[int, int]]:
        array = _samples(snapshot)
        size = array.nbytes // max(len(array), 1)
        return merged(found * size, (found + 1) * size)

    def _rows(self, snapshot: Snapshot, found: Positions) -> gather.Rows:
        return gather.Even.of(_samples(snapshot), found)

    def _new_bytes(self, snapshot: Snapshot, i: int, value: Any) -> bytes:
        return fit_in_place(snapshot.manifest, i, snapshot.manifest.sample_shape or (), value).tobytes()


def _numbers(snapshot: Snapshot, found: Positions | None) -> Positions:
    return np.arange(snapshot.length, dtype=np.int64) if found is None else found


def _samples(snapshot: Snapshot) -> Array:
    """All samples of a snapshot, as an array that is made once."""
    if snapshot.view is None:
        snapshot.view = values(snapshot)
    array: Array = snapshot.view
    return array


def values(snapshot: Snapshot) -> Array:
    """All samples as one plain array over the mapped file."""
    manifest = snapshot.manifest
    shape = (manifest.length, *(manifest.sample_shape or ()))
    dtype = np.dtype(np.float64) if manifest.dtype is None else manifest.dtype
    array: Array = np.ndarray(shape, dtype, snapshot.data.bytes, order="F" if manifest.order == "F" else "C")
    return array[: snapshot.length]


class DenseEncoder(ArrayEncoder):
    """Converts and checks samples of one shape, or all at once an array `(n, *sample_shape)` of them."""

    def __init__(self, ahead: Ahead | None = None) -> None:
        super().__init__(_batch, ahead, has_one_shape=True)

    def __call__(self, state: Manifest, samples: Samples | Iterator[Any]) -> Batch:
        """Convert and check one chunk. Raises `SampleError` and `SampleTypeError`."""
        if not isinstance(samples, np.ndarray):
            return super().__call__(state, samples)
        shape = samples.shape[1:]
        if state.sample_shape is not None and shape != state.sample_shape:
            raise SampleError(f"samples of shape {shape}, expected {state.sample_shape}; RaggedMmap takes any")
        _check_count(state, len(samples), shape)
        dtype = storable(samples.dtype) if state.dtype is None else state.dtype
        try:
            array = lossless.fit(None, lossless.as_array(samples), dtype, state.dtype_given)
        except SampleError:
            super().__call__(state, iter(samples))  # says which sample it is
            raise
        return Batch(len(array), [raw(array)], changes={"dtype": dtype, "sample_shape": shape})


def _batch(state: Manifest, chunk: Gathered) -> Batch:
    count, shape = len(chunk.shapes), chunk.shapes[0]
    _check_count(state, count, shape)
    return Batch(count, chunk.chunks, changes={"dtype": chunk.dtype, "sample_shape": shape})


def _check_count(state: Manifest, count: int, shape: tuple[int, ...]) -> None:
    try:
        check_shape(state.itemsize, (state.length + count, *shape))
    except ValueError as error:
        raise SampleError(str(error)) from None
