"""The examples for Keras do what they say: learn, stop and go on, also with batches from elsewhere."""

from __future__ import annotations

import importlib
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import example_runs
from example_runs import EXAMPLES, accuracies, losses, weights

pytest.importorskip("tensorflow", reason="the adapter for TensorFlow needs it")

pytestmark = pytest.mark.long  # minutes on two cores; `make test-long` runs them

run = partial(example_runs.run, TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow")


def test_a_run_stopped_in_an_epoch_goes_on_to_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    printed = run("train_keras.py", "--folder", whole, "--epochs", 4, "--py-dataset")
    reached = accuracies(printed)
    assert len(reached) == 4
    assert reached[-1] > 95
    assert f"Reads {reached[-1]}% of the digits" in printed

    command = ["train_keras.py", "--folder", parts, "--epochs", 4, "--stop-after", 100]
    stopped = run(*command)
    assert "Stopped after 100 batches, in epoch 3" in stopped
    assert accuracies(stopped) == reached[:2]
    assert not (parts / "weights.npz").exists()

    rest = run(*command)
    assert "Going on after 100 batches" in rest
    assert accuracies(rest) == reached[2:]
    assert losses(rest)[-1] == losses(printed)[-1]
    assert len(weights(whole)) == 10
    for found, expected in zip(weights(parts), weights(whole), strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)
    assert not (parts / "checkpoint.pkl").exists()


def test_too_few_digits_read_right_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    train_keras = importlib.import_module("train_keras")
    with pytest.raises(SystemExit, match=r"Expected more than 95%\."):
        train_keras.finish(tmp_path, train_keras.network(), 0.95)


def test_the_packages_of_new_files_are_recognised(tmp_path: Path) -> None:
    printed = run("train_keras_text.py", "--folder", tmp_path, "--epochs", 3)
    frequent = re.search(r"most frequent package is right for ([\d.]+)%", printed)
    assert frequent is not None
    assert accuracies(printed)[-1] > float(frequent[1]) + 20
    assert losses(printed)[-1] < losses(printed)[0] / 2
