"""How a dtype stands in a file: numpy's own description of it, never anything that would have to be executed."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np


def check_storable(dtype: np.dtype[Any]) -> None:
    """Raise `ValueError` for a dtype that a manifest could not give back as it is."""
    if dtype.itemsize == 0:
        raise ValueError(f"values of dtype {dtype} have no bytes to store")
    if dtype.kind in "mM" and np.datetime_data(dtype)[0] == "generic":
        raise ValueError(f"dtype {dtype} has no unit")
    try:
        again = parse_dtype(json.loads(json.dumps(describe_dtype(dtype))))
    except (TypeError, ValueError) as error:
        raise ValueError(f"dtype {dtype} cannot be stored: {error}") from None
    if again != dtype:
        raise ValueError(f"dtype {dtype} cannot be stored: it would come back as {again}")


def describe_dtype(dtype: np.dtype[Any]) -> Any:
    """A dtype as JSON: numpy's `descr`, or the plain name where only that says it (bfloat16)."""
    if dtype.names is not None:
        return dtype.descr
    if dtype.isbuiltin == 2:  # registered by ml_dtypes
        return dtype.name
    return dtype.str


def parse_dtype(described: Any) -> np.dtype[Any]:
    """The inverse of `describe_dtype`; raises `ValueError` for what may not stand in a file."""
    try:
        return _checked(described)
    except (TypeError, SyntaxError, KeyError, OverflowError) as error:
        raise ValueError(f"dtype {described!r}: {error}") from None


def _checked(described: Any) -> np.dtype[Any]:
    if isinstance(described, str):
        dtype = _named_dtype(described)
    elif isinstance(described, list):
        dtype = np.dtype(np.lib.format.descr_to_dtype(_tuples(described, [0], 0)))
    else:
        raise ValueError(f"dtype {described!r}")
    is_generic = dtype.kind in "mM" and np.datetime_data(dtype)[0] == "generic"
    if dtype.hasobject or dtype.itemsize == 0 or dtype.subdtype is not None or is_generic:
        raise ValueError(f"dtype {described!r} cannot be mapped")
    return dtype


# All that may stand in a file: numpy's `str` of a dtype, its `name` (format 1), and names of ml_dtypes. Other text
# numpy would read as an expression ("2i4", "(2,3)f4,i1"), which it hands to Python's compiler.
_UNIT = r"(?:\[[0-9]{0,9}[A-Za-z]{1,2}(?:/[0-9]{1,9})?\])"
_DESCR = re.compile(rf"[<>|=]?(?:[biufcSUV][0-9]{{1,10}}|[mM]8{_UNIT}?)")
_PLAIN = re.compile(rf"bool|(?:u?int|float|complex|str|bytes|void)[0-9]{{1,10}}|(?:datetime|timedelta)64{_UNIT}?")
_EXTENDED = re.compile(r"b?float[0-9][a-z0-9_]{0,30}|b?complex[0-9]{1,3}|u?int[0-9]")
_MOST_FIELDS = 4096
_MOST_LEVELS = 32


def _named_dtype(name: str) -> np.dtype[Any]:
    if _DESCR.fullmatch(name) or _PLAIN.fullmatch(name):
        try:
            return np.dtype(name)
        except TypeError:
            pass
    if _EXTENDED.fullmatch(name):
        return _extended_dtype(name)
    raise ValueError(f"dtype {name!r} is unknown")


def _extended_dtype(name: str) -> np.dtype[Any]:
    """One of ml_dtypes (bfloat16, float8_e4m3fn ...), if that package is there."""
    try:
        import ml_dtypes

        scalar = getattr(ml_dtypes, name)
        if isinstance(scalar, type) and issubclass(scalar, np.generic):
            return np.dtype(scalar)
    except (ImportError, AttributeError):
        pass
    raise ValueError(f"dtype {name!r} is unknown here; where it is one of ml_dtypes, install that")


def _tuples(described: Any, seen: list[int], depth: int) -> Any:
    """JSON has lists only: a descr is a list of tuples, in which a shape is a tuple and a nested descr a list.

    `seen` counts the fields.
    """
    if depth > _MOST_LEVELS:
        raise ValueError(f"a dtype nested more than {_MOST_LEVELS} deep")
    fields = []
    for entry in described:
        seen[0] += 1
        if seen[0] > _MOST_FIELDS:
            raise ValueError(f"a dtype of more than {_MOST_FIELDS} fields")
        if not isinstance(entry, list) or not 2 <= len(entry) <= 3:
            raise ValueError(f"dtype field {entry!r}")
        name, kind, *shape = entry
        name = tuple(name) if isinstance(name, list) else name
        if isinstance(kind, list):
            kind = _tuples(kind, seen, depth + 1)
        elif not isinstance(kind, str) or not _DESCR.fullmatch(kind):
            raise ValueError(f"dtype field {entry!r}")
        if not all(isinstance(axes, list) and len(axes) <= 32 for axes in shape):
            raise ValueError(f"dtype field {entry!r}")
        fields.append((name, kind, *(tuple(s) for s in shape)))
    return fields
