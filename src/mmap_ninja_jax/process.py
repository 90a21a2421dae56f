"""Which part of each batch is for this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from mmap_ninja import ReaderShard
from mmap_ninja.collate import Part
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, SampleError
from mmap_ninja.fields import TEXTS, each, leaves
from mmap_ninja.order import checked_shard
from mmap_ninja_jax.convert import each_array, own

_LISTS = "layout='list' makes no arrays of whole batches, which sharding= divides"


def reader(shard: Any, sharding: Any, batch_size: int) -> ReaderShard:
    """The `shard` that was given, else the part of each batch that the devices of this process hold."""
    shard = None if shard is None else checked_shard(shard)
    if sharding is None:
        return shard or ReaderShard(jax.process_index(), jax.process_count())
    if not isinstance(sharding, jax.sharding.Sharding):
        raise ArgumentTypeError(f"sharding is {sharding!r}, expected a jax.sharding.Sharding")
    start, stop = _rows(sharding, batch_size)
    size = stop - start
    if start % size or batch_size % size:
        raise ArgumentError(
            f"the devices of this process hold samples {start} to {stop - 1} of each batch of {batch_size}, which is "
            "no equal part of it"
        )
    own = ReaderShard(start // size, batch_size // size)
    if shard not in (None, own):
        raise ArgumentError(f"shard is {shard}, but by sharding= the devices of this process hold the part of {own}")
    return own


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
            raise ArgumentError("the devices of this process hold several parts of each batch, expected one")
        stop = last
    return start, stop


def of_axes(sharding: Any, axes: int) -> Any:
    """The sharding of an array of so many axes, which has no more of them than its spec."""
    if isinstance(sharding, jax.sharding.NamedSharding) and len(sharding.spec) > axes:
        spec = jax.sharding.PartitionSpec(*sharding.spec[:axes])  # type: ignore[no-untyped-call]
        return jax.sharding.NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
    return sharding


def check_shapes(sharding: Any, stored: Any, batch_size: int) -> None:
    """Refuse samples of a known shape that the sharding cannot divide, and those that have no axis in common."""

    def check(part: Part) -> None:
        source = part.source
        is_even = hasattr(source, "sample_shape") and source.wrapper_fn is None
        if part.form.layout == "list" and not is_even and source.kind not in TEXTS:
            raise ArgumentError(f"{part.name}: {_LISTS}")
        shape = (batch_size, *source.sample_shape) if is_even else (batch_size,)
        try:
            of_axes(sharding, len(shape)).shard_shape(shape)
        except ValueError as error:
            raise ArgumentError(f"{part.name}: sharding= cannot divide batches of shape {shape}: {error}") from None

    each(check, stored)


def check_lists(layout: Any) -> None:
    """Refuse what a transform makes, if it is not to become arrays."""
    if "list" in [one for _, one in leaves(layout)]:
        raise ArgumentError(_LISTS)


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
    arrays = list(map(own, found))
    if sharding is not None and _has_lists(batch):
        raise SampleError("sharding= divides arrays, and a list of arrays came")
    put = jax.device_put(arrays) if sharding is None else [_global(array, sharding, count) for array in arrays]
    there = iter(put)
    return each_array(lambda _: next(there), batch)


def _global(array: Any, sharding: Any, count: int) -> Any:
    if array.ndim == 0:
        raise SampleError("sharding= divides arrays with an axis for the samples, and one without any axis came")
    shape = (len(array) * count, *array.shape[1:])
    made = jax.make_array_from_process_local_data  # published without types
    try:
        return made(of_axes(sharding, array.ndim), array, shape)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise SampleError(f"an array of shape {shape} came, which sharding= cannot divide: {error}") from None


def _has_lists(batch: Any) -> bool:
    """Whether there are arrays in a list."""
    if isinstance(batch, list):
        found: list[Any] = []
        each_array(found.append, batch)
        return bool(found)
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple) else ()
    return any(map(_has_lists, parts))
