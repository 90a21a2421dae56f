"""`open_existing`: open whatever a folder holds, as mmap_ninja 0.9.0 did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmap_ninja._reading import AnyPath, check_mode
from mmap_ninja.base import Wrapped, open_map
from mmap_ninja.dense import DenseMmap
from mmap_ninja.numpy import open_existing as open_memmap
from mmap_ninja.string import StringsMmap


def open_existing(
    out_dir: AnyPath,
    wrapper_fn: Callable[[Any], Any] | None = None,
    mode: str = "r+b",
    *,
    check: bool = False,
    expect: Mapping[str, Any] | None = None,
) -> Any:
    """Open a map by its kind: an `np.memmap` for a dense one, else the map object.

    `wrapper_fn` makes a dense map or texts a `Wrapped`. `mode` is that of texts; all others open for reading.
    `check` and `expect` are those of `open_map`, which gives a map object in every case. Raises `MapNotFoundError`,
    `MapCorruptError`, `MapChangedError`, and `MapKindError` (a `ValueError`) for a kind that nobody knows.
    """
    check_mode(mode)
    opened = open_map(out_dir, check=check, expect=expect)
    data: Any = opened
    if isinstance(opened, DenseMmap):
        data = open_memmap(out_dir, check=check, expect=expect)
    elif isinstance(opened, StringsMmap):
        data = StringsMmap(out_dir, mode=mode, check=check, expect=expect)
    elif wrapper_fn is not None:
        return open_map(out_dir, wrapper_fn, check=check, expect=expect)
    return data if wrapper_fn is None else Wrapped(data, wrapper_fn)
