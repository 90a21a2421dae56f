"""Whether a state that a power cut has left is one of those that were promised."""

import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np

import plain_reader
from mmap_ninja import Mmap, open_map, verify
from mmap_ninja.errors import MapCorruptError, MapNotFoundError, MmapNinjaError, PartBuiltWarning
from plain_reader import same
from power.story import Story

OF_VALUES = {"damaged", "unchecked"}  # what `verify` says where values may not be those that were written


class BadState(Exception):
    """A power cut has left what must not be."""


def expect(is_right: bool, what: object) -> None:
    if not is_right:
        raise BadState(what)


def findings(folder: Path) -> set[str]:
    """The kinds of what `verify` finds in a folder."""
    return {finding.kind for finding in verify(folder)}


def others(m: Mmap) -> list:
    """Samples that a map can take, and that nobody has written before."""
    if m.kind == "strings":
        return ["other", "ß"]
    if m.kind == "bytes":
        return [b"other", b"\0\xff"]
    dtype = m.dtype or np.dtype(np.int64)
    if m.kind == "dense":
        shape = m[0].shape if len(m) else (2,)
        return [np.full(shape, value, dtype) for value in (101, 102)]
    return [(np.arange(11) - 50).astype(dtype), np.arange(2).astype(dtype)]


class Judge:
    """Compares one state with what was promised."""

    def __init__(self, story: Story, acknowledged: int, folder: Path) -> None:
        self.story, self.folder = story, folder
        steps = story.steps
        durable = [at for at in range(acknowledged) if steps[at].is_durable]
        floor = durable[-1] + 1 if durable else 0  # how many steps have to be there
        self.open = steps[floor : acknowledged + 1]  # those that may be there in part
        states = [story.before, *(step.after for step in steps)]
        self.allowed = [state for state in states[floor : acknowledged + 2] if state is not None]
        self.had_map = floor > 0 or (story.before is not None and not story.starts_unfinished)
        # Also what stands on something that is not durable is only safe when it is done.
        self.is_safe = floor == acknowledged and all(step.is_safe for step in self.open)
        self.assigned = {i for step in self.open for i in step.assigned}
        metadata: list[dict] = [{}]
        for step in steps:
            metadata.append(step.metadata or ({} if step.is_build else metadata[-1]))
        self.metadata = metadata[floor : acknowledged + 2]

    def outcome(self) -> str:
        """Which of the states that are right this is; raises what is wrong with it."""
        try:
            m, is_part = opened(self.folder)
        except MapNotFoundError:
            expect(not self.had_map or not self.is_safe, "the map is gone")
            self._build_anew()
            return "none"
        except MmapNinjaError as error:
            return self._refused(error)
        if is_part:
            return self._part(m)
        try:
            found = self._read(m)
        except MmapNinjaError as error:
            expect(not self.is_safe, f"cannot be read: {error}")
            return "refused"
        problem = self._wrong(m, found)
        if problem is not None:
            expect(not self.is_safe, problem)
            expect(bool(findings(self.folder) & OF_VALUES), f"passes verify, but {problem}")
            return "found"
        told = findings(self.folder) & OF_VALUES
        if told and not self.is_safe:
            return "found"  # a checksum was lost
        may_be_unchecked = self.assigned or not (self.folder / "manifest.json").exists()  # or of format 1
        expect(told <= ({"unchecked"} if may_be_unchecked else set()), f"right, but verify finds {told}")
        self._extend(m, found)
        if any(step.is_build for step in self.open):
            self._build_anew()
        return "right"

    def _refused(self, error: MmapNinjaError) -> str:
        """Only what a build or an unsynced call has left may be refused, and a new build has to work."""
        expect(bool(findings(self.folder)), f"passes verify, but {error}")
        if self.is_safe and self.story.starts_torn:
            expect("--salvage" in str(error), error)
            self.open[-1].act(self.folder)
            self._whole(self.open[-1].after)
        elif self.is_safe:
            expect(not self.had_map and not (self.folder / "manifest.json").exists(), f"refused: {error}")
            expect(isinstance(error, MapCorruptError), error)
            kind, samples = self.story.kind, self.open[-1].after
            with suppress(MapCorruptError):
                m = kind.build(self.folder, samples, resume=True, sync=False)
                expect(equal(self._read(m), samples), "a build that was resumed has other samples")
            self._build_anew()
        return "refused"

    def _part(self, m: Mmap) -> str:
        expect(not self.had_map, "the old map is gone")
        found = [m[i] for i in range(len(m))]
        parts = [step.after[: len(found)] for step in self.open if step.is_build]
        expect(any(equal(found, part) for part in parts), f"a wrong part: {str(found)[:200]}")
        plain_reader.check(self.folder, "building.json")
        added = others(m)
        if "zstd_train_dictionary_size" in self.story.kind.options and not found:
            added = self.story.kind.first  # two are not enough to train a dictionary on
        self.story.kind.build(self.folder, [*found, *added], resume=True, sync=False)
        self._whole([*found, *added])
        self._build_anew()
        return "part"

    def _read(self, m: Mmap) -> list:
        """The samples; None for one that was being assigned and cannot be read."""
        try:
            return list(m[:])
        except MmapNinjaError:
            return [self._sample(m, i) for i in range(len(m))]

    def _sample(self, m: Mmap, i: int) -> object:
        try:
            return m[i]
        except MmapNinjaError:
            if i not in self.assigned:
                raise
            return None

    def _wrong(self, m: Mmap, found: list) -> str | None:
        """What is wrong with the samples, if anything is."""
        if m.metadata not in self.metadata:
            return f"metadata {m.metadata}"
        if any(equal(found, state) for state in self.allowed):
            return None
        if self.assigned and not plain_reader.fields(self.folder)["files"]["data"]["checked"]:
            new = self.open[-1].after
            rest = [i for i in range(len(new)) if i not in self.assigned]
            sizes = [size(sample) for sample in new]
            if m.lengths.tolist() == sizes and equal([found[i] for i in rest], [new[i] for i in rest]):
                return None if "unchecked" in findings(self.folder) else "verify does not tell of an assignment"
        return f"{len(found)} samples, not those before or after: {str(found)[:200]}"

    def _extend(self, m: Mmap, found: list) -> None:
        added = others(m)
        m.extend(added, sync=False)
        expect(equal([m[i] for i in range(len(found), len(m))], added), "what was added is not there")
        self._whole([*found, *added])

    def _whole(self, samples: list) -> None:
        """A finished map of these samples, for the package and for a reader of its own."""
        m, is_part = opened(self.folder)
        expect(not is_part, "still being built")
        found = self._read(m)
        expect(equal(found, samples), f"written to again, {len(found)} samples: {str(found)[:200]}")
        plain_reader.check(self.folder)
        about = plain_reader.fields(self.folder)
        is_plain = about["codec"] is None and about["files"]["data"]["offset"]  # NumPy can open it
        if is_plain and len(found) < 10_000 and all(sample is not None for sample in found):
            expect(equal(plain_reader.samples(self.folder), samples), "np.load sees others")

    def _build_anew(self) -> None:
        samples = self.story.kind.first[::-1]
        self.story.kind.build(self.folder, samples, sync=False)
        self._whole(samples)


def equal(left: list, right: list) -> bool:
    """`same`, without a call for each sample where there are no arrays."""
    return left == right if right and isinstance(right[0], str | bytes) else same(left, right)


def size(sample: object) -> int:
    """What the `lengths` of a map say of a sample."""
    if isinstance(sample, np.ndarray):
        return len(sample) if sample.ndim else 0
    return len(sample.encode() if isinstance(sample, str) else sample)


def opened(folder: Path) -> tuple[Mmap, bool]:
    """The map, and whether it was said to be unfinished."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        m = open_map(folder)
    return m, any(issubclass(warning.category, PartBuiltWarning) for warning in caught)
