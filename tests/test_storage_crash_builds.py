"""A build that ends before its end, at every sample: by its generator, by Ctrl-C, by a kill, on a full disk.

What was there before stays; what was built so far can be read, and finished by the same call with `resume=True`, to
what it would have been; a build that begins anew leaves nothing of it.
"""

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import plain_reader
from changes import KINDS, Kind, listed, no_syncs, opened, whole
from faults import KILLED, in_child, in_memory, tree
from mmap_ninja._storage import build
from mmap_ninja.errors import DiskError
from plain_reader import same

ENDINGS = "its generator raises", "Ctrl-C", "killed", "disk full"


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as folder:
        yield folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncs(monkeypatch)
    monkeypatch.setattr(build, "_SAVE_EVERY", 0.0)  # each batch, as when converting one takes long


def stop(kind: Kind, folder: Path, at: int, ending: str) -> None:
    """Build `kind.samples`, which ends in this way when sample number `at` is asked for."""
    if ending == "killed":
        samples = ending_with(kind, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert in_child(lambda: kind.build(folder, samples)) == KILLED
    elif ending == "disk full":
        with pytest.MonkeyPatch.context() as patch:
            with pytest.raises(DiskError) as caught:
                kind.build(folder, ending_with(kind, at, lambda: patch.setattr(os, "pwritev", refuse), go_on=True))
            assert caught.value.errno == errno.ENOSPC
    else:
        error = KeyboardInterrupt() if ending == "Ctrl-C" else RuntimeError("no more")
        with pytest.raises(type(error)):
            kind.build(folder, ending_with(kind, at, lambda: throw(error)))


def ending_with(kind: Kind, at: int, end: Callable[[], object], *, go_on: bool = False) -> Iterator:
    yield from kind.samples[:at]
    end()
    if go_on:
        yield from kind.samples[at:]


def throw(error: BaseException) -> None:
    raise error


def refuse(*args: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def contents(folder: Path) -> dict:
    """All that a map consists of, but what tells it from another one of the same samples: names and numbers."""
    found = plain_reader.fields(folder)
    files = found.pop("files")
    for name in ("id", "generation", "obsolete"):
        found.pop(name)
    for role, file in files.items():
        found[role] = plain_reader.values(folder, file), {**file, "name": ""}
        crc = folder / plain_reader.crc_name(file)
        found[f"{role} crc"] = crc.read_bytes()[: 4 * (file["size"] // plain_reader.BLOCK)] if crc.exists() else b""
    return found


def leftovers(folder: Path) -> set[str]:
    return set(tree(folder)) - plain_reader.names(folder) - {".lock"}


def ends(kind: Kind) -> list[int]:
    """Every number of samples; of many, those around the ends of batches."""
    numbers, size = range(len(kind.samples) + 1), kind.batch_size
    return [n for n in numbers if len(numbers) < 10 or min(n % size, -n % size) < 2]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", KINDS)
def test_a_new_map_is_resumed_to_what_it_would_have_been(tmp_path: Path, name: str, ending: str) -> None:
    kind, folder = KINDS[name], tmp_path / "map"
    kind.build(tmp_path / "whole", kind.samples)
    for at in ends(kind):
        stop(kind, folder, at, ending)
        m, is_part = opened(folder)
        done = 0 if m is None else len(m)
        assert done == at // kind.batch_size * kind.batch_size
        if m is not None:
            assert is_part
            assert same(listed(m), kind.samples[:done])
            plain_reader.check(folder, "building.json")
        kind.build(folder, kind.samples, resume=True)
        whole(folder, kind.samples)
        assert contents(folder) == contents(tmp_path / "whole")
        assert leftovers(folder) == set()
        shutil.rmtree(folder)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", KINDS)
def test_the_old_map_stays_until_the_new_one_is_done(tmp_path: Path, name: str, ending: str) -> None:
    kind, folder = KINDS[name], tmp_path / "map"
    old = kind.samples[::-1]
    kind.build(tmp_path / "whole", kind.samples)
    for at in ends(kind):
        reader = kind.build(folder, old)
        before = tree(folder)
        stop(kind, folder, at, ending)
        assert before.items() <= tree(folder).items()
        whole(folder, old)
        assert same(listed(reader), old)
        kind.build(folder, kind.samples, resume=True)
        whole(folder, kind.samples)
        assert contents(folder) == contents(tmp_path / "whole")
        assert leftovers(folder) == set()
        assert same(listed(reader), old)
        shutil.rmtree(folder)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("is_there", [False, True], ids=["new", "existing"])
def test_a_build_that_begins_anew_sweeps_what_the_last_one_left(
    tmp_path: Path, name: str, ending: str, is_there: bool
) -> None:
    kind, folder = KINDS[name], tmp_path / "map"
    old = kind.samples[::-1]
    if is_there:
        kind.build(folder, old)
    for at in (0, kind.batch_size + 1, len(kind.samples)):
        stop(kind, folder, at, ending)
    reader = opened(folder)[0]
    kind.build(folder, kind.samples[1:])
    whole(folder, kind.samples[1:])
    assert leftovers(folder) == set()
    if is_there:
        assert same(listed(reader), old)


@pytest.mark.parametrize("name", KINDS)
def test_a_stopped_build_does_not_keep_anybody_from_writing_to_the_old_map(tmp_path: Path, name: str) -> None:
    """What was built stays to be resumed, into the place of whatever the old map has become."""
    kind, folder = KINDS[name], tmp_path / "map"
    kind.build(folder, kind.first)
    stop(kind, folder, kind.batch_size, "killed")
    kind.cls(folder).extend(kind.rest)
    whole(folder, kind.samples)
    samples = [*kind.samples[: kind.batch_size], *kind.samples[::-1]]
    kind.build(folder, samples, resume=True)
    whole(folder, samples)
    assert leftovers(folder) == set()
