"""The layouts of batches, and what does not fit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

from mmap_ninja import Padding
from mmap_ninja.collate import PADDED, STACK, Form, Layouts, Part
from mmap_ninja.errors import ArgumentError, about
from mmap_ninja.fields import TEXTS, Fields, alike, each, each_part, is_ragged, leaves, named_parts
from mmap_ninja.indexing import integer
from mmap_ninja.packing import PackedOrder, check_pad_value
from mmap_ninja_jax.process import check_lists, check_shapes

LIST, JAGGED, PACKED = "list", "jagged", "packed"
KNOWN = {name: name for name in (PADDED, LIST, STACK)}

_UNEVEN = (
    "each process would pad to the longest of its own samples, as it does not know what functions make elsewhere: give "
    "pad_value=Padding(length=...), with an entry for each axis"
)


def in_rows(fields: Fields, size: int, pack_length: int, pad_value: Any, order: dict[str, Any]) -> dict[str, Any]:
    """What `Batches` gets for batches of `size` packed rows. Raises `ArgumentError` for what cannot be packed."""
    integer("pack_length", pack_length, 1)
    for _, field in leaves(fields):
        if field.kind not in TEXTS and field.dtype is not None:
            check_pad_value(pad_value, field.dtype)
    return {"order": PackedOrder(_lengths(fields), size, pack_length, **order), "layout": JAGGED}


def of_stored(
    fields: Fields,
    size: int,
    layout: Any,
    pad_value: Any,
    buckets: Any,
    sharding: Any,
    *,
    is_shared: bool,
    is_final: bool,
) -> dict[str, Any]:
    """What `Batches` gets for batches of `size` samples, as they are stored or as a `wrapper_fn` makes them.

    `is_shared` says whether other processes make parts of the same batches, `is_final` whether no function makes
    something else of them. Raises `ArgumentError` for samples that do not fit into buckets or onto devices.
    """
    stored = Layouts(layout, pad_value, PADDED, KNOWN).stored(fields)
    layouts = each(attrgetter("gathered"), stored)
    if buckets is not None:
        _check_padded(layouts)
        stored = each(partial(_in_buckets, buckets), stored)
    each(_check_longest, stored)
    if sharding is not None:
        if is_final:
            check_shapes(sharding, stored, size)
        if is_shared:
            stored = each(_fixed_part, stored)
    pad_globally = sharding is not None and is_shared
    return {"layout": layouts, "pad_value": each(_pad_value, stored), "pad_globally": pad_globally}


def of_made(layout: Any, pad_value: Any, buckets: Any, sharding: Any, *, is_shared: bool) -> dict[str, Any]:
    """The same for batches of what a transform makes."""
    layouts = Layouts(layout, pad_value, PADDED, KNOWN).made()
    if buckets is not None:
        _check_padded(layouts)
        pad_value = _bucketed(buckets, pad_value)
    if sharding is not None:
        check_lists(layouts)
        if is_shared:
            pad_value = _fixed_made(layouts, pad_value)
    return {"layout": layouts, "pad_value": pad_value}


def _check_padded(layouts: Any) -> None:
    if PADDED not in [one for _, one in leaves(layouts)]:
        raise ArgumentError("buckets is for layout='padded'")


def _lengths(fields: Fields) -> Any:
    """The length of each sample, the same in all parts. Raises `ArgumentError` for what cannot be packed."""
    found = None
    for name, field in leaves(fields):
        shapes = field.shapes if is_ragged(field) else np.empty((1, 0))
        if len(shapes) and (shapes.shape[1] != 1 or shapes.min() < 0):
            raise ArgumentError(f"{name} cannot be packed: its samples have to be stored ragged, with one axis each")
        if found is not None and not np.array_equal(found, field.lengths):
            raise ArgumentError(f"{name} has samples of other lengths than the part before it: they cannot be packed")
        found = field.lengths
    return found


def _bucketed(buckets: Any, pad_value: Any) -> Any:
    """The paddings with these buckets."""
    if isinstance(pad_value, Padding):
        raise ArgumentError("buckets= and a Padding contradict each other: give Padding(buckets=...)")
    if isinstance(pad_value, Mapping | tuple):
        return each_part(partial(_bucketed, buckets), pad_value)
    return Padding(pad_value, buckets=buckets)


def _in_buckets(buckets: Any, part: Part) -> Part:
    if part.form.layout != PADDED:
        return part
    return replace(part, form=replace(part.form, pad_value=_bucketed(buckets, part.form.pad_value)))


def _pad_value(part: Part) -> Any:
    return part.form.pad_value


def _fixed(padding: Any) -> Padding:
    """The same with a length for each axis, which refuses samples of more axes.

    Global arrays have one shape in all processes, and none of them knows what functions make in another one. Raises
    `ArgumentError` for a length that is open.
    """
    if not isinstance(padding, Padding):
        raise ArgumentError(_UNEVEN)
    lengths = padding.length if isinstance(padding.length, tuple) else (padding.length,)
    if None in lengths:
        raise ArgumentError(_UNEVEN)
    return replace(padding, length=lengths)


def _fixed_made(layout: Any, pad_value: Any) -> Any:
    """The same of what a transform makes: `pad_value` with a length for each axis of each part that is padded."""
    if isinstance(layout, Mapping | tuple):
        form, given = Form(layout, pad_value), dict(named_parts(layout))
        return alike(layout, {key: _fixed_made(part, form.part(given, key).pad_value) for key, part in given.items()})
    if layout != PADDED:
        return pad_value
    if isinstance(pad_value, Mapping | tuple):
        raise ArgumentError("pad_value has entries for parts: let layout have one for each part that is padded, too")
    return _fixed(pad_value)


def _fixed_part(part: Part) -> Part:
    if part.source.wrapper_fn is None or part.form.layout != PADDED:
        return part
    with about(part.name):
        return replace(part, form=replace(part.form, pad_value=_fixed(part.form.pad_value)))


def _is_padded(part: Part) -> bool:
    return part.form.layout == PADDED and is_ragged(part.source)


def _check_longest(part: Part) -> None:
    """Refuse buckets that the longest sample does not fit into, by the index alone."""
    buckets = part.form.padding.buckets
    if not _is_padded(part) or buckets is None:
        return
    largest, longest = buckets[-1], int(part.source.lengths.max(initial=0))
    if longest > largest:
        raise ArgumentError(f"{part.name} has a sample of length {longest}, but the largest bucket is {largest}")
