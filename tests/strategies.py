"""What hypothesis draws: dtypes, arrays of every layout and any bits, and values that may or may not fit a dtype."""

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

BOOLS_AND_INTS = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i2", ">i4", ">u8"]
FLOATS = ["f2", "f4", "f8", ">f4", ">f8", "g"]
COMPLEX = ["c8", "c16", ">c8", "G"]
TIMES = ["M8[ns]", "M8[D]", "M8[7D]", ">M8[s]", "m8[us]", "m8[h]", "m8[Y]"]
TEXTS = ["S3", "U2", ">U1", "V5"]
RECORDS = [
    [("x", "<f4"), ("y", ">i2")],
    [("name", "U2"), ("box", "<i4", (2, 2)), ("inner", [("flag", "?"), ("at", "M8[s]")])],
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
]
EXTENDED = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4, ml_dtypes.uint4]
# Code points; NumPy cannot read a text with a greater number in it than the last.
CHARACTERS = [0, 1, ord("a"), ord("ö"), 0xD800, 0xFFFF, 0x10000, 0x10FFFF]

NUMBERS = [np.dtype(d) for d in BOOLS_AND_INTS + FLOATS + COMPLEX + [ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]]
ALL = [np.dtype(d) for d in BOOLS_AND_INTS + FLOATS + COMPLEX + TEXTS + TIMES + RECORDS + EXTENDED]

shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@st.composite
def arrays(draw, dtype, shape=shapes):
    """An array of any bits that the dtype can have, in any layout."""
    array = _of_bits(draw, dtype, draw(shape))
    layout = draw(st.sampled_from(["C", "F", "strided", "reversed", "read-only", "repeated", "transposed"]))
    if layout == "F":
        array = np.asarray(array, order="F")
    elif layout == "strided":
        wide = np.zeros((*array.shape, 2), dtype)
        wide[..., 0] = array
        array = wide[..., 0]
    elif layout == "reversed":
        array = array[::-1] if array.ndim else array
    elif layout == "read-only":
        array.flags.writeable = False
    elif layout == "repeated":
        array = np.broadcast_to(array, (2, *array.shape))
    elif layout == "transposed":
        array = array.T
    return array


def _of_bits(draw, dtype, shape):
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=int))
    if dtype.kind == "U":
        size = count * dtype.itemsize // 4
        codes = draw(st.lists(st.sampled_from(CHARACTERS), min_size=size, max_size=size))
        return np.array(codes, np.dtype("u4").newbyteorder(dtype.byteorder)).view(dtype).reshape(shape)
    size = count * dtype.itemsize
    small = st.integers(0, 1 if dtype.kind == "b" or dtype.names is not None else 255)  # not all bits are values
    raw = bytes(draw(st.lists(small, min_size=size, max_size=size))) if size < 64 else draw(_many(size, small))
    if dtype.kind == "V" and "int" in dtype.name:
        raw = bytes(byte & 7 for byte in raw)
    array = np.frombuffer(bytearray(raw), dtype, count).reshape(shape)
    for name in dtype.names or []:
        if dtype[name].kind == "U":
            array[name] = draw(st.sampled_from(["", "a", "\0\U0010ffff"]))
    if dtype.char in "gG" or dtype.isalignedstruct:  # copies need not keep the bytes between values
        array = np.zeros(shape, dtype)
        for name in dtype.names or [...]:
            array[name] = draw(st.sampled_from([0, 1, -0.0, 0.1, -100]))
    return array


def _many(size, byte):
    return st.lists(byte, min_size=8, max_size=8).map(lambda few: (bytes(few) * (size // 8 + 1))[:size])


@st.composite
def numbers(draw, dtype):
    """A 1-D array of a few numbers, many of them at the edges of this and other dtypes."""
    values = draw(st.lists(_number(dtype), min_size=1, max_size=3))
    with np.errstate(all="ignore"):
        return np.array(values).astype(dtype) if dtype.kind == "V" else np.array(values, dtype)


def _number(dtype):
    if dtype.kind == "b":
        return st.booleans()
    if dtype.kind in "iu":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        edges = [
            0,
            1,
            -1,
            127,
            128,
            -128,
            255,
            256,
            2**11 + 1,
            2**24,
            2**24 + 1,
            2**31,
            2**53,
            2**53 + 1,
            2**63,
            -(2**63),
        ]
        edges += [2**64 - 1, low, high]
        return st.sampled_from([e for e in edges if low <= e <= high]) | st.integers(low, high)
    edges = [
        0.0,
        -0.0,
        0.5,
        1.0,
        255.0,
        256.0,
        -129.0,
        2049.0,
        65504.0,
        65520.0,
        2.0**24 + 1,
        2.0**53,
        2.0**63,
        -(2.0**63),
    ]
    edges += [2.0**64, 0.1, 1e-8, 1e-320, 3.4e38, 1e39, float("inf"), float("-inf"), float("nan")]
    real = st.sampled_from([_fits(e, dtype) for e in edges]) | st.floats(width=16)
    return st.builds(complex, real, st.just(0.0) | real) if dtype.kind == "c" else real


def _fits(value, dtype):
    """The value, as near as the dtype has one."""
    with np.errstate(all="ignore"):
        part = np.dtype({"c": "f8" if dtype.itemsize > 8 else "f4"}.get(dtype.kind, dtype))
        return float(np.array([value]).astype(part).astype(float)[0])


weak = st.one_of(
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.sampled_from([2**24 + 1, 2**53 + 1, 255, 256, -129, 2049, 70_000]),
    st.floats(),
    st.sampled_from([0.1, 1.0, 1e39, 1e300, 65504.0, 70_000.0]),
    st.builds(complex, st.floats(width=32), st.sampled_from([0.0, 1.0])),
)
