"""Which parts of a dict are wanted, as features and as labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmap_ninja.errors import ArgumentError, ArgumentTypeError

Names = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Columns:
    """Names of parts: one for a part itself, several for a dict of parts, None for all that are no labels."""

    features: Names = None
    labels: Names = None

    @classmethod
    def of(cls, columns: Any, label_cols: Any) -> Columns:
        """Those that were given. Raises `ArgumentTypeError` for what is no name and no sequence of names."""
        return cls(_names("columns", columns), _names("label_cols", label_cols))

    def used(self, parts: Any) -> Any:
        """A dict without the parts that are not wanted. Raises `ArgumentError` for names that it has not."""
        if self.features is None and self.labels is None:
            return parts
        if not isinstance(parts, Mapping):
            raise ArgumentError(
                f"columns and label_cols are names of parts of a dict, and there is a {type(parts).__name__}"
            )
        for name in (*_listed(self.features), *_listed(self.labels)):
            if name not in parts:
                raise ArgumentError(f"there is no column {name!r}; there are {', '.join(map(repr, parts))}")
        names = {*_listed(self._features(parts)), *_listed(self.labels)}
        return {name: part for name, part in parts.items() if name in names}

    def chosen(self, parts: Any) -> Any:
        """The features, or a tuple of features and labels."""
        parts = self.used(parts)
        if self.features is None and self.labels is None:
            return parts
        features = _chosen(parts, self._features(parts))
        return features if self.labels is None else (features, _chosen(parts, self.labels))

    def _features(self, parts: Mapping[str, Any]) -> Names:
        if self.features is not None:
            return self.features
        return tuple(name for name in parts if name not in _listed(self.labels))


def _names(argument: str, given: Any) -> Names:
    if given is None or isinstance(given, str):
        return given
    names = tuple(given) if isinstance(given, Iterable) else (given,)
    if not names or not all(isinstance(name, str) for name in names):
        raise ArgumentTypeError(f"{argument} is {given!r}, expected the name of a part, or several")
    return names


def _listed(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()


def _chosen(parts: Mapping[str, Any], names: Names) -> Any:
    return parts[names] if isinstance(names, str) else {name: parts[name] for name in _listed(names)}
