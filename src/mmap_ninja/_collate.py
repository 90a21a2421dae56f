"""Samples that a function has made, put together to a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from mmap_ninja import gather
from mmap_ninja._encode import joined
from mmap_ninja._taking import JAGGED, LIST, Padding
from mmap_ninja.errors import SampleError, SampleTypeError
from mmap_ninja.gather import Array, Empty, Slices
from mmap_ninja.indexing import Positions

STACK, PADDED = "stack", "padded"
LAYOUTS = (LIST, STACK, PADDED, JAGGED)


def collated(samples: Sequence[Any], numbers: Positions, layout: str, padding: Padding, empty: Empty = np.empty) -> Any:
    """Dicts and tuples become a dict or tuple of batches; of what is in them, a batch in this layout.

    `numbers` is what errors call the samples. Raises `SampleError` or `SampleTypeError` for samples that do not fit
    into one batch.
    """
    first = samples[0]
    if type(first) in (dict, tuple):
        parts = _parts(samples, numbers)
        made = {key: collated(part, numbers, layout, padding, empty) for key, part in parts.items()}
        return made if type(first) is dict else tuple(made.values())
    if layout == LIST or isinstance(first, str | bytes):
        return list(samples)
    arrays = [_as_array(sample, number) for sample, number in zip(samples, numbers, strict=True)]
    _check_same(arrays, numbers, "dtype")
    if layout == STACK or not any(map(attrgetter("ndim"), arrays)):
        _check_same(arrays, numbers, "shape")
        return np.stack(arrays, out=empty((len(arrays), *arrays[0].shape), arrays[0].dtype))
    _check_same(arrays, numbers, "ndim")
    rows = _rows(arrays, numbers)
    return padding.gather(rows, empty) if layout == PADDED else gather.jagged(rows, empty)


def _parts(samples: Sequence[Any], numbers: Positions) -> dict[Any, list[Any]]:
    """The samples by key, or by place in a tuple."""
    first, keys_of = samples[0], _keys(type(samples[0]))
    keys = keys_of(first)
    for sample, number in zip(samples, numbers, strict=True):
        if type(sample) is not type(first) or keys_of(sample) != keys:
            raise SampleError(
                f"sample {numbers[0]} became a {_described(first)}, sample {number} a {_described(sample)}: they do "
                "not make one batch"
            )
    return {key: [sample[key] for sample in samples] for key in keys}


def _keys(kind: type[Any]) -> Callable[[Any], Any]:
    return dict.keys if kind is dict else lambda sample: range(len(sample))


def _described(sample: Any) -> str:
    if type(sample) is dict:
        return f"dict of {', '.join(map(repr, sample))}"
    if type(sample) is tuple:
        return f"tuple of {len(sample)}"
    return type(sample).__name__


def _as_array(sample: Any, number: int) -> Array:
    try:
        array: Array = np.asarray(sample)
    except ValueError as error:
        raise SampleError(f"sample {number} became a list that is no array: {error}") from None
    if array.dtype.hasobject:
        raise SampleTypeError(f"sample {number} became a {type(sample).__name__}; such batches have layout='list'")
    return array


def _check_same(arrays: Sequence[Array], numbers: Positions, what: str) -> None:
    """Refuse arrays that differ in this."""
    found = [getattr(array, what) for array in arrays]
    for k, other in enumerate(found):
        if other != found[0]:
            remedy = "'padded', 'jagged' or 'list' takes them" if what == "shape" else "'list' takes them"
            raise SampleError(
                f"sample {numbers[0]} became an array of {what} {found[0]}, sample {numbers[k]} one of {other}; "
                f"layout={remedy}"
            )


def _rows(arrays: Sequence[Array], numbers: Positions) -> Slices:
    """Arrays of one dtype and number of axes, as the rows of an index over their joined bytes."""
    shapes = np.array([array.shape for array in arrays], np.int64)
    sizes = shapes.prod(axis=1)
    starts = np.zeros(len(arrays), np.int64)
    starts[1:] = sizes[:-1].cumsum()
    return Slices(arrays[0].dtype, shapes, sizes, numbers, memoryview(b"".join(joined(arrays))), starts)
