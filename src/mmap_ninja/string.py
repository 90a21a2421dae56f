"""Texts of any length, stored as UTF-8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mmap_ninja._encode import Samples
from mmap_ninja._reading import AnyPath
from mmap_ninja._storage.index import OUT_OF_RANGE
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.manifest import STRINGS
from mmap_ninja._storage.snapshot import Snapshot
from mmap_ninja.binary import BytesMmap, byte_reader
from mmap_ninja.errors import MapCorruptError, SampleError, SampleTypeError
from mmap_ninja.indexing import out_of_range


class StringsMmap(BytesMmap):
    """A map of texts; `m[i]` is a `str`, many samples are a list.

    `lengths`, `starts` and `window` count UTF-8 bytes. The default mode allows assignment of texts of the same
    number of UTF-8 bytes, and opens files for writing only then; `"rb"` refuses it. With `zstd_level`, each text is
    compressed by itself, and cannot be assigned. A folder that does not exist is an empty map; the first `append`
    makes it. The `*_key` arguments name the subfolders of maps that mmap_ninja 0.9.0 has written with other names.

    Examples:
        >>> m = StringsMmap.from_strings("texts", ["one", "zwölf"])
        >>> m.append("")
        >>> m[1], m[:], m.lengths.tolist()
        ('zwölf', ['one', 'zwölf', ''], [3, 6, 0])
    """

    kind = STRINGS

    def __init__(
        self,
        out_dir: AnyPath,
        mode: str = "r+b",
        starts_key: str = "starts",
        ends_key: str = "ends",
        wrapper_fn: Callable[[Any], Any] | None = None,
        copy_before_wrapper_fn: bool = True,
        *,
        check: bool = False,
        expect: Mapping[str, Any] | None = None,
    ) -> None:
        keys = Keys(starts_key, ends_key)
        self._open(out_dir, mode, wrapper_fn, copy_before_wrapper_fn, keys, check=check, expect=expect)

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "starts_key": self._keys.starts, "ends_key": self._keys.ends}

    @classmethod
    def from_strings(
        cls,
        out_dir: AnyPath,
        strings: Sequence[str],
        mode: str = "r+b",
        starts_key: str = "starts",
        ends_key: str = "ends",
        verbose: bool = False,
        zstd_level: int | None = None,
        zstd_train_dictionary_size: int | None = None,
        *,
        wrapper_fn: Callable[[Any], Any] | None = None,
        copy_before_wrapper_fn: bool = True,
        metadata: Mapping[str, Any] | None = None,
        sync: bool = True,
        timeout: float = 0.0,
    ) -> StringsMmap:
        """Make a map of texts that are all in memory.

        `zstd_level` (1 to 22) compresses each text; `zstd_train_dictionary_size` (bytes) trains a dictionary on
        them first, which pays for texts of less than a few kB. Durable when the call returns. Texts that UTF-8
        cannot hold (lone surrogates) raise `SampleError`.
        """
        plan = cls._plan(
            mode=mode,
            starts_key=starts_key,
            ends_key=ends_key,
            zstd_level=zstd_level,
            zstd_train_dictionary_size=zstd_train_dictionary_size,
            wrapper_fn=wrapper_fn,
            copy_before_wrapper_fn=copy_before_wrapper_fn,
            metadata=metadata,
        )
        return cls._from_sequence(out_dir, strings, plan, verbose=verbose, sync=sync, timeout=timeout)  # type: ignore[no-any-return]

    @staticmethod
    def _raw(samples: Samples | Iterator[Any]) -> list[bytes]:
        if type(samples) is list:
            with suppress(TypeError, UnicodeEncodeError):  # then the loop says which one it is
                return list(map(str.encode, samples))
        raw: list[bytes] = []
        for sample in samples:
            if not isinstance(sample, str):
                raise SampleTypeError(len(raw), f"a {type(sample).__name__}, expected str")
            try:
                raw.append(sample.encode())
            except UnicodeEncodeError as error:
                raise SampleError(len(raw), f"UTF-8 cannot hold it: {error}") from None
        return raw

    def _reader(self, snapshot: Snapshot) -> Callable[[int], Any]:
        if snapshot.manifest.codec is not None:
            return _decoding(snapshot)
        length, index, whole = snapshot.length, snapshot.index, snapshot.data.whole
        unpack, source, step = index.unpack, index.source, index.step
        offset, size = snapshot.data.offset, len(snapshot.data.bytes)

        def read(i: int) -> str:
            try:
                start, count = unpack(source, i * step)
            except OUT_OF_RANGE:
                raise out_of_range(i, length) from None
            stop = start + count
            if stop > size:
                raise MapCorruptError(f"{snapshot.folder}: the index row {(start, count)} of sample {i} is wrong")
            try:
                return whole[start + offset : stop + offset].decode()
            except UnicodeDecodeError as error:
                raise _not_utf8(snapshot, i, error) from None

        return read

    def window(self, i: int, start: int, length: int) -> Any:
        """The text in bytes `[start, start + length)` of sample i; characters that an edge cuts are left out.

        Only the pages of the window are read, unless the map is compressed. Raises `SampleIndexError` where the
        text does not reach that far.
        """
        return super().window(i, start, length).decode("utf-8", "ignore")


def _decoding(snapshot: Snapshot) -> Callable[[int], str]:
    read = byte_reader(snapshot)

    def decode(i: int) -> str:
        try:
            return str(read(i), "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(snapshot, i, error) from None

    return decode


def _not_utf8(snapshot: Snapshot, i: int, error: UnicodeDecodeError) -> MapCorruptError:
    return MapCorruptError(f"{snapshot.folder}: sample {i} is not UTF-8: {error}")
