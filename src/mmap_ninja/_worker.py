"""What runs in a worker process: it loads samples for its parent, and ends with it.

`start` is what the process is told to run; `serve` is what that calls once the package can be imported.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any, NamedTuple

from mmap_ninja._arrival import kept
from mmap_ninja.errors import WorkerError, noted

Load = Callable[[int], Any]

# Run before anything large is imported. The parent may die at any moment: Linux then kills the process (1 is
# PR_SET_PDEATHSIG, 9 SIGKILL), unless the parent was dead already.
START = """
import json, os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.name == "posix" and os.getppid() != int(sys.argv[2]):
    os._exit(1)
sys.path[:] = json.loads(sys.argv[1])
from mmap_ninja._worker import serve
serve(int(sys.argv[3]))
"""
SIZE = 8  # bytes before each message that tell its length


class Task(NamedTuple):
    """The samples `[start, stop)`; if `may_end`, an `IndexError` is the end of all."""

    start: int
    stop: int
    may_end: bool


class Outcome(NamedTuple):
    """The samples of a task, fewer where the end of all was among them; or the error that one of them raised."""

    samples: list[Any]
    is_end: bool = False
    error: BaseException | None = None


def loaded(load: Load, task: Task) -> Outcome:
    """What `load` gives for each number of a task, copied before the next one is loaded."""
    samples: list[Any] = []
    for number in range(task.start, task.stop):
        try:
            samples.append(kept(load(number)))
        except Exception as error:
            if task.may_end and isinstance(error, IndexError):
                return Outcome(samples, is_end=True)
            return Outcome([], error=noted(error, f"while loading sample {number}"))
    return Outcome(samples)


def serve(results: int) -> None:
    """Read the loader and then tasks from standard input; write an outcome of each to the descriptor `results`."""
    status: Any = 1
    try:
        tasks, results = _moved(results)
        # Not closed: that would wait for the thread that reads.
        _serve(open(tasks, "rb"), open(results, "wb"))  # noqa: SIM115
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C goes to the parent as well, which says so
        pass
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status if isinstance(status, int) else 1)  # at once, for the same reason


def _moved(results: int) -> tuple[int, int]:
    """The two descriptors where no code of the user's finds them; its standard input is empty."""
    tasks = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if results == 1:  # where a process inherits nothing but the three standard descriptors
        results = os.dup(1)
        os.dup2(2, 1)
    else:
        os.set_inheritable(results, False)
    return tasks, results


def _serve(source: IO[bytes], channel: IO[bytes]) -> None:
    try:
        load = pickle.load(source)
    except Exception as error:
        _send(channel, Outcome([], error=noted(error, "while a process of n_jobs read the indexable")))
        return
    tasks: SimpleQueue[Task] = SimpleQueue()
    threading.Thread(target=_receive, args=(source, tasks), daemon=True).start()
    while True:
        _send(channel, loaded(load, tasks.get()))


def _receive(source: IO[bytes], tasks: SimpleQueue[Task]) -> None:
    """Pass on what the parent asks for, and end the process with it, whatever is being loaded."""
    try:
        while True:
            tasks.put(pickle.load(source))
    finally:
        os._exit(1)


def _send(channel: IO[bytes], outcome: Outcome) -> None:
    message = _pickled(outcome)
    channel.write(len(message).to_bytes(SIZE, "little"))
    channel.write(message)
    channel.flush()


def _pickled(outcome: Outcome) -> bytes:
    """The outcome as bytes; an error that cannot travel as it is does so as text, and so does its traceback."""
    import cloudpickle

    if outcome.error is None:
        try:
            return bytes(cloudpickle.dumps((outcome, ""), pickle.HIGHEST_PROTOCOL))
        except Exception as refused:
            outcome = Outcome([], error=noted(refused, "while a process of n_jobs sent samples back"))
    error = outcome.error
    assert error is not None
    text = "".join(traceback.format_exception(error))
    try:
        raw = bytes(cloudpickle.dumps((outcome, text), pickle.HIGHEST_PROTOCOL))
        pickle.loads(raw)
    except Exception:
        told = WorkerError(f"{type(error).__name__} in a process of n_jobs: {error}")
        for note in getattr(error, "__notes__", ()):
            noted(told, note)
        raw = pickle.dumps((Outcome([], error=told), text), pickle.HIGHEST_PROTOCOL)
    return raw
