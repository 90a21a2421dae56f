"""Where the windows of samples lie: which window of which sample is window k of all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from mmap_ninja._storage.index import rows_at_once
from mmap_ninja._storage.manifest import BYTES
from mmap_ninja.errors import ArgumentError, SampleError
from mmap_ninja.gather import Integers, Rows
from mmap_ninja.indexing import Positions

_MOST_TOTALS = 1 << 17  # running totals that are kept: 1 MiB
_MOST_WINDOWS = 2**62  # no sum of two positions overflows


class Span(NamedTuple):
    """What is cut out of samples: windows of `length` elements, each `stride` elements after the one before."""

    length: int
    stride: int

    def counts(self, lengths: Any) -> Any:
        """How many windows samples of these lengths have."""
        return ((lengths - self.length) // self.stride + 1) * (lengths >= self.length)

    def covered(self, counts: Any) -> Any:
        """How many elements so many windows of one sample cover."""
        return (counts - 1) * min(self.length, self.stride) * (counts > 0) + self.length * (counts > 0)


class Grid(ABC):
    """All windows of the samples of a map or view, sample by sample.

    `count` is how many there are, `shape` the shape of all, None where they may differ; `uncovered` is how many
    elements along the first axis of the samples lie in none.
    """

    count: int
    uncovered: int
    shape: tuple[int, ...] | None

    @abstractmethod
    def find(self, found: Positions) -> tuple[Positions, Positions]:
        """The samples that these windows are of, and which of their windows each is."""

    @abstractmethod
    def find_one(self, k: int) -> tuple[int, int]:
        """The same for one window."""


class EvenGrid(Grid):
    """For samples of one shape."""

    def __init__(self, span: Span, n: int, shape: tuple[int, ...]) -> None:
        if n and not shape:
            raise _scalar("the samples are scalars")
        length = shape[0] if n else 0
        each = int(span.counts(length))
        self.count, self.uncovered = _checked(n * each), n * (length - int(span.covered(each)))
        self.shape = (span.length, *shape[1:])
        self._each = max(each, 1)

    def find(self, found: Positions) -> tuple[Positions, Positions]:
        """By division."""
        return np.divmod(found, self._each)

    def find_one(self, k: int) -> tuple[int, int]:
        """The same for one window."""
        return divmod(k, self._each)


class UnevenGrid(Grid):
    """For samples of any shapes, by running totals of every so many of them: the index is read once for these."""

    def __init__(self, span: Span, n: int, source: Any) -> None:
        self._span, self._n, self._source, self._snapshot = span, n, source, source._opened()
        self._block = 1 << max(0, (n - 1).bit_length() - (_MOST_TOTALS.bit_length() - 1))  # samples a total
        self._at_once = max(rows_at_once(1 + self._snapshot.index.ndim) // self._block, 1) * self._block
        self.uncovered, totals = 0, [np.zeros(1, np.int64)]
        tails = _Tails()
        for first in range(0, n, self._at_once):
            numbers = np.arange(first, min(first + self._at_once, n), dtype=np.int64)
            rows = source._rows(self._snapshot, numbers)  # refuses wrong ones
            lengths = _lengths(rows)
            counts = span.counts(lengths)
            _checked(int(totals[-1][-1]) + float(counts.sum(dtype=float)))
            totals.append(totals[-1][-1] + np.add.reduceat(counts, np.arange(0, len(counts), self._block)).cumsum())
            self.uncovered += int((lengths - span.covered(counts)).sum())
            tails.add(rows.shapes[counts > 0, 1:])
        self._totals = np.concatenate(totals)
        self.count = int(self._totals[-1])
        self.shape = None if source.kind == BYTES else self._shape(tails)

    def _shape(self, tails: _Tails) -> tuple[int, ...] | None:
        if tails.first is not None:
            return (self._span.length, *tails.first[tails.first >= 0].tolist()) if tails.are_same else None
        is_flat = self._snapshot.index.ndim == 1 and not self._snapshot.manifest.mixed
        return (self._span.length,) if is_flat else None

    def find(self, found: Positions) -> tuple[Positions, Positions]:
        """By bisection: which total, and then in the samples behind it."""
        if self._block == 1:
            samples = self._totals.searchsorted(found, "right") - 1
            return samples, found - self._totals[samples]
        size = self._at_once // self._block
        parts = [self._look_up(found[first : first + size]) for first in range(0, max(len(found), 1), size)]
        samples, windows = (np.concatenate(column) for column in zip(*parts, strict=True))
        return samples, windows

    def find_one(self, k: int) -> tuple[int, int]:
        """The same for one window, with fewer calls."""
        first = int(self._totals.searchsorted(k, "right")) - 1
        rest = k - int(self._totals[first])
        if self._block == 1:
            return first, rest
        samples = np.arange(first * self._block, min((first + 1) * self._block, self._n), dtype=np.int64)
        counts = self._span.counts(self._source._shapes(self._snapshot, samples)[:, 0])
        ends = counts.cumsum()
        at = min(int(ends.searchsorted(rest, "right")), len(ends) - 1)
        return int(samples[at]), rest - int(ends[at] - counts[at])

    def _look_up(self, found: Positions) -> tuple[Positions, Positions]:
        blocks = np.unique(self._totals.searchsorted(found, "right") - 1)
        samples = (blocks[:, None] * self._block + np.arange(self._block, dtype=np.int64)).reshape(-1)
        np.minimum(samples, self._n - 1, out=samples)  # behind the last window of all, where nobody looks
        counts = self._span.counts(self._source._shapes(self._snapshot, samples)[:, 0])
        ends = (counts.reshape(-1, self._block).cumsum(axis=1) + self._totals[blocks, None]).reshape(-1)
        at = np.minimum(ends.searchsorted(found, "right"), max(len(ends) - 1, 0))
        return samples[at], found - (ends[at] - counts[at])


class _Tails:
    """Whether the shapes that were seen are the same but for their first axis."""

    first: Integers | None = None
    are_same = True

    def add(self, tails: Integers) -> None:
        if len(tails):
            self.first = tails[0] if self.first is None else self.first
            self.are_same = self.are_same and bool((tails == self.first).all())


def _lengths(rows: Rows) -> Integers:
    """How long each sample is. Raises `SampleError` for scalars."""
    if rows.shapes.shape[1] == 0:
        raise _scalar("the samples are scalars")
    lengths: Integers = rows.shapes[:, 0]
    if len(lengths) and lengths.min() < 0:
        raise _scalar(f"sample {rows.numbers[lengths.argmin()]} is a scalar")
    return lengths


def _scalar(what: str) -> SampleError:
    return SampleError(f"{what}: there is no axis to cut windows along")


def _checked(count: float) -> Any:
    if count > _MOST_WINDOWS:
        raise ArgumentError(f"there would be {count:.0f} windows, at most {_MOST_WINDOWS}; take a larger stride")
    return count
