"""The kernel hears of batches before their turn, and not for ever when it has them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mmap_ninja import Batches, BytesMmap, DenseMmap, RaggedMmap, StringsMmap, _readahead, open_map, select
from mmap_ninja._readahead import advised, behind, check_readahead
from mmap_ninja._storage.flatfile import MappedFile


def through(count: int, ahead: int | None) -> list[tuple[str, int]]:
    """What happens, in order: batches that are advised, and batches that come."""
    seen: list[tuple[str, int]] = []
    for batch in advised(range(count), lambda k: seen.append(("advised", k)), ahead):
        seen.append(("came", batch))
    return seen


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_each_batch_is_advised_so_many_batches_before_it_comes(ahead: int) -> None:
    seen = through(20, ahead)
    assert [k for what, k in seen if what == "came"] == list(range(20))
    assert [k for what, k in seen if what == "advised"] == list(range(20))
    for k in range(20):
        before = seen[: seen.index(("came", k))]
        assert max(j for what, j in before if what == "advised") == min(k + ahead, 19)


def test_none_ahead_is_no_advice() -> None:
    assert through(5, 0) == [("came", k) for k in range(5)]


def test_warm_data_is_soon_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_readahead, "_reads_of_this_thread", lambda: 7)
    told = [k for what, k in through(100, None) if what == "advised"]
    assert told[:3] == [0, 31, 63]  # two batches that nobody had to read, then now and then
    assert len(told) == 4


def test_cold_data_is_always_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = iter(range(1000))
    monkeypatch.setattr(_readahead, "_reads_of_this_thread", lambda: next(reads))
    assert [k for what, k in through(100, None) if what == "advised"] == list(range(100))


def test_data_that_gets_cold_is_advised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0] * 20 + list(range(1, 1000)))
    monkeypatch.setattr(_readahead, "_reads_of_this_thread", lambda: next(now))
    told = [k for what, k in through(60, None) if what == "advised"]
    assert told == [0, *range(19, 60)]


def test_where_nobody_counts_reads_all_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_readahead, "resource", None)
    assert len([k for what, k in through(50, None) if what == "advised"]) == 50


def test_an_error_comes_behind_what_came_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise KeyError("fourth")

    running = behind(items(), 2)
    assert [next(running) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="fourth"):
        next(running)


@pytest.mark.parametrize(("given", "found"), [("auto", None), (0, 0), (3, 3), (np.int8(2), 2)])
def test_arguments_that_make_sense(given: int | str, found: int | None) -> None:
    assert check_readahead(given) == found


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(MappedFile, "will_need", lambda self, given: told.extend(given))
    return told


def test_batches_tell_of_the_bytes_of_their_samples(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    m = DenseMmap.from_ndarray(tmp_path / "m", np.zeros((8, 10), np.uint8))
    list(Batches(m, 2, readahead=1))
    assert ranges == [(0, 20), (20, 40), (40, 60), (60, 80)]


@pytest.mark.parametrize("indices", [[3, 1, 2], [7, 0], [5, 5], [-1]])
def test_ranges_are_sorted_and_merged(tmp_path: Path, ranges: list[tuple[int, int]], indices: list[int]) -> None:
    sizes = [3, 0, 4, 1, 5, 9, 2, 6]
    ends = np.cumsum(sizes)
    samples = [bytes([k]) * size for k, size in enumerate(sizes)]
    BytesMmap.from_bytes(tmp_path / "bytes", samples)
    StringsMmap.from_strings(tmp_path / "strings", [sample.decode() for sample in samples])
    RaggedMmap.from_lists(tmp_path / "ragged", [np.frombuffer(sample, np.uint8) for sample in samples])
    covered = {byte for i in indices for byte in range(int(ends[i]) - sizes[i], int(ends[i]))}
    for kind in ("bytes", "strings", "ragged"):
        for m in (open_map(tmp_path / kind), select(open_map(tmp_path / kind), slice(None))):
            ranges.clear()
            m.will_need(indices)
            assert {byte for start, stop in ranges for byte in range(start, stop)} == covered
            assert ranges == sorted(ranges)
            assert all(stop < start for (_, stop), (start, _) in pairwise(ranges))


def test_advice_does_nothing_where_it_cannot_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = RaggedMmap.from_lists(tmp_path / "m", [np.arange(5)])

    class Plain:  # a mapping of a system without madvise
        pass

    monkeypatch.setattr(m._snapshot.data, "_map", Plain())
    m.will_need([0])
    RaggedMmap(tmp_path / "none").will_need([])
