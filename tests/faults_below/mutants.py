"""Ways to break the package that the trials must see: each changes it in the process that runs them."""

from collections.abc import Callable
from contextlib import suppress

from mmap_ninja._storage import disk
from mmap_ninja._storage.lock import Lock
from mmap_ninja._writing import Writing
from mmap_ninja.errors import MmapNinjaError


def _always(said: bool) -> Callable[[], None]:
    def break_it() -> None:
        MmapNinjaError.committed = property(lambda error: said, lambda error, value: None)

    return break_it


def _no_length() -> None:
    for name in ("append", "extend"):
        real = getattr(Writing, name)
        setattr(
            Writing, name, lambda m, samples, real=real, expected_length=None, **options: real(m, samples, **options)
        )


def _silent_syncs() -> None:
    real = disk.sync_data

    def sync_data(fd: int) -> None:
        with suppress(OSError):
            real(fd)

    disk.sync_data = sync_data


def _raw_errors() -> None:
    disk.explained.__exit__ = lambda *error: None


def _kept_lock() -> None:
    Lock.release = lambda lock: None


def _kept_descriptors() -> None:
    disk.close_read = lambda fd: None


def _written_once() -> None:
    disk.write_at = lambda fd, chunks, offset: disk._write_once(fd, [memoryview(chunk) for chunk in chunks], offset)


MUTANTS: dict[str, Callable[[], None]] = {
    "never committed": _always(False),
    "always committed": _always(True),
    "the length is not looked at": _no_length,
    "syncs that fail are passed over": _silent_syncs,
    "os errors as they are": _raw_errors,
    "the lock is kept": _kept_lock,
    "descriptors are kept": _kept_descriptors,
    "short writes are taken for whole ones": _written_once,
}
