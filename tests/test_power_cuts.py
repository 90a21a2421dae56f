"""Real file systems whose power is really cut in the middle of each operation.

The replay of `test_power_loss` says what a power cut may leave, these say what it does leave. A file system is made in
a file and mounted; its device is taken away, or the file system shut down, at a call or at any time; after the next
mount everything that was acknowledged has to be there, `verify` has to know of what is wrong, and the next writer has
to go on.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import in_child
from power.cuts import ALL, Cuts, cut_many
from power.disks import FILE_SYSTEMS, NoDisk, RealDisk, missing

# Those that differ most: the default, the one that leaves the old content of blocks, and the others.
SHORT = ["ext4", "ext4 data=writeback,nodelalloc", "xfs", "btrfs"]
PARTS = 5  # of the long run
Record = Callable[[str, object], None]


def cut(work: Path, name: str, count: int, seed: object = "", stories: tuple[str, ...] = tuple(ALL)) -> Cuts:
    file_system = FILE_SYSTEMS[name]
    if reason := missing(file_system):
        pytest.skip(reason)
    try:
        cuts = cut_many(work, file_system, count, f"{name} {seed}", stories)
    except NoDisk as error:
        pytest.skip(f"{name} cannot be mounted here: {error}")
    assert len(cuts) == count
    return cuts


@pytest.mark.parametrize("name", SHORT)
def test_a_real_power_cut_loses_nothing(name: str, tmp_path: Path, record_property: Record) -> None:
    cuts = cut(tmp_path, name, 20)
    record_property("figures", str(cuts))
    assert not cuts.bad, str(cuts)


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", FILE_SYSTEMS)
def test_many_real_power_cuts_lose_nothing(name: str, part: int, tmp_path: Path, record_property: Record) -> None:
    cuts = cut(tmp_path, name, 500 // PARTS, part + 1)
    record_property("figures", str(cuts))
    assert not cuts.bad, str(cuts)


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs"])
def test_without_syncs_real_power_cuts_do_lose_samples(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the tests above would show nothing."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    cuts = cut(tmp_path, name, 12, stories=("rows: two extends",))
    assert len(cuts.bad) >= 3, str(cuts)


@pytest.mark.parametrize(("name", "way"), [(name, way) for name in SHORT for way in FILE_SYSTEMS[name].ways])
def test_a_cut_takes_what_was_not_synced_and_nothing_else(name: str, way: str, tmp_path: Path) -> None:
    file_system = FILE_SYSTEMS[name]
    if reason := missing(file_system):
        pytest.skip(reason)

    def write(path: Path, *, sync: bool) -> None:
        with open(path, "wb", buffering=0) as file:
            file.write(b"written" * 10_000)
            if sync:
                os.fsync(file.fileno())

    def run() -> None:
        try:
            disk = RealDisk(tmp_path, file_system)
        except NoDisk as error:
            (tmp_path / "no disk").write_text(str(error))
            return
        write(disk.folder / "synced", sync=True)
        write(disk.folder / "not synced", sync=False)
        disk.cut(way)
        with pytest.raises(OSError, match=r"Input/output error|Read-only file system"):
            write(disk.folder / "after the cut", sync=True)
        disk.restart()
        there = {path.name: path.read_bytes() for path in disk.folder.iterdir() if path.is_file()}
        assert there.pop("synced") == b"written" * 10_000
        assert there.pop("not synced", b"") != b"written" * 10_000
        assert not there.get("after the cut")

    assert in_child(run) == 0
    if (tmp_path / "no disk").exists():
        pytest.skip(f"{name} cannot be mounted here: {(tmp_path / 'no disk').read_text()}")
