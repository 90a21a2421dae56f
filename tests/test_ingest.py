"""How samples arrive: iterables, indexables, functions, several processes, progress."""

import sys
import time

import numpy as np
import pytest

from contracts import FailsAt, Unsized, assert_same, failing, notes
from mmap_ninja import RaggedMmap, _ingest
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, MissingExtraError, PartBuiltWarning

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


def test_without_joblib(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(MissingExtraError, match=r"n_jobs needs joblib: pip install mmap-ninja\[parallel\]"):
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
    assert list(_ingest.chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(_ingest.chunks(range(4), 2)) == [[0, 1], [2, 3]]
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
