"""Which part of each batch is for this process."""

from __future__ import annotations

from torch import distributed

from mmap_ninja import ReaderShard
from mmap_ninja.errors import ArgumentTypeError


def reader_shard(given: ReaderShard | None) -> ReaderShard:
    """The one that was given, else rank and world size of `torch.distributed`, where that was initialised."""
    if given is not None:
        if not isinstance(given, ReaderShard):
            raise ArgumentTypeError(f"shard is {given!r}, expected a ReaderShard(index, count)")
        return given
    if distributed.is_available() and distributed.is_initialized():
        return ReaderShard(distributed.get_rank(), distributed.get_world_size())
    return ReaderShard()
