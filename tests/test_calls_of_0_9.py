"""Every documented call of mmap_ninja 0.9.0 does what it did there: its names, its arguments, what opens any map.

Nothing in this file is new in 1.0: test_suite_of_0_9 runs it with 0.9.0 as well.
"""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

import calls_of_0_9
import mmap_ninja
from calls_of_0_9 import ROWS, TEXTS, rows
from mmap_ninja import base, generic, ragged, string
from mmap_ninja import numpy as np_ninja
from mmap_ninja.base import Wrapped
from mmap_ninja.generic import open_existing
from mmap_ninja.ragged import RaggedMmap
from mmap_ninja.string import StringsMmap

folder, array = calls_of_0_9.folder, calls_of_0_9.array

# Names and signatures


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("RaggedMmap", ragged.RaggedMmap),
        ("StringsMmap", string.StringsMmap),
        ("Wrapped", base.Wrapped),
        ("open_existing", generic.open_existing),
        ("np_from_ndarray", np_ninja.from_ndarray),
        ("np_from_generator", np_ninja.from_generator),
        ("np_open_existing", np_ninja.open_existing),
        ("np_extend", np_ninja.extend),
        ("np_extend_dir", np_ninja.extend_dir),
        ("np_append", np_ninja.append),
    ],
)
def test_the_names_at_the_top_are_those_of_the_modules(name, there):
    assert getattr(mmap_ninja, name) is there


KEYS = {"starts_key": "starts", "ends_key": "ends"}
ALL_KEYS = {**KEYS, "shapes_key": "shapes", "flattened_shapes_key": "flattened_shapes"}


@pytest.mark.parametrize(
    ("call", "required", "optional"),
    [
        (RaggedMmap, "out_dir", {"wrapper_fn": None, "mode": "r", **ALL_KEYS, "copy_before_wrapper_fn": True}),
        (RaggedMmap.from_lists, "out_dir lists", {"dtype": None, "mode": "r+", "wrapper_fn": None, **ALL_KEYS}),
        (RaggedMmap.from_generator, "out_dir sample_generator batch_size", {"verbose": False}),
        (RaggedMmap.from_indexable, "out_dir indexable batch_size", {"n_jobs": None, "verbose": False}),
        (StringsMmap, "out_dir", {"mode": "r+b", **KEYS}),
        (StringsMmap.from_strings, "out_dir strings", {"mode": "r+b", **KEYS, "verbose": False, "zstd_level": None}),
        (StringsMmap.from_generator, "out_dir sample_generator batch_size", {"verbose": False}),
        (np_ninja.from_ndarray, "out_dir arr", {}),
        (np_ninja.from_generator, "out_dir sample_generator batch_size", {"verbose": False}),
        (np_ninja.open_existing, "out_dir", {"mode": "r"}),
        (np_ninja.extend_dir, "out_dir arr", {}),
        (open_existing, "out_dir", {"wrapper_fn": None, "mode": "r+b"}),
        (Wrapped, "data wrapper_fn", {"copy_before_wrapper_fn": True}),
        (base.from_generator_base, "out_dir sample_generator batch_size batch_ctor", {"extend_fn": None}),
    ],
)
def test_arguments_have_their_names_places_and_defaults(call, required, optional):
    parameters = list(inspect.signature(call).parameters.values())
    assert [p.name for p in parameters[: len(required.split())]] == required.split()
    after = parameters[len(required.split()) :][: len(optional)]
    assert {p.name: p.default for p in after} == optional
    assert [p.name for p in after] == list(optional)
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters[: len(required.split()) + len(optional)])


# open_existing and Wrapped


def test_open_existing_rows(folder):
    RaggedMmap.from_lists(folder, ROWS)
    assert isinstance(open_existing(folder), RaggedMmap)
    assert rows(open_existing(out_dir=folder)) == ROWS


def test_open_existing_texts(folder):
    StringsMmap.from_strings(folder, TEXTS)
    m = open_existing(folder)
    assert isinstance(m, StringsMmap)
    m[0] = "Korbo"
    assert open_existing(folder, mode="rb")[:] == ["Korbo", *TEXTS[1:]]


def test_open_existing_array(folder, array):
    np_ninja.from_ndarray(folder, array)
    m = open_existing(folder)
    assert isinstance(m, np.memmap)
    assert not m.flags.writeable
    np.testing.assert_array_equal(m, array)


def test_open_existing_with_a_wrapper_fn(tmp_path):
    RaggedMmap.from_lists(tmp_path / "ragged", ROWS)
    assert open_existing(tmp_path / "ragged", wrapper_fn=len)[:] == [4, 2, 0, 3]
    StringsMmap.from_strings(tmp_path / "texts", ['{"a": 1}', "[2]"])
    texts = open_existing(tmp_path / "texts", wrapper_fn=json.loads)
    assert isinstance(texts, Wrapped)
    assert (texts[0], texts[-1], len(texts)) == ({"a": 1}, [2], 2)
    np_ninja.from_ndarray(tmp_path / "array", np.arange(3))
    array = open_existing(tmp_path / "array", wrapper_fn=lambda x: x * 10)
    assert isinstance(array, Wrapped)
    assert (array[1], array[-1], len(array)) == (10, 20, 3)
    assert array[1:].tolist() == [10, 20]


def test_open_existing_of_an_unknown_kind(tmp_path):
    (tmp_path / "type.ninja").write_text("asd")
    with pytest.raises(ValueError, match="asd"):
        open_existing(tmp_path)


def test_open_existing_of_nothing(folder):
    with pytest.raises(FileNotFoundError):
        open_existing(folder)


def test_wrapped_applies_its_function_at_each_read():
    wrapped = Wrapped(data=np.array([1, 2, 3]), wrapper_fn=lambda x: -x)
    assert [wrapped[0], wrapped[-1], len(wrapped)] == [-1, -3, 3]
    assert wrapped[:2].tolist() == [-1, -2]


def test_wrapped_copies_unless_told_not_to():
    data = [[1], [2]]
    assert Wrapped(data, lambda x: x)[0] is not data[0]
    assert Wrapped(data, lambda x: x, copy_before_wrapper_fn=False)[0] is data[0]


# from_generator_base, on which another published package builds


class Recorder(list):
    """What a `batch_ctor` returns: keeps its batches."""

    def __init__(self, out_dir, samples, **options):
        assert Path(out_dir).is_dir()
        super().__init__([list(samples)])
        self.out_dir, self.options = Path(out_dir), options

    def extend(self, samples):
        self.append(["extended", *samples])


def test_from_generator_base_with_extend(folder):
    m = base.from_generator_base(folder, iter(range(7)), 3, Recorder, mode="sample", verbose=True)
    assert m == [[0, 1, 2], ["extended", 3, 4, 5], ["extended", 6]]
    assert m.out_dir == Path(folder)
    assert m.options == {"mode": "sample"}


def test_from_generator_base_with_an_extend_fn(tmp_path):
    m = base.from_generator_base(
        out_dir=tmp_path / "m",
        sample_generator=range(6),
        batch_size=3,
        batch_ctor=Recorder,
        extend_fn=lambda m, samples: m.append(["by function", *samples]),
    )
    assert m == [[0, 1, 2], ["by function", 3, 4, 5]]
    assert m.options == {}


def test_from_generator_base_with_fewer_samples_than_a_batch(tmp_path):
    assert base.from_generator_base(tmp_path / "m", "ab", 3, Recorder) == [["a", "b"]]


def test_from_generator_base_with_a_class_of_this_package(tmp_path):
    m = base.from_generator_base(tmp_path / "m", iter(TEXTS), 2, StringsMmap.from_strings, zstd_level=1)
    assert m[:] == TEXTS
