"""Memory-mapped datasets: convert once, then read any sample at the speed of memory."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmap_ninja._taking import Padding
from mmap_ninja.base import Mmap, Wrapped, open_map
from mmap_ninja.binary import BytesMmap
from mmap_ninja.dense import DenseMmap
from mmap_ninja.errors import MmapNinjaError
from mmap_ninja.gather import Jagged, Padded
from mmap_ninja.generic import open_existing
from mmap_ninja.numpy import append as np_append
from mmap_ninja.numpy import extend as np_extend
from mmap_ninja.numpy import extend_dir as np_extend_dir
from mmap_ninja.numpy import from_generator as np_from_generator
from mmap_ninja.numpy import from_ndarray as np_from_ndarray
from mmap_ninja.numpy import open_existing as np_open_existing
from mmap_ninja.ragged import RaggedMmap
from mmap_ninja.string import StringsMmap
from mmap_ninja.upgrade import upgrade
from mmap_ninja.verify import Finding, verify

if TYPE_CHECKING:
    from mmap_ninja._backup import backup
    from mmap_ninja.batches import Batches
    from mmap_ninja.order import Order, ReaderShard
    from mmap_ninja.views import View, select, split, windows

__version__ = "1.0.0.dev0"

__all__ = [
    "Batches",
    "BytesMmap",
    "DenseMmap",
    "Finding",
    "Jagged",
    "Mmap",
    "MmapNinjaError",
    "Order",
    "Padded",
    "Padding",
    "RaggedMmap",
    "ReaderShard",
    "StringsMmap",
    "View",
    "Wrapped",
    "backup",
    "np_append",
    "np_extend",
    "np_extend_dir",
    "np_from_generator",
    "np_from_ndarray",
    "np_open_existing",
    "open_existing",
    "open_map",
    "select",
    "split",
    "upgrade",
    "verify",
    "windows",
]

# Imported when somebody asks for them: whoever only reads or writes maps saves a third of the time.
_LATER = {
    "Batches": "batches",
    "Order": "order",
    "ReaderShard": "order",
    "View": "views",
    "backup": "_backup",
    "select": "views",
    "split": "views",
    "windows": "views",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
