"""What a change may leave when calls for files have failed in it: every promise, compared with what is there."""

import traceback
from collections.abc import Callable, Sequence
from errno import EINTR
from pathlib import Path

import plain_reader
from changes import METADATA, Change, but, check, go_on, listed, opened, others, quietly, whole
from faults_below.library import Call, Fault
from mmap_ninja import Mmap, verify
from mmap_ninja.errors import DiskError, MapPermissionError, MmapNinjaError, SyncError
from plain_reader import same
from test_storage_errors import is_free

ADDING = (
    *("append", "extend", "extend unsynced", "extend over blocks", "extend over index blocks", "extend format 1"),
    *("widen", "first append", "extend an empty map"),
)
HAS_COMMITTED = hasattr(MmapNinjaError, "committed")
OLD, NEW = "old", "new"


def committed(error: BaseException) -> bool | None:
    """What an error says has become of its call; None where it cannot tell."""
    return getattr(error, "committed", False)


class Judge:
    """Looks at one trial. `problems` are sentences that begin with the kind of the problem."""

    def __init__(self, change: Change, folder: Path, *, is_impatient: bool = False) -> None:
        self.change, self.folder, self._is_impatient = change, folder, is_impatient
        self.problems: list[str] = []
        self._reader, self._was_part = (None, False) if change.old is None else opened(folder)
        self._old_metadata = {} if self._reader is None else self._reader.metadata

    def forget(self) -> None:
        self._reader = None

    def told(self, error: BaseException | None) -> str:
        return "" if error is None else str(committed(error))

    def judge(
        self,
        handle: object,
        error: BaseException | None,
        struck: Sequence[tuple[Call, Fault]],
        done: int,
        is_same: bool,
    ) -> None:
        self._try("locked", lambda: self._is_unlocked())
        if error is None:
            self._try("wrong", lambda: self._is_told(struck))
        else:
            self._try("untyped", lambda: self._is_typed(error, struck))
        states = self._try("wrong", lambda: self._states(error, done)) or {OLD, NEW}
        self._try("committed", lambda: self._is_true(error, states, done))
        if self._reader is not None:
            seen = listed(self._reader, self.change.assigned)
            self._try("reader", lambda: expect(same(seen, but(self.change.old, self.change.assigned)), "it changed"))
        if isinstance(handle, Mmap):
            self._try("handle", lambda: self._reads(handle, states))
        self._try("retry", lambda: self._again(handle, error, is_same))
        self._try("afterwards", lambda: self._goes_on())

    def _try(self, kind: str, act: Callable[[], object]) -> object:
        try:
            return act()
        except BaseException as problem:
            at = traceback.extract_tb(problem.__traceback__)[-1]
            what = str(problem) if isinstance(problem, Unexpected) else f"{at.name}: {at.line}: {problem!r}"
            self.problems.append(f"{kind}: {what}")
            return None

    def _is_unlocked(self) -> None:
        expect(not self.folder.exists() or is_free(self.folder), "the lock is held")

    def _is_told(self, struck: Sequence[tuple[Call, Fault]]) -> None:
        """A sync that failed is never passed over in silence."""
        errors = [call for call, fault in struck if fault.is_error and fault.errno != EINTR]
        failed = [str(call) for call in errors if call.operation == "sync"]
        expect(not failed or self.change.operation.endswith("unsynced"), f"it returned, but {failed} failed")

    def _is_typed(self, error: BaseException, struck: Sequence[tuple[Call, Fault]]) -> None:
        """What was injected, by a name of this package and with its number."""
        if isinstance(error, KeyboardInterrupt):
            return expect(any(fault.moment.startswith("interrupt") for _, fault in struck), "no Ctrl-C")
        expect(isinstance(error, MmapNinjaError), f"{error!r}")
        expect(isinstance(error, DiskError | MapPermissionError), f"misnamed {error!r}")
        expect(error.errno in {fault.errno for _, fault in struck if fault.is_error}, f"another errno {error!r}")
        expect(str(error.filename or "").startswith(str(self.folder.parent)), f"which file? {error!r}")
        return None

    def _states(self, error: BaseException | None, done: int) -> set[str]:
        """Whether the old state is there, or the new one; both where they do not differ."""
        if self._is_half():
            return {OLD}
        change, (m, is_part) = self.change, opened(self.folder)
        if m is None and self._was_part and isinstance(error, SyncError):
            return {OLD}  # what a failed sync may have lost of a build is removed, if nothing else can be written
        check(change, self.folder)
        found = set()
        if m is None or is_part:
            return {OLD}
        seen = listed(m, change.assigned)
        is_format_2 = (self.folder / "manifest.json").exists()
        if change.old is not None and same(seen, but(change.old, change.assigned)):
            found |= {OLD} if m.metadata == self._old_metadata else set()
            found -= {OLD} if "upgrade" in change.operation and is_format_2 else set()
        if same(seen, but(change.new, change.assigned)):
            found |= {NEW} if m.metadata == METADATA or change.operation != "metadata" else set()
            found -= {NEW} if "upgrade" in change.operation and not is_format_2 else set()
        expect(bool(found), "neither old nor new")
        if change.operation == "flush":  # its samples were there before
            return {OLD, NEW}
        for k, i in enumerate(change.assigned):
            if k < done:
                expect(same([m[i]], [change.new[i]]), f"sample {i} was assigned")
            elif k > done:
                expect(same([m[i]], [change.old[i]]), f"sample {i} was not assigned")
        return found

    def _is_half(self) -> bool:
        """True for a backup that could not be undone: it is no map yet."""
        is_map = any((self.folder / name).exists() for name in ("manifest.json", "type.ninja"))
        return (self.folder / ".backup").exists() and not is_map

    def _is_true(self, error: BaseException | None, states: set[str], done: int) -> None:
        """What the error says has become of the call; where there is none, all is new."""
        change = self.change
        if error is None:
            return expect(NEW in states, "it returned, but nothing was done")
        said = committed(error)
        if not HAS_COMMITTED:
            if change.operation in ADDING or change.is_build:
                visible = isinstance(error, SyncError) and "is visible" in str(error)
                expect(visible or OLD in states, f"it raised {error!r}, but did it")
            return None
        if change.assigned:
            return self._is_assigned(said, done)
        if said is False and self._is_impatient:  # what the first Ctrl-C said is lost with it
            return None
        expect(said is not False or OLD in states, f"False, but it is new: {error!r}")
        expect(said is not True or NEW in states, f"True, but it is old: {error!r}")
        return None

    def _is_assigned(self, said: bool | None, done: int) -> None:
        if said is None or done >= len(self.change.assigned):
            return
        i = self.change.assigned[done]
        expected = (self.change.new if said else self.change.old)[i]
        expect(same([opened(self.folder)[0][i]], [expected]), f"{said}, but sample {i} is another")

    def _reads(self, handle: Mmap, states: set[str]) -> None:
        """What was open sees what is there, or what it saw."""
        change = self.change
        seen, old = listed(handle, change.assigned), but(change.old or [], change.assigned)
        is_part = change.old is not None and not (OLD in states or NEW in states)
        is_old, is_new = same(seen, old), same(seen, but(change.new, change.assigned))
        expect(is_part or is_old or (is_new and NEW in states), f"it reads {len(seen)} samples")

    def _again(self, handle: object, error: BaseException | None, is_same: bool) -> None:
        """The same call once more leads to the new state, and to no second copy of the samples."""
        change, is_handle = self.change, isinstance(handle, Mmap)
        if "backup" in change.operation and not self._is_half() and opened(self.folder)[0] is not None:
            return whole(self.folder, change.new)  # it was done, and is not done over a map
        if change.operation in ADDING and error is not None:
            if not HAS_COMMITTED:
                return
            n, added = len(change.old or []), change.new[len(change.old or []) :]
            is_usable = is_same and is_handle and not isinstance(error, SyncError)
            m = handle if is_usable else quietly(change.of.cls, self.folder)
            if len(added) == 1:
                quietly(lambda m: m.append(added[0], expected_length=n), m)
            else:
                quietly(lambda m: m.extend(added, expected_length=n), m)
        elif change.operation != "flush" and change.operation not in ADDING:
            if is_handle and change.assigned:
                quietly(lambda m: m.close(), handle)
            change.act(self.folder)
        whole(self.folder, change.new)

    def _goes_on(self) -> None:
        """More samples can be added, np.load reads them all, and nothing is left behind."""
        m, is_part = opened(self.folder)
        if m is None or is_part or not HAS_COMMITTED:
            return go_on(self.change, self.folder)
        found, added = listed(m), others(m)
        quietly(lambda m: m.extend(added, sync=False), m)
        whole(self.folder, [*found, *added])
        accepted = ["header"] + ["unchecked"] * bool(self.change.assigned)
        accepted += ["unfinished"] * (self.change.operation == "repair")
        expect(all(one.kind in accepted for one in verify(self.folder)), f"{verify(self.folder)}")
        fields = plain_reader.fields(self.folder)
        if fields["codec"] is None and fields["files"]["data"]["name"].endswith(".npy"):
            expect(same(plain_reader.samples(self.folder), [*found, *added]), "np.load reads something else")
        if self.change.operation == "repair":  # it leaves a build that can be resumed
            return None
        left = {path.name for path in self.folder.iterdir()} - plain_reader.names(self.folder) - {".lock"}
        expect(not left, f"left behind: {sorted(left)}")
        return None


class Unexpected(AssertionError):
    """A promise that was not kept."""


def expect(is_so: bool, what: str) -> None:
    if not is_so:
        raise Unexpected(what)
