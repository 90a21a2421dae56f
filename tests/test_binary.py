"""What is particular to maps of bytes."""

import sys

import numpy as np
import pytest

from contracts import MapContract, assert_same, tree
from mmap_ninja import BytesMmap, StringsMmap
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    MapKindError,
    MissingExtraError,
    SampleError,
    SampleTypeError,
)

rng = np.random.default_rng(2)


class Bytes(MapContract):
    kind = BytesMmap
    samples = [rng.bytes(size) for size in (3, 1, 70, 2, 0, 500, 6, 8, 4)]
    more = [b"more", b"", bytes(range(256))]
    bad, bad_match = "text", "a str, expected bytes, bytearray or memoryview"
    wrong_size = b"x" * 1000

    def make(self, path, samples=None, **options):
        return BytesMmap.from_bytes(path, self.samples if samples is None else samples, **{**self.options, **options})

    def shape(self, sample):
        return (len(sample),)


class TestBytesContract(Bytes):
    new_values = {0: b"new", 5: bytearray(b"z" * 500)}

    def read(self, sample):
        return bytes(sample)


class TestCompressedBytesContract(Bytes):
    options = {"zstd_level": 3}

    def test_what_the_index_knows(self, m):
        assert m.lengths.tolist() == [len(sample) for sample in self.samples]
        assert m.shapes.tolist() == [[len(sample)] for sample in self.samples]
        assert m.starts[0] == 0
        assert m.ends.tolist()[:-1] == m.starts.tolist()[1:]
        assert m.nbytes == m.ends[-1] == (m.out_dir / "data.npy").stat().st_size - 128

    def test_pickled_handle_keeps_its_snapshot(self, m):
        super().test_pickled_handle_keeps_its_snapshot(m)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map"


@pytest.mark.parametrize("level", [None, 3])
def test_everything_that_is_bytes(path, level):
    samples = [b"a", bytearray(b"bc"), memoryview(b"def"), np.bytes_(b"gh"), memoryview(b"abcdef")[::2]]
    m = BytesMmap.from_bytes(path, samples, zstd_level=level)
    assert_same(m, [b"a", b"bc", b"def", b"gh", b"ace"])


@pytest.mark.parametrize("sample", ["text", 5, np.zeros(2, np.uint8), [1, 2], None, {"a": 1}], ids=repr)
def test_what_is_not_bytes(path, sample):
    with pytest.raises(
        SampleTypeError, match=rf"sample 1 \(item 1 of this batch\): a {type(sample).__name__}, expected bytes"
    ):
        BytesMmap.from_bytes(path, [b"good", sample])
    assert not path.exists()


def test_bytes_where_a_list_is_meant(path):
    for samples in (b"abc", bytearray(b"abc"), "abc"):
        with pytest.raises(ArgumentTypeError, match=f"expected a list of samples, got a {type(samples).__name__}"):
            BytesMmap.from_bytes(path, samples)
    for samples in (b"abc", bytearray(b"abc"), "abc"):
        with pytest.raises(ArgumentTypeError, match=f"a {type(samples).__name__}"):
            BytesMmap.from_indexable(path, samples, 2)
    assert not path.exists()


@pytest.mark.parametrize("sizes", [(0,), (0, 0), (5, 0), (2**20, 3), (3_000_000,)])
@pytest.mark.parametrize("level", [None, 1])
def test_sizes(path, sizes, level):
    samples = [rng.bytes(size) for size in sizes]
    m = BytesMmap.from_bytes(path, samples, zstd_level=level)
    m.extend(samples)
    assert_same(BytesMmap(path), samples * 2)
    assert m.lengths.tolist() == [*sizes, *sizes]


def test_compression_makes_it_smaller(path):
    m = BytesMmap.from_bytes(path, [b"a" * 10_000] * 3, zstd_level=3)
    assert m.nbytes < 1000
    assert m.lengths.tolist() == [10_000] * 3
    m.append(b"b" * 10_000)
    assert m[-1] == b"b" * 10_000


def test_trained_dictionary(path, tmp_path):
    samples = [f'{{"name": "user {i}", "role": "reader", "active": true}}'.encode() for i in range(200)]
    m = BytesMmap.from_bytes(path, samples, zstd_level=3, zstd_train_dictionary_size=2000)
    plain = BytesMmap.from_bytes(tmp_path / "plain", samples, zstd_level=3)
    assert m.nbytes < plain.nbytes * 0.7
    assert 0 < (path / "zstd.dict").stat().st_size <= 2000
    m.extend(samples[:3])
    assert m.nbytes < plain.nbytes * 0.7, "later samples use the dictionary too"
    assert_same(BytesMmap(path), samples + samples[:3])


def test_dictionary_is_trained_once(path):
    samples = [f"sample number {i} of many, all alike".encode() for i in range(300)]
    options = {"zstd_level": 3, "zstd_train_dictionary_size": 1000}
    m = BytesMmap.from_generator(path, iter(samples), 100, **options)
    assert_same(m, samples)
    assert len(list(path.glob("zstd*.dict"))) == 1
    BytesMmap.from_generator(path, iter(samples[::-1]), 100, **options)
    assert_same(BytesMmap(path), samples[::-1])
    assert_same(m, samples)


@pytest.mark.parametrize("level", [0, -1, 23, 100])
def test_level_out_of_range(path, level):
    with pytest.raises(ArgumentError, match=f"zstd_level is {level}, expected 1 to 22"):
        BytesMmap.from_bytes(path, [b"a"], zstd_level=level)
    assert not path.exists()


@pytest.mark.parametrize("level", ["3", 2.5, True])
def test_level_of_a_wrong_type(path, level):
    with pytest.raises(ArgumentTypeError, match="zstd_level"):
        BytesMmap.from_bytes(path, [b"a"], zstd_level=level)
    assert not path.exists()


@pytest.mark.parametrize("size", [0, 10, -5])
def test_dictionary_that_cannot_be_trained(path, size):
    with pytest.raises(ArgumentError, match="dictionary"):
        BytesMmap.from_bytes(path, [b"abc" * 20] * 9, zstd_level=3, zstd_train_dictionary_size=size)
    with pytest.raises(
        ArgumentError, match=r"no dictionary of 1000 bytes can be trained on 2 samples.*give more samples"
    ):
        BytesMmap.from_bytes(path, [b"a", b"b"], zstd_level=3, zstd_train_dictionary_size=1000)
    assert not path.exists()


def test_dictionary_needs_a_level(path):
    with pytest.raises(ArgumentError, match="zstd_train_dictionary_size needs a zstd_level"):
        BytesMmap.from_bytes(path, [b"a"], zstd_train_dictionary_size=1000)
    assert not path.exists()


def test_compression_without_zstandard(path, tmp_path, monkeypatch):
    BytesMmap.from_bytes(tmp_path / "before", [b"a"], zstd_level=3)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    match = r"compressed maps need zstandard: pip install mmap-ninja\[zstd\]"
    with pytest.raises(MissingExtraError, match=match):
        BytesMmap.from_bytes(path, [b"a"], zstd_level=3)
    assert not path.exists()
    with pytest.raises(MissingExtraError, match=match):
        BytesMmap(tmp_path / "before")
    assert_same(BytesMmap.from_bytes(path, [b"a"]), [b"a"])


def test_resume_with_another_codec(path):
    def samples():
        yield from [b"a"] * 4
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        BytesMmap.from_generator(path, samples(), 2, zstd_level=3)
    before = tree(path)
    for options in ({}, {"zstd_level": 4}):
        with pytest.raises(ArgumentError, match=r"holds an unfinished bytes map .*build it without resume=True"):
            BytesMmap.from_generator(path, [b"a"] * 5, 2, resume=True, **options)
    with pytest.raises(ArgumentError, match=r"holds an unfinished bytes map .*not a strings map"):
        StringsMmap.from_generator(path, ["a"] * 5, 2, resume=True, zstd_level=3)
    assert tree(path) == before
    assert_same(BytesMmap.from_generator(path, [b"a"] * 5, 2, resume=True, zstd_level=3), [b"a"] * 5)


def test_assignment_of_another_length(path):
    m = BytesMmap.from_bytes(path, [b"abc", b""])
    for wrong in (b"ab", b"abcd", b""):
        with pytest.raises(SampleError, match=f"sample 0: the new value has {len(wrong)} bytes, expected 3"):
            m[0] = wrong
    with pytest.raises(SampleTypeError, match="sample 0: a str, expected bytes, bytearray or memoryview"):
        m[0] = "abc"
    m[1] = b""
    m[0] = memoryview(b"xyz")
    assert_same(BytesMmap(path), [b"xyz", b""])


def test_folder_of_another_kind(path):
    StringsMmap.from_strings(path, ["a"])
    with pytest.raises(MapKindError, match="is a strings map, not a bytes one; use open_map"):
        BytesMmap(path)
