"""MmapLoader over several devices of one process, and of two processes that share each batch."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the adapter for JAX needs it")

import adapter_data  # noqa: E402
from adapter_data import DENSE, TEXTS  # noqa: E402
from jax_data import NARROW, epoch_of, plain  # noqa: E402
from mmap_ninja import DenseMmap, Padding, open_map  # noqa: E402
from mmap_ninja_jax import MmapLoader  # noqa: E402

maps = adapter_data.maps
Result = list[dict[str, Any]]  # what each process tells, by the name of the run

SIZE, STOP = 8, 1  # samples in a global batch, and batches after which a run is left
DATA, GRID = {"data": 4}, {"data": 2, "model": 2}


def run(source: Any, mesh: Any = DATA, spec: Any = ("data",), **told: Any) -> dict[str, Any]:
    """What a process is told: options of the loader, and when to stop."""
    control = {key: told.pop(key) for key in ("epochs", "state", "stop") if key in told}
    options = {"batch_size": SIZE, "drop_last": True, **told}
    return {"source": source, "mesh": mesh, "spec": spec, "options": options, **control}


def launched(folder: Path, maps: Path, devices: int, count: int, runs: dict[str, Any]) -> Result:
    """The runs in `count` processes with so many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    plan = {"maps": str(maps), "devices": devices, "count": count, "address": address, "runs": runs}
    (folder / "plan.json").write_text(json.dumps({**plan, "result": str(folder / "result")}))
    command = [sys.executable, str(Path(__file__).with_name("jax_ranks.py")), str(folder / "plan.json")]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen([*command, str(k)], env=dict(os.environ), **pipes) for k in range(count)]
    try:
        for process in started:
            printed, _ = process.communicate(timeout=120)
            assert process.returncode == 0, printed
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return [json.loads((folder / f"result.{k}").read_text()) for k in range(count)]


def leaves(batch: Any) -> list[Any]:
    """The leaves of a batch of the core, as the adapter has them: of `Padded` without the shapes."""
    if hasattr(batch, "lengths"):
        return [batch.values, batch.lengths.astype(np.int32)]
    if isinstance(batch, dict):
        return [leaf for key in sorted(batch) for leaf in leaves(batch[key])]  # JAX goes by the names
    return [leaf for part in batch for leaf in leaves(part)] if isinstance(batch, tuple | list) else [batch]


def check_leaf(ranks: tuple[Any, ...], expected: Any, devices: int) -> None:
    """Each device has what its place in the array of all processes says, and all places are taken."""
    if not isinstance(expected, np.ndarray):
        assert [*ranks] == [expected] * len(ranks)
        return
    held, covered = [], np.zeros(expected.shape, bool)
    for found in ranks:
        assert (found["shape"], found["devices"]) == ([*expected.shape], devices)
        assert found["dtype"] == NARROW.get(expected.dtype.name, expected.dtype.name)
        assert found["sum"] == float(expected.sum())
        for shard in found["shards"]:
            place = tuple(slice(*ends) for ends in shard["where"])
            assert shard["values"] == expected[place].tolist()
            held.append(shard["device"])
            covered[place] = True
    assert len(held) == len({*held}) == devices
    assert covered.all()


def check_batches(results: Result, name: str, expected: list[Any], devices: int = 4, epoch: int = 0) -> None:
    """The batches of a run, put together of all processes, are those."""
    runs = [result[name] for result in results]
    assert not [run["error"] for run in runs if "error" in run]
    for parts, batch in zip(zip(*(run["batches"][epoch] for run in runs), strict=True), expected, strict=True):
        for ranks, leaf in zip(zip(*parts, strict=True), leaves(batch), strict=True):
            check_leaf(ranks, leaf, devices)


# --- four devices

PAIRS = ["points", "labels"]
ALL = {"points": "points", "labels": "labels", "clips": "clips", "texts": "texts"}
SPECS: dict[str, Any] = {
    "one axis": (DATA, ["data"]),
    "two axes, of which labels have one": (DATA, ["data", None]),
    "a mesh of two axes": (GRID, ["data"]),
    "both axes of a mesh": (GRID, ["data", "model"]),
    "both axes of a mesh on the first of the array": (GRID, [["data", "model"]]),
    "the other axis of a mesh": (GRID, ["model"]),
    "replicated": (DATA, []),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a batch size": (run("points", batch_size=6), "batch_size is 6, which sharding= cannot divide"),
    "a batch size for a grid": (run("points", GRID, [[*GRID]], batch_size=2), "batch_size is 2, which sharding= can"),
    "a last batch": (run("points", drop_last=False), "the last batch .* has 7 samples.* give drop_last=True"),
    "lists": (run(["points", "rows"], layout="list"), r"source\[1\]: layout='list'"),
    "lists of what is made": (run("rows", transform="copy", layout="list"), "layout='list'"),
    "an axis of samples": (run(["labels", "big points"], spec=[None, "data"]), r"source\[1\]"),
}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, maps: Path) -> Result:
    """One process with four devices."""
    DenseMmap.from_ndarray(maps / "twenty", DENSE["points"][:20], sync=False)
    runs = {
        **{name: run(PAIRS, mesh, spec, shuffle=True, epochs=2) for name, (mesh, spec) in SPECS.items()},
        **{f"all, {name}": run(ALL, mesh, spec) for name, (mesh, spec) in SPECS.items() if len(spec) < 2},
        "a last batch of four": run("twenty", drop_last=False),
        "a replicated last batch": run("points", spec=[], drop_last=False),
        "one device": run("points", None),
        "two devices": run("points", {"data": 2}),
        "no thread": run("points", prefetch=0),
        "buckets": run("rows", buckets=[4, 16]),
        **{f"not {name}": refused for name, (refused, _) in REFUSED.items()},
    }
    return launched(tmp_path_factory.mktemp("four"), maps, 4, 1, runs)


@pytest.mark.parametrize("name", SPECS)
def test_each_device_has_its_part_of_the_batch(four: Result, maps: Path, name: str) -> None:
    for epoch in range(2):
        expected = epoch_of((maps / "points", maps / "labels"), SIZE, epoch, shuffle=True, drop_last=True)
        check_batches(four, name, expected, epoch=epoch)


@pytest.mark.parametrize("name", [name for name, (_, spec) in SPECS.items() if len(spec) < 2])
def test_parts_of_a_batch_are_divided_alike_and_texts_are_not(four: Result, maps: Path, name: str) -> None:
    source = {key: maps / part for key, part in ALL.items()}
    check_batches(four, f"all, {name}", epoch_of(source, SIZE, drop_last=True))


OTHERS: dict[str, tuple[str, int, dict[str, Any]]] = {  # the map, how many devices, and options of the oracle
    "a last batch of four": ("twenty", 4, {}),
    "a replicated last batch": ("points", 4, {}),
    "one device": ("points", 1, {"drop_last": True}),
    "two devices": ("points", 2, {"drop_last": True}),
    "no thread": ("points", 4, {"drop_last": True}),
    "buckets": ("rows", 4, {"drop_last": True, "pad_value": Padding(buckets=(4, 16))}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_batches_over_devices(four: Result, maps: Path, name: str) -> None:
    source, devices, options = OTHERS[name]
    check_batches(four, name, epoch_of(maps / source, SIZE, **options), devices)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_sharding_cannot_divide_is_refused(four: Result, name: str) -> None:
    kind, message = four[0][f"not {name}"]["error"]
    assert kind == "ArgumentError"
    assert re.search(REFUSED[name][1], message), message


# --- two processes

GLOBAL: dict[str, dict[str, Any]] = {
    "one axis": run(PAIRS, epochs=2, shuffle=True),
    "the axis of the processes": run(PAIRS, GRID, ["data"], epochs=2, shuffle=True),
    "the axis within the processes": run(PAIRS, GRID, ["model"], epochs=2, shuffle=True),
    "replicated": run(PAIRS, DATA, [], epochs=2, shuffle=True),
}
PADDED: dict[str, tuple[dict[str, Any], Any]] = {  # to one shape in all processes, and how that is said to the core
    "to one length": (run("rows", shuffle=True, length=6), Padding(length=6)),
    "to one bucket": (run("rows", shuffle=True, buckets=[8]), Padding(length=8)),
    "without a need": (run("even", shuffle=True), 0),
    "in both processes": (run("rows", GRID, ["model"], shuffle=True), 0),
    "to the longest of the batch": (run("rows", shuffle=True), 0),
    "to the longest on another axis": (run({"a": "labels", "b": "grids"}, length=[4, None]), Padding(length=(4, None))),
    "to the bucket of the batch": (run("rows", shuffle=True, buckets=[2, 8]), Padding(buckets=(2, 8))),
}
NOT_PADDED = {  # and what is said of it
    "what is made": (run("rows", transform="copy", layout="padded"), r"each process would pad .*Padding\(length="),
    "made to an open length": (run("grids", transform="copy", layout="padded", length=[4, None]), "each process would"),
    "made of two axes": (run("grids", transform="copy", layout="padded", length=4), "one entry for each of the 2 axes"),
}
STOPPED = {"shuffle": True, "seed": 5, "stop": STOP}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, maps: Path) -> Result:
    """Two processes with two devices each."""
    state = {**MmapLoader(maps / "labels", SIZE, shuffle=True, seed=5).state_dict(), "samples_seen": SIZE}
    runs = {
        **GLOBAL,
        **{f"padded {name}": told for name, (told, _) in PADDED.items()},
        **{f"not padded {name}": told for name, (told, _) in NOT_PADDED.items()},
        "filled up": run("rows", drop_last=False),
        "stopped": run("labels", **STOPPED),
        "without a sharding": run(PAIRS, None, drop_last=False, epochs=2, shuffle=True),
        "texts": run("texts", None, drop_last=False),
        "resumed": run("labels", state=state, shuffle=True, seed=5),
    }
    return launched(tmp_path_factory.mktemp("two"), maps, 2, 2, runs)


@pytest.mark.parametrize("name", GLOBAL)
def test_two_processes_make_the_global_batches_of_one(two: Result, maps: Path, name: str) -> None:
    for epoch in range(2):
        expected = epoch_of((maps / "points", maps / "labels"), SIZE, epoch, shuffle=True, drop_last=True)
        check_batches(two, name, expected, epoch=epoch)


@pytest.mark.parametrize(
    ("name", "parts"), [("one axis", 2), ("the axis of the processes", 2), ("the axis within the processes", 1)]
)
def test_each_process_reads_what_its_devices_hold(two: Result, name: str, parts: int) -> None:
    for k, result in enumerate(two):
        assert f"ReaderShard(index={k % parts}, count={parts})" in result[name]["repr"]


@pytest.mark.parametrize("name", PADDED)
def test_what_gets_one_shape_in_all_processes_is_padded(two: Result, maps: Path, name: str) -> None:
    told, pad_value = PADDED[name]
    names, shuffle = told["source"], told["options"].get("shuffle", False)
    source = {key: maps / part for key, part in names.items()} if isinstance(names, dict) else maps / names
    expected = epoch_of(source, SIZE, shuffle=shuffle, drop_last=True, pad_value=pad_value)
    check_batches(two, f"padded {name}", expected)


@pytest.mark.parametrize("name", NOT_PADDED)
def test_what_each_process_would_pad_to_a_shape_of_its_own_is_refused(two: Result, name: str) -> None:
    for result in two:
        kind, message = result[f"not padded {name}"]["error"]
        assert kind == "ArgumentError"
        assert re.search(NOT_PADDED[name][1], message), message


def test_a_last_batch_that_is_filled_up_is_one_global_batch(two: Result, maps: Path) -> None:
    order = [[*range(8)], [*range(8, 16)], [*range(16, 23), 0]]  # with the sample that the epoch began with
    m = open_map(maps / "rows")
    check_batches(two, "filled up", [m.take_padded(batch) for batch in order])


def of_each(results: Result, name: str, leaf: int = 0, epoch: int = 0) -> list[list[list[Any]]]:
    """What a leaf of each batch is in each process, which has it on one device."""
    found = []
    for result in results:
        assert all(len(batch[leaf]["shards"]) == 1 for batch in result[name]["batches"][epoch])
        found.append([batch[leaf]["shards"][0]["values"] for batch in result[name]["batches"][epoch]])
    return found


def test_without_a_sharding_the_processes_share_each_batch(two: Result, maps: Path) -> None:
    assert [result["without a sharding"]["length"] for result in two] == [3, 3]
    for epoch in range(2):
        expected = epoch_of((maps / "points", maps / "labels"), SIZE, epoch, shuffle=True)
        for leaf in range(2):
            parts = zip(*of_each(two, "without a sharding", leaf, epoch), strict=True)
            for (first, second), batch in zip(parts, expected, strict=True):
                assert len(first) == len(second)
                joined = first + second
                assert joined[: len(batch[leaf])] == batch[leaf].tolist()  # the last one is filled up to eight
                assert len(joined) == SIZE


def test_texts_of_a_process_are_its_part(two: Result) -> None:
    of_ranks = [result["texts"]["batches"][0] for result in two]
    joined = [text for parts in zip(*of_ranks, strict=True) for part in parts for text in part]
    assert joined == [*TEXTS, TEXTS[0]]


def test_one_process_goes_on_where_two_were_stopped(two: Result, maps: Path) -> None:
    states = [result["stopped"]["state"] for result in two]
    assert states == [states[0]] * 2
    assert states[0]["samples_seen"] == SIZE * STOP
    loader = MmapLoader(maps / "labels", SIZE, shuffle=True, seed=5, drop_last=True)
    expected = plain(list(loader))
    check_batches(two, "stopped", [np.array(batch) for batch in expected[:STOP]])
    loader.load_state_dict(states[0])
    assert plain(list(loader)) == expected[STOP:]


def test_two_processes_go_on_where_one_was_stopped(two: Result, maps: Path) -> None:
    expected = epoch_of(maps / "labels", SIZE, shuffle=True, seed=5, drop_last=True)
    check_batches(two, "resumed", expected[1:])
