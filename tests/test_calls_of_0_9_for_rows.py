"""Every documented call of `RaggedMmap` of mmap_ninja 0.9.0 does what it did there.

Nothing in this file is new in 1.0: test_suite_of_0_9 runs it with 0.9.0 as well.
"""

import numpy as np
import pytest

import calls_of_0_9
from calls_of_0_9 import MANY, ROWS, TEXTS, make_read_only, rows
from mmap_ninja.ragged import RaggedMmap
from mmap_ninja.string import StringsMmap

folder = calls_of_0_9.folder


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
