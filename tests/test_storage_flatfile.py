"""The files: plain `.npy` for anyone, and a checksum of every block."""

import random
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, open_map
from mmap_ninja._storage.commit import commit
from mmap_ninja._storage.decode import decode
from mmap_ninja._storage.flatfile import BLOCK, appended, check_blocks, npy_header
from mmap_ninja._storage.lock import Lock
from mmap_ninja._storage.manifest import File
from mmap_ninja.errors import MapCorruptError
from plain_reader import arrays, check, fields, same, samples

RNG = np.random.default_rng(7)

BIG_ENDIAN = [np.array([[n, 2]], ">i4") for n in range(5)]
POINTS = [np.array([(n, [1, 2])], [("x", "<f4"), ("y", "<i2", (2,))]) for n in range(5)]
DAYS = [np.array([n, n + 1], "<M8[D]") for n in range(5)]
MADE = {
    "dense": (DenseMmap, [np.array([n, -n]) for n in range(5)]),
    "dense big-endian": (DenseMmap, BIG_ENDIAN),
    "dense points": (DenseMmap, POINTS),
    "dense numbers": (DenseMmap, [np.int16(n) for n in range(5)]),
    "dense of nothing": (DenseMmap, [np.zeros((0, 3), np.float32)] * 5),
    "dense large": (DenseMmap, [RNG.integers(0, 256, 500_000, np.uint8) for _ in range(5)]),
    "ragged": (RaggedMmap, [np.arange(n, dtype=np.float32) for n in (3, 0, 1, 5, 2)]),
    "ragged images": (RaggedMmap, [RNG.random((n, 4, 3)) for n in (3, 1, 7, 0, 2)]),
    "ragged big-endian": (RaggedMmap, BIG_ENDIAN),
    "ragged days": (RaggedMmap, DAYS),
    "ragged large": (RaggedMmap, [RNG.random(n) for n in (70_000, 1, 140_000, 0, 131_072)]),
    "bytes": (BytesMmap, [b"\0\1", b"", b"\xff" * 9, b"a", b"b"]),
    "strings": (StringsMmap, ["one", "", "zwölf", "🥧" * 5, "e"]),
}


@pytest.mark.parametrize("name", MADE)
def test_numpy_alone_reads_a_map(tmp_path: Path, name: str) -> None:
    cls, given = MADE[name]
    folder = tmp_path / "map"
    m = cls.from_generator(folder, iter(given[:2]), batch_size=1)
    for stop in (3, 5):
        assert same(samples(folder), [m[i] for i in range(len(m))])
        check(folder)
        m.extend(given[len(m) : stop])
    assert same(samples(folder), given)
    assert len(arrays(folder)["data"]) == (5 if cls is DenseMmap else m.ends[-1])
    check(folder)


@pytest.mark.parametrize("name", [name for name in MADE if not name.startswith("dense")])
def test_the_index_is_what_the_map_says(tmp_path: Path, name: str) -> None:
    cls, given = MADE[name]
    m = cls.from_generator(tmp_path / "map", iter(given[:2]), batch_size=2)
    m.extend(given[2:])
    index = arrays(tmp_path / "map")["index"]
    assert index.dtype == np.dtype("<i8")
    assert index[:, 0].tolist() == m.starts.tolist()
    assert index[:, 1:].tolist() == m.shapes.tolist()


def test_a_compressed_index_ends_with_the_raw_sizes(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    texts = ["a" * n for n in (0, 5, 5000)]
    StringsMmap.from_strings(tmp_path / "map", texts, zstd_level=3)
    index, files = arrays(tmp_path / "map")["index"], fields(tmp_path / "map")["files"]
    assert index[:, 2].tolist() == [0, 5, 5000]
    assert index[:, 1].sum() == files["data"]["size"] < 1000
    check(tmp_path / "map")


def test_the_header_is_rewritten_in_place(tmp_path: Path) -> None:
    m = DenseMmap.from_ndarray(tmp_path / "map", np.arange(6).reshape(3, 2))
    path = tmp_path / "map/data.npy"
    inode, before = path.stat().st_ino, path.read_bytes()
    m.extend(np.arange(2000).reshape(1000, 2))
    after = path.read_bytes()
    assert path.stat().st_ino == inode
    assert before[128:] == after[128 : len(before)]
    assert before[:128] == npy_header(np.dtype(np.int64), (3, 2))
    assert after[:128] == npy_header(np.dtype(np.int64), (1003, 2))


HEADERS = ["|u1", "<f8", ">c16", "<M8[ns]", "<U7", [("x", "<f4"), ("y", "<i2", (2,))], [("体", "<f4")]]


@pytest.mark.parametrize("dtype", HEADERS, ids=str)
@pytest.mark.parametrize("shape", [(3,), (3, 4, 5), (0, 2**40), (3, *[1] * 31)], ids=lambda shape: f"{len(shape)}d")
def test_the_length_of_a_header_does_not_depend_on_the_first_axis(
    tmp_path: Path, dtype: object, shape: tuple[int, ...]
) -> None:
    headers = [npy_header(np.dtype(dtype), (n, *shape[1:])) for n in (0, 1, 10**9, 2**63 - 1)]
    assert len({len(header) for header in headers}) == 1
    assert len(headers[0]) % 64 == 0
    if isinstance(dtype, str) and len(shape) < 4:
        assert len(headers[0]) == 128
    values = np.zeros(shape, dtype)
    (tmp_path / "a.npy").write_bytes(npy_header(values.dtype, shape) + values.tobytes())
    loaded = np.load(tmp_path / "a.npy")
    assert (loaded.dtype, loaded.shape) == (values.dtype, shape)


def test_field_names_in_any_script(tmp_path: Path) -> None:
    given = [np.zeros(2, [("体", "<f4")])]
    m = RaggedMmap.from_lists(tmp_path / "map", given)
    assert same(m[:], given)
    assert same(samples(tmp_path / "map"), given)


def test_checksums_do_not_depend_on_how_the_bytes_arrive() -> None:
    raw = RNG.bytes(3 * BLOCK + 12_345)
    sizes, random_ = [0, 1, 7, 4096, 65_537, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5], random.Random(3)
    expected = [zlib.crc32(raw[at : at + BLOCK]) for at in range(0, 3 * BLOCK, BLOCK)]
    for _ in range(20):
        file, crcs, at = File("data.npy", 128), b"", 0
        while at < len(raw):
            chunks = []
            for _ in range(random_.randrange(1, 4)):
                size = random_.choice(sizes)
                chunks.append(raw[at : at + size])
                at += len(chunks[-1])
            file, more = appended(file, chunks)
            crcs += more
        assert file.size == len(raw)
        assert np.frombuffer(crcs, "<u4").tolist() == expected
        assert file.tail_crc == zlib.crc32(raw[3 * BLOCK :])


def test_checksums_after_many_odd_extends(tmp_path: Path) -> None:
    sizes = [1, 130_000, 131_071, 5, 131_072, 262_145, 0, 3, 300_000]
    given = [RNG.random(size) for size in sizes]
    m = RaggedMmap.from_generator(tmp_path / "map", iter(given[:3]), batch_size=2)
    check(tmp_path / "map")
    for sample in given[3:]:
        m.append(sample, sync=False)
        check(tmp_path / "map")
    assert fields(tmp_path / "map")["files"]["data"]["size"] > 7 * BLOCK
    assert same(samples(tmp_path / "map"), given)


def test_checksums_of_an_index_of_several_blocks(tmp_path: Path) -> None:
    nothing = np.empty(0, np.int8)
    m = RaggedMmap.from_lists(tmp_path / "map", [nothing] * 65_000)
    for _ in range(2):
        m.extend([nothing] * 70_001, sync=False)
        check(tmp_path / "map")
    assert fields(tmp_path / "map")["files"]["index"]["size"] > 3 * BLOCK


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map of two complete blocks and a third that is not."""
    folder = tmp_path_factory.mktemp("large") / "map"
    RaggedMmap.from_lists(folder, [RNG.random(300_000)])
    return folder


def data_of(folder: Path) -> File:
    return decode((folder / "manifest.json").read_bytes(), str(folder)).files["data"]


@pytest.mark.parametrize("at", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 2_399_999])
def test_a_flipped_bit_is_found(large: Path, at: int) -> None:
    check_blocks(str(large), data_of(large))
    path = large / "data.npy"
    raw = path.read_bytes()
    try:
        with open(path, "r+b") as opened:
            opened.seek(128 + at)
            opened.write(bytes([raw[128 + at] ^ 16]))
        with pytest.raises(MapCorruptError, match=rf"data\.npy is damaged in block {at // BLOCK}"):
            check_blocks(str(large), data_of(large))
    finally:
        path.write_bytes(raw)


def test_a_damaged_or_missing_checksum_is_found(large: Path) -> None:
    path = large / "data.crc"
    raw = path.read_bytes()
    assert len(raw) == 8
    try:
        path.write_bytes(raw[:4] + b"\0" + raw[5:])
        with pytest.raises(MapCorruptError, match=r"data\.crc is damaged: checksum \w{8}, expected \w{8}"):
            check_blocks(str(large), data_of(large))
        path.write_bytes(raw[:7])
        with pytest.raises(MapCorruptError, match=r"data\.crc has 7 bytes, expected at least 8"):
            check_blocks(str(large), data_of(large))
    finally:
        path.write_bytes(raw)


def test_an_extend_reads_nothing_of_what_is_there(tmp_path: Path) -> None:
    """An append pays only for its own bytes: the checksum goes on from the manifest, whatever lies in the file."""
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(4)])
    with open(tmp_path / "map/data.npy", "r+b") as opened:
        opened.seek(128)
        opened.write(b"\xff" * 8)  # damage, which a writer that reads would vouch for
    m.append(np.arange(3))
    with pytest.raises(MapCorruptError, match=r"data\.npy is damaged in block 0"):
        check_blocks(str(tmp_path / "map"), data_of(tmp_path / "map"))


def test_a_commit_takes_many_chunks(tmp_path: Path) -> None:
    m = DenseMmap.from_ndarray(tmp_path / "map", np.arange(5, dtype=np.uint8))
    state = decode((tmp_path / "map/manifest.json").read_bytes(), "")
    chunks = [b"\1", bytearray(b"\2\3"), memoryview(b""), memoryview(b"\4")]
    with Lock(str(tmp_path / "map")) as lock:
        commit(lock, state, replace(state, length=9), {"data": chunks})
    assert open_map(tmp_path / "map")[5:].tolist() == [1, 2, 3, 4]
    assert len(m) == 5
    check(tmp_path / "map")
