"""Samples that are in memory, put together to a batch: what a function has made, or a loader of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

from mmap_ninja import gather, lossless
from mmap_ninja._encode import joined
from mmap_ninja._taking import JAGGED, LIST, Padding
from mmap_ninja.errors import ArgumentError, SampleError, SampleTypeError
from mmap_ninja.fields import Fields, alike, each, each_part, named_parts
from mmap_ninja.gather import Array, Empty, Slices
from mmap_ninja.indexing import Positions

STACK, PADDED = "stack", "padded"
LAYOUTS = (LIST, STACK, PADDED, JAGGED)
_USUAL = "usual"  # where none was given


@dataclass(frozen=True)
class Form:
    """The layout and the padding of a batch; each may be a dict or tuple with an entry for a part of the batch.

    Parts without an entry have the layout `rest`, padded with 0. Raises `ArgumentError` for an entry that no part has.
    """

    layout: Any = LIST
    pad_value: Any = 0
    rest: str = LIST

    def part(self, keys: Iterable[Any], key: Any) -> Form:
        """The form of one part of a batch that has parts with these keys."""
        layout = _entry("layout", self.layout, keys, key, self.rest)
        return Form(layout, _entry("pad_value", self.pad_value, keys, key, 0), self.rest)

    def check(self, pad_value: str = "pad_value") -> None:
        """Refuse layouts that there are not, and padding where nothing is padded; `pad_value` is its name in errors."""
        layouts = _entries(self.layout)
        for layout in layouts:
            if layout not in LAYOUTS:
                raise ArgumentError(f"layout is {layout!r}, expected one of {', '.join(map(repr, LAYOUTS))}")
        is_given = any(type(value) is not int or value != 0 for value in _entries(self.pad_value))
        if is_given and PADDED not in layouts:
            raise ArgumentError(f"{pad_value} is for layout='padded', not for {self.layout!r}")

    @property
    def padding(self) -> Padding:
        """All options of the padding."""
        return self.pad_value if isinstance(self.pad_value, Padding) else Padding(self.pad_value)


@dataclass(frozen=True)
class Part:
    """One map, what errors call it, and the form of its part of a batch."""

    name: str
    source: Any
    form: Form

    @property
    def gathered(self) -> str:
        """The layout to ask for where a list is split afterwards: all samples by one gather, if they are stored so."""
        layout: str = self.form.layout
        return JAGGED if layout == LIST and self.source.wrapper_fn is None else layout


def parts(fields: Fields, form: Form, name: str = "source") -> Any:
    """The same dicts and tuples with a `Part` for each map. Raises `ArgumentError` for a form that is not theirs."""
    if isinstance(fields, dict | tuple):
        keys = [key for key, _ in named_parts(fields)]
        return alike(
            fields, {key: parts(part, form.part(keys, key), f"{name}[{key!r}]") for key, part in named_parts(fields)}
        )
    if not isinstance(form.layout, str):
        raise ArgumentError(f"layout is {form.layout!r} for {name}, which is no dict or tuple")
    return Part(name, fields, form)


@dataclass(frozen=True)
class Layouts:
    """The layouts that somebody has given, by the names that he knows them by, and those that are usual.

    `usual` is that of samples as they are stored, and `"stack"` that of what functions make. `known` has the name of
    the core for each name. Raises `ArgumentError` for layouts that are not known.
    """

    layout: Any
    pad_value: Any
    usual: str
    known: Mapping[str, str]

    def stored(self, fields: Fields) -> Any:
        """A `Part` for each map, in the same dicts and tuples."""
        layout = self._translated(self.layout, _USUAL)
        return each(self._resolved, parts(fields, Form(layout, self.pad_value, _USUAL)))

    def made(self) -> Any:
        """The layout, or a dict or tuple of layouts, of what a transform makes."""
        return self._translated(self.layout, STACK)

    def _resolved(self, part: Part) -> Part:
        if part.form.layout != _USUAL:
            return part
        usual = self.known[self.usual] if part.source.wrapper_fn is None else STACK
        return replace(part, form=replace(part.form, layout=usual))

    def _translated(self, layout: Any, usual: str) -> Any:
        if layout is None:
            return usual
        if isinstance(layout, Mapping | tuple):
            return each_part(partial(self._translated, usual=usual), layout)
        if not isinstance(layout, str) or layout not in self.known:
            raise ArgumentError(f"layout is {layout!r}, expected one of {', '.join(map(repr, self.known))}")
        return self.known[layout]


def _entries(option: Any) -> list[Any]:
    if isinstance(option, Mapping | tuple):
        return [entry for _, part in named_parts(option) for entry in _entries(part)]
    return [option]


def _entry(name: str, option: Any, keys: Iterable[Any], key: Any, default: Any) -> Any:
    if not isinstance(option, Mapping | tuple):
        return option  # for all parts
    given, known = dict(named_parts(option)), list(keys)
    if unknown := [other for other in given if other not in known]:
        raise ArgumentError(f"{name} has an entry for {unknown[0]!r}, but the parts of a batch are {known}")
    return given.get(key, default)


def collated(samples: Sequence[Any], numbers: Positions, form: Form, empty: Empty = np.empty) -> Any:
    """Dicts and tuples become a dict or tuple of batches; of what is in them, a batch in its layout.

    `numbers` is what errors call the samples. Raises `SampleError` or `SampleTypeError` for samples that do not fit
    into one batch.
    """
    first = samples[0]
    if isinstance(first, Mapping | tuple):
        keys = _common_keys(samples, numbers)
        return alike(
            first,
            {key: collated([sample[key] for sample in samples], numbers, form.part(keys, key), empty) for key in keys},
        )
    layout = form.layout
    if not isinstance(layout, str):
        raise ArgumentError(f"layout is {layout!r}, but sample {numbers[0]} became no dict or tuple")
    if layout == LIST or isinstance(first, str | bytes):
        return list(samples)
    arrays = [_as_array(sample, number) for sample, number in zip(samples, numbers, strict=True)]
    arrays = _of_one_dtype(arrays)
    _check_same(arrays, numbers, "dtype")
    if layout == STACK or not any(map(attrgetter("ndim"), arrays)):
        _check_same(arrays, numbers, "shape")
        return np.stack(arrays, out=empty((len(arrays), *arrays[0].shape), arrays[0].dtype))
    _check_same(arrays, numbers, "ndim")
    rows = _rows(arrays, numbers)
    return form.padding.gather(rows, empty) if layout == PADDED else gather.jagged(rows, empty)


def _common_keys(samples: Sequence[Any], numbers: Positions) -> list[Any]:
    """The keys of dicts, or the places in tuples, which are the same for all samples."""
    first = samples[0]
    for sample, number in zip(samples, numbers, strict=True):
        if type(sample) is not type(first) or _keys(sample) != _keys(first):
            raise SampleError(
                f"sample {numbers[0]} became a {_described(first)}, sample {number} a {_described(sample)}: they do "
                "not make one batch"
            )
    return [key for key, _ in named_parts(first)]


def _keys(sample: Any) -> Any:
    return sample.keys() if isinstance(sample, Mapping) else len(sample)


def _described(sample: Any) -> str:
    if isinstance(sample, Mapping):
        return f"{type(sample).__name__} of {', '.join(map(repr, sample))}"
    if isinstance(sample, tuple):
        return f"{type(sample).__name__} of {len(sample)}"
    return type(sample).__name__


def _as_array(sample: Any, number: int) -> Array:
    try:
        return lossless.as_array(sample)
    except (SampleError, SampleTypeError) as error:
        what = f"sample {number} became a {type(sample).__name__}; layout='list' takes everything"
        raise type(error)(f"{what}: {error}") from None


def _of_one_dtype(arrays: list[Array]) -> list[Array]:
    """Arrays without elements in the dtype of the others: an empty list has none of its own."""
    if all(array.dtype == arrays[0].dtype for array in arrays):
        return arrays
    dtype = next((array.dtype for array in arrays if array.size), arrays[0].dtype)
    return [array if array.size else array.astype(dtype) for array in arrays]


def _check_same(arrays: Sequence[Array], numbers: Positions, what: str) -> None:
    """Refuse arrays that differ in this."""
    found = [getattr(array, what) for array in arrays]
    for k, other in enumerate(found):
        if other != found[0]:
            remedy = "'padded', 'jagged' or 'list' takes them" if what == "shape" else "'list' takes them"
            raise SampleError(
                f"sample {numbers[0]} became an array of {what} {found[0]}, sample {numbers[k]} one of {other}; "
                f"layout={remedy}"
            )


def _rows(arrays: Sequence[Array], numbers: Positions) -> Slices:
    """Arrays of one dtype and number of axes, as the rows of an index over their joined bytes."""
    shapes = np.array([array.shape for array in arrays], np.int64)
    sizes = shapes.prod(axis=1)
    return Slices.joined_from(arrays[0].dtype, shapes, sizes, numbers, joined(arrays))
