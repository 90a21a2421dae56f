"""Assignments in place: marked before the first byte changes, vouched for again after the last."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from faults import in_child, recorded
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, np_open_existing, open_map, verify
from mmap_ninja._storage import disk
from mmap_ninja._storage.lock import Lock
from mmap_ninja.errors import DiskError, MapLockedError
from plain_reader import BLOCK, check, fields, same, values

RNG = np.random.default_rng(9)
ROWS = [RNG.random(100_000) for _ in range(6)]  # 4.6 blocks
SMALL = [np.arange(3), np.arange(5)]


def data(folder: Path) -> dict:
    return fields(folder)["files"]["data"]


@pytest.fixture
def m(tmp_path: Path) -> RaggedMmap:
    return RaggedMmap.from_lists(tmp_path / "map", ROWS)


def test_the_map_is_marked_before_the_first_byte_changes(m: RaggedMmap) -> None:
    calls = recorded(lambda: m.__setitem__(2, ROWS[0])).calls
    names = [(call.function, call.name) for call in calls]
    assert names.index(("sync_folder", "map")) < names.index(("write_at", "data.npy"))
    assert names.index(("replace", "manifest.json")) < names.index(("sync_folder", "map"))
    assert not data(m.out_dir)["checked"]
    assert same([open_map(m.out_dir)[2]], ROWS[:1])  # everybody sees it at once


def test_the_following_assignments_only_write(m: RaggedMmap) -> None:
    m[2] = ROWS[0]
    calls = recorded(lambda: m.__setitem__(4, ROWS[1])).calls
    assert [(call.function, call.name, call.offset) for call in calls] == [("write_at", "data.npy", 128 + 4 * 800_000)]


@pytest.mark.parametrize("end", [RaggedMmap.flush, RaggedMmap.close])
def test_the_checksums_of_touched_blocks_are_renewed(m: RaggedMmap, end) -> None:
    m[0], m[3], m[5] = ROWS[1], ROWS[2], ROWS[0]
    double = recorded(lambda: end(m))
    assert data(m.out_dir)["checked"]
    check(m.out_dir)
    crcs = {call.offset for call in double.of("write_at") if call.name == "data.crc" and call.size == 4}
    assert crcs == {4 * block for block in (0, 2, 3)}  # the last one is unfinished; its checksum is in the manifest
    synced = [call.name for call in double.of("sync_data")]
    assert synced[0] == "data.npy"
    assert same(open_map(m.out_dir)[:6], [ROWS[1], ROWS[1], ROWS[2], ROWS[2], ROWS[4], ROWS[0]])


def test_untouched_blocks_are_not_vouched_for_anew(m: RaggedMmap) -> None:
    """Damage elsewhere must not be made official."""
    with open(m.out_dir / "data.npy", "r+b") as file:
        file.seek(128 + 2 * BLOCK + 5)
        file.write(b"\xff\xff")
    m[0] = ROWS[1]
    m.flush()
    with pytest.raises(AssertionError, match=r"data\.npy"):
        check(m.out_dir)


def test_a_second_round_is_marked_and_vouched_for_again(m: RaggedMmap) -> None:
    for k in range(3):
        m[k] = ROWS[5]
        assert not data(m.out_dir)["checked"]
        m.flush()
        assert data(m.out_dir)["checked"]
    check(m.out_dir)
    assert recorded(m.flush).calls == []


def foreign_assignment(folder: Path) -> None:
    other = RaggedMmap(folder, mode="r+")
    other[4] = ROWS[0]
    os._exit(0)  # without a flush, as if it were killed


def foreign_extend(folder: Path) -> None:
    RaggedMmap(folder).append(ROWS[0])


def foreign_memmap(folder: Path) -> None:
    np_open_existing(folder, mode="r+")[4] = 5


@pytest.mark.parametrize("foreign", [foreign_assignment, foreign_extend])
def test_a_change_by_others_meanwhile_leaves_the_map_unchecked(m: RaggedMmap, foreign) -> None:
    m[0] = ROWS[1]
    assert in_child(lambda: foreign(m.out_dir)) == 0
    m[1] = ROWS[2]
    m.flush()
    assert not data(m.out_dir)["checked"]
    found = open_map(m.out_dir)
    assert same(found[:2], [ROWS[1], ROWS[2]])
    assert len(found) == (7 if foreign is foreign_extend else 6)
    assert same([found[4]], ROWS[:1] if foreign is foreign_assignment else ROWS[4:5])


def test_what_others_have_left_unchecked_stays_so(m: RaggedMmap) -> None:
    assert in_child(lambda: foreign_assignment(m.out_dir)) == 0
    m[0] = ROWS[1]
    m.flush()
    assert not data(m.out_dir)["checked"]


def test_a_writable_memmap_leaves_the_map_unchecked(tmp_path: Path) -> None:
    m = DenseMmap.from_ndarray(tmp_path / "map", np.arange(6))
    m[0] = 9
    foreign_memmap(tmp_path / "map")
    m.flush()
    assert not data(tmp_path / "map")["checked"]
    assert open_map(tmp_path / "map")[:].tolist() == [9, 1, 2, 3, 5, 5]


def test_a_forked_child_does_not_vouch_for_its_parent(m: RaggedMmap) -> None:
    m[0] = ROWS[1]
    assert in_child(m.flush) == 0
    assert not data(m.out_dir)["checked"]
    m[1] = ROWS[2]
    m.flush()
    assert same(open_map(m.out_dir)[:2], ROWS[1:3])
    if data(m.out_dir)["checked"]:
        check(m.out_dir)


def test_an_extend_after_an_assignment_keeps_both(m: RaggedMmap) -> None:
    m[5] = ROWS[0]
    m.extend(ROWS[:2])
    assert same(open_map(m.out_dir)[:], [*ROWS[:5], ROWS[0], *ROWS[:2]])
    assert data(m.out_dir)["checked"]
    check(m.out_dir)


@pytest.mark.parametrize(
    ("cls", "old", "new"),
    [
        (DenseMmap, [np.array([1, 2]), np.array([3, 4])], np.array([5, 6])),
        (RaggedMmap, SMALL, np.array([7, 8, 9])),
        (StringsMmap, ["zwölf", "x"], "sieben"),
        (BytesMmap, [b"abc", b""], b"xyz"),
    ],
)
def test_every_kind(tmp_path: Path, cls, old: list, new: object) -> None:
    m = cls.from_generator(tmp_path / "map", iter(old), 2)
    before = values(tmp_path / "map", data(tmp_path / "map"))
    m[0] = new
    m.close()
    assert same([open_map(tmp_path / "map")[0], open_map(tmp_path / "map")[1]], [new, old[1]])
    assert values(tmp_path / "map", data(tmp_path / "map")) != before
    check(tmp_path / "map")


def test_bad_values_change_nothing(tmp_path: Path) -> None:
    """All are checked before the first byte is written, and before the map is marked."""
    m = RaggedMmap.from_lists(tmp_path / "map", SMALL)
    for index, value in ((0, np.arange(4)), (0, [0.5, 1, 2]), (0, ["a", "b", "c"]), ([0, 1], [SMALL[0], SMALL[0]])):
        calls = recorded(lambda index=index, value=value: refused(m, index, value)).calls
        assert calls == []
    assert same(open_map(tmp_path / "map")[:], SMALL)


def refused(m: RaggedMmap, index: object, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        m[index] = value


def test_an_assignment_to_a_replaced_map_writes_nowhere(m: RaggedMmap) -> None:
    """A handle that has begun keeps to its own file, which nobody can open any more."""
    m[0] = ROWS[1]
    RaggedMmap.from_lists(m.out_dir, SMALL)
    m[1] = ROWS[2]
    assert same(open_map(m.out_dir)[:], SMALL)
    check(m.out_dir)
    with pytest.raises(RuntimeError, match="replaced"):
        m.flush()
    assert same(open_map(m.out_dir)[:], SMALL)


def test_assigning_nothing_marks_nothing(m: RaggedMmap) -> None:
    assert recorded(lambda: m.__setitem__([], [])).calls == []
    assert data(m.out_dir)["checked"]


def test_a_zero_size_value(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [np.empty(0, np.int64), np.arange(2)])
    m[0] = np.empty(0, np.int64)
    m.flush()
    assert same(open_map(tmp_path / "map")[:], [np.empty(0, np.int64), np.arange(2)])
    check(tmp_path / "map")


def test_a_flush_that_was_refused_is_done_by_the_next(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(5)] * 3)
    m[0] = np.arange(5) + 1
    with Lock(str(tmp_path / "map")), pytest.raises(MapLockedError):
        m.flush()
    assert recorded(m.flush).of("sync_data")
    assert fields(tmp_path / "map")["files"]["data"]["checked"] is True
    check(tmp_path / "map")


def test_a_flush_that_failed_can_be_made_again(tmp_path: Path) -> None:
    """The checksums of whole blocks are renewed already when the manifest does not fit on the disk."""
    values = np.arange(400_000)
    DenseMmap.from_ndarray(tmp_path / "map", values)
    m = DenseMmap(tmp_path / "map", mode="r+")
    m[5], m[300_000] = -5, -300_000
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(disk, "create_temporary", no_room)
            with pytest.raises(DiskError, match="No space"):
                m.flush()
    assert [one.kind for one in verify(tmp_path / "map")] == ["unchecked"]
    m.flush()
    assert verify(tmp_path / "map") == []
    assert open_map(tmp_path / "map")[[5, 300_000]].tolist() == [-5, -300_000]


def no_room(path: str) -> int:
    raise DiskError(errno.ENOSPC, "No space left on device", path)


def test_a_forked_child_assigns_for_itself(tmp_path: Path) -> None:
    """Nobody vouches for blocks that the other process has written to."""
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(400_000))
    m = DenseMmap(tmp_path / "map", mode="r+")
    m[0] = 7

    def assign() -> None:
        m[399_999] = 8
        m.close()

    assert in_child(assign) == 0
    m.close()
    assert "damaged" not in [one.kind for one in verify(tmp_path / "map")]
    assert open_map(tmp_path / "map")[[0, 399_999]].tolist() == [7, 8]
