"""What the tests of `to_tf_dataset` share: maps of every kind, and what their batches have to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="the adapter for TensorFlow needs it")

from mmap_ninja import Batches, BytesMmap, DenseMmap, RaggedMmap, StringsMmap, open_map, select, windows  # noqa: E402
from mmap_ninja.gather import Jagged, Padded  # noqa: E402

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
    "halves": [row.astype(ml_dtypes.bfloat16) for row in ROWS],
    "flags": [row % 3 == 0 for row in ROWS],
    **{name: [np.full(of(k), k / 8, np.float32) for k in range(COUNT)] for name, of in SHAPES.items()},
}
DENSE = {
    "points": np.arange(COUNT * 6, dtype=np.float32).reshape(COUNT, 2, 3),
    "labels": np.arange(COUNT) * 7 % 5,
    "big points": np.arange(COUNT * 2, dtype=">f8").reshape(COUNT, 2),
}
TEXTS = [f"{k} ß 漢" * (k % 3) for k in range(COUNT)]
NAMES = [*RAGGED, *DENSE, "texts", "files"]


class Pair(NamedTuple):
    x: Any
    y: Any


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a map of each of `NAMES`, for tests that only read; a file of tests that uses it names it."""
    folder = tmp_path_factory.mktemp("maps")
    for name, rows in RAGGED.items():
        RaggedMmap.from_lists(folder / name, rows, sync=False)
    for name, array in DENSE.items():
        DenseMmap.from_ndarray(folder / name, array, sync=False)
    StringsMmap.from_strings(folder / "texts", TEXTS, sync=False)
    BytesMmap.from_bytes(folder / "files", [text.encode() + b"\0\xff" for text in TEXTS], sync=False)
    return folder


SOURCES: dict[str, Callable[[Path], Any]] = {
    **{name: lambda maps, name=name: maps / name for name in NAMES},
    "open map": lambda maps: open_map(maps / "grids"),
    "array": lambda maps: DENSE["points"],
    "array of numbers": lambda maps: DENSE["labels"],
    "array of the other byte order": lambda maps: DENSE["big points"],
    "array of texts": lambda maps: np.array(TEXTS),
    "array that is not contiguous": lambda maps: DENSE["points"][:, :, ::-2],
    "selection": lambda maps: select(open_map(maps / "rows"), [7, -1, 0, 7, 3]),
    "dense selection": lambda maps: select(open_map(maps / "points"), slice(None, None, -2)),
    "windows": lambda maps: windows(open_map(maps / "rows"), 2, stride=1),
    "selected texts": lambda maps: select(open_map(maps / "texts"), range(2, 20, 3)),
    "dict": lambda maps: {"row": maps / "rows", "text": maps / "texts", "label": DENSE["labels"]},
    "tuple": lambda maps: (maps / "images", maps / "labels"),
    "tuple of three": lambda maps: (maps / "points", maps / "labels", np.ones(COUNT, np.float32)),
    "named tuple": lambda maps: Pair(maps / "rows", maps / "labels"),
    "nested": lambda maps: {
        "b": Pair(maps / "grids", maps / "files"),
        "a": ({"z": maps / "numbers", "c": maps / "rows"},),
    },
}
every_source = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)


def epoch_of(source: Any, size: int = SIZE, epoch: int = 0, layout: Any = "jagged", **options: Any) -> list[Any]:
    """The oracle: the batches of the core."""
    batches = Batches(source, size, layout=layout, **options)
    return [batches.batch(epoch, k) for k in range(len(batches))]


def check_same(found: Any, expected: Any) -> None:
    """A tensor for each array of a batch, or sample, of the core: of its dtype and shape, bit for bit."""
    if isinstance(expected, Padded):
        parts = {"values": expected.values, "lengths": expected.lengths}
        check_same(found, parts if isinstance(found, dict) else expected.values)
    elif isinstance(expected, Jagged):
        check_ragged(found, expected) if expected.shapes.shape[1] else check_same(found, expected.values)
    elif isinstance(expected, dict):
        assert type(found) is dict
        assert list(found) == list(expected)
        for key, part in expected.items():
            check_same(found[key], part)
    elif isinstance(expected, tuple):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    elif isinstance(expected, bool | int | float):  # which scalars of a ragged map are
        check_same(found, np.array(expected, found.dtype.as_numpy_dtype))
    elif isinstance(expected, str | bytes | list) or expected.dtype.kind in "US":
        texts = np.array(expected, object)
        as_bytes = [text.encode() if isinstance(text, str) else text for text in texts.reshape(-1)]
        assert (found.dtype, tuple(found.shape)) == (tf.string, texts.shape)
        assert tf.reshape(found, [-1]).numpy().tolist() == as_bytes
    else:
        assert isinstance(found, tf.Tensor)
        check_array(found.numpy(), expected)


def check_array(found: Any, expected: np.ndarray) -> None:
    native = expected.astype(expected.dtype.newbyteorder("="))
    assert (np.asarray(found).dtype, np.shape(found)) == (native.dtype, native.shape)
    assert np.asarray(found).tobytes() == native.tobytes()


def check_ragged(found: Any, expected: Jagged) -> None:
    """The values of all samples end to end, and the row splits of their axes that are ragged."""
    assert isinstance(found, tf.RaggedTensor)
    check_array(found.flat_values.numpy(), expected.values.reshape(found.flat_values.shape))
    rows = expected.shapes.tolist()
    for axis, splits in enumerate(found.nested_row_splits):
        check_array(splits.numpy(), np.cumsum([0, *(shape[axis] for shape in rows)]))
        rows = [shape for shape in rows for _ in range(shape[axis])]
    assert all(shape[found.ragged_rank :] == list(found.flat_values.shape[1:]) for shape in expected.shapes.tolist())


def check_all(dataset: Any, expected: list[Any]) -> None:
    """The elements of one iteration, each of which is as `element_spec` says, and so many."""
    found = list(dataset)
    assert len(found) == len(expected) == dataset.cardinality()
    for element, batch in zip(found, expected, strict=True):
        check_same(element, batch)
        check_spec(dataset.element_spec, element)


def check_spec(spec: Any, element: Any) -> None:
    tf.nest.assert_same_structure(spec, element)
    for one, part in zip(tf.nest.flatten(spec), tf.nest.flatten(element), strict=True):
        assert one.is_compatible_with(part), (one, part)
        assert one.dtype == part.dtype
