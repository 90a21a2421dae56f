"""Batches of samples that differ in size, for a stock DataLoader: `DataLoader(..., collate_fn=pad_collate())`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmap_ninja import Padding
from mmap_ninja.buffers import empty
from mmap_ninja.collate import Form, collated
from mmap_ninja.errors import ArgumentTypeError, MmapNinjaError, noted
from mmap_ninja.fields import alike, each_part, named_parts
from mmap_ninja_torch import convert

Collate = Callable[[Sequence[Any]], Any]

_IN_OTHER_WORDS = (
    "in a collate_fn, where samples are counted within the batch; the layouts 'padded', 'jagged' and 'list' are "
    "pad_collate, jagged_collate and list_collate, and pad_value is padding_value"
)


def pad_collate(
    padding_value: Any = 0,
    *,
    length: int | Sequence[int | None] | None = None,
    side: str = "right",
    multiple_of: int | Sequence[int | None] | None = None,
    buckets: Sequence[int] | None = None,
) -> Collate:
    """A `collate_fn` that fills samples up to one shape: `Padded(values, lengths, shapes)` of tensors.

    `values` is `(b, *shape)`, on each axis as long as the longest sample of the batch, or as `take_padded` of a map has
    it by the same options; `lengths` is int64 `(b,)`, `shapes` int64 `(b, ndim)`. Dicts and tuples are collated part by
    part; if `padding_value` is one too, the parts that it has a value for are padded, all others stacked. Numbers and
    tensors of no axis are always stacked, texts and bytes become a list. Raises `SampleError` for samples that differ
    in dtype or in their number of axes.

    Examples:
        >>> import torch
        >>> samples = [(torch.tensor([1, 2]), torch.zeros(4)), (torch.tensor([3]), torch.ones(4))]
        >>> batch = pad_collate((-1,))(samples)
        >>> batch[0].values.tolist(), batch[0].lengths.tolist(), batch[1].shape
        ([[1, 2], [3, -1]], [2, 1], torch.Size([2, 4]))
    """

    def padding(value: Any) -> Any:
        if isinstance(value, Mapping | tuple):
            return each_part(padding, value)
        if isinstance(value, list):
            raise ArgumentTypeError("padding_value is a list; pad_collate makes a collate_fn: collate_fn=pad_collate()")
        return value if isinstance(value, Padding) else Padding(value, length, side, multiple_of, buckets)

    def layout(value: Any) -> Any:
        return each_part(layout, value) if isinstance(value, Mapping | tuple) else "padded"

    return _Collate(Form(layout(padding_value), padding(padding_value), rest="stack"))


def jagged_collate(samples: Sequence[Any], *, parts: Iterable[Any] | None = None) -> Any:
    """A `collate_fn` that makes nested tensors in layout `torch.jagged`, ragged on the first axis of a sample.

    Dicts and tuples are collated part by part; tensors of no axis and numbers are stacked, texts and bytes become a
    list. With `parts`, keys or positions, only those become nested tensors, and all others are stacked:
    `collate_fn=functools.partial(jagged_collate, parts=["tokens"])`. Raises `SampleError` for samples that differ on
    another axis, too.

    Examples:
        >>> import torch
        >>> batch = jagged_collate([torch.tensor([1, 2]), torch.tensor([3])])
        >>> batch.values().tolist(), batch.offsets().tolist()
        ([1, 2, 3], [0, 2, 3])
    """
    layout = "jagged" if parts is None else dict.fromkeys(parts, "jagged")
    return _Collate(Form(layout, rest="stack"))(samples)


def list_collate(samples: Sequence[Any]) -> Any:
    """A `collate_fn` that makes lists, of any shapes; tensors of no axis and numbers are stacked.

    Dicts and tuples are collated part by part: images and labels become a list of images and a tensor of labels.

    Examples:
        >>> import torch
        >>> list_collate([(torch.zeros(2), 7), (torch.zeros(1), 8)])
        ([tensor([0., 0.]), tensor([0.])], tensor([7, 8]))
    """
    first = samples[0]
    if isinstance(first, Mapping | tuple):
        keys = [key for key, _ in named_parts(first)]
        return alike(first, {key: list_collate([sample[key] for sample in samples]) for key in keys})
    is_scalar = isinstance(first, np.generic)
    return convert.stacked([convert.sample(one) for one in samples] if is_scalar else list(samples))


@dataclass(frozen=True)
class _Collate:
    form: Form

    def __call__(self, samples: Sequence[Any]) -> Any:
        try:
            made = collated([convert.arrays(sample) for sample in samples], np.arange(len(samples)), self.form, empty)
            return convert.batch(made, self.form)
        except MmapNinjaError as error:
            raise noted(error, _IN_OTHER_WORDS)  # noqa: B904 - the same error, with a note
