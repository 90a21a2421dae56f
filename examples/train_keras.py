"""Learns handwritten digits with Keras from a map: trains, validates, stops in the middle of an epoch and goes on.

Run it from anywhere: `python examples/train_keras.py`. It converts the digits of scikit-learn once, takes a few
seconds on a CPU, and fails if it reads 95 % or less of the digits that it has not learned from.

With `--stop-after 100` it is interrupted after 100 batches, in the third epoch; the same command once more goes on from
there, and ends with exactly the weights of a run that was not stopped. So does `--py-dataset`, which reads the same
batches by what Keras takes on all of its backends. Each run prints a checksum of its weights, to be compared.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import zlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from mmap_ninja import DenseMmap, open_map, split
from mmap_ninja.errors import MapNotFoundError
from mmap_ninja_tf import FitPosition, MmapPyDataset, to_tf_dataset

BUILD = Path(__file__).resolve().parents[1] / "build"
BATCH_SIZE = 32
CHECKPOINT_EVERY = 30  # batches; an epoch has 45
LEAST = 0.95  # of the digits in the validation set have to be read right


def main() -> None:
    parser = argparse.ArgumentParser(description="A small network that learns to read handwritten digits.")
    parser.add_argument("--folder", type=Path, default=BUILD / "train_keras", help="where all of it goes")
    parser.add_argument("--epochs", type=int, default=10, help="how often to go through the digits (10)")
    parser.add_argument("--stop-after", type=int, help="how many batches to stop after; the next run goes on")
    parser.add_argument("--py-dataset", action="store_true", help="read with a MmapPyDataset instead of tf.data")
    args = parser.parse_args()

    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    tf.config.threading.set_intra_op_parallelism_threads(1)  # more would only wait for one another
    train, held_out = digits(args.folder)
    validation = to_tf_dataset(held_out, 256)
    batches = (MmapPyDataset if args.py_dataset else to_tf_dataset)(train, BATCH_SIZE, shuffle=True, seed=1)
    model, position = network(), FitPosition(batches)

    checkpoint = args.folder / "checkpoint.pkl"
    if checkpoint.exists():
        load(checkpoint, model, position)
    callbacks = [Saving(checkpoint, position, args.stop_after), keras.callbacks.LambdaCallback(on_epoch_end=report)]
    try:
        position.fit(model, batches, epochs=args.epochs, validation_data=validation, callbacks=callbacks, verbose=0)
    except Stopped as stopped:
        print(f"Stopped after {stopped} batches, in epoch {position.epoch + 1}; the same command goes on from there.")
        return
    finish(args.folder, model, model.evaluate(validation, return_dict=True, verbose=0)["accuracy"])


def network() -> keras.Model:
    """Scores for each of ten digits, `(b, 10)`, from images `(b, 8, 8, 1)`."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same"),
            layers.GroupNormalization(4),
            layers.ReLU(),
            layers.Conv2D(32, 3, padding="same"),
            layers.GroupNormalization(4),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.2),  # its random numbers go on, too, after a stop
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(2e-3), loss=loss, metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)  # so that there is something to load its state into
    return model


def digits(folder: Path) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Images and labels, to learn from and to check; the first call converts them."""
    try:
        labels = open_map(folder / "labels")  # written last: where they are, the images are, too
    except MapNotFoundError:
        from sklearn.datasets import load_digits  # here, because it takes a second that only the first run has to spend

        found = load_digits()
        images = (found.images / 16).astype("float32")[..., None]
        DenseMmap.from_ndarray(folder / "images", images)
        labels = DenseMmap.from_ndarray(folder / "labels", found.target.astype("int64"))
    images = open_map(folder / "images")
    # One seed and one length: both maps are split alike.
    train, held_out = zip(split(images, (0.8, 0.2), seed=0), split(labels, (0.8, 0.2), seed=0), strict=True)
    return train, held_out


class Stopped(Exception):
    """Training was interrupted after so many batches."""


class Saving(keras.callbacks.Callback):
    """Saves model and position every few batches, and interrupts training after `stop_after` of them."""

    def __init__(self, checkpoint: Path, position: FitPosition, stop_after: int | None) -> None:
        super().__init__()
        self._checkpoint, self._position, self._stop_after = checkpoint, position, stop_after

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = int(self.model.optimizer.iterations)  # of all runs
        if step % CHECKPOINT_EVERY == 0 or step == self._stop_after:
            save(self._checkpoint, self.model, self._position)
        if step == self._stop_after:
            raise Stopped(step)


def report(epoch: int, logs: dict[str, float]) -> None:
    """Print how an epoch went."""
    print(f"epoch {epoch + 1:2}: loss {logs['loss']:.4f}, validation accuracy {logs['val_accuracy']:.1%}")


def variables(model: keras.Model) -> list[Any]:
    """All that training changes: weights, the state of dropout, which `model.save` leaves out, and the optimizer's."""
    return [*model.variables, *model.optimizer.variables]


def save(checkpoint: Path, model: keras.Model, position: FitPosition) -> None:
    """Replace the checkpoint in one move, so that there is always a whole one."""
    state = {"model": [variable.numpy() for variable in variables(model)], "position": position.state_dict()}
    checkpoint.with_suffix(".new").write_bytes(pickle.dumps(state))
    os.replace(checkpoint.with_suffix(".new"), checkpoint)


def load(checkpoint: Path, model: keras.Model, position: FitPosition) -> None:
    """Go to where the checkpoint was saved."""
    state = pickle.loads(checkpoint.read_bytes())
    for variable, value in zip(variables(model), state["model"], strict=True):
        variable.assign(value)
    position.load_state_dict(state["position"])
    print(f"Going on after {int(model.optimizer.iterations)} batches.")


def finish(folder: Path, model: keras.Model, reached: float) -> None:
    """Save the weights, and fail if they are not good enough. The next run begins anew."""
    weights = model.get_weights()
    np.savez(folder / "weights.npz", *weights)
    (folder / "checkpoint.pkl").unlink(missing_ok=True)
    checksum = zlib.crc32(b"".join(values.tobytes() for values in weights))
    print(f"Reads {reached:.1%} of the digits in the validation set; checksum of the weights: {checksum:08x}")
    if reached <= LEAST:
        sys.exit(f"Expected more than {LEAST:.0%}.")


if __name__ == "__main__":
    main()
