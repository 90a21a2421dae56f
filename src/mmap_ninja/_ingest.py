"""How samples arrive: from an iterable or an indexable, in chunks, with progress, by several processes if asked."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from mmap_ninja.errors import ArgumentError, ArgumentTypeError, noted

if TYPE_CHECKING:
    from mmap_ninja._worker import Task

Chunks = Iterator[Iterator[Any]] | Iterator[list[Any]]

_TASKS_PER_WORKER = 4  # parts of a batch for each, so that slow samples do not keep the others waiting


def check_jobs(n_jobs: int | None) -> None:
    """Refuse a number of processes that makes no sense."""
    if n_jobs is not None and type(n_jobs) is not int:
        raise ArgumentTypeError(f"n_jobs is {n_jobs!r}, expected an integer or None")
    if n_jobs == 0:
        raise ArgumentError("n_jobs is 0, expected a number of processes, -1 for as many as there are cores, or None")


def progress(samples: Iterable[Any], verbose: bool, total: int | None, done: int = 0) -> Iterable[Any]:
    """The same samples, shown in a progress bar if `verbose`."""
    if not verbose:
        return samples
    from tqdm.auto import tqdm

    return tqdm(samples, total=total, initial=done, unit="samples")  # type: ignore[no-any-return]


@contextmanager
def byte_progress(what: str, verbose: bool, total: int | None) -> Iterator[Callable[[int], object]]:
    """A function to call with each number of bytes that was read, shown in a progress bar if `verbose`."""
    if not verbose:
        yield lambda count: None
        return
    from tqdm.auto import tqdm

    with tqdm(desc=what, total=total, unit="B", unit_scale=True) as bar:
        yield bar.update


def chunks(samples: Iterable[Any], size: int) -> Iterator[Iterator[Any]]:
    """Iterators over the next `size` samples each, the last one shorter; never an empty one.

    Each is to be used up before the next. `samples` may be asked again after its end: it is a list or a generator.
    """
    iterator = iter(samples)
    for first in iterator:
        yield chain((first,), islice(iterator, size - 1))


def _slices(samples: list[Any], start: int, size: int) -> Iterator[list[Any]]:
    """Parts of `size` samples, from number `start` on, of a list: no code of the user's runs between two of them."""
    return (samples[first : first + size] for first in range(start, len(samples), size))


def _ending(samples: Iterable[Any]) -> Iterator[Any]:
    """The samples up to the first end: as a generator, it ends for good; errors tell the number of the sample."""
    number = 0
    try:
        for sample in samples:
            yield sample
            number += 1
    except Exception as error:
        raise noted(error, f"while loading sample {number}")  # noqa: B904 - the same error, with a note


def length_of(samples: Any) -> int | None:
    """The number of samples, None where nobody knows."""
    try:
        return len(samples)
    except TypeError:
        return None


def from_iterable(samples: Iterable[Any], start: int, verbose: bool, size: int) -> Chunks:
    """Chunks of `size` samples, from number `start` on; those before are taken and dropped."""
    if type(samples) is list and not verbose:
        _check_source(len(samples), start)
        return _slices(samples, start, size)
    source = _ending(samples)
    _check_source(sum(1 for _ in islice(source, start)), start)
    return chunks(progress(source, verbose, length_of(samples), start), size)


def _check_source(length: int, start: int) -> None:
    """Refuse to resume with a source that ends before what was made of it."""
    if length < start:
        raise ArgumentError(
            f"the source has {length} samples, but {start} were converted before; without resume=True it is built anew"
        )


@contextmanager
def from_indexable(indexable: Any, n_jobs: int | None, verbose: bool, size: int) -> Iterator[Callable[[int], Chunks]]:
    """A function from `start` to chunks of `size` samples `indexable[i]`, or `indexable(i)`, from that number on.

    They go on until its length, or its first `IndexError`. At the end of the `with` block no process is left.
    """
    with ExitStack() as stack:

        def begin(start: int) -> Chunks:
            load, total = loader(indexable), length_of(indexable)
            _check_source(start if total is None else total, start)
            if type(indexable) is list and n_jobs in (None, 1) and not verbose:
                return _slices(indexable, start, size)
            samples = (
                _one_by_one(load, start, total)
                if n_jobs is None or n_jobs == 1
                else _parallel(load, start, total, n_jobs, size)
            )
            stack.callback(samples.close)
            return chunks(progress(samples, verbose, total, start), size)

        yield begin


def loader(indexable: Any) -> Callable[[int], Any]:
    """The function from a number to a sample."""
    if isinstance(indexable, str | bytes | bytearray):
        raise ArgumentTypeError(f"expected an indexable of samples, got a {type(indexable).__name__}")
    if hasattr(indexable, "__getitem__"):
        return indexable.__getitem__  # type: ignore[no-any-return]
    if callable(indexable):
        return indexable  # type: ignore[no-any-return]
    raise ArgumentTypeError(f"a {type(indexable).__name__} is neither indexable nor a function of one integer")


def _one_by_one(load: Callable[[int], Any], start: int, total: int | None) -> Generator[Any]:
    number = start
    while total is None or number < total:
        try:
            sample = load(number)
        except Exception as error:
            if total is None and isinstance(error, IndexError):
                return
            raise noted(error, f"while loading sample {number}")  # noqa: B904 - the same error, with a note
        yield sample
        number += 1


def _parallel(load: Callable[[int], Any], start: int, total: int | None, n_jobs: int, size: int) -> Generator[Any]:
    """Load in several processes; those of a chunk are shared out in several parts for each."""
    from mmap_ninja._workers import Workers, count_of

    count = count_of(n_jobs)
    part = -(-size // (_TASKS_PER_WORKER * count))
    if total is not None:
        count = min(count, -(-(total - start) // part))
    with Workers(load, count) as workers:
        for outcome in workers.outcomes(_tasks(start, total, size, part)):
            if outcome.error is not None:
                raise outcome.error
            yield from outcome.samples
            if outcome.is_end:
                return


def _tasks(start: int, total: int | None, size: int, part: int) -> Iterator[Task]:
    """Parts of chunks, none of which is of two chunks."""
    from mmap_ninja._worker import Task

    while total is None or start < total:
        stop = start + size if total is None else min(start + size, total)
        for first in range(start, stop, part):
            yield Task(first, min(first + part, stop), total is None)
        start = stop
