"""Maps as what `fit` takes on any backend of Keras, and going on with a `fit` that was interrupted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import product
from typing import Any

try:
    import keras
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise
    from mmap_ninja.errors import MissingExtraError

    raise MissingExtraError("mmap_ninja_tf.keras needs Keras: pip install 'mmap-ninja[tf]'") from error

from mmap_ninja import Batches, ReaderShard
from mmap_ninja.collate import PADDED, Layouts
from mmap_ninja.errors import ArgumentError, ArgumentTypeError
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
        options: `workers`, `use_multiprocessing` and `max_queue_size` of `keras.utils.PyDataset`.

    Arrays belong to the batch alone: nothing changes them afterwards. Texts are arrays of objects, which
    `fit` refuses: let `batch_transform` make numbers of them, or take `to_tf_dataset`. `on_epoch_end` leads to the next
    epoch, so make a second one (`take(len(dataset))`, say) to evaluate on while `fit` runs. Worker processes open the
    maps anew, by their paths. On TensorFlow, Keras expects all batches to have the shapes of the first two: pad with
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
        batches = Batches(
            fields,
            integer("batch_size", batch_size, 1),
            shuffle=shuffle,
            seed=seed,
            drop_last=boolean("drop_remainder", drop_remainder),
            shard=readers(shard, are_replicas=False)[0],
            layout=layout,
            pad_value=pad_value,
            transform=transform,
            batch_transform=batch_transform,
        )
        self.mmap_ninja_epochs = Epochs([batches])
        self._count, self._is_own = len(batches), batch_transform is None

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._count

    def __getitem__(self, index: int) -> Any:
        """Batch `index` of the epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}, but there are {len(self)} batches")
        epochs = self.mmap_ninja_epochs
        value = self._wanted.chosen(epochs.batch(epochs.next + index))
        return plain(value, with_lengths=self._with_lengths, is_own=self._is_own)

    def on_epoch_end(self) -> None:
        """Go to the next epoch. Keras calls it before `fit`, too, and while `evaluate` and `predict` run."""
        self.mmap_ninja_epochs.begin()

    def take(self, count: int) -> MmapPyDataset:
        """The first `count` batches of each epoch, or all if there are fewer; its epochs are its own from here on."""
        taken = copy(self)
        taken.mmap_ninja_epochs = copy(self.mmap_ninja_epochs)
        taken._count = min(integer("count", count, 0), self._count)
        return taken


class FitPosition(keras.callbacks.Callback):  # type: ignore[misc]
    """How far `fit` is in its dataset, for going on after an interruption with the batches that would have come.

    Call `position.fit(model, dataset, ...)` instead of `model.fit(dataset, ...)`: it goes on where a loaded state says,
    also in the middle of an epoch. The state is to be saved with the weights, by another callback, say: this one comes
    before all others. Epoch `e` of `fit` is epoch `e` of the order.

    Args:
        dataset: What `to_tf_dataset` has returned, or a `MmapPyDataset`. `fit` may get what `map`, `prefetch` and the
            like have made of it, with one step for each batch of it.

    While `fit` runs, `state_dict()` counts the batches that the model was trained with, and not those that were
    made ahead. Raises `ArgumentTypeError` for another dataset, `ArgumentError` where steps do not count batches.

    Examples:
        >>> import numpy as np
        >>> dataset = MmapPyDataset((np.ones((8, 1)), np.ones(8)), 2, shuffle=True)
        >>> position = FitPosition(dataset)
        >>> position.load_state_dict({**position.state_dict(), "epoch": 1, "samples_seen": 6})
        >>> model = keras.Sequential([keras.layers.Dense(1)])
        >>> model.compile(loss="mse")
        >>> history = position.fit(model, dataset, epochs=3, verbose=0)  # one batch, and then a whole epoch
        >>> history.epoch, position.state_dict()["epoch"]
        ([1, 2], 3)
    """

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        epochs = getattr(dataset, "mmap_ninja_epochs", None)
        if not isinstance(epochs, Epochs):
            raise ArgumentTypeError(
                f"dataset is {dataset!r:.100}, expected what to_tf_dataset(source, batch_size) returned, or a "
                "MmapPyDataset"
            )
        if len(epochs) == 0:
            raise ArgumentError("the dataset has no batches")
        self._epochs, self._step = epochs, 0
        self._first = 0  # of the epoch that runs
        self._running: Epochs | None = None  # what the dataset of a `fit` goes by

    @property
    def epoch(self) -> int:
        """The epoch that comes next, or is being gone through: the `initial_epoch` of a `fit`."""
        return self._step // self._epochs.steps

    def state_dict(self) -> dict[str, Any]:
        """The position, as a dict of plain values: the state of a `Batches` over the same samples."""
        return self._epochs.state_dict(self._step)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was called. Raises `StateError` for a state of something else."""
        self._step = self._epochs.step_of(state)

    def fit(
        self, model: Any, dataset: Any, *, epochs: int, callbacks: Any = None, **options: Any
    ) -> keras.callbacks.History:
        """`model.fit(dataset, ...)` from this position to the end of the last of the `epochs`.

        The rest of an epoch that was begun is a `fit` of its own, of fewer steps; `callbacks` see one training all the
        same. `options` are other arguments of `model.fit`, but for `initial_epoch`, `steps_per_epoch` and `shuffle`.
        Returns the `History` of all epochs. Raises `ArgumentError` if the dataset has not one step for each batch.
        """
        if unknown := {"initial_epoch", "steps_per_epoch", "shuffle"} & options.keys():
            raise ArgumentError(f"{', '.join(sorted(unknown))} is what the position says: leave it out")
        integer("epochs", epochs, 0)
        given = callbacks if isinstance(callbacks, Sequence) else [] if callbacks is None else [callbacks]
        if not all(isinstance(one, keras.callbacks.Callback) for one in given):
            raise ArgumentTypeError(f"callbacks is {callbacks!r}, expected callbacks of Keras")
        if getattr(dataset, "mmap_ninja_epochs", self._epochs) is not self._epochs:
            raise ArgumentError("dataset is another one than that of this position")
        is_own = isinstance(dataset, MmapPyDataset)
        if is_own:  # whatever else goes through it meanwhile
            dataset = dataset.take(self._epochs.steps)
        if is_own and (dataset.workers > 1 or dataset.use_multiprocessing):
            self._build(model, dataset.take(1))
        model.stop_training = False
        history = keras.callbacks.History()
        history.on_train_begin()
        done = self._step % self._epochs.steps
        stretches = [(dataset.take(self._epochs.steps - done), self.epoch + 1)] if done else []
        stretches = [(part, last) for part, last in [*stretches, (dataset, epochs)] if self.epoch < min(last, epochs)]
        for part, last in stretches:
            if model.stop_training:
                break
            self._running = part.mmap_ninja_epochs if is_own else self._epochs
            beginning = _Beginning(self._begin, None if is_own else self._check_begun)
            how = {**options, "initial_epoch": self.epoch, "epochs": last, "shuffle": False}
            silent = ["on_train_end", *(["on_train_begin"] if history.epoch else [])]
            try:
                with _without(silent, given):
                    self._add(history, model.fit(part, callbacks=[self, *given, beginning], **how))
            finally:
                self._running = None
        if stretches:
            logs = {name: values[-1] for name, values in history.history.items()}
            for callback in given:
                callback.on_train_end(logs)
        return history

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begin an epoch where the position is. Raises `ArgumentError` where steps do not count batches."""
        if self._running is None:
            raise ArgumentError("call position.fit(model, dataset, ...), which gives this callback to model.fit itself")
        to_come = self._epochs.steps - self._step % self._epochs.steps
        if self.params.get("steps") != to_come:
            raise ArgumentError(
                f"fit has {self.params.get('steps')} steps, but {to_come} batches of the epoch are to come: there has "
                "to be one step for each batch"
            )
        self._first = self._step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the batches of this call."""
        self._step = min(self._first + batch + 1, (self.epoch + 1) * self._epochs.steps)

    @staticmethod
    def _build(model: Any, dataset: MmapPyDataset) -> None:
        """Build the model by one batch: workers of a `fit` that has to do so would keep batches for the first epoch."""
        dataset.workers, dataset.use_multiprocessing = 1, False
        model.fit(dataset, epochs=0, verbose=0, shuffle=False)

    def _begin(self) -> None:
        """Let the next iteration begin where this epoch does."""
        if self._running is not None:
            self._running.go_to(self._first)

    def _check_begun(self) -> None:
        """Refuse to count batches that nobody has asked for."""
        if self._running is not None and self._running.is_at(self._first):
            raise ArgumentError(
                "an epoch goes by without this dataset: fit has to get what to_tf_dataset has returned, or what was "
                "made of it without cache()"
            )

    @staticmethod
    def _add(history: Any, other: Any) -> None:
        history.epoch += other.epoch
        history.params = other.params
        for name, values in other.history.items():
            history.history.setdefault(name, []).extend(values)


@contextmanager
def _without(names: Sequence[str], callbacks: Sequence[Any]) -> Iterator[None]:
    """Keep Keras from calling these methods: there is one training, in however many calls of `fit`."""
    for callback, name in product(callbacks, names):
        setattr(callback, name, lambda logs=None: None)
    try:
        yield
    finally:
        for callback, name in product(callbacks, names):
            delattr(callback, name)


class _Beginning(keras.callbacks.Callback):  # type: ignore[misc]
    """The last of all callbacks: what others have gone through before the first step does not count.

    Without a strategy TensorFlow asks for the first batch in the first step, with one when the iterator is made.
    """

    def __init__(self, begin: Callable[[], None], check: Callable[[], None] | None) -> None:
        super().__init__()
        self._begin, self._check = begin, check
        self._is_new = False  # the epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begin()
        self._is_new = True

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            self._begin()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._is_new and self._check is not None:
            self._check()
        self._is_new = False
