"""Parts of a map that read like maps: chosen samples, a split into training and validation, windows of long samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np

from mmap_ninja._grid import Span
from mmap_ninja._storage.index import Table
from mmap_ninja._storage.snapshot import Snapshot
from mmap_ninja._taking import Layout
from mmap_ninja._view import View, viewable
from mmap_ninja._windows import Windows
from mmap_ninja.base import Mmap
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, MapChangedError
from mmap_ninja.gather import Empty, Rows
from mmap_ninja.indexing import Positions, checked, integer, is_single, listed, out_of_range, positions
from mmap_ninja.permutation import MOST_SAMPLES, Permutation

__all__ = ["Selection", "View", "Windows", "select", "split", "windows"]

_Key = TypeVar("_Key")


class Shuffled(NamedTuple):
    """The numbers `[start, stop)` of a permutation."""

    permutation: Permutation
    start: int
    stop: int


class Selection(View):
    """Samples of a map or view, chosen by position; made by `select` and `split`."""

    def __init__(self, source: Mmap | View, chosen: range | Positions | Shuffled) -> None:
        super().__init__(source)
        self._chosen = chosen

    def __reduce__(self) -> tuple[Any, ...]:
        return Selection, (self._held(), self._chosen)

    def __len__(self) -> int:
        self._held()
        if isinstance(self._chosen, Shuffled):
            return self._chosen.stop - self._chosen.start
        return len(self._chosen)

    @property
    def indices(self) -> Positions:
        """Which samples of the map or view these are: int64 `(n,)`, made when it is asked for.

        For what belongs to the samples and is no map: `labels[train.indices]`.
        """
        return self._numbers(None)

    def __repr__(self) -> str:
        if self._source is None or len(self) == 0:
            return super().__repr__()
        some = self._numbers(np.unique([0, min(1, len(self) - 1), len(self) - 1])).tolist()
        return f"{super().__repr__()[:-1]}, samples {', '.join(map(str, some[:2]))} to {some[-1]}>"  # not of any other

    def _check(self) -> None:
        chosen, n = self._chosen, len(self._held())
        if isinstance(chosen, Shuffled):
            needed = chosen.permutation.n
        elif isinstance(chosen, range):
            needed = max(chosen[0], chosen[-1]) + 1 if chosen else 0
        else:
            needed = int(chosen.max(initial=-1)) + 1
        if needed > n:
            raise MapChangedError(f"the samples of this selection reach to number {needed - 1}, but there are {n} now")

    def _number(self, i: int) -> int:
        chosen = self._chosen
        if isinstance(chosen, Shuffled):
            return chosen.permutation.number(chosen.start + i)
        return int(chosen[i])

    def _numbers(self, found: Positions | None) -> Positions:
        """The positions in the source of these samples, or of all."""
        chosen = self._chosen
        if found is None:
            found = np.arange(len(self), dtype=np.int64)
        if isinstance(chosen, Shuffled):
            return chosen.permutation(found + chosen.start)
        return found * chosen.step + chosen.start if isinstance(chosen, range) else chosen[found]

    def _read(self, i: int) -> Any:
        return self._held()[self._number(i)]

    def _each(self, found: Positions) -> Iterator[Any]:
        source, numbers = self._held(), self._numbers(found)
        if isinstance(source, View):
            return source._each(numbers)
        return (source[i] for i in numbers.tolist())  # a StopIteration of a `wrapper_fn` would end a `map` quietly

    def _gathered(self, found: Positions, layout: Layout, empty: Empty) -> Any:
        return self._held()._gather(self._numbers(found), layout, empty)

    def _fill(self, out: Any, found: Positions) -> Any:
        return self._held().take(self._numbers(found), out)

    def _window(self, i: int, start: int, length: int) -> Any:
        return self._held().window(self._number(i), start, length)

    def _rows(self, snapshot: Snapshot, found: Positions) -> Rows:
        rows: Rows = self._held()._rows(snapshot, self._numbers(found))
        return rows

    def _shapes(self, snapshot: Snapshot, found: Positions | None = None) -> Table:
        shapes: Table = self._held()._shapes(snapshot, self._numbers(found))
        return shapes

    def _places(self, snapshot: Snapshot, found: Positions | None = None) -> tuple[Table, Table]:
        places: tuple[Table, Table] = self._held()._places(snapshot, self._numbers(found))
        return places


def select(m: Mmap | View, indices: Any) -> Selection:
    """The samples at these indices, in their order, as a view; nothing is read.

    `indices` is a slice or range, which are kept as such, or a boolean mask, an array, or any iterable of integers,
    of which an int64 copy is kept. Negative ones count from the end, and a sample may come several times.
    Raises `SampleIndexError`, `IndexTypeError`, `ArgumentTypeError` for what is no map or view.

    Examples:
        >>> from mmap_ninja import RaggedMmap
        >>> m = RaggedMmap.from_lists("rows", [[1], [2, 2], [3, 3, 3]])
        >>> part = select(m, [-1, 0])
        >>> part[0], part.lengths.tolist(), select(part, slice(1, None))[0]
        (array([3, 3, 3]), [3, 1], array([1]))
    """
    source = viewable(m)._pinned()
    return Selection(source, _chosen(listed(indices), len(source)))


def _chosen(indices: Any, n: int) -> range | Positions:
    if isinstance(indices, slice):
        found = range(*checked(indices).indices(n))
        return found if len(found) > 1 else range(found.start, found.start + len(found))  # its step may be huge
    if isinstance(indices, range):
        if len(indices) == 0:
            return range(0)
        ends = indices[0], indices[-1]
        for end in ends:
            if not -n <= end < n:
                raise out_of_range(end, n)
        if min(ends) >= 0:
            return indices
        if max(ends) < 0:
            return range(indices.start + n, indices.stop + n, indices.step)
    return positions(indices, n)


@overload
def split(m: Mmap | View, parts: Mapping[_Key, float], seed: int | None = 0) -> dict[_Key, Selection]: ...
@overload
def split(m: Mmap | View, parts: Sequence[float], seed: int | None = 0) -> tuple[Selection, ...]: ...
def split(m: Mmap | View, parts: Any, seed: int | None = 0) -> Any:
    """Random parts of a map that have no sample in common and are all of it together, as a tuple of views.

    `parts` are fractions that sum to 1, or lengths that sum to `len(m)`; or a dict of those, for a dict of views.
    Of samples that the fractions leave over, each of the first parts gets one. The samples are the same for the same
    length, `parts` and `seed` (0 to 2**64 - 1) on every machine: maps side by side are split alike. With `seed=None`
    they are not shuffled: the first part are the first samples, as for time series. No list of samples is kept.

    A map that has grown is split anew; to keep the old parts apart, split `select(m, range(old_length))`.
    Raises `ArgumentError`, `ArgumentTypeError`.

    Examples:
        >>> from mmap_ninja import RaggedMmap
        >>> m = RaggedMmap.from_lists("rows", [[i] * i for i in range(10)])
        >>> train, validation = split(m, (0.8, 0.2), seed=0)
        >>> train.lengths.tolist(), validation.lengths.tolist()
        ([4, 1, 3, 6, 2, 7, 5, 8], [0, 9])
        >>> {name: len(part) for name, part in split(m, {"train": 7, "test": 3}).items()}
        {'train': 7, 'test': 3}
    """
    source = viewable(m)._pinned()
    n = len(source)
    if isinstance(parts, Mapping):
        return dict(zip(parts, split(source, tuple(parts.values()), seed), strict=True))
    bounds = np.cumsum([0, *_sizes(parts, n)]).tolist()
    permutation = None if seed is None else Permutation(n, seed)
    return tuple(
        Selection(source, range(start, stop) if permutation is None else Shuffled(permutation, start, stop))
        for start, stop in pairwise(bounds)
    )


def _sizes(parts: Any, n: int) -> list[int]:
    """How many of n samples each part gets."""
    if isinstance(parts, str | bytes) or not hasattr(parts, "__iter__"):
        raise ArgumentTypeError(f"parts is {parts!r}, expected several fractions or lengths, such as (0.8, 0.2)")
    given = list(parts)
    if given and all(map(is_single, given)):
        sizes = list(map(int, given))
        if min(sizes) < 0 or sum(sizes) != n:
            raise ArgumentError(f"the lengths {sizes} sum to {sum(sizes)}, expected lengths for {n} samples")
        return sizes
    for part in given:
        if isinstance(part, bool) or not isinstance(part, int | float | Fraction | np.integer | np.floating):
            raise ArgumentTypeError(f"a part is {part!r}, expected a fraction or a length")
        if not 0 <= part <= 1:
            raise ArgumentError(f"a part is {part!r}, expected fractions of 0 to 1, or only integers as lengths")
    total = math.fsum(given)
    if abs(total - 1) > 1e-9:
        raise ArgumentError(f"the fractions {given} sum to {total}, expected 1")
    return _shares([Fraction(float(part)) for part in given], n)


def _shares(fractions: list[Fraction], n: int) -> list[int]:
    # What is an integer but for the rounding of floats is one: 0.29 of 100 are 29.
    slack = min(Fraction(n, 10**14), Fraction(1, 2 * len(fractions)))
    sizes = [math.floor(n * fraction / sum(fractions) + slack) for fraction in fractions]
    takers = [k for k, fraction in enumerate(fractions) if fraction]
    for k in takers[: n - sum(sizes)]:
        sizes[k] += 1
    return sizes


def windows(m: Mmap | View, length: int, stride: int | None = None) -> Windows:
    """All windows of `length` elements along the first axis of the samples, sample by sample, as a view.

    Window j of a sample begins at `j * stride` (default: `length`) and lies wholly inside of it: samples that are
    shorter have none, and what is left at the end of a sample is in none (`uncovered` counts it). For dense and
    ragged maps and uncompressed bytes; only the pages of a window are read. Where all windows have one shape, many
    are one array `(b, length, ...)` of its own, as of a dense map, else a list. The index of ragged maps and bytes is
    read once, in 1 MiB of memory for any number of samples.

    Raises `ArgumentError` and `ArgumentTypeError`, also for texts, compressed maps and those with a `wrapper_fn`;
    `SampleError` for scalars, `MapCorruptError`.

    Examples:
        >>> from mmap_ninja import RaggedMmap
        >>> m = RaggedMmap.from_lists("tokens", [[0, 1, 2, 3, 4], [5], [6, 7, 8]])
        >>> pairs = windows(m, 2)
        >>> pairs[:].tolist(), pairs.uncovered
        ([[0, 1], [2, 3], [6, 7]], 3)
    """
    span = Span(_size("length", length), _size("stride", length if stride is None else stride))
    made = Windows(viewable(m), span)
    made._check()
    return made


def _size(name: str, value: Any) -> int:
    size = integer(name, value, 1)
    if size > MOST_SAMPLES:
        raise ArgumentError(f"{name} is {size}, expected at most {MOST_SAMPLES}")
    return size
