"""Readers beside a writer that extends a map, or replaces it again and again: each sees a snapshot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plain_reader
from children import Children
from faults import KILLED
from mmap_ninja import DenseMmap, Mmap, RaggedMmap, StringsMmap, np_open_existing, open_map
from numbered import line, pair, row
from plain_reader import same

OPENS, LONG_OPENS = 500, 25_000  # of each kind of map

SAMPLE: dict[str, Callable[[int], Any]] = {"ragged": row, "strings": line, "dense": pair, "memmap": pair}
CLASS: dict[str, type[Mmap]] = {"ragged": RaggedMmap, "strings": StringsMmap, "dense": DenseMmap, "memmap": DenseMmap}


def consistent(m: Any, sample: Callable[[int], Any], rng: np.random.Generator) -> None:
    """Its last samples and some others are right, and so is what the index says."""
    length = len(m)
    for i in {0, length - 2, length - 1, *rng.integers(0, length, 4).tolist()}:
        assert same([m[i]], [sample(i)]), i
    if isinstance(m, np.memmap):
        assert m.shape == (length, 2)
        return
    if rng.random() < 0.05:
        assert same(list(m[-200:]), [sample(i) for i in range(max(length - 200, 0), length)])
        starts, ends = m.starts, m.ends
        assert len(starts) == len(ends) == len(m.lengths) == len(m.shapes) == length
        assert starts[0] == 0
        assert (starts[1:] == ends[:-1]).all()
        assert int(ends[-1]) * m.dtype.itemsize == m.nbytes


@pytest.mark.parametrize("kind", SAMPLE)
@pytest.mark.parametrize("opens", [OPENS, pytest.param(LONG_OPENS, marks=pytest.mark.long)])
def test_four_processes_open_while_one_extends(tmp_path: Path, kind: str, opens: int) -> None:
    folder, sample = tmp_path / "map", SAMPLE[kind]
    CLASS[kind].from_generator(folder, map(sample, range(2)), 2)

    def extend() -> None:
        m, length = CLASS[kind](folder), 2
        while True:
            size = 1 + length % 4
            m.extend([sample(length + n) for n in range(size)], sync=length % 50 == 0)
            length += size

    def open_often(seed: int) -> None:
        rng, length, opened = np.random.default_rng(seed), 2, 0
        while opened < opens // 4 or length == 2:  # else nobody has written, and nothing is shown
            m = np_open_existing(folder) if kind == "memmap" else open_map(folder)
            assert len(m) >= length
            length, opened = len(m), opened + 1
            consistent(m, sample, rng)

    with Children() as children:
        writer = children.start(extend)
        readers = [children.start(lambda seed=seed: open_often(seed)) for seed in range(4)]
        assert [children.wait(pid) for pid in readers] == [0] * 4
        assert children.kill(writer) == KILLED
    consistent(open_map(folder), sample, np.random.default_rng(9))
    plain_reader.check(folder)


def tagged(cls: type[Mmap], folder: Path, tag: int, **options: Any) -> None:
    """A map whose samples all are `tag`, and that says how many there are."""
    count = 1 + tag * 7 % 40
    sample = {RaggedMmap: np.full(tag % 9 + 1, tag), DenseMmap: np.array([tag, tag]), StringsMmap: str(tag)}[cls]
    cls.from_generator(folder, [sample] * count, 8, metadata={"tag": tag, "count": count}, sync=False, **options)


def tag_of(folder: Path) -> int:
    """The tag of a map, if all of it belongs together."""
    m = open_map(folder)
    tag, count = m.metadata["tag"], m.metadata["count"]
    assert len(m) == count
    for sample in m:
        assert set(np.asarray(sample, np.int64).reshape(-1).tolist()) == {tag}
    return tag


@pytest.mark.parametrize("classes", [[RaggedMmap], [StringsMmap], [DenseMmap]], ids=lambda c: c[0].kind)
@pytest.mark.parametrize("opens", [OPENS, pytest.param(LONG_OPENS, marks=pytest.mark.long)])
def test_readers_open_while_a_map_is_replaced_again_and_again(tmp_path: Path, classes: list, opens: int) -> None:
    folder = tmp_path / "map"
    tagged(classes[0], folder, 0)

    def replace() -> None:
        tag = 1
        while True:
            tagged(classes[tag % len(classes)], folder, tag)
            tag += 1

    def open_often() -> None:
        seen = [tag_of(folder)]
        while len(seen) <= opens // 4 or len(set(seen)) < 4:  # else it was never replaced
            seen.append(tag_of(folder))
        assert seen == sorted(seen)

    with Children() as children:
        writer = children.start(replace)
        readers = [children.start(open_often) for _ in range(4)]
        assert [children.wait(pid) for pid in readers] == [0] * 4
        assert children.kill(writer) == KILLED
