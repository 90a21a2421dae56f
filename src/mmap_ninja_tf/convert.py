"""NumPy's batches as tensors. Nothing else here knows how tensors are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mmap_ninja.errors import SampleError
from mmap_ninja.fields import each, leaves, named_parts
from mmap_ninja.gather import Jagged, Padded
from mmap_ninja_tf.arrays import Array, alone, as_array


class Conversion:
    """Takes elements of a signature apart into arrays, and puts tensors of those together again.

    `is_own` says whether the elements are made by the core alone, so that nobody else has them.
    """

    def __init__(self, signature: Any, *, is_own: bool) -> None:
        self._leaves, self._is_own = each(_Leaf, signature), is_own
        self.specs = [part.spec for _, leaf in leaves(self._leaves) for part in leaf.parts]  # of the tensors

    def arrays(self, value: Any) -> list[Array]:
        """The element as arrays, one for each tensor, of which nobody else has the memory: TensorFlow may write there.

        Raises `SampleError` if it has another signature.
        """
        roots: set[int] = set()
        return [alone(array, roots, is_own=self._is_own) for array in _arrays(value, self._leaves)]

    @property
    def is_plain(self) -> bool:
        """Whether each leaf is a single tensor."""
        return all(len(leaf.parts) == 1 for _, leaf in leaves(self._leaves))

    def structured(self, value: Any) -> Any:
        """The arrays of an element of which each leaf is a single tensor, in its dicts and tuples."""
        following = iter(self.arrays(value))
        return each(lambda _: next(following), self._leaves)

    def packed(self, tensors: Sequence[tf.Tensor]) -> Any:
        """The tensors as dicts and tuples of tensors and ragged tensors."""
        following = iter(tensors)
        return each(lambda leaf: leaf.packed([next(following) for _ in leaf.parts]), self._leaves)


class _Part:
    """One of the tensors that a leaf of a signature is made of."""

    def __init__(self, spec: tf.TensorSpec) -> None:
        self.spec, self._dtype = spec, np.dtype(spec.dtype.as_numpy_dtype)
        self._shape = None if spec.shape.rank is None else tuple(spec.shape.as_list())

    def check(self, array: Array) -> None:
        """Refuse what TensorFlow would convert, or take for something else."""
        if array.dtype != self._dtype or not self._has(array.shape):
            raise SampleError(
                f"an array of dtype {array.dtype} and shape {array.shape} came, but the signature says {self.spec}; "
                "give output_signature= where functions make arrays of several shapes"
            )

    def _has(self, shape: tuple[int, ...]) -> bool:
        expected = self._shape
        if expected is None:
            return True
        return len(shape) == len(expected) and all(
            size is None or size == found for size, found in zip(expected, shape, strict=True)
        )


class _Leaf:
    """A tensor or ragged tensor of a signature."""

    def __init__(self, spec: tf.TypeSpec) -> None:
        self._spec = spec
        self.parts = [_Part(part) for part in tf.nest.flatten(spec, expand_composites=True)]
        self._ragged_rank, self._splits_dtype = 0, np.dtype(np.int64)
        if isinstance(spec, tf.RaggedTensorSpec):
            self._ragged_rank = spec.ragged_rank
            self._splits_dtype = np.dtype(spec.row_splits_dtype.as_numpy_dtype)

    def arrays(self, value: Any) -> list[Array]:
        """The values and, if it is ragged, the row splits of each ragged axis."""
        found = self._apart(value)
        for array, part in zip(found, self.parts, strict=True):
            part.check(array)
        return found

    def _apart(self, value: Any) -> list[Array]:
        if self._ragged_rank:
            return self._ragged(value)
        if isinstance(value, Jagged):
            if value.shapes.shape[1]:
                raise SampleError(f"samples of several sizes came, but the signature says {self._spec}")
            value = value.values
        return [as_array(value)]

    def packed(self, tensors: Sequence[tf.Tensor]) -> Any:
        for tensor, part in zip(tensors, self.parts, strict=True):
            tensor.set_shape(part.spec.shape)  # as `arrays` has checked
        return tf.nest.pack_sequence_as(self._spec, tensors, expand_composites=True)

    def _ragged(self, value: Any) -> list[Array]:
        if not isinstance(value, Jagged):
            raise SampleError(f"a {type(value).__name__} came, but the signature says {self._spec}")
        shapes, rank = value.shapes, self._ragged_rank
        if shapes.shape[1] != len(self._spec.shape) - 1 or (shapes < 0).any():
            raise SampleError(f"samples of shapes {shapes.tolist()!r:.100} came, but the signature says {self._spec}")
        inner = shapes[0, rank:]
        other = np.flatnonzero((shapes[:, rank:] != inner).any(axis=1))
        if len(other):
            one, two = (tuple(shapes[k].tolist()) for k in (0, other[0]))
            raise SampleError(f"samples of shapes {one} and {two} came, but the signature says {self._spec}")
        splits, rows = [], np.ones(len(shapes), np.int64)
        for axis in range(rank):
            lengths = np.repeat(shapes[:, axis], rows) if axis else shapes[:, axis]
            splits.append(np.zeros(len(lengths) + 1, np.int64))
            np.cumsum(lengths, out=splits[-1][1:])
            rows = rows * shapes[:, axis]
        splits = [one.astype(self._splits_dtype, copy=False) for one in splits]
        return [as_array(value.values).reshape(int(rows.sum()), *inner.tolist()), *splits]


def _arrays(value: Any, expected: Any) -> list[Array]:
    if isinstance(value, Padded):
        parts = {"values": value.values, "lengths": value.lengths}
        return _arrays(parts if isinstance(expected, Mapping) else value.values, expected)
    is_apart = isinstance(value, Mapping | tuple) and not isinstance(value, Jagged)
    if not isinstance(expected, Mapping | tuple):
        if is_apart:
            raise SampleError(f"a {type(value).__name__} came, but the signature has one tensor there")
        return list(expected.arrays(value))
    found, keys = dict(named_parts(value)) if is_apart else {}, [key for key, _ in named_parts(expected)]
    if found.keys() != set(keys):
        what = f"parts {list(found)}" if is_apart else f"a {type(value).__name__}"
        raise SampleError(f"{what} came, but the signature has parts {keys}")
    return [array for key, part in named_parts(expected) for array in _arrays(found[key], part)]
