"""Whether the rows of an index can be: each sample in the data, behind the one before."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmap_ninja._storage.index import MISSING, Table, tables
from mmap_ninja._storage.manifest import DATA, DENSE, Manifest
from mmap_ninja._storage.snapshot import Snapshot


def bad_rows(state: Manifest, snapshot: Snapshot) -> str | None:
    """What is wrong with the first row that is wrong: a sample that does not lie in the data, behind the one before.

    In maps that this package made from the start, the samples fill the data without a gap.
    """
    if state.kind == DENSE:
        return None
    is_whole = state.files[DATA].offset > 0 if DATA in state.files else False
    total, end, first = state.files[DATA].size // state.itemsize if DATA in state.files else 0, 0, 0
    for table in tables(snapshot.index):
        starts, sizes, is_bad = places(state, snapshot.index.ndim, table)
        before = np.concatenate([[end], (starts + sizes)[:-1]])
        is_bad |= (starts != before) if is_whole else (starts < before)
        is_bad |= (starts < 0) | (starts > total) | (starts + sizes > total)
        bad = np.flatnonzero(is_bad)
        if len(bad):
            row = table[bad[0]].tolist()
            return f"the row {row} of sample {first + int(bad[0])} is wrong: the samples have {total} elements"
        if len(table):
            end = int(starts[-1] + sizes[-1])
        first += len(table)
    if is_whole and end != total:
        return f"the last sample ends at {end}, but there are {total} elements"
    return None


def places(state: Manifest, ndim: int, table: Table) -> tuple[Table, Table, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Where samples begin, how many elements they have, and which rows cannot be."""
    shapes = table[:, 1 : 1 + ndim]
    is_missing = shapes == MISSING
    is_bad = ((shapes < 0) & ~is_missing).any(axis=1)
    is_bad |= (is_missing[:, :-1] & ~is_missing[:, 1:]).any(axis=1)
    if not state.mixed:
        is_bad |= is_missing.any(axis=1)
    if state.codec is not None and not state.format_1:
        is_bad |= table[:, -1] < 0
    counted = np.where(is_missing, 1, shapes)
    # No array can be larger, and the axes of one without elements count as well.
    is_bad |= np.maximum(counted, 1).astype(float).prod(axis=1) * state.itemsize >= 2.0**63
    return table[:, 0], np.where(is_bad, 0, counted.prod(axis=1)), is_bad
