"""What every view does: it reads samples of a map, chosen or cut, as if they were a map of their own."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmap_ninja._reading import Reading, _equal, check_window
from mmap_ninja._storage.index import Table
from mmap_ninja._storage.snapshot import Snapshot
from mmap_ninja._taking import LIST, Layout, Taking
from mmap_ninja.base import Mmap
from mmap_ninja.errors import ArgumentTypeError, MapClosedError, MapReadOnlyError
from mmap_ninja.gather import Array, Empty, lengths
from mmap_ninja.indexing import Positions, is_single, listed, merged, position, positions

_AT_ONCE = 1 << 10  # samples whose places are looked up together while iterating
_COUNTED_AT_ONCE = 1 << 14


class View(Taking):
    """Samples of a map, chosen or cut, that read like a map of their own; nothing is copied.

    A view keeps the state that the map had when the view was made: it has no samples that were appended later, and
    goes on when the map is closed. It is read-only, can be pickled (as the path of the map), shared between threads,
    used in forked or spawned workers, and viewed again. Many samples at once are an array of its own
    `(b, *sample_shape)` where the view has a `sample_shape`, else a list.

    Made by `select`, `split` and `windows`.
    """

    _source: Mmap | View | None

    def __init__(self, source: Mmap | View) -> None:
        self._load(source._pinned())

    def _load(self, source: Any) -> None:
        """Be a view of this source, which nobody else changes."""
        self._source = source

    # What a kind of view has to say. The positions are those of samples, counted from the start.

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def _read(self, i: int) -> Any:
        """One sample."""

    @abstractmethod
    def _each(self, found: Positions) -> Iterator[Any]:
        """These samples, one by one."""

    @abstractmethod
    def _gathered(self, found: Positions, layout: Layout, empty: Empty) -> Any:
        """These samples together."""

    @abstractmethod
    def _fill(self, out: Any, found: Positions) -> Any:
        """The array filled with these samples."""

    @abstractmethod
    def _window(self, i: int, start: int, length: int) -> Any:
        """Part of one sample."""

    @abstractmethod
    def _shapes(self, snapshot: Snapshot, found: Positions | None = None) -> Table:
        """The shapes of these samples, or of all."""

    @abstractmethod
    def _places(self, snapshot: Snapshot, found: Positions | None = None) -> tuple[Table, Table]:
        """Where these samples begin in the data, and how many elements are stored of them."""

    @abstractmethod
    def _check(self) -> None:
        """Refuse a state of the map that the view does not fit."""

    # The state.

    def _held(self) -> Any:
        """The map or view that this is a view of."""
        if self._source is None:
            raise MapClosedError(f"this {type(self).__name__} was closed")
        return self._source

    def _opened(self) -> Snapshot:
        snapshot: Snapshot = self._held()._opened()
        return snapshot

    def _pinned(self) -> Any:
        """A view of the state that this one sees now, whatever becomes of this one."""
        self._held()
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def _origin(self) -> str | None:
        """The id of the map. Raises `MapChangedError` if there is another one in its folder."""
        origin: str | None = self._held()._origin()
        return origin

    def _verify(self) -> None:
        self._held()._verify()

    @property
    def mode(self) -> str:
        """That of the map."""
        mode: str = self._held().mode
        return mode

    def _expect(self, *, random: bool) -> None:
        self._held()._expect(random=random)

    def refresh(self) -> None:
        """Move to the newest committed state of the map, also of another one that has taken its place.

        A selection keeps its positions, windows are cut anew. Raises `MapChangedError` where the positions reach
        beyond the map; the view stays as it was then.
        """
        source = self._held()._pinned()
        # The twin has nothing to flush: what was assigned belongs to the handle that has assigned it.
        Reading.refresh(source) if isinstance(source, Reading) else source.refresh()
        moved = self._pinned()
        moved._load(source)
        moved._check()
        vars(self).update(vars(moved))  # at once, for other threads

    def close(self) -> None:
        """Let go of the map, which stays open; a second call does nothing."""
        self._source = None

    def __enter__(self) -> Any:
        self._held()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._source is None:
            return f"<{type(self).__name__}, closed>"
        return f"<{type(self).__name__} of length: {len(self)}, of {self._source!r}>"

    # Samples.

    def __getitem__(self, index: Any) -> Any:
        """One sample, or several: see `mmap_ninja.indexing` for what an index may be."""
        if is_single(index):
            return self._read(position(index, len(self)))
        view = self._pinned()
        return view._gathered(positions(index, len(view)), LIST, np.empty)

    def take(self, indices: Any, out: Any = None) -> Any:
        """Many samples at once, `view[indices]` for any iterable of indices.

        `out` is an array to fill, of the shape and dtype of the result, where all samples have one shape.
        """
        view = self._pinned()
        found = positions(listed(indices), len(view))
        return view._gathered(found, LIST, np.empty) if out is None else view._fill(out, found)

    def _gather(self, indices: Any, layout: Layout, empty: Empty = np.empty) -> Any:
        view = self._pinned()
        return view._gathered(positions(listed(indices), len(view)), layout, empty)

    def window(self, i: int, start: int, length: int) -> Any:
        """Elements `[start, start + length)` of the first axis of sample i, as of a map: before any `wrapper_fn`."""
        check_window(i, start, length)
        view = self._pinned()
        return view._window(position(i, len(view)), start, length)

    def __iter__(self) -> Iterator[Any]:
        return self._walk(range(len(self)))

    def __reversed__(self) -> Iterator[Any]:
        return self._walk(range(len(self))[::-1])

    def _walk(self, order: range) -> Iterator[Any]:
        view = self._pinned()
        for part in _parts(order, _AT_ONCE):
            yield from view._each(part)

    def __contains__(self, sample: object) -> bool:
        return any(_equal(sample, other) for other in self)

    def will_need(self, indices: Any) -> None:
        """Tell the kernel to read these samples ahead; returns at once, and does nothing where it cannot be told."""
        view = self._pinned()
        snapshot, found = view._opened(), np.unique(positions(listed(indices), len(view)))
        starts, sizes = view._places(snapshot, found)
        order, itemsize = starts.argsort(), snapshot.manifest.itemsize
        if len(order):
            begins = starts[order] * itemsize
            snapshot.data.will_need(merged(begins, begins + sizes[order] * itemsize))

    # What the map and its index know.

    @property
    def kind(self) -> str:  # type: ignore[override]
        """That of the map; `"dense"` for windows of one shape."""
        kind: str = self._held().kind
        return kind

    @property
    def wrapper_fn(self) -> Any:  # type: ignore[override]
        """That of the map: `view[i]` has gone through it."""
        return self._held().wrapper_fn

    @property
    def copy_before_wrapper_fn(self) -> bool:
        """That of the map."""
        return bool(self._held().copy_before_wrapper_fn)

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of what the user has stored with the map."""
        metadata: dict[str, Any] = self._held().metadata
        return metadata

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of the stored values (uint8 for texts and bytes); None until the first sample."""
        return self._opened().manifest.dtype

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of every sample; `AttributeError` where the map has no such thing."""
        shape: tuple[int, ...] = self._held().sample_shape
        return shape

    @property
    def nbytes(self) -> int:
        """The size of the samples in bytes, as they lie on the disk; each counts as often as it comes."""
        view = self._pinned()
        snapshot, count = view._opened(), len(view)
        if hasattr(view, "sample_shape"):
            elements = math.prod(view.sample_shape) * count
        else:
            parts = _parts(range(count), _COUNTED_AT_ONCE)
            elements = sum(int(view._places(snapshot, part)[1].sum()) for part in parts)
        return int(elements * snapshot.manifest.itemsize)

    @property
    def shapes(self) -> Array:
        """The shape of each sample: int64 `(n, ndim)`, -1 for axes that a sample of a mixed map lacks."""
        view = self._pinned()
        shapes: Array = view._shapes(view._opened())
        return shapes

    @property
    def lengths(self) -> Array:
        """`len` of each sample, from the index alone: int64 `(n,)`; 1 for scalars."""
        view = self._pinned()
        snapshot, order = view._opened(), range(len(view))
        found = [lengths(view._shapes(snapshot, part)) for part in _parts(order, _COUNTED_AT_ONCE)]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    # What a view does not do.

    def __setitem__(self, index: Any, value: Any) -> None:
        raise _read_only()

    def append(self, sample: Any) -> None:
        """Raise `MapReadOnlyError`."""
        raise _read_only()

    def extend(self, samples: Any) -> None:
        """Raise `MapReadOnlyError`."""
        raise _read_only()


def _read_only() -> MapReadOnlyError:
    return MapReadOnlyError("a view is read-only; change the map, and then refresh the view or make a new one")


def _parts(order: range, size: int) -> Iterator[Positions]:
    for first in range(0, len(order), size):
        part = order[first : first + size]
        yield np.arange(part.start, part.stop, part.step, dtype=np.int64)


def viewable(source: Any) -> Mmap | View:
    """The map or view, if it is one."""
    if isinstance(source, Mmap | View):
        return source
    raise ArgumentTypeError(f"a view is of a map, or of a view, not of {source!r:.100}; open_map opens one by its path")
