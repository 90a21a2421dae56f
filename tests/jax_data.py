"""What the tests of `mmap_ninja_jax` share: what batches of every source have to be."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the adapter for JAX needs it")

import adapter_data  # noqa: E402
from adapter_data import SOURCES  # noqa: E402
from mmap_ninja import gather as core  # noqa: E402
from mmap_ninja_jax import Padded  # noqa: E402

NARROW = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}  # with x64 off
every_source = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
epoch_of = partial(adapter_data.epoch_of, layout="padded")


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
