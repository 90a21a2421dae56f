"""A folder with a map of every kind, and what is in them: plain arrays, numbers, texts, and the tensors of those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

COUNT = 13  # of the samples in each map
RAGGED = {
    "rows": [np.arange(k, k + k * 3 % 5, dtype=np.int32) for k in range(COUNT)],  # some of them empty
    "clips": [np.full((k % 4, 3), k / 8, np.float32) for k in range(COUNT)],
    "grids": [np.arange((k % 3) * (k % 4), dtype=np.float32).reshape(k % 3, k % 4) for k in range(COUNT)],
    "images": [np.full((2 + k % 3, 1 + k % 2, 3), k, np.uint8) for k in range(COUNT)],
    "halves": [np.arange(k % 4).astype(ml_dtypes.bfloat16) for k in range(COUNT)],
    "numbers": [np.float64(k / 4) for k in range(COUNT)],
    "mixed": [np.full((2,) * (k % 3), k / 2) for k in range(COUNT)],
}
DENSE = {
    "points": np.arange(COUNT * 20, dtype=np.float32).reshape(COUNT, 4, 5),
    "labels": np.arange(COUNT) * 7 % 5,
    "big": np.arange(COUNT * 2, dtype=">f8").reshape(COUNT, 2),
}
TEXTS = [f"{k} ß" * (k % 3) for k in range(COUNT)]
SAMPLES: dict[str, list[Any]] = {
    **RAGGED,
    **{name: list(array) for name, array in DENSE.items()},
    "texts": TEXTS,
    "files": [text.encode() for text in TEXTS],
}
ARRAYS = [*RAGGED, *DENSE]


def make_maps(folder: Path, *names: str) -> Path:
    """A map of each of `SAMPLES`, or of those named, in a folder by its name."""
    for name in names or SAMPLES:
        if name in DENSE:
            DenseMmap.from_ndarray(folder / name, DENSE[name], sync=False)
        elif name in RAGGED:
            RaggedMmap.from_lists(folder / name, RAGGED[name], sync=False)
        else:
            make = StringsMmap.from_strings if name == "texts" else BytesMmap.from_bytes
            make(folder / name, SAMPLES[name], sync=False)
    return folder


def tensor_of(sample: Any) -> Any:
    """The oracle: a tensor made of Python numbers; texts and bytes as they are."""
    if isinstance(sample, str | bytes):
        return sample
    array = np.asarray(sample)
    values = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    return torch.tensor(values.tolist(), dtype=getattr(torch, array.dtype.name)).reshape(array.shape)


def tensors(name: str) -> list[Any]:
    """What a dataset of this map has to give."""
    return [tensor_of(sample) for sample in SAMPLES[name]]


def same(found: Any, expected: Any) -> bool:
    """Whether both are the same, types, dtypes and shapes included, through dicts, tuples and lists."""
    if type(found) is not type(expected):
        return False
    if isinstance(found, torch.Tensor):
        return found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(found, expected)
    if isinstance(found, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in found)
    if isinstance(found, tuple | list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


def files(folder: Path) -> dict[str, bytes]:
    """Every byte under a folder."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
