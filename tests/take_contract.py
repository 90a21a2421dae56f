"""What `take_jagged` and `take_padded` of any map have to give, worked out in plain Python from `m[i]`."""

import numpy as np


def bits(array):
    """Every bit of every value, without those between the fields of records, which are nobody's."""
    if array.dtype.names:
        array = array.astype([(name, array.dtype[name]) for name in array.dtype.names])
    if array.dtype.char in "gG":  # of which some bytes are not used
        array = array.astype({"g": "f8", "G": "c16"}[array.dtype.char])
    return array.tobytes()


def stored(m, indices):
    """The samples at these indices, one by one, as arrays of the map's dtype."""
    return [stored_sample(m, i) for i in positions_of(m, indices)]


def stored_sample(m, i):
    if m.kind == "dense":
        return m[i : i + 1].reshape(m.shapes[i])
    sample = m[i]
    if m.kind in ("strings", "bytes"):
        return np.frombuffer(sample.encode() if m.kind == "strings" else sample, np.uint8)
    if isinstance(sample, np.ndarray):
        return sample
    return m.memmap[m.starts[i] : m.starts[i] + 1].reshape(())  # a Python number need not have every bit


def positions_of(m, indices):
    everything = np.arange(len(m))
    if isinstance(indices, slice) or (isinstance(indices, np.ndarray) and indices.dtype == bool):
        return everything[indices].tolist()
    indices = list(indices)
    if indices and all(isinstance(i, bool | np.bool_) for i in indices):
        return everything[np.array(indices)].tolist()
    return everything[np.array(indices, int)].tolist()


def padded_shape(shapes, length=None, multiple_of=None, buckets=None):
    """The shape that samples of these shapes are padded to."""
    sizes = [max(axis) for axis in zip(*shapes, strict=True)]
    for axis, limit in enumerate(length if isinstance(length, tuple) else (length,)):
        if limit is not None:
            sizes[axis] = limit
    for axis, step in enumerate(multiple_of if isinstance(multiple_of, tuple) else (multiple_of,)):
        while step is not None and sizes[axis] % step:
            sizes[axis] += 1
    if buckets is not None:
        sizes[0] = min(bucket for bucket in buckets if bucket >= sizes[0])
    return tuple(sizes)


def padded_of(arrays, shape, pad, side):
    """The arrays in one, byte by byte: NaNs, and bytes between the fields of records, count too."""
    dtype = arrays[0].dtype
    raw = np.dtype(f"V{dtype.itemsize}")
    values = np.empty((len(arrays), *shape), raw)
    values[...] = np.asarray(pad, dtype).reshape(1).view(raw)[0]
    for place, array in zip(values, arrays, strict=True) if shape else ():
        begins = [size - own if side == "left" else 0 for size, own in zip(shape, array.shape, strict=True)]
        corner = tuple(slice(begin, begin + own) for begin, own in zip(begins, array.shape, strict=True))
        place[corner] = np.ascontiguousarray(array).view(raw) if array.size else np.empty(array.shape, raw)
    if not shape:
        values = np.array([array.tobytes() for array in arrays], raw)
    return values.view(dtype)


def check_owned(values, m):
    """Written to without harm: it is neither read-only nor a part of the file."""
    assert values.flags.writeable
    assert values.flags.c_contiguous
    assert values.dtype == m.dtype
    if values.nbytes:
        before = values.tobytes()
        values.reshape(-1).view(np.uint8)[...] ^= 255
        assert values.tobytes() != before
        values.reshape(-1).view(np.uint8)[...] ^= 255


def check_jagged(m, indices):
    """`m.take_jagged(indices)` against the samples themselves."""
    found, arrays = m.take_jagged(indices), stored(m, indices)
    assert type(found).__name__ == "Jagged"
    values, offsets, shapes = found
    assert offsets.dtype == shapes.dtype == np.int64
    assert offsets.shape == (len(arrays) + 1,)
    assert offsets.tolist() == [0, *np.cumsum([array.size for array in arrays], dtype=int).tolist()]
    assert values.shape == (offsets[-1],)
    assert bits(values) == b"".join(map(bits, arrays))
    assert shapes.tolist() == m.shapes[positions_of(m, indices)].tolist()
    for shape, array in zip(shapes.tolist(), arrays, strict=True):
        assert tuple(axis for axis in shape if axis >= 0) == array.shape
    check_owned(values, m)
    return found


def check_padded(m, indices, pad_value=0, side="right", pad=None, **options):
    """`m.take_padded(indices, ...)` against the samples themselves; `pad` is what `pad_value` stands for."""
    found = m.take_padded(indices, pad_value, side=side, **options)
    arrays = stored(m, indices)
    assert type(found).__name__ == "Padded"
    values, lengths, shapes = found
    assert lengths.dtype == shapes.dtype == np.int64
    assert lengths.tolist() == m.lengths[positions_of(m, indices)].tolist()
    assert shapes.tolist() == [list(array.shape) for array in arrays]
    if pad is None:
        pad = np.zeros((), m.dtype) if type(pad_value) is int and pad_value == 0 else pad_value
    expected = padded_of(arrays, padded_shape([array.shape for array in arrays], **options), pad, side)
    assert values.shape == expected.shape
    assert bits(values) == bits(expected)
    check_owned(values, m)
    return found
