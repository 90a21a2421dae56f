"""What the tests of the calls of 0.9.0 share; nothing in this file is new in 1.0.

A file of tests that uses a fixture names it: `folder = calls_of_0_9.folder`.
"""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

ROWS = [[11, 13, -1, 17], [2, 3], [], [90, 12, 5]]
TEXTS = ["Torba", "Boiler", "", "жълта", "popo"]


def rows(m):
    """The samples of a ragged map as lists."""
    return [np.asarray(sample).tolist() for sample in m[:]]


def make_read_only(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            os.chmod(path, stat.S_IRUSR)


@pytest.fixture(params=[str, Path])
def folder(request, tmp_path):
    """A folder that does not exist yet, as a string and as a path."""
    return request.param(tmp_path / "map")


MANY = [
    (slice(None), [0, 1, 2, 3]),
    (slice(2), [0, 1]),
    (slice(-3, None, 2), [1, 3]),
    (slice(None, None, -1), [3, 2, 1, 0]),
    (slice(10, 20), []),
    ([2, 0, -1, 0], [2, 0, 3, 0]),
    (np.array([1, 1]), [1, 1]),
    (np.array([True, False, False, True]), [0, 3]),
]


@pytest.fixture
def array():
    return np.arange(24.0).reshape(4, 3, 2)
