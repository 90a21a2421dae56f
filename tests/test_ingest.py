"""How samples arrive: iterables, indexables, functions, several processes, progress."""

import multiprocessing
import sys
import time
from mmap import mmap

import numpy as np
import pytest

from contracts import FailsAt, Unsized, assert_same, failing, notes
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, _ingest, np_from_generator, np_from_ndarray
from mmap_ninja.base import from_generator_base
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    MissingExtraError,
    PartBuiltWarning,
    SampleError,
    SampleTypeError,
)

SAMPLES = [np.arange(i % 7) for i in range(300)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map"


def square(i):
    return np.array([i * i])


def slow_at_first(i):
    time.sleep(0.02 if i == 0 else 0)
    if i >= 100:
        raise IndexError(i)
    return np.array([i])


@pytest.mark.parametrize(
    "indexable", [SAMPLES, Unsized(SAMPLES), SAMPLES.__getitem__], ids=["sized", "unsized", "function"]
)
@pytest.mark.parametrize("n_jobs", [2, -1])
def test_several_processes_keep_the_order(path, indexable, n_jobs):
    m = RaggedMmap.from_indexable(path, indexable, 50, n_jobs=n_jobs)
    assert_same(m, SAMPLES)


def test_a_slow_first_sample_stays_the_first(path):
    m = RaggedMmap.from_indexable(path, slow_at_first, 10, n_jobs=2)
    assert [int(sample[0]) for sample in m] == list(range(100))


def test_functions_that_only_cloudpickle_can_send(path):
    offset = 5
    m = RaggedMmap.from_indexable(path, lambda i: SAMPLES[i][:offset], 50, n_jobs=2)
    assert_same(m, [sample[:5] for sample in SAMPLES])


class CountsPickles:
    def __init__(self):
        self.pickles = 0

    def __len__(self):
        return 200

    def __getitem__(self, i):
        return np.array([i])

    def __getstate__(self):
        self.pickles += 1
        return {"pickles": 0}


def test_the_indexable_is_sent_once(path):
    indexable = CountsPickles()
    m = RaggedMmap.from_indexable(path, indexable, 10, n_jobs=2)
    assert len(m) == 200
    assert indexable.pickles == 1


@pytest.mark.parametrize("error", [KeyError("mine"), IndexError("mine")], ids=repr)
def test_error_in_another_process(path, error):
    with pytest.raises(type(error), match="mine") as caught:
        RaggedMmap.from_indexable(path, FailsAt(SAMPLES, 137, error), 50, n_jobs=2)
    assert "while loading sample 137" in notes(caught.value)


def test_error_of_an_unsized_indexable_that_is_no_end(path):
    with pytest.raises(KeyError, match="mine") as caught:
        RaggedMmap.from_indexable(path, lambda i: FailsAt(SAMPLES, 7, KeyError("mine"))[i], 50)
    assert "while loading sample 7" in notes(caught.value)


def test_only_index_error_past_the_end_ends_an_indexable(path):
    assert len(RaggedMmap.from_indexable(path, Unsized(SAMPLES[:20]), 7)) == 20
    with pytest.raises(IndexError, match="mine") as caught:
        RaggedMmap.from_indexable(path, FailsAt(SAMPLES, 7, IndexError("mine")), 50)
    assert "while loading sample 7" in notes(caught.value)
    with pytest.raises(RuntimeError, match="StopIteration"):
        RaggedMmap.from_indexable(path, FailsAt(SAMPLES, 7, StopIteration()), 50)


def test_error_while_samples_are_skipped_tells_its_own_number(path):
    with pytest.raises(ZeroDivisionError):
        RaggedMmap.from_generator(path, failing(SAMPLES, 20, ZeroDivisionError()), 10)
    with pytest.raises(KeyError, match="mine") as caught:
        RaggedMmap.from_generator(path, failing(SAMPLES, 3, KeyError("mine")), 10, resume=True)
    assert "while loading sample 3" in notes(caught.value)


def test_interrupt_leaves_a_part_that_resumes(path):
    with pytest.raises(KeyboardInterrupt):
        RaggedMmap.from_generator(path, failing(SAMPLES, 25, KeyboardInterrupt()), 10)
    with pytest.warns(PartBuiltWarning, match="has the 20 samples"):
        assert len(RaggedMmap(path)) == 20
    assert_same(RaggedMmap.from_generator(path, SAMPLES, 10, resume=True), SAMPLES)


def test_resume_of_a_source_that_became_shorter(path):
    with pytest.raises(ZeroDivisionError):
        RaggedMmap.from_generator(path, failing(SAMPLES, 25, ZeroDivisionError()), 10)
    for make in (RaggedMmap.from_generator, RaggedMmap.from_indexable):
        with pytest.raises(ArgumentError, match="the source has 5 samples, but 20 were converted before"):
            make(path, SAMPLES[:5], 10, resume=True)
    assert_same(RaggedMmap.from_generator(path, SAMPLES[:20], 10, resume=True), SAMPLES[:20])


def test_resume_where_nothing_was_begun(path):
    assert_same(RaggedMmap.from_generator(path, SAMPLES[:5], 2, resume=True), SAMPLES[:5])
    assert_same(RaggedMmap.from_generator(path, SAMPLES[5:], 2, resume=True), SAMPLES[5:])


def test_resume_with_another_dtype(path):
    with pytest.raises(ZeroDivisionError):
        RaggedMmap.from_generator(path, failing(SAMPLES, 25, ZeroDivisionError()), 10)
    with pytest.raises(ArgumentError, match="holds an unfinished map of int64, not float32"):
        RaggedMmap.from_generator(path, SAMPLES, 10, resume=True, dtype="f4")


@pytest.mark.parametrize("n_jobs", [0, "2", 1.5])
def test_bad_number_of_jobs(path, n_jobs):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"n_jobs is {n_jobs!r}"):
        RaggedMmap.from_indexable(path, SAMPLES, 10, n_jobs=n_jobs)
    assert not path.exists()


def test_without_cloudpickle(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(MissingExtraError, match=r"n_jobs needs cloudpickle: pip install mmap-ninja\[parallel\]"):
        RaggedMmap.from_indexable(path, SAMPLES, 10, n_jobs=2)
    assert not path.exists()
    assert_same(RaggedMmap.from_indexable(path, SAMPLES, 10, n_jobs=1), SAMPLES)


def test_parallel_loading_leaves_no_files(path, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    RaggedMmap.from_indexable(path, SAMPLES, 50, n_jobs=2)
    assert not list(folder.glob("mmap_ninja*"))


def test_chunks():
    assert list(map(list, _ingest.chunks(range(5), 2))) == [[0, 1], [2, 3], [4]]
    assert list(map(list, _ingest.chunks(range(4), 2))) == [[0, 1], [2, 3]]
    assert list(_ingest.chunks([], 2)) == []


def test_at_most_one_batch_is_taken_ahead(path):
    """A generator is consumed batch by batch: memory stays bounded."""
    taken = []

    def samples():
        for i in range(30):
            taken.append(i)
            yield np.array([i])
            if i % 10 == 9:
                assert len(taken) == i + 1

    assert len(RaggedMmap.from_generator(path, samples(), 10)) == 30


def test_progress_bar_of_a_resumed_build_begins_where_it_was(path, capsys):
    with pytest.raises(ZeroDivisionError):
        RaggedMmap.from_generator(path, failing(SAMPLES, 200, ZeroDivisionError()), 100)
    RaggedMmap.from_indexable(path, SAMPLES, 100, verbose=True, resume=True)
    shown = capsys.readouterr().err
    assert "200/300" in shown
    assert "300/300" in shown


# -- an end is an end ------------------------------------------------------------------------------------------------


class StartsOver:
    """An iterator that begins again when it is asked after its end, as many loaders do."""

    def __init__(self, samples):
        self.samples, self.coming, self.ends = samples, iter(samples), 0

    def __iter__(self):
        return self

    def __next__(self):
        for sample in self.coming:
            return sample
        self.ends += 1
        assert self.ends < 3, "it is asked again and again"
        self.coming = iter(self.samples)
        raise StopIteration


KINDS = {
    "ragged": (RaggedMmap, lambda i: np.arange(i)),
    "dense": (DenseMmap, lambda i: np.array([i, i])),
    "bytes": (BytesMmap, lambda i: bytes([i])),
    "texts": (StringsMmap, str),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20])
@pytest.mark.parametrize("verbose", [False, True])
def test_an_iterator_is_not_asked_after_its_end(tmp_path, kind, count, verbose):
    cls, sample = KINDS[kind]
    samples = list(map(sample, range(count)))
    for size in (1, 5, 10, 100):
        source = StartsOver(samples)
        assert_same(cls.from_generator(tmp_path / str(size), source, size, verbose), samples)
        assert source.ends == 1
    m = cls.from_generator(tmp_path / "extended", [sample(3)], 1)
    m.extend(StartsOver(samples))
    assert_same(m, [sample(3), *samples])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_first_end_of_a_mapped_function_is_the_end(tmp_path, size):
    def one(i):
        if i == 4:
            raise StopIteration
        return np.array([i])

    m = RaggedMmap.from_generator(tmp_path / "map", map(one, range(10)), size)
    assert [int(row[0]) for row in m] == [0, 1, 2, 3]
    m.extend(map(one, range(10)))
    assert len(m) == 8


def test_an_iterator_that_ends_while_it_is_resumed_is_not_asked_again(path):
    with pytest.raises(ZeroDivisionError):
        RaggedMmap.from_generator(path, failing(SAMPLES, 25, ZeroDivisionError()), 10)
    source = StartsOver(SAMPLES[:5])
    with pytest.raises(ArgumentError, match="the source has 5 samples, but 20 were converted before"):
        RaggedMmap.from_generator(path, source, 10, resume=True)
    assert source.ends == 1
    assert_same(RaggedMmap.from_generator(path, StartsOver(SAMPLES[:20]), 10, resume=True), SAMPLES[:20])


def test_from_generator_base_does_not_ask_after_the_end(path):
    made = from_generator_base(path, StartsOver(list(range(10))), 5, lambda folder, samples: samples)
    assert made == list(range(10))


# -- what arrives is stored as it arrived ------------------------------------------------------------------------


class Lazy:
    """What numpy asks for an array, which is the same one each time."""

    def __init__(self, array, value):
        self.array, self.value = array, value

    def __array__(self, dtype=None, copy=None):
        self.array[...] = self.value
        return self.array.copy() if copy else self.array


def arrays_again(count, size=3, dtype="f8", layout=None):
    """One buffer again and again; `layout` makes a view of it that is not contiguous."""
    buffer = np.zeros((size, 2), dtype)
    for i in range(count):
        buffer[...] = np.array(i, "i8").astype(dtype)
        yield buffer if layout is None else buffer[::layout]


def lists_again(count):
    buffer = [0, 0]
    for i in range(count):
        buffer[:] = [i, -i]
        yield buffer


def lazy_ones(count):
    buffer = np.zeros(3)
    return (Lazy(buffer, i) for i in range(count))


def read_only(buffer):
    """A view that may not be written to, of memory that may."""
    array = np.frombuffer(buffer, "u1")
    array.flags.writeable = False
    return array


class Uncopyable(Lazy):
    """As one that holds a file or a lock."""

    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")


class Sequence:
    """A sequence of the user's that fills one array, and that cannot be copied."""

    def __init__(self, value):
        self.value, self.buffer = value, np.zeros(2)

    def __len__(self):
        return 3

    def __getitem__(self, i):
        if i >= 3:
            raise IndexError(i)
        self.buffer[:] = self.value + i
        return self.buffer

    __deepcopy__ = Uncopyable.__deepcopy__


def memory_again(buffer, sample=lambda buffer: buffer):
    """Memory that Python does not copy, filled again and again."""

    def again(count):
        for i in range(count):
            buffer[:] = type(buffer[:])([i] * len(buffer)) if isinstance(buffer, mmap) else [i] * len(buffer)
            yield sample(buffer)

    return again


def records_again(dtype):
    def again(count):
        buffer = np.zeros(2, dtype)
        for i in range(count):
            buffer[0] = (i, i / 2) if buffer.dtype.names else i.to_bytes(4, "big")
            yield buffer[0]

    return again


AGAIN = {
    "records": records_again("i4,f8"),
    "bytes of no type": records_again("V4"),
    "records in lists": lambda count: ([record, record] for record in records_again("i4,f8")(count)),
    "shared memory": memory_again(multiprocessing.RawArray("d", 3)),
    "synchronized memory": memory_again(multiprocessing.Array("d", 3)),
    "shared memory in lists": memory_again(multiprocessing.RawArray("i", 3), lambda buffer: [buffer, buffer]),
    "shared memory in tuples": memory_again(multiprocessing.RawArray("i", 3), lambda buffer: (buffer, buffer)),
    "mapped memory": memory_again(mmap(-1, 5)),
    "a view of mapped memory": memory_again(mmap(-1, 5), read_only),
    "views of bytes": memory_again(mmap(-1, 5), memoryview),
    "views of bytes in lists": memory_again(mmap(-1, 5), lambda buffer: [memoryview(buffer), memoryview(buffer)]),
    "uncopyable": lambda count: (Uncopyable(one.array, one.value) for one in lazy_ones(count)),
    "arrays": arrays_again,
    "large": lambda count: arrays_again(count, 3_000),
    "larger": lambda count: arrays_again(count, 100_000),
    "strided": lambda count: arrays_again(count, 8, layout=3),
    "large and strided": lambda count: arrays_again(count, 20_000, layout=-2),
    "times": lambda count: arrays_again(count, dtype="M8[s]"),
    "cast": lambda count: (array.astype("f4") if i == 0 else array for i, array in enumerate(arrays_again(count))),
    "lists": lists_again,
    "lazy": lazy_ones,
    "views": lambda count: (memoryview(array) for array in arrays_again(count)),
    "no axes": lambda count: (array[0, 0, ...] for array in arrays_again(count)),
}


@pytest.mark.parametrize("source", AGAIN)
@pytest.mark.parametrize("cls", [RaggedMmap, DenseMmap])
def test_a_buffer_that_is_used_again(tmp_path, source, cls):
    samples = AGAIN[source]
    expected = [np.array(sample).copy() for sample in samples(23)]  # `np.array` makes views of records
    made = [cls.from_generator(tmp_path / "generator", samples(23), 10)]
    coming = samples(23)
    made.append(cls.from_indexable(tmp_path / "indexable", lambda i: next_or_end(coming), 10))
    made.append(cls.from_generator(tmp_path / "extended", [expected[0]], 10))
    made[-1].extend(samples(23))
    for m in made:
        assert len(m) >= 23
        for found, sample in zip(m[-23:], expected, strict=True):
            assert np.array_equal(found, sample)


def next_or_end(samples):
    for sample in samples:
        return sample
    raise IndexError


def test_a_buffer_that_is_used_again_for_a_memmap(path):
    assert np_from_generator(path, arrays_again(23), 10)[:, 0, 0].tolist() == list(range(23))


@pytest.mark.parametrize("make", [bytearray, lambda size: memoryview(bytearray(size))], ids=["bytearray", "view"])
def test_bytes_that_are_used_again(tmp_path, make):
    def again():
        buffer = make(2)
        for i in range(23):
            buffer[:] = bytes([i, i])
            yield buffer

    m = BytesMmap.from_generator(tmp_path / "map", again(), 10)
    m.extend(again())
    assert list(m) == [bytes([i, i]) for i in range(23)] * 2


@pytest.mark.parametrize("source", [source for source in AGAIN if "larg" not in source])
def test_a_buffer_that_is_used_again_for_a_function_of_others(path, source):
    expected = [np.array(sample).copy() for sample in AGAIN[source](7)]
    made = from_generator_base(
        path, AGAIN[source](7), 3, lambda folder, chunk: list(chunk), lambda made, more: made.extend(more)
    )
    assert all(map(np.array_equal, made, expected))


def test_what_is_neither_an_array_nor_numbers_is_handed_on_as_it_is(path):
    """Packages that build on this one may have samples of any class."""
    samples = [open(__file__), multiprocessing.Array("c", 3), Sequence, {"a": multiprocessing.RawArray("d", 3)}]  # noqa: SIM115
    made = from_generator_base(path, samples, 9, lambda folder, chunk: list(chunk))
    samples[0].close()
    assert all(one is other for one, other in zip(made, samples, strict=True))


@pytest.mark.parametrize("cls", [RaggedMmap, DenseMmap])
def test_a_sequence_that_fills_one_array_for_all_its_parts(tmp_path, cls):
    rows = [[i, i] for i in range(3)]
    assert DenseMmap.from_ndarray(tmp_path / "dense", Sequence(0))[:].tolist() == rows
    assert np_from_ndarray(tmp_path / "memmap", Sequence(0)).tolist() == rows
    m = cls.from_generator(tmp_path / "map", [Sequence(0)], 2)
    m.append(Sequence(0))
    m.extend(iter([Sequence(0)]))
    assert [sample.tolist() for sample in m] == [rows] * 3


@pytest.mark.parametrize("samples", [arrays_again, lists_again], ids=["arrays", "lists"])
def test_a_buffer_that_is_used_again_for_what_others_make(path, samples):
    made = from_generator_base(
        path, samples(7), 3, lambda folder, chunk: list(chunk), lambda made, more: made.extend(more)
    )
    assert [np.ravel(sample)[0] for sample in made] == list(range(7))


def test_a_large_and_a_small_buffer_by_turns(path):
    """Their bytes lie in several places, and come out in their order."""
    large, small = np.zeros(9_000), np.zeros(2)

    def again():
        for i in range(400):
            buffer = large if i % 3 == 1 else small
            buffer[:] = i
            yield buffer

    m = RaggedMmap.from_generator(path, again(), 150)
    assert [(len(row), row[0], row[-1]) for row in m] == [(9_000 if i % 3 == 1 else 2, i, i) for i in range(400)]


@pytest.mark.parametrize(
    ("cls", "good", "bad"),
    [
        (RaggedMmap, np.zeros(2), "text"), (DenseMmap, np.zeros(2), np.zeros(3)), (BytesMmap, b"a", "a"),
        (StringsMmap, "a", "\ud800"), (RaggedMmap, np.zeros(2), np.array([2**53 + 1])),
    ],
    ids=["ragged", "shape", "bytes", "text", "value"],
)  # fmt: skip
def test_a_bad_sample_is_refused_before_the_next_is_asked_for(path, cls, good, bad):
    taken = []

    def samples():
        for i in range(20):
            taken.append(i)
            yield bad if i == 13 else good

    with pytest.raises((SampleError, SampleTypeError), match=r"sample 13 \(item 3 of this batch\)"):
        cls.from_generator(path, samples(), 10)
    assert taken == list(range(14))


def test_samples_of_another_map_are_not_copied_by_extend(tmp_path):
    """They would not fit the memory."""
    from mmap_ninja._arrival import lent

    m = RaggedMmap.from_lists(tmp_path / "map", [np.zeros(9)])
    dense = DenseMmap.from_ndarray(tmp_path / "dense", np.zeros((2, 9)))
    for sample in (RaggedMmap(tmp_path / "map")[0], dense[0], m[0]):
        assert lent(sample) is sample
    for sample in (np.zeros(9), np.frombuffer(bytearray(8)), RaggedMmap(tmp_path / "map", mode="c")[0]):
        assert lent(sample) is not sample
    m.extend(dense)
    m.extend(m)
    assert len(m) == 6
