"""Maps as a map-style dataset, for a DataLoader and all that is built on one."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy as shallow_copy
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mmap_ninja import buffers
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, IndexTypeError, noted
from mmap_ninja.fields import Fields, alike, each, length, named_parts, rows, verify
from mmap_ninja.indexing import is_single
from mmap_ninja_torch import convert

Function = Callable[[Any], Any]


class MmapDataset(Dataset[Any]):
    """The samples of a map, or of several side by side, as tensors.

    Args:
        source: The path of a map, a map or a view of one, an array in memory, or a dict or tuple of those of one
            length, whose samples are dicts or tuples.
        wrapper_fn: A function of one stored sample as NumPy has it (an array of its own, a str, bytes), called instead
            of the conversion to a tensor; for dicts and tuples one with a function for each part that has one.
        transform: A function of a whole sample, after that conversion.
        copy: Whether tensors have memory of their own. If not, they are views of the mapped file, which is mapped
            privately: what is written to a tensor changes what this process reads from this dataset from then on,
            never the file, and takes memory page by page. An array in memory is written to itself; what is not in the
            machine's byte order is copied all the same.
        check: Whether to compare every byte of the maps with its checksum first, once for each state of a map in a
            process: what is damaged, and what nothing vouches for, is a `MapCorruptError`.

    Arrays become tensors of the same shape and dtype (in the byte order of the machine, bfloat16 and float8 included),
    numbers tensors of no axis; texts stay `str`, bytes `bytes`. Needs no `worker_init_fn`: pickled, maps are paths
    (arrays in memory are copied), which a spawned worker opens anew; a forked one reads what its parent has opened. All
    see the same samples.

    Raises `MapNotFoundError`, `MapCorruptError`, `ArgumentError` (fields of unequal length), `ArgumentTypeError` (a
    dtype that torch lacks, which names `wrapper_fn`), `SampleIndexError`; in a spawned worker `MapChangedError` if a
    map was replaced since.

    Examples:
        >>> import numpy as np
        >>> from mmap_ninja import RaggedMmap
        >>> _ = RaggedMmap.from_lists("rows", [np.arange(2), np.arange(3)])
        >>> dataset = MmapDataset({"tokens": "rows", "label": np.array([7, 8])})
        >>> dataset[1]
        {'tokens': tensor([0, 1, 2]), 'label': tensor(8)}
    """

    def __init__(
        self,
        source: Any,
        wrapper_fn: Any = None,
        transform: Function | None = None,
        *,
        copy: bool = True,
        check: bool = False,
    ) -> None:
        if transform is not None and not callable(transform):
            raise ArgumentTypeError(f"transform is {transform!r}, expected a function")
        self._transform, self._wrapper_fn, self._is_copied = transform, wrapper_fn, copy
        self._is_checked = check
        self._read(convert.opened(source, mode="r" if copy else "c", check=check))
        self._length = length(self._fields)

    def _read(self, fields: Fields) -> None:
        self._fields, self._columns = fields, _columns("source", fields, self._wrapper_fn, self._is_copied)

    def __getstate__(self) -> dict[str, Any]:
        state = {**vars(self), "_sent": pickle.dumps(self._fields)}
        del state["_fields"], state["_columns"]
        return state

    def __getattr__(self, name: str) -> Any:
        # A worker opens the maps when it reads the first sample, not while it is spawned: there, torch tells the
        # parent of an error.
        sent = vars(self).get("_sent")
        if name in ("_fields", "_columns") and sent is not None:
            fields = pickle.loads(sent)
            if self._is_checked:
                verify(fields)  # what the parent has compared is known here
            self._read(fields)
            vars(self).pop("_sent", None)
        if name in vars(self):  # it was another thread, maybe
            return vars(self)[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        """One sample; negative numbers count from the end."""
        if not is_single(index):
            raise IndexTypeError(
                f"a dataset is indexed by one integer, not by {type(index).__name__}; MmapLoader makes batches, "
                "mmap_ninja.select a part of a map"
            )
        columns = self._columns
        sample = columns.read(index) if type(columns) is _Column else each(lambda column: column.read(index), columns)
        return sample if self._transform is None else _made(self._transform, sample, index)

    def __iter__(self) -> Iterator[Any]:
        """The samples in their order; an `IndexError` of a function is no end of them."""
        return (self[index] for index in range(len(self)))

    def __reversed__(self) -> Iterator[Any]:
        return (self[index] for index in reversed(range(len(self))))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Many samples at once, which is how a DataLoader reads a batch. They share memory."""
        samples = rows(each(lambda column: column.read_many(indices), self._columns))
        if self._transform is None:
            return list(samples)
        return [_made(self._transform, sample, index) for sample, index in zip(samples, indices, strict=True)]

    def __repr__(self) -> str:
        return f"MmapDataset({self._fields!r})"


class _Column:
    """How the samples of one map become tensors."""

    def __init__(self, name: str, field: Any, wrapper_fn: Function | None, is_copied: bool) -> None:
        if wrapper_fn is not None and not callable(wrapper_fn):
            raise ArgumentTypeError(f"wrapper_fn for {name} is {wrapper_fn!r}, expected a function")
        self._field, self._wrapper_fn, self._is_copied = field, wrapper_fn, is_copied
        self._dtype = None if wrapper_fn is not None else convert.dtype_of(name, field)
        if not is_copied and self._dtype is not None:
            _check_private(name, field)

    def read(self, index: int) -> Any:
        value = self._field[index]
        if isinstance(value, np.ndarray) and self._is_copied:
            value = value.copy()
        elif self._wrapper_fn is not None:
            value = shallow_copy(value)
        function = self._wrapper_fn
        return convert.sample(value, self._dtype) if function is None else _made(function, value, index)

    def read_many(self, indices: Sequence[int]) -> list[Any]:
        field = self._field
        if self._dtype is None or not self._is_copied:
            return [self.read(index) for index in indices]
        if not hasattr(field, "sample_shape"):
            return list(convert.split(field.take_jagged(indices)))
        values = buffers.empty((len(indices), *field.sample_shape), self._dtype)
        return [row.data for row in convert.tensor(field.take(indices, out=values))]  # see `split`


def _made(function: Function, value: Any, index: int) -> Any:
    """What a function makes of a sample, or of a part of one. Its errors name the sample."""
    try:
        return function(value)
    except Exception as error:
        raise noted(error, f"while making sample {index}")  # noqa: B904 - the same error, with a note


def _columns(name: str, fields: Fields, wrapper_fn: Any, is_copied: bool) -> Any:
    """A `_Column` for each map, in the same dicts and tuples."""
    if not isinstance(fields, dict | tuple):
        return _Column(name, fields, wrapper_fn, is_copied)
    if wrapper_fn is not None and not isinstance(wrapper_fn, Mapping | tuple):
        raise ArgumentTypeError(
            f"wrapper_fn is {wrapper_fn!r}, but source is a dict or tuple: give one with a function for each part that "
            "needs one; transform gets the whole sample"
        )
    given, parts = dict(named_parts(wrapper_fn or {})), dict(named_parts(fields))
    if unknown := [key for key in given if key not in parts]:
        raise ArgumentError(f"wrapper_fn has a function for {unknown[0]!r}, but the parts of source are {list(parts)}")
    return alike(
        fields, {key: _columns(f"{name}[{key!r}]", part, given.get(key), is_copied) for key, part in parts.items()}
    )


def _check_private(name: str, field: Any) -> None:
    """Refuse maps and arrays of which a written sample would change a file."""
    if getattr(field, "mode", "c") != "c":
        raise ArgumentError(f'copy=False needs paths, or maps that were opened with mode="c"; {name} is none')
