"""Each bad input gets an error of ours that is also the builtin which a caller would expect; nothing is changed."""

import numpy as np
import pytest

import mmap_ninja
from contracts import locked, tree
from mmap_ninja import BytesMmap, DenseMmap, MmapNinjaError, RaggedMmap, StringsMmap, errors, open_map

ERRORS = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_ours_and_a_builtin(error):
    assert error.__doc__
    if issubclass(error, Warning):
        assert error.__bases__ == (UserWarning,)
    elif error is not MmapNinjaError:
        ours, builtin = (error.__bases__[0] if len(error.__bases__) == 1 else error).__bases__
        assert ours is MmapNinjaError
        assert builtin.__module__ == "builtins"


@pytest.fixture
def folder(tmp_path):
    """A map of each kind, a damaged one, a file, and a folder with foreign files under our names."""
    RaggedMmap.from_lists(tmp_path / "ragged", [[1, 2], [3]])
    DenseMmap.from_ndarray(tmp_path / "dense", np.zeros((2, 3)))
    StringsMmap.from_strings(tmp_path / "texts", ["one", "two"])
    RaggedMmap.from_lists(tmp_path / "damaged", [[1, 2]])
    (tmp_path / "damaged" / "manifest.json").write_text("{}")
    RaggedMmap.from_lists(tmp_path / "short", [[1, 2]])
    (tmp_path / "short" / "data.npy").write_bytes(b"\x93NUMPY")
    RaggedMmap.from_lists(tmp_path / "gone", [[1, 2]])
    (tmp_path / "gone" / "index.npy").unlink()
    (tmp_path / "file").write_text("mine")
    for name in ("data.npy", "index.npy", "data.crc", "manifest.json", "building.json"):
        (tmp_path / f"foreign {name}").mkdir()
        (tmp_path / f"foreign {name}" / name).write_text("mine")
    return tmp_path


def closed(path):
    m = RaggedMmap(path)
    m.close()
    return m


def second_writer(path):
    with locked(path):
        RaggedMmap(path).append([1])


def assign(m, index, value):
    m[index] = value


def make(path, samples=((1,),), **options):
    return RaggedMmap.from_lists(path, list(samples), **options)


BAD = {
    "a file: open": (
        lambda f: open_map(f / "file"),
        NotADirectoryError,
        "file is a file, expected the folder of a map",
    ),
    "a file: construct": (lambda f: RaggedMmap(f / "file"), NotADirectoryError, "is a file, expected the folder"),
    "a file: make": (lambda f: make(f / "file"), NotADirectoryError, "is a file, expected the folder"),
    "below a file: append": (lambda f: RaggedMmap(f / "file" / "m").append([1]), NotADirectoryError, "file"),
    "below a file: make": (lambda f: make(f / "file" / "m"), NotADirectoryError, "file"),
    "missing": (lambda f: open_map(f / "nowhere"), FileNotFoundError, "there is no map at .*nowhere"),
    "damaged": (lambda f: open_map(f / "damaged"), ValueError, "manifest.json is not a manifest of mmap_ninja"),
    "damaged: construct": (lambda f: RaggedMmap(f / "damaged"), ValueError, "manifest.json is not a manifest"),
    "damaged: make": (lambda f: make(f / "damaged"), ValueError, "remove the folder to build a new map there"),
    "short": (lambda f: open_map(f / "short"), ValueError, r"data.npy has 6 bytes, expected at least 144"),
    "gone": (lambda f: open_map(f / "gone"), ValueError, "index.npy is missing, but .*gone names it"),
    "foreign data": (
        lambda f: make(f / "foreign data.npy"),
        FileExistsError,
        "data.npy is not of a map, but has the name",
    ),
    "foreign index": (lambda f: make(f / "foreign index.npy"), FileExistsError, "index.npy is not of a map"),
    "foreign crc": (lambda f: make(f / "foreign data.crc"), FileExistsError, "data.crc is not of a map"),
    "foreign manifest": (lambda f: make(f / "foreign manifest.json"), ValueError, "manifest.json is not a manifest of"),
    "foreign building": (lambda f: make(f / "foreign building.json"), ValueError, "building.json is not a manifest of"),
    "object dtype": (
        lambda f: make(f / "new", [np.array([None])]),
        TypeError,
        "sample 0 .*dtype object.* cannot be stored",
    ),
    "object dtype: extend": (
        lambda f: RaggedMmap(f / "ragged").append([None]),
        TypeError,
        "sample 2 .*list is no array",
    ),
    "lossy cast": (
        lambda f: RaggedMmap(f / "ragged").append([0.5]),
        ValueError,
        "float64 value 0.5 .*exactly as int64",
    ),
    "lossy array": (lambda f: make(f / "new", [np.zeros(1, "f4"), np.array([0.1])]), ValueError, "float32; dtype= at"),
    "wrong shape": (lambda f: DenseMmap(f / "dense").append([1, 2]), ValueError, r"shape \(2,\), expected \(3,\)"),
    "assignment of another size": (
        lambda f: assign(RaggedMmap(f / "ragged", mode="r+"), 0, [1, 2, 3]),
        ValueError,
        r"sample 0: the new value has shape \(3,\), expected \(2,\)",
    ),
    "lone surrogate": (
        lambda f: StringsMmap(f / "texts").append("\ud800"),
        ValueError,
        "sample 2 .*surrogates not allowed",
    ),
    "bare text": (
        lambda f: StringsMmap.from_strings(f / "new", "one"),
        TypeError,
        "expected a list of samples, got a str",
    ),
    "bare text: extend": (lambda f: StringsMmap(f / "texts").extend("one"), TypeError, "got a str; append adds one"),
    "bare bytes": (
        lambda f: BytesMmap.from_bytes(f / "new", b"one"),
        TypeError,
        "expected a list of samples, got a bytes",
    ),
    "a dict": (
        lambda f: RaggedMmap(f / "ragged").append({"a": 1}),
        TypeError,
        "sample 2 .*a dict is no array of values",
    ),
    "a dict of texts": (lambda f: StringsMmap(f / "texts").append({}), TypeError, "sample 2 .*a dict, expected str"),
    "a dict, dense": (lambda f: DenseMmap(f / "dense").append({"a": 1}), TypeError, "sample 2 .*a dict is no array"),
    "None": (lambda f: RaggedMmap(f / "ragged").append(None), TypeError, "sample 2 .*a NoneType is no array of values"),
    "None of texts": (
        lambda f: StringsMmap(f / "texts").append(None),
        TypeError,
        "sample 2 .*a NoneType, expected str",
    ),
    "batch_size": (
        lambda f: RaggedMmap.from_generator(f / "new", [[1]], 0),
        ValueError,
        "batch_size is 0, expected at least 1",
    ),
    "read only": (lambda f: assign(RaggedMmap(f / "ragged"), 0, [1, 2]), ValueError, 'mode "r".*mode="r\\+"'),
    "second writer": (lambda f: second_writer(f / "ragged"), BlockingIOError, "is being written by another process"),
    "closed": (lambda f: closed(f / "ragged")[0], ValueError, "the map .*was closed"),
    "closed: write": (lambda f: closed(f / "ragged").append([1]), ValueError, "the map at .*ragged was closed"),
    "out of range": (
        lambda f: RaggedMmap(f / "ragged")[2],
        IndexError,
        "index 2 is out of range for a map of 2 samples",
    ),
    "below range": (
        lambda f: DenseMmap(f / "dense")[-3],
        IndexError,
        "index -3 is out of range for a map of 2 samples",
    ),
    "index of a wrong type": (lambda f: StringsMmap(f / "texts")[1.0], TypeError, "indexed by integers.*not by float"),
    "mask of a wrong length": (
        lambda f: RaggedMmap(f / "ragged")[[True]],
        IndexError,
        "a boolean mask of 1 values for",
    ),
    "another kind": (lambda f: RaggedMmap(f / "dense"), ValueError, "is a dense map, not a ragged one; use open_map"),
    "unknown mode": (lambda f: RaggedMmap(f / "ragged", mode="w"), ValueError, "mode is 'w', expected 'r'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(folder, name):
    use, builtin, match = BAD[name]
    before = tree(folder)
    with pytest.raises(MmapNinjaError, match=match) as caught:
        use(folder)
    assert isinstance(caught.value, builtin)
    assert tree(folder) == before


@pytest.mark.parametrize("path", ["", "a\0b", b"map", None, 3], ids=repr)
def test_what_can_be_no_path(path):
    for use in (RaggedMmap, mmap_ninja.open_map, mmap_ninja.np_open_existing, lambda p: RaggedMmap.from_lists(p, [1])):
        with pytest.raises((errors.ArgumentError, errors.ArgumentTypeError), match="the path of a map"):
            use(path)
