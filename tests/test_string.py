"""What is particular to maps of texts."""

import numpy as np
import pytest

from contracts import MapContract, N, assert_same, same, tree
from mmap_ninja import BytesMmap, StringsMmap
from mmap_ninja.errors import (
    ArgumentTypeError,
    MapCorruptError,
    MapKindError,
    MapReadOnlyError,
    SampleError,
    SampleIndexError,
    SampleTypeError,
)

assert N == 9


class Strings(MapContract):
    kind = StringsMmap
    samples = ["one", "zwölf", "", "三", "🥷 ninja", "a\x00b\n", "seven", "x" * 300, "last"]
    more = ["tail", "", "ünïcödé"]
    bad, bad_match = "lone \ud800 surrogate", "UTF-8 cannot hold it: .*surrogates not allowed"
    wrong_size = "much longer than any" * 50

    def make(self, path, samples=None, **options):
        return StringsMmap.from_strings(
            path, self.samples if samples is None else samples, **{**self.options, **options}
        )

    def length(self, sample):
        return len(sample.encode())

    def shape(self, sample):
        return (len(sample.encode()),)

    def window(self, sample, start, length):
        return sample.encode()[start : start + length].decode(errors="ignore")


class TestStringsContract(Strings):
    new_values = {0: "öe", 1: "twelve", 8: "näc"}

    def test_default_mode_allows_assignment(self, path):
        self.make(path)
        assert StringsMmap(path).mode == "r+b"
        StringsMmap(path)[0] = "eno"
        assert StringsMmap(path)[0] == "eno"


class TestCompressedStringsContract(Strings):
    # Enough text for a dictionary, in few samples.
    samples = [f"{i} " + "the quick brown fox jumps over the lazy dog, zwölf mal " * i for i in range(12, 12 + 9)]
    options = {"zstd_level": 3, "zstd_train_dictionary_size": 512}

    def make(self, path, samples=None, **options):
        merged = {**self.options, **options}
        if isinstance(samples, list) and len(samples) < 7:
            merged.pop("zstd_train_dictionary_size")
        return StringsMmap.from_strings(path, self.samples if samples is None else samples, **merged)

    def test_there_is_a_dictionary(self, m, path):
        assert (path / "zstd.dict").stat().st_size > 0

    def test_what_the_index_knows(self, m):
        assert m.lengths.tolist() == [len(sample.encode()) for sample in self.samples]
        assert m.shapes.tolist() == [[len(sample.encode())] for sample in self.samples]
        assert m.starts[0] == 0
        assert m.ends.tolist()[:-1] == m.starts.tolist()[1:]
        assert m.nbytes == m.ends[-1] == (m.out_dir / "data.npy").stat().st_size - 128


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map"


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"], ids=ascii)
@pytest.mark.parametrize("level", [None, 3])
def test_lone_surrogates(path, text, level):
    with pytest.raises(SampleError, match=r"sample 1 \(item 1 of this batch\): UTF-8 cannot hold it: .*surrogates"):
        StringsMmap.from_strings(path, ["good", text], zstd_level=level)
    assert not path.exists()
    m = StringsMmap.from_strings(path, ["good"], zstd_level=level)
    before = tree(path)
    with pytest.raises(SampleError, match=r"sample 2 \(item 1 of this batch\): UTF-8 cannot hold it: .*surrogates"):
        m.extend(["good", text])
    assert tree(path) == before
    assert text not in m


@pytest.mark.parametrize("sample", [b"bytes", 5, None, ["a"], np.array("a"), 0.5, {"a": 1}], ids=repr)
def test_what_is_no_text(path, sample):
    match = rf"sample 1 \(item 1 of this batch\): a {type(sample).__name__}, expected str"
    with pytest.raises(SampleTypeError, match=match):
        StringsMmap.from_strings(path, ["good", sample])
    assert not path.exists()


def test_bare_text_where_a_list_is_meant(path):
    match = "got a str"
    with pytest.raises(ArgumentTypeError, match=match):
        StringsMmap.from_strings(path, "abc")
    with pytest.raises(ArgumentTypeError, match=match):
        StringsMmap.from_generator(path, "abc", 2)
    assert not path.exists()
    m = StringsMmap.from_strings(path, ["a"])
    with pytest.raises(ArgumentTypeError, match="got a str; append adds one"):
        m.extend("abc")
    assert_same(m, ["a"])


def test_bare_text_as_an_indexable(path):
    with pytest.raises(ArgumentTypeError, match="str"):
        StringsMmap.from_indexable(path, "abc", 2)
    assert not path.exists()


def test_all_texts_read_as_str(path):
    class Name(str):
        __slots__ = ()

    m = StringsMmap.from_strings(path, [Name("a"), np.str_("b"), "c"])
    assert_same(m, ["a", "b", "c"])
    assert_same(StringsMmap.from_strings(path, np.array(["x", "yz"])), ["x", "yz"])
    assert_same(StringsMmap.from_strings(path, ("x", "yz")), ["x", "yz"])


@pytest.mark.parametrize("level", [None, 3])
def test_window_counts_bytes_and_leaves_out_cut_characters(path, level):
    text = "aö三🥷z"  # 1, 2, 3, 4 and 1 bytes
    m = StringsMmap.from_strings(path, ["before", text, "after"], zstd_level=level)
    assert m.window(1, 0, 11) == text
    assert m.window(1, 0, 2) == "a"
    assert m.window(1, 2, 4) == "三"
    assert m.window(1, 4, 6) == "🥷"
    assert m.window(1, 7, 3) == ""
    assert m.window(1, 11, 0) == ""
    raw = text.encode()
    for start in range(12):
        for stop in range(start, 12):
            assert m.window(1, start, stop - start) == raw[start:stop].decode(errors="ignore")
    with pytest.raises(SampleIndexError, match=r"sample 1 has length 11, the window is \[5, 12\)"):
        m.window(1, 5, 7)


def test_assignment_of_as_many_bytes(path):
    m = StringsMmap.from_strings(path, ["abcd", "öö"])
    m[0] = "öö"
    m[1] = "🥷"
    assert_same(m, ["öö", "🥷"])
    for wrong in ("abc", "abcde", "ööö", ""):
        with pytest.raises(SampleError, match=f"sample 0: the new value has {len(wrong.encode())} bytes, expected 4"):
            m[0] = wrong
    with pytest.raises(SampleTypeError, match="sample 0: a bytes, expected str"):
        m[0] = b"abcd"
    with pytest.raises(SampleError, match="sample 0: UTF-8 cannot hold it"):
        m[0] = "\ud800abcd"
    assert_same(StringsMmap(path, "rb"), ["öö", "🥷"])
    with pytest.raises(MapReadOnlyError, match=r'mode "rb".*mode="r\+"'):
        StringsMmap(path, "rb")[0] = "abcd"


def test_bytes_that_are_no_text(path):
    m = StringsMmap.from_strings(path, ["good", "abcd"])
    with open(path / "data.npy", "rb+") as file:
        file.seek(128 + 4)
        file.write(b"\xff")
    with pytest.raises(MapCorruptError, match=f"{path}: sample 1 is not UTF-8"):
        m[1]
    assert m[0] == "good"


def test_compressed_bytes_that_are_damaged(path):
    StringsMmap.from_strings(path, ["good", "abcd" * 100], zstd_level=3)
    m = StringsMmap(path)
    start = int(m.starts[1])
    with open(path / "data.npy", "rb+") as file:
        file.seek(128 + start)
        file.write(b"\xff\xff\xff\xff")
    with pytest.raises(MapCorruptError, match=r"zstd frame|cannot be decompressed"):
        m[1]
    assert m[0] == "good"


def test_folder_of_another_kind(path):
    BytesMmap.from_bytes(path, [b"a"])
    with pytest.raises(MapKindError, match="is a bytes map, not a strings one; use open_map"):
        StringsMmap(path)


def test_data_is_the_texts_end_to_end(path):
    StringsMmap.from_strings(path, ["one", "zwölf"])
    assert same(np.load(path / "data.npy"), np.frombuffer("onezwölf".encode(), np.uint8))
