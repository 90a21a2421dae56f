"""The writing half of every map: append, extend, assignment, and when all of it is durable."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from types import MappingProxyType
from typing import Any

import numpy as np

from mmap_ninja._arrival import kept, lent
from mmap_ninja._encode import Ahead, Samples
from mmap_ninja._reading import WRITE_MODES, Reading
from mmap_ninja._storage.build import change_map, writing
from mmap_ninja._storage.inplace import InPlace
from mmap_ninja._storage.manifest import MOST_NESTED, Manifest, nesting
from mmap_ninja._storage.snapshot import Snapshot, find
from mmap_ninja._storage.writer import Batch, Writer, unexpected
from mmap_ninja.errors import (
    BEFORE_COMMIT,
    ArgumentError,
    ArgumentTypeError,
    MapChangedError,
    MapKindError,
    MapLockedError,
    MapNotFoundError,
    MapReadOnlyError,
    Outcome,
    SampleError,
    SyncError,
    set_committed,
)
from mmap_ninja.indexing import integer, is_single, position, positions

_MOST_METADATA = 500_000  # characters; indented, the manifest stays below its 1 MiB

Encoder = Callable[[Manifest, Samples | Iterator[Any]], Batch]


class Writing(Reading):
    """Changes to a map through a handle, which then sees the newest state."""

    _patches: InPlace | None = None  # what was assigned in place and not yet flushed
    _failure: SyncError | None = None  # why this handle can no longer be trusted to write
    _is_unsynced = False
    _patience = 0.0  # the longest timeout that this handle was given, which also goes for its last flush

    @classmethod
    @abstractmethod
    def _encoder(cls, dictionary: bytes | None, dictionary_size: int | None, ahead: Ahead | None = None) -> Encoder:
        """The function that converts and checks samples for a map in the given state.

        `ahead` takes the bytes of large ones before their batch is complete.
        """

    @abstractmethod
    def _new_bytes(self, snapshot: Snapshot, i: int, value: Any) -> bytes:
        """A copy of the bytes of `value`, checked to fit in the place of sample i."""

    def append(
        self, sample: Any, sync: bool = True, timeout: float = 0.0, *, expected_length: int | None = None
    ) -> None:
        """Add one sample; see `extend`, which is much faster for many."""
        self._extend([sample], sync, timeout, expected_length)

    def extend(
        self, samples: Any, sync: bool = True, timeout: float = 0.0, *, expected_length: int | None = None
    ) -> None:
        """Add samples at the end, all of them or none.

        When the call returns, they are durable; with `sync=False` they are safe against a kill of the process, and
        against a power cut after `flush`, or once the kernel has written them back: until then it may cost the map,
        and `verify` tells. `timeout` is how many seconds to wait for another writer.

        With `expected_length`, the call may be made again after any error, or by a program that was started again: it
        adds the samples where the map has that many samples, and does nothing where these very samples follow them
        already, as the last ones. Another length is a `MapChangedError`.

        Raises `SampleError`, `SampleTypeError`, `MapLockedError`, `MapChangedError`, `DiskError`. No sample was added
        if `error.committed` is False, as it nearly always is; see `MmapNinjaError`.
        """
        with BEFORE_COMMIT:  # whatever a source says of calls of its own
            listed = many(samples)
        self._extend(listed, sync, timeout, expected_length)

    def _extend(self, samples: Samples, sync: bool, timeout: float, expected_length: int | None) -> None:
        if expected_length is not None:
            integer("expected_length", expected_length, 0)
        with Outcome() as outcome, self._change:
            with BEFORE_COMMIT:
                self._renew_checksums(timeout)
            snapshot = self._opened()
            if expected_length and find(self._folder, self._keys) is None:
                raise unexpected(self._folder, 0, expected_length)
            if len(samples) == 0:
                if expected_length not in (None, snapshot.length):
                    raise unexpected(self._folder, snapshot.length, expected_length)
                return
            encode = self._encoder(snapshot.dictionary, None)
            batch = encode(snapshot.manifest, samples)  # a bad sample changes nothing, not even the format
            with self._writer(snapshot, timeout) as writer:
                if not writer.state.takes_same(snapshot.manifest):  # another writer was faster
                    batch = encode(writer.state, samples)
                if expected_length is None or not writer.has(batch, expected_length, sync=sync):
                    writer.append(batch, sync=sync)
                    writer.finish(sync=sync)
                outcome.committed = True
            self._is_unsynced = self._is_unsynced or not sync
            self._patience = max(self._patience, timeout)
            self._load_written(writer.state)

    @contextmanager
    def _writer(self, snapshot: Snapshot, timeout: float = 0.0) -> Iterator[Writer]:
        """Hold the lock of the map, if it still is the one that was opened and can be written to."""
        self._refuse_after_failure()
        try:
            with writing(
                self._folder, snapshot.manifest, self._keys, timeout=timeout, may_make=self._snapshot is None
            ) as writer:
                if writer.state.kind != self.kind:
                    raise MapKindError(f"{self._folder} is a {writer.state.kind} map now, not a {self.kind} one")
                if self._snapshot is not None and writer.state.id != snapshot.manifest.id:
                    raise MapChangedError(f"the map at {self._folder} was replaced since it was opened; open it again")
                state, seen = writer.state, snapshot.manifest
                if state.generation < seen.generation or state.length < snapshot.length:
                    raise MapChangedError(
                        f"{self._folder} holds an older state than this handle has seen, of {writer.state.length} "
                        "samples, as after a copy was restored there; open it again"
                    )
                yield writer
        except SyncError as error:
            self._failure = SyncError(error.errno, error.strerror, error.filename)  # no traceback: it holds files
            raise

    def _refuse_after_failure(self) -> None:
        if self._failure is not None:
            what = f"an earlier sync failed ({self._failure.strerror}); open the map again"
            raise SyncError(self._failure.errno, what, self._failure.filename)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Overwrite one sample or several of the same sizes, in mode `"r+"`.

        All values are checked and copied before the first byte is written, so they may be samples of this map. The
        bytes are written at once and durable after `flush` or `close`, but not atomic under a crash: until then the
        map is marked as not checksummed.
        """
        with Outcome() as outcome, self._change:
            snapshot = self._opened()
            if self.mode not in WRITE_MODES:
                raise MapReadOnlyError(
                    f'{self._folder} is open read-only (mode "{self.mode}"); assigning needs mode="r+"'
                )
            # Bytes of their own: a value may lie in the very file that is written, through any mapping of it.
            assigned = [
                (i, self._new_bytes(snapshot, i, sample)) for i, sample in _assigned(index, value, snapshot.length)
            ]
            if assigned:
                with BEFORE_COMMIT:
                    patches = self._assigning(snapshot)
                self._overwrite(patches, assigned)
                outcome.committed = True

    def _assigning(self, snapshot: Snapshot) -> InPlace:
        """The assignments of this handle that were not flushed; begins with them where there are none."""
        self._refuse_after_failure()
        if self._patches is not None and not self._patches.is_own():  # this process was forked since
            self._forget_assignments()
        if self._patches is not None and self._patches.is_shared():
            self._renew_checksums()
        if self._patches is None:
            with self._writer(snapshot) as writer:
                self._patches = InPlace(writer)
                self._load(Snapshot(self._folder, writer.state, snapshot.length))
        return self._patches

    def _overwrite(self, patches: InPlace, assigned: list[tuple[int, bytes]]) -> None:
        """Write the new bytes of samples where they lie now, which an upgrade may have changed."""
        current = self._opened()
        starts, _ = self._places(current, np.array([i for i, _ in assigned], np.int64))
        try:
            for start, (_, raw) in zip(starts.tolist(), assigned, strict=True):
                if raw:  # the row of a sample of no bytes may say anything
                    patches.write(start * current.manifest.itemsize, raw)
        except BaseException as error:
            set_committed(error, None)  # some values may be written
            raise

    def flush(self) -> None:
        """Make everything that was written through this handle durable, and renew the checksums of assigned samples."""
        with self._change:
            self._state()
            self._refuse_after_failure()
            self._renew_checksums(self._patience)
            if self._is_unsynced:
                with self._writer(self._opened(), self._patience) as writer:
                    if not writer.state.synced:
                        change_map(writer)
                self._load_written(writer.state, len(self))
                self._is_unsynced = False

    def refresh(self) -> None:
        """Move to the newest committed state, also of another map of this kind that has taken this one's place.

        What was assigned through this handle is flushed before, if the map that it was assigned to is still there.
        """
        with self._change:
            try:
                if self._failure is None:
                    self._renew_checksums()
            except MapChangedError:
                pass
            self._forget_assignments()
            super().refresh()

    def _renew_checksums(self, timeout: float = 0.0) -> None:
        """Vouch again for what was assigned in place."""
        if self._patches is not None:
            with self._writer(self._opened(), timeout) as writer:
                self._patches.finish(writer)
            self._forget_assignments()
            self._load_written(writer.state, len(self))

    def close(self) -> None:
        """Flush, and let go of the files; a second call does nothing. Arrays that were read stay valid.

        An error of the flush is raised, and the files are let go of all the same; but `MapLockedError` leaves the map
        open, to be closed when the other writer is done.
        """
        with self._change:
            if self._is_closed():
                return
            try:
                if self._failure is None:  # else somebody has heard of it
                    self.flush()
            except MapLockedError:
                raise
            except BaseException:
                self._let_go()
                raise
            self._let_go()

    def _let_go(self) -> None:
        self._forget_assignments()
        super()._let_go()

    def _forget_assignments(self) -> None:
        patches, self._patches = self._patches, None  # first, whatever becomes of the descriptor
        if patches is not None:
            patches.close()

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of what the user has stored with the map, a dict of JSON values. Assigning one commits it.

        What JSON would alter, such as keys that are no texts, is refused; tuples come back as lists.
        """
        return deepcopy(dict(self._opened().manifest.metadata))

    @metadata.setter
    def metadata(self, value: Mapping[str, Any]) -> None:
        checked = json_values(value)
        with Outcome() as outcome, self._change:
            with BEFORE_COMMIT:
                self._renew_checksums()
            snapshot = self._state()
            if snapshot is None:
                raise MapNotFoundError(f"there is no map at {self._folder} yet; append the first sample before that")
            with self._writer(snapshot) as writer:
                change_map(writer, metadata=checked)
                outcome.committed = True
            self._load_written(writer.state)


def many(samples: Any) -> Samples:
    """Samples as a list or array, copied as they come from anything else; what was meant as one sample is refused."""
    if isinstance(samples, str | bytes | bytearray | Mapping):
        raise ArgumentTypeError(f"expected a list of samples, got a {type(samples).__name__}; append adds one")
    if isinstance(samples, list) or (isinstance(samples, np.ndarray) and samples.ndim):
        return samples
    try:
        arriving = iter(samples)
    except TypeError:
        raise ArgumentTypeError(f"expected a list of samples, got a {type(samples).__name__}") from None
    return list(map(kept if arriving is samples else lent, arriving))


def json_values(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The user's metadata, if it is a mapping that comes back from JSON as it is, but for tuples: they become lists."""
    try:
        given = dict(metadata)
        text = json.dumps(given, allow_nan=False)
        copied: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentTypeError(f"metadata has to be a dict of JSON values: {error}") from None
    if len(text) > _MOST_METADATA:
        raise ArgumentError(f"metadata has {len(text)} characters, at most {_MOST_METADATA}; keep less in `metadata`")
    if nesting(copied) > MOST_NESTED:
        raise ArgumentError(f"metadata is nested {nesting(copied)} deep, at most {MOST_NESTED}")
    _check_unaltered(given, copied)
    return MappingProxyType(copied)


def _check_unaltered(given: Any, copied: Any, where: str = "metadata") -> None:
    """Refuse what JSON has changed: keys that are no texts, and of several that became one all but the last."""
    if isinstance(copied, dict):
        for key in given:
            if not isinstance(key, str) or key not in copied:
                raise ArgumentTypeError(
                    f"{where} has the key {key!r}, which JSON would alter; the keys of metadata are texts"
                )
            _check_unaltered(given[key], copied[key], f"{where}[{key!r}]")
    elif isinstance(copied, list):
        for i, (part, copy) in enumerate(zip(given, copied, strict=True)):
            _check_unaltered(part, copy, f"{where}[{i}]")
    elif given != copied:
        raise ArgumentTypeError(f"{where} is {given!r:.100}, which would come back as {copied!r:.100}")


def _assigned(index: Any, value: Any, length: int) -> Iterator[tuple[int, Any]]:
    """Which position gets which value."""
    if is_single(index):
        yield position(index, length), value
        return
    found = positions(index, length)
    if not hasattr(value, "__len__") or isinstance(value, str | bytes) or len(value) != len(found):
        raise SampleError(f"expected a sequence of {len(found)} samples to assign, one for each index")
    yield from zip(found.tolist(), value, strict=True)
