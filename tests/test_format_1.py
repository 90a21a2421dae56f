"""Folders that mmap_ninja 0.9.0 itself has made: read, left alone, refused where they are damaged."""

import pickle

import numpy as np
import pytest

import maps_of_0_9
from maps_of_0_9 import DENSE, KINDS, MADE, RAGGED, assert_equal, keys_of, longer, open_kind, state, to_bytes
from mmap_ninja import RaggedMmap, StringsMmap, np_open_existing, open_existing, open_map
from mmap_ninja.errors import MapCorruptError

originals, read_by_old, copy = maps_of_0_9.originals, maps_of_0_9.read_by_old, maps_of_0_9.copy

# Reading


@pytest.mark.parametrize("name", MADE)
def test_0_9_reads_what_it_was_given(name, read_by_old):
    """Else the other tests would compare with nonsense."""
    given = [np.asarray(sample) for sample in MADE[name]]
    assert len(read_by_old[name]) == len(given)
    for got, sample in zip(read_by_old[name], given, strict=True):
        np.testing.assert_array_equal(got, sample)


@pytest.mark.parametrize("name", MADE)
def test_reads_equal(name, originals, read_by_old):
    m, expected = open_kind(originals / name, name), read_by_old[name]
    n = len(expected)
    assert_equal([m[i] for i in range(n)], expected)
    assert_equal([m[-i] for i in range(1, n + 1)], expected[::-1])
    assert_equal(list(m), expected)
    assert_equal(list(m[:]), expected)
    assert_equal(list(m[::-2]), expected[::-2])
    if n:
        assert_equal(list(m[[n - 1, 0, -1]]), [expected[-1], expected[0], expected[-1]])
        assert_equal(list(m[np.arange(n) % 2 == 0]), expected[::2])
    for i in (n, -n - 1):
        with pytest.raises(IndexError, match=str(n)):
            m[i]


@pytest.mark.parametrize("name", [name for name in MADE if not keys_of(name)])
@pytest.mark.parametrize("opened_by", [open_map, open_existing])
def test_reads_equal_when_opened_by_kind(opened_by, name, originals, read_by_old):
    m = opened_by(originals / name)
    is_array = opened_by is open_existing and name in DENSE
    assert isinstance(m, np.memmap if is_array else KINDS[name.split()[0]])
    assert_equal(list(m[:]), read_by_old[name])


@pytest.mark.parametrize("name", [name for name in MADE if keys_of(name)])
def test_without_its_keys_a_map_is_not_taken_for_an_empty_one(name, originals):
    with pytest.raises(MapCorruptError, match="starts"):
        open_map(originals / name)


@pytest.mark.parametrize("name", DENSE)
def test_arrays_read_equal(name, originals, read_by_old):
    m = np_open_existing(originals / name)
    assert (m.shape, m.dtype) == (DENSE[name].shape, DENSE[name].dtype)
    np.testing.assert_array_equal(m, DENSE[name])
    assert str(originals / name / "data.ninja") == str(m.filename)
    assert not m.flags.writeable


@pytest.mark.parametrize("name", MADE)
def test_reading_changes_nothing(name, originals):
    before = state(originals / name)
    for m in (open_kind(originals / name, name), pickle.loads(pickle.dumps(open_kind(originals / name, name)))):
        assert sum(len(to_bytes(sample)) for sample in m) >= 0
        m.lengths, m.shapes, m.starts, m.ends, m.dtype, m.nbytes, m.metadata, repr(m)
        m.take([])
        m.refresh()
        m.flush()
        m.close()
    if not keys_of(name):
        open_map(originals / name)
        open_existing(originals / name)
    assert state(originals / name) == before


@pytest.mark.parametrize("name", MADE)
def test_an_open_map_can_be_pickled(name, originals, read_by_old):
    data = pickle.dumps(open_kind(originals / name, name))
    assert len(data) < 2048
    assert_equal(list(pickle.loads(data)), read_by_old[name])


@pytest.mark.parametrize("name", RAGGED)
def test_lengths_and_shapes_come_from_the_index(name, originals, read_by_old):
    m = open_kind(originals / name, name)
    samples = [np.asarray(sample) for sample in read_by_old[name]]
    assert list(m.lengths) == [len(sample) if sample.ndim else 1 for sample in samples]
    assert [tuple(axis for axis in shape if axis >= 0) for shape in m.shapes] == [sample.shape for sample in samples]


def test_a_number_among_images_reads_as_a_number(originals):
    m = RaggedMmap(originals / "number among images")
    assert_equal(m[:], [4, np.array([[1, 2]])])


def test_nothing_but_empty_texts(originals):
    assert StringsMmap(originals / "empty texts")[:] == ["", ""]


@pytest.mark.parametrize("name", ["dense int8", "dense fortran", "ragged rows", "ragged images", "string"])
def test_surplus_bytes_do_no_harm(name, copy, read_by_old):
    folder = copy(name)
    with open(folder / "data.ninja", "ab") as file:
        file.write(b"surplus")
    assert_equal(list(open_map(folder)), read_by_old[name])


# Damage


def shorter(path):
    path.write_bytes(path.read_bytes()[:-1])


def garbage(path):
    path.write_bytes(b"\xff?")


@pytest.mark.parametrize(
    ("name", "damage", "where"),
    [
        ("dense int8", shorter, "data.ninja"),
        ("dense fortran", shorter, "data.ninja"),
        ("dense int8", shorter, "shape.ninja"),
        ("dense int8", garbage, "shape.ninja"),
        ("dense int8", garbage, "dtype.ninja"),
        ("dense int8", garbage, "order.ninja"),
        ("ragged rows", longer, "starts"),
        ("ragged rows", longer, "ends"),
        ("ragged rows", longer, "flattened_shapes"),
        ("ragged rows", longer, "shapes"),
        ("ragged images", longer, "shapes/starts"),
        ("ragged images", longer, "shapes/ends"),
        ("ragged images", longer, "shapes/flattened_shapes"),
        ("ragged images", shorter, "shapes/data.ninja"),
        ("ragged rows", shorter, "data.ninja"),
        ("ragged rows", shorter, "starts/shape.ninja"),
        ("ragged rows", shorter, "ends/data.ninja"),
        ("ragged rows", shorter, "shapes/data.ninja"),
        ("ragged rows", shorter, "shapes_are_flat.ninja"),
        ("string", longer, "starts"),
        ("string", longer, "ends"),
        ("string", shorter, "data.ninja"),
        ("string", shorter, "starts/data.ninja"),
        ("string zstd", shorter, "data.ninja"),
        ("string zstd", garbage, "zstd_level.ninja"),
    ],
)
@pytest.mark.parametrize("opened_by", ["open_map", "class"])
def test_counts_that_disagree_are_an_error(opened_by, name, damage, where, copy):
    folder = copy(name)
    damage(folder / where)
    before = state(folder)
    with pytest.raises(MapCorruptError, match=rf"{where}|--salvage"):
        open_map(folder) if opened_by == "open_map" else open_kind(folder, name)
    assert state(folder) == before


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("dense int8", "data.ninja"),
        ("dense int8", "dtype.ninja"),
        ("ragged rows", "starts/data.ninja"),
        ("ragged rows", "ends/shape.ninja"),
        ("ragged images", "shapes/data.ninja"),
        ("string", "ends/data.ninja"),
        ("string", "data.ninja"),
    ],
)
def test_a_missing_file_is_named(name, gone, copy):
    folder = copy(name)
    (folder / gone).unlink()
    with pytest.raises(MapCorruptError, match=gone):
        open_map(folder)
