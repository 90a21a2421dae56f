"""mmap_ninja for JAX: batches of `jax.Array` without worker processes, on one device or on those of many hosts.

Maps are also sources for Grain as they are: `grain.MapDataset.source(open_map(path))`.
"""

try:
    import jax as _jax
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    from mmap_ninja.errors import MissingExtraError

    raise MissingExtraError("mmap_ninja_jax needs JAX: pip install 'mmap-ninja[jax]'") from error

from mmap_ninja.packing import Packed
from mmap_ninja_jax.convert import Padded
from mmap_ninja_jax.loader import MmapLoader

del _jax

__all__ = ["MmapLoader", "Packed", "Padded"]
