"""Rows of packed samples against a plain first fit: which sample lies where, for any number of readers."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmap_ninja import ReaderShard
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, SampleError
from mmap_ninja.gather import Jagged
from mmap_ninja.order import Order
from mmap_ninja.packing import PackedOrder, packed

modest = settings(max_examples=150, deadline=None, derandomize=True)


def first_fit(samples, rows, length):
    """The batches of samples `(number, size)` in their order, each a list of rows of sample numbers."""
    batches = []
    for number, size in samples:
        if not batches or not any(sum(taken for _, taken in row) + size <= length for row in batches[-1]):
            batches.append([[] for _ in range(rows)])
        for row in batches[-1]:
            if sum(taken for _, taken in row) + size <= length:
                row.append((number, size))
                break
    return [[[number for number, _ in row] for row in batch] for batch in batches]


def jagged(samples, dtype=np.int64):
    sizes = [len(sample) for sample in samples]
    values = np.array([value for sample in samples for value in sample]).astype(dtype)
    return Jagged(values, np.cumsum([0, *sizes]), np.array(sizes, np.int64).reshape(-1, 1))


def lists(batches):
    return [batch.tolist() for batch in batches]


class Case:
    """Samples of any lengths up to that of a row, and how they are packed; sample k holds `100 * k + 1` and so on."""

    def __init__(self, length, sizes, part, count, epoch, **options):
        self.length, self.sizes, self.rows, self.count = length, [min(s, length) for s in sizes], part * count, count
        self.epoch, self.options = epoch, options
        self.samples = [[100 * k + 1 + place for place in range(size)] for k, size in enumerate(self.sizes)]

    def __repr__(self):
        return f"Case({self.length}, {self.sizes}, rows={self.rows}, {self.count}, {self.epoch}, {self.options})"

    def order(self, index=0, count=1, **options):
        sizes, shard = np.array(self.sizes, np.int64), ReaderShard(index, count)
        order = PackedOrder(sizes, self.rows, self.length, shard=shard, **{**self.options, **options})
        order.set_epoch(self.epoch)
        return order

    def numbers(self):
        """The samples in the order of the epoch."""
        return [k for batch in Order(len(self.sizes), 7, **self.options).batches(self.epoch) for k in batch.tolist()]

    def expected(self):
        """The batches of the epoch, as rows of sample numbers."""
        return first_fit([(k, self.sizes[k]) for k in self.numbers()], self.rows, self.length)

    def packed(self, numbers, rows=None, **options):
        samples = jagged([self.samples[k] for k in numbers])
        return packed(samples, rows=rows or self.rows, length=self.length, **options)


cases = st.integers(1, 12).flatmap(
    lambda length: st.builds(
        Case,
        length=st.just(length),
        sizes=st.lists(st.sampled_from([0, 1, length]) | st.integers(0, length), max_size=40),
        part=st.integers(1, 3),
        count=st.sampled_from([1, 2, 4]),
        epoch=st.integers(0, 2),
        shuffle=st.booleans(),
        seed=st.integers(0, 3),
    )
)


def check_row(found, samples, length, pad_value=0):
    """One row holds these samples side by side, and padding after them."""
    samples = [sample for sample in samples if sample]
    rest = length - sum(map(len, samples))
    values, segment_ids, positions = (part.tolist() for part in found)
    assert values == [value for sample in samples for value in sample] + [pad_value] * rest
    assert segment_ids == [k for k, sample in enumerate(samples, 1) for _ in sample] + [0] * rest
    assert positions == [place for sample in samples for place in range(len(sample))] + [0] * rest


# --- which samples make a batch


@modest
@given(case=cases)
def test_batches_and_rows_are_those_of_a_plain_first_fit(case):
    batches, expected = list(case.order()), case.expected()
    assert all(numbers.dtype == np.int64 and numbers.ndim == 1 for numbers in batches)
    for numbers, rows in zip(batches, expected, strict=True):
        assert sorted(numbers) == sorted(k for row in rows for k in row)
        found = case.packed(numbers, pad_value=-1)
        assert all(part.shape == (case.rows, case.length) for part in found)
        assert (found.segment_ids.dtype, found.positions.dtype) == (np.int32, np.int32)
        for row, chosen in zip(zip(*found, strict=True), rows, strict=True):
            check_row(row, [case.samples[k] for k in chosen], case.length, pad_value=-1)


@modest
@given(case=cases)
def test_every_sample_comes_once_an_epoch_and_can_be_cut_out_again(case):
    numbers, found = [], []
    for batch in case.order():
        numbers += batch.tolist()
        for values, ids, positions in zip(*case.packed(batch), strict=True):
            for k in range(1, ids.max() + 1):
                assert positions[ids == k].tolist() == [*range((ids == k).sum())]
                found.append(values[ids == k].tolist())
    assert numbers == case.numbers()
    assert sorted(numbers) == [*range(len(case.sizes))]
    assert sorted(found) == [sample for sample in case.samples if sample]


@modest
@given(case=cases)
def test_the_rows_of_all_readers_end_to_end_are_those_of_one(case):
    readers = [list(case.order(index, case.count)) for index in range(case.count)]
    for batch, *parts in zip(case.order(), *readers, strict=True):  # all have equally many
        whole = case.packed(batch)
        made = [case.packed(part, case.rows // case.count) for part in parts]
        for k, name in enumerate(whole._fields):
            assert np.concatenate([part[k] for part in made]).tolist() == whole[k].tolist(), name
        assert sorted(k for part in parts for k in part) == sorted(batch)


@modest
@given(case=cases)
def test_drop_last_leaves_out_the_last_batch_for_all_readers(case):
    for index in range(case.count):
        batches = lists(case.order(index, case.count))
        assert lists(case.order(index, case.count, drop_last=True)) == batches[:-1]


def test_a_reader_may_have_no_samples_in_the_last_batch():
    sizes = np.array([2, 3, 3, 3, 3, 1])
    readers = [PackedOrder(sizes, 4, 3, shard=ReaderShard(k, 4)) for k in range(4)]
    assert [lists(reader) for reader in readers] == [[[0], [4]], [[1], [5]], [[2], []], [[3], []]]


def test_an_epoch_has_an_order_of_its_own():
    order = PackedOrder(np.arange(50) % 5, 2, 6, shuffle=True, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        epochs.append(lists(order))
        assert lists(order) == epochs[-1]  # until it is told of another one
    assert epochs[0] == epochs[2] != epochs[1]
    assert lists(PackedOrder(np.arange(50) % 5, 2, 6, shuffle=True, seed=4)) != epochs[0]


@pytest.mark.parametrize("begun", [0, 1])
def test_an_iteration_stays_in_the_epoch_that_it_began_in(begun):
    order = PackedOrder(np.arange(50) % 5, 2, 6, shuffle=True)
    expected = lists(order)
    running = iter(order)
    found = [next(running).tolist() for _ in range(begun)]
    order.set_epoch(1)
    assert found + lists(running) == expected


def test_more_samples_than_are_shuffled_at_once():
    sizes = np.random.default_rng(0).integers(0, 9, 40_000)
    batches = list(PackedOrder(sizes, 16, 64, shuffle=True))
    assert np.concatenate(batches).tolist() == np.concatenate([*Order(40_000, 5, shuffle=True)]).tolist()
    full = [sizes[batch].sum() for batch in batches[:-1]]
    assert min(full) > 16 * (64 - 8)


# --- one batch


DTYPES = ["?", "u1", "i2", "i8", "f2", "f4", "f8", "c8", ">i4", ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_keep_their_dtype(dtype):
    found = packed(jagged([[1, 0], [], [1, 1, 1], [1]], dtype), rows=2, length=3, pad_value=1)
    assert found.values.dtype == dtype
    assert found.values.tolist() == [[1, 0, 1], [1, 1, 1]]
    assert found.segment_ids.tolist() == [[1, 1, 2], [1, 1, 1]]
    assert found.positions.tolist() == [[0, 1, 0], [0, 1, 2]]


@pytest.mark.parametrize(("dtype", "value"), [("u1", 255), ("i4", -100), ("f4", 0.5), ("f4", np.nan), ("?", True)])
def test_what_is_free_has_the_pad_value(dtype, value):
    found = packed(jagged([[1]], dtype), rows=2, length=2, pad_value=value)
    expected = np.array([[1, value], [value, value]], dtype)
    assert found.values.tobytes() == expected.tobytes()
    assert found.segment_ids.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("dtype", "value"), [("i4", 0.5), ("u1", 256), ("u1", -1), ("i4", "x"), ("i4", [1, 2]), ("f4", None)], ids=str
)
def test_a_pad_value_that_the_dtype_lacks_is_refused(dtype, value):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="pad_value"):
        packed(jagged([[1]], dtype), rows=2, length=2, pad_value=value)


def test_arrays_are_made_by_the_function_that_is_given():
    made = []

    def empty(shape, dtype):
        made.append(np.full(shape, 77, dtype))
        return made[-1]

    found = packed(jagged([[5, 6], [7]]), rows=2, length=3, empty=empty)
    assert all(any(part is one for one in made) for part in found)
    assert [part.tolist() for part in found] == [[[5, 6, 7], [0] * 3], [[1, 1, 2], [0] * 3], [[0, 1, 0], [0] * 3]]


@pytest.mark.parametrize("samples", [[[1, 2, 3, 4]], [[1, 2]] * 3], ids=["longer than a row", "more than fit"])
def test_samples_that_do_not_fit_are_refused(samples):
    with pytest.raises(SampleError, match=r"samples of lengths \[.*\] do not fit into 2 rows of 3"):
        packed(jagged(samples), rows=2, length=3)


@pytest.mark.parametrize("shape", [(), (2, 2), (-1,)], ids=["scalars", "two axes", "scalars of a mixed map"])
def test_samples_of_other_axes_are_refused(shape):
    count = abs(int(np.prod(shape)))
    samples = Jagged(np.zeros(count), np.array([0, count]), np.array([shape], np.int64).reshape(1, -1))
    with pytest.raises(SampleError, match="samples of one axis each"):
        packed(samples, rows=2, length=4)


# --- wrong arguments


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"rows": 0}, ArgumentError, "rows is 0, expected at least 1"),
        ({"rows": 1.5}, ArgumentTypeError, "rows is 1.5, expected an integer"),
        ({"length": 0}, ArgumentError, "length is 0, expected at least 1"),
        ({"length": "3"}, ArgumentTypeError, "length is '3', expected an integer"),
        ({"length": 3}, ArgumentError, "a sample has length 4, more than a row of 3 takes"),
        ({"rows": 3, "shard": ReaderShard(0, 2)}, ArgumentError, "rows is 3, which 2 readers cannot share evenly"),
        ({"shuffle": 1}, ArgumentTypeError, "shuffle is 1, expected True or False"),
        ({"seed": -1}, ArgumentError, "seed is -1, expected"),
        ({"drop_last": "no"}, ArgumentTypeError, "drop_last is 'no', expected True or False"),
        ({"shard": (0, 2)}, ArgumentTypeError, r"shard is \(0, 2\), expected a ReaderShard"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense(options, kind, message):
    given = {"rows": 4, "length": 4, **options}
    with pytest.raises(kind, match=message):
        PackedOrder(np.array([1, 4, 2]), given.pop("rows"), given.pop("length"), **given)


def test_without_samples_there_are_no_batches():
    for shuffle in (False, True):
        assert list(PackedOrder(np.zeros(0, np.int64), 2, 3, shuffle=shuffle)) == []


def test_a_pickled_order_goes_on_alike():
    order = PackedOrder(np.arange(60) % 9, 4, 9, shuffle=True, seed=1, shard=ReaderShard(1, 2), drop_last=True)
    order.set_epoch(3)
    assert lists(pickle.loads(pickle.dumps(order))) == lists(order)
