"""Every documented call of mmap_ninja 0.9.0 does what it did there.

Nothing in this file is new in 1.0: test_suite_of_0_9 runs it with 0.9.0 as well.
"""

import inspect
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

import mmap_ninja
from mmap_ninja import base, generic, ragged, string
from mmap_ninja import numpy as np_ninja
from mmap_ninja.base import Wrapped
from mmap_ninja.generic import open_existing
from mmap_ninja.ragged import RaggedMmap
from mmap_ninja.string import StringsMmap

ROWS = [[11, 13, -1, 17], [2, 3], [], [90, 12, 5]]
TEXTS = ["Torba", "Boiler", "", "жълта", "popo"]


def rows(m):
    """The samples of a ragged map as lists."""
    return [np.asarray(sample).tolist() for sample in m[:]]


def make_read_only(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            os.chmod(path, stat.S_IRUSR)


@pytest.fixture(params=[str, Path])
def folder(request, tmp_path):
    """A folder that does not exist yet, as a string and as a path."""
    return request.param(tmp_path / "map")


# Names and signatures


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("RaggedMmap", ragged.RaggedMmap),
        ("StringsMmap", string.StringsMmap),
        ("Wrapped", base.Wrapped),
        ("open_existing", generic.open_existing),
        ("np_from_ndarray", np_ninja.from_ndarray),
        ("np_from_generator", np_ninja.from_generator),
        ("np_open_existing", np_ninja.open_existing),
        ("np_extend", np_ninja.extend),
        ("np_extend_dir", np_ninja.extend_dir),
        ("np_append", np_ninja.append),
    ],
)
def test_the_names_at_the_top_are_those_of_the_modules(name, there):
    assert getattr(mmap_ninja, name) is there


KEYS = {"starts_key": "starts", "ends_key": "ends"}
ALL_KEYS = {**KEYS, "shapes_key": "shapes", "flattened_shapes_key": "flattened_shapes"}


@pytest.mark.parametrize(
    ("call", "required", "optional"),
    [
        (RaggedMmap, "out_dir", {"wrapper_fn": None, "mode": "r", **ALL_KEYS, "copy_before_wrapper_fn": True}),
        (RaggedMmap.from_lists, "out_dir lists", {"dtype": None, "mode": "r+", "wrapper_fn": None, **ALL_KEYS}),
        (RaggedMmap.from_generator, "out_dir sample_generator batch_size", {"verbose": False}),
        (RaggedMmap.from_indexable, "out_dir indexable batch_size", {"n_jobs": None, "verbose": False}),
        (StringsMmap, "out_dir", {"mode": "r+b", **KEYS}),
        (StringsMmap.from_strings, "out_dir strings", {"mode": "r+b", **KEYS, "verbose": False, "zstd_level": None}),
        (StringsMmap.from_generator, "out_dir sample_generator batch_size", {"verbose": False}),
        (np_ninja.from_ndarray, "out_dir arr", {}),
        (np_ninja.from_generator, "out_dir sample_generator batch_size", {"verbose": False}),
        (np_ninja.open_existing, "out_dir", {"mode": "r"}),
        (np_ninja.extend_dir, "out_dir arr", {}),
        (open_existing, "out_dir", {"wrapper_fn": None, "mode": "r+b"}),
        (Wrapped, "data wrapper_fn", {"copy_before_wrapper_fn": True}),
        (base.from_generator_base, "out_dir sample_generator batch_size batch_ctor", {"extend_fn": None}),
    ],
)
def test_arguments_have_their_names_places_and_defaults(call, required, optional):
    parameters = list(inspect.signature(call).parameters.values())
    assert [p.name for p in parameters[: len(required.split())]] == required.split()
    after = parameters[len(required.split()) :][: len(optional)]
    assert {p.name: p.default for p in after} == optional
    assert [p.name for p in after] == list(optional)
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters[: len(required.split()) + len(optional)])


# RaggedMmap


def test_from_lists_and_open_again(folder):
    made = RaggedMmap.from_lists(folder, ROWS)
    again = RaggedMmap(folder)
    assert len(made) == len(again) == 4
    assert rows(made) == rows(again) == ROWS


def test_arguments_may_be_given_by_name(tmp_path):
    m = RaggedMmap.from_lists(out_dir=tmp_path / "m", lists=ROWS, dtype=np.int16, mode="r+", wrapper_fn=None)
    assert m[0].dtype == np.int16
    assert rows(RaggedMmap(out_dir=tmp_path / "m", wrapper_fn=None, mode="r", copy_before_wrapper_fn=True)) == ROWS


@pytest.mark.parametrize("index", [0, 3, -1, -4, np.int64(1), np.int8(-2), np.uint16(3)])
def test_a_ragged_sample_by_its_number(index, tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "m", ROWS)
    assert isinstance(m[index], np.ndarray)
    assert m[index].tolist() == ROWS[index]


@pytest.mark.parametrize("index", [4, -5, 100, np.int64(4)])
def test_a_ragged_number_out_of_range(index, tmp_path):
    with pytest.raises(IndexError, match=str(4)):
        RaggedMmap.from_lists(tmp_path / "m", ROWS)[index]


MANY = [
    (slice(None), [0, 1, 2, 3]),
    (slice(2), [0, 1]),
    (slice(-3, None, 2), [1, 3]),
    (slice(None, None, -1), [3, 2, 1, 0]),
    (slice(10, 20), []),
    ([2, 0, -1, 0], [2, 0, 3, 0]),
    (np.array([1, 1]), [1, 1]),
    (np.array([True, False, False, True]), [0, 3]),
]


@pytest.mark.parametrize(("index", "chosen"), MANY)
def test_many_ragged_samples_are_a_list(index, chosen, tmp_path):
    got = RaggedMmap.from_lists(tmp_path / "m", ROWS)[index]
    assert isinstance(got, list)
    assert [sample.tolist() for sample in got] == [ROWS[i] for i in chosen]


def test_samples_of_several_axes_keep_their_shapes(tmp_path):
    images = [np.arange(12).reshape(2, 2, 3), np.arange(6).reshape(1, 2, 3), np.zeros((0, 4, 3), int)]
    m = RaggedMmap.from_lists(tmp_path / "m", images)
    assert [image.shape for image in m[:]] == [(2, 2, 3), (1, 2, 3), (0, 4, 3)]
    np.testing.assert_array_equal(m[1], images[1])


def test_samples_may_differ_in_their_number_of_axes(tmp_path):
    samples = [np.array([[11, 13], [-1, 17]]), np.array([2, 3]), np.array([[90], [12]])]
    m = RaggedMmap.from_generator(tmp_path / "m", samples, batch_size=1)
    assert [sample.tolist() for sample in m[:]] == [sample.tolist() for sample in samples]


@pytest.mark.parametrize(("numbers", "kind"), [([3, -1, 7], int), ([0.5, 2.0], float), ([True, False], bool)])
def test_scalars_are_read_as_python_scalars(numbers, kind, tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "m", numbers)
    assert m[:] == numbers
    assert {type(number) for number in m[:]} == {kind}


def test_the_dtype_is_that_of_the_first_sample(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "m", [np.array([1.5], np.float32), [2]])
    assert m[1].dtype == np.float32


STRIDED = [np.arange(6).reshape(2, 3).T, np.arange(12).reshape(4, 3)[::2, ::-1], np.arange(8)[::3]]


def test_samples_may_lie_in_memory_as_they_like(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "m", STRIDED)
    m.extend(STRIDED)
    assert rows(m) == [sample.tolist() for sample in STRIDED * 2]


def test_append_and_extend_in_the_default_mode(folder):
    RaggedMmap.from_lists(folder, ROWS)
    m = RaggedMmap(folder)
    m.append(np.array([7, 7]))
    m.extend([[8], [9, 9]])
    assert len(m) == 7
    assert rows(m) == rows(RaggedMmap(folder)) == [*ROWS, [7, 7], [8], [9, 9]]


def test_extending_images_and_scalars(tmp_path):
    images = RaggedMmap.from_lists(tmp_path / "images", [np.ones((2, 3))])
    images.extend([np.zeros((1, 5)), np.ones((4, 1))])
    assert [image.shape for image in images[:]] == [(2, 3), (1, 5), (4, 1)]
    numbers = RaggedMmap.from_lists(tmp_path / "numbers", [1, 2])
    numbers.append(3)
    assert numbers[:] == [1, 2, 3]


def test_a_missing_folder_is_an_empty_map_that_append_starts(folder):
    m = RaggedMmap(folder)
    assert len(m) == 0
    with pytest.raises(IndexError):
        m[0]
    m.append(np.array([[1.0, 2.0, 3.0]]))
    assert len(m) == 1
    assert RaggedMmap(folder)[0].tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("index", [1, -3, np.int64(1)])
def test_assigning_a_ragged_sample(index, folder):
    RaggedMmap.from_lists(folder, ROWS)
    m = RaggedMmap(folder, mode="r+")
    m[index] = np.array([-5, -6])
    assert rows(m) == rows(RaggedMmap(folder)) == [ROWS[0], [-5, -6], [], ROWS[3]]


def test_assigning_several_ragged_samples(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "m", ROWS)
    m[:2] = [[1, 2, 3, 4], [5, 6]]
    assert rows(RaggedMmap(tmp_path / "m")) == [[1, 2, 3, 4], [5, 6], [], ROWS[3]]


def test_assigning_a_sample_of_several_axes_end_to_end(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "m", [np.zeros((2, 2)), np.zeros((1, 3))])
    m[1] = np.array([1.0, 2.0, 3.0])
    assert RaggedMmap(tmp_path / "m")[1].tolist() == [[1.0, 2.0, 3.0]]


def test_assigning_in_the_default_mode_is_refused(tmp_path):
    RaggedMmap.from_lists(tmp_path / "m", ROWS)
    with pytest.raises(ValueError, match=r'read-only|mode "r"'):
        RaggedMmap(tmp_path / "m")[1] = [0, 0]
    assert rows(RaggedMmap(tmp_path / "m")) == ROWS


def test_wrapper_fn_is_applied_to_each_sample(tmp_path):
    made = RaggedMmap.from_lists(tmp_path / "m", ROWS, wrapper_fn=len)
    assert made[:] == [4, 2, 0, 3]
    opened = RaggedMmap(tmp_path / "m", wrapper_fn=lambda x: x.astype(np.int8))
    assert opened[0].dtype == np.int8


def increase(sample):
    sample += 1
    return sample


def test_wrapper_fn_gets_a_copy(tmp_path):
    RaggedMmap.from_lists(tmp_path / "m", ROWS)
    m = RaggedMmap(tmp_path / "m", wrapper_fn=increase)
    assert m[1].tolist() == m[1].tolist() == [3, 4]


def test_wrapper_fn_gets_the_stored_sample_when_no_copy_is_wanted(tmp_path):
    RaggedMmap.from_lists(tmp_path / "m", ROWS)
    m = RaggedMmap(tmp_path / "m", wrapper_fn=lambda x: x, copy_before_wrapper_fn=False)
    assert np.shares_memory(m[0], m[0])
    copied = RaggedMmap(tmp_path / "m", wrapper_fn=lambda x: x)
    assert not np.shares_memory(copied[0], copied[0])


def test_folders_of_other_names(tmp_path):
    names = {"starts_key": "s", "ends_key": "e", "shapes_key": "h", "flattened_shapes_key": "f"}
    m = RaggedMmap.from_lists(tmp_path / "m", ROWS, **names)
    m.append([6])
    assert rows(RaggedMmap(tmp_path / "m", **names)) == [*ROWS, [6]]


@pytest.mark.parametrize("n", [3, 4, 9])
@pytest.mark.parametrize("verbose", [False, True])
def test_ragged_from_generator(n, verbose, tmp_path):
    RaggedMmap.from_generator(tmp_path / "m", (np.full(i, i) for i in range(1, n + 1)), 4, verbose=verbose)
    assert rows(RaggedMmap(tmp_path / "m")) == [[i] * i for i in range(1, n + 1)]


def test_a_generator_of_nothing(tmp_path):
    RaggedMmap.from_generator(tmp_path / "m", iter([]), 4)
    assert len(RaggedMmap(tmp_path / "m")) == 0


def test_from_generator_passes_its_keywords_on(tmp_path):
    m = RaggedMmap.from_generator(tmp_path / "m", sample_generator=ROWS, batch_size=2, dtype=np.float16, wrapper_fn=sum)
    assert m[0] == 40.0
    assert RaggedMmap(tmp_path / "m")[3].dtype == np.float16


class Squares:
    """Five rows: i has i + 1 times i * i."""

    def __getitem__(self, i):
        if not 0 <= i < 5:
            raise IndexError(i)
        return np.full(i + 1, i * i)


class SquaresOfKnownLength(Squares):
    def __len__(self):
        return 5


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
@pytest.mark.parametrize("indexable", [Squares(), SquaresOfKnownLength(), lambda i: Squares()[i]])
def test_from_indexable(indexable, n_jobs, tmp_path):
    m = RaggedMmap.from_indexable(tmp_path / "m", indexable, 2, n_jobs=n_jobs)
    expected = [[0], [1, 1], [4, 4, 4], [9] * 4, [16] * 5]
    assert rows(m) == rows(RaggedMmap(tmp_path / "m")) == expected


def test_from_indexable_passes_its_keywords_on(tmp_path):
    m = RaggedMmap.from_indexable(tmp_path / "m", indexable=ROWS, batch_size=3, verbose=True, dtype=np.int8)
    assert rows(m) == ROWS
    assert m[0].dtype == np.int8


def test_starts_ends_and_memmap(tmp_path):
    m = RaggedMmap.from_lists(tmp_path / "m", ROWS)
    assert np.asarray(m.starts).tolist() == [0, 4, 6, 6]
    assert np.asarray(m.ends).tolist() == [4, 6, 6, 9]
    assert np.asarray(m.memmap).tolist() == [11, 13, -1, 17, 2, 3, 90, 12, 5]


@pytest.mark.parametrize("length", [0, 4])
@pytest.mark.parametrize("kind", [RaggedMmap, StringsMmap])
def test_repr_tells_kind_and_length(kind, length, tmp_path):
    m = kind(tmp_path / "m")
    if length:
        m.extend(ROWS if kind is RaggedMmap else TEXTS[:4])
    assert kind.__name__ in repr(m)
    assert str(length) in repr(m)


def test_a_read_only_ragged_map(tmp_path):
    RaggedMmap.from_lists(tmp_path / "m", ROWS)
    make_read_only(tmp_path / "m")
    assert rows(RaggedMmap(tmp_path / "m", mode="r")) == ROWS


# StringsMmap


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


# mmap_ninja.numpy


@pytest.fixture
def array():
    return np.arange(24.0).reshape(4, 3, 2)


def test_from_ndarray_returns_a_memmap_directly_in_the_folder(folder, array):
    for m in (np_ninja.from_ndarray(folder, array), np_ninja.open_existing(folder)):
        assert isinstance(m, np.memmap)
        assert Path(m.filename).parent == Path(folder)
        assert m.dtype == np.float64
        np.testing.assert_array_equal(m, array)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "float16", "float32", "complex64", "datetime64[s]"])
def test_arrays_keep_their_dtype(dtype, tmp_path):
    array = np.arange(6).reshape(3, 2).astype(dtype)
    np_ninja.from_ndarray(out_dir=tmp_path / "m", arr=array)
    m = np_ninja.open_existing(out_dir=tmp_path / "m", mode="r")
    assert m.dtype == array.dtype
    np.testing.assert_array_equal(m, array)


def test_lists_fortran_order_and_no_rows(tmp_path, array):
    assert np_ninja.from_ndarray(tmp_path / "list", [[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    np_ninja.from_ndarray(tmp_path / "fortran", np.asfortranarray(array))
    np.testing.assert_array_equal(np_ninja.open_existing(tmp_path / "fortran"), array)
    assert np_ninja.from_ndarray(tmp_path / "empty", np.zeros((0, 3))).shape == (0, 3)
    assert np_ninja.open_existing(tmp_path / "empty").shape == (0, 3)


def test_arrays_may_lie_in_memory_as_they_like(tmp_path, array):
    m = np_ninja.from_ndarray(tmp_path / "m", array[::-2, :, ::-1])
    np_ninja.extend(m, array[1::2, ::-1])
    np_ninja.append(m, np.asfortranarray(array[0]))
    expected = np.concatenate([array[::-2, :, ::-1], array[1::2, ::-1], array[:1]])
    np.testing.assert_array_equal(np_ninja.open_existing(tmp_path / "m"), expected)


def test_numpy_works_on_what_is_returned(tmp_path, array):
    m = np_ninja.from_ndarray(tmp_path / "m", array)
    assert m.sum() == 276.0
    assert (m[1:3] + 1).tolist() == (array[1:3] + 1).tolist()
    assert m[[2, 0], ..., 1].tolist() == array[[2, 0], ..., 1].tolist()
    assert m[np.int64(-1)].tolist() == array[-1].tolist()
    assert np.concatenate([m, m]).shape == (8, 3, 2)


def test_writing_into_what_from_ndarray_returned(tmp_path):
    m = np_ninja.from_ndarray(tmp_path / "m", np.arange(4))
    m[0] = 5
    m.flush()
    assert np_ninja.open_existing(tmp_path / "m").tolist() == [5, 1, 2, 3]


def test_changing_what_from_ndarray_returned_in_place(tmp_path):
    m = np_ninja.from_ndarray(tmp_path / "m", np.arange(4).reshape(2, 2))
    m += 10
    m[1][0] = 5
    m.flush()
    assert np_ninja.open_existing(tmp_path / "m").tolist() == [[10, 11], [5, 13]]


def test_mode_c_keeps_changes_to_itself(tmp_path):
    np_ninja.from_ndarray(tmp_path / "m", np.arange(4))
    private = np_ninja.open_existing(tmp_path / "m", mode="c")
    private[0] = 9
    assert private.tolist() == [9, 1, 2, 3]
    assert np_ninja.open_existing(tmp_path / "m").tolist() == [0, 1, 2, 3]


def test_opening_for_reading_and_for_writing(tmp_path):
    np_ninja.from_ndarray(tmp_path / "m", np.arange(4))
    reader = np_ninja.open_existing(tmp_path / "m")
    with pytest.raises(ValueError, match="read-only"):
        reader[0] = 9
    writer = np_ninja.open_existing(tmp_path / "m", mode="r+")
    writer[1:3] = 7
    writer.flush()
    assert np_ninja.open_existing(tmp_path / "m").tolist() == reader.tolist() == [0, 7, 7, 3]


def test_extend_append_and_extend_dir(folder, array):
    m = np_ninja.from_ndarray(folder, array)
    np_ninja.extend(m, array[:2] + 100)
    np_ninja.append(m, np.full((3, 2), -1))
    np_ninja.extend_dir(folder, [[[8, 8]] * 3])
    expected = np.concatenate([array, array[:2] + 100, np.full((1, 3, 2), -1), np.full((1, 3, 2), 8)])
    np.testing.assert_array_equal(np_ninja.open_existing(folder), expected)


def test_memmaps_keep_their_length_when_the_map_grows(tmp_path):
    made = np_ninja.from_ndarray(tmp_path / "m", np.arange(3))
    opened = np_ninja.open_existing(tmp_path / "m")
    np_ninja.extend(opened, np.arange(3, 2000))
    np_ninja.append(made, 7)
    assert made.tolist() == opened.tolist() == [0, 1, 2]
    assert np_ninja.open_existing(tmp_path / "m").tolist() == [*range(2000), 7]


def test_appending_numbers(tmp_path):
    m = np_ninja.from_ndarray(tmp_path / "m", np.arange(3))
    np_ninja.append(m, np.asarray(4))
    np_ninja.append(m, 5)
    assert np_ninja.open_existing(tmp_path / "m").tolist() == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("verbose", [False, True])
def test_np_from_generator(folder, verbose):
    m = np_ninja.from_generator(
        out_dir=folder, sample_generator=([i, -i] for i in range(10)), batch_size=4, verbose=verbose
    )
    assert isinstance(m, np.memmap)
    assert np_ninja.open_existing(folder).tolist() == [[i, -i] for i in range(10)]


def test_a_read_only_array(tmp_path, array):
    np_ninja.from_ndarray(tmp_path / "m", array)
    make_read_only(tmp_path / "m")
    np.testing.assert_array_equal(np_ninja.open_existing(tmp_path / "m", mode="r"), array)


# open_existing and Wrapped


def test_open_existing_rows(folder):
    RaggedMmap.from_lists(folder, ROWS)
    assert isinstance(open_existing(folder), RaggedMmap)
    assert rows(open_existing(out_dir=folder)) == ROWS


def test_open_existing_texts(folder):
    StringsMmap.from_strings(folder, TEXTS)
    m = open_existing(folder)
    assert isinstance(m, StringsMmap)
    m[0] = "Korbo"
    assert open_existing(folder, mode="rb")[:] == ["Korbo", *TEXTS[1:]]


def test_open_existing_array(folder, array):
    np_ninja.from_ndarray(folder, array)
    m = open_existing(folder)
    assert isinstance(m, np.memmap)
    assert not m.flags.writeable
    np.testing.assert_array_equal(m, array)


def test_open_existing_with_a_wrapper_fn(tmp_path):
    RaggedMmap.from_lists(tmp_path / "ragged", ROWS)
    assert open_existing(tmp_path / "ragged", wrapper_fn=len)[:] == [4, 2, 0, 3]
    StringsMmap.from_strings(tmp_path / "texts", ['{"a": 1}', "[2]"])
    texts = open_existing(tmp_path / "texts", wrapper_fn=json.loads)
    assert isinstance(texts, Wrapped)
    assert (texts[0], texts[-1], len(texts)) == ({"a": 1}, [2], 2)
    np_ninja.from_ndarray(tmp_path / "array", np.arange(3))
    array = open_existing(tmp_path / "array", wrapper_fn=lambda x: x * 10)
    assert isinstance(array, Wrapped)
    assert (array[1], array[-1], len(array)) == (10, 20, 3)
    assert array[1:].tolist() == [10, 20]


def test_open_existing_of_an_unknown_kind(tmp_path):
    (tmp_path / "type.ninja").write_text("asd")
    with pytest.raises(ValueError, match="asd"):
        open_existing(tmp_path)


def test_open_existing_of_nothing(folder):
    with pytest.raises(FileNotFoundError):
        open_existing(folder)


def test_wrapped_applies_its_function_at_each_read():
    wrapped = Wrapped(data=np.array([1, 2, 3]), wrapper_fn=lambda x: -x)
    assert [wrapped[0], wrapped[-1], len(wrapped)] == [-1, -3, 3]
    assert wrapped[:2].tolist() == [-1, -2]


def test_wrapped_copies_unless_told_not_to():
    data = [[1], [2]]
    assert Wrapped(data, lambda x: x)[0] is not data[0]
    assert Wrapped(data, lambda x: x, copy_before_wrapper_fn=False)[0] is data[0]


# from_generator_base, on which another published package builds


class Recorder(list):
    """What a `batch_ctor` returns: keeps its batches."""

    def __init__(self, out_dir, samples, **options):
        assert Path(out_dir).is_dir()
        super().__init__([list(samples)])
        self.out_dir, self.options = Path(out_dir), options

    def extend(self, samples):
        self.append(["extended", *samples])


def test_from_generator_base_with_extend(folder):
    m = base.from_generator_base(folder, iter(range(7)), 3, Recorder, mode="sample", verbose=True)
    assert m == [[0, 1, 2], ["extended", 3, 4, 5], ["extended", 6]]
    assert m.out_dir == Path(folder)
    assert m.options == {"mode": "sample"}


def test_from_generator_base_with_an_extend_fn(tmp_path):
    m = base.from_generator_base(
        out_dir=tmp_path / "m",
        sample_generator=range(6),
        batch_size=3,
        batch_ctor=Recorder,
        extend_fn=lambda m, samples: m.append(["by function", *samples]),
    )
    assert m == [[0, 1, 2], ["by function", 3, 4, 5]]
    assert m.options == {}


def test_from_generator_base_with_fewer_samples_than_a_batch(tmp_path):
    assert base.from_generator_base(tmp_path / "m", "ab", 3, Recorder) == [["a", "b"]]


def test_from_generator_base_with_a_class_of_this_package(tmp_path):
    m = base.from_generator_base(tmp_path / "m", iter(TEXTS), 2, StringsMmap.from_strings, zstd_level=1)
    assert m[:] == TEXTS
