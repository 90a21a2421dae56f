"""Processes that `torchrun` starts share the batches of one, and go on with another number of them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from mmap_ninja import DenseMmap  # noqa: E402
from mmap_ninja_torch import MmapLoader  # noqa: E402

if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this build of torch has no gloo", allow_module_level=True)

N = 101
GLOBAL = 12  # samples a batch of all processes together
STOP = 3  # batches, after which a run is left
EPOCHS = 2
KINDS = list(itertools.product(["loader", "sampler"], [True, False]))  # and drop_last

Result = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map whose samples are their own numbers."""
    folder = tmp_path_factory.mktemp("maps") / "numbers"
    DenseMmap.from_ndarray(folder, np.arange(N))
    return folder


def launched(folder: Path, count: int, numbers: Path, runs: dict[str, Any]) -> Result:
    """The runs in `count` processes."""
    (folder / "plan.json").write_text(json.dumps({"map": str(numbers), "runs": runs}))
    script = Path(__file__).with_name("torch_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(script)]
    done = subprocess.run(
        [*command, str(folder / "plan.json"), str(folder / "result.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "result.json").read_text())


def runs(count: int, state: Any = None) -> dict[str, Any]:
    """What is shown of any number of processes."""
    plans = {}
    for kind, drop_last in KINDS:
        options = {"batch_size": GLOBAL // count, "shuffle": True, "seed": 5, "drop_last": drop_last}
        plans[f"{kind} {drop_last}"] = {"kind": kind, "options": options, "epochs": EPOCHS}
        plans[f"{kind} {drop_last} stopped"] = {"kind": kind, "options": options, "epochs": 1, "stop": STOP}
        if state is not None:
            more = {"epochs": 1, "state": state[f"{kind} {drop_last} stopped"]}
            plans[f"{kind} {drop_last} resumed"] = {"kind": kind, "options": options, **more}
            plans[f"{kind} {drop_last} resumed stopped"] = {"kind": kind, "options": options, **more, "stop": 2}
    return plans


def states(result: Result) -> dict[str, Any]:
    """The state of each run, which is the same in all processes."""
    for name, run in result.items():
        assert all(state == run["states"][0] for state in run["states"]), name
    return {name: run["states"][0] for name, run in result.items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, numbers: Path) -> Result:
    return launched(tmp_path_factory.mktemp("two"), 2, numbers, runs(2))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, numbers: Path, two: Result) -> Result:
    """Three processes, some of which go on where the two were stopped."""
    return launched(tmp_path_factory.mktemp("three"), 3, numbers, runs(3, states(two)))


def alone(numbers: Path, drop_last: bool) -> MmapLoader:
    """What one process has, of the same global batch."""
    return MmapLoader(numbers, GLOBAL, shuffle=True, seed=5, drop_last=drop_last)


def batches(loader: Any) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


def check_shared(of_ranks: list[list[list[int]]], expected: list[list[int]], drop_last: bool) -> None:
    """The parts of each batch: equally many and large, disjoint, and complete."""
    assert {len(found) for found in of_ranks} == {len(expected)}
    for parts, batch in zip(zip(*of_ranks, strict=True), expected, strict=True):
        assert len({len(part) for part in parts}) == 1
        joined = list(itertools.chain(*parts))
        assert set(batch) <= set(joined)
        if len(batch) == GLOBAL:
            assert sorted(joined) == sorted(batch)
        else:  # filled up
            assert not drop_last
            assert 0 <= len(joined) - len(batch) < len(parts)
        assert joined[: len(batch)] == batch  # the ranks one after the other have the very order of one process


every_run = pytest.mark.parametrize(
    ("kind", "drop_last"), list(itertools.product(["loader", "sampler"], [True, False]))
)


@pytest.mark.parametrize("count", [2, 3])
@every_run
def test_each_global_batch_is_that_of_one_process(
    request: pytest.FixtureRequest, numbers: Path, count: int, kind: str, drop_last: bool
) -> None:
    run = request.getfixturevalue({2: "two", 3: "three"}[count])[f"{kind} {drop_last}"]
    one = alone(numbers, drop_last)
    assert run["lengths"] == [len(one)] * count
    for epoch in range(EPOCHS):
        expected = batches(one)
        check_shared([of_rank[epoch] for of_rank in run["batches"]], expected, drop_last)
        seen = set(itertools.chain(*(batch for of_rank in run["batches"] for batch in of_rank[epoch])))
        assert len(seen) == (N // GLOBAL * GLOBAL if drop_last else N)


def test_epochs_are_in_different_orders(two: Result) -> None:
    (first, second), _ = two["loader True"]["batches"]
    assert first != second


@every_run
def test_three_processes_go_on_where_two_were_stopped(
    two: Result, three: Result, numbers: Path, kind: str, drop_last: bool
) -> None:
    expected = batches(alone(numbers, drop_last))
    before, after = two[f"{kind} {drop_last} stopped"], three[f"{kind} {drop_last} resumed"]
    check_shared([of_rank[0] for of_rank in before["batches"]], expected[:STOP], drop_last)
    check_shared([of_rank[0] for of_rank in after["batches"]], expected[STOP:], drop_last)


@every_run
def test_one_process_goes_on_where_three_were_stopped_after_two(
    three: Result, numbers: Path, kind: str, drop_last: bool
) -> None:
    one, run = alone(numbers, drop_last), f"{kind} {drop_last} resumed stopped"
    expected = batches(one)
    check_shared([of_rank[0] for of_rank in three[run]["batches"]], expected[STOP : STOP + 2], drop_last)
    one.load_state_dict(states(three)[run])
    assert batches(one) == expected[STOP + 2 :]


def test_the_state_of_a_loader_is_that_of_a_sampler(two: Result) -> None:
    found = states(two)
    assert found["loader False stopped"]["samples_seen"] == GLOBAL * STOP
    assert found["loader False stopped"] == found["sampler False stopped"]
