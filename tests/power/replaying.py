"""Every state of a recorded story, put into a folder and judged."""

import itertools
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from mmap_ninja._storage import build, legacy, snapshot, unfinished, upgrade
from power.judge import Judge
from power.recording import Recording, State
from power.story import Story

_BOOTS = itertools.count(1)


@dataclass
class Figures:
    """What a replay has seen."""

    states: int = 0
    unchecked: int = 0  # different states that were enumerated, but left out for the sake of time
    exhausted: int = 0
    sampled: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.states} states {self.outcomes}, {self.unchecked} not checked; {self.exhausted} stretches of calls "
            f"in all combinations, {self.sampled} in some; {len(self.bad)} bad: {self.bad[:3]}"
        )


@contextmanager
def ram() -> Iterator[Path]:
    """A folder in memory, where there is such a place."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="power-cuts-", dir=memory) as folder:
        yield Path(folder)


@contextmanager
def rebooted() -> Iterator[None]:
    """On another boot of the machine than what was written before."""
    boot = f"boot {next(_BOOTS)}"
    with ExitStack() as stack:
        for module in (snapshot, build, unfinished, upgrade):
            stack.enter_context(mock.patch.object(module, "boot_id", return_value=boot))
        yield


def same_disk() -> AbstractContextManager[object]:
    """A map of format 1 is known by the inode of its data, which a power cut does not change, but a copy does."""
    return mock.patch.object(legacy, "_id", return_value="0" * 32)


def recorded(story: Story, top: Path) -> Recording:
    """What a story does below this folder, which is made."""
    top.mkdir()
    story.begin(top / "map")
    recording = Recording(top)
    with recording.recording():
        for step in story.steps:
            step.act(top / "map")
            recording.returned()
    return recording


def replay(story: Story, *, bound: int, most: int, seed: int = 0) -> Figures:
    """Check what power cuts leave of a story: at most `most` states, of `bound` combinations for each prefix."""
    figures, rng = Figures(), random.Random(seed)
    with ram() as work, same_disk(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the upgrade, of what was never finished
        recording = recorded(story, work / "recorded")
        found = {}
        for state in recording.states(bound, rng):
            tree = recording.tree(state.stop, state.fates)
            found.setdefault((recording.acknowledged(state.stop), tree.key()), state)
        figures.exhausted, figures.sampled = recording.exhausted, recording.sampled
        chosen = spread(found, most, rng)
        figures.unchecked = len(found) - len(chosen)
        with rebooted():
            for acknowledged, state in chosen:
                top = work / "state"
                recording.tree(state.stop, state.fates).write(str(top))
                try:
                    outcome = Judge(story, acknowledged, top / "map").outcome()
                except Exception as error:
                    outcome = "bad"
                    figures.bad.append(f"{state}: {type(error).__name__}: {str(error)[:300]}")
                figures.states += 1
                figures.outcomes[outcome] = figures.outcomes.get(outcome, 0) + 1
                shutil.rmtree(top)
    return figures


def spread(found: dict[tuple[int, tuple], State], most: int, rng: random.Random) -> list[tuple[int, State]]:
    """At most so many of the states, as many of each prefix of the calls as of the next, while there are any."""
    by_prefix: dict[int, list[tuple[int, State]]] = {}
    for (acknowledged, _), state in found.items():
        by_prefix.setdefault(state.stop, []).append((acknowledged, state))
    for states in by_prefix.values():
        rng.shuffle(states)
    rounds = itertools.zip_longest(*by_prefix.values())
    return [state for states in rounds for state in states if state is not None][:most]
