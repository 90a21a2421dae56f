"""MmapLoader against `mmap_ninja.Batches` with the same options: layouts, buckets, functions and wrong arguments."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the adapter for JAX needs it")

import jax.numpy as jnp  # noqa: E402

import adapter_data  # noqa: E402
from adapter_data import COUNT, ROWS, SIZE, SOURCES, Pair  # noqa: E402
from jax_data import check_all, check_same, epoch_of, every_source, notes  # noqa: E402
from meanwhile import refuses_damage  # noqa: E402
from mmap_ninja import Padding, RaggedMmap, ReaderShard, open_map  # noqa: E402
from mmap_ninja.errors import (  # noqa: E402
    ArgumentError,
    ArgumentTypeError,
    MapNotFoundError,
    SampleError,
    SampleTypeError,
)
from mmap_ninja_jax import MmapLoader, Padded, layouts  # noqa: E402

maps = adapter_data.maps
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


# --- padding in several processes, which cannot know what functions make in the others

FIXED, OPEN = Padding(length=(4,)), Padding(length=4)


@pytest.mark.parametrize(
    ("layout", "pad_value", "expected"),
    [
        ("padded", OPEN, FIXED),
        ("padded", Padding(length=[4, 3]), Padding(length=(4, 3))),
        ({"a": "padded", "b": "stack"}, {"a": OPEN}, {"a": FIXED, "b": 0}),
        (("padded", {"b": "padded"}), OPEN, (FIXED, {"b": FIXED})),
        ("stack", 0, 0),
    ],
)
def test_what_is_made_is_padded_to_a_length_for_each_axis(layout: Any, pad_value: Any, expected: Any) -> None:
    options = layouts.of_made(layout, pad_value, None, "a sharding", is_shared=True)
    assert options == {"layout": layout, "pad_value": expected}
    alone = layouts.of_made(layout, pad_value, None, "a sharding", is_shared=False)
    assert alone == {"layout": layout, "pad_value": pad_value}


@pytest.mark.parametrize(
    ("layout", "pad_value", "message"),
    [
        ("padded", 0, "each process would pad"),
        ("padded", Padding(length=(4, None)), "each process would pad"),
        ("padded", Padding(buckets=(4, 8)), "each process would pad"),
        ({"a": "padded", "b": "stack"}, {"b": OPEN}, "each process would pad"),
        ({"a": "padded", "b": "padded"}, {"a": OPEN}, "each process would pad"),
        ("padded", {"a": OPEN, "b": OPEN}, "let layout have one for each part"),
    ],
)
def test_what_is_made_to_an_open_length_is_refused(layout: Any, pad_value: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        layouts.of_made(layout, pad_value, None, "a sharding", is_shared=True)


def test_check_refuses_what_is_damaged(tmp_path: Path) -> None:
    refuses_damage(lambda source, check: MmapLoader(source, 2, check=check), tmp_path)
