"""Batches of tensors from any map, without worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import torch

from mmap_ninja import Batches, ReaderShard
from mmap_ninja.collate import Form, parts
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, StateError, noted
from mmap_ninja.fields import each, each_named
from mmap_ninja.indexing import integer
from mmap_ninja.pipeline import Anywhere
from mmap_ninja_torch import convert
from mmap_ninja_torch import device as devices
from mmap_ninja_torch.dataset import MmapDataset
from mmap_ninja_torch.process import BATCH_SIZE_OF_STATES, Reader

Function = Callable[[Any], Any]


class MmapLoader:
    """Batches of a map, or of several side by side, as tensors, epoch after epoch.

    A background thread gathers them ahead; there are no worker processes, no start-up and no shared memory.

    Args:
        source: The path of a map, a map or a view of one, an array in memory, or a dict or tuple of those of one
            length; batches are dicts or tuples then.
        batch_size: Samples a batch, of this process.
        shuffle: Whether each epoch comes in an order of its own, which (seed, epoch) decide.
        seed: 0 to 2**64 - 1; the same for all ranks.
        drop_last: Whether to leave out the last batch if it is incomplete.
        layout: What becomes of samples of several sizes: `"list"` (of tensors), `"padded"` (`Padded(values, lengths,
            shapes)` of tensors), `"jagged"` (a nested tensor, which may be ragged on the first axis of a sample) or
            `"stack"` (one tensor; refuses samples that differ in shape). Samples of a dense map as they are stored are
            always one tensor `(b, *sample_shape)`, and so are numbers; texts and bytes are a list. By default
            `"list"`, and `"stack"` for what `transform` returns. A dict or tuple gives the parts of a batch layouts of
            their own.
        padding_value: What `"padded"` fills up with; or a `Padding`, which has all options of `take_padded`; or a dict
            or tuple of those.
        transform: A function of one sample as `MmapDataset` has it: tensors of their own memory. What it returns
            (tensors, numbers, texts, dicts and tuples of those) makes the batch.
        batch_transform: A function of one whole batch of tensors, which the background thread calls, before the batch
            goes to `device`.
        threads: How many threads call `transform`; the order stays.
        device: Where batches go. To a CUDA device, they go from pinned memory and on a stream of their own, while the
            one before is in use.
        pin_memory: Whether batches are gathered into pinned memory; by default if `device` is a CUDA device.
        prefetch: How many batches the background thread makes ahead, as that of `Batches` does; 0 for no thread.
        readahead: How many batches before its turn the kernel is told to read one from the disk; `"auto"` does so as
            long as the disk is read.
        shard: Which reader this is, and of how many; by default rank and world size of `torch.distributed`.
        batch_sampler: Instead of `batch_size`, `shuffle`, `seed`, `drop_last` and `shard`: an iterable of lists of
            indices, one a batch, as a `DataLoader` takes it.
        check: Whether to compare every byte of the maps with its checksum first, once for each state of a map in a
            process: what is damaged, and what nothing vouches for, is a `MapCorruptError`.

    A batch is the user's: its memory is used again only when no tensor refers to it any more. Each iteration is the
    next epoch, from its first batch on, whether the one before it was finished or given up; only after
    `load_state_dict` or `set_epoch`, it begins where they say. With several ranks, call `set_epoch` where iterations
    are given up: an `EpochWarning` says so, once. States are those of `mmap_ninja.Batches`.

    Raises `MapNotFoundError`, `MapCorruptError`, `ArgumentError`, `ArgumentTypeError`; while iterating
    `MapChangedError` if a map was replaced, `SampleError` for samples that make no batch, and any error of a function,
    with a note that names the batch and the sample.

    Examples:
        >>> from mmap_ninja import RaggedMmap
        >>> _ = RaggedMmap.from_lists("rows", [[1], [2, 2], [3, 3, 3]])
        >>> for batch in MmapLoader("rows", 2, layout="padded"):
        ...     print(batch.values.tolist(), batch.lengths)
        [[1, 0], [2, 2]] tensor([1, 2])
        [[3, 3, 3]] tensor([3])
    """

    def __init__(
        self,
        source: Any,
        batch_size: int | None = None,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        layout: Any = None,
        padding_value: Any = 0,
        transform: Function | None = None,
        batch_transform: Function | None = None,
        threads: int = 1,
        device: Any = None,
        pin_memory: bool | None = None,
        prefetch: int = 2,
        readahead: int | str = "auto",
        shard: ReaderShard | None = None,
        batch_sampler: Iterable[Any] | None = None,
        check: bool = False,
    ) -> None:
        for name, function in {"transform": transform, "batch_transform": batch_transform}.items():
            if function is not None and not callable(function):
                raise ArgumentTypeError(f"{name} is {function!r}, expected a function")
        self._is_checked, fields = check, convert.opened(source, check=check)
        dtypes = each_named(convert.dtype_of, fields)
        form = Form(("list" if transform is None else "stack") if layout is None else layout, padding_value)
        form.check("padding_value")
        self._layout = form.layout
        self._device = devices.device_of(device)
        self._fields, self._transform, self.batch_size = fields, transform, batch_size
        self._reader = None if batch_sampler is not None else Reader(shard)
        own = {"batch_size": batch_size, "shuffle": shuffle, "seed": seed, "drop_last": drop_last, "shard": shard}
        self._batches = Batches(
            fields,
            layout=each(attrgetter("gathered"), parts(fields, form)) if transform is None else form.layout,
            pad_value=padding_value,
            transform=None if transform is None else partial(_transformed, transform, dtypes),
            batch_transform=_finisher(batch_transform, form),
            threads=threads,
            prefetch=prefetch,
            readahead=readahead,
            check=check,
            empty=devices.memory(pin_memory, self._device),
            **_order(batch_sampler, self._reader, own),
        )

    def __len__(self) -> int:
        """Batches an epoch, of this process. Raises `TypeError` for a `batch_sampler` that has no length."""
        return len(self._batches)

    @property
    def epoch(self) -> int:
        """The epoch that is being gone through, or was given up; else the one that comes next."""
        return self._batches.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; a position in that very epoch that was loaded just before stays."""
        self._batches.set_epoch(epoch)

    @property
    def dataset(self) -> MmapDataset:
        """The same samples one by one."""
        return MmapDataset(self._fields, transform=self._transform, check=self._is_checked)

    @property
    def batch_sampler(self) -> Any:
        """Something whose `sampler` is this loader: trainers look for a `set_epoch` there, as Lightning's does."""
        return SimpleNamespace(sampler=self)

    def state_dict(self) -> dict[str, Any]:
        """The position, as a dict of plain values: what was handed out counts, what was prefetched does not.

        It is the same for all ranks, and fits any number of them with the same global batch. That of an iteration that
        was given up is where it was left, until the next one begins.
        """
        return self._batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was called. Raises `StateError` for a state of something else."""
        try:
            self._batches.load_state_dict(state)
        except StateError as error:
            raise noted(error, BATCH_SIZE_OF_STATES)  # noqa: B904 - the same error, with a note

    def __iter__(self) -> Iterator[Any]:
        self._check_reader()
        if self._device is None:
            return iter(self._batches)
        return self._batches.through(partial(devices.sent, device=self._device))

    def peek(self) -> Any:
        """The first batch of the next iteration, made in the thread that calls; it does not count, the position stays.

        Raises what iterating raises, and `ArgumentError` where no batch comes, or for a `batch_sampler` that is an
        iterator. A `batch_sampler` has to give the same batches again: one that draws random numbers does not.
        """
        self._check_reader()
        batch = self._batches.peek()
        if self._device is not None:
            (batch,) = devices.sent(iter([batch]), self._device)
        return batch

    def __repr__(self) -> str:
        return f"<MmapLoader, layout={self._layout!r}, epoch={self.epoch}>"

    def _check_reader(self) -> None:
        if self._reader is not None:
            self._reader.check()


def _order(batch_sampler: Any, reader: Reader | None, own: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the core that say which samples make a batch."""
    if reader is not None:
        if own["batch_size"] is None:
            raise ArgumentTypeError("batch_size is missing; only with batch_sampler= there is none")
        size = integer("batch_size", own["batch_size"], 1) * reader.shard.count
        return {**own, "batch_size": size, "shard": reader.shard}
    if not isinstance(batch_sampler, Iterable):
        raise ArgumentTypeError(f"batch_sampler is {batch_sampler!r}, expected an iterable of lists of indices")
    if tuple(own.values()) != (None, False, 0, False, None):
        raise ArgumentError("batch_sampler says which samples make a batch: leave out what else would")
    return {"order": batch_sampler}


def _transformed(function: Function, dtypes: Any, sample: Any) -> Any:
    return convert.arrays(function(convert.samples(sample, dtypes)))


def _finisher(function: Function | None, form: Form) -> Function:
    """What makes tensors of a batch, and calls the function."""
    made = partial(_tensors, form)
    return Anywhere(made) if function is None else partial(_chained, made, function)


def _tensors(form: Form, batch: Any) -> Any:
    with torch.inference_mode(False):  # the same tensors in whichever thread
        return convert.batch(batch, form)


def _chained(first: Function, then: Function, batch: Any) -> Any:
    return then(first(batch))
