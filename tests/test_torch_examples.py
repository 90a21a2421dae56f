"""The examples for PyTorch do what they say: learn, stop and go on, read in several processes."""

from __future__ import annotations

import importlib
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import example_runs
from example_runs import EXAMPLES, accuracies, losses

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

run = partial(example_runs.run, OMP_NUM_THREADS="1")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def assert_same_weights(folder: Path, expected: Path) -> None:
    found: dict[str, Any] = torch.load(folder / "weights.pt")
    wanted: dict[str, Any] = torch.load(expected / "weights.pt")
    assert list(found) == list(wanted)
    for name, weights in wanted.items():
        assert torch.equal(found[name], weights), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Four epochs without a stop: their folder, and what was printed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run("train_torch.py", "--folder", folder, "--epochs", 4)


def test_digits_are_read_right(whole: tuple[Path, str]) -> None:
    _, printed = whole
    reached = accuracies(printed)
    assert len(reached) == 4
    assert reached[-1] > 95
    assert f"Reads {reached[-1]}% of the digits" in printed


def test_a_run_stopped_in_an_epoch_goes_on_to_the_same_weights(whole: tuple[Path, str], tmp_path: Path) -> None:
    command = ["train_torch.py", "--folder", tmp_path, "--epochs", 4, "--stop-after", 100]
    assert "Stopped after 100 batches" in run(*command)
    assert not (tmp_path / "weights.pt").exists()
    printed = run(*command)
    assert "Going on after 100 batches" in printed
    assert accuracies(printed) == accuracies(whole[1])[2:]
    assert_same_weights(tmp_path, whole[0])
    assert not (tmp_path / "checkpoint.pt").exists()


def test_workers_and_a_loader_take_turns_and_end_with_the_same_weights(whole: tuple[Path, str], tmp_path: Path) -> None:
    arguments = ["train_torch.py", "--folder", tmp_path, "--epochs", 4]
    assert "Stopped after 70 batches, in epoch 2" in run(*arguments, "--workers", 2, "--stop-after", 70)
    assert "Stopped after 90 batches, in epoch 2" in run(*arguments, "--stop-after", 90)  # the last ones of the epoch
    assert accuracies(run(*arguments)) == accuracies(whole[1])[2:]
    assert_same_weights(tmp_path, whole[0])


def test_too_few_digits_read_right_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    train_torch = importlib.import_module("train_torch")
    with pytest.raises(SystemExit, match=r"Expected more than 95%\."):
        train_torch.finish(tmp_path, train_torch.Network(), 0.95)


def test_the_packages_of_new_files_are_recognised(tmp_path: Path) -> None:
    printed = run("train_torch_text.py", "--folder", tmp_path, "--epochs", 4)
    frequent = re.search(r"most frequent package is right for ([\d.]+)%", printed)
    assert frequent is not None
    assert accuracies(printed)[-1] > float(frequent[1]) + 20
    assert losses(printed)[-1] < losses(printed)[0] / 2


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    arguments = ["train_torch_ddp.py", "--folder", tmp_path, "--epochs", 3]
    alone = run(*arguments)
    together = run(*arguments, by=TORCHRUN)
    assert losses(together) == pytest.approx(losses(alone), rel=0.02)  # the same batches, added up in another order
    assert accuracies(together)[-1] > 95
    assert re.search(r"Reads [\d.]+% of the digits", together)
