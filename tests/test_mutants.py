"""The power-cut tests can see: each way to get the order of writes and syncs wrong leaves bad states in the replay.

A mutant changes functions of `disk` while a story is recorded and while its states are written to again.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pytest

from changes import CHANGES
from mmap_ninja._storage import disk
from mmap_ninja._storage.manifest import PREFIX
from power import Story, replay
from test_power_loss import STORIES, story_of

EFFORT = {"bound": 300, "most": 120}
LONG_EFFORT = {"bound": 2_000, "most": 1_000}
Mutant = Callable[[], AbstractContextManager[None]]


def name_of(fd: int) -> str:
    return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))


@contextmanager
def patched(**functions: Callable[..., object]) -> Iterator[None]:
    """Functions of `disk` replaced."""
    with ExitStack() as stack:
        for name, function in functions.items():
            stack.enter_context(mock.patch.object(disk, name, function))
        yield


def not_synced(*beginnings: str, ending: str = ".npy") -> AbstractContextManager[None]:
    real = disk.sync_data

    def sync_data(fd: int) -> None:
        if not (name_of(fd).startswith(beginnings) and name_of(fd).endswith(ending)):
            real(fd)

    return patched(sync_data=sync_data)


def no_sync_of_data() -> AbstractContextManager[None]:
    return not_synced("data")


def no_sync_of_the_index() -> AbstractContextManager[None]:
    return not_synced("index")


def no_sync_of_the_checksums() -> AbstractContextManager[None]:
    return not_synced("data", "index", ending=".crc")


def no_sync_of_the_temporary_manifest() -> AbstractContextManager[None]:
    real = disk.sync

    def sync(fd: int) -> None:
        if not name_of(fd).endswith(".new"):
            real(fd)

    return patched(sync=sync)


def no_sync_of_the_folder() -> AbstractContextManager[None]:
    return patched(sync_folder=lambda path, fd=None: None)


def manifest_written_in_place() -> AbstractContextManager[None]:
    real_create, real_replace = disk.create_temporary, disk.replace

    def create_temporary(path: str) -> int:
        return real_create(path.removesuffix(".new"))

    def replace(source: str, target: str) -> None:
        if not source.endswith(".new"):
            real_replace(source, target)

    return patched(create_temporary=create_temporary, replace=replace)


def manifest_before_the_data() -> AbstractContextManager[None]:
    """What is written to other files than manifests waits until a manifest has taken its place."""
    real_write, real_sync, real_replace, real_close = disk.write_at, disk.sync_data, disk.replace, disk.close
    waiting: list[tuple[int, Callable[[], None]]] = []

    def go_on(*fds: int) -> None:
        due = [do for fd, do in waiting if not fds or fd in fds]
        waiting[:] = [(fd, do) for fd, do in waiting if fds and fd not in fds]
        for do in due:
            do()

    def write_at(fd: int, chunks: list, offset: int) -> None:
        if name_of(fd).endswith(".new"):
            real_write(fd, chunks, offset)
        else:
            waiting.append((fd, lambda: real_write(fd, chunks, offset)))

    def sync_data(fd: int) -> None:
        waiting.append((fd, lambda: real_sync(fd)))

    def replace(source: str, target: str) -> None:
        real_replace(source, target)
        go_on()

    def close(fd: int) -> None:
        go_on(fd)
        real_close(fd)

    return patched(write_at=write_at, sync_data=sync_data, replace=replace, close=close)


def data_written_at_the_end_of_the_file() -> AbstractContextManager[None]:
    real = disk.write_at

    def write_at(fd: int, chunks: list, offset: int) -> None:
        is_data = name_of(fd).startswith("data") and name_of(fd).endswith(".npy")
        real(fd, chunks, os.fstat(fd).st_size if is_data and offset else offset)

    return patched(write_at=write_at)


def old_files_removed_before_the_commit() -> AbstractContextManager[None]:
    """A manifest takes its place only when what the old one named is gone."""
    real = disk.replace

    def replace(source: str, target: str) -> None:
        if target.endswith("manifest.json") and os.path.exists(target):
            for name in names_in(target) - names_in(source):
                disk.remove(os.path.dirname(target), name)
        real(source, target)

    return patched(replace=replace)


def names_in(manifest: str) -> set[str]:
    return {file["name"] for file in json.loads(Path(manifest).read_bytes())["files"].values()}


def files_known_by_their_content() -> AbstractContextManager[None]:
    """What has the name of one of our files is taken for a stranger's, unless it begins as a manifest or with zeros."""
    real = disk.is_regular

    def is_regular(path: str) -> bool:
        start = Path(path).read_bytes()[: len(PREFIX)] if real(path) else b"?"
        return start == PREFIX[: len(start)] or not any(start)

    return patched(is_regular=is_regular)


PROTOCOL = {
    "no sync of data": no_sync_of_data,
    "no sync of the index": no_sync_of_the_index,
    "no sync of the temporary manifest": no_sync_of_the_temporary_manifest,
    "no sync of the folder": no_sync_of_the_folder,
    "the manifest in place": manifest_written_in_place,
    "the manifest before the data": manifest_before_the_data,
    "data at the end of the file": data_written_at_the_end_of_the_file,
}
ELSEWHERE = [
    (no_sync_of_the_checksums, "rows: extend over blocks"),
    (old_files_removed_before_the_commit, "rows: replace"),
    (files_known_by_their_content, "rows: extend"),
    (files_known_by_their_content, "rows: create"),
]
BUILDS = [
    *[(no_sync_of_data, f"rows: {about}") for about in ("create", "replace", "resume", "widen", "first append")],
    *[(no_sync_of_the_index, f"rows: {about}") for about in ("create", "replace", "resume", "widen", "upgrade")],
    *[(no_sync_of_the_temporary_manifest, f"rows: {about}") for about in ("create", "replace", "widen", "upgrade")],
    *[(no_sync_of_the_folder, f"rows: {about}") for about in ("create", "replace", "resume", "widen", "upgrade")],
    (manifest_written_in_place, "rows: widen"),
    (manifest_before_the_data, "rows: create"),
    (data_written_at_the_end_of_the_file, "rows: create"),
    (no_sync_of_data, "dense: assign"),
    (no_sync_of_the_temporary_manifest, "rows: metadata"),
    *[(files_known_by_their_content, f"rows: {about}") for about in ("replace", "resume", "widen", "upgrade")],
]


def test_the_protocol_leaves_no_bad_state() -> None:
    """The same stories as below, with nothing changed."""
    for story in (STORIES["rows: two extends"], story_of(CHANGES["rows: replace"])):
        figures = replay(story, **EFFORT)
        assert not figures.bad, str(figures)
        assert figures.states >= 50, str(figures)


@pytest.mark.parametrize("name", PROTOCOL)
def test_each_mutant_of_the_protocol_is_caught(name: str, record_property: Callable[[str, object], None]) -> None:
    assert len(PROTOCOL) == 7
    is_caught(PROTOCOL[name], STORIES["rows: two extends"], record_property, EFFORT)


@pytest.mark.parametrize(("mutant", "change"), ELSEWHERE)
def test_more_mutants_are_caught(mutant: Mutant, change: str, record_property: Callable[[str, object], None]) -> None:
    is_caught(mutant, story_of(CHANGES[change]), record_property, EFFORT)


@pytest.mark.long
@pytest.mark.parametrize(("mutant", "change"), BUILDS)
def test_mutants_are_caught_in_other_changes(
    mutant: Mutant, change: str, record_property: Callable[[str, object], None]
) -> None:
    is_caught(mutant, story_of(CHANGES[change]), record_property, LONG_EFFORT)


def is_caught(mutant: Mutant, story: Story, record: Callable[[str, object], None], effort: dict[str, int]) -> None:
    with mutant():
        figures = replay(story, **effort)
    record("figures", str(figures))
    assert figures.bad, str(figures)
