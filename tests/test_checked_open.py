"""`check=True`: every byte is compared before a state is seen, once in a process; what is damaged is not opened."""

import multiprocessing
import os
import pickle
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import plain_reader
from changes import KINDS, format_1_column, interrupt, listed, quietly
from children import Children
from faults import KILLED, in_child
from meanwhile import BLOCK, LARGE, assign_for_ever, extend_for_ever, flip, replace_for_ever, uniform
from mmap_ninja import (
    Batches,
    DenseMmap,
    RaggedMmap,
    backup,
    np_from_ndarray,
    np_open_existing,
    open_existing,
    open_map,
    select,
    upgrade,
    verify,
    windows,
)
from mmap_ninja._storage import check, verified
from mmap_ninja.errors import (
    ArgumentTypeError,
    MapChangedError,
    MapCorruptError,
    MapKindError,
    MapNotFoundError,
    PartBuiltWarning,
)
from plain_reader import same

WAYS: dict[str, Callable] = {
    "open_map": lambda f: open_map(f, check=True),
    "the constructor": lambda f: type(open_map(f))(f, check=True),
    "to assign": lambda f: open_map(f, mode="r+", check=True),
    "privately": lambda f: open_map(f, mode="c", check=True),
    "open_existing": lambda f: open_existing(f, check=True),
    "open_existing, wrapped": lambda f: open_existing(f, lambda sample: sample, check=True),
    "Batches": lambda f: Batches(f, 2, check=True),
    "Batches of an open map": lambda f: Batches(open_map(f), 2, check=True),
    "Batches of a view": lambda f: Batches(select(open_map(f), [0]), 1, check=True),
    "Batches of a dict": lambda f: Batches({"a": np.arange(7), "b": (f, open_map(f))}, 1, check=True),
}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "_known", {})


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The folders of which all bytes were compared."""
    found: list[str] = []

    def note(folder: str, *others: object) -> Iterator:
        found.append(os.path.basename(folder))
        return check.check_state(folder, *others)

    monkeypatch.setattr(verified, "check_state", note)
    return found


# What is refused.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", KINDS)
def test_damage_is_refused_and_what_is_whole_opens(tmp_path: Path, name: str, way: str) -> None:
    kind, rng = KINDS[name], random.Random(name + way)
    m = kind.build(tmp_path / "map", kind.large[:7])
    WAYS[way](tmp_path / "map")
    kind.build(tmp_path / "map", kind.large[:7])
    files = plain_reader.fields(tmp_path / "map")["files"]
    file = files[rng.choice(list(files))]
    at = file["offset"] + rng.randrange(file["size"])
    flip(tmp_path / "map" / file["name"], at)
    [finding] = verify(tmp_path / "map")
    with pytest.raises(MapCorruptError, match=r"is damaged, and was to be opened with check=True; ") as caught:
        WAYS[way](tmp_path / "map")
    assert str(finding) in str(caught.value)
    flip(tmp_path / "map" / file["name"], at)
    WAYS[way](tmp_path / "map")
    assert len(m) == 7


@pytest.mark.parametrize("seed", range(4))
def test_random_blocks_are_named(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    blocks = sorted(rng.sample(range(11), 3))
    for block in blocks:
        flip(tmp_path / "map" / "data.npy", 128 + block * BLOCK + rng.randrange(BLOCK))
    with pytest.raises(MapCorruptError, match=r"damaged in 3 of 12 blocks") as caught:
        open_map(tmp_path / "map", check=True)
    assert str(verify(tmp_path / "map")[0]) in str(caught.value)
    open_map(tmp_path / "map")  # nothing is compared that was not asked for


def test_damage_that_opening_does_not_see(tmp_path: Path) -> None:
    """A file too many, a wrong row: all that `verify` calls damage."""
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    raw = (tmp_path / "map" / "data.crc").read_bytes()
    (tmp_path / "map" / "data.crc").unlink()
    with pytest.raises(MapCorruptError, match=r"data\.crc: missing"):
        open_map(tmp_path / "map", check=True)
    (tmp_path / "map" / "data.crc").write_bytes(raw[:-1])
    with pytest.raises(MapCorruptError, match=r"data\.crc has 43 bytes, expected at least 44"):
        open_map(tmp_path / "map", check=True)


def test_values_that_were_not_flushed_are_refused_with_the_remedy(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE, mode="r+")
    m[0] = m[0] + 1
    with pytest.raises(MapCorruptError, match=r"cannot be vouched for, and was to be opened(.|\n)*verify --accept"):
        open_map(tmp_path / "map", check=True)
    m.flush()
    assert same(open_map(tmp_path / "map", check=True)[:1], [LARGE[0] + 1])
    plain_reader.forge(tmp_path / "map", lost=True, generation=100)
    with pytest.raises(MapCorruptError, match="a sync has failed"):
        open_map(tmp_path / "map", check=True)


def test_format_1_is_refused_until_it_is_upgraded(tmp_path: Path) -> None:
    format_1_column(tmp_path / "map", np.arange(6.0))
    for way in ("open_map", "open_existing", "Batches"):
        with pytest.raises(MapCorruptError, match=r"format 1 has no checksums; `upgrade` gives it some"):
            WAYS[way](tmp_path / "map")
    upgrade(tmp_path / "map")
    assert open_map(tmp_path / "map", check=True)[:].tolist() == list(range(6))


def test_what_harms_nothing_is_let_through(tmp_path: Path) -> None:
    """Leftovers, headers of another state, an unfinished build beside the map; a part, which opens with a warning."""
    kind = KINDS["rows"]
    kind.build(tmp_path / "map", kind.samples)
    raw = (tmp_path / "map" / "data.npy").read_bytes()
    (tmp_path / "map" / "data.npy").write_bytes(raw.replace(b"(21,)", b"(20,)"))
    interrupt(kind, tmp_path / "map", kind.first)
    (tmp_path / "map" / "manifest.json.new").write_bytes(b"")
    assert {finding.kind for finding in verify(tmp_path / "map")} == {"header", "leftover", "unfinished"}
    assert same(listed(open_map(tmp_path / "map", check=True)), kind.samples)
    interrupt(kind, tmp_path / "part", kind.first)
    with pytest.warns(PartBuiltWarning):
        assert same(listed(open_map(tmp_path / "part", check=True)), kind.first)
    flip(tmp_path / "part" / "data.npy", 130)
    verified._known = {}
    with pytest.raises(MapCorruptError, match="is damaged"):
        RaggedMmap(tmp_path / "part", check=True)


def test_arguments(tmp_path: Path, compared: list) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE[:1])
    for act in (open_map, RaggedMmap, open_existing, lambda f, check: Batches(f, 1, check=check)):
        with pytest.raises(ArgumentTypeError, match="check is 1, expected True or False"):
            act(tmp_path / "map", check=1)
    with pytest.raises(ArgumentTypeError, match="check is 1"):
        np_open_existing(tmp_path / "map", check=1)
    with pytest.raises(ArgumentTypeError, match="check is 1"):
        RaggedMmap.from_generator(tmp_path / "new", iter(LARGE), 1, check=1)
    assert not (tmp_path / "new").exists()
    with pytest.raises(TypeError):
        open_map(tmp_path / "map", None, "r", True, True)
    with pytest.raises(MapNotFoundError):
        open_map(tmp_path / "nowhere", check=True)
    assert len(RaggedMmap(tmp_path / "nowhere", check=True)) == 0
    with pytest.raises(MapKindError):
        DenseMmap(tmp_path / "map", check=True)
    with pytest.raises(MapKindError):
        np_open_existing(tmp_path / "map", check=True)
    assert compared == []


def test_a_map_that_is_made_can_be_read_back_at_once(tmp_path: Path, compared: list) -> None:
    m = RaggedMmap.from_generator(tmp_path / "map", iter(LARGE), 3, check=True)
    assert compared == ["map"]
    assert same(listed(m), LARGE)


# How often.


@pytest.mark.parametrize("way", WAYS)
def test_once_in_a_process(tmp_path: Path, way: str, compared: list) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(70_000).reshape(7, -1))
    for _ in range(3):
        WAYS[way](tmp_path / "map")
        open_map(tmp_path / "map", check=True)
    assert compared == ["map"]


def test_nothing_is_compared_unless_asked_for_nor_while_reading(tmp_path: Path, compared: list) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE)
    open_map(tmp_path / "map")
    list(Batches(m, 2))
    assert compared == []
    m = open_map(tmp_path / "map", check=True)
    for batch in Batches(m, 2, check=True):
        assert len(batch)
    assert same(m[:], LARGE)
    m.take([0, 1])
    assert compared == ["map"]


def test_another_generation_another_map_another_folder(tmp_path: Path, compared: list) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE)
    open_map(tmp_path / "map", check=True)
    m.append([1])
    open_map(tmp_path / "map", check=True)
    m.metadata = {"a": 1}
    open_map(tmp_path / "map", check=True)
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    open_map(tmp_path / "map", check=True)
    backup(tmp_path / "map", tmp_path / "copy")
    open_map(tmp_path / "copy", check=True)
    (tmp_path / "copy").rename(tmp_path / "moved")
    open_map(tmp_path / "moved", check=True)  # the same folder
    assert compared == ["map"] * 4 + ["copy"]


def test_what_is_known_is_bounded(tmp_path: Path, compared: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "_MOST", 3)
    for name in "abcd":
        RaggedMmap.from_lists(tmp_path / name, [[1]])
        open_map(tmp_path / name, check=True)
    assert len(verified._known) == 3
    for name in "dcba":
        open_map(tmp_path / name, check=True)
    assert "".join(compared) == "abcda"
    for name in "cacbcdc":  # what is asked for stays
        open_map(tmp_path / name, check=True)
    assert "".join(compared) == "abcdad"


def test_each_of_many_maps_is_compared_once(tmp_path: Path, compared: list) -> None:
    for number in range(300):
        RaggedMmap.from_lists(tmp_path / str(number), [[number]], sync=False)
    fields = {str(number): tmp_path / str(number) for number in range(300)}
    for _ in range(2):
        Batches(fields, 1, check=True)
    assert len(compared) == 300


# What is put in the place of what was compared.


def damaged_copy(folder: Path) -> None:
    """Of the whole folder, into the same one: id, generation and often the inodes are the same."""
    backup(folder, folder.with_name("copy"))
    copied_back(folder)


def copied_back(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("copy"), folder)
    flip(folder / "data.npy", 5000)


def renamed_in(folder: Path) -> None:
    shutil.copy2(folder / "data.npy", folder / "other")
    flip(folder / "other", 5000)
    (folder / "other").replace(folder / "data.npy")


def written_anew(folder: Path) -> None:
    """By a program that removes the file first: the new one often has its inode."""
    raw = bytearray((folder / "data.npy").read_bytes())
    raw[5000] ^= 1
    (folder / "data.npy").unlink()
    (folder / "data.npy").write_bytes(raw)


def other_checksums(folder: Path) -> None:
    raw = (folder / "data.crc").read_bytes()
    (folder / "data.crc").unlink()
    (folder / "data.crc").write_bytes(bytes([raw[0] ^ 1]) + raw[1:])


def files_swapped(folder: Path) -> None:
    """The folder stays, and each file in it is that of a copy."""
    backup(folder, folder.with_name("copy"))
    flip(folder.with_name("copy") / "data.npy", 5000)
    for path in folder.with_name("copy").iterdir():
        path.replace(folder / path.name)


@pytest.mark.parametrize("replace", [damaged_copy, renamed_in, written_anew, other_checksums, files_swapped])
def test_a_damaged_copy_in_the_same_place_is_compared(tmp_path: Path, replace: Callable) -> None:
    folder = tmp_path / "map"
    DenseMmap.from_ndarray(folder, np.arange(300_000).reshape(3, -1))
    open_map(folder, check=True)
    np_open_existing(folder, check=True)
    replace(folder)
    for act in (open_map, np_open_existing, lambda f, check: Batches(f, 1, check=check)):
        with pytest.raises(MapCorruptError, match="is damaged"):
            act(folder, check=True)
    assert len(open_map(folder)) == 3


def test_a_damaged_copy_with_the_same_inodes_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As file systems that use a number again at once have it, whatever this one does."""

    class Renumbered:
        def __init__(self, status: os.stat_result) -> None:
            self.st_dev, self.st_ino = 1, 2
            self.st_mtime_ns, self.st_ctime_ns = status.st_mtime_ns, status.st_ctime_ns

    class Os:
        @staticmethod
        def stat(path: str) -> Renumbered:
            return Renumbered(os.stat(path))

    folder = tmp_path / "map"
    DenseMmap.from_ndarray(folder, np.arange(300_000).reshape(3, -1))
    monkeypatch.setattr(verified, "os", Os)
    open_map(folder, check=True)
    damaged_copy(folder)
    with pytest.raises(MapCorruptError, match="is damaged"):
        open_map(folder, check=True)


def test_a_file_that_is_replaced_while_it_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(300_000).reshape(3, -1))
    replaced: list[str] = []

    def then_replaced(folder: str, *others: object) -> Iterator:
        yield from check.check_state(folder, *others)
        if not replaced:
            replaced.append(folder)
            renamed_in(Path(folder))

    monkeypatch.setattr(verified, "check_state", then_replaced)
    with pytest.raises(MapCorruptError, match="is damaged"):
        open_map(tmp_path / "map", check=True)


def test_bytes_that_are_being_added_do_not_make_it_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: list
) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(300_000).reshape(3, -1))

    def then_added_to(folder: str, *others: object) -> Iterator:
        compared.append("once")
        yield from check.check_state(folder, *others)
        with open(f"{folder}/data.npy", "ab") as file:
            file.write(b"not committed")

    monkeypatch.setattr(verified, "check_state", then_added_to)
    open_map(tmp_path / "map", check=True)
    assert compared == ["once"]


def test_refresh_checks_the_new_state(tmp_path: Path, compared: list) -> None:
    writer = RaggedMmap.from_lists(tmp_path / "map", LARGE)
    m, plain = open_map(tmp_path / "map", check=True), open_map(tmp_path / "map")
    view = select(m, range(2))
    m.refresh()
    assert compared == ["map"]
    writer.append([1, 2, 3])
    flip(tmp_path / "map" / "data.npy", 5000)
    plain.refresh()
    for one in (m, view):
        with pytest.raises(MapCorruptError, match="damaged in 1 of"):
            one.refresh()
    assert len(m) == len(LARGE)  # as it was
    assert len(view) == 2
    flip(tmp_path / "map" / "data.npy", 5000)
    m.refresh()
    view.refresh()
    assert len(m) == len(LARGE) + 1
    assert m[-1].tolist() == [1, 2, 3]


def test_what_the_handle_writes_itself_is_not_read_back(tmp_path: Path, compared: list) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    m = open_map(tmp_path / "map", mode="r+", check=True)
    m.append([1])
    m[0] = m[0] + 1
    m.flush()
    assert len(m) == len(LARGE) + 1
    assert compared == ["map"]
    m.refresh()
    assert compared == ["map", "map"]


def test_each_epoch_of_a_map_that_was_refreshed_meanwhile(tmp_path: Path, compared: list) -> None:
    """The handle is the user's, and may see another state by then: one with other values, say."""
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE)
    batches = Batches(m, 2, check=True)
    list(batches)
    with open_map(tmp_path / "map", mode="r+") as writer:
        writer[0] = writer[0] + 1
    m.refresh()
    list(batches)
    list(batches)
    batches.batch(7, 0)
    assert compared == ["map", "map"]
    with open_map(tmp_path / "map", mode="r+") as writer:
        writer[0] = writer[0] + 1
    flip(tmp_path / "map" / "data.npy", 4 * BLOCK)
    m.refresh()
    with pytest.raises(MapCorruptError, match="is damaged"):
        list(batches)
    with pytest.raises(MapCorruptError, match="is damaged"):
        batches.batch(8, 0)


def test_an_open_map_whose_state_cannot_be_checked_any_more(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE)
    other = RaggedMmap(tmp_path / "map")
    RaggedMmap(tmp_path / "map").append([1])
    Batches(m, 2, check=True)  # its bytes are there still, before the new ones
    RaggedMmap.from_lists(tmp_path / "map", LARGE[:2])
    with pytest.raises(MapChangedError, match="its old state cannot be checked any more: refresh"):
        Batches(other, 2, check=True)


def test_an_open_map_is_compared_once_while_others_append(tmp_path: Path, compared: list) -> None:
    writer = RaggedMmap.from_lists(tmp_path / "map", LARGE)
    m, unchecked = open_map(tmp_path / "map", check=True), open_map(tmp_path / "map")
    for _ in range(3):
        list(Batches(m, 2, check=True))
        list(Batches(unchecked, 2, check=True))
        writer.append([1])
    assert compared == ["map"]
    assert len(m) == len(LARGE)


# Memmaps.


def test_memmaps(tmp_path: Path, compared: list) -> None:
    np_from_ndarray(tmp_path / "map", np.arange(300_000).reshape(3, -1))
    for mode in ("r", "c"):
        assert len(np_open_existing(tmp_path / "map", mode=mode, check=True)) == 3
    memmap = np_open_existing(tmp_path / "map")
    Batches(memmap, 2, check=True)
    Batches({"x": memmap, "y": np.arange(3)}, 2, check=True)
    assert compared == ["map"]
    flip(tmp_path / "map" / "data.npy", 5000)
    verified._known = {}
    for act in (
        lambda: np_open_existing(tmp_path / "map", check=True),
        lambda: np_open_existing(tmp_path / "map", mode="r+", check=True),
        lambda: Batches(memmap, 2, check=True),
        lambda: Batches(memmap[:2], 2, check=True),
    ):
        with pytest.raises(MapCorruptError, match="damaged in 1 of 3 blocks"):
            act()
    assert plain_reader.fields(tmp_path / "map")["files"]["data"]["checked"]  # was not marked before that
    flip(tmp_path / "map" / "data.npy", 5000)
    np_open_existing(tmp_path / "map", mode="r+", check=True)
    with pytest.raises(MapCorruptError, match="cannot be vouched for"):
        np_open_existing(tmp_path / "map", check=True)
    shutil.rmtree(tmp_path / "map")
    Batches(memmap.copy(), 2, check=True)  # is in memory
    Batches(np.memmap(tmp_path / "file", np.uint8, "w+", shape=(5,)), 2, check=True)  # is of no map


# Views, windows.


def test_views_of_views(tmp_path: Path, compared: list) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE)
    view = windows(select(m, [0, 3]), 100)
    Batches(view, 2, check=True)
    assert compared == ["map"]
    flip(tmp_path / "map" / "data.npy", 5000)
    with pytest.raises(MapCorruptError, match="is damaged"):
        Batches(windows(select(open_map(tmp_path / "map"), [0, 3]), 100), 2, check=True)


# Other processes.


def compare_again(queue: multiprocessing.Queue, source: object) -> None:
    """In a spawned worker: how often were all bytes compared?"""
    found: list[str] = []

    def note(folder: str, *others: object) -> Iterator:
        found.append(os.path.basename(folder))
        return check.check_state(folder, *others)

    verified.check_state = note
    try:
        one = pickle.loads(source)
        length = len(list(one)) if isinstance(one, Batches) else len(one)
        queue.put((found, length, getattr(one, "_is_checked", None)))
    except Exception as error:
        queue.put((found, type(error).__name__, str(error)))


def in_a_spawned_process(source: object) -> tuple:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=compare_again, args=(queue, pickle.dumps(source)))
    process.start()
    found = queue.get(timeout=60)
    process.join()
    return found


def test_a_worker_believes_its_parent(tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(700_000).reshape(7, -1))
    m = open_map(tmp_path / "map", check=True)
    assert len(pickle.dumps(m)) < 700
    assert in_a_spawned_process(m) == ([], 7, True)
    assert in_a_spawned_process(select(m, [0, 1]))[:2] == ([], 2)
    assert in_a_spawned_process(Batches(open_map(tmp_path / "map"), 2, check=True)) == ([], 4, True)
    assert in_a_spawned_process(np_open_existing(tmp_path / "map", check=True))[:2] == ([], 7)
    assert in_child(lambda: believed(m)) == 0


def believed(m: DenseMmap) -> None:
    def never(*arguments: object) -> Iterator:
        raise AssertionError(arguments)

    verified.check_state = never
    m.refresh()
    open_map(m.out_dir, check=True)


def test_a_worker_compares_what_its_parent_has_not(tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(700_000).reshape(7, -1))
    m = open_map(tmp_path / "map", check=True)
    memmap = np_open_existing(tmp_path / "map", check=True)
    batches = Batches(open_map(tmp_path / "map"), 2, check=True)
    DenseMmap(tmp_path / "map").append(np.arange(100_000))
    assert in_a_spawned_process(m) == (["map"], 7, True)
    assert in_a_spawned_process(batches) == (["map"], 4, True)
    flip(tmp_path / "map" / "data.npy", 5000)
    for one in (m, memmap, batches):
        found, error, message = in_a_spawned_process(one)
        assert (found, error) == (["map"], "MapCorruptError")
        assert "damaged in 1 of" in message


def test_a_pickle_of_another_machine_or_boot_is_not_believed(tmp_path: Path, compared: list) -> None:
    RaggedMmap.from_lists(tmp_path / "map", LARGE)
    raw = pickle.dumps(open_map(tmp_path / "map", check=True))
    boot, key = verified.ticket(str(tmp_path / "map"), open_map(tmp_path / "map")._snapshot.manifest)
    verified._known = {}
    verified.adopt(("another boot", key))
    verified.adopt(None)
    assert verified._known == {}
    pickle.loads(raw)
    assert (boot, compared) == (verified.boot_id(), ["map"])
    backup(tmp_path / "map", tmp_path / "copy")
    raw = raw.replace(b"/map", b"/cpy")
    (tmp_path / "copy").rename(tmp_path / "cpy")
    pickle.loads(raw)  # the same map, at the same generation, from another disk
    assert compared == ["map", "cpy"]


def test_a_pickle_of_a_handle_that_was_not_checked_is_what_it_was(tmp_path: Path, compared: list) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", LARGE)
    assert not pickle.loads(pickle.dumps(m))._is_checked
    assert compared == []
    RaggedMmap.from_lists(tmp_path / "other", LARGE)
    replaced = pickle.dumps(open_map(tmp_path / "other", check=True))
    RaggedMmap.from_lists(tmp_path / "other", LARGE)
    with pytest.raises(MapChangedError):
        pickle.loads(replaced)
    assert compared == ["other"]  # not the one in its place


# Beside writers.


@pytest.mark.parametrize("write", [assign_for_ever, extend_for_ever, replace_for_ever])
def test_a_process_that_writes_meanwhile(tmp_path: Path, write: Callable, record_property: Callable) -> None:
    RaggedMmap.from_lists(tmp_path / "map", [uniform(k) for k in range(20)])
    outcomes = dict.fromkeys(["right", "unchecked", "changed"], 0)
    with Children() as children:
        pid = children.start(lambda: quietly(write, tmp_path / "map"))
        deadline = time.monotonic() + 60
        while sum(outcomes.values()) < 60 and time.monotonic() < deadline:
            try:
                m = open_map(tmp_path / "map", check=True)
            except MapChangedError:
                outcomes["changed"] += 1
            except MapCorruptError as error:
                assert "is damaged" not in str(error)  # noqa: PT017 - others are fine
                outcomes["unchecked"] += 1
            else:
                outcomes["right"] += 1
                if write is not assign_for_ever:  # else the values may be others by now
                    assert all((sample == sample[0]).all() for sample in m)
        assert children.kill(pid) == KILLED
    record_property("outcomes", outcomes)
    assert outcomes["right"] > 0


def test_many_threads(tmp_path: Path) -> None:
    for number in range(4):
        RaggedMmap.from_lists(tmp_path / str(number), LARGE[:2])
    errors: list[Exception] = []

    def open_all() -> None:
        try:
            for _ in range(20):
                for number in range(4):
                    open_map(tmp_path / str(number), check=True)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_all) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(verified._known) <= 4
