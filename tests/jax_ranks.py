"""Goes through loaders in a process of its own, with devices of its own or as one of many, and tells what it got.

`jax_ranks.py PLAN RANK`: PLAN is a JSON file, `{"maps", "devices", "count", "address", "result", "runs": {name: run}}`:
where the maps are, how many devices each process has, how many processes there are, where the first one listens, and
what the names of the files begin with that they write. A run is `{"source", "options", "mesh", "spec", "epochs",
"state", "stop"}`: the names of the maps, in dicts and lists; the arguments of the loader (a `length` is that of the
padding, a `transform` the name of a function of NumPy); the sizes of the axes of the
mesh by name, and the axes of the partition spec; how many epochs to go through, the state to go on from, and after how
many batches to stop. Of each run it tells `{"reader", "length", "batches", "state"}`, `batches` one list an epoch of
the leaves of each batch; or `{"error": [type, message]}`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(plan: str, rank: str) -> None:
    told = json.loads(Path(plan).read_text())
    # Before the first import of JAX, which reads them then.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={told['devices']}"
    import jax

    if told["count"] > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(told["address"], told["count"], int(rank))
    found = {name: attempted(told["maps"], run) for name, run in told["runs"].items()}
    Path(f"{told['result']}.{rank}").write_text(json.dumps(found))


def attempted(maps: str, run: dict[str, Any]) -> dict[str, Any]:
    """What came of a run."""
    try:
        return gone_through(maps, run)
    except Exception as error:
        return {"error": [type(error).__name__, str(error)]}


def gone_through(maps: str, run: dict[str, Any]) -> dict[str, Any]:
    """What one process got."""
    import numpy as np

    from mmap_ninja import Padding
    from mmap_ninja_jax import MmapLoader

    options = dict(run["options"])
    if "length" in options:
        options["pad_value"] = Padding(length=options.pop("length"))
    if "transform" in options:
        options["transform"] = getattr(np, options["transform"])
    if run.get("mesh") is not None:
        options["sharding"] = sharding(run["mesh"], run["spec"])
    loader = MmapLoader(source(maps, run["source"]), **options)
    if run.get("state") is not None:
        loader.load_state_dict(run["state"])
    epochs: list[Any] = []
    for _ in range(run.get("epochs", 1)):
        epochs.append([])
        for number, batch in enumerate(loader, 1):
            epochs[-1].append(described(batch))
            if number == run.get("stop"):
                break
    return {"length": len(loader), "batches": epochs, "state": loader.state_dict(), "repr": repr(loader)}


def source(maps: str, names: Any) -> Any:
    """The paths of maps in dicts and tuples."""
    if isinstance(names, dict):
        return {key: source(maps, part) for key, part in names.items()}
    return tuple(source(maps, part) for part in names) if isinstance(names, list) else f"{maps}/{names}"


def sharding(mesh: dict[str, int], spec: list[Any]) -> Any:
    """Over all devices, or as many as the mesh has."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    sizes = tuple(mesh.values())
    devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    return NamedSharding(Mesh(devices, tuple(mesh)), PartitionSpec(*spec))


def described(batch: Any) -> list[Any]:
    """The leaves of a batch: of each array what is where, and its sum over all processes; others as they are."""
    import jax
    import jax.numpy as jnp

    found = []
    for leaf in jax.tree.leaves(batch):
        if isinstance(leaf, jax.Array):
            shards = [
                {
                    "device": shard.device.id,
                    "where": [[*part.indices(size)[:2]] for part, size in zip(shard.index, leaf.shape, strict=True)],
                    "values": jax.device_get(shard.data).tolist(),
                }
                for shard in leaf.addressable_shards
            ]
            of = {"shape": leaf.shape, "dtype": leaf.dtype.name, "devices": len(leaf.sharding.device_set)}
            found.append({**of, "shards": shards, "sum": float(jax.jit(jnp.sum)(leaf))})
        else:
            found.append(leaf)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
