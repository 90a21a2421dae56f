"""What elements are like, before there are any: a `tf.TypeSpec`, or a dict or tuple of those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import tensorflow as tf

from mmap_ninja import Padding
from mmap_ninja.collate import PADDED, STACK, Part
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, about
from mmap_ninja.fields import TEXTS, each_part, is_ragged, leaves
from mmap_ninja.gather import Jagged, Padded
from mmap_ninja_tf.arrays import as_array

Signature = Any


def checked(signature: Any) -> Signature:
    """The same, if it is one. Raises `ArgumentTypeError`."""
    for name, spec in leaves(signature, "output_signature"):
        if not isinstance(spec, tf.TensorSpec | tf.RaggedTensorSpec):
            raise ArgumentTypeError(f"{name} is {spec!r}, expected a tf.TensorSpec or a tf.RaggedTensorSpec")
    return signature


def of_stored(part: Part, count: int | None, *, with_lengths: bool) -> Signature:
    """That of `count` samples of a map, as they are stored. Raises `ArgumentError`, `ArgumentTypeError`."""
    one, source, layout = of_sample(part.name, part.source), part.source, part.form.layout
    if not is_ragged(source):
        return tf.TensorSpec([count, *one.shape], one.dtype)
    if layout == STACK:
        return tf.TensorSpec([count, *_equal_axes(source, len(one.shape))], one.dtype)
    if layout == PADDED:
        padding = part.form.padding
        with about(part.name):
            source.take_padded([], **vars(padding))  # refuses options that do not fit them
        shape = _padded_shape(padding, one.shape.as_list())
        return _with_lengths(tf.TensorSpec([count, *shape], one.dtype), count, with_lengths)
    ragged_rank = sum(size is None for size in one.shape)  # the first axes, as `common_shape` has it
    if ragged_rank and not _is_carried(source.dtype, is_ragged=True):
        raise ArgumentTypeError(f'{part.name}: tf.data has no ragged tensors of {source.dtype}; layout="padded" has it')
    return _spec([count, *one.shape], one.dtype, ragged_rank)


def of_sample(name: str, source: Any) -> tf.TensorSpec:
    """That of a single sample of a map, as it is stored. Raises `ArgumentError`, `ArgumentTypeError`."""
    if source.kind in TEXTS:
        return tf.TensorSpec([], tf.string)
    if source.dtype is None:
        raise ArgumentError(f"{name} has no samples and no dtype: give output_signature=")
    with about(name):
        shape = source.sample_shape if hasattr(source, "sample_shape") else common_shape(source)
        return tf.TensorSpec(shape, dtype_of(source.dtype))


def common_shape(source: Any) -> tuple[int | None, ...]:
    """The shape that all samples of a ragged map have in common, None for axes on which they may differ.

    Those are the first axis, and all up to the last one on which two of them do. Raises `ArgumentError` for samples
    that differ in their number of axes.
    """
    axes = axes_of(source)
    if axes < 2 or len(source) == 0:
        return (None,) * axes  # without a look at the index, which may be large
    if source.shapes.min() < 0:
        raise ArgumentError("the samples differ in their number of axes, and those of a tensor have one number of them")
    equal = _equal_axes(source, axes)
    first = max((axis for axis, size in enumerate(equal) if size is None), default=0) + 1
    return (*(None,) * first, *equal[first:])


def axes_of(source: Any) -> int:
    """How many axes the samples of a ragged map have, or most of them, by the first one."""
    axes: int = source.take_jagged([0] if len(source) else []).shapes.shape[1]
    return axes


def of_value(value: Any, count: int | None, *, with_lengths: bool) -> Signature:
    """That of a batch which a function has made: only its first axis may have another length in another one.

    So may the axes of what is padded, and of what is ragged.
    """
    if isinstance(value, Jagged):
        axes = value.shapes.shape[1]
        return _spec([count, *[None] * axes], dtype_of(value.values.dtype), axes)
    if isinstance(value, Padded):
        spec = tf.TensorSpec([count, *[None] * (value.values.ndim - 1)], dtype_of(value.values.dtype))
        return _with_lengths(spec, count, with_lengths)
    if isinstance(value, Mapping | tuple):
        return each_part(partial(of_value, count=count, with_lengths=with_lengths), value)
    array = as_array(value)
    if array.ndim == 0:
        raise ArgumentTypeError(f"a batch is made of arrays with an axis for its samples, not of {value!r:.100}")
    return tf.TensorSpec([count, *array.shape[1:]], dtype_of(array.dtype))


def of_sample_value(value: Any) -> Signature:
    """That of a sample which a function has made: its own shape."""
    if isinstance(value, Mapping | tuple):
        return each_part(of_sample_value, value)
    array = as_array(value)
    return tf.TensorSpec(array.shape, dtype_of(array.dtype))


def dtype_of(dtype: np.dtype[Any]) -> tf.DType:
    """That of tensors of these values; objects are texts. Raises `ArgumentTypeError` where TensorFlow has none."""
    try:
        found = tf.as_dtype(dtype)
        if not _is_carried(dtype):
            raise TypeError
        return found
    except TypeError:
        raise ArgumentTypeError(
            f"TensorFlow has no dtype for {dtype}; give a wrapper_fn (of open_map) or a transform, which makes of one "
            "sample what TensorFlow knows"
        ) from None


@cache
def _is_carried(dtype: np.dtype[Any], *, is_ragged: bool = False) -> bool:
    """Whether tf.data has this dtype: those of `ml_dtypes` it has names for, but not always operations."""
    if not dtype.type.__module__.startswith("ml_dtypes"):
        return True
    try:
        value = tf.constant(np.zeros(1, dtype))
        if is_ragged:
            value = tf.RaggedTensor.from_row_lengths(value, [1])
        next(iter(tf.data.Dataset.from_tensors(value)))
    except (tf.errors.OpError, TypeError, ValueError):
        return False
    return True


def _equal_axes(source: Any, axes: int) -> list[int | None]:
    """The shape of samples of a ragged map, None for axes on which they differ."""
    shapes = source.shapes
    if len(shapes) == 0:
        return [None] * axes
    return [size if (shapes[:, axis] == size).all() else None for axis, size in enumerate(shapes[0].tolist())]


def _spec(shape: Sequence[int | None], dtype: tf.DType, ragged_rank: int) -> tf.TypeSpec:
    if ragged_rank == 0:
        return tf.TensorSpec(shape, dtype)
    return tf.RaggedTensorSpec(shape, dtype, ragged_rank, tf.int64)


def _with_lengths(spec: tf.TensorSpec, count: int | None, with_lengths: bool) -> Signature:
    return {"values": spec, "lengths": tf.TensorSpec([count], tf.int64)} if with_lengths else spec


def _padded_shape(padding: Padding, shape: Sequence[int | None]) -> list[int | None]:
    """The shape of padded samples, None where it depends on the batch."""
    short, long = (padding.shape(tuple(size if known is None else known for known in shape)) for size in (0, 1 << 40))
    return [one if one == other else None for one, other in zip(short, long, strict=True)]
