"""Batches of `jax.Array` from any map, without worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mmap_ninja import Batches, ReaderShard
from mmap_ninja.buffers import owned
from mmap_ninja.errors import ArgumentError, ArgumentTypeError
from mmap_ninja.fields import length, opened
from mmap_ninja.indexing import integer
from mmap_ninja.pipeline import Anywhere, behind
from mmap_ninja_jax import convert, layouts
from mmap_ninja_jax.process import check_last, is_on_cpu, placed, reader

Function = Callable[[Any], Any]


class MmapLoader:
    """Batches of a map, or of several side by side, as pytrees of `jax.Array`, epoch after epoch.

    A background thread gathers them ahead; there are no worker processes and no fork, which JAX warns of.

    Args:
        source: The path of a map, a map or a view of one, an array in memory, or a dict or tuple of those of one
            length; batches are dicts or tuples then.
        batch_size: Samples a batch, or rows where they are packed, of all processes together.
        shuffle: Whether each epoch comes in an order of its own, which (seed, epoch) decide.
        seed: 0 to 2**64 - 1; the same for all processes.
        drop_last: Whether to leave out the last batch if it is incomplete, so that `jit` sees one shape.
        layout: What becomes of samples of several sizes: `"padded"` (`Padded(values, lengths)`), `"packed"` (for all
            parts, which have one axis and equal lengths: `batch_size` rows of `pack_length`, filled with samples by
            first fit, as `Packed(values, segment_ids, positions)`, always of one shape), `"list"` (of arrays) or
            `"stack"` (one array; refuses samples that differ in shape). By default `"padded"`, and `"stack"` for what
            `transform` or a `wrapper_fn` returns. Samples of a dense map as they are stored are always one array
            `(b, *sample_shape)`; texts and bytes stay lists of `str` and `bytes`, as JAX has no such arrays. A dict or
            tuple gives the parts of a batch layouts of their own.
        pad_value: What `"padded"` fills up with; or a `Padding`, which has all options of `take_padded`; or a dict or
            tuple of those.
        buckets: Ascending lengths, of which the smallest one that fits is what the first axis of padded samples gets:
            `jit` compiles once for each (with `drop_last`).
        pack_length: Values a row of what is packed. No sample may be longer.
        transform: A function of one sample, as NumPy has it (a copy, which it may change), a dict or tuple of samples
            where `source` is one. What it returns makes the batch.
        batch_transform: A function of one whole batch of NumPy's, which the background thread calls. Arrays that it
            makes itself are copied once more: JAX must not look into memory that somebody else may write to.
        threads: How many threads call `transform` and `wrapper_fn`; the order stays.
        sharding: A `jax.sharding.Sharding` of the first axis, and of others if a batch has them: batches are global
            arrays then, of which each process reads what its devices hold. Several processes pad what functions make
            to a given length only: `pad_value=Padding(length=...)`.
        prefetch: How many batches are gathered ahead, as by `Batches`; on GPU and TPU one more is on its way to the
            device.
        shard: Which reader this is, and of how many: `ReaderShard(index, count)`. By default the part that `sharding`
            says, without one that of `jax.process_index()` of `jax.process_count()`.
        check: Whether to compare every byte of the maps with its checksum first, once for each state of a map in a
            process: what is damaged, and what nothing vouches for, is a `MapCorruptError`.

    On CPU the arrays of large batches are the memory that they were gathered into: nothing is copied, and nothing
    changes it until they are gone. Without `jax_enable_x64`, JAX has 32-bit dtypes only: floats are rounded, which is
    a warning here, and integers that do not fit are a `SampleError`. Each iteration is the next epoch, from its first
    batch on, whether the one before it was finished or given up; only after `load_state_dict` or `set_epoch`, it begins
    where they say. With several processes, call `set_epoch` where iterations are given up: an `EpochWarning` says so,
    once.

    Raises `ArgumentError`, `ArgumentTypeError` (a dtype that JAX lacks, among others), `MapNotFoundError`,
    `MapCorruptError`; while iterating what `Batches` raises.

    Examples:
        >>> import numpy as np
        >>> from mmap_ninja import RaggedMmap
        >>> _ = RaggedMmap.from_lists("rows", [[1], [2, 2], [3, 3, 3]])
        >>> for tokens, labels in MmapLoader(("rows", np.array([7, 8, 9])), 2, buckets=(2, 4)):
        ...     print(tokens.values.tolist(), tokens.lengths, labels)
        [[1, 0], [2, 2]] [1 2] [7 8]
        [[3, 3, 3, 0]] [3] [9]
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        layout: Any = None,
        pad_value: Any = 0,
        buckets: Sequence[int] | None = None,
        pack_length: int | None = None,
        transform: Function | None = None,
        batch_transform: Function | None = None,
        threads: int = 1,
        sharding: Any = None,
        prefetch: int = 2,
        shard: ReaderShard | None = None,
        check: bool = False,
    ) -> None:
        if batch_transform is not None and not callable(batch_transform):
            raise ArgumentTypeError(f"batch_transform is {batch_transform!r}, expected a function")
        fields, size = opened(source, check=check), integer("batch_size", batch_size, 1)
        if transform is None and batch_transform is None:
            convert.check(fields)
        own = reader(shard, sharding, size)
        self._put = partial(placed, sharding=sharding, count=own.count)
        self._is_ahead = bool(prefetch) and not is_on_cpu(sharding)
        order = {"shuffle": shuffle, "seed": seed, "drop_last": drop_last, "shard": own}
        pack, self._is_packed = None, layout == layouts.PACKED
        if (pack_length is None) == self._is_packed:
            raise ArgumentError("layout='packed' and pack_length belong together")
        if pack_length is not None:
            if transform is not None or buckets is not None:
                raise ArgumentError("what is packed has no transform and no buckets; there is batch_transform")
            options = layouts.in_rows(fields, size, pack_length, pad_value, order)
            pack = partial(convert.packed, rows=size // own.count, length=pack_length, pad_value=pad_value)
        else:
            if sharding is not None:
                check_last(sharding, length(fields), size, own.count, drop_last=drop_last)
            given = (layout, pad_value, buckets, sharding)
            if transform is None:
                is_final = batch_transform is None
                options = layouts.of_stored(fields, size, *given, is_shared=own.count > 1, is_final=is_final)
            else:
                options = layouts.of_made(*given, is_shared=own.count > 1)
            options |= {"batch_size": size, **order}
        finish: Function = partial(_finished, pack, batch_transform)
        finish = finish if batch_transform is not None else Anywhere(finish)
        options |= {"transform": transform, "batch_transform": finish, "threads": threads, "prefetch": prefetch}
        options["check"] = check
        self._batches = Batches(fields, **options)

    def __len__(self) -> int:
        """Batches an epoch. Raises `TypeError` where they are packed: it depends on the order."""
        if self._is_packed:
            raise TypeError("how many batches of packed rows an epoch has depends on its order")
        return len(self._batches)

    @property
    def epoch(self) -> int:
        """The epoch that is being gone through, or was given up; else the one that comes next."""
        return self._batches.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; a position in that very epoch that was loaded just before stays."""
        self._batches.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position, as a dict of plain values: what was handed out counts, what was prefetched does not.

        It is the same for all processes, and fits any number of them. That of an iteration that was given up is where
        it was left, until the next one begins.
        """
        return self._batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was called. Raises `StateError` for a state of something else."""
        self._batches.load_state_dict(state)

    def get_state(self) -> dict[str, Any]:
        """`state_dict`, by the name that Grain uses."""
        return self.state_dict()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """`load_state_dict`, by the name that Grain uses."""
        self.load_state_dict(state)

    def __iter__(self) -> Iterator[Any]:
        return self._batches.through(self._placed)

    def peek(self) -> Any:
        """The first batch of the next iteration, made in the thread that calls; it does not count, the position stays.

        Raises what iterating raises, and `ArgumentError` where no batch comes.
        """
        return self._put(self._batches.peek())

    def __repr__(self) -> str:
        return f"<MmapLoader, {self._batches!r}>"

    def _placed(self, batches: Iterator[Any]) -> Iterator[Any]:
        there = map(self._put, batches)
        return behind(there, 1) if self._is_ahead else there


def _finished(pack: Function | None, function: Function | None, batch: Any) -> Any:
    batch = batch if pack is None else pack(batch)
    if function is None:
        return convert.host(batch)
    return convert.each_array(owned, convert.host(function(batch)))  # before the function is called again
