"""Maps as what `fit` takes on any backend of Keras."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import keras

from mmap_ninja import Batches, ReaderShard
from mmap_ninja.collate import PADDED, Layouts
from mmap_ninja.errors import ArgumentError, EpochWarning, warn
from mmap_ninja.fields import each, opened
from mmap_ninja.indexing import boolean, integer
from mmap_ninja_tf.arrays import plain
from mmap_ninja_tf.columns import Columns
from mmap_ninja_tf.epochs import Epochs
from mmap_ninja_tf.layouts import DENSE, check_lengths
from mmap_ninja_tf.process import readers

Function = Callable[[Any], Any]

_WORKERS = (
    "with several workers, Keras on JAX and PyTorch loses batches of a fit that has to build the model or its metrics "
    "first: use FitPosition(dataset).fit, or workers=1"
)


@dataclass
class _Loop:
    """How many batches of an epoch a loop has not been given yet."""

    left: int


class MmapPyDataset(keras.utils.PyDataset):  # type: ignore[misc]
    """The batches of a map, or of several side by side, as NumPy arrays for Keras on any backend.

    Args:
        source: The path of a map, a map or a view of one, an array in memory, or a dict or tuple of those of one
            length. Tuples `(x, y)` and `(x, y, sample_weight)` are what `fit` takes.
        batch_size: Samples a batch, of all readers together.
        columns: The parts of a dict that are wanted, all by default: a name for the array itself, several for a dict
            of arrays.
        label_cols: The same for labels: batches are `(features, labels)` then.
        shuffle: Whether each epoch comes in an order of its own, which (seed, epoch) decide. `fit(shuffle=True)`, its
            default, shuffles the batches once more, by a generator of Keras.
        seed: 0 to 2**64 - 1; the same for all readers.
        drop_remainder: Whether to leave out the last batch if it is incomplete.
        layout: What becomes of samples of several sizes: `"padded"` or `"stack"` (which refuses samples that differ in
            shape), both one array. By default `"padded"`, and `"stack"` for what functions return. A dict or tuple
            gives the parts of a batch layouts of their own.
        pad_value: What `"padded"` fills up with; or a `Padding`, which has all options of `take_padded`; or a dict or
            tuple of those.
        with_lengths: Whether what is padded becomes `{"values": array, "lengths": array}`, int64 `(b,)`.
        transform: A function of one sample, as NumPy has it (a copy, which it may change), a dict or tuple of samples
            where `source` is one. What it returns makes the batch.
        batch_transform: A function of one whole batch.
        shard: Which reader this is, and of how many: `ReaderShard(index, count)`.
        check: Whether to compare every byte of the maps with its checksum first, once for each state of a map in a
            process: what is damaged, and what nothing vouches for, is a `MapCorruptError`.
        options: `workers`, `use_multiprocessing` and `max_queue_size` of `keras.utils.PyDataset`.

    Arrays belong to the batch alone: nothing changes them afterwards. Texts are arrays of objects, which
    `fit` refuses: let `batch_transform` make numbers of them, or take `to_tf_dataset`. `on_epoch_end` leads to the next
    epoch, so make a second one (`take(len(dataset))`, say) to evaluate on while `fit` runs. Loops without Keras see an
    epoch each, finished or given up, with or without a call of `on_epoch_end` between them; with several readers, an
    `EpochWarning` says so, once, where one was given up without such a call. Worker processes open the maps anew, by
    their paths. On TensorFlow, Keras expects all batches to have the shapes of the first two: pad with
    `Padding(length=...)`, or take `to_tf_dataset`.

    Raises `ArgumentError`, `ArgumentTypeError`, `MapNotFoundError`, `MapCorruptError`; when a batch is made what
    `Batches.batch` raises, and `IndexError` for a batch that there is not.

    Examples:
        >>> import numpy as np
        >>> dataset = MmapPyDataset((np.arange(5.0), np.arange(5)), 2)
        >>> len(dataset), dataset[2]
        (3, (array([4.]), array([4])))
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
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
        shard: ReaderShard | None = None,
        check: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if keras.backend.backend() != "tensorflow" and (self.workers > 1 or self.use_multiprocessing):
            warnings.warn(_WORKERS, stacklevel=2)
        self._wanted = Columns.of(columns, label_cols)
        self._with_lengths = boolean("with_lengths", with_lengths)
        layouts, fields = Layouts(layout, pad_value, PADDED, DENSE), opened(source)
        if transform is None and batch_transform is None:
            fields = self._wanted.used(fields)
        is_stored = transform is None
        layout = each(lambda part: part.form.layout, layouts.stored(fields)) if is_stored else layouts.made()
        check_lengths(with_lengths, layout)
        reader = readers(shard, are_replicas=False)[0]
        batches = Batches(
            fields,
            integer("batch_size", batch_size, 1),
            shuffle=shuffle,
            seed=seed,
            drop_last=boolean("drop_remainder", drop_remainder),
            shard=reader,
            layout=layout,
            pad_value=pad_value,
            transform=transform,
            batch_transform=batch_transform,
            check=check,
        )
        self.mmap_ninja_epochs = Epochs([batches])
        self._count, self._is_own = len(batches), batch_transform is None
        self._loop: _Loop | None = None  # that has begun the epoch
        self._readers, self._has_warned = reader.count, False

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._count

    def __getitem__(self, index: int) -> Any:
        """Batch `index` of the epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}, but there are {len(self)} batches")
        return self._batch(self.mmap_ninja_epochs.next + index)

    def __iter__(self) -> Iterator[Any]:
        """The batches of one epoch after the other: of the next one, from the first `next()` on."""
        if self._loop is not None:
            self._warn_if_ahead(self._loop)
            self.on_epoch_end()
        self._loop = loop = _Loop(len(self))
        first = self.mmap_ninja_epochs.next
        for number in range(first, first + len(self)):
            batch = self._batch(number)
            loop.left -= 1
            yield batch
            del batch  # it is not ours any more

    def peek(self) -> Any:
        """The first batch of the next loop, which does not count. Raises `ArgumentError` if there is none."""
        if not len(self):
            raise ArgumentError("an epoch has no batches: there is nothing to look at")
        epochs = self.mmap_ninja_epochs
        return self._batch(epochs.next + (len(epochs) if self._loop is not None else 0))

    def on_epoch_end(self) -> None:
        """Go to the next epoch. Keras calls it before `fit`, too, and while `evaluate` and `predict` run."""
        self._loop = None
        self.mmap_ninja_epochs.begin()

    def _warn_if_ahead(self, loop: _Loop) -> None:
        """Warn, once, where a loop that was given up may have been one of this reader alone."""
        if self._readers > 1 and loop.left and not self._has_warned:
            self._has_warned = True
            warn(
                f"a loop was given up, and the next one is the next epoch: this is one of {self._readers} readers, and "
                "those that have begun fewer loops are an epoch behind; let all readers begin equally many, take "
                "peek() for a look at a batch, or call FitPosition(dataset).fit, which sets the epoch as set_epoch "
                "does elsewhere",
                EpochWarning,
            )

    def _batch(self, number: int) -> Any:
        value = self._wanted.chosen(self.mmap_ninja_epochs.batch(number))
        return plain(value, with_lengths=self._with_lengths, is_own=self._is_own)

    def take(self, count: int) -> MmapPyDataset:
        """The first `count` batches of each epoch, or all if there are fewer; its epochs are its own from here on."""
        taken = copy(self)
        taken.mmap_ninja_epochs = copy(self.mmap_ninja_epochs)
        taken._loop = copy(self._loop)
        taken._count = min(integer("count", count, 0), self._count)
        return taken
