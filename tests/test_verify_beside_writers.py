"""`verify` beside a writer that never rests: what is right is not called damaged, and what is damaged is."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from faults import KILLED, exit_code, start_child
from mmap_ninja import Finding, RaggedMmap, upgrade, verify
from mmap_ninja._storage import check, compare, disk
from plain_reader import BLOCK, forge

RNG = np.random.default_rng(5)
ROWS = [RNG.integers(0, 2**62, size) for size in (150_000, 3, 0, 140_000, 2)]  # 2.2 blocks
FLIPPED = [row[::-1].copy() for row in ROWS]
VERIFIES, LONG_VERIFIES = 60, 15_000


@pytest.fixture(autouse=True)
def quiet_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that waits for no disk is the fastest."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    RaggedMmap.from_lists(tmp_path / "map", ROWS, sync=False)
    return tmp_path / "map"


def damage(folder: Path, offset: int, name: str = "data.npy") -> None:
    with open(folder / name, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


# What a writer does between two calls of `verify`. Sample 0 lies in blocks 0 and 1, sample 4 in the last one.


class Assigning:
    """Assigns another value and flushes it, each time."""

    def __init__(self, folder: Path, sample: int) -> None:
        self.m, self.sample, self.number = RaggedMmap(folder, mode="r+"), sample, 0

    def __call__(self) -> None:
        self.m[self.sample] = (FLIPPED, ROWS)[self.number % 2][self.sample]
        self.number += 1
        self.m.flush()


class AssigningAndFlushing(Assigning):
    """Assigns at one call, flushes at the next one."""

    def __call__(self) -> None:
        if self.number % 2 == 0:
            self.m[self.sample] = FLIPPED[self.sample]
        else:
            self.m.flush()
        self.number += 1


ACTS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "assigns to the first blocks": lambda folder: Assigning(folder, 0),
    "assigns to the last block": lambda folder: Assigning(folder, 4),
    "assigns, then flushes": lambda folder: AssigningAndFlushing(folder, 0),
    "appends": lambda folder: lambda: RaggedMmap(folder).append(np.arange(9000), sync=False),
    "widens the index": lambda folder: lambda: widen(RaggedMmap(folder)),
    "replaces": lambda folder: lambda: RaggedMmap.from_lists(folder, FLIPPED, sync=False),
    "describes": lambda folder: lambda: setattr(RaggedMmap(folder), "metadata", {"a": os.urandom(3).hex()}),
}
HARMLESS = [name for name in ACTS if name not in ("replaces", "assigns to the last block")]  # leave the damage alone


def widen(m: RaggedMmap) -> None:
    m.append(np.ones((1,) * min(m.shapes.shape[1] + 1, 32), np.int64))


@contextmanager
def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], is_now: Callable[[int], bool]) -> Iterator:
    """Do something before chosen calls that read; yields a list as long as there were calls."""
    calls: list[int] = []
    is_acting: list[bool] = []

    def then(real: Callable) -> Callable:
        def call(*arguments: object) -> object:
            if not is_acting:
                calls.append(len(calls))
                if is_now(calls[-1]):
                    is_acting.append(True)
                    act()
                    is_acting.clear()
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("read_into", "read_small", "open_to_read"):
            patch.setattr(disk, name, then(getattr(disk, name)))
        yield calls


@pytest.mark.parametrize("what", ACTS)
def test_one_change_at_any_moment_is_no_damage(what: str, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act = ACTS[what](rows)
    for at in range(200):
        with meanwhile(monkeypatch, act, lambda now, at=at: now == at) as calls:
            found = verify(rows)
        assert kinds(found) <= {"unchecked"}, (at, found)
        if len(calls) <= at:
            break
    assert at > 10


@pytest.mark.parametrize("what", HARMLESS)
def test_damage_is_found_beside_one_change_at_any_moment(
    what: str, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(rows, 128 + 2 * BLOCK + 17)
    act = ACTS[what](rows)
    for at in range(200):
        with meanwhile(monkeypatch, act, lambda now, at=at: now == at) as calls:
            found = verify(rows)
        assert "damaged" in kinds(found) or (what == "assigns, then flushes" and kinds(found) == {"unchecked"}), at
        assert "changed" not in kinds(found)
        if len(calls) <= at:
            break
    assert at > 10


@pytest.mark.parametrize("what", ["assigns to the first blocks", "replaces"])
def test_what_never_holds_still_is_called_changed(what: str, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PATIENCE", 0.0)
    monkeypatch.setattr(compare, "PATIENCE", 0.0)
    monkeypatch.setattr(compare, "_RENEWALS", 2)
    with meanwhile(monkeypatch, ACTS[what](rows), lambda now: True):
        found = verify(rows, accept=True)
    assert kinds(found) == {"changed"}
    assert all("changed while it was read; at the last look: " in one.what for one in found)
    assert verify(rows) == []


@pytest.mark.parametrize("name", ["data.npy", "index.npy", "data.crc"])
def test_a_file_that_is_missing_is_found_beside_a_writer(
    name: str, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rows / name).unlink()
    act = lambda: forge(rows, metadata={"a": os.urandom(3).hex()})
    for at in range(30):
        with meanwhile(monkeypatch, act, lambda now, at=at: now == at):
            found = verify(rows)
        assert ("damaged", str(rows / name)) in [(one.kind, one.path) for one in found]


def test_a_map_that_is_upgraded_meanwhile_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from changes import format_1_rows

    for at in range(200):
        format_1_rows(tmp_path / str(at))
        with meanwhile(monkeypatch, lambda at=at: upgrade(tmp_path / str(at)), lambda now, at=at: now == at) as calls:
            found = verify(tmp_path / str(at))
        assert kinds(found) <= {"unchecked"}, (at, found)
        if len(calls) <= at:
            break
    assert at > 10


# Beside processes.


def write(folder: Path, way: str) -> None:
    m = RaggedMmap(folder, mode="r+")
    for number in range(10**9):
        if way == "replaces" or (way == "both" and number % 20 == 0):
            m.close()
            m = RaggedMmap.from_lists(folder, ROWS, sync=False)
        else:
            m[0] = (FLIPPED, ROWS)[number % 2][0]
            m.flush()


def verified(folder: Path, way: str, count: int) -> Counter:
    """How often each kind was found while another process writes."""
    pid = start_child(lambda: write(folder, way))
    try:
        return Counter(kind for _ in range(count) for kind in kinds(verify(folder)) or {"nothing"})
    finally:
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == KILLED


@pytest.mark.parametrize("way", ["flushes", "replaces", "both"])
def test_a_writer_that_never_rests_damages_nothing(way: str, rows: Path) -> None:
    assert set(verified(rows, way, VERIFIES)) <= {"nothing", "unchecked", "changed"}


@pytest.mark.long
@pytest.mark.parametrize("way", ["flushes", "replaces", "both"])
def test_a_writer_that_never_rests_damages_nothing_at_length(way: str, rows: Path) -> None:
    found = verified(rows, way, LONG_VERIFIES // 3)
    print(way, found)
    assert set(found) <= {"nothing", "unchecked", "changed"}


def test_damage_is_found_beside_a_writer_that_never_rests(rows: Path) -> None:
    damage(rows, 128 + 2 * BLOCK + 17)
    found = verified(rows, "flushes", VERIFIES)
    assert found["damaged"] > VERIFIES / 2
    assert set(found) <= {"damaged", "unchecked"}
