"""Running the scripts in examples/, and what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *args: object, by: list[str] | None = None, **variables: str) -> str:
    """What an example prints, with these variables in its environment; it has to end well."""
    command = [sys.executable, *(by or []), str(EXAMPLES / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, **variables})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def accuracies(printed: str) -> list[float]:
    """Per cent, after each epoch."""
    return [float(found) for found in re.findall(r"validation accuracy ([\d.]+)%", printed)]


def losses(printed: str) -> list[float]:
    """Of each epoch."""
    return [float(found) for found in re.findall(r"loss ([\d.]+)", printed)]


def weights(folder: Path) -> list[np.ndarray]:
    """What a run has ended with."""
    with np.load(folder / "weights.npz") as file:
        return [file[name] for name in file.files]
