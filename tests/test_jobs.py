"""The processes of `n_jobs`: they end with their parent, leave nothing, and fail with errors of ours."""

import ctypes
import functools
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from contracts import assert_same, notes
from faults import exit_code, start_child
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap
from mmap_ninja._worker import START, Task
from mmap_ninja._workers import Workers, _Worker, count_of
from mmap_ninja.errors import SampleError, WorkerError

KILLS, LONG_KILLS = 10, 50
SAMPLES = [np.arange(i % 7) for i in range(300)]
LARGE = np.zeros(2_000_000)  # which joblib would put into a file


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(folder.name))
    return found


@pytest.fixture
def others() -> list[int]:
    """The children that this process has already, of other tests."""
    return children(os.getpid())


def workers_of(pid: int) -> list[int]:
    """The workers that a process has started, by what they were told to run, whether it lives or not."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            told = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if START.encode() in told and str(pid).encode() in told:
            found.append(int(folder.name))
    return found


def are_gone(pid: int, within: float = 60.0) -> bool:
    """Whether the workers of a process end; the limit is for a busy machine."""
    deadline = time.monotonic() + within
    while workers_of(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Slow:
    """Samples that take a while, and a large array that the loader needs."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.large = seconds, LARGE

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, i: int) -> np.ndarray:
        time.sleep(self.seconds)
        return np.full(i % 5, i)


# -- SIGKILL ---------------------------------------------------------------------------------------------------------


def killed_conversions(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Kill conversions at random times: no process is left, nor a file outside of the map's folder."""
    temporary = folder / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    rng, seen = random.Random(14), 0
    for number in range(count):
        path = folder / str(number)
        pid = start_child(lambda path=path: RaggedMmap.from_indexable(path, Slow(0.005), 20, n_jobs=2))
        while not children(pid):
            time.sleep(0.001)
        time.sleep(rng.choice([0, 0.05, 0.3, 0.6, 1]) * rng.random())
        seen += bool(workers_of(pid))
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
        assert are_gone(pid)
        assert os.listdir(temporary) == []
        assert not [name for name in os.listdir("/dev/shm") if str(pid) in name]
    assert seen > count // 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_a_killed_conversion_leaves_neither_processes_nor_files(tmp_path, monkeypatch):
    killed_conversions(tmp_path, monkeypatch, KILLS)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_a_killed_conversion_leaves_neither_processes_nor_files_at_length(tmp_path, monkeypatch):
    killed_conversions(tmp_path, monkeypatch, LONG_KILLS)


def sleep_for_ever(i: int) -> None:
    time.sleep(3600)


def test_a_busy_worker_ends_when_the_pipe_of_its_parent_does():
    """Also where the kernel does not kill it."""
    worker = _Worker(1)
    try:
        worker.write(pickle.dumps(sleep_for_ever))
        worker.give(Task(0, 1, False))
        worker._tasks.close()
        assert worker._process.wait(60) == 1
    finally:
        worker.kill()
        worker.close()


def test_a_worker_whose_parent_is_gone_already_does_not_begin():
    command = [sys.executable, "-c", START, "[]", "1", "1"]
    done = subprocess.run(command, capture_output=True, input=b"", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_full_or_missing_temporary_folder_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/dev/full")
    monkeypatch.setattr("tempfile.tempdir", "/dev/full")
    m = RaggedMmap.from_indexable(tmp_path / "map", Slow(0), 500, n_jobs=2)
    assert len(m) == 1000


# -- errors ----------------------------------------------------------------------------------------------------------


def killed_at_7(i: int) -> np.ndarray:
    if i == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.array([i])


def exits_at_7(i: int) -> np.ndarray:
    if i == 7:
        sys.exit(3)
    return np.array([i])


class Stubborn(Exception):
    """An error that does not unpickle."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def stubborn_at_7(i: int) -> np.ndarray:
    if i == 7:
        raise Stubborn(1, 2)
    return np.array([i])


@pytest.mark.parametrize(
    ("load", "match"),
    [
        (killed_at_7, "a process of n_jobs has ended by signal 9"),
        (exits_at_7, "a process of n_jobs has ended with exit status 3"),
        (stubborn_at_7, "Stubborn in a process of n_jobs: 1 and 2"),
    ],
    ids=["killed", "exit", "stubborn"],
)
def test_a_worker_that_fails(tmp_path, load, match, others: list[int]):
    with pytest.raises(WorkerError, match=match):
        RaggedMmap.from_indexable(tmp_path / "map", load, 20, n_jobs=2)
    assert children(os.getpid()) == others


def test_a_sample_that_cannot_travel(tmp_path):
    with pytest.raises(TypeError, match="pickle") as caught:
        RaggedMmap.from_indexable(tmp_path / "map", lambda i: (x for x in [i]), 20, n_jobs=2)
    assert "sent samples back" in notes(caught.value)


def test_a_loader_that_cannot_travel(tmp_path, others: list[int]):
    lock = threading.Lock()
    with pytest.raises(TypeError, match="pickle") as caught:
        RaggedMmap.from_indexable(tmp_path / "map", lambda i: (lock, i), 20, n_jobs=2)
    assert "sent the indexable" in notes(caught.value)
    assert children(os.getpid()) == others


class OnlyHere:
    """What unpickles in the process that has pickled it alone."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __setstate__(self, state: dict) -> None:
        if state["home"] != os.getpid():
            raise KeyError("not here")

    def __call__(self, i: int) -> int:
        return i


def test_a_loader_that_cannot_arrive(tmp_path):
    with pytest.raises(KeyError, match="not here") as caught:
        RaggedMmap.from_indexable(tmp_path / "map", OnlyHere(), 20, n_jobs=2)
    assert "read the indexable" in notes(caught.value)


def test_an_error_shows_where_it_was_raised(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        RaggedMmap.from_indexable(tmp_path / "map", lambda i: np.array([1 // (i - 7)]), 20, n_jobs=2)
    assert "while loading sample 7" in notes(caught.value)
    assert "1 // (i - 7)" in str(caught.value.__cause__)


def test_a_process_that_cannot_be_started(tmp_path, monkeypatch):
    monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: str(tmp_path / "none"))
    with pytest.raises(WorkerError, match=r"a process of n_jobs could not be started: .*No such file"):
        RaggedMmap.from_indexable(tmp_path / "map", SAMPLES, 20, n_jobs=2)


def test_a_refused_sample_ends_the_processes_though_its_error_is_kept(tmp_path, others: list[int]):
    with pytest.raises(SampleError, match="sample 40") as caught:
        RaggedMmap.from_indexable(tmp_path / "map", lambda i: 0.5 if i == 40 else i, 20, n_jobs=2)
    assert children(os.getpid()) == others
    assert caught.value.__traceback__ is not None


# -- what the processes do ------------------------------------------------------------------------------------------


def prints(i: int) -> np.ndarray:
    print("printed by a loader", flush=True)
    assert sys.stdin.read() == ""
    return np.array([i])


def test_a_loader_may_print_and_read(capfd):
    with Workers(prints, 2) as workers:
        outcomes = list(workers.outcomes(iter([Task(0, 2, False), Task(2, 4, False)])))
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert capfd.readouterr().out == "printed by a loader\n" * 4


def test_a_slow_task_does_not_keep_the_others_waiting():
    slow = lambda i: time.sleep(0.3 if i == 0 else 0) or i
    with Workers(slow, 2) as workers:
        tasks = (Task(i, i + 1, False) for i in range(30))
        assert [outcome.samples for outcome in workers.outcomes(tasks)] == [[i] for i in range(30)]


def threads_given(i: int) -> str:
    return os.environ["OMP_NUM_THREADS"]


def test_the_processes_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with Workers(threads_given, 2) as workers:
        [outcome] = workers.outcomes(iter([Task(0, 1, False)]))
    assert outcome.samples == [str(max(count_of(-1) // 2, 1))]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with Workers(threads_given, 1) as workers:
        [outcome] = workers.outcomes(iter([Task(0, 1, False)]))
    assert outcome.samples == ["5"]


@pytest.mark.parametrize(("n_jobs", "cores", "expected"), [(3, 2, 3), (-1, 8, 8), (-2, 8, 7), (-9, 8, 1)])
def test_number_of_processes(monkeypatch, n_jobs, cores, expected):
    monkeypatch.setattr("mmap_ninja._workers._cores", lambda: cores)
    assert count_of(n_jobs) == expected


def test_functions_of_a_script_without_a_main_guard(tmp_path):
    """As in a notebook: what is defined in `__main__` travels by value, and nothing runs twice."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "import numpy as np\n"
        "from mmap_ninja import RaggedMmap\n"
        "print('begun')\n"
        "class Scale:\n"
        "    def __init__(self, by): self.by = by\n"
        "    def __len__(self): return 50\n"
        "    def __getitem__(self, i): return np.array([twice(i) * self.by])\n"
        "def twice(i): return 2 * i\n"
        "m = RaggedMmap.from_indexable(sys.argv[1], Scale(10), 10, n_jobs=2)\n"
        "print([int(row[0]) for row in m] == [20 * i for i in range(50)])\n"
    )
    done = subprocess.run([sys.executable, script, tmp_path / "map"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("begun\nTrue\n", "")


class Reusing:
    """An indexable that hands out one buffer again and again."""

    def __init__(self, fill, length: int = 50) -> None:
        self.fill, self.length = fill, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int):
        return self.fill(i)


buffer = np.zeros(3)
raw_buffer = bytearray(3)


def filled(i: int) -> np.ndarray:
    buffer[:] = i
    return buffer


records, shared = np.zeros(2, "i4,f8"), multiprocessing.RawArray("d", 3)


def filled_record(i: int) -> np.void:
    records[0] = (i, i / 2)
    return records[0]


def filled_memory(i: int) -> ctypes.Array:
    shared[:] = [i] * 3
    return shared


def filled_bytes(i: int) -> bytearray:
    raw_buffer[:] = bytes([i]) * 3
    return raw_buffer


@pytest.mark.parametrize("kind", [RaggedMmap, DenseMmap])
def test_a_buffer_that_a_loader_uses_again(tmp_path, kind):
    m = kind.from_indexable(tmp_path / "map", Reusing(filled), 20, n_jobs=2)
    assert_same(list(m), [np.full(3, float(i)) for i in range(50)])


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_memory_that_is_no_array_and_that_a_loader_uses_again(tmp_path, n_jobs):
    m = DenseMmap.from_indexable(tmp_path / "records", Reusing(filled_record), 20, n_jobs=n_jobs)
    assert m[:].tolist() == [(i, i / 2) for i in range(50)]
    m = DenseMmap.from_indexable(tmp_path / "shared", filled_memory_of_50, 20, n_jobs=n_jobs)
    assert m[:].tolist() == [[i] * 3 for i in range(50)]


def filled_memory_of_50(i: int) -> ctypes.Array:
    if i >= 50:
        raise IndexError(i)
    return filled_memory(i)


def test_bytes_that_a_loader_uses_again(tmp_path):
    m = BytesMmap.from_indexable(tmp_path / "map", Reusing(filled_bytes), 20, n_jobs=2)
    assert list(m) == [bytes([i]) * 3 for i in range(50)]


def ends(length: int, error: type[Exception], i: int) -> np.ndarray:
    """The first number past the end is the end, whatever comes after it."""
    if i == length:
        raise IndexError(i)
    if i > length:
        raise error(i)
    return np.array([i])


@pytest.mark.parametrize("length", [0, 19, 20, 21, 45])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_first_end_is_the_end_whatever_lies_behind_it(tmp_path, length, n_jobs):
    load = functools.partial(ends, length, ZeroDivisionError)
    m = RaggedMmap.from_indexable(tmp_path / "map", load, 20, n_jobs=n_jobs)
    assert [int(row[0]) for row in m] == list(range(length))
