"""What batches are made of: one map, or a dict or tuple of maps, whose samples are dicts or tuples then.

For whoever makes something of them, as the adapters do: `opened` takes all sources that `Batches` takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mmap_ninja import gather
from mmap_ninja._storage.manifest import BYTES, DENSE, STRINGS
from mmap_ninja._taking import Layout
from mmap_ninja.base import Mmap, open_map
from mmap_ninja.errors import ArgumentError, ArgumentTypeError
from mmap_ninja.gather import Empty
from mmap_ninja.indexing import Positions, boolean, listed, positions
from mmap_ninja.views import View

Fields = Any  # a map, or a dict or tuple of `Fields`

TEXTS = STRINGS, BYTES  # the kinds of maps whose samples are no arrays


class Values:
    """An array in memory, or an `np.memmap`, that reads like a dense map: labels, say."""

    kind = DENSE
    wrapper_fn = None
    copy_before_wrapper_fn = True

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @property
    def mode(self) -> str:
        """`"c"` for an array in memory, `"r"` for one that is read-only; for an `np.memmap` its own."""
        base: Any = self._array if self._array.flags.writeable else None
        while base is not None:
            if isinstance(base, np.memmap):
                return str(base.mode)
            base = getattr(base, "base", None)
        return "c" if self._array.flags.writeable else "r"

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the array."""
        dtype: np.dtype[Any] = self._array.dtype
        return dtype

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of every sample."""
        shape: tuple[int, ...] = self._array.shape[1:]
        return shape

    def __getitem__(self, i: int) -> Any:
        return self._array[i]

    def take(self, indices: Any, out: Any = None) -> Any:
        """Many samples as an array of their own, `out` if there is one."""
        array = np.asarray(self._array)
        found = positions(listed(indices), len(array))
        return gather.dense(array, found) if out is None else gather.fill(out, array, found)

    def _gather(self, indices: Positions, layout: Layout, empty: Empty) -> Any:
        return gather.dense(np.asarray(self._array), indices, empty)

    def will_need(self, indices: Positions) -> None:
        """Do nothing: it is in memory."""

    def _expect(self, *, random: bool) -> None:
        """Do nothing: it is in memory."""

    def _pinned(self) -> Values:
        return self

    def _origin(self) -> None:
        """It is no map."""

    def _verify(self) -> None:
        """Compare the map that it is the `np.memmap` of, if it is that of one."""
        if hasattr(self._array, "_verify"):
            self._array._verify()


def opened(source: Any, where: str = "source", mode: str = "r", *, check: bool = False) -> Fields:
    """The same with paths opened as maps in this mode, and arrays as something that reads like one.

    `check` compares each of the maps with its checksums. Raises `MapCorruptError`.
    """
    fields = _opened(source, where, mode, boolean("check", check))
    if check:
        verify(fields)
    return fields


def verify(fields: Fields) -> None:
    """Compare the state that each map is seen in with its checksums, once in a process. Raises `MapCorruptError`."""
    each(lambda field: field._verify(), fields)


def _opened(source: Any, where: str, mode: str, check: bool) -> Fields:
    if isinstance(source, str | os.PathLike):
        return open_map(source, mode=mode, check=check)
    if isinstance(source, Mmap | View | Values):
        return source
    is_masked = isinstance(source, np.ma.MaskedArray)
    if isinstance(source, np.ndarray) and source.ndim and not source.dtype.hasobject and not is_masked:
        return Values(source)
    if isinstance(source, Mapping | tuple) and source:
        return alike(
            source, {key: _opened(part, f"{where}[{key!r}]", mode, check) for key, part in named_parts(source)}
        )
    raise ArgumentTypeError(
        f"{where} is {source!r:.100}, expected a map, a view or the path of one, an array, or a dict or tuple of those"
    )


def leaves(fields: Fields, name: str = "source") -> Iterator[tuple[str, Any]]:
    """Each map, with the name that an error calls it by."""
    if isinstance(fields, dict | tuple):
        for key, part in named_parts(fields):
            yield from leaves(part, f"{name}[{key!r}]")
    else:
        yield name, fields


def each(function: Callable[[Any], Any], fields: Fields) -> Any:
    """What the function makes of each map, in the same dicts and tuples."""
    return each_part(partial(each, function), fields) if isinstance(fields, dict | tuple) else function(fields)


def each_named(function: Callable[[str, Any], Any], fields: Fields, name: str = "source") -> Any:
    """The same of a function that also gets the name of each map, as an error calls it."""
    if isinstance(fields, dict | tuple):
        return alike(fields, {key: each_named(function, part, f"{name}[{key!r}]") for key, part in named_parts(fields)})
    return function(name, fields)


def each_part(function: Callable[[Any], Any], given: Mapping[Any, Any] | tuple[Any, ...]) -> Any:
    """What the function makes of each part of one dict or tuple, as a dict or as a tuple of the same kind."""
    return alike(given, {key: function(part) for key, part in named_parts(given)})


def alike(given: Mapping[Any, Any] | tuple[Any, ...], parts: dict[Any, Any]) -> Any:
    """The parts, by key or by number, as a dict, or as a tuple of the same kind as the one that was given."""
    return parts if isinstance(given, Mapping) else like(given, parts.values())


def like(given: tuple[Any, ...], parts: Iterable[Any]) -> tuple[Any, ...]:
    """The parts as a tuple of the same kind, which may be a named one."""
    return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)


def named_parts(given: Mapping[Any, Any] | tuple[Any, ...]) -> Iterable[tuple[Any, Any]]:
    """The parts of a dict by key, of a tuple by number."""
    return given.items() if isinstance(given, Mapping) else enumerate(given)


def length(fields: Fields) -> int:
    """How many samples there are. Raises `ArgumentError` if the maps do not have equally many."""
    lengths = {name: len(leaf) for name, leaf in leaves(fields)}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {count}" for name, count in lengths.items())
        raise ArgumentError(f"samples side by side need maps of one length: {found}")
    return next(iter(lengths.values()))


def is_ragged(one: Any) -> bool:
    """Whether the samples of a map are arrays, as they are stored, that may differ in shape."""
    return one.wrapper_fn is None and one.kind not in TEXTS and not hasattr(one, "sample_shape")


def have_wrappers(fields: Fields) -> bool:
    """Whether a function of the user's makes the samples of any of the maps."""
    return any(one.wrapper_fn is not None for _, one in leaves(fields))


def rows(parts: Any) -> Sequence[Any]:
    """The samples of a batch, made of dicts and tuples of lists or arrays of their parts.

    >>> rows({"x": [1, 2], "y": ["a", "b"]})
    [{'x': 1, 'y': 'a'}, {'x': 2, 'y': 'b'}]
    """
    if isinstance(parts, dict):
        return [dict(zip(parts, row, strict=True)) for row in zip(*map(rows, parts.values()), strict=True)]
    if isinstance(parts, tuple):
        return [like(parts, row) for row in zip(*map(rows, parts), strict=True)]
    samples: Sequence[Any] = parts
    return samples
