"""Folders that mmap_ninja 0.9.0 itself has made: upgraded by the first write or by the command, or replaced."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import maps_of_0_9
from maps_of_0_9 import (
    COMPRESSED,
    DENSE,
    KEYS,
    MADE,
    STRINGS,
    assert_equal,
    keys_of,
    longer,
    open_kind,
    state,
    to_bytes,
)
from mmap_ninja import (
    DenseMmap,
    RaggedMmap,
    StringsMmap,
    np_append,
    np_extend,
    np_extend_dir,
    np_from_ndarray,
    np_open_existing,
    open_map,
)
from mmap_ninja.errors import MapChangedError, MapCorruptError, MapKindError, UpgradeWarning

originals, read_by_old, copy = maps_of_0_9.originals, maps_of_0_9.read_by_old, maps_of_0_9.copy


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "mmap_ninja", *map(str, arguments)], capture_output=True, text=True)


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


def test_a_sample_that_lies_nowhere_is_not_carried_over(copy):
    """Also one of no elements, which can be read from anywhere."""
    folder = copy("ragged rows")
    starts = np.fromfile(folder / "starts/data.ninja", "<i8")
    starts[1] = -4
    starts.tofile(folder / "starts/data.ninja")
    before = state(folder)
    with pytest.raises(MapCorruptError, match=r"the row \[-4, \d+\] of sample 1 is wrong: .* --salvage"):
        RaggedMmap(folder).append(np.zeros(1, RaggedMmap(folder).dtype))
    (folder / ".lock").unlink()
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
