"""The order of writes and syncs, read off the recorded calls."""

import errno
import os
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from faults import Call, Disk, recorded, tree
from mmap_ninja import DenseMmap, RaggedMmap, StringsMmap, open_map
from mmap_ninja._reading import Reading
from mmap_ninja._storage import disk, snapshot
from mmap_ninja.errors import DiskError, SyncError
from plain_reader import BLOCK, check, crc_name, fields, same, samples

RNG = np.random.default_rng(11)
OLD = [np.arange(4), np.arange(3)]
NEW = [np.arange(5) + 10, np.arange(0), np.arange(1)]
FOLDER = "map"


@pytest.fixture
def m(tmp_path: Path) -> RaggedMmap:
    return RaggedMmap.from_lists(tmp_path / FOLDER, OLD)


def steps(calls: list[Call]) -> list[tuple[str, list[str]]]:
    """What is done to which files, one step for calls of one function in a row; opening and closing left out."""
    told = [call for call in calls if call.function not in ("open_to_write", "create_temporary", "close")]
    return [(name, sorted(call.name for call in group)) for name, group in groupby(told, lambda call: call.function)]


def test_an_extend_syncs_before_it_commits(m: RaggedMmap) -> None:
    double = recorded(lambda: m.extend(NEW))
    assert steps(double.calls) == [
        ("write_at", ["data.npy", "index.npy"]),
        ("sync_data", ["data.npy", "index.npy"]),
        ("write_at", ["manifest.json.new"]),
        ("sync", ["manifest.json.new"]),
        ("replace", ["manifest.json"]),
        ("sync_folder", [FOLDER]),
        ("write_at", ["data.npy", "index.npy"]),  # the headers
    ]
    assert len(double.of("sync", "sync_data", "sync_folder")) == 4


def test_an_extend_that_completes_a_block_syncs_its_checksum_too(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / FOLDER, [RNG.random(140_000)])
    double = recorded(lambda: m.append(RNG.random(140_000)))
    assert steps(double.calls)[:2] == [
        ("write_at", ["data.crc", "data.npy", "index.npy"]),
        ("sync_data", ["data.crc", "data.npy", "index.npy"]),
    ]
    [crc] = [call for call in double.calls if call.function == "write_at" and call.name == "data.crc"]
    assert (crc.offset, crc.size) == (4, 4)
    assert len(double.of("sync", "sync_data", "sync_folder")) == 5


def test_a_first_checksum_file_has_its_name_synced_before_the_commit(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / FOLDER, [RNG.random(10)])
    assert steps(recorded(lambda: m.append(RNG.random(140_000))).calls)[1:4] == [
        ("sync_data", ["data.crc", "data.npy", "index.npy"]),
        ("sync_folder", [FOLDER]),
        ("write_at", ["manifest.json.new"]),
    ]


def test_a_dense_extend_has_three_syncs(tmp_path: Path) -> None:
    m = DenseMmap.from_ndarray(tmp_path / FOLDER, np.arange(5))
    assert len(recorded(lambda: m.append(7)).of("sync", "sync_data", "sync_folder")) == 3


def test_no_sync_when_none_is_asked_for(m: RaggedMmap) -> None:
    double = recorded(lambda: m.extend(NEW, sync=False))
    assert double.of("sync", "sync_data", "sync_folder") == []
    assert len(double.of("replace")) == 1


@pytest.mark.parametrize("end", [RaggedMmap.flush, RaggedMmap.close])
def test_what_was_not_synced_is_synced_at_the_end(m: RaggedMmap, end: Callable[[RaggedMmap], None]) -> None:
    m.extend(NEW, sync=False)
    double = recorded(lambda: end(m))
    synced = {call.name.removesuffix(".new") for call in double.of("sync", "sync_data")}
    assert synced == {"data.npy", "index.npy", "manifest.json"}
    assert double.of("sync_folder")
    assert recorded(open_map(m.out_dir).flush).calls == []
    m.close()
    assert recorded(m.close).calls == []


def test_a_synced_extend_syncs_what_an_unsynced_one_has_left(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / FOLDER, [RNG.random(10)])
    m.append(RNG.random(140_000), sync=False)  # completes a block
    double = recorded(lambda: m.append(RNG.random(10)))
    assert {call.name for call in double.of("sync_data")} == {"data.crc", "data.npy", "index.npy"}


def test_a_build_that_was_not_synced_is_synced_by_flush(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / FOLDER, OLD, sync=False)
    assert {call.name for call in recorded(m.flush).of("sync_data")} == {"data.npy", "index.npy"}


def test_a_synced_extend_makes_all_that_it_builds_on_durable(tmp_path: Path) -> None:
    """Another process may have left the samples before it, or the dictionary of them all, to the kernel."""
    pytest.importorskip("zstandard")
    texts = [f"number {i} ".ljust(60) for i in range(300)]
    StringsMmap.from_strings(tmp_path / FOLDER, texts, zstd_level=3, zstd_train_dictionary_size=1000, sync=False)
    double = recorded(lambda: StringsMmap(tmp_path / FOLDER).append("one more"))
    assert {call.name for call in double.of("sync_data")} >= {"data.npy", "index.npy", "zstd.dict"}


def test_a_build_syncs_once_at_its_end(tmp_path: Path) -> None:
    double = recorded(lambda: RaggedMmap.from_generator(tmp_path / FOLDER, iter([*OLD, *NEW]), batch_size=1))
    found = steps(double.calls)
    last = len(found) - 1 - next(k for k, (name, _) in enumerate(reversed(found)) if name == "sync_data")
    assert found[last:] == [
        ("sync_data", ["data.npy", "index.npy"]),
        ("sync_folder", sorted([FOLDER, tmp_path.name])),  # and the folder's own name
        ("write_at", ["building.json.new"]),
        ("sync", ["building.json.new"]),
        ("replace", ["building.json"]),
        ("sync_folder", [FOLDER]),
        ("replace", ["manifest.json"]),
        ("sync_folder", [FOLDER]),
    ]
    assert [name for name, _ in found[:last]].count("sync_data") == 0


def test_old_files_are_removed_after_the_commit(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / FOLDER, OLD)
    found = steps(recorded(lambda: RaggedMmap.from_lists(tmp_path / FOLDER, NEW)).calls)
    assert found[-3:-1] == [("replace", ["manifest.json"]), ("sync_folder", [FOLDER])]
    assert found[-1] == ("remove", ["data.crc", "data.npy", "index.crc", "index.npy"])


def test_a_wider_index_is_complete_before_it_is_named(m: RaggedMmap) -> None:
    double = recorded(lambda: m.append(np.ones((2, 2), np.int64)))
    found = steps(double.calls)
    commits = [k for k, step in enumerate(found) if step == ("replace", ["manifest.json"])]
    assert len(commits) == 2  # the first one only says that the new names are ours
    between = found[commits[0] : commits[1]]
    assert ("sync_data", ["index-2.npy"]) in between
    assert found[-1] == ("remove", ["index.crc", "index.npy"])
    assert "index.npy" not in {call.name for call in double.of("write_at")}


def test_nothing_but_the_lock_is_touched_before_samples_are_checked(m: RaggedMmap) -> None:
    def bad() -> None:
        with pytest.raises(ValueError, match="sample 3"):
            m.extend([np.arange(3), np.arange(3) + 0.5])

    assert {call.name for call in recorded(bad).calls} <= {".lock"}


def test_the_lock_is_held_from_the_first_call_to_the_last(m: RaggedMmap) -> None:
    calls = recorded(lambda: m.extend(NEW)).calls
    assert calls[0][:2] == ("open_to_write", ".lock")
    assert calls[-1][:2] == ("close", ".lock")
    opened = [call for call in calls if call.function in ("open_to_write", "create_temporary")]
    assert len(opened) == len([call for call in calls if call.function == "close"])


def test_bytes_go_to_the_committed_end_and_cover_what_a_crash_left(m: RaggedMmap, tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    ends = {f["name"]: f["offset"] + f["size"] for f in fields(folder)["files"].values()}
    for name in ends:
        with open(folder / name, "ab") as file:
            file.write(b"\xee" * 1000)
    assert same(open_map(folder)[:], OLD)
    double = recorded(lambda: m.extend(NEW))
    writes = {call.name: call.offset for call in double.of("write_at") if call.offset}
    assert writes == ends
    assert same(open_map(folder)[:], OLD + NEW)
    assert same(samples(folder), OLD + NEW)
    check(folder)


def test_junk_where_checksums_will_go_is_covered_too(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / FOLDER, [RNG.random(10)])
    m.append(RNG.random(140_000))
    with open(tmp_path / FOLDER / "data.crc", "ab") as file:
        file.write(b"\xee" * 100)
    m.append(RNG.random(300_000))
    check(tmp_path / FOLDER)


def test_no_file_is_opened_to_append_nor_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: dict[str, int] = {}
    real = os.open

    def spy(path: str, flag: int, *mode: int) -> int:
        flags[os.path.basename(path)] = flags.get(os.path.basename(path), 0) | flag
        return real(path, flag, *mode)

    monkeypatch.setattr(disk.os, "open", spy)
    for name in ("truncate", "ftruncate", "posix_fallocate"):
        monkeypatch.setattr(disk.os, name, None)  # calling it would be a TypeError
    for _ in "new", "replaced":
        m = RaggedMmap.from_generator(tmp_path / FOLDER, iter([RNG.random(140_000)] * 2), batch_size=1)
        m.extend([RNG.random(140_000), RNG.random((2, 2))])
        m[0] = RNG.random(140_000)
        m.flush()
    assert not any(flag & os.O_APPEND for flag in flags.values())
    cut = {name for name, flag in flags.items() if flag & os.O_TRUNC}
    assert cut == set()  # only a leftover manifest that never took its place is
    assert {"data.npy", "index.npy", "data.crc"} < set(flags)


def test_a_failed_extend_gives_its_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to the committed end, and not a byte further: that is mapped."""
    m = RaggedMmap.from_lists(tmp_path / FOLDER, [RNG.random(200_000)])
    before = tree(tmp_path / FOLDER)
    for name in ("data.npy", "index.npy", "data.crc", "manifest.json.new"):
        with monkeypatch.context() as patch:
            patch.setattr(disk, "write_at", failing_write(name))
            with pytest.raises(DiskError, match="cannot write this part of a map: No space") as caught:
                m.extend([RNG.random(400_000), np.array([])])
        assert (caught.value.errno, os.path.basename(caught.value.filename)) == (errno.ENOSPC, name)
        assert tree(tmp_path / FOLDER) == before
    m.append(RNG.random(300_000))
    assert len(open_map(tmp_path / FOLDER)) == 2
    check(tmp_path / FOLDER)


def test_a_failed_sync_whose_bytes_cannot_be_cut_off_is_remembered(m: RaggedMmap, tmp_path: Path) -> None:
    """The next one would write to the same blocks, which ext4 takes for written by then."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk.os, "fdatasync", refuse)
        patch.setattr(disk.os, "ftruncate", refuse)
        with pytest.raises(SyncError):
            m.extend(NEW)
    assert fields(tmp_path / FOLDER)["lost"] is True
    assert same(open_map(tmp_path / FOLDER)[:], OLD)
    RaggedMmap(tmp_path / FOLDER).extend(NEW)
    assert "lost" not in fields(tmp_path / FOLDER)
    assert fields(tmp_path / FOLDER)["files"]["data"]["name"] == "data-2.npy"
    assert same(open_map(tmp_path / FOLDER)[:], OLD + NEW)


def failing_write(name: str) -> Callable[..., None]:
    """A `write_at` for which the disk is full half-way through the file of this name."""
    real = disk.write_at

    def write_at(fd: int, chunks: list, offset: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if os.path.basename(path) != name:
            return real(fd, chunks, offset)
        raw = b"".join(chunks)
        real(fd, [raw[: len(raw) // 2]], offset)
        with disk.explained(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return write_at


def test_a_failed_first_batch_gives_its_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", failing_write("data.crc"))
        with pytest.raises(DiskError, match="No space"):
            RaggedMmap.from_lists(tmp_path / FOLDER, [RNG.random(200_000)])
    assert {len(raw) for name, raw in tree(tmp_path / FOLDER).items() if not name.endswith(".json")} == {0}
    RaggedMmap.from_lists(tmp_path / FOLDER, OLD)
    check(tmp_path / FOLDER)


def test_a_sweep_that_fails_does_not_fail_the_commit(m: RaggedMmap, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples are there: whoever hears of an error would add them again."""

    def unlink(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "unlink", unlink)
        m.append(np.ones((2, 2), int))  # a wider index, in a file of its own
    assert same(m[:], [*OLD, np.ones((2, 2), int)])
    assert {"index.npy", "index-2.npy"} <= set(os.listdir(m.out_dir))
    m.append(np.arange(2))
    assert "index.npy" not in os.listdir(m.out_dir)
    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "unlink", unlink)
        RaggedMmap.from_lists(m.out_dir, OLD)
    assert same(open_map(m.out_dir)[:], OLD)
    RaggedMmap(m.out_dir).append(OLD[0])
    assert {"data.npy", "index-2.npy"}.isdisjoint(os.listdir(m.out_dir))


def test_a_failing_header_does_not_fail_the_commit(m: RaggedMmap, tmp_path: Path) -> None:
    """The samples are committed by then; the header is for np.load."""
    real, headers = disk.write_at, []

    def write_at(fd: int, chunks: list, offset: int) -> None:
        if offset == 0 and chunks[0][:6] == b"\x93NUMPY":
            headers.append(offset)
            raise OSError(5, "no")
        real(fd, chunks, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "write_at", write_at)
        m.extend(NEW)
    assert headers
    assert same(open_map(tmp_path / FOLDER)[:], OLD + NEW)
    m.append(np.arange(2))
    assert same(samples(tmp_path / FOLDER), [*OLD, *NEW, np.arange(2)])  # the next one has mended it


def test_a_short_write_is_continued(m: RaggedMmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, short = os.pwritev, []

    def pwritev(fd: int, views: list, offset: int) -> int:
        short.append(real(fd, [views[0][:7]], offset))
        return short[-1]

    monkeypatch.setattr(disk.os, "pwritev", pwritev)
    m.extend(NEW)
    assert len(short) > 20
    assert same(open_map(tmp_path / FOLDER)[:], OLD + NEW)
    check(tmp_path / FOLDER)


def test_no_file_grows_sparse(tmp_path: Path) -> None:
    """Every byte of a file was written, so that a full disk shows in a write and not as SIGBUS in a read."""
    with Disk().installed() as double:
        m = RaggedMmap.from_generator(tmp_path / FOLDER, iter([RNG.random(100_000)] * 3), batch_size=2)
        m.extend([RNG.random(100_000)] * 2)
    for file in fields(tmp_path / FOLDER)["files"].values():
        for name in {file["name"], crc_name(file)} if file["size"] > BLOCK else {file["name"]}:
            spans = sorted((c.offset, c.offset + c.size) for c in double.of("write_at") if c.name == name)
            end = 0
            for start, stop in spans:
                assert start <= end
                end = max(end, stop)
            assert end == (tmp_path / FOLDER / name).stat().st_size


def test_folders_on_the_way_are_made_and_synced(tmp_path: Path) -> None:
    synced: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        real = disk.sync_folder
        patch.setattr(disk, "sync_folder", lambda path, *fd: synced.append(path) or real(path, *fd))
        RaggedMmap.from_lists(tmp_path / "a/b/map", OLD)
    assert synced[:3] == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")]


def test_an_append_that_stands_is_no_error_though_others_write_at_once(m: RaggedMmap) -> None:
    """Between the commit and the mapping of it, another handle replaces the index by a wider one."""
    real, wide = Reading._load_written, np.ones((2, 2), int)

    def load_written(self: RaggedMmap, *arguments: object) -> None:
        if self is m:
            RaggedMmap(m.out_dir).append(wide)
        real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reading, "_load_written", load_written)
        m.append(NEW[0])
    assert same(m[:], [*OLD, NEW[0]])
    m.refresh()
    assert same(m[:], [*OLD, NEW[0], wide])
    m.close()


def test_a_handle_without_descriptors_reads_on_when_there_are_some(m: RaggedMmap) -> None:
    def no_more(folder: str, file: object, **options: object) -> None:
        raise DiskError(errno.EMFILE, "Too many open files", folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "MappedFile", no_more)
        m.append(NEW[0])
        with pytest.raises(DiskError, match="Too many open files"):
            len(m)
    RaggedMmap(m.out_dir).append(np.ones((2, 2), int))
    assert same(m[:], [*OLD, NEW[0]])
