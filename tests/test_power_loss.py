"""A power cut leaves the old samples or the new ones, and the new ones once the call has returned.

Every change of the table in `changes` is recorded and replayed (`power`), and some that take several calls.
"""

import random
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import power
from changes import CHANGES, KINDS, Kind
from mmap_ninja import DenseMmap, RaggedMmap, open_map, verify
from mmap_ninja.errors import MapCorruptError, MapNotFoundError
from power import Figures, Step, Story, judge, ram, rebooted, replay
from power.stories import STORIES, create, extend, story_of, with_orphans

BLOCK = 1 << 20
FEW = {"bound": 100, "most": 40}  # combinations for each prefix of the calls; states of each change
FEW_LARGE = {"bound": 100, "most": 6}  # states of several MiB
MANY = {"bound": 2_000, "most": 800}
MANY_LARGE = {"bound": 1_000, "most": 100}

# Through `np_open_existing(mode="r+")` values reach the disk through a mapping, which no call tells of.
ALL = [name for name, change in CHANGES.items() if "memmap" not in change.operation]
SYNCED = [name for name in ALL if story_of(CHANGES[name]).steps[0].is_safe]
UNSYNCED = [name for name in ALL if name not in SYNCED]


def one_of_each(names: Iterable[str]) -> list[str]:
    """Each operation, for one kind after another."""
    by_operation: dict[str, list[str]] = {}
    for name in names:
        by_operation.setdefault(name.partition(": ")[2], []).append(name)
    return [those[number % len(those)] for number, those in enumerate(by_operation.values())]


def checked(story: Story, record: Callable[[str, object], None], effort: dict[str, int], least: int = 5) -> Figures:
    figures = replay(story, **effort)
    record("figures", str(figures))
    assert not figures.bad, str(figures)
    assert figures.states >= least, str(figures)
    return figures


def short_effort(name: str) -> dict[str, int]:
    return FEW_LARGE if "blocks" in name else FEW


def long_effort(name: str) -> dict[str, int]:
    return MANY_LARGE if "blocks" in name else MANY


@pytest.mark.parametrize("name", one_of_each(SYNCED))
def test_a_power_cut_leaves_the_old_state_or_the_new(name: str, record_property: Callable[[str, object], None]) -> None:
    checked(story_of(CHANGES[name]), record_property, short_effort(name))


@pytest.mark.long
@pytest.mark.parametrize("name", SYNCED)
def test_a_power_cut_in_any_change_of_any_kind_leaves_the_old_state_or_the_new(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    checked(story_of(CHANGES[name]), record_property, long_effort(name))


@pytest.mark.parametrize("name", one_of_each(UNSYNCED))
def test_verify_tells_of_what_a_power_cut_took_from_an_unsynced_change(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    checked(story_of(CHANGES[name]), record_property, short_effort(name))


@pytest.mark.long
@pytest.mark.parametrize("name", UNSYNCED)
def test_verify_tells_of_what_a_power_cut_took_from_any_unsynced_change(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    checked(story_of(CHANGES[name]), record_property, long_effort(name))


@pytest.mark.parametrize("name", one_of_each(STORIES))
def test_a_power_cut_in_one_of_several_calls(name: str, record_property: Callable[[str, object], None]) -> None:
    """What is synced is durable, also where it stands on what was not."""
    checked(STORIES[name], record_property, short_effort(name))


@pytest.mark.long
@pytest.mark.parametrize("name", STORIES)
def test_a_power_cut_in_any_of_several_calls_of_any_kind(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    checked(STORIES[name], record_property, long_effort(name))


def after_reboot(step: Step) -> Step:
    """The same step on another boot, so that what was being built is checked."""

    def act(folder: Path) -> None:
        with rebooted():
            step.act(folder)

    return replace(step, act=act)


def after_a_cut(name: str, count: int) -> list[Story]:
    """What a user does after a power cut in a change of the table: extend the map, or build what is not finished."""
    kind, found = KINDS[CHANGES[name].kind], []
    with ram() as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recording = power.recorded(story_of(CHANGES[name]), work / "recorded")
        states = list(recording.states(100, random.Random(1)))
        for number, state in enumerate(random.Random(2).sample(states, count)):
            tree, folder = recording.tree(state.stop, state.fates), work / str(number) / "map"
            tree.write(str(folder.parent))
            begin = lambda f, tree=tree: tree.write(str(f.parent))
            whole = after_reboot(create(kind, kind.samples, resume=True))
            try:
                with rebooted():
                    m, is_part = power.opened(folder)
            except MapCorruptError:
                continue  # refused
            except MapNotFoundError:
                found.append(Story(begin, None, (whole,), kind))
                continue
            before, added = list(m[:]), power.others(m)
            add = Step(lambda f, added=added: open_map(f).extend(added), before + added)
            step = whole if is_part else after_reboot(add)
            found.append(Story(begin, before, (step,), kind, starts_unfinished=is_part))
    return found


TWICE = [
    f"{kind}: {about}" for about in ("create", "extend", "replace", "resume", "widen") for kind in ("rows", "mixed")
]


@pytest.mark.parametrize("name", TWICE[::3])
def test_a_second_power_cut_after_a_first(name: str, record_property: Callable[[str, object], None]) -> None:
    for number, story in enumerate(after_a_cut(name, 3)):
        checked(story, lambda about, what, number=number: record_property(f"{about} {number}", what), FEW)


@pytest.mark.long
@pytest.mark.parametrize("name", TWICE)
def test_many_second_power_cuts_after_a_first(name: str, record_property: Callable[[str, object], None]) -> None:
    for number, story in enumerate(after_a_cut(name, 30)):
        checked(story, lambda about, what, number=number: record_property(f"{about} {number}", what), FEW)


RNG = np.random.default_rng(7)
BLOCKS = [RNG.integers(0, 255, BLOCK).astype(np.uint8) for _ in range(3)]


@pytest.mark.parametrize("cls", [DenseMmap, RaggedMmap])
def test_verify_tells_also_where_a_killed_writer_left_a_whole_block(tmp_path: Path, cls: type) -> None:
    """Its data and its checksum agree, but are not those that were committed."""
    folder, kind = tmp_path / "map", Kind(cls, BLOCKS, BLOCKS)
    with_orphans(kind, 2)(folder)
    left = {name: (folder / name).read_bytes() for name in ("data.npy", "data.crc")}
    open_map(folder).append(BLOCKS[2], sync=False)
    assert not power.findings(folder)
    for name, raw in left.items():  # a power cut takes what was written, but not the manifest
        (folder / name).write_bytes(raw)
    assert power.findings(folder)


@pytest.mark.long
@pytest.mark.parametrize("cls", [DenseMmap, RaggedMmap])
def test_verify_tells_of_any_power_cut_where_a_killed_writer_left_a_whole_block(
    cls: type, record_property: Callable[[str, object], None]
) -> None:
    kind = Kind(cls, BLOCKS, BLOCKS)
    story = Story(with_orphans(kind, 2), BLOCKS[:2], (extend(kind, 2, sync=False),), kind)
    checked(story, record_property, MANY)


@pytest.mark.parametrize("lost", ["zeros", "missing", "short"])
def test_a_part_built_map_that_is_refused_is_called_one(tmp_path: Path, lost: str) -> None:
    def loader():
        yield from KINDS["rows"].samples
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        RaggedMmap.from_generator(tmp_path / "map", loader(), 1)
    path = tmp_path / "map" / "data.npy"
    raw = path.read_bytes()
    path.unlink() if lost == "missing" else path.write_bytes(raw[:-1] if lost == "short" else bytes(len(raw)))
    with rebooted(), pytest.raises(MapCorruptError, match="was being built when the machine or its disk stopped"):
        open_map(tmp_path / "map")


def test_verify_does_not_blame_a_map_for_a_build_beside_it(tmp_path: Path) -> None:
    CHANGES["rows: resume beside a map"].begin(tmp_path / "map")
    assert {finding.kind for finding in verify(tmp_path / "map")} == {"unfinished"}
    path = tmp_path / "map" / "data-2.npy"
    path.write_bytes(bytes(path.stat().st_size))
    assert {finding.kind for finding in verify(tmp_path / "map")} == {"unfinished"}


def test_unsynced_changes_do_lose_samples() -> None:
    """Else the tests of `verify` above would show nothing."""
    effort = {"bound": 300, "most": 200}
    figures = replay(story_of(CHANGES["rows: extend unsynced"]), **effort)
    assert figures.outcomes["found"] >= 3, str(figures)
    assert figures.outcomes["refused"] >= 3, str(figures)
    with mock.patch.object(judge, "findings", return_value=set()):
        blind = replay(story_of(CHANGES["rows: extend unsynced"]), **effort)
    assert sum("samples, not those before or after" in bad for bad in blind.bad) >= 3, str(blind)


def test_an_unsynced_change_is_not_durable() -> None:
    """The same replay, told that it should be."""
    [step] = story_of(CHANGES["rows: extend unsynced"]).steps
    told = Step(step.act, step.after)
    figures = replay(Story(CHANGES["rows: extend unsynced"].begin, KINDS["rows"].first, (told,), KINDS["rows"]), **FEW)
    assert len(figures.bad) >= 10, str(figures)
