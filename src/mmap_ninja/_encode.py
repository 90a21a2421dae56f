"""From arrays to the bytes of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from mmap_ninja import lossless
from mmap_ninja._arrival import JOINED, Room
from mmap_ninja._storage.disk import Buffer
from mmap_ninja._storage.dtypes import check_storable
from mmap_ninja._storage.manifest import Manifest
from mmap_ninja._storage.writer import Batch
from mmap_ninja.errors import ArgumentTypeError, SampleError, SampleTypeError

Array = np.ndarray[Any, np.dtype[Any]]
Samples = Sequence[Any] | Array

# From what the samples so far change in the state to a function that writes their bytes, and keeps nothing of them.
Ahead = Callable[[Mapping[str, Any]], Callable[..., None]]

_END = object()
_FIRST = 1 << 20  # bytes that a new map has in memory before it changes anything on the disk
_get_dtype, _get_shape = attrgetter("dtype"), attrgetter("shape")


class Gathered(NamedTuple):
    """The samples of a chunk: their dtype, their shapes, and their bytes."""

    dtype: np.dtype[Any]
    shapes: list[tuple[int, ...]]
    chunks: list[Buffer]


class ArrayEncoder:
    """Turns chunks of samples into batches of arrays; an iterator's samples are taken one by one, as they arrive.

    With `ahead`, large ones are written when they arrive, which needs no copy of them.
    """

    def __init__(
        self,
        finish: Callable[[Manifest, Gathered], Batch],
        ahead: Ahead | None = None,
        *,
        has_one_shape: bool = False,
    ) -> None:
        self._finish, self._ahead, self._has_one_shape = finish, ahead, has_one_shape
        self._room: Room | None = None

    def __call__(self, state: Manifest, samples: Samples | Iterator[Any]) -> Batch:
        """Convert and check one chunk. Raises `SampleError` and `SampleTypeError` with the number of the sample."""
        return self._finish(state, self._listed(state, samples) or self._arrived(state, samples))

    def _listed(self, state: Manifest, samples: Samples | Iterator[Any]) -> Gathered | None:
        """Plain arrays of the map's dtype in a list, which no code of the user's can change meanwhile: not copied."""
        if isinstance(samples, Iterator) or set(map(type, samples)) != {np.ndarray}:
            return None
        dtype, shapes = samples[0].dtype, list(map(_get_shape, samples))
        if set(map(_get_dtype, samples)) != {dtype} or (state.dtype is not None and state.dtype != dtype):
            return None
        if self._has_one_shape and set(shapes) != {shapes[0] if state.sample_shape is None else state.sample_shape}:
            return None
        is_storable = state.dtype is not None or _is_storable(dtype)
        return Gathered(dtype, shapes, joined(samples)) if is_storable else None

    def _arrived(self, state: Manifest, samples: Iterable[Any]) -> Gathered:
        """Check each sample, and copy or write it, before the next one is asked for."""
        room = self._room = self._room or Room()
        room.clear()
        shapes, dtype, shape, coming = list[tuple[int, ...]](), state.dtype, state.sample_shape, iter(samples)
        write, held = None, 0
        sample = next(coming, _END)
        while sample is not _END:
            array, is_own = _fitted(state, sample, dtype, len(shapes))
            dtype = array.dtype if dtype is None else dtype
            if self._has_one_shape and array.shape != shape:
                if shape is not None:
                    what = SampleError(f"shape {array.shape}, expected {shape}; RaggedMmap takes any")
                    raise numbered(what, state, len(shapes))
                shape = array.shape
            held, fixed = held + array.nbytes, shape if self._has_one_shape else None
            shapes.append(array.shape)
            if self._ahead is not None and array.nbytes >= JOINED and (state.length or held >= _FIRST):
                write = write or self._ahead(_changes(dtype, fixed))
                write(*room.chunks(), raw(array))
                room.clear()
                sample = _large_ones(coming, write, dtype, fixed, shapes)
                continue
            room.take(raw(array)) if is_own else room.add(raw(array))
            if self._has_one_shape and array.nbytes >= JOINED:
                sample = next(coming, _END)
            else:
                sample = _plain_ones(coming, room, dtype, fixed, shapes)
        assert dtype is not None
        return Gathered(dtype, shapes, list(room.chunks()))


def _changes(dtype: np.dtype[Any], shape: tuple[int, ...] | None) -> Mapping[str, Any]:
    """What samples of this dtype, and of this shape if all have the same, set in the state of a new map."""
    return {"dtype": dtype} if shape is None else {"dtype": dtype, "sample_shape": shape}


def _plain_ones(
    samples: Iterator[Any],
    room: Room,
    dtype: np.dtype[Any],
    shape: tuple[int, ...] | None,
    shapes: list[tuple[int, ...]],
) -> Any:
    """Copy small plain arrays of this dtype, and of this shape if one is given: the fast way for most of them.

    Adds their shapes to `shapes`. Returns the first sample that is another thing, or `_END`.
    """
    write, add, ndarray = room.write, shapes.append, np.ndarray
    for sample in samples:
        if type(sample) is not ndarray or (sample.dtype is not dtype and sample.dtype != dtype):
            return sample
        found = sample.shape
        if sample.nbytes >= JOINED if shape is None else found != shape:
            return sample
        try:
            write(sample)
        except (BufferError, TypeError, ValueError):  # not contiguous, or of a dtype that no buffer can have
            return sample
        add(found)
    return _END


def _large_ones(
    samples: Iterator[Any],
    write: Callable[..., None],
    dtype: np.dtype[Any],
    shape: tuple[int, ...] | None,
    shapes: list[tuple[int, ...]],
) -> Any:
    """As `_plain_ones`, for large ones, which are written."""
    add, ndarray = shapes.append, np.ndarray
    for sample in samples:
        if type(sample) is not ndarray or (sample.dtype is not dtype and sample.dtype != dtype):
            return sample
        found = sample.shape
        if sample.nbytes < JOINED or (shape is not None and found != shape):
            return sample
        write(raw(sample))
        add(found)
    return _END


def _fitted(state: Manifest, sample: Any, dtype: np.dtype[Any] | None, k: int) -> tuple[Array, bool]:
    """Sample k of a chunk as an array of the map's dtype, which is its own where there is none yet.

    Also whether that array is a new one, of which nothing else knows.
    """
    try:
        array, leaves = lossless.read(sample)
        fitted = lossless.fit(leaves, array, storable(array.dtype) if dtype is None else dtype, state.dtype_given)
    except (SampleError, SampleTypeError) as error:
        raise numbered(error, state, k) from None
    return fitted, leaves is not None or fitted is not array


def _is_storable(dtype: np.dtype[Any]) -> bool:
    try:
        check_storable(dtype)
    except ValueError:
        return False
    return True


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
        array, leaves = lossless.read(value)
        if array.shape != shape and array.shape != (int(np.prod(shape, dtype=np.int64)),):
            raise SampleError(f"the new value has shape {array.shape}, expected {shape}")
        dtype = array.dtype if manifest.dtype is None else manifest.dtype
        return lossless.fit(leaves, array, dtype, manifest.dtype_given)
    except (SampleError, SampleTypeError) as error:
        raise type(error)(f"sample {i}: {error}") from None


def raw(array: Array) -> memoryview:
    """The bytes of an array in C order, without a copy where it has that order."""
    try:
        return memoryview(array).cast("B")  # type: ignore[arg-type]
    except (BufferError, TypeError, ValueError):  # not contiguous, of no elements, or of a dtype that has no `cast`
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def joined(arrays: Samples) -> list[Buffer]:
    """The bytes of many arrays, end to end."""
    size = sum(map(attrgetter("nbytes"), arrays))
    if size >= JOINED * len(arrays):
        return [raw(array) for array in arrays if array.nbytes]
    try:
        return [b"".join(arrays)]
    except (BufferError, TypeError, ValueError):  # not contiguous, or of a dtype that the buffer protocol does not know
        return [b"".join(map(raw, arrays))]
