"""NumPy's batches as arrays of JAX. Nothing else here knows how those are made."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from mmap_ninja import packing
from mmap_ninja.buffers import empty, is_pooled
from mmap_ninja.errors import ArgumentTypeError, SampleError, SampleTypeError, about
from mmap_ninja.fields import TEXTS, Fields, each_part, leaves
from mmap_ninja.gather import Jagged
from mmap_ninja.gather import Padded as PaddedArrays

Array = np.ndarray[Any, np.dtype[Any]]


class Padded(NamedTuple):
    """Samples in one array `values` of shape `(b, *shape)`, which each of them fits into; a pytree.

    `lengths` is int32 `(b,)`, the length of each sample (1 for scalars).
    """

    values: Any
    lengths: Any


def check(fields: Fields) -> None:
    """Refuse maps whose samples JAX has no arrays for; warn of what it will round."""
    for name, field in leaves(fields):
        if field.wrapper_fn is None and field.kind not in TEXTS and field.dtype is not None:
            with about(name):
                found = jax_dtype(field.dtype)
            if found.kind in "fc" and found.itemsize < field.dtype.itemsize:
                warnings.warn(
                    f"{name} is {field.dtype}, which becomes {found}, as JAX has it, unless jax_enable_x64 is set",
                    stacklevel=3,
                )


def jax_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of arrays of JAX that hold these values. Raises `ArgumentTypeError` where there is none."""
    native = dtype.newbyteorder("=")
    if not _is_known(native):
        raise ArgumentTypeError(
            f"JAX has no dtype for {dtype}; give a wrapper_fn (of open_map) or a transform, which makes of one sample "
            "what JAX knows"
        )
    found: np.dtype[Any] = jax.dtypes.canonicalize_dtype(native)
    return found


@cache
def _is_known(dtype: np.dtype[Any]) -> bool:
    try:
        jax.device_put(np.empty(0, dtype))
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def host(value: Any) -> Any:
    """A batch of NumPy's as what goes to a device: arrays in dicts, lists, tuples, `Padded` and `Packed`.

    Numbers in a list become one array; texts, and what is no array and no number, stay what they are.
    """
    if isinstance(value, PaddedArrays):
        return Padded(value.values, value.lengths.astype(np.int32))
    if isinstance(value, Jagged):
        return _split(value)
    if isinstance(value, Mapping | tuple):
        return each_part(host, value)
    if isinstance(value, list):
        are_numbers = value and all(isinstance(one, bool | int | float | complex | np.generic) for one in value)
        return np.array(value) if are_numbers else [host(one) for one in value]
    return value


def own(array: Array) -> Array:
    """The array in the dtype that JAX has for it now, in memory that nobody else writes to: JAX may not copy it.

    Raises `SampleError` for integers that this dtype lacks, `SampleTypeError` where JAX has none.
    """
    try:
        dtype = jax_dtype(array.dtype)
    except ArgumentTypeError as error:
        raise SampleTypeError(str(error)) from None
    if array.dtype == dtype and is_pooled(array):
        return array
    made = empty(array.shape, dtype)
    with np.errstate(over="ignore"):  # infinity, as everywhere in JAX
        made[...] = array
    if dtype.kind in "iu" and not np.array_equal(made, array):
        raise SampleError(
            f"values of {array.dtype} do not fit into {dtype}, which JAX makes of them unless jax_enable_x64 is set"
        )
    return made


def packed(value: Any, **options: Any) -> Any:
    """Samples that lie end to end, in dicts and tuples, as rows."""
    if isinstance(value, Jagged):
        return packing.packed(value, empty=empty, **options)
    return each_part(partial(packed, **options), value)


def each_array(function: Callable[[Array], Any], value: Any) -> Any:
    """The same with what the function makes of each array; all else stays as it is."""
    if isinstance(value, np.ndarray):
        return function(value)
    if isinstance(value, Mapping | tuple):
        return each_part(partial(each_array, function), value)
    return [each_array(function, part) for part in value] if isinstance(value, list) else value


def _split(value: Jagged) -> list[Array]:
    parts = np.split(value.values, value.offsets[1:-1])
    shapes = ([size for size in shape if size >= 0] for shape in value.shapes.tolist())
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
