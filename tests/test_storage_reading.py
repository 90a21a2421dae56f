"""Reading: it writes nothing, costs the same for any number of samples, and goes on while others write."""

import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import mmap_ninja.dense
from faults import recorded, tree
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, np_open_existing, open_existing, open_map
from mmap_ninja._storage import disk
from mmap_ninja._storage.index import PackedIndex
from plain_reader import check, fields, forge, same

TEXTS = ["one", "", "zwölf"]
MAKE: dict[str, Callable[[Path], object]] = {
    "ragged": lambda path: RaggedMmap.from_lists(path, [np.arange(n) for n in (3, 0, 5)]),
    "mixed": lambda path: RaggedMmap.from_lists(path, [np.arange(4).reshape(2, 2), np.arange(3), np.array(7)]),
    "dense": lambda path: DenseMmap.from_ndarray(path, np.arange(6).reshape(3, 2)),
    "bytes": lambda path: BytesMmap.from_bytes(path, [text.encode() for text in TEXTS]),
    "strings": lambda path: StringsMmap.from_strings(path, TEXTS),
    "zstd": lambda path: StringsMmap.from_strings(path, TEXTS, zstd_level=3),
}

READ = r"""
import os, pickle, sys
events = []
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os." + name for name in "mkdir remove rename rmdir truncate chmod utime link symlink".split()}

def spy(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & WRITING:
        events.append((event, args[0], args[2]))
    if event in CHANGES or event.startswith("fcntl."):
        events.append((event, args))

import numpy as np
import mmap_ninja
from mmap_ninja import open_existing, open_map

sys.addaudithook(spy)
for name in sorted(os.listdir("maps")):
    path = os.path.join("maps", name)
    for mode in ("r", "r+"):
        m = open_map(path, mode=mode)
        m[0], m[-1], m[:], m[[1, 0]], m[np.arange(len(m)) > 0], list(m), m[1] in m
        m.lengths, m.shapes, m.starts, m.ends, m.dtype, m.nbytes, m.metadata, repr(m)
        m.take([0, 1]), m.will_need([0, 1]), m.refresh(), m.flush()
        if len(m[0]) > 1:
            m.window(0, 0, 2)
        again = pickle.loads(pickle.dumps(m))
        again[0]
        again.close()
        m.close()
    open_existing(path)[0]
assert not events, events
assert sys.argv[1:] == [] or os.open(sys.argv[1], os.O_RDWR) and events  # else nothing would ever be seen
print("done")
"""


def test_no_file_is_opened_to_write(tmp_path: Path) -> None:
    for name, make in MAKE.items():
        make(tmp_path / "maps" / name)
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    command = [sys.executable, "-W", "error", "-c", READ, "file"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", MAKE)
def test_no_call_that_changes_the_disk(tmp_path: Path, name: str) -> None:
    MAKE[name](tmp_path / "map")

    def read() -> None:
        m = open_map(tmp_path / "map", mode="r+")
        list(m), m[:], m.lengths, m.refresh(), pickle.loads(pickle.dumps(m))[0]
        m.close()
        open_existing(tmp_path / "map")

    assert recorded(read).calls == []
    assert len(recorded(lambda: open_map(tmp_path / "map").append(open_map(tmp_path / "map")[0])).calls) > 5


def test_opening_what_is_not_there_makes_nothing(tmp_path: Path) -> None:
    for cls in (RaggedMmap, DenseMmap, BytesMmap, StringsMmap):
        m = cls(tmp_path / "none")
        assert (len(m), list(m)) == (0, [])
        m.refresh()
        m.flush()
        pickle.loads(pickle.dumps(m)).close()
        m.close()
    assert list(tmp_path.iterdir()) == []


MILLION = 1_000_000


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, Path]]:
    """Maps of few and of many samples."""
    folder = tmp_path_factory.mktemp("sized")
    found: dict[str, dict[int, Path]] = {"dense": {}, "ragged": {}, "strings": {}}
    for count in (1000, MILLION):
        for kind, paths in found.items():
            paths[count] = folder / f"{kind}{count}"
        DenseMmap.from_ndarray(found["dense"][count], np.zeros((count, 2), np.uint8), sync=False)
        RaggedMmap.from_lists(found["ragged"][count], [np.zeros(1, np.uint8)] * count, sync=False)
        StringsMmap.from_strings(found["strings"][count], ["ab"] * count, sync=False)
    return found


def peak_of(act: Callable[[], object]) -> int:
    """The most memory that Python and NumPy have held at once for `act`, in bytes."""
    tracemalloc.start()
    try:
        kept = act()
        assert kept is not None
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The bytes read through `read_small`, and the index rows asked for in bulk."""
    seen = {"bytes": 0, "rows": 0}
    read, table = disk.read_small, PackedIndex.table

    def read_small(path: str, cap: int) -> bytes:
        raw = read(path, cap)
        seen["bytes"] += len(raw)
        return raw

    def rows(self: PackedIndex, first: int, stop: int) -> object:
        seen["rows"] += stop - first
        return table(self, first, stop)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "read_small", read_small)
        patch.setattr(PackedIndex, "table", rows)
        yield seen


@pytest.mark.parametrize("kind", ["dense", "ragged", "strings"])
def test_opening_costs_the_same_for_any_number_of_samples(
    sized: dict[str, dict[int, Path]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(path: Path) -> object:
        m = open_map(path)
        return m, m[0], m[-1], m[[5, 7]], m[3:9], len(m), repr(m)

    use(sized[kind][1000])  # what is made once
    few, many = (peak_of(lambda count=count: use(sized[kind][count])) for count in (1000, MILLION))
    assert abs(many - few) < 2000
    assert many < 50_000
    with counted(monkeypatch) as seen:
        use(sized[kind][MILLION])
    assert seen["bytes"] < 2000
    assert seen["rows"] == 0


@pytest.mark.parametrize("kind", ["dense", "ragged", "strings"])
def test_extending_costs_the_same_for_any_number_of_samples(
    sized: dict[str, dict[int, Path]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(path: Path) -> object:
        m = open_map(path)
        m.extend([m[0], m[1]], sync=False)
        return m

    use(sized[kind][1000])
    few, many = (peak_of(lambda count=count: use(sized[kind][count])) for count in (1000, MILLION))
    assert abs(many - few) < 10_000
    with counted(monkeypatch) as seen:
        calls = recorded(lambda: use(sized[kind][MILLION])).of("write_at")
    assert seen["rows"] == 0
    assert seen["bytes"] < 4000
    assert sum(call.size for call in calls) < 2000


def test_a_pickle_is_small_for_any_number_of_samples(sized: dict[str, dict[int, Path]]) -> None:
    for paths in sized.values():
        few, many = (len(pickle.dumps(open_map(paths[count]))) for count in (1000, MILLION))
        assert many - few < 20
        assert many < 2048


def sample(i: int) -> np.ndarray:
    return np.full(i % 5 + 1, i)


def test_threads_read_while_the_same_object_extends(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [sample(i) for i in range(10)])
    dense = DenseMmap.from_ndarray(tmp_path / "dense", np.arange(10))
    stop, wrong, reads = threading.Event(), [], [0] * 8

    def read(number: int) -> None:
        rng = np.random.default_rng(number)
        while not stop.is_set():
            i, last = int(rng.integers(len(m))), len(dense) - 1
            try:
                assert same([m[i], *m[[i, -1]][:1]], [sample(i)] * 2)
                assert dense[last] == dense[[last]][0] == dense.take([last, 0])[0] == last
                assert len(dense[: last + 1]) == last + 1
            except Exception as error:
                wrong.append(error)
            reads[number] += 1

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for _ in range(100):
            m.extend([sample(len(m) + k) for k in range(3)], sync=False)
            dense.append(len(dense), sync=False)
            m.refresh()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert wrong == []
    assert min(reads) > 0
    assert len(m) == 310
    check(tmp_path / "map")


def test_a_dense_map_never_looks_new_and_reads_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a handle moves to a longer state, whoever sees the new length sees the new samples too."""
    m = DenseMmap.from_ndarray(tmp_path / "map", np.arange(10))
    real, seen = mmap_ninja.dense.values, []

    def values(snapshot: object) -> np.ndarray:
        last = len(m) - 1  # what another thread could do just now
        seen.append((last, int(m[last]), int(m[[last]][0]), int(m.take([last])[0]), int(m[last:][0])))
        return real(snapshot)

    monkeypatch.setattr(mmap_ninja.dense, "values", values)
    m.append(10)
    m.refresh()
    assert seen
    assert all(set(row) == {row[0]} for row in seen), seen


def sparse(folder: Path, dtype: str, starts: list[int], size: int) -> RaggedMmap:
    """A map of four values a sample, its data file sparse and of `size` elements: only a test may do so."""
    RaggedMmap.from_lists(folder, [np.zeros(4, dtype)] * len(starts))
    files, itemsize = fields(folder)["files"], np.dtype(dtype).itemsize
    with open(folder / "data.npy", "r+b") as file:
        file.truncate(128 + size * itemsize)
        for number, start in enumerate(starts):
            file.seek(128 + start * itemsize)
            file.write((np.arange(4) + number).astype(dtype).tobytes())
    with open(folder / "index.npy", "r+b") as file:
        file.seek(128)
        file.write(np.array([(start, 4) for start in starts], "<i8").tobytes())
    forge(folder, files={**files, "data": {**files["data"], "size": size * itemsize}})
    return RaggedMmap(folder)


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
@pytest.mark.parametrize("past", [2**31, 2**32])
def test_more_elements_than_32_bits_count(tmp_path: Path, dtype: str, past: int) -> None:
    starts = [0, past - 4, past - 2 + 4, past + 2**20]
    size = past + 2**20 + 4
    m = sparse(tmp_path / "map", dtype, starts, size)
    for number in range(4):
        assert m[number].tolist() == [number, number + 1, number + 2, number + 3]
    assert m.ends.tolist() == [start + 4 for start in starts]
    assert m.window(3, 1, 2).tolist() == [4, 5]
    m.will_need([0, 3])
    calls = recorded(lambda: m.append(np.array([7, 8, 9], dtype))).of("write_at")
    offsets = [call.offset for call in calls if call.name == "data.npy"]
    assert offsets == [128 + size * np.dtype(dtype).itemsize, 0]  # the values, and the header
    again = open_map(tmp_path / "map")
    assert again[4].tolist() == [7, 8, 9]
    assert again.starts[4] == size
    assert again.memmap.shape == (size + 3,)
    assert again.memmap[-3:].tolist() == [7, 8, 9]
    assert os.stat(tmp_path / "map/data.npy").st_blocks * 512 < 2**20  # it was sparse, so that this is quick


def test_a_dense_map_of_more_elements_than_32_bits_count(tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.zeros((1, 4), np.uint8))
    files, count = fields(tmp_path / "map")["files"], 2**30 + 5
    with open(tmp_path / "map/data.npy", "r+b") as file:
        file.truncate(128 + 4 * count)
        file.seek(128 + 4 * (count - 1))
        file.write(b"\1\2\3\4")
    forge(tmp_path / "map", length=count, files={"data": {**files["data"], "size": 4 * count}})
    m = DenseMmap(tmp_path / "map")
    assert m[-1].tolist() == m[count - 1].tolist() == m.take([count - 1])[0].tolist() == [1, 2, 3, 4]
    m.append(np.array([5, 6, 7, 8], np.uint8))
    assert open_map(tmp_path / "map")[count - 1 :].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert np_open_existing(tmp_path / "map").shape == (count + 1, 4)
    assert np.load(tmp_path / "map/data.npy", mmap_mode="r")[-1].tolist() == [5, 6, 7, 8]
