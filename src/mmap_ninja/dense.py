"""Samples of one shape and dtype: a map that reads like one large array."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mmap_ninja import lossless
from mmap_ninja._encode import Array, fit_in_place, fitted, joined, numbered, raw
from mmap_ninja._storage.manifest import DENSE, Manifest
from mmap_ninja._storage.snapshot import Snapshot
from mmap_ninja._storage.writer import Batch
from mmap_ninja.base import AnyPath, Encoder, Mmap, Plan, Samples, merged, template
from mmap_ninja.errors import ArgumentTypeError, SampleError, SampleTypeError
from mmap_ninja.indexing import Positions, out_of_range, positions


class DenseMmap(Mmap[Any]):
    """A map whose samples all have the same shape and dtype, stored as one array `(n, *sample_shape)`.

    `m[i]` is a read-only view `(*sample_shape)`, a slice a view `(k, *sample_shape)`, a list, integer array or mask
    an array of its own. `mode="r+"` allows assignment; `append` and `extend` work in both modes. A folder that
    does not exist is an empty map; the first `append` makes it.

    Examples:
        >>> m = DenseMmap.from_ndarray("digits", np.arange(6).reshape(3, 2))
        >>> m.append([6, 7])
        >>> m[-1], m[:2].shape
        (array([6, 7]), (2, 2))
    """

    kind = DENSE
    _array: Array

    def __init__(
        self,
        out_dir: AnyPath,
        wrapper_fn: Callable[[Any], Any] | None = None,
        mode: str = "r",
        copy_before_wrapper_fn: bool = True,
    ) -> None:
        self._open(out_dir, mode, wrapper_fn, copy_before_wrapper_fn)

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
    def _plan(
        cls, *, dtype: Any = None, metadata: Mapping[str, Any] | None = None, mode: str = "r+", **opening: Any
    ) -> Plan:
        given = None if dtype is None else np.dtype(dtype)
        return Plan(
            template(DENSE, dtype=given, dtype_given=given is not None, metadata=metadata), {"mode": mode, **opening}
        )

    @classmethod
    def _encoder(cls, dictionary: bytes | None, dictionary_size: int | None) -> Encoder:
        return encode

    def _load(self, snapshot: Snapshot | None) -> None:
        super()._load(snapshot)
        self._array = np.empty((0,)) if snapshot is None else values(snapshot)

    def _reader(self, snapshot: Snapshot) -> Callable[[int], Any]:
        array, length = values(snapshot), snapshot.length

        def read(i: int) -> Any:
            try:
                return array[i]
            except IndexError:
                raise out_of_range(i, length) from None

        return read

    def _many(self, found: Positions) -> Any:
        if self.wrapper_fn is not None:
            return super()._many(found)
        return np.take(self._array, found, axis=0, mode="clip")

    def __getitem__(self, index: Any) -> Any:
        """One sample, or several: see `mmap_ninja.indexing` for what an index may be."""
        if type(index) is int:
            return self._read(index)
        if type(index) is slice and self.wrapper_fn is None:
            self._state()
            return self._array[index]
        return super().__getitem__(index)

    def take(self, indices: Any, out: Any = None) -> Any:
        """Many samples at once, as an array `(len(indices), *sample_shape)`.

        `out` is an array of that shape and of the map's dtype to fill, which saves an allocation.
        """
        if out is None:
            return super().take(indices)
        if self.wrapper_fn is not None:
            raise ArgumentTypeError("take(out=...) copies stored samples; it knows no wrapper_fn")
        found = positions(indices if isinstance(indices, np.ndarray) else list(indices), len(self))
        if type(out) is not np.ndarray or out.dtype != self.dtype or out.shape != (len(found), *self._array.shape[1:]):
            raise ArgumentTypeError(
                f"out has to be an array of {self.dtype} and shape {(len(found), *self._array.shape[1:])}"
            )
        return np.take(self._array, found, axis=0, out=out, mode="clip")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of every sample."""
        shape: tuple[int, ...] = self._array.shape[1:]
        return shape

    @property
    def starts(self) -> Array:
        """Where each sample begins, in elements from the first value of the map: int64 `(n,)`."""
        return np.arange(len(self), dtype=np.int64) * self._size()

    @property
    def shapes(self) -> Array:
        """The shape of each sample: int64 `(n, ndim)`, a view that repeats one row."""
        return np.broadcast_to(np.array(self.sample_shape, np.int64), (len(self), len(self.sample_shape)))

    def _size(self) -> int:
        return int(np.prod(self.sample_shape, dtype=np.int64))

    def _sizes(self) -> Array:
        return np.full(len(self), self._size())

    def _ranges(self, snapshot: Snapshot, found: Positions) -> Iterable[tuple[int, int]]:
        size = self._size() * self._array.dtype.itemsize
        return merged(found * size, (found + 1) * size)

    def _patch(self, snapshot: Snapshot, i: int, value: Any) -> tuple[int, memoryview]:
        array = fit_in_place(snapshot.manifest, i, self.sample_shape, value)
        return i * array.nbytes, raw(array)


def values(snapshot: Snapshot) -> Array:
    """All samples as one plain array over the mapped file."""
    manifest = snapshot.manifest
    shape = (manifest.length, *(manifest.sample_shape or ()))
    dtype = np.dtype(np.float64) if manifest.dtype is None else manifest.dtype
    array: Array = np.ndarray(shape, dtype, snapshot.data.bytes, order="F" if manifest.order == "F" else "C")
    return array[: snapshot.length]


def encode(state: Manifest, samples: Samples) -> Batch:
    """Convert and check samples of one shape."""
    if isinstance(samples, np.ndarray):
        return _encode_array(state, samples)
    arrays = fitted(state, samples)
    shape = arrays[0].shape if state.sample_shape is None else state.sample_shape
    for k, array in enumerate(arrays):
        if array.shape != shape:
            raise numbered(SampleError(f"shape {array.shape}, expected {shape}; RaggedMmap takes any"), state, k)
    return Batch(len(arrays), joined(arrays), changes={"dtype": arrays[0].dtype, "sample_shape": shape})


def _encode_array(state: Manifest, samples: Array) -> Batch:
    """Convert and check an array `(n, *sample_shape)` at once."""
    shape = samples.shape[1:]
    if state.sample_shape is not None and shape != state.sample_shape:
        raise SampleError(f"samples of shape {shape}, expected {state.sample_shape}; RaggedMmap takes any")
    dtype = samples.dtype if state.dtype is None else state.dtype
    try:
        array = lossless.fit(samples, lossless.as_array(samples), dtype, state.dtype_given)
    except SampleError:
        fitted(state, list(samples))  # says which sample it is
        raise
    return Batch(len(array), [raw(array)], changes={"dtype": dtype, "sample_shape": shape})
