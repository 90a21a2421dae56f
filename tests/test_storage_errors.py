"""Out of space, over quota, a bad disk, Ctrl-C: an error that tells, nothing lost, and the same call works afterwards.

Each change of `changes.CHANGES` is done again in a fresh copy of its folder for every system call that it makes, of
which one fails, until none is left to fail.
"""

import errno
import fcntl
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import plain_reader
from changes import CHANGES, KINDS, SHORT, Change, but, check, copied, listed, no_syncs, opened, quietly, whole
from faults import Os, in_memory, tree
from mmap_ninja import Mmap, open_map, verify
from mmap_ninja.errors import DiskError, ForeignFileError, MapPermissionError, SyncError
from plain_reader import same

ERRNOS = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO
GROWING = "append", "extend", "extend unsynced", "extend over blocks", "extend over index blocks"
ADDING = *GROWING, "extend format 1", "widen"
_SLOW = "blocks", "assign to format 1"
SHORT_ERRORS = [name for name in CHANGES if name in SHORT and not any(word in name for word in _SLOW)]
SHORT_ERRORS += ["bytes: extend over blocks", "dense: assign to format 1"]


class Strike(NamedTuple):
    """What happens at one call: an `OSError`, Ctrl-C (None), or nothing (0) but a short write; and when."""

    errno: int | None
    moment: str
    call: str = ""

    def fault(self) -> BaseException:
        return KeyboardInterrupt() if self.errno is None else OSError(self.errno, os.strerror(self.errno))


def strikes(call: tuple[str, str], at: int, *, is_thorough: bool) -> list[Strike]:
    """What can happen to a system call; unless thorough, one errno in turn, and nothing where a file is only read."""
    errnos = ERRNOS if is_thorough else ERRNOS[at % len(ERRNOS) :][:1]
    if call[0] in ("open to read", "read", "rmdir") and not is_thorough:
        return []
    found = [Strike(number, "before") for number in (*errnos, None)]
    if call[0] in ("pwritev", "copy_file_range"):
        found += [Strike(number, "short") for number in (*errnos, 0)]
    if call[0] == "replaced":
        found.append(Strike(None, "after"))
    return found


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as folder:
        yield folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncs(monkeypatch)


def committed(folder: Path) -> dict[str, bytes]:
    """The manifest and every byte that it vouches for; or all that mmap_ninja 0.9.0 has written."""
    if not (folder / "manifest.json").exists():
        return {name: raw for name, raw in tree(folder).items() if name.endswith(".ninja")}
    files = plain_reader.fields(folder)["files"]
    found = {name: plain_reader.values(folder, file) for name, file in files.items()}
    return {**found, "manifest.json": (folder / "manifest.json").read_bytes()}


def sizes(folder: Path) -> dict[str, int]:
    """The files that have bytes."""
    return {name: len(raw) for name, raw in tree(folder).items() if raw}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def is_free(folder: Path) -> bool:
    """Whether nobody holds the lock of a map."""
    if not (folder / ".lock").exists():
        return True
    with open(folder / ".lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def struck(change: Change, folder: Path, double: Os, strike: Strike) -> None:
    """Do the change, in which a call is struck; see what has become of the folder; do it again."""
    reader = None if change.old is None else opened(folder)[0]
    handle = quietly(change.opening, folder)
    was, vouched, room = opened(folder)[0], committed(folder), sizes(folder)
    before = [] if was is None else listed(was)
    surfaced = None
    try:
        with double.installed():
            quietly(change.call, handle)
    except (OSError, KeyboardInterrupt) as error:
        surfaced = error
    if not double.has_fired:
        assert surfaced is None
        return
    assert is_free(folder)
    if surfaced is None:
        whole(folder, change.new)
    else:
        check_error(surfaced, strike, folder)
        check(change, folder, may_be_new=double.published() or change.old is None or same(before, change.new))
        if isinstance(surfaced, DiskError) and change.operation in ADDING:  # it tells whether the samples are there
            is_there = surfaced.committed
            check(change, folder, may_be_old=is_there is not True, may_be_new=is_there is not False)
            assert (is_there is not False) == ("visible" in str(surfaced))
    if not double.published():
        assert committed(folder) == vouched
        if strike.call != "replaced" and change.operation in GROWING:  # nobody knows what has become of a rename
            assert sizes(folder) == room
    if reader is not None:
        assert same(listed(reader, change.assigned), but(change.old, change.assigned))
    if isinstance(handle, Mmap):
        seen = listed(handle, change.assigned)
        assert same(seen, but(before, change.assigned)) or (double.published() and same(seen, change.new))
    if surfaced is not None:
        again(change, folder, handle, is_refused=isinstance(surfaced, SyncError))


def check_error(error: BaseException, strike: Strike, folder: Path) -> None:
    """It is what was injected, by the names of this package."""
    if strike.errno is None:
        assert isinstance(error, KeyboardInterrupt)
        return
    assert isinstance(error, DiskError)
    assert error.errno == strike.errno
    assert str(error.filename).startswith(str(folder.parent))


def again(change: Change, folder: Path, handle: object, *, is_refused: bool) -> None:
    """The same call on the same handle; after a failed sync, on a new one."""
    if is_refused and isinstance(handle, Mmap):
        with pytest.raises(SyncError, match="open the map again"):
            quietly(change.call, handle)
    m, is_part = opened(folder)
    if change.operation.startswith("backup") and m is not None:  # struck when the copy was there
        with pytest.raises(ForeignFileError, match="goes to a new or an empty folder"):
            quietly(change.call, handle)
        return whole(folder, change.new)
    is_done = isinstance(handle, Mmap) and m is not None and not is_part
    if change.assigned or not is_done or not same(listed(m), change.new) or same(change.old or [], change.new):
        quietly(change.call, quietly(change.opening, folder) if is_refused else handle)
    whole(folder, change.new)


@pytest.fixture
def quick_collector() -> Iterator[None]:
    """Leave what is there already out of every collection, which is a hundred times faster."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collector")
@pytest.mark.parametrize(
    ("name", "is_thorough"),
    [(name, False) for name in SHORT_ERRORS]
    + [
        pytest.param(name, name in SHORT, marks=pytest.mark.long)
        for name in CHANGES
        if name in SHORT or name not in SHORT_ERRORS
    ],
)
def test_an_error_at_every_system_call(
    tmp_path: Path, name: str, is_thorough: bool, record_property: Callable[[str, object], None]
) -> None:
    """In turn one of the errors; with `is_thorough`, each operation once, all of them at each call."""
    change = CHANGES[name]
    change.begin(tmp_path / "start")
    whole_run = Os()
    gc.collect()
    before = descriptors()
    struck(change, copied(tmp_path / "start", tmp_path / "whole"), whole_run, Strike(0, "before"))
    assert len(whole_run.calls) > 5
    count = 0
    for at, call in enumerate([*whole_run.calls, ("none is left", "")]):
        for strike in strikes(call, at, is_thorough=is_thorough):
            folder = copied(tmp_path / "start", tmp_path / "map")
            double = Os(at, None if strike.errno == 0 else strike.fault, strike.moment)
            struck(change, folder, double, strike._replace(call=call[0]))
            assert double.has_fired == (at < len(whole_run.calls))
            if descriptors() != before:
                gc.collect()  # an exception and the frames that it has gone through
            assert descriptors() == before
            if folder.exists():
                shutil.rmtree(folder)
            count += 1
    record_property("strikes", count)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_what_cannot_be_mapped_after_the_commit_does_not_fail_the_call(tmp_path: Path, number: int) -> None:
    """An error would say that nothing was committed, and the samples would be added again."""
    rows = KINDS["rows"]
    handle = rows.build(tmp_path / "map", rows.first)
    with Os().installed() as whole_run:
        handle.extend(rows.rest)
    commit = whole_run.calls.index(("replaced", "manifest.json"))
    later = [at for at, call in enumerate(whole_run.calls) if at > commit and call[0] == "open to read"]
    assert len(later) > 1
    for at in later:
        handle = rows.build(tmp_path / f"map {at}", rows.first)
        double, surfaced = Os(at, Strike(number, "before").fault), "is visible"
        with double.installed():
            try:
                handle.extend(rows.rest)
            except SyncError as error:
                surfaced = str(error)
        assert double.has_fired
        assert "is visible" in surfaced
        whole(tmp_path / f"map {at}", rows.samples)
        assert same(listed(handle), rows.first) or same(listed(handle), rows.samples)
        handle.refresh()
        assert same(listed(handle), rows.samples)


def test_a_refused_assignment_leaves_no_doubt_about_the_map(tmp_path: Path) -> None:
    rows = KINDS["rows"]
    rows.build(tmp_path / "map", rows.samples)
    handle = rows.cls(tmp_path / "map", mode="r+")
    with Os().installed() as whole_run:
        handle[0] = rows.changed(rows.samples[0])
    handle.close()
    assert verify(tmp_path / "map") == []
    at = whole_run.calls.index(("open", "data.npy"))
    handle = rows.cls(tmp_path / "map", mode="r+")
    with Os(at, Strike(errno.EMFILE, "before").fault).installed(), pytest.raises(DiskError, match="open files"):
        handle[0] = rows.samples[0]
    handle[0] = rows.samples[0]
    handle.close()
    whole(tmp_path / "map", rows.samples)
    assert verify(tmp_path / "map") == []


@pytest.mark.parametrize("name", ["rows: append", "rows: resume", "rows: upgrade", "zstd dictionary: extend format 1"])
def test_a_read_may_give_fewer_bytes_than_it_was_asked_for(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, real = CHANGES[name], os.read
    change.begin(tmp_path / "map")
    monkeypatch.setattr(os, "read", lambda fd, size: real(fd, max(size // 3, 1)))
    change.act(tmp_path / "map")
    monkeypatch.undo()
    whole(tmp_path / "map", change.new)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_what_cannot_be_looked_at_is_not_taken_for_absent(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a file of the user's own, with the name of one of ours."""
    rows, real = KINDS["rows"], os.stat
    (tmp_path / "data.npy").write_text("of others")

    def stat_(path: object, **options: object) -> os.stat_result:
        if str(path).endswith("data.npy"):
            raise OSError(number, os.strerror(number), path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat_)
    monkeypatch.setattr(os, "lstat", stat_)
    with pytest.raises((DiskError, MapPermissionError), match=r"data\.npy") as caught:
        rows.build(tmp_path, rows.first)
    assert caught.value.errno == number
    monkeypatch.undo()
    assert (tmp_path / "data.npy").read_text() == "of others"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_folder_of_0_9_that_cannot_be_looked_at(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat
    CHANGES["rows: upgrade"].begin(tmp_path / "map")

    def stat_(path: object, **options: object) -> os.stat_result:
        if str(path).endswith("data.ninja"):
            raise OSError(number, os.strerror(number), path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat_)
    with pytest.raises(DiskError, match=r"cannot look at .*data\.ninja"):
        open_map(tmp_path / "map")
