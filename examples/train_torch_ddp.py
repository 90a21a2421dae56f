"""Learns handwritten digits in several processes at once, each with its part of every batch.

Run it by `torchrun --nproc-per-node=2 examples/train_torch_ddp.py`, or by `python` as a single process: with any number
that divides 32, the batches of all processes together are the same ones, so the losses are the same but for rounding.
It fails if 95 % or less of the digits that it has not learned from are read right.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mmap_ninja_torch import MmapLoader
from train_torch import BATCH_SIZE, BUILD, Network, accuracy, digits, finish, learn


def main() -> None:
    parser = argparse.ArgumentParser(description="A small network that learns in several processes.")
    parser.add_argument("--folder", type=Path, default=BUILD / "train_torch_ddp", help="where all of it goes")
    parser.add_argument("--epochs", type=int, default=10, help="how often to go through the digits (10)")
    args = parser.parse_args()

    if "RANK" not in os.environ:
        train(args.folder, args.epochs, rank=0, count=1)
        return
    distributed.init_process_group("gloo")
    try:
        train(args.folder, args.epochs, distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def train(folder: Path, epochs: int, rank: int, count: int) -> None:
    if rank == 0:
        digits(folder)  # converts them, where they are not there yet
    if count > 1:
        distributed.barrier()
    part, validation = digits(folder)

    torch.manual_seed(0)
    torch.set_num_threads(1)  # more would only wait for one another, the network is that small
    network = Network()
    model: nn.Module = DistributedDataParallel(network) if count > 1 else network
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    # Which part of a batch is for this process, the loader has from torch.distributed; the seed is that of all.
    batches = MmapLoader(part, BATCH_SIZE // count, shuffle=True, seed=1, drop_last=True)
    for epoch in range(epochs):
        losses = [learn(model, optimizer, images, labels) for images, labels in batches]
        loss = mean(sum(losses) / len(losses), count)
        if rank == 0:
            print(f"epoch {epoch + 1:2}: loss {loss:.4f}, validation accuracy {accuracy(network, validation):.1%}")
    if rank == 0:
        finish(folder, network, accuracy(network, validation))


def mean(value: float, count: int) -> float:
    """That of all processes."""
    total = torch.tensor(value, dtype=torch.float64)
    if count > 1:
        distributed.all_reduce(total)
    return total.item() / count


if __name__ == "__main__":
    main()
