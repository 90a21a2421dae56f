"""Every place where a writer can come between two reads of an opening."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from changes import SMALL, format_1_column, format_1_rows
from faults import CHANGES, recorded
from mmap_ninja import RaggedMmap, StringsMmap, open_map, upgrade
from mmap_ninja._storage import disk, legacy
from mmap_ninja.errors import MapNotFoundError
from numbered import plain
from plain_reader import same
from unwarned import unwarned

# Nobody sees the others.
STOPS = [name for name in CHANGES if name not in ("close", "close_kept", "sync", "sync_data", "sync_folder")]


class Turns:
    """A writer in a thread that stops before each call that changes the disk, and a hook for a reader's reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._errors: list[BaseException] = []
        self._is_inside = self._is_free = False
        self._wait_for, self._then = -1, lambda: None
        self.reads = 0
        for name in STOPS:
            monkeypatch.setattr(disk, name, self._stopping(getattr(disk, name)))
        for name in ("sync", "sync_data", "sync_folder"):
            monkeypatch.setattr(disk, name, lambda *_: None)
        for module, name in ((disk, "open_to_read"), (legacy, "_id"), (legacy, "_check_end")):
            monkeypatch.setattr(module, name, self._counting(getattr(module, name)))

    def _stopping(self, real: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is not self._thread or self._is_inside or self._is_free:
                return real(*args, **options)
            self._stopped.release()
            self._go.acquire()
            self._is_inside = True
            try:
                return real(*args, **options)
            finally:
                self._is_inside = False

        return call

    def _counting(self, real: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                self.reads += 1
                if self.reads - 1 == self._wait_for:
                    self._then()
            return real(*args, **options)

        return call

    def begin(self, act: Callable[[], object]) -> None:
        """Start the writer; it stops before its first call."""

        def run() -> None:
            try:
                act()
            except BaseException as error:
                self._errors.append(error)
            finally:
                self._stopped.release()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        self._stopped.acquire()

    def advance(self, calls: int) -> None:
        for _ in range(calls):
            self._go.release()
            self._stopped.acquire()

    def read(self, act: Callable[[], Any], at: int, then: Callable[[], None]) -> Any:
        """Do `act`, and `then` just before its read number `at`."""
        self.reads, self._wait_for, self._then = 0, at, then
        try:
            return act()
        finally:
            self._wait_for = -1

    def end(self) -> None:
        """Let the writer go through to its end."""
        self._is_free = True
        self._go.release()
        self._thread.join()
        assert self._errors == []
        self._go, self._stopped, self._is_free = threading.Semaphore(0), threading.Semaphore(0), False


ROWS = [np.arange(n) + 10 * n for n in (3, 0, 5)]
OTHER = [np.arange(4) + 900, np.arange(2)]
WIDE = np.ones((2, 2), np.int64)


def part_built(folder: Path) -> None:
    def samples() -> Iterator[np.ndarray]:
        yield from ROWS[:2]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        RaggedMmap.from_generator(folder, samples(), 1)


def nothing(folder: Path) -> None:
    """There is no map to begin with."""


def extended(folder: Path) -> None:
    m = RaggedMmap(folder)
    m.append(OTHER[0], sync=False)
    m.append(WIDE, sync=False)
    m.append(OTHER[1], sync=False)


def replaced_twice(folder: Path) -> None:
    RaggedMmap.from_lists(folder, OTHER, sync=False)
    RaggedMmap.from_generator(folder, iter(ROWS), 2, sync=False)


def resumed(folder: Path) -> None:
    RaggedMmap.from_generator(folder, iter(ROWS), 1, resume=True, sync=False)
    RaggedMmap.from_lists(folder, OTHER, sync=False)


def by_texts(folder: Path) -> None:
    StringsMmap.from_strings(folder, ["one", "two"], sync=False)


FORTRAN = [np.array([n, 10 * n, 7]) for n in range(4)]
# What there is, what a writer does, and the states that a reader may see, one after another.
MEETINGS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object], list]] = {
    "extend": (
        lambda f: RaggedMmap.from_lists(f, ROWS, sync=False),
        extended,
        [ROWS, [*ROWS, OTHER[0]], [*ROWS, OTHER[0], WIDE], [*ROWS, OTHER[0], WIDE, OTHER[1]]],
    ),
    "replace twice": (lambda f: RaggedMmap.from_lists(f, ROWS, sync=False), replaced_twice, [ROWS, OTHER, ROWS]),
    "make and replace": (nothing, replaced_twice, [None, [], OTHER, ROWS]),
    "resume and replace": (part_built, resumed, [ROWS[:2], ROWS, OTHER]),
    "another kind": (lambda f: RaggedMmap.from_lists(f, ROWS, sync=False), by_texts, [ROWS, ["one", "two"]]),
    "upgrade": (format_1_rows, upgrade, [SMALL[:4]]),
    "upgrade Fortran": (lambda f: format_1_column(f, np.asfortranarray(FORTRAN), "F"), upgrade, [FORTRAN]),
    "replace format 1": (format_1_rows, replaced_twice, [SMALL[:4], OTHER, ROWS]),
    "format 1 by another kind": (format_1_rows, by_texts, [SMALL[:4], ["one", "two"]]),
}


def look(folder: Path) -> list | None:
    try:
        return [plain(sample) for sample in open_map(folder)]
    except MapNotFoundError:
        return None


@pytest.mark.parametrize("name", MEETINGS)
@pytest.mark.parametrize("trials", [30, pytest.param(2000, marks=pytest.mark.long)])
def test_a_writer_between_any_two_reads_of_an_opening(
    tmp_path: Path, name: str, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader begins when the writer has done `first` calls, and at one of its reads the writer does some more.

    All such meetings of the whole change at one read, and of the rest a sample, a large one in the long run.
    """
    begin, act, states = MEETINGS[name]
    begin(tmp_path / "start")
    shutil.copytree(tmp_path / "start", tmp_path / "count") if (tmp_path / "start").exists() else None
    with unwarned():
        calls = len(recorded(lambda: act(tmp_path / "count")).of(*STOPS))
        turns = Turns(monkeypatch)
        reads = 60 if "format 1" in name or "upgrade" in name else 9
        meetings = [(0, calls, at) for at in range(reads)]
        rest = [(j, k, at) for j in range(calls) for k in range(j + 1, calls + 1) for at in range(reads)]
        order = np.random.default_rng(31).permutation(len(rest))[:trials]
        for first, last, at in meetings + [rest[n] for n in order]:
            folder = tmp_path / "map"
            if (tmp_path / "start").exists():
                shutil.copytree(tmp_path / "start", folder)
            turns.begin(lambda folder=folder: act(folder))
            turns.advance(first)
            try:
                found = turns.read(lambda folder=folder: look(folder), at, lambda n=last - first: turns.advance(n))
            except Exception as error:
                raise AssertionError(f"the writer at call {first}, at {last} before read {at}: {error!r}") from error
            finally:
                turns.end()
            assert any(found is None if s is None else found is not None and same(found, s) for s in states), (
                f"the writer at call {first}, at {last} before read {at}: {found}"
            )
            shutil.rmtree(folder)


def test_an_opening_that_began_before_the_first_build_was_finished_gets_no_part_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`manifest.json` was not there yet, and `building.json` is of another map when it is looked for."""
    part_built(tmp_path / "map")
    real, done = disk.read_small, []

    def read_small(path: str, cap: int) -> bytes:
        if os.path.basename(path) == "building.json" and not done:
            done.append(True)
            RaggedMmap.from_generator(tmp_path / "map", iter(ROWS), 1, resume=True)
            part_built(tmp_path / "map")
        return real(path, cap)

    monkeypatch.setattr(disk, "read_small", read_small)
    assert same(open_map(tmp_path / "map")[:], ROWS)
    assert done
