"""Batches of the core as arrays that frameworks take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmap_ninja.buffers import copied, owned, root_of
from mmap_ninja.fields import like, named_parts
from mmap_ninja.gather import Padded

Array = np.ndarray[Any, np.dtype[Any]]


def as_array(value: Any) -> Array:
    """In the byte order of the machine; texts as objects, which is how TensorFlow takes them."""
    if isinstance(value, str | bytes) or (isinstance(value, list) and value and isinstance(value[0], str | bytes)):
        return np.array(value, object)
    array = np.asarray(value)
    if array.dtype.kind in "SU":
        return array.astype(object)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def plain(value: Any, *, with_lengths: bool) -> Any:
    """A batch as dicts and tuples of arrays in memory of their own, which no two of them share.

    What is padded becomes its values, or a dict of `values` and `lengths`.
    """
    return _plain(value, with_lengths, set())


def _plain(value: Any, with_lengths: bool, roots: set[int]) -> Any:
    if isinstance(value, Padded):
        value = {"values": value.values, "lengths": value.lengths} if with_lengths else value.values
    if isinstance(value, Mapping | tuple):
        parts = {key: _plain(part, with_lengths, roots) for key, part in named_parts(value)}
        return parts if isinstance(value, Mapping) else like(value, parts.values())
    array = as_array(value)
    if array.dtype.hasobject:
        return array
    array = copied(array) if id(root_of(array)) in roots else owned(array)
    roots.add(id(root_of(array)))
    return array
