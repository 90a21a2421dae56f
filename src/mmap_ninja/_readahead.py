"""Tells the kernel of batches before their turn, so that a cold disk is asked for many pages at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from mmap_ninja.errors import ArgumentError, ArgumentTypeError
from mmap_ninja.pipeline import behind

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_AUTO = 3  # batches: fewer leave the disk idle, and with eight the pages are gone again when their turn comes
_QUIET = 2  # batches without a read, after which the data is taken for warm
_PROBE = 32  # while it is, of every so many batches a few samples are advised all the same: it may not all be
_SAMPLE = 32


def check_readahead(readahead: Any) -> int | None:
    """How many batches ahead; None for "auto". Raises `ArgumentError` or `ArgumentTypeError`."""
    if isinstance(readahead, str):
        if readahead == "auto":
            return None
    elif not isinstance(readahead, bool) and hasattr(readahead, "__index__"):
        if readahead.__index__() >= 0:
            return int(readahead)
    else:
        raise ArgumentTypeError(f'readahead is {readahead!r}, expected "auto" or a number of batches')
    raise ArgumentError(f'readahead is {readahead!r}, expected "auto" or a number of batches, 0 for none')


def advised(
    batches: Iterable[Any],
    will_need: Callable[[Any], object],
    ahead: int | None,
    warmth: Warmth,
    expect: Callable[[bool], object] = bool,
) -> Iterator[Any]:
    """The same batches; before one comes, `will_need` has heard of it and of those up to `ahead` after it.

    With None, for as long as `warmth` finds that the kernel has something to read: to advise of what is in memory
    takes half of the time of copying it. So long, `expect(True)` has told that nothing else is wanted: where the memory
    holds a part of the data only, reading around a page throws others out before their turn, of which each is read
    with all around it again.
    """
    if ahead == 0:
        yield from batches
        return
    warmth.begin()
    is_random = False

    def advise(indices: Any) -> Any:
        nonlocal is_random
        _advise(will_need, ahead, warmth, lambda: indices)
        if is_random != (ahead is not None or warmth.is_cold):
            is_random = not is_random
            expect(is_random)
        return indices

    try:
        yield from behind(map(advise, batches), _AUTO if ahead is None else ahead)
    finally:
        if is_random:
            expect(False)


def advise_by_number(
    batch: Callable[[int], Any],
    count: int,
    k: int,
    will_need: Callable[[Any], object],
    ahead: int | None,
    warmth: Warmth,
) -> None:
    """The same for one who asks for batch `k` of so many: advises of the one `ahead` of it.

    For the first one, of all up to that.
    """
    distance = _AUTO if ahead is None else ahead
    if distance:
        for later in range(k + distance if k else 0, min(k + distance + 1, count)):
            _advise(will_need, ahead, warmth, partial(batch, later))


def _advise(will_need: Callable[[Any], object], ahead: int | None, warmth: Warmth, indices: Callable[[], Any]) -> None:
    most = warmth.wanted() if ahead is None else None
    if most != 0:
        will_need(indices()[:most])


class Warmth:
    """Finds out whether what some threads read is in memory already, by what the kernel says of their reads.

    Outlives the threads: what was warm in one epoch is expected to be so in the next one.
    """

    def __init__(self) -> None:
        self._reads: dict[int, int | None] = {}  # of each thread; one that has the number of an earlier one is new
        self._quiet = 0

    @property
    def is_cold(self) -> bool:
        """Whether something was read from a disk not long ago."""
        return self._quiet < _QUIET

    def begin(self) -> None:
        """Count the reads of the thread that calls, and of no other one."""
        self._reads = {threading.get_ident(): _reads_of_this_thread()}

    def paused(self) -> tuple[int, int | None]:
        """What `resumed` takes when the thread comes back from what it reads for somebody else."""
        return threading.get_ident(), _reads_of_this_thread()

    def resumed(self, paused: tuple[int, int | None]) -> None:
        """Leave out what was read since then; all that another thread has read by now."""
        (thread, before), here, now = paused, threading.get_ident(), _reads_of_this_thread()
        known = self._reads.get(here) if here == thread else None
        if known is None or before is None or now is None:
            self._reads[here] = now
        else:
            self._reads[here] = known + now - before

    def wanted(self) -> int | None:
        """How many samples of the next batch to advise of: None for all, 0, or a few to see whether they are read."""
        thread, reads = threading.get_ident(), _reads_of_this_thread()
        before = self._reads.get(thread, reads)
        self._reads[thread] = reads
        self._quiet = self._quiet + 1 if reads is not None and reads == before else 0
        if self._quiet < _QUIET:
            return None
        return _SAMPLE if self._quiet % _PROBE == 0 else 0


def _reads_of_this_thread() -> int | None:
    """What has grown since the last time if this thread has made the kernel read; None where nobody knows."""
    who = getattr(resource, "RUSAGE_THREAD", None)  # Linux has it
    if who is None:
        return None
    usage = resource.getrusage(who)
    return usage.ru_inblock + usage.ru_majflt
