"""What a `tf.data.Dataset` is made of: batches, or samples one by one."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mmap_ninja import Batches, ReaderShard
from mmap_ninja.collate import Layouts, Part
from mmap_ninja.errors import ArgumentError
from mmap_ninja.fields import Fields, each, each_named, have_wrappers, is_ragged, leaves, length, rows
from mmap_ninja_tf import signature as signatures
from mmap_ninja_tf.columns import Columns
from mmap_ninja_tf.convert import Conversion
from mmap_ninja_tf.epochs import Epochs
from mmap_ninja_tf.layouts import check_lengths
from mmap_ninja_tf.signature import Signature

# Autograph would translate all that a function calls, from its source on the disk.
_untranslated: Callable[[Callable[..., Any]], Callable[..., Any]] = tf.autograph.experimental.do_not_convert
_GATHERING = 2  # threads that make batches, where no function of the user's runs in them
_AT_ONCE = 256, 1 << 22  # samples, and bytes, that are read together where they are handed out one by one


class Batched:
    """Batches of `size` samples, of all readers together.

    Args:
        fields: The maps.
        wanted: Which parts of a batch are handed out.
        layouts: Those of the parts.
        size: Samples a batch.
        own: The readers that this process is.
        is_shared: Whether readers elsewhere have to be in the same epoch.
        with_lengths: Whether what is padded has its lengths beside it.
        options: Those of `Batches`.
    """

    def __init__(
        self,
        fields: Fields,
        wanted: Columns,
        layouts: Layouts,
        size: int,
        own: Sequence[ReaderShard],
        *,
        is_shared: bool,
        with_lengths: bool,
        **options: Any,
    ) -> None:
        self._fields, self.wanted, self._size, self._with_lengths = fields, wanted, size, with_lengths
        self._parts = layouts.stored(fields) if options["transform"] is None else None
        self._is_own = options["batch_transform"] is None  # what a transform makes is put together by the core
        self._is_made = self._parts is None or not self._is_own
        layout = layouts.made() if self._parts is None else each(lambda part: part.form.layout, self._parts)
        check_lengths(with_lengths, layout)
        options |= {"layout": layout, "pad_value": layouts.pad_value}
        self.epochs = Epochs([Batches(fields, size, shard=reader, **options) for reader in own], is_shared=is_shared)
        self._count = size // own[0].count if options["drop_last"] else None

    def signature(self) -> Signature:
        """That of a batch; functions are called for the first one to find out."""
        if self._is_made:
            _check_any(self._fields)
            return self._of_value(self.wanted.chosen(self.epochs.batch(0)))
        return self.wanted.chosen(each(self._of_part, self._parts))

    def check(self, signature: Signature) -> None:
        """Refuse a signature that is not that of samples as they are stored. Raises `SampleError`."""
        if not self._is_made and length(self._fields):
            Conversion(signature, is_own=True).arrays(self.wanted.chosen(self.epochs.batch(0)))

    def dataset(self, signature: Signature, threads: int) -> tf.data.Dataset:
        """One epoch, another one at each iteration."""
        self.conversion = conversion = Conversion(signature, is_own=self._is_own)
        dtypes, count, held = [spec.dtype for spec in conversion.specs], len(self.epochs), _reference(self)

        def begin() -> np.int64:
            return np.int64(_alive(held).epochs.begin())

        @_untranslated
        def numbers(_: tf.Tensor) -> tf.data.Dataset:
            first = tf.numpy_function(begin, [], tf.int64)
            return tf.data.Dataset.range(first, first + count)

        def fetch(number: np.int64) -> list[Any]:
            own: Batched = _alive(held)
            return own.conversion.arrays(own.wanted.chosen(own.epochs.batch(int(number))))

        @_untranslated
        def made(number: tf.Tensor) -> Any:
            tensors = tf.numpy_function(fetch, [number], dtypes)
            return conversion.packed(tf.nest.flatten(tensors))  # run eagerly, a single one is in no list

        has_functions = self._is_made or have_wrappers(self._fields)
        calls = threads if has_functions else max(threads, _GATHERING)
        epoch = tf.data.Dataset.range(1).flat_map(numbers)  # begun anew by each iterator
        counted = epoch.apply(tf.data.experimental.assert_cardinality(count))
        return counted.map(made, num_parallel_calls=calls, deterministic=True)

    def _of_part(self, part: Part) -> Signature:
        if part.source.wrapper_fn is None:
            return signatures.of_stored(part, self._count, with_lengths=self._with_lengths)
        _check_any(part.source)
        form = {"layout": part.form.layout, "pad_value": part.form.pad_value}
        return self._of_value(Batches(part.source, self._size, **form).batch(0, 0))

    def _of_value(self, value: Any) -> Signature:
        return signatures.of_value(value, self._count, with_lengths=self._with_lengths)


class Single:
    """Samples one by one, read many at once.

    Args:
        fields: The maps.
        wanted: Which parts of a sample are handed out.
        own: The only reader that this process is.
        is_shared: Whether readers elsewhere have to be in the same epoch.
        options: Those of `Batches`.
    """

    def __init__(self, fields: Fields, wanted: Columns, own: ReaderShard, *, is_shared: bool, **options: Any) -> None:
        self._fields, self.wanted, self._options = fields, wanted, options
        options["layout"] = "list" if options["transform"] is not None else each(_layout, fields)
        self._at_once = _at_once(fields) if options["transform"] is None else 1
        self.epochs = Epochs([Batches(fields, self._at_once * own.count, shard=own, **options)], is_shared=is_shared)
        self._own = own

    def signature(self) -> Signature:
        """That of a sample; functions are called for the first one to find out."""
        if self._options["transform"] is None:
            return self.wanted.chosen(each_named(_of_source, self._fields))
        _check_any(self._fields)
        first = Batches(self._fields, 1, **self._options).batch(0, 0)
        return signatures.of_sample_value(self.wanted.chosen(rows(first)[0]))

    def check(self, signature: Signature) -> None:
        """Refuse a signature that is not that of samples as they are stored. Raises `SampleError`."""
        if self._options["transform"] is None and length(self._fields):
            Conversion(signature, is_own=True).arrays(self.wanted.chosen(rows(self.epochs.batch(0))[0]))

    def dataset(self, signature: Signature, threads: int) -> tf.data.Dataset:
        """One epoch, another one at each iteration."""
        conversion, held = Conversion(signature, is_own=False), _reference(self)
        is_plain = conversion.is_plain  # a map would take half as long as all else

        def samples() -> Iterator[Any]:
            own: Single = _alive(held)
            first = own.epochs.begin()
            for number in range(first, first + len(own.epochs)):
                for sample in map(own.wanted.chosen, rows(own.epochs.batch(number))):
                    yield conversion.structured(sample) if is_plain else tuple(conversion.arrays(sample))

        specs = signature if is_plain else tuple(conversion.specs)
        generated = tf.data.Dataset.from_generator(samples, output_signature=specs)
        counted = generated.apply(tf.data.experimental.assert_cardinality(self._length()))
        return counted if is_plain else counted.map(_untranslated(lambda *tensors: conversion.packed(tensors)))

    def _length(self) -> int:
        """Samples of this reader in an epoch."""
        complete, rest = divmod(length(self._fields), self._at_once * self._own.count)
        return complete * self._at_once - -rest // self._own.count


def _reference(elements: Any) -> Callable[[], Any]:
    """How functions that TensorFlow calls refer to what they need.

    It keeps such functions as long as the process lives. So the dataset has the elements, and what is made of it has
    the dataset; but not in a function that is traced, where only the graph is left of it.
    """
    return (lambda: elements) if tf.inside_function() else weakref.ref(elements)


def _alive(held: Callable[[], Any]) -> Any:
    elements = held()
    if elements is None:
        raise ReferenceError("the dataset that to_tf_dataset has returned is gone: keep it, or what was made of it")
    return elements


def _at_once(fields: Fields) -> int:
    """How many samples are read together: one, where a function makes them, so that an error is that of its sample."""
    count, size = _AT_ONCE
    for _, one in leaves(fields):
        if one.wrapper_fn is not None:
            return 1
        if hasattr(one, "sample_shape"):
            count = min(count, size // max(1, math.prod(one.sample_shape) * one.dtype.itemsize))
        elif len(one):
            count = min(count, size // max(1, one.nbytes // len(one)))
    return max(1, count)


def _layout(source: Any) -> str:
    """That which keeps the dtype: in a list, scalars are those of Python."""
    return "stack" if is_ragged(source) and signatures.axes_of(source) == 0 else "list"


def _of_source(name: str, source: Any) -> Signature:
    if source.wrapper_fn is None:
        return signatures.of_sample(name, source)
    _check_any(source)
    return signatures.of_sample_value(source[0])


def _check_any(fields: Fields) -> None:
    """Refuse to call a function for a sample that there is not."""
    if length(fields) == 0:
        raise ArgumentError(
            "there are no samples, so it cannot be seen what functions make of them: give output_signature="
        )
