"""What every map does: the `Mmap` contract, the registry of kinds, `open_map`, and `Wrapped`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from mmap_ninja import _ingest
from mmap_ninja._storage.disk import make_folder
from mmap_ninja._storage.inplace import InPlace
from mmap_ninja._storage.legacy import DEFAULT_KEYS, Keys
from mmap_ninja._storage.manifest import Manifest
from mmap_ninja._storage.snapshot import Snapshot, find, open_snapshot
from mmap_ninja._storage.writer import Batch, Build, new_id, sync_map, writing
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    MapChangedError,
    MapClosedError,
    MapKindError,
    MapNotFoundError,
    MapReadOnlyError,
    PartBuiltWarning,
    SampleError,
    SampleIndexError,
    SyncError,
    warn,
)
from mmap_ninja.indexing import Positions, is_single, out_of_range, position, positions

if TYPE_CHECKING:
    from pathlib import Path  # 4 ms, for an attribute that few ask for

Sample = TypeVar("Sample")
AnyPath = str | os.PathLike[str]
Array = np.ndarray[Any, np.dtype[Any]]
Samples = Sequence[Any] | Array
Encoder = Callable[[Manifest, Samples], Batch]

_READ_MODES, _WRITE_MODES = ("r", "rb"), ("r+", "r+b", "rb+")
_kinds: dict[str, type[Mmap[Any]]] = {}


@dataclass(frozen=True)
class Plan:
    """What a `from_*` call asks for: the map to make, and how to open it afterwards."""

    template: Manifest
    opening: Mapping[str, Any]
    dictionary_size: int | None = None

    def keys(self) -> Keys:
        """The names of the subfolders that a map of format 1 in the same place may have."""
        given = {name.removesuffix("_key"): key for name, key in self.opening.items() if name.endswith("_key")}
        return Keys(**given)


class Wrapped:
    """Any collection seen through a function: `wrapped[i]` is `wrapper_fn(data[i])`.

    `wrapper_fn` gets a copy of the sample, unless `copy_before_wrapper_fn=False`.

    Examples:
        >>> halves = Wrapped([1, 2, 3], lambda x: x / 2)
        >>> halves[2], len(halves)
        (1.5, 3)
    """

    def __init__(self, data: Any, wrapper_fn: Callable[[Any], Any], copy_before_wrapper_fn: bool = True) -> None:
        self.data = data
        self.wrapper_fn = wrapper_fn
        self.copy_before_wrapper_fn = copy_before_wrapper_fn

    def __getitem__(self, item: Any) -> Any:
        sample = self.data[item]
        return self.wrapper_fn(copy(sample) if self.copy_before_wrapper_fn else sample)

    def __len__(self) -> int:
        return len(self.data)


class Mmap(Generic[Sample]):
    """One stored collection of samples in a folder, read through memory maps.

    Opening costs the same for any number of samples and writes nothing. A handle keeps seeing the state that it
    opened; `refresh`, or a write through this handle, moves it to the newest. It can be pickled (as a path), shared
    between threads, and used in forked or spawned workers.

    Samples that are arrays are read-only views of the mapped file, without a copy, in every mode.
    """

    kind: ClassVar[str]

    mode: str
    wrapper_fn: Callable[[Any], Any] | None
    copy_before_wrapper_fn: bool

    def __init_subclass__(cls) -> None:
        _kinds[cls.kind] = cls

    # -- what each kind has to say -------------------------------------------------------------------------------

    def _reader(self, snapshot: Snapshot) -> Callable[[int], Sample]:
        """The function from a position in `[0, length)`, or out of it, to the sample."""
        raise MapKindError(f"{type(self).__name__} cannot be read")

    @classmethod
    def _plan(cls, **options: Any) -> Plan:
        """The manifest of an empty map with these options of the kind's own constructor method."""
        raise MapKindError(f"{cls.__name__} cannot be made")

    @classmethod
    def _encoder(cls, dictionary: bytes | None, dictionary_size: int | None) -> Encoder:
        """The function that converts and checks samples for a map in the given state."""
        raise MapKindError(f"{cls.__name__} cannot be made")

    def _patch(self, snapshot: Snapshot, i: int, value: Any) -> tuple[int, memoryview]:
        """Where the bytes of sample i begin in the data, and the bytes of `value` in their place."""
        raise MapReadOnlyError(f"samples of a {self.kind} map cannot be assigned")

    # -- opening -------------------------------------------------------------------------------------------------

    def _open(
        self,
        out_dir: AnyPath,
        mode: str,
        wrapper_fn: Callable[[Any], Any] | None,
        copy_before_wrapper_fn: bool,
        keys: Keys = DEFAULT_KEYS,
    ) -> None:
        if mode not in _READ_MODES + _WRITE_MODES:
            raise ArgumentError(f"mode is {mode!r}, expected 'r' to read or 'r+' to assign in place as well")
        self.mode, self._given_path = mode, os.fspath(out_dir)
        self.wrapper_fn, self.copy_before_wrapper_fn = wrapper_fn, copy_before_wrapper_fn
        self._folder, self._keys = os.path.abspath(out_dir), keys
        self._change = threading.RLock()  # one change at a time through this handle
        self._patches: InPlace | None = None
        self._failure: str | None = None
        self._unsynced = False
        try:
            self._load(open_snapshot(self._folder, keys))
        except MapNotFoundError:
            self._load(None)

    @property
    def out_dir(self) -> Path:
        """The folder of the map, as it was given."""
        from pathlib import Path

        return Path(self._given_path)

    def _load(self, snapshot: Snapshot | None) -> None:
        """Make the handle see this state; everything that a read needs changes in one step."""
        if snapshot is not None and snapshot.manifest.kind != self.kind:
            raise MapKindError(f"{self._folder} is a {snapshot.manifest.kind} map, not a {self.kind} one; use open_map")
        stored = _nothing if snapshot is None or snapshot.length == 0 else self._reader(snapshot)
        read = stored
        if self.wrapper_fn is not None:
            read = _wrapped(stored, self.wrapper_fn, self.copy_before_wrapper_fn)
        self._snapshot, self._stored, self._read = snapshot, stored, read
        if snapshot is not None and snapshot.manifest.building is not None:
            _warn_part_built(snapshot)

    def _options(self) -> dict[str, Any]:
        """The arguments that open the same map in another process."""
        return {
            "mode": self.mode,
            "wrapper_fn": self.wrapper_fn,
            "copy_before_wrapper_fn": self.copy_before_wrapper_fn,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        snapshot = self._state()
        seen = None if snapshot is None else (snapshot.manifest.id, snapshot.length)
        return _reopen, (type(self), self._folder, self._options(), seen)

    def _state(self) -> Snapshot | None:
        """The state that this handle sees, None where there is no map yet."""
        if self._read is _closed:
            raise MapClosedError(f"the map at {self._folder} was closed")
        return self._snapshot

    def _opened(self) -> Snapshot:
        """The state that this handle sees; an empty one where there is no map yet."""
        snapshot = self._state()
        if snapshot is None:
            return Snapshot(self._folder, self._plan().template)
        return snapshot

    # -- reading -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        snapshot = self._state()
        return 0 if snapshot is None else snapshot.length

    def __getitem__(self, index: Any) -> Any:
        """One sample, or several: see `mmap_ninja.indexing` for what an index may be."""
        if type(index) is int:
            return self._read(index)
        if is_single(index):
            return self._read(position(index, len(self)))
        return self._many(positions(index, len(self)))

    def _many(self, found: Positions) -> Any:
        read = self._read
        return [read(i) for i in found.tolist()]

    def take(self, indices: Any, out: Any = None) -> Any:
        """Many samples at once, `m[indices]` for a list or array of indices.

        Returns a list; for dense maps an array `(len(indices), *sample_shape)`. `out` is for dense maps only.
        Raises `SampleIndexError`, `IndexTypeError`.
        """
        if out is not None:
            raise ArgumentTypeError(f"take(out=...) is for dense maps; samples of a {self.kind} map differ in size")
        return self._many(positions(_listed(indices), len(self)))

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

    # -- what the index knows ------------------------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of the stored values (uint8 for texts and bytes); None until the first sample."""
        return self._opened().manifest.dtype

    @property
    def nbytes(self) -> int:
        """The size of all stored samples in bytes, as they lie on the disk."""
        return len(self._opened().data.bytes)

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of what the user has stored with the map: a dict of JSON values. Assigning commits a new one."""
        return dict(self._opened().manifest.metadata)

    @metadata.setter
    def metadata(self, value: Mapping[str, Any]) -> None:
        checked = check_metadata(value)
        with self._change, self._writing(0.0) as writer:
            if not isinstance(writer, Build):
                writer.change(metadata=checked)
                self._load(Snapshot(self._folder, writer.state))
                return
        raise MapNotFoundError(f"there is no map at {self._folder} yet; append the first sample, then set metadata")

    @property
    def starts(self) -> Array:
        """Where each sample begins, in elements from the first value of the map: int64 `(n,)`."""
        return self._table()[:, 0]

    @property
    def ends(self) -> Array:
        """Where each sample ends, in elements: int64 `(n,)`."""
        return self.starts + self._sizes()

    @property
    def shapes(self) -> Array:
        """The shape of each sample: int64 `(n, ndim)`, -1 for axes that a sample of a mixed map lacks."""
        snapshot = self._opened()
        return self._table()[:, 1 : 1 + snapshot.index.ndim]

    @property
    def lengths(self) -> Array:
        """`len` of each sample, from the index alone: int64 `(n,)`; 1 for scalars."""
        shapes = self.shapes
        return np.ones(len(shapes), np.int64) if shapes.shape[1] == 0 else np.abs(shapes[:, 0])

    def _sizes(self) -> Array:
        """How many stored elements each sample has."""
        shapes = self.shapes
        sizes: Array = np.where(shapes < 0, 1, shapes).prod(axis=1, dtype=np.int64)
        return sizes

    def _table(self) -> Array:
        snapshot = self._opened()
        return snapshot.index.table(0, snapshot.length)

    def window(self, i: int, start: int, length: int) -> Any:
        """Elements `[start, start + length)` of the first axis of sample i; only their pages are read.

        A view of what is stored, before any `wrapper_fn`. Raises `SampleIndexError` where the sample does not reach
        that far.
        """
        self._state()
        return self._part(self._stored(position(i, len(self))), i, start, length)

    @staticmethod
    def _part(sample: Any, i: int, start: int, length: int) -> Any:
        """The part of a sample along its first axis."""
        if not hasattr(sample, "__len__") or getattr(sample, "ndim", 1) == 0:
            raise SampleError(f"sample {i} is a scalar, it has no window")
        size = len(sample)
        if not 0 <= start <= start + length <= size:
            raise SampleIndexError(f"sample {i} has length {size}, the window is [{start}, {start + length})")
        return sample[start : start + length]

    def will_need(self, indices: Any) -> None:
        """Tell the kernel to read these samples ahead; returns at once, and does nothing where it cannot be told."""
        snapshot = self._opened()
        found = np.unique(positions(_listed(indices), len(self)))
        if len(found):
            snapshot.data.will_need(self._ranges(snapshot, found))

    def _ranges(self, snapshot: Snapshot, found: Positions) -> Iterable[tuple[int, int]]:
        """The ranges of bytes that these samples lie in, neighbours joined."""
        itemsize = 1 if snapshot.manifest.dtype is None else snapshot.manifest.dtype.itemsize
        starts = self.starts[found] * itemsize
        return merged(starts, starts + self._sizes()[found] * itemsize)

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, sample: Any, sync: bool = True, timeout: float = 0.0) -> None:
        """Add one sample; see `extend`, which is much faster for many."""
        self._extend([sample], sync=sync, timeout=timeout)

    def extend(self, samples: Any, sync: bool = True, timeout: float = 0.0) -> None:
        """Add samples at the end, all of them or none.

        When the call returns, they are durable; with `sync=False` they are safe against a kill of the process, and
        against a power cut once the kernel has written them back. `timeout` is how many seconds to wait for
        another writer. Raises `SampleError`, `SampleTypeError`, `MapLockedError`, `MapChangedError`, `OSError`;
        then no sample was added.
        """
        self._extend(self._check_samples(samples), sync=sync, timeout=timeout)

    @classmethod
    def _check_samples(cls, samples: Any) -> Samples:
        """Many samples as a sequence; one that was meant as a sample is refused."""
        if isinstance(samples, str | bytes | bytearray | dict) or samples is None:
            raise ArgumentTypeError(f"expected a list of samples, got a {type(samples).__name__}; append adds one")
        return samples if isinstance(samples, list | np.ndarray) else list(samples)

    def _extend(self, samples: Samples, *, sync: bool, timeout: float) -> None:
        with self._change:
            if len(samples) == 0:
                return
            self._renew_checksums()
            snapshot = self._opened()
            encode = self._encoder(snapshot.dictionary, None)
            batch = encode(snapshot.manifest, samples)  # a bad sample changes nothing, not even the format
            with self._writing(timeout) as writer:
                if not writer.state.takes_same(snapshot.manifest):  # another writer was faster
                    batch = encode(writer.state, samples)
                writer.append(batch, sync=sync)
                writer.finish(sync=sync)
            self._unsynced = self._unsynced or not sync
            self._load(Snapshot(self._folder, writer.state))

    def _writing(self, timeout: float) -> _Writing:
        return _Writing(self, timeout)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Overwrite one sample or several of the same sizes, in mode `"r+"`.

        All values are checked before the first byte is written. The bytes are written at once and durable after
        `flush` or `close`, but not atomic under a crash: until then the map is marked as not checksummed.
        """
        with self._change:
            snapshot = self._opened()
            if self.mode not in _WRITE_MODES:
                raise MapReadOnlyError(
                    f'{self._folder} is open read-only (mode "{self.mode}"); assigning needs mode="r+"'
                )
            patches = [self._patch(snapshot, i, v) for i, v in self._assigned(index, value)]
            if not patches:
                return
            if self._patches is None:
                with self._writing(0.0) as writer:
                    self._patches = InPlace(writer)
                self._load(Snapshot(self._folder, writer.state, snapshot.length))
                patches = [self._patch(self._opened(), i, v) for i, v in self._assigned(index, value)]
            for at, raw in patches:
                self._patches.write(at, raw)

    def _assigned(self, index: Any, value: Any) -> Iterator[tuple[int, Any]]:
        if is_single(index):
            yield position(index, len(self)), value
            return
        found = positions(index, len(self))
        if not hasattr(value, "__len__") or isinstance(value, str | bytes) or len(value) != len(found):
            raise SampleError(f"expected a sequence of {len(found)} samples to assign, one for each index")
        yield from zip(found.tolist(), value, strict=True)

    def flush(self) -> None:
        """Make everything that was written through this handle durable, and renew the checksums of assigned samples."""
        with self._change:
            self._state()
            self._renew_checksums()
            if self._unsynced and self._snapshot is not None:
                sync_map(self._folder, self._snapshot.manifest)
                self._unsynced = False

    def _renew_checksums(self) -> None:
        """Vouch again for what was assigned in place."""
        if self._patches is not None:
            patches, self._patches = self._patches, None
            with self._writing(0.0) as writer:
                patches.finish(writer)
            self._load(Snapshot(self._folder, writer.state, len(self)))

    def refresh(self) -> None:
        """Move to the newest committed state, also of another map of this kind that has taken this one's place."""
        with self._change:
            if self._state() is not None or find(self._folder, self._keys) is not None:
                self._load(open_snapshot(self._folder, self._keys))

    def close(self) -> None:
        """Flush, and let go of the files; a second call does nothing. Arrays that were read stay valid."""
        with self._change:
            if self._read is not _closed:
                self.flush()
                self._snapshot, self._stored, self._read = None, _closed, _closed

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- making --------------------------------------------------------------------------------------------------

    @classmethod
    def from_generator(
        cls,
        out_dir: AnyPath,
        sample_generator: Iterable[Any],
        batch_size: int,
        verbose: bool = False,
        *,
        resume: bool = False,
        sync: bool = True,
        timeout: float = 0.0,
        **options: Any,
    ) -> Any:
        """Make a map from an iterable of samples, of which at most `batch_size` are in memory at once.

        What is in `out_dir` stays whole until the new map takes its place, durable, at the end. If the generator
        raises or the process dies, the part that was built can be read (with a `PartBuiltWarning`) and finished by
        the same call with `resume=True`, which takes and drops the samples that are there already. `verbose` shows
        a progress bar. Further options are those of the kind's plain constructor method (`dtype`, `mode`,
        `wrapper_fn`, `metadata`, ...). Returns the opened map.
        """
        size = _ingest.check_batch_size(batch_size)
        if isinstance(sample_generator, str | bytes | dict) or not _is_iterable(sample_generator):
            raise ArgumentTypeError(f"expected an iterable of samples, got a {type(sample_generator).__name__}")
        return cls._build(
            out_dir,
            lambda start: _ingest.chunks(_ingest.from_iterable(sample_generator, start, verbose), size),
            cls._plan(**options),
            resume=resume,
            sync=sync,
            timeout=timeout,
        )

    @classmethod
    def from_indexable(
        cls,
        out_dir: AnyPath,
        indexable: Any,
        batch_size: int,
        n_jobs: int | None = None,
        verbose: bool = False,
        *,
        resume: bool = False,
        sync: bool = True,
        timeout: float = 0.0,
        **options: Any,
    ) -> Any:
        """Make a map of `indexable[i]`, or `indexable(i)`, for i = 0, 1, ...; otherwise as `from_generator`.

        An indexable without `len` ends at its first `IndexError`. With `n_jobs` other than None or 1, joblib loads
        in that many processes: the indexable travels to each worker once, the results keep their order.
        """
        size = _ingest.check_batch_size(batch_size)
        _ingest.loader(indexable)
        return cls._build(
            out_dir,
            lambda start: _ingest.chunks(_ingest.from_indexable(indexable, start, n_jobs, verbose, size), size),
            cls._plan(**options),
            resume=resume,
            sync=sync,
            timeout=timeout,
        )

    @classmethod
    def _build(
        cls,
        out_dir: AnyPath,
        batches: Callable[[int], Iterable[Samples]],
        plan: Plan,
        *,
        resume: bool = False,
        sync: bool = True,
        timeout: float = 0.0,
    ) -> Any:
        """Make a map of `batches(start)`, the samples from number `start` on, each checked before it is written."""
        folder = os.path.abspath(out_dir)
        with Build(folder, plan.template, plan.keys(), resume=resume, timeout=timeout) as build:
            encode = cls._encoder(build.dictionary(), plan.dictionary_size)
            for samples in batches(build.state.length):
                build.append(encode(build.state, samples))
            build.finish(sync=sync)
        return cls(out_dir, **plan.opening)  # type: ignore[call-arg]


class _Writing:
    """Holds the lock of a handle's map, and makes sure that it is still the same map and can be written to."""

    def __init__(self, handle: Mmap[Any], timeout: float) -> None:
        self._handle = handle
        self._context = writing(handle._folder, handle._opened().manifest, handle._keys, timeout)

    def __enter__(self) -> Any:
        handle, snapshot = self._handle, self._handle._snapshot
        if handle._failure is not None:
            raise SyncError(5, f"{handle._folder}: an earlier sync failed ({handle._failure}); open the map again")
        writer = self._context.__enter__()
        try:
            if writer.state.kind != handle.kind:
                raise MapKindError(f"{handle._folder} is a {writer.state.kind} map now, not a {handle.kind} one")
            if snapshot is not None and writer.state.id != snapshot.manifest.id:
                raise MapChangedError(f"the map at {handle._folder} was replaced since it was opened; open it again")
        except BaseException as error:
            self._context.__exit__(type(error), error, error.__traceback__)
            raise
        return writer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, SyncError):
            self._handle._failure = str(error)
        self._context.__exit__(kind, error, trace)


def open_map(
    path: AnyPath,
    wrapper_fn: Callable[[Any], Any] | None = None,
    mode: str = "r",
    copy_before_wrapper_fn: bool = True,
) -> Mmap[Any]:
    """Open the map in a folder as an object of its kind.

    Raises `MapNotFoundError` where there is none, `MapCorruptError` where it is damaged.
    """
    folder = os.path.abspath(path)
    manifest = find(folder)
    if manifest is None:
        raise MapNotFoundError(f"there is no map at {folder}")
    options = {"mode": mode, "wrapper_fn": wrapper_fn, "copy_before_wrapper_fn": copy_before_wrapper_fn}
    return _kinds[manifest.kind](path, **options)  # type: ignore[call-arg]


def from_generator_base(
    out_dir: AnyPath,
    sample_generator: Iterable[Any],
    batch_size: int,
    batch_ctor: Callable[..., Any],
    extend_fn: Callable[[Any, list[Any]], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Make anything batch by batch: `batch_ctor(out_dir, samples, **kwargs)` first, then `extend_fn(made, samples)`.

    Without an `extend_fn`, `made.extend(samples)`. Returns what `batch_ctor` has made, None for no samples. For
    packages that build on this one; the maps' own `from_generator` commits a whole build at once instead.
    """
    from pathlib import Path

    folder, size, made = Path(out_dir), _ingest.check_batch_size(batch_size), None
    make_folder(str(folder))
    samples = _ingest.from_iterable(sample_generator, 0, kwargs.pop("verbose", False))
    for chunk in _ingest.chunks(samples, size):
        if made is None:
            made = batch_ctor(folder, chunk, **kwargs)
        elif extend_fn is not None:
            extend_fn(made, chunk)
        else:
            made.extend(chunk)
    return made


def template(kind: str, *, metadata: Mapping[str, Any] | None = None, **fields: Any) -> Manifest:
    """The manifest of a new, empty map."""
    return Manifest(kind=kind, id=new_id(), metadata=check_metadata(metadata or {}), **fields)


def check_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The user's metadata, if it is a mapping that JSON can hold."""
    import json

    try:
        return MappingProxyType(dict(json.loads(json.dumps(dict(metadata), allow_nan=False))))
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"metadata has to be a dict of JSON values: {error}") from None


def merged(starts: Array, stops: Array) -> Iterator[tuple[int, int]]:
    """Ascending ranges, those joined that touch."""
    gaps = np.flatnonzero(starts[1:] > np.maximum.accumulate(stops)[:-1])
    firsts, lasts = np.concatenate([[0], gaps + 1]), np.concatenate([gaps, [len(starts) - 1]])
    tops = np.maximum.accumulate(stops)
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        if tops[last] > starts[first]:
            yield int(starts[first]), int(tops[last])


def _listed(indices: Any) -> Any:
    return indices if isinstance(indices, np.ndarray | list | range | slice) else list(indices)


def _equal(sample: Any, other: Any) -> bool:
    if isinstance(sample, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(sample, other)
    return bool(sample == other)


def _is_iterable(samples: Any) -> bool:
    return hasattr(samples, "__iter__") or hasattr(samples, "__getitem__")


def _nothing(i: int) -> Any:
    raise out_of_range(i, 0)


def _closed(i: int) -> Any:
    raise MapClosedError("the map was closed")


def _wrapped(read: Callable[[int], Any], wrapper_fn: Callable[[Any], Any], is_copied: bool) -> Callable[[int], Any]:
    if is_copied:
        return lambda i: wrapper_fn(copy(read(i)))
    return lambda i: wrapper_fn(read(i))


def _reopen(cls: type[Mmap[Any]], folder: str, options: Mapping[str, Any], seen: tuple[str, int] | None) -> Mmap[Any]:
    """Open a pickled handle: the same samples as it saw, or `MapChangedError`."""
    opened = cls(folder, **options)  # type: ignore[call-arg]
    if seen is not None:
        id, length = seen
        opened._load(open_snapshot(folder, opened._keys, id=id, length=length))
    return opened


def _warn_part_built(snapshot: Snapshot) -> None:
    warn(
        f"the map at {snapshot.folder} was never finished: it has the {snapshot.length} samples that were converted "
        "so far; run the conversion again with resume=True to finish it",
        PartBuiltWarning,
    )
