"""All rules, and what holds after each of them."""

import pickle
import shutil

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

import plain_reader
from mmap_ninja.errors import MapChangedError
from model.building import Building
from model.indexing import check_index, indices
from model.kinds import same
from model.moving import Moving
from model.state import Handle
from model.writing import Writing


class Machine(Writing, Building, Moving):
    """Anything in any order: what writes, what builds, what reads, and handles that come and go."""

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
        assert (manifest.codec is not None) == there.is_compressed
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
        for folder in [self.folder, *self.folder.parent.glob(f"{self.folder.name} away *")]:
            shutil.rmtree(folder, ignore_errors=True)


def length_of(sample: object) -> int:
    if isinstance(sample, str):
        return len(sample.encode())
    return len(sample) if np.ndim(sample) or isinstance(sample, bytes) else 1
