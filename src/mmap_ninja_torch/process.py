"""Which part of each batch is for this process."""

from __future__ import annotations

from torch import distributed

from mmap_ninja import ReaderShard
from mmap_ninja.errors import ArgumentError
from mmap_ninja.order import checked_shard

BATCH_SIZE_OF_STATES = "the batch_size of a state is that of all ranks together"


class Reader:
    """The reader that this process is: the `shard` that was given, else rank and world size of `torch.distributed`."""

    def __init__(self, given: ReaderShard | None) -> None:
        self._is_given = given is not None
        self.shard = _of_this_process() if given is None else checked_shard(given)

    def check(self) -> None:
        """Refuse to go on as the reader that this process was before `torch.distributed` was initialised."""
        now = self.shard if self._is_given else _of_this_process()
        if now != self.shard:
            raise ArgumentError(
                f"this was made for reader {self.shard.index} of {self.shard.count}, and is used in {now.index} of "
                f"{now.count}: make it after init_process_group (under Lightning in train_dataloader), or give shard="
            )


def _of_this_process() -> ReaderShard:
    if distributed.is_available() and distributed.is_initialized():
        return ReaderShard(distributed.get_rank(), distributed.get_world_size())
    return ReaderShard()
