"""Hostile values: numbers, names, shapes and dtypes that no manifest should have, and JSON that json does not write."""

import json
from typing import Any

from plain_reader import checked


class Raw(str):
    """Text that stands in the JSON as it is."""


class Pairs(list):
    """A JSON object in which a key may stand twice."""


def dumped(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict | Pairs):
        pairs = value if isinstance(value, Pairs) else value.items()
        return "{" + ", ".join(f"{dumped(key)}: {dumped(item)}" for key, item in pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dumped, value)) + "]"
    return json.dumps(value)


def sealed(fields: dict | Pairs) -> bytes:
    """A manifest of any content, with the right checksum."""
    return checked(b", " + dumped(fields)[1:].encode("utf-8", "surrogatepass"))


def nested(depth: int, inner: str = "") -> Raw:
    return Raw("[" * depth + inner + "]" * depth)


def nested_dtype(depth: int) -> Raw:
    return Raw('[["a", ' * depth + '"<i4"' + "]]" * depth)


# Hostile values. Packed by hand: one a line would be 300 lines.
# fmt: off
INTS = [-1, 0, 1, 2, 3, 7, 8, 63, 64, 65, 255, 4096, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**61, 2**62, 2**63 - 1,
        2**63, 2**64 - 1, 2**64, 10**30, -(2**31), -(2**63), -(2**64)]
COUNTS = [-1, -2, -8, 0, 1, 2, 5, 63, 64, 65, 2**31, 2**32, 2**53, 2**60, 2**61, 2**62, 2**63 - 8, 2**63 - 1, -(2**63)]
NAMES = """
.. ../data.npy /etc/passwd a/b a/../b . .lock größe manifest.json building.json manifest.json.new building.json.new
data.npy index.npy data a. data.crc zstd.dict data-2.npy index-999999999.npy data-1000000000.npy con - sub data.ninja
""".split()  # noqa: SIM905
NAMES += ["\0", "data.npy\0", "x" * 10_000, "x" * 128]
OTHERS = [True, False, None, 1.0, 0.5, -0.0, 1e308, "", "0", [], {}, [[]], [0], {"a": 1}, [1] * 63, [1] * 64,
          Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("-0"), Raw("9" * 4000), Raw("9" * 5000),
          nested(200), nested(800), nested(10_000), Raw('{"a":' * 300 + "1" + "}" * 300), Raw('"\\ud800"'),
          Raw('"\ud800"')]
SHAPES = [[], [0], [1], [2**62], [2**63 - 1], [0, 2**62], [0, 2**62, 2**62], [2**62, 0], [1] * 31, [1] * 32, [1] * 63,
          [2] * 63, [2, 2**63 - 1], [2**32, 2**32], [-1], [-1, -1], [True], [None], [1.0], [[1]], ["1"], [2**64]]
DTYPES: list[Any] = """
O |O O8 V0 S0 U0 V1 V8 S2147483647 S2147483648 U536870911 U536870912 V2147483647 i4,f4 (2,3)i4 (2,3)i4,f4 (2)i4,i1 2i4
3f8, i4, (1000000000,)i4,i1 a5 c p P g G e m8 M8 M8[ns] M8[99999999999s] M8[s/3] M8[generic] m8[7D] <M8[2147483647Y]
M8[0s] M8[-1s] object str bytes void bool int float complex longdouble float128 intp ? b B1 =i4 <i4 >i4 |i4 |u1 |b1 <u8
<f8 <c16 <f2 <U1 <U3 bfloat16 float8_e4m3fn int4 uint2 ml_dtypes finfo __name__ __doc__ __file__ __path__ __builtins__
__loader__ __dict__ _finfo np numpy.float64 np.float64 StringDType T os.system __import__('os') é rec f3 > < = <<i4 U-1
9999999999999999999i4 i99999999999 M8[ns][ns] S-1 V-5 i4:i4 i4=i4 datetime64[s] timedelta64[ms] float32 uint16 str96
bytes24 void64 int0 bool8 Float64 (
""".split()  # noqa: SIM905
DTYPES += [" <i4", "<i4 ", "<i4\0", "\0", "i4\n", "", ",", "(" * 500, "1" * 1000, "datetime64[ns, UTC]", "i4 , f4",
           "(2, 3)i4, f4", Raw('"\\ud800"'), Raw('"M8[\\ud800]"'), 5, {}, None, True, ["a"], ["<i4"],
           {"names": ["a"], "formats": ["<i4"]}, [], [[]], [["a"]], [["a", "<i4"]], [["a", "O"]], [["a", "|O"]],
           [["a", "V0"]], [["", "<i4"]], [["", "|V4"]], [["", "|V4"], ["a", "<i4"]], [["a", "<i4"], ["a", "<i4"]],
           [["a", "<i4", 5]], [["a", "<i4", [2, 3]]], [[["t", "a"], "<i4"]], [[["t", "t"], "<i4"]], [[5, "<i4"]],
           [[["a", "b", "c"], "<i4"]], [[[], "<i4"]], [[None, "<i4"]], [[["x", "a"], "<i4"], [["x", "b"], "<i4"]],
           [[["b", "a"], "<i4"], ["b", "<i4"]], [[["", "a"], "<i4"]], [["a", ["b"]]], [["a", [["b", "<i4"]]]],
           [["a", [["b", "<i4"]], [2]]], [["a", [["b", "|O"]]]], [["a", "S2147483647"], ["b", "S2147483647"]],
           [["a", "i4,f4"]], [["a", "(2,3)i4,f4"]], [["a", "bfloat16"]], [["a" * 10_000, "<i4"]], [["\0", "<i4"]],
           [[Raw('"\\ud800"'), "<i4"]], [["größe", "<i4"]], [["a", "<M8"]]]
DTYPES += [[["a", "<i4", shape]] for shape in [*SHAPES, [1] * 65, [2**31], [65536, 65536], [1.5], ["x"], [[2]]]]
DTYPES += [nested_dtype(depth) for depth in (20, 100, 200, 320, 700)]
DTYPES += [[[f"f{i}", "|u1"] for i in range(count)] for count in (64, 300)]
SMALL_FILES = ["", "C", "F", "CF", "c", "\n", "numpy", "ragged", "string", "numpy ", "dense", "é", "\0", "0", "-1", "3",
               "22", "23", "99", "1_0", "\u0663", "1e3", "9" * 4096, "9" * 4097, "x" * 5000, " 3 ", "3\n", "-131072"]
FRAME = b"\x28\xb5\x2f\xfd"  # how each zstd frame begins
# fmt: on
