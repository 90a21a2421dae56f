"""Killed at every call that changes the disk, and half-way through every write: the old samples or the new ones.

Each change of `changes.CHANGES` is first done and recorded, then done again in a fresh copy of its folder for every
call of it, in a forked child that dies of SIGKILL there.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from changes import (
    CHANGES,
    KINDS,
    SHORT,
    SHORT_AND_LONG,
    SMALL,
    Change,
    but,
    check,
    copied,
    go_on,
    listed,
    no_syncs,
    opened,
    others,
    quietly,
    whole,
)
from faults import Disk, Os, Strike, in_child, in_memory, killed_at, recorded
from mmap_ninja import RaggedMmap
from mmap_ninja._storage import build
from mmap_ninja.errors import DiskError
from plain_reader import same


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as folder:
        yield folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncs(monkeypatch)


def test_the_short_run_has_every_operation_and_every_kind() -> None:
    chosen = [CHANGES[name] for name in SHORT]
    assert {change.operation for change in chosen} == {change.operation for change in CHANGES.values()}
    assert {change.kind for change in chosen} == {change.kind for change in CHANGES.values()} >= set(KINDS)


def killed_everywhere(change: Change, work: Path, *, seen: bool = True) -> None:
    """Do the change in a copy of its folder for each call, where it is killed; look at what is left; go on with it."""
    change.begin(work / "start")
    double = recorded(lambda: change.act(copied(work / "start", work / "whole")))
    whole(work / "whole", change.new)
    strikes = double.strikes(seen=seen)
    assert len(strikes) >= 5
    folders = [copied(work / "start", work / f"{strike.at} {strike.moment}") for strike in strikes]
    readers = [None if change.old is None else opened(folder)[0] for folder in folders]

    def kill_all() -> None:
        for strike, folder in zip(strikes, folders, strict=True):
            killed_at(strike, lambda folder=folder: change.act(folder))

    assert in_child(kill_all) == 0  # which forks in our place: after each fork, all that we write to costs a page fault
    for folder, reader in zip(folders, readers, strict=True):
        check(change, folder)
        if reader is not None:
            assert same(listed(reader, change.assigned), but(change.old, change.assigned))
        go_on(change, folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", SHORT_AND_LONG)
def test_killed_at_every_call(tmp_path: Path, name: str) -> None:
    killed_everywhere(CHANGES[name], tmp_path)


@pytest.mark.parametrize("name", ["rows: extend", "rows: replace"])
def test_killed_at_the_calls_too_that_nobody_sees(tmp_path: Path, name: str) -> None:
    """Closing and syncing change nothing for other processes, so the others leave them out."""
    killed_everywhere(CHANGES[name], tmp_path, seen=False)


@pytest.mark.parametrize("name", ["rows: create", "dense: replace", "zstd dictionary: resume"])
def test_killed_at_every_call_of_a_build_that_saves_each_batch(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_SAVE_EVERY", 0.0)
    killed_everywhere(CHANGES[name], tmp_path)


@pytest.mark.parametrize("name", ["rows: extend", "rows: extend over blocks"])
def test_killed_while_a_failed_append_gives_its_room_back(tmp_path: Path, name: str) -> None:
    change, number = CHANGES[name], 0
    change.begin(tmp_path / "start")
    with Os().installed() as system:
        change.act(copied(tmp_path / "start", tmp_path / "whole"))
    for at in (at for at, (function, _) in enumerate(system.calls) if function == "pwritev"):

        def failing(folder: Path, at: int = at) -> None:
            with Os(at, full_disk).installed(), suppress(DiskError):
                change.act(folder)

        calls = recorded(lambda at=at: failing(copied(tmp_path / "start", tmp_path / f"failed {at}"), at)).calls
        for strike in (Strike(k) for k, call in enumerate(calls) if call.function in ("cut", "remove")):
            folder = copied(tmp_path / "start", tmp_path / f"{at} {strike.at}")
            killed_at(strike, lambda folder=folder, at=at: failing(folder, at))
            check(change, folder, may_be_new=False)
            go_on(change, folder)
            number += 1
    assert number > 3


def test_a_first_append_that_was_killed_can_be_done_again(tmp_path: Path) -> None:
    """It is no build that anybody would resume."""
    act = lambda folder: quietly(lambda folder: RaggedMmap(folder).append(SMALL[0]), folder)
    for strike in recorded(lambda: act(tmp_path / "whole")).strikes(seen=True):
        folder = tmp_path / f"{strike.at} {strike.moment}"
        killed_at(strike, lambda folder=folder: act(folder))
        quietly(lambda folder: RaggedMmap(folder).append(SMALL[3]), folder)
        m, is_part = opened(folder)
        assert not is_part
        assert same(m[:], [SMALL[3]]) or same(m[:], [SMALL[0], SMALL[3]])


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_build_never_resumes_into_the_files_of_a_map(tmp_path: Path, how: str) -> None:
    """A build that stopped around its commit leaves a `building.json` that names the files of the map itself."""
    rows = KINDS["rows"]
    calls = recorded(lambda: rows.build(tmp_path / "whole", SMALL)).calls
    rename = max(at for at, call in enumerate(calls) if call[:2] == ("replace", "manifest.json"))
    for strike in (Strike(rename), Strike(rename, "after"), Strike(rename + 1)):
        folder = tmp_path / f"{strike.at} {strike.moment}"
        act = lambda folder=folder: rows.build(folder, SMALL)
        if how == "killed":
            killed_at(strike, act)
        else:
            with Disk(strike, throw_full).installed(), pytest.raises(OSError, match="full"):
                act()
        if opened(folder)[1]:
            quietly(lambda folder: rows.build(folder, SMALL, resume=True), folder)  # it was not committed yet
        extended = [*SMALL, *others(RaggedMmap(folder))]
        RaggedMmap(folder).extend(extended[len(SMALL) :])

        def loader():
            yield from SMALL
            yield from [np.zeros(50, np.int64)] * 4
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            RaggedMmap.from_generator(folder, loader(), 1, resume=True)
        whole(folder, extended)


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "full")


def throw_full() -> None:
    raise full_disk()
