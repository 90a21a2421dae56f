"""Run trials: `python -m faults_below SEED TRIALS [PART OF] [--only WORDS]`, or one: `... --trial NAME FAULT...`.

Prints a line of JSON for each change: how many trials, what surfaced, and the outcomes that are wrong.
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from faults import in_memory, start_child
from faults_below import library
from faults_below.drawing import Drawing
from faults_below.library import Library
from faults_below.mutants import MUTANTS
from faults_below.reading import EVERYTHING, SHORT
from faults_below.trial import Outcome, Stage, Trial

_LONGEST = 60  # seconds: a trial that takes longer hangs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m faults_below", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("trials", type=int, nargs="?", default=400)
    parser.add_argument("part", type=int, nargs="?", default=0)
    parser.add_argument("of", type=int, nargs="?", default=1)
    parser.add_argument("--only", default="", help="changes whose name has this pattern")
    parser.add_argument("--but", default="^$", help="not those that have this pattern")
    parser.add_argument("--every", action="store_true", help="strike each call of these changes")
    parser.add_argument("--short", action="store_true", help="each operation with one kind of map, none of much data")
    parser.add_argument("--mutant", choices=MUTANTS, help="break the package like this")
    parser.add_argument("--trial", nargs="+", help="the trial of a report")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        if library.VARIABLE not in os.environ:
            again(Path(work))
        with in_memory(Path(work)) as room:
            run(given, room)


def again(work: Path) -> None:
    """Start this process again, with the library preloaded."""
    path = library.built(work)
    code = os.spawnve(
        os.P_WAIT,
        sys.executable,
        [sys.executable, "-m", "faults_below", *sys.argv[1:]],
        {**os.environ, library.VARIABLE: str(path)},
    )
    path.unlink()
    sys.exit(code)


def run(given: argparse.Namespace, room: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    preloaded = Library(os.environ.pop(library.VARIABLE))
    preloaded.watch(room)
    if given.mutant:
        MUTANTS[given.mutant]()
    if given.trial:
        trial = Trial.parse(given.trial)
        print(json.dumps(asdict(Stage(trial.name, preloaded, room).run(trial)), indent=1))
        return
    names = [name for name in EVERYTHING if re.search(given.only, name) and not re.search(given.but, name)]
    if given.short:
        names = [name for name in names if name in SHORT and "blocks" not in name]
    for k, name in enumerate(names):
        share = given.trials // len(names) + (k < given.trials % len(names))
        if k % given.of == given.part and (share or given.every):
            count = None if given.every else share
            print(json.dumps(of_change(name, given.seed, count, preloaded, room)), flush=True)


def of_change(name: str, seed: int, count: int | None, preloaded: Library, room: Path) -> dict:
    """Trials in a child: one that dies takes no others with it."""
    read, write = os.pipe()
    begun = time.monotonic()

    def act() -> None:
        with open(write, "w") as pipe, tempfile.TemporaryDirectory(dir=room) as work:
            for line in outcomes(name, seed, count, preloaded, Path(work)):
                print(line, file=pipe, flush=True)

    pid = start_child(act)
    os.close(write)
    with open(read) as pipe:
        lines = [json.loads(line) for line in pipe]
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found = [line for line in lines if isinstance(line, dict)]
    bad = [line for line in found if line["problems"]]
    if code:
        bad.append({"trial": lines[-1] if lines else name, "problems": [f"died: the process ended with {code}"]})
    told = Counter(line["committed"] for line in found if line["error"])
    return {
        "name": name,
        "trials": sum(bool(line["struck"]) for line in found),
        "raised": sum(told.values()),
        "committed": told,
        "seconds": round(time.monotonic() - begun, 1),
        "bad": bad,
    }


def outcomes(name: str, seed: int, count: int | None, preloaded: Library, room: Path) -> Iterator[str]:
    """Each trial as it begins, and what it has come to: so many that were struck; None: each call once."""
    signal.alarm(_LONGEST)
    stage = Stage(name, preloaded, room)
    drawing, struck = Drawing(name, stage.calls, seed), 0
    for trial in drawing.every() if count is None else drawing.some():
        yield json.dumps(str(trial))
        signal.alarm(_LONGEST)
        outcome: Outcome = stage.run(trial)
        yield json.dumps(asdict(outcome))
        struck += bool(outcome.struck)
        if struck == count:
            break
    signal.alarm(0)


if __name__ == "__main__":
    main()
