"""How a dtype stands in a file: numpy's own description of it, never anything that would have to be executed."""

from __future__ import annotations

import json
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
        dtype = np.dtype(np.lib.format.descr_to_dtype(_tuples(described)))
    else:
        raise ValueError(f"dtype {described!r}")
    if dtype.hasobject or dtype.itemsize == 0 or dtype.subdtype is not None:
        raise ValueError(f"dtype {described!r} cannot be mapped")
    return dtype


def _named_dtype(name: str) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(name)
    except TypeError:
        return _extended_dtype(name)
    if dtype.names is not None:
        raise ValueError(f"dtype {name!r}")
    return dtype


def _extended_dtype(name: str) -> np.dtype[Any]:
    """One of ml_dtypes (bfloat16, float8_e4m3fn ...), if that package is there."""
    try:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        if dtype.name == name:
            return dtype
    except (ImportError, AttributeError, TypeError):
        pass
    raise ValueError(f"dtype {name!r} is unknown here; where it is one of ml_dtypes, install that")


def _tuples(described: Any) -> Any:
    """JSON has lists only: a descr is a list of tuples, in which a shape is a tuple and a nested descr a list."""
    fields = []
    for entry in described:
        if not isinstance(entry, list) or not 2 <= len(entry) <= 3:
            raise ValueError(f"dtype field {entry!r}")
        name, kind, *shape = entry
        name = tuple(name) if isinstance(name, list) else name
        kind = _tuples(kind) if isinstance(kind, list) else kind
        if not isinstance(kind, str | list) or not all(isinstance(s, list) for s in shape):
            raise ValueError(f"dtype field {entry!r}")
        fields.append((name, kind, *(tuple(s) for s in shape)))
    return fields
