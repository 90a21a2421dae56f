"""Learns handwritten digits with PyTorch from a map: trains, validates, stops in the middle of an epoch and goes on.

Run it from anywhere: `python examples/train_torch.py`. It converts the digits of scikit-learn once, takes a few
seconds on a CPU, and fails if it reads 95 % or less of the digits that it has not learned from.

With `--stop-after 100` it stops after 100 batches, in the third epoch; the same command once more goes on from there,
and ends with exactly the weights of a run that was not stopped. So does `--workers 2`, which reads the same batches by
a stock DataLoader with worker processes. Each run prints a checksum of its weights, to be compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmap_ninja import DenseMmap, ReaderShard, open_map, split
from mmap_ninja.errors import MapNotFoundError
from mmap_ninja_torch import MmapDataset, MmapLoader, OrderBatchSampler

BUILD = Path(__file__).resolve().parents[1] / "build"
BATCH_SIZE = 32
CHECKPOINT_EVERY = 30  # batches; an epoch has 45
LEAST = 0.95  # of the digits in the validation set have to be read right


def main() -> None:
    parser = argparse.ArgumentParser(description="A small network that learns to read handwritten digits.")
    parser.add_argument("--folder", type=Path, default=BUILD / "train_torch", help="where all of it goes")
    parser.add_argument("--epochs", type=int, default=10, help="how often to go through the digits (10)")
    parser.add_argument("--stop-after", type=int, help="how many batches to stop after; the next run goes on")
    parser.add_argument("--workers", type=int, help="read with a DataLoader with so many worker processes")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # more would only wait for one another, the network is that small
    train, validation = digits(args.folder)
    batches, order = loader(train, args.workers)
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    checkpoint = args.folder / "checkpoint.pt"
    step = load(checkpoint, model, optimizer, order) if checkpoint.exists() else 0
    for epoch in range(order.epoch, args.epochs):
        losses = []
        for images, labels in batches:
            losses.append(learn(model, optimizer, images, labels))
            step += 1
            if step % CHECKPOINT_EVERY == 0 or step == args.stop_after:
                save(checkpoint, model, optimizer, position(order, step - epoch * len(order)), step)
            if step == args.stop_after:
                print(f"Stopped after {step} batches, in epoch {epoch + 1}; the same command goes on from there.")
                return
        loss = sum(losses) / max(len(losses), 1)
        print(f"epoch {epoch + 1:2}: loss {loss:.4f}, validation accuracy {accuracy(model, validation):.1%}")
    finish(args.folder, model, accuracy(model, validation))


class Network(nn.Sequential):
    """Scores for each of ten digits, `(b, 10)`, from images `(b, 1, 8, 8)`."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )


def digits(folder: Path) -> tuple[tuple[Any, Any], MmapLoader]:
    """Images and labels to learn from, and a loader of the others; the first call converts them."""
    try:
        labels = open_map(folder / "labels")  # written last: where they are, the images are, too
    except MapNotFoundError:
        from sklearn.datasets import load_digits  # here, because it takes a second that only the first run has to spend

        found = load_digits()
        images = (found.images / 16).astype("float32")[:, None]
        DenseMmap.from_ndarray(folder / "images", images)
        labels = DenseMmap.from_ndarray(folder / "labels", found.target.astype("int64"))
    images = open_map(folder / "images")
    # One seed and one length: both maps are split alike.
    train, validation = zip(split(images, (0.8, 0.2), seed=0), split(labels, (0.8, 0.2), seed=0), strict=True)
    # Where there are several processes, each has all of the validation set, not its part.
    return train, MmapLoader(validation, 256, shard=ReaderShard())


def loader(train: tuple[Any, Any], workers: int | None) -> tuple[Iterable[Any], MmapLoader | OrderBatchSampler]:
    """What gives the batches, and what knows the position in them."""
    if workers is None:
        batches = MmapLoader(train, BATCH_SIZE, shuffle=True, seed=1)
        return batches, batches
    dataset = MmapDataset(train)
    order = OrderBatchSampler(dataset, BATCH_SIZE, shuffle=True, seed=1)
    return DataLoader(dataset, batch_sampler=order, num_workers=workers, persistent_workers=workers > 0), order


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """Take one step; the loss before it."""
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(model: nn.Module, batches: MmapLoader) -> float:
    """The part of the images that are given their label."""
    return torch.cat([model(images).argmax(1) == labels for images, labels in batches]).double().mean().item()


def position(order: MmapLoader | OrderBatchSampler, seen: int) -> dict[str, Any]:
    """Where training is: worker processes have asked for more batches than the `seen` ones of this epoch."""
    return order.state_dict(seen) if isinstance(order, OrderBatchSampler) else order.state_dict()


def save(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, position: dict[str, Any], step: int
) -> None:
    """Replace the checkpoint in one move, so that there is always a whole one."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "position": position, "step": step}
    torch.save(state, checkpoint.with_suffix(".new"))
    os.replace(checkpoint.with_suffix(".new"), checkpoint)


def load(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, order: MmapLoader | OrderBatchSampler
) -> int:
    """Go to where the checkpoint was saved; how many batches that was after."""
    state = torch.load(checkpoint)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    order.load_state_dict(state["position"])
    print(f"Going on after {state['step']} batches.")
    return state["step"]


def finish(folder: Path, model: nn.Module, reached: float) -> None:
    """Save the weights, and fail if they are not good enough. The next run begins anew."""
    torch.save(model.state_dict(), folder / "weights.pt")
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    values = b"".join(weights.numpy().tobytes() for weights in model.state_dict().values())
    print(f"Reads {reached:.1%} of the digits in the validation set; checksum of the weights: {zlib.crc32(values):08x}")
    if reached <= LEAST:
        sys.exit(f"Expected more than {LEAST:.0%}.")


if __name__ == "__main__":
    main()
