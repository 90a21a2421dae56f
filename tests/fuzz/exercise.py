"""Everything that a reader and a writer do to a folder, and what must not happen then."""

import contextlib
import itertools
import os
import pickle
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  all that is imported at the first use, so that any other import is heard
import numpy as np
import numpy.ma  # np.unique
import zstandard  # noqa: F401

import mmap_ninja
from fuzz.mutants import ROOM
from fuzz.seed import Seed
from mmap_ninja import (
    Batches,
    BytesMmap,
    DenseMmap,
    Mmap,
    RaggedMmap,
    StringsMmap,
    np_open_existing,
    open_existing,
    open_map,
    select,
    split,
    windows,
)
from mmap_ninja.errors import MmapNinjaError, SampleIndexError

PADDINGS: list[dict[str, Any]] = [{}, {"length": 1}, {"length": 5, "side": "left"}, {"multiple_of": 8}]
PADDINGS += [{"buckets": (1, 2)}, {"length": (None, 2)}, {"multiple_of": (2, 3)}]
WAYS = ("append", "assign", "upgrade", "build", "metadata")  # to write to it


class Failure(NamedTuple):
    """What must not happen: the number of the mutant, what was mutated, the operation, and what came of it."""

    number: int
    seed: str
    what: list[str]
    operation: str
    error: str
    where: str

    @property
    def key(self) -> tuple[str, str]:
        return self.error.split(":")[0], self.where


class Wrong(Exception):
    """A value that cannot be."""


class Ears:
    """An audit hook, which cannot be removed, that listens only while it is told to."""

    FORBIDDEN = (
        "import",
        "exec",
        "compile",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "subprocess",
        "socket",
    )
    FORBIDDEN += (
        "pickle.find_class",
        "ctypes",
        "code.__new__",
        "marshal",
        "os.symlink",
        "os.link",
        "os.chmod",
        "shutil",
    )
    FORBIDDEN += ("webbrowser", "ftplib", "urllib", "os.startfile", "pty", "sqlite3", "builtins.input")
    CHANGES = ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.listdir", "os.scandir")

    def __init__(self) -> None:
        self.folder: str | None = None
        self.heard: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if self.folder is None:
            return
        if event in self.CHANGES:
            folder, self.folder = self.folder, None
            if isinstance(args[0], str | bytes | os.PathLike):
                path = os.fsdecode(args[0])
                if not path.startswith(folder + os.sep) or os.pardir in path:
                    path = os.path.realpath(path)
                    is_parent = event == "open" and path == os.path.dirname(folder)  # its names are synced
                    if path not in (folder, "/proc/sys/kernel/random/boot_id") and not is_parent:
                        self.heard.append(f"{event} {path}")
            self.folder = folder
        elif event.startswith(self.FORBIDDEN) and not (
            event == "pickle.find_class" and str(args[0]).startswith("mmap_ninja")
        ):
            self.heard.append(f"{event} {args}"[:300])


class Exercise:
    """Does everything that a reader may do to one folder, and notes what must not happen."""

    def __init__(self, folder: Path, seed: Seed, number: int, what: list[str], ears: Ears | None) -> None:
        self.folder, self.seed, self.number, self.what = folder, seed, number, what
        self.failures: list[Failure] = []
        self._ears, self._real = ears, os.path.realpath(folder)
        self._rng = random.Random(-number)

    def fail(self, operation: str, error: str, where: str = "") -> None:
        self.failures.append(Failure(self.number, self.seed.name, self.what, operation, error[:300], where))

    def do(self, operation: str, act: Callable[[], Any], *allowed: type[BaseException]) -> Any:
        """What `act` returns, None where it raised what it may raise."""
        ears = self._ears
        try:
            if ears is not None:
                ears.folder = self._real
            return act()
        except (MmapNinjaError, *allowed):
            return None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if ears is not None:
                ears.folder = None
            frames = traceback.extract_tb(error.__traceback__)[-60:]
            ours = [frame for frame in frames if "/mmap_ninja/" in frame.filename] or [frames[-1]]
            where = f"{os.path.basename(ours[-1].filename)}:{ours[-1].name}"
            self.fail(operation, f"{type(error).__name__}: {error}", where)
            return None
        finally:
            if ears is not None:
                ears.folder = None
                for heard in ears.heard:
                    self.fail(operation, f"Heard {heard.split()[0]}: {heard}")
                ears.heard.clear()

    def read(self) -> None:
        if self._is_turn(4):
            for cls in {self.seed.cls, self._rng.choice((DenseMmap, RaggedMmap, BytesMmap, StringsMmap))}:
                self.do(cls.__name__, lambda cls=cls: cls(self.folder))
            self.do("open_existing", lambda: open_existing(self.folder))
        if self._is_turn(4 if self.seed.cls is DenseMmap else 16):
            self._memmap()
        m = self.do("open_map", lambda: open_map(self.folder))
        if m is not None:
            self._use(m)
        if hasattr(mmap_ninja, "verify"):
            self.do("verify", lambda: list(mmap_ninja.verify(self.folder)))

    def _is_turn(self, one_of: int) -> bool:
        """Whether this mutant is one of those for which something is done that is not done for all."""
        return self.number == 0 or self._rng.randrange(one_of) == 0

    def _memmap(self) -> None:
        array = self.do("np_open_existing", lambda: np_open_existing(self.folder))
        if array is not None and array.nbytes <= ROOM * 4:
            self.do("bytes of the memmap", array.tobytes)
            self.do("pickle of the memmap", lambda: pickle.loads(pickle.dumps(array)))

    def _use(self, m: Mmap) -> None:
        do = self.do
        n = do("len", lambda: len(m)) or 0
        for name in ("dtype", "nbytes", "metadata", "lengths", "shapes", "starts", "ends"):
            do(name, lambda name=name: getattr(m, name))
        do("repr", lambda: repr(m))
        if isinstance(m, RaggedMmap):
            do("memmap", lambda: m.memmap)
        elif isinstance(m, DenseMmap):
            do("sample_shape", lambda: m.sample_shape)
        for i in {0, n - 1, n // 2} if n else ():
            sample = do("m[i]", lambda i=i: self._in_range(m, i))
            do("type", lambda sample=sample: self._check(m, sample))
            do("m[-]", lambda i=i: m[i - n])
            do("window", lambda i=i: m.window(i, 0, 1))
        for i in (n, -n - 1):
            do("out of range", lambda i=i: self._out_of_range(m, i))
        if n <= 4096:
            for index in (slice(None), slice(None, None, -2), np.arange(n) % 2 == 0):
                many = do("many", lambda index=index: m[index])
                for sample in many[:50] if isinstance(many, list) else ():
                    do("type of many", lambda sample=sample: self._check(m, sample))
            do("will_need", lambda: m.will_need(range(n)))
        if n:
            do("list", lambda: m[[0, -1]])
            do("take", lambda: m.take([n - 1, 0]))
            do("take_jagged", lambda: m.take_jagged([n - 1, 0]))
            do("take_padded", lambda: m.take_padded([n - 1, 0]))
            do("will_need", lambda: m.will_need([0, -1]))
        if self._is_turn(12):
            self._take(m, n)
        if self._is_turn(12):
            self._view("select", lambda: select(m, slice(None, None, -1)))
            self._view("split", lambda: split(m, (0.5, 0.5))[0])
            for span in ((1,), (2, 1), (3, 2**40), (2**61,)):
                self._view("windows", lambda span=span: windows(m, *span))
            self._view("windows of a selection", lambda: windows(select(m, range(n)), 1))
            self._view("selection of windows", lambda: select(windows(m, 1), slice(None, None, -1)))
        if self._is_turn(24):
            self._batches(m)
        do("slice", lambda: m[:3])
        do("iteration", lambda: list(itertools.islice(m, 50)))
        do("reversed", lambda: list(itertools.islice(reversed(m), 50)))
        if n <= 4096:
            do("in", lambda: b"?" in m)
        if self._is_turn(4):
            raw = do("dumps", lambda: pickle.dumps(m))
            again = do("loads", lambda: pickle.loads(raw)) if raw else None
            if again is not None and len(again) != n:
                self.fail("loads", f"Wrong: {len(again)} samples of {n}")
            do("refresh", m.refresh)
        for name in ("flush", "close"):
            do(name, getattr(m, name))

    def _take(self, m: Any, n: int) -> None:
        """Of none, one and several samples, in every layout; `m` is a map or a view."""
        for some in ([], [0], [n - 1, 0, n // 2]) if n else ([],):
            self.do("take", lambda some=some: m.take(some))
            self.do("take_jagged", lambda some=some: m.take_jagged(some))
            for options in PADDINGS:
                self.do("take_padded", lambda some=some, options=options: m.take_padded(some, **options))
            self.do("will_need", lambda some=some: m.will_need(some))

    def _view(self, name: str, make: Callable[[], Any]) -> None:
        view = self.do(name, make)
        if view is None:
            return
        n = self.do(f"len of {name}", lambda: len(view)) or 0
        attributes = (
            "dtype",
            "kind",
            "nbytes",
            "metadata",
            "lengths",
            "shapes",
            "uncovered",
            "indices",
            "sample_shape",
        )
        for attribute in attributes if n <= ROOM else ("dtype", "kind", "sample_shape"):
            if hasattr(type(view), attribute):
                self.do(f"{attribute} of {name}", lambda attribute=attribute: getattr(view, attribute), AttributeError)
        for i in {0, n - 1, n // 2} if n else ():
            self.do(f"{name}[i]", lambda i=i: self._in_range(view, i))
            self.do(f"window of {name}", lambda i=i: view.window(i, 0, 1))
        self.do(f"slice of {name}", lambda: view[:3])
        self.do(f"iteration of {name}", lambda: list(itertools.islice(view, 20)))
        self._take(view, n)
        self.do(f"repr of {name}", lambda: repr(view))

    def _batches(self, m: Mmap) -> None:
        """One batch of each layout, without threads."""
        for layout in ("list", "stack", "jagged", "padded"):
            batches = self.do("Batches", lambda layout=layout: Batches(m, 3, layout=layout, prefetch=0))
            if batches is not None:
                self.do(f"a {layout} batch", lambda batches=batches: next(iter(batches), None))

    def _in_range(self, m: Mmap, i: int) -> Any:
        try:
            return m[i]
        except SampleIndexError as error:
            raise Wrong(str(error)) from error

    def _out_of_range(self, m: Mmap, i: int) -> None:
        with contextlib.suppress(SampleIndexError):
            m[i]
            raise Wrong(f"m[{i}] of {len(m)}")

    def _check(self, m: Mmap, sample: Any) -> None:
        """The type that samples of this map have; every byte is touched."""
        if isinstance(m, BytesMmap):
            right = isinstance(sample, str) if isinstance(m, StringsMmap) else isinstance(sample, bytes)
        else:
            dtype = getattr(sample, "dtype", m.dtype)
            right = dtype == m.dtype or (not isinstance(sample, np.ndarray) and dtype.kind == m.dtype.kind)
            right = right and isinstance(sample, np.ndarray | np.generic | int | float | bool)
            if isinstance(sample, np.ndarray) and sample.nbytes <= ROOM * 4:
                sample.tobytes()
        if sample is not None and not right:
            raise Wrong(f"a {type(sample).__name__} in a {m.kind} map of {m.dtype}")

    def write(self, way: str | None = None) -> None:
        """What is written stays in the files and can be read again; what failed has changed nothing."""
        way = way or self._rng.choice(WAYS)
        before = self._samples()
        reader = None if before is None else open_map(self.folder)
        is_part = (self.folder / "building.json").exists()
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        done = self.do(way, lambda: getattr(self, f"_{way}")(before))
        expected = done[0] if done is not None else None if is_part or way == "assign" else before
        if expected is not None and not self._is_right(expected):
            self.fail(way, f"Wrong: {way} {'failed' if done is None else 'went well'}, but left other samples", way)
        if reader is not None and way != "assign":
            found = self.do("an open reader", lambda: [_copied(reader[i]) for i in range(len(reader))])
            if found is not None and list(map(_bits, found)) != list(map(_bits, before)):
                self.fail(way, f"Wrong: an open reader sees what {way} has written", way)
        after = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if after > size + ROOM:
            self.fail(way, f"Wrong: {size} bytes have become {after}", way)

    def _samples(self) -> list | None:
        """All samples, copied; None where any cannot be read."""
        try:
            with open_map(self.folder) as m:
                return [_copied(m[i]) for i in range(len(m))] if len(m) <= 4096 else None
        except BaseException:  # another operation has noted it
            return None

    def _is_right(self, expected: list) -> bool:
        try:
            with open_map(self.folder) as m:
                found = [_copied(m[i]) for i in range(len(m))]
        except MmapNinjaError:
            return False
        return list(map(_bits, found)) == list(map(_bits, expected))

    # Each returns a tuple of the samples that there should be then, None where nobody knows.

    def _append(self, before: list | None) -> tuple:
        with open_map(self.folder) as m:
            sample = before[0] if before else self.seed.samples[0] if self.seed.samples else np.zeros(3)
            m.append(sample, sync=False)
            return (None if before is None else [*before, m[-1] if not before else sample],)

    def _assign(self, before: list | None) -> tuple:
        with type(open_map(self.folder))(self.folder, mode="r+") as m:
            n = len(m)
            for i in {0, n - 1} if n else ():
                m[i] = self._of_that_size(m, i)
        return (None,)

    def _of_that_size(self, m: Mmap, i: int) -> Any:
        """A value that is fit to be assigned, going by what the index says of the sample."""
        if isinstance(m, BytesMmap):
            size = int(m.lengths[i])
            return ("x" if isinstance(m, StringsMmap) else b"x") * size if 0 <= size < ROOM else m[i]
        shape = [axis for axis in m.shapes[i].tolist() if axis >= 0]
        if np.prod(shape, dtype=float) * m.dtype.itemsize > ROOM:
            return m[i]
        return np.zeros(shape, m.dtype)

    def _upgrade(self, before: list | None) -> tuple:
        mmap_ninja.upgrade(self.folder)
        return (before,)

    def _build(self, before: list | None) -> tuple:
        samples, resume = self.seed.samples[:3] or [np.zeros(3)], self.number % 3 == 0
        self.seed.cls.from_generator(self.folder, iter(samples), 2, resume=resume, sync=False, **self.seed.options)
        return (None if resume else samples,)

    def _metadata(self, before: list | None) -> tuple:
        with open_map(self.folder) as m:
            m.metadata = {"a": 1}
        return (before,)


def _copied(sample: Any) -> Any:
    return sample.copy() if isinstance(sample, np.ndarray) else sample


def _bits(sample: Any) -> Any:
    """What tells samples of any dtype apart; structured ones have bytes between their fields that nobody copies."""
    if not isinstance(sample, np.ndarray | np.generic):
        return repr(sample)
    if sample.dtype.names is not None:
        try:
            return [_bits(sample[name]) for name in sample.dtype.names]
        except ValueError:  # more axes than NumPy 1.26 can have
            return sample.tobytes()
    raw = sample.tobytes()
    if sample.dtype.char in "gG":  # long doubles: 80 bits in 16 bytes, of which NumPy copies 10 of a scalar
        used = slice(10) if sample.dtype.isnative else slice(-10, None)
        raw = np.frombuffer(raw, np.uint8).reshape(-1, 16)[:, used].tobytes()
    return str(sample.dtype), sample.shape, raw
