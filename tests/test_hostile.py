"""A hostile folder gives right data or a typed error: no signal, no hang, nothing executed, no memory for nothing."""

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import fuzz
import mmap_ninja
from changes import made_by_0_9, unpack
from faults import exit_code, in_child, start_child
from fuzz import Ears, Exercise, Failure, Seed
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, open_map, select
from mmap_ninja.errors import MapCorruptError, MmapNinjaError, SalvageWarning
from plain_reader import fields, forge

MUTANTS = 20_000
LONG = 1_000_000
PARTS = 40  # of the long run, for all cores
AT_ONCE = 500  # mutants in one child
FOUND = Path(__file__).parent / "hostile"  # folders that once made something else of it


def run(all_seeds: list[Seed], numbers: range, work: Path) -> list[Failure]:
    """Every failure of these mutants, those that end their child among them; it says itself which one it is at."""
    found: list[Failure] = []
    at = mmap.mmap(-1, 8)
    start, log = numbers.start, work / "failures"
    while start < numbers.stop:
        part = range(start, min(start + AT_ONCE, numbers.stop))

        def child(part: range = part) -> None:
            with open(log, "w") as out:
                began = lambda now: at.__setitem__(slice(0, 8), now.to_bytes(8, "little"))
                for failure in fuzz.try_mutants(all_seeds, part, work, began):
                    out.write(json.dumps(failure) + "\n")
                    out.flush()

        code = exit_code(start_child(child))
        found += [Failure(*json.loads(line)) for line in log.read_text().splitlines()]
        start = part.stop
        if code:
            number = int.from_bytes(at[:8], "little")
            made = fuzz.mutant(all_seeds, number)
            how = "Hang" if code == -signal.SIGALRM else f"Ended with {code}"
            found.append(Failure(number, made.seed.name, made.what, "?", how, ""))
            start = number + 1
    return found


def report(found: list[Failure]) -> str:
    """Each way to fail once, with the first mutant that shows it."""
    counts = Counter(failure.key for failure in found)
    first = {failure.key: failure for failure in reversed(found)}
    return "\n".join(f"{counts[key]} x {failure}" for key, failure in sorted(first.items()))


@pytest.fixture(scope="session")
def all_seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Seed]:
    return fuzz.seeds(tmp_path_factory.mktemp("seeds"))


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: a million mutants are too much for a disk."""
    if not os.path.isdir("/dev/shm"):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_mutants(all_seeds: list[Seed], fast: Path) -> None:
    found = run(all_seeds, range(MUTANTS), fast)
    assert not found, report(found)


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_many_mutants(all_seeds: list[Seed], fast: Path, part: int) -> None:
    size = (LONG - MUTANTS) // PARTS
    found = run(all_seeds, range(MUTANTS + part * size, MUTANTS + (part + 1) * size), fast)
    assert not found, report(found)


# The runs above can fail.


def broken(monkeypatch: pytest.MonkeyPatch, how: Callable[[], object]) -> None:
    """Let `repr` of a map do something that a reader must not do."""
    monkeypatch.setattr(mmap_ninja.base.Mmap, "__repr__", lambda m: str(how()))


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), f"Ended with {-signal.SIGSEGV}"),
        (lambda: signal.pause(), "Hang"),
        (lambda: {}["key"], "KeyError"),
        (lambda: bytes(fuzz.ALLOWED + 1), "MemoryError"),
        (lambda: open("/etc/hostname").close(), "Heard open: open /etc/hostname"),
        (lambda: compile("1", "here", "eval"), "Heard compile"),
        (lambda: __import__("this"), "Heard import"),
        (lambda: warnings.warn("old", DeprecationWarning, stacklevel=1), "DeprecationWarning"),
    ],
    ids=["signal", "hang", "exception", "memory", "open", "compile", "import", "warning"],
)
def test_the_run_sees(
    how: Callable[[], object],
    error: str,
    all_seeds: list[Seed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken(monkeypatch, how)
    monkeypatch.setattr(fuzz, "SLOW", 0.5)
    found = run(all_seeds, range(5), tmp_path)
    assert any(failure.error.startswith(error) for failure in found), report(found)


def test_a_mutant_can_be_made_again(all_seeds: list[Seed]) -> None:
    made, again = fuzz.mutant(all_seeds, 12345), fuzz.mutant(all_seeds, 12345)
    assert made == again
    assert made.changes
    assert made != fuzz.mutant(all_seeds, 12346)


# Folders that were found.


def seed_of(folder: Path) -> Seed:
    """What is known of a folder that was found: the rest is in its files."""
    files = fuzz.files_of(folder)
    kinds = {"numpy": "dense", "string": "strings", "ragged": "ragged"}
    kind = kinds[files["type.ninja"].decode()] if "type.ninja" in files else fields(folder)["kind"]
    cls = {cls.kind: cls for cls in (DenseMmap, RaggedMmap, BytesMmap, StringsMmap)}[kind]
    return Seed(folder.name, cls, files, [])


def exercised(name: str, work: Path, way: str | None) -> list[Failure]:
    """What must not happen when this folder is read, or written to."""
    seed, log = seed_of(FOUND / name), work / "failures"

    def act() -> None:
        ears = Ears()
        fuzz.quiet_disk()
        fuzz.restrained()
        signal.alarm(60)
        unpack(seed.files, work / "map")
        exercise = Exercise(work / "map", seed, 0, [way or "read"], ears)
        with fuzz.strict_warnings():
            exercise.read() if way is None else exercise.write(way)
        log.write_text("".join(json.dumps(failure) + "\n" for failure in exercise.failures))

    code = in_child(act)
    if code:
        return [Failure(0, name, [way or "read"], "?", f"Ended with {code}", "")]
    return [Failure(*json.loads(line)) for line in log.read_text().splitlines()]


NAMES = sorted(path.name for path in FOUND.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_was_found(name: str, tmp_path: Path) -> None:
    found = exercised(name, tmp_path, None)
    for way in fuzz.WAYS:
        (tmp_path / way).mkdir()
        found += exercised(name, tmp_path / way, way)
    assert not found, report(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_was_found_is_not_refused_for_what_it_lacks(name: str) -> None:
    """A new key of the format would make all of them harmless: give it to them."""
    try:
        open_map(FOUND / name)
    except MmapNinjaError as error:
        said = str(error)
    else:
        said = ""
    assert "is None, expected" not in said


# Nothing is imported.

IMPORTS = """
import json, sys
import numpy as np
import mmap_ninja, mmap_ninja.numpy
from mmap_ninja._storage.dtypes import parse_dtype
if sys.argv[2] == "absent":
    sys.modules["ml_dtypes"] = None
heard = []
sys.addaudithook(lambda event, args: heard.append(str(args[0])) if event in ("import", "os.system") else None)
for described in json.load(open(sys.argv[1])):
    try:
        parse_dtype(described)
    except ValueError:
        pass
print(json.dumps(heard))
"""


@pytest.mark.parametrize("ml_dtypes", ["there", "absent"])
def test_a_dtype_imports_ml_dtypes_and_nothing_else(ml_dtypes: str, tmp_path: Path) -> None:
    """In a fresh interpreter, in which everything else would have to be imported first."""
    names = [
        "os.system",
        "this",
        "antigravity",
        "__main__",
        "zstandard",
        "tqdm",
        "joblib",
        "bfloat16",
        "float8_e4m3",
        "int4",
    ]
    described = [name for name in fuzz.DTYPES if type(name) is str]
    (tmp_path / "dtypes.json").write_text(json.dumps([*names, *described, [["a", "bfloat16"]], [["a", "this"]]]))
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, "dtypes.json", ml_dtypes], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    heard = {name.partition(".")[0] for name in json.loads(done.stdout)}
    pytest.importorskip("ml_dtypes")
    assert "ml_dtypes" in heard  # else nothing was heard at all
    allowed = (
        {"numpy", "typing", "__future__", "importlib"} if ml_dtypes == "there" else set()
    )  # what it imports itself
    assert heard - {"ml_dtypes"} <= allowed


# No amplification.

BIG = 1 << 33  # bytes that a sparse file claims to have


def limited(act: Callable[[], object], room: int = fuzz.ALLOWED) -> None:
    """Do it in a child process that may take no more than so many bytes of memory."""

    def child() -> None:
        fuzz.restrained(room)
        signal.alarm(60)
        with fuzz.strict_warnings():
            act()

    assert in_child(child) == 0


def refused(folder: Path, match: str, act: Callable[[Path], object] = open_map) -> None:
    def opening() -> None:
        with pytest.raises(MapCorruptError, match=match):
            act(folder)

    limited(opening)


def grow(path: Path, size: int = BIG) -> None:
    """Make a file large that takes no room on the disk."""
    with open(path, "r+b") as opened:
        opened.truncate(size)


@pytest.mark.parametrize("layout", ["dense", "mixed", "zstd dictionary"])
def test_small_files_of_format_1_that_are_large_are_not_read(layout: str, tmp_path: Path) -> None:
    files = made_by_0_9()[layout]
    unpack(files, tmp_path / "map")
    unread = ("/type.ninja", "shapes/shapes_are_flat.ninja")
    for name in sorted(files):
        if name.endswith(("data.ninja", *unread)) or name.startswith("shapes/shapes/"):
            continue
        grow(tmp_path / "map" / name)
        refused(tmp_path / "map", rf"{name} has {BIG} bytes")
        (tmp_path / "map" / name).write_bytes(files[name])
    limited(lambda: open_map(tmp_path / "map")[:])


def test_a_build_whose_manifest_is_too_large_is_not_read(tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(3))
    (tmp_path / "map/manifest.json").rename(tmp_path / "map/building.json")
    grow(tmp_path / "map/building.json")
    refused(tmp_path / "map", r"a build was interrupted, and building\.json has not survived it")


def test_a_dictionary_that_is_large_is_not_read(tmp_path: Path) -> None:
    unpack(made_by_0_9()["zstd dictionary"], tmp_path / "map")
    mmap_ninja.upgrade(tmp_path / "map")
    grow(tmp_path / "map/zstd_dict.ninja")
    found = fields(tmp_path / "map")["files"]
    forge(tmp_path / "map", files={**found, "dictionary": {**found["dictionary"], "size": BIG}})
    refused(tmp_path / "map", "dictionary|zstd_dict")


def test_data_that_is_large_is_only_mapped(tmp_path: Path) -> None:
    """8 GiB of zeros, which take no room on the disk, and none in memory until they are read."""
    DenseMmap.from_ndarray(tmp_path / "map", np.zeros((2, 4), np.uint8))
    found = fields(tmp_path / "map")["files"]["data"]
    grow(tmp_path / "map/data.npy", BIG + found["offset"])
    forge(tmp_path / "map", length=BIG // 4, files={"data": {**found, "size": BIG}})

    def read() -> None:
        m = open_map(tmp_path / "map")
        assert len(m) == BIG // 4
        assert m[-1].tolist() == [0] * 4

    limited(read, room=BIG + fuzz.ALLOWED)


ASKED = ["starts", "ends", "lengths", "nbytes"]


def use_many_axes(folder: Path, name: str, rows: int, row_bytes: int) -> None:
    """What the index says of all samples takes a bounded room besides the result."""

    def ask() -> None:
        m = open_map(folder)
        assert len(m) == rows
        if name == "nbytes":
            assert select(m, slice(None)).nbytes == 0
        else:
            assert getattr(m, name).tolist()[-2:] == [0, 0]
        if name == "lengths":
            assert select(m, slice(None)).lengths.tolist()[-2:] == [0, 0]

    limited(ask, room=rows * row_bytes + 5 * 8 * rows + fuzz.ALLOWED)


@pytest.mark.parametrize("name", ASKED)
def test_an_index_of_many_axes(name: str, tmp_path: Path) -> None:
    """A sparse index of 300,000 samples of 63 axes, 150 MB: all zeros."""
    rows = 300_000
    RaggedMmap.from_lists(tmp_path / "map", [np.zeros((0,) * 63)] * 2)
    found = fields(tmp_path / "map")["files"]
    grow(tmp_path / "map/index.npy", 128 + rows * 64 * 8)
    forge(tmp_path / "map", length=rows, files={**found, "index": {**found["index"], "size": rows * 64 * 8}})
    use_many_axes(tmp_path / "map", name, rows, 64 * 8)


@pytest.mark.parametrize("name", ASKED)
def test_columns_of_many_axes(name: str, tmp_path: Path) -> None:
    """Format 1 says where the shape of each sample lies: all samples may have the same one, of 63 axes."""
    rows, folder = 300_000, tmp_path / "map"
    unpack(made_by_0_9()["mixed"], folder)
    columns = {"starts": 0, "ends": 0, "flattened_shapes": 0, "shapes/starts": 0, "shapes/ends": 63}
    columns |= {"shapes/flattened_shapes": 63, "shapes/shapes": 63}
    for column, value in columns.items():
        (folder / column / "data.ninja").write_bytes(np.full(rows, value, "<i8").tobytes())
        (folder / column / "shape.ninja").write_bytes(rows.to_bytes(8, "little"))
    (folder / "shapes/data.ninja").write_bytes(bytes(63 * 8))
    (folder / "shapes/shape.ninja").write_bytes((63).to_bytes(8, "little"))
    use_many_axes(folder, name, rows, 5 * 8)


@pytest.mark.parametrize("column", ["starts", "ends", "shapes/starts", "shapes/ends"])
def test_a_sparse_column_is_salvaged_in_parts(column: str, tmp_path: Path) -> None:
    """256 MiB of zeros, of which none has to be in memory."""
    size, folder = 1 << 28, tmp_path / "map"
    unpack(made_by_0_9()["mixed"], folder)
    grow(folder / column / "data.ninja", size)

    def salvage() -> None:
        with pytest.warns(SalvageWarning, match="there are gaps between samples"):
            mmap_ninja.upgrade(folder, salvage=True)

    limited(salvage, room=size + fuzz.ALLOWED)


@pytest.mark.parametrize("axes", [65, 1000, 100_000])
def test_too_many_axes(axes: int, tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(3))
    forge(tmp_path / "map", sample_shape=[1] * axes)
    refused(tmp_path / "map", r"manifest\.json")
    forge(tmp_path / "map", sample_shape=[], ndim=axes)
    refused(tmp_path / "map", r"manifest\.json.*ndim")


@pytest.mark.parametrize("count", [4097, 50_000])
@pytest.mark.parametrize("is_nested", [False, True])
def test_too_many_fields(count: int, is_nested: bool, tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.zeros(3, np.uint8))
    dtype = [[f"f{i}", "|u1"] for i in range(count)]
    if is_nested:
        dtype = [["a", dtype[: count // 2]], ["b", dtype[count // 2 :]]]
    found = fields(tmp_path / "map")["files"]["data"]
    forge(tmp_path / "map", dtype=dtype, files={"data": {**found, "size": 3 * count}})
    grow(tmp_path / "map/data.npy", found["offset"] + 3 * count)
    refused(tmp_path / "map", r"manifest\.json.*4096 fields")


def test_as_many_fields_as_there_may_be(tmp_path: Path) -> None:
    dtype = [(f"f{i}", "u1") for i in range(4096)]
    limited(lambda: DenseMmap.from_ndarray(tmp_path / "map", np.zeros(3, dtype)))
    limited(lambda: open_map(tmp_path / "map")[1])


def test_manifests_of_very_many_names(tmp_path: Path) -> None:
    """Refused, or opened and written to, in little memory and time."""
    many = [f"x{i}" for i in range(80_000)]
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(3))
    data = fields(tmp_path / "map")["files"]["data"]
    forge(tmp_path / "map", files={"data": data, **dict.fromkeys(many, 0)})
    refused(tmp_path / "map", r"manifest\.json")
    forge(tmp_path / "map", files={"data": data}, obsolete=many)

    def use() -> None:
        with open_map(tmp_path / "map") as m:
            m.append(3)
        assert open_map(tmp_path / "map")[:].tolist() == [0, 1, 2, 3]

    limited(use)


@pytest.mark.parametrize("inner", ["[]", "{}", '{"a":{}}', '"x"', "0"])
def test_the_largest_manifests(inner: str, tmp_path: Path) -> None:
    """A megabyte of the smallest JSON values, each of which is an object in memory."""
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(3))
    found = fields(tmp_path / "map")
    found["metadata"] = {"a": fuzz.Raw("[" + ",".join([inner] * (1_040_000 // (len(inner) + 1))) + "]")}
    raw = fuzz.sealed(found)
    assert 1_000_000 < len(raw) <= 1 << 20
    (tmp_path / "map/manifest.json").write_bytes(raw)
    limited(lambda: open_map(tmp_path / "map")[:])


# Bombs of zstd: a few bytes that become many.


def bomb(size: int) -> bytes:
    """A frame of zeros, 32 kB for a GiB of them."""
    zstandard = pytest.importorskip("zstandard")
    made = zstandard.ZstdCompressor().compressobj(size=size)
    part = bytes(1 << 20)
    return b"".join(made.compress(part) for _ in range(size >> 20)) + made.flush()


def put(folder: Path, frame: bytes, raw_size: int) -> None:
    """A bytes map of one frame, and what the index says of its size."""
    BytesMmap.from_bytes(folder, [b"x"], zstd_level=3)
    found = fields(folder)["files"]
    with open(folder / "data.npy", "r+b") as opened:
        opened.seek(found["data"]["offset"])
        opened.write(frame)
    with open(folder / "index.npy", "r+b") as opened:
        opened.seek(found["index"]["offset"])
        opened.write(np.array([0, len(frame), raw_size], "<i8").tobytes())
    forge(folder, files={**found, "data": {**found["data"], "size": len(frame)}})


GIB = 1 << 30
LYING = fuzz.FRAME + b"\xe0" + GIB.to_bytes(8, "little")  # and no block follows


@pytest.mark.parametrize(
    ("frame", "raw_size"),
    [(None, 1000), (None, -1), (None, 2**63 - 1), (LYING, GIB), (LYING, -1), (LYING, 10)],
    ids=["small", "unknown", "huge", "lying frame", "lying frame of unknown size", "lying frame of small size"],
)
def test_a_bomb_is_refused(frame: bytes | None, raw_size: int, tmp_path: Path) -> None:
    """The index has to say what the frame says, and the frame what so few bytes can hold; else nothing is taken."""
    put(tmp_path / "map", bomb(GIB) if frame is None else frame, raw_size)
    refused(tmp_path / "map", "sample 0", lambda folder: open_map(folder)[0])
    limited(lambda: open_map(tmp_path / "map").will_need([0]))


@pytest.mark.parametrize("size", [b"\x00\x58", b"\xe0" + bytes(8)])
def test_a_bomb_that_does_not_say_how_large_it_is(size: bytes, tmp_path: Path) -> None:
    blocks = bomb(GIB)
    blocks = blocks[blocks.index(b"\x54\x00\x00") if b"\x54\x00\x00" in blocks[:20] else 9 :]
    for raw_size in (GIB, -1, 0, 10):
        put(tmp_path / f"map {raw_size}", fuzz.FRAME + size + blocks, raw_size)

        def read(folder: Path = tmp_path / f"map {raw_size}") -> None:
            with contextlib.suppress(MmapNinjaError):
                assert open_map(folder)[0] == b""

        limited(read)


def test_a_bomb_in_format_1(tmp_path: Path) -> None:
    """Its index knows no raw sizes; a frame that can be true is a text, as large as it says."""
    unpack(made_by_0_9()["zstd strings"], tmp_path / "map")
    with open(tmp_path / "map/data.ninja", "r+b") as opened:
        opened.write(LYING)
    refused(tmp_path / "map", "sample 0", lambda folder: open_map(folder)[0])
    refused(tmp_path / "map", "frame", lambda folder: open_map(folder).lengths)


def test_a_sample_that_honestly_is_large(tmp_path: Path) -> None:
    """Zeros are data, too: nobody knows that they are meant as a bomb, and the index says how many there are."""
    size = 1 << 27
    put(tmp_path / "map", bomb(size), size)

    def read() -> None:
        m = open_map(tmp_path / "map")
        assert m.lengths.tolist() == [size]
        assert m[0] == bytes(size)

    limited(read, room=3 * size + fuzz.ALLOWED)  # two for the reader, one for the comparison
