"""One folder and the lists that it has to equal, whatever is done to it."""

import errno
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

import plain_reader
from faults import Disk, Strike
from mmap_ninja import open_map
from mmap_ninja.errors import MapChangedError, MapNotFoundError, PartBuiltError, PartBuiltWarning, UpgradeWarning
from model.kinds import Kind, same
from test_golden import FORMAT_1, GOLDEN


@dataclass
class Stored:
    """A map, finished or not, as plain values."""

    samples: list
    metadata: dict = field(default_factory=dict)
    id: str | None = None
    is_compressed: bool = False


@dataclass
class Handle:
    """An open map, and what it has to show: the first `length` samples of `stored`."""

    m: object
    stored: Stored | None
    length: int

    @property
    def view(self) -> list:
        return [] if self.stored is None else self.stored.samples[: self.length]

    @property
    def is_armed(self) -> bool:
        """Whether it has assigned values whose checksums are not renewed yet."""
        return self.m._patches is not None


class Stop(Exception):
    """What a generator raises."""


def stopping(samples: list) -> Iterator:
    yield from samples
    raise Stop


class Interrupted(KeyboardInterrupt):
    """Ctrl-C at a chosen call; no other one is caught by these tests."""


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt() -> None:
    raise Interrupted


def without_frames(error: BaseException) -> BaseException:
    """Frames keep maps alive until the garbage collector comes: then files are closed at any moment, and counted."""
    return error.with_traceback(None)


FAULTS = [no_space, interrupt]
faults = st.none() | st.none() | st.tuples(st.integers(0, 25), st.sampled_from(FAULTS))
metadata = st.sampled_from([{}, {"split": "train"}, {"a": [1, None, {"ö": 2.5}]}])


class State(RuleBasedStateMachine):
    """One folder, up to three handles of it, and the lists that they have to equal."""

    def __init__(self, kind: Kind, folder: Path, seen: dict[str, int]) -> None:
        super().__init__()
        self.kind, self.folder, self.seen = kind, folder, seen
        self.current: Stored | None = None  # the finished map
        self.part: Stored | None = None  # the build that was interrupted
        self.handles: list[Handle] = []

    # What is on the disk.

    @property
    def is_format_1(self) -> bool:
        return (self.folder / "type.ninja").exists() and not (self.folder / "manifest.json").exists()

    def finished(self) -> str | None:
        """The manifest of the finished map; a build whose publication was interrupted is one where there is none."""
        if (self.folder / "manifest.json").exists():
            return "manifest.json"
        if self.is_format_1 or not (self.folder / "building.json").exists():
            return None
        return None if "building" in plain_reader.fields(self.folder, "building.json") else "building.json"

    def committed(self) -> dict[str, bytes]:
        """The manifests and the committed range of every file that they name; of format 1 all files.

        A `building.json` of the very map that is finished is none: an empty map is published anew, and what an
        interrupted try has left is swept away by the next writer, whatever comes of its call.
        """
        found, id = {}, None
        for name in ("manifest.json", "building.json"):
            if not (self.folder / name).exists() or plain_reader.fields(self.folder, name)["id"] == id:
                continue
            id = plain_reader.fields(self.folder, name)["id"]
            found[name] = (self.folder / name).read_bytes()
            for file in plain_reader.fields(self.folder, name)["files"].values():
                if file["offset"] + file["size"]:
                    found[f"{name} {file['name']}"] = plain_reader.values(self.folder, file)
        if self.is_format_1:
            found |= {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        return found

    def adopt(
        self,
        samples: list,
        metadata: dict,
        *,
        was_committed: bool,
        may_be_new: bool = False,
        resumed: bool = False,
        compressed: bool = False,
    ) -> None:
        """After a fault: the old state is there or the new one, and nothing else."""
        fresh = self.fresh()
        before = self.current
        if fresh is None or fresh._snapshot.manifest.building is not None:
            assert before is None, "the finished map is gone"
        else:
            found, id = list(fresh), fresh._snapshot.manifest.id
            if before is not None and id == before.id:
                if not same(found, before.samples):
                    assert was_committed
                    assert same(found, samples)
                    before.samples[:] = samples
                assert fresh.metadata in ([before.metadata, metadata] if was_committed else [before.metadata])
                before.metadata = fresh.metadata
            else:
                assert may_be_new or before is None
                assert same(found, samples)
                assert fresh.metadata == metadata
                is_part = self.part is not None and self.part.id == id  # which was resumed to the end
                self.current = self.part if is_part else Stored([], id=id, is_compressed=compressed)
                self.current.samples[:], self.current.metadata = samples, metadata
        self.adopt_part(samples, resumed=resumed, compressed=compressed)

    def adopt_part(self, samples: list, *, resumed: bool = False, compressed: bool = False) -> None:
        """What is left of a build: batches from the start."""
        left = None
        if (self.folder / "building.json").exists() and self.finished() != "building.json":
            left = plain_reader.fields(self.folder, "building.json")
        if left is None or left.get("building", {}).get("upgrade") or (self.current and left["id"] == self.current.id):
            self.part = None
        elif self.part is None or left["id"] != self.part.id:
            assert left["length"] <= len(samples)
            self.part = Stored(samples[: left["length"]], left["metadata"], left["id"], compressed)
        else:
            assert left["length"] >= len(self.part.samples)
            assert resumed or left["length"] == len(self.part.samples)
            self.part.samples[:] = samples[: left["length"]] if resumed else self.part.samples
            self.part.metadata = left["metadata"]

    def fresh(self) -> object | None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                m = open_map(self.folder)
            except MapNotFoundError:
                return None
        is_part = m._snapshot.manifest.building is not None
        assert [warning.category for warning in caught] == [PartBuiltWarning] * is_part
        return m

    # Doing something, with or without a fault.

    def attempt(self, call: Callable[[], object], fault: tuple | None = None) -> tuple[object, Disk | None]:
        """What the call returns or raises, and the calls that it made until a fault struck, None if none did."""
        self.was_format_1 = self.is_format_1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UpgradeWarning)
            warnings.simplefilter("ignore", PartBuiltWarning)
            if fault is None:
                try:
                    return call(), None
                except Exception as error:
                    return without_frames(error), None
            at, what = fault
            with Disk(Strike(at), what).installed() as double:
                try:
                    result = call()
                except (Exception, Interrupted) as error:
                    result = without_frames(error)
        was_struck = len(double.calls) > at and isinstance(result, BaseException)
        if was_struck and not isinstance(result, Interrupted):
            was_struck = isinstance(result, OSError) and result.errno == errno.ENOSPC
        if was_struck:
            self.count("struck")
            assert isinstance(result, Interrupted if what is interrupt else OSError)
        return result, double if was_struck else None

    def swept(self) -> None:
        """An upgrade begins with its own `building.json`, and sweeps away what another build has left."""
        if self.was_format_1 and not self.is_format_1:
            self.part = None

    def was_committed(self, double: Disk, fault: tuple) -> bool:
        """Whether a manifest took its place before the fault; a first build counts from its last `building.json`."""
        names = {"manifest.json"} | ({"building.json"} if self.current is None else set())
        return any(call[0] == "replace" and call[1] in names for call in double.calls[: fault[0]])

    def refused(self, error: object, expected: type | tuple, before: dict, handle: Handle | None = None) -> None:
        """A call that raised has changed nothing."""
        self.count(type(error).__name__)
        assert isinstance(error, expected), repr(error)
        after = self.committed()
        if handle is None or not handle.was_armed:
            assert after == before
        else:  # what was assigned before has got its checksums, which is a commit of its own
            drop = ("manifest.json", "building.json")
            assert {k: v for k, v in after.items() if k not in drop} == {
                k: v for k, v in before.items() if k not in drop
            }

    def count(self, what: str) -> None:
        self.seen[what] = self.seen.get(what, 0) + 1

    def pick(self, data: st.DataObject, handles: list[Handle] | None = None) -> Handle:
        """One of the handles, or of these."""
        some = self.handles if handles is None else handles
        handle = some[data.draw(st.integers(0, len(some) - 1), label="handle")]
        handle.was_armed = handle.is_armed
        return handle

    def refusal(self, handle: Handle) -> type[Exception] | None:
        """What every write through this handle has to raise now."""
        if self.current is None and self.part is not None and self.part.samples:
            return PartBuiltError
        there = self.part if self.current is None else self.current
        if self.current is None and self.part is not None and handle.stored is not None and not handle.stored.samples:
            return None  # neither the handle nor the build has a sample that could be lost
        if handle.stored is not None and handle.stored is not there:
            return MapChangedError
        return None

    def given(self, samples: list, data: st.DataObject, *, is_first: bool) -> list:
        """The samples as they are given: the first one of a map decides about its dtype, so it is given as it is."""
        numbers = data.draw(st.lists(st.integers(0, 4), min_size=len(samples), max_size=len(samples)))
        numbers[: is_first and 1] = [0] * (is_first and len(samples) > 0)
        return [self.kind.forms(sample, number) for sample, number in zip(samples, numbers, strict=True)]

    def with_bad(self, samples: list, data: st.DataObject, *, after: int) -> tuple[list, int]:
        """The samples with one among them that has to be refused, and where it is."""
        at = data.draw(st.integers(after, len(samples)), label="bad at")
        return [*samples[:at], data.draw(st.sampled_from(self.kind.bad), label="bad"), *samples[at:]], at

    # How it begins.

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        starts = ["nothing", "begun", "made"] + ["format 1"] * (self.kind.format_1 is not None)
        start = data.draw(st.sampled_from(starts), label="start")
        if start == "format 1":
            shutil.copytree(GOLDEN / self.kind.format_1, self.folder)
            samples = list(FORMAT_1[self.kind.format_1].samples)
            self.current = Stored(samples, is_compressed=self.kind.is_compressed)
        elif start == "made":
            samples = data.draw(st.lists(self.kind.good, min_size=1, max_size=5))
            made = self.kind.cls.from_generator(self.folder, iter(samples), 100, sync=False, **self.kind.options)
            self.current = Stored(samples, is_compressed=self.kind.is_compressed)
            self.handles.append(Handle(made, self.current, len(samples)))
        elif start == "begun":
            samples = data.draw(st.lists(self.kind.good, min_size=1, max_size=5))
            with suppress(Stop):
                self.kind.cls.from_generator(self.folder, stopping(samples), 1, **self.kind.options)
            self.adopt_part(samples, compressed=self.kind.is_compressed)
            assert self.part is not None
            assert len(self.part.samples) == len(samples)
        for mode in ("r", "r+"):
            self.open(mode)

    def open(self, mode: str) -> Handle:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartBuiltWarning)
            m = self.kind.cls(self.folder, mode=mode)
        there = self.part if self.current is None else self.current
        handle = Handle(m, there, 0 if there is None else len(there.samples))
        self.handles.append(handle)
        del self.handles[:-3]
        return handle

    def only(self, committed: dict[str, bytes], name: str) -> dict[str, bytes]:
        return {key: value for key, value in committed.items() if key.startswith(name)}
