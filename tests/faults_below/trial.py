"""One trial: a change in a copy of its folder while calls fail, and what it has come to."""

import gc
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mmap_ninja
from changes import Change, copied, quietly
from faults_below.judge import Judge
from faults_below.library import Call, Fault, Library
from faults_below.reading import EVERYTHING
from mmap_ninja import Mmap
from mmap_ninja._storage import build

PACKAGE = os.path.dirname(mmap_ninja.__file__)


@dataclass(frozen=True)
class Trial:
    """A change by its name, and what befalls it. `is_same` goes on with the handle that the error came from."""

    name: str
    faults: tuple[Fault, ...]
    is_same: bool = False

    def __str__(self) -> str:
        """The arguments that do it again: `python -m faults_below --trial ...`."""
        return shlex.join([self.name, *map(str, self.faults), *["same"] * self.is_same])

    @property
    def is_impatient(self) -> bool:
        """True if Ctrl-C comes again while the first one is dealt with.

        Between two lines of Python's clean-up it can come anywhere, so that descriptors are lost, and the lock is let
        go of only when the exception is forgotten.
        """
        return sum(fault.moment.startswith("interrupt") for fault in self.faults) > 1

    @classmethod
    def parse(cls, words: list[str]) -> "Trial":
        faults = tuple(Fault.parse(word) for word in words[1:] if word != "same")
        return cls(words[0], faults, "same" in words)


@dataclass
class Outcome:
    """What a trial has come to: what was struck, what surfaced, and all that is wrong."""

    trial: str
    struck: list[str]
    error: str = ""
    committed: str = ""
    problems: list[str] = field(default_factory=list)


class Stage:
    """What is there before a change, made once, and trials in copies of it."""

    def __init__(self, name: str, library: Library, room: Path) -> None:
        self.change, self._library, self._room = EVERYTHING[name], library, room
        self._start = room / "start"
        self._start.mkdir()
        build._SAVE_EVERY = 0.0  # each batch of a build is saved, however fast this machine is
        quietly(self.change.begin, self._start / "map")
        self.calls = self._recorded()

    def _recorded(self) -> list[Call]:
        """The calls of the change when none fails."""
        for _ in range(2):  # the first one imports what it needs
            calls = self._act(self._fresh(), ())[2]
        return calls

    def _fresh(self) -> Path:
        top = self._room / "top"
        if top.exists():
            shutil.rmtree(top)
        return copied(self._start, top) / "map"

    def _act(self, folder: Path, faults: Iterable[Fault]) -> tuple[object, BaseException | None, list[Call], int]:
        """The handle, the error, the calls, and how many steps were done."""
        handle, error, made = quietly(self.change.opening, folder), None, []
        self._library.arm(faults)
        try:
            for step in steps(self.change, handle):
                made.append(outcome_of(step, handle))  # kept: to let go of it calls `close`
        except BaseException as caught:
            error = caught
        finally:
            self._library.disarm()
        return handle, error, self._library.calls(), len(made)

    def run(self, trial: Trial) -> Outcome:
        folder, ignored = self._fresh(), []
        sys.unraisablehook = lambda hook: ignored.append(f"{type(hook.exc_value).__name__}: {hook.exc_value}")
        open_before = descriptors()
        judge = Judge(self.change, folder, is_impatient=trial.is_impatient)
        handle, error, calls, done = self._act(folder, trial.faults)
        if trial.is_impatient and error is not None:
            error.__traceback__ = error.__context__ = None
            gc.collect()
        struck = [f"{at} {call}" for at, call in enumerate(calls) if call.is_struck]
        outcome = Outcome(str(trial), struck, repr(error) if error else "", judge.told(error))
        if struck:
            judge.judge(handle, error, strikes(trial.faults, calls), done, trial.is_same)
        elif error is not None:
            judge.problems.append(f"wrong: {error!r} though nothing was struck")
        del handle, error
        judge.forget()
        if ignored and not any(fault.moment.startswith("interrupt") for fault in trial.faults):
            judge.problems.append(f"ignored: {ignored}")
        if descriptors() != open_before and not trial.is_impatient:
            gc.collect()
            if (left := descriptors()) != open_before:
                judge.problems.append(
                    f"descriptors: {len(left)} are open, not {len(open_before)}: {list(left.values())}"
                )
        outcome.problems = judge.problems
        return outcome


def outcome_of(step: Callable[[object], object], handle: object) -> object:
    """What a call returns; Ctrl-C after it has returned is no error of it."""
    try:
        return quietly(step, handle)
    except KeyboardInterrupt as error:
        if any(frame.filename.startswith(PACKAGE) for frame in traceback.extract_tb(error.__traceback__)):
            raise
        return None


def strikes(faults: Sequence[Fault], calls: list[Call]) -> list[tuple[Call, Fault]]:
    """The calls that were struck, with what befell them; the first fault goes first."""
    struck = [(at, call) for at, call in enumerate(calls) if call.is_struck]
    return [(call, next(fault for fault in faults if fault.strikes(at, call))) for at, call in struck]


def steps(change: Change, handle: object) -> list[Callable[[Mmap], object]]:
    """The calls that a change makes: its error says what has become of the last one, not of those before."""
    if not change.assigned or not isinstance(handle, Mmap):
        return [change.call]
    return [*(lambda m, i=i: m.__setitem__(i, change.new[i]) for i in change.assigned), lambda m: m.flush()]


def descriptors() -> dict[str, str]:
    """The open files of this process."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return found
