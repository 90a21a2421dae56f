"""Which part of each batch is for this process."""

from __future__ import annotations

from typing import Any

from mmap_ninja import ReaderShard
from mmap_ninja.errors import ArgumentError, ArgumentTypeError


def readers(shard: Any, *, are_replicas: bool = True) -> list[ReaderShard]:
    """The readers that this process is: one, or one for each of its replicas, which take turns.

    Args:
        shard: A `ReaderShard`, None for the only one, or the `tf.distribute.InputContext` of a `dataset_fn`.
        are_replicas: Whether the replicas of an `InputContext` are readers, else its input pipelines.
    """
    if shard is None:
        return [ReaderShard()]
    if isinstance(shard, ReaderShard):
        return [shard]
    try:
        pipeline, pipelines = shard.input_pipeline_id, shard.num_input_pipelines
        replicas = shard.num_replicas_in_sync if are_replicas else pipelines
    except AttributeError:
        raise ArgumentTypeError(
            f"shard is {shard!r}, expected a ReaderShard(index, count) or a tf.distribute.InputContext"
        ) from None
    if replicas % pipelines:
        raise ArgumentError(f"{pipelines} input pipelines cannot have equally many of {replicas} replicas")
    here = replicas // pipelines
    return [ReaderShard(pipeline * here + replica, replicas) for replica in range(here)]
