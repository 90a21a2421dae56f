"""The rules that make a map, or another one in its place."""

import itertools
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import rule

from mmap_ninja import BytesMmap, RaggedMmap, StringsMmap, np_from_generator, upgrade
from mmap_ninja._storage import build as storage_build
from mmap_ninja.errors import MapNotFoundError, SampleError, SampleTypeError
from model.kinds import same
from model.state import Handle, State, Stop, Stored, faults, metadata


class Building(State):
    """Builds that end, stop, fail and are resumed; upgrades."""

    @rule(
        data=st.data(),
        fault=faults,
        how=st.sampled_from(["whole", "whole", "at once", "stops", "bad", "resume", "resume", "nothing"]),
        size=st.sampled_from([1, 2, 3, 100]),
        about=metadata,
        save_every=st.sampled_from([0, 3600]),
    )
    def build(
        self, data: st.DataObject, fault: tuple | None, how: str, size: int, about: dict, save_every: int
    ) -> None:
        samples = [] if how == "nothing" else data.draw(st.lists(self.kind.good, min_size=1, max_size=6))
        is_resumed = how == "resume" and self.part is not None and len(self.part.samples) > 0  # else it begins anew
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

        before, was_begun = self.committed(), (self.folder / "building.json").exists()
        call = lambda: self.make(how, generate, given, size, about, sync=bool(size % 2))
        # Not by the clock, or no run is like the one before.
        with mock.patch.object(storage_build, "_SAVE_EVERY", save_every):
            result, double = self.attempt(call, fault)
        known = about if about or not is_resumed else self.part.metadata
        if double is not None:
            is_done = self.was_committed(double, fault)
            if not is_done:
                assert self.only(self.committed(), "manifest.json") == self.only(before, "manifest.json")
            options = {"may_be_new": is_done, "resumed": is_resumed, "compressed": self.kind.is_compressed}
            self.adopt(samples, known, was_committed=is_done, **options)
        elif stop is not None:
            self.count(f"{how} fails")
            assert isinstance(result, (SampleError, SampleTypeError) if how == "bad" else Stop), repr(result)
            assert self.only(self.committed(), "manifest.json") == self.only(before, "manifest.json")
            kept = start + (stop - start) // size * size
            if kept > start or is_resumed:
                self.adopt_part(samples[:kept], resumed=is_resumed, compressed=self.kind.is_compressed)
                assert self.part is not None
                assert len(self.part.samples) == kept
            elif not was_begun:
                assert self.committed() == before
            else:  # it may have been that of an upgrade or of an empty map, which is swept away
                self.adopt_part([], compressed=self.kind.is_compressed)
        else:
            assert type(result) in (self.kind.cls, np.memmap) or self.kind.is_dense, repr(result)
            self.count("resumed" if is_resumed else "made")
            self.current = self.part if is_resumed else Stored([], is_compressed=self.kind.is_compressed)
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
            self.adopt(known.samples, known.metadata, was_committed=True)
        elif self.current is None and self.part is None:
            self.refused(result, MapNotFoundError, before)
        else:
            assert result is was_format_1
            assert was_format_1 or self.committed() == before
            self.count("upgraded" if was_format_1 else "nothing to upgrade")
