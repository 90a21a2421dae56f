"""Learns which package of the standard library a piece of code is from, with PyTorch, from samples of any length.

Run it from anywhere: `python examples/train_torch_text.py`. It converts the sources once, into one row of tokens for
each 20 lines, and goes through them in nested tensors, in which nothing is filled up. The pieces to be checked are from
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

import numpy as np
import torch
from torch import Tensor, nn

from mmap_ninja import DenseMmap, RaggedMmap, open_map, select
from mmap_ninja.errors import MapNotFoundError
from mmap_ninja_torch import MmapLoader

BUILD = Path(__file__).resolve().parents[1] / "build"
PACKAGES = ["asyncio", "email", "importlib", "multiprocessing", "unittest"]
LINES = 20  # a piece
TOKENS = 8192  # how many the model tells apart
BATCH_SIZE = 64
LEAST = 0.2  # what has to be won over the most frequent package


def main() -> None:
    parser = argparse.ArgumentParser(description="A small network that learns where a piece of code is from.")
    parser.add_argument("--folder", type=Path, default=BUILD / "train_torch_text", help="where all of it goes")
    parser.add_argument("--epochs", type=int, default=5, help="how often to go through the pieces (5)")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)  # more would only wait for one another, the network is that small
    train, validation = pieces(args.folder)
    frequent = most_frequent(validation[1])
    batches = MmapLoader(train, BATCH_SIZE, shuffle=True, seed=1, layout="jagged")
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    print(f"Naming the most frequent package is right for {frequent:.1%} of the pieces in the validation set.")

    for epoch in range(args.epochs):
        losses = []
        for tokens, packages in batches:
            loss = nn.functional.cross_entropy(model(tokens), packages)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        right = accuracy(model, validation)
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.4f}, validation accuracy {right:.1%}")
    if accuracy(model, validation) < frequent + LEAST:
        sys.exit(f"Expected more than {frequent + LEAST:.1%}.")


class Network(nn.Module):
    """Scores for each package, `(b, 5)`, from nested tensors of tokens, `(b, j)`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 32)
        self.hidden = nn.Linear(32, 64)
        self.scores = nn.Linear(64, len(PACKAGES))

    def forward(self, tokens: Tensor) -> Tensor:
        features = nn.functional.gelu(self.hidden(self.embedding(tokens)))  # nested as well: (b, j, 64)
        return self.scores(features.amax(dim=1))  # the maximum, as torch 2.13 has no gradient for the mean over j


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


@torch.no_grad()
def accuracy(model: nn.Module, part: tuple[Any, Any]) -> float:
    """The part of the pieces that are given their package."""
    batches = MmapLoader(part, 256, layout="jagged")
    return torch.cat([model(tokens).argmax(1) == packages for tokens, packages in batches]).double().mean().item()


if __name__ == "__main__":
    main()
