"""The gathers themselves, over plain arrays and bytes."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from mmap_ninja import gather
from mmap_ninja.errors import SampleError
from mmap_ninja.gather import Even, Jagged, Padded, Slices

RNG = np.random.default_rng(4)
VALUES = RNG.integers(0, 1000, 5000, dtype=np.int16)


def rows_of(starts, shapes, values=VALUES):
    """Samples that lie anywhere in the values."""
    shapes = np.array(shapes, np.int64)
    shapes = shapes[:, None] if shapes.ndim == 1 else shapes
    sizes = shapes.prod(axis=1, dtype=np.int64)
    data = values.view(np.uint8).data
    return Slices(values.dtype, shapes, sizes, np.arange(len(starts)) + 40, data, np.array(starts, np.int64))


def samples_of(rows, values=VALUES):
    return [
        values[start : start + size].reshape(shape)
        for start, size, shape in zip(rows.starts, rows.sizes, rows.shapes, strict=True)
    ]


class Counting:
    """Hands out arrays full of something else, and remembers them."""

    def __init__(self):
        self.given = []

    def __call__(self, shape, dtype):
        self.given.append(np.full(shape, 171, dtype))
        return self.given[-1]


@pytest.fixture(params=["joined", "one by one", "in blocks"])
def way(request, monkeypatch):
    """Both ways to copy, and more samples than one join takes."""
    if request.param == "one by one":
        monkeypatch.setattr(gather, "_JOINED", 0)
    if request.param == "in blocks":
        monkeypatch.setattr(gather, "_AT_ONCE", 3)


ROWS = {
    "anywhere": ([100, 7, 7, 4990, 0], [3, 4, 0, 10, 1]),
    "in order": ([100, 103, 107, 107], [3, 4, 0, 10]),
    "in order but for the last": ([100, 103, 107, 118], [3, 4, 10, 1]),
    "backwards": ([107, 103, 100], [10, 4, 3]),
    "one": ([4999], [1]),
    "none": ([], []),
    "of one size": ([5, 50, 2], [4, 4, 4]),
}
IMAGES = {
    "images": ([0, 500, 20, 77], [(2, 3, 2), (4, 1, 2), (0, 5, 2), (1, 1, 2)]),
    "images of one width": ([0, 500, 20, 77], [(2, 3, 2), (4, 3, 2), (0, 3, 2), (1, 3, 2)]),
    "images of one shape in order": ([24, 36, 48], [(2, 3, 2)] * 3),
}


@pytest.mark.parametrize("name", [*ROWS, *IMAGES])
@pytest.mark.usefixtures("way")
def test_jagged(name):
    rows, empty = rows_of(*{**ROWS, **IMAGES}[name]), Counting()
    found = gather.jagged(rows, empty)
    assert isinstance(found, Jagged)
    assert found.values is empty.given[0]
    assert len(empty.given) == 1
    samples = samples_of(rows)
    assert found.values.tolist() == [value for sample in samples for value in sample.reshape(-1).tolist()]
    assert found.offsets.tolist() == np.cumsum([0] + [sample.size for sample in samples]).tolist()
    assert found.shapes is rows.shapes
    assert found.values.tobytes() == gather.jagged(rows).values.tobytes()


@pytest.mark.parametrize("name", [*ROWS, *IMAGES])
@pytest.mark.parametrize("is_left", [False, True])
@pytest.mark.usefixtures("way")
def test_padded(name, is_left):
    rows, empty = rows_of(*{**ROWS, **IMAGES}[name]), Counting()
    shape = tuple(size + extra for size, extra in zip(rows.longest, (2, 1, 0), strict=False))
    for padded_shape in (rows.longest, shape):
        found = gather.padded(rows, padded_shape, np.array(-7, np.int16), is_left=is_left, empty=empty)
        assert isinstance(found, Padded)
        assert found.values is empty.given.pop()
        assert empty.given == []
        assert found.values.shape == (len(rows.sizes), *padded_shape)
        assert found.lengths.tolist() == rows.shapes[:, 0].tolist()
        for row, sample in zip(found.values, samples_of(rows), strict=True):
            expected = np.full(padded_shape, -7, np.int16)
            if is_left:
                expected[
                    tuple(slice(axis - size, None) for axis, size in zip(row.shape, sample.shape, strict=True))
                ] = sample
            else:
                expected[tuple(map(slice, sample.shape))] = sample
            assert row.tolist() == expected.tolist()


def test_rows_that_lie_end_to_end_are_one_copy(monkeypatch):
    monkeypatch.setattr(Slices, "parts", lambda *args: 1 / 0)
    for name in ("in order", "one", "images of one shape in order"):
        rows = rows_of(*{**ROWS, **IMAGES}[name])
        assert gather.jagged(rows).values.tolist() == VALUES[rows.starts[0] :][: rows.sizes.sum()].tolist()
    same = rows_of(*IMAGES["images of one shape in order"])
    assert (
        gather.padded(same, same.longest, np.array(0, np.int16)).values.tolist()
        == VALUES[24:60].reshape(3, 2, 3, 2).tolist()
    )
    with pytest.raises(ZeroDivisionError):
        gather.jagged(rows_of(*ROWS["anywhere"]))


def test_scalars():
    rows = rows_of([3, 1, 9], np.zeros((3, 0)))
    assert gather.jagged(rows).values.tolist() == VALUES[[3, 1, 9]].tolist()
    values, lengths, shapes = gather.padded(rows, (), np.array(0, np.int16))
    assert values.tolist() == VALUES[[3, 1, 9]].tolist()
    assert (lengths.tolist(), shapes.shape) == ([1, 1, 1], (3, 0))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 2), (6, 0, 2)])
def test_dense(order, shape):
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape), order=order)
    for index in ([4, 0, 0, 5], [2, 3, 4], []):
        positions, empty = np.array(index, np.int64), Counting()
        found = gather.dense(array, positions, empty)
        assert found is empty.given[0]
        assert found.tolist() == array[positions].tolist()
        out = np.zeros_like(found)
        assert gather.fill(out, array, positions) is out
        assert out.tolist() == found.tolist()
        rows = Even.of(array, positions)
        assert rows.longest == shape[1:]
        jagged = gather.jagged(rows)
        assert jagged.values.tolist() == found.reshape(-1).tolist()
        assert jagged.shapes.tolist() == [list(shape[1:])] * len(index)
        padded = gather.padded(rows, shape[1:], np.array(0))
        assert padded.values.tolist() == found.tolist()
        if shape[1:]:
            wide = gather.padded(rows, (shape[1] + 1, *shape[2:]), np.array(9), is_left=True).values
            assert wide[:, 1:].tolist() == found.tolist()
            assert (wide[:, 0] == 9).all()


def test_an_array_in_fortran_order_is_not_copied_as_a_whole():
    array = np.zeros((1000, 1000), order="F")
    tracemalloc.start()
    gather.dense(array, np.array([3, 1]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_axes_that_no_sample_has_are_left_out():
    rows = rows_of([0, 50], [3, 5])
    wide = replace(rows, shapes=np.array([[3, -1], [5, -1]]))
    assert gather.regular(wide).shapes.tolist() == [[3], [5]]
    assert gather.regular(rows) is rows
    assert gather.regular(replace(wide, shapes=np.array([[-1, -1], [-1, -1]]))).shapes.shape == (2, 0)
    assert gather.jagged(wide).shapes.tolist() == [[3, -1], [5, -1]]
    with pytest.raises(SampleError, match="sample 40 has 1 axes, sample 41 has 2: they have no padded shape in common"):
        gather.regular(replace(wide, shapes=np.array([[3, -1], [5, 1]])))


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        (
            (3, 3, 2),
            "sample 41 has length 4, more than the 3 that it would be padded to; give a larger",
        ),
        ((4, 4, 2), "sample 42 has length 5 on axis 1, more than the 4"),
        ((4, 5, 1), "sample 40 has length 2 on axis 2, more than the 1"),
    ],
)
def test_a_sample_that_does_not_fit(shape, match):
    with pytest.raises(SampleError, match=match):
        gather.padded(rows_of(*IMAGES["images"]), shape, np.array(0, np.int16))


def test_a_batch_that_fits_nowhere():
    rows, zero = rows_of([0], [3]), np.array(0, np.int16)
    with pytest.raises(SampleError, match=r"there is no memory for a batch of shape \(1, 4611686018427387904\)"):
        gather.padded(rows, (2**62,), zero)
    with pytest.raises(SampleError, match=f"there is no memory for a batch of shape .*{2**70}"):
        gather.padded(rows, (2**70,), zero)


def test_lengths():
    assert gather.lengths(np.array([[3, 4], [0, 9], [-1, -1]])).tolist() == [3, 0, 1]
    assert gather.lengths(np.zeros((2, 0), np.int64)).tolist() == [1, 1]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1], [2, 2, 0]])
def test_samples_of_hundreds_of_kilobytes(order):
    """Large pieces are copied in another way, without the GIL."""
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, 2**31, size, dtype=np.int32) for size in (90_000, 5, 200_000, 0)]
    sizes = np.array([len(sample) for sample in samples])
    starts = np.array([0, *sizes.cumsum()[:-1]])
    rows = gather.Slices(
        np.dtype(np.int32),
        sizes[order, None],
        sizes[order],
        np.array(order),
        memoryview(np.concatenate(samples)).cast("B"),
        starts[order],
    )
    chosen = [samples[i] for i in order]
    assert np.array_equal(gather.jagged(rows).values, np.concatenate(chosen))
    assert np.array_equal(gather.jagged(rows, lambda *made: np.empty(*made)).values, np.concatenate(chosen))
    values = gather.padded(rows, (200_000,), np.array(-1, np.int32)).values
    assert all(np.array_equal(row[: len(sample)], sample) for row, sample in zip(values, chosen, strict=True))
    assert all((row[len(sample) :] == -1).all() for row, sample in zip(values, chosen, strict=True))
