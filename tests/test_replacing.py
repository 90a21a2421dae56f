"""Replaced maps: who has one open reads it to the end, also who makes a new one of it in its own folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plain_reader
from changes import format_1_column, format_1_rows
from faults import in_child
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, np_open_existing, open_map
from numbered import line, plain
from plain_reader import same

BIG = [np.full(n % 900, n) for n in range(300)]  # some pages, none of them read before the map is replaced
LINES = [line(i) * 50 for i in range(300)]


def format_1_dense(order: str) -> Callable[[Path], None]:
    return lambda folder: format_1_column(folder, np.asarray(np.arange(60_000).reshape(300, 200), order=order), order)


HELD: dict[str, tuple[Callable[[Path], object], Callable[[Path], Any]]] = {
    "ragged": (lambda f: RaggedMmap.from_lists(f, BIG, sync=False), open_map),
    "dense": (lambda f: DenseMmap.from_ndarray(f, np.arange(60_000).reshape(300, 200), sync=False), open_map),
    "memmap": (lambda f: DenseMmap.from_ndarray(f, np.arange(60_000).reshape(300, 200), sync=False), np_open_existing),
    "copy-on-write": (
        lambda f: DenseMmap.from_ndarray(f, np.arange(60_000).reshape(300, 200), sync=False),
        lambda f: np_open_existing(f, mode="c"),
    ),
    "strings": (lambda f: StringsMmap.from_strings(f, LINES, sync=False), open_map),
    "bytes": (lambda f: BytesMmap.from_bytes(f, [text.encode() for text in LINES], sync=False), open_map),
    "zstd": (lambda f: StringsMmap.from_strings(f, LINES, zstd_level=1, sync=False), open_map),
    "format 1 ragged": (format_1_rows, open_map),
    "format 1 dense": (format_1_dense("C"), open_map),
    "format 1 Fortran": (format_1_dense("F"), np_open_existing),
}
REPLACE: dict[str, Callable[[Path], object]] = {
    "smaller": lambda f: RaggedMmap.from_lists(f, [np.arange(2)], sync=False),
    "larger": lambda f: RaggedMmap.from_lists(f, BIG + BIG, sync=False),
    "dense": lambda f: DenseMmap.from_ndarray(f, np.arange(9), sync=False),
    "strings": lambda f: StringsMmap.from_strings(f, LINES * 3, sync=False),
    "twice": lambda f: [DenseMmap.from_ndarray(f, np.zeros((size, 3)), sync=False) for size in (1, 5000)],
    "removed": shutil.rmtree,
}


@pytest.mark.parametrize("kind", HELD)
def test_who_has_a_map_open_reads_it_to_the_end(tmp_path: Path, kind: str) -> None:
    """Whatever takes its place, and though not one page was read before. A signal would be the child's exit code."""
    make, opening = HELD[kind]
    for name, replace in REPLACE.items():
        make(tmp_path / name)
        expected = [np.array(s) if isinstance(s, np.ndarray) else s for s in opening(tmp_path / name)]

        def hold(folder: Path = tmp_path / name, expected: list = expected, replace: Callable = replace) -> None:
            m = opening(folder)
            view = m[len(m) - 1]
            assert in_child(lambda: replace(folder)) == 0
            assert same(list(map(plain, m)), expected)
            assert same([plain(view), plain(m[1]), *map(plain, m[-2:])], [expected[k] for k in (-1, 1, -2, -1)])

        assert in_child(hold) == 0, name


@pytest.mark.parametrize("kind", ["format 1 ragged", "format 1 dense", "format 1 Fortran"])
@pytest.mark.parametrize("opening", [open_map, None], ids=["map", "memmap"])
def test_a_map_of_format_1_is_transformed_into_its_own_folder(tmp_path: Path, kind: str, opening: Any) -> None:
    if opening is None and "ragged" in kind:
        opening = RaggedMmap
    make, folder = HELD[kind][0], tmp_path / "map"
    make(folder)
    expected = [np.array(sample) * 2 for sample in open_map(folder)]

    def transform() -> None:
        old = (opening or np_open_existing)(folder)
        made = RaggedMmap.from_generator(folder, (sample * 2 for sample in old), 4)
        assert same(list(made), expected)
        assert same([np.asarray(sample) * 2 for sample in old], expected)
        RaggedMmap.from_generator(folder, (sample + 1 for sample in made), 4)
        assert same(list(open_map(folder)), [sample + 1 for sample in expected])
        assert same(list(made), expected)

    assert in_child(transform) == 0
    assert {path.name for path in folder.iterdir()} == plain_reader.names(folder) | {".lock"}
