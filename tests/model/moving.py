"""The rules that move the folder, put another map in its place, or bring an older copy back."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

import plain_reader
from faults import tree
from mmap_ninja.errors import MapChangedError
from model.state import Handle, State, Stored, metadata

Copy = tuple[Path, Stored, Stored | None]  # its folder, map and build


class Moving(State):
    """What others do to the folder of an open map: `mv`, `cp -r`, a restored backup."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.number = 0  # of folders beside the map
        self.copies: list[Copy] = []  # older states
        self.away: list[tuple[Path, dict]] = []  # maps that were moved away, and their files, which nothing changes
        self.stale: list[Handle] = []  # handles that have seen more than the older copy that is there now

    @precondition(lambda self: self.current is not None)
    @rule(data=st.data(), how=st.sampled_from(["extend", "describe", "flush"]))
    def write_to_a_folder_that_is_away(self, data: st.DataObject, how: str) -> None:
        """It was moved under the handle; nothing is written, neither there nor where it was."""
        fit = [handle for handle in self.handles if handle.stored is self.current and handle not in self.stale]
        if not fit:
            return
        handle = self.pick(data, fit)
        sample = data.draw(self.kind.good, label="sample")
        calls = {
            "extend": lambda: handle.m.extend([sample]),
            "describe": lambda: setattr(handle.m, "metadata", {"a": 1}),
            "flush": handle.m.flush,
        }
        is_due = how != "flush" or handle.is_armed or handle.m._is_unsynced
        place = self.beside()
        os.rename(self.folder, place)
        before = tree(place)
        result, _ = self.attempt(calls[how])
        assert isinstance(result, MapChangedError if is_due else type(None)), repr(result)
        assert tree(place) == before
        assert not self.folder.exists()
        os.rename(place, self.folder)
        self.count("away")

    @precondition(lambda self: self.current is not None)
    @rule(data=st.data())
    def move_and_build_another(self, data: st.DataObject) -> None:
        """`mv P old`, and another job builds in P: the handles are of the map that was moved."""
        samples = data.draw(st.lists(self.kind.good, min_size=1, max_size=4), label="samples")
        place = self.beside()
        os.rename(self.folder, place)
        if not any(handle.is_armed for handle in self.handles):  # who has assigned goes on doing so
            self.away.append((place, tree(place)))
        self.kind.cls.from_generator(self.folder, iter(samples), 3, sync=False, **self.kind.options)
        self.current, self.part = Stored(samples, is_compressed=self.kind.is_compressed), None
        self.count("moved")

    @precondition(lambda self: self.current is not None and not any(handle.is_armed for handle in self.handles))
    @rule()
    def copy(self) -> None:
        """A backup, as `cp -r` makes one."""
        self.copies = [*self.copies, self.copied()][-2:]

    def copied(self) -> Copy:
        place = self.beside()
        shutil.copytree(self.folder, place)
        id = None if self.is_format_1 else self.current.id  # that of format 1 is the inode of a file
        current = replace(self.current, samples=list(self.current.samples), id=id)
        return place, current, None if self.part is None else replace(self.part, samples=list(self.part.samples))

    @precondition(lambda self: len(self.copies) > 0)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        """The folder is removed, and an older copy takes its place."""
        self.restored(self.copies.pop(data.draw(st.integers(0, len(self.copies) - 1), label="copy")))

    @precondition(lambda self: self.current is not None and not self.is_format_1)
    @rule(data=st.data(), value=metadata)
    def grow_and_restore(self, data: st.DataObject, value: dict) -> None:
        """An older copy comes back under a handle that has added samples since: it writes nothing."""
        fit = [handle for handle in self.handles if handle.stored is self.current]
        if not fit or not self.current.samples or any(handle.is_armed for handle in self.handles):
            return
        handle, copy = self.pick(data, fit), self.copied()
        samples = data.draw(st.lists(self.kind.good, min_size=1, max_size=3), label="samples")
        result, _ = self.attempt(lambda: handle.m.extend(samples, sync=False))
        assert result is None, repr(result)
        self.current.samples.extend(samples)
        handle.length = len(self.current.samples)
        self.restored(copy)
        self.stale_handle_writes_nothing(handle, samples[0], value)

    def stale_handle_writes_nothing(self, handle: Handle, sample: object, value: dict) -> None:
        before = self.committed()  # what a fault has left may be swept
        for call in (
            lambda: handle.m.append(sample),
            lambda: handle.m.extend([sample] * 2),
            lambda: setattr(handle.m, "metadata", value),
            handle.m.flush,
        ):
            result, _ = self.attempt(call)
            assert isinstance(result, MapChangedError), repr(result)
        if handle.m.mode == "r+" and not handle.stored.is_compressed:
            result, _ = self.attempt(lambda: handle.m.__setitem__(0, handle.m[0]))
            assert isinstance(result, MapChangedError), repr(result)
        assert self.committed() == before
        assert len(handle.m.lengths) == handle.length

    def restored(self, copy: Copy) -> None:
        place, self.current, self.part = copy
        shutil.rmtree(self.folder)
        os.rename(place, self.folder)
        self.stale = [handle for handle in self.handles if self.is_same_map(handle)]
        self.forget_those_that_cannot_tell()
        del self.handles[:-1]
        for mode in ("r", "r+"):
            self.open(mode)
        self.count("restored, seen by more" if self.stale else "restored")

    def is_same_map(self, handle: Handle) -> bool:
        return handle.stored is not None and handle.m._snapshot.manifest.id == self.current.id

    @invariant()
    def forget_those_that_cannot_tell(self) -> None:
        """A handle that has not seen more than there is now takes the copy for its own map: it is let go of."""
        if not self.stale:
            return
        there = plain_reader.fields(self.folder) if (self.folder / "manifest.json").exists() else {}
        newest = (there.get("length", 0), there.get("generation", 0))
        self.stale = [handle for handle in self.stale if handle in self.handles and handle.stored is not self.current]
        for handle in list(self.stale):
            seen = handle.m._snapshot.manifest
            if there.get("id") == seen.id and not (handle.length > newest[0] and seen.generation > newest[1]):
                self.stale.remove(handle)
                self.handles.remove(handle)
                handle.m._patches, handle.m._is_unsynced = None, False
                handle.m.close()
        if not self.handles:
            self.open("r+")

    @invariant()
    def what_was_moved_away_is_as_it_was(self) -> None:
        for place, files in self.away[-2:]:
            assert tree(place) == files

    def beside(self) -> Path:
        self.number += 1
        return self.folder.with_name(f"{self.folder.name} away {self.number}")
