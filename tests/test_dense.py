"""What is particular to dense maps."""

import numpy as np
import pytest

from contracts import MapContract, N, assert_same, manifest, same, tree
from mmap_ninja import DenseMmap, RaggedMmap, open_map
from mmap_ninja.errors import ArgumentTypeError, MapClosedError, MapKindError, SampleError, SampleTypeError

rng = np.random.default_rng(0)


class TestDenseContract(MapContract):
    kind = DenseMmap
    samples = list(rng.normal(size=(N, 3, 2)).astype("f4"))
    more = list(rng.normal(size=(3, 3, 2)).astype("f4"))
    bad, bad_match = np.zeros((3, 3), "f4"), r"shape \(3, 3\), expected \(3, 2\); RaggedMmap takes any"
    new_values = {1: np.ones((3, 2), "f4"), N - 1: np.arange(6, dtype="f4")}
    wrong_size = np.zeros((2, 2), "f4")

    def make(self, path, samples=None, **options):
        samples = self.samples if samples is None else samples
        if not isinstance(samples, list) or len({(np.shape(s), np.asarray(s).dtype) for s in samples}) != 1:
            return DenseMmap.from_generator(path, samples, N, **options)
        return DenseMmap.from_ndarray(path, np.stack(samples), **options)

    def read(self, sample):
        return sample.reshape(3, 2)

    def test_extend_by_what_is_no_list_of_samples(self, m, path):
        """An array of samples is what `from_ndarray` takes; only `extend` is the same for all kinds."""
        before = tree(path)
        for samples in ("text", b"bytes", {"a": 1}, None, 5, np.array(5)):
            with pytest.raises(ArgumentTypeError, match=f"expected a list of samples, got a {type(samples).__name__}"):
                m.extend(samples)
        assert tree(path) == before


class TestDenseOfScalarsContract(MapContract):
    kind = DenseMmap
    samples = list(np.arange(N) * 10)
    more = list(np.array([1, 2, 3]))
    bad, bad_match = np.float64(0.5), "the float64 value 0.5 cannot be stored exactly as int64"
    new_values = {0: np.int64(-1), N - 1: 7}
    wrong_size = np.zeros(2, int)

    make = TestDenseContract.make
    test_extend_by_what_is_no_list_of_samples = TestDenseContract.test_extend_by_what_is_no_list_of_samples

    def read(self, sample):
        return np.int64(sample)

    def window(self, sample, start, length):
        return None

    @pytest.mark.skip(reason="scalars are no views")
    def test_samples_are_read_only(self):
        pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map"


def test_slice_is_a_view_and_a_list_is_not(path):
    array = np.arange(24).reshape(6, 2, 2)
    m = DenseMmap.from_ndarray(path, array)
    assert same(m[1:5:2], array[1:5:2])
    assert same(m[::-1], array[::-1])
    assert not m[1:5].flags.owndata
    assert not m[1:5].flags.writeable
    taken = m[[3, 1]]
    assert same(taken, array[[3, 1]])
    taken[:] = 0
    assert same(m[3], array[3])


def test_take_into_a_buffer(path):
    array = np.arange(12.0).reshape(6, 2)
    m = DenseMmap.from_ndarray(path, array)
    out = np.full((3, 2), -1.0)
    assert m.take([5, 0, -2], out=out) is out
    assert same(out, array[[5, 0, -2]])
    every_second = np.zeros((4, 2))[::2]
    m.take(np.array([1, 2]), out=every_second)
    assert same(every_second, array[[1, 2]])
    m.take(iter([4]), out=out[:1])
    assert same(out[0], array[4])


@pytest.mark.parametrize(
    "out",
    [np.zeros((2, 2)), np.zeros((3, 2), "f4"), np.zeros((3, 2), ">f8"), np.zeros(6), [[0, 0]] * 3, "out"],
    ids=repr,
)
def test_take_into_a_buffer_that_does_not_fit(path, out):
    m = DenseMmap.from_ndarray(path, np.zeros((6, 2)))
    with pytest.raises(ArgumentTypeError, match=r"out has to be an array of float64 and shape \(3, 2\)"):
        m.take([0, 1, 2], out=out)


def test_take_into_a_buffer_knows_no_wrapper_fn(path):
    DenseMmap.from_ndarray(path, np.zeros((6, 2)))
    with pytest.raises(ArgumentTypeError, match="it knows no wrapper_fn"):
        DenseMmap(path, wrapper_fn=np.negative).take([0], out=np.zeros((1, 2)))


def test_take_into_a_read_only_buffer(path):
    m = DenseMmap.from_ndarray(path, np.ones((6, 2)))
    out = np.zeros((1, 2))
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"read-only|not writeable|writeable"):
        m.take([0], out=out)


@pytest.mark.parametrize("shape", [(4, 0), (4, 0, 3), (1, 3, 0)])
def test_samples_of_no_elements(path, shape):
    m = DenseMmap.from_ndarray(path, np.zeros(shape, "i2"))
    assert m[:].shape == shape
    assert m[0].shape == shape[1:]
    assert m[0].dtype == "i2"
    m.append(np.zeros(shape[1:]))
    assert len(DenseMmap(path)) == shape[0] + 1
    assert DenseMmap(path).ends.tolist() == [0] * (shape[0] + 1)


def test_no_samples_of_a_known_shape(path):
    """An array `(0, 3)` says which dtype and shape its samples would have."""
    m = DenseMmap.from_ndarray(path, np.zeros((0, 3), "f4"))
    assert m[:].shape == (0, 3)
    assert m.dtype == "f4"
    assert DenseMmap(path).sample_shape == (3,)
    with pytest.raises(SampleError, match=r"shape \(2,\), expected \(3,\)"):
        m.append(np.zeros(2, "f4"))


def test_no_samples_of_a_known_dtype(path):
    m = DenseMmap.from_generator(path, [], 4, dtype="f4")
    assert m.dtype == "f4"
    m.append([0.1])
    assert same(DenseMmap(path)[0], np.array([0.1], "f4"))


@pytest.mark.parametrize("order", ["C", "F"])
def test_data_is_a_plain_npy_file(path, order):
    array = np.asarray(np.arange(24, dtype=">i4").reshape(2, 3, 4), order=order)
    m = DenseMmap.from_ndarray(path, array)
    m.extend(array)
    loaded = np.load(path / "data.npy", mmap_mode="r", allow_pickle=False)
    assert same(np.asarray(loaded), np.concatenate([array, array]).astype(">i4"))
    assert manifest(path)["dtype"] == ">i4"
    assert manifest(path)["length"] == 4


def test_array_of_no_axes(path):
    with pytest.raises(SampleTypeError, match="an array of no axes has no samples"):
        DenseMmap.from_ndarray(path, np.array(5))
    assert not path.exists()


def test_lists_are_samples_too(path):
    m = DenseMmap.from_ndarray(path, [[1, 2], [3, 4]])
    m.extend([[5, 6]])
    m.extend(([7, 8], (9, 10)))
    assert m[:].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    assert m.dtype == int


@pytest.mark.parametrize("sample", [np.zeros(2), np.zeros((3, 1)), 5.0, [], [[1.0, 2.0, 3.0]]], ids=repr)
def test_wrong_sample_shape(path, sample):
    m = DenseMmap.from_ndarray(path, np.zeros((4, 3)))
    before = tree(path)
    with pytest.raises(SampleError, match=r"sample 4 .*shape \(.*\), expected \(3,\); RaggedMmap takes any"):
        m.append(sample)
    with pytest.raises(SampleError, match=r"shape \(.*\), expected \(3,\); RaggedMmap takes any"):
        m.extend(np.asarray([sample]))
    assert tree(path) == before


def test_lossy_array_tells_which_sample(path):
    m = DenseMmap.from_ndarray(path, np.zeros((4, 2), "i1"))
    with pytest.raises(SampleError, match=r"sample 6 \(item 2 of this batch\): the int64 value 300 .* int8"):
        m.extend(np.array([[1, 2], [3, 4], [5, 300]]))
    assert len(DenseMmap(path)) == 4


def test_texts_that_are_too_long(path):
    m = DenseMmap.from_ndarray(path, np.array(["ab", "c"]))
    m.extend(np.array(["de"]))
    with pytest.raises(
        SampleError, match=r"sample 4 \(item 1 of this batch\): .*abcd.* cannot be stored exactly as <U2"
    ):
        m.extend(np.array(["x", "abcd"]))
    assert m[:].tolist() == ["ab", "c", "de"]


def test_slices_assign_rows(path):
    m = DenseMmap.from_ndarray(path, np.zeros((4, 2)))
    m[1:3] = np.array([[1, 2], [3, 4]])
    assert m[:].tolist() == [[0, 0], [1, 2], [3, 4], [0, 0]]
    with pytest.raises(SampleError, match="expected a sequence of 2 samples to assign"):
        m[1:3] = 5.0
    with pytest.raises(SampleError, match="sample 2: the new value has shape"):
        m[1:3] = [[5, 6], [7]]
    with pytest.raises(SampleError, match=r"sample 0: the float64 value 0.5 cannot be stored exactly"):
        DenseMmap.from_ndarray(path, np.zeros((1, 1), int))[0] = [0.5]
    assert DenseMmap(path)[:].tolist() == [[0]]


def test_wrapped_many_are_a_list(path):
    DenseMmap.from_ndarray(path, np.arange(4))
    m = DenseMmap(path, wrapper_fn=lambda x: int(x) + 1)
    assert m[1:] == [2, 3, 4]
    assert m[[0]] == [1]


def test_sample_shape_of_a_closed_map(path):
    m = DenseMmap.from_ndarray(path, np.zeros((4, 3)))
    assert m.sample_shape == (3,)
    m.close()
    with pytest.raises(MapClosedError, match="closed"):
        m.sample_shape


def test_folder_of_another_kind(path):
    RaggedMmap.from_lists(path, [[1]])
    with pytest.raises(MapKindError, match="is a ragged map, not a dense one; use open_map"):
        DenseMmap(path)
    assert_same(open_map(path), [np.array([1])])


def test_handle_of_a_folder_that_became_another_kind(path):
    m = DenseMmap.from_ndarray(path, np.zeros(3))
    RaggedMmap.from_lists(path, [[1]])
    with pytest.raises(MapKindError, match="is a ragged map now, not a dense one"):
        m.append(0.0)
    with pytest.raises(MapKindError, match="is a ragged map, not a dense one; use open_map"):
        m.refresh()
    assert m[:].tolist() == [0, 0, 0]


def test_membership_of_rows_and_numbers(path, tmp_path):
    m = DenseMmap.from_ndarray(path, np.arange(4))
    assert 2 in m
    assert np.int64(3) in m
    for other in ([], [2], np.arange(4), np.zeros(0), "2", None, 2.5):
        assert other not in m
    rows = DenseMmap.from_ndarray(tmp_path / "rows", np.arange(4).reshape(2, 2))
    assert [2, 3] in rows
    assert np.array([2, 3]) in rows
    for other in ([], 2, [2], [3, 2], "23"):
        assert other not in rows
