"""Which part of each batch is for this process."""

from __future__ import annotations

from typing import Any

import jax

from mmap_ninja import ReaderShard
from mmap_ninja.errors import ArgumentError, ArgumentTypeError
from mmap_ninja_jax.convert import each_array


def reader(shard: Any, sharding: Any, batch_size: int) -> ReaderShard:
    """The `shard` that was given, else the part of each batch that the devices of this process hold."""
    if shard is not None:
        if not isinstance(shard, ReaderShard):
            raise ArgumentTypeError(f"shard is {shard!r}, expected a ReaderShard(index, count)")
        return shard
    if sharding is None:
        return ReaderShard(jax.process_index(), jax.process_count())
    start, stop = _rows(sharding, batch_size)
    size = stop - start
    if start % size or batch_size % size:
        raise ArgumentError(
            f"the devices of this process hold samples {start} to {stop - 1} of each batch of {batch_size}, which is "
            "no equal part of it: give shard="
        )
    return ReaderShard(start // size, batch_size // size)


def _rows(sharding: Any, batch_size: int) -> tuple[int, int]:
    """The samples of a batch that are for devices of this process."""
    try:
        indices = of_axes(sharding, 1).addressable_devices_indices_map((batch_size,)).values()
    except ValueError as error:
        raise ArgumentError(f"batch_size is {batch_size}, which sharding= cannot divide: {error}") from None
    ranges = sorted({index[0].indices(batch_size)[:2] for index in indices})
    start, stop = ranges[0]
    for first, last in ranges[1:]:
        if first != stop:
            raise ArgumentError("the devices of this process hold several parts of each batch: give shard=")
        stop = last
    return start, stop


def of_axes(sharding: Any, axes: int) -> Any:
    """The sharding of an array of so many axes, which has no more of them than its spec."""
    if isinstance(sharding, jax.sharding.NamedSharding) and len(sharding.spec) > axes:
        spec = jax.sharding.PartitionSpec(*sharding.spec[:axes])  # type: ignore[no-untyped-call]
        return jax.sharding.NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
    return sharding


def check_last(sharding: Any, n: int, batch_size: int, readers: int, *, drop_last: bool) -> None:
    """Refuse a last batch that the sharding cannot divide."""
    rest = n % batch_size
    if drop_last or not rest:
        return
    size = -(-rest // readers) * readers  # all readers have equally many
    try:
        of_axes(sharding, 1).shard_shape((size,))
    except ValueError:
        raise ArgumentError(
            f"the last batch of an epoch has {size} samples, which sharding= cannot divide: give drop_last=True"
        ) from None


def is_on_cpu(sharding: Any) -> bool:
    """Whether batches stay in the memory of the machine."""
    devices = jax.local_devices() if sharding is None else sharding.device_set
    return all(device.platform == "cpu" for device in devices)


def placed(batch: Any, sharding: Any, count: int) -> Any:
    """A batch on the devices, where it is one of `count` parts."""
    found: list[Any] = []
    each_array(found.append, batch)
    if sharding is None:
        there = iter(jax.device_put(found))
    else:
        there = iter([_global(array, sharding, count) for array in found])
    return each_array(lambda _: next(there), batch)


def _global(array: Any, sharding: Any, count: int) -> Any:
    shape = (len(array) * count, *array.shape[1:])
    made = jax.make_array_from_process_local_data  # published without types
    return made(of_axes(sharding, array.ndim), array, shape)  # type: ignore[no-untyped-call]
