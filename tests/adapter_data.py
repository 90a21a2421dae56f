"""What the tests of the adapters share: maps of every kind, and the batches of the core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from mmap_ninja import (
    Batches,
    BytesMmap,
    DenseMmap,
    RaggedMmap,
    StringsMmap,
    open_map,
    select,
    split,
    windows,
)

COUNT, SIZE = 23, 4  # samples in each map, and in a batch
ROWS = [np.arange(k * 100, k * 100 + k % 5, dtype=np.int32) for k in range(COUNT)]  # some of them empty
SHAPES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "clips": lambda k: (k % 4, 3),
    "grids": lambda k: (k % 3, k % 4),
    "images": lambda k: (2 + k % 3, 1 + k % 2, 3),
    "tails": lambda k: (k % 3, 2, 2),
    "cubes": lambda k: (k % 2, k % 3, 1 + k % 4),
    "even": lambda k: (2, 3),
    "nothing": lambda k: (k % 3, 0),
    "numbers": lambda k: (),
}
RAGGED = {
    "rows": ROWS,
    "big rows": [row.astype(">i4") for row in ROWS],
    "long rows": [row.astype(np.int64) - 7 for row in ROWS],
    "halves": [row.astype(ml_dtypes.bfloat16) for row in ROWS],
    "flags": [row % 3 == 0 for row in ROWS],
    **{name: [np.full(of(k), k / 8, np.float32) for k in range(COUNT)] for name, of in SHAPES.items()},
}
DENSE = {
    "points": np.arange(COUNT * 6, dtype=np.float32).reshape(COUNT, 2, 3),
    "labels": np.arange(COUNT) * 7 % 5,
    "big points": np.arange(COUNT * 2, dtype=">f4").reshape(COUNT, 2),
}
TEXTS = [f"{k} ß 漢" * (k % 3) for k in range(COUNT)]
NAMES = [*RAGGED, *DENSE, "texts", "files"]


class Pair(NamedTuple):
    x: Any
    y: Any


def make_maps(folder: Path) -> Path:
    """A map of each of `NAMES` in a folder."""
    for name, rows in RAGGED.items():
        RaggedMmap.from_lists(folder / name, rows, sync=False)
    for name, array in DENSE.items():
        DenseMmap.from_ndarray(folder / name, array, sync=False)
    StringsMmap.from_strings(folder / "texts", TEXTS, sync=False)
    BytesMmap.from_bytes(folder / "files", [text.encode() + b"\0\xff" for text in TEXTS], sync=False)
    return folder


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a folder, for tests that only read; a file of tests that uses it names it."""
    return make_maps(tmp_path_factory.mktemp("maps"))


SOURCES: dict[str, Callable[[Path], Any]] = {
    **{name: lambda maps, name=name: maps / name for name in NAMES},
    "string path": lambda maps: str(maps / "rows"),
    "open map": lambda maps: open_map(maps / "grids"),
    "array": lambda maps: DENSE["points"],
    "array of numbers": lambda maps: DENSE["labels"],
    "array of the other byte order": lambda maps: DENSE["big points"],
    "array that is not contiguous": lambda maps: DENSE["points"][:, :, ::-2],
    "array in columns": lambda maps: np.asfortranarray(DENSE["points"]),
    "selection": lambda maps: select(open_map(maps / "rows"), [7, -1, 0, 7, 3]),
    "dense selection": lambda maps: select(open_map(maps / "points"), slice(None, None, -2)),
    "split": lambda maps: split(open_map(maps / "clips"), (0.7, 0.3), seed=1)[0],
    "windows": lambda maps: windows(open_map(maps / "rows"), 2, stride=1),
    "selected texts": lambda maps: select(open_map(maps / "texts"), range(2, 20, 3)),
    "dict": lambda maps: {"row": maps / "rows", "text": maps / "texts", "label": DENSE["labels"]},
    "tuple": lambda maps: (maps / "images", maps / "labels"),
    "tuple of one": lambda maps: (maps / "points",),
    "tuple of three": lambda maps: (maps / "points", maps / "labels", np.ones(COUNT, np.float32)),
    "named tuple": lambda maps: Pair(maps / "rows", maps / "labels"),
    "nested": lambda maps: {
        "b": Pair(maps / "grids", maps / "files"),
        "a": ({"z": maps / "numbers", "c": maps / "rows"},),
    },
}


def epoch_of(source: Any, size: int = SIZE, epoch: int = 0, **options: Any) -> list[Any]:
    """The oracle: the batches of the core."""
    batches = Batches(source, size, **options)
    return [batches.batch(epoch, k) for k in range(len(batches))]
