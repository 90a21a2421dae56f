"""Everything that can be done to a map, in any order, against a plain list: what a call that raised has changed
(nothing), and what every handle sees."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

import plain_reader
from faults import Disk, Strike
from mmap_ninja import DenseMmap, RaggedMmap, open_map
from mmap_ninja._encode import fit_in_place, raw
from mmap_ninja._storage.snapshot import Snapshot
from mmap_ninja.errors import MapChangedError, PartBuiltWarning
from model import quiet
from model.kinds import KINDS, same
from model.machine import Machine
from model.state import FAULTS, Interrupted, Stop, no_space

EXAMPLES, STEPS = 18, 14  # of each kind, in the normal suite
LONG_EXAMPLES, LONG_STEPS = 450, 40  # 108,000 steps of all kinds


def run(kind: str, folder: Path, examples: int, steps: int) -> dict[str, int]:
    """Run the machine; returns how often it has seen what."""
    seen: dict[str, int] = {}
    numbers = itertools.count()
    run_state_machine_as_test(
        lambda: Machine(KINDS[kind], folder / f"map {next(numbers)}", seen),
        settings=settings(quiet, max_examples=examples, stateful_step_count=steps),
    )
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_done_the_map_equals_a_list(tmp_path: Path, kind: str) -> None:
    seen = run(kind, tmp_path, EXAMPLES, STEPS)
    assert seen["machines"] >= EXAMPLES / 2
    assert len(seen) > 12
    assert seen["struck"] > 0


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_done_the_map_equals_a_list_at_length(tmp_path: Path, kind: str) -> None:
    seen = run(kind, tmp_path, LONG_EXAMPLES, LONG_STEPS)
    print(kind, dict(sorted(seen.items())))
    wanted = {"extended", "made", "resumed", "struck", "SampleTypeError", "MapChangedError", "PartBuiltError", "many"}
    wanted |= {"index SampleIndexError", "index IndexTypeError", "index ArgumentError", "MapReadOnlyError", "described"}
    wanted |= {"away", "moved", "restored", "restored, seen by more"}
    wanted |= {"assigned", "own samples"} if not KINDS[kind].is_compressed else set()
    wanted |= {"upgraded"} if KINDS[kind].format_1 else set()
    assert wanted <= set(seen)


def test_the_machine_sees_values_that_are_not_copied(tmp_path: Path) -> None:
    """Views of the samples that are written over."""

    def new_bytes(m: DenseMmap, snapshot: Snapshot, i: int, value: Any) -> memoryview:
        return raw(fit_in_place(snapshot.manifest, i, m.sample_shape, value))

    with mock.patch.object(DenseMmap, "_new_bytes", new_bytes), pytest.raises(AssertionError):
        run("dense", tmp_path, 200, 40)


# -- what the machine has found --------------------------------------------------------------------------------------


def build_and_stop(folder: Path, samples: list) -> None:
    """A build that is interrupted after these samples."""

    def generate() -> Iterator:
        yield from samples
        raise Stop

    with pytest.raises(Stop):
        RaggedMmap.from_generator(folder, generate(), 1)


def test_what_is_assigned_after_a_refresh_is_not_lost(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(3)])
    m[0] = np.array([7, 7, 7])
    RaggedMmap.from_lists(tmp_path / "map", [np.arange(10, 13)] * 2)
    m.refresh()
    m[0] = np.array([9, 9, 9])
    m.flush()
    assert open_map(tmp_path / "map")[0].tolist() == [9, 9, 9]
    plain_reader.check(tmp_path / "map")


def test_a_handle_of_a_replaced_map_is_closed_though_its_assignments_are_gone(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(3)])
    m[0] = np.array([7, 7, 7])
    RaggedMmap.from_lists(tmp_path / "map", [np.arange(2)])
    with pytest.raises(MapChangedError, match="was replaced since it was opened"):
        m.close()
    m.close()
    assert "closed" in repr(m)


def test_no_name_is_used_again_after_an_empty_map(tmp_path: Path) -> None:
    path = tmp_path / "map"
    RaggedMmap.from_lists(path, [np.arange(3)])
    names = plain_reader.names(path) - {"manifest.json"}
    RaggedMmap.from_lists(path, [])
    build_and_stop(path, [np.arange(4)] * 3)
    again = {file["name"] for file in plain_reader.fields(path, "building.json")["files"].values()}
    RaggedMmap.from_generator(path, iter([np.arange(4)] * 5), 2, resume=True)
    assert same(open_map(path)[:], [np.arange(4)] * 5)
    assert not names & again


def test_a_handle_of_a_part_that_was_begun_anew_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "map"
    build_and_stop(path, [np.arange(3)] * 2)
    with pytest.warns(PartBuiltWarning, match="the 2 samples"):
        m = RaggedMmap(path)
    for at in range(40):
        with Disk(Strike(at), no_space).installed(), suppress(OSError):
            RaggedMmap.from_generator(path, iter([np.arange(3)]), 1, sync=False)
        if plain_reader.fields(path, "building.json")["length"] == 0:
            break
    with pytest.raises(MapChangedError, match="was replaced"):
        m.append(np.arange(3))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("write", ["metadata", "append", "flush"])
def test_a_fault_leaves_the_headers_of_files_without_a_value(tmp_path: Path, write: str, fault: Callable) -> None:
    """Samples of no elements have a data file that is nothing but its header, and a reader may have it mapped."""
    for at in range(40):
        path = tmp_path / str(at)
        m = RaggedMmap.from_generator(path, iter([np.zeros((0, 3), int)]), 5, sync=False)
        call = {"metadata": lambda m=m: setattr(m, "metadata", {"a": 1}), "append": lambda m=m: m.append([[1, 2, 3]])}
        with Disk(Strike(at), fault).installed() as double, suppress(OSError, Interrupted):
            call.get(write, m.flush)()
        assert open_map(path)[0].shape == (0, 3)
        plain_reader.check(path)
    assert len(double.calls) <= at
