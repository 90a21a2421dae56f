"""Byte strings of any length: encoded images, audio files, pickles of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmap_ninja._arrival import JOINED
from mmap_ninja._encode import Ahead, Array, Samples, numbered
from mmap_ninja._ingest import chunks, progress
from mmap_ninja._making import Plan, template
from mmap_ninja._reading import AnyPath, check_window, part
from mmap_ninja._storage.disk import Buffer
from mmap_ninja._storage.index import MISSING_IN_ROW, OUT_OF_RANGE, Table
from mmap_ninja._storage.manifest import BYTES, MOST_DICTIONARY, Codec, Manifest
from mmap_ninja._storage.snapshot import Snapshot
from mmap_ninja._storage.writer import Batch
from mmap_ninja._writing import Encoder, many
from mmap_ninja.base import Mmap
from mmap_ninja.codec import Zstd, check_level, content_size, train_dictionary
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    MapCorruptError,
    MapReadOnlyError,
    SampleError,
    SampleTypeError,
)
from mmap_ninja.gather import Rows, Slices
from mmap_ninja.indexing import Positions, out_of_range, position

_SHOWN_AT_ONCE = 1024  # samples between two looks at a progress bar


class BytesMmap(Mmap):
    """A map of byte strings; `m[i]` is a `bytes` object, many samples are a list.

    `mode="r+"` allows assignment of samples of the same length; `append` and `extend` work in both modes. With
    `zstd_level`, each sample is compressed by itself, and cannot be assigned. A folder that does not exist is an
    empty map; the first `append` makes it.

    Examples:
        >>> m = BytesMmap.from_bytes("files", [b"first", b"second one"], zstd_level=3)
        >>> m[1], m.lengths.tolist()
        (b'second one', [5, 10])
    """

    kind = BYTES

    def __init__(
        self,
        out_dir: AnyPath,
        wrapper_fn: Callable[[Any], Any] | None = None,
        mode: str = "r",
        copy_before_wrapper_fn: bool = True,
        *,
        check: bool = False,
        expect: Mapping[str, Any] | None = None,
    ) -> None:
        self._open(out_dir, mode, wrapper_fn, copy_before_wrapper_fn, check=check, expect=expect)

    @classmethod
    def from_bytes(
        cls,
        out_dir: AnyPath,
        samples: Sequence[Any],
        mode: str = "r+",
        *,
        verbose: bool = False,
        zstd_level: int | None = None,
        zstd_train_dictionary_size: int | None = None,
        wrapper_fn: Callable[[Any], Any] | None = None,
        copy_before_wrapper_fn: bool = True,
        metadata: Mapping[str, Any] | None = None,
        sync: bool = True,
        timeout: float = 0.0,
    ) -> Any:
        """Make a map of byte strings (`bytes`, `bytearray` or `memoryview`) that are all in memory.

        `zstd_level` (1 to 22) compresses each sample; `zstd_train_dictionary_size` (bytes) trains a dictionary on
        them first, which pays for samples of less than a few kB. Durable when the call returns.
        """
        plan = cls._plan(
            mode=mode,
            zstd_level=zstd_level,
            zstd_train_dictionary_size=zstd_train_dictionary_size,
            metadata=metadata,
            wrapper_fn=wrapper_fn,
            copy_before_wrapper_fn=copy_before_wrapper_fn,
        )
        return cls._from_sequence(out_dir, samples, plan, verbose=verbose, sync=sync, timeout=timeout)

    @classmethod
    def _from_sequence(
        cls, out_dir: AnyPath, samples: Any, plan: Plan, *, verbose: bool, sync: bool, timeout: float
    ) -> Any:
        checked = many(samples)
        batches: Iterable[Samples | Iterator[Any]] = [checked] if len(checked) else []
        if verbose and plan.dictionary_size is None:  # a dictionary is trained on all samples at once
            batches = chunks(progress(checked, verbose, len(checked)), _SHOWN_AT_ONCE)
        return cls._build(out_dir, lambda start: batches, plan, sync=sync, timeout=timeout)

    @classmethod
    def _plan(
        cls,
        *,
        metadata: Mapping[str, Any] | None = None,
        mode: str = "r+",
        zstd_level: int | None = None,
        zstd_train_dictionary_size: int | None = None,
        **opening: Any,
    ) -> Plan:
        codec = None if zstd_level is None else Codec("zstd", check_level(zstd_level))
        if zstd_train_dictionary_size is not None:
            _check_dictionary_size(zstd_train_dictionary_size, zstd_level)
        made = template(cls.kind, dtype=np.dtype(np.uint8), ndim=1, codec=codec, metadata=metadata)
        return Plan(made, {"mode": mode, **opening}, zstd_train_dictionary_size)

    @classmethod
    def _encoder(cls, dictionary: bytes | None, dictionary_size: int | None, ahead: Ahead | None = None) -> Encoder:
        return BytesEncoder(cls._raw, dictionary, dictionary_size)

    @staticmethod
    def _raw(samples: Samples | Iterator[Any]) -> list[bytes]:
        """Each sample as bytes, on its arrival; an error's first argument is the place of the sample."""
        raw: list[bytes] = []
        for sample in samples:
            if not isinstance(sample, bytes | bytearray | memoryview):
                what = f"a {type(sample).__name__}, expected bytes, bytearray or memoryview"
                raise SampleTypeError(len(raw), what)
            raw.append(bytes(sample))
        return raw

    def _reader(self, snapshot: Snapshot) -> Callable[[int], Any]:
        read = byte_reader(snapshot)
        return lambda i: bytes(read(i))

    def window(self, i: int, start: int, length: int) -> Any:
        """Bytes `[start, start + length)` of sample i; only their pages are read, unless the map is compressed.

        Raises `SampleIndexError` where the sample does not reach that far.
        """
        check_window(i, start, length)
        snapshot = self._opened()
        return bytes(part(byte_reader(snapshot)(position(i, snapshot.length)), i, start, length))

    @property
    def lengths(self) -> Array:
        """The length of each sample in bytes, before compression: int64 `(n,)`."""
        return self._shapes(self._opened())[:, 0]

    def _shapes(self, snapshot: Snapshot, found: Positions | None = None) -> Table:
        table, codec = self._table(snapshot, found), snapshot.manifest.codec
        if codec is None:
            return table[:, 1:]
        data, sizes = snapshot.data.bytes, table[:, 2:].copy()
        unknown = np.flatnonzero(sizes < 0).tolist()
        if unknown and not snapshot.manifest.format_1:
            i = unknown[0] if found is None else found[unknown[0]]
            raise MapCorruptError(f"{snapshot.folder}: sample {i} is said to have a negative size")
        for i in unknown:  # format 1 did not write them down
            start, size = table[i, :2].tolist()
            sizes[i] = content_size(data[start : start + size])
        return sizes

    def _places(self, snapshot: Snapshot, found: Positions | None = None) -> tuple[Table, Table]:
        table = self._table(snapshot, found)
        return table[:, 0], table[:, 1]

    def _rows(self, snapshot: Snapshot, found: Positions) -> Rows:
        if snapshot.manifest.codec is None:
            return super()._rows(snapshot, found)
        samples = list(map(byte_reader(snapshot), found.tolist()))
        counts = sizes(samples)
        return Slices.joined_from(np.dtype(np.uint8), counts[:, None], counts, found, samples)

    def _new_bytes(self, snapshot: Snapshot, i: int, value: Any) -> bytes:
        if snapshot.manifest.codec is not None:
            raise MapReadOnlyError(f"{snapshot.folder} is compressed; its samples cannot be assigned in place")
        try:
            (raw,) = self._raw([value])
        except (SampleError, SampleTypeError) as error:
            raise type(error)(f"sample {i}: {error.args[1]}") from None
        byte_reader(snapshot)(i)  # refuses a wrong row, before anything is written there
        size = snapshot.index.row(i)[1]
        if len(raw) != size:
            raise SampleError(f"sample {i}: the new value has {len(raw)} bytes, expected {size}")
        return raw


def _check_dictionary_size(size: int, level: int | None) -> None:
    if level is None:
        raise ArgumentError("zstd_train_dictionary_size needs a zstd_level")
    if type(size) is not int:
        raise ArgumentTypeError(f"zstd_train_dictionary_size is {size!r}, expected a number of bytes")
    if size < 256:
        raise ArgumentError(f"zstd_train_dictionary_size is {size}, expected at least 256 bytes")
    if size > MOST_DICTIONARY:
        raise ArgumentError(f"zstd_train_dictionary_size is {size}, expected at most {MOST_DICTIONARY} bytes")


def _codec(snapshot: Snapshot) -> Zstd | None:
    """That of the map, which is made once: it takes a while to digest a dictionary."""
    codec = snapshot.manifest.codec
    if codec is not None and snapshot.view is None:
        snapshot.view = Zstd(codec.level, snapshot.dictionary)
    made: Zstd | None = snapshot.view
    return made


def byte_reader(snapshot: Snapshot) -> Callable[[int], memoryview | bytes]:
    """The function from a position to the bytes of a sample: a view, or what was decompressed."""
    length, row, data, codec = snapshot.length, snapshot.index.row, snapshot.data.bytes, _codec(snapshot)
    is_format_1 = bool(snapshot.manifest.format_1)  # which did not write the raw sizes down

    def read(i: int) -> memoryview | bytes:
        try:
            start, size, *raw_size = row(i)
        except OUT_OF_RANGE:
            raise out_of_range(i, length) from None
        if not start <= start + size <= len(data):
            raise MapCorruptError(
                f"{snapshot.folder}: sample {i} lies at [{start}, {start + size}) of {len(data)} bytes"
            )
        stored = data[start : start + size]
        if codec is None:
            return stored
        size_given = None if is_format_1 and raw_size[0] == MISSING_IN_ROW else raw_size[0]
        try:
            return codec.decompress(stored, size_given)
        except MapCorruptError as error:
            raise MapCorruptError(f"{snapshot.folder}: sample {i}: {error}") from None

    return read


class BytesEncoder:
    """Turns samples into a batch; knows the dictionary once there is one."""

    def __init__(
        self,
        as_bytes: Callable[[Samples | Iterator[Any]], list[bytes]],
        dictionary: bytes | None,
        dictionary_size: int | None,
    ) -> None:
        self._as_bytes, self._dictionary, self._size = as_bytes, dictionary, dictionary_size
        self._codec: Zstd | None = None

    def __call__(self, state: Manifest, samples: Samples | Iterator[Any]) -> Batch:
        """Convert, check and compress one batch."""
        try:
            raw = self._as_bytes(samples)
        except (SampleError, SampleTypeError) as error:
            raise numbered(type(error)(error.args[1]), state, error.args[0]) from None
        trained, columns, stored = None, [sizes(raw)], raw
        if state.codec is not None:
            if state.length == 0 and self._size is not None:
                trained = self._dictionary = train_dictionary(self._size, raw)
            if self._codec is None:
                self._codec = Zstd(state.codec.level, self._dictionary)
            stored = list(map(self._codec.compress, raw))
            columns.insert(0, sizes(stored))
        starts = np.zeros(len(raw), np.int64)
        starts[1:] = columns[0][:-1].cumsum()
        total = int(columns[0].sum())
        chunks: list[Buffer] = [b"".join(stored)] if total < JOINED * len(stored) else [b for b in stored if b]
        return Batch(len(raw), chunks, np.stack([starts, *columns], axis=1), dictionary=trained)


def sizes(parts: Sequence[Buffer]) -> Array:
    """The length of each part."""
    return np.fromiter(map(len, parts), np.int64, len(parts))
