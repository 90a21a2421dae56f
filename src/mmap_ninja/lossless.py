"""Which values fit which dtype: all of a sample's values survive exactly, or the sample is refused.

Arrays keep their word: an int64 array goes into an int8 map if each of its values does. Python numbers and lists of
them are weak, as in NEP 50 (https://numpy.org/neps/nep-0050-scalar-promotion.html): floats may round to the map's
dtype, integers must fit. Where the user asked for a dtype, arrays may round to it as well. Nothing ever wraps,
overflows to infinity, loses a fraction or an imaginary part, or turns from a number into a string or back.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmap_ninja.errors import SampleError, SampleTypeError

Array = np.ndarray[Any, np.dtype[Any]]

_WEAK = (bool, int, float, complex, list, tuple)
_INTEGERS, _NUMBERS = "biu", "biufc"


def as_array(sample: Any) -> Array:
    """The sample as an array of its own dtype, without copying one that is an array already.

    Raises `SampleTypeError` for what is no array of values: `None`, dicts, text, ragged lists, Python objects.
    """
    array: Array = sample if type(sample) is np.ndarray else _converted(sample)
    if array.dtype.hasobject:
        raise SampleTypeError("Python objects (dtype object) cannot be stored; convert them to numbers or bytes first")
    return array


def fit(sample: Any, array: Array, dtype: np.dtype[Any], rounding: bool) -> Array:
    """The array in the dtype of the map; `sample` is what it was made from. Raises `SampleError`."""
    if array.dtype == dtype:
        return array
    if array.size == 0:
        return np.zeros(array.shape, dtype)
    if np.can_cast(array.dtype, dtype, "equiv"):  # another byte order
        return array.astype(dtype)
    if not _comparable(array.dtype, dtype):
        raise SampleError(f"{array.dtype} values cannot be stored in a map of {dtype}; convert them first")
    with np.errstate(all="ignore"):
        cast, kept = _cast(array, dtype, rounding)
        if kept.all():
            return cast
        if isinstance(sample, _WEAK) and not isinstance(sample, np.generic):
            rounded, near = _cast(array, dtype, True)
            if near.all() and _only_floats_round(sample, kept):
                return rounded
        can_round = not rounding and bool(_cast(array, dtype, True)[1].all())
    value = array.reshape(-1)[~kept.reshape(-1)][0]
    remedy = "; dtype= at creation allows rounding" if can_round else ""
    raise SampleError(f"the {array.dtype} value {value} cannot be stored exactly as {dtype}{remedy}")


def _converted(sample: Any) -> Array:
    """What numpy makes of something that is no plain array, if nothing is lost on the way."""
    if isinstance(sample, str | bytes) and not isinstance(sample, np.generic):
        raise SampleTypeError(f"a {type(sample).__name__} is no array; StringsMmap stores texts, BytesMmap bytes")
    try:
        array = np.asarray(sample)
    except ValueError as error:
        raise SampleTypeError(f"a {type(sample).__name__} that is no regular array: {error}") from None
    if array.dtype.hasobject:
        raise SampleTypeError(f"a {type(sample).__name__} is no array of values; samples are arrays, numbers or lists")
    if isinstance(sample, list | tuple | np.ma.MaskedArray):
        _check_parts(sample, array)
    return array


def _check_parts(sample: Any, array: Array) -> None:
    """Refuse masked values, and lists of parts that have nothing but a lossy dtype in common."""
    leaves = _flat(sample)
    if any(leaf is np.ma.masked for leaf in leaves):
        raise SampleTypeError("a masked array would lose its mask; fill it first")
    types = set(map(type, leaves))
    is_text = array.dtype.kind in "US"  # of which numpy drops trailing zeros
    if len(types) <= 1 and not is_text and not (types == {int} and array.dtype.kind not in _INTEGERS):
        return
    for leaf, value in zip(leaves, array.reshape(-1).tolist(), strict=True):
        exact = leaf.item() if isinstance(leaf, np.generic) else leaf
        if not (exact == value or (exact != exact and value != value)):
            is_integer = isinstance(exact, int) and array.dtype.kind in "fc"
            what = f"the integer {exact} between floats" if is_integer else f"{leaf!r} in a list of different types"
            refuse = SampleTypeError if array.dtype.kind in "US" else SampleError
            raise refuse(f"{what} cannot be stored exactly as {array.dtype}")


def _flat(sample: Any) -> list[Any]:
    """The single values of a nested list, in C order; of arrays in it, as NumPy scalars."""
    if isinstance(sample, np.ndarray):
        return list(sample.reshape(-1))
    if not isinstance(sample, list | tuple):
        return [sample]
    if not any(issubclass(kind, list | tuple | np.ndarray) for kind in set(map(type, sample))):
        return list(sample)
    return [leaf for part in sample for leaf in _flat(part)]


def _only_floats_round(sample: Any, kept: Array) -> bool:
    """Whether every value that the map's dtype rounds is a Python float; integers and NumPy's values have to fit."""
    leaves = zip(_flat(sample), kept.reshape(-1).tolist(), strict=True)
    return all(is_kept or type(leaf) in (float, complex) for leaf, is_kept in leaves)


def _is_extended(dtype: np.dtype[Any]) -> bool:
    """Whether another package has registered this dtype, as ml_dtypes does with bfloat16."""
    return dtype.isbuiltin == 2


def _is_float(dtype: np.dtype[Any]) -> bool:
    return "float" in dtype.name if _is_extended(dtype) else dtype.kind in "fc"


def _comparable(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether values of the one may turn out equal to values of the other."""
    numbers = [dtype.kind in _NUMBERS or _is_extended(dtype) for dtype in (source, target)]
    if any(numbers):
        return all(numbers)
    return source.kind == target.kind and source.kind in "mMUS"


def _cast(array: Array, dtype: np.dtype[Any], rounding: bool) -> tuple[Array, Array]:
    """The array in the other dtype, and which of its values are kept: exactly, or rounded where that is allowed."""
    if array.dtype.kind == "c" or dtype.kind == "c":
        return _cast_complex(array, dtype, rounding)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.kind in _INTEGERS and dtype.kind in _INTEGERS:
        (low, high), (lowest, highest) = _bounds(dtype), _bounds(array.dtype)
        return array.astype(dtype), np.asarray((array >= max(low, lowest)) & (array <= min(high, highest)))
    if array.dtype.kind in _INTEGERS:
        cast = array.astype(dtype)
        wide = _wide(cast)
        if rounding and _is_float(dtype):
            return cast, np.asarray(np.isfinite(wide) & (np.abs(array.astype(np.float64)) <= _largest(dtype)))
        return cast, _equal_integers(wide, array)
    if dtype.kind in _INTEGERS:
        return _cast_to_integers(_wide(array), dtype)
    cast = array.astype(dtype)
    before = _wide(array)
    back = _wide(cast).astype(before.dtype)
    kept = np.asarray((before == back) | ((before != before) & (back != back)))
    if rounding and _is_float(dtype):
        kept |= np.isfinite(before) & np.isfinite(back) & (np.abs(before) <= _largest(dtype))
    return cast, kept


def _cast_complex(array: Array, dtype: np.dtype[Any], rounding: bool) -> tuple[Array, Array]:
    """Both parts for themselves."""
    if dtype.kind != "c":
        cast, kept = _cast(array.real, dtype, rounding)
        return cast, np.asarray(kept & (array.imag == 0))
    cast = np.zeros(array.shape, dtype)
    cast.real, kept = _cast(array.real, cast.real.dtype, rounding)
    if array.dtype.kind == "c":
        cast.imag, also = _cast(array.imag, cast.imag.dtype, rounding)
        kept = np.asarray(kept & also)
    return cast, kept


def _cast_to_integers(wide: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    wide = wide.astype(np.promote_types(wide.dtype, np.float64))
    low, high = _bounds(dtype)
    inside = (wide >= float(low)) & (wide < float(high + 1))
    cast = np.asarray(np.where(inside, wide, 0).astype(dtype))
    return cast, np.asarray(inside & (cast.astype(wide.dtype) == wide))


def _equal_integers(floats: Array, integers: Array) -> Array:
    """Compare without a detour that rounds: the floats have to be integers of the same dtype."""
    cast, kept = _cast_to_integers(floats, integers.dtype)
    return np.asarray(kept & (cast == integers))


def _wide(array: Array) -> Array:
    """The same values in a dtype that numpy calculates with."""
    return array.astype(np.float64) if _is_extended(array.dtype) else array


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _largest(dtype: np.dtype[Any]) -> Any:
    """The largest finite value; some small floats of ml_dtypes have no infinity, and end there."""
    if not _is_extended(dtype):
        return np.inf  # beyond it there is infinity, which is no rounding
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
