"""What the tests of `mmap_ninja_jax` share: maps of every kind, and what their batches have to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the adapter for JAX needs it")

from mmap_ninja import (  # noqa: E402
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
from mmap_ninja import gather as core  # noqa: E402
from mmap_ninja_jax import Padded  # noqa: E402

COUNT, SIZE = 23, 4  # samples in each map, and in a batch
ROWS = [np.arange(k * 100, k * 100 + k % 5, dtype=np.int32) for k in range(COUNT)]  # some of them empty
SHAPES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "clips": lambda k: (k % 4, 3),
    "grids": lambda k: (k % 3, k % 4),
    "images": lambda k: (2 + k % 3, 1 + k % 2, 3),
    "even": lambda k: (2, 3),
    "numbers": lambda k: (),
}
RAGGED = {
    "rows": ROWS,
    "big rows": [row.astype(">i2") for row in ROWS],
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
NARROW = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}  # with x64 off


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
    "named tuple": lambda maps: Pair(maps / "rows", maps / "labels"),
    "nested": lambda maps: {
        "b": Pair(maps / "grids", maps / "files"),
        "a": ({"z": maps / "numbers", "c": maps / "rows"},),
    },
}
every_source = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)


def epoch_of(source: Any, size: int = SIZE, epoch: int = 0, layout: Any = "padded", **options: Any) -> list[Any]:
    """The oracle: the batches of the core."""
    batches = Batches(source, size, layout=layout, **options)
    return [batches.batch(epoch, k) for k in range(len(batches))]


def check_same(found: Any, expected: Any, names: dict[str, str] = NARROW) -> None:
    """A `jax.Array` for each array of a batch of the core, bit for bit in the dtype that JAX has; all else as it is."""
    if isinstance(expected, core.Padded):
        assert type(found) is Padded
        check_same(found.values, expected.values, names)
        check_same(found.lengths, expected.lengths.astype(np.int32), names)
    elif isinstance(expected, dict):
        assert type(found) is dict
        assert list(found) == list(expected)
        for key, part in expected.items():
            check_same(found[key], part, names)
    elif isinstance(expected, tuple | list):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other, names)
    elif isinstance(expected, np.ndarray):
        assert isinstance(found, jax.Array)
        native = np.dtype(names.get(expected.dtype.name, expected.dtype.newbyteorder("=")))
        assert (found.dtype, found.shape) == (native, expected.shape)
        assert np.asarray(found).tobytes() == expected.astype(native).tobytes()
    else:
        assert type(found) is type(expected)
        assert found == expected


def check_all(loader: Any, expected: list[Any]) -> None:
    """The batches of one iteration, and how many they are."""
    found = list(loader)
    assert len(found) == len(expected) == len(loader)
    for batch, other in zip(found, expected, strict=True):
        check_same(batch, other)


def plain(batch: Any) -> Any:
    """A batch as nested lists, to compare it with another one."""
    return jax.tree.map(lambda part: part if isinstance(part, str | bytes) else np.asarray(part).tolist(), batch)


def notes(error: BaseException) -> str:
    """What an error says, with what was added to it."""
    return " ".join([str(error), *getattr(error, "__notes__", [])])
