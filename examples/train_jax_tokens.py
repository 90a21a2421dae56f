"""Learns which package of the standard library a piece of code is from, with JAX, from samples of any length.

Run it from anywhere: `python examples/train_jax_tokens.py`. It converts the sources once, into one row of tokens for
each 20 lines, and goes through them in padded batches of a few lengths, so that JAX compiles the training step that
often and no more: it says how often, and fails if that is more than there are lengths. The pieces to be checked are
from files that it has not learned from. It fails if it is not far better than naming the most frequent package.
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

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmap_ninja import DenseMmap, RaggedMmap, open_map, select
from mmap_ninja.errors import MapNotFoundError
from mmap_ninja_jax import MmapLoader, Padded

BUILD = Path(__file__).resolve().parents[1] / "build"
PACKAGES = ["asyncio", "email", "importlib", "multiprocessing", "unittest"]
LINES = 20  # a piece
TOKENS = 8192  # how many the model tells apart
BUCKETS = (224, 288, 384)  # lengths of padded rows; what is longer than the last one is cut off
BATCH_SIZE = 64
LEAST = 0.2  # what has to be won over the most frequent package

optimizer = optax.adam(3e-3)
compiled: list[tuple[int, ...]] = []  # shapes that the training step was compiled for


def main() -> None:
    parser = argparse.ArgumentParser(description="A small network that learns where a piece of code is from.")
    parser.add_argument("--folder", type=Path, default=BUILD / "train_jax_tokens", help="where all of it goes")
    parser.add_argument("--epochs", type=int, default=5, help="how often to go through the pieces (5)")
    args = parser.parse_args()

    train, held_out = pieces(args.folder)
    frequent = most_frequent(held_out[1])
    batches = MmapLoader(train, BATCH_SIZE, shuffle=True, seed=1, drop_last=True, buckets=BUCKETS)
    validation = MmapLoader(held_out, 256, buckets=BUCKETS[-1:])
    weights = network(jax.random.key(0))
    state = optimizer.init(weights)
    print(f"Naming the most frequent package is right for {frequent:.1%} of the pieces in the validation set.")

    right = 0.0
    for epoch in range(args.epochs):
        losses = []
        for tokens, packages in batches:
            weights, state, loss = learn(weights, state, tokens, packages)
            losses.append(loss)
        right = accuracy(weights, validation)
        print(f"epoch {epoch + 1}: loss {sum(map(float, losses)) / len(losses):.4f}, validation accuracy {right:.1%}")
    print(f"Compiled the training step {len(compiled)} times, for batches of {sorted(compiled)}.")
    if len(compiled) > len(BUCKETS):
        sys.exit(f"Expected at most {len(BUCKETS)} compilations.")
    if right < frequent + LEAST:
        sys.exit(f"Expected more than {frequent + LEAST:.1%}.")


def network(key: jax.Array) -> dict[str, jax.Array]:
    """The weights, at random."""
    shapes = {"embedding": (TOKENS, 32), "hidden": (32, 64), "scores": (64, len(PACKAGES))}
    keys, initial = jax.random.split(key, len(shapes)), jax.nn.initializers.normal(0.2)
    return {name: initial(one, shape) for one, (name, shape) in zip(keys, shapes.items(), strict=True)}


def scores(weights: Any, tokens: Padded) -> jax.Array:
    """For each package, `(b, 5)`, from tokens `(b, longest)`; what they are filled up with does not count."""
    features = jax.nn.gelu(weights["embedding"][tokens.values] @ weights["hidden"])
    is_token = jnp.arange(tokens.values.shape[1]) < tokens.lengths[:, None]
    return features.max(axis=1, where=is_token[:, :, None], initial=-1) @ weights["scores"]


@jax.jit
def learn(weights: Any, state: Any, tokens: Padded, packages: jax.Array) -> tuple[Any, Any, jax.Array]:
    """Take one step: new weights, the state of the optimizer, and the loss before it."""
    compiled.append(tokens.values.shape)  # Python comes here only when JAX compiles

    def mean_loss(weights: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(scores(weights, tokens), packages).mean()

    loss, slopes = jax.value_and_grad(mean_loss)(weights)
    updates, state = optimizer.update(slopes, state)
    return optax.apply_updates(weights, updates), state, loss


@jax.jit
def recognised(weights: Any, tokens: Padded, packages: jax.Array) -> jax.Array:
    """How many of the pieces are given their package."""
    return (scores(weights, tokens).argmax(1) == packages).sum()


def accuracy(weights: Any, batches: MmapLoader) -> float:
    """The part of the pieces that are given their package."""
    found = [(int(recognised(weights, tokens, packages)), len(packages)) for tokens, packages in batches]
    right, seen = map(sum, zip(*found, strict=True))
    return right / seen


def pieces(folder: Path) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Tokens and packages, to learn from and to check; the first call converts them."""
    try:
        file = open_map(folder / "file")  # written last: where it is, the others are, too
    except MapNotFoundError:
        tokens, packages, files = zip(*tokenized(), strict=True)
        RaggedMmap.from_lists(folder / "tokens", list(tokens))
        DenseMmap.from_ndarray(folder / "package", np.array(packages, np.int32))
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
            words = re.findall(r"\w+|[^\w\s]", "\n".join(lines[start : start + LINES]))[: BUCKETS[-1]]
            if words:
                # By its checksum, each word has the same number in every run, without a vocabulary.
                yield np.array([zlib.crc32(word.encode()) % TOKENS for word in words], np.int32), package, file


def most_frequent(packages: Any) -> float:
    """The part of the pieces that are from the package that most are from."""
    return np.bincount(packages[:]).max() / len(packages)


if __name__ == "__main__":
    main()
