"""`tf.distribute`: the replicas of all processes share the batches of one."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="the adapter for TensorFlow needs it")

from mmap_ninja import Batches, DenseMmap, ReaderShard  # noqa: E402
from mmap_ninja.errors import ArgumentError, ArgumentTypeError  # noqa: E402
from mmap_ninja_tf import to_tf_dataset  # noqa: E402

pytestmark = pytest.mark.long  # minutes on two cores; `make test-long` runs them

N, GLOBAL, EPOCHS, SEED = 101, 12, 2, 5
RUNS = {"all": {}, "complete": {"drop_last": True}, "in order": {"shuffle": False}}  # the same as in tf_ranks.py
SCRIPT = Path(__file__).with_name("tf_ranks.py")

Epochs = list[list[list[list[int]]]]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map whose samples are their own numbers."""
    folder = tmp_path_factory.mktemp("maps") / "numbers"
    DenseMmap.from_ndarray(folder, np.arange(N))
    return folder


def launched(folder: Path, kind: str, numbers: Path, configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each process found, one for each TF_CONFIG."""
    processes = []
    for rank, config in enumerate(configs):
        given = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "TF_CONFIG": json.dumps(config)}
        command = [sys.executable, str(SCRIPT), kind, str(numbers), str(folder / f"{rank}.json")]
        with (folder / f"{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=given, cwd=folder, stdout=log, stderr=log))
    try:
        for rank, process in enumerate(processes):
            assert process.wait(180) == 0, (folder / f"{rank}.log").read_text()
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(configs))]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, numbers: Path) -> list[dict[str, Any]]:
    """Two processes of a MultiWorkerMirroredStrategy."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("localhost", 0))
        other.bind(("localhost", 0))
        cluster = {"worker": [f"localhost:{free.getsockname()[1]}" for free in (one, other)]}
    configs = [{"cluster": cluster, "task": {"type": "worker", "index": rank}} for rank in range(2)]
    return launched(tmp_path_factory.mktemp("workers"), "workers", numbers, configs)


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory, numbers: Path) -> dict[str, Any]:
    """One process with two replicas."""
    return launched(tmp_path_factory.mktemp("mirrored"), "mirrored", numbers, [{}])[0]


def check_shared(of_replicas: list[Epochs], run: str, numbers: Path) -> None:
    """At each step the replicas have disjoint parts of the batch of one process; the last is filled up evenly."""
    batches = Batches(numbers, GLOBAL, **{"shuffle": True, "seed": SEED, **RUNS[run]})
    for epoch in range(EPOCHS):
        seen = []
        for replicas in of_replicas:
            assert len(replicas[epoch]) == len(batches)
        for k in range(len(batches)):
            parts = [part for replicas in of_replicas for part in replicas[epoch][k][:-1]]
            joined, expected = list(itertools.chain(*parts)), batches.batch(epoch, k).tolist()
            assert (len(parts), len({len(part) for part in parts})) == (2, 1)
            assert joined[: len(expected)] == expected
            assert len(joined) - len(expected) == len(expected) % 2
            assert [replicas[epoch][k][-1] for replicas in of_replicas] == [sum(joined)] * len(of_replicas)
            seen += joined[: len(expected)]
        assert len(seen) == len(set(seen)) == (96 if run == "complete" else N)


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_share_each_batch_of_one(workers: list[dict[str, Any]], numbers: Path, run: str) -> None:
    check_shared([found[run] for found in workers], run, numbers)


@pytest.mark.parametrize("run", RUNS)
def test_two_replicas_of_a_process_share_each_batch(mirrored: dict[str, Any], numbers: Path, run: str) -> None:
    check_shared([mirrored[run]], run, numbers)


def test_epochs_are_in_different_orders(workers: list[dict[str, Any]]) -> None:
    first, second = workers[0]["all"]
    assert first != second


def test_fit_with_a_strategy_shares_the_batches_of_a_plain_dataset(mirrored: dict[str, Any]) -> None:
    fits = mirrored["fits"]
    for name in ("together", "resumed"):
        for found, expected in zip(fits[name][0], fits["alone"][0], strict=True):
            assert np.allclose(found, expected, rtol=1e-5)
    assert fits["together"][1] == pytest.approx(fits["alone"][1], rel=1e-5)
    assert fits["plain"][1] == pytest.approx([np.arange(N).mean() / 50] * 3, rel=1e-5)  # each sample once
    assert [fits[name][2] for name in ("alone", "together", "plain", "resumed")] == [8, 8, 9, 8]


def test_fit_with_a_strategy_goes_on_where_it_was_interrupted(mirrored: dict[str, Any]) -> None:
    fits = mirrored["fits"]
    assert (fits["state"]["epoch"], fits["state"]["samples_seen"]) == (1, 3 * GLOBAL)
    assert fits["resumed"][0] == fits["together"][0]  # bit by bit
    assert fits["resumed"][1][1:] == fits["together"][1][2:]


# --- contexts made by hand


def context(pipelines: int, pipeline: int, replicas: int) -> Any:
    return tf.distribute.InputContext(pipelines, pipeline, replicas)


@pytest.mark.parametrize("options", [{}, {"drop_remainder": True}], ids=str)
def test_the_replicas_of_a_pipeline_take_turns(numbers: Path, options: dict[str, Any]) -> None:
    last = {"drop_last": bool(options)}
    for pipeline in range(2):
        dataset = to_tf_dataset(numbers, GLOBAL, shuffle=True, shard=context(2, pipeline, 4), **options)
        readers = [
            Batches(numbers, GLOBAL, shuffle=True, shard=ReaderShard(2 * pipeline + k, 4), **last) for k in range(2)
        ]
        assert dataset.cardinality().numpy() == 2 * len(readers[0])
        for epoch in range(2):
            found = [batch.numpy().tolist() for batch in dataset]
            assert found == [one.batch(epoch, k).tolist() for k in range(len(readers[0])) for one in readers]
        assert dataset.element_spec.shape.as_list() == [3 if options else None]


def test_samples_are_shared_by_the_pipelines(numbers: Path) -> None:
    datasets = [to_tf_dataset(numbers, shuffle=True, shard=context(2, pipeline, 4)) for pipeline in range(2)]
    one, other = ([int(sample) for sample in dataset] for dataset in datasets)
    assert [dataset.cardinality().numpy() for dataset in datasets] == [len(one), len(other)] == [51, 51]
    assert set(one) | set(other) == set(range(N))
    assert len(set(one) & set(other)) == 1  # the one that fills up


def test_a_context_of_one_replica_is_as_none(numbers: Path) -> None:
    alone, given = (to_tf_dataset(numbers, GLOBAL, shuffle=True, shard=shard) for shard in (None, context(1, 0, 1)))
    assert [batch.numpy().tolist() for batch in given] == [batch.numpy().tolist() for batch in alone]


@pytest.mark.parametrize("batch_size", [None, GLOBAL])
def test_it_is_not_sharded_once_more(numbers: Path, batch_size: int | None) -> None:
    dataset = to_tf_dataset(numbers, batch_size, prefetch=0)
    for made in (dataset, dataset.map(lambda x: x), to_tf_dataset(numbers, batch_size, shard=context(2, 0, 2))):
        policy = made.options().experimental_distribute.auto_shard_policy
        assert policy == tf.data.experimental.AutoShardPolicy.OFF


@pytest.mark.parametrize(
    ("batch_size", "shard", "message"),
    [
        (5, (2, 0, 2), "batch_size is 5, which 2 readers cannot share evenly: take 4 or 6"),
        (6, (2, 1, 4), "batch_size is 6, which 4 readers cannot share evenly: take 4 or 8"),
        (1, (1, 0, 2), "batch_size is 1, which 2 readers cannot share evenly: take 2"),
    ],
)
def test_a_batch_that_the_replicas_cannot_share_is_refused(
    numbers: Path, batch_size: int, shard: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        to_tf_dataset(numbers, batch_size, shard=context(*shard))


@pytest.mark.parametrize(
    "shard", [(0, 2), 1, "0/2", tf.distribute.get_strategy()], ids=["tuple", "int", "str", "other"]
)
def test_what_is_no_reader_is_refused(numbers: Path, shard: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"expected a ReaderShard\(index, count\) or a tf.distribute"):
        to_tf_dataset(numbers, GLOBAL, shard=shard)
