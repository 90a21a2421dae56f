"""Maps to damage, and to write to while something else is done with them."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import plain_reader
from mmap_ninja import DenseMmap, RaggedMmap, open_map, select, verify
from mmap_ninja.errors import ArgumentTypeError, MapCorruptError

RNG = np.random.default_rng(3)
BLOCK = 1 << 20
LARGE = [RNG.integers(0, 2**60, size) for size in (400_000, 3, 90_000, 700_000, 250_000, 1, 60_000)]  # 12 MB
SIZE = 40_000  # of samples that are one number each


def uniform(value: int) -> np.ndarray:
    """A sample that shows whether it was half written."""
    return np.full(SIZE, value)


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << at % 8]))


def right(folder: Path, findings: list) -> None:
    """A copy of samples that are one number each: either all of them are right, or it says that they are unchecked."""
    found = verify(folder)
    assert {finding.kind for finding in found} <= {"unchecked"}
    assert bool(found) == bool(findings)
    if not found:
        assert all((sample == sample[0]).all() for sample in open_map(folder))
        plain_reader.check(folder)


def assign_for_ever(folder: Path) -> None:
    m, value = RaggedMmap(folder, mode="r+"), 0
    while True:
        for i in range(len(m)):
            value += 1
            m[i] = uniform(value)
        m.flush()
        time.sleep(0.02 * random.random())


def extend_for_ever(folder: Path) -> None:
    m, value = RaggedMmap(folder), 0
    while True:
        value += 1
        m.extend([uniform(value)] * 3, sync=False)
        if len(m) > 60:
            m = RaggedMmap.from_lists(folder, [uniform(0)] * 20, sync=False)


def replace_for_ever(folder: Path) -> None:
    for value in range(1 << 30):
        RaggedMmap.from_lists(folder, [uniform(value)] * (10 + value % 20), sync=False)


def refuses_damage(make: Callable[..., object], folder: Path) -> None:
    """`make(source, check=...)` takes every kind of source: whole ones always, damaged ones only without `check`."""
    DenseMmap.from_ndarray(folder / "labels", np.arange(4))
    for number, source in enumerate(
        (
            lambda f: f,
            open_map,
            lambda f: select(open_map(f), range(4)),
            lambda f: {"x": f, "y": folder / "labels"},
            lambda f: (open_map(folder / "labels"), {"x": open_map(f), "y": np.arange(4)}),
        )
    ):
        f = folder / f"map {number}"
        DenseMmap.from_ndarray(f, np.arange(40_000, dtype=np.float32).reshape(4, -1))
        flip(f / "data.npy", 100_000)
        make(source(f), check=False)
        with pytest.raises(MapCorruptError, match=r"data\.npy: damaged in 1 of 1 blocks"):
            make(source(f), check=True)
        flip(f / "data.npy", 100_000)
        make(source(f), check=True)
    with pytest.raises(ArgumentTypeError, match="check is 'yes', expected True or False"):
        make(folder / "labels", check="yes")
