"""MmapLoader with `layout="packed"`: the rows of `mmap_ninja.packing`, of one shape, on one device and on four."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the adapter for JAX needs it")

import jax.numpy as jnp  # noqa: E402

from adapter_data import Pair  # noqa: E402
from jax_data import check_same, plain  # noqa: E402
from mmap_ninja import Padding, RaggedMmap, ReaderShard, StringsMmap, open_map, select, split  # noqa: E402
from mmap_ninja import packing as core  # noqa: E402
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, SampleError, StateError  # noqa: E402
from mmap_ninja_jax import MmapLoader, Packed  # noqa: E402

COUNT, ROWS, LENGTH = 50, 4, 9
SIZES = np.random.default_rng(2).integers(0, LENGTH + 1, COUNT).tolist()
KINDS: dict[str, Any] = {"tokens": np.int32, "targets": np.int64, "weights": np.float32, "halves": ml_dtypes.bfloat16}


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps whose samples have equal lengths, and others."""
    folder = tmp_path_factory.mktemp("packed")
    for factor, (name, dtype) in enumerate(KINDS.items(), 1):
        samples = [(factor * np.arange(k, k + size)).astype(dtype) for k, size in enumerate(SIZES)]
        RaggedMmap.from_lists(folder / name, samples, sync=False)
    RaggedMmap.from_lists(folder / "other", [np.zeros(size, np.int32) for size in SIZES[::-1]], sync=False)
    RaggedMmap.from_lists(folder / "grids", [np.zeros((size, 2), np.int32) for size in SIZES], sync=False)
    RaggedMmap.from_lists(folder / "numbers", [np.int32(size) for size in SIZES], sync=False)
    StringsMmap.from_strings(folder / "texts", ["x" * size for size in SIZES], sync=False)
    return folder


def loader(source: Any, size: int = ROWS, **options: Any) -> MmapLoader:
    return MmapLoader(source, size, **{"layout": "packed", "pack_length": LENGTH, **options})


def epoch_of(path: Path, epoch: int = 0, pad_value: Any = 0, length: int = LENGTH, **options: Any) -> list[core.Packed]:
    """The oracle: what the core packs of the samples that its order says."""
    m = open_map(path)
    order = core.PackedOrder(m.lengths, ROWS, length, **options)
    order.set_epoch(epoch)
    return [core.packed(m.take_jagged(k), rows=ROWS, length=length, pad_value=pad_value) for k in order]


def check_all(batches: Any, expected: list[Any]) -> None:
    for batch, other in zip(batches, expected, strict=True):
        check_same(batch, other)


# --- values


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_are_rows_packed_by_the_core(maps: Path, name: str, prefetch: int) -> None:
    for options in ({}, {"shuffle": True, "seed": 3}, {"drop_last": True}):
        batches = loader(maps / name, prefetch=prefetch, **options)
        for epoch in range(2):
            assert batches.epoch == epoch
            check_all(batches, epoch_of(maps / name, epoch, **options))


def test_batch_size_is_rows_and_every_batch_has_one_shape(maps: Path) -> None:
    for size in (1, 3, 8):
        for batch in loader(maps / "tokens", size, shuffle=True):
            assert type(batch) is Packed
            assert {part.shape for part in batch} == {(size, LENGTH)}
            assert [part.dtype for part in batch] == [np.int32] * 3


SOURCES: dict[str, tuple[Callable[[Path], Any], Callable[[Callable[[str], Any]], Any]]] = {
    "dict": (
        lambda maps: {"x": maps / "tokens", "y": maps / "targets"},
        lambda of: {"x": of("tokens"), "y": of("targets")},
    ),
    "tuple": (lambda maps: (maps / "tokens", str(maps / "weights")), lambda of: (of("tokens"), of("weights"))),
    "nested": (
        lambda maps: Pair(open_map(maps / "halves"), {"a": (maps / "tokens",)}),
        lambda of: Pair(of("halves"), {"a": (of("tokens"),)}),
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_parts_of_equal_lengths_are_packed_alike(maps: Path, name: str) -> None:
    make, expected = SOURCES[name]
    epochs = {part: epoch_of(maps / part, shuffle=True) for part in KINDS}
    found = list(loader(make(maps), shuffle=True))
    check_all(found, [expected(lambda part, k=k: epochs[part][k]) for k in range(len(epochs["tokens"]))])


def test_views_of_a_map_are_packed(maps: Path) -> None:
    m = open_map(maps / "tokens")
    check_all(loader(select(m, range(COUNT))), epoch_of(maps / "tokens"))
    first, _ = split(m, (0.6, 0.4), seed=1)
    batches = [np.asarray(batch.values)[np.asarray(batch.segment_ids) > 0] for batch in loader(first)]
    assert sorted(np.concatenate(batches)) == sorted(np.concatenate([*first]))


@pytest.mark.parametrize(("name", "value"), [("tokens", -100), ("weights", 0.5), ("halves", 2), ("targets", 2**31 - 1)])
def test_what_is_free_has_the_pad_value(maps: Path, name: str, value: Any) -> None:
    found = list(loader(maps / name, pad_value=value))
    check_all(found, epoch_of(maps / name, pad_value=value))
    free = np.concatenate([np.asarray(batch.values)[np.asarray(batch.segment_ids) == 0] for batch in found])
    assert len(free)
    assert (free == value).all()


def test_a_jitted_step_compiles_once_and_sees_each_sample_alone(maps: Path) -> None:
    traced = []

    @jax.jit
    def sums(batch: Packed) -> Any:
        traced.append(batch.values.shape)
        ids = batch.segment_ids + (LENGTH + 1) * jnp.arange(ROWS)[:, None]
        return jax.ops.segment_sum((batch.values * (batch.segment_ids > 0)).ravel(), ids.ravel(), ROWS * (LENGTH + 1))

    expected = sorted(int(sample.sum()) for sample in open_map(maps / "tokens") if sample.sum())
    batches = loader(maps / "tokens", shuffle=True, pad_value=-1)
    for _ in range(2):
        assert sorted(int(one) for batch in batches for one in sums(batch) if one) == expected
    assert traced == [(ROWS, LENGTH)]


def test_a_batch_transform_gets_the_rows_of_numpy(maps: Path) -> None:
    kinds = set()

    def batch_transform(batch: Any) -> Any:
        kinds.add((type(batch), *map(type, batch)))
        return {"x": batch.values * 2, "is_first": (batch.positions == 0) & (batch.segment_ids > 0), "n": "text"}

    batches = loader(maps / "tokens", batch_transform=batch_transform)
    check_all(batches, [batch_transform(batch) for batch in epoch_of(maps / "tokens")])
    assert kinds == {(Packed, *[np.ndarray] * 3)}


def test_a_batch_transform_gets_parts_as_rows(maps: Path) -> None:
    source = {"x": maps / "tokens", "y": maps / "weights"}
    batches = loader(source, batch_transform=lambda batch: (batch["x"].values.sum(), batch["y"].segment_ids))
    expected = zip(epoch_of(maps / "tokens"), epoch_of(maps / "weights"), strict=True)
    for (total, ids), (x, y) in zip(batches, expected, strict=True):
        assert total == x.values.sum()
        check_same(ids, y.segment_ids)


def test_large_batches_that_are_kept_never_change(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "m", [np.full(300 + k % 7 * 100, k, np.int32) for k in range(400)], sync=False)
    batches = MmapLoader(m, 8, layout="packed", pack_length=4096)  # 128 kB each
    order = list(core.PackedOrder(m.lengths, 8, 4096)) * 3
    kept = [batch for _ in range(3) for batch in batches]
    for batch, numbers in zip(kept, order, strict=True):
        check_same(batch, core.packed(m.take_jagged(numbers), rows=8, length=4096))


def test_an_empty_map_has_no_batches(tmp_path: Path) -> None:
    assert list(loader(RaggedMmap(tmp_path / "none"))) == []


# --- arguments


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (("tokens", "other"), r"source\[1\] has samples of other lengths than the part before it"),
        ({"x": "tokens", "y": "texts"}, r"source\['y'\] cannot be packed: .* stored ragged, with one axis each"),
        ("texts", "source cannot be packed"),
        ("grids", "source cannot be packed"),
        ("numbers", "source cannot be packed"),
        (("tokens", np.arange(COUNT)), r"source\[1\] cannot be packed"),
        (np.zeros((COUNT, 3), np.int32), "source cannot be packed"),
    ],
    ids=["other lengths", "a part of texts", "texts", "two axes", "no axis", "a dense part", "dense"],
)
def test_what_cannot_be_packed_is_refused(maps: Path, source: Any, message: str) -> None:
    def paths(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: paths(value) for key, value in part.items()}
        if isinstance(part, tuple):
            return tuple(map(paths, part))
        return maps / part if isinstance(part, str) else part

    with pytest.raises(ArgumentError, match=message):
        loader(paths(source))


def test_what_a_function_makes_is_not_packed(maps: Path) -> None:
    with pytest.raises(ArgumentError, match="source cannot be packed"):
        loader(open_map(maps / "tokens", wrapper_fn=lambda row: row))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"pack_length": None}, ArgumentError, "layout='packed' and pack_length belong together"),
        ({"layout": None}, ArgumentError, "layout='packed' and pack_length belong together"),
        ({"layout": "padded"}, ArgumentError, "layout='packed' and pack_length belong together"),
        ({"transform": np.copy}, ArgumentError, "what is packed has no transform"),
        ({"buckets": (4, 9)}, ArgumentError, "what is packed has no .* buckets"),
        ({"pack_length": 0}, ArgumentError, "length is 0, expected at least 1"),
        ({"pack_length": 2.5}, ArgumentTypeError, "length is 2.5, expected an integer"),
        ({"pack_length": 8}, ArgumentError, "a sample has length 9, more than a row of 8 takes"),
        ({"shard": ReaderShard(0, 3)}, ArgumentError, "is 4, which 3 readers cannot share evenly"),
        ({"shuffle": 1}, ArgumentTypeError, "shuffle is 1, expected True or False"),
        ({"drop_last": 1}, ArgumentTypeError, "drop_last is 1, expected True or False"),
        ({"seed": -1}, ArgumentError, "seed is -1, expected"),
        ({"prefetch": -1}, ArgumentError, "prefetch is -1, expected at least 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_make_no_sense(maps: Path, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    assert max(SIZES) == LENGTH
    with pytest.raises(kind, match=message):
        loader(maps / "tokens", **options)


@pytest.mark.parametrize("value", [0.5, 2**40, "x", Padding(1), {"a": 1}], ids=str)
def test_a_pad_value_that_the_map_lacks_is_refused(maps: Path, value: Any) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match="pad_value"):
        list(loader(maps / "tokens", pad_value=value))


def test_values_that_jax_would_change_are_refused(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "m", [[1], [2**40]], sync=False)
    with pytest.raises(SampleError, match="values of int64 do not fit into int32"):
        list(loader(tmp_path / "m"))


def test_how_many_batches_there_are_is_not_known(maps: Path) -> None:
    with pytest.raises(TypeError, match="how many batches of packed rows an epoch has depends on its order"):
        len(loader(maps / "tokens"))


# --- readers and states


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_rows_of_all_readers_end_to_end_are_those_of_one(maps: Path, count: int) -> None:
    source = (maps / "tokens", maps / "weights")
    readers = [loader(source, shuffle=True, shard=ReaderShard(k, count)) for k in range(count)]
    for batch, *parts in zip(loader(source, shuffle=True), *readers, strict=True):
        assert parts[0][0].values.shape == (ROWS // count, LENGTH)
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        check_same(batch, jax.tree.map(np.asarray, joined))


def test_a_reader_without_samples_gets_free_rows(maps: Path) -> None:
    m = open_map(maps / "tokens")
    one = select(m, [SIZES.index(LENGTH)])
    (batch,) = loader(one, shard=ReaderShard(3, 4), pad_value=7)
    assert plain(batch) == Packed([[7] * LENGTH], [[0] * LENGTH], [[0] * LENGTH])


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True, "prefetch": 0}])
def test_it_goes_on_in_the_middle_of_an_epoch(maps: Path, options: dict[str, Any]) -> None:
    batches, expected, states = loader(maps / "tokens", **options), [], []
    for _ in range(2):
        for batch in batches:
            states.append((len(expected), batches.state_dict()))
            expected.append(plain(batch))
    assert len(states) > 8
    for position, state in states[:-1:3]:
        again, rest = loader(maps / "tokens", **options), []
        again.load_state_dict(json.loads(json.dumps(state)))
        while len(rest) < len(expected) - position - 1:
            rest += map(plain, again)
        assert rest == expected[position + 1 :]


@pytest.mark.parametrize(
    "other", [{"size": 8}, {"pack_length": 10}, {"seed": 1}, {"layout": None, "pack_length": None}], ids=str
)
def test_a_state_of_another_loader_is_refused(maps: Path, other: dict[str, Any]) -> None:
    state, batches = loader(maps / "tokens").state_dict(), loader(maps / "tokens", **other)
    with pytest.raises(StateError):
        batches.load_state_dict(state)


# --- four devices

DEVICES = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from mmap_ninja_jax import MmapLoader

def described(leaf):
    whole, shards = np.asarray(leaf), leaf.addressable_shards
    assert all((np.asarray(shard.data) == whole[shard.index]).all() for shard in shards)
    return whole.tolist(), sorted((shard.device.id, shard.data.shape) for shard in shards)

for axes, spec, size, length in json.loads(sys.argv[2]):
    mesh = Mesh(np.array(jax.devices()).reshape([*axes.values()]), [*axes])
    options = {"shuffle": True, "sharding": NamedSharding(mesh, PartitionSpec(*spec))}
    try:
        loader = MmapLoader({"x": sys.argv[1]}, size, layout="packed", pack_length=length, **options)
        print(json.dumps([[described(leaf) for leaf in batch["x"]] for batch in loader]))
    except ValueError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""
DATA, GRID = {"data": 4}, {"data": 2, "model": 2}
OVER_FOUR: dict[str, tuple[Any, list[int]]] = {  # mesh, spec, rows and length; the shape that each device has
    "rows": ((DATA, ["data"], ROWS, LENGTH), [1, LENGTH]),
    "rows over a grid": ((GRID, ["data"], ROWS, LENGTH), [2, LENGTH]),
    "replicated": ((DATA, [], ROWS, LENGTH), [ROWS, LENGTH]),
    "both axes": ((GRID, ["data", "model"], ROWS, LENGTH + 1), [2, 5]),
}
UNEVEN: dict[str, Any] = {
    "rows": (DATA, ["data"], 6, LENGTH),
    "length": (GRID, ["data", "model"], ROWS, LENGTH),
}


@pytest.fixture(scope="module")
def four(maps: Path) -> dict[str, Any]:
    """What a process with four devices gets."""
    runs = {**{name: run for name, (run, _) in OVER_FOUR.items()}, **{f"not {name}": UNEVEN[name] for name in UNEVEN}}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-W", "error", "-c", DEVICES, str(maps / "tokens"), json.dumps([*runs.values()])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(zip(runs, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", OVER_FOUR)
def test_a_sharding_divides_the_rows_of_each_batch(maps: Path, four: dict[str, Any], name: str) -> None:
    (*_, length), shape = OVER_FOUR[name]
    for batch, other in zip(four[name], epoch_of(maps / "tokens", shuffle=True, length=length), strict=True):
        for (values, shards), expected in zip(batch, other, strict=True):
            assert values == expected.tolist()
            assert shards == [[device, shape] for device in range(4)]


@pytest.mark.parametrize("name", UNEVEN)
def test_rows_that_a_sharding_cannot_divide_are_refused(four: dict[str, Any], name: str) -> None:
    kind, message = four[f"not {name}"]
    assert kind in ("ArgumentError", "SampleError")
    assert "which sharding= cannot divide" in message
