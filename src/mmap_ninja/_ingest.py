"""How samples arrive: from an iterable or an indexable, in chunks, with progress, by several processes if asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from mmap_ninja.errors import ArgumentError, ArgumentTypeError, MissingExtraError, noted

_TASKS_PER_WORKER = 4  # parts of a batch for each, so that slow samples do not keep the others waiting


def check_jobs(n_jobs: int | None) -> None:
    """Refuse a number of processes that joblib could not make sense of."""
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


def chunks(samples: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` samples, the last one shorter; never an empty one."""
    iterator = iter(samples)
    while chunk := list(islice(iterator, size)):
        yield chunk


def length_of(samples: Any) -> int | None:
    """The number of samples, None where nobody knows."""
    try:
        return len(samples)
    except TypeError:
        return None


def from_iterable(samples: Iterable[Any], start: int, verbose: bool, size: int) -> Iterator[list[Any]]:
    """Lists of `size` samples, from number `start` on; those before are taken and dropped."""
    iterator, number = iter(samples), 0
    try:
        for _ in islice(iterator, start):
            number += 1
    except Exception as error:
        raise noted(error, f"while loading sample {number}")  # noqa: B904 - the same error, with a note
    _check_source(number, start)
    shown = iter(progress(iterator, verbose, length_of(samples), start))
    while True:
        chunk: list[Any] = []
        try:
            chunk.extend(islice(shown, size))  # what it took before an error stays in it
        except Exception as error:
            raise noted(error, f"while loading sample {number + len(chunk)}")  # noqa: B904 - the same error, with a note
        if not chunk:
            return
        yield chunk
        number += len(chunk)


def _check_source(length: int, start: int) -> None:
    """Refuse to resume with a source that ends before what was made of it."""
    if length < start:
        raise ArgumentError(
            f"the source has {length} samples, but {start} were converted before; without resume=True it is built anew"
        )


def from_indexable(indexable: Any, start: int, n_jobs: int | None, verbose: bool, batch_size: int) -> Iterator[Any]:
    """`indexable[i]`, or `indexable(i)`, for i from `start` until its length, or its first `IndexError`."""
    load, total = loader(indexable), length_of(indexable)
    _check_source(start if total is None else total, start)
    if n_jobs in (None, 1):
        samples = _one_by_one(load, start, total)
    else:
        samples = _parallel(load, start, total, n_jobs, batch_size)
    return iter(progress(samples, verbose, total, start))


def loader(indexable: Any) -> Callable[[int], Any]:
    """The function from a number to a sample."""
    if isinstance(indexable, str | bytes | bytearray):
        raise ArgumentTypeError(f"expected an indexable of samples, got a {type(indexable).__name__}")
    if hasattr(indexable, "__getitem__"):
        return indexable.__getitem__  # type: ignore[no-any-return]
    if callable(indexable):
        return indexable  # type: ignore[no-any-return]
    raise ArgumentTypeError(f"a {type(indexable).__name__} is neither indexable nor a function of one integer")


def _one_by_one(load: Callable[[int], Any], start: int, total: int | None) -> Iterator[Any]:
    number = start
    while total is None or number < total:
        samples, is_end = _load(load, number, number + 1, total is None)
        if is_end:
            return
        yield samples[0]
        number += 1


def _load(load: Callable[[int], Any], start: int, stop: int, may_end: bool) -> tuple[list[Any], bool]:
    """The samples `[start, stop)`, and whether the end came before."""
    samples = []
    for number in range(start, stop):
        try:
            samples.append(load(number))
        except Exception as error:
            if may_end and isinstance(error, IndexError):
                return samples, True
            raise noted(error, f"while loading sample {number}")  # noqa: B904 - the same error, with a note
    return samples, False


_shared: dict[str, Callable[[int], Any]] = {}  # in a worker: what the parent sent it once


def _load_shared(path: str, start: int, stop: int, may_end: bool) -> tuple[list[Any], bool]:
    """In a worker: load with the function that the parent has written to `path`."""
    if path not in _shared:
        import cloudpickle

        _shared.clear()
        with open(path, "rb") as file:
            _shared[path] = cloudpickle.load(file)
    return _load(_shared[path], start, stop, may_end)


def _parallel(
    load: Callable[[int], Any], start: int, total: int | None, n_jobs: int | None, batch_size: int
) -> Iterator[Any]:
    """Load in several processes, a batch at a time: the loader travels to each once, then ranges of numbers."""
    try:
        import cloudpickle
        from joblib import Parallel, delayed, effective_n_jobs
    except ImportError:
        raise MissingExtraError("n_jobs needs joblib: pip install mmap-ninja[parallel]") from None
    import tempfile

    size = -(-batch_size // (_TASKS_PER_WORKER * effective_n_jobs(n_jobs)))
    with tempfile.TemporaryDirectory(prefix="mmap_ninja-") as folder, Parallel(n_jobs=n_jobs) as run:
        path = os.path.join(folder, "loader")
        with open(path, "wb") as file:
            cloudpickle.dump(load, file)
        while total is None or start < total:
            stop = start + batch_size if total is None else min(start + batch_size, total)
            bounds = ((first, min(first + size, stop)) for first in range(start, stop, size))
            for samples, is_end in run(delayed(_load_shared)(path, *bound, total is None) for bound in bounds):
                yield from samples
                if is_end:
                    return
            start = stop
