"""Folders that 0.9.0 was interrupted in: every acknowledged sample comes back, none wrong, and the rest is listed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from changes import SMALL, format_1_column, format_1_rows
from faults import tree
from mmap_ninja import open_map, upgrade, verify
from mmap_ninja._storage.lock import Lock
from mmap_ninja.cli import main
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    MapCorruptError,
    MapLockedError,
    MapNotFoundError,
    SalvageWarning,
    UpgradeWarning,
)
from old import source
from plain_reader import check, same

KILLS = 4  # a kind; a hundred in the long form
KINDS = ["rows", "images", "texts", "compressed", "dense"]

# Run under 0.9.0: a map of 20 samples that is extended by 5 time and again; the number that is safe goes down a pipe.
WRITER = """
import os, sys
import numpy as np
from mmap_ninja import numpy as dense
from mmap_ninja.ragged import RaggedMmap
from mmap_ninja.string import StringsMmap
SAMPLE
kind, out, n = sys.argv[1], sys.argv[2], 20
first = [sample(kind, i) for i in range(n)]
if kind == "dense":
    dense.from_ndarray(out, np.stack(first))
elif kind in ("rows", "images"):
    m = RaggedMmap.from_lists(out, first)
else:
    m = StringsMmap.from_strings(out, first, zstd_level=3 if kind == "compressed" else None)
os.write(1, b"%d\\n" % n)
while True:
    more = [sample(kind, i) for i in range(n, n + 5)]
    dense.extend_dir(out, np.stack(more)) if kind == "dense" else m.extend(more)
    n += 5
    os.write(1, b"%d\\n" % n)
"""

SAMPLE = '''
def sample(kind, i):
    """A pure function of i."""
    if kind == "rows":
        return np.full(1 + i % 7, i)
    if kind == "images":
        return np.full((1 + i % 3, 2), i)
    if kind == "dense":
        return np.full((3, 4), i)
    return f"zwölf {i} " * (1 + i % 9)
'''
exec(SAMPLE)  # the same function here as there


def torn_by_a_kill(kind: str, folder: Path, after: float) -> int:
    """Kill 0.9.0 so many seconds after its first acknowledgement; returns the last one."""
    code = WRITER.replace("SAMPLE", SAMPLE)
    env = {**os.environ, "PYTHONPATH": str(source() / "src")}
    command = [sys.executable, "-c", code, kind, str(folder)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as writer:
        try:
            lines = [writer.stdout.readline()]
            time.sleep(after)
        finally:
            writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.read().split()
    return int(lines[-1])


def salvaged(folder: Path, **options: object) -> list[str]:
    """The lines about what was not saved."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert upgrade(folder, salvage=True, **options) is True
    assert [warning.category for warning in caught] in ([], [SalvageWarning])
    return str(caught[0].message).splitlines() if caught else []


def assert_acknowledged_samples_come_back(kind: str, folder: Path, seed: int) -> bool:
    """One kill; returns whether it has torn the map."""
    acknowledged = torn_by_a_kill(kind, folder, random.Random(seed).random() * 0.08)
    try:
        is_torn = len(open_map(folder)) < acknowledged
    except MapCorruptError:
        is_torn = True
    salvaged(folder, **({"sample_shape": (3, 4)} if kind == "dense" else {}))
    m = open_map(folder)
    assert len(m) >= acknowledged
    assert same(list(m), [sample(kind, i) for i in range(len(m))])  # noqa: F821 - by exec
    assert [one for one in verify(folder) if one.kind != "leftover"] == []
    m.extend([m[0], m[1]])
    assert same(list(open_map(folder))[-2:], [m[0], m[1]])
    check(folder)
    return is_torn


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_writer_had_acknowledged_comes_back(tmp_path: Path, kind: str) -> None:
    for k in range(KILLS):
        assert_acknowledged_samples_come_back(kind, tmp_path / str(k), seed=k)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_hundred_killed_writers_had_acknowledged_comes_back(tmp_path: Path, kind: str) -> None:
    torn = [assert_acknowledged_samples_come_back(kind, tmp_path / str(k), seed=100 + k) for k in range(100)]
    assert any(torn)  # else this has shown nothing


# Each moment of an extend of 0.9.0, made by hand: the files up to one have the new rows, those after it the old ones.

NEW = [np.arange(3) + 900, np.arange(2) + 950]
ORDER = ["data.ninja", "shape.ninja", *(f"{key}/{name}" for key in ("starts", "ends", "flattened_shapes", "shapes")
                                        for name in ("data.ninja", "shape.ninja"))]  # fmt: skip


def old_rows(folder: Path, rows: list) -> None:
    """`rows` as 0.9.0 stores them."""
    format_1_rows(folder)
    sizes = np.array([len(row) for row in rows])
    columns = {"": np.concatenate(rows), "starts": sizes.cumsum() - sizes, "ends": sizes.cumsum()}
    columns |= {"flattened_shapes": sizes, "shapes": sizes}
    for name, column in columns.items():
        (folder / name / "data.ninja").write_bytes(column.tobytes())
        (folder / name / "shape.ninja").write_bytes(np.array(column.shape, "<i8").tobytes())


@pytest.mark.parametrize("done", range(len(ORDER)), ids=ORDER)
@pytest.mark.parametrize("how", ["not begun", "empty", "half"])
def test_every_moment_of_an_extend(tmp_path: Path, done: int, how: str) -> None:
    """So many files are written, and the next one is as it was, was just opened, or has a half of its new bytes."""
    old, folder = SMALL[:4], tmp_path / "map"
    old_rows(folder, old)
    old_rows(tmp_path / "new", [*old, *NEW])
    for name in ORDER[:done]:
        shutil.copy(tmp_path / "new" / name, folder / name)
    name = ORDER[done]
    before, after = (folder / name).read_bytes(), (tmp_path / "new" / name).read_bytes()
    if how == "half":
        (folder / name).write_bytes(
            after[: (len(before) + len(after)) // 2] if name.endswith("data.ninja") else after[:4]
        )
    elif how == "empty" and name.endswith("shape.ninja"):
        (folder / name).write_bytes(b"")
    lines = salvaged(folder)
    found = open_map(folder)[:]
    assert same(found, [*old, *NEW][: len(found)])
    assert len(found) >= 4
    assert verify(folder) == []
    is_begun = done > 0 or how == "half"
    assert bool(lines) == (is_begun and len(found) < 6)


def test_a_dense_map_without_its_shape(tmp_path: Path) -> None:
    array = np.arange(60.0).reshape(5, 3, 4)
    format_1_column(tmp_path / "map", array)
    (tmp_path / "map/shape.ninja").write_bytes(b"")
    before = tree(tmp_path / "map")
    with pytest.raises(MapCorruptError, match=r"shape.ninja has 0 bytes.*give the shape of a sample"):
        upgrade(tmp_path / "map", salvage=True)
    assert tree(tmp_path / "map") == before
    with open(tmp_path / "map/data.ninja", "ab") as file:
        file.write(bytes(100))  # one sample more, and a part of another
    assert salvaged(tmp_path / "map", sample_shape=[3, 4]) == [
        f"{tmp_path}/map: the last 4 bytes of data.ninja are no whole sample"
    ]
    assert np.array_equal(open_map(tmp_path / "map")[:], [*array, np.zeros((3, 4))])


def test_samples_of_a_dense_map_that_were_not_counted(tmp_path: Path) -> None:
    format_1_column(tmp_path / "map", np.arange(6).reshape(3, 2))
    with open(tmp_path / "map/data.ninja", "ab") as file:
        file.write(np.array([[6, 7], [8, 9]]).tobytes())
    assert salvaged(tmp_path / "map") == [
        f"{tmp_path}/map: samples 3 to 4 were not counted in shape.ninja; they are saved"
    ]
    assert np.array_equal(open_map(tmp_path / "map")[:], np.arange(10).reshape(5, 2))


def test_a_dense_map_that_is_too_short(tmp_path: Path) -> None:
    format_1_column(tmp_path / "map", np.arange(6).reshape(3, 2))
    os.truncate(tmp_path / "map/data.ninja", 40)
    assert salvaged(tmp_path / "map") == [
        f"{tmp_path}/map: the last 8 bytes of data.ninja are no whole sample",
        f"{tmp_path}/map: samples 2 to 2 are not in data.ninja",
    ]
    assert np.array_equal(open_map(tmp_path / "map")[:], [[0, 1], [2, 3]])


def test_samples_behind_a_tear_are_not_guessed(tmp_path: Path) -> None:
    """0.9.0 died after `starts`, and was used again: rows of samples of equal size no longer tell which is whose."""
    first, torn, later = [np.array([1, 2])] * 2, [np.array([7, 7])], [np.array([9, 9])]
    folder = tmp_path / "map"
    old_rows(folder, [*first, *later])
    (folder / "data.ninja").write_bytes(np.concatenate([*first, *torn, *later]).tobytes())
    (folder / "starts/data.ninja").write_bytes(np.array([0, 2, 4, 4]).tobytes())
    (folder / "starts/shape.ninja").write_bytes((4).to_bytes(8, "little"))
    with pytest.raises(MapCorruptError, match=r"different lengths.*upgrade --salvage"):
        open_map(folder)
    lines = salvaged(folder)
    assert same(open_map(folder)[:], first)
    assert lines[0] == f"{folder}: of samples 2 to 3 some rows or bytes are missing"
    assert "32 bytes of data.ninja belong to no sample that is whole" in lines[1]


def test_texts_that_cannot_be_read_are_not_saved(tmp_path: Path) -> None:
    """A later text lies where its rows say, but the bytes there are half of another one."""
    folder = tmp_path / "map"
    folder.mkdir()
    (folder / "type.ninja").write_text("string")
    (folder / "data.ninja").write_bytes("aä".encode() + "öb".encode()[1:])
    format_1_column(folder / "starts", np.array([0, 3]))
    format_1_column(folder / "ends", np.array([3, 5]))
    assert salvaged(folder)
    assert open_map(folder)[:] == ["aä"]


def test_nothing_is_lost_of_a_map_that_is_whole(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    assert salvaged(tmp_path / "map") == []
    assert same(open_map(tmp_path / "map")[:], SMALL[:4])
    assert upgrade(tmp_path / "map", salvage=True) is False
    with pytest.raises(MapNotFoundError, match=r"there is no map of mmap_ninja 0\.9\.0 at"):
        upgrade(tmp_path, salvage=True)


def test_gaps_between_samples_are_no_tear(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    sizes = np.array([len(row) for row in SMALL[:4]])
    starts = np.array([0, 4, 6, 8])
    data = np.zeros(12, np.int64)
    for start, row in zip(starts, SMALL, strict=False):
        data[start : start + len(row)] = row
    format_1_column(tmp_path / "data", data)
    for name in ("data.ninja", "shape.ninja"):
        shutil.copy(tmp_path / "data" / name, tmp_path / "map" / name)
    (tmp_path / "map/starts/data.ninja").write_bytes(starts.tobytes())
    (tmp_path / "map/ends/data.ninja").write_bytes((starts + sizes).tobytes())
    assert same(open_map(tmp_path / "map")[:], SMALL[:4])
    assert salvaged(tmp_path / "map") == [f"{tmp_path}/map: there are gaps between samples; they are kept as they are"]
    assert same(open_map(tmp_path / "map")[:], SMALL[:4])


def test_where_nothing_is_whole(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    (tmp_path / "map/ends/data.ninja").write_bytes(b"")
    before = tree(tmp_path / "map")
    with pytest.raises(MapCorruptError, match="no sample is whole"):
        upgrade(tmp_path / "map", salvage=True)
    assert tree(tmp_path / "map") == before


@pytest.mark.parametrize("shape", ["3,4", 3, [3, 4.0], [], [0, 4], [-1], [True], [2**64]], ids=repr)
def test_a_shape_that_is_none(tmp_path: Path, shape: object) -> None:
    format_1_column(tmp_path / "map", np.arange(24).reshape(2, 3, 4))
    (tmp_path / "map/shape.ninja").write_bytes(b"")
    before = tree(tmp_path / "map")
    with pytest.raises((ArgumentError, ArgumentTypeError), match="sample_shape is"):
        upgrade(tmp_path / "map", salvage=True, sample_shape=shape)
    assert tree(tmp_path / "map") == before


def test_a_shape_that_is_not_needed(tmp_path: Path) -> None:
    format_1_column(tmp_path / "map", np.arange(24).reshape(2, 3, 4))
    format_1_rows(tmp_path / "rows")
    with pytest.raises(ArgumentError, match="sample_shape is for salvage=True"):
        upgrade(tmp_path / "map", sample_shape=(3, 4))
    for name in ("map", "rows"):
        with pytest.raises(ArgumentError, match="knows better: sample_shape is"):
            upgrade(tmp_path / name, salvage=True, sample_shape=(4, 3))
    assert salvaged(tmp_path / "map", sample_shape=(3, 4)) == []


def test_advice_does_not_go_in_circles(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    (tmp_path / "map/starts").rename(tmp_path / "map/begins")
    with pytest.raises(
        MapCorruptError, match=r"is missing; if its subfolders have other names.*--starts-key"
    ) as caught:
        upgrade(tmp_path / "map", salvage=True)
    assert "--salvage" not in str(caught.value)
    assert main(["upgrade", "--salvage", "--starts-key", "begins", str(tmp_path / "map")]) == 0


def test_a_shape_that_the_command_does_not_understand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["upgrade", "--salvage", "--sample-shape", "a,b", "map"])
    assert "'a,b', expected integers with commas between them" in capsys.readouterr().err


def test_it_takes_the_lock(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    with Lock(str(tmp_path / "map")), pytest.raises(MapLockedError, match="is being written"):
        upgrade(tmp_path / "map", salvage=True)


def test_a_torn_map_is_not_upgraded_by_writing(tmp_path: Path) -> None:
    format_1_rows(tmp_path / "map")
    m = open_map(tmp_path / "map")
    os.truncate(tmp_path / "map/ends/data.ninja", 8)
    with pytest.raises(MapCorruptError, match="upgrade --salvage"):
        m.append(SMALL[0])
    format_1_rows(tmp_path / "whole")
    with pytest.warns(UpgradeWarning, match="upgrades it to format 2"):
        open_map(tmp_path / "whole").append(SMALL[0])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "map"
    format_1_rows(folder)
    os.truncate(folder / "ends/data.ninja", 16)
    assert main(["upgrade", str(folder)]) == 1
    assert "upgrade --salvage" in capsys.readouterr().err
    assert main(["upgrade", "--salvage", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}: of samples 2 to 3 some rows or bytes are missing"
    assert lines[-1] == f"{folder}: upgraded to format 2"
    assert same(open_map(folder)[:], SMALL[:2])
    format_1_column(tmp_path / "dense", np.arange(12).reshape(2, 2, 3))
    (tmp_path / "dense/shape.ninja").write_bytes(b"")
    assert main(["upgrade", "--salvage", "--sample-shape", "2,3", str(tmp_path / "dense")]) == 0
    assert open_map(tmp_path / "dense")[1].tolist() == [[6, 7, 8], [9, 10, 11]]
