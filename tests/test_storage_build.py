"""Builds: beside what is there, complete or not at all, resumed, and swept when nobody resumes them."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import plain_reader
from faults import Strike, exit_code, killed_at, recorded, tree
from mmap_ninja import BytesMmap, DenseMmap, Mmap, RaggedMmap, StringsMmap, np_from_ndarray, open_map, verify
from mmap_ninja._storage import build, disk, snapshot
from mmap_ninja.errors import (
    ArgumentError,
    DiskError,
    ForeignFileError,
    MapCorruptError,
    PartBuiltError,
    PartBuiltWarning,
)
from plain_reader import fields, forge, same

RNG = np.random.default_rng(3)
OLD = [np.arange(3), np.arange(5)]
NEW = [np.arange(n) + 10 for n in (2, 0, 4, 1, 3)]
TEXTS = [f"text {n}" * n for n in range(5)]
KINDS: dict[type[Mmap], list] = {
    RaggedMmap: NEW,
    DenseMmap: [np.array([n, -n]) for n in range(5)],
    StringsMmap: TEXTS,
    BytesMmap: [text.encode() for text in TEXTS],
}


def stopping(samples: list, error: BaseException | None = None):
    """These samples, and then an error."""
    yield from samples
    raise RuntimeError("stopped") if error is None else error


def stop(cls: type[Mmap], folder: Path, samples: list, **options: object) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        cls.from_generator(folder, stopping(samples), 1, **options)


def part(folder: Path) -> Mmap:
    with pytest.warns(PartBuiltWarning, match="never finished.*resume=True"):
        return open_map(folder)


def listed(m: Mmap) -> list:
    return [m[i] for i in range(len(m))]


def test_the_old_map_is_whole_while_another_is_built(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", OLD)
    before = tree(tmp_path / "map")

    def loader():
        for sample in NEW:
            assert same(m[:], OLD)
            assert same(open_map(tmp_path / "map")[:], OLD)
            assert before.items() <= tree(tmp_path / "map").items()
            yield sample

    RaggedMmap.from_generator(tmp_path / "map", loader(), batch_size=1)
    assert same(m[:], OLD)  # its files are gone by name, not for whoever has them open
    assert same(open_map(tmp_path / "map")[:], NEW)


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), MemoryError(), SystemExit()], ids=repr)
def test_the_old_map_is_whole_after_a_build_that_failed(tmp_path: Path, error: BaseException) -> None:
    RaggedMmap.from_lists(tmp_path / "map", OLD)
    before = tree(tmp_path / "map")
    with pytest.raises(type(error)):
        RaggedMmap.from_generator(tmp_path / "map", stopping(NEW, error), batch_size=2)
    assert before.items() <= tree(tmp_path / "map").items()
    m = open_map(tmp_path / "map")
    m.append(NEW[0])
    assert same(open_map(tmp_path / "map")[:], [*OLD, NEW[0]])


@pytest.mark.parametrize("smaller", [True, False])
def test_a_reader_of_a_replaced_map_reads_on(tmp_path: Path, smaller: bool) -> None:
    rows = [RNG.random(100_000) for _ in range(3)]
    m = RaggedMmap.from_lists(tmp_path / "map", rows if smaller else OLD)
    RaggedMmap.from_lists(tmp_path / "map", OLD if smaller else rows)
    assert same(m[:], rows if smaller else OLD)


def test_a_map_is_transformed_into_its_own_folder(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", OLD)
    RaggedMmap.from_generator(tmp_path / "map", (sample * 2 for sample in m), batch_size=1)
    assert same(open_map(tmp_path / "map")[:], [sample * 2 for sample in OLD])


def test_only_the_old_files_are_removed(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", [RNG.random(140_000)])
    foreign = {
        "notes.txt": b"mine",
        "data-x.npy": b"1",
        "data-7.npy": b"2",
        "index.npy.bak": b"3",
        "deep/data.npy": b"4",
    }
    (tmp_path / "map/deep").mkdir()
    for name, raw in foreign.items():
        (tmp_path / "map" / name).write_bytes(raw)
    for samples in (NEW, [RNG.random(140_000)], OLD):
        m = RaggedMmap.from_lists(tmp_path / "map", samples)
        m.append(np.ones((2, 2), samples[0].dtype))  # a new index file
        found = tree(tmp_path / "map")
        assert foreign.items() <= found.items()
        assert set(found) == {*foreign, ".lock", *plain_reader.names(tmp_path / "map")}


@pytest.mark.parametrize("name", ["data.npy", "index.npy", "data.crc", "index.crc", "manifest.json", "building.json"])
@pytest.mark.parametrize("make", ["from_lists", "append"])
def test_a_foreign_file_under_one_of_our_names(tmp_path: Path, name: str, make: str) -> None:
    folder = tmp_path / "map"
    folder.mkdir()
    (folder / name).write_bytes(b"not ours")
    with pytest.raises((ForeignFileError, MapCorruptError), match=name):
        RaggedMmap.from_lists(folder, NEW) if make == "from_lists" else RaggedMmap(folder).append(NEW[0])
    found = tree(folder)
    found.pop(".lock", None)
    assert found == {name: b"not ours"}


def test_a_foreign_file_where_a_dictionary_goes(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    (tmp_path / "map").mkdir()
    (tmp_path / "map/zstd.dict").write_bytes(b"not ours")
    with pytest.raises(ForeignFileError, match=r"zstd\.dict"):
        StringsMmap.from_strings(tmp_path / "map", TEXTS * 100, zstd_level=3, zstd_train_dictionary_size=1000)
    assert (tmp_path / "map/zstd.dict").read_bytes() == b"not ours"


STALE = b"\x7fELF of another file"  # what a power cut leaves in a file whose blocks were not written


@pytest.mark.parametrize("name", ["building.json", "building.json.new", "manifest.json.new"])
@pytest.mark.parametrize("act", [lambda f: RaggedMmap(f).append(NEW[0]), lambda f: RaggedMmap.from_lists(f, NEW)])
def test_stale_blocks_under_a_name_of_ours_are_in_no_writers_way(
    tmp_path: Path, name: str, act: Callable[[Path], object]
) -> None:
    RaggedMmap.from_lists(tmp_path / "map", OLD)
    (tmp_path / "map" / name).write_bytes(STALE)
    assert [one.kind for one in verify(tmp_path / "map")] == ["leftover"]
    act(tmp_path / "map")
    assert len(open_map(tmp_path / "map")) in (len(OLD) + 1, len(NEW))
    if name != "building.json":  # what a build was interrupted in stays until another build begins
        assert not (tmp_path / "map" / name).exists()
    (tmp_path / "map" / name).write_bytes(STALE)
    assert [one.repaired for one in verify(tmp_path / "map", repair=True)] == [True]
    assert not (tmp_path / "map" / name).exists()


@pytest.mark.parametrize("stale", [STALE, bytes(300)])
def test_stale_blocks_where_there_is_no_map_yet(tmp_path: Path, stale: bytes) -> None:
    """The power went before the first sample of a first build was written."""
    (tmp_path / "map").mkdir()
    (tmp_path / "map/.lock").write_bytes(b"")
    (tmp_path / "map/building.json").write_bytes(stale)
    m = RaggedMmap(tmp_path / "map")
    assert len(m) == 0
    m.append(NEW[0])
    assert same(open_map(tmp_path / "map")[:], NEW[:1])
    (tmp_path / "map/manifest.json").unlink()
    (tmp_path / "map/building.json").write_bytes(stale)
    with pytest.raises(MapCorruptError, match=r"a build was interrupted, and building\.json has not survived it"):
        open_map(tmp_path / "map")
    assert same(RaggedMmap.from_lists(tmp_path / "map", NEW)[:], NEW)


def test_a_building_json_in_a_folder_of_no_map_is_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "map").mkdir()
    (tmp_path / "map/building.json").write_bytes(b'{"my": "houses"}')
    with pytest.raises(MapCorruptError, match=r"building\.json is not a manifest"):
        RaggedMmap.from_lists(tmp_path / "map", NEW)
    assert tree(tmp_path / "map") == {"building.json": b'{"my": "houses"}'}


@pytest.mark.parametrize("name", ["index-2.npy", "index-2.crc"])
def test_a_foreign_file_where_a_wider_index_goes(tmp_path: Path, name: str) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", OLD)
    (tmp_path / "map" / name).write_bytes(b"not ours")
    m.append(np.ones((2, 2), np.int64))
    m.append(np.ones((2, 2, 2), np.int64))
    assert (tmp_path / "map" / name).read_bytes() == b"not ours"
    assert same(open_map(tmp_path / "map")[:2], OLD)


@pytest.mark.parametrize("cls", KINDS)
def test_a_part_built_map_opens_as_far_as_it_got(tmp_path: Path, cls: type[Mmap]) -> None:
    stop(cls, tmp_path / "map", KINDS[cls][:3])
    m = part(tmp_path / "map")
    assert same(listed(m), KINDS[cls][:3])
    assert not (tmp_path / "map/manifest.json").exists()
    before = tree(tmp_path / "map")
    with pytest.raises(PartBuiltError, match="resume=True"):
        m.append(KINDS[cls][0])
    assert tree(tmp_path / "map") == before


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize("done", range(6))
def test_a_resumed_build_equals_one_that_was_never_interrupted(tmp_path: Path, cls: type[Mmap], done: int) -> None:
    samples = KINDS[cls]
    stop(cls, tmp_path / "map", samples[:done])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is unfinished any more
        m = cls.from_generator(tmp_path / "map", iter(samples), 2, resume=True)
    cls.from_generator(tmp_path / "whole", iter(samples), 2)
    assert same(listed(m), samples)
    left, right = tree(tmp_path / "map"), tree(tmp_path / "whole")
    assert {name: raw for name, raw in left.items() if name.startswith(("data", "index"))} == {
        name: raw for name, raw in right.items() if name.startswith(("data", "index"))
    }
    ours, theirs = fields(tmp_path / "map"), fields(tmp_path / "whole")
    assert {**ours, "id": 0, "generation": 0} == {**theirs, "id": 0, "generation": 0}


def test_a_build_is_resumed_more_than_once(tmp_path: Path) -> None:
    for done in (1, 2, 4):
        stop(RaggedMmap, tmp_path / "map", NEW[:done], resume=True)
        assert same(listed(part(tmp_path / "map")), NEW[:done])
    assert same(RaggedMmap.from_generator(tmp_path / "map", iter(NEW), 2, resume=True)[:], NEW)


def test_resuming_takes_only_the_samples_that_are_missing(tmp_path: Path) -> None:
    stop(RaggedMmap, tmp_path / "map", NEW[:3])
    loaded: list[int] = []
    RaggedMmap.from_indexable(tmp_path / "map", lambda i: loaded.append(i) or NEW[:][i], 2, resume=True)
    assert loaded == [3, 4, 5]  # the last one is the IndexError that ends it


def test_resuming_what_is_not_there_begins(tmp_path: Path) -> None:
    assert same(RaggedMmap.from_generator(tmp_path / "map", iter(NEW), 2, resume=True)[:], NEW)


def test_resuming_beside_a_map_replaces_it_at_the_end(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", OLD)
    stop(RaggedMmap, tmp_path / "map", NEW[:3])
    assert same(open_map(tmp_path / "map")[:], OLD)
    stop(RaggedMmap, tmp_path / "map", NEW[:4], resume=True)
    assert same(open_map(tmp_path / "map")[:], OLD)
    assert same(RaggedMmap.from_generator(tmp_path / "map", iter(NEW), 2, resume=True)[:], NEW)
    assert set(tree(tmp_path / "map")) == {".lock", *plain_reader.names(tmp_path / "map")}


def test_what_is_resumed_has_to_be_of_the_same_kind_and_dtype(tmp_path: Path) -> None:
    stop(RaggedMmap, tmp_path / "map", NEW[:3])
    before = tree(tmp_path / "map")
    with pytest.raises(ArgumentError, match=r"ragged map.*not a strings map"):
        StringsMmap.from_generator(tmp_path / "map", iter(TEXTS), 2, resume=True)
    with pytest.raises(ArgumentError, match="int64, not float32"):
        RaggedMmap.from_generator(tmp_path / "map", iter(NEW), 2, resume=True, dtype=np.float32)
    assert tree(tmp_path / "map") == before


def test_the_leftovers_of_a_killed_build_are_swept_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "map"
    rows = [RNG.random(70_000) for _ in range(4)]
    begin = lambda folder: RaggedMmap.from_generator(folder, iter(rows), 1)
    last = len(recorded(lambda: begin(tmp_path / "whole")).calls) - 1
    for at in (last // 3, last // 2, last - 8):
        killed_at(Strike(at), lambda: begin(folder))
        RaggedMmap.from_lists(folder, OLD)
        assert set(tree(folder)) == {".lock", *plain_reader.names(folder)}


def test_a_bad_first_sample_leaves_no_trace(tmp_path: Path) -> None:
    for act in (
        lambda: RaggedMmap.from_lists(tmp_path / "map", [object()]),
        lambda: RaggedMmap.from_generator(tmp_path / "map", iter(["text"]), 1),
        lambda: RaggedMmap(tmp_path / "map").append(None),
        lambda: RaggedMmap.from_generator(tmp_path / "map", stopping([]), 1),
    ):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            act()
        assert not (tmp_path / "map").exists()


@pytest.fixture
def rebooted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The machine starts again: the kernel has another boot id."""

    def reboot() -> None:
        for module in ("snapshot", "build", "unfinished", "upgrade"):
            monkeypatch.setattr(f"mmap_ninja._storage.{module}.boot_id", lambda: "another boot")

    return reboot


def damage(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(130)
        file.write(b"\xff\xff")


def test_a_part_built_map_is_checked_after_a_reboot(tmp_path: Path, rebooted: Callable[[], None]) -> None:
    stop(RaggedMmap, tmp_path / "map", NEW[:3])
    rebooted()
    assert same(listed(part(tmp_path / "map")), NEW[:3])
    damage(tmp_path / "map/data.npy")
    with pytest.raises(
        MapCorruptError, match=r"was being built when the machine or its disk stopped.*data\.npy.*block 0"
    ):
        open_map(tmp_path / "map")
    with pytest.raises(MapCorruptError, match="was being built when the machine or its disk stopped"):
        RaggedMmap.from_generator(tmp_path / "map", iter(NEW), 2, resume=True)
    assert same(RaggedMmap.from_generator(tmp_path / "map", iter(NEW), 2)[:], NEW)


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize("lost", ["zeros", "stale"])
def test_what_a_device_has_lost_without_a_reboot_is_not_resumed_from(
    tmp_path: Path, cls: type[Mmap], lost: str
) -> None:
    RaggedMmap.from_lists(tmp_path / "map", OLD)
    stop(cls, tmp_path / "map", KINDS[cls][:3])
    data = tmp_path / "map/data-2.npy"
    raw = data.read_bytes()
    data.write_bytes(raw[:-8] + (bytes(8) if lost == "zeros" else STALE[:8]))
    before = tree(tmp_path / "map")
    if raw[-8:] != bytes(8) or lost != "zeros":
        with pytest.raises(MapCorruptError, match=r"not all of it has survived.*without resume=True"):
            cls.from_generator(tmp_path / "map", iter(KINDS[cls]), 2, resume=True)
        assert tree(tmp_path / "map") == before
    assert same(open_map(tmp_path / "map")[:], OLD)
    assert same(listed(cls.from_generator(tmp_path / "map", iter(KINDS[cls]), 2)), KINDS[cls])


def test_on_the_same_boot_it_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(RaggedMmap, tmp_path / "map", NEW[:3])
    monkeypatch.setattr(snapshot, "check_blocks", None)  # calling it would be a TypeError
    assert len(part(tmp_path / "map")) == 3


def test_a_boot_that_nobody_knows_is_another_one(tmp_path: Path) -> None:
    stop(RaggedMmap, tmp_path / "map", NEW[:3])
    forge(tmp_path / "map", "building.json", building={"boot_id": None, "upgrade": False})
    damage(tmp_path / "map/data.npy")
    with pytest.raises(MapCorruptError, match="was being built when the machine or its disk stopped"):
        open_map(tmp_path / "map")


def test_a_resumed_build_belongs_to_the_boot_on_which_it_was_resumed(
    tmp_path: Path, rebooted: Callable[[], None]
) -> None:
    stop(RaggedMmap, tmp_path / "map", NEW[:3])
    rebooted()
    stop(RaggedMmap, tmp_path / "map", NEW[:4], resume=True)
    assert fields(tmp_path / "map", "building.json")["building"]["boot_id"] == "another boot"


def test_an_interrupted_build_whose_file_is_gone_is_not_resumed(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", OLD)
    stop(RaggedMmap, tmp_path / "map", NEW[:3])
    os.unlink(tmp_path / "map/data-2.npy")
    with pytest.raises(MapCorruptError, match=r"data-2\.npy"):
        RaggedMmap.from_generator(tmp_path / "map", iter(NEW[:3]), 2, resume=True)
    assert same(open_map(tmp_path / "map")[:], OLD)


def test_no_samples_make_an_empty_map(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", OLD)
    assert len(RaggedMmap.from_lists(tmp_path / "map", [])) == 0
    assert set(tree(tmp_path / "map")) == {".lock", "manifest.json"}
    open_map(tmp_path / "map").append(NEW[0])
    assert same(open_map(tmp_path / "map")[:], NEW[:1])


def test_a_new_build_gets_new_names(tmp_path: Path) -> None:
    """A reader that has read the old manifest must not find other bytes under the names that it lists."""
    seen: list[set[str]] = []
    for _ in range(4):
        RaggedMmap.from_lists(tmp_path / "map", OLD)
        seen.append({file["name"] for file in fields(tmp_path / "map")["files"].values()})
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_the_array_of_a_replaced_map_keeps_its_values(tmp_path: Path) -> None:
    first = np_from_ndarray(tmp_path / "map", np.arange(5))
    np_from_ndarray(tmp_path / "map", np.arange(50) + 7)
    assert first.tolist() == [0, 1, 2, 3, 4]


def killed_before_publishing(folder: Path, samples: list) -> None:
    """A build that died between the two renames of its end."""
    rename = [call[:2] for call in recorded(lambda: RaggedMmap.from_generator(folder / "a", iter(samples), 2)).calls]
    at = max(k for k, call in enumerate(rename) if call == ("replace", "manifest.json"))
    RaggedMmap.from_lists(folder / "b", OLD)
    calls = recorded(lambda: RaggedMmap.from_generator(folder / "c", iter(samples), 2)).calls
    assert len(calls) == len(rename)
    killed_at(Strike(at), lambda: RaggedMmap.from_generator(folder / "b", iter(samples), 2))


@pytest.mark.parametrize("samples", [NEW, []], ids=["samples", "none"])
def test_resuming_a_build_that_was_all_but_published_keeps_the_map(tmp_path: Path, samples: list) -> None:
    killed_before_publishing(tmp_path, samples)
    assert same(open_map(tmp_path / "b")[:], OLD)
    stop(RaggedMmap, tmp_path / "b", [*samples, OLD[0]], resume=True)
    assert same(open_map(tmp_path / "b")[:], OLD)
    made = RaggedMmap.from_generator(tmp_path / "b", iter([*samples, OLD[0]]), 2, resume=True)
    assert same(made[:], [*samples, OLD[0]])
    plain_reader.check(tmp_path / "b")


def test_resuming_nothing_leaves_no_trace_of_a_bad_sample(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="NoneType"):
        RaggedMmap.from_generator(tmp_path / "map", [None], 1, resume=True)
    assert not (tmp_path / "map").exists()


def test_resuming_takes_the_metadata_that_it_is_given(tmp_path: Path) -> None:
    stop(RaggedMmap, tmp_path / "map", NEW[:1])
    made = RaggedMmap.from_generator(tmp_path / "map", iter(NEW), 2, resume=True, metadata={"split": "train"})
    assert made.metadata == {"split": "train"}


def test_an_empty_map_that_was_not_synced_is_synced_by_flush(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", [], sync=False).flush()
    assert fields(tmp_path / "map")["synced"] is True
    assert sorted(tree(tmp_path / "map")) == [".lock", "manifest.json"]


@pytest.mark.parametrize("name", ["manifest.json.new", "building.json.new"])
def test_a_folder_where_the_next_manifest_goes(tmp_path: Path, name: str) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", OLD)
    (tmp_path / "map" / name / "mine").mkdir(parents=True)
    with pytest.raises(ForeignFileError, match=f"{name} is no regular file"):
        m.append(NEW[0]) if name.startswith("manifest") else RaggedMmap.from_lists(tmp_path / "map", NEW)
    assert (tmp_path / "map" / name / "mine").is_dir()
    assert same(open_map(tmp_path / "map")[:], OLD)


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_first_append_whose_last_rename_fails_can_be_made_again(tmp_path: Path, fault: BaseException) -> None:
    """Nobody sees the sample of a call that has failed, else it would be there twice."""
    real = os.replace

    def replace(source: str, target: str) -> None:
        if target.endswith("manifest.json"):
            raise fault
        real(source, target)

    m = RaggedMmap(tmp_path / "map")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk.os, "replace", replace)
        with pytest.raises(type(fault)):
            m.append([1, 2, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartBuiltWarning)
        assert len(RaggedMmap(tmp_path / "map")) == 0
    m.append([1, 2, 3])
    assert [row.tolist() for row in open_map(tmp_path / "map")] == [[1, 2, 3]]


def test_a_build_whose_last_rename_fails_is_resumed(tmp_path: Path) -> None:
    rows = [np.arange(n) for n in range(5)]

    def replace(source: str, target: str) -> None:
        if target.endswith("manifest.json"):
            raise OSError(5, "Input/output error")
        os.rename(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk.os, "replace", replace)
        with pytest.raises(DiskError, match="Input/output error"):
            RaggedMmap.from_generator(tmp_path / "map", iter(rows), 2)
    with pytest.warns(PartBuiltWarning, match="has the 5 samples"):
        open_map(tmp_path / "map")
    assert len(RaggedMmap.from_generator(tmp_path / "map", iter(rows), 2, resume=True)) == 5


def test_a_forked_child_that_leaves_a_build_leaves_it_alone(tmp_path: Path) -> None:
    """It unwinds its parent's build, of which it has a copy, while the parent goes on."""

    def loader() -> Iterator[np.ndarray]:
        yield np.arange(3)
        yield np.arange(4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside NumPy's threads
            pid = os.fork()
        if pid == 0:
            raise SystemExit
        assert exit_code(pid) == 0
        assert tree(tmp_path / "map") == before[0]
        yield np.arange(5)

    before: list[dict] = []
    real = disk.replace

    def replace(source: str, target: str) -> None:
        real(source, target)
        before[:] = [tree(tmp_path / "map")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "replace", replace)
        patch.setattr(build, "_SAVE_EVERY", 0)
        try:
            made = RaggedMmap.from_generator(tmp_path / "map", loader(), 1)
        except SystemExit:
            os._exit(0)
    assert len(made) == 3
    assert verify(tmp_path / "map") == []
