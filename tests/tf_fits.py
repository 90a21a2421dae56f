"""Fits that are recorded, interrupted and gone on with, on whatever backend Keras has.

`tf_fits.py FUNCTION`: calls one of the functions at the end, for tests of another backend: `KERAS_BACKEND` names it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from mmap_ninja import Batches
from mmap_ninja_tf.keras import FitPosition, MmapPyDataset

N, SIZE, STEPS, EPOCHS = 22, 4, 6, 4  # samples, samples a batch, batches an epoch: the last one is of 2
X = np.eye(N, dtype=np.float32) * np.arange(1, N + 1, dtype=np.float32)  # rows whose sum tells their number
Y = np.arange(N) % 3
ORDER = {"shuffle": True, "seed": 3}
MOMENTS = [  # of an interruption, and how many batches the model was trained with then
    ("on_epoch_begin", 0, 0),
    ("on_train_batch_begin", 0, 0),
    ("on_train_batch_end", 8, 9),
    ("on_train_batch_begin", 9, 9),
    ("on_train_batch_end", 11, 12),
    ("on_epoch_end", 1, 12),
]


@keras.saving.register_keras_serializable("tests")
class Recorded(keras.Sequential):
    """A model that keeps the numbers of the samples of each batch that it was trained with."""

    def train_step(self, *given: Any) -> Any:
        numbers = keras.ops.convert_to_numpy(given[-1][0]).sum(axis=1) - 1
        vars(self).setdefault("seen", []).append(numbers.astype(int).tolist())
        return super().train_step(*given)


class Hook(keras.callbacks.Callback):
    """Calls a function in one of the hooks of Keras."""

    def __init__(self, name: str, function: Callable[[], Any]) -> None:
        super().__init__()
        setattr(self, name, lambda *_, **__: function())


def interrupt(hook: str, call: int) -> Hook:
    """Ctrl-C in a hook, at this call of it, from 0."""
    calls = iter(range(call))

    def function() -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return Hook(hook, function)


def made_model(kind: Any = Recorded, **options: Any) -> Any:
    """The same at each call; Adam, so that what was done before makes a difference."""
    start = keras.initializers.GlorotUniform(seed=1)  # set_random_seed would import TensorFlow
    model = kind([keras.Input((N,)), keras.layers.Dense(3, activation="softmax", kernel_initializer=start)])
    options = {"run_eagerly": kind is Recorded, **options}
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    model.optimizer.build(model.trainable_variables)  # else a model that was never trained cannot be loaded
    return model


def weights(model: Any) -> list[bytes]:
    """Every bit of them, and of what the optimizer knows."""
    return [keras.ops.convert_to_numpy(variable).tobytes() for variable in model.variables + model.optimizer.variables]


def numbers(epochs: Sequence[int], **options: Any) -> list[list[int]]:
    """The samples of each batch of these epochs, by the core alone."""
    batches = Batches(np.arange(N), SIZE, **{**ORDER, **options})
    return [batches.batch(epoch, k).tolist() for epoch in epochs for k in range(len(batches))]


@cache
def expected_weights() -> list[bytes]:
    """Those of a model that was trained without `fit`, with batches of the core."""
    model = made_model()
    for batch in numbers(range(EPOCHS)):
        model.train_on_batch(X[batch], Y[batch])
    return weights(model)


def as_made(dataset: Any) -> Any:
    return dataset


def stop(
    folder: Path, model: Any, position: FitPosition, dataset: Any, moment: tuple[str, int], **options: Any
) -> None:
    """Fit until Ctrl-C comes, and save model and position."""
    try:
        position.fit(model, dataset, epochs=EPOCHS, callbacks=[interrupt(*moment)], verbose=0)
    except KeyboardInterrupt:
        model.save(folder / "model.keras")
        (folder / "position.json").write_text(json.dumps(position.state_dict()))
    else:
        raise AssertionError("there was no such moment")


def resumed(folder: Path, dataset: Any) -> tuple[Any, FitPosition]:
    """The model and the position as they were saved."""
    position = FitPosition(dataset)
    position.load_state_dict(json.loads((folder / "position.json").read_text()))
    return keras.models.load_model(folder / "model.keras"), position


def check_goes_on(
    make: Callable[[], Any], hook: str, call: int, trained: int, feed: Callable[[Any], Any] = as_made
) -> None:
    """A fit that is interrupted after `trained` batches and its rest are together as one that was not."""
    with tempfile.TemporaryDirectory() as name:
        first, dataset = made_model(), make()
        stop(Path(name), first, FitPosition(dataset), feed(dataset), (hook, call))
        dataset = make()
        second, position = resumed(Path(name), dataset)
    assert position.epoch == trained // STEPS
    history = position.fit(second, feed(dataset), epochs=EPOCHS, verbose=0)
    seen = getattr(first, "seen", [])
    assert (len(seen), seen + second.seen) == (trained, numbers(range(EPOCHS)))
    assert weights(second) == expected_weights()
    assert history.epoch == list(range(trained // STEPS, EPOCHS))
    assert (position.epoch, position.state_dict()["samples_seen"]) == (EPOCHS, 0)


def py_dataset(**options: Any) -> MmapPyDataset:
    return MmapPyDataset((X, Y), SIZE, **{**ORDER, **options})


# --- what is called in a process of its own


def fits_go_on() -> None:
    """On this backend."""
    check_goes_on(py_dataset, "on_train_batch_end", 8, 9)
    check_goes_on(py_dataset, "on_epoch_end", 1, 12)


def workers_make_each_batch_once() -> None:
    """Worker threads and processes, over epochs, and from where a position is."""
    for options in ({"workers": 2}, {"workers": 2, "use_multiprocessing": True}):
        model = made_model()
        model.fit(py_dataset(), epochs=0, verbose=0)  # Keras mixes epochs of workers in a `fit` that builds a model
        model.fit(py_dataset(**options), epochs=2, shuffle=False, verbose=0)
        first, second = model.seen[:STEPS], model.seen[STEPS:]
        assert [sorted(chain(*epoch)) for epoch in (first, second)] == [list(range(N))] * 2
        assert first != second
        model, dataset = made_model(), py_dataset(**options)
        position = FitPosition(dataset)
        position.load_state_dict({**position.state_dict(), "epoch": 1, "samples_seen": 2 * SIZE})
        position.fit(model, dataset, epochs=3, verbose=0)
        assert model.seen == numbers([1, 2])[2:]  # BUG: 7


def learns() -> None:
    """`fit`, `evaluate` and `predict`, of dicts and with weights of samples."""
    source = {"image": X, "label": Y, "weight": np.ones(N, np.float32)}
    labelled = MmapPyDataset(source, SIZE, columns="image", label_cols="label", **ORDER)
    model = made_model(keras.Sequential)
    history = model.fit(labelled, epochs=30, validation_data=labelled, verbose=0)
    assert history.params["steps"] == STEPS
    assert history.history["loss"][-1] < history.history["loss"][0]
    ordered = MmapPyDataset((X, Y, np.ones(N, np.float32)), SIZE)
    loss, accuracy = model.evaluate(ordered, verbose=0)
    assert loss == pytest.approx(history.history["val_loss"][-1], rel=1e-5)
    predicted = model.predict(MmapPyDataset(X, SIZE), verbose=0)
    assert np.mean(predicted.argmax(axis=1) == Y) == pytest.approx(accuracy)
    # The adapter at least does without it; Keras itself imports it to save a model.
    assert (keras.backend.backend() == "tensorflow") == ("tensorflow" in sys.modules)


if __name__ == "__main__":
    for function in sys.argv[1:]:
        globals()[function]()
    print(keras.backend.backend())
