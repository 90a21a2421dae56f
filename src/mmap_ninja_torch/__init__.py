"""mmap_ninja for PyTorch: maps as datasets, and batches of tensors without worker processes.

`MmapDataset` is for `torch.utils.data.DataLoader` and all that is built on it, with `pad_collate`, `jagged_collate` and
`list_collate` for samples of several sizes; `MmapLoader` is the loader that does without worker processes.
"""

try:
    import torch as _torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    from mmap_ninja.errors import MissingExtraError

    raise MissingExtraError("mmap_ninja_torch needs PyTorch: pip install 'mmap-ninja[torch]'") from error

from mmap_ninja_torch.collates import jagged_collate, list_collate, pad_collate
from mmap_ninja_torch.convert import Padded
from mmap_ninja_torch.dataset import MmapDataset
from mmap_ninja_torch.loader import MmapLoader
from mmap_ninja_torch.sampler import OrderBatchSampler, OrderSampler

del _torch

__all__ = [
    "MmapDataset",
    "MmapLoader",
    "OrderBatchSampler",
    "OrderSampler",
    "Padded",
    "jagged_collate",
    "list_collate",
    "pad_collate",
]
