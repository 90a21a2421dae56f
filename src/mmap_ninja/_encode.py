"""From arrays to the bytes of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from mmap_ninja import lossless
from mmap_ninja._storage.disk import Buffer
from mmap_ninja._storage.dtypes import check_storable
from mmap_ninja._storage.manifest import Manifest
from mmap_ninja.errors import ArgumentTypeError, SampleError, SampleTypeError

Array = np.ndarray[Any, np.dtype[Any]]

JOINED = 32 * 1024  # below this mean size in bytes, one copy into one buffer is cheaper than a write for each

_get_dtype = attrgetter("dtype")


def fitted(state: Manifest, samples: Sequence[Any] | Array) -> list[Array]:
    """The samples as arrays of the map's dtype, which is that of the first one where there is none yet.

    Raises `SampleError` and `SampleTypeError` with the number of the sample.
    """
    dtype = state.dtype
    if set(map(type, samples)) == {np.ndarray} and set(map(_get_dtype, samples)) == {dtype}:
        return list(samples)
    arrays = []
    for k, sample in enumerate(samples):
        try:
            array = lossless.as_array(sample)
            if dtype is None:
                dtype = storable(array.dtype)
            arrays.append(lossless.fit(sample, array, dtype, state.dtype_given))
        except (SampleError, SampleTypeError) as error:
            raise numbered(error, state, k) from None
    return arrays


def storable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the first sample, if a map can have it."""
    try:
        check_storable(dtype)
    except ValueError as error:
        raise SampleTypeError(str(error)) from None
    return dtype


def asked_for(dtype: Any) -> np.dtype[Any] | None:
    """The dtype that the user gave, if a map can have it."""
    if dtype is None:
        return None
    try:
        given: np.dtype[Any] = np.dtype(dtype)
        check_storable(given)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"dtype is {dtype!r}: {error}") from None
    return given


def numbered(error: Exception, state: Manifest, k: int) -> Exception:
    """The same error, with the number that the sample would have had in the map."""
    return type(error)(f"sample {state.length + k} (item {k} of this batch): {error}")


def fit_in_place(manifest: Manifest, i: int, shape: tuple[int, ...], value: Any) -> Array:
    """The new value of sample i, of its shape or of one axis and as many elements."""
    try:
        array = lossless.as_array(value)
        if array.shape != shape and array.shape != (int(np.prod(shape, dtype=np.int64)),):
            raise SampleError(f"the new value has shape {array.shape}, expected {shape}")
        dtype = array.dtype if manifest.dtype is None else manifest.dtype
        return lossless.fit(value, array, dtype, manifest.dtype_given)
    except (SampleError, SampleTypeError) as error:
        raise type(error)(f"sample {i}: {error}") from None


def raw(array: Array) -> memoryview:
    """The bytes of an array in C order, without a copy where it has that order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def joined(arrays: Sequence[Array]) -> list[Buffer]:
    """The bytes of many arrays, end to end."""
    size = sum(map(attrgetter("nbytes"), arrays))
    if size >= JOINED * len(arrays):
        return [raw(array) for array in arrays if array.nbytes]
    try:
        return [b"".join(arrays)]  # type: ignore[arg-type]
    except (BufferError, TypeError, ValueError):  # not contiguous, or of a dtype that the buffer protocol does not know
        return [b"".join(map(raw, arrays))]
