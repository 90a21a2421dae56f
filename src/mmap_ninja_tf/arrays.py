"""Batches of the core as arrays that frameworks take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmap_ninja.buffers import copied, owned, root_of
from mmap_ninja.errors import SampleTypeError
from mmap_ninja.fields import each_part
from mmap_ninja.gather import Padded

Array = np.ndarray[Any, np.dtype[Any]]


def as_array(value: Any) -> Array:
    """In the byte order of the machine; texts as objects, which is how TensorFlow takes them."""
    if isinstance(value, str | bytes) or (isinstance(value, list) and value and isinstance(value[0], str | bytes)):
        return np.array(value, object)
    array = np.asarray(value)
    if array.dtype.kind in "SU":
        return array.astype(object)
    if array.dtype.hasobject and not all(isinstance(one, str | bytes) for one in array.flat):
        raise SampleTypeError(f"expected numbers or texts, got a {type(value).__name__} of other objects")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def alone(array: Array, roots: set[int], *, is_own: bool) -> Array:
    """The array, if nobody else has its memory, else a copy; frameworks may write results there.

    `is_own` says that the core has made it, `roots` has the ids of the memory that is taken already.
    """
    if array.dtype.hasobject:
        return array
    array = owned(array) if is_own and id(root_of(array)) not in roots else copied(array)
    roots.add(id(root_of(array)))
    return array


def plain(value: Any, *, with_lengths: bool, is_own: bool) -> Any:
    """A batch as dicts and tuples of arrays, of which nobody else has the memory.

    What is padded becomes its values, or a dict of `values` and `lengths`.
    """
    roots: set[int] = set()

    def each(value: Any) -> Any:
        if isinstance(value, Padded):
            value = {"values": value.values, "lengths": value.lengths} if with_lengths else value.values
        if isinstance(value, Mapping | tuple):
            return each_part(each, value)
        return alone(as_array(value), roots, is_own=is_own)

    return each(value)
