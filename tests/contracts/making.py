"""Making a map, by whichever constructor; failing at it, resuming it, replacing what is there."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from contracts.comparison import assert_same, notes, tree
from contracts.indices import N
from contracts.kind import KindContract
from contracts.sources import FailsAt, Recording, Unsized, failing
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    MapChangedError,
    PartBuiltError,
    PartBuiltWarning,
    SampleError,
    SampleIndexError,
    SampleTypeError,
)


class MakingContract(KindContract):
    """Tests of what makes a map."""

    # -- making ------------------------------------------------------------------------------------------------------

    def test_constructor_method(self, path):
        assert_same(self.make(path), self.all_read())
        assert_same(self.kind(path), self.all_read())

    def test_constructor_method_returns_a_map_to_assign_to(self, path):
        made = self.make(path)
        assert type(made) is self.kind
        assert made.mode in ("r+", "r+b")
        assert made.out_dir == path

    @pytest.mark.parametrize("as_path", [str, Path])
    def test_folder_may_be_text_or_path(self, tmp_path, as_path):
        folder = as_path(tmp_path / "a" / "b")
        self.make(folder)
        assert_same(self.kind(folder), self.all_read())

    def test_folder_may_be_relative_and_the_working_folder_change(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        m = self.make("map")
        monkeypatch.chdir("/")
        m.append(self.more[0])
        assert_same(pickle.loads(pickle.dumps(m)), [*self.all_read(), self.read(self.more[0])])

    @pytest.mark.parametrize("batch_size", [1, 4, N, 1000, np.int64(2)])
    def test_from_generator(self, path, batch_size):
        made = self.kind.from_generator(path, iter(self.samples), 100 if self.options else batch_size, **self.options)
        assert_same(made, self.all_read())
        assert_same(self.kind(path), self.all_read())

    def test_from_generator_in_batches(self, path):
        made = self.kind.from_generator(path, iter(self.samples * 2), N, **self.options)
        assert_same(made, self.all_read() * 2)

    @pytest.mark.parametrize(
        ("indexable", "n_jobs"), [("sized", None), ("unsized", None), ("function", 1), ("sized", 2)]
    )
    def test_from_indexable(self, path, indexable, n_jobs):
        source = {"sized": list, "unsized": Unsized, "function": lambda s: s.__getitem__}[indexable](self.samples)
        made = self.kind.from_indexable(path, source, N, n_jobs, **self.options)
        assert_same(made, self.all_read())
        assert_same(self.kind(path), self.all_read())

    def test_no_samples(self, path):
        for made in (self.make(path, []), self.kind.from_generator(path, [], 4, **self.options), self.kind(path)):
            assert len(made) == 0
            assert list(made) == []
            assert len(made[:]) == 0
            assert len(made.take([])) == 0
            assert len(made.lengths) == len(made.starts) == len(made.ends) == 0
            with pytest.raises(SampleIndexError, match="index 0 is out of range for a map of 0 samples"):
                made[0]
        made.extend(self.samples)
        assert_same(self.kind(path), self.all_read())

    def test_without_syncs_it_reads_the_same(self, path):
        self.kind.from_generator(path, iter(self.samples), N, sync=False, **self.options)
        m = self.kind(path)
        m.append(self.more[0], sync=False)
        m.extend(self.more[1:], sync=False)
        m.flush()
        assert_same(self.kind(path), self.all_read(self.samples + self.more))

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_batch_size_below_one(self, path, batch_size):
        match = f"batch_size is {batch_size}, expected at least 1"
        with pytest.raises(ArgumentError, match=match):
            self.kind.from_generator(path, self.samples, batch_size)
        with pytest.raises(ArgumentError, match=match):
            self.kind.from_indexable(path, self.samples, batch_size)
        assert not path.exists()

    @pytest.mark.parametrize("batch_size", [None, True, 2.0, "2"])
    def test_batch_size_of_a_wrong_type(self, path, batch_size):
        match = f"batch_size is {batch_size!r}, expected an integer"
        with pytest.raises(ArgumentTypeError, match=re.escape(match)):
            self.kind.from_generator(path, self.samples, batch_size)
        with pytest.raises(ArgumentTypeError, match=re.escape(match)):
            self.kind.from_indexable(path, self.samples, batch_size)
        assert not path.exists()

    @pytest.mark.parametrize("samples", [5, None, "text", b"bytes", {"a": 1}])
    def test_from_generator_of_no_iterable_of_samples(self, path, samples):
        with pytest.raises(ArgumentTypeError, match=f"expected an iterable of samples, got a {type(samples).__name__}"):
            self.kind.from_generator(path, samples, 4)
        assert not path.exists()

    @pytest.mark.parametrize("indexable", [5, None])
    def test_from_indexable_of_no_indexable(self, path, indexable):
        with pytest.raises(ArgumentTypeError, match="neither indexable nor a function of one integer"):
            self.kind.from_indexable(path, indexable, 4)
        assert not path.exists()

    def test_unknown_option_is_refused_before_anything_is_made(self, path):
        with pytest.raises(TypeError, match="colour"):
            self.kind.from_generator(path, self.samples, 4, colour="red")
        assert not path.exists()

    def test_unknown_mode_is_refused_before_anything_is_made(self, path):
        with pytest.raises(ArgumentError, match="mode is 'w', expected 'r' to read, 'r\\+' to assign"):
            self.make(path, mode="w")
        assert not path.exists()
        with pytest.raises(ArgumentError, match="mode is 'w', expected 'r' to read, 'r\\+' to assign"):
            self.kind(path, mode="w")

    def test_progress_bar_knows_the_total(self, path, capsys):
        self.kind.from_indexable(path, self.samples, N, verbose=True, **self.options)
        assert f"{N}/{N}" in capsys.readouterr().err
        self.kind.from_generator(path, (s for s in self.samples), N, verbose=True, **self.options)
        assert f"{N}samples" in capsys.readouterr().err.replace(" ", "")
        self.kind.from_generator(path, self.samples, N, **self.options)
        assert capsys.readouterr().err == ""

    # -- failures while making ---------------------------------------------------------------------------------------

    def test_error_in_a_generator_keeps_its_type_and_tells_the_sample(self, path):
        with pytest.raises(ZeroDivisionError, match="mine") as caught:
            self.kind.from_generator(path, failing(self.samples, 5, ZeroDivisionError("mine")), 4)
        assert "while loading sample 5" in notes(caught.value)

    @pytest.mark.parametrize("error", [KeyError("mine"), IndexError("mine"), OSError(5, "mine")], ids=repr)
    def test_error_in_an_indexable_keeps_its_type_and_tells_the_sample(self, path, error):
        with pytest.raises(type(error), match="mine") as caught:
            self.kind.from_indexable(path, FailsAt(self.samples, 5, error), 4)
        assert "while loading sample 5" in notes(caught.value)

    def test_bad_first_sample_leaves_no_folder(self, path):
        with pytest.raises((SampleError, SampleTypeError), match=self.bad_match) as caught:
            self.make(path, [self.samples[0], self.bad])
        assert "sample 1" in str(caught.value)
        assert not path.exists()

    def test_bad_sample_in_a_later_batch_leaves_what_was_built(self, path):
        samples = [*self.samples, *self.more, self.bad]
        with pytest.raises((SampleError, SampleTypeError), match=self.bad_match) as caught:
            self.kind.from_generator(path, samples, N, **self.options)
        assert f"sample {N + 3}" in str(caught.value)
        with pytest.warns(PartBuiltWarning, match=f"has the {N} samples .* resume=True"):
            m = self.kind(path)
        assert_same(m, self.all_read())

    def test_part_built_map_reads_and_refuses_to_grow(self, path):
        with pytest.raises(ZeroDivisionError):
            self.kind.from_generator(path, failing(self.samples * 2, N + 2, ZeroDivisionError()), N, **self.options)
        with pytest.warns(PartBuiltWarning, match=f"has the {N} samples that were converted so far.*resume=True"):
            m = self.kind(path)
        assert_same(m, self.all_read())
        before = tree(path)
        with pytest.raises(
            PartBuiltError, match=f"never finished \\({N} samples so far\\); finish it with resume=True"
        ):
            m.append(self.more[0])
        assert tree(path) == before

    def test_part_built_warning_points_to_the_line_that_opened_the_map(self, path):
        with pytest.raises(ZeroDivisionError):
            self.kind.from_generator(path, failing(self.samples * 2, N, ZeroDivisionError()), N, **self.options)
        with pytest.warns(PartBuiltWarning, match="resume=True") as caught:
            self.kind(path)
        assert [warning.filename for warning in caught] == [__file__]

    @pytest.mark.parametrize("number", [0, 3, N, 2 * N + 1])
    def test_resumed_equals_uninterrupted(self, path, tmp_path, number):
        samples = self.samples * 3
        with pytest.raises(ZeroDivisionError):
            self.kind.from_generator(path, failing(samples, number, ZeroDivisionError()), N, **self.options)
        taken = []
        resumed = self.kind.from_generator(
            path, (taken.append(1) or s for s in samples), N, resume=True, **self.options
        )
        self.kind.from_generator(tmp_path / "other", iter(samples), N, **self.options)
        assert_same(resumed, self.all_read(samples))
        assert len(taken) == len(samples)
        assert not (path / "building.json").exists()
        for name in os.listdir(tmp_path / "other"):
            if name != "manifest.json":
                assert (path / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name

    def test_resumed_indexable_loads_only_what_is_missing(self, path):
        samples, loaded = self.samples * 2, []
        with pytest.raises(ZeroDivisionError):
            self.kind.from_indexable(path, FailsAt(samples, N + 1, ZeroDivisionError()), N, **self.options)
        resumed = self.kind.from_indexable(path, Recording(samples, loaded), N, resume=True, **self.options)
        assert_same(resumed, self.all_read(samples))
        assert loaded == list(range(N, 2 * N))

    def test_without_resume_a_build_starts_again(self, path):
        with pytest.raises(ZeroDivisionError):
            self.kind.from_generator(path, failing(self.samples * 2, N + 2, ZeroDivisionError()), N, **self.options)
        assert_same(self.kind.from_generator(path, self.samples, N, **self.options), self.all_read())
        assert set(os.listdir(path)) <= {"manifest.json", "data-2.npy", "index-2.npy", "zstd-2.dict", ".lock"}

    # -- replacing ---------------------------------------------------------------------------------------------------

    def test_failed_replacement_leaves_the_old_map(self, m, path):
        with pytest.raises(ZeroDivisionError):
            self.kind.from_generator(
                path, failing(self.samples[::-1] * 2, N + 1, ZeroDivisionError()), N, **self.options
            )
        assert_same(self.kind(path), self.all_read())
        assert_same(m, self.all_read())
        m.append(self.more[0])
        assert_same(self.kind(path), self.all_read([*self.samples, self.more[0]]))

    @pytest.mark.parametrize("factor", [1, 3])
    def test_open_reader_keeps_a_replaced_map(self, m, path, factor):
        held = [m[0], m[-1]]
        self.make(path, self.samples[::-1] * factor)
        assert_same(m, self.all_read())
        assert_same(held, [self.read(self.samples[0]), self.read(self.samples[-1])])
        with pytest.raises(MapChangedError, match="was replaced since it was opened; open it again"):
            m.append(self.more[0])
        m.refresh()
        assert_same(m, self.all_read(self.samples[::-1] * factor))
        assert len([name for name in os.listdir(path) if name.startswith("data")]) == 1

    def test_map_transformed_into_its_own_folder(self, m, path):
        self.kind.from_generator(path, reversed(m), N, **self.options)
        assert_same(self.kind(path), self.all_read()[::-1])
