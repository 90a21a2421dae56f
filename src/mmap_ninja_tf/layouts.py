"""The layouts of batches, in the words of TensorFlow and of the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmap_ninja.collate import PADDED, STACK, Form, parts
from mmap_ninja.errors import ArgumentError
from mmap_ninja.fields import Fields, each

RAGGED, JAGGED = "ragged", "jagged"  # here, and in the core


def form_of(layout: Any, pad_value: Any, *, default: str, known: tuple[str, ...] = (RAGGED, PADDED, STACK)) -> Form:
    """The layouts and the padding in the words of the core. Raises `ArgumentError` for layouts that are not known."""
    rest = _translated(default, known)
    form = Form(rest if layout is None else _translated(layout, known), pad_value, rest)
    form.check()
    return form


def layout_of(fields: Fields, form: Form, *, is_made: bool) -> Any:
    """The layout that `Batches` gets: that of each map, or of what a transform makes."""
    return form.layout if is_made else each(lambda part: part.form.layout, parts(fields, form))


def _translated(layout: Any, known: tuple[str, ...]) -> Any:
    if isinstance(layout, Mapping):
        return {key: _translated(part, known) for key, part in layout.items()}
    if isinstance(layout, tuple):
        return tuple(_translated(part, known) for part in layout)
    if layout not in known:
        raise ArgumentError(f"layout is {layout!r}, expected one of {', '.join(map(repr, known))}")
    return JAGGED if layout == RAGGED else layout
