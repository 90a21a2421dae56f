"""What the tests of `to_tf_dataset` share: sources of every kind, and what their batches have to be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="the adapter for TensorFlow needs it")

import adapter_data  # noqa: E402
from adapter_data import DENSE, TEXTS  # noqa: E402
from mmap_ninja.gather import Jagged, Padded  # noqa: E402

SOURCES: dict[str, Callable[[Path], Any]] = {
    **adapter_data.SOURCES,
    "array of doubles of the other byte order": lambda maps: DENSE["points"].astype(">f8"),
    "array of texts": lambda maps: np.array(TEXTS),
}
every_source = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
epoch_of = partial(adapter_data.epoch_of, layout="jagged")


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
