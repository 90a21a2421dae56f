"""Which state of which map it is, in a few values that can be stored and expected again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmap_ninja._storage.dtypes import describe_dtype, parse_dtype
from mmap_ninja._storage.snapshot import Snapshot
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, MapChangedError


def identity(snapshot: Snapshot) -> dict[str, Any]:
    """The identity of a state: JSON values that stay the same as long as its samples do."""
    state = snapshot.manifest
    dtype = None if state.dtype is None else json.loads(json.dumps(describe_dtype(state.dtype)))
    found = {"id": state.id, "kind": state.kind, "dtype": dtype, "length": snapshot.length}
    checksum = _checksum(snapshot)
    return found if checksum is None else {**found, "checksum": checksum}


def _checksum(snapshot: Snapshot) -> str | None:
    """A digest of the checksums of all bytes; None where there are none, or where they may not hold."""
    state = snapshot.manifest
    is_part = snapshot.length != state.length
    if state.format_1 or is_part or not all(file.checked for file in state.files.values()):
        return None
    from hashlib import blake2b  # 1 ms

    files = [(role, file.size, file.blocks_crc, file.tail_crc) for role, file in sorted(state.files.items())]
    return blake2b(repr(files).encode(), digest_size=8).hexdigest()


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError("expected a number")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a str")
    return value


def _dtype(value: Any) -> np.dtype[Any] | None:
    if isinstance(value, np.dtype) or value is None:
        return value
    return parse_dtype(value) if isinstance(value, str | list) else np.dtype(value)


def _shape(value: Any) -> tuple[int, ...] | None:
    try:
        return None if value is None else tuple(map(_whole_number, value))
    except (TypeError, ValueError):
        raise ValueError("expected a tuple of numbers") from None


# How a value is read that is expected, and what there is.
_KNOWN: Mapping[str, tuple[Callable[[Any], Any], Callable[[Snapshot], Any]]] = {
    "id": (_text, lambda snapshot: snapshot.manifest.id),
    "kind": (_text, lambda snapshot: snapshot.manifest.kind),
    "dtype": (_dtype, lambda snapshot: snapshot.manifest.dtype),
    "length": (_whole_number, lambda snapshot: snapshot.length),
    "checksum": (_text, _checksum),
    "generation": (_whole_number, lambda snapshot: snapshot.manifest.generation),
    "sample_shape": (_shape, lambda snapshot: snapshot.manifest.sample_shape),
}


def expectation(given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What is expected of a map, checked. Raises `ArgumentError`, `ArgumentTypeError`."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ArgumentTypeError(f"expect is {given!r:.100}, expected a dict, such as the `identity` of a map")
    unknown = [name for name in given if name not in _KNOWN]
    if unknown:
        raise ArgumentError(
            f"expect has {', '.join(map(repr, unknown))}, of which nothing is known: {', '.join(_KNOWN)}"
        )
    found = {}
    for name, value in given.items():
        try:
            found[name] = _KNOWN[name][0](value)
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(f"expect[{name!r}] is {value!r:.100}: {error}") from None
    return found


def refuse_another(snapshot: Snapshot, expected: Mapping[str, Any]) -> None:
    """Raise `MapChangedError` for a state that is not the one that is expected."""
    differ = []
    for name, value in expected.items():
        found = _KNOWN[name][1](snapshot)
        if found != value:
            shown = "not known" if name == "checksum" and found is None else f"{found}"
            differ.append(f"its {name} is {shown}, expected {value}")
    if differ:
        raise MapChangedError(
            f"{snapshot.folder} is not what was expected: {'; '.join(differ)}. Open the map that was meant, or expect "
            "the `identity` of this one, if it has changed on purpose"
        )
