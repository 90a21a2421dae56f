"""`open_map`, `open_existing`, `Wrapped`, `from_generator_base`."""

import os
import pickle

import numpy as np
import pytest

import mmap_ninja
from contracts import drop_privileges, in_process, tree
from mmap_ninja import (
    BytesMmap,
    DenseMmap,
    MmapNinjaError,
    RaggedMmap,
    StringsMmap,
    Wrapped,
    np_from_ndarray,
    open_existing,
    open_map,
)
from mmap_ninja.base import from_generator_base
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, MapNotFoundError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map"


MAKERS = {
    DenseMmap: lambda p: DenseMmap.from_ndarray(p, [[1, 2], [3, 4]]),
    RaggedMmap: lambda p: RaggedMmap.from_lists(p, [[1], [2, 3]]),
    BytesMmap: lambda p: BytesMmap.from_bytes(p, [b"a", b"bc"]),
    StringsMmap: lambda p: StringsMmap.from_strings(p, ["a", "bc"]),
}


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.kind)
def test_open_map_gives_a_map_of_the_kind(path, kind):
    MAKERS[kind](path)
    for folder in (path, str(path)):
        m = open_map(folder)
        assert type(m) is kind
        assert m.mode == "r"
        assert len(m) == 2
    assert open_map(path, mode="r+").mode == "r+"
    with pytest.raises(ArgumentError, match="mode is 'w'"):
        open_map(path, mode="w")


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.kind)
def test_open_existing_gives_what_0_9_0_gave(path, kind):
    MAKERS[kind](path)
    opened = open_existing(path)
    assert type(opened) is kind or (kind is DenseMmap and isinstance(opened, np.memmap))
    wrapped = open_existing(path, wrapper_fn=len)
    assert [wrapped[0], wrapped[1]] == [len(opened[0]), len(opened[1])]
    assert isinstance(wrapped, Wrapped) or kind in (RaggedMmap, BytesMmap)


def test_open_existing_opens_texts_in_its_mode(path):
    MAKERS[StringsMmap](path)
    open_existing(path)[0] = "x"
    assert open_existing(path, mode="rb")[0] == "x"
    with pytest.raises(mmap_ninja.errors.MapReadOnlyError, match='mode "rb"'):
        open_existing(path, mode="rb")[0] = "y"


@pytest.mark.parametrize("name", ["nowhere", "empty", "foreign"])
def test_no_map_there(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    for opener in (open_map, open_existing, mmap_ninja.np_open_existing):
        with pytest.raises(MapNotFoundError, match=f"there is no map at .*{name}"):
            opener(tmp_path / name)
        with pytest.raises(FileNotFoundError):
            opener(tmp_path / name)
    assert tree(tmp_path) == before


def test_foreign_files_stay(tmp_path):
    path = tmp_path / "map"
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    (path / "sub").mkdir()
    for _ in range(3):
        MAKERS[RaggedMmap](path).append([1])
    assert (path / "notes.txt").read_text() == "mine"
    assert (path / "sub").is_dir()


def test_wrapped():
    wrapped = Wrapped(["a", "bc"], len)
    assert [wrapped[0], wrapped[1], wrapped[-1]] == [1, 2, 2]
    assert len(wrapped) == 2
    assert list(wrapped) == [1, 2]
    with pytest.raises(IndexError):
        wrapped[2]


def test_wrapped_hands_out_copies_unless_told_otherwise():
    data = [np.zeros(2)]

    def change(sample):
        sample += 1
        return sample

    assert Wrapped(data, change)[0].tolist() == [1, 1]
    assert data[0].tolist() == [0, 0]
    assert Wrapped(data, change, copy_before_wrapper_fn=False)[0].tolist() == [1, 1]
    assert data[0].tolist() == [1, 1]


def test_wrapped_memmap_pickles_small(path):
    np_from_ndarray(path, np.zeros((1000, 100)))
    wrapped = Wrapped(mmap_ninja.np_open_existing(path), np.sum)
    raw = pickle.dumps(wrapped)
    assert len(raw) < 1000
    assert pickle.loads(raw)[0] == 0


def test_from_generator_base(path):
    calls = []

    def ctor(out_dir, samples, **options):
        calls.append(("ctor", out_dir, samples, options))
        return calls

    made = from_generator_base(str(path), iter(range(5)), 2, ctor, lambda m, samples: m.append(samples), colour="red")
    assert made is calls
    assert calls == [("ctor", path, [0, 1], {"colour": "red"}), [2, 3], [4]]


def test_from_generator_base_extends_what_it_has_made(path):
    m = from_generator_base(path, [[1], [2, 3], [4]], 1, RaggedMmap.from_lists)
    assert [sample.tolist() for sample in m] == [[1], [2, 3], [4]]
    assert from_generator_base(path, [], 1, RaggedMmap.from_lists) is None
    with pytest.raises(ArgumentError, match="batch_size is 0, expected at least 1"):
        from_generator_base(path, [], 0, RaggedMmap.from_lists)


@pytest.mark.parametrize("out_dir", [None, 5, b"bytes", ["a"]], ids=repr)
def test_folder_of_a_wrong_type(out_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (RaggedMmap, open_map, lambda p: RaggedMmap.from_lists(p, [[1]])):
        with pytest.raises((ArgumentTypeError, TypeError)):
            use(out_dir)
    assert not list(tmp_path.iterdir())


def test_mmap_itself_is_no_kind(path):
    with pytest.raises((MmapNinjaError, TypeError, AttributeError)):
        mmap_ninja.Mmap.from_generator(path, [1], 2)
    assert not path.exists()


def open_unreadable(path):
    drop_privileges()
    try:
        open_map(path)
    except OSError as error:
        return type(error).__mro__, str(error)


@pytest.mark.parametrize("name", [".", "manifest.json", "data.npy"])
def test_unreadable(path, name):
    MAKERS[RaggedMmap](path)
    target = path / name
    target.chmod(0)
    try:
        kinds, message = in_process(open_unreadable, path)
    finally:
        target.chmod(0o700)
    assert PermissionError in kinds
    assert MmapNinjaError in kinds
    assert os.fspath(path) in message


@pytest.mark.parametrize("error", [IndexError("mine"), StopIteration("mine")], ids=repr)
@pytest.mark.parametrize("walk", [list, lambda w: list(reversed(w)), lambda w: 9 in w], ids=["for", "reversed", "in"])
def test_a_function_of_wrapped_that_raises_is_no_end(error, walk):
    def stop(number):
        if number == 2:
            raise error
        return number

    with pytest.raises((IndexError, RuntimeError), match=r"mine|generator raised StopIteration"):
        walk(Wrapped([1, 2, 3], stop))
    assert list(Wrapped([1, 3], stop)) == [1, 3]
    assert list(reversed(Wrapped([1, 3], stop))) == [3, 1]


def test_wrapped_data_of_no_length_ends_as_it_did():
    class Unsized:
        def __getitem__(self, i):
            return [5, 6][i]

    assert list(Wrapped(Unsized(), str)) == ["5", "6"]
    assert list(Wrapped(Wrapped(Unsized(), str), int)) == [5, 6]
    assert 6 in Wrapped(Unsized(), int)
    with pytest.raises(TypeError):
        reversed(Wrapped(Unsized(), str))
