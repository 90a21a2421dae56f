"""Memory for batches that is used again once nobody holds what was in it.

A fresh large array costs as much as copying it: the kernel hands out its pages one by one, and zeroed. So the memory
of a batch goes back to a pool when the last array that looks into it is gone, and the next batch is gathered into it.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from queue import SimpleQueue
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_ALIGNMENT = 64  # bytes: what TensorFlow and JAX take without a copy, and far from the source's 4 KiB grid
_WORTH_IT = 1 << 16  # bytes; malloc has smaller ones at hand
_REFERENCES = 2  # to memory that nobody else has: the list of what is free, and the argument of `getrefcount`
_KEPT = 256 << 20  # bytes that wait for their next use, in the whole process


class Pool:
    """Hands out uninitialised arrays, and takes their memory back by itself.

    Memory is used again only when the array, all views of it and everything else that refers to one of them (a
    tensor, a `memoryview`) are gone: what was handed out never changes by itself. At most `kept` bytes wait for
    their next use. May be shared between threads; a forked child begins with an empty one.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Array] = []  # the longest unused first
        # Finalizers run at any moment, also in the thread that holds the lock: this queue is made for them.
        self._returned: SimpleQueue[Array] = SimpleQueue()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised C-order array that begins at a multiple of 64 bytes, as `np.empty` but for that."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < _WORTH_IT:
            return np.empty(shape, dtype)
        memory = self._taken(size)
        # NumPy lets every view refer to the array that begins a chain of views: to this one, as its own base is none.
        whole: Array = np.frombuffer(memory.data, np.uint8)
        _wholes.add(id(whole))
        weakref.finalize(whole, self._take_back, memory, id(whole)).atexit = False
        start = -whole.__array_interface__["data"][0] % _ALIGNMENT
        array: Array = whole[start : start + size].view(dtype).reshape(shape)
        return array

    def _taken(self, size: int) -> Array:
        """Free memory that is large enough and not much too large, else new one."""
        need = size + _ALIGNMENT
        with self._lock:
            self._collect()
            for at in range(len(self._free) - 1, -1, -1):  # the one used last is the most likely to be in a cache
                if need <= self._free[at].nbytes <= 2 * need:
                    if sys.getrefcount(self._free[at]) <= _REFERENCES:
                        return self._free.pop(at)
                    del self._free[at]  # somebody has found a way to it besides the array
        return np.empty(need + need // 8, np.uint8)  # room for the next batch, which may be a little larger

    def _take_back(self, memory: Array, number: int) -> None:
        _wholes.discard(number)
        self._returned.put(memory)
        if self._lock.acquire(blocking=False):  # else whoever has it, which may be this thread, is about to collect
            try:
                self._collect()
            finally:
                self._lock.release()

    def _collect(self) -> None:
        while not self._returned.empty():
            self._free.append(self._returned.get())
        while self._free and sum(memory.nbytes for memory in self._free) > self._kept:
            del self._free[0]


def is_pooled(array: Array) -> bool:
    """Whether the memory of an array is that of a pool, so that nobody else writes to it or uses it again."""
    return id(root_of(array)) in _wholes


def root_of(array: Array) -> Array:
    """The array that the memory of a view belongs to; itself, if it is none."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def owned(array: Array) -> Array:
    """The array, if its memory is that of a pool, else a copy in memory of its own.

    For frameworks that look into the memory of an array without a copy: some of them write their results there.
    """
    return array if is_pooled(array) else copied(array)


def copied(array: Array) -> Array:
    """A copy of the array in memory of its own."""
    made = empty(array.shape, array.dtype)
    made[...] = array
    return made


_wholes: set[int] = set()  # ids of the arrays that hold the memory of pools
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _begin_anew() -> None:
    # The lock may be held by a thread that does not exist in the child; and memory that is shared with the parent
    # until it is written to is not worth keeping.
    for pool in _pools:
        pool._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

pool = Pool()  # one for the process: each further one would have pages of its own to be faulted in


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array from the pool of the process, as `np.empty` makes one."""
    return pool.empty(shape, dtype)
