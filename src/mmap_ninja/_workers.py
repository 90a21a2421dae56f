"""Worker processes that load samples, and that end with their parent, however it ends.

A worker gets the loader and its tasks through a pipe that the parent alone writes to, and hands back samples through
another one: nothing of it lies in a file. When the parent dies, the worker reads the end of that pipe and ends; Linux
kills it besides, also where a process that was forked meanwhile still has the parent's end.
"""

from __future__ import annotations

import json
import multiprocessing.spawn
import os
import pickle
import selectors
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import IO, Any

from mmap_ninja._worker import SIZE, START, Load, Outcome, Task
from mmap_ninja.errors import MissingExtraError, WorkerError, noted

_AHEAD = 2  # tasks for each worker that are begun, or done and not yet asked for
_LOOK_EVERY = 1.0  # seconds between two looks whether the workers still live
# How many threads the libraries under numpy, and others, start of their own accord: joblib's list.
_THREADS = "OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMBA", "NUMEXPR"


def count_of(n_jobs: int) -> int:
    """How many processes a number of jobs means: -1 is one for each core, -2 one less."""
    return n_jobs if n_jobs > 0 else max(_cores() + 1 + n_jobs, 1)


def _cores() -> int:
    """The cores that this process may use: those that it is bound to, or what its container is granted."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = file.read().split()
        count = min(count, max(-(-int(quota) // int(period)), 1))  # "max" is no number
    return count


class Workers:
    """Processes that load samples, each of which gets the loader once; killed at the end of a `with` block."""

    def __init__(self, load: Load, count: int) -> None:
        try:
            import cloudpickle
        except ImportError:
            raise MissingExtraError("n_jobs needs cloudpickle: pip install mmap-ninja[parallel]") from None
        self._workers: list[_Worker] = []
        try:
            for _ in range(count):
                self._workers.append(_Worker(count))
            try:
                cloudpickle.dump(load, _Tee(self._workers), pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                raise noted(error, "while the processes of n_jobs were sent the indexable")  # noqa: B904
        except BaseException:
            self.close()
            raise

    def outcomes(self, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """The outcomes of the tasks in their order; a few tasks are begun ahead, by whichever worker is free."""
        free, running, done = list(self._workers), dict[_Worker, int](), dict[int, Outcome]()
        first = begun = 0
        while True:
            while free and begun - first < _AHEAD * len(self._workers) and (task := next(tasks, None)) is not None:
                worker = free.pop()
                worker.give(task)
                running[worker], begun = begun, begun + 1
            if first in done:
                first += 1
                yield done.pop(first - 1)
            elif running:
                for worker in _ready(list(running)):
                    outcome = done[running.pop(worker)] = worker.outcome()
                    free.append(worker)
                    if outcome.is_end or outcome.error is not None:
                        tasks = iter(())  # those before it are begun already
            else:
                return

    def close(self) -> None:
        """Kill the processes; a second call does nothing."""
        for worker in self._workers:
            worker.kill()
        while self._workers:
            self._workers.pop().close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Tee:
    """What is written to it goes to all workers, so that the loader is pickled once and lies nowhere as a whole."""

    def __init__(self, workers: Sequence[_Worker]) -> None:
        self._workers = workers

    def write(self, raw: Any) -> int:
        for worker in self._workers:
            worker.write(raw)
        return memoryview(raw).nbytes


class _Worker:
    """One process, and the parent's ends of its two pipes."""

    def __init__(self, count: int) -> None:
        with ExitStack() as stack:
            try:
                if os.name == "nt":  # a process inherits nothing but the three standard descriptors there
                    self._process = subprocess.Popen(_command(1), stdin=-1, stdout=-1, env=_environment(count))
                    self._results: IO[bytes] = self._process.stdout  # type: ignore[assignment]
                else:
                    read, write = os.pipe()
                    stack.callback(os.close, write)
                    self._results = open(read, "rb")  # noqa: SIM115 - closed by `close`
                    closing = stack.enter_context(ExitStack())
                    closing.callback(self._results.close)
                    self._process = subprocess.Popen(
                        _command(write), stdin=-1, pass_fds=[write], env=_environment(count)
                    )
                    closing.pop_all()
            except OSError as error:
                raise WorkerError(f"a process of n_jobs could not be started: {error}") from error
        self._tasks: IO[bytes] = self._process.stdin  # type: ignore[assignment]

    def give(self, task: Task) -> None:
        """Let it begin a task."""
        self.write(pickle.dumps(task))
        try:
            self._tasks.flush()
        except OSError:
            self._fail()

    def write(self, raw: Any) -> None:
        """Pass on a part of what it is sent."""
        try:
            self._tasks.write(raw)
        except OSError:
            self._fail()

    def outcome(self) -> Outcome:
        """What it has to say next. Raises `WorkerError` if it has died."""
        size = self._results.read(SIZE)
        message = self._results.read(int.from_bytes(size, "little"))
        if len(size) < SIZE or len(message) < int.from_bytes(size, "little"):
            raise WorkerError(f"a process of n_jobs has ended {self._how()}")
        outcome: Outcome
        outcome, text = pickle.loads(message)
        if outcome.error is not None and text:
            outcome.error.__cause__ = WorkerError(f"in a process of n_jobs:\n\n{text}")
        return outcome

    def _fail(self) -> None:
        """Raise why it takes nothing more: an error that it has met, or that it has died."""
        outcome = self.outcome()
        raise outcome.error or WorkerError(f"a process of n_jobs has ended {self._how()}")

    def _how(self) -> str:
        try:
            status = self._process.wait(_LOOK_EVERY)
        except subprocess.TimeoutExpired:  # it has only closed its pipe
            return "its connection"
        return f"by signal {-status}, as if out of memory or killed" if status < 0 else f"with exit status {status}"

    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def fileno(self) -> int:
        """The descriptor of the pipe that outcomes come through."""
        return self._results.fileno()

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()

    def close(self) -> None:
        """Wait for the end of the process, and close its pipes."""
        self._process.wait()
        with suppress(OSError):  # what it was not sent any more
            self._tasks.close()
        self._results.close()


def _command(results: int) -> list[str]:
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    executable = os.fsdecode(multiprocessing.spawn.get_executable() or sys.executable)
    return [executable, *flags, "-c", START, json.dumps(sys.path), str(os.getpid()), str(results)]


def _environment(count: int) -> dict[str, str]:
    """The environment of a worker: all of them together have about as many threads as there are cores."""
    threads = str(max(_cores() // count, 1))
    return {f"{name}_NUM_THREADS": threads for name in _THREADS} | dict(os.environ)


def _ready(running: Sequence[_Worker]) -> Sequence[_Worker]:
    """Those that have something to say, or that have died; waits for the first."""
    if os.name == "nt":  # pipes cannot be waited for there
        return running[:1]
    with selectors.DefaultSelector() as selector:
        for worker in running:
            selector.register(worker, selectors.EVENT_READ, worker)
        while True:
            if ready := selector.select(_LOOK_EVERY):
                return [key.data for key, _ in ready]
            for worker in running:
                if worker.is_dead():  # and one of its own children may hold its end of the pipe
                    raise WorkerError(f"a process of n_jobs has ended {worker._how()}")
