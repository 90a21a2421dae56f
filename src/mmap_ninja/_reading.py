"""The reading half of every map: opening, indexing, and what the index knows."""

from __future__ import annotations

import os
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mmap_ninja._encode import Array
from mmap_ninja._storage import verified
from mmap_ninja._storage.identity import expectation, identity, refuse_another
from mmap_ninja._storage.index import Table, parts
from mmap_ninja._storage.legacy import DEFAULT_KEYS, Keys
from mmap_ninja._storage.manifest import Manifest
from mmap_ninja._storage.snapshot import Snapshot, find, open_snapshot
from mmap_ninja._taking import Indexed
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    IndexTypeError,
    MapChangedError,
    MapClosedError,
    MapCorruptError,
    MapKindError,
    MapNotFoundError,
    MmapNinjaError,
    PartBuiltWarning,
    SampleError,
    SampleIndexError,
    warn,
)
from mmap_ninja.gather import lengths
from mmap_ninja.indexing import Positions, boolean, is_single, listed, merged, out_of_range, position, positions

if TYPE_CHECKING:
    from pathlib import Path  # 4 ms, for an attribute that few ask for

AnyPath = str | os.PathLike[str]
WRITE_MODES = ("r+", "r+b", "rb+")
_READ_MODES = ("r", "rb")
PRIVATE = "c"  # copy-on-write, as NumPy calls it


_OPENED_WITH = ("mode", "_folder", "_given_path", "wrapper_fn", "copy_before_wrapper_fn", "_keys", "_is_checked")
_handles: weakref.WeakSet[Reading] = weakref.WeakSet()


def _renew_locks() -> None:
    # In a forked child the thread that held one does not exist, and nobody would ever release it.
    for handle in _handles:
        handle._change = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class Reading(Indexed):
    """A handle of one map: the state that it opened, and a function from a position to a sample."""

    mode: str
    copy_before_wrapper_fn: bool

    _is_checked = False  # whether each state is compared with its checksums before it is seen
    _written: tuple[str, int] | None = None  # id and length of a newer state than the one that is mapped

    @abstractmethod
    def _reader(self, snapshot: Snapshot) -> Callable[[int], Any]:
        """The function from an index, which it checks, to the sample."""

    @classmethod
    @abstractmethod
    def _empty(cls) -> Manifest:
        """The state of a map that is not there yet."""

    # Opening.

    def _open(
        self,
        out_dir: AnyPath,
        mode: str,
        wrapper_fn: Callable[[Any], Any] | None,
        copy_before_wrapper_fn: bool,
        keys: Keys = DEFAULT_KEYS,
        *,
        check: bool = False,
        expect: Mapping[str, Any] | None = None,
    ) -> None:
        self._is_checked, expected = boolean("check", check), expectation(expect)
        self.mode, self._folder = check_mode(mode), folder_of(out_dir)
        self._given_path = os.fspath(out_dir)
        self.wrapper_fn, self.copy_before_wrapper_fn = wrapper_fn, copy_before_wrapper_fn
        self._keys = keys
        self._change = threading.RLock()  # one change at a time through this handle
        _handles.add(self)
        try:
            self._load(self._newest(expected))
        except MapNotFoundError:
            if expected:
                raise
            self._load(None)

    def _newest(self, expected: Mapping[str, Any] = MappingProxyType({}), **seen: Any) -> Snapshot:
        """The newest state, compared with its checksums if that was asked for.

        With `id` and `length` of a state that was seen, what there is of that.
        """

        def look() -> Snapshot:
            snapshot = self._newest_as_it_is(**seen)
            refuse_another(snapshot, expected)
            if self._is_checked:
                self._refuse_another_kind(snapshot)  # before every byte of it is read
            return snapshot

        return verified.newest(self._folder, self._keys, look, is_checked=self._is_checked)

    def _newest_as_it_is(self, **seen: Any) -> Snapshot:
        return open_snapshot(self._folder, self._keys, is_private=self.mode == PRIVATE, **seen)

    def _verify(self) -> None:
        """Compare the state that this handle sees with its checksums, if this process has not done so before."""
        snapshot = self._state()
        if snapshot is not None and not verified.is_compared(self._folder, self._keys, snapshot):
            raise MapChangedError(
                f"{self._folder} was changed since it was opened, and its old state cannot be checked any more: refresh"
            )

    @property
    def out_dir(self) -> Path:
        """The folder of the map, as it was given."""
        from pathlib import Path

        return Path(self._given_path)

    def _load(self, snapshot: Snapshot | None) -> None:
        """Make the handle see this state."""
        if snapshot is not None:
            self._refuse_another_kind(snapshot)
        self._see(snapshot)
        if snapshot is not None:
            warn_if_part_built(snapshot)

    def _refuse_another_kind(self, snapshot: Snapshot) -> None:
        if snapshot.manifest.kind != self.kind:
            raise MapKindError(f"{self._folder} is a {snapshot.manifest.kind} map, not a {self.kind} one; use open_map")

    def _see(self, snapshot: Snapshot | None) -> None:
        stored = _nothing if snapshot is None or snapshot.length == 0 else self._reader(snapshot)
        read = stored
        if self.wrapper_fn is not None:
            read = _wrapped(stored, self.wrapper_fn, self.copy_before_wrapper_fn)
        # In this order: a thread that sees the new length can already read the new samples.
        self._read, self._stored, self._snapshot, self._written = read, stored, snapshot, None

    def _state(self) -> Snapshot | None:
        """The state that this handle sees, None where there is no map yet."""
        self._refuse_if_closed()
        if self._written is not None:
            with self._change:
                if self._written is not None:
                    id, length = self._written
                    self._load(self._newest_as_it_is(id=id, length=length))  # what it has written itself
        return self._snapshot

    def _refuse_if_closed(self) -> None:
        if self._read is _closed:
            raise MapClosedError(f"the map at {self._folder} was closed")

    def _load_written(self, state: Manifest, length: int | None = None) -> None:
        """See what was committed through this handle; if it cannot be mapped now, at the next read.

        An error here would say that the commit has failed, and the caller would make it again.
        """

        def read(i: int) -> Any:
            self._state()
            return self._read(i)

        try:
            self._load(Snapshot(self._folder, state, length, is_private=self.mode == PRIVATE))
        except MmapNinjaError:  # no descriptor is free, or others have changed the map already
            self._written = state.id, state.length if length is None else length
            self._read = self._stored = read

    def _opened(self) -> Snapshot:
        """The state that this handle sees, an empty one where there is no map yet."""
        snapshot = self._state()
        return Snapshot(self._folder, self._empty()) if snapshot is None else snapshot

    @property
    def identity(self) -> dict[str, Any]:
        """The state that this handle sees, as a dict of JSON values: with it as `expect`, a map opens as these samples.

        `id` is that of the map and of its backups, `kind`, `dtype` and `length` say what it holds, and `checksum` is
        one of all bytes; it is left out where there is none: in format 1, and while values that were assigned are not
        flushed. None of them changes when the map is flushed, backed up or given other metadata. In format 1, `id` is
        that of the data file: an upgrade keeps it, but a copy has another one, also a backup. Raises
        `MapNotFoundError` where there is no map yet.
        """
        snapshot = self._state()
        if snapshot is None:
            raise MapNotFoundError(f"there is no map at {self._folder} yet; append the first sample before that")
        return identity(snapshot)

    def refresh(self) -> None:
        """Move to the newest committed state, also of another map of this kind that has taken this one's place."""
        with self._change:
            self._refuse_if_closed()
            if self._snapshot is not None or find(self._folder, self._keys) is not None:
                self._load(self._newest())

    def _pinned(self) -> Any:
        """A handle to read the state that this one sees now, whatever becomes of this one."""
        snapshot, twin = self._state(), object.__new__(type(self))
        vars(twin).update({name: getattr(self, name) for name in _OPENED_WITH}, _change=threading.RLock())
        twin._see(snapshot)
        _handles.add(twin)
        return twin

    def _origin(self) -> str | None:
        """The id of the map that this handle sees. Raises `MapChangedError` if there is another one in its folder."""
        snapshot = self._state()
        newest = find(self._folder, self._keys)
        if snapshot is None or newest is None:
            return None if snapshot is None else snapshot.manifest.id
        if newest.id != snapshot.manifest.id:
            raise MapChangedError(f"the map at {self._folder} was replaced since it was opened; open it again")
        return newest.id

    def _is_closed(self) -> bool:
        return self._read is _closed

    def _let_go(self) -> None:
        self._snapshot, self._stored, self._read = None, _closed, _closed

    def close(self) -> None:
        """Let go of the files; a second call does nothing. Arrays that were read stay valid."""
        self._let_go()

    def __enter__(self) -> Any:
        self._state()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _options(self) -> dict[str, Any]:
        """The arguments that open the same map in another process."""
        return {
            "mode": self.mode,
            "wrapper_fn": self.wrapper_fn,
            "copy_before_wrapper_fn": self.copy_before_wrapper_fn,
            "check": self._is_checked,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        snapshot = self._state()
        if snapshot is None:
            return _reopen, (type(self), self._folder, self._options(), None)
        seen = snapshot.manifest.id, snapshot.length
        known = verified.ticket(self._folder, snapshot.manifest)  # so that no worker compares all of it once more
        return _reopen, (type(self), self._folder, self._options(), seen, *([known] if known else []))

    # Samples.

    def __len__(self) -> int:
        snapshot = self._state()
        return 0 if snapshot is None else snapshot.length

    def __getitem__(self, index: Any) -> Any:
        """One sample, or several: see `mmap_ninja.indexing` for what an index may be."""
        if type(index) is int:
            return self._read(index)
        if is_single(index):
            at = position(index, len(self))  # first: whoever sees the new length can read the new samples
            return self._read(at)
        return self._many(index)

    def _many(self, index: Any) -> Any:
        found = positions(index, len(self)).tolist()
        read = self._read
        return [read(i) for i in found]

    def window(self, i: int, start: int, length: int) -> Any:
        """Elements `[start, start + length)` of the first axis of sample i; only their pages are read.

        A view of what is stored, before any `wrapper_fn`. Raises `SampleIndexError` where the sample does not reach
        that far.
        """
        self._state()
        check_window(i, start, length)
        at = position(i, len(self))
        return part(self._stored(at), i, start, length)

    def __iter__(self) -> Iterator[Any]:
        for i in range(len(self)):
            yield self._read(i)

    def __reversed__(self) -> Iterator[Any]:
        for i in reversed(range(len(self))):
            yield self._read(i)

    def __contains__(self, sample: object) -> bool:
        return any(_equal(sample, other) for other in self)

    def __repr__(self) -> str:
        if self._read is _closed:
            return f"<{type(self).__name__} {self._folder!r}, closed>"
        return f"<{type(self).__name__} {self._folder!r} of length: {len(self)}, dtype: {self.dtype}>"

    # What the index knows, without reading a sample.

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of the stored values (uint8 for texts and bytes); None until the first sample."""
        return self._opened().manifest.dtype

    @property
    def nbytes(self) -> int:
        """The size of all stored samples in bytes, as they lie on the disk."""
        return len(self._bytes(self._opened()))

    def _bytes(self, snapshot: Snapshot) -> memoryview:
        """The stored bytes of all samples that this handle sees."""
        if snapshot.length == snapshot.manifest.length:
            return snapshot.data.bytes
        starts, sizes = self._places(snapshot, np.arange(max(snapshot.length - 1, 0), snapshot.length))
        end = int(starts[0] + sizes[0]) if len(starts) else 0
        return snapshot.data.bytes[: end * snapshot.manifest.itemsize]

    @property
    def starts(self) -> Array:
        """Where each sample begins, in elements from the first value of the map: int64 `(n,)`."""
        return self._places(self._opened())[0]

    @property
    def ends(self) -> Array:
        """Where each sample ends, in elements: int64 `(n,)`."""
        starts, sizes = self._places(self._opened())
        return starts + sizes

    @property
    def shapes(self) -> Array:
        """The shape of each sample: int64 `(n, ndim)`, -1 for axes that a sample of a mixed map lacks."""
        return self._shapes(self._opened())

    @property
    def lengths(self) -> Array:
        """`len` of each sample, from the index alone: int64 `(n,)`; 1 for scalars."""
        snapshot = self._opened()
        ndim = snapshot.index.ndim
        return joined([lengths(table[:, 1 : 1 + ndim]) for table in self._tables(snapshot)])

    def will_need(self, indices: Any) -> None:
        """Tell the kernel to read these samples ahead; returns at once, and does nothing where it cannot be told."""
        snapshot = self._opened()
        found = np.unique(positions(listed(indices), snapshot.length))
        if len(found):
            snapshot.data.will_need(self._ranges(snapshot, found))

    def _expect(self, *, random: bool) -> None:
        self._opened().data.expect(random=random)

    # What the index says of all samples, or of those that were found; costs nothing for the others.

    def _table(self, snapshot: Snapshot, found: Positions | None = None) -> Table:
        try:
            return snapshot.index.table(0, snapshot.length) if found is None else snapshot.index.rows(found)
        except MapCorruptError as error:
            raise MapCorruptError(f"{snapshot.folder}: {error}") from None

    def _shapes(self, snapshot: Snapshot, found: Positions | None = None) -> Table:
        return self._table(snapshot, found)[:, 1 : 1 + snapshot.index.ndim]

    def _places(self, snapshot: Snapshot, found: Positions | None = None) -> tuple[Table, Table]:
        """Where each sample begins, and how many elements are stored of it; a wrong row may say anything."""
        ndim, starts, sizes = snapshot.index.ndim, [], []
        for table in self._tables(snapshot, found):
            shapes = table[:, 1 : 1 + ndim]
            starts.append(table[:, 0].copy())  # of the table nothing else stays
            sizes.append(np.where(shapes < 0, 1, shapes).prod(axis=1, dtype=np.int64))
        return joined(starts), joined(sizes)

    def _tables(self, snapshot: Snapshot, found: Positions | None = None) -> Iterator[Table]:
        """The index rows in parts of a bounded size, so that what is calculated of them takes little memory."""
        index = snapshot.index
        try:
            for part in parts(snapshot.length if found is None else len(found), index.width):
                yield index.table(part.start, part.stop) if found is None else index.rows(found[part])
        except MapCorruptError as error:
            raise MapCorruptError(f"{snapshot.folder}: {error}") from None

    def _ranges(self, snapshot: Snapshot, found: Positions) -> Iterable[tuple[int, int]]:
        """The ranges of bytes that these samples lie in, neighbours joined."""
        itemsize = snapshot.manifest.itemsize
        starts, sizes = (column * itemsize for column in self._places(snapshot, found))
        return merged(starts, starts + sizes)


def joined(columns: list[Table]) -> Table:
    """The parts of one column end to end."""
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def folder_of(path: AnyPath) -> str:
    """The absolute path of a map's folder; refuses what can be no path."""
    try:
        given = os.fspath(path)
    except TypeError:
        raise ArgumentTypeError(f"the path of a map is a str or a Path, not {path!r}") from None
    if not isinstance(given, str):
        raise ArgumentTypeError(f"the path of a map is a str or a Path, not {path!r}")
    if not given or "\0" in given:
        raise ArgumentError(f"the path of a map cannot be {given!r}")
    return os.path.abspath(given)


def check_mode(mode: str) -> str:
    """Refuse a mode that no map has."""
    if mode not in (*_READ_MODES, *WRITE_MODES, PRIVATE):
        raise ArgumentError(
            f"mode is {mode!r}, expected 'r' to read, 'r+' to assign in place as well, or 'c' for samples of which the "
            "process may change its own copy"
        )
    return mode


def check_window(i: Any, start: Any, length: Any) -> None:
    """Refuse a window that does not go by integers."""
    if not (is_single(i) and is_single(start) and is_single(length)):
        raise IndexTypeError(f"a window goes by integers, not by {i!r}, {start!r}, {length!r}")


def part(sample: Any, i: int, start: int, length: int) -> Any:
    """The part of a sample along its first axis."""
    if not hasattr(sample, "__len__") or getattr(sample, "ndim", 1) == 0:
        raise SampleError(f"sample {i} is a scalar, it has no window")
    if not 0 <= start <= start + length <= len(sample):
        raise SampleIndexError(f"sample {i} has length {len(sample)}, the window is [{start}, {start + length})")
    return sample[start : start + length]


def _equal(sample: Any, other: Any) -> bool:
    if isinstance(sample, str | bytes) or isinstance(other, str | bytes):
        return type(sample) is type(other) and bool(sample == other)
    try:
        return np.array_equal(sample, other)
    except (TypeError, ValueError):  # no array at all
        return False


def _nothing(i: int) -> Any:
    raise out_of_range(i, 0)


def _closed(i: int) -> Any:
    raise MapClosedError("the map was closed")


def _wrapped(read: Callable[[int], Any], wrapper_fn: Callable[[Any], Any], is_copied: bool) -> Callable[[int], Any]:
    if is_copied:
        return lambda i: wrapper_fn(copy(read(i)))
    return lambda i: wrapper_fn(read(i))


def _reopen(
    cls: type[Any],
    folder: str,
    options: Mapping[str, Any],
    seen: tuple[str, int] | None,
    known: verified.Ticket | None = None,
) -> Any:
    """Open a pickled handle: the same samples as it saw, or `MapChangedError`."""
    verified.adopt(known)
    try:
        opened = cls(folder, **{**options, "check": False})  # what is there may be another map
    except MapKindError as error:
        raise MapChangedError(f"the map at {folder} was replaced since this handle was made: {error}") from error
    opened._is_checked = options.get("check", False)
    id, length = seen or (None, 0)
    opened._load(None if id is None else opened._newest(id=id, length=length))
    return opened


def warn_if_part_built(snapshot: Snapshot) -> None:
    """Tell the user of a map that was never finished."""
    if snapshot.manifest.building is None:
        return
    warn(
        f"the map at {snapshot.folder} was never finished: it has the {snapshot.length} samples that were converted "
        "so far; run the conversion again with resume=True to finish it",
        PartBuiltWarning,
    )
