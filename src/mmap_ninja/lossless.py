"""Which values fit which dtype: all of a sample's values survive exactly, or the sample is refused.

Arrays keep their word: an int64 array goes into an int8 map if each of its values does. Python numbers and sequences
of them are weak, as in NEP 50 (https://numpy.org/neps/nep-0050-scalar-promotion.html): floats may round to the map's
dtype, integers must fit. Where the user asked for a dtype, arrays may round to it as well. Nothing ever wraps,
overflows to infinity, loses a fraction, an imaginary part or a mask, or turns from a number into a string or back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmap_ninja._arrival import is_array, lent
from mmap_ninja._times import cast_times
from mmap_ninja.errors import SampleError, SampleTypeError

Array = np.ndarray[Any, np.dtype[Any]]
Leaves = list[Any] | None  # the single values and the arrays in a sequence, in C order; None for what is an array

_INTEGERS, _NUMBERS, _TIMES = "biu", "biufc", "mM"
_PLAIN = {bool, int, float, complex, str, bytes}
_STEADY = {list, tuple, range, deque}  # which run no code of the user's when they hand out their parts
_MOST_NESTED = 64  # axes of a NumPy array


def as_array(sample: Any) -> Array:
    """The sample as an array of its own dtype, without copying one that is an array already.

    Raises `SampleTypeError` for what is no array of values: `None`, dicts, text, ragged lists, Python objects.
    """
    return read(sample)[0]


def read(sample: Any) -> tuple[Array, Leaves]:
    """The sample as an array of its own dtype, and the parts of it if it is a Python number or a sequence."""
    array, leaves = (sample, None) if type(sample) is np.ndarray else _read(sample)
    if array.dtype.hasobject:
        raise SampleTypeError("Python objects (dtype object) cannot be stored; convert them to numbers or bytes first")
    return array, leaves


def fit(leaves: Leaves, array: Array, dtype: np.dtype[Any], rounding: bool) -> Array:
    """The array in the dtype of the map; `leaves` is what it was made of, as `read` gives it. Raises `SampleError`."""
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
        if leaves is not None:
            rounded, near = _cast(array, dtype, True)
            if near.all() and _only_floats_round(leaves, kept):
                return rounded
        can_round = not rounding and bool(_cast(array, dtype, True)[1].all())
    value = array.reshape(-1)[~kept.reshape(-1)][0]
    remedy = "; dtype= at creation allows rounding" if can_round else ""
    raise SampleError(f"the {array.dtype} value {value} cannot be stored exactly as {dtype}{remedy}")


# -- what NumPy makes of a sample ------------------------------------------------------------------------------------


def _read(sample: Any) -> tuple[Array, Leaves]:
    """What NumPy makes of something that is no plain array, if nothing is lost on the way."""
    is_text, is_scalar = isinstance(sample, str | bytes), isinstance(sample, np.generic)
    if is_text and not is_scalar:
        raise SampleTypeError(f"a {type(sample).__name__} is no array; StringsMmap stores texts, BytesMmap bytes")
    if not is_text and (is_scalar or is_array(sample)):
        return _unmasked(sample), None
    leaves: list[Any] = []
    plain = _part(sample, leaves, 0)
    array = _made(np.asarray, plain, sample)
    if array.dtype.hasobject:
        raise SampleTypeError(f"a {type(sample).__name__} is no array of values; samples are arrays, numbers or lists")
    _check_leaves(leaves, array)
    return array, leaves


def _made(make: Any, plain: Any, sample: Any) -> Any:
    """What a function of NumPy's makes of a sample, with its refusals typed."""
    try:
        return make(plain)
    except (ValueError, TypeError, OverflowError) as error:
        raise SampleTypeError(f"a {type(sample).__name__} that is no regular array: {error}") from error


def _is_sequence(sample: Any) -> bool:
    """Whether NumPy takes this for a sequence of values, whatever its class."""
    kind = type(sample)
    if isinstance(sample, str | bytes | dict | type):
        return False
    if isinstance(sample, Mapping):  # of which NumPy would store the keys
        raise SampleTypeError(f"a {kind.__name__} is no array of values; samples are arrays, numbers or lists")
    return hasattr(kind, "__len__") and hasattr(kind, "__getitem__")


def _unmasked(sample: Any) -> Array:
    """The array without its mask, which must not hide anything: not an element, nor a field of one."""
    array = _made(np.asanyarray, sample, sample)
    if isinstance(array, np.ma.MaskedArray):
        mask = np.asarray(np.ma.getmask(array)).tobytes()
        if mask.count(0) != len(mask):
            raise SampleTypeError("a masked array would lose its mask; fill it first")
    return np.asarray(array)


def _listed(sequence: Any, leaves: list[Any], depth: int) -> Any:
    """The sequence as nested lists, read once; its single values and its arrays are added to `leaves`."""
    if depth > _MOST_NESTED:
        raise SampleTypeError(f"a {type(sequence).__name__} nested more than {_MOST_NESTED} deep is no array")
    parts = sequence if isinstance(sequence, list | tuple) else _taken(sequence)
    if set(map(type, parts)) <= _PLAIN:
        leaves.extend(parts)
        return parts
    return [_part(part, leaves, depth) for part in parts]


def _taken(sequence: Any) -> list[Any]:
    """The parts as they come, of which the next one may use the memory of the one before."""
    return list(sequence if type(sequence) in _STEADY else map(lent, sequence))


def _part(part: Any, leaves: list[Any], depth: int) -> Any:
    if isinstance(part, np.generic):
        leaves.append(part)
        return part
    if is_array(part):
        leaves.append(_unmasked(part))
        return leaves[-1]
    if _is_sequence(part):
        return _listed(part, leaves, depth + 1)
    leaves.append(part)
    return part


def _check_leaves(leaves: list[Any], array: Array) -> None:
    """Refuse a sequence of parts that have nothing but a lossy dtype in common."""
    if _agree(leaves, array.dtype):
        return
    values, at = array.reshape(-1).tolist(), 0
    for leaf in leaves:
        if isinstance(leaf, np.ndarray) or _has_exact_cast(leaf):
            _check_array(np.asarray(leaf), array.dtype)
        else:
            _check_value(leaf, values[at], array.dtype)
        at += leaf.size if isinstance(leaf, np.ndarray) else 1


def _agree(leaves: list[Any], dtype: np.dtype[Any]) -> bool:
    """Whether all parts are of one type that the dtype holds, so that there is no need to look at each of them."""
    types = set(map(type, leaves))
    if len(types) != 1:
        return not types
    [only] = types
    if only is int:
        return dtype.kind in _INTEGERS
    if only in (bool, float, complex):
        return True
    is_text = issubclass(only, str | bytes)  # of which NumPy drops trailing zeros
    return not is_text and hasattr(only, "dtype") and {leaf.dtype for leaf in leaves} == {dtype}


def _has_exact_cast(leaf: Any) -> bool:
    """Whether a NumPy scalar is of a dtype whose values Python cannot compare."""
    return isinstance(leaf, np.generic) and (leaf.dtype.kind in _TIMES or _is_extended(leaf.dtype))


def _check_array(part: Array, dtype: np.dtype[Any]) -> None:
    if part.dtype == dtype or part.size == 0 or np.can_cast(part.dtype, dtype, "equiv"):
        return
    with np.errstate(all="ignore"):
        kept = _cast(part, dtype, False)[1] if _comparable(part.dtype, dtype) else np.zeros(part.shape, bool)
    if not kept.all():
        _refuse(part.reshape(-1)[~kept.reshape(-1)][0], dtype)


def _check_value(leaf: Any, value: Any, dtype: np.dtype[Any]) -> None:
    if isinstance(leaf, str | bytes):  # as plain ones: NumPy's compare equal without their last zeros
        exact: Any = "".join([leaf]) if isinstance(leaf, str) else b"".join([leaf])
    else:
        exact = leaf.item() if isinstance(leaf, np.generic) else leaf
    if not (exact == value or (exact != exact and value != value)):
        _refuse(leaf, dtype)


def _refuse(leaf: Any, dtype: np.dtype[Any]) -> None:
    is_integer = isinstance(leaf, int | np.integer) and dtype.kind in "fc"
    what = f"the integer {int(leaf)} between floats" if is_integer else f"{leaf!r} in a list of different types"
    refuse = SampleTypeError if dtype.kind in "US" else SampleError
    raise refuse(f"{what} cannot be stored exactly as {dtype}")


def _only_floats_round(leaves: list[Any], kept: Array) -> bool:
    """Whether every value that the map's dtype rounds is a Python float; integers and NumPy's values have to fit."""
    flags, at = kept.reshape(-1), 0
    for leaf in leaves:
        size = leaf.size if isinstance(leaf, np.ndarray) else 1
        if type(leaf) not in (float, complex) and not flags[at : at + size].all():
            return False
        at += size
    return True


# -- from one dtype to another ---------------------------------------------------------------------------------------


def _is_extended(dtype: np.dtype[Any]) -> bool:
    """Whether another package has registered this dtype, as ml_dtypes does with bfloat16."""
    return dtype.isbuiltin == 2


def _is_float(dtype: np.dtype[Any]) -> bool:
    return "float" in dtype.name if _is_extended(dtype) else dtype.kind in "fc"


def _is_complex(dtype: np.dtype[Any]) -> bool:
    return "complex" in dtype.name if _is_extended(dtype) else dtype.kind == "c"


def _is_integer(dtype: np.dtype[Any]) -> bool:
    return "int" in dtype.name if _is_extended(dtype) else dtype.kind in _INTEGERS


def _comparable(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether values of the one may turn out equal to values of the other."""
    numbers = [dtype.kind in _NUMBERS or _is_extended(dtype) for dtype in (source, target)]
    if any(numbers):
        return all(numbers)
    return source.kind == target.kind and source.kind in "mMUS"


def _cast(array: Array, dtype: np.dtype[Any], rounding: bool) -> tuple[Array, Array]:
    """The array in the other dtype, and which of its values are kept: exactly, or rounded where that is allowed."""
    if dtype.kind in _TIMES:
        return cast_times(array, dtype)
    array = _wide(array)
    if array.dtype.kind == "c" or _is_complex(dtype):
        return _cast_complex(array, dtype, rounding)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if _is_integer(dtype):
        return _cast_to_integers(array, dtype)
    cast = array.astype(dtype)
    back = _wide(cast)
    if array.dtype.kind in _INTEGERS:
        kept = _equal_integers(back, array)
        array = array.astype(np.float64)
    else:
        back = back.astype(array.dtype)
        kept = np.asarray((array == back) | ((array != array) & (back != back)))
    if rounding and _is_float(dtype):
        kept |= np.isfinite(array) & np.isfinite(back) & (np.abs(array) <= _largest(dtype))
    return cast, kept


def _cast_complex(array: Array, dtype: np.dtype[Any], rounding: bool) -> tuple[Array, Array]:
    """Both parts for themselves."""
    if not _is_complex(dtype):
        cast, kept = _cast(array.real, dtype, rounding)
        return cast, np.asarray(kept & (array.imag == 0))
    wide, part = np.zeros(array.shape, np.complex128 if _is_extended(dtype) else dtype), _part_of(dtype)
    real, kept = _cast(array.real, part, rounding)
    wide.real = _wide(real)
    if array.dtype.kind == "c":
        imaginary, also = _cast(array.imag, part, rounding)
        wide.imag, kept = _wide(imaginary), np.asarray(kept & also)
    return wide.astype(dtype, copy=False), kept


def _part_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the real and the imaginary part of a complex one."""
    if _is_extended(dtype):
        return np.dtype(_ml_dtypes().bfloat16 if dtype.name.startswith("b") else np.float16)
    return np.zeros(0, dtype).real.dtype


def _cast_to_integers(array: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Integers that are in the bounds of the dtype; floats that are such integers."""
    low, high = _bounds(dtype)
    if array.dtype.kind in _INTEGERS:
        lowest, highest = _bounds(array.dtype)
        inside = np.asarray((array >= max(low, lowest)) & (array <= min(high, highest)))
        return (_within(array, inside) if _is_extended(dtype) else array).astype(dtype), inside
    floats = array.astype(np.promote_types(array.dtype, np.float64))
    inside = (floats >= float(low)) & (floats < float(high + 1))
    whole = _within(floats, inside).astype(np.uint64 if high >= 2**63 else np.int64)
    return whole.astype(dtype), np.asarray(inside & (whole.astype(floats.dtype) == floats))


def _within(array: Array, inside: Array) -> Array:
    return np.asarray(np.where(inside, array, array.dtype.type(0)))


def _equal_integers(floats: Array, integers: Array) -> Array:
    """Compare without a detour that rounds: the floats have to be integers of the same dtype."""
    cast, kept = _cast_to_integers(floats, integers.dtype)
    return np.asarray(kept & (cast == integers))


def _wide(array: Array) -> Array:
    """The values in a dtype that NumPy calculates with."""
    if not _is_extended(array.dtype):
        return array
    if _is_integer(array.dtype):
        return array.astype(np.int64)
    return array.astype(np.complex128 if _is_complex(array.dtype) else np.float64)


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    info = np.iinfo(dtype) if not _is_extended(dtype) else _ml_dtypes().iinfo(dtype)
    return int(info.min), int(info.max)


def _largest(dtype: np.dtype[Any]) -> Any:
    """The largest finite value; some small floats of ml_dtypes have no infinity, and end there."""
    if not _is_extended(dtype):
        return np.inf  # beyond it there is infinity, which is no rounding
    return float(_ml_dtypes().finfo(dtype).max)


def _ml_dtypes() -> Any:
    import ml_dtypes

    return ml_dtypes
