"""Disks that are really full, out of inodes or read-only, and a real limit on the size of files: typed errors, no harm.

The disks are of the kernel's own making: a tmpfs of 8 MiB in a namespace of its own, which needs no rights.
"""

import ctypes
import errno
import gc
import os
import pickle
import re
import resource
import shutil
import signal
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from changes import CHANGES, KINDS, SHORT, Change, Kind, check, listed, made_by_0_9, opened, quietly, whole
from faults import in_child, tree
from mmap_ninja import (
    DenseMmap,
    Mmap,
    RaggedMmap,
    np_extend,
    np_extend_dir,
    np_from_ndarray,
    np_open_existing,
    open_map,
)
from mmap_ninja.errors import DiskError, MmapNinjaError
from plain_reader import same

NEWNS, NEWUSER = 0x20000, 0x10000000
READ_ONLY, REMOUNT = 1, 32
NO_NAMESPACE = 77
SIZE = 8 << 20
ROWS = [np.random.default_rng(1).random(30_000) for _ in range(60)]  # 14 MB
LC = ctypes.CDLL(None, use_errno=True)


def mount(folder: Path, flags: int, options: str) -> None:
    if LC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def on_a_disk(work: Path, act: Callable[[Path], object], options: str = "") -> int:
    """Do it in a child that sees a tmpfs at `work / "disk"`; returns its exit code."""
    disk = work / "disk"
    disk.mkdir(exist_ok=True)
    user, group = os.getuid(), os.getgid()

    def run() -> None:
        try:
            if LC.unshare(NEWUSER | NEWNS):
                raise OSError(ctypes.get_errno(), "unshare")
            for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
                Path("/proc/self", name).write_text(text)
            mount(disk, 0, f"size={SIZE},{options}")
        except OSError:
            os._exit(NO_NAMESPACE)
        act(disk)

    return in_child(run)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> None:
    if on_a_disk(tmp_path_factory.mktemp("tried"), lambda disk: None) == NO_NAMESPACE:
        pytest.skip("no user namespaces here to mount a small disk in")
    made_by_0_9()  # once, for all children


def room(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


def fill(disk: Path, left: int = 0) -> None:
    """Leave so many bytes, none by default: not one more block."""
    with open(disk / "ballast", "wb", buffering=0) as file, suppress(OSError):
        file.write(bytes(max(room(disk) - left - 4096, 0)))
        while room(disk) > left:
            file.write(bytes(4096))
    assert room(disk) <= left


def free(disk: Path) -> None:
    (disk / "ballast").unlink()


def use_up_the_inodes(disk: Path) -> None:
    (disk / "many").mkdir()
    with suppress(OSError):
        for number in range(10_000):
            (disk / "many" / str(number)).touch()
    assert os.statvfs(disk).f_ffree == 0


class Trouble(NamedTuple):
    """What befalls a disk, what ends it, the number of the error in between, and how to mount it."""

    comes: Callable[[Path], object]
    goes: Callable[[Path], object]
    errno: int
    options: str = ""


def limit_files(disk: Path, size: int = 16) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def lift_the_limit(disk: Path) -> None:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


TROUBLES = {
    "full": Trouble(fill, free, errno.ENOSPC),
    "no inodes": Trouble(use_up_the_inodes, lambda disk: shutil.rmtree(disk / "many"), errno.ENOSPC, "nr_inodes=200"),
    "read-only": Trouble(
        lambda disk: mount(disk, REMOUNT | READ_ONLY, ""), lambda disk: mount(disk, REMOUNT, ""), errno.EROFS
    ),
    "small files": Trouble(limit_files, lift_the_limit, errno.EFBIG),
}


def refused(act: Callable[[], object], number: int) -> None:
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        act()
    assert (caught.value.errno, type(caught.value)) == (number, DiskError), repr(caught.value)
    assert caught.value.filename


def goes_through(change: Change, folder: Path, trouble: Trouble) -> None:
    """Refused while the trouble lasts, the old samples right; the same call succeeds when it is over."""
    change.begin(folder)
    made = []
    quietly(lambda folder: made.append(change.opening(folder)), folder)
    before = {name: raw for name, raw in tree(folder).items() if "building" not in name}
    gc.collect()  # of the map before, which takes room as long as a traceback has it mapped
    trouble.comes(folder.parent)
    try:
        for _ in range(2):
            refused(lambda: quietly(change.call, made[0]), trouble.errno)
            check(change, folder, may_be_new=change.operation == "flush")  # there since before
            if isinstance(made[0], Mmap) and change.old is not None:
                assert same(listed(made[0]), listed(opened(folder)[0]))
            assert tree(folder).items() >= before.items() or change.is_build
    finally:
        trouble.goes(folder.parent)
    quietly(change.call, made[0])
    whole(folder, change.new)


def run_all(names: Iterable[str], what: str, work: Path) -> None:
    def run(disk: Path) -> None:
        for name in names:
            try:
                goes_through(CHANGES[name], disk / "map", TROUBLES[what])
            except BaseException as error:
                raise AssertionError(name) from error
            shutil.rmtree(disk / "map")

    assert on_a_disk(work, run, TROUBLES[what].options) == 0


@pytest.mark.parametrize("what", TROUBLES)
def test_changes_on_a_disk_that_is(what: str, tmp_path: Path, disks: None) -> None:
    """All of them on a full one, each on one of the others."""
    k = list(TROUBLES).index(what)
    run_all(sorted(SHORT) if what == "full" else sorted(SHORT)[k - 1 :: len(TROUBLES) - 1], what, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("what", TROUBLES)
def test_every_change_of_every_kind_on_a_disk_that_is(what: str, tmp_path: Path, disks: None) -> None:
    run_all(CHANGES, what, tmp_path)


def few(kind: Kind) -> tuple[list, list]:
    """Some samples and some more, which the large ones can follow."""
    return (kind.large[:1], kind.large[1:2]) if kind.cls is DenseMmap else (kind.first, kind.rest)


@pytest.mark.parametrize("name", KINDS)
def test_the_room_of_an_extend_that_did_not_fit_is_free_again(name: str, tmp_path: Path, disks: None) -> None:
    """Nothing has to be removed for a smaller one, whose samples then are no leftover of the first."""
    kind = KINDS[name]
    first, rest = few(kind)

    def run(disk: Path) -> None:
        m = kind.build(disk / "map", first)
        fill(disk, left=SIZE // 8)
        before = room(disk)
        for _ in range(3):
            refused(lambda: m.extend(kind.large), errno.ENOSPC)
            assert room(disk) == before
            assert same(listed(open_map(disk / "map")), first)
        m.extend(rest)
        whole(disk / "map", first + rest)
        refused(lambda: m.extend(kind.large, sync=False), errno.ENOSPC)
        m.close()
        whole(disk / "map", first + rest)
        free(disk)
        kind.cls(disk / "map").extend(kind.large)
        whole(disk / "map", [*first, *rest, *kind.large])

    assert on_a_disk(tmp_path, run) == 0


def test_a_build_that_does_not_fit(tmp_path: Path, disks: None) -> None:
    """What is there stays; there is the part that did fit, to be resumed when there is room."""

    def run(disk: Path) -> None:
        RaggedMmap.from_lists(disk / "map", ROWS[:5])
        refused(lambda: RaggedMmap.from_generator(disk / "map", iter(ROWS), 4), errno.ENOSPC)
        refused(lambda: RaggedMmap.from_lists(disk / "map", ROWS), errno.ENOSPC)
        whole(disk / "map", ROWS[:5])
        RaggedMmap.from_generator(disk / "map", iter(ROWS[5:11]), 4)  # takes the room of the failed one
        whole(disk / "map", ROWS[5:11])

        refused(lambda: RaggedMmap.from_generator(disk / "new", iter(ROWS), 4), errno.ENOSPC)
        part, is_part = opened(disk / "new")
        assert is_part
        assert 4 <= len(part) < 60
        assert len(part) % 4 == 0
        assert same(part[:], ROWS[: len(part)])
        shutil.rmtree(disk / "map")
        RaggedMmap.from_generator(disk / "new", iter(ROWS[:32]), 4, resume=True)
        whole(disk / "new", ROWS[:32])

    assert on_a_disk(tmp_path, run) == 0


def test_the_functions_for_dense_maps_on_a_full_disk(tmp_path: Path, disks: None) -> None:
    rows = np.arange(3000.0).reshape(1000, 3)

    def run(disk: Path) -> None:
        memmap = np_from_ndarray(disk / "map", rows)
        fill(disk)
        for act in (
            lambda: np_extend_dir(disk / "map", np.tile(rows, (10, 1))),
            lambda: np_extend(memmap, rows),
            lambda: np_open_existing(disk / "map", mode="r+"),
            lambda: memmap.__setitem__(0, 1.5),  # says first that the checksums will not hold
            lambda: np_from_ndarray(disk / "map", rows),
        ):
            refused(act, errno.ENOSPC)
            whole(disk / "map", list(rows))
            assert np.array_equal(memmap, rows)
        free(disk)
        np_extend_dir(disk / "map", rows)
        memmap[0] = 1.5
        assert np_open_existing(disk / "map")[0].tolist() == [1.5] * 3
        assert len(open_map(disk / "map")) == 2000

    assert on_a_disk(tmp_path, run) == 0


def test_assigned_values_need_no_room_once_the_first_one_had_it(tmp_path: Path, disks: None) -> None:
    """They lie where the old ones were; only the renewed checksums have to wait for room."""

    def run(disk: Path) -> None:
        m = RaggedMmap.from_lists(disk / "map", ROWS[:20])
        m[0] = ROWS[20]
        fill(disk)
        for k in range(1, 20):
            m[k] = ROWS[20 + k]
        refused(m.flush, errno.ENOSPC)
        assert same(open_map(disk / "map")[:], ROWS[20:40])
        free(disk)
        m.flush()
        whole(disk / "map", ROWS[20:40])

    assert on_a_disk(tmp_path, run) == 0


def test_a_read_only_disk_can_be_read(tmp_path: Path, disks: None) -> None:
    def run(disk: Path) -> None:
        before = RaggedMmap.from_lists(disk / "map", ROWS[:3])
        np_from_ndarray(disk / "dense", np.arange(5))
        mount(disk, REMOUNT | READ_ONLY, "")
        for mode in ("r", "r+"):
            with open_map(disk / "map", mode=mode) as m:
                assert same(pickle.loads(pickle.dumps(m))[:], ROWS[:3])
        assert same(before[:], ROWS[:3])
        assert np_open_existing(disk / "dense").tolist() == [0, 1, 2, 3, 4]
        refused(lambda: np_open_existing(disk / "dense", mode="r+"), errno.EROFS)
        refused(lambda: RaggedMmap(disk / "new").append(ROWS[0]), errno.EROFS)
        refused(lambda: before.append(ROWS[3]), errno.EROFS)
        before.close()

    assert on_a_disk(tmp_path, run) == 0


@pytest.mark.parametrize("name", KINDS)
def test_a_limit_on_the_size_of_files(name: str, tmp_path: Path) -> None:
    """SIGXFSZ, which would end the process, is ignored by Python; no handler of ours is in its place."""
    kind = KINDS[name]
    first, _ = few(kind)
    m = kind.build(tmp_path / "map", first)

    def write() -> None:
        assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
        for limit in (200_000, 1_500_000):  # below the first block, and after it
            limit_files(tmp_path, limit)
            for act in (
                lambda: m.extend(kind.large),
                lambda: kind.build(tmp_path / "map", kind.large),
                lambda: kind.build(tmp_path / "new", kind.large),
            ):
                refused(act, errno.EFBIG)
                assert same(listed(m), first)
                whole(tmp_path / "map", first)
            lift_the_limit(tmp_path)
        m.extend(kind.large)
        kind.build(tmp_path / "new", kind.large, resume=True)

    assert in_child(write) == 0
    whole(tmp_path / "map", [*first, *kind.large])
    whole(tmp_path / "new", kind.large)


def link(path: Path) -> None:
    path.symlink_to("/dev/full")


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.stat("/dev/full").st_rdev)
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        pytest.skip("making a device needs rights")


@pytest.mark.parametrize("make", [link, device, os.mkfifo])
@pytest.mark.parametrize(
    "name", ["data.npy", "index.npy", "data.crc", ".lock", "manifest.json", "manifest.json.new", "building.json"]
)
def test_what_is_no_regular_file_is_not_written_to(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "map"
    m = RaggedMmap.from_lists(folder, ROWS[:5])
    path, aside = folder / name, tmp_path / "aside"
    if path.exists():
        path.rename(aside)
    make(path)
    before, found = os.lstat(path), sorted(os.listdir(folder))
    acts = [lambda: m.extend(ROWS[5:10]), lambda: RaggedMmap(folder).extend(ROWS[5:10], sync=False)]
    if name in (".lock", "manifest.json", "building.json"):  # what replaces a map has other names for the rest
        acts.append(lambda: RaggedMmap.from_lists(folder, ROWS[:2]))
    for act in acts:
        with pytest.raises(MmapNinjaError, match=re.escape(name)):
            act()
        assert os.lstat(path) == before
        assert sorted(os.listdir(folder)) == found
    assert same(m[:], ROWS[:5])
    path.unlink()
    if aside.exists():
        aside.rename(path)
    m.append(ROWS[5])
    whole(folder, ROWS[:6])
