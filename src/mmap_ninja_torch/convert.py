"""Arrays of NumPy as tensors, and back. Nothing else here knows how the two share memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from mmap_ninja.collate import Form
from mmap_ninja.errors import ArgumentTypeError, SampleError, about
from mmap_ninja.fields import TEXTS, Fields, alike, each_part, like, named_parts
from mmap_ninja.fields import opened as fields_of
from mmap_ninja.gather import Jagged
from mmap_ninja.gather import Padded as PaddedArrays

Array = np.ndarray[Any, np.dtype[Any]]


class Padded(NamedTuple):
    """Samples in one tensor `values` of shape `(b, *shape)`, which each of them fits into.

    `lengths` is int64 `(b,)`, the length of each sample (1 for scalars); `shapes` int64 `(b, ndim)`.
    """

    values: Tensor
    lengths: Tensor
    shapes: Tensor


def opened(source: Any, mode: str = "r", *, check: bool = False) -> Fields:
    """The maps of a source, in which tensors on the CPU count as arrays."""
    return fields_of(arrays(source), mode=mode, check=check)


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """The dtype of tensors that hold these values. Raises `ArgumentTypeError` where torch has none."""
    return tensor(np.empty(0, dtype)).dtype


def tensor(array: Array) -> Tensor:
    """A tensor of the array's memory, which it keeps; of a copy where the byte order is not the machine's.

    Memory that torch has allocated stays torch's: its allocator has to know what a copy to a device still reads.
    The dtypes of `ml_dtypes` that torch has under the same name (bfloat16, float8_e4m3fn) go over bit by bit. Raises
    `ArgumentTypeError` for a dtype that torch lacks.
    """
    dtype = array.dtype
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    found = getattr(torch, dtype.name, None) if dtype.type.__module__.startswith("ml_dtypes") else None
    if isinstance(found, torch.dtype) and found.is_floating_point:  # its int4 has no operations
        return tensor(array.view(f"u{dtype.itemsize}")).view(found)
    try:
        made = torch.from_numpy(array)
        owner = _owner(array)
        return made if owner is None else _part(owner, made)
    except ValueError:  # torch has no negative strides
        return torch.from_numpy(array.copy())
    except TypeError:
        raise ArgumentTypeError(
            f"torch has no dtype for {dtype}; give a wrapper_fn (of MmapDataset, or of open_map), which makes of one "
            "sample what torch knows"
        ) from None


def _owner(array: Array) -> Tensor | None:
    """The tensor that the array's memory belongs to, if there is one."""
    base: Any = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, Tensor) else None


def _part(owner: Tensor, made: Tensor) -> Tensor:
    """The same tensor as a part of the one that its memory belongs to."""
    offset, size = made.data_ptr() - owner.untyped_storage().data_ptr(), made.element_size()
    if offset % size:  # nothing of ours: torch cannot say where it lies
        return made
    whole = torch.empty(0, dtype=made.dtype, device="cpu").set_(owner.untyped_storage())
    return whole.as_strided(made.shape, made.stride(), offset // size)


def sample(value: Any, dtype: np.dtype[Any] | None = None) -> Any:
    """One sample as a tensor; texts and bytes, and what is no array and no number, as they are.

    An array gives its memory, unless it is read-only. `dtype` is that of the map, for the scalars that are Python's.
    """
    if isinstance(value, np.ndarray):
        return tensor(value if value.flags.writeable else value.copy())
    if isinstance(value, np.generic):
        return tensor(np.array(value))
    if isinstance(value, bool | int | float | complex) and dtype is not None:
        return tensor(np.array(value, dtype))
    return value


def samples(value: Any, dtypes: Any) -> Any:
    """The same for dicts and tuples of samples, of maps of these dtypes."""
    if isinstance(dtypes, dict):
        return {key: samples(value[key], part) for key, part in dtypes.items()}
    if isinstance(dtypes, tuple):
        return like(value, map(samples, value, dtypes))
    return sample(value, dtypes)


def dtype_of(name: str, field: Any) -> np.dtype[Any] | None:
    """The dtype of a map whose samples become tensors, else None. Raises `ArgumentTypeError` if torch has none."""
    if field.wrapper_fn is not None or field.kind in TEXTS:
        return None
    dtype: np.dtype[Any] = field.dtype
    with about(name):
        torch_dtype(dtype)
    return dtype


def arrays(value: Any) -> Any:
    """The tensors in dicts and tuples as arrays of their memory."""
    if isinstance(value, Tensor):
        return _array(value)
    return each_part(arrays, value) if isinstance(value, Mapping | tuple) else value


def _array(one: Tensor) -> Array:
    one = one.detach().resolve_conj().resolve_neg()
    try:
        return one.numpy()
    except TypeError:  # NumPy has no bfloat16 by itself
        import ml_dtypes

        name = str(one.dtype).removeprefix("torch.")
        return one.view(getattr(torch, f"uint{8 * one.element_size()}")).numpy().view(getattr(ml_dtypes, name))


def batch(value: Any, form: Form, known: dict[bytes, Tensor] | None = None) -> Any:
    """A batch of NumPy's as one of tensors.

    `Padded` keeps its name; `Jagged` becomes a nested tensor, or a list of tensors where the layout is `"list"`. Nested
    tensors whose samples are equally long share their offsets, which torch asks for where it combines them.
    """
    known = {} if known is None else known
    if isinstance(value, Jagged):
        return split(value) if form.layout == "list" else nested(value, known)
    if isinstance(value, PaddedArrays):
        return Padded(*map(tensor, value))
    if isinstance(value, np.ndarray):
        return tensor(value)
    if isinstance(value, list):
        return stacked(list(map(sample, value)))
    if isinstance(value, Mapping | tuple):
        keys = [key for key, _ in named_parts(value)]
        return alike(value, {key: batch(part, form.part(keys, key), known) for key, part in named_parts(value)})
    return value


def stacked(values: list[Any]) -> Any:
    """One tensor of values that are all numbers or tensors of no axis; others stay a list."""
    first = values[0]
    if isinstance(first, Tensor):
        is_scalar = all(isinstance(one, Tensor) and one.ndim == 0 for one in values)
        return torch.stack(values) if is_scalar else values
    return default_collate(values) if isinstance(first, bool | int | float | complex) else values


def split(value: Jagged) -> Any:
    """Samples that lie end to end as tensors of their own shapes, all of them parts of one memory.

    To autograd they have nothing to do with each other: one may be changed in place while it needs another one.
    Scalars become one tensor.
    """
    if value.shapes.shape[1] == 0:
        return tensor(value.values)
    sizes = np.diff(value.offsets).tolist()
    parts = tensor(value.values).split_with_sizes(sizes)
    if value.shapes.shape[1] == 1 and (value.shapes >= 0).all():
        return [part.data for part in parts]
    shapes = ([size for size in shape if size >= 0] for shape in value.shapes.tolist())
    return [part.view(shape).data for part, shape in zip(parts, shapes, strict=True)]


def nested(value: Jagged, known: dict[bytes, Tensor]) -> Tensor:
    """Samples that lie end to end as a nested tensor in layout `torch.jagged`, without a copy.

    It is `(b, j, *inner)`, where only the first axis of a sample may be of any length. Raises `SampleError` for
    samples that differ on another axis too, or are scalars.
    """
    shapes, offsets, values = value.shapes, value.offsets, tensor(value.values)
    if shapes.shape[1] == 0 or shapes.min() < 0:
        raise SampleError(
            'a nested tensor is made of samples of one number of axes, of which there is at least one; layout="stack" '
            'takes scalars, "list" everything'
        )
    lengths = shapes[:, 0]
    if shapes.shape[1] > 1:
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        values = values.view(int(offsets[-1]), *_inner_shape(shapes))
    shortest, longest = int(lengths.min()), int(lengths.max())
    shared = known.setdefault(offsets.tobytes(), tensor(offsets))
    return torch.nested.nested_tensor_from_jagged(values, shared, min_seqlen=shortest, max_seqlen=longest)


def _inner_shape(shapes: Array) -> list[int]:
    """How long all axes but the first are, the same for all samples."""
    other = np.flatnonzero((shapes[:, 1:] != shapes[0, 1:]).any(axis=1))
    if len(other):
        one, two = (tuple(shapes[k].tolist()) for k in (0, other[0]))
        raise SampleError(
            f"samples of shapes {one} and {two} differ on more than their first axis, and a nested tensor has one "
            'ragged axis; layout="padded" or "list" takes them'
        )
    inner: list[int] = shapes[0, 1:].tolist()
    return inner
