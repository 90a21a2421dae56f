"""Dense maps as `np.memmap` objects: the functions of mmap_ninja 0.9.0.

`DenseMmap` does the same, reads single samples faster, and has everything that the other maps have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from mmap_ninja import lossless
from mmap_ninja._arrival import is_array
from mmap_ninja._reading import AnyPath, folder_of, warn_if_part_built
from mmap_ninja._storage import verified
from mmap_ninja._storage.build import writing
from mmap_ninja._storage.disk import Identity, explained, identity_at
from mmap_ninja._storage.identity import expectation, refuse_another
from mmap_ninja._storage.inplace import mark_unchecked
from mmap_ninja._storage.legacy import DEFAULT_KEYS
from mmap_ninja._storage.manifest import DATA, DENSE, Manifest
from mmap_ninja._storage.mappings import is_hidden
from mmap_ninja._storage.snapshot import Snapshot, find, is_still, open_snapshot
from mmap_ninja._taking import Taking
from mmap_ninja.dense import DenseMmap
from mmap_ninja.errors import BEFORE_COMMIT, ArgumentError, ArgumentTypeError, MapChangedError, MapKindError
from mmap_ninja.indexing import boolean

_MODES = ("r", "r+", "c")
_INTO_FIRST = {np.copyto, np.place, np.putmask, np.put_along_axis, np.fill_diagonal}  # write to their first argument
_CONSTANT = {int, float, bool, str, slice, np.int64, np.float64, np.float32}  # lie in no file


class Memmap(np.memmap[Any, np.dtype[Any]]):
    """The samples of a dense map, `(n, *sample_shape)`; pickles as a path, so that workers map the file again.

    One that was just made takes assignments (`memmap[i] = value`, `memmap += 1`): the first one marks the map's
    data as not checksummed, as `open_existing(..., mode="r+")` does at once. Views of it pickle as plain arrays.
    """

    _source: tuple[str, str, str, int, bool] | None = None  # folder, mode, id, length, check; of the whole map only
    _folder: str | None = None
    _id: str | None = None
    _is_armed = False
    _file: Identity | None = None  # which one is mapped

    def __array_finalize__(self, obj: Any) -> None:
        super().__array_finalize__(obj)
        self._is_armed, self._file = getattr(obj, "_is_armed", False), getattr(obj, "_file", None)
        self._folder = getattr(obj, "_folder", None)
        self._id = getattr(obj, "_id", None)

    def __reduce__(self) -> Any:
        if self._source is None or self._source[1] == "c":
            return np.array(self, copy=True, subok=False).__reduce__()
        folder, _, id, _, is_checked = self._source
        known = _ticket(folder, id) if is_checked else None
        return _reopen, (*self._source, *([known] if known else []))

    def _verify(self) -> None:
        """Compare the map in the folder with its checksums, if it still is this one. Raises `MapCorruptError`."""
        if self._folder is not None and getattr(self, "_mmap", None) is not None:  # else it is a copy in memory
            _dense_snapshot(self._folder, self._id, is_checked=True)

    def _let_write(self) -> None:
        if self._is_armed and not self.flags.writeable:
            _disarm(self)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._let_write()
        if type(key) not in _CONSTANT:
            key = _apart(key, self)
        if type(value) not in _CONSTANT:
            value = _apart(value, self)
        super().__setitem__(key, value)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        """Calculate as plain arrays do, `memmap += 1` and `out=memmap` included."""
        for target in inputs[:1] if method == "at" else out:
            if isinstance(target, Memmap):
                target._let_write()
            if isinstance(target, np.ndarray):
                inputs, options = _all_apart(target, inputs, options)  # `where=` is one of the options
        if out:
            options["out"] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        return out[0] if len(out) == 1 else result

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        target = args[0] if args else kwargs.get("dst")
        if func is np.copyto and isinstance(target, Memmap):
            target._let_write()
        target = kwargs.get("out", target if func in _INTO_FIRST else None)
        if isinstance(target, np.ndarray):
            args, kwargs = _all_apart(target, args, kwargs)
        return super().__array_function__(func, types, args, kwargs)


def _plain(array: Any) -> Any:
    return np.asarray(array) if isinstance(array, Memmap) else array


def _apart(value: Any, target: Any) -> Any:
    """A value as it is before the target is written: a copy where numpy would not see that it lies in the same file.

    So is each array in a list or tuple, and each sample of a map.
    """
    if isinstance(value, np.ndarray):
        if value.base is None or not is_hidden(value, target):
            return value
        return np.array(value, subok=not isinstance(value, np.memmap))
    kind = type(value)
    if kind is not list and kind is not tuple:
        if kind in _CONSTANT or not isinstance(value, Taking):
            return value
        kind, value = list, list(cast(Iterable[Any], value))  # as numpy would
    return value if _MAY_LIE.isdisjoint(map(type, value)) else kind([_apart(one, target) for one in value])


_MAY_LIE = {np.ndarray, np.memmap, Memmap, list, tuple}  # in a file


def _all_apart(target: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a call that writes to the target."""
    return tuple(_apart(one, target) for one in args), {name: _apart(one, target) for name, one in kwargs.items()}


def _in_place(name: str) -> Callable[..., Any]:
    change = getattr(np.memmap, name)

    def method(self: Memmap, *args: Any, **kwargs: Any) -> Any:
        self._let_write()
        args, kwargs = _all_apart(self, args, kwargs)
        return change(self, *args, **kwargs)

    return method


for _name in ("fill", "partition", "put", "sort"):
    setattr(Memmap, _name, _in_place(_name))


def from_ndarray(out_dir: AnyPath, arr: Any) -> Memmap:
    """Make a dense map of an array `(n, *sample_shape)`; durable when the call returns.

    Returns its samples as an `np.memmap` that takes assignments. What was in `out_dir` is replaced.
    """
    DenseMmap.from_ndarray(out_dir, arr)
    return _mapped(folder_of(out_dir), "armed")


def from_generator(
    out_dir: AnyPath, sample_generator: Iterable[Any], batch_size: int, verbose: bool = False, **options: Any
) -> Memmap:
    """Make a dense map of samples of one shape, of which at most `batch_size` are in memory at once.

    Further options are those of `DenseMmap.from_generator` (`resume`, `dtype`, ...). Returns an `np.memmap`.
    """
    DenseMmap.from_generator(out_dir, sample_generator, batch_size, verbose, **options)
    return _mapped(folder_of(out_dir), "armed")


def open_existing(
    out_dir: AnyPath, mode: str = "r", *, check: bool = False, expect: Mapping[str, Any] | None = None
) -> Memmap:
    """Open a dense map as an `np.memmap` `(n, *sample_shape)`.

    `mode` is `"r"` (read-only), `"c"` (assignments stay in memory) or `"r+"`: assignments go to the file, and the
    map is marked as not checksummed at once, after `check`, which compares it with its checksums. `expect` is what the
    map has to be; both are those of `open_map`. Raises `MapNotFoundError`, `MapCorruptError`, `MapChangedError`.
    """
    if mode not in _MODES:
        raise ArgumentError(f"mode is {mode!r}, expected one of {_MODES}")
    return _mapped(folder_of(out_dir), mode, is_checked=boolean("check", check), expected=expectation(expect))


def extend_dir(
    out_dir: AnyPath, arr: Any, sync: bool = True, timeout: float = 0.0, *, expected_length: int | None = None
) -> None:
    """Add samples `(k, *sample_shape)` to the dense map in a folder, all of them or none; see `DenseMmap.extend`."""
    open_snapshot(folder_of(out_dir))  # raises where there is no map
    dense = DenseMmap(out_dir)
    try:
        samples = lossless.as_array(arr) if is_array(arr) and not isinstance(arr, np.ndarray) else arr
        dense.extend(samples, sync=sync, timeout=timeout, expected_length=expected_length)
    finally:
        dense._let_go()  # not `close`, which would sync what was not to be synced


def extend(memmap: Any, arr: Any, sync: bool = True, timeout: float = 0.0) -> None:
    """As `extend_dir`, for the map that `memmap` was opened from. `memmap` itself keeps its length."""
    extend_dir(_folder_of(memmap), arr, sync=sync, timeout=timeout)


def append(memmap: Any, arr: Any, sync: bool = True, timeout: float = 0.0) -> None:
    """Add one sample `(*sample_shape)` to the map that `memmap` was opened from. `memmap` itself keeps its length."""
    extend_dir(_folder_of(memmap), [arr], sync=sync, timeout=timeout)


def _folder_of(memmap: Any) -> str:
    name = getattr(memmap, "filename", None)
    if name is None:
        raise ArgumentTypeError(f"expected an np.memmap of a map, got a {type(memmap).__name__}")
    return os.path.dirname(str(name))


def _dense_snapshot(
    folder: str,
    id: str | None = None,
    length: int | None = None,
    *,
    is_checked: bool = False,
    expected: Mapping[str, Any] = MappingProxyType({}),
) -> Snapshot:
    def look() -> Snapshot:
        snapshot = open_snapshot(folder, id=id, length=length)
        if snapshot.manifest.kind != DENSE:
            raise MapKindError(f"{folder} is a {snapshot.manifest.kind} map, not a {DENSE} one; use open_map")
        refuse_another(snapshot, expected)
        return snapshot

    return verified.newest(folder, DEFAULT_KEYS, look, is_checked=is_checked)


def _ticket(folder: str, id: str) -> verified.Ticket | None:
    """What tells a worker that the map was compared; None where it was not, or is another one now."""
    state = find(folder)
    return None if state is None or state.id != id else verified.ticket(folder, state)


def _mapped(
    folder: str,
    mode: str,
    id: str | None = None,
    length: int | None = None,
    *,
    is_checked: bool = False,
    expected: Mapping[str, Any] = MappingProxyType({}),
) -> Memmap:
    """Map the data of a dense map; `"armed"` maps it for writing, but does not let anybody write yet."""
    snapshot = _dense_snapshot(folder, id, length, is_checked=is_checked, expected=expected)
    warn_if_part_built(snapshot)
    state = _marked(folder, snapshot.manifest) if mode == "r+" else snapshot.manifest
    if id is not None and (state.id != id or state.length < (length or 0)):
        raise MapChangedError(f"the map at {folder} was replaced since this memmap was pickled; open it again")
    length = state.length if length is None else length
    try:
        memmap = _memmap(
            folder, state, "r+" if mode == "armed" and os.access(_data_path(folder, state), os.W_OK) else mode
        )
        was_replaced = not is_still(folder, state)
    except FileNotFoundError:
        if _dense_snapshot(folder).manifest == state:
            raise
        was_replaced = True
    if was_replaced and mode == "r+":
        raise MapChangedError(f"the map at {folder} was replaced while it was opened; open it again")
    if was_replaced:
        return _mapped(folder, mode, id, length, is_checked=is_checked, expected=expected)
    if length < len(memmap):
        memmap = cast(Memmap, memmap[:length])
    memmap._folder, memmap._id, memmap._source = folder, state.id, (folder, mode, state.id, length, is_checked)
    if mode == "armed" and memmap.mode == "r+":
        memmap.flags.writeable = False
        memmap._is_armed, memmap._file = True, identity_at(str(memmap.filename))
    return memmap


def _marked(folder: str, seen: Manifest) -> Manifest:
    """The newest state, marked as not checksummed before anything can be written to it."""
    with writing(folder, seen) as writer:
        if writer.state.id != seen.id:
            raise MapChangedError(f"the map at {folder} was replaced while it was opened; open it again")
        if writer.state.length:
            with BEFORE_COMMIT:  # no value has changed
                mark_unchecked(writer)
        return writer.state


def _data_path(folder: str, state: Manifest) -> str:
    return os.path.join(folder, state.files[DATA].name) if DATA in state.files else folder


def _memmap(folder: str, state: Manifest, mode: str) -> Memmap:
    dtype, shape = state.layout(DATA)
    if DATA not in state.files:
        return _empty(folder, dtype, shape, mode)
    file = state.files[DATA]
    mode, path = "r" if mode == "armed" else mode, _data_path(folder, state)
    with explained(path, "map this part of a map"):
        return Memmap(path, dtype, mode, file.offset, shape, state.order)  # type: ignore[call-overload, no-any-return]


def _empty(folder: str, dtype: np.dtype[Any], shape: tuple[int, ...], mode: str) -> Memmap:
    """No samples, hence no file to map; it still knows its folder."""
    memmap: Memmap = np.ndarray.__new__(Memmap, shape, dtype)
    memmap.filename, memmap.offset, memmap.mode = os.path.join(folder, "data.npy"), 0, mode
    return memmap


def _disarm(memmap: Memmap) -> None:
    """Mark the map as not checksummed, then let this array, and what it is a view of, be written to."""
    with writing(str(memmap._folder), DenseMmap._plan().template, may_make=False) as writer:
        if writer.state.id != memmap._id:
            raise MapChangedError(f"the map at {memmap._folder} was replaced since this memmap was made")
        path = os.path.join(writer.folder, writer.state.files[DATA].name)
        if path != str(memmap.filename) or identity_at(path) != memmap._file:
            raise MapChangedError(f"the files of {memmap._folder} were replaced since this memmap was made")
        mark_unchecked(writer)
    chain: list[Any] = [memmap]
    while isinstance(chain[-1].base, np.ndarray):
        chain.append(chain[-1].base)
    for array in reversed(chain):
        array.flags.writeable = True


def _reopen(
    folder: str,
    mode: str,
    id: str,
    length: int,
    is_checked: bool = False,
    known: verified.Ticket | None = None,
) -> Memmap:
    verified.adopt(known)
    mode = "armed" if mode == "r+" else mode  # many workers, one writer
    return _mapped(folder, mode, id, length, is_checked=is_checked)


__all__: Sequence[str] = ["Memmap", "append", "extend", "extend_dir", "from_generator", "from_ndarray", "open_existing"]
