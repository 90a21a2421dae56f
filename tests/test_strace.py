"""The disk seen from outside, by strace: faults and kills at system calls, and which calls there are at all.

Independent of the doubles in faults.py: nothing of the package is replaced, and what it calls is seen wherever it
calls it from. Each operation runs in a child of its own, forked from one process that strace is attached to; strace
counts the calls of each child by itself, so that number K is the K-th of the operation.
"""

import ctypes
import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import plain_reader
from changes import CHANGES, SHORT, Change, check, copied, listed, opened, others, quietly, whole
from faults import KILLED, exit_code, start_child
from mmap_ninja import open_map
from mmap_ninja.errors import MmapNinjaError
from plain_reader import same

SOME = [
    "rows: append",
    "rows: create",
    "rows: replace",
    "rows: widen",
    "dense: assign",
    "strings: upgrade",
]
TRIALS = 2  # how many of the calls of one name are struck in every run; all of them in the long one
PWRITE, RENAME = "pwrite64,pwritev,pwritev2", "rename,renameat,renameat2"
FAULTS = {
    PWRITE: "ENOSPC",
    "fsync": "EIO",
    "fdatasync": "EIO",
    RENAME: "EIO",
    "open,openat": "EMFILE",
    "unlink,unlinkat": "EIO",
    "mkdir,mkdirat": "ENOSPC",
    "close": "EIO",
}
EVERY_FAULT = pytest.mark.parametrize("calls", FAULTS)
CHANGING = {
    *(*PWRITE.split(","), "write", "writev", "fsync", "fdatasync", *RENAME.split(","), "ftruncate", "truncate"),
    *("unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "fallocate", "copy_file_range", "sendfile", "link", "linkat"),
    *("symlink", "symlinkat", "chmod", "fchmod", "utimensat", "setxattr", "flock", "fcntl_lock", "msync"),
}
_ANY_TRACER = 0x59616D61, ctypes.c_ulong(-1)  # prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY), where Yama is at work


class Done(NamedTuple):
    """How an operation has ended: its exit code, what it raised, and the lines that strace has written of it."""

    code: int
    error: str | None
    is_ours: bool
    errno: int | None
    lines: list[str]

    @property
    def was_struck(self) -> bool:
        return self.code == KILLED or any("(INJECTED)" in line for line in self.lines)


def traced(acts: list[Callable[[], object]], work: Path, *options: str) -> list[Done]:
    """Each act in a child of its own under strace."""
    go, out, log = os.pipe(), os.pipe(), work / "strace.log"

    def run() -> None:
        ctypes.CDLL(None).prctl(*_ANY_TRACER, 0, 0, 0)
        assert os.read(go[0], 1) == b"1"
        for act in acts:
            pid = start_child(lambda act=act: told(act, out[1]))
            os.write(out[1], json.dumps([pid, exit_code(pid)]).encode() + b"\n")

    pid = start_child(run)
    os.close(out[1])
    command = ["strace", "-f", "-qq", "-y", "-s", "0", "-o", log, "-p", str(pid)]
    command += [part for option in options for part in ("-e", option)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        while not re.search(r"TracerPid:\s*[1-9]", Path(f"/proc/{pid}/status").read_text()) and tracer.poll() is None:
            time.sleep(0.002)
        if tracer.poll() is not None:
            raise PermissionError(tracer.stderr.read().decode())
        os.write(go[1], b"1")
        with open(out[0], closefd=False) as ends:
            told_lines = [json.loads(line) for line in ends]
        tracer.wait(60)
    finally:
        tracer.kill()
        tracer.wait()
        tracer.stderr.close()
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) in (0, KILLED)
        for fd in (*go, out[0]):
            os.close(fd)
    errors = {line[0]: line[1:] for line in told_lines if len(line) == 4}
    codes = {line[0]: line[1] for line in told_lines if len(line) == 2}
    lines = log.read_text().splitlines()
    assert len(codes) == len(acts)
    return [
        Done(code, *errors.get(pid, (None, False, None)), [line for line in lines if line.startswith(f"{pid} ")])
        for pid, code in codes.items()
    ]


def told(act: Callable[[], object], fd: int) -> None:
    """Do it and tell of its error."""
    try:
        act()
    except Exception as error:
        found = [os.getpid(), str(error), isinstance(error, MmapNinjaError), getattr(error, "errno", None)]
        os.write(fd, json.dumps(found).encode() + b"\n")


@pytest.fixture(scope="module", autouse=True)
def strace(tmp_path_factory: pytest.TempPathFactory) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    try:
        [end] = traced([lambda: os.sync()], tmp_path_factory.mktemp("strace"), "inject=sync:error=EIO")
    except PermissionError as error:
        pytest.skip(f"strace may not trace here: {error}")
    assert end.was_struck


def begun(name: str, folder: Path) -> Path:
    """A fresh copy of what is there before a change."""
    start = folder.parent.parent / f"start {name}"
    if not start.exists():
        CHANGES[name].begin(start)
    return copied(start, folder)


def known(calls: str) -> str:
    """For strace: those of the calls that this machine has."""
    return ",".join(f"?{call}" for call in calls.split(","))


def struck(names: list[str], work: Path, calls: str, what: str, number: int, *more: str) -> list[tuple]:
    """The changes, each struck at call `number` of these names: name, folder and end of those that have so many."""
    work.mkdir()
    folders = [begun(name, work / name) for name in names]
    acts = [lambda name=name: CHANGES[name].act(work / name) for name in names]
    ends = traced(acts, work, f"inject={known(calls)}:{what}:when={number}", *more)
    return [found for found in zip(names, folders, ends, strict=True) if found[2].was_struck]


def survives(change: Change, folder: Path, end: Done) -> None:
    """The old state or the new one, as the end of the operation has it, and it can be written to again."""
    is_done = end.code == 0 and end.error is None
    has_failed = end.error is not None and "visible" not in end.error and not change.is_build
    was_new = change.operation == "flush"  # all that it does is to sync
    check(change, folder, may_be_old=not is_done, may_be_new=not has_failed or was_new)
    m, is_part = opened(folder)
    if m is None or is_part:
        change.of.build(folder, change.new, resume=True)
        whole(folder, change.new)
    elif change.assigned:
        change.act(folder)
        whole(folder, change.new)
    m = opened(folder)[0]
    found, added = listed(m), others(m)
    quietly(lambda m: m.extend(added), type(m)(folder))
    whole(folder, [*found, *added])


def strike_all(names: list[str], work: Path, calls: str, what: str, most: int) -> int:
    """Strike at call 1, 2, 3, ... until none is left; returns how many strikes there were."""
    trials = 0
    for number in range(1, most + 1):
        found = struck(names, work / str(number), calls, what, number)
        if not found:
            break
        trials += len(found)
        for name, folder, end in found:
            is_kill = what.startswith("signal")
            assert end.code == (KILLED if is_kill else 0), (name, calls, number)
            if end.error is not None:
                code = getattr(errno, what.removeprefix("error="))
                assert (end.is_ours, end.errno) == (True, code), (name, calls, number, end.error)
            survives(CHANGES[name], folder, end)
        names = [name for name, _, _ in found]
        shutil.rmtree(work / str(number))
    return trials


@pytest.mark.parametrize("what", ["error=EIO", "signal=KILL"])
def test_a_cut_after_a_failed_write_that_fails_too(what: str, tmp_path: Path) -> None:
    """What was written is to be cut off again; if it is not, the next writer writes over it."""
    cut = f"inject=ftruncate:{what}"
    found = struck(["rows: append", "dense: extend", "rows: widen"], tmp_path / "1", PWRITE, "error=ENOSPC", 2, cut)
    assert any("ftruncate" in line for _, _, end in found for line in end.lines)
    for name, folder, end in found:
        assert end.errno == errno.ENOSPC or end.code == KILLED
        survives(CHANGES[name], folder, end)


@EVERY_FAULT
def test_an_error_of_a_system_call(calls: str, tmp_path: Path) -> None:
    assert strike_all(SOME, tmp_path, calls, f"error={FAULTS[calls]}", TRIALS) >= 1


@pytest.mark.parametrize("calls", FAULTS)
def test_a_kill_at_a_system_call(calls: str, tmp_path: Path) -> None:
    assert strike_all(SOME, tmp_path, calls, "signal=KILL", TRIALS) >= 1


@pytest.mark.long
@EVERY_FAULT
def test_an_error_of_every_system_call(calls: str, tmp_path: Path) -> None:
    assert strike_all(sorted(SHORT), tmp_path, calls, f"error={FAULTS[calls]}", 1000) >= 5


@pytest.mark.long
@pytest.mark.parametrize("calls", FAULTS)
def test_a_kill_at_every_system_call(calls: str, tmp_path: Path) -> None:
    assert strike_all(sorted(SHORT), tmp_path, calls, "signal=KILL", 1000) >= 5


@pytest.mark.parametrize("name", ["rows: replace", "rows: widen", "images: create widening"])
def test_what_could_not_be_removed_is_removed_by_the_next_writer(name: str, tmp_path: Path) -> None:
    [(_, folder, end)] = struck([name], tmp_path / "1", "unlink,unlinkat", "error=EIO", 1)
    assert end.error is None  # the commit stands
    names = {".lock", *plain_reader.names(folder)}
    assert set(os.listdir(folder)) >= names  # a build tries again when it is finished
    m = open_map(folder)
    m.extend(others(m))
    assert set(os.listdir(folder)) == {".lock", *plain_reader.names(folder)}


def seen(act: Callable[[], object], work: Path) -> list[tuple[str, str]]:
    """The system calls of an act: their names, and their arguments and results."""
    [end] = traced([act], work, "trace=%file,%desc")
    assert (end.code, end.error) == (0, None)
    found = [re.match(r"\d+ +(\w+)(\(.*)", line) for line in end.lines]
    return [(match[1], match[2]) for match in found if match]


def is_changing(name: str, rest: str) -> bool:
    if name in ("open", "openat"):
        return re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND", rest) is not None
    if name == "mmap":
        return "PROT_WRITE" in rest and "MAP_SHARED" in rest
    return (name in CHANGING and "<pipe:" not in rest) or (name == "fcntl" and "LCK" in rest)


@pytest.mark.parametrize(
    "name", ["rows: create", "images: widen", "dense: extend", "strings: assign", "zstd dictionary: create"]
)
def test_reading_makes_no_call_that_changes_anything(name: str, tmp_path: Path) -> None:
    change, folder = CHANGES[name], tmp_path / "map"
    change.begin(folder)
    change.act(folder)

    def read() -> None:
        for mode in ("r", "r+"):
            with open_map(folder, mode=mode) as m:
                assert same(list(m), change.new)
                assert same(list(m[1:]), change.new[1:])
                assert same(list(pickle.loads(pickle.dumps(m))), change.new)
                m.refresh()
                m.flush()
                str(m), m.metadata, m.nbytes, m.out_dir

    calls = seen(read, tmp_path)
    assert [rest for name, rest in calls if name == "openat" and str(folder) in rest]
    assert [call for call in calls if is_changing(*call)] == []


@pytest.mark.parametrize("name", ["rows: extend over blocks", "rows: replace", "dense: assign", "strings: upgrade"])
def test_no_file_is_appended_to_nor_written_through_a_mapping(name: str, tmp_path: Path) -> None:
    change = CHANGES[name]
    folder = tmp_path / "map"
    change.begin(folder)
    calls = [(call, rest) for call, rest in seen(lambda: change.act(folder), tmp_path) if is_changing(call, rest)]
    assert {"openat", "flock", "fsync"} < {call for call, _ in calls}
    assert "O_APPEND" not in str(calls)
    assert "O_TRUNC" not in str(calls)
    assert not {call for call, _ in calls} & {"mmap", "fallocate", "truncate", "write", "writev", "msync"}


def test_an_extend_syncs_before_it_renames(tmp_path: Path) -> None:
    change, folder = CHANGES["rows: extend over blocks"], tmp_path / "map"
    change.begin(folder)
    steps = []
    for name, rest in seen(lambda: change.act(folder), tmp_path):
        files = re.findall(re.escape(str(folder)) + r"(?:/([\w.-]+))?[\">]", rest)
        if name in ("fsync", "fdatasync"):
            steps.append(("sync", files[0] or "folder"))
        elif name.startswith("pwrite"):
            steps.append(("write", files[0]))
        elif name.startswith("rename"):
            steps.append((files[0], files[1]))
    commit = steps.index(("manifest.json.new", "manifest.json"))
    before, after = steps[:commit], steps[commit + 1 :]
    assert after[0] == ("sync", "folder")
    assert before[-2:] == [("write", "manifest.json.new"), ("sync", "manifest.json.new")]
    written = {file for step, file in before if step == "write"}
    assert written == {"data.npy", "index.npy", "data.crc", "manifest.json.new"}
    for file in written:
        last = max(k for k, step in enumerate(before) if step == ("write", file))
        assert ("sync", file) in before[last:]
    assert {file for step, file in after[1:]} == {"data.npy", "index.npy"}  # the headers
