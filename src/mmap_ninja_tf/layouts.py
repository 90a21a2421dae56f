"""The layouts of batches, by their names here and in the core."""

from __future__ import annotations

from typing import Any

from mmap_ninja.collate import PADDED, STACK
from mmap_ninja.errors import ArgumentError
from mmap_ninja.fields import leaves

RAGGED = "ragged"
DENSE = {PADDED: PADDED, STACK: STACK}  # what NumPy has
ALL = {RAGGED: "jagged", **DENSE}


def check_lengths(with_lengths: bool, layout: Any) -> None:
    """Refuse to give lengths where nothing is padded; `layout` is in the words of the core."""
    if with_lengths and PADDED not in [part for _, part in leaves(layout)]:
        raise ArgumentError("with_lengths is for layout='padded'")
