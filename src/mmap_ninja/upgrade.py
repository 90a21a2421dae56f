"""Turn a folder of mmap_ninja 0.9.0 into one of format 2, on request."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmap_ninja._reading import AnyPath, folder_of
from mmap_ninja._storage.build import writing
from mmap_ninja._storage.legacy import DEFAULT_KEYS, Keys
from mmap_ninja._storage.lock import Lock
from mmap_ninja._storage.manifest import MANIFEST, MAX_INT
from mmap_ninja._storage.salvage import salvage as find_whole
from mmap_ninja._storage.snapshot import find, read_json
from mmap_ninja._storage.unfinished import settle
from mmap_ninja._storage.upgrade import upgrade as rewrite
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    MapNotFoundError,
    MmapNinjaError,
    SalvageWarning,
    UpgradeWarning,
    set_committed,
    warn,
)


def upgrade(
    path: AnyPath,
    keys: Keys = DEFAULT_KEYS,
    timeout: float = 0.0,
    *,
    salvage: bool = False,
    sample_shape: Sequence[int] | None = None,
) -> bool:
    """Upgrade a map in place: its data stays where it is, an index and checksums are written beside it.

    Returns False where there is nothing to do. Durable, and complete or not begun, when the call ends; the data is
    read once. Raises `MapNotFoundError`, `MapCorruptError`, `MapLockedError`.

    `salvage` is for a folder that 0.9.0 was interrupted in, which is a `MapCorruptError` else: the samples from the
    first on whose rows and bytes are all there come back, among them each one whose `append` or `extend` had
    returned; a `SalvageWarning` lists the rest, a line for each. `sample_shape` is for a dense map whose shape was
    being written. What is not saved is gone afterwards: copy the folder before, if it may be needed.
    """
    folder = folder_of(path)
    if salvage:
        return _salvage(folder, keys, timeout, _checked(sample_shape))
    if sample_shape is not None:
        raise ArgumentError("sample_shape is for salvage=True")
    manifest = find(folder, keys)
    if manifest is None:
        raise MapNotFoundError(f"there is no map at {folder}")
    if not manifest.format_1:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UpgradeWarning)  # it is what was asked for
        with _saying_if_done(folder), writing(folder, manifest, keys, timeout=timeout):
            return True


@contextmanager
def _saying_if_done(folder: str) -> Iterator[None]:
    """Errors that leave the block say whether the folder is upgraded all the same."""
    try:
        yield
    except BaseException as error:
        try:
            set_committed(error, read_json(folder, MANIFEST) is not None)
        except (MmapNinjaError, OSError):
            set_committed(error, None)
        raise


def _checked(sample_shape: Any) -> tuple[int, ...] | None:
    if sample_shape is None:
        return None
    if isinstance(sample_shape, str) or not isinstance(sample_shape, Sequence):
        raise ArgumentTypeError(f"sample_shape is {sample_shape!r}, expected a sequence of integers")
    shape = tuple(sample_shape)
    if not shape or not all(type(axis) is int and 1 <= axis <= MAX_INT for axis in shape):
        raise ArgumentError(f"sample_shape is {shape}, expected one or more integers of at least 1")
    return shape


def _salvage(folder: str, keys: Keys, timeout: float, sample_shape: tuple[int, ...] | None) -> bool:
    if read_json(folder, MANIFEST) is not None:
        return False
    if find_whole(folder, keys, sample_shape) is None:  # before there is a lock file
        raise MapNotFoundError(f"there is no map of mmap_ninja 0.9.0 at {folder}")
    with _saying_if_done(folder), Lock(folder, timeout) as lock:
        settle(lock, keys)
        if read_json(folder, MANIFEST) is not None:  # an upgrade was interrupted at its very end
            return True
        whole = find_whole(folder, keys, sample_shape)
        if whole is None:
            raise MapNotFoundError(f"the map at {folder} is gone")
        rewrite(lock, whole[0])
    if whole[1]:
        warn("\n".join(whole[1]), SalvageWarning)
    return True
