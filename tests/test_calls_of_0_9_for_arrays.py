"""Every documented call of `mmap_ninja.numpy` 0.9.0 does what it did there.

Nothing in this file is new in 1.0: test_suite_of_0_9 runs it with 0.9.0 as well.
"""

from pathlib import Path

import numpy as np
import pytest

import calls_of_0_9
from calls_of_0_9 import make_read_only
from mmap_ninja import numpy as np_ninja

folder, array = calls_of_0_9.folder, calls_of_0_9.array


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
