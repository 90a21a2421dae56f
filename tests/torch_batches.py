"""What the tests of MmapLoader share: maps of every kind, and what the batches of them have to be.

A file of tests that uses the fixtures names them: `folder = torch_batches.folder`.
"""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch import Tensor  # noqa: E402

from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap  # noqa: E402
from mmap_ninja import gather as core  # noqa: E402
from mmap_ninja_torch import MmapLoader, Padded  # noqa: E402
from mmap_ninja_torch import device as devices  # noqa: E402

N = 23
ROWS = [np.arange(k * 100, k * 100 + k % 5, dtype=np.int16) for k in range(N)]
DENSE = np.arange(N * 6, dtype=np.float32).reshape(N, 2, 3)
TEXTS = [f"text {k} ü" for k in range(N)]
IMAGES = [np.full((1 + k % 3, 2 + k % 2), k, np.uint8) for k in range(N)]
TALL = [np.full((k % 4, 6), k / 8, np.float32) for k in range(N)]  # ragged on the first axis only


class Pair(NamedTuple):
    x: Any
    y: Any


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    RaggedMmap.from_lists(folder / "rows", ROWS)
    RaggedMmap.from_lists(folder / "big", [row.astype(">i4") for row in ROWS])
    RaggedMmap.from_lists(folder / "images", IMAGES)
    RaggedMmap.from_lists(folder / "tall", TALL)
    RaggedMmap.from_lists(folder / "scalars", [np.float64(k) for k in range(N)])
    RaggedMmap.from_lists(folder / "mixed", [[np.float32(k), ROWS[k].astype("f4"), DENSE[k]][k % 3] for k in range(N)])
    DenseMmap.from_ndarray(folder / "dense", DENSE)
    DenseMmap.from_ndarray(folder / "numbers", np.arange(N))
    DenseMmap.from_ndarray(folder / "big dense", DENSE.astype(">f8"))
    StringsMmap.from_strings(folder / "texts", TEXTS)
    BytesMmap.from_bytes(folder / "bytes", [text.encode() for text in TEXTS], zstd_level=3)
    return folder


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    if ours := [thread for thread in threading.enumerate() if thread.name.startswith("mmap_ninja")]:
        gc.collect()  # a traceback may have been the last to hold an iterator
        for thread in ours:
            thread.join(10)
            assert not thread.is_alive(), thread.name


def plain(batch: Any) -> Any:
    """A batch as nested lists, to compare it."""
    if isinstance(batch, dict):
        return {key: plain(part) for key, part in batch.items()}
    if isinstance(batch, tuple | list):
        return [plain(part) for part in batch]
    if isinstance(batch, Tensor) and batch.is_nested:
        return [part.tolist() for part in batch.unbind()]
    return batch.tolist() if isinstance(batch, np.ndarray | np.generic | Tensor) else batch


def as_tensor(value: Any) -> Any:
    """What a tensor of these values has to be, made without the adapter."""
    if isinstance(value, str | bytes):
        return value
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))


def check_same(found: Any, expected: Any) -> None:
    """One tensor for each array, of its values, dtype and shape; what is neither, as it is."""
    expected = as_tensor(expected) if isinstance(expected, np.ndarray | np.generic) else expected
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected)
    elif isinstance(expected, core.Padded):
        assert type(found) is Padded
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    elif isinstance(expected, core.Jagged):
        check_same(found.offsets(), expected.offsets // max(1, int(np.prod(expected.shapes[0][1:]))))
        check_same(found.values(), expected.values.reshape(-1, *expected.shapes[0][1:]))
        assert (found.layout, found.shape[0]) == (torch.jagged, len(expected.shapes))
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, part in expected.items():
            check_same(found[key], part)
    elif isinstance(expected, tuple | list):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    else:
        assert type(found) is type(expected)
        assert found == expected


def as_tensors(sample: Any) -> Any:
    if isinstance(sample, dict):
        return {key: as_tensors(part) for key, part in sample.items()}
    if isinstance(sample, tuple):
        parts = [as_tensors(part) for part in sample]
        return type(sample)(*parts) if hasattr(sample, "_fields") else tuple(parts)
    return as_tensor(sample)


def notes(error: BaseException) -> str:
    return " ".join([str(error), *getattr(error, "__notes__", [])])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The arrays that loaders gather into, which are kept."""
    arrays: list[np.ndarray] = []

    def kept(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        arrays.append(np.empty(shape, dtype))
        return arrays[-1]

    monkeypatch.setattr(devices, "empty", kept)
    return arrays


def check_every_position(make: Callable[[], MmapLoader], epochs: int = 2) -> None:
    """Start again from each state that there is, and see the rest of what was not interrupted."""
    loader = make()
    expected = [comparable(batch) for _ in range(epochs) for batch in loader]
    loader, states, position = make(), [], 0
    states.append((0, loader.state_dict()))
    for _ in range(epochs):
        for _ in loader:
            position += 1
            states.append((position, loader.state_dict()))
        states.append((position, loader.state_dict()))
    assert position == len(expected) > 0
    for position, state in states:
        again, rest = make(), []
        again.load_state_dict(json.loads(json.dumps(state)))
        assert again.state_dict()["version"] == 1
        while len(rest) < len(expected) - position:
            rest += map(comparable, again)
        assert rest == expected[position:]


def comparable(batch: Any) -> Any:
    """A batch as plain values; of a tensor without any, what there is to see."""
    if isinstance(batch, tuple | list):
        return [comparable(part) for part in batch]
    if isinstance(batch, Tensor) and batch.device.type == "meta":
        return str(batch.device), str(batch.dtype), tuple(batch.shape)
    return plain(batch)
