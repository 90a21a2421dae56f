"""Stories done on a real disk whose power is cut in the middle, judged after the next mount."""

import json
import os
import random
import select
import shutil
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from unittest import mock

import faults
from changes import CHANGES, made_by_0_9
from faults import Strike, exit_code, in_child, start_child
from mmap_ninja._storage import build
from mmap_ninja.errors import MmapNinjaError
from power.disks import FileSystem, NoDisk, RealDisk
from power.judge import Judge
from power.replaying import rebooted
from power.stories import STORIES, story_of
from power.story import Story

# What goes through a mapping is left out, as nothing tells when a part of it has reached the disk.
ALL = STORIES | {name: story_of(change) for name, change in CHANGES.items() if "memmap" not in change.operation}
_AT_ANY_TIME = 0.25  # this part of the cuts comes at a random time, the others at a call
_LONGEST = 0.03  # seconds until then


@dataclass(frozen=True)
class Cut:
    """One cut: where it came, and what it has left; `problem` is empty where that is right."""

    story: str
    way: str
    moment: str
    outcome: str
    problem: str = ""


class Cuts(list[Cut]):
    """All cuts of one disk."""

    @property
    def bad(self) -> list[Cut]:
        return [cut for cut in self if cut.problem]

    def __str__(self) -> str:
        outcomes, ways = Counter(cut.outcome for cut in self), Counter(cut.way for cut in self)
        stories, bad = len({cut.story for cut in self}), [f"{cut}" for cut in self.bad]
        return f"{len(self)} cuts {dict(ways)} in {stories} stories: {dict(outcomes)}; {len(bad)} bad: {bad[:5]}"


def cut_many(work: Path, file_system: FileSystem, count: int, seed: str, stories: Sequence[str]) -> Cuts:
    """So many cuts of one disk, in a process that has the mounts for itself. Raises `NoDisk`."""
    made_by_0_9()  # once, for all children
    report = work / "report"

    def run() -> None:
        try:
            disk = RealDisk(work, file_system)
        except NoDisk as error:
            report.write_text(json.dumps({"no disk": str(error)}))
            return
        rng = random.Random(seed)
        report.write_text(json.dumps([asdict(_one(disk, rng, stories)) for _ in range(count)]))

    code = exit_code(start_child(run))
    assert code == 0, "the process that cuts has failed"
    found = json.loads(report.read_text())
    if isinstance(found, dict):
        raise NoDisk(found["no disk"])
    return Cuts(Cut(**fields) for fields in found)


def _chosen(stories: Sequence[str], rng: random.Random) -> str:
    """A story: each operation as often as the next, whatever the number of kinds that have it."""
    operation = rng.choice(sorted({name.partition(": ")[2] for name in stories}))
    return rng.choice([name for name in stories if name.partition(": ")[2] == operation])


def _one(disk: RealDisk, rng: random.Random, stories: Sequence[str]) -> Cut:
    """Do a story, cut the power, mount the disk again and judge."""
    name, way, is_eager = _chosen(stories, rng), rng.choice(disk.file_system.ways), rng.random() < 0.5
    strike = rng.choice(_strikes(name, is_eager, disk.memory / "dry")) if rng.random() >= _AT_ANY_TIME else None
    moment = "at any time" if strike is None else f"{strike.moment} call {strike.at}"
    with _Writer(ALL[name], disk, strike, is_eager) as writer:
        writer.listen("begun")
        writer.listen("at the call", "done", seconds=rng.random() * _LONGEST if strike is None else None)
        _help_some_on(disk, rng)
        writer.listen(seconds=0)
        told = writer.acknowledged
        disk.cut(way)
    disk.restart()
    outcome, problem = _judged(disk, _without_promises(ALL[name], told, writer.acknowledged), writer.acknowledged)
    if writer.problem:
        outcome, problem = "failed", writer.problem
    return Cut(name, way, moment, outcome, problem)


def _without_promises(story: Story, first: int, stop: int) -> Story:
    """The story, but nothing is asked of steps that ended when the power was cut already.

    A machine without power would not have told of them, but xfs lets a folder be synced after it was shut down.
    """
    steps = [
        replace(step, is_durable=False, is_safe=False) if first <= at < stop else step
        for at, step in enumerate(story.steps)
    ]
    return replace(story, steps=tuple(steps))


class _Writer:
    """A child that does a story and tells what it has done; dead at the end of a `with` block."""

    def __init__(self, story: Story, disk: RealDisk, strike: Strike | None, is_eager: bool) -> None:
        self.acknowledged, self.problem = 0, ""
        self._told, tell = os.pipe()
        self._pid = start_child(lambda: _write(story, disk, strike, is_eager, tell))
        os.close(tell)

    def listen(self, *until: str, seconds: float | None = None) -> None:
        """Take what the child tells, until it tells one of these, or nothing more, or for so long."""
        end = None if seconds is None else time.monotonic() + seconds
        while select.select([self._told], [], [], None if end is None else max(end - time.monotonic(), 0))[0]:
            line = b""
            while not line.endswith(b"\n"):
                byte = os.read(self._told, 1)
                if not byte:
                    return
                line += byte
            message = line.decode().strip()
            self.acknowledged += message == "step"
            self.problem = message if message.startswith("failed") else self.problem
            if message in until or self.problem:
                return

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        exit_code(self._pid)
        seen = self.problem
        self.listen()
        self.problem = seen  # after the cut it may well fail
        os.close(self._told)


def _write(story: Story, disk: RealDisk, strike: Strike | None, is_eager: bool, tell: int) -> None:
    """What the child does: begin, make that durable, do each step; stop at the call, or at the end."""
    say = lambda what: os.write(tell, f"{what}\n".encode())

    def stop(what: str) -> None:
        say(what)
        signal.pause()

    with _quiet(is_eager):
        try:
            story.begin(disk.folder / "map")
            disk.sync()
            say("begun")
            with faults.Disk(strike, lambda: stop("at the call")).installed():
                for step in story.steps:
                    step.act(disk.folder / "map")
                    say("step")
        except BaseException:
            stop(f"failed {traceback.format_exc()!r}")
        stop("done")


@contextmanager
def _quiet(is_eager: bool) -> Iterator[None]:
    """Without warnings; a build saves its manifest after each batch, or once only."""
    with warnings.catch_warnings(), mock.patch.object(build, "_SAVE_EVERY", 0 if is_eager else 1e9):
        warnings.simplefilter("ignore")
        yield


def _help_some_on(disk: RealDisk, rng: random.Random) -> None:
    """Let some of what is not synced reach the disk, as a kernel does when it likes."""
    for path in disk.folder.glob("map/*"):
        if rng.random() < 0.3:
            with suppress(OSError), open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # starts to write what is dirty
    if rng.random() < 0.5:
        with open(disk.folder / "bystander", "ab") as file:
            file.write(b"\n")
            file.flush()
            os.fsync(file.fileno())  # commits what others have done to names and sizes, too
    if rng.random() < 0.3:
        time.sleep(rng.random() * 0.005)


@cache
def _strikes(name: str, is_eager: bool, folder: Path) -> list[Strike]:
    """Every place where a story can be cut, the end included."""

    def run() -> None:
        with _quiet(is_eager):
            ALL[name].begin(folder)
            double = faults.Disk()
            with double.installed():
                for step in ALL[name].steps:
                    step.act(folder)
            (folder / "strikes").write_text(json.dumps([*double.strikes(after=True), Strike(len(double.calls))]))

    assert in_child(run) == 0
    found = [Strike(*strike) for strike in json.loads((folder / "strikes").read_text())]
    shutil.rmtree(folder)
    return found


def _judged(disk: RealDisk, story: Story, acknowledged: int) -> tuple[str, str]:
    """The outcome and the problem, found by a child: no map of it is left to keep the disk busy."""
    report = disk.memory / "judged"

    def run() -> None:
        folder, looks = disk.folder / "map", _look(disk.folder / "map")
        with warnings.catch_warnings(), rebooted():
            warnings.simplefilter("ignore")
            try:
                found = Judge(story, acknowledged, folder).outcome(), ""
            except MmapNinjaError as error:  # raised by what goes on
                found = "stuck", f"{type(error).__name__}: {str(error)[:300]} {looks}"
            except Exception as error:
                found = "wrong", f"{type(error).__name__}: {str(error)[:300]} {looks}"
        report.write_text(json.dumps(found))
        shutil.rmtree(folder, ignore_errors=True)

    assert in_child(run) == 0
    outcome, problem = json.loads(report.read_text())
    return outcome, problem


def _look(folder: Path) -> dict[str, str]:
    """How the manifests begin, for whoever reads of a bad state."""
    return {path.name: f"{path.read_bytes()[:16]!r}" for path in sorted(folder.glob("*.json*"))}
