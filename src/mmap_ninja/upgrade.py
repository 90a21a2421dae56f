"""Turn a folder of mmap_ninja 0.9.0 into one of format 2, on request."""

from __future__ import annotations

import warnings

from mmap_ninja._reading import AnyPath, folder_of
from mmap_ninja._storage.build import writing
from mmap_ninja._storage.legacy import DEFAULT_KEYS, Keys
from mmap_ninja._storage.snapshot import find
from mmap_ninja.errors import MapNotFoundError, UpgradeWarning


def upgrade(path: AnyPath, keys: Keys = DEFAULT_KEYS, timeout: float = 0.0) -> bool:
    """Upgrade a map in place: its data stays where it is, an index and checksums are written beside it.

    Returns False where there is nothing to do. Durable, and complete or not begun, when the call ends; the data is
    read once. Raises `MapNotFoundError`, `MapCorruptError`, `MapLockedError`.
    """
    folder = folder_of(path)
    manifest = find(folder, keys)
    if manifest is None:
        raise MapNotFoundError(f"there is no map at {folder}")
    if not manifest.format_1:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UpgradeWarning)  # it is what was asked for
        with writing(folder, manifest, keys, timeout=timeout):
            return True
