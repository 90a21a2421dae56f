"""`to_tf_dataset`: epochs, iterators, pipelines of `tf.data`, and what datasets leave behind."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="the adapter for TensorFlow needs it")

import adapter_data  # noqa: E402
from adapter_data import COUNT, ROWS, SIZE  # noqa: E402
from mmap_ninja import DenseMmap, Order, RaggedMmap, ReaderShard, open_map  # noqa: E402
from mmap_ninja.errors import EpochWarning  # noqa: E402
from mmap_ninja_tf import to_tf_dataset  # noqa: E402
from tf_data import check_same, epoch_of  # noqa: E402

maps = adapter_data.maps

N = 10
NUMBERS = np.arange(N)


def shuffled(**options: Any) -> Any:
    return to_tf_dataset(NUMBERS, SIZE, shuffle=True, seed=4, **options)


def found(dataset: Any) -> list[Any]:
    """The elements as lists of numbers."""
    return [element.numpy().tolist() for element in dataset]


def epoch(number: int, size: int = SIZE, seed: int = 4) -> list[list[int]]:
    return [batch.tolist() for batch in Order(N, size, shuffle=True, seed=seed).batches(number)]


def samples(*epochs: int) -> list[int]:
    return [sample for number in epochs for batch in epoch(number) for sample in batch]


# -- epochs ----------------------------------------------------------------------------------------------------------


def test_each_iteration_is_the_next_epoch_which_seed_and_number_decide() -> None:
    one, other = shuffled(), shuffled()
    assert [found(one) for _ in range(4)] == [epoch(k) for k in range(4)] == [found(other) for _ in range(4)]
    assert epoch(0) != epoch(1) != epoch(2)
    assert found(to_tf_dataset(NUMBERS, SIZE, shuffle=True, seed=5)) == epoch(0, seed=5) != epoch(0)
    single = to_tf_dataset(NUMBERS, shuffle=True, seed=4)
    assert [found(single) for _ in range(2)] == [samples(0), samples(1)]


def test_without_shuffling_all_epochs_are_the_same() -> None:
    dataset = to_tf_dataset(NUMBERS, SIZE)
    for _ in range(3):
        assert found(dataset) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


PIPELINES: dict[str, tuple[Callable[[Any], Any], Callable[[], list[Any]]]] = {
    "repeat": (lambda ds: ds.repeat(3), lambda: epoch(0) + epoch(1) + epoch(2)),
    "repeat without end": (lambda ds: ds.repeat().take(8), lambda: epoch(0) + epoch(1) + epoch(2)[:2]),
    "take": (lambda ds: ds.take(2), lambda: epoch(0)[:2]),
    "take nothing": (lambda ds: ds.take(0), lambda: []),
    "take and repeat": (lambda ds: ds.take(1).repeat(3), lambda: [epoch(k)[0] for k in range(3)]),
    "skip": (lambda ds: ds.skip(1), lambda: epoch(0)[1:]),
    "map": (lambda ds: ds.map(lambda n: n * 2), lambda: [[2 * n for n in batch] for batch in epoch(0)]),
    "parallel map": (lambda ds: ds.map(lambda n: n, num_parallel_calls=3), lambda: epoch(0)),
    "unbatch": (lambda ds: ds.unbatch(), lambda: samples(0)),
    "unbatch and batch": (lambda ds: ds.unbatch().batch(3), lambda: [samples(0)[k : k + 3] for k in range(0, N, 3)]),
    "rebatch": (lambda ds: ds.rebatch(5), lambda: [samples(0)[:5], samples(0)[5:]]),
    "cache": (lambda ds: ds.cache().repeat(2), lambda: epoch(0) * 2),
    "prefetch": (lambda ds: ds.prefetch(2), lambda: epoch(0)),
    "prefetch that TensorFlow decides": (lambda ds: ds.prefetch(tf.data.AUTOTUNE), lambda: epoch(0)),
    "shuffle": (lambda ds: ds.shuffle(1), lambda: epoch(0)),
    "shard": (lambda ds: ds.shard(2, 1), lambda: epoch(0)[1::2]),
    "filter": (lambda ds: ds.filter(lambda n: tf.size(n) == SIZE), lambda: epoch(0)[:2]),
    "concatenate": (lambda ds: ds.concatenate(ds), lambda: epoch(0) + epoch(1)),
    "flat_map": (lambda ds: tf.data.Dataset.range(2).flat_map(lambda _: ds), lambda: epoch(0) + epoch(1)),
    "enumerate": (
        lambda ds: ds.enumerate().map(lambda k, n: n + k),
        lambda: [[n + k for n in batch] for k, batch in enumerate(epoch(0))],
    ),
}


@pytest.mark.parametrize(("pipeline", "expected"), PIPELINES.values(), ids=PIPELINES)
def test_what_tf_data_makes_of_the_dataset(pipeline: Any, expected: Any) -> None:
    made = pipeline(shuffled())
    assert found(made) == expected()
    if (cardinality := int(made.cardinality())) >= 0:
        assert cardinality == len(expected())


def test_shuffling_by_tf_data_keeps_all_elements() -> None:
    assert sorted(found(shuffled().unbatch().shuffle(N, seed=1))) == list(range(N))


def test_ragged_and_padded_batches_can_be_made_of_samples(maps: Path) -> None:
    dataset = to_tf_dataset(maps / "rows")
    assert [batch.to_list() for batch in dataset.ragged_batch(SIZE)] == [
        batch.to_list() for batch in to_tf_dataset(maps / "rows", SIZE)
    ]
    for batch, expected in zip(dataset.padded_batch(SIZE), epoch_of(maps / "rows", layout="padded"), strict=True):
        check_same(batch, expected)


@pytest.mark.parametrize("name", ["rows", "grids", "images"])
def test_ragged_batches_can_be_taken_apart_and_cached(maps: Path, name: str) -> None:
    batches = to_tf_dataset(maps / name, SIZE)
    apart = [
        sample.to_list() if isinstance(sample, tf.RaggedTensor) else sample.numpy().tolist()
        for sample in batches.unbatch()
    ]
    assert apart == [sample.tolist() for sample in adapter_data.RAGGED[name]]
    cached = batches.cache()
    for _ in range(2):
        assert [row for batch in cached for row in batch.to_list()] == apart


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 8])
def test_the_number_of_elements_is_known(n: int, drop_remainder: bool) -> None:
    dataset = to_tf_dataset(np.zeros(n), SIZE, drop_remainder=drop_remainder)
    assert len(dataset) == len(list(dataset)) == (n // SIZE if drop_remainder else -(-n // SIZE))
    assert len(to_tf_dataset(np.zeros(n))) == n


def test_a_loop_in_a_graph_sees_all_batches() -> None:
    dataset = shuffled()

    @tf.function
    def total(weight: Any) -> Any:
        numbers = tf.TensorArray(tf.int64, size=0, dynamic_size=True, infer_shape=False)
        for batch in dataset:
            numbers = numbers.write(numbers.size(), batch * weight)
        return numbers.concat()

    for k in range(2):
        assert total(tf.constant(1, tf.int64)).numpy().tolist() == samples(k)

    @tf.function
    def lengths(batches: Any) -> Any:
        most = tf.constant(0, tf.int64)
        for batch in batches:
            most = tf.maximum(most, tf.reduce_max(batch.row_lengths()))
        return most

    assert int(lengths(to_tf_dataset(NUMBERS, SIZE, transform=lambda n: np.zeros(n), layout="ragged"))) == 9


def test_reduce_and_as_numpy_iterator() -> None:
    assert int(shuffled().reduce(np.int64(0), lambda total, batch: total + tf.reduce_sum(batch))) == NUMBERS.sum()
    assert [batch.tolist() for batch in shuffled().as_numpy_iterator()] == epoch(0)
    assert found(tf.data.Dataset.zip((shuffled(), shuffled())).map(lambda one, other: one - other))[0] == [0] * SIZE


# -- several iterators -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, None])
def test_two_iterators_at_once_get_epochs_of_their_own(size: int | None) -> None:
    expected = epoch if size else lambda number: samples(number)
    dataset = to_tf_dataset(NUMBERS, size, shuffle=True, seed=4)
    one, got = iter(dataset), []
    got.append(next(one).numpy().tolist())
    other = iter(dataset)
    both = [(a.numpy().tolist(), b.numpy().tolist()) for a, b in zip(other, one)]  # noqa: B905
    assert [a for a, _ in both][: len(expected(1))] == expected(1)[: len(both)]
    assert got + [b for _, b in both] == expected(0)[: len(both) + 1]
    assert found(dataset) == expected(2)


PARTS: dict[str, Callable[[Any], Any]] = {
    "next": lambda dataset: [next(iter(dataset))],
    "zip": lambda dataset: [batch for _, batch in zip(range(1), dataset, strict=False)],
    "islice": lambda dataset: itertools.islice(dataset, 1),
    "take": lambda dataset: dataset.take(1),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("size", [SIZE, None])
def test_a_part_of_each_epoch_is_another_part(part: Any, size: int | None) -> None:
    dataset = to_tf_dataset(NUMBERS, size, shuffle=True, seed=4)
    expected = epoch if size else lambda number: samples(number)
    iter(dataset)  # one that never began
    for number in range(3):
        assert found(part(dataset)) == expected(number)[:1]
    assert found(dataset) == expected(3)


@pytest.mark.parametrize("size", [SIZE, None])
def test_readers_are_warned_once_of_an_iterator_that_was_given_up(size: int | None) -> None:
    def make(**options: Any) -> Any:
        return to_tf_dataset(np.arange(400_000), size, shuffle=True, prefetch=0, **options)

    for alone in (make(), make(shard=tf.distribute.InputContext(2, 0, 2)), make(shard=ReaderShard(0, 1))):
        next(iter(alone)), next(iter(alone))
    dataset = make(shard=ReaderShard(0, 2))
    next(iter(dataset))
    with pytest.warns(EpochWarning, match="let all readers begin equally many"):
        next(iter(dataset))
    next(iter(dataset))


def test_readers_that_finish_are_not_warned() -> None:
    for size in (SIZE, None):
        dataset = to_tf_dataset(NUMBERS, size, shuffle=True, seed=4, shard=ReaderShard(1, 2))
        assert len(found(dataset.repeat(3))) == 3 * len(found(dataset))
        assert len(list(zip(range(len(dataset)), dataset, strict=True))) == len(found(dataset))


def tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux shows them")
@pytest.mark.parametrize("size", [2, None])
def test_abandoned_iterators_leave_neither_threads_nor_descriptors(maps: Path, size: int | None) -> None:
    options = {"threads": 2} if size else {}
    dataset = to_tf_dataset((maps / "rows", maps / "texts"), size, shuffle=True, **options)

    def abandon(count: int) -> None:
        for _ in range(count):
            next(iter(dataset))
        gc.collect()

    abandon(3)  # the pools of TensorFlow have their threads now
    before = tasks(), descriptors()
    abandon(20)
    assert tasks() <= before[0] + 3  # and may have a few more, but not one for each iterator
    assert descriptors() <= before[1]


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_dataset_is_iterated_after_its_name_is_gone(size: int | None) -> None:
    running = iter(to_tf_dataset(NUMBERS, size, shuffle=True, seed=4).map(lambda n: n + 0))
    gc.collect()
    assert [element.numpy().tolist() for element in running] == (epoch(0) if size else samples(0))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors as Linux shows them")
@pytest.mark.parametrize("size", [SIZE, None])
def test_datasets_that_are_gone_leave_neither_descriptors_nor_functions(maps: Path, size: int | None) -> None:
    class Function:
        def __call__(self, row: Any) -> Any:
            return len(row)

    counts, kept = [], []
    for _ in range(8):
        function = Function()
        kept.append(weakref.ref(function))
        dataset = to_tf_dataset(maps / "rows", size, transform=function).map(lambda n: n + 1).prefetch(1)
        next(iter(dataset))
        del dataset, function
        gc.collect()
        counts.append(descriptors())
    assert max(counts[1:]) == counts[1]
    assert [reference() for reference in kept] == [None] * 8


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_dataset_may_be_made_where_another_one_is_traced(size: int | None) -> None:
    inside = tf.data.Dataset.range(2).interleave(lambda _: to_tf_dataset(NUMBERS, size))
    gc.collect()
    assert sorted(np.concatenate([np.atleast_1d(part) for part in inside]).tolist()) == sorted([*NUMBERS, *NUMBERS])


# -- memory ----------------------------------------------------------------------------------------------------------

LARGE, WIDE = 200, 8192  # samples, and the float32s of each: batches of 4 are worth a pool


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    values = np.arange(LARGE, dtype=np.float32)[:, None] + np.zeros(WIDE, np.float32)
    DenseMmap.from_ndarray(folder / "dense", values, sync=False)
    RaggedMmap.from_lists(folder / "ragged", [row[: WIDE - k] for k, row in enumerate(values)], sync=False)
    return folder


@pytest.mark.parametrize("name", ["dense", "ragged"])
@pytest.mark.parametrize("size", [SIZE, None])
def test_batches_never_change_after_they_were_handed_out(large: Path, name: str, size: int | None) -> None:
    dataset = to_tf_dataset(
        large / name, size, shuffle=True, layout="ragged" if size is None else "padded"
    )  # as stored
    tensors = list(dataset)
    arrays = [tensor.numpy() for tensor in tensors[: len(tensors) // 2]]
    for later in dataset.repeat(2):
        del later
    order = np.concatenate(list(Order(LARGE, SIZE, shuffle=True).batches(0)))
    expected = order if size is None else order.reshape(-1, SIZE)
    assert len(tensors) == len(expected) >= 50
    for numbers, tensor, array in zip(expected, tensors, [*arrays, *tensors[len(arrays) :]], strict=True):
        for rows in (np.asarray(tensor), np.asarray(array)):
            for number, row in zip(np.atleast_1d(numbers), np.atleast_2d(rows), strict=True):
                length = WIDE - number if name == "ragged" else WIDE
                assert (row[:length] == number).all()
                assert not row[length:].any()


def test_ragged_batches_never_change_either(large: Path) -> None:
    dataset = to_tf_dataset(large / "ragged", SIZE, threads=4)
    batches = list(dataset)
    for later in dataset.repeat(2):
        del later
    assert len(batches) == 50
    for k, batch in enumerate(batches):
        lengths = [WIDE - number for number in range(k * SIZE, (k + 1) * SIZE)]
        assert batch.row_lengths().numpy().tolist() == lengths
        assert (batch.flat_values.numpy() == np.repeat(np.arange(k * SIZE, (k + 1) * SIZE), lengths)).all()


def changed(x: Any) -> Any:
    """What TensorFlow computes in the memory of `x`, where it may: a part of a tensor shares its memory."""
    return x[0] * 0 - 5


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy whose memory begins where TensorFlow wants it, to take it without a copy."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    made = memory[-memory.ctypes.data % 64 :][: array.nbytes].view(array.dtype).reshape(array.shape)
    made[:] = array
    return made


SHARED: dict[str, Callable[[np.ndarray], tuple[Any, dict[str, Any]]]] = {
    "array": lambda table: (table, {}),
    "array in batches": lambda table: (table, {"batch_size": 4}),
    "transform": lambda table: (np.arange(4), {"transform": lambda k: table[k]}),
    "transform in batches": lambda table: (np.arange(4), {"batch_size": 2, "transform": lambda k: table[k]}),
    "batch_transform": lambda table: (np.arange(4), {"batch_size": 2, "batch_transform": lambda k: table[k[0] :][:2]}),
    "part of a batch_transform": lambda table: (
        np.arange(4),
        {"batch_size": 2, "batch_transform": lambda k: {"x": table, "k": k}, "columns": "x"},
    ),
}


@pytest.mark.parametrize("make", SHARED.values(), ids=SHARED)
def test_what_is_done_with_tensors_does_not_change_the_arrays_they_are_of(make: Any) -> None:
    table = aligned(np.zeros((4, 2, WIDE), np.float32) + np.arange(4, dtype=np.float32)[:, None, None])
    source, options = make(table)
    for element in to_tf_dataset(source, **options).repeat(2).map(changed):
        assert (element.numpy() == -5).all()
    assert (table == np.arange(4)[:, None, None]).all()


def test_a_function_may_keep_what_it_was_given() -> None:
    kept = []

    def keep(batch: np.ndarray) -> np.ndarray:
        kept.append(batch)
        return batch

    list(to_tf_dataset(np.ones((4, 2, 8 * WIDE), np.float32), 2, batch_transform=keep).map(changed))
    assert all((batch == 1).all() for batch in kept)


@pytest.mark.parametrize("name", ["ragged", "dense"])
@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize("size", [None, 1])
def test_samples_are_not_the_memory_of_the_map(tmp_path: Path, name: str, is_wrapped: bool, size: int | None) -> None:
    rows = np.ones((3, 2, WIDE), np.float32)
    if name == "ragged":
        RaggedMmap.from_lists(tmp_path / "m", [*rows], sync=False)
    else:
        DenseMmap.from_ndarray(tmp_path / "m", rows, sync=False)
    view = (lambda row: row) if is_wrapped else None
    source = open_map(tmp_path / "m", wrapper_fn=view, copy_before_wrapper_fn=False)
    dataset = to_tf_dataset(source, size)
    for k, element in enumerate(dataset):
        values = element.flat_values if isinstance(element, tf.RaggedTensor) else element
        assert not np.shares_memory(np.asarray(memoryview(values)), source[k])  # numpy() is a copy
    list(dataset.map(changed))
    assert all((row == 1).all() for row in open_map(tmp_path / "m"))


def resident() -> int:
    """Bytes of this process that no file has."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) << 10


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the memory as Linux shows it")
@pytest.mark.parametrize("size", [SIZE, None])
def test_memory_stays_flat_over_epochs(large: Path, size: int | None) -> None:
    dataset = to_tf_dataset((large / "dense", large / "ragged") if size else large / "dense", size, shuffle=True)

    def go_through(epochs: int) -> None:
        for _ in range(epochs):
            assert sum(1 for _ in dataset) == len(dataset)
        gc.collect()

    go_through(2)
    before = resident()
    go_through(5)
    assert resident() - before < LARGE * WIDE * 4  # bytes of one of five epochs of one map


# -- maps that change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, 600, None])
def test_a_map_that_is_replaced_meanwhile_is_an_error_that_says_so(tmp_path: Path, size: int | None) -> None:
    for name in ("a", "b"):
        RaggedMmap.from_lists(tmp_path / name, [ROWS[k % COUNT] for k in range(600)], sync=False)
    dataset = to_tf_dataset((tmp_path / "a", tmp_path / "b"), size, prefetch=0)
    assert len(list(dataset)) == len(dataset)
    RaggedMmap.from_lists(tmp_path / "b", [ROWS[k % COUNT] + 1 for k in range(600)], sync=False)
    with pytest.raises(
        tf.errors.OpError, match=r"MapChangedError: .*b was replaced since it was opened; open it again"
    ):
        list(dataset)


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_map_that_is_extended_meanwhile_is_an_error_that_says_so(tmp_path: Path, size: int | None) -> None:
    one = RaggedMmap.from_lists(tmp_path / "m", ROWS, sync=False)
    dataset = to_tf_dataset({"a": one, "b": np.arange(COUNT)}, size, prefetch=0)
    assert len(list(dataset)) == len(dataset)
    one.append(ROWS[3])
    text = rf"MapChangedError: source\['a'\] has {COUNT + 1} samples now, {COUNT} when these batches were made"
    with pytest.raises(tf.errors.OpError, match=text):
        list(dataset)


# -- without TensorFlow ----------------------------------------------------------------------------------------------

HIDDEN = """
    import sys

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "tensorflow":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Hidden())
    import mmap_ninja_tf
    assert "to_tf_dataset" in dir(mmap_ninja_tf)
    assert not {"tensorflow", "keras"} & {*sys.modules}, sys.modules
    from mmap_ninja.errors import MissingExtraError
    try:
        from mmap_ninja_tf import to_tf_dataset
    except MissingExtraError as error:
        print(isinstance(error, ImportError), error)
    try:
        mmap_ninja_tf.nothing
    except AttributeError as error:
        print(error)
"""


def test_without_tensorflow_the_error_names_the_extra() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(HIDDEN)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    missing, attribute = done.stdout.splitlines()
    assert missing.startswith("True ")
    assert "mmap-ninja[tf]" in missing
    assert attribute == "module 'mmap_ninja_tf' has no attribute 'nothing'"


def test_importing_the_package_imports_no_framework() -> None:
    code = "import sys, mmap_ninja_tf; print(sorted({'tensorflow', 'keras', 'torch', 'jax'} & {*sys.modules}))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
