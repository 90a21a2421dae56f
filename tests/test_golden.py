"""Folders that were written long ago stay readable for ever: small ones of each format, committed in `golden/`.

`golden/expected.json` says what each of them holds; it was made from the samples that were given, not from what was
read. A folder in there is never made again: what it took to make it is below, for those to come. After adding one to
`FORMAT_1` or `FORMAT_2`, run `python tests/test_golden.py`, which makes those that are missing.
"""

import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

import plain_reader
from contracts import tree
from faults import Disk, Strike, recorded
from mmap_ninja import (
    BytesMmap,
    DenseMmap,
    RaggedMmap,
    StringsMmap,
    np_open_existing,
    open_existing,
    open_map,
    upgrade,
)
from mmap_ninja._storage import build
from mmap_ninja._storage.legacy import Keys
from mmap_ninja.errors import MapVersionError, PartBuiltError, PartBuiltWarning, UpgradeWarning
from old import run_old

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text("utf-8")) if (GOLDEN / "expected.json").exists() else {}
CLASSES = {"dense": DenseMmap, "ragged": RaggedMmap, "bytes": BytesMmap, "strings": StringsMmap}
MOST = 200_000  # bytes of all of them together

NAMES = sorted(EXPECTED)
OF_FORMAT_1 = [name for name in NAMES if name.startswith("1-")]
OF_FORMAT_2 = [name for name in NAMES if name.startswith("2-")]


# -- what each folder holds ------------------------------------------------------------------------------------------


def described(sample: object) -> dict:
    """A sample in JSON: its type, and every bit of it."""
    if isinstance(sample, np.generic):
        return {"scalar": dtype_name(sample.dtype), "hex": sample.tobytes().hex()}
    if isinstance(sample, np.ndarray):
        return {"dtype": dtype_name(sample.dtype), "shape": list(sample.shape), "hex": sample.tobytes().hex()}
    if isinstance(sample, bytes):
        return {"bytes": sample.hex()}
    if isinstance(sample, float):
        return {"float": sample.hex()}
    assert type(sample) in (bool, int, str)
    return {type(sample).__name__: sample}


def dtype_name(dtype: np.dtype | None) -> object:
    if dtype is None:
        return None
    if dtype.names is not None:
        return [[name, dtype_name(dtype[name].base), list(dtype[name].shape)] for name in dtype.names]
    return dtype.name if dtype.kind == "V" else dtype.str


def opened(name: str, path: Path, **options: object):
    """The map, with the warning that it has to give."""
    keys = EXPECTED[name]["keys"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        m = CLASSES[EXPECTED[name]["kind"]](path, **options, **keys) if keys else open_map(path, **options)
    unfinished = [PartBuiltWarning] if EXPECTED[name]["part_built"] else []
    assert [warning.category for warning in caught] == unfinished
    return m


def check(name: str, path: Path) -> None:
    """Everything that a map says, against what is written down about it."""
    expected, m = EXPECTED[name], opened(name, path)
    assert m.kind == expected["kind"]
    assert type(m) is CLASSES[m.kind]
    assert len(m) == len(expected["samples"])
    assert [described(m[i]) for i in range(len(m))] == expected["samples"]
    assert [described(sample) for sample in reversed(m)] == expected["samples"][::-1]
    assert dtype_name(m.dtype) == expected["dtype"]
    assert m.metadata == expected["metadata"]
    assert m.lengths.tolist() == expected["lengths"]
    if m.kind == "dense":
        assert described(np.asarray(m[:]))["hex"] == "".join(sample["hex"] for sample in expected["samples"])
    else:
        assert [described(sample) for sample in m[:]] == expected["samples"]
    m.close()


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """A golden folder to write to."""
    return lambda name: shutil.copytree(GOLDEN / name, tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_long_ago_reads_as_ever(name: str, copy: Callable[[str], Path]) -> None:
    check(name, copy(name))


@pytest.mark.parametrize("name", NAMES)
def test_reading_changes_no_byte(name: str) -> None:
    """In the very folder that is committed."""
    before = tree(GOLDEN / name)
    assert recorded(lambda: check(name, GOLDEN / name)).calls == []
    if EXPECTED[name]["kind"] == "dense":
        assert recorded(lambda: (np_open_existing(GOLDEN / name), open_existing(GOLDEN / name))).calls == []
    assert tree(GOLDEN / name) == before


@pytest.mark.parametrize("name", NAMES)
def test_no_file_was_changed_since_it_was_made(name: str) -> None:
    """By an editor, by a tool that converts line ends, by a rule that leaves out a file from what is committed."""
    assert hashes(GOLDEN / name) == EXPECTED[name]["files"]


def test_the_folders_are_those_that_are_expected() -> None:
    assert sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()) == NAMES
    assert len(OF_FORMAT_1) >= 14
    assert len(OF_FORMAT_2) >= 30
    assert {EXPECTED[name]["kind"] for name in OF_FORMAT_2} == set(CLASSES)
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < MOST


def test_git_takes_every_file_as_it_is() -> None:
    if shutil.which("git") is None or not (GOLDEN.parents[1] / ".git").exists():
        pytest.skip("this is no checkout of git")
    files = [str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*") if path.is_file()]
    ignored = subprocess.run(["git", "check-ignore", "--no-index", "--", *files], cwd=GOLDEN, capture_output=True)
    assert ignored.stdout == b""
    command = ["git", "check-attr", "text", "--", *files]
    attributes = subprocess.run(command, cwd=GOLDEN, capture_output=True, text=True, check=True).stdout
    assert {line.rpartition(": ")[2] for line in attributes.splitlines()} == {"unset"}


def test_plain_python_reads_them_too() -> None:
    """The checksums of format 2, by a reader that shares no code with the package."""
    for name in OF_FORMAT_2:
        for manifest in ("manifest.json", "building.json"):
            if (GOLDEN / name / manifest).exists():
                plain_reader.check(GOLDEN / name, manifest)
        is_plain = not any(word in name for word in ("zstd", "upgraded", "part-built", "empty", "bfloat16"))
        if is_plain and "scalars" not in name:
            found = plain_reader.samples(GOLDEN / name)
            assert list(map(described, found)) == EXPECTED[name]["samples"], name


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_long_ago_can_be_written_to(name: str, copy: Callable[[str], Path]) -> None:
    path, expected = copy(name), EXPECTED[name]
    m = opened(name, path)
    first = m[0] if expected["samples"] else np.float32([1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UpgradeWarning)
        if expected["part_built"] and not (path / "manifest.json").exists():
            with pytest.raises(PartBuiltError, match="resume=True"):
                m.append(first)
            return
        m.extend([first, first])
    m.close()
    again = open_map(path)
    assert [described(again[i]) for i in range(len(again))] == expected["samples"] + [described(first)] * 2
    assert again.metadata == expected["metadata"]
    plain_reader.check(path)


@pytest.mark.parametrize("name", [name for name in NAMES if EXPECTED[name]["part_built"]])
def test_a_build_of_long_ago_can_be_resumed(name: str, copy: Callable[[str], Path]) -> None:
    path = copy(name)
    given, options = FORMAT_2[name].samples, FORMAT_2[name].options
    CLASSES[EXPECTED[name]["kind"]].from_generator(path, iter(given), 2, resume=True, **options).close()
    assert [described(sample) for sample in open_map(path)] == list(map(described, given))
    plain_reader.check(path)


@pytest.mark.parametrize("name", OF_FORMAT_1)
def test_a_folder_of_format_1_is_upgraded(name: str, copy: Callable[[str], Path]) -> None:
    path, given = copy(name), EXPECTED[name]["keys"]
    keys = Keys(**{key.removesuffix("_key"): folder for key, folder in given.items()})
    assert upgrade(path, keys) is True
    check(name, path)
    plain_reader.check(path)


@pytest.mark.parametrize("name", OF_FORMAT_2)
def test_a_newer_format_says_that_it_needs_a_newer_version(name: str, copy: Callable[[str], Path]) -> None:
    path = copy(name)
    for manifest in ("manifest.json", "building.json"):
        if (path / manifest).exists():
            plain_reader.forge(path, manifest, format=3)
    before = tree(path)
    for opening in (open_map, open_existing, CLASSES[EXPECTED[name]["kind"]], upgrade):
        with pytest.raises(MapVersionError, match=r"format 3.*newer.*mmap_ninja|newer.*mmap_ninja.*format 3"):
            opening(path)
    with pytest.raises(MapVersionError, match="newer"):
        CLASSES[EXPECTED[name]["kind"]].from_generator(path, iter([]), 1)
    assert tree(path) == before


# -- how they were made ----------------------------------------------------------------------------------------------


class Golden:
    """What a folder is made from, and how; `given` are the samples that it holds, where they are not all."""

    def __init__(self, kind: str, samples: list, make: Callable | None = None, **more: object) -> None:
        self.kind, self.samples, self._make = kind, samples, make
        self.given = more.pop("given", samples)
        self.metadata, self.keys = more.pop("metadata", {}), more.pop("keys", {})
        self.lengths = more.pop("lengths", None)
        self.is_part_built = make is stopped or make is stopped_beside
        self.is_part_of_map = make is stopped_beside
        self.options = more

    def make(self, path: Path) -> None:
        if self._make is not None:
            self._make(self, path)
        else:
            CLASSES[self.kind].from_generator(path, iter(self.samples), 100, metadata=self.metadata, **self.options)


def stopped(golden: Golden, path: Path) -> None:
    """A build that failed after its first two batches."""

    def samples():
        yield from golden.given
        raise RuntimeError("stopped")

    # The number of a boot is that of a machine; here it stands for any other one.
    another = "00000000-0000-4000-8000-000000000000"
    with suppress(RuntimeError), mock.patch.object(build, "boot_id", return_value=another):
        CLASSES[golden.kind].from_generator(path, samples(), 2, **golden.options)


def stopped_beside(golden: Golden, path: Path) -> None:
    """The same beside a map that is whole, and stays it."""
    DenseMmap.from_ndarray(path, np.stack(golden.given))
    stopped(Golden("dense", [*golden.given, *golden.given], given=golden.given[:2]), path)


def widened(golden: Golden, path: Path, *, interrupted: bool = False) -> None:
    """The last sample has more axes, for which the index is written anew."""
    m = RaggedMmap.from_lists(path, golden.samples[:-1])

    def interrupt() -> None:
        raise OSError(errno.EIO, "interrupted")

    if interrupted:
        shutil.copytree(path, path.with_name("rehearsal"))
        calls = recorded(lambda: RaggedMmap(path.with_name("rehearsal")).append(golden.samples[-1])).calls
        at = min(at for at, call in enumerate(calls) if call.function == "remove")
        shutil.rmtree(path.with_name("rehearsal"))
        with Disk(Strike(at), interrupt).installed(), suppress(OSError):
            m.append(golden.samples[-1])
        assert (path / "index.npy").exists()
        assert plain_reader.fields(path)["obsolete"]
    else:
        m.append(golden.samples[-1])


def replaced(golden: Golden, path: Path) -> None:
    for _ in range(2):
        RaggedMmap.from_lists(path, golden.samples)
    assert (path / "data-2.npy").exists()


def assigned(golden: Golden, path: Path) -> None:
    """In place, and never flushed."""
    m = RaggedMmap.from_lists(path, [np.zeros_like(golden.samples[0]), *golden.samples[1:]])
    m[0] = golden.samples[0]
    assert not plain_reader.fields(path)["files"]["data"]["checked"]


def unsynced(golden: Golden, path: Path) -> None:
    m = CLASSES[golden.kind].from_generator(path, iter(golden.samples[:2]), 100, sync=False)
    for sample in golden.samples[2:]:
        m.append(sample, sync=False)
    assert not plain_reader.fields(path)["synced"]


def upgraded(golden: Golden, path: Path) -> None:
    """Half of the samples written by 0.9.0, the others added afterwards."""
    half = len(golden.samples) // 2
    made = Golden(golden.kind, golden.samples[:half], **golden.options)
    old({path.name: made}, path.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UpgradeWarning)
        open_map(path).extend(golden.samples[half:])
    assert (path / "data.ninja").exists()
    assert not (path / "type.ninja").exists()


POINT = [("x", "<f4"), ("y", ">i2"), ("name", "<U3"), ("box", "<i4", (2, 2))]
TEXTS = ["Torba", "", "зеле 🥧", "a" * 300, "", "popo"]
MANY_TEXTS = [f"{text[:10]} number {i}".ljust(40) for i in range(20) for text in TEXTS]
ROWS = [np.arange(n, dtype="<f4") / 3 for n in (3, 0, 1, 40, 2)]
IMAGES = [np.arange(h * w * 3, dtype="u1").reshape(h, w, 3) for h, w in ((5, 2), (0, 4), (1, 1), (3, 2), (2, 0))]
MIXED = [np.arange(4).reshape(2, 2), np.arange(3), np.array([[1], [2]]), np.arange(6).reshape(1, 1, 3, 2), np.arange(0)]
NANS = np.array([0x7FF8000000000001, 0xFFF8DEADBEEF0001, 0x7FF0000000000001, 0x8000000000000000], "<u8").view("<f8")
KEYS = {"starts_key": "from", "ends_key": "to"}
MORE_KEYS = {**KEYS, "shapes_key": "forms", "flattened_shapes_key": "counts"}
ZSTD, DICTIONARY = {"zstd_level": 5}, {"zstd_level": 5, "zstd_train_dictionary_size": 256}
METADATA = {"split": "train", "größe": [1, 2.5, None, True, {"deep": ["🥧"]}]}


def points(*shape: int) -> np.ndarray:
    values = np.zeros(shape, POINT)
    values["x"], values["y"], values["name"], values["box"] = 0.1, -2, "añ", np.arange(4).reshape(2, 2)
    return values


FORMAT_2 = {
    "2-dense": Golden("dense", [np.arange(6, dtype="<i4").reshape(2, 3) * n for n in range(4)]),
    "2-dense-metadata": Golden("dense", [np.array([n], "u1") for n in range(3)], metadata=METADATA),
    "2-dense-scalars": Golden("dense", [np.int16(n) for n in (1, -1, 32767)]),
    "2-dense-of-nothing": Golden("dense", [np.zeros((0, 3), "<f4")] * 3),
    "2-dense-structured": Golden("dense", [points(2), points(2)]),
    "2-dense-datetime64": Golden("dense", [np.array([n, -n], "<M8[ms]") for n in range(3)]),
    "2-dense-timedelta64": Golden("dense", [np.array(["NaT", "3"], "<m8[D]")] * 2),
    "2-dense-bool": Golden("dense", [np.array([True, False, n], "?") for n in range(2)]),
    "2-dense-complex": Golden("dense", [np.array([1 + 2j, -0.0], "<c8")] * 2),
    "2-dense-float16": Golden("dense", [np.array([0.1, 65504, np.inf], "<f2")] * 2),
    "2-dense-bfloat16": Golden("dense", [np.array([0.1, n], ml_dtypes.bfloat16) for n in range(2)]),
    "2-dense-big-endian": Golden("dense", [np.arange(4, dtype=">f8").reshape(2, 2) + n for n in range(3)]),
    "2-dense-texts": Golden("dense", [np.array(["añb", ""], "<U3")] * 2),
    "2-dense-unsynced": Golden("dense", [np.arange(4, dtype="<u2")] * 3, unsynced),
    "2-dense-empty": Golden("dense", [], dtype="<f4"),
    "2-dense-part-built-beside": Golden("dense", [np.arange(3) + n for n in range(3)], stopped_beside),
    "2-dense-upgraded": Golden("dense", [np.arange(6).reshape(2, 3) + n for n in range(4)], upgraded),
    "2-ragged": Golden("ragged", ROWS),
    "2-ragged-images": Golden("ragged", IMAGES, metadata=METADATA),
    "2-ragged-mixed": Golden("ragged", MIXED),
    "2-ragged-scalars": Golden("ragged", [0.5, -0.0, float("nan"), float("-inf"), 5e-324]),
    "2-ragged-integer-scalars": Golden("ragged", [3, -1, 2**62]),
    "2-ragged-scalars-and-rows": Golden("ragged", [7, np.arange(3), np.arange(0), -7], lengths=[1, 3, 0, 1]),
    "2-ragged-nan-payloads": Golden("ragged", [NANS[:3], NANS[3:]]),
    "2-ragged-big-endian": Golden("ragged", [np.arange(n, dtype=">i4") for n in (2, 0, 3)]),
    "2-ragged-structured": Golden("ragged", [points(1), points(0), points(2)]),
    "2-ragged-days": Golden("ragged", [np.array(["2024-02-29", "NaT"], "<M8[D]"), np.array([], "<M8[D]")]),
    "2-ragged-bfloat16": Golden("ragged", [np.array([0.1] * n, ml_dtypes.bfloat16) for n in (2, 0, 1)]),
    "2-ragged-dtype-given": Golden("ragged", [np.array([0.1, 0.2], "<f2")], dtype="<f2"),
    "2-ragged-empty": Golden("ragged", [], metadata=METADATA),
    "2-ragged-widened": Golden("ragged", [np.arange(3), np.arange(2), np.arange(6).reshape(3, 2)], widened),
    "2-ragged-obsolete": Golden(
        "ragged",
        [np.arange(3), np.arange(2), np.arange(6).reshape(3, 2)],
        lambda golden, path: widened(golden, path, interrupted=True),
    ),
    "2-ragged-replaced": Golden("ragged", [np.arange(3), np.arange(2)], replaced),
    "2-ragged-assigned": Golden("ragged", [np.array([5, 6, 7]), np.array([8])], assigned),
    "2-ragged-part-built": Golden(
        "ragged", [np.arange(n) for n in range(7)], stopped, given=[*map(np.arange, range(4))]
    ),
    "2-ragged-upgraded": Golden("ragged", MIXED + MIXED[::-1], upgraded),
    "2-bytes": Golden("bytes", [b"\0\xff\r\n", b"", b"a" * 70]),
    "2-bytes-zstd": Golden("bytes", [b"\0\xff\r\n", b"", b"a" * 7000], **ZSTD),
    "2-strings": Golden("strings", TEXTS, metadata=METADATA),
    "2-strings-zstd": Golden("strings", TEXTS, **ZSTD),
    "2-strings-zstd-dictionary": Golden("strings", MANY_TEXTS, **DICTIONARY),
    "2-strings-zstd-part-built": Golden("strings", TEXTS, stopped, given=TEXTS[:4], **ZSTD),
    "2-strings-upgraded": Golden("strings", TEXTS * 2, upgraded),
    "2-strings-zstd-upgraded": Golden("strings", MANY_TEXTS * 2, upgraded, **DICTIONARY),
}
FORMAT_1 = {
    "1-dense": Golden("dense", [np.arange(6, dtype="<i4").reshape(2, 3) * n for n in range(4)]),
    "1-dense-row": Golden("dense", [np.int64(n) for n in range(5)]),
    "1-dense-fortran": Golden("dense", list(np.arange(24.0).reshape(4, 2, 3)), order="F"),
    "1-dense-days": Golden("dense", [np.array([n, -n], "<M8[s]") for n in range(3)]),
    "1-dense-bool": Golden("dense", [np.array([True, False, n], "?") for n in range(2)]),
    "1-ragged": Golden("ragged", ROWS),
    "1-ragged-keys": Golden("ragged", ROWS, keys=MORE_KEYS),
    "1-ragged-images": Golden("ragged", IMAGES),
    "1-ragged-images-keys": Golden("ragged", IMAGES, keys=MORE_KEYS),
    "1-ragged-mixed": Golden("ragged", MIXED),
    "1-ragged-integers": Golden("ragged", [3, -1, 7, 0]),
    "1-ragged-floats": Golden("ragged", [0.5, float("nan"), -0.0]),
    "1-ragged-bools": Golden("ragged", [True, False, True]),
    "1-ragged-numbers-and-rows": Golden("ragged", [1, np.array([3]), np.array([4, 5]), 6]),
    "1-strings": Golden("strings", TEXTS),
    "1-strings-keys": Golden("strings", TEXTS, keys=KEYS),
    "1-strings-zstd": Golden("strings", TEXTS, **ZSTD),
    "1-strings-zstd-dictionary": Golden("strings", MANY_TEXTS, **DICTIONARY),
}

WITH_0_9 = """
import pickle
import numpy as np
from pathlib import Path
from mmap_ninja import RaggedMmap, StringsMmap, numpy

make = {"dense": numpy.from_ndarray, "ragged": RaggedMmap.from_lists, "strings": StringsMmap.from_strings}
for name, (kind, samples, options) in pickle.loads(Path("given.pickle").read_bytes()).items():
    if kind == "dense":
        samples = np.asarray(np.stack(samples), order=options.pop("order", "C"))
    first = len(samples) if kind == "dense" and samples.flags.f_contiguous and samples.ndim > 1 else len(samples) // 2
    m = make[kind](name, samples[:first], **options)
    if first < len(samples):
        numpy.extend(m, samples[first:]) if kind == "dense" else m.extend(samples[first:])
"""


def old(goldens: dict[str, Golden], where: Path) -> None:
    """Made by 0.9.0 itself, half of the samples added later."""
    given = {name: (each.kind, each.samples, {**each.options, **each.keys}) for name, each in goldens.items()}
    (where / "given.pickle").write_bytes(pickle.dumps(given))
    run_old(WITH_0_9, cwd=where)
    (where / "given.pickle").unlink()


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def length_of(sample: object) -> int:
    if isinstance(sample, str):
        return len(sample.encode())
    return len(sample) if np.ndim(sample) or isinstance(sample, bytes) else 1


def entry(golden: Golden, folder: Path) -> dict:
    """What `expected.json` says about a folder that was just made."""
    given = golden.given
    dtype = golden.options.get("dtype", None if golden.kind in ("dense", "ragged") else "u1")
    if dtype is None and given:
        dtype = np.asarray(given[0]).dtype
    return {
        "kind": golden.kind,
        "dtype": dtype_name(None if dtype is None else np.dtype(dtype)),
        "metadata": golden.metadata,
        "keys": golden.keys,
        "part_built": golden.is_part_built and not golden.is_part_of_map,
        "lengths": [length_of(sample) for sample in given],
        "samples": [described(sample) for sample in given],
        "files": hashes(folder),
    }


def make_missing() -> None:
    """Make what is not there; what is there is the truth, whatever this version would write."""
    expected = dict(EXPECTED)
    with tempfile.TemporaryDirectory() as work:
        missing = {name: golden for name, golden in (FORMAT_1 | FORMAT_2).items() if not (GOLDEN / name).exists()}
        old({name: golden for name, golden in missing.items() if name in FORMAT_1}, Path(work))
        for name, golden in missing.items():
            if name in FORMAT_2:
                golden.make(Path(work) / name)
                with suppress(FileNotFoundError):
                    os.unlink(Path(work) / name / ".lock")  # comes with the first writer
            shutil.copytree(Path(work) / name, GOLDEN / name)
            expected[name] = entry(golden, GOLDEN / name)
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(expected[name])}" for name in sorted(expected))
    (GOLDEN / "expected.json").write_text("{" + text + "}\n", "utf-8")


if __name__ == "__main__":
    make_missing()
