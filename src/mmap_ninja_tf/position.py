"""Going on with a `fit` that was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import keras

from mmap_ninja.errors import ArgumentError, ArgumentTypeError
from mmap_ninja.indexing import integer
from mmap_ninja_tf.epochs import Epochs
from mmap_ninja_tf.pydataset import MmapPyDataset


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
        given = _listed(callbacks)
        if getattr(dataset, "mmap_ninja_epochs", self._epochs) is not self._epochs:
            raise ArgumentError("dataset is another one than that of this position")
        if isinstance(dataset, MmapPyDataset):
            dataset = dataset.take(self._epochs.steps)  # whatever else goes through the one that was given
            if dataset.workers > 1 or dataset.use_multiprocessing:
                _build(model, dataset.take(1))
        model.stop_training = False
        history = keras.callbacks.History()
        history.on_train_begin()
        stretches = self._stretches(dataset, epochs)
        for part, last in stretches:
            if not model.stop_training:
                silent = ["on_train_end", *(["on_train_begin"] if history.epoch else [])]
                with _without(silent, given):
                    _add(history, self._fit(model, part, given, {**options, "epochs": last}))
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

    def _stretches(self, dataset: Any, epochs: int) -> list[tuple[Any, int]]:
        """What a `fit` each goes through, up to which epoch: the rest of one that was begun, then the others."""
        done = self._step % self._epochs.steps
        found = [(dataset.take(self._epochs.steps - done), self.epoch + 1)] if done else []
        first = self.epoch + bool(done)
        return ([*found, (dataset, epochs)] if first < epochs else found) if self.epoch < epochs else []

    def _fit(self, model: Any, part: Any, given: Sequence[Any], options: dict[str, Any]) -> Any:
        is_own = isinstance(part, MmapPyDataset)
        self._running = part.mmap_ninja_epochs if is_own else self._epochs
        callbacks = [self, *given, _Beginning(self._begin, None if is_own else self._check_begun)]
        try:
            return model.fit(part, callbacks=callbacks, initial_epoch=self.epoch, shuffle=False, **options)
        finally:
            self._running = None

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


def _listed(callbacks: Any) -> Sequence[Any]:
    """The callbacks in any of the forms that `fit` takes, but for a `CallbackList`, which takes no others."""
    found = callbacks if isinstance(callbacks, Sequence) else [] if callbacks is None else [callbacks]
    if not all(isinstance(one, keras.callbacks.Callback) for one in found):
        raise ArgumentTypeError(f"callbacks is {callbacks!r}, expected callbacks of Keras")
    return found


def _build(model: Any, dataset: MmapPyDataset) -> None:
    """Build the model by one batch: workers of a `fit` that has to do so would keep batches for the first epoch."""
    dataset.workers, dataset.use_multiprocessing = 1, False
    model.fit(dataset, epochs=0, verbose=0, shuffle=False)


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
