"""The rules that write through a handle: extend, assign, describe, flush."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from contracts import same as same_sample
from mmap_ninja import DenseMmap, RaggedMmap, Wrapped, np_extend_dir, np_open_existing, open_map, select
from mmap_ninja.errors import (
    ArgumentTypeError,
    MapNotFoundError,
    MapReadOnlyError,
    SampleError,
    SampleIndexError,
    SampleTypeError,
)
from model.indexing import as_index
from model.state import Handle, State, Stored, faults, metadata

WAYS = ["samples", "view", "Wrapped", "another handle", "memmap"]  # to name a map's own samples


def alike(samples: list) -> list[list[int]]:
    """Groups of samples that fit in each other's places."""
    fits: dict[object, list[int]] = {}
    for i, sample in enumerate(samples):
        size = len(sample.encode() if isinstance(sample, str) else sample) if isinstance(sample, str | bytes) else None
        fits.setdefault(np.shape(sample) if size is None else size, []).append(i)
    return [group for group in fits.values() if len(group) > 1]


def has_own(handle: Handle) -> bool:
    """Whether samples of its map can be assigned through this handle."""
    return handle.m.mode == "r+" and len(alike(handle.view)) > 0


def own_places(group: list[int], data: st.DataObject) -> list[tuple[int, int]]:
    """Pairs of a place and the number of another sample that fits there: swaps, reversals, shifts, anything."""
    how = data.draw(st.sampled_from(["swap", "reversal", "up", "down", "any"]), label="how")
    moved = {"swap": [group[1], group[0]], "reversal": group[::-1], "up": group[:1] + group[:-1], "down": group[1:]}
    if how == "any":
        return data.draw(st.lists(st.tuples(st.sampled_from(group), st.sampled_from(group)), min_size=1, max_size=5))
    return list(zip(group, moved[how], strict=False))


def own_values(m: Any, sources: list[int], way: str, folder: Path, *, is_there: bool) -> Any:
    """These samples, still to be read where that is possible."""
    if way == "view":
        return select(m, sources)
    if way == "Wrapped":
        return Wrapped(select(m, sources), lambda sample: sample)
    if way == "another handle":
        return select(open_map(folder), sources)
    if way == "memmap" and isinstance(m, RaggedMmap):
        return [m.memmap[start:end] for start, end in zip(m.starts[sources], m.ends[sources], strict=True)]
    if way == "memmap" and isinstance(m, DenseMmap):
        return [np_open_existing(folder)[i] for i in sources] if is_there else [m[:][i] for i in sources]
    return [m[i] for i in sources]


class Writing(State):
    """Growing a map, and changing what is there."""

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
            self.adopt(new, known, was_committed=is_done)
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

    def grow(self, samples: list, handle: Handle) -> None:
        if self.current is None:
            self.current, self.part = Stored([]) if handle.stored is None else handle.stored, None
        elif not self.current.samples:
            self.part = None  # an empty map is published anew, and a build beside it is swept away
        self.swept()
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
        new = [(i, sample) for i, (sample, _) in zip(chosen, pairs, strict=True)]
        self.check_assigning(handle, index, value, new, fault, wrong)

    @precondition(lambda self: any(map(has_own, self.handles)))
    @rule(data=st.data(), fault=faults, way=st.sampled_from(WAYS))
    def assign_own(self, data: st.DataObject, fault: tuple | None, way: str) -> None:
        """Samples of the map itself, which overlap with those that are written."""
        handle = self.pick(data, [handle for handle in self.handles if has_own(handle)])
        is_there = handle.stored is self.current  # else the folder has another map
        if way == "another handle" and not is_there:
            return
        places = own_places(data.draw(st.sampled_from(alike(handle.view)), label="own samples"), data)
        targets, sources = zip(*places, strict=True)
        values = own_values(handle.m, list(sources), way, self.folder, is_there=is_there)
        index = data.draw(st.sampled_from([list(targets), np.array(targets)]))
        if targets == tuple(range(targets[0], targets[-1] + 1)):
            index = slice(targets[0], targets[-1] + 1)
        new = [(target, handle.view[source]) for target, source in places]
        self.check_assigning(handle, index, values, new, fault)
        self.count("own samples")

    def check_assigning(
        self, handle: Handle, index: object, value: object, new: list, fault: tuple | None, wrong: tuple | None = None
    ) -> None:
        """Assign, and compare with what has to come of it: these samples at these places, or an error."""

        def call() -> None:
            handle.m[index] = value

        before, refusal = self.committed(), self.refusal(handle)
        armed, is_compressed = handle.is_armed, handle.stored is not None and handle.stored.is_compressed
        result, double = self.attempt(call, fault)
        if double is not None:
            self.assigned_in_part(handle, new)
        elif handle.m.mode == "r":
            self.refused(result, MapReadOnlyError, before)
        elif wrong is not None:
            errors = (*wrong, MapReadOnlyError) if is_compressed else wrong
            self.refused(result, errors, before)
        elif not new:
            assert result is None, repr(result)
            assert self.committed() == before
        elif is_compressed:
            self.refused(result, MapReadOnlyError, before)
        elif refusal is not None and not armed:
            self.refused(result, refusal, before)
        else:
            assert result is None, repr(result)
            self.count("assigned")
            self.swept()
            for i, sample in new:
                handle.stored.samples[i] = sample

    def assigned_in_part(self, handle: Handle, new: list[tuple[int, object]]) -> None:
        """Each assigned sample is the old one or a new one; of several for the same index, any of them."""
        for i in {i for i, _ in new}:
            found = handle.m[i]
            values = [handle.stored.samples[i], *(sample for at, sample in new if at == i)]
            same = [value for value in values if same_sample(found, value)]
            assert same, f"{found!r} is none of {values!r}"
            handle.stored.samples[i] = same[0]
        if self.current is not None:
            known = self.current
            self.adopt(known.samples, known.metadata, was_committed=True)

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
            self.adopt(samples, value, was_committed=is_done)
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
                self.adopt(known.samples, known.metadata, was_committed=True)
        elif refusal is not None and is_due:
            self.refused(result, refusal, before, handle)
        else:
            assert result is None, repr(result)
            self.count(how)
            if self.current is not None and not self.current.samples:
                self.adopt_part([])  # an empty map is published anew
        if how == "close":
            mode = handle.m.mode
            self.handles.remove(handle)
            self.open(mode)
