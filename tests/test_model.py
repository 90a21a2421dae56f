"""Everything that can be done to a map, in any order, against a plain list: what a call that raised has changed
(nothing), what every handle sees, and what an index means."""

import errno
import itertools
import operator
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import plain_reader
import strategies
from contracts import same as same_sample
from faults import Disk, Strike
from mmap_ninja import (
    BytesMmap,
    DenseMmap,
    RaggedMmap,
    StringsMmap,
    np_append,
    np_extend,
    np_extend_dir,
    np_from_generator,
    np_from_ndarray,
    np_open_existing,
    open_map,
    upgrade,
)
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    IndexTypeError,
    MapChangedError,
    MapNotFoundError,
    MapReadOnlyError,
    PartBuiltError,
    PartBuiltWarning,
    SampleError,
    SampleIndexError,
    SampleTypeError,
    UpgradeWarning,
)
from test_golden import FORMAT_1, GOLDEN
from test_lossless import bits, exact, representable

EXAMPLES, STEPS = 18, 14  # of each kind, in the normal suite
LONG_EXAMPLES, LONG_STEPS = 400, 40
INDICES, LONG_INDICES = 100, 3_000  # of each kind, eight at a time
ROUND_TRIPS, LONG_ROUND_TRIPS = 6, 200  # of each dtype
BATCHES, LONG_BATCHES = 80, 3_000

# Without shrinking, which takes minutes here: add Phase.shrink to make a failure smaller.
quiet = settings(
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def same(found: list, expected: list) -> bool:
    return len(found) == len(expected) and all(map(same_sample, found, expected))


# -- the kinds -------------------------------------------------------------------------------------------------------


@dataclass
class Kind:
    """What the machine has to know about one kind of map."""

    cls: type
    good: st.SearchStrategy  # samples as they read, each of the dtype of the map
    bad: list  # what it has to refuse
    forms: Callable  # (sample, number) -> the sample as it may be given too
    like: Callable  # (sample, data) -> another one of the same size
    format_1: str | None = None
    options: dict = field(default_factory=dict)
    is_assignable: bool = True

    @property
    def is_dense(self) -> bool:
        return self.cls is DenseMmap


def read(array: np.ndarray) -> object:
    """As a ragged map reads it."""
    return array.item() if array.ndim == 0 and array.dtype.kind in "biuf" else array


def filled(dtype: str, values: list) -> Callable[[tuple[int, ...], list], np.ndarray]:
    """Arrays of any shape from a few values, given by their bits."""
    pool = np.array(values, f"<u{np.dtype(dtype).itemsize}").view(dtype)
    return lambda shape, picks: np.resize(pool[picks], shape)


def forms_of_arrays(dtype: str) -> Callable[[object, int], object]:
    dtype = np.dtype(dtype)

    def forms(sample: object, number: int) -> object:
        array = np.asarray(sample, dtype)
        if number == 1:
            return array.astype(dtype.newbyteorder())
        if number == 2:
            return np.asfortranarray(array) if array.ndim else array[()]
        if number == 3:
            wide = np.zeros((*array.shape, 3), dtype)
            wide[..., 1] = array
            return wide[..., 1]
        if number == 4 and dtype.kind == "i" and array.size:
            return array.tolist()
        return array

    return forms


def like_array(dtype: str, make: Callable) -> Callable:
    def like(sample: object, data: st.DataObject) -> object:
        array = make(np.shape(sample), data.draw(picks))
        if array.ndim and data.draw(st.booleans(), label="flat"):
            return array, array.reshape(-1)  # as it reads, as it is given
        return read(array), forms_of_arrays(dtype)(array, data.draw(st.integers(0, 4)))

    return like


def like_text(encode: Callable, decode: Callable) -> Callable:
    def like(sample: object, data: st.DataObject) -> object:
        letter = data.draw(st.sampled_from("xyz"))
        other = decode((letter * len(encode(sample))).encode())
        return other, other

    return like


INTEGERS = [0, 1, 2**63, 2**64 - 1, 2**31, 7]
FLOATS = [0, 0x80000000, 0x7FC00001, 0xFFA00000, 0x3F800000, 1, 0x7F7FFFFF, 0xFF800000]  # −0, NaNs with payloads ...
SMALL = [0, 1, 2**31, 2**32 - 1, 500]
mixed, floats, small = filled("<i8", INTEGERS), filled("<f4", FLOATS), filled("<i4", SMALL)
picks = st.lists(st.integers(0, 4), min_size=1, max_size=4)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
TEXTS = ["", "a", "b" * 40, "zwölf", "🥧\0", "\r\n"]
texts = st.sampled_from(TEXTS)
NO_ARRAYS = [None, {"a": 1}, np.array([None]), "text", np.ma.array([1, 2], mask=[True, False])]

KINDS = {
    "mixed": Kind(
        RaggedMmap,
        st.builds(lambda shape, few: read(mixed(shape, few)), shapes, picks),
        [np.array([0.5]), np.array([2**63], "u8"), np.array([1j]), [1, 2.5], *NO_ARRAYS],
        forms_of_arrays("<i8"),
        like_array("<i8", mixed),
        "1-ragged-mixed",
    ),
    "floats": Kind(
        RaggedMmap,
        st.builds(lambda n, few: floats((n,), few), st.integers(0, 4), picks),
        [np.array([0.1]), np.array([2**24 + 1]), np.array(["a"]), [1 + 2j], *NO_ARRAYS],
        forms_of_arrays("<f4"),
        like_array("<f4", floats),
        "1-ragged",
    ),
    "dense": Kind(
        DenseMmap,
        st.builds(lambda few: small((2, 3), few), picks),
        [np.zeros(3, "<i4"), np.zeros((3, 2), "<i4"), np.full((2, 3), 0.5), np.full((2, 3), 2**31), *NO_ARRAYS],
        forms_of_arrays("<i4"),
        like_array("<i4", small),
        "1-dense",
    ),
    "strings": Kind(
        StringsMmap,
        texts,
        [None, b"a", 5, "\ud800", np.array(["a"])],
        lambda sample, number: sample,
        like_text(str.encode, bytes.decode),
        "1-strings",
    ),
    "bytes": Kind(
        BytesMmap,
        texts.map(str.encode),
        [None, "a", 5, np.array([1], "u1")],
        lambda sample, number: [sample, bytearray(sample), memoryview(sample)][number % 3],
        like_text(bytes, bytes),
    ),
    "zstd": Kind(
        StringsMmap,
        texts,
        [None, b"a", 5, "\ud800", np.array(["a"])],
        lambda sample, number: sample,
        like_text(str.encode, bytes.decode),
        "1-strings-zstd",
        {"zstd_level": 5},
        is_assignable=False,
    ),
}


# -- the model -------------------------------------------------------------------------------------------------------


@dataclass
class Stored:
    """A map, finished or not, as plain values."""

    samples: list
    metadata: dict = field(default_factory=dict)
    id: str | None = None


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


class Interrupted(KeyboardInterrupt):
    """Ctrl-C at a chosen call; no other one is caught by these tests."""


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt() -> None:
    raise Interrupted


FAULTS = [no_space, interrupt]
faults = st.none() | st.none() | st.tuples(st.integers(0, 25), st.sampled_from(FAULTS))
metadata = st.sampled_from([{}, {"split": "train"}, {"a": [1, None, {"ö": 2.5}]}])


class Machine(RuleBasedStateMachine):
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
        """The manifests and the committed range of every file that they name; of format 1 all files."""
        found = {}
        for name in ("manifest.json", "building.json"):
            if not (self.folder / name).exists():
                continue
            found[name] = (self.folder / name).read_bytes()
            for file in plain_reader.fields(self.folder, name)["files"].values():
                if file["offset"] + file["size"]:
                    found[f"{name} {file['name']}"] = plain_reader.values(self.folder, file)
        if self.is_format_1:
            found |= {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        return found

    def adopt(self, samples: list, metadata: dict, *, was_committed: bool, may_be_new: bool, resumed: bool) -> None:
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
                self.current = self.part if is_part else Stored([], id=id)
                self.current.samples[:], self.current.metadata = samples, metadata
        self.adopt_part(samples, resumed=resumed)

    def adopt_part(self, samples: list, *, resumed: bool) -> None:
        """What is left of a build: batches from the start."""
        left = None
        if (self.folder / "building.json").exists() and self.finished() != "building.json":
            left = plain_reader.fields(self.folder, "building.json")
        if left is None or left.get("building", {}).get("upgrade") or (self.current and left["id"] == self.current.id):
            self.part = None
        elif self.part is None or left["id"] != self.part.id:
            assert left["length"] <= len(samples)
            self.part = Stored(samples[: left["length"]], left["metadata"], left["id"])
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UpgradeWarning)
            warnings.simplefilter("ignore", PartBuiltWarning)
            if fault is None:
                try:
                    return call(), None
                except Exception as error:
                    return error, None
            at, what = fault
            with Disk(Strike(at), what).installed() as double:
                try:
                    result = call()
                except (Exception, Interrupted) as error:
                    result = error
        was_struck = len(double.calls) > at and isinstance(result, BaseException)
        if was_struck and not isinstance(result, Interrupted):
            was_struck = isinstance(result, OSError) and result.errno == errno.ENOSPC
        if was_struck:
            self.count("struck")
            assert isinstance(result, Interrupted if what is interrupt else OSError)
        return result, double if was_struck else None

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

    def pick(self, data: st.DataObject) -> Handle:
        handle = self.handles[data.draw(st.integers(0, len(self.handles) - 1), label="handle")]
        handle.was_armed = handle.is_armed
        return handle

    def refusal(self, handle: Handle) -> type[Exception] | None:
        """What every write through this handle has to raise now."""
        if self.current is None and self.part is not None and self.part.samples:
            return PartBuiltError
        there = self.part if self.current is None else self.current
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
        start = data.draw(st.sampled_from(["nothing", "made", "format 1"]), label="start")
        if start == "format 1" and self.kind.format_1:
            shutil.copytree(GOLDEN / self.kind.format_1, self.folder)
            self.current = Stored(list(FORMAT_1[self.kind.format_1].samples))
        elif start != "nothing":
            samples = data.draw(st.lists(self.kind.good, min_size=1, max_size=5))
            made = self.kind.cls.from_generator(self.folder, iter(samples), 100, sync=False, **self.kind.options)
            self.current = Stored(samples)
            self.handles.append(Handle(made, self.current, len(samples)))
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

    # Growing.

    @rule(data=st.data(), fault=faults, sync=st.booleans(), is_bad=st.integers(0, 3).map(lambda n: n == 0))
    def extend(self, data: st.DataObject, fault: tuple | None, sync: bool, is_bad: bool) -> None:
        handle = self.pick(data)
        samples = data.draw(st.lists(self.kind.good, max_size=4), label="samples")
        is_first = handle.length == 0
        given = self.given(samples, data, is_first=is_first)
        is_bad = is_bad and len(samples) >= is_first
        if is_bad:
            given, _ = self.with_bad(given, data, after=int(is_first))
        way = data.draw(st.sampled_from(["extend", "iterator", "append", "np"]), label="way")
        if way == "append" and len(given) == 1:
            call = lambda: handle.m.append(given[0], sync=sync)
        elif way == "np" and self.kind.is_dense and handle.length and not is_bad and not handle.is_armed:
            call = lambda: np_extend_dir(self.folder, given, sync=sync)
            if self.current is None or handle.stored is not self.current:
                return
        else:
            call = lambda: handle.m.extend(iter(given) if way == "iterator" else given, sync=sync)
        before, refusal = self.committed(), self.refusal(handle)
        result, double = self.attempt(call, fault)
        there = self.part if self.current is None else self.current
        new = [*([] if there is None else there.samples), *samples]
        known = {} if there is None else there.metadata
        if double is not None:
            is_done = self.was_committed(double, fault)
            if not is_done and not self.is_format_1 and there is not None and self.current is not None:
                assert self.only(self.committed(), "manifest.json") == self.only(before, "manifest.json")
            self.adopt(new, known, was_committed=is_done, may_be_new=False, resumed=True)
            return
        if refusal is not None and (handle.was_armed or (given and not is_bad)):
            self.refused(result, refusal, before, handle)
        elif is_bad:
            self.refused(result, (SampleError, SampleTypeError), before, handle)
        elif not given:
            assert result is None, repr(result)
            if not handle.was_armed:
                assert self.committed() == before
        else:
            assert result is None, repr(result)
            self.count("extended")
            self.grow(samples, handle)
            if way != "np" or not call.__code__.co_freevars or handle.m._snapshot.length == len(new):
                handle.stored, handle.length = self.current, len(new)

    def only(self, committed: dict[str, bytes], name: str) -> dict[str, bytes]:
        return {key: value for key, value in committed.items() if key.startswith(name)}

    def grow(self, samples: list, handle: Handle) -> None:
        if self.current is None:
            self.current, self.part = Stored([]) if handle.stored is None else handle.stored, None
        elif not self.current.samples:
            self.part = None  # an empty map is published anew, and a build beside it is swept away
        self.current.samples.extend(samples)

    # Assigning.

    @rule(data=st.data(), fault=faults)
    def assign(self, data: st.DataObject, fault: tuple | None) -> None:
        handle = self.pick(data)
        n = handle.length
        chosen = data.draw(st.lists(st.integers(0, n - 1), max_size=3), label="chosen") if n else []
        form = data.draw(st.sampled_from(["one", "list", "slice", "mask", "wrong"]), label="form")
        index, chosen = as_index(form, chosen, n, data)
        pairs = [self.kind.like(handle.view[i], data) for i in chosen]
        values = [value for _, value in pairs]
        wrong = None
        if form == "wrong":
            wrong = (SampleError, SampleTypeError, SampleIndexError)
            values = data.draw(st.sampled_from([[None], [object()], [values, values], None, 5]), label="wrong values")
        value = values[0] if form == "one" and chosen else values

        def call() -> None:
            handle.m[index] = value

        before, refusal = self.committed(), self.refusal(handle)
        armed = handle.is_armed
        result, double = self.attempt(call, fault)
        new = {i: sample for i, (sample, _) in zip(chosen, pairs, strict=True)}
        if double is not None:
            self.assigned_in_part(handle, new)
        elif handle.m.mode == "r":
            self.refused(result, MapReadOnlyError, before)
        elif wrong is not None:
            errors = wrong if self.kind.is_assignable else (*wrong, MapReadOnlyError)
            self.refused(result, errors, before)
        elif not chosen:
            assert result is None, repr(result)
            assert self.committed() == before
        elif not self.kind.is_assignable:
            self.refused(result, MapReadOnlyError, before)
        elif refusal is not None and not armed:
            self.refused(result, refusal, before)
        else:
            assert result is None, repr(result)
            self.count("assigned")
            for i, sample in new.items():
                handle.stored.samples[i] = sample

    def assigned_in_part(self, handle: Handle, new: dict[int, object]) -> None:
        """Each assigned sample is the old one or the new one."""
        for i, sample in new.items():
            found = handle.m[i]
            assert same_sample(found, sample) or same_sample(found, handle.stored.samples[i])
            if same_sample(found, sample):
                handle.stored.samples[i] = sample
        if self.current is not None:
            known = self.current
            self.adopt(known.samples, known.metadata, was_committed=True, may_be_new=False, resumed=False)

    # What a map says about itself, and when it is durable.

    @rule(data=st.data(), value=metadata, fault=faults, is_bad=st.booleans())
    def describe(self, data: st.DataObject, value: dict, fault: tuple | None, is_bad: bool) -> None:
        handle = self.pick(data)
        wrong = data.draw(st.sampled_from([{"a": object()}, {"a": float("nan")}, 5, None]), label="wrong")
        before, refusal = self.committed(), self.refusal(handle)

        def call() -> None:
            handle.m.metadata = wrong if is_bad else value

        result, double = self.attempt(call, fault)
        if double is not None:
            samples = [] if self.current is None else self.current.samples
            is_done = self.was_committed(double, fault)
            self.adopt(samples, value, was_committed=is_done, may_be_new=False, resumed=False)
        elif is_bad:
            self.refused(result, ArgumentTypeError, before)
        elif handle.stored is None:
            self.refused(result, MapNotFoundError, before)
        elif refusal is not None:
            self.refused(result, refusal, before, handle)
        else:
            assert result is None, repr(result)
            self.count("described")
            self.grow([], handle)
            self.current.metadata = value
            handle.stored, handle.length = self.current, len(self.current.samples)

    @rule(data=st.data(), fault=faults, how=st.sampled_from(["flush", "flush", "close"]))
    def flush(self, data: st.DataObject, fault: tuple | None, how: str) -> None:
        handle = self.pick(data)
        is_due = handle.is_armed or handle.m._is_unsynced
        before, refusal = self.committed(), self.refusal(handle)
        result, double = self.attempt(getattr(handle.m, how), fault)
        if double is not None:
            if self.current is not None:
                known = self.current
                self.adopt(known.samples, known.metadata, was_committed=True, may_be_new=False, resumed=False)
        elif refusal is not None and is_due:
            self.refused(result, refusal, before, handle)
        else:
            assert result is None, repr(result)
            self.count(how)
            if self.current is not None and not self.current.samples:
                self.adopt_part([], resumed=False)  # an empty map is published anew
        if how == "close":
            mode = handle.m.mode
            self.handles.remove(handle)
            self.open(mode)

    # Handles.

    @rule(data=st.data())
    def refresh(self, data: st.DataObject) -> None:
        handle = self.pick(data)
        there = self.part if self.current is None else self.current
        result, _ = self.attempt(handle.m.refresh)
        assert result is None, repr(result)
        if there is not None:
            handle.stored, handle.length = there, len(there.samples)

    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        """Through pickle, as to a worker."""
        handle = self.pick(data)
        raw = pickle.dumps(handle.m)
        assert len(raw) < 2048
        result, _ = self.attempt(lambda: pickle.loads(raw))
        there = self.part if self.current is None else self.current
        if handle.stored is not None and handle.stored is not there:
            assert isinstance(result, MapChangedError), repr(result)
            self.count("MapChangedError of a pickle")
        elif handle.stored is None:
            self.handles.append(Handle(result, None, 0))
        else:
            self.handles.append(Handle(result, handle.stored, handle.length))
        del self.handles[:-3]

    @rule(mode=st.sampled_from(["r", "r+"]))
    def open_another(self, mode: str) -> None:
        self.open(mode)

    # Making and replacing.

    @rule(
        data=st.data(),
        fault=faults,
        how=st.sampled_from(["whole", "whole", "at once", "stops", "bad", "resume", "resume", "nothing"]),
        size=st.sampled_from([1, 2, 3, 100]),
        about=metadata,
    )
    def build(self, data: st.DataObject, fault: tuple | None, how: str, size: int, about: dict) -> None:
        samples = [] if how == "nothing" else data.draw(st.lists(self.kind.good, min_size=1, max_size=6))
        is_resumed = how == "resume" and self.part is not None
        start = 0
        if is_resumed:
            start = len(self.part.samples)
            samples = [*self.part.samples, *samples]
        given = self.given(samples, data, is_first=True)
        stop = None
        if how == "stops" or (how == "resume" and data.draw(st.integers(0, 2)) == 0):
            stop = data.draw(st.integers(start, len(samples)), label="stops at")
        elif how == "bad":
            given, stop = self.with_bad(given, data, after=1)
        source = list(given)

        def generate() -> Iterator:
            yield from itertools.islice(source, stop if how != "bad" else None)
            if stop is not None and how != "bad":
                raise Stop

        before = self.committed()
        call = lambda: self.make(how, generate, given, size, about, sync=bool(size % 2))
        result, double = self.attempt(call, fault)
        known = about if about or not is_resumed else self.part.metadata
        if double is not None:
            is_done = self.was_committed(double, fault)
            if not is_done:
                assert self.only(self.committed(), "manifest.json") == self.only(before, "manifest.json")
            self.adopt(samples, known, was_committed=is_done, may_be_new=is_done, resumed=is_resumed)
        elif stop is not None:
            self.count(f"{how} fails")
            assert isinstance(result, (SampleError, SampleTypeError) if how == "bad" else Stop), repr(result)
            assert self.only(self.committed(), "manifest.json") == self.only(before, "manifest.json")
            kept = start + (stop - start) // size * size
            if kept > start or is_resumed:
                self.adopt_part(samples[:kept], resumed=is_resumed)
                assert self.part is not None
                assert len(self.part.samples) == kept
            elif "building.json" not in before:  # else it may have been that of an upgrade, which is swept away
                assert self.committed() == before
            else:
                assert self.only(self.committed(), "manifest.json") == self.only(before, "manifest.json")
                self.adopt_part([], resumed=False)
        else:
            assert type(result) in (self.kind.cls, np.memmap) or self.kind.is_dense, repr(result)
            self.count("resumed" if is_resumed else "made")
            self.current = self.part if is_resumed else Stored([])
            self.current.samples[:], self.current.metadata = samples, known
            self.part = None
            if type(result) is self.kind.cls:
                assert len(result) == len(samples)
                self.handles.append(Handle(result, self.current, len(samples)))
                del self.handles[:-3]
            else:
                assert same(list(np.asarray(result)), samples)

    def make(self, how: str, generate: Callable, given: list, size: int, about: dict, *, sync: bool) -> object:
        cls, options = self.kind.cls, {**self.kind.options, "metadata": about, "sync": sync}
        if how == "at once" and not self.kind.is_dense:
            name = {RaggedMmap: "from_lists", StringsMmap: "from_strings", BytesMmap: "from_bytes"}[cls]
            return getattr(cls, name)(self.folder, given, **options)
        if how == "at once":
            return cls.from_ndarray(self.folder, np.stack(list(map(np.asarray, given))).astype("<i4"), **options)
        if how == "whole" and self.kind.is_dense and not about and size == 2:
            return np_from_generator(self.folder, generate(), size)
        return cls.from_generator(self.folder, generate(), size, resume=how == "resume", **options)

    @rule(fault=faults)
    def upgrade(self, fault: tuple | None) -> None:
        before, was_format_1 = self.committed(), self.is_format_1
        result, double = self.attempt(lambda: upgrade(self.folder), fault)
        if double is not None:
            known = self.current
            self.adopt(known.samples, known.metadata, was_committed=True, may_be_new=False, resumed=False)
        elif self.current is None and self.part is None:
            self.refused(result, MapNotFoundError, before)
        else:
            assert result is was_format_1
            assert was_format_1 or self.committed() == before
            self.count("upgraded" if was_format_1 else "nothing to upgrade")

    # Reading.

    @rule(data=st.data())
    def index(self, data: st.DataObject) -> None:
        handle = self.pick(data)
        for index in data.draw(st.lists(indices(handle.length), min_size=2, max_size=6), label="indices"):
            self.count(check_index(handle.m, handle.view, index, is_dense=self.kind.is_dense))

    @rule(data=st.data())
    def look_for(self, data: st.DataObject) -> None:
        handle = self.pick(data)
        assert same(list(reversed(handle.m)), handle.view[::-1])
        if handle.view:
            sample = handle.view[data.draw(st.integers(0, handle.length - 1))]
            has_nan = isinstance(sample, np.ndarray) and sample.dtype.kind == "f" and np.isnan(sample).any()
            assert (sample in handle.m) or has_nan
        assert handle.m.lengths.tolist() == [length_of(sample) for sample in handle.view]

    # What always holds.

    @invariant()
    def every_handle_equals_its_list(self) -> None:
        for handle in self.handles:
            assert len(handle.m) == handle.length
            assert same(list(handle.m), handle.view)

    @invariant()
    def a_fresh_open_equals_the_list(self) -> None:
        fresh = self.fresh()
        there = self.part if self.current is None else self.current
        if there is None:
            assert fresh is None
            return
        manifest = fresh._snapshot.manifest
        assert (manifest.building is not None) == (self.current is None)
        assert same(list(fresh), there.samples)
        assert fresh.metadata == there.metadata
        if there.id is None or manifest.format_1:
            there.id = manifest.id
        if self.kind.format_1 is None or not self.is_format_1:
            assert manifest.id == there.id

    @invariant()
    def every_checksum_is_right(self) -> None:
        for name in ("manifest.json", "building.json"):
            if (self.folder / name).exists():
                plain_reader.check(self.folder, name)

    def teardown(self) -> None:
        for handle in self.handles:
            handle.m._patches = None  # nothing to flush into a folder that goes away
            handle.m._is_unsynced = False
            handle.m.close()
        self.count("machines")
        shutil.rmtree(self.folder, ignore_errors=True)


def length_of(sample: object) -> int:
    if isinstance(sample, str):
        return len(sample.encode())
    return len(sample) if np.ndim(sample) or isinstance(sample, bytes) else 1


# -- what an index means ---------------------------------------------------------------------------------------------


@dataclass
class One:
    sample: object


def expectation(samples: list, index: object) -> object:
    """`One` sample, a list of them, or the type of the error: by what lists and NumPy do, not by our code."""
    n = len(samples)
    if isinstance(index, bool | np.bool_ | float | np.floating | str | tuple) or index is None or index is Ellipsis:
        return IndexTypeError
    if isinstance(index, slice):
        parts = [part for part in (index.start, index.stop, index.step) if part is not None]
        if any(isinstance(part, bool | np.bool_ | float | str) for part in parts):
            return IndexTypeError
        return ArgumentError if index.step == 0 and index.step is not None else samples[index]
    if isinstance(index, np.ndarray) and (index.ndim > 1 or index.dtype.kind not in "biu"):
        return IndexTypeError
    if isinstance(index, int | np.integer) or (isinstance(index, np.ndarray) and index.ndim == 0):
        if isinstance(index, np.ndarray) and index.dtype.kind == "b":
            return IndexTypeError
        try:
            return One(samples[operator.index(index)])
        except IndexError:
            return SampleIndexError
    if isinstance(index, list) and any(isinstance(each, float | str | list | type(None)) for each in index):
        return IndexTypeError
    try:
        return [
            samples[i]
            for i in np.arange(n)[index if len(index) else np.zeros(len(index), getattr(index, "dtype", int))]
        ]
    except IndexError:
        return SampleIndexError


def check_index(m: object, samples: list, index: object, *, is_dense: bool) -> str:
    """Compare `m[index]`, and `m.take(index)` where that is the same, with what is expected; returns what that was."""
    note(f"m[{index!r}] of {len(samples)}")
    expected = expectation(samples, index)
    is_many = isinstance(index, list | range | slice) or (isinstance(index, np.ndarray) and index.ndim > 0)
    for read_by in [operator.getitem] + [lambda m, index: m.take(index)] * is_many:
        if isinstance(expected, type):
            with pytest.raises(expected, match=r"out of range|indexed by|mask of|step of a slice"):
                read_by(m, index)
        elif isinstance(expected, One):
            assert same_sample(read_by(m, index), expected.sample)
        elif is_dense:
            found = read_by(m, index)
            assert isinstance(found, np.ndarray)
            assert same(list(found), expected)
        else:
            found = read_by(m, index)
            assert isinstance(found, list)
            assert same(found, expected)
    return (
        f"index {expected.__name__}" if isinstance(expected, type) else "one" if isinstance(expected, One) else "many"
    )


NUMBERS = [int, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.array]


WRONG_TYPES = [True, np.False_, 0.0, np.float32(1), None, Ellipsis, "0", (0,), (), [0.5], ["a"], [None], [[0]]]
WRONG_TYPES += [np.array(True), np.array(0.0), np.array([1.0]), np.array([], float), np.zeros((0, 0), int)]
WRONG_TYPES += [slice("a"), slice(0.5, 2), slice(True, 2)]


def indices(n: int) -> st.SearchStrategy:
    """What may stand between the brackets, right and wrong, for a map of n samples."""
    near = st.integers(-n - 2, n + 1) | st.sampled_from([-n - 1, n])
    many = st.lists(near, max_size=3)
    many |= st.lists(st.integers(-n, n - 1), max_size=4) if n else st.just([])

    def numbered(i: int, kind: Callable) -> object:
        return kind(i if i >= 0 or kind in (int, np.array) or np.iinfo(kind).min < 0 else -i)

    def array(few: list, dtype: str) -> np.ndarray:
        return np.array([abs(i) for i in few] if dtype.startswith("u") else few, dtype)

    masks = st.lists(st.booleans(), min_size=n, max_size=n) | st.lists(st.booleans(), min_size=1, max_size=n + 2)
    bounds = st.none() | near | near.map(np.int64) | st.sampled_from([2**70, -(2**70)])
    return st.one_of(
        st.builds(numbered, near, st.sampled_from(NUMBERS)),
        st.sampled_from([2**63, 2**64, -(2**70), np.uint64(2**64 - 1), np.array(n), np.array(-1, ">i2")]),
        st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, -1, -3, np.int8(-2), 5, 0])),
        many,
        st.builds(array, many, st.sampled_from(["i1", "u1", ">i4", "u8", "i8"])),
        st.builds(range, near, near, st.sampled_from([1, 2, -1])),
        masks,
        masks.map(np.array),
        st.sampled_from(WRONG_TYPES),
        st.sampled_from([np.zeros((n, n), bool), np.zeros((n, 1), int), slice(None, None, 0)]),
    )


def as_index(form: str, chosen: list[int], n: int, data: st.DataObject) -> tuple[object, list[int]]:
    """An index of the wanted form for these samples, and those that it means."""
    if form == "one" and chosen:
        i = chosen[0]
        return data.draw(st.sampled_from([i, i - n, np.int64(i), np.array(i)])), [i]
    if form == "slice" and n:
        index = slice(min(chosen, default=0), max(chosen, default=0) + 1, data.draw(st.sampled_from([1, 2])))
        return index, list(range(n))[index]
    if form == "mask" and n:
        mask = [i in chosen for i in range(n)]
        return np.array(mask), np.flatnonzero(mask).tolist()
    return data.draw(st.sampled_from([chosen, np.array(chosen, int)])), chosen


# -- running it ------------------------------------------------------------------------------------------------------


def run(kind: str, folder: Path, examples: int, steps: int) -> dict[str, int]:
    """Run the machine; returns how often it has seen what."""
    seen: dict[str, int] = {}
    numbers = itertools.count()
    run_state_machine_as_test(
        lambda: Machine(KINDS[kind], folder / f"map {next(numbers)}", seen),
        settings=settings(quiet, max_examples=examples, stateful_step_count=steps),
    )
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_done_the_map_equals_a_list(tmp_path: Path, kind: str) -> None:
    seen = run(kind, tmp_path, EXAMPLES, STEPS)
    assert seen["machines"] >= EXAMPLES / 2
    assert len(seen) > 12
    assert seen["struck"] > 0


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_done_the_map_equals_a_list_at_length(tmp_path: Path, kind: str) -> None:
    seen = run(kind, tmp_path, LONG_EXAMPLES, LONG_STEPS)
    print(kind, dict(sorted(seen.items())))
    wanted = {"extended", "made", "resumed", "struck", "SampleTypeError", "MapChangedError", "PartBuiltError", "many"}
    wanted |= {"index SampleIndexError", "index IndexTypeError", "index ArgumentError", "MapReadOnlyError", "described"}
    wanted |= {"assigned"} if KINDS[kind].is_assignable else set()
    wanted |= {"upgraded"} if KINDS[kind].format_1 else set()
    assert wanted <= set(seen)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_means_what_lists_and_numpy_say(tmp_path: Path, kind: str) -> None:
    index_all(kind, tmp_path, INDICES)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_means_what_lists_and_numpy_say_at_length(tmp_path: Path, kind: str) -> None:
    index_all(kind, tmp_path, LONG_INDICES)


def index_all(kind: str, folder: Path, examples: int) -> None:
    cls, options = KINDS[kind].cls, KINDS[kind].options
    pool = {"strings": TEXTS, "zstd": TEXTS, "bytes": list(map(str.encode, TEXTS))}.get(kind)
    if pool is None:
        pool = [{"mixed": mixed, "floats": floats, "dense": small}[kind]((2, 3), [i]) for i in range(5)]
    maps = [cls.from_generator(folder / str(n), iter(pool[:n]), 10, sync=False, **options) for n in range(6)]
    seen: set[str] = set()

    @settings(quiet, max_examples=examples)
    @given(data=st.data())
    def act(data: st.DataObject) -> None:
        n = data.draw(st.integers(0, 5), label="samples")
        for index in data.draw(st.lists(indices(n), min_size=8, max_size=8), label="indices"):
            seen.add(check_index(maps[n], pool[:n], index, is_dense=kind == "dense"))

    act()
    assert seen >= {"many", "index SampleIndexError", "index IndexTypeError", "index ArgumentError"}


# -- what the machine has found --------------------------------------------------------------------------------------


def build_and_stop(folder: Path, samples: list) -> None:
    """A build that is interrupted after these samples."""

    def generate() -> Iterator:
        yield from samples
        raise Stop

    with pytest.raises(Stop):
        RaggedMmap.from_generator(folder, generate(), 1)


def test_what_is_assigned_after_a_refresh_is_not_lost(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(3)])
    m[0] = np.array([7, 7, 7])
    RaggedMmap.from_lists(tmp_path / "map", [np.arange(10, 13)] * 2)
    m.refresh()
    m[0] = np.array([9, 9, 9])
    m.flush()
    assert open_map(tmp_path / "map")[0].tolist() == [9, 9, 9]
    plain_reader.check(tmp_path / "map")


def test_a_handle_of_a_replaced_map_is_closed_though_its_assignments_are_gone(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", [np.arange(3)])
    m[0] = np.array([7, 7, 7])
    RaggedMmap.from_lists(tmp_path / "map", [np.arange(2)])
    with pytest.raises(MapChangedError, match="was replaced since it was opened"):
        m.close()
    m.close()
    assert "closed" in repr(m)


def test_no_name_is_used_again_after_an_empty_map(tmp_path: Path) -> None:
    path = tmp_path / "map"
    RaggedMmap.from_lists(path, [np.arange(3)])
    names = plain_reader.names(path) - {"manifest.json"}
    RaggedMmap.from_lists(path, [])
    build_and_stop(path, [np.arange(4)] * 3)
    again = {file["name"] for file in plain_reader.fields(path, "building.json")["files"].values()}
    RaggedMmap.from_generator(path, iter([np.arange(4)] * 5), 2, resume=True)
    assert same(open_map(path)[:], [np.arange(4)] * 5)
    assert not names & again


def test_a_handle_of_a_part_that_was_begun_anew_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "map"
    build_and_stop(path, [np.arange(3)] * 2)
    with pytest.warns(PartBuiltWarning, match="the 2 samples"):
        m = RaggedMmap(path)
    for at in range(40):
        with Disk(Strike(at), no_space).installed(), suppress(OSError):
            RaggedMmap.from_generator(path, iter([np.arange(3)]), 1, sync=False)
        if plain_reader.fields(path, "building.json")["length"] == 0:
            break
    with pytest.raises(MapChangedError, match="was replaced"):
        m.append(np.arange(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [2**63, 2**64 - 1])
def test_an_integer_that_no_array_takes_is_out_of_range(tmp_path: Path, kind: str, index: int) -> None:
    sample = {"strings": "a", "zstd": "a", "bytes": b"a"}.get(kind, np.zeros((2, 3), "<i4"))
    m = KINDS[kind].cls.from_generator(tmp_path / "map", iter([sample]), 1, **KINDS[kind].options)
    with pytest.raises(SampleIndexError, match=f"index {index} is out of range for a map of 1 samples"):
        m[index]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("write", ["metadata", "append", "flush"])
def test_a_fault_leaves_the_headers_of_files_without_a_value(tmp_path: Path, write: str, fault: Callable) -> None:
    """Samples of no elements have a data file that is nothing but its header, and a reader may have it mapped."""
    for at in range(40):
        path = tmp_path / str(at)
        m = RaggedMmap.from_generator(path, iter([np.zeros((0, 3), int)]), 5, sync=False)
        call = {"metadata": lambda m=m: setattr(m, "metadata", {"a": 1}), "append": lambda m=m: m.append([[1, 2, 3]])}
        with Disk(Strike(at), fault).installed() as double, suppress(OSError, Interrupted):
            call.get(write, m.flush)()
        assert open_map(path)[0].shape == (0, 3)
        plain_reader.check(path)
    assert len(double.calls) <= at


# -- every dtype, through every way in -------------------------------------------------------------------------------


def stacked(dtype: np.dtype, data: st.DataObject) -> np.ndarray:
    """A few samples of one shape, in any layout."""
    shape = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple))
    array = data.draw(strategies.arrays(dtype, st.just(shape)))
    return array if array.ndim and len(array) else np.zeros((2, 2), dtype)


def found_bits(found: Iterator, dtype: np.dtype) -> list[bytes]:
    return [own_bits(np.asarray(sample, dtype)) for sample in found]


def own_bits(array: np.ndarray) -> bytes:
    """Every bit of every value; those between values are nobody's, and NumPy's copies need not keep them."""
    if array.dtype.char in "gG":
        return np.ascontiguousarray(array).reshape(-1).view("u1").reshape(-1, 16)[:, :10].tobytes()
    if array.dtype.names and array.dtype.itemsize > sum(array.dtype[name].itemsize for name in array.dtype.names):
        return repr(array.tolist()).encode()
    return bits(array)


def ragged_round_trip(folder: Path, dtype: np.dtype, data: st.DataObject) -> None:
    """From a generator in batches, extended, appended to and assigned to, closed, and opened again."""
    arrays = data.draw(st.lists(strategies.arrays(dtype), min_size=1, max_size=5), label="arrays")
    size = data.draw(st.sampled_from([1, 2, 100]), label="batch size")
    m = RaggedMmap.from_generator(folder, iter(arrays), size, sync=False)
    m.extend(arrays, sync=False)
    m.append(arrays[-1], sync=False)
    expected = [*arrays, *arrays, arrays[-1]]
    for i in data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=2), label="assigned"):
        layout = data.draw(strategies.arrays(dtype, st.just(expected[i].shape)), label="value")
        if layout.shape == expected[i].shape:
            m[i] = expected[i] = layout
    m.close()
    again = RaggedMmap(folder)
    assert again.dtype == dtype
    assert [np.shape(sample) for sample in again] == [array.shape for array in expected]
    assert found_bits(again, dtype) == list(map(own_bits, expected))
    plain_reader.check(folder)


def dense_round_trip(folder: Path, dtype: np.dtype, data: st.DataObject) -> None:
    """Through the functions of 0.9.0, and assigned through what they return."""
    array = stacked(dtype, data)
    samples = [array[i, ...] for i in range(len(array))]  # arrays, also of no axes: scalars forget their byte order
    if data.draw(st.booleans(), label="generator"):
        memmap = np_from_generator(folder, iter(samples), 2)
    else:
        memmap = np_from_ndarray(folder, array)
    np_extend(memmap, array, sync=False)
    np_extend_dir(folder, array, sync=False)
    np_append(memmap, samples[0], sync=False)
    expected = [*samples, *samples, *samples, samples[0]]
    i = data.draw(st.integers(0, len(expected) - 1), label="assigned")
    np_open_existing(folder, mode="r+")[i] = expected[i] = samples[-1]
    with DenseMmap(folder, mode="r+") as m:
        m[i - 1] = expected[i - 1] = samples[0]
    again = np_open_existing(folder)
    assert again.dtype == dtype
    assert again.shape == (len(expected), *array.shape[1:])
    assert found_bits(again, dtype) == list(map(own_bits, expected))
    assert found_bits(DenseMmap(folder), dtype) == list(map(own_bits, expected))
    plain_reader.check(folder)


def round_trips(folder: Path, dtype: np.dtype, examples: int) -> None:
    numbers = itertools.count()

    @settings(quiet, max_examples=examples)
    @given(data=st.data())
    def act(data: st.DataObject) -> None:
        path = folder / str(next(numbers))
        (ragged_round_trip if data.draw(st.booleans(), label="ragged") else dense_round_trip)(path, dtype, data)
        shutil.rmtree(path)

    act()


@pytest.mark.parametrize("dtype", strategies.ALL, ids=str)
def test_every_bit_comes_out_whichever_way_it_went_in(tmp_path: Path, dtype: np.dtype) -> None:
    round_trips(tmp_path, dtype, ROUND_TRIPS)


@pytest.mark.long
@pytest.mark.parametrize("dtype", strategies.ALL, ids=str)
def test_every_bit_comes_out_whichever_way_it_went_in_at_length(tmp_path: Path, dtype: np.dtype) -> None:
    round_trips(tmp_path, dtype, LONG_ROUND_TRIPS)


def mixed_batches(folder: Path, examples: int) -> None:
    """Batches of arrays of several dtypes: all of a batch is stored as it is, or none of it."""
    numbers, seen = itertools.count(), {True: 0, False: 0}

    @settings(quiet, max_examples=examples)
    @given(data=st.data())
    def act(data: st.DataObject) -> None:
        dtypes = st.sampled_from(strategies.NUMBERS)
        target, path = data.draw(dtypes, label="target"), folder / str(next(numbers))
        way = data.draw(st.sampled_from(["extend", "build", "dense"]), label="way")
        batch = [data.draw(strategies.numbers(data.draw(dtypes))) for _ in range(data.draw(st.integers(2, 4)))]
        first = np.zeros(1, target)
        if way == "dense":
            batch = [array[:1] for array in batch]
        cls = DenseMmap if way == "dense" else RaggedMmap
        values = [[exact(value) for value in array] for array in batch]
        fits = all(representable(parts, target) for each in values for parts in each)
        seen[fits] += 1
        m = cls.from_generator(path, iter([first]), 1, sync=False)
        before = (path / "manifest.json").read_bytes()
        try:
            if way == "build":
                cls.from_generator(path, iter([first, *batch]), len(batch) + 1, sync=False)
            else:
                m.extend(batch, sync=False)
        except SampleError:
            assert not fits
            assert (path / "manifest.json").read_bytes() == before
        else:
            assert fits
        found = [[exact(value) for value in np.atleast_1d(sample)] for sample in cls(path)]
        assert found == [[exact(first[0])], *(values if fits else [])]
        assert cls(path).dtype == target
        shutil.rmtree(path)

    act()
    assert min(seen.values()) > examples // 50


def test_a_batch_of_many_dtypes_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    mixed_batches(tmp_path, BATCHES)


@pytest.mark.long
def test_a_batch_of_many_dtypes_is_stored_whole_or_not_at_all_at_length(tmp_path: Path) -> None:
    mixed_batches(tmp_path, LONG_BATCHES)
