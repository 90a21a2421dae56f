"""What a recording says that a power cut can leave, for calls made by hand."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mmap_ninja._storage import disk
from power import ABSENT, HALF, STALE, WHOLE, ZEROS, Recording
from power.recording import Call


class TestTheModel:
    """What the recording says that a power cut can leave, for calls made by hand."""

    @staticmethod
    def states(folder: Path, act: Callable[[], None], bound: int = 1_000) -> set[tuple[tuple[str, bytes], ...]]:
        recording = Recording(folder)
        with recording.recording():
            act()
        found = set()
        for state in recording.states(bound, random.Random(0)):
            files = recording.tree(state.stop, state.fates).files
            found.add(tuple(sorted((name, content) for name, (content, _) in files.items())))
        return found

    @staticmethod
    def write(folder: Path, name: str, data: bytes, *, sync: bool, at: int = 0) -> None:
        fd = disk.open_to_write(str(folder / name), create=True)
        disk.write_at(fd, [data], at)
        if sync:
            disk.sync_data(fd)
        disk.close(fd)

    def test_a_write_is_absent_whole_half_zeros_or_stale_until_its_file_is_synced(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"....")
        stale = Call("write", data=b"....").left(STALE)
        assert len(stale) == 4
        assert b"\0" not in stale
        found = self.states(tmp_path, lambda: self.write(tmp_path, "a", b"data", sync=False))
        assert {dict(state)["a"] for state in found} == {b"....", b"data", b"da..", b"\0\0\0\0", stale}
        found = self.states(tmp_path, lambda: self.write(tmp_path, "a", b"new!", sync=True))
        assert {dict(state)["a"] for state in found} == {b"data", b"new!", b"neta", b"\0\0\0\0", stale}

    def test_what_was_synced_stays(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"....")
        recording = Recording(tmp_path)
        with recording.recording():
            self.write(tmp_path, "a", b"12", sync=True)
            recording.returned()
            self.write(tmp_path, "a", b"34", sync=False, at=2)
        last = [state for state in recording.states(100, random.Random(0)) if state.stop == len(recording.calls)]
        assert {state.fates[3] for state in last} == {ABSENT, WHOLE, HALF, ZEROS, STALE}
        assert {recording.tree(state.stop, state.fates).files["a"][0] for state in last} == {
            b"12..",
            b"1234",
            b"123.",
            b"12\0\0",
            b"12" + recording.calls[3].left(STALE),
        }
        assert recording.acknowledged(len(recording.calls)) == 1

    def test_a_sync_of_a_file_does_not_make_its_name_durable(self, tmp_path: Path) -> None:
        act = lambda: self.write(tmp_path, "a", b"data", sync=True)
        assert () in self.states(tmp_path, act)
        (tmp_path / "a").unlink()

        def act_and_sync() -> None:
            act()
            disk.sync_folder(str(tmp_path))

        recording = Recording(tmp_path)
        with recording.recording():
            act_and_sync()
        assert recording.volatile(len(recording.calls)) == []
        assert recording.volatile(len(recording.calls) - 1) == [0]

    def test_a_replace_is_the_old_file_or_the_new_one(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"old")
        (tmp_path / "a.new").write_bytes(b"new")
        found = self.states(tmp_path, lambda: disk.replace(str(tmp_path / "a.new"), str(tmp_path / "a")))
        assert found == {(("a", b"old"), ("a.new", b"new")), (("a", b"new"),)}

    def test_a_removed_file_may_be_there_again(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"old")
        assert self.states(tmp_path, lambda: disk.remove(str(tmp_path), "a")) == {(("a", b"old"),), ()}

    def test_a_cut_may_not_have_happened(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"long")

        def cut() -> None:
            fd = disk.open_to_write(str(tmp_path / "a"))
            disk.cut(fd, 2)
            disk.close(fd)

        assert self.states(tmp_path, cut) == {(("a", b"long"),), (("a", b"lo"),)}

    def test_too_many_combinations_are_taken_next_to_none_and_next_to_all(self, tmp_path: Path) -> None:
        def act() -> None:
            for number in range(8):
                self.write(tmp_path, str(number), b"%02d" % number, sync=False)

        found = self.states(tmp_path, act, bound=500)
        assert 250 <= len(found) < 5**8
        contents = [dict(state) for state in found]
        assert {str(n): b"%02d" % n for n in range(8)} in contents
        assert all({str(n): b"%02d" % n for n in range(8) if n != left} in contents for left in range(8))

    def test_a_change_that_is_not_recorded_is_an_error(self, tmp_path: Path) -> None:
        recording = Recording(tmp_path)
        with pytest.raises(AssertionError), recording.recording():
            (tmp_path / "a").write_bytes(b"")
        with pytest.raises(AssertionError, match=r"os\.rename would not be recorded"), recording.recording():
            disk.os.rename("a", "b")
