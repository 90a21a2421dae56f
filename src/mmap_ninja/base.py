"""The contract of every map, the registry of kinds, `open_map`, and `Wrapped`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from itertools import count
from typing import Any

from mmap_ninja import _ingest
from mmap_ninja._arrival import kept
from mmap_ninja._making import Making
from mmap_ninja._reading import AnyPath, folder_of
from mmap_ninja._storage.disk import make_folder
from mmap_ninja._storage.snapshot import find
from mmap_ninja.errors import MapKindError, MapNotFoundError
from mmap_ninja.indexing import integer

_kinds: dict[str, type[Mmap]] = {}


class Mmap(Making):
    """One stored collection of samples in a folder, read through memory maps.

    Opening costs the same for any number of samples and writes nothing. A handle keeps seeing the state that it
    opened; `refresh`, or a write through this handle, moves it to the newest. It can be pickled (as a path), shared
    between threads, and used in forked or spawned workers.

    Samples that are arrays are views of the mapped file, without a copy, and read-only but in `mode="c"`
    (copy-on-write): there they may be written to, which changes what this process reads from this handle, until it
    appends or refreshes, and never the file. What a `wrapper_fn` gets is a copy, unless
    `copy_before_wrapper_fn=False`.

    `check=True` compares every byte with its checksum before a state is seen for the first time in a process: when
    the map is opened, and by `refresh`; not what was written through the handle itself. What is damaged, and what
    nothing vouches for, is a `MapCorruptError`. `expect` is a dict that the map has to fit, such as the `identity` of
    one that was opened before; else `MapChangedError`.
    """

    def __init_subclass__(cls) -> None:
        _kinds.setdefault(cls.kind, cls)


class Wrapped:
    """Any collection seen through a function: `wrapped[i]` is `wrapper_fn(data[i])`.

    `wrapper_fn` gets a copy of the sample, unless `copy_before_wrapper_fn=False`. Where the data has a
    length, a loop goes to its end: an `IndexError` or a `StopIteration` of the function is an error.

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

    def __iter__(self) -> Iterator[Any]:
        length = _ingest.length_of(self)
        return self._until_the_end() if length is None else (self[i] for i in range(length))

    def __reversed__(self) -> Iterator[Any]:
        return (self[i] for i in reversed(range(len(self))))

    def _until_the_end(self) -> Iterator[Any]:
        for i in count():
            try:
                sample = self[i]
            except (IndexError, StopIteration):
                return
            yield sample


def open_map(
    path: AnyPath,
    wrapper_fn: Callable[[Any], Any] | None = None,
    mode: str = "r",
    copy_before_wrapper_fn: bool = True,
    *,
    check: bool = False,
    expect: Mapping[str, Any] | None = None,
) -> Mmap:
    """Open the map in a folder as an object of its kind.

    `check` compares every byte with its checksum first, once for each state in a process, and refuses what is damaged
    or what nothing vouches for. `expect` is what the map has to be: the `identity` of one, or some of its values; also
    `generation` (of `manifest.json`) and `sample_shape`.

    Raises `MapNotFoundError` where there is none, `MapCorruptError` where it is damaged, `MapChangedError` where it
    is another one than expected.

    Examples:
        >>> from mmap_ninja import RaggedMmap
        >>> m = RaggedMmap.from_lists("rows", [[1, 2], [3]])
        >>> expected = m.identity  # to be stored with a checkpoint, say
        >>> m.append([4])
        >>> open_map("rows", check=True, expect=expected)
        Traceback (most recent call last):
        mmap_ninja.errors.MapChangedError: ...
    """
    folder, tried = folder_of(path), None
    options: dict[str, Any] = {
        "mode": mode,
        "wrapper_fn": wrapper_fn,
        "copy_before_wrapper_fn": copy_before_wrapper_fn,
        "check": check,
        "expect": expect,
    }
    while True:
        manifest = find(folder)
        if manifest is None:
            raise MapNotFoundError(f"there is no map at {folder}")
        try:
            return _kinds[manifest.kind](path, **options)  # type: ignore[call-arg]
        except MapKindError:
            if manifest.kind == tried:
                raise
            tried = manifest.kind  # replaced by one of another kind between the two reads


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

    folder, size, made = Path(out_dir), integer("batch_size", batch_size, 1), None
    make_folder(str(folder))
    for arriving in _ingest.from_iterable(sample_generator, 0, kwargs.pop("verbose", False), size):
        chunk = list(map(kept, arriving))
        if made is None:
            made = batch_ctor(folder, chunk, **kwargs)
        elif extend_fn is not None:
            extend_fn(made, chunk)
        else:
            made.extend(chunk)
    return made
