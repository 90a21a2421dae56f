"""One batch from the numbers of its samples: gathered, or read, transformed and put together."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmap_ninja import buffers
from mmap_ninja._ahead import NAME, PATIENCE, is_ours
from mmap_ninja._storage.manifest import DENSE
from mmap_ninja._taking import JAGGED, LIST, PaddedPart
from mmap_ninja.collate import PADDED, Form, Part, collated, parts
from mmap_ninja.errors import ArgumentTypeError, SampleError, noted
from mmap_ninja.fields import TEXTS, Fields, each
from mmap_ninja.gather import Array, Empty, Jagged
from mmap_ninja.indexing import Positions, integer
from mmap_ninja.pipeline import Anywhere

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_TASKS = 4  # of a batch for each thread, so that slow samples do not keep the others waiting
_LARGE = 1 << 22  # bytes from which on two threads gather a batch: by then it takes much longer than to wake one up
_PIECES = 8  # of such a batch, so that neither waits long for the other

Read = Callable[[int], Any]
Made = Callable[[], Any]


@dataclass(frozen=True)
class Recipe:
    """How a batch is made; refuses values that make no sense."""

    form: Form = field(default_factory=Form)
    transform: Callable[[Any], Any] | None = None
    batch_transform: Callable[[Any], Any] | None = None
    threads: int = 1
    empty: Empty = buffers.empty

    @property
    def is_own(self) -> bool:
        """Whether no function of the user's is called, so that it does not matter which thread makes a batch."""
        return self.transform is None and (self.batch_transform is None or isinstance(self.batch_transform, Anywhere))

    def __post_init__(self) -> None:
        self.form.check()
        for name in ("transform", "batch_transform", "empty"):
            function = getattr(self, name)
            if not callable(function) and (function is not None or name == "empty"):
                raise ArgumentTypeError(f"{name} is {function!r}, expected a function")
        integer("threads", self.threads, 1)


class Among(NamedTuple):
    """The samples of a whole batch, and which part of it is asked for."""

    whole: Positions
    part: slice


class Stopped(Exception):
    """Nobody wants the batch any more."""


class Maker:
    """Makes batches of some maps by a recipe, until `stopped` is set.

    `begin` hands the samples of a batch to the threads, if there is something to do for each; what it returns waits
    for them and puts the batch together. With one thread all of it happens there. If `is_helped`, another thread
    takes part in copying what is large.
    """

    def __init__(self, fields: Fields, recipe: Recipe, stopped: threading.Event, *, is_helped: bool = False) -> None:
        self._fields, self._recipe, self._stopped = fields, recipe, stopped
        self._parts = parts(fields, recipe.form) if recipe.transform is None else None
        self._begun: deque[Future[Any]] = deque(maxlen=3 * _TASKS * recipe.threads)  # of two batches, and more
        self._threads = _executor(recipe.threads) if recipe.threads > 1 else None
        self._is_helped = is_helped and _cores() > 1
        self._helper: ThreadPoolExecutor | None = None
        self._owner = os.getpid()

    def __enter__(self) -> Maker:
        return self

    def __exit__(self, *_: object) -> None:
        """Forget what was begun, and wait for the threads, for as long as `Ahead.close` does."""
        self._stopped.set()
        if os.getpid() != self._owner:  # the threads are in the process that this one was forked from
            return
        running = [executor for executor in (self._threads, self._helper) if executor is not None]
        for executor in running:
            executor.shutdown(wait=False, cancel_futures=True)
        if running:
            begun = [future for future in self._begun if not future.cancelled()]  # those are never "done" for `wait`
            _futures().wait(begun, timeout=0 if is_ours() else PATIENCE)

    def begin(self, indices: Positions, among: Among | None = None) -> Made:
        """Start on a batch; what is returned finishes it. Stored samples are padded as the batch they are among."""
        recipe = self._recipe
        made: Made
        if recipe.transform is None:
            made = partial(each, _call, each(partial(self._begin_part, indices, among), self._parts))
        else:
            made = self._begin(partial(_transformed, recipe.transform, self._fields), indices, recipe.form)
        if recipe.batch_transform is None:
            return made
        return partial(_chained, recipe.batch_transform, made)

    def _begin_part(self, indices: Positions, among: Among | None, part: Part) -> Made:
        made: Made
        if part.source.wrapper_fn is not None:
            made = self._begin(part.source.__getitem__, indices, part.form)
        elif part.source.kind == DENSE:
            made = partial(self._dense, part.source, indices)
        else:
            made = partial(_gathered, part.source, indices, part.form, self._recipe.empty, among)
        return made if part.name == "source" else partial(_named, part.name, made)

    def _dense(self, one: Any, indices: Positions) -> Array:
        """Samples of one shape as an array. Two threads copy what is large a third faster than one."""
        values: Array = self._recipe.empty((len(indices), *one.sample_shape), one.dtype)
        if not self._is_helped or values.nbytes < _LARGE:
            _fill(values, one, indices)
            return values
        size = -(-len(values) // _PIECES)
        pieces = deque(slice(first, first + size) for first in range(0, len(values), size))
        fill = partial(_fill_pieces, pieces, values, one, indices)
        other = self._begun_beside(fill)
        fill()
        if other is not None and not other.cancel():  # a helper that has not come to it is not waited for
            other.result()
        return values

    def _begun_beside(self, work: Made) -> Future[Any] | None:
        """Work that the helper does, None where there are no new threads any more: at the end of the interpreter."""
        try:
            self._helper = self._helper or _executor(1)
            self._begun.append(self._helper.submit(work))
        except RuntimeError:
            self._helper, self._is_helped = None, False  # it would keep the work
            return None
        return self._begun[-1]

    def _begin(self, read: Read, indices: Positions, form: Form) -> Made:
        """Read samples by all threads at once, and collate them."""
        numbers, read_some = indices.tolist(), partial(_read, read, self._stopped)
        if self._threads is None:
            return partial(_collated, partial(read_some, numbers), indices, form, self._recipe.empty)
        size = -(-len(numbers) // (_TASKS * self._recipe.threads))
        begun = [
            self._threads.submit(read_some, numbers[first : first + size]) for first in range(0, len(numbers), size)
        ]
        self._begun.extend(begun)
        return partial(_collated, partial(_results, begun), indices, form, self._recipe.empty)


def _call(made: Made) -> Any:
    return made()


def _chained(function: Callable[[Any], Any], made: Made) -> Any:
    return function(made())


def _named(name: str, made: Made) -> Any:
    try:
        return made()
    except Exception as error:
        raise noted(error, f"of {name}")  # noqa: B904 - the same error, with a note


def _read(read: Read, stopped: threading.Event, numbers: Sequence[int]) -> list[Any]:
    samples = []
    for number in numbers:
        if stopped.is_set():  # whoever leaves a loop does not wait for a batch that takes seconds
            raise Stopped
        try:
            samples.append(read(number))
        except Exception as error:
            raise noted(error, f"while making sample {number}")  # noqa: B904 - the same error, with a note
    return samples


def _results(parts: Sequence[Future[list[Any]]]) -> list[Any]:
    return list(chain.from_iterable(part.result() for part in parts))


def _collated(samples: Made, indices: Positions, form: Form, empty: Empty) -> Any:
    return collated(samples(), indices, form, empty)


def _transformed(transform: Callable[[Any], Any], fields: Fields, number: int) -> Any:
    return transform(each(partial(_own, number), fields))


def _own(number: int, one: Any) -> Any:
    """A sample that a user's function may change, unless the map says that it will not."""
    sample = one[number]
    is_view = one.wrapper_fn is None and isinstance(sample, np.ndarray | np.void)
    return copy(sample) if is_view and one.copy_before_wrapper_fn else sample


def _executor(threads: int) -> ThreadPoolExecutor:
    made: ThreadPoolExecutor = _futures().ThreadPoolExecutor(threads, NAME)
    return made


@cache  # at the end of the interpreter, when something may have to be closed yet, nothing can be imported
def _futures() -> Any:
    from concurrent import futures  # takes 10 ms

    return futures


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fill_pieces(pieces: deque[slice], values: Array, one: Any, indices: Positions) -> None:
    """Fill the pieces that are left, of which another thread may take some: whichever is faster."""
    while True:
        try:
            piece = pieces.popleft()
        except IndexError:  # none is left
            return
        _fill(values[piece], one, indices[piece])


def _fill(values: Array, one: Any, indices: Positions) -> None:
    # Without a result: a future would keep it, and with it the memory of the batch.
    one._gather(indices, LIST, lambda shape, _: values.reshape(shape))


def _gathered(one: Any, indices: Positions, form: Form, empty: Empty, among: Among | None) -> Any:
    """The stored samples of one map: of texts and bytes a list, in every layout."""
    if one.kind in TEXTS or form.layout == LIST:
        return one._gather(indices, LIST, empty)
    if form.layout == PADDED:
        if among is None:
            return one._gather(indices, form.padding, empty)
        return one._gather(among.whole, PaddedPart(form.padding, among.part), empty)
    batch = one._gather(indices, JAGGED, empty)
    return batch if form.layout == JAGGED else _stacked(batch, indices)


def _stacked(batch: Jagged, indices: Positions) -> Array:
    """Samples of one shape as an array."""
    shapes = batch.shapes
    other = np.flatnonzero((shapes != shapes[0]).any(axis=1))
    if len(other):
        k = other[0]
        raise SampleError(
            f"sample {indices[0]} has shape {_shape(shapes[0])}, sample {indices[k]} {_shape(shapes[k])}: they do not "
            "stack; layout='list' or 'jagged' takes them, 'padded' those of as many axes"
        )
    return batch.values.reshape(len(shapes), *_shape(shapes[0]))


def _shape(row: Positions) -> tuple[int, ...]:
    return tuple(row[row >= 0].tolist())
