"""The examples for JAX do what they say: learn, stop and go on, compile as often as there are lengths of rows."""

from __future__ import annotations

import importlib
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import example_runs
from example_runs import EXAMPLES, accuracies, losses, weights

jax = pytest.importorskip("jax", reason="the adapter for JAX needs it")
pytest.importorskip("optax", reason="the examples learn with it")

pytestmark = pytest.mark.long  # minutes on two cores; `make test-long` runs them

run = partial(example_runs.run, JAX_PLATFORMS="cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Four epochs without a stop: their folder, and what was printed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run("train_jax.py", "--folder", folder, "--epochs", 4)


def test_digits_are_read_right(whole: tuple[Path, str]) -> None:
    _, printed = whole
    reached = accuracies(printed)
    assert len(reached) == 4
    assert reached[-1] > 95
    assert f"Reads {reached[-1]}% of the digits" in printed


def test_a_run_stopped_in_an_epoch_goes_on_to_the_same_weights(whole: tuple[Path, str], tmp_path: Path) -> None:
    command = ["train_jax.py", "--folder", tmp_path, "--epochs", 4]
    stopped = run(*command, "--stop-after", 100)
    assert "Stopped after 100 batches, in epoch 3" in stopped
    assert accuracies(stopped) == accuracies(whole[1])[:2]
    assert not (tmp_path / "weights.npz").exists()

    printed = run(*command)
    assert "Going on after 100 batches" in printed
    assert accuracies(printed) == accuracies(whole[1])[2:]
    found, expected = weights(tmp_path), weights(whole[0])
    assert len(expected) == 6
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, wanted, strict=True)
    assert not (tmp_path / "checkpoint.pkl").exists()


def test_too_few_digits_read_right_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    train_jax = importlib.import_module("train_jax")
    with pytest.raises(SystemExit, match=r"Expected more than 95%\."):
        train_jax.finish(tmp_path, train_jax.network(jax.random.key(0)), 0.95)


def test_the_packages_of_new_files_are_recognised_by_a_step_compiled_once_a_bucket(tmp_path: Path) -> None:
    printed = run("train_jax_tokens.py", "--folder", tmp_path, "--epochs", 3)
    frequent = re.search(r"most frequent package is right for ([\d.]+)%", printed)
    assert frequent is not None
    assert accuracies(printed)[-1] > float(frequent[1]) + 20
    assert losses(printed)[-1] < losses(printed)[0] / 2
    compiled = re.search(r"Compiled the training step (\d) times, for batches of \[(.+)\]\.", printed)
    assert compiled is not None
    found = re.findall(r"\(64, (\d+)\)", compiled[2])
    assert int(compiled[1]) == len(found) == len(set(found)) >= 2  # which ones depends on the library of this Python
    assert set(found) <= {"224", "288", "384"}
