"""Killed, out of space or interrupted at every call of what puts maps right: it can always be done once more."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from changes import KINDS, copied, listed, no_syncs, others, quietly, tear, whole
from faults import Disk, in_memory, killed_at, recorded
from mmap_ninja import open_map, upgrade, verify
from mmap_ninja.errors import MapCorruptError
from plain_reader import forge, same


@dataclass(frozen=True)
class Repair:
    """What is wrong, how it is put right, and the samples afterwards."""

    begin: Callable[[Path], object]
    act: Callable[[Path], object]
    samples: list
    may_be_refused: bool = False  # until it has been done once


def salvage(layout: str) -> Repair:
    kind = KINDS[layout]
    return Repair(lambda f: tear(layout, f), lambda f: quietly(lambda f: upgrade(f, salvage=True), f), kind.first, True)


def accept(name: str, samples: list) -> Repair:
    """Values were assigned, and the program died."""
    kind = KINDS[name]
    new = [kind.changed(sample) if i in (0, 3) else sample for i, sample in enumerate(samples)]

    def begin(folder: Path) -> None:
        kind.build(folder.parent / "assigned", samples)
        m = kind.cls(folder.parent / "assigned", mode="r+")
        for i in (0, 3):
            m[i] = new[i]
        shutil.copytree(folder.parent / "assigned", folder)
        m.close()
        shutil.rmtree(folder.parent / "assigned")

    return Repair(begin, lambda f: verify(f, accept=True), new)


def leftovers(name: str) -> Repair:
    """A commit was interrupted, and what an earlier one made obsolete could not be removed."""
    kind = KINDS[name]

    def begin(folder: Path) -> None:
        kind.build(folder, kind.samples)
        (folder / "data-7.npy").write_bytes(b"old")
        forge(folder, obsolete=["data-7.npy"])
        (folder / "manifest.json.new").write_bytes(b'{"crc32": "half of')
        with open(folder / "data.npy", "r+b") as file:
            file.seek(60)
            file.write(b"9")

    return Repair(begin, lambda f: verify(f, repair=True), kind.samples)


def lost(name: str) -> Repair:
    """A sync has failed: the next writer copies every file."""
    kind = KINDS[name]

    def begin(folder: Path) -> None:
        kind.build(folder, kind.samples)
        forge(folder, synced=False, lost=True)

    def act(folder: Path) -> None:
        open_map(folder).metadata = {"is": "durable"}

    return Repair(begin, act, kind.samples)


REPAIRS = {
    **{f"salvage {layout}": salvage(layout) for layout in ("rows", "mixed", "images", "strings", "zstd dictionary")},
    **{f"accept {name}": accept(name, KINDS[name].samples) for name in ("rows", "dense", "strings")},
    "accept large rows": accept("rows", KINDS["rows"].large),
    **{f"leftovers {name}": leftovers(name) for name in ("rows", "dense")},
    **{f"lost {name}": lost(name) for name in KINDS},
}
SHORT = ["salvage rows", "accept dense", "accept large rows", "leftovers rows", "lost rows", "lost zstd dictionary"]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as folder:
        yield folder


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("fault", [None, no_space, interrupt], ids=["killed", "no space", "interrupted"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.long) for name in REPAIRS]
)
def test_a_repair_can_always_be_done_once_more(
    name: str, fault: Callable[[], None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_syncs(monkeypatch)
    repair = REPAIRS[name]
    repair.begin(tmp_path / "start")
    double = recorded(lambda: repair.act(copied(tmp_path / "start", tmp_path / "whole")))
    whole(tmp_path / "whole", repair.samples)
    assert verify(tmp_path / "whole") == []
    assert len(double.calls) > 3
    for strike in double.strikes(after=fault is not no_space):
        folder = copied(tmp_path / "start", tmp_path / f"{strike.at} {strike.moment}")
        if fault is None:
            killed_at(strike, lambda folder=folder: repair.act(folder))
        else:
            with Disk(strike, fault).installed(), suppress(OSError, KeyboardInterrupt):
                repair.act(folder)
        try:
            assert same(listed(quietly(open_map, folder)), repair.samples), strike
        except MapCorruptError:
            assert repair.may_be_refused, strike
        assert repair.may_be_refused or not [one for one in verify(folder) if one.kind == "damaged"], strike
        repair.act(folder)
        whole(folder, repair.samples)
        assert [one for one in verify(folder, repair=True) if not one.repaired] == [], strike
        m = open_map(folder)
        more = others(m)
        m.extend(more)
        whole(folder, [*repair.samples, *more])
