"""Every documented call of `StringsMmap` of mmap_ninja 0.9.0 does what it did there.

Nothing in this file is new in 1.0: test_suite_of_0_9 runs it with 0.9.0 as well.
"""

from pathlib import Path

import numpy as np
import pytest

import calls_of_0_9
from calls_of_0_9 import MANY, TEXTS, make_read_only
from mmap_ninja.string import StringsMmap

folder = calls_of_0_9.folder


def test_from_strings_and_open_again(folder):
    made = StringsMmap.from_strings(folder, TEXTS)
    again = StringsMmap(folder)
    assert len(made) == len(again) == 5
    assert made[:] == again[:] == TEXTS


def test_text_arguments_may_be_given_by_name(tmp_path):
    StringsMmap.from_strings(
        out_dir=tmp_path / "m", strings=TEXTS, mode="r+b", verbose=True, starts_key="s", ends_key="e"
    )
    assert StringsMmap(out_dir=tmp_path / "m", mode="rb", starts_key="s", ends_key="e")[:] == TEXTS


@pytest.mark.parametrize("index", [0, 3, -1, -5, np.int64(1), np.uint8(3)])
def test_a_text_by_its_number(index, tmp_path):
    assert StringsMmap.from_strings(tmp_path / "m", TEXTS)[index] == TEXTS[index]


@pytest.mark.parametrize("index", [5, -6, np.int64(5)])
def test_a_text_number_out_of_range(index, tmp_path):
    with pytest.raises(IndexError, match=str(5)):
        StringsMmap.from_strings(tmp_path / "m", TEXTS)[index]


@pytest.mark.parametrize(("index", "chosen"), MANY)
def test_many_texts_are_a_list(index, chosen, tmp_path):
    assert StringsMmap.from_strings(tmp_path / "m", TEXTS[:4])[index] == [TEXTS[i] for i in chosen]


def test_append_and_extend_texts(folder):
    StringsMmap.from_strings(folder, TEXTS)
    m = StringsMmap(folder)
    m.append("new")
    m.extend(["", "още"])
    assert m[:] == StringsMmap(folder)[:] == [*TEXTS, "new", "", "още"]


def test_a_missing_folder_is_an_empty_map_of_texts(folder):
    m = StringsMmap(folder)
    assert len(m) == 0
    assert m[:] == []
    with pytest.raises(IndexError):
        m[0]
    m.append("Something")
    assert StringsMmap(folder)[:] == ["Something"]


def test_no_strings_at_all(folder):
    m = StringsMmap.from_strings(folder, [])
    assert len(m) == 0
    assert m[:] == []
    m.append("icak")
    assert m[:] == StringsMmap(folder)[:] == ["icak"]


@pytest.mark.parametrize(("index", "text"), [(0, "Korbo"), (-2, "бяла!?"), (np.int64(4), "яz?"), (2, "")])
def test_assigning_a_text_of_equal_utf_8_length(index, text, folder):
    StringsMmap.from_strings(folder, TEXTS)
    m = StringsMmap(folder)
    m[index] = text
    expected = list(TEXTS)
    expected[index] = text
    assert m[:] == StringsMmap(folder)[:] == expected
    m.close()
    assert StringsMmap(folder)[:] == expected


def test_assigning_several_texts(tmp_path):
    m = StringsMmap.from_strings(tmp_path / "m", TEXTS)
    m[:2] = ["Korbo", "Moiler"]
    m[2:2] = []
    assert StringsMmap(tmp_path / "m")[:] == ["Korbo", "Moiler", *TEXTS[2:]]


def test_a_read_only_map_of_texts(tmp_path):
    StringsMmap.from_strings(tmp_path / "m", TEXTS)
    make_read_only(tmp_path / "m")
    assert StringsMmap(tmp_path / "m", mode="rb")[:] == TEXTS


def test_mode_rb_does_not_assign(tmp_path):
    StringsMmap.from_strings(tmp_path / "m", TEXTS)
    m = StringsMmap(tmp_path / "m", mode="rb")
    with pytest.raises((TypeError, ValueError)):
        m[0] = "Korbo"
    assert m[0] == "Torba"


@pytest.mark.parametrize("n", [0, 3, 4, 9])
def test_texts_from_generator(n, tmp_path):
    StringsMmap.from_generator(tmp_path / "m", sample_generator=map(str, range(n)), batch_size=4, verbose=True)
    assert StringsMmap(tmp_path / "m")[:] == [str(i) for i in range(n)]


MANY_TEXTS = [f"{text} sample {i}".ljust(80) for i in range(40) for text in TEXTS]


@pytest.mark.parametrize("dictionary_size", [None, 256])
def test_compressed_texts(dictionary_size, folder):
    made = StringsMmap.from_strings(
        folder, MANY_TEXTS, zstd_level=3, zstd_train_dictionary_size=dictionary_size, verbose=True
    )
    made.extend(["", "нов"])
    made.append("last")
    expected = [*MANY_TEXTS, "", "нов", "last"]
    m = StringsMmap(folder)
    assert made[:] == m[:] == expected
    assert m[-2] == "нов"
    assert m[[0, -1]] == [MANY_TEXTS[0], "last"]
    data = sum(path.stat().st_size for path in Path(folder).iterdir() if path.name.startswith("data."))
    assert data < sum(len(text.encode()) for text in expected) / 2


@pytest.mark.parametrize("index", [0, slice(0, 1)])
def test_compressed_texts_are_not_assigned(index, tmp_path):
    m = StringsMmap.from_strings(tmp_path / "m", ["hello", "world"], zstd_level=3)
    with pytest.raises(ValueError, match=r"(?i)compressed|zstd"):
        m[index] = "other" if index == 0 else ["other"]
    assert m[:] == ["hello", "world"]


def test_compressed_texts_from_generator(tmp_path):
    StringsMmap.from_generator(tmp_path / "m", iter(MANY_TEXTS), 64, zstd_level=1, zstd_train_dictionary_size=256)
    assert StringsMmap(tmp_path / "m")[:] == MANY_TEXTS
