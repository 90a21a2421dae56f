"""Two mappings of one file: what is written through one shows in the other, and numpy sees no overlap."""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np

from mmap_ninja._storage.disk import Identity

_Array = np.ndarray[Any, Any]
_VIEWS = np.ndarray, memoryview


class Mapping(mmap.mmap):
    """A mapping that knows the device and inode of its file."""

    __slots__ = ("file",)
    file: Identity


def is_hidden(array: _Array, target: _Array) -> bool:
    """Whether a write to `target` may change `array` unseen by numpy: it lies in another mapping of the same file.

    Of mappings that nothing is known of, it may.
    """
    there, its_path = _mapping(array)
    if there is None:
        return False
    here, path = _mapping(target)
    if here is None or here is there:
        return False
    one, other = _file(there, its_path), _file(here, path)
    return one is None or other is None or one == other


def _mapping(array: _Array) -> tuple[mmap.mmap | None, str | None]:
    """The mapping that an array is a view of in the end, and its path if that is known; None where there is none."""
    base: Any = array
    path = None
    while isinstance(base, _VIEWS):
        if isinstance(base, np.memmap):
            path = base.filename
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return (base, path) if isinstance(base, mmap.mmap) else (None, None)


def _file(mapping: mmap.mmap, path: str | None) -> Identity | None:
    if isinstance(mapping, Mapping):
        return mapping.file
    try:
        status = os.stat(path or "")
    except OSError:  # it has no name any more, or never had one
        return None
    return status.st_dev, status.st_ino
