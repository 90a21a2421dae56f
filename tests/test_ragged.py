"""What is particular to ragged maps."""

import numpy as np
import pytest

from contracts import MapContract, N, assert_same, manifest, same, tree
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap
from mmap_ninja.errors import ArgumentTypeError, MapKindError, SampleError, SampleTypeError

rng = np.random.default_rng(1)


class Ragged(MapContract):
    kind = RaggedMmap

    def make(self, path, samples=None, **options):
        return RaggedMmap.from_lists(path, self.samples if samples is None else samples, **options)


class TestRowsContract(Ragged):
    samples = [rng.integers(0, 1000, size) for size in (3, 1, 7, 2, 5, 4, 0, 6, 8)]
    more = [rng.integers(0, 1000, size) for size in (2, 9, 0)]
    bad, bad_match = np.array([1, 0.5]), "the float64 value 0.5 cannot be stored exactly as int64"
    new_values = {0: np.array([5, 6, 7]), 8: list(range(8))}
    wrong_size = np.arange(20)

    def read(self, sample):
        return np.asarray(sample)


class TestImagesContract(Ragged):
    samples = [
        rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(2, 3), (4, 1), (1, 1), (3, 3), (2, 2)] * 2
    ][:N]
    more = [rng.integers(0, 256, (h, 2, 3), dtype=np.uint8) for h in (1, 0, 5)]
    bad, bad_match = np.full((1, 1, 3), 256), "the int64 value 256 cannot be stored exactly as uint8"
    new_values = {0: np.zeros((2, 3, 3), np.uint8), 2: np.array([7, 8, 9])}
    wrong_size = np.zeros((4, 4, 3), np.uint8)

    def read(self, sample):
        return sample.astype(np.uint8).reshape(1, 1, 3) if sample.ndim == 1 else sample


class TestMixedAxesContract(Ragged):
    samples = [np.arange(3.0), 0.5, np.ones((2, 2)), np.zeros(0), 1.5, np.ones((1, 2, 3)), -0.0, np.zeros((0, 2)), 2.0]
    more = [np.full((2, 1, 1, 2), 7.0), 4.0, np.arange(2.0)]
    bad, bad_match = np.array(2**53 + 1), "the int64 value 9007199254740993 cannot be stored exactly as float64"
    new_values = {1: 9.0, 2: np.zeros((2, 2)), 5: np.arange(6.0)}
    wrong_size = np.zeros((3, 3))

    def read(self, sample):
        return sample.reshape(1, 2, 3) if np.shape(sample) == (6,) else sample

    def window(self, sample, start, length):
        return None if isinstance(sample, float) else sample[start : start + length]


class TestScalarsContract(Ragged):
    samples = [3, 1, 4, -1, 5, 9, -2, 6, 0]
    more = [np.int64(7), np.array(8), np.uint8(10)]
    bad, bad_match = 0.5, "the float64 value 0.5 cannot be stored exactly as int64"
    new_values = {0: 100, 8: np.array([-100])}
    wrong_size = [1, 2]

    def read(self, sample):
        return int(np.asarray(sample).reshape(()))

    def window(self, sample, start, length):
        return None


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map"


@pytest.mark.parametrize(
    ("sample", "type_"),
    [(True, bool), (5, int), (0.5, float), (np.float32(0.5), float), (np.float16(0.5), float), (np.uint8(5), int)],
    ids=repr,
)
def test_scalars_read_as_python_scalars(path, sample, type_):
    m = RaggedMmap.from_lists(path, [sample, np.array([sample])])
    assert type(m[0]) is type_
    assert m[0] == sample
    assert same(m[1], np.array([sample]))
    assert m.shapes.tolist() == [[-1], [1]]
    assert m.lengths.tolist() == [1, 1]


@pytest.mark.parametrize(
    "scalar", [np.complex64(1j), np.datetime64("2020-01-01"), np.array(("a", 1), "U3,i4")], ids=repr
)
def test_other_scalars_read_as_arrays_of_no_axes(path, scalar):
    m = RaggedMmap.from_lists(path, [scalar])
    assert same(m[0], np.asarray(scalar))


def test_dtype_is_that_of_the_first_sample(path):
    m = RaggedMmap.from_lists(path, [np.ones(2, "f4"), [1, 2], np.array([0.5])])
    assert m.dtype == "f4"
    assert_same(m, [np.ones(2, "f4"), np.array([1, 2], "f4"), np.array([0.5], "f4")])


def test_more_axes_later(path):
    samples = [np.arange(2), np.arange(3)]
    m = RaggedMmap.from_lists(path, samples)
    reader = RaggedMmap(path)
    for ndim in (2, 4, 3, 0, 1):
        samples.append(np.arange(2**ndim).reshape((2,) * ndim))
        m.append(samples[-1])
        expected = [s if s.ndim else s.item() for s in samples]
        assert_same(m, expected)
        assert_same(RaggedMmap(path), expected)
        assert_same(reader, samples[:2])
    assert m.shapes.shape == (7, 4)
    assert m.shapes[0].tolist() == [2, -1, -1, -1]
    assert sum(name.name.startswith("index") for name in path.iterdir()) == 1


def test_widening_index_goes_with_the_sample_that_is_refused(path):
    m = RaggedMmap.from_lists(path, [np.arange(2)])
    before = tree(path)
    with pytest.raises(SampleError, match=r"the float64 value 0.5 cannot be stored exactly as int64"):
        m.extend([np.ones((2, 2), int), np.array([0.5])])
    assert tree(path) == before


def test_empty_samples_keep_their_shapes(path):
    samples = [np.zeros((0, 3)), np.zeros((2, 0)), np.zeros((0, 0))]
    m = RaggedMmap.from_lists(path, samples)
    assert_same(m, samples)
    m.append(np.ones((1, 1)))
    m.append(np.zeros((5, 0)))
    assert_same(RaggedMmap(path), [*samples, np.ones((1, 1)), np.zeros((5, 0))])


def test_memmap_is_all_values_end_to_end(path):
    m = RaggedMmap.from_lists(path, [[1, 2], [[3], [4]], []])
    assert same(m.memmap, np.array([1, 2, 3, 4]))
    assert not m.memmap.flags.writeable
    assert [m.memmap[a:b].tolist() for a, b in zip(m.starts, m.ends, strict=True)] == [[1, 2], [3, 4], []]


def test_memmap_ends_with_the_snapshot(path):
    import pickle

    m = RaggedMmap.from_lists(path, [[1, 2]])
    raw = pickle.dumps(m)
    m.append([3])
    assert pickle.loads(raw).memmap.tolist() == [1, 2]


def test_files_are_plain_npy(path):
    m = RaggedMmap.from_lists(path, [np.arange(3, dtype=">u2"), np.zeros((2, 2), ">u2")])
    m.append([[9]])
    assert same(np.load(path / "data.npy", allow_pickle=False), np.array([0, 1, 2, 0, 0, 0, 0, 9], ">u2"))
    index = np.load(path / "index-2.npy" if (path / "index-2.npy").exists() else path / "index.npy")
    assert index.dtype == "<i8"
    assert index.tolist() == [[0, 3, -1], [3, 2, 2], [7, 1, 1]]
    assert manifest(path)["dtype"] == ">u2"


def test_window_of_a_long_sample(path):
    long = np.arange(1_000_000).reshape(-1, 2)
    m = RaggedMmap.from_lists(path, [long])
    assert same(m.window(0, 123_456, 3), long[123_456:123_459])
    assert not m.window(0, 0, 5).flags.owndata


def test_take_has_no_buffer(path):
    m = RaggedMmap.from_lists(path, [[1], [2, 3]])
    with pytest.raises(ArgumentTypeError, match=r"take\(out=...\) is for dense maps; samples of a ragged map differ"):
        m.take([0], out=np.zeros(1, int))


@pytest.mark.parametrize("sample", ["text", b"bytes", ["a", "b"], np.str_("x")], ids=repr)
def test_text_in_a_map_of_numbers(path, sample):
    m = RaggedMmap.from_lists(path, [[1]])
    with pytest.raises(
        (SampleError, SampleTypeError), match=r"StringsMmap stores texts|cannot be stored in a map of int64"
    ):
        m.append(sample)
    assert len(RaggedMmap(path)) == 1


def test_bare_text_is_no_sample(path):
    with pytest.raises(SampleTypeError, match=r"sample 0 .*a str is no array; StringsMmap stores texts"):
        RaggedMmap.from_lists(path, ["text"])
    with pytest.raises(
        SampleTypeError, match=r"sample 0 .*a bytes is no array; StringsMmap stores texts, BytesMmap bytes"
    ):
        RaggedMmap.from_lists(path, [b"text"])
    assert not path.exists()


def test_ragged_list_inside_a_sample(path):
    with pytest.raises(SampleTypeError, match=r"sample 1 .*a list that is no regular array"):
        RaggedMmap.from_lists(path, [[[1, 2], [3, 4]], [[1], [2, 3]]])
    assert not path.exists()


def test_assignment_by_shape_or_by_number_of_elements(path):
    m = RaggedMmap.from_lists(path, [np.zeros((2, 3), int), np.zeros(4, int)])
    m[0] = np.arange(6)
    assert same(m[0], np.arange(6).reshape(2, 3))
    m[0] = np.full((2, 3), 7, "u1")
    assert same(m[0], np.full((2, 3), 7))
    for wrong in (np.zeros((3, 2), int), np.zeros((1, 6), int), np.zeros(5, int), 1):
        with pytest.raises(SampleError, match=r"sample 0: the new value has shape \(.*\), expected \(2, 3\)"):
            m[0] = wrong
    with pytest.raises(SampleError, match=r"sample 1: the float64 value 0.5 cannot be stored exactly as int64"):
        m[1] = [0, 0, 0, 0.5]
    with pytest.raises(SampleError, match="sample 1: the complex128 value 1j cannot be stored exactly as int64"):
        m[1] = [0, 0, 0, 1j]
    assert_same(RaggedMmap(path), [np.full((2, 3), 7), np.zeros(4, int)])


def test_assignment_over_many_checksum_blocks(path):
    from mmap_ninja._storage.flatfile import BLOCK, check_blocks
    from mmap_ninja._storage.snapshot import find

    samples = [np.zeros(BLOCK * 5 // 2, "u1"), np.ones(BLOCK, "u1")]
    with RaggedMmap.from_lists(path, samples) as m:
        m[0] = np.full(BLOCK * 5 // 2, 3, "u1")
        m[1] = np.full(BLOCK, 4, "u1")
    check_blocks(str(path), find(str(path)).files["data"])
    assert_same(RaggedMmap(path), [np.full(BLOCK * 5 // 2, 3, "u1"), np.full(BLOCK, 4, "u1")])


def test_folder_of_another_kind(path):
    DenseMmap.from_ndarray(path, [1])
    with pytest.raises(MapKindError, match="is a dense map, not a ragged one; use open_map"):
        RaggedMmap(path)
    BytesMmap.from_bytes(path, [b"x"])
    with pytest.raises(MapKindError, match="is a bytes map, not a ragged one; use open_map"):
        RaggedMmap(path)
