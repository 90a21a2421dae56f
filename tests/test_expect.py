"""`expect=`: a map opens as the samples that are expected, or not at all; `identity` is what to expect."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import plain_reader
from changes import KINDS, format_1_column, listed
from mmap_ninja import (
    DenseMmap,
    Mmap,
    RaggedMmap,
    backup,
    np_from_ndarray,
    np_open_existing,
    open_existing,
    open_map,
    upgrade,
    verify,
)
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, MapChangedError, MapClosedError, MapNotFoundError
from plain_reader import same

WAYS: dict[str, Callable] = {
    "open_map": lambda f, expect: open_map(f, expect=expect),
    "the constructor": lambda f, expect: type(open_map(f))(f, expect=expect),
    "open_existing": lambda f, expect: open_existing(f, expect=expect),
    "open_existing, wrapped": lambda f, expect: open_existing(f, lambda sample: sample, expect=expect),
}


def through_json(m: Mmap) -> dict:
    found = json.loads(json.dumps(m.identity))
    assert found == m.identity
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", KINDS)
def test_a_map_is_what_it_says_it_is(tmp_path: Path, name: str, way: str) -> None:
    kind = KINDS[name]
    m = kind.build(tmp_path / "map", kind.first)
    expected = through_json(m)
    assert list(expected) == ["id", "kind", "dtype", "length", "checksum"]
    assert (expected["kind"], expected["length"]) == (kind.cls.kind, len(kind.first))
    assert len(WAYS[way](tmp_path / "map", expected)) == len(kind.first)
    m.extend(kind.rest)
    with pytest.raises(MapChangedError) as caught:
        WAYS[way](tmp_path / "map", expected)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'map'} is not what was expected: ")
    assert f"its length is {len(kind.samples)}, expected {len(kind.first)}" in message
    assert "Open the map that was meant, or expect the `identity` of this one" in message
    assert len(WAYS[way](tmp_path / "map", through_json(m))) == len(kind.samples)


def test_an_older_state(tmp_path: Path) -> None:
    """A copy of the folder that was restored, say."""
    m = RaggedMmap.from_lists(tmp_path / "map", [[1], [2]])
    shutil.copytree(tmp_path / "map", tmp_path / "old")
    m.append([3])
    expected = m.identity
    m.close()
    shutil.rmtree(tmp_path / "map")
    (tmp_path / "old").rename(tmp_path / "map")
    with pytest.raises(MapChangedError, match="its length is 2, expected 3; its checksum is"):
        open_map(tmp_path / "map", expect=expected)


def test_another_map_of_the_same_samples(tmp_path: Path) -> None:
    first = RaggedMmap.from_lists(tmp_path / "a", [[1], [2]]).identity
    second = RaggedMmap.from_lists(tmp_path / "b", [[1], [2]]).identity
    assert first["checksum"] == second["checksum"]
    with pytest.raises(MapChangedError, match=f"its id is {second['id']}, expected {first['id']}"):
        open_map(tmp_path / "b", expect=first)
    del first["id"]
    assert len(open_map(tmp_path / "b", expect=first)) == 2  # whoever wants the samples, whatever the map


def test_other_values_of_the_same_length(tmp_path: Path) -> None:
    """Two histories of one map: appended to in two copies, or assigned to."""
    RaggedMmap.from_lists(tmp_path / "map", [[1], [2]])
    backup(tmp_path / "map", tmp_path / "copy")
    RaggedMmap(tmp_path / "map").append([3])
    RaggedMmap(tmp_path / "copy").append([4])
    with pytest.raises(MapChangedError, match=r"expected: its checksum is \w{16}, expected \w{16}\. Open the map"):
        open_map(tmp_path / "copy", expect=open_map(tmp_path / "map").identity)
    m = RaggedMmap(tmp_path / "map", mode="r+")
    before = m.identity
    m[0] = [9]
    assert "checksum" not in m.identity
    with pytest.raises(MapChangedError, match="its checksum is not known, expected"):
        open_map(tmp_path / "map", expect=before)
    open_map(tmp_path / "map", expect=m.identity)
    m.flush()
    with pytest.raises(MapChangedError, match="its checksum is"):
        open_map(tmp_path / "map", expect=before)
    m[0] = [1]
    m.flush()
    assert m.identity == before
    open_map(tmp_path / "map", expect=before)


def test_what_leaves_the_samples_as_they_are_leaves_the_identity(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [[1], [2]])
    m.extend([[3], [4]], sync=False)
    before, generation = m.identity, plain_reader.fields(tmp_path / "map")["generation"]
    m.flush()
    m.metadata = {"a": 1}
    assert plain_reader.fields(tmp_path / "map")["generation"] > generation
    backup(m, tmp_path / "copy")
    (tmp_path / "map").rename(tmp_path / "moved")
    for folder in ("copy", "moved"):
        assert open_map(tmp_path / folder, expect=before).identity == before


def test_how_the_samples_came_does_not_matter(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", [[1]])
    backup(tmp_path / "map", tmp_path / "copy")
    one, other = RaggedMmap(tmp_path / "map"), RaggedMmap(tmp_path / "copy")
    one.extend([[2], [3, 3]])
    other.append([2])
    other.append([3, 3])
    assert one.identity == other.identity


# What may be expected.


def test_every_key(tmp_path: Path) -> None:
    m = DenseMmap.from_ndarray(tmp_path / "map", np.zeros((5, 2, 3), np.float32))
    right = {
        "id": [m.identity["id"]],
        "kind": ["dense"],
        "dtype": ["float32", "<f4", np.float32, np.dtype("f4")],
        "length": [5, np.int64(5)],
        "checksum": [m.identity["checksum"]],
        "generation": [plain_reader.fields(tmp_path / "map")["generation"]],
        "sample_shape": [(2, 3), [2, 3], np.array([2, 3])],
    }
    wrong = {
        "id": "other",
        "kind": "ragged",
        "dtype": "float64",
        "length": 4,
        "checksum": "0" * 16,
        "generation": 100,
        "sample_shape": (3, 2),
    }
    assert right.keys() == wrong.keys()
    for key, values in right.items():
        for value in values:
            assert len(open_map(tmp_path / "map", expect={key: value})) == 5
            assert len(np_open_existing(tmp_path / "map", expect={key: value})) == 5
        for act in (open_map, np_open_existing):
            with pytest.raises(MapChangedError, match=f"its {key} is .*, expected"):
                act(tmp_path / "map", expect={**m.identity, key: wrong[key]})
    assert len(open_map(tmp_path / "map", expect={})) == 5


def test_dtypes_of_several_fields(tmp_path: Path) -> None:
    array = np.zeros(3, [("a", "<i4"), ("b", "f8", (2,))])
    m = DenseMmap.from_ndarray(tmp_path / "map", array)
    open_map(tmp_path / "map", expect=through_json(m))
    open_map(tmp_path / "map", expect={"dtype": array.dtype})
    with pytest.raises(MapChangedError, match="its dtype is"):
        open_map(tmp_path / "map", expect={"dtype": [["a", "<i4"]]})


def test_a_map_of_no_samples(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [])
    expected = through_json(m)
    assert (expected["dtype"], expected["length"]) == (None, 0)
    open_map(tmp_path / "map", expect=expected)
    m.append([1])
    with pytest.raises(MapChangedError, match="its dtype is int64, expected None; its length is 1, expected 0"):
        open_map(tmp_path / "map", expect=expected)


def test_no_map(tmp_path: Path) -> None:
    m = RaggedMmap(tmp_path / "nowhere")
    with pytest.raises(MapNotFoundError, match="append the first sample"):
        m.identity
    for act in (open_map, RaggedMmap, open_existing, np_open_existing):
        with pytest.raises(MapNotFoundError, match="there is no map at"):
            act(tmp_path / "nowhere", expect={"length": 1})
    m.append([1])
    m.close()
    with pytest.raises(MapClosedError):
        m.identity


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "map", [[1]])
    known = "id, kind, dtype, length, checksum, generation, sample_shape"
    for act in (open_map, RaggedMmap, open_existing, lambda f, expect: np_open_existing(f, expect=expect)):
        for expect, error, match in (
            ({"size": 1, 2: 3}, ArgumentError, f"expect has 'size', 2, of which nothing is known: {known}"),
            ({"length": "1"}, ArgumentTypeError, r"expect\['length'\] is '1': expected a number"),
            ({"length": True}, ArgumentTypeError, r"expect\['length'\] is True: expected a number"),
            ({"length": -1}, ArgumentTypeError, r"expect\['length'\] is -1: expected a number"),
            ({"length": None}, ArgumentTypeError, r"expect\['length'\] is None"),
            ({"id": 1}, ArgumentTypeError, r"expect\['id'\] is 1: expected a str"),
            ({"dtype": "nonsense"}, ArgumentTypeError, r"expect\['dtype'\] is 'nonsense': dtype 'nonsense' is unknown"),
            ({"dtype": object()}, ArgumentTypeError, r"expect\['dtype'\]"),
            ({"sample_shape": 3}, ArgumentTypeError, r"expect\['sample_shape'\] is 3: expected a tuple of numbers"),
            ({"sample_shape": [2.5]}, ArgumentTypeError, r"is \[2.5\]: expected a tuple of numbers"),
            ([("length", 1)], ArgumentTypeError, "expect is .*, expected a dict, such as the `identity` of a map"),
            (5, ArgumentTypeError, "expect is 5, expected a dict"),
        ):
            with pytest.raises(error, match=match):
                act(tmp_path / "map", expect=expect)
    with pytest.raises(ArgumentTypeError, match="expect= is for maps that are there already"):
        RaggedMmap.from_generator(tmp_path / "new", iter([[1]]), 1, expect={"length": 1})
    assert not (tmp_path / "new").exists()


def test_both_at_once(tmp_path: Path) -> None:
    """What is expected is looked at before any byte is compared."""
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(10_000)])
    assert len(open_map(tmp_path / "map", check=True, expect=m.identity)) == 1
    m.append([1])
    raw = bytearray((tmp_path / "map" / "data.npy").read_bytes())
    raw[500] ^= 1
    (tmp_path / "map" / "data.npy").write_bytes(raw)
    with pytest.raises(MapChangedError):
        open_map(tmp_path / "map", check=True, expect={"length": 1})


# Handles.


def test_a_handle_that_sees_fewer_samples_than_there_are(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [[1], [2]])
    whole = m.identity
    raw = pickle.dumps(m)
    RaggedMmap(tmp_path / "map").append([3])
    assert m.identity == whole
    part = pickle.loads(raw).identity
    assert part == {name: value for name, value in whole.items() if name != "checksum"}


def test_what_is_expected_is_expected_of_the_opening_alone(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [[1], [2]])
    handle = open_map(tmp_path / "map", expect=m.identity)
    m.append([3])
    handle.refresh()
    assert len(handle) == 3
    assert len(pickle.loads(pickle.dumps(handle))) == 3
    assert handle.identity == m.identity


def test_format_1(tmp_path: Path) -> None:
    format_1_column(tmp_path / "map", np.arange(6.0))
    m = open_map(tmp_path / "map")
    expected = through_json(m)
    assert "checksum" not in expected
    assert same(listed(open_map(tmp_path / "map", expect=expected)), list(np.arange(6.0)))
    upgrade(tmp_path / "map")
    assert open_map(tmp_path / "map", expect=expected).identity == {**expected, **open_map(tmp_path / "map").identity}
    np_from_ndarray(tmp_path / "map", np.arange(6.0))
    with pytest.raises(MapChangedError, match="its id is"):
        open_map(tmp_path / "map", expect=expected)
    assert verify(tmp_path / "map") == []


def test_the_id_of_format_1_is_that_of_its_data_file(tmp_path: Path) -> None:
    format_1_column(tmp_path / "map", np.arange(6.0))
    expected = {"id": open_map(tmp_path / "map").identity["id"]}
    backup(tmp_path / "map", tmp_path / "copy")
    with pytest.raises(MapChangedError, match="its id is"):
        open_map(tmp_path / "copy", expect=expected)
    upgrade(tmp_path / "map")
    assert len(open_map(tmp_path / "map", expect=expected)) == 6
    backup(tmp_path / "map", tmp_path / "another")
    assert len(open_map(tmp_path / "another", expect=expected)) == 6
