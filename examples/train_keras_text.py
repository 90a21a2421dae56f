"""Learns which package of the standard library a piece of code is from, with Keras, from samples of any length.

Run it from anywhere: `python examples/train_keras_text.py`. It converts the sources once, into one row of tokens for
each 20 lines, and goes through them in ragged tensors, in which nothing is filled up. The pieces to be checked are from
files that it has not learned from. It fails if it is not far better than naming the most frequent package.
"""

from __future__ import annotations

import argparse
import re
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from mmap_ninja import DenseMmap, RaggedMmap, open_map, select
from mmap_ninja.errors import MapNotFoundError
from mmap_ninja_tf import to_tf_dataset

BUILD = Path(__file__).resolve().parents[1] / "build"
PACKAGES = ["asyncio", "email", "importlib", "multiprocessing", "unittest"]
LINES = 20  # a piece
TOKENS = 8192  # how many the model tells apart
BATCH_SIZE = 64
LEAST = 0.2  # what has to be won over the most frequent package


def main() -> None:
    parser = argparse.ArgumentParser(description="A small network that learns where a piece of code is from.")
    parser.add_argument("--folder", type=Path, default=BUILD / "train_keras_text", help="where all of it goes")
    parser.add_argument("--epochs", type=int, default=5, help="how often to go through the pieces (5)")
    args = parser.parse_args()

    keras.utils.set_random_seed(0)
    tf.config.threading.set_intra_op_parallelism_threads(1)  # more would only wait for one another
    train, held_out = pieces(args.folder)
    frequent = most_frequent(held_out[1])
    print(f"Naming the most frequent package is right for {frequent:.1%} of the pieces in the validation set.")

    batches, validation = to_tf_dataset(train, BATCH_SIZE, shuffle=True, seed=1), to_tf_dataset(held_out, 256)
    model, loss = Network(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss, metrics=["accuracy"])
    printing = keras.callbacks.LambdaCallback(on_epoch_end=report)
    # `shuffle=False`: the batches come shuffled already; Keras would warn that it cannot do it.
    model.fit(batches, epochs=args.epochs, validation_data=validation, callbacks=[printing], shuffle=False, verbose=0)
    if model.evaluate(validation, return_dict=True, verbose=0)["accuracy"] < frequent + LEAST:
        sys.exit(f"Expected more than {frequent + LEAST:.1%}.")


class Network(keras.Model):
    """Scores for each package, `(b, 5)`, from ragged tensors of tokens, `(b, None)`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = layers.Embedding(TOKENS, 32)
        self.hidden = layers.Dense(64, activation="gelu")
        self.scores = layers.Dense(len(PACKAGES))

    def call(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        # Most layers of Keras take no ragged tensor, but the tokens of all pieces end to end: (n,), (n, 32), (n, 64).
        features = self.hidden(self.embedding(tokens.values))
        return self.scores(tf.reduce_max(tokens.with_values(features), axis=1))


def pieces(folder: Path) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Tokens and packages, to learn from and to check; the first call converts them."""
    try:
        file = open_map(folder / "file")  # written last: where it is, the others are, too
    except MapNotFoundError:
        tokens, packages, files = zip(*tokenized(), strict=True)
        RaggedMmap.from_lists(folder / "tokens", list(tokens))
        DenseMmap.from_ndarray(folder / "package", np.array(packages))
        file = DenseMmap.from_ndarray(folder / "file", np.array(files))
    tokens, package = open_map(folder / "tokens"), open_map(folder / "package")
    is_checked = file[:] % 4 == 0  # every fourth file, as a whole
    parts = [(select(tokens, mask), select(package, mask)) for mask in (~is_checked, is_checked)]
    return parts[0], parts[1]


def tokenized() -> Iterator[tuple[np.ndarray, int, int]]:
    """The tokens of each piece, int32, the number of its package and that of its file."""
    library = Path(sysconfig.get_path("stdlib"))
    sources = [(k, path) for k, name in enumerate(PACKAGES) for path in sorted((library / name).rglob("*.py"))]
    for file, (package, path) in enumerate(sources):
        lines = path.read_text(encoding="utf-8").splitlines()
        for start in range(0, len(lines), LINES):
            words = re.findall(r"\w+|[^\w\s]", "\n".join(lines[start : start + LINES]))
            if words:
                # By its checksum, each word has the same number in every run, without a vocabulary.
                yield np.array([zlib.crc32(word.encode()) % TOKENS for word in words], np.int32), package, file


def most_frequent(packages: Any) -> float:
    """The part of the pieces that are from the package that most are from."""
    return np.bincount(packages[:]).max() / len(packages)


def report(epoch: int, logs: dict[str, float]) -> None:
    """Print how an epoch went."""
    print(f"epoch {epoch + 1}: loss {logs['loss']:.4f}, validation accuracy {logs['val_accuracy']:.1%}")


if __name__ == "__main__":
    main()
