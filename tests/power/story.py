"""What a user does: the calls that are recorded, and what has to be there after each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from changes import Kind


@dataclass(frozen=True)
class Step:
    """One call of a user, and the samples after it.

    `is_safe`: a power cut in it leaves the old samples or the new. `is_durable`: after it, the new ones.
    `assigned` are the samples that a cut may leave in either state, or between.
    """

    act: Callable[[Path], object]
    after: list
    is_safe: bool = True
    is_durable: bool = True
    is_build: bool = False
    assigned: tuple[int, ...] = ()
    metadata: dict | None = None


@dataclass(frozen=True)
class Story:
    """What is there before, the samples of that (None: no map that can be read), and what is done."""

    begin: Callable[[Path], object]
    before: list | None
    steps: tuple[Step, ...]
    kind: Kind
    starts_unfinished: bool = False
    starts_torn: bool = False  # by 0.9.0: refused until the step, which may be done again, has put it right
