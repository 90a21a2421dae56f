"""A power cut leaves the old samples or the new ones, and the new ones once the call has returned.

Every change of the table in `changes` is recorded and replayed (`power`), and some that take several calls.
"""

import errno
import os
import random
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import power
from changes import CHANGES, KINDS, METADATA, ORDERED, Change, Kind, tear
from mmap_ninja import DenseMmap, RaggedMmap, open_map, upgrade, verify
from mmap_ninja._storage import disk
from mmap_ninja.errors import MapCorruptError, MapNotFoundError
from power import ABSENT, HALF, WHOLE, ZEROS, Figures, Recording, Step, Story, ram, rebooted, replay

BLOCK = 1 << 20
FEW = {"bound": 100, "most": 40}  # combinations for each prefix of the calls; states of each change
FEW_LARGE = {"bound": 100, "most": 6}  # states of several MiB
MANY = {"bound": 2_000, "most": 800}
MANY_LARGE = {"bound": 1_000, "most": 100}


def story_of(change: Change) -> Story:
    """A change of the table as a story of one call."""
    about = change.operation
    step = Step(
        change.act,
        change.new,
        is_safe="unsynced" not in about and about != "flush",  # before a flush there are unsynced samples
        is_durable="unsynced" not in about,
        is_build=change.is_build,
        assigned=change.assigned,
        metadata=METADATA if about == "metadata" else None,
    )
    kind = KINDS["dense" if change.kind == ORDERED else change.kind]
    return Story(change.begin, change.old, (step,), kind, starts_unfinished=about in ("resume", "resume widening"))


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


def extend(kind: Kind, first: int, stop: int | None = None, *, sync: bool = True, large: bool = False) -> Step:
    """Extend a map of the first samples by the next ones."""
    samples = kind.large if large else kind.samples
    return Step(
        lambda f: open_map(f).extend(samples[first:stop], sync=sync), samples[:stop], is_safe=sync, is_durable=sync
    )


def create(kind: Kind, samples: list, *, sync: bool = True, **options: object) -> Step:
    return Step(
        lambda f: kind.build(f, samples, sync=sync, **options), samples, is_safe=sync, is_durable=sync, is_build=True
    )


def set_metadata(samples: list) -> Step:
    def act(folder: Path) -> None:
        open_map(folder).metadata = METADATA

    return Step(act, samples, metadata=METADATA)


def assign(kind: Kind, samples: list, place: int) -> Step:
    new = [kind.changed(sample) if i == place else sample for i, sample in enumerate(samples)]

    def act(folder: Path) -> None:
        m = open_map(folder, mode="r+")
        m[place] = new[place]
        m.close()

    return Step(act, new, assigned=(place,))


def with_orphans(kind: Kind, count: int) -> Callable[[Path], None]:
    """A map of the first samples, and behind its end what a writer left who was killed before the commit."""

    def begin(folder: Path) -> None:
        m = kind.build(folder, kind.samples[:count])
        manifest = (folder / "manifest.json").read_bytes()
        m.extend([kind.changed(sample) for sample in kind.samples[count:]])
        (folder / "manifest.json").rename(folder / "manifest.json.new")
        (folder / "manifest.json").write_bytes(manifest)

    return begin


def fail_to_extend(kind: Kind, first: int) -> Step:
    """An extend that finds the disk full when it comes to its manifest, and gives its room back."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def act(folder: Path) -> None:
        m = open_map(folder)
        with mock.patch.object(disk, "create_temporary", side_effect=full), pytest.raises(OSError, match="No space"):
            m.extend([kind.changed(sample) for sample in kind.samples[first:]])

    return Step(act, kind.samples[:first])


def made(kind: Kind, samples: list) -> Callable[[Path], object]:
    return lambda folder: kind.build(folder, samples)


def nothing(folder: Path) -> None:
    """There is no map to begin with."""


def stories(name: str, kind: Kind) -> dict[str, Story]:
    """Several calls, one after another."""
    samples, first, large = kind.samples, kind.first, kind.large
    begun, half = len(first), len(large) - 4
    found = {
        "two extends": Story(made(kind, first), first, (extend(kind, begun, begun + 1), extend(kind, begun + 1)), kind),
        "create, extend, replace": Story(
            nothing, None, (create(kind, first), extend(kind, begun), create(kind, samples[::-1])), kind
        ),
        "metadata, then extend": Story(made(kind, first), first, (set_metadata(first), extend(kind, begun)), kind),
        "extend over what was left by a killed writer": Story(
            with_orphans(kind, begun), first, (extend(kind, begun),), kind
        ),
        "extend after one that failed": Story(
            made(kind, first), first, (fail_to_extend(kind, begun), extend(kind, begun)), kind
        ),
        "repair of what was left by a killed writer": Story(
            with_orphans(kind, begun), first, (Step(lambda f: verify(f, repair=True), first), extend(kind, begun)), kind
        ),
        "repair of what was left by a killed build": Story(
            CHANGES[f"{name}: resume beside a map"].begin,
            samples[::-1],
            (Step(lambda f: verify(f, repair=True), samples[::-1]), create(kind, first)),
            kind,
        ),
        "unsynced, over what was left by a killed writer": Story(
            with_orphans(kind, begun), first, (extend(kind, begun, sync=False),), kind
        ),
        "extend after an unsynced extend": Story(
            made(kind, first), first, (extend(kind, begun, begun + 1, sync=False), extend(kind, begun + 1)), kind
        ),
        "extend after an unsynced create": Story(
            nothing, None, (create(kind, first, sync=False), extend(kind, begun)), kind
        ),
        "metadata after an unsynced extend": Story(
            made(kind, first), first, (extend(kind, begun, sync=False), set_metadata(samples)), kind
        ),
        "replace after an unsynced extend": Story(
            made(kind, first), first, (extend(kind, begun, sync=False), create(kind, samples[::-1])), kind
        ),
        "two unsynced extends": Story(
            made(kind, first),
            first,
            (extend(kind, begun, begun + 1, sync=False), extend(kind, begun + 1, sync=False)),
            kind,
        ),
        "extend after an unsynced extend over blocks": Story(
            made(kind, large[:half]),
            large[:half],
            (extend(kind, half, half + 3, sync=False, large=True), extend(kind, half + 3, large=True)),
            kind,
        ),
    }
    if "zstd_level" not in kind.options:
        found |= {
            "assign after an unsynced extend": Story(
                made(kind, first), first, (extend(kind, begun, sync=False), assign(kind, samples, 0)), kind
            ),
            "extend after an assignment": Story(
                made(kind, first),
                first,
                (
                    assign(kind, first, 0),
                    Step(
                        lambda f: open_map(f).append(samples[begun]),
                        [kind.changed(samples[0]), *samples[1 : begun + 1]],
                    ),
                ),
                kind,
            ),
            "assign to the last sample after an unsynced extend over blocks": Story(
                made(kind, large[:half]),
                large[:half],
                (extend(kind, half, sync=False, large=True), assign(kind, large, len(large) - 1)),
                kind,
            ),
        }
    return {f"{name}: {about}": story for about, story in found.items()}


def torn(layout: str) -> Story:
    """What 0.9.0 leaves when it is killed while it extends, and its rescue."""
    kind, begin = KINDS[layout], lambda folder: tear(layout, folder)
    return Story(begin, None, (Step(lambda f: upgrade(f, salvage=True), kind.first),), kind, starts_torn=True)


STORIES = {about: story for name, kind in KINDS.items() for about, story in stories(name, kind).items()}
STORIES |= {f"{layout}: salvage": torn(layout) for layout in ("rows", "mixed", "images", "strings", "zstd strings")}


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
    with rebooted(), pytest.raises(MapCorruptError, match="was being built when the machine stopped"):
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
    with mock.patch.object(power, "findings", return_value=set()):
        blind = replay(story_of(CHANGES["rows: extend unsynced"]), **effort)
    assert sum("samples, not those before or after" in bad for bad in blind.bad) >= 3, str(blind)


def test_an_unsynced_change_is_not_durable() -> None:
    """The same replay, told that it should be."""
    [step] = story_of(CHANGES["rows: extend unsynced"]).steps
    told = Step(step.act, step.after)
    figures = replay(Story(CHANGES["rows: extend unsynced"].begin, KINDS["rows"].first, (told,), KINDS["rows"]), **FEW)
    assert len(figures.bad) >= 10, str(figures)


class TestTheModel:
    """What the recording says that a power cut can leave, for calls made by hand."""

    @staticmethod
    def states(folder: Path, act: Callable[[], None], bound: int = 1_000) -> set[tuple[tuple[str, bytes], ...]]:
        recording = Recording(folder)
        with recording.recording():
            act()
        found = set()
        for state in recording.states(bound, random.Random(0)):
            files = recording.tree(state.stop, state.fates).files
            found.add(tuple(sorted((name, content) for name, (content, _) in files.items())))
        return found

    @staticmethod
    def write(folder: Path, name: str, data: bytes, *, sync: bool, at: int = 0) -> None:
        fd = disk.open_to_write(str(folder / name), create=True)
        disk.write_at(fd, [data], at)
        if sync:
            disk.sync_data(fd)
        disk.close(fd)

    def test_a_write_is_absent_whole_half_or_zeros_until_its_file_is_synced(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"....")
        found = self.states(tmp_path, lambda: self.write(tmp_path, "a", b"data", sync=False))
        assert {dict(state)["a"] for state in found} == {b"....", b"data", b"da..", b"\0\0\0\0"}
        found = self.states(tmp_path, lambda: self.write(tmp_path, "a", b"new!", sync=True))
        assert {dict(state)["a"] for state in found} == {b"data", b"new!", b"neta", b"\0\0\0\0"}

    def test_what_was_synced_stays(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"....")
        recording = Recording(tmp_path)
        with recording.recording():
            self.write(tmp_path, "a", b"12", sync=True)
            recording.returned()
            self.write(tmp_path, "a", b"34", sync=False, at=2)
        last = [state for state in recording.states(100, random.Random(0)) if state.stop == len(recording.calls)]
        assert {state.fates[3] for state in last} == {ABSENT, WHOLE, HALF, ZEROS}
        assert {recording.tree(state.stop, state.fates).files["a"][0] for state in last} == {
            b"12..",
            b"1234",
            b"123.",
            b"12\0\0",
        }
        assert recording.acknowledged(len(recording.calls)) == 1

    def test_a_sync_of_a_file_does_not_make_its_name_durable(self, tmp_path: Path) -> None:
        act = lambda: self.write(tmp_path, "a", b"data", sync=True)
        assert () in self.states(tmp_path, act)
        (tmp_path / "a").unlink()

        def act_and_sync() -> None:
            act()
            disk.sync_folder(str(tmp_path))

        recording = Recording(tmp_path)
        with recording.recording():
            act_and_sync()
        assert recording.volatile(len(recording.calls)) == []
        assert recording.volatile(len(recording.calls) - 1) == [0]

    def test_a_replace_is_the_old_file_or_the_new_one(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"old")
        (tmp_path / "a.new").write_bytes(b"new")
        found = self.states(tmp_path, lambda: disk.replace(str(tmp_path / "a.new"), str(tmp_path / "a")))
        assert found == {(("a", b"old"), ("a.new", b"new")), (("a", b"new"),)}

    def test_a_removed_file_may_be_there_again(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"old")
        assert self.states(tmp_path, lambda: disk.remove(str(tmp_path), "a")) == {(("a", b"old"),), ()}

    def test_a_cut_may_not_have_happened(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"long")

        def cut() -> None:
            fd = disk.open_to_write(str(tmp_path / "a"))
            disk.cut(fd, 2)
            disk.close(fd)

        assert self.states(tmp_path, cut) == {(("a", b"long"),), (("a", b"lo"),)}

    def test_too_many_combinations_are_taken_next_to_none_and_next_to_all(self, tmp_path: Path) -> None:
        def act() -> None:
            for number in range(8):
                self.write(tmp_path, str(number), b"%02d" % number, sync=False)

        found = self.states(tmp_path, act, bound=500)
        assert 250 <= len(found) < 4**8
        contents = [dict(state) for state in found]
        assert {str(n): b"%02d" % n for n in range(8)} in contents
        assert all({str(n): b"%02d" % n for n in range(8) if n != left} in contents for left in range(8))

    def test_a_change_that_is_not_recorded_is_an_error(self, tmp_path: Path) -> None:
        recording = Recording(tmp_path)
        with pytest.raises(AssertionError), recording.recording():
            (tmp_path / "a").write_bytes(b"")
        with pytest.raises(AssertionError, match=r"os\.rename would not be recorded"), recording.recording():
            disk.os.rename("a", "b")
