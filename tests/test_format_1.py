"""Folders that mmap_ninja 0.9.0 itself makes during the run: read, left alone, upgraded, replaced."""

import hashlib
import pickle
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

from mmap_ninja import (
    DenseMmap,
    RaggedMmap,
    StringsMmap,
    np_append,
    np_extend,
    np_extend_dir,
    np_from_ndarray,
    np_open_existing,
    open_existing,
    open_map,
)
from mmap_ninja.errors import MapChangedError, MapCorruptError, MapKindError, UpgradeWarning
from old import run_old

RNG = np.random.default_rng(2024)
DTYPES = ["bool", "int8", "uint16", "int64", "float16", "float32", "complex64", "datetime64[s]", "timedelta64[ms]"]
TEXT_KEYS = {"starts_key": "from", "ends_key": "to"}
KEYS = {**TEXT_KEYS, "shapes_key": "forms", "flattened_shapes_key": "counts"}
TEXTS = ["Torba", "", "зеле 🥧", "a" * 5000, "", "popo"]
MANY_TEXTS = [f"{text[:10]} number {i}".ljust(60) for i in range(40) for text in TEXTS]


def numbers(*shape):
    return RNG.integers(-100, 100, shape)


DENSE = {
    **{f"dense {dtype}": numbers(6, 2, 3).astype(dtype) for dtype in DTYPES},
    "dense row": numbers(9),
    "dense empty": np.zeros((0, 3)),
    "dense fortran": np.asfortranarray(numbers(5, 4)),
    "dense fortran 3d": np.asfortranarray(numbers(5, 2, 3).astype(np.float32)),
}
RAGGED = {
    "ragged rows": [RNG.random(n, np.float32) for n in (3, 0, 1, 400, 2)],
    "ragged images": [numbers(h, w, 3).astype(np.uint8) for h, w in ((5, 2), (0, 4), (1, 1), (30, 20), (2, 0))],
    "ragged mixed": [numbers(2, 2), numbers(3), numbers(2, 1), numbers(1, 1, 3, 2), numbers(0)],
    "ragged integers": [3, -1, 7, 0],
    "ragged floats": [0.5, float("nan"), -0.0],
    "ragged bools": [True, False, True],
    "ragged numbers and rows": [1, [], [3], [4, 5], 6],
    "ragged nothing": [[], [], []],
    "ragged rows keys": [numbers(n) for n in (2, 3, 1)],
    "ragged images keys": [numbers(n, 2, n) for n in (2, 3, 1)],
}
STRINGS = {
    "string": TEXTS,
    "string keys": TEXTS,
    "string zstd": TEXTS,
    "string zstd dictionary": MANY_TEXTS,
}
MADE = {**DENSE, **RAGGED, **STRINGS}
KINDS = {"dense": DenseMmap, "ragged": RaggedMmap, "string": StringsMmap}
COMPRESSED = [name for name in MADE if "zstd" in name]

MAKE = """
import contextlib, pickle
import numpy as np
from pathlib import Path
from mmap_ninja import RaggedMmap, StringsMmap, numpy

make = {"dense": numpy.from_ndarray, "ragged": RaggedMmap.from_lists, "string": StringsMmap.from_strings}
read = {}
for name, (samples, options) in pickle.loads(Path("samples.pickle").read_bytes()).items():
    kind = name.split()[0]
    first = len(samples) if "fortran" in name else (len(samples) + 1) // 2
    m = make[kind](name, samples[:first], **options)
    if kind == "dense":
        numpy.extend(m, samples[first:])
        m = numpy.open_existing(name)
    else:
        m.extend(samples[first:])
    read[name] = [np.array(x) if isinstance(x, np.ndarray) else x for x in m[:]]
Path("read.pickle").write_bytes(pickle.dumps(read))

# What 0.9.0 writes and cannot read itself
RaggedMmap.from_lists("number among images", [np.array(4), np.array([[1, 2]])])
with contextlib.suppress(ValueError):
    StringsMmap.from_strings("empty texts", ["", ""])
"""


def keys_of(name):
    if not name.endswith("keys"):
        return {}
    return KEYS if name.startswith("ragged") else TEXT_KEYS


def options_of(name):
    zstd = {"zstd_level": 5} if name in COMPRESSED else {}
    dictionary = {"zstd_train_dictionary_size": 256} if "dictionary" in name else {}
    return {**keys_of(name), **zstd, **dictionary}


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """A folder with all maps, made by 0.9.0; only for reading."""
    folder = tmp_path_factory.mktemp("made-by-0-9")
    samples = {name: (samples, options_of(name)) for name, samples in MADE.items()}
    (folder / "samples.pickle").write_bytes(pickle.dumps(samples))
    run_old(MAKE, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def read_by_old(originals):
    """The samples of each map, as 0.9.0 reads them."""
    return pickle.loads((originals / "read.pickle").read_bytes())


@pytest.fixture
def copy(originals, tmp_path):
    """Copies a map into a folder that may be written to."""
    return lambda name: shutil.copytree(originals / name, tmp_path / "map")


def open_kind(folder, name, **options):
    return KINDS[name.split()[0]](folder, **keys_of(name), **options)


def assert_equal(samples, expected):
    """The same values bit for bit, of the same types, shapes and dtypes."""
    assert len(samples) == len(expected)
    for got, old in zip(samples, expected, strict=True):
        if isinstance(old, np.ndarray):
            assert isinstance(got, np.ndarray)
            assert (got.shape, got.dtype) == (old.shape, old.dtype)
            assert got.tobytes() == old.tobytes()
        elif isinstance(old, np.generic | float):
            assert type(got) is type(old)
            assert np.asarray(got).tobytes() == np.asarray(old).tobytes()
        else:
            assert (type(got), got) == (type(old), old)


def state(folder):
    """Every name under a folder, with its time stamp and its bytes' hash."""
    paths = sorted([folder, *folder.rglob("*")])
    stats = [(str(path), path.stat().st_mtime_ns, path.stat().st_mode) for path in paths]
    return stats, [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()]


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "mmap_ninja", *map(str, arguments)], capture_output=True, text=True)


# Reading


@pytest.mark.parametrize("name", MADE)
def test_0_9_reads_what_it_was_given(name, read_by_old):
    """Else the other tests would compare with nonsense."""
    given = [np.asarray(sample) for sample in MADE[name]]
    assert len(read_by_old[name]) == len(given)
    for got, sample in zip(read_by_old[name], given, strict=True):
        np.testing.assert_array_equal(got, sample)


@pytest.mark.parametrize("name", MADE)
def test_reads_equal(name, originals, read_by_old):
    m, expected = open_kind(originals / name, name), read_by_old[name]
    n = len(expected)
    assert_equal([m[i] for i in range(n)], expected)
    assert_equal([m[-i] for i in range(1, n + 1)], expected[::-1])
    assert_equal(list(m), expected)
    assert_equal(list(m[:]), expected)
    assert_equal(list(m[::-2]), expected[::-2])
    if n:
        assert_equal(list(m[[n - 1, 0, -1]]), [expected[-1], expected[0], expected[-1]])
        assert_equal(list(m[np.arange(n) % 2 == 0]), expected[::2])
    for i in (n, -n - 1):
        with pytest.raises(IndexError, match=str(n)):
            m[i]


@pytest.mark.parametrize("name", [name for name in MADE if not keys_of(name)])
@pytest.mark.parametrize("opened_by", [open_map, open_existing])
def test_reads_equal_when_opened_by_kind(opened_by, name, originals, read_by_old):
    m = opened_by(originals / name)
    is_array = opened_by is open_existing and name in DENSE
    assert isinstance(m, np.memmap if is_array else KINDS[name.split()[0]])
    assert_equal(list(m[:]), read_by_old[name])


@pytest.mark.parametrize("name", [name for name in MADE if keys_of(name)])
def test_without_its_keys_a_map_is_not_taken_for_an_empty_one(name, originals):
    with pytest.raises(MapCorruptError, match="starts"):
        open_map(originals / name)


@pytest.mark.parametrize("name", DENSE)
def test_arrays_read_equal(name, originals, read_by_old):
    m = np_open_existing(originals / name)
    assert (m.shape, m.dtype) == (DENSE[name].shape, DENSE[name].dtype)
    np.testing.assert_array_equal(m, DENSE[name])
    assert str(originals / name / "data.ninja") == str(m.filename)
    assert not m.flags.writeable


@pytest.mark.parametrize("name", MADE)
def test_reading_changes_nothing(name, originals):
    before = state(originals / name)
    for m in (open_kind(originals / name, name), pickle.loads(pickle.dumps(open_kind(originals / name, name)))):
        assert sum(len(to_bytes(sample)) for sample in m) >= 0
        m.lengths, m.shapes, m.starts, m.ends, m.dtype, m.nbytes, m.metadata, repr(m)
        m.take([])
        m.refresh()
        m.flush()
        m.close()
    if not keys_of(name):
        open_map(originals / name)
        open_existing(originals / name)
    assert state(originals / name) == before


@pytest.mark.parametrize("name", MADE)
def test_an_open_map_can_be_pickled(name, originals, read_by_old):
    data = pickle.dumps(open_kind(originals / name, name))
    assert len(data) < 2048
    assert_equal(list(pickle.loads(data)), read_by_old[name])


@pytest.mark.parametrize("name", RAGGED)
def test_lengths_and_shapes_come_from_the_index(name, originals, read_by_old):
    m = open_kind(originals / name, name)
    samples = [np.asarray(sample) for sample in read_by_old[name]]
    assert list(m.lengths) == [len(sample) if sample.ndim else 1 for sample in samples]
    assert [tuple(axis for axis in shape if axis >= 0) for shape in m.shapes] == [sample.shape for sample in samples]


def test_a_number_among_images_reads_as_a_number(originals):
    m = RaggedMmap(originals / "number among images")
    assert_equal(m[:], [4, np.array([[1, 2]])])


def test_nothing_but_empty_texts(originals):
    assert StringsMmap(originals / "empty texts")[:] == ["", ""]


@pytest.mark.parametrize("name", ["dense int8", "dense fortran", "ragged rows", "ragged images", "string"])
def test_surplus_bytes_do_no_harm(name, copy, read_by_old):
    folder = copy(name)
    with open(folder / "data.ninja", "ab") as file:
        file.write(b"surplus")
    assert_equal(list(open_map(folder)), read_by_old[name])


# Damage


def longer(folder):
    """One more number at the end of a column, as when a writer died between two files."""
    length = int.from_bytes((folder / "shape.ninja").read_bytes()[:8], "little")
    (folder / "shape.ninja").write_bytes((length + 1).to_bytes(8, "little"))
    with open(folder / "data.ninja", "ab") as file:
        file.write(bytes(8))


def shorter(path):
    path.write_bytes(path.read_bytes()[:-1])


def garbage(path):
    path.write_bytes(b"\xff?")


@pytest.mark.parametrize(
    ("name", "damage", "where"),
    [
        ("dense int8", shorter, "data.ninja"),
        ("dense fortran", shorter, "data.ninja"),
        ("dense int8", shorter, "shape.ninja"),
        ("dense int8", garbage, "shape.ninja"),
        ("dense int8", garbage, "dtype.ninja"),
        ("dense int8", garbage, "order.ninja"),
        ("ragged rows", longer, "starts"),
        ("ragged rows", longer, "ends"),
        ("ragged rows", longer, "flattened_shapes"),
        ("ragged rows", longer, "shapes"),
        ("ragged images", longer, "shapes/starts"),
        ("ragged images", longer, "shapes/ends"),
        ("ragged images", longer, "shapes/flattened_shapes"),
        ("ragged images", shorter, "shapes/data.ninja"),
        ("ragged rows", shorter, "data.ninja"),
        ("ragged rows", shorter, "starts/shape.ninja"),
        ("ragged rows", shorter, "ends/data.ninja"),
        ("ragged rows", shorter, "shapes/data.ninja"),
        ("ragged rows", shorter, "shapes_are_flat.ninja"),
        ("string", longer, "starts"),
        ("string", longer, "ends"),
        ("string", shorter, "data.ninja"),
        ("string", shorter, "starts/data.ninja"),
        ("string zstd", shorter, "data.ninja"),
        ("string zstd", garbage, "zstd_level.ninja"),
    ],
)
@pytest.mark.parametrize("opened_by", ["open_map", "class"])
def test_counts_that_disagree_are_an_error(opened_by, name, damage, where, copy):
    folder = copy(name)
    damage(folder / where)
    before = state(folder)
    with pytest.raises(MapCorruptError, match=rf"{where}|--salvage"):
        open_map(folder) if opened_by == "open_map" else open_kind(folder, name)
    assert state(folder) == before


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("dense int8", "data.ninja"),
        ("dense int8", "dtype.ninja"),
        ("ragged rows", "starts/data.ninja"),
        ("ragged rows", "ends/shape.ninja"),
        ("ragged images", "shapes/data.ninja"),
        ("string", "ends/data.ninja"),
        ("string", "data.ninja"),
    ],
)
def test_a_missing_file_is_named(name, gone, copy):
    folder = copy(name)
    (folder / gone).unlink()
    with pytest.raises(MapCorruptError, match=gone):
        open_map(folder)


# The first write


def fitting_sample(name, expected):
    return expected[-1] if expected else np.ones(3)


def used_bytes(name, folder):
    """Of the data file; 0.9.0 gives a file to a map without any data one byte."""
    return b"" if name in ("dense empty", "ragged nothing") else (folder / "data.ninja").read_bytes()


def assert_upgraded(name, folder, expected):
    assert (folder / "manifest.json").is_file()
    assert {path.name for path in folder.rglob("*.ninja")} <= {"data.ninja", "zstd_dict.ninja"}  # none to mislead 0.9.0
    assert_equal(list(open_map(folder)), expected)
    assert_equal(list(open_kind(folder, name)), expected)
    if "fortran" in name:
        np.testing.assert_array_equal(np.load(folder / "data.npy")[: len(expected)], expected)


@pytest.mark.parametrize("write", ["append", "extend"])
@pytest.mark.parametrize("name", MADE)
def test_the_first_growth_upgrades_in_place(name, write, copy, read_by_old):
    folder, expected = copy(name), read_by_old[name]
    before = used_bytes(name, folder)
    reader, m = open_kind(folder, name), open_kind(folder, name)
    new = fitting_sample(name, expected)

    with pytest.warns(UpgradeWarning) as seen:
        m.append(new) if write == "append" else m.extend([new])
    assert len(seen) == 1
    m.append(new)  # no second warning: pytest would make it an error
    if "fortran" not in name:
        assert (folder / "data.ninja").read_bytes().startswith(before)

    expected = [*expected, new, new]
    assert_equal(list(m), expected)
    assert_upgraded(name, folder, expected)
    assert_equal(list(reader), expected[:-2])
    reader.refresh()
    assert_equal(list(reader), expected)


def to_bytes(sample):
    return sample.encode() if isinstance(sample, str) else np.asarray(sample).tobytes()


def changed(sample):
    """Another sample of the same type and size."""
    if isinstance(sample, np.ndarray):
        return sample[..., ::-1]
    return sample.swapcase() if isinstance(sample, str) else type(sample)(not sample)


@pytest.mark.parametrize("name", [name for name in MADE if name not in COMPRESSED and name != "dense empty"])
def test_the_first_assignment_upgrades_in_place(name, copy, read_by_old):
    folder, expected = copy(name), list(read_by_old[name])
    before = used_bytes(name, folder)
    mode = "r+b" if name in STRINGS else "r+"
    with open_kind(folder, name, mode=mode) as m:
        with pytest.warns(UpgradeWarning) as seen:
            m[0] = changed(expected[0])
        assert len(seen) == 1
        m[-1] = changed(expected[-1])
    expected[0], expected[-1] = changed(expected[0]), changed(expected[-1])
    assert_upgraded(name, folder, expected)
    if "fortran" not in name:
        first, last = (len(to_bytes(expected[i])) for i in (0, -1))
        between = slice(first, len(before) - last)
        assert (folder / "data.ninja").read_bytes()[between] == before[between]


@pytest.mark.parametrize("name", COMPRESSED)
def test_an_assignment_that_is_refused_upgrades_nothing(name, copy):
    folder = copy(name)
    before = state(folder)
    with pytest.raises(ValueError, match=r"(?i)compressed|zstd"):
        StringsMmap(folder)[0] = "other"
    assert state(folder) == before


def test_a_sample_that_is_refused_upgrades_nothing(copy):
    folder = copy("dense int8")
    before = state(folder)
    with pytest.raises(ValueError, match="shape"):
        DenseMmap(folder).append(np.zeros((7, 7), np.int8))
    assert state(folder)[1] == before[1]


@pytest.mark.parametrize(
    "grow",
    [
        lambda folder, new: np_extend(np_open_existing(folder), new[None]),
        lambda folder, new: np_append(np_open_existing(folder), new),
        lambda folder, new: np_extend_dir(folder, new[None]),
    ],
    ids=["extend", "append", "extend_dir"],
)
@pytest.mark.parametrize("name", ["dense float32", "dense fortran", "dense empty"])
def test_the_functions_for_arrays_upgrade_too(name, grow, copy, read_by_old):
    folder, expected = copy(name), read_by_old[name]
    new = fitting_sample(name, expected)
    with pytest.warns(UpgradeWarning) as seen:
        grow(folder, new)
    assert len(seen) == 1
    assert_upgraded(name, folder, [*expected, new])


@pytest.mark.parametrize("name", ["dense float32", "dense fortran"])
def test_writing_through_a_memmap(name, copy, read_by_old):
    folder, expected = copy(name), read_by_old[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UpgradeWarning)
        m = np_open_existing(folder, mode="r+")
        m[0] = expected[1]
        m.flush()
    assert_equal(list(np_open_existing(folder)), [expected[1], *expected[1:]])


def test_surplus_bytes_are_not_taken_for_samples(copy, read_by_old):
    folder = copy("ragged rows")
    with open(folder / "data.ninja", "ab") as file:
        file.write(b"surplus")
    new = np.array([1.5, 2.5], np.float32)
    with pytest.warns(UpgradeWarning):
        RaggedMmap(folder).append(new)
    assert_equal(list(open_map(folder)), [*read_by_old["ragged rows"], new])


@pytest.mark.parametrize("name", ["number among images", "empty texts"])
def test_what_0_9_could_not_read_can_be_extended(name, copy):
    folder = copy(name)
    m = open_map(folder)
    expected = list(m)
    with pytest.warns(UpgradeWarning):
        m.append(expected[-1])
    assert_equal(list(open_map(folder)), [*expected, expected[-1]])


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: RaggedMmap(folder).append([0]),
        lambda folder: RaggedMmap(folder).extend([[0]]),
        lambda folder: RaggedMmap(folder, mode="r+").__setitem__(0, [0, 0, 0]),
    ],
    ids=["append", "extend", "assignment"],
)
def test_the_warning_names_the_folder_and_points_at_the_caller(write, copy):
    folder = copy("ragged rows")
    with pytest.warns(UserWarning, match=str(folder)) as seen:
        write(folder)
    assert [warning.filename for warning in seen] == [__file__]


@pytest.mark.parametrize("name", ["dense float32", "ragged images", "string", "ragged rows keys"])
def test_a_handle_pickled_before_the_upgrade_reads_the_same_after_it(name, copy, read_by_old):
    folder, expected = copy(name), read_by_old[name]
    pickled = pickle.dumps(open_kind(folder, name))
    with pytest.warns(UpgradeWarning):
        open_kind(folder, name).append(expected[0])
    assert_equal(list(pickle.loads(pickled)), expected)


def test_a_handle_pickled_before_the_map_was_replaced_says_so(copy):
    folder = copy("ragged rows")
    pickled = pickle.dumps(RaggedMmap(folder))
    RaggedMmap.from_lists(folder, [[1.0], [2.0]] * 10)
    with pytest.raises(MapChangedError, match="replaced"):
        pickle.loads(pickled)


# The command


def keys_as_options(name):
    return [f"--{key.replace('_', '-')}={value}" for key, value in keys_of(name).items()]


@pytest.mark.parametrize(
    "name",
    [
        "dense float16",
        "dense fortran",
        "ragged mixed",
        "ragged nothing",
        "ragged rows keys",
        "string keys",
        "string zstd dictionary",
    ],
)
def test_the_upgrade_command(name, copy, read_by_old):
    folder = copy(name)
    data = used_bytes(name, folder)
    done = command("upgrade", folder, *keys_as_options(name))
    assert done.returncode == 0, done.stderr
    assert_upgraded(name, folder, read_by_old[name])
    if "fortran" not in name:
        assert (folder / "data.ninja").read_bytes().startswith(data)

    before = state(folder)
    again = command("upgrade", folder)
    assert again.returncode == 0, again.stderr
    assert "format 2" in again.stdout
    assert state(folder) == before

    m = open_map(folder)
    m.append(read_by_old[name][0])  # without a warning
    assert_equal(list(open_map(folder)), [*read_by_old[name], read_by_old[name][0]])


def test_upgrading_what_is_not_there(tmp_path):
    done = command("upgrade", tmp_path / "missing")
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1
    assert str(tmp_path / "missing") in done.stderr
    assert not (tmp_path / "missing").exists()


def test_upgrading_what_is_damaged(copy):
    folder = copy("ragged rows")
    longer(folder / "starts")
    before = state(folder)
    done = command("upgrade", folder)
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1
    assert "--salvage" in done.stderr
    assert state(folder)[1] == before[1]


# Replacing


@pytest.mark.parametrize(
    ("name", "rebuild", "expected"),
    [
        ("dense float32", lambda folder: np_from_ndarray(folder, np.arange(3)), [0, 1, 2]),
        ("dense fortran", lambda folder: DenseMmap.from_ndarray(folder, np.arange(3)), [0, 1, 2]),
        ("ragged rows", lambda folder: RaggedMmap.from_lists(folder, [1, 2]), [1, 2]),
        ("ragged images", lambda folder: RaggedMmap.from_generator(folder, iter([1, 2]), 1), [1, 2]),
        ("ragged rows keys", lambda folder: RaggedMmap.from_lists(folder, [1, 2], **KEYS), [1, 2]),
        ("string", lambda folder: StringsMmap.from_strings(folder, ["new"]), ["new"]),
        ("string zstd", lambda folder: StringsMmap.from_generator(folder, ["new"], 8), ["new"]),
        ("string zstd dictionary", lambda folder: RaggedMmap.from_lists(folder, [1, 2]), [1, 2]),
    ],
)
def test_building_over_an_old_map_replaces_it(name, rebuild, expected, copy, read_by_old):
    folder = copy(name)
    (folder / "notes.txt").write_text("not of the map")
    reader = open_kind(folder, name)
    rebuild(folder)
    assert open_map(folder)[:] == expected if name not in DENSE else open_map(folder)[:].tolist() == expected
    assert [path.name for path in folder.rglob("*.ninja")] == []
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    assert (folder / "notes.txt").read_text() == "not of the map"
    assert_equal(list(reader), read_by_old[name])


def test_a_build_that_fails_leaves_the_old_map(copy, read_by_old):
    folder = copy("ragged rows")

    def samples():
        yield np.zeros(1000)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        RaggedMmap.from_generator(folder, samples(), 1)
    assert_equal(list(RaggedMmap(folder)), read_by_old["ragged rows"])


def test_a_handle_of_another_kind_upgrades_nothing(tmp_path, copy):
    handle = RaggedMmap(tmp_path / "map")
    folder = copy("string")
    assert folder == tmp_path / "map"
    with pytest.raises(MapKindError, match="is a strings map, not a ragged one"):
        handle.append(np.arange(3))
    assert not (folder / "manifest.json").exists()
    assert (folder / "type.ninja").exists()
