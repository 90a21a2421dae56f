"""The kernel hears of batches before their turn, and not for ever when it has them."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mmap_ninja import Batches, BytesMmap, DenseMmap, RaggedMmap, StringsMmap, _readahead, open_map, select
from mmap_ninja._readahead import Warmth, advised, check_readahead
from mmap_ninja._storage.flatfile import MappedFile
from mmap_ninja.pipeline import behind

SIZE = 100  # samples a batch: batch k has the samples from k * SIZE on


def through(count: int, ahead: int | None, warmth: Warmth | None = None) -> list[tuple[str, int]]:
    """What happens, in order: batches that are advised, as a whole or by some samples, and batches that come."""
    seen: list[tuple[str, int]] = []

    def will_need(indices: range) -> None:
        seen.append(("advised" if len(indices) == SIZE else "tried", indices[0] // SIZE))

    batches = (range(k * SIZE, (k + 1) * SIZE) for k in range(count))
    for batch in advised(batches, will_need, ahead, warmth or Warmth()):
        seen.append(("came", batch[0] // SIZE))
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
    warmth = Warmth()
    seen = [event for event in through(100, None, warmth) if event[0] != "came"]
    assert seen == [("advised", 0), ("tried", 31), ("tried", 63), ("tried", 95)]
    seen = [event for event in through(100, None, warmth) if event[0] != "came"]
    assert seen == [("tried", 27), ("tried", 59), ("tried", 91)]  # the next epoch begins warm


@pytest.mark.parametrize(
    ("ahead", "reads", "expected"),
    [
        (0, [7] * 99, []),
        (2, [7] * 99, [True, False]),
        (None, range(99), [True, False]),
        (None, [7] * 99, []),
        (None, [7] * 20 + list(range(8, 99)), [True, False]),
        (None, [7] * 9 + list(range(8, 20)) + [19] * 99, [True, False]),
    ],
    ids=["no advice", "always", "cold", "warm", "gets cold", "gets cold, then warm"],
)
def test_nothing_is_read_around_a_page_as_long_as_batches_are_advised(
    monkeypatch: pytest.MonkeyPatch, ahead: int | None, reads: Iterable[int], expected: list[bool]
) -> None:
    now, told, warmth = iter(reads), [], Warmth()
    monkeypatch.setattr(_readahead, "_reads_of_this_thread", lambda: next(now))
    if 7 in reads:
        warmth._quiet = _readahead._QUIET
    for _ in advised(map(range, [SIZE] * 40), lambda _: None, ahead, warmth, told.append):
        pass
    assert told == expected
    running = advised(map(range, [SIZE] * 40), lambda _: None, 1, warmth, told.append)
    next(running)
    running.close()
    assert told == [*expected, True, False]  # also where the rest is not wanted


@pytest.mark.skipif(not hasattr(mmap, "MADV_RANDOM"), reason="the system takes no advice")
def test_the_mapping_is_told_while_batches_are_advised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RaggedMmap.from_lists(tmp_path / "rows", [np.arange(5)] * 40)
    DenseMmap.from_ndarray(tmp_path / "dense", np.zeros((40, 4)))
    told: list[bool] = []
    monkeypatch.setattr(MappedFile, "expect", lambda self, *, random: told.append(random))
    source = {"rows": tmp_path / "rows", "dense": select(DenseMmap(tmp_path / "dense"), range(40)), "n": np.arange(40)}
    for batch in Batches(source, 8, readahead=2):
        assert len(batch["n"]) == 8
    assert told == [True, True, False, False]
    monkeypatch.undo()
    expected = [batch["dense"].sum() for batch in Batches(source, 8, readahead=0)]
    assert [batch["dense"].sum() for batch in Batches(source, 8, readahead=2)] == expected


def test_how_far_ahead_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_readahead, "resource", None)
    assert through(10, None) == through(10, 3)


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


def test_batches_of_several_maps_tell_of_all(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    small = DenseMmap.from_ndarray(tmp_path / "small", np.zeros((4, 10), np.uint8))
    large = DenseMmap.from_ndarray(tmp_path / "large", np.zeros((4, 30), np.uint8))
    list(Batches({"a": small, "b": (np.arange(4), large)}, 2, readahead=1))
    assert ranges == [(0, 20), (0, 60), (20, 40), (60, 120)]


def test_the_kernel_hears_of_whole_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = DenseMmap.from_ndarray(tmp_path / "m", np.zeros((100, 1000), np.uint8))
    told = []

    class Mapping:
        def madvise(self, advice: int, start: int, size: int) -> None:
            told.append((advice, start, size))

    monkeypatch.setattr(m._snapshot.data, "_map", Mapping())
    m.will_need([50, 3, 51])
    page, offset = mmap.PAGESIZE, m._snapshot.data.offset
    assert told == [
        (mmap.MADV_WILLNEED, 0, offset + 4000),
        (mmap.MADV_WILLNEED, (offset + 50_000) // page * page, offset + 52_000 - (offset + 50_000) // page * page),
    ]


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
