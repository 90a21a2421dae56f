"""Batches of any map for a training loop: shuffled, gathered ahead, and resumable at every position."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from mmap_ninja import buffers
from mmap_ninja._ahead import Ahead
from mmap_ninja._batch import Among, Made, Maker, Recipe
from mmap_ninja._given import GivenOrder
from mmap_ninja._pace import Pace, Paced
from mmap_ninja._readahead import Warmth, advise_by_number, advised, check_readahead
from mmap_ninja.collate import PADDED, Form, Part, parts
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, MapChangedError, noted
from mmap_ninja.fields import Fields, each, have_wrappers, leaves, length, opened, verify
from mmap_ninja.gather import Array, Empty
from mmap_ninja.indexing import Positions, boolean, integer
from mmap_ninja.order import Order, ReaderShard
from mmap_ninja.pipeline import behind

T = TypeVar("T")

_ALONE = ReaderShard()  # the only reader


class Batches:
    """The batches of a map, or of several side by side, epoch after epoch.

    Args:
        source: A map, a view of one, the path of one, an array in memory, or a dict or tuple of those of one length;
            batches are dicts or tuples then.
        batch_size: Samples a batch, of all readers together. None with `order`.
        shuffle: Whether each epoch comes in an order of its own, which (seed, epoch) decide.
        seed: 0 to 2**64 - 1; the same for all readers.
        drop_last: Whether to leave out the last batch if it is incomplete.
        shard: Which reader this is, and of how many: `ReaderShard(index, count)`. Each gets its part of every batch.
        order: Instead of `shuffle`, `seed`, `drop_last` and `shard`: an iterable of index arrays, one a batch
            (weighted sampling, a curriculum), or an `Order`. It is gone through in the background thread.
        layout: What becomes of samples of several sizes, and of what a function has made: `"list"` (of read-only
            views, or of what was made), `"padded"` (`Padded(values, lengths, shapes)`), `"jagged"`
            (`Jagged(values, offsets, shapes)`) or `"stack"` (one array; refuses samples that differ in shape).
            Samples of a dense map as they are stored are always one array `(b, *sample_shape)`, texts and bytes a
            list. A dict or tuple gives the parts of a batch layouts of their own.
        pad_value: What `"padded"` fills up with; or a `Padding`, which has all options of `take_padded`; or a dict or
            tuple of those.
        transform: A function of one sample (a copy, which it may change), a dict or tuple of samples where `source`
            is one. What it returns makes the batch: dicts and tuples of values, each put together by `layout`.
        batch_transform: A function of one whole batch.
        threads: How many threads call `transform` and `wrapper_fn`; the order stays. They help where functions
            release the GIL: decoding images, NumPy.
        prefetch: How many batches the background thread makes ahead, with a second one that copies half of what is
            large; 0 for no thread. Where no function is called, and handing batches over takes longer than what it
            saves, none are made ahead.
        readahead: How many batches before its turn the kernel is told to read one from the disk; `"auto"` does so as
            long as the disk is read.
        pad_globally: Whether `"padded"` goes by the longest sample of the whole batch, not of this reader's part of it,
            so that all readers have one shape. Only for samples as they are stored, whose lengths are known.
        with_indices: Whether to get `(indices, batch)`: int64 `(b,)`, positions in the source.
        empty: Makes the arrays that are filled and handed out, in C order, as `np.empty(shape, dtype)` does; by default
            `buffers.empty`. Any thread may call it.
        check: Whether to compare every byte of the maps with its checksum first, once for each state of a map in a
            process: what is damaged, and what nothing vouches for, is a `MapCorruptError`.

    Arrays are of the batch alone, and writable: they are not used again as long as anything refers to them. Memory
    of batches that are gone is. Each iteration is the next epoch, from its first batch on, whether the one before it
    was finished or given up; only after `load_state_dict` or `set_epoch`, it begins where they say. It sees the maps as
    they are opened when it begins. With several readers, call `set_epoch` where iterations are given up: an
    `EpochWarning` says so, once. One whose first batch raises counts as given up. May be pickled, with its position,
    and used in forked and spawned workers.

    Raises `ArgumentError`, `ArgumentTypeError`, `MapNotFoundError`, `MapCorruptError`; while iterating
    `MapChangedError` if a map was replaced, `SampleError` for samples that make no batch, and any error of a function
    or a map, with a note that names the batch, its part and the sample.

    Examples:
        >>> from mmap_ninja import RaggedMmap
        >>> m = RaggedMmap.from_lists("rows", [[1], [2, 2], [3, 3, 3]])
        >>> for batch in Batches(m, 2, layout="padded"):
        ...     print(batch.values.tolist(), batch.lengths)
        [[1, 0], [2, 2]] [1 2]
        [[3, 3, 3]] [3]
    """

    def __init__(
        self,
        source: Any,
        batch_size: int | None = None,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        shard: ReaderShard = _ALONE,
        order: Any = None,
        layout: Any = "list",
        pad_value: Any = 0,
        transform: Callable[[Any], Any] | None = None,
        batch_transform: Callable[[Any], Any] | None = None,
        threads: int = 1,
        prefetch: int = 2,
        readahead: int | str = "auto",
        pad_globally: bool = False,
        with_indices: bool = False,
        empty: Empty = buffers.empty,
        check: bool = False,
    ) -> None:
        self._recipe = Recipe(Form(layout, pad_value), transform, batch_transform, threads, empty)
        if empty is not buffers.empty:
            self._recipe = replace(self._recipe, empty=partial(_checked, empty))
        self._prefetch = integer("prefetch", prefetch, 0, what="a number of batches")
        self._readahead = check_readahead(readahead)
        self._warmth, self._pace = Warmth(), Pace(self._prefetch)
        self._with_indices = boolean("with_indices", with_indices)
        self._pad_globally = boolean("pad_globally", pad_globally)
        self._is_checked = boolean("check", check)
        self._fields = opened(source, check=check)
        self._length, self._origins = length(self._fields), _origins(self._fields)
        if transform is None:
            parts(self._fields, self._recipe.form)  # refuses what does not fit
        options = {"shuffle": shuffle, "seed": seed, "drop_last": drop_last, "shard": shard}
        self._order = _order(order, self._length, batch_size, options)
        self._by_number: tuple[int, Fields, Maker] | None = None
        if pad_globally:
            _check_globally(self._fields, self._recipe, self._order)

    def __len__(self) -> int:
        """Batches an epoch. Raises `TypeError` for an `order` that has no length."""
        return len(self._order)

    @property
    def epoch(self) -> int:
        """The epoch that is being gone through, or was given up; else the one that comes next."""
        return self._order.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; a position in that very epoch that was loaded just before stays."""
        self._order.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position, as a dict of plain values: what was handed out counts, what was prefetched does not.

        That of an iteration that was given up is where it was left, until the next one begins.
        """
        return self._order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was called, also with another number of readers. Raises `StateError`."""
        self._order.load_state_dict(state)

    def state_at(self, epoch: int, k: int) -> dict[str, Any]:
        """The state of which batch `k` of an epoch comes next; the position stays."""
        return self._order.state_at(epoch, k)

    def position_of(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """The epoch and the number of the batch that comes next by a state. Raises `StateError`."""
        return self._order.position_of(state)

    def __iter__(self) -> Iterator[Any]:
        return self._order.through(self._from)

    def peek(self) -> Any:
        """The first batch of the next iteration, made in the thread that calls; it does not count, the position stays.

        Raises what iterating raises, and `ArgumentError` where no batch comes, or for an `order` that is an iterator. A
        given order has to give the same batches again: one that draws random numbers by itself does not.
        """
        epoch, k, indices = self._order._first()
        return self._single(self._as_now()[1], epoch, k, indices)

    def batch(self, epoch: int, k: int) -> Any:
        """Batch `k` of an epoch, made in the thread that calls; the position stays.

        For loaders that ask for batches by number, from any threads of their own. Whether the maps are still those
        is looked at where the epoch is another one than that of the batch before; until then they stay open. Raises
        `ArgumentError` where there is no such batch, or for an `order` that was given, and what iterating raises.
        """
        order = self._order
        if not isinstance(order, Order):
            raise ArgumentError("batches of an order that was given have no number: iterate")
        indices, (fields, maker) = order.batch(epoch, k), self._opened(epoch)
        ahead = self._readahead, self._warmth
        advise_by_number(partial(order.batch, epoch), len(order), k, partial(_will_need, fields), *ahead)
        return self._single(maker, epoch, k, indices)

    def through(self, convert: Callable[[Iterator[Any]], Iterator[T]]) -> Iterator[T]:
        """Iterate over `convert(batches)`: what it gives for each batch, in their order.

        It may take batches ahead, to send them to a device, say: only what has come out of it counts as handed out.

        >>> import numpy as np
        >>> list(Batches(np.arange(4), 2).through(lambda batches: (batch.sum() for batch in batches)))
        [np.int64(1), np.int64(5)]
        """
        return self._order.through(lambda epoch, start: convert(self._from(epoch, start)))

    def __repr__(self) -> str:
        return f"Batches({self._order!r}, layout={self._recipe.form.layout!r})"

    def _from(self, epoch: int, start: int) -> Iterator[Any]:
        """The batches of an epoch from number `start` on."""
        fields = each(_pinned, self._fields)
        self._check(fields)
        stopped = threading.Event()
        made, owner = self._begun(fields, epoch, start, stopped), os.getpid()
        try:
            while True:
                if os.getpid() != owner:  # this process was forked from the one that has the threads
                    stopped = threading.Event()  # the generator that is left behind sets its own
                    made, owner = self._begun(fields, epoch, start, stopped), os.getpid()
                try:
                    batch = next(made)
                except StopIteration:
                    return
                start += 1
                yield batch
                del batch  # the memory of one that nobody holds is for the next
        finally:
            stopped.set()
            made.close()

    def _opened(self, epoch: int) -> tuple[Fields, Maker]:
        """The maps as they were when a batch of this epoch was asked for after one of another, and what reads them."""
        opened = self._by_number  # read once: other threads may ask for other epochs
        if opened is None or opened[0] != epoch:
            opened = self._by_number = None  # which lets go of the maps of an older epoch
            self._by_number = opened = epoch, *self._as_now()
        return opened[1:]

    def _as_now(self) -> tuple[Fields, Maker]:
        """The maps as they are now, and what reads them, in the thread that calls."""
        fields = each(_pinned, self._fields)
        self._check(fields)
        return fields, Maker(fields, replace(self._recipe, threads=1), threading.Event())

    def _single(self, maker: Maker, epoch: int, k: int, indices: Positions) -> Any:
        """One batch by itself."""
        batch = _finished(maker.begin(indices, self._among(epoch, k)), epoch, k)
        return (indices, batch) if self._with_indices else batch

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_by_number": None}

    def _among(self, epoch: int, k: int) -> Among | None:
        """The batch of all readers that decides how long the part of this one is padded to, if one does."""
        order = self._order
        if not self._pad_globally or not isinstance(order, Order) or order.shard.count == 1:
            return None
        whole, index = order.whole_batch(epoch, k), order.shard.index
        part = len(whole) // order.shard.count
        return Among(whole, slice(index * part, (index + 1) * part))

    def _check(self, fields: Fields) -> None:
        """Refuse maps that are not those, or not as long, as when these batches were made, or that are damaged."""
        for name, field in leaves(fields):
            if len(field) != self._length:
                raise MapChangedError(
                    f"{name} has {len(field)} samples now, {self._length} when these batches were made: make new ones"
                )
        if _origins(fields) != self._origins:
            raise MapChangedError("a map was replaced since these batches were made: make new ones")
        if self._is_checked:
            verify(fields)

    def _begun(
        self, fields: Fields, epoch: int, start: int, stopped: threading.Event
    ) -> Ahead[Any] | Paced[Any] | Generator[Any, None, None]:
        made = self._made(fields, epoch, start, stopped)
        if not self._prefetch:
            return made
        # A function of the user's may depend on what belongs to a thread: a cursor, or what torch saves for gradients.
        is_own = self._recipe.is_own and isinstance(self._order, Order) and not have_wrappers(fields)
        if is_own:
            return Paced(made, self._prefetch, stopped, self._pace)
        with suppress(RuntimeError):  # no thread can be had
            return Ahead(made, self._prefetch, stopped)
        return made

    def _made(self, fields: Fields, epoch: int, start: int, stopped: threading.Event) -> Generator[Any, None, None]:
        """The same, made in this thread and those for the samples."""
        with Maker(fields, self._recipe, stopped, is_helped=self._prefetch > 0) as maker:
            order, advise = self._order.batches(epoch, start), partial(_will_need, fields)
            batches = advised(order, advise, self._readahead, self._warmth, partial(_expect, fields))
            begun = ((indices, maker.begin(indices, self._among(epoch, k))) for k, indices in enumerate(batches, start))
            # While one batch is finished, the threads are at the next one already.
            for indices, finish in behind(begun, min(self._recipe.threads - 1, 1)):
                batch = _finished(finish, epoch, start)
                del finish
                reads = self._warmth.paused()
                yield (indices, batch) if self._with_indices else batch
                self._warmth.resumed(reads)
                start += 1
                del batch


def _checked(empty: Empty, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """What a function of the user's has made, if it can be filled."""
    made: Any = empty(shape, dtype)
    is_array = isinstance(made, np.ndarray) and made.flags.c_contiguous and made.flags.writeable
    if not is_array or (made.shape, made.dtype) != (shape, dtype):
        raise ArgumentTypeError(f"empty({shape}, {dtype}) has to make a writable array of these in C order")
    return made  # type: ignore[no-any-return]


def _will_need(fields: Fields, indices: Positions) -> None:
    each(lambda field: field.will_need(indices), fields)


def _expect(fields: Fields, random: bool) -> None:
    each(lambda field: field._expect(random=random), fields)


def _finished(made: Made, epoch: int, k: int) -> Any:
    try:
        return made()
    except Exception as error:
        raise noted(error, f"while making batch {k} of epoch {epoch}")  # noqa: B904 - the same error, with a note


def _check_globally(fields: Fields, recipe: Recipe, order: Any) -> None:
    """Refuse to pad by a whole batch whose samples, or whose lengths, are not known."""
    if not isinstance(order, Order):
        raise ArgumentError("pad_globally= needs batches whose whole is known: give no order=, or an Order")
    if recipe.transform is not None or any(_is_open(part) for _, part in leaves(parts(fields, recipe.form))):
        raise ArgumentError(
            "pad_globally= is for samples as they are stored: how long others become is known when functions have "
            "made them; give pad_value=Padding(length=(...)), an entry for each axis"
        )


def _is_open(part: Part) -> bool:
    """Whether a function makes samples, and how long they become may decide how they are padded."""
    length = part.form.padding.length
    is_fixed = isinstance(length, tuple) and None not in length
    return part.source.wrapper_fn is not None and part.form.layout == PADDED and not is_fixed


def _pinned(field: Any) -> Any:
    return field._pinned()


def _origins(fields: Fields) -> list[str | None]:
    """The id of each map. Raises `MapChangedError` if there is another one in its folder now."""
    return [field._origin() for _, field in leaves(fields)]


def _order(order: Any, n: int, batch_size: int | None, options: dict[str, Any]) -> Order | GivenOrder:
    """The order that was given, or one by the options."""
    if order is None:
        if batch_size is None:
            raise ArgumentTypeError("batch_size is missing; only with order= there is none")
        return Order(n, batch_size, **options)
    if batch_size is not None:
        raise ArgumentError(f"batch_size is {batch_size}, but order= says which samples make a batch; leave it out")
    if given := [name for name, value in options.items() if value != _DEFAULTS[name]]:
        raise ArgumentError(f"{', '.join(given)} and order= contradict each other; give only one of them")
    if isinstance(order, Order):
        if order.n != n:
            raise ArgumentError(f"order is for {order.n} samples, source has {n}")
        return order
    return GivenOrder(order, n)


_DEFAULTS = {"shuffle": False, "seed": 0, "drop_last": False, "shard": _ALONE}
