"""MmapLoader against `mmap_ninja.Batches` with the same options: values, layouts, dtypes, epochs and states."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the adapter for JAX needs it")

import jax.numpy as jnp  # noqa: E402

import jax_data  # noqa: E402
from jax_data import (  # noqa: E402
    COUNT,
    DENSE,
    ROWS,
    SIZE,
    SOURCES,
    Pair,
    check_all,
    check_same,
    epoch_of,
    every_source,
    notes,
    plain,
)
from mmap_ninja import Batches, DenseMmap, Padding, RaggedMmap, ReaderShard, open_map  # noqa: E402
from mmap_ninja.errors import (  # noqa: E402
    ArgumentError,
    ArgumentTypeError,
    MapNotFoundError,
    SampleError,
    SampleTypeError,
    StateError,
)
from mmap_ninja_jax import MmapLoader, Padded  # noqa: E402

maps = jax_data.maps
Make = Callable[[Path], Any]

# --- layouts


@every_source
@pytest.mark.parametrize("prefetch", [0, 2])
def test_padded_batches_are_those_of_the_core(maps: Path, make: Make, prefetch: int) -> None:
    loader = MmapLoader(make(maps), SIZE, shuffle=True, seed=3, prefetch=prefetch)
    for epoch in range(2):
        check_all(loader, epoch_of(make(maps), epoch=epoch, shuffle=True, seed=3))


@every_source
def test_lists_hold_an_array_for_each_sample(maps: Path, make: Make) -> None:
    def arrays(part: Any) -> Any:
        """Of a list of the core: numbers are arrays of no axis here."""
        if isinstance(part, dict):
            return {key: arrays(value) for key, value in part.items()}
        if isinstance(part, tuple):
            made = [arrays(value) for value in part]
            return type(part)(*made) if hasattr(part, "_fields") else tuple(made)
        if isinstance(part, list) and not isinstance(part[0], str | bytes | np.ndarray):
            return [np.array(value, np.float32) for value in part]
        return part

    expected = epoch_of(make(maps), layout="list", shuffle=True)
    check_all(MmapLoader(make(maps), SIZE, shuffle=True, layout="list"), [arrays(batch) for batch in expected])


@pytest.mark.parametrize("name", ["even", "numbers", "points", "labels", "texts", "array in columns", "windows"])
def test_samples_of_one_shape_are_stacked(maps: Path, name: str) -> None:
    source = SOURCES[name](maps)
    check_all(MmapLoader(source, SIZE, layout="stack"), epoch_of(source, layout="stack"))


@pytest.mark.parametrize("source", ["rows", "grids"])
def test_samples_that_do_not_stack_name_another_layout(maps: Path, source: str) -> None:
    with pytest.raises(SampleError, match="layout='list'") as caught:
        list(MmapLoader(maps / source, SIZE, layout="stack"))
    assert "batch 0 of epoch 0" in notes(caught.value)


def test_parts_have_layouts_and_paddings_of_their_own(maps: Path) -> None:
    rows = maps / "rows"
    source = {"tokens": rows, "targets": Pair(rows, (rows, rows)), "y": maps / "labels", "z": maps / "even"}
    layout = {"tokens": "padded", "targets": Pair("padded", ("list",)), "z": "stack"}
    padding = {"targets": (Padding(-100, side="left", multiple_of=8),)}
    core = {**layout, "targets": Pair("padded", ("list", "padded"))}  # and what has none is padded
    loader = MmapLoader(source, SIZE, layout=layout, pad_value=padding)
    check_all(loader, epoch_of(source, layout=core, pad_value=padding))


PADDINGS = [7, Padding(9, length=6), Padding(-1, side="left"), Padding(multiple_of=3), Padding(buckets=(2, 8))]


@pytest.mark.parametrize("pad_value", PADDINGS, ids=str)
def test_padding_has_all_options_of_the_core(maps: Path, pad_value: Any) -> None:
    check_all(MmapLoader(maps / "rows", SIZE, pad_value=pad_value), epoch_of(maps / "rows", pad_value=pad_value))


def test_a_batch_of_arrays_is_a_pytree(maps: Path) -> None:
    source = {"b": Pair(maps / "rows", (maps / "labels",)), "a": maps / "points"}
    for batch, other in zip(MmapLoader(source, SIZE), epoch_of(source), strict=True):
        sums = jax.tree.map(jnp.sum, batch)
        assert type(sums["b"].x) is Padded
        assert sums["b"].x.values == other["b"].x.values.sum()
        assert sums["b"].y[0] == other["b"].y[0].sum()
        assert len(jax.tree.leaves(batch)) == 4
        rounded = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree))(batch)
        assert jax.tree.structure(rounded) == jax.tree.structure(batch)


@pytest.mark.parametrize("layout", [None, "padded", "list", "stack"])
def test_an_empty_map_has_no_batches(tmp_path: Path, layout: Any) -> None:
    loader = MmapLoader(RaggedMmap(tmp_path / "none"), SIZE, layout=layout, shuffle=True)
    assert (len(loader), list(loader)) == (0, [])


def test_its_repr_says_what_it_is(maps: Path) -> None:
    assert "MmapLoader" in repr(MmapLoader(maps / "rows", SIZE))
    assert "Order(23, 4, shuffle=True, seed=2" in repr(MmapLoader(maps / "rows", SIZE, shuffle=True, seed=2))


# --- buckets


def test_a_jitted_step_compiles_once_a_bucket(maps: Path) -> None:
    buckets, traced, seen = (1, 2, 4, 16), [], set()

    @jax.jit
    def step(batch: Any) -> Any:
        traced.append(batch.values.shape)
        return jnp.where(jnp.arange(batch.values.shape[1]) < batch.lengths[:, None], batch.values, 0).sum()

    loader = MmapLoader(maps / "rows", 2, shuffle=True, buckets=buckets, drop_last=True)
    for epoch in range(3):
        expected = epoch_of(maps / "rows", 2, epoch, shuffle=True, drop_last=True, pad_value=Padding(buckets=buckets))
        for batch, other in zip(loader, expected, strict=True):
            check_same(batch, other)
            assert step(batch) == other.values.sum()
            seen.add(batch.values.shape[1])
    assert len(traced) == len(seen)
    assert {2, 4} <= seen <= {*buckets}


def test_buckets_of_a_source_with_several_parts(maps: Path) -> None:
    source = {"a": maps / "rows", "b": (maps / "clips", maps / "labels"), "c": maps / "points", "d": maps / "texts"}
    loader = MmapLoader(source, SIZE, buckets=(5, 9), pad_value={"a": -1})
    padding = {"a": Padding(-1, buckets=(5, 9)), "b": (Padding(buckets=(5, 9)), 0)}
    check_all(loader, epoch_of(source, pad_value=padding))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": (2, 3)}, r"source\['a'\] has a sample of length 4, but the largest bucket is 3"),
        ({"pad_value": {"a": Padding(buckets=(1,))}}, r"source\['a'\] has a sample of length 4.* bucket is 1"),
        ({"buckets": (5, 3)}, r"buckets is \(5, 3\), expected ascending lengths"),
        ({"buckets": ()}, r"buckets is \(\), expected ascending lengths"),
        ({"buckets": (5,), "pad_value": Padding(1)}, "buckets= and a Padding contradict each other"),
        ({"buckets": (5,), "layout": "list"}, "buckets is for layout='padded'"),
    ],
    ids=str,
)
def test_buckets_that_do_not_fit_are_refused_when_it_is_made(maps: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        MmapLoader({"a": maps / "rows"}, SIZE, **options)


# --- functions


def test_what_a_transform_returns_is_stacked_or_put_together_by_a_layout(maps: Path) -> None:
    (batch,) = MmapLoader(maps / "rows", COUNT, transform=lambda row: row.sum())
    check_same(batch, np.array([row.sum() for row in ROWS]))
    (batch,) = MmapLoader(maps / "rows", COUNT, transform=lambda row: row + 1, layout="list")
    check_same(batch, [row + 1 for row in ROWS])
    (batch,) = MmapLoader(maps / "rows", COUNT, transform=lambda row: {"x": row * 2, "y": "t"}, layout="padded")
    (other,) = epoch_of(maps / "rows", COUNT)
    check_same(batch, {"x": other._replace(values=other.values * 2), "y": ["t"] * COUNT})


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_transform_gets_a_copy_of_each_sample_in_any_thread(maps: Path, threads: int, prefetch: int) -> None:
    callers = set()

    def transform(sample: Any) -> Any:
        callers.add(threading.get_ident())
        sample["x"] += 1
        return sample["x"] * 2, sample["y"].upper()

    source = {"x": maps / "points", "y": maps / "texts"}
    options = {"shuffle": True, "threads": threads, "prefetch": prefetch}
    found = list(MmapLoader(source, SIZE, transform=transform, **options))
    expected = epoch_of(source, shuffle=True)
    for batch, other in zip(found, expected, strict=True):
        check_same(batch, ((other["x"] + 1) * 2, [text.upper() for text in other["y"]]))
    assert (threading.get_ident() in callers) == (threads == 1 and prefetch == 0)


def test_a_wrapper_fn_makes_what_is_stacked(maps: Path) -> None:
    wrapped = open_map(maps / "rows", wrapper_fn=lambda row: np.float32(row.sum()))
    check_all(MmapLoader(wrapped, SIZE, threads=2), epoch_of(wrapped, layout="stack"))
    texts = open_map(maps / "texts", wrapper_fn=lambda text: np.frombuffer(text.encode(), np.uint8))
    check_all(MmapLoader(texts, SIZE, layout="padded"), epoch_of(texts))


def test_a_batch_transform_gets_the_whole_batch_of_numpy(maps: Path) -> None:
    kinds = set()

    def batch_transform(batch: Any) -> Any:
        kinds.add(type(batch.values))
        return {"x": batch.values.astype(np.float16) + 1, "n": [batch.lengths, "text", None], "empty": []}

    loader = MmapLoader(maps / "rows", SIZE, batch_transform=batch_transform)
    expected = [batch_transform(batch) for batch in epoch_of(maps / "rows")]
    check_all(loader, expected)
    assert kinds == {np.ndarray}


def test_arrays_in_any_pytree_that_a_function_returns_are_of_jax(maps: Path) -> None:
    loader = MmapLoader(maps / "labels", SIZE, batch_transform=lambda batch: [{"x": (batch, [batch])}])
    check_all(loader, [[{"x": (batch, [batch])}] for batch in epoch_of(maps / "labels")])
    large = MmapLoader(maps / "labels", SIZE, batch_transform=lambda batch: [{"x": (batch + 2**40, [batch])}])
    with pytest.raises(SampleError, match="values of int64 do not fit into int32"):
        next(iter(large))


def test_an_error_of_a_function_says_which_batch_and_sample(maps: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(MmapLoader(maps / "labels", SIZE, transform=lambda label: 1 // int(label)))
    assert "while making batch 0 of epoch 0" in notes(caught.value)
    with pytest.raises(SampleTypeError, match="NoneType") as caught:
        list(MmapLoader(maps / "labels", SIZE, transform=lambda label: None))
    with pytest.raises(KeyError):
        list(MmapLoader(maps / "labels", SIZE, batch_transform=lambda batch: {}[1]))


# --- dtypes

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


# --- memory

LARGE = np.random.default_rng(0).random((640, 2048), np.float32)  # eight samples are 64 kB


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "map"
    RaggedMmap.from_lists(folder, [*LARGE], sync=False)
    return folder


@pytest.mark.parametrize("kind", ["dense", "padded", "list", "transform", "batch_transform"])
def test_batches_that_are_kept_never_change(large: Path, kind: str) -> None:
    options: dict[str, Any] = {
        "list": {"layout": "list"},
        "transform": {"transform": lambda row: row, "threads": 2},
        "batch_transform": {"layout": "stack", "batch_transform": lambda batch: batch[:, ::-1]},
    }.get(kind, {})
    loader = MmapLoader(LARGE if kind == "dense" else large, 8, shuffle=True, **options)
    order = Batches(np.arange(len(LARGE)), 8, shuffle=True)
    kept, numbers = [], []
    for _ in range(3):
        for k, (batch, chosen) in enumerate(zip(loader, order, strict=True)):
            if k % 4 < 3:  # the memory of the others is used again
                kept.append(batch)
                numbers.append(chosen)
    assert len(kept) >= 50
    for batch, chosen in zip(kept, numbers, strict=True):
        found = batch.values if kind == "padded" else batch
        expected = LARGE[chosen][:, ::-1] if kind == "batch_transform" else LARGE[chosen]
        check_same(found, [*expected] if kind == "list" else expected)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_a_function_writes_to_later_does_not_change_a_batch(prefetch: int) -> None:
    memory = np.empty((9, 1 << 14), np.float32)
    start = -memory.__array_interface__["data"][0] % 64 // 4
    own = memory.reshape(-1)[start:][: 8 << 14].reshape(8, -1)  # JAX takes what is aligned like this without a copy

    def batch_transform(batch: np.ndarray) -> np.ndarray:
        own[:] = batch[:, np.newaxis]
        return own

    numbers = np.arange(32, dtype=np.float32)
    found = list(MmapLoader(numbers, 8, batch_transform=batch_transform, prefetch=prefetch))
    check_same(found, [np.repeat(part[:, np.newaxis], 1 << 14, axis=1) for part in np.split(numbers, 4)])


def test_writing_to_a_map_does_not_change_a_batch_of_views_of_it(tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "m", LARGE[:8])
    views = open_map(tmp_path / "m", wrapper_fn=lambda row: row, copy_before_wrapper_fn=False)
    (batch,) = MmapLoader(views, 8, layout="list")
    with DenseMmap(tmp_path / "m", mode="r+") as m:
        m[3] = np.zeros(2048, np.float32)
    check_same(batch, [*LARGE[:8]])
    assert not views[3].any()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_donated_and_deleted_batches_do_no_harm_to_later_ones(large: Path, prefetch: int) -> None:
    double = jax.jit(lambda batch: batch * 2, donate_argnums=0)
    loader, results = MmapLoader(large, 8, shuffle=True, layout="stack", prefetch=prefetch), []
    for k, batch in enumerate(itertools.chain(loader, loader)):
        if k % 3:
            results.append(double(batch))
        else:
            results.append(batch + batch)
            batch.delete()
        assert batch.is_deleted()
    order = Batches(np.arange(len(LARGE)), 8, shuffle=True)
    for result, chosen in zip(results, itertools.chain(order, order), strict=True):
        check_same(result, LARGE[chosen] * 2)


def test_a_large_batch_is_the_memory_that_it_was_gathered_into() -> None:
    gathered = []

    def note(batch: np.ndarray) -> np.ndarray:
        gathered.append(batch.ctypes.data)
        return batch

    found = []
    for batch in MmapLoader(LARGE, 8, batch_transform=note):
        found.append(batch.unsafe_buffer_pointer())
        view = np.asarray(batch)
        assert view.ctypes.data == found[-1]
        assert not view.flags.writeable
    assert found == gathered
    assert all(pointer % 64 == 0 for pointer in found)
    assert len({*found}) < len(found) / 4  # what nobody holds is used again


@pytest.mark.parametrize("options", [{}, {"prefetch": 0}, {"transform": np.copy, "threads": 3}], ids=str)
def test_leaving_early_leaves_no_thread(large: Path, options: dict[str, Any]) -> None:
    for _ in MmapLoader(large, 8, layout="stack", **options):
        break
    for thread in threading.enumerate():
        if thread.name.startswith("mmap_ninja"):  # one that was about to end
            thread.join(10)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("mmap_ninja")]


# --- arguments


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"batch_size": 0}, ArgumentError, "batch_size is 0, expected at least 1"),
        ({"batch_size": 2.5}, ArgumentTypeError, "batch_size is 2.5, expected an integer"),
        ({"source": [1, 2]}, ArgumentTypeError, "expected a map, a view or the path of one"),
        ({"source": "nowhere"}, MapNotFoundError, "there is no map at"),
        ({"source": {"a": np.arange(3), "b": np.arange(4)}}, ArgumentError, "maps of one length: source.'a'. has 3"),
        ({"layout": "jagged"}, ArgumentError, "layout is 'jagged', expected one of 'padded', "),
        ({"layout": {"a": "list"}}, ArgumentError, "layout is .* for source, which is no dict or tuple"),
        ({"source": {"b": np.arange(3)}, "layout": {"a": "list"}}, ArgumentError, "layout has an entry for 'a'"),
        ({"pad_value": 1, "layout": "stack"}, ArgumentError, "pad_value is for layout='padded'"),
        ({"batch_transform": 3}, ArgumentTypeError, "batch_transform is 3, expected a function"),
        ({"transform": 3}, ArgumentTypeError, "transform is 3, expected a function"),
        ({"shuffle": 1}, ArgumentTypeError, "shuffle is 1, expected True or False"),
        ({"seed": -1}, ArgumentError, "seed is -1, expected"),
        ({"threads": 0}, ArgumentError, "threads is 0, expected at least 1"),
        ({"prefetch": -1}, ArgumentError, "prefetch is -1, expected at least 0"),
        ({"shard": (0, 2)}, ArgumentTypeError, r"shard is \(0, 2\), expected a ReaderShard"),
        ({"shard": ReaderShard(0, 3)}, ArgumentError, "batch_size is 4, which 3 readers cannot share evenly"),
        ({"sharding": "data"}, ArgumentTypeError, "sharding is 'data', expected"),
        ({"sharding": jax.sharding.PartitionSpec("data")}, ArgumentTypeError, "sharding is .*, expected"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_arguments_that_make_no_sense(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"source": np.arange(23), "batch_size": SIZE, **options}
    with pytest.raises(kind, match=message):
        MmapLoader(given.pop("source"), given.pop("batch_size"), **given)


# --- epochs


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_epochs_come_one_after_the_other_and_can_be_set(maps: Path, prefetch: int, drop_last: bool) -> None:
    options = {"shuffle": True, "seed": 3, "drop_last": drop_last}
    loader = MmapLoader(maps / "labels", SIZE, prefetch=prefetch, **options)
    assert len(loader) == (5 if drop_last else 6)
    expected = [epoch_of(maps / "labels", epoch=epoch, **options) for epoch in range(3)]
    for epoch in (0, 1, 2):
        assert loader.epoch == epoch
        check_all(loader, expected[epoch])
    loader.set_epoch(1)
    assert loader.epoch == 1
    check_all(loader, expected[1])
    assert loader.epoch == 2


def test_an_iteration_that_is_given_up_starts_its_epoch_again(maps: Path) -> None:
    loader = MmapLoader(maps / "rows", SIZE, shuffle=True)
    for number, _ in enumerate(loader):
        if number == 2:
            break
    assert loader.epoch == 0
    check_all(loader, epoch_of(maps / "rows", shuffle=True))


def test_two_iterators_at_once_give_the_same_epoch(maps: Path) -> None:
    loader = MmapLoader(maps / "rows", SIZE, shuffle=True)
    expected = epoch_of(maps / "rows", shuffle=True)
    for one, other, batch in zip(loader, loader, expected, strict=True):
        check_same(one, batch)
        check_same(other, batch)


# --- readers


@pytest.mark.parametrize("count", [1, 2, 4])
def test_readers_share_each_batch(maps: Path, count: int) -> None:
    source = (np.arange(COUNT), maps / "rows")
    whole = [batch[0].tolist() for batch in epoch_of(source, 8, shuffle=True)]
    readers = [MmapLoader(source, 8, shuffle=True, shard=ReaderShard(k, count)) for k in range(count)]
    seen = []
    for parts, expected in zip(zip(*readers, strict=True), whole, strict=True):
        assert {len(numbers) for numbers, _ in parts} == {-(-len(expected) // count)}
        joined = [number for numbers, _ in parts for number in numbers.tolist()]
        assert joined[: len(expected)] == expected  # the last one is filled up
        seen += joined[: len(expected)]
        for numbers, rows in parts:
            assert rows.lengths.tolist() == [len(ROWS[number]) for number in numbers.tolist()]
    assert sorted(seen) == [*range(COUNT)]


# --- stop and go on


@pytest.mark.parametrize("names", [("state_dict", "load_state_dict"), ("get_state", "set_state")], ids=str)
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True, "prefetch": 0}])
def test_it_goes_on_from_every_position(maps: Path, options: dict[str, Any], names: tuple[str, str]) -> None:
    def made() -> MmapLoader:
        return MmapLoader((maps / "rows", maps / "texts"), SIZE, seed=3, **options)

    loader, states, expected = made(), [], []
    states.append(getattr(loader, names[0])())
    for _ in range(2):
        for batch in loader:
            expected.append(plain(batch))
            states.append(getattr(loader, names[0])())
    for position, state in enumerate(states):
        again, rest = made(), []
        getattr(again, names[1])(json.loads(json.dumps(state)))
        while len(rest) < len(expected) - position:
            rest += map(plain, again)
        assert rest == expected[position:]


def test_it_goes_on_with_another_number_of_readers(maps: Path) -> None:
    whole = [batch.tolist() for batch in epoch_of(np.arange(24), 6, shuffle=True)]
    for before, after in itertools.product((1, 2, 3), repeat=2):
        loader = MmapLoader(np.arange(24), 6, shuffle=True, shard=ReaderShard(before - 1, before))
        running = iter(loader)
        next(running), next(running)
        others = [MmapLoader(np.arange(24), 6, shuffle=True, shard=ReaderShard(k, after)) for k in range(after)]
        for other in others:
            other.load_state_dict(loader.state_dict())
        parts = zip(*others, strict=True)
        assert [[number for part in batch for number in part.tolist()] for batch in parts] == whole[2:]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"source": np.arange(9)}, "n is 23 there and 9 here"),
        ({"batch_size": 5}, "batch_size is 4 there and 5 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"shuffle": False}, "shuffle is True there and False here"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_state_of_another_loader_is_refused_with_both_values(other: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"source": np.arange(COUNT), "batch_size": SIZE, "shuffle": True}
    state, loader = MmapLoader(**options).state_dict(), MmapLoader(**{**options, **other})
    before = loader.state_dict()
    for load in (loader.load_state_dict, loader.set_state):
        with pytest.raises(StateError, match=message):
            load(state)
    assert loader.state_dict() == before


@pytest.mark.parametrize(
    "wrong", [{}, {"samples_seen": 3}, {"samples_seen": 99}, {"version": 2}, {"epoch": "0"}], ids=str
)
def test_a_damaged_state_is_refused(wrong: dict[str, Any]) -> None:
    loader = MmapLoader(np.arange(COUNT), SIZE)
    with pytest.raises(StateError):
        loader.load_state_dict({**loader.state_dict(), **wrong} if wrong else {})
