"""The dtypes of the arrays that MmapLoader makes: those that JAX has, wide ones, and those that it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the adapter for JAX needs it")

from adapter_data import DENSE  # noqa: E402
from jax_data import check_all, check_same, epoch_of  # noqa: E402
from mmap_ninja import RaggedMmap, open_map  # noqa: E402
from mmap_ninja.errors import ArgumentTypeError, SampleError, SampleTypeError  # noqa: E402
from mmap_ninja_jax import MmapLoader  # noqa: E402

DTYPES = ["bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "complex64"]
ML_DTYPES = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"]
WIDE = ["int64", "uint64", "float64", "complex128"]
REFUSED = ["M8[s]", "m8[D]", "S3", "U3", "V3", "longdouble", "i4,f4"]


@pytest.mark.parametrize("name", [*DTYPES, *ML_DTYPES, ">i2", ">u4", ">f2", ">f4", ">c8"])
def test_dtypes_stay(tmp_path: Path, name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name)) if name in ML_DTYPES else np.dtype(name)
    array = (np.arange(21).reshape(7, 3) % 7).astype(dtype)
    check_all(MmapLoader(array, 3), epoch_of(array, 3))
    m = RaggedMmap.from_lists(tmp_path / "m", [row[: k % 4] for k, row in enumerate(array)])
    for layout in ("padded", "list"):
        check_all(MmapLoader(m, 3, layout=layout), epoch_of(m, 3, layout=layout))


@pytest.mark.parametrize("name", ["int64", "uint64", ">i8"])
def test_wide_integers_become_narrow_ones_if_they_fit(name: str) -> None:
    bounds = np.iinfo("u4" if "u" in name else "i4")
    array = np.array([bounds.min, 0, 5, bounds.max], name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (batch,) = MmapLoader(array, 4)
    assert batch.dtype == bounds.dtype
    assert batch.tolist() == [bounds.min, 0, 5, bounds.max]
    for value in {int(bounds.max) + 1, int(bounds.min) - 1} - {-1}:
        running = iter(MmapLoader(np.array([0, 0, value], name), 2))
        next(running)
        with pytest.raises(SampleError, match=f"values of .* do not fit into {bounds.dtype}.* jax_enable_x64"):
            next(running)


@pytest.mark.parametrize(("name", "narrow"), [("float64", "float32"), (">f8", "float32"), ("complex128", "complex64")])
def test_wide_floats_are_rounded_which_is_a_warning(name: str, narrow: str) -> None:
    array = np.array([1, 1 / 3, -1e300, 1e-300], name)
    with pytest.warns(UserWarning, match=rf"source\['x'\] is .* becomes {narrow}.* jax_enable_x64") as caught:
        loader = MmapLoader({"x": array}, 2)
    assert [warning.filename for warning in caught] == [__file__]
    found = list(loader)
    assert found[0]["x"].dtype == narrow
    with np.errstate(over="ignore"):
        check_same([batch["x"] for batch in found], [array[:2].astype(narrow), array[2:].astype(narrow)])


def test_a_function_that_makes_narrow_floats_is_no_reason_for_a_warning(tmp_path: Path) -> None:
    rows = RaggedMmap.from_lists(tmp_path / "m", [np.arange(k % 3) / 4 for k in range(8)])
    expected = [np.float32(row.sum()) for row in rows]
    found = MmapLoader(rows, 8, transform=lambda row: np.float32(row.sum()))
    check_all(found, [np.array(expected)])
    wrapped = open_map(tmp_path / "m", wrapper_fn=lambda row: np.float32(row.sum()))
    check_all(MmapLoader(wrapped, 8), [np.array(expected)])


@pytest.mark.parametrize("name", REFUSED)
def test_dtypes_that_jax_lacks_are_refused_with_the_part_and_the_remedy(name: str) -> None:
    array = np.zeros(3, name)
    with pytest.raises(ArgumentTypeError, match=r"source\['x'\]\[1\]: JAX has no dtype for .* wrapper_fn"):
        MmapLoader({"x": (DENSE["points"][:3], array)}, 2)
    with pytest.raises(SampleTypeError, match="JAX has no dtype for"):
        list(MmapLoader(np.arange(3), 3, batch_transform=lambda batch: array))


def test_a_small_float_that_jax_lacks_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="source: JAX has no dtype for float6_e2m3fn"):
        MmapLoader(np.zeros(3, ml_dtypes.float6_e2m3fn), 2)


def test_a_function_may_make_something_of_dtypes_that_jax_lacks(tmp_path: Path) -> None:
    times = np.arange(4).astype("M8[s]")
    check_all(MmapLoader(times, 4, transform=lambda time: time.astype(np.int64)), [np.arange(4)])


X64 = """
import jax, numpy as np
from mmap_ninja_jax import MmapLoader
with jax.enable_x64(True) if {context} else __import__("contextlib").nullcontext():
    for name in {names}:
        for prefetch in (0, 2):
            array = np.array([0, 2**40], name)
            (batch,) = MmapLoader(array, 2, prefetch=prefetch)
            print(batch.dtype, bool((np.asarray(batch) == array).all()))
"""


def test_with_64_bits_switched_on_dtypes_stay() -> None:
    script = X64.format(context=False, names=[*WIDE, ">i8"])
    assert python(script, JAX_ENABLE_X64="1").split() == [
        *(word for name in [*WIDE, "int64"] for word in [name, "True"] * 2)
    ]


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_with_64_bits_switched_on_for_a_while_dtypes_stay(name: str, prefetch: int) -> None:
    array = np.array([0, 2**40, 3], name)
    with jax.enable_x64(True):
        found = list(MmapLoader(array, 2, prefetch=prefetch))
    check_all_of(found, [array[:2], array[2:]])


def check_all_of(found: list[Any], expected: list[Any]) -> None:
    for batch, other in zip(found, expected, strict=True):
        check_same(batch, other, names={})


def python(script: str, **environment: str) -> str:
    """What another interpreter prints, with warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", script]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


MISSING = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            raise ModuleNotFoundError("No module named 'jax'", name="jax")
sys.meta_path.insert(0, Hidden())
try:
    import mmap_ninja_jax
except ImportError as error:
    print(type(error).__name__, error)
"""


def test_without_jax_the_extra_is_named() -> None:
    assert python(MISSING) == "MissingExtraError mmap_ninja_jax needs JAX: pip install 'mmap-ninja[jax]'\n"
