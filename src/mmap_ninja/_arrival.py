"""Samples on their arrival: what their source may still change is copied before it is asked for the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from io import BytesIO
from mmap import mmap
from typing import Any

import numpy as np

_NUMBERS = {bool, int, float, complex}
_CONSTANT = {type(None), str, bytes, *_NUMBERS}
_ARRAYS = "__array__", "__array_interface__", "__array_struct__"
_SEGMENT = 8 << 20  # bytes; NumPy asks for huge pages from 4 MiB on
_LARGE = 1 << 20  # above, a sample has no place in a segment

JOINED = 32 << 10  # below this size in bytes, one copy into one buffer is cheaper than a write for each


def lent(sample: Any) -> Any:
    """As `kept`, but a view of a mapped file stays one: what a map lends would not fit the memory."""
    return sample if type(sample) is np.ndarray and _is_mapped(sample) else kept(sample)


def _is_mapped(array: np.ndarray[Any, Any]) -> bool:
    """Whether this is a read-only view of a mapped file."""
    base: Any = array
    while isinstance(base, np.ndarray) and not base.flags.writeable:
        base = base.base
    base = base.obj if isinstance(base, memoryview) and base.readonly else base
    return isinstance(base, mmap) and memoryview(base).readonly  # else its owner may write to the mapping


def kept(sample: Any) -> Any:
    """The sample, or a copy of what its source could write to.

    What Python cannot copy, such as memory that is shared between processes, becomes an array or a list; what is
    neither is handed on as it is.
    """
    kind = type(sample)
    if kind is np.ndarray:
        return sample.copy()
    if kind in _CONSTANT or (isinstance(sample, np.generic) and not isinstance(sample, np.void)):  # that is a view
        return sample
    if kind is memoryview:
        return bytearray(sample) if sample.format == "B" and sample.ndim == 1 else np.array(sample)
    if kind in (list, tuple) and set(map(type, sample)) <= _CONSTANT:
        return kind(sample)
    for copied in (deepcopy, _read):
        try:
            return copied(sample)
        except Exception:  # whatever a class of the user's raises
            continue
    return sample


def _read(sample: Any) -> Any:
    """What is read from something that Python cannot copy: an array, a list of numbers and arrays, or the same."""
    if is_array(sample):
        return np.asanyarray(sample).copy()  # not `np.array`, which believes a class that it has copied
    if isinstance(sample, list | tuple):
        parts = map(kept, sample)
        return type(sample)(*parts) if hasattr(sample, "_fields") else type(sample)(parts)
    if not (hasattr(sample, "__len__") and hasattr(sample, "__getitem__")):
        return sample
    read = [kept(part) for part in sample]
    return read if set(map(type, read)) <= {np.ndarray, *_NUMBERS} else sample


def is_array(sample: Any) -> bool:
    """Whether NumPy takes this for an array as a whole, of a dtype of its own, as it does tensors and buffers."""
    if isinstance(sample, np.ndarray | memoryview | bytearray):
        return True
    kind = type(sample)
    if kind in _CONSTANT or isinstance(sample, str | bytes | list | tuple | dict | type):
        return False
    if any(hasattr(kind, name) for name in _ARRAYS) or any(hasattr(sample, name) for name in _ARRAYS):
        return True
    try:
        memoryview(sample).release()
    except (TypeError, ValueError, BufferError):
        return False
    return True


class Room:
    """Memory for the bytes of one chunk of arrays after another; pages that were touched once cost nothing more.

    The large ones of a build are in none: they are written when they arrive.
    """

    def __init__(self) -> None:
        self._small, self._segments = BytesIO(), list[memoryview]()
        self.clear()

    def clear(self) -> None:
        """Begin a chunk, over the bytes of the one before."""
        self._chunks: list[memoryview | tuple[int, int]] = []
        self._start = 0  # of the small ones that are in no chunk yet
        self._used, self._at = 0, _SEGMENT
        try:
            self._small.seek(0)
            self._small.write(b"")
        except BufferError:  # the bytes of the chunk before are still in use
            self._small = BytesIO()
        self.write: Callable[[Any], int] = self._small.write  # copies what has less than `JOINED` bytes

    def add(self, raw: memoryview) -> None:
        """Copy the bytes of an array."""
        if len(raw) < JOINED:
            self.write(raw)
        elif len(raw) > _LARGE:
            self.take(np.array(raw).data)
        else:
            place = self._place(len(raw))
            place[:] = raw
            self.take(place)

    def take(self, raw: memoryview) -> None:
        """Add bytes that nothing else will change, without a copy of many."""
        if len(raw) < JOINED:
            self.write(raw)
            return
        self._close_small()
        self._chunks.append(raw)

    def _place(self, size: int) -> memoryview:
        if self._at + size > _SEGMENT:
            if self._used == len(self._segments):
                self._segments.append(np.empty(_SEGMENT, np.uint8).data)
            self._used, self._at = self._used + 1, 0
        self._at += size
        return self._segments[self._used - 1][self._at - size : self._at]

    def _close_small(self) -> None:
        end = self._small.tell()
        if end > self._start:
            self._chunks.append((self._start, end))
            self._start = end

    def chunks(self) -> Sequence[memoryview]:
        """The bytes of all arrays since `clear`, end to end; to be let go of before the next `clear`."""
        self._close_small()
        small = self._small.getbuffer()
        return [small[chunk[0] : chunk[1]] if isinstance(chunk, tuple) else chunk for chunk in self._chunks]
