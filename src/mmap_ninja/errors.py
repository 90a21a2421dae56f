"""Every error and warning that mmap_ninja raises on purpose.

Each error derives from `MmapNinjaError` and from the builtin that a caller would expect, so both
`except MmapNinjaError` and `except IndexError` work. The messages say what is wrong, where, what was
expected, and what to do.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator


class MmapNinjaError(Exception):
    """Base of all errors of this package.

    `committed` says what became of the call that raised it: False, nothing of it can be seen; True, readers see the
    new state, so the same call would add to it (after a `SyncError`, a power cut may still undo it); None, it cannot
    be told. Other exceptions that leave such a call, a `KeyboardInterrupt` for instance, have the attribute where it
    is not False.
    """

    committed: bool | None = False


class MapNotFoundError(MmapNinjaError, FileNotFoundError):
    """There is no map at this path."""


class MapPathError(MmapNinjaError, NotADirectoryError):
    """The path of a map is a file, or something else that is no folder."""


class MapPermissionError(MmapNinjaError, PermissionError):
    """A file or folder of a map may not be read, or not be written."""


class MapCorruptError(MmapNinjaError, ValueError):
    """A folder is damaged, incomplete, or not what it claims to be."""


class MapVersionError(MmapNinjaError, ValueError):
    """A folder was written by a newer version of mmap_ninja."""


class MapKindError(MmapNinjaError, ValueError):
    """The folder holds another kind of map than asked for, or one that nobody knows."""


class MapLockedError(MmapNinjaError, BlockingIOError):
    """Another writer is at work on this map."""


class MapChangedError(MmapNinjaError, RuntimeError):
    """The map was replaced by another one since this handle was opened or pickled, or is not the one expected."""


class MapClosedError(MmapNinjaError, ValueError):
    """The map was closed."""


class MapReadOnlyError(MmapNinjaError, ValueError):
    """An assignment to a map that was opened for reading."""


class PartBuiltError(MmapNinjaError, RuntimeError):
    """The map was never finished; it can be read or resumed, not changed."""


class DiskError(MmapNinjaError, OSError):
    """The operating system refuses: a full disk, a quota, a limit on the size of files, a device that fails.

    `errno` and `filename` are those of the operating system. If `committed` is False, the same call can be made again.
    """

    _VISIBLE = "the new state is visible"

    def __str__(self) -> str:
        if self.committed is False:
            return super().__str__()
        return f"{super().__str__()}; {self._VISIBLE if self.committed else 'the new state may be visible'}"


class SyncError(DiskError):
    """The operating system could not make written data durable; the handle refuses to write any more.

    No sample was committed, unless `committed` and the message say that the new state is visible.
    """

    _VISIBLE = "the new state is visible, but may not survive a power cut"

    is_uncut = False  # whether what was written stayed in the files


class ForeignFileError(MmapNinjaError, FileExistsError):
    """A file that is not ours stands where a file of the map has to go."""


class SampleError(MmapNinjaError, ValueError):
    """A sample cannot be stored as it is: its values or its shape do not fit the map."""


class SampleTypeError(MmapNinjaError, TypeError):
    """A sample is of a type that this kind of map cannot store."""


class SampleIndexError(MmapNinjaError, IndexError):
    """An index lies outside of the map, or a boolean mask has another length."""


class IndexTypeError(MmapNinjaError, TypeError):
    """An index is neither an integer, a slice, a list or array of integers, nor a boolean mask."""


class ArgumentError(MmapNinjaError, ValueError):
    """An argument has a value that makes no sense."""


class ArgumentTypeError(MmapNinjaError, TypeError):
    """An argument is of a type that makes no sense."""


class StateError(MmapNinjaError, ValueError):
    """A saved position belongs to another dataset, order or version."""


class WorkerError(MmapNinjaError, RuntimeError):
    """A process of `n_jobs` could not be started, or has ended, or has met an error that cannot travel."""


class MissingExtraError(MmapNinjaError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class PartBuiltWarning(UserWarning):
    """The map that was opened was never finished."""


class HardLinkWarning(UserWarning):
    """Files of a map had a second name, a hard link, and were copied before the map was written to."""


class UpgradeWarning(UserWarning):
    """A folder of mmap_ninja 0.9.0 was upgraded because it was written to."""


class EpochWarning(UserWarning):
    """An iteration that was given up has led to the next epoch, in which other readers may not be yet."""


class SalvageWarning(UserWarning):
    """Not everything in a folder that mmap_ninja 0.9.0 was interrupted in could be saved."""


class Telling:
    """Errors that leave the block say what is committed.

    A class, because each append goes through several of these, and a generator takes three times as long.
    """

    __slots__ = ("_committed",)

    def __init__(self, committed: bool | None) -> None:
        self._committed = committed

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            set_committed(error, self._committed)


AFTER_COMMIT = Telling(True)  # the new state is visible
BEFORE_COMMIT = Telling(False)  # nothing is committed, whatever was committed to prepare for it


class Outcome:
    """What became of a call, as far as it has got. Errors that leave the `with` block of one say so.

    It encloses all that a call does, locks and files that are closed at its end included: Ctrl-C comes there as well.
    """

    __slots__ = ("committed",)

    def __init__(self) -> None:
        self.committed: bool | None = False

    def __enter__(self) -> Outcome:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and self.committed is not False:
            set_committed(error, self.committed)


def committed(error: BaseException | None) -> bool | None:
    """What an error says became of the call that raises it; see `MmapNinjaError`."""
    found: bool | None = getattr(error, "committed", False)
    return found


def set_committed(error: BaseException, committed: bool | None) -> None:
    """Say what became of the call that raises this error; see `MmapNinjaError`."""
    if getattr(error, "committed", False) is not committed:
        error.committed = committed  # type: ignore[attr-defined]


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Errors of arguments that come from inside begin with this name."""
    try:
        yield
    except (ArgumentError, ArgumentTypeError) as error:
        raise type(error)(f"{name}: {error}") from None


def noted(error: BaseException, note: str) -> BaseException:
    """The same error, which now says where it happened.

    A `StopIteration`, which would end the loop around it without a word, becomes a `RuntimeError`, as in a generator.
    """
    if isinstance(error, StopIteration):
        ended = RuntimeError(f"a function raised {error!r}, which is the end of an iterator and of nothing else")
        ended.__cause__, error = error, ended
    if hasattr(error, "add_note"):
        error.add_note(note)
    elif isinstance(error, OSError) and error.strerror is not None:  # Python 3.10 shows no notes
        error.strerror = f"{error.strerror} ({note})"
    elif len(error.args) == 1:
        error.args = (f"{error.args[0]} ({note})",)
    return error


_OURS = tuple(os.path.dirname(__file__) + adapter + os.sep for adapter in ("", "_torch", "_tf", "_jax"))
_BETWEEN = (*_OURS, contextlib.__file__)


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line outside of this package, and of the adapters, that has led here."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
