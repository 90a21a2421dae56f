"""Which values fit which dtype: all of a sample's values survive exactly, or the sample is refused.

Arrays keep their dtype's word: an int64 array goes into an int8 map if each of its values does. Python numbers and
lists of them are weak, as in NEP 50 (https://numpy.org/neps/nep-0050-scalar-promotion.html): floats may round to
the map's dtype, integers must fit. Where the user asked for a dtype, arrays may round to it as well. Nothing ever
wraps, overflows to infinity, loses a fraction to an integer, or turns from a number into a string or back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mmap_ninja.errors import SampleError, SampleTypeError

Array = np.ndarray[Any, np.dtype[Any]]

_WEAK = (bool, int, float, complex, list, tuple)
_INTEGERS, _NUMBERS = "biu", "biufc"
_EXACT_INTEGERS = 2.0**53  # from here on float64 skips integers


def as_array(sample: Any) -> Array:
    """The sample as an array of its own dtype, without copying one that is an array already.

    Raises `SampleTypeError` for what is no array of values: `None`, dicts, text, ragged lists, Python objects.
    """
    if type(sample) is not np.ndarray:
        sample = _converted(sample)
    if sample.dtype.itemsize == 0:
        raise SampleTypeError(f"values of dtype {sample.dtype} have no bytes to store")
    if sample.dtype.hasobject:
        raise SampleTypeError("Python objects (dtype object) cannot be stored; convert them to numbers or bytes first")
    array: Array = sample
    return array


def fit(sample: Any, array: Array, dtype: np.dtype[Any], rounding: bool) -> Array:
    """The array in the dtype of the map; `sample` is what it was made from. Raises `SampleError`."""
    if array.dtype == dtype:
        return array
    if array.size == 0 or np.can_cast(array.dtype, dtype, "equiv"):
        return np.zeros(array.shape, dtype) if array.size == 0 else array.astype(dtype)
    if not _comparable(array.dtype, dtype):
        raise SampleError(f"{array.dtype} values cannot be stored in a map of {dtype}; convert them first")
    is_weak = isinstance(sample, _WEAK) and not isinstance(sample, np.generic)
    with np.errstate(all="ignore"):
        cast, exact = _cast(array, dtype)
        if exact.all():
            return cast
        rounding = rounding or (is_weak and array.dtype.kind in "fc" and all(map(_is_weak_leaf, _leaves(sample))))
        if rounding and _is_float(dtype) and (_is_float(array.dtype) or array.dtype.kind in _INTEGERS):
            overflown = np.isfinite(array) & ~np.isfinite(_wide(cast))
            if not overflown.any():
                return cast
            exact = ~overflown
    value = array[~exact].flat[0]
    remedy = "; dtype= at creation allows rounding" if _is_float(dtype) and not rounding else ""
    raise SampleError(f"the {array.dtype} value {value} cannot be stored exactly as {dtype}{remedy}")


def _converted(sample: Any) -> Array:
    if isinstance(sample, str | bytes):
        raise SampleTypeError(f"a {type(sample).__name__} is no array; StringsMmap stores texts, BytesMmap bytes")
    if isinstance(sample, np.ma.MaskedArray) and np.ma.is_masked(sample):
        raise SampleTypeError("a masked array would lose its mask; fill it first")
    try:
        array = np.asarray(sample)
    except ValueError as error:
        raise SampleTypeError(f"a {type(sample).__name__} that is no regular array: {error}") from None
    if array.dtype.hasobject:
        raise SampleTypeError(f"a {type(sample).__name__} is no array of values; samples are arrays, numbers or lists")
    if array.dtype.kind == "f" and isinstance(sample, list | tuple) and (np.abs(array) >= _EXACT_INTEGERS).any():
        for leaf in _leaves(sample):  # numpy rounds integers that stand between floats
            if isinstance(leaf, int) and int(float(leaf)) != leaf:
                raise SampleError(f"the integer {leaf} between floats cannot be stored exactly as float64")
    return array


def _leaves(sample: Any) -> Iterator[Any]:
    if isinstance(sample, list | tuple):
        for part in sample:
            yield from _leaves(part)
    else:
        yield sample


def _is_weak_leaf(leaf: Any) -> bool:
    return isinstance(leaf, _WEAK) and not isinstance(leaf, np.generic)


def _is_extended(dtype: np.dtype[Any]) -> bool:
    """Whether ml_dtypes has registered this dtype: numpy gives it the kind of raw bytes."""
    return dtype.kind == "V" and dtype.type is not np.void


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fc" or (_is_extended(dtype) and "int" not in dtype.name)


def _comparable(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether values of the one may turn out equal to values of the other."""
    numbers = [dtype.kind in _NUMBERS or _is_extended(dtype) for dtype in (source, target)]
    if any(numbers):
        return all(numbers)
    return source.kind == target.kind and source.kind in "mMUS"


def _wide(array: Array) -> Array:
    """The same values in a dtype that numpy calculates with."""
    return array.astype(np.float64) if _is_extended(array.dtype) else array


def _cast(array: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """The array in the other dtype, and which of its values have survived."""
    source, target = array.dtype, dtype
    if source.kind in _INTEGERS and target.kind in _INTEGERS:
        low, high = _bounds(target)
        return array.astype(dtype), (array >= low) & (array <= high)
    if source.kind == "c" and target.kind != "c":
        cast, is_real = _cast(np.real(array), dtype)
        return cast, is_real & (np.imag(array) == 0)
    if source.kind in _INTEGERS:
        cast = array.astype(dtype)
        return cast, _equal_integers(np.real(_wide(cast)), array)
    if target.kind in _INTEGERS:
        wide = _wide(array).astype(np.promote_types(_wide(array[:0]).dtype, np.float64))
        low, high = _bounds(target)
        inside = (wide >= float(low)) & (wide < float(high + 1))
        cast = np.where(inside, wide, 0).astype(dtype)
        return cast, inside & (cast.astype(wide.dtype) == wide)
    cast = array.astype(dtype)
    before, back = _wide(array), _wide(cast).astype(_wide(array[:0]).dtype)
    exact: Array = (before == back) | ((before != before) & (back != back))
    return cast, exact


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _equal_integers(floats: Array, integers: Array) -> Array:
    """Compare without a detour that rounds: the floats have to be integers of the same dtype."""
    if integers.dtype.kind == "b":
        return np.asarray(floats == integers)
    low, high = _bounds(integers.dtype)
    wide = floats.astype(np.promote_types(floats.dtype, np.float64))
    inside = (wide >= float(low)) & (wide < float(high + 1))
    return np.asarray(inside & (np.where(inside, wide, 0).astype(integers.dtype) == integers))
