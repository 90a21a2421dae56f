"""The manifest: what goes in comes out, damage is found, and nothing that is written there is believed unchecked."""

import json
import random
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, open_map
from mmap_ninja._storage import disk, snapshot
from mmap_ninja._storage.decode import decode
from mmap_ninja._storage.manifest import CAP, Building, Codec, File, Manifest, encode
from mmap_ninja.errors import ArgumentError, MapCorruptError, MapVersionError, MmapNinjaError
from plain_reader import START, checked, fields, forge, sealed

ID = "0123456789abcdef" * 2
DTYPES = ["<f4", ">i2", "?", "<M8[us]", "<c16", "S7", "<U3", [("x", "<f4"), ("y", "<i2", (2, 3))], [("größe", "|u1")]]


def file(name: str, size: int, **fields: object) -> File:
    return File(name, 128, size, 12345, **fields)


FULL = Manifest(
    "strings",
    ID,
    generation=7,
    length=3,
    dtype=np.dtype(np.uint8),
    ndim=1,
    codec=Codec("zstd", 3),
    metadata=MappingProxyType({"källa": [1, 2.5, None, "x"]}),
    files=MappingProxyType(
        {
            "data": file("data-2.npy", 99, checked=False),
            "index": file("index-2.npy", 72),
            "dictionary": File("zstd.dict"),
        }
    ),
    obsolete=("data.npy", "starts/data.ninja"),
    building=Building("a boot"),
)
EMPTY = Manifest("ragged", ID)
DENSE = Manifest("dense", ID, dtype=np.dtype(">f8"), dtype_given=True, sample_shape=(3, 0))


@pytest.mark.parametrize("manifest", [FULL, EMPTY, DENSE], ids=["full", "empty", "dense"])
def test_what_is_encoded_is_decoded(manifest: Manifest) -> None:
    assert decode(encode(manifest), "there") == manifest


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_survive(dtype: object) -> None:
    manifest = Manifest("ragged", ID, dtype=np.dtype(dtype), ndim=2)
    assert decode(encode(manifest), "there").dtype == np.dtype(dtype)


def test_dtypes_of_ml_dtypes_survive() -> None:
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    assert decode(encode(Manifest("ragged", ID, dtype=dtype)), "there").dtype is dtype


def test_the_first_key_is_the_checksum_of_all_that_follows(tmp_path: Path) -> None:
    raw = encode(FULL)
    (tmp_path / "manifest.json").write_bytes(raw)
    found = fields(tmp_path)  # asserts that it is, in its own words
    assert next(iter(json.loads(raw))) == "crc32"
    assert found["metadata"] == {"källa": [1, 2.5, None, "x"]}
    assert found["dtype"] == "|u1"


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    raw = encode(FULL)
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 1 << random.Random(at).randrange(8)
        with pytest.raises(MapCorruptError, match="there"):
            decode(bytes(bad), "there")
        with pytest.raises(MapCorruptError, match="there"):
            decode(raw[:at], "there")


def test_what_is_no_manifest_is_said_to_be_none() -> None:
    for raw in (b"", b"{}", b"null", b"\0" * 100, b'{"crc32": 5}', b"\x93NUMPY", b'{"crc32": "' + b"0" * 30):
        with pytest.raises(MapCorruptError, match="there"):
            decode(raw, "there")


LENGTH = 4
BAD_NUMBERS = [-1, 2**63, 10**30, True, None, 1.0, 1.5, float("nan"), float("inf"), "4", [4], {}]
BAD_NAMES = [
    "..",
    "../data.npy",
    "a/b",
    "/etc/passwd",
    "",
    ".",
    ".lock",
    "data.npy\0",
    "a\\b",
    "c:data",
    "ü",
    "x" * 129,
    5,
]
DATA = {"name": "data.npy", "offset": 128, "size": 32, "tail_crc": 0, "checked": True}
HOSTILE = {
    **{f"length {bad!r}": {"length": bad} for bad in BAD_NUMBERS},
    **{f"generation {bad!r}": {"generation": bad} for bad in BAD_NUMBERS},
    **{f"ndim {bad!r}": {"ndim": bad} for bad in [*BAD_NUMBERS, 65]},
    **{f"size {bad!r}": {"files": {"data": {**DATA, "size": bad}}} for bad in [*BAD_NUMBERS, 31, 33, 0]},
    **{f"offset {bad!r}": {"files": {"data": {**DATA, "offset": bad}}} for bad in [*BAD_NUMBERS, 2**40]},
    **{f"crc {bad!r}": {"files": {"data": {**DATA, "tail_crc": bad}}} for bad in [*BAD_NUMBERS, 2**32]},
    **{f"checked {bad!r}": {"files": {"data": {**DATA, "checked": bad}}} for bad in (0, 1, None, "true")},
    **{f"name {bad!r}": {"files": {"data": {**DATA, "name": bad}}} for bad in BAD_NAMES},
    **{f"obsolete {bad!r}": {"obsolete": [bad]} for bad in ["..", "a/../b", "/x", "a//b", "a/b/c/d", "", ".lock", 5]},
    **{f"shape {bad!r}": {"sample_shape": bad} for bad in [[-1], [2**63], [True], [2.0], "2", [[2]], [1] * 65, [3], 2]},
    "shape of as many bytes, too many axes": {"sample_shape": [1] * 64},
    "shape of no bytes, too large": {"sample_shape": [0, 2**62, 2**62], "files": {"data": {**DATA, "size": 0}}},
    **{
        f"dtype {bad!r}": {"dtype": bad}
        for bad in ["O", "V0", "S0", "i4,i4", "2i4", "what", "<i4 ", ",", "(", "", 5, {}]
    },
    **{
        f"dtype {bad!r}": {"dtype": bad}
        for bad in [[], [["a"]], [["a", "O"]], [["a", "what"]], [["a", 5]], ["a", "<i8"]]
    },
    "dtype [nested]": {"dtype": [["a", [["b", "|O"]]]]},
    "dtype deep": {"dtype": [["a", [["b", [["c", "nope"]]]]]]},
    "no dtype": {"dtype": None},
    "kind unknown": {"kind": "sparse"},
    "kind list": {"kind": ["dense"]},
    "kind other": {"kind": "ragged"},
    "id short": {"id": "abc"},
    "id upper": {"id": ID.upper()},
    "format 1": {"format": 1},
    "format 0": {"format": 0},
    "format text": {"format": "2"},
    "files list": {"files": []},
    "files none": {"files": {}},
    "files foreign": {"files": {"data": DATA, "secret": DATA}},
    "file is a name": {"files": {"data": "data.npy"}},
    "codec unknown": {"codec": {"name": "lz4", "level": 1}},
    "codec of dense": {"codec": {"name": "zstd", "level": 1}},
    "building is text": {"building": "yes"},
    "metadata is text": {"metadata": "yes"},
    "obsolete is text": {"obsolete": "data.npy"},
    "obsolete is in use": {"obsolete": ["data.npy"]},
    "obsolete is the manifest": {"obsolete": ["manifest.json"]},
    "data is the manifest": {"files": {"data": {**DATA, "name": "manifest.json"}}},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_hostile_values_with_a_valid_checksum(tmp_path: Path, changes: dict) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(LENGTH, dtype=np.int64))
    forge(tmp_path / "map", **changes)
    with pytest.raises(MapCorruptError, match=r"manifest\.json"):
        open_map(tmp_path / "map")


def test_a_forged_manifest_that_is_right_opens(tmp_path: Path) -> None:
    """Else the test above could pass for the wrong reason."""
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(LENGTH, dtype=np.int64))
    forge(tmp_path / "map", metadata={"a": 1})
    assert open_map(tmp_path / "map").metadata == {"a": 1}
    forge(tmp_path / "map", sample_shape=[2], length=2)
    assert open_map(tmp_path / "map")[:].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("missing", ["kind", "id", "generation", "length", "dtype_given", "ndim", "mixed", "files"])
def test_a_missing_key(tmp_path: Path, missing: str) -> None:
    DenseMmap.from_ndarray(tmp_path / "map", np.arange(LENGTH))
    found = fields(tmp_path / "map")
    del found[missing]
    (tmp_path / "map/manifest.json").write_bytes(sealed(found))
    with pytest.raises(MapCorruptError, match=rf"manifest\.json.*{missing}"):
        open_map(tmp_path / "map")


def index(width: int) -> dict:
    data = {"name": "data.npy", "offset": 128, "size": 5, "tail_crc": 0, "checked": True}
    return {"data": data, "index": {**data, "name": "index.npy", "offset": 160 - 16 * width, "size": 16 * width}}


@pytest.mark.parametrize("ndim", [0, 2])
def test_texts_have_one_axis(tmp_path: Path, ndim: int) -> None:
    StringsMmap.from_strings(tmp_path / "map", ["abc", "de"])
    forge(tmp_path / "map", ndim=ndim, files=index(1 + ndim))
    with pytest.raises(MapCorruptError, match="map"):
        open_map(tmp_path / "map")[0]


HUGE = 2**63 - 1
BAD_ROWS = [(-1, 2), (-(2**40), 1), (HUGE, 1), (2**60, 1), (2**62, 0), (0, HUGE), (0, 2**61), (5, 2), (6, 1), (7, 0)]


@pytest.mark.parametrize("row", [*BAD_ROWS, (0, -1), (0, -2), (3, -3)], ids=str)
@pytest.mark.parametrize("kind", ["ragged", "bytes", "strings"])
def test_a_hostile_index_row(tmp_path: Path, kind: str, row: tuple[int, int]) -> None:
    """The index is not checked at open, which would cost time for each sample, but before it is followed."""
    if kind == "ragged":
        RaggedMmap.from_lists(tmp_path / "map", [np.arange(4.0), np.arange(2.0)])
    elif kind == "bytes":
        BytesMmap.from_bytes(tmp_path / "map", [b"abcd", b"ef"])
    else:
        StringsMmap.from_strings(tmp_path / "map", ["abcd", "ef"])
    with open(tmp_path / "map/index.npy", "r+b") as opened:
        opened.seek(128)
        opened.write(np.array(row, "<i8").tobytes())
    m = open_map(tmp_path / "map")
    with pytest.raises(MapCorruptError, match=r"map.*sample 0"):
        m[0]
    assert len(m[1]) == 2


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", [np.arange(4.0)])
    raw = (tmp_path / "map/manifest.json").read_bytes()
    rest = raw[START:].replace(b'"length": 1', b'"length": 1, "length": 1')
    (tmp_path / "map/manifest.json").write_bytes(checked(rest))
    with pytest.raises(MapCorruptError, match=r"manifest\.json.*twice"):
        open_map(tmp_path / "map")


def test_deep_nesting() -> None:
    rest = b', "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(MapCorruptError, match="there"):
        decode(checked(rest), "there")


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", [np.arange(4.0)])
    forge(tmp_path / "map", format=3, kind="something new")
    with pytest.raises(MapVersionError, match=r"manifest\.json.*format 3.*newer mmap_ninja") as caught:
        open_map(tmp_path / "map")
    assert isinstance(caught.value, MmapNinjaError)


def test_a_manifest_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RaggedMmap.from_lists(tmp_path / "map", [np.arange(4.0)])
    with open(tmp_path / "map/manifest.json", "ab") as opened:
        opened.truncate(CAP + 1)
    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "read", None)  # calling it would be a TypeError
        with pytest.raises(MapCorruptError, match=rf"manifest\.json has {CAP + 1} bytes, expected at most {CAP}"):
            open_map(tmp_path / "map")


def test_a_manifest_that_would_be_too_large_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="keep less in `metadata`"):
        RaggedMmap.from_lists(tmp_path / "map", [np.arange(4.0)], metadata={"x": "y" * CAP})
    assert not list(tmp_path.rglob("*.json"))
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(4.0)])
    before = (tmp_path / "map/manifest.json").read_bytes()
    with pytest.raises(ArgumentError, match="keep less in `metadata`"):
        m.metadata = {"x": "y" * CAP}
    assert (tmp_path / "map/manifest.json").read_bytes() == before
    assert m.metadata == {}


def test_a_manifest_that_is_read_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked is what is used. The second look is whether the files opened since are those of that map."""
    RaggedMmap.from_lists(tmp_path / "map", [np.arange(4.0)])
    read: list[str] = []
    real = disk.read_small
    monkeypatch.setattr(snapshot.disk, "read_small", lambda path, cap: read.append(path) or real(path, cap))
    RaggedMmap(tmp_path / "map")[0]
    assert [Path(path).name for path in read] == ["manifest.json"] * 2


def test_bytes_of_no_dtype_are_refused(tmp_path: Path) -> None:
    """Found by the long fuzz run: nobody could say how many values they are."""
    RaggedMmap.from_lists(tmp_path / "map", [])
    (tmp_path / "map/data.npy").write_bytes(bytes(167))
    entry = {"name": "data.npy", "offset": 128, "size": 39, "tail_crc": 0, "blocks_crc": 0, "checked": True}
    forge(tmp_path / "map", obsolete=[], files={"data": entry})
    with pytest.raises(MapCorruptError, match=r"data\.npy has 39 bytes, but nothing says of what"):
        open_map(tmp_path / "map")
