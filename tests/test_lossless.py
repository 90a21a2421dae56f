"""What goes in comes out, every bit of it, or nothing is stored."""

import collections
import itertools
import subprocess
import sys
from array import array as array_of
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import strategies
from contracts import same, tree
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, lossless
from mmap_ninja.errors import ArgumentTypeError, SampleError, SampleTypeError

modest = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
more = settings(modest, max_examples=200)
fresh = itertools.count()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map"


def new(tmp_path):
    return tmp_path / str(next(fresh))


def bits(array):
    """Every bit of every value, without those between the fields of aligned records, which are nobody's."""
    array = np.asarray(array)
    if array.dtype.isalignedstruct:
        array = array.astype([(name, array.dtype[name]) for name in array.dtype.names])
    return array.tobytes()


def make(tmp_path, samples, **options):
    return RaggedMmap.from_lists(new(tmp_path), samples, sync=False, **options)


# -- an oracle that knows nothing of NumPy's casts ---------------------------------------------------------------------


def exact(value):
    """A number as (real, imaginary), each a Fraction, or the name of what is no number."""
    if isinstance(value, complex | np.complexfloating):
        return exact(value.real)[0], exact(value.imag)[0]
    if isinstance(value, bool | int | np.bool_ | np.integer):
        return Fraction(int(value)), Fraction(0)
    if not isinstance(value, np.longdouble):
        value = float(value)
    if value != value:
        return "nan", Fraction(0)
    if value in (float("inf"), float("-inf")):
        return str(float(value)), Fraction(0)
    return Fraction(*value.as_integer_ratio()), Fraction(0)


def representable(parts, dtype):
    """Whether the dtype has exactly this number."""
    real, imaginary = parts
    if dtype.kind == "c":
        part = np.dtype({8: "f4", 16: "f8", 32: "g"}[dtype.itemsize])
        return representable((real, 0), part) and representable((imaginary, 0), part)
    if imaginary != 0:
        return False
    if dtype.kind in "biu":
        low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        return isinstance(real, Fraction) and real.denominator == 1 and low <= real <= high
    if not isinstance(real, Fraction):
        return True
    info = np.finfo(dtype) if dtype.isbuiltin == 1 or not dtype.isnative else ml_dtypes.finfo(dtype)
    digits, least, most = int(info.nmant) + 1, int(info.minexp) - int(info.nmant), int(info.maxexp)
    if real == 0:
        return True
    if real.denominator & (real.denominator - 1) or abs(real) >= Fraction(2) ** most:
        return False
    twos = (real.numerator & -real.numerator).bit_length() - 1
    lowest = twos - (real.denominator.bit_length() - 1)
    return abs(real.numerator >> twos if real.numerator > 0 else -real.numerator >> twos).bit_length() <= digits and (
        lowest >= least
    )


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u8", "c8", "?", "g"])
def test_oracle_says_that_every_value_of_a_dtype_is_one(dtype):
    dtype = np.dtype(dtype)
    count = 4000 if dtype.kind == "f" else 200
    raw = np.random.default_rng(3).integers(0, 256, count * dtype.itemsize, dtype=np.uint8)
    raw = raw & 1 if dtype.kind == "b" else raw
    values = np.zeros(10, dtype) + np.arange(10).astype(dtype) if dtype.char == "g" else raw.view(dtype)
    with np.errstate(all="ignore"):
        assert all(representable(exact(value), dtype) for value in values)


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (256, "u1", False), (0.5, "i8", False), (2049, "f2", False), (2048, "f2", True), (65505, "f2", False),
        (65536, "f2", False), (2**24 + 1, "f4", False), (0.1, "f4", False), (0.1, "f8", True), (2**-149, "f4", True),
        (2**-150, "f4", False), (1j, "f8", False), (float("nan"), "i8", False), (float("nan"), "f2", True),
        (2**63, "i8", False), (2**63, "u8", True), (2, "?", False), (257, ml_dtypes.bfloat16, False),
    ],
)  # fmt: skip
def test_oracle_can_say_no(value, dtype, expected):
    assert representable(exact(value), np.dtype(dtype)) is expected


# -- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", strategies.ALL, ids=str)
@modest
@given(data=st.data())
def test_ragged_round_trip(tmp_path, dtype, data):
    arrays = data.draw(st.lists(strategies.arrays(dtype), min_size=1, max_size=4))
    m = RaggedMmap(make(tmp_path, arrays).out_dir)
    assert m.dtype == dtype
    assert bits(m.memmap.astype(dtype)) == b"".join(map(bits, arrays))
    for found, array in zip(m, arrays, strict=True):
        if array.ndim == 0 and dtype.kind in "biuf":
            assert repr(found) == repr(array.item())
        else:
            assert found.dtype == dtype
            assert found.shape == array.shape
            assert bits(found.astype(dtype)) == bits(array)


@pytest.mark.parametrize("dtype", strategies.ALL, ids=str)
@modest
@given(data=st.data())
def test_dense_round_trip(tmp_path, dtype, data):
    shape = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple))
    array = data.draw(strategies.arrays(dtype, st.just(shape)))
    array = array if array.ndim and len(array) else np.zeros((1, 2), dtype)
    m = DenseMmap(DenseMmap.from_ndarray(new(tmp_path), array, sync=False).out_dir)
    m.extend(array, sync=False)
    if array.ndim > 1:
        m.extend(list(array), sync=False)
    assert m.dtype == dtype
    assert m[:].shape[1:] == array.shape[1:]
    assert bits(m[:].astype(dtype)) == bits(array) * (3 if array.ndim > 1 else 2)


@modest
@given(samples=st.lists(st.binary(max_size=50), max_size=6), level=st.sampled_from([None, 1, 19]))
def test_bytes_round_trip(tmp_path, samples, level):
    m = BytesMmap.from_bytes(new(tmp_path), samples, zstd_level=level, sync=False)
    assert list(BytesMmap(m.out_dir)) == samples


@modest
@given(samples=st.lists(st.text(max_size=20), max_size=6), level=st.sampled_from([None, 3]))
def test_texts_round_trip(tmp_path, samples, level):
    m = StringsMmap.from_strings(new(tmp_path), samples, zstd_level=level, sync=False)
    assert list(StringsMmap(m.out_dir)) == samples
    assert m.lengths.tolist() == [len(text.encode()) for text in samples]


@pytest.mark.parametrize("bits", [0x7FF8000000000001, 0xFFF8DEADBEEF0001, 0x7FF0000000000001, 0x8000000000000000])
def test_nan_payloads_and_negative_zero(path, bits):
    array = np.array([bits], "u8").view("f8")
    m = RaggedMmap.from_lists(path, [np.zeros(1), array])
    m.append(array)
    assert m[1].view("u8")[0] == m[2].view("u8")[0] == bits


def test_byte_order_and_strides_of_a_later_batch(path):
    m = RaggedMmap.from_lists(path, [np.arange(3, dtype="<i4")])
    m.append(np.arange(6, dtype=">i4")[::2])
    m.append(np.asfortranarray(np.arange(6).reshape(2, 3)))
    assert [sample.tolist() for sample in m] == [[0, 1, 2], [0, 2, 4], [[0, 1, 2], [3, 4, 5]]]
    assert all(sample.dtype == "<i4" for sample in m)


# -- numbers of one dtype in a map of another --------------------------------------------------------------------


@more
@given(data=st.data())
def test_array_in_a_map_of_another_dtype(tmp_path, data):
    source, target = (data.draw(st.sampled_from(strategies.NUMBERS), label=label) for label in ("source", "target"))
    array = data.draw(strategies.numbers(source), label="array")
    scalar = data.draw(st.booleans(), label="0-d")
    expected = [exact(value) for value in (array[:1] if scalar else array)]
    sample = array[0] if scalar else array
    m = make(tmp_path, [np.zeros(1, target)])
    if all(representable(parts, target) for parts in expected):
        m.append(sample, sync=False)
        found = m.memmap[1:]
        assert found.dtype == target
        assert [exact(value) for value in found] == expected
    else:
        with pytest.raises(SampleError, match=r"sample 1 .* cannot be stored"):
            m.append(sample, sync=False)
        assert len(m) == 1


@more
@given(data=st.data())
def test_array_in_a_map_whose_dtype_was_asked_for(tmp_path, data):
    """`dtype=` allows floats to round; integers, overflows, fractions and imaginary parts are refused as ever."""
    source, target = (data.draw(st.sampled_from(strategies.NUMBERS), label=label) for label in ("source", "target"))
    array = data.draw(strategies.numbers(source), label="array")
    numbers = [exact(value) for value in array]
    m = make(tmp_path, [np.zeros(1, target)], dtype=target)
    try:
        m.append(array, sync=False)
    except SampleError:
        assert not all(representable(parts, target) for parts in numbers)
        return
    for before, after in zip(numbers, (exact(value) for value in m.memmap[1:]), strict=True):
        if target.kind in "biu":
            assert after == before
        else:
            assert all(map(is_rounded, before, after))


def is_rounded(before, after):
    if not isinstance(before, Fraction) or not isinstance(after, Fraction):
        return before == after
    return abs(before - after) <= max(abs(before) / 7, Fraction(1, 2**13))


@more
@given(data=st.data())
def test_python_numbers_in_a_map(tmp_path, data):
    """Weak, as in NEP 50: integers have to fit, floats may round, neither may overflow or lose a part."""
    values = data.draw(st.lists(strategies.weak, min_size=1, max_size=3), label="values")
    target = data.draw(st.sampled_from(strategies.NUMBERS), label="target")
    sample = values[0] if data.draw(st.booleans(), label="scalar") else values
    values = [sample] if sample is values[0] else values
    m = make(tmp_path, [np.zeros(1, target)])
    try:
        m.append(sample, sync=False)
    except (SampleError, SampleTypeError):
        assert len(m) == 1
        return
    for value, stored in zip(values, m.memmap[1:], strict=True):
        before, after = exact(value), exact(stored)
        if isinstance(value, int) or target.kind in "biu":
            assert after == before
        else:
            assert all(map(is_rounded, before, after))


@pytest.mark.parametrize(
    ("target", "sample", "stored"),
    [
        ("f4", 0.1, np.float32(0.1)), ("f4", [0.1, 0.5], [np.float32(0.1), 0.5]), ("f4", [[0.1]], [[np.float32(0.1)]]),
        ("f2", (0.1,), [np.float16(0.1)]), ("i2", 5, 5), ("i2", [5.0], [5]), ("f4", 7, 7.0), ("u1", True, 1),
        ("c8", [0.1], [np.complex64(0.1)]), ("f8", [1 + 0j], [1.0]), ("f4", [1, 0.1], [1, np.float32(0.1)]),
        ("f4", float("inf"), float("inf")), ("?", 1, True), ("i2", [], []), ("i1", np.array([], "f8"), []),
        ("f8", np.float32(0.1), float(np.float32(0.1))), ("i8", np.array([2.0**62]), [2**62]),
        ("u8", [2**64 - 1], [2**64 - 1]),
    ],
)  # fmt: skip
def test_stored(path, target, sample, stored):
    m = RaggedMmap.from_lists(path, [np.zeros(1, target), sample])
    assert np.asarray(m[1]).dtype == target or np.ndim(stored) == 0
    assert np.array_equal(m[1], stored)


@pytest.mark.parametrize(
    ("target", "sample", "match"),
    [
        ("f4", np.float64(0.1), "value 0.1 cannot be stored exactly as float32; dtype= at creation allows rounding"),
        ("f4", np.array([0.5, 0.1]), r"the float64 value 0.1 cannot be stored exactly as float32; dtype= at creation"),
        ("f4", [np.float64(0.1)], "the float64 value 0.1 cannot be stored exactly as float32"),
        ("f4", [np.array([0.1])], "the float64 value 0.1 cannot be stored exactly as float32"),
        ("f4", 2**24 + 1, "the int64 value 16777217 cannot be stored exactly as float32"),
        ("f4", [2**24 + 1], "the int64 value 16777217 cannot be stored exactly as float32"),
        ("f4", [0.5, 2**24 + 1], "16777217"),
        ("f8", [0.5, 2**53 + 1], "the integer 9007199254740993 between floats cannot be stored exactly as float64"),
        ("c16", [1j, 2**53 + 1], "9007199254740993"),
        ("f8", [np.int64(2**53 + 1), 0.5], "9007199254740993"),
        ("f8", [np.array([2**53 + 1]), np.array([0.5])], "9007199254740993"),
        ("f8", [np.uint64(2**64 - 1), np.int64(-1)], "18446744073709551615"),
        ("f4", 1e39, "1e\\+39 cannot be stored exactly as float32"),
        ("f4", [1e39], "1e\\+39 cannot be stored exactly as float32"),
        ("f2", 70000, "70000 cannot be stored exactly as float16"),
        ("i2", 0.5, "the float64 value 0.5 cannot be stored exactly as int16"),
        ("i2", [1.5], "the float64 value 1.5 cannot be stored exactly as int16"),
        ("i2", 32768, "the int64 value 32768 cannot be stored exactly as int16"),
        ("u1", -1, "the int64 value -1 cannot be stored exactly as uint8"),
        ("u8", [-1], "the int64 value -1 cannot be stored exactly as uint64"),
        ("i8", np.array([2**63], "u8"), "the uint64 value 9223372036854775808 cannot be stored exactly as int64"),
        ("i8", np.array([2.0**63]), "cannot be stored exactly as int64"),
        ("i8", [float("nan")], "the float64 value nan cannot be stored exactly as int64"),
        ("i8", [float("inf")], "the float64 value inf cannot be stored exactly as int64"),
        ("?", 2, "the int64 value 2 cannot be stored exactly as bool"),
        ("f8", [1 + 2j], r"the complex128 value \(1\+2j\) cannot be stored exactly as float64"),
        ("f8", 1j, "the complex128 value 1j cannot be stored exactly as float64"),
        ("i8", 1j, "the complex128 value 1j cannot be stored exactly as int64"),
        ("c8", np.array([complex(float("nan"), 0.1)]), "cannot be stored exactly as complex64"),
        ("c8", np.array([complex(0.1, float("nan"))]), "cannot be stored exactly as complex64"),
        ("f8", np.array(["1.5"]), "<U3 values cannot be stored in a map of float64"),
        ("f8", np.array([b"1"]), r"\|?S1 values cannot be stored in a map of float64"),
        ("U3", np.array([1]), "int64 values cannot be stored in a map of <U3"),
        ("S3", np.array([1.5]), "float64 values cannot be stored in a map of"),
        ("S3", np.array(["a"]), "<U1 values cannot be stored in a map of"),
        ("U3", np.array([b"a"]), "S1 values cannot be stored in a map of"),
        ("U3", np.array(["abcd"]), "abcd cannot be stored exactly as <U3"),
        ("M8[D]", np.array(["2020-01-01T12"], "M8[h]"), "2020-01-01T12 cannot be stored exactly as datetime64"),
        ("M8[ns]", np.array(["9999-01-01"], "M8[D]"), "9999-01-01 cannot be stored exactly as datetime64"),
        ("m8[s]", np.array([1], "M8[s]"), "values cannot be stored in a map of timedelta64"),
        ("i8", np.array([1], "M8[s]"), "values cannot be stored in a map of int64"),
        ("M8[s]", np.array([1]), "int64 values cannot be stored in a map of datetime64"),
        ("M8[ns]", np.array(["9999-01-01"], "M8[s]"), "9999-01-01T00:00:00 cannot be stored exactly as datetime64"),
        ("m8[as]", np.array([2**62], "m8[s]"), "4611686018427387904 seconds cannot be stored exactly as timedelta64"),
        ("m8[s]", np.array([2**60], "m8[16s]"), "cannot be stored exactly as timedelta64"),
        ("m8[D]", np.array([4], "m8[Y]"), "4 years cannot be stored exactly as timedelta64"),
        ("m8[Y]", np.array([1461], "m8[D]"), "1461 days cannot be stored exactly as timedelta64"),
        ("m8[s]", np.timedelta64(5), "5 generic time units cannot be stored exactly as timedelta64"),
        ("M8[7D]", np.array(["1970-01-09"], "M8[D]"), "1970-01-09 cannot be stored exactly as datetime64"),
        ("M8[M]", np.array(["1970-01-02"], "M8[D]"), "1970-01-02 cannot be stored exactly as datetime64"),
        ("M8[D]", np.array([2**60], "M8[Y]"), "cannot be stored exactly as datetime64"),
        ("i4,f4", np.array([1]), "int64 values cannot be stored in a map of"),
        ("i4,f4", np.zeros(1, "i4,f8"), "values cannot be stored in a map of"),
        ("V3", np.zeros(1, "V4"), "values cannot be stored in a map of"),
        (ml_dtypes.bfloat16, np.array([1.1]), "cannot be stored exactly as bfloat16"),
        (ml_dtypes.int4, np.array([8]), "the int64 value 8 cannot be stored exactly as int4"),
        (ml_dtypes.uint4, np.array([-1], ml_dtypes.int4), "the int4 value -1 cannot be stored exactly as uint4"),
        (ml_dtypes.int4, np.array([8], ml_dtypes.uint4), "the uint4 value 8 cannot be stored exactly as int4"),
        ("f8", np.array([1j], ml_dtypes.complex32), "the complex32 value .* cannot be stored exactly as float64"),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_refused(path, target, sample, match):
    m = RaggedMmap.from_lists(path, [np.zeros(1, target)])
    before = tree(path)
    with pytest.raises(SampleError, match=match) as caught:
        m.append(sample)
    assert "sample 1 (item 0 of this batch)" in str(caught.value)
    assert tree(path) == before


@pytest.mark.parametrize(
    ("dtype", "sample"),
    [
        ("f8", np.array([1 + 2j])), ("f4", np.array([1e39])), ("f2", np.array([70_000])), ("i4", np.array([0.5])),
        ("u1", np.array([256])), ("c8", np.array([1e300 + 0j])), ("c8", np.array([complex(float("nan"), 1e300)])),
        (ml_dtypes.float8_e4m3fn, np.array([1e6])), (ml_dtypes.float4_e2m1fn, np.array([100.0])),
        (ml_dtypes.float4_e2m1fn, np.array([float("nan")])), (ml_dtypes.bfloat16, np.array([1e39])),
        ("f4", np.array(["1.5"])), ("f4", [[1 + 2j]]), ("i4", [0.5]),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_refused_in_a_map_whose_dtype_was_asked_for(path, dtype, sample):
    with pytest.raises(SampleError, match=r"sample 0 .* cannot be stored"):
        RaggedMmap.from_lists(path, [sample], dtype=dtype)
    assert not path.exists()


def test_dtype_allows_rounding_from_then_on(path):
    m = RaggedMmap.from_lists(path, [np.array([0.1])], dtype="f4")
    m.append(np.array([0.2]))
    other = RaggedMmap(path)
    other.extend([np.array([1e-300]), np.array([2**24 + 1])])
    assert other.memmap.tolist() == np.array([0.1, 0.2, 0, 2**24], "f4").tolist()
    dense = DenseMmap.from_ndarray(path, np.array([0.1]), dtype=np.float16)
    dense.extend(np.array([0.3]))
    assert dense[:].tolist() == np.array([0.1, 0.3], "f2").tolist()


@pytest.mark.parametrize("dtype", [str, bytes, "M8", "m8", "V", object, ("i4", (2,)), "no such dtype"], ids=repr)
@pytest.mark.parametrize("samples", [[], "some"], ids=repr)
def test_dtype_that_no_map_can_have(path, dtype, samples):
    """Of no fixed size, of Python objects, or none at all: such a map could not be read back."""
    good = {str: [["a"], ["bcd"]], bytes: [[b"a"], [b"bcd"]], "M8": [np.array([0, 1], "M8[s]")]}.get(dtype, [[1], [2]])
    with pytest.raises((ArgumentTypeError, SampleError, SampleTypeError), match=r"dtype|cannot be stored"):
        RaggedMmap.from_lists(path, good if samples else [], dtype=dtype)
    assert not path.exists()


ENDLESS = [[1]]
ENDLESS[0].append(ENDLESS)


class HandsOut:
    """What numpy asks for an array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __repr__(self):
        return f"HandsOut({self.array!r})"


@pytest.mark.parametrize(
    ("sample", "match"),
    [
        (None, "a NoneType is no array of values"),
        ({"a": 1}, "a dict is no array of values"),
        ({1, 2}, "a set is no array of values"),
        (object(), "a object is no array of values"),
        (np.array([None, 1]), r"Python objects \(dtype object\) cannot be stored"),
        (np.array([[1], [2, 3]], object), r"Python objects \(dtype object\) cannot be stored"),
        (np.zeros(2, [("a", "O")]), r"Python objects \(dtype object\) cannot be stored"),
        ([1, None], "a list is no array of values"),
        ([[1], [2, 3]], "a list that is no regular array"),
        ([2**64], "a list is no array of values"),
        (2**64, "a int is no array of values"),
        ("text", "a str is no array; StringsMmap stores texts, BytesMmap bytes"),
        (b"bytes", "a bytes is no array; StringsMmap stores texts, BytesMmap bytes"),
        (np.ma.array([1, 2], mask=[False, True]), "a masked array would lose its mask; fill it first"),
        ([np.ma.array([1, 2], mask=[False, True])], "mask"),
        (np.ma.array([(1, 2)], "i4,i4", mask=[(False, True)]), "a masked array would lose its mask; fill it first"),
        (np.ma.array([(1, 2)], "i4,i4", mask=[(False, True)])[0], "a masked array would lose its mask"),
        (np.ma.array([((1, 2),)], [("a", "i4", 2)], mask=[((False, True),)]), "a masked array would lose its mask"),
        ([np.ma.array([(1, 2)], "i4,i4", mask=[(False, True)])], "a masked array would lose its mask"),
        (collections.deque([np.ma.array([1], mask=[True])]), "a masked array would lose its mask"),
        (np.ma.array(5, mask=True), "a masked array would lose its mask"),
        (np.ma.masked, "a masked array would lose its mask"),
        ([1.0, np.ma.masked], "a masked array would lose its mask"),
        (HandsOut(np.ma.array([1, 2], mask=[False, True])), "a masked array would lose its mask"),
        ([HandsOut(np.ma.array([1, 2], mask=[False, True]))], "a masked array would lose its mask"),
        (collections.UserDict({0: 5}), "a UserDict is no array of values"),
        ([collections.UserDict({0: 5})], "a UserDict is no array of values"),
        ([{"a": 1}], "a list is no array of values"),
        (ENDLESS, "a list nested more than 64 deep is no array"),
        ([(i for i in range(2))], "a list is no array of values"),
        ((i for i in range(2)), "a generator is no array of values"),
        (collections.deque(["a\0", "b"]), "cannot be stored exactly as <U2"),
        (collections.UserList([b"a\0"]), "cannot be stored exactly as"),
        ([np.str_("a\0")], "cannot be stored exactly as <U"),
        (np.str_("a\0"), "cannot be stored exactly as <U"),
        (np.bytes_(b"a\0"), "cannot be stored exactly as"),
        ([np.int64(1), np.array(["a"])], "cannot be stored exactly as|no regular array"),
        (np.zeros(2, "V0"), "have no bytes to store"),
        (np.array(["a"], np.dtypes.StringDType()) if hasattr(np.dtypes, "StringDType") else None, "cannot|no array"),
        ([1, "a"], "str|text|<U"),
        ([True, "a"], "str|text|<U"),
        (["a", b"b"], "bytes|text|<U"),
        (np.zeros(1, [("a", "i4"), ("b", ml_dtypes.bfloat16)]), "bfloat16|cannot be stored"),
        (
            np.zeros(1, np.dtype({"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 0]})),
            "overlap|cannot be stored",
        ),
    ],
    ids=lambda value: repr(value)[:40].partition(" at 0x")[0],
)
def test_no_sample(path, sample, match):
    with pytest.raises(SampleTypeError, match=match) as caught:
        RaggedMmap.from_lists(path, [sample])
    assert "sample 0 (item 0 of this batch)" in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize(
    "sample",
    [
        np.ma.array([1, 2]), np.ma.array([1, 2], mask=[False, False]), [np.ma.array([1, 2])], [np.ma.array(1), 2],
        HandsOut(np.ma.array([1, 2])),
    ],
    ids=range(5),
)  # fmt: skip
def test_masked_array_without_a_mask_is_an_array(path, sample):
    assert same(RaggedMmap.from_lists(path, [sample])[0].reshape(-1), np.array([1, 2]))


def test_records_without_a_mask_are_records(path):
    records = np.array([(1, 2)], "i4,i4")
    assert same(RaggedMmap.from_lists(path, [np.ma.array(records), np.ma.array(records)[0]])[0], records)


def test_masked_array_of_dense_samples(path):
    with pytest.raises(SampleTypeError, match="a masked array would lose its mask"):
        DenseMmap.from_ndarray(path, np.ma.array([1, 2], mask=[False, True]))
    m = DenseMmap.from_ndarray(path, np.array([1]))
    with pytest.raises(SampleTypeError, match="a masked array would lose its mask"):
        m.extend(np.ma.array([1, 2], mask=[False, True]))
    assert len(m) == 1


def test_structured_dtypes_differ_by_their_names(path):
    m = RaggedMmap.from_lists(path, [np.zeros(2, [("a", "i4"), ("b", "i4")])])
    with pytest.raises(SampleError, match="cannot be stored in a map of"):
        m.append(np.zeros(2, [("b", "i4"), ("a", "i4")]))


@pytest.mark.parametrize("dtype", ["i4", "f4", "U2", "M8[s]"])
def test_dense_batch_of_another_dtype_is_checked_value_by_value(path, dtype):
    m = DenseMmap.from_ndarray(path, np.zeros(2, dtype))
    good = {"i4": np.array([1, 2]), "f4": np.array([0.5]), "U2": np.array(["a", "b "]), "M8[s]": np.array([1], "M8[m]")}
    bad = {"i4": np.array([1, 2**31]), "f4": np.array([0.1]), "U2": np.array(["abc"]), "M8[s]": np.array([1], "M8[ms]")}
    m.extend(good[dtype])
    with pytest.raises(SampleError, match="cannot be stored exactly as"):
        m.extend(bad[dtype])
    assert np.array_equal(m[2:], good[dtype])


@pytest.mark.parametrize("sample", [["a\0", "b"], [b"a\0", b"b"]], ids=repr)
def test_texts_that_numpy_would_shorten(path, sample):
    with pytest.raises(SampleTypeError, match="cannot be stored exactly"):
        RaggedMmap.from_lists(path, [sample])


@pytest.mark.parametrize("values", [np.array([1000]), np.array([1000.0])], ids=lambda values: values.dtype.name)
def test_nothing_saturates(path, values):
    with pytest.raises(SampleError, match="cannot be stored exactly as float4_e2m1fn"):
        DenseMmap.from_ndarray(path, values, dtype=ml_dtypes.float4_e2m1fn)


# -- sequences of every class ----------------------------------------------------------------------------------------


class Own:
    """A sequence that is read once: its second iteration gives other values."""

    def __init__(self, values):
        self.values = list(values)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, i):
        return self.values[i]

    def __iter__(self):
        values, self.values = self.values, [0] * len(self.values)
        return iter(values)


class HandsOver(list):
    """A class of the user's that derives from list."""


SEQUENCES = [list, tuple, collections.deque, collections.UserList, Own, HandsOver]


@pytest.mark.parametrize("kind", SEQUENCES, ids=["list", "tuple", "deque", "UserList", "own", "derived"])
def test_a_sequence_is_stored_as_a_list_is(path, kind):
    m = RaggedMmap.from_lists(path, [np.zeros(1, "f4")])
    m.append(kind([0.1, 1, True]))  # weak, as the numbers in a list are
    m.append(kind([kind([1, 2]), kind([3, 4])]))
    m.append(kind([kind([np.float32(0.5), 2]), np.array([3.0, 4])]))
    assert m[1].tolist() == [np.float32(0.1), 1, 1]
    assert m[2].tolist() == [[1, 2], [3, 4]]
    assert m[3].tolist() == [[0.5, 2], [3, 4]]
    for bad in (
        [0.5, 2**24 + 1], [[0.5, 2**24 + 1]], [np.float64(0.1), 1], [np.array([0.1]), np.array([1.0])],
        [2**53 + 1, 0.5], [kind([2**53 + 1]), kind([0.5])], [np.uint64(2**64 - 1), -1], [array_of("d", [0.1])],
    ):  # fmt: skip
        with pytest.raises(SampleError, match="cannot be stored exactly"):
            m.append(kind(bad))
    assert len(m) == 4


@pytest.mark.parametrize(
    ("sample", "stored"),
    [
        (range(5), [0, 1, 2, 3, 4]), (array_of("d", [1, 2]), [1, 2]), (memoryview(array_of("h", [5])), [5]),
        (bytearray(b"ab"), [97, 98]), ([bytearray(b"ab"), memoryview(b"cd")], [[97, 98], [99, 100]]),
        (HandsOut(np.arange(2)), [0, 1]), ([HandsOut(np.arange(2)), [5, 6]], [[0, 1], [5, 6]]),
        (collections.deque(), []),
    ],
    ids=["range", "array", "memoryview", "bytearray", "buffers", "what hands out an array", "these in a list", "deque"],
)  # fmt: skip
def test_other_sequences_and_buffers(path, sample, stored):
    assert RaggedMmap.from_lists(path, [np.zeros(1), sample])[1].tolist() == stored


@pytest.mark.parametrize("sample", [array_of("d", [0.1]), memoryview(array_of("d", [0.1])), HandsOut([0.1])])
def test_arrays_of_every_class_keep_their_word(path, sample):
    m = RaggedMmap.from_lists(path, [np.zeros(1, "f4")])
    with pytest.raises((SampleError, SampleTypeError)):
        m.append(sample)


# -- times -----------------------------------------------------------------------------------------------------------

FIXED = {"W": 604800 * 10**18, "D": 86400 * 10**18, "h": 3600 * 10**18, "m": 60 * 10**18, "s": 10**18, "ms": 10**15,
         "us": 10**12, "ns": 10**9, "ps": 10**6, "fs": 10**3, "as": 1}  # fmt: skip
UNITS = [f"{step}{unit}" for unit in [*FIXED, "Y", "M"] for step in ("", "7")]


def moment(ticks, dtype):
    """A time as a number of attoseconds, or of months, or a day of the calendar as a number of attoseconds."""
    unit, step = np.datetime_data(dtype)
    if unit in FIXED:
        return ticks * step * FIXED[unit], "attoseconds"
    months = ticks * step * {"Y": 12, "M": 1}[unit]
    if dtype.kind == "m":
        return months, "months"
    return day_of(1970 + months // 12, months % 12 + 1) * FIXED["D"], "attoseconds"


def day_of(year, month):
    """Days since 1970 of the first of a month, in the proleptic Gregorian calendar of 400 years of 146,097 days."""
    past = year - (month < 3)
    day = (153 * ((month + 9) % 12) + 2) // 5
    return past * 365 + past // 4 - past // 100 + past // 400 + day - 719468


def test_the_oracle_knows_the_calendar():
    for text in ("1970-01", "2000-03", "1900-02", "0001-01", "-0004-12", "9999-07"):
        month = np.datetime64(text, "M")
        assert (
            moment(int(month.astype("i8")), np.dtype("M8[M]"))[0]
            == int(month.astype("M8[D]").astype("i8")) * FIXED["D"]
        )


@settings(modest, max_examples=400)
@given(
    kind=st.sampled_from("mM"),
    units=st.tuples(st.sampled_from(UNITS), st.sampled_from(UNITS)),
    order=st.sampled_from("<>"),
    ticks=st.integers(-(2**63) + 1, 2**63 - 1)
    | st.integers(-2000, 2000)
    | st.integers(-3, 3).map(lambda i: i * 146_097),
    rounding=st.booleans(),
)
def test_a_time_is_stored_exactly_or_not_at_all(kind, units, order, ticks, rounding):
    source, target = (np.dtype(f"{order}{kind}8[{unit}]") for unit in units)
    times = np.array([ticks, -(2**63)], source.byteorder + "i8").view(source)  # the second one is NaT
    assert np.isnat(lossless.fit(None, times[1:], target, rounding)).all()
    before, what = moment(ticks, source)
    try:
        after = lossless.fit(None, times, target, rounding)
    except SampleError:
        assert not is_a_tick(before, what, target)
        return
    assert after.dtype == target
    assert np.isnat(after).tolist() == [False, True]
    assert moment(int(after[0].astype("i8")), target) == (before, what)


def is_a_tick(before, what, target):
    """Whether the unit of a dtype has this time; the calendar of NumPy is not followed to the end of its years."""
    unit, step = np.datetime_data(target)
    if what == "months" or unit in FIXED:
        size = step * (FIXED[unit] if unit in FIXED else {"Y": 12, "M": 1}[unit])
        is_same = (what == "months") == (unit in "YM")
        return is_same and before % size == 0 and abs(before // size) < 2**63
    if target.kind == "m" or abs(before) > 2**56 * FIXED["D"]:
        return False
    near = round(before / FIXED["D"] / 30.436875) // step // (12 if unit == "Y" else 1)
    return any(moment(near + i, target)[0] == before for i in range(-2, 3))


@pytest.mark.parametrize("dtype", [None, "M8[ns]", "M8[D]"])
def test_times_of_several_units_in_one_list(path, dtype):
    """NumPy gives a list the finest unit in it, which may not have all of its values."""
    good = [np.datetime64("2000-01-01", "s"), np.datetime64("2000-01-02", "ns"), np.datetime64("NaT")]
    assert RaggedMmap.from_lists(path, [good], dtype=dtype)[0].astype("M8[D]").astype("i8").tolist()[:2] == [
        10957,
        10958,
    ]
    for bad in (
        [np.datetime64("9999-01-01", "s"), np.datetime64("2000-01-01", "ns")],
        [np.timedelta64(2**62, "h"), np.timedelta64(1, "s")],
        [np.array(["9999-01-01"], "M8[s]"), np.array(["2000-01-01"], "M8[ns]")],
        [np.datetime64("2000-01-01"), np.timedelta64(1, "D")],
    ):
        with pytest.raises((SampleError, SampleTypeError), match=r"cannot be stored|no regular array"):
            RaggedMmap.from_lists(path, [bad], dtype=dtype)


# -- the dtypes of ml_dtypes -----------------------------------------------------------------------------------------

ML_DTYPES = [
    np.dtype(kind) for kind in vars(ml_dtypes).values() if isinstance(kind, type) and "info" not in kind.__name__
]


def all_values(dtype):
    """Every value of a dtype of 8 bits or less, many of a larger one."""
    if "complex" in dtype.name:
        return np.array([0, 1, 1.5, 0.1, 1e30, float("nan"), 1 + 1j, 1 + 0.1j]).astype(dtype)
    if "int" in dtype.name:
        info = ml_dtypes.iinfo(dtype)
        return np.arange(int(info.min), int(info.max) + 1).astype(dtype)
    bits = int(ml_dtypes.finfo(dtype).bits)
    return np.arange(0, 2**bits, 1 if bits <= 8 else 1009, dtype=f"u{dtype.itemsize}").view(dtype)


def number(value):
    return exact(complex(value)) if "complex" in value.dtype.name else exact(value.item())


@pytest.mark.parametrize("target", ML_DTYPES, ids=str)
def test_every_value_of_ml_dtypes_in_each_other_dtype_of_them(target):
    there = {number(value) for value in all_values(target)}
    for source in ML_DTYPES:
        for value in all_values(source) if source != target else []:
            try:
                [stored] = lossless.fit(None, np.array([value], source), target, False)
            except SampleError:
                assert number(value) not in there
            else:
                assert stored.dtype == target
                assert number(stored) == number(value)


@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("other", strategies.NUMBERS, ids=str)
def test_every_value_of_ml_dtypes_in_numpys_and_back(other, rounding):
    for dtype in ML_DTYPES:
        for value in all_values(dtype):
            try:
                [stored] = lossless.fit(None, np.array([value], dtype), other, rounding)
            except SampleError:
                continue
            if not rounding:
                assert (number(stored) if stored.dtype.isbuiltin == 2 else exact(stored)) == number(value)
                again = lossless.fit(None, np.array([stored], other), dtype, False)
                assert number(again[0]) == number(value)


def test_dtypes_of_ml_dtypes_open_without_it_loaded(tmp_path):
    """A process that has not imported it yet reads a map of any of them."""
    for dtype in ML_DTYPES:
        RaggedMmap.from_lists(tmp_path / dtype.name, [np.array([1, 0]).astype(dtype)], sync=False)
    lines = "import sys; from mmap_ninja import open_map; print([open_map(p).dtype.name for p in sys.argv[1:]])"
    paths = [str(tmp_path / dtype.name) for dtype in ML_DTYPES]
    done = subprocess.run([sys.executable, "-c", lines, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([dtype.name for dtype in ML_DTYPES])
