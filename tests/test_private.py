"""`mode="c"`: samples that a process may write to, in memory of its own, whatever map they are of."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maps_of_0_9
from contracts.comparison import tree
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, open_map, select, verify, windows
from mmap_ninja._storage.flatfile import MappedFile
from mmap_ninja._storage.manifest import File
from mmap_ninja.errors import ArgumentError, MapChangedError, MapReadOnlyError

originals = maps_of_0_9.originals

ROWS = [np.arange(n, dtype=np.int32) for n in (3, 1, 4, 0, 5)]
MAPS: dict[str, Any] = {
    "rows": lambda folder: RaggedMmap.from_lists(folder, ROWS),
    "images": lambda folder: RaggedMmap.from_lists(folder, [np.ones((n, 2, 3), np.uint8) for n in (1, 4, 2)]),
    "mixed": lambda folder: RaggedMmap.from_lists(folder, [np.ones(2), np.ones((2, 3))]),
    "dense": lambda folder: DenseMmap.from_ndarray(folder, np.ones((5, 4, 2), np.float32)),
    "big endian": lambda folder: DenseMmap.from_ndarray(folder, np.ones((5, 4), ">i2")),
}


@pytest.fixture(params=MAPS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    MAPS[request.param](tmp_path / "map").close()
    return tmp_path / "map"


def test_what_is_written_is_seen_by_this_handle_alone(folder: Path) -> None:
    before, other = tree(folder), open_map(folder)
    expected = [np.array(sample) for sample in other]
    with open_map(folder, mode="c") as m:
        for sample in m:
            sample[...] = 77
        assert all((sample == 77).all() for sample in m)
        assert all((values == 77).all() for values in ([m.memmap] if hasattr(m, "memmap") else [m[:]]))
        assert all((sample == 77).all() for sample in m.take([0, 1]))
        assert all(np.array_equal(*pair) for pair in zip(other, expected, strict=True))
    assert tree(folder) == before
    assert verify(folder) == []
    assert all(np.array_equal(*pair) for pair in zip(open_map(folder, mode="c"), expected, strict=True))


def test_samples_are_views_without_a_copy(folder: Path) -> None:
    m = open_map(folder, mode="c")
    assert m[0].flags.writeable
    assert np.shares_memory(m[0], m[0])
    assert not open_map(folder)[0].flags.writeable
    assert not open_map(folder, mode="r+")[0].flags.writeable


def test_views_of_such_a_map_read_what_was_written(folder: Path) -> None:
    m = open_map(folder, mode="c")
    chosen, cut = select(m, [1, 0]), windows(m, 1, 1)
    m[0][...] = 5
    assert (chosen[1] == 5).all()
    assert (cut[0] == 5).all()


def test_an_appended_sample_is_committed_and_nothing_else(folder: Path) -> None:
    expected = [np.array(sample) for sample in open_map(folder)]
    m = open_map(folder, mode="c")
    m[0][...] = 9
    m.append(expected[0])
    assert verify(folder) == []
    assert all(np.array_equal(*pair) for pair in zip(open_map(folder), [*expected, expected[0]], strict=True))
    assert m[0].flags.writeable
    m.refresh()
    assert m[0].flags.writeable


def test_assigning_needs_a_mode_that_writes(folder: Path) -> None:
    m = open_map(folder, mode="c")
    with pytest.raises(MapReadOnlyError, match="mode"):
        m[0] = m[0]


def test_a_worker_gets_a_private_map_of_the_same_samples(folder: Path) -> None:
    m = open_map(folder, mode="c")
    expected = np.array(m[0])
    m[0][...] = 3
    sent = pickle.loads(pickle.dumps(m))
    assert sent.mode == "c"
    assert np.array_equal(sent[0], expected)
    sent[0][...] = 4
    assert (m[0] == 3).all()
    shutil.rmtree(folder)
    RaggedMmap.from_lists(folder, ROWS)
    with pytest.raises(MapChangedError, match="was replaced"):
        pickle.loads(pickle.dumps(m))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_writes_to_memory_of_its_own(folder: Path) -> None:
    m = open_map(folder, mode="c")
    expected = np.array(m[0])
    child = os.fork()
    if child == 0:
        m[0][...] = 6
        os._exit(0 if (m[0] == 6).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(m[0], expected)


def test_a_map_may_be_made_in_this_mode(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "rows", ROWS, mode="c")
    m[0][0] = 8
    assert np.array_equal(RaggedMmap(tmp_path / "rows")[0], ROWS[0])


def test_texts_and_bytes_are_read_as_ever(tmp_path: Path) -> None:
    StringsMmap.from_strings(tmp_path / "texts", ["a", "ü"])
    BytesMmap.from_bytes(tmp_path / "bytes", [b"a", b"bc"], zstd_level=3)
    assert list(open_map(tmp_path / "texts", mode="c")) == ["a", "ü"]
    assert list(open_map(tmp_path / "bytes", mode="c")) == [b"a", b"bc"]


@pytest.mark.parametrize("name", ["ragged rows", "ragged images", "dense float32", "dense fortran"])
def test_maps_of_0_9_0(originals: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(originals / name, tmp_path / "map")
    before, m = tree(tmp_path / "map"), open_map(tmp_path / "map", mode="c")
    m[0][...] = 1
    assert (m[0] == 1).all()
    assert not (open_map(tmp_path / "map")[0] == 1).all()
    assert tree(tmp_path / "map") == before


def test_a_mode_that_there_is_not(folder: Path) -> None:
    with pytest.raises(ArgumentError, match="or 'c' for samples of which the process may change its own copy"):
        open_map(folder, mode="w+")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system decides how much it promises")
def test_a_map_may_be_larger_than_the_memory(tmp_path: Path) -> None:
    size = 1 << 40
    with open(tmp_path / "data.npy", "wb") as file:
        file.truncate(size)
    mapped = MappedFile(str(tmp_path), File("data.npy", size=size), is_private=True)
    mapped.bytes[size - 1] = 1
    assert mapped.bytes[size - 1] == 1
    assert MappedFile(str(tmp_path), File("data.npy", size=size)).bytes[size - 1] == 0
