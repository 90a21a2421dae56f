"""Calls for files that fail below Python, at any place: what is on the disk, what the error says, and the next call.

`tests/faults_below` draws and judges the trials; `test_storage_errors` fails each call once, in `os`.
"""

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from faults_below import library
from faults_below.library import MOMENTS, OPERATIONS, Fault
from faults_below.reading import EVERYTHING, SHORT
from faults_below.trial import Trial

TESTS = Path(__file__).parent
SEED, TRIALS, LONG_TRIALS = 1, 200, 20_000
_MISSING = library.missing()
pytestmark = pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))


def started(*arguments: object, mutant: str = "") -> subprocess.Popen:
    """A process that runs trials, in which every call of the package goes through the library."""
    found = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "faults_below", *map(str, arguments)]
    command += ["--mutant", mutant] if mutant else []
    environment = {**os.environ, "PYTHONPATH": found}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(process: subprocess.Popen) -> list[dict]:
    """What it prints, a line for each change."""
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return [json.loads(line) for line in printed.splitlines()]


def problems(found: list[dict]) -> str:
    """Each trial that went wrong, as the command that does it again."""
    bad = [outcome for line in found for outcome in line["bad"]]
    return "\n".join(
        f"PYTHONPATH=src:tests python -m faults_below --trial {outcome['trial']}\n    "
        + "\n    ".join([str(outcome.get("struck")), str(outcome.get("error")), *outcome["problems"]])
        for outcome in bad
    )


def judged(found: list[dict], count: int, record: Callable[[str, object], None]) -> None:
    """Nothing wrong in so many trials, of which enough raised."""
    told: Counter = Counter()
    for line in found:
        told.update(line["committed"])
    record("trials", sum(line["trials"] for line in found))
    record("committed", dict(told))
    assert not problems(found), problems(found)
    assert sum(line["trials"] for line in found) == count
    assert {"False", "True"} <= set(told)
    assert told.total() > count / 3
    assert told["None"] < told.total() / 10  # an error that never knows would never be wrong


def test_faults_below_python(record_property: Callable[[str, object], None]) -> None:
    found = results(started(SEED, TRIALS, "--short"))
    assert {line["name"] for line in found} == {name for name in SHORT if "blocks" not in name}
    judged(found, TRIALS, record_property)


@pytest.mark.parametrize("change", ["rows: extend$", "strings: first append"])
def test_one_fault_at_every_call(change: str, record_property: Callable[[str, object], None]) -> None:
    """An error, an error after the call is done, a short one, and Ctrl-C."""
    found = results(started(SEED, "--every", "--only", change))
    record_property("trials", sum(line["trials"] for line in found))
    assert not problems(found), problems(found)
    assert sum(line["trials"] for line in found) > 150


@pytest.mark.long
def test_many_faults_below_python(record_property: Callable[[str, object], None]) -> None:
    parts = os.cpu_count() or 1
    processes = [started(SEED + 1, LONG_TRIALS, part, parts) for part in range(parts)]
    found = [line for process in processes for line in results(process)]
    assert {line["name"] for line in found} == set(EVERYTHING)
    judged(found, LONG_TRIALS, record_property)


# -- that these tests can see ----------------------------------------------------------------------------------------


def test_every_call_is_seen_and_struck(tmp_path: Path) -> None:
    """Each operation is counted, fails with the number that it was given, and moves half of its bytes when told to."""
    code = TESTS / "faults_below" / "seeing.py"
    environment = {**os.environ, library.VARIABLE: str(library.built(tmp_path)), "PYTHONPATH": str(TESTS)}
    done = subprocess.run([sys.executable, str(code), str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(OPERATIONS)


SEEN = {  # what each mutant breaks, as the problem of a trial begins
    "never committed": "committed: False, but it is new",
    "the length is not looked at": "retry: ",
    "syncs that fail are passed over": "wrong: it returned, but",
    "always committed": "committed: True, but it is old",
    "os errors as they are": "untyped: ",
    "the lock is kept": "locked: ",
    "descriptors are kept": "descriptors: ",
    "short writes are taken for whole ones": "wrong: ",
}


@pytest.mark.parametrize(
    "mutant", [name if k < 3 else pytest.param(name, marks=pytest.mark.long) for k, name in enumerate(SEEN)]
)
def test_what_is_wrong_is_seen(mutant: str) -> None:
    found = results(started(SEED, "--every", "--only", "rows: extend$", mutant=mutant))
    assert f"    {SEEN[mutant]}" in problems(found)


def test_a_trial_that_is_printed_is_done_again() -> None:
    faults = Fault("before", 12, 5), Fault("short", 7, is_lasting=True, only=("write", "read")), Fault("interrupt", 3)
    for trial in (Trial("rows: append", faults), Trial("rows: append", faults[:1], is_same=True)):
        assert Trial.parse(shlex.split(str(trial))) == trial
    assert str(faults[1]) == "short:7+::write,read"
    assert {fault.moment for fault in faults} <= set(MOMENTS)
