"""What each process does that `torchrun` has started: goes through loaders, and tells which samples it got.

`torchrun ... torch_ranks.py PLAN RESULT`: PLAN is a JSON file, `{"map": path, "runs": {name: run}}`. A run is
`{"kind", "options", "epochs", "state", "stop"}`: what to make with these options, how many epochs to go through, the
state to go on from, and after how many batches of an epoch to stop. RESULT is the JSON file that rank 0 writes: for
each run `{"lengths", "batches", "states"}` of the ranks, `batches` one list an epoch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader

from mmap_ninja_torch import MmapDataset, MmapLoader, OrderBatchSampler


def made(kind: str, folder: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """What has the state, and what is iterated over."""
    if kind == "loader":
        loader = MmapLoader(folder, **options)
        return loader, loader
    dataset = MmapDataset(folder)
    sampler = OrderBatchSampler(dataset, **options)
    return sampler, DataLoader(dataset, batch_sampler=sampler)


def gone_through(folder: str, run: dict[str, Any]) -> dict[str, Any]:
    """What one rank got."""
    stateful, loader = made(run["kind"], folder, run["options"])
    if run.get("state") is not None:
        stateful.load_state_dict(run["state"])
    epochs = []
    for _ in range(run["epochs"]):
        epochs.append([])
        for number, batch in enumerate(loader, 1):
            epochs[-1].append(batch.tolist())
            distributed.all_reduce(torch.ones(1))  # in step, as training is: with batches missing this would hang
            if number == run.get("stop"):
                break
    return {"length": len(loader), "batches": epochs, "state": stateful.state_dict()}


def main(plan: str, result: str) -> None:
    distributed.init_process_group("gloo")
    found = {}
    told = json.loads(Path(plan).read_text())
    for name, run in told["runs"].items():
        ranks: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(ranks, gone_through(told["map"], run))
        found[name] = {
            "lengths": [rank["length"] for rank in ranks],
            "batches": [rank["batches"] for rank in ranks],
            "states": [rank["state"] for rank in ranks],
        }
    if distributed.get_rank() == 0:
        Path(result).write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
