"""Samples that are a function of their number, so that a reader can tell whose they are."""

from typing import Any

import numpy as np


def row(i: int) -> np.ndarray:
    """Sample `i` of a map whose index gets wider twice."""
    shape = (2, 3) if i % 500 == 150 else (1, 2, 2) if i % 500 == 400 else (i % 7,)
    return np.full(shape, i)


def line(i: int) -> str:
    return f"{i} " * (i % 5) + "ß"


def pair(i: int) -> np.ndarray:
    return np.array([i, -i])


def plain(sample: Any) -> Any:
    return np.asarray(sample) if isinstance(sample, np.ndarray) else sample
