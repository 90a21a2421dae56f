"""Learns handwritten digits with JAX from a map: trains, validates, stops in the middle of an epoch and goes on.

Run it from anywhere: `python examples/train_jax.py`. It converts the digits of scikit-learn once, takes a few seconds
on a CPU, and fails if it reads 95 % or less of the digits that it has not learned from.

With `--stop-after 100` it stops after 100 batches, in the third epoch; the same command once more goes on from there,
and ends with exactly the weights of a run that was not stopped. Each run prints a checksum of its weights, to be
compared.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmap_ninja import DenseMmap, ReaderShard, open_map, split
from mmap_ninja.errors import MapNotFoundError
from mmap_ninja_jax import MmapLoader

BUILD = Path(__file__).resolve().parents[1] / "build"
BATCH_SIZE = 32
CHECKPOINT_EVERY = 30  # batches; an epoch has 44
LEAST = 0.95  # of the digits in the validation set have to be read right

optimizer = optax.adam(2e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description="A small network that learns to read handwritten digits.")
    parser.add_argument("--folder", type=Path, default=BUILD / "train_jax", help="where all of it goes")
    parser.add_argument("--epochs", type=int, default=10, help="how often to go through the digits (10)")
    parser.add_argument("--stop-after", type=int, help="how many batches to stop after; the next run goes on")
    args = parser.parse_args()

    train, validation = digits(args.folder)
    batches = MmapLoader(train, BATCH_SIZE, shuffle=True, seed=1, drop_last=True)  # one shape: compiled once
    weights = network(jax.random.key(0))
    state = optimizer.init(weights)

    step, checkpoint = 0, args.folder / "checkpoint.pkl"
    if checkpoint.exists():
        weights, state, step = load(checkpoint, batches)
    for epoch in range(batches.epoch, args.epochs):
        losses = []
        for images, labels in batches:
            weights, state, loss = learn(weights, state, images, labels)
            losses.append(loss)
            step += 1
            if step % CHECKPOINT_EVERY == 0 or step == args.stop_after:
                save(checkpoint, weights, state, step, batches)
            if step == args.stop_after:
                print(f"Stopped after {step} batches, in epoch {epoch + 1}; the same command goes on from there.")
                return
        loss = sum(map(float, losses)) / max(len(losses), 1)
        print(f"epoch {epoch + 1:2}: loss {loss:.4f}, validation accuracy {accuracy(weights, validation):.1%}")
    finish(args.folder, weights, accuracy(weights, validation))


def network(key: jax.Array) -> list[dict[str, jax.Array]]:
    """The weights of each layer, at random."""
    sizes, initial = [(64, 256), (256, 128), (128, 10)], jax.nn.initializers.he_normal()
    keys = jax.random.split(key, len(sizes))
    return [{"w": initial(one, size), "b": jnp.zeros(size[1])} for one, size in zip(keys, sizes, strict=True)]


def scores(weights: Any, images: jax.Array) -> jax.Array:
    """For each of ten digits, `(b, 10)`, from images `(b, 8, 8)`."""
    *hidden, last = weights
    features = images.reshape(len(images), -1)
    for layer in hidden:
        features = jax.nn.gelu(jax.nn.standardize(features @ layer["w"] + layer["b"]))
    return features @ last["w"] + last["b"]


@jax.jit
def learn(weights: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any, jax.Array]:
    """Take one step: new weights, the state of the optimizer, and the loss before it."""

    def mean_loss(weights: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(scores(weights, images), labels).mean()

    loss, slopes = jax.value_and_grad(mean_loss)(weights)
    updates, state = optimizer.update(slopes, state)
    return optax.apply_updates(weights, updates), state, loss


@jax.jit
def read_right(weights: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """How many of the images are given their label."""
    return (scores(weights, images).argmax(1) == labels).sum()


def accuracy(weights: Any, batches: MmapLoader) -> float:
    """The part of the images that are given their label."""
    found = [(int(read_right(weights, images, labels)), len(labels)) for images, labels in batches]
    right, seen = map(sum, zip(*found, strict=True))
    return right / seen


def digits(folder: Path) -> tuple[tuple[Any, Any], MmapLoader]:
    """Images and labels to learn from, and a loader of the others; the first call converts them."""
    try:
        labels = open_map(folder / "labels")  # written last: where they are, the images are, too
    except MapNotFoundError:
        from sklearn.datasets import load_digits  # here, because it takes a second that only the first run has to spend

        found = load_digits()
        DenseMmap.from_ndarray(folder / "images", (found.images / 16).astype("float32"))
        labels = DenseMmap.from_ndarray(folder / "labels", found.target.astype("int32"))
    images = open_map(folder / "images")
    # One seed and one length: both maps are split alike.
    train, validation = zip(split(images, (0.8, 0.2), seed=0), split(labels, (0.8, 0.2), seed=0), strict=True)
    # Where there are several processes, each has all of the validation set, not its part.
    return train, MmapLoader(validation, 256, shard=ReaderShard())


def save(checkpoint: Path, weights: Any, state: Any, step: int, batches: MmapLoader) -> None:
    """Replace the checkpoint in one move, so that there is always a whole one."""
    held = {"model": jax.device_get((weights, state)), "step": step, "position": batches.state_dict()}
    checkpoint.with_suffix(".new").write_bytes(pickle.dumps(held))
    os.replace(checkpoint.with_suffix(".new"), checkpoint)


def load(checkpoint: Path, batches: MmapLoader) -> tuple[Any, Any, int]:
    """Go to where the checkpoint was saved: weights, the state of the optimizer, how many batches that was after."""
    held = pickle.loads(checkpoint.read_bytes())
    batches.load_state_dict(held["position"])
    print(f"Going on after {held['step']} batches.")
    return *jax.device_put(held["model"]), held["step"]


def finish(folder: Path, weights: Any, reached: float) -> None:
    """Save the weights, and fail if they are not good enough. The next run begins anew."""
    arrays = [np.asarray(array) for array in jax.tree.leaves(weights)]
    np.savez(folder / "weights.npz", *arrays)
    (folder / "checkpoint.pkl").unlink(missing_ok=True)
    checksum = zlib.crc32(b"".join(array.tobytes() for array in arrays))
    print(f"Reads {reached:.1%} of the digits in the validation set; checksum of the weights: {checksum:08x}")
    if reached <= LEAST:
        sys.exit(f"Expected more than {LEAST:.0%}.")


if __name__ == "__main__":
    main()
