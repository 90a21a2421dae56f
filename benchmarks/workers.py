"""Processes that measure: each imports one version of mmap_ninja, and all are asked in turn.

Two versions of one package cannot share a process, so a worker for 0.9.0 finds it first on its path, in a
folder of its own. The functions that a worker runs are named, not sent: it imports the benchmark's module by
itself, and arguments and results travel as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "benchmarks"
OLD_VERSION = "0.9.0"
OURS, OLD, LIST = "mmap_ninja", OLD_VERSION, "list"


class Worker:
    """A process that runs functions of benchmark modules: `worker(function, *args)` gives the result.

    Raises:
        RuntimeError: with the worker's traceback, where the function raised.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(name),
        )

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs the function there; it and its arguments have to make sense in another process."""
        module = sys.modules[function.__module__].__spec__
        print(json.dumps([module.name, function.__name__, args]), file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(f"the worker for {self.name} ended with status {self._process.wait()}")
        result, error = json.loads(reply)
        if error:
            raise RuntimeError(f"in the worker for {self.name}:\n{error}")
        return result

    def close(self) -> None:
        """Ends the process."""
        with self._process:  # closes its pipes, which ends it, and waits
            pass


def environment(name: str) -> dict[str, str]:
    """The environment of a process in which `import mmap_ninja` gives that side's version."""
    if name != OLD:
        return dict(os.environ)
    return os.environ | {"PYTHONPATH": str(old_folder())}


@contextmanager
def started(*names: str) -> Iterator[list[Worker]]:
    """Workers of these names; that of 0.9.0 is left out, with a word, where 0.9.0 cannot be had."""
    with ExitStack() as stack:
        workers = []
        for name in names:
            if name == OLD and not has_old():
                continue
            worker = Worker(name)
            stack.callback(worker.close)
            workers.append(worker)
            check_version(worker)
        yield workers


def check_version(worker: Worker) -> None:
    """Comparing a version with itself would be the worst of mistakes, so both sides tell where theirs comes from."""
    is_old = Path(worker(imported_from)).is_relative_to(old_folder())
    if is_old != (worker.name == OLD):
        raise RuntimeError(f"the worker for {worker.name} imported another version of mmap_ninja")


def imported_from() -> str:
    """The file of the package that this process imports."""
    return str(importlib.import_module("mmap_ninja").__file__)


def old_folder() -> Path:
    """Where 0.9.0 lies once `has_old` was true."""
    return BUILD / f"mmap_ninja-{OLD_VERSION}"


@cache
def has_old() -> bool:
    """Whether 0.9.0 is there; installs it into a folder of its own the first time."""
    if old_folder().exists():
        return True
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as unfinished:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*pip, "--target", unfinished, f"mmap-ninja=={OLD_VERSION}"], capture_output=True, text=True
        )
        if done.returncode:
            print(f"mmap_ninja {OLD_VERSION} could not be installed and is left out:\n{done.stderr}", file=sys.stderr)
            return False
        if not old_folder().exists():  # another benchmark may have been faster
            Path(unfinished).rename(old_folder())
            Path(unfinished).mkdir()  # for TemporaryDirectory to remove
    return True


def serve() -> None:
    """A worker's main loop: one request a line, one reply a line, until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a function prints must not look like a reply
    for line in sys.stdin:
        module, name, args = json.loads(line)
        try:
            reply = [getattr(importlib.import_module(module), name)(*args), None]
        except Exception:
            reply = [None, traceback.format_exc()]
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve()
