"""Maps as datasets of `tf.data`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from mmap_ninja import ReaderShard
from mmap_ninja.collate import PADDED, Layouts
from mmap_ninja.errors import ArgumentError
from mmap_ninja.fields import leaves, opened
from mmap_ninja.indexing import boolean, integer
from mmap_ninja_tf.columns import Columns
from mmap_ninja_tf.elements import Batched, Single
from mmap_ninja_tf.layouts import ALL, RAGGED
from mmap_ninja_tf.process import readers
from mmap_ninja_tf.signature import checked

Function = Callable[[Any], Any]


def to_tf_dataset(
    source: Any,
    batch_size: int | None = None,
    *,
    columns: str | Sequence[str] | None = None,
    label_cols: str | Sequence[str] | None = None,
    shuffle: bool = False,
    seed: int = 0,
    drop_remainder: bool = False,
    layout: Any = None,
    pad_value: Any = 0,
    with_lengths: bool = False,
    transform: Function | None = None,
    batch_transform: Function | None = None,
    output_signature: Any = None,
    threads: int = 1,
    prefetch: int = 2,
    shard: Any = None,
    check: bool = False,
) -> tf.data.Dataset:
    """The samples of a map, or of several side by side, as a `tf.data.Dataset`.

    Args:
        source: The path of a map, a map or a view of one, an array in memory, or a dict or tuple of those of one
            length. Tuples `(x, y)` and `(x, y, sample_weight)` are what `fit` takes.
        batch_size: Samples a batch, of all readers together; None for a dataset of samples, which is slower.
        columns: The parts of a dict that are wanted, all by default: a name for the tensor itself, several for a dict
            of tensors. Without functions, other parts are not read.
        label_cols: The same for labels: elements are `(features, labels)` then.
        shuffle: Whether each epoch comes in an order of its own, which (seed, epoch) decide.
        seed: 0 to 2**64 - 1; the same for all readers.
        drop_remainder: Whether to leave out the last batch if it is incomplete; batches have a static size then.
        layout: What becomes of samples of several sizes: `"ragged"` (a `tf.RaggedTensor`), `"padded"` (a dense tensor)
            or `"stack"` (a dense tensor; refuses samples that differ in shape). By default `"ragged"`, and `"stack"`
            for what `transform` or a `wrapper_fn` returns. Samples of a dense map as they are stored are always a
            tensor `(b, *sample_shape)`, texts and bytes a `tf.string` tensor `(b,)`. A dict or tuple gives the parts
            of a batch layouts of their own.
        pad_value: What `"padded"` fills up with; or a `Padding`, which has all options of `take_padded`; or a dict or
            tuple of those.
        with_lengths: Whether what is padded becomes `{"values": tensor, "lengths": tensor}`, int64 `(b,)`.
        transform: A function of one sample, as NumPy has it (a copy, which it may change), a dict or tuple of samples
            where `source` is one. What it returns makes the batch.
        batch_transform: A function of one whole batch of NumPy's: arrays, lists of texts, `Jagged` and `Padded`. What
            it makes itself is copied once more: TensorFlow writes into memory that it takes for its own.
        output_signature: The `tf.TypeSpec` of an element, or a dict or tuple of those, where functions make it. By
            default they are called for the first samples, to see: of theirs only the first axis of a batch, and what
            is padded or ragged, may have another length later.
        threads: How many threads call `transform`, `wrapper_fn` and `batch_transform`, for a batch each; the order
            stays.
        prefetch: How many batches are made ahead; `tf.data.AUTOTUNE` leaves that to TensorFlow.
        shard: Which reader this is, and of how many: `ReaderShard(index, count)`; or the `InputContext` of
            `distribute_datasets_from_function`, whose replicas share each batch.
        check: Whether to compare every byte of the maps with its checksum first, once for each state of a map in a
            process: what is damaged, and what nothing vouches for, is a `MapCorruptError`.

    Each iteration is an epoch of its own: 0, 1, 2, ... in the order in which they ask for their first element, finished
    or given up, and any number may run at once. So all readers have to begin equally many: for a `ReaderShard` an
    `EpochWarning` says so, once, where one was given up. How many elements they have is known (`cardinality`). Batches
    of large arrays are tensors of the memory that they were gathered into, which nothing changes afterwards; it is used
    again once they are gone. The dataset belongs to this process: it cannot be saved with a graph. It is not
    sharded automatically (`AutoShardPolicy.OFF`).

    Raises `ArgumentError`, `ArgumentTypeError` (a dtype that TensorFlow lacks, among others), `MapNotFoundError`,
    `MapCorruptError`, and any error of a function for the first samples. While iterating TensorFlow makes a
    `tf.errors.OpError` of errors, whose text has the original one.

    Examples:
        >>> import numpy as np
        >>> from mmap_ninja import RaggedMmap
        >>> _ = RaggedMmap.from_lists("rows", [[1], [2, 2], [3, 3, 3]])
        >>> for tokens, labels in to_tf_dataset(("rows", np.array([7, 8, 9])), 2):
        ...     print(tokens.to_list(), labels.numpy())
        [[1], [2, 2]] [7 8]
        [[3, 3, 3]] [9]
    """
    wanted = Columns.of(columns, label_cols)
    has_functions = transform is not None or batch_transform is not None
    fields = opened(source) if has_functions else wanted.used(opened(source))
    drop_remainder = boolean("drop_remainder", drop_remainder)
    with_lengths = boolean("with_lengths", with_lengths)
    integer("threads", threads, 1)
    integer("prefetch", prefetch, tf.data.AUTOTUNE, what="a number of batches, or tf.data.AUTOTUNE")
    layouts = Layouts(layout, pad_value, RAGGED, ALL)
    is_shared = isinstance(shard, ReaderShard) and shard.count > 1  # a strategy begins the iterators of its readers
    options = {"shuffle": shuffle, "seed": seed, "transform": transform, "check": boolean("check", check)}
    elements: Batched | Single
    if batch_size is None:
        is_given = type(pad_value) is not int or pad_value != 0
        batches = {"drop_remainder": drop_remainder, "with_lengths": with_lengths, "batch_transform": batch_transform}
        _check_samples(layouts.made(), {"pad_value": is_given, "threads": threads > 1, **batches})
        elements = Single(fields, wanted, readers(shard, are_replicas=False)[0], is_shared=is_shared, **options)
    else:
        options |= {"batch_transform": batch_transform, "drop_last": drop_remainder}
        size, own = integer("batch_size", batch_size, 1), readers(shard)
        elements = Batched(
            fields, wanted, layouts, size, own, is_shared=is_shared, with_lengths=with_lengths, **options
        )
    if output_signature is None:
        signature = elements.signature()
    else:
        signature = checked(output_signature)
        elements.check(signature)
    settings = tf.data.Options()
    settings.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    if threads > 1:  # its own pool has no more than there are processors
        settings.threading.private_threadpool_size = threads + 1
    made = elements.dataset(signature, threads).with_options(settings)
    made = made.prefetch(prefetch) if prefetch else made
    made.mmap_ninja_elements = elements  # it keeps them: see `elements._reference`
    made.mmap_ninja_epochs = elements.epochs if batch_size is not None else None  # for `FitPosition`
    return made


def _check_samples(layout: Any, for_batches: dict[str, Any]) -> None:
    """Refuse what is only for batches."""
    is_padded = PADDED in [part for _, part in leaves(layout)]
    for name, value in {"layout='padded'": is_padded, **for_batches}.items():
        if value:
            raise ArgumentError(f"{name} is for batches: give batch_size, too")
