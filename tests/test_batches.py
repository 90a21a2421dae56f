"""Batches against a plain loop over the map: the same samples, in every layout, from every position."""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmap_ninja import (
    Batches,
    BytesMmap,
    DenseMmap,
    Padding,
    RaggedMmap,
    StringsMmap,
    _batch,
    select,
    split,
    windows,
)
from mmap_ninja.errors import (
    ArgumentError,
    ArgumentTypeError,
    IndexTypeError,
    MapChangedError,
    MapNotFoundError,
    SampleError,
    SampleIndexError,
    SampleTypeError,
    StateError,
)
from mmap_ninja.gather import Jagged, Padded
from mmap_ninja.order import Order, ReaderShard

N = 23
ROWS = [np.arange(k * 100, k * 100 + k % 5, dtype=np.int16) for k in range(N)]
DENSE = np.arange(N * 6, dtype=np.float32).reshape(N, 2, 3)
TEXTS = [f"text {k} ü" for k in range(N)]
IMAGES = [np.full((1 + k % 3, 2 + k % 2), k, np.uint8) for k in range(N)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    RaggedMmap.from_lists(folder / "rows", ROWS)
    RaggedMmap.from_lists(folder / "images", IMAGES)
    DenseMmap.from_ndarray(folder / "dense", DENSE)
    StringsMmap.from_strings(folder / "texts", TEXTS)
    BytesMmap.from_bytes(folder / "bytes", [text.encode() for text in TEXTS], zstd_level=3)
    return folder


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("mmap_ninja"):
            thread.join(10)
            assert not thread.is_alive(), thread.name


def plain(batch: Any) -> Any:
    """A batch as nested lists, to compare it."""
    if isinstance(batch, dict):
        return {key: plain(part) for key, part in batch.items()}
    if isinstance(batch, tuple | list):
        return [plain(part) for part in batch]
    return batch.tolist() if isinstance(batch, np.ndarray | np.generic) else batch


def test_batches_of_a_dense_map(folder: Path) -> None:
    batches = list(Batches(folder / "dense", 5))
    assert [batch.shape for batch in batches] == [(5, 2, 3)] * 4 + [(3, 2, 3)]
    assert np.array_equal(np.concatenate(batches), DENSE)
    assert batches[0].dtype == DENSE.dtype
    assert batches[0].flags.writeable


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every dense batch counts as large, which two threads gather; filled with the threads that did."""
    fillers, fill = [], _batch._fill

    def seen(*args: Any) -> None:
        fillers.append(threading.current_thread().name)
        if len(set(fillers)) == 1:
            time.sleep(0.002)  # until the other one has come
        fill(*args)

    monkeypatch.setattr(_batch, "_LARGE", 0)
    monkeypatch.setattr(_batch, "_cores", lambda: 2)
    monkeypatch.setattr(_batch, "_fill", seen)
    return fillers


@pytest.mark.parametrize("size", [1, 2, 5, N])
def test_two_threads_gather_what_one_would(folder: Path, helped: list[str], size: int) -> None:
    dense = DenseMmap(folder / "dense")
    sources = {
        "map": (dense, DENSE),
        "array": (DENSE, DENSE),
        "selection": (select(dense, [5, 1, 5, 0]), DENSE[[5, 1, 5, 0]]),
        "windows": (windows(dense, 1, 1), DENSE.reshape(-1, 1, 3)),
        "columns": (np.asfortranarray(DENSE), DENSE),
    }
    for name, (source, expected) in sources.items():
        helped.clear()
        batches = list(Batches(source, size))
        assert np.array_equal(np.concatenate(batches), expected), name
        assert batches[0].dtype == DENSE.dtype
        assert len(set(helped)) == 2 or size < 5, "one thread has done it all"


def test_one_thread_gathers_where_there_is_to_be_none(folder: Path, helped: list[str]) -> None:
    assert np.array_equal(np.concatenate(list(Batches(folder / "dense", 5, prefetch=0))), DENSE)
    assert set(helped) == {threading.current_thread().name}


def test_the_memory_of_a_batch_of_two_threads_is_used_again(folder: Path, helped: list[str]) -> None:
    freed = []
    for batch in Batches(folder / "dense", 2):
        weakref.finalize(batch, freed.append, 1)
    del batch
    assert len(freed) == 12


def test_an_error_of_the_second_thread_is_that_of_the_batch(
    folder: Path, helped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = _batch._fill

    def failing(values: Any, one: Any, indices: Any) -> None:
        if 9 in indices:  # in the second half of the second batch
            raise OSError("a bad disk")
        fill(values, one, indices)

    monkeypatch.setattr(_batch, "_fill", failing)
    with pytest.raises(OSError, match="a bad disk") as caught:
        list(Batches(folder / "dense", 5))
    assert "batch 1 of epoch 0" in str(getattr(caught.value, "__notes__", caught.value))


def test_batches_of_rows_as_a_list(folder: Path) -> None:
    batches = list(Batches(folder / "rows", 4))
    assert [len(batch) for batch in batches] == [4] * 5 + [3]
    assert plain(list(itertools.chain(*batches))) == plain(ROWS)


def test_batches_of_rows_padded(folder: Path) -> None:
    for k, batch in enumerate(Batches(folder / "rows", 4, layout="padded", pad_value=-1)):
        assert isinstance(batch, Padded)
        part = ROWS[4 * k : 4 * k + 4]
        longest = max(map(len, part))
        assert plain(batch.values) == [[*row.tolist(), *[-1] * (longest - len(row))] for row in part]
        assert plain(batch.lengths) == list(map(len, part))


def test_batches_of_rows_padded_by_all_options(folder: Path) -> None:
    padding = Padding(pad_value=7, side="left", buckets=(2, 4, 8))
    shapes = {batch.values.shape for batch in Batches(folder / "rows", 1, layout="padded", pad_value=padding)}
    assert shapes == {(1, 2), (1, 4)}


def test_batches_of_rows_jagged(folder: Path) -> None:
    batches = list(Batches(folder / "images", 4, layout="jagged"))
    assert all(isinstance(batch, Jagged) for batch in batches)
    for k, batch in enumerate(batches):
        parts = [
            batch.values[start:stop].reshape(shape)
            for start, stop, shape in zip(batch.offsets, batch.offsets[1:], batch.shapes, strict=False)
        ]
        assert plain(parts) == plain(IMAGES[4 * k : 4 * k + 4])


def test_batches_of_images_stacked(folder: Path, tmp_path: Path) -> None:
    same = RaggedMmap.from_lists(tmp_path / "same", [image[:1, :2] for image in IMAGES])
    for k, batch in enumerate(Batches(same, 4, layout="stack")):
        assert batch.shape == (len(IMAGES[4 * k : 4 * k + 4]), 1, 2)
        assert plain(batch) == plain([image[:1, :2] for image in IMAGES[4 * k : 4 * k + 4]])
    with pytest.raises(
        SampleError, match=r"sample 0 has shape \(1, 2\), sample 1 \(2, 3\): they do not stack; layout="
    ):
        list(Batches(folder / "images", 4, layout="stack"))


@pytest.mark.parametrize("layout", ["list", "padded", "jagged", "stack"])
def test_texts_and_bytes_are_lists_in_every_layout(folder: Path, layout: str) -> None:
    assert list(itertools.chain(*Batches(folder / "texts", 4, layout=layout))) == TEXTS
    assert list(itertools.chain(*Batches(folder / "bytes", 4, layout=layout))) == [text.encode() for text in TEXTS]


@pytest.mark.parametrize("layout", ["padded", "jagged", "stack"])
def test_a_dense_map_is_an_array_in_every_layout(folder: Path, layout: str) -> None:
    assert np.array_equal(np.concatenate(list(Batches(folder / "dense", 4, layout=layout))), DENSE)


def test_maps_side_by_side(folder: Path) -> None:
    source = {"x": (folder / "dense", RaggedMmap(folder / "rows")), "y": np.arange(N), "text": str(folder / "texts")}
    batch = next(iter(Batches(source, 4, layout="padded")))
    assert np.array_equal(batch["x"][0], DENSE[:4])
    assert plain(batch["x"][1].lengths) == [0, 1, 2, 3]
    assert plain(batch["y"]) == [0, 1, 2, 3]
    assert batch["text"] == TEXTS[:4]


@pytest.mark.parametrize(
    "options", [{}, {"shuffle": True, "seed": 3}, {"readahead": 2}, {"with_indices": True}], ids=str
)
def test_a_batch_by_its_number_is_that_of_an_iteration(folder: Path, options: dict[str, Any]) -> None:
    source = {"row": folder / "rows", "dense": folder / "dense", "text": folder / "texts"}
    batches = Batches(source, 5, layout="padded", **options)
    expected = [plain(batch) for _ in range(2) for batch in batches]
    for k in [7, 0, 4, 9, 4]:
        assert plain(batches.batch(*divmod(k, 5))) == expected[k]
    assert batches.epoch == 2


def test_a_batch_by_its_number_leaves_the_position(folder: Path) -> None:
    batches = Batches(folder / "dense", 5)
    running = iter(batches)
    next(running)
    before = batches.state_dict()
    batches.batch(3, 2)
    assert batches.state_dict() == before
    assert np.array_equal(next(running), DENSE[5:10])


def test_several_threads_may_ask_for_batches_by_number(folder: Path) -> None:
    def transform(row: np.ndarray) -> int:
        return int(row.sum())

    batches = Batches(folder / "rows", 3, shuffle=True, transform=transform, threads=3)
    expected = [plain(batch) for _ in range(4) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: plain(batches.batch(*divmod(k, 8))), range(32)))
    assert found == expected


def test_a_batch_by_its_number_tells_the_kernel_of_those_to_come(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[int]] = []
    monkeypatch.setattr(DenseMmap, "will_need", lambda self, indices: told.append(indices.tolist()))
    batches = Batches(folder / "dense", 5, readahead=2)
    for k in range(5):
        batches.batch(0, k)
    assert told == [list(range(first, min(first + 5, N))) for first in range(0, N, 5)]
    told.clear()
    Batches(folder / "dense", 5, readahead=0).batch(0, 0)
    assert told == []


@pytest.mark.parametrize("change", ["replaced", "appended"])
def test_a_batch_by_its_number_is_of_the_map_that_was_opened(tmp_path: Path, change: str) -> None:
    m = DenseMmap.from_ndarray(tmp_path / "m", DENSE)
    batches = Batches(m, 5)
    if change == "replaced":
        DenseMmap.from_ndarray(tmp_path / "m", DENSE + 1)
    else:
        m.append(DENSE[0])
    with pytest.raises(MapChangedError, match=r"make new ones|open it again"):
        batches.batch(0, 0)


def test_batches_by_number_of_one_epoch_are_of_one_state(tmp_path: Path) -> None:
    batches = Batches(DenseMmap.from_ndarray(tmp_path / "m", DENSE), 5)
    batches.batch(0, 0)
    DenseMmap.from_ndarray(tmp_path / "m", DENSE + 1)
    np.testing.assert_array_equal(batches.batch(0, 1), DENSE[5:10])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(Batches(tmp_path / "m", 5))).batch(0, 1), DENSE[5:10] + 1)
    for _ in range(2):
        with pytest.raises(MapChangedError, match="open it again"):
            batches.batch(1, 0)


@pytest.mark.parametrize(
    "made",
    [
        lambda shape, dtype: np.empty((*shape, 1), dtype),
        lambda shape, dtype: np.empty(shape, np.int8),
        lambda shape, dtype: np.empty((2 * shape[0], *shape[1:]), dtype)[::2],
        lambda shape, dtype: np.broadcast_to(np.zeros((), dtype), shape),
        lambda shape, dtype: np.empty(shape, dtype).tolist(),
    ],
    ids=["shape", "dtype", "order", "read-only", "list"],
)
@pytest.mark.parametrize("name", ["rows", "dense", "images"])
def test_what_is_to_be_filled_has_to_be_what_was_asked_for(folder: Path, made: Any, name: str) -> None:
    with pytest.raises(ArgumentTypeError, match="has to make a writable array of these in C order"):
        list(Batches(folder / name, 5, layout="padded", empty=made))


@pytest.mark.parametrize("empty", [[], np.zeros(0), np.zeros((0,), np.int8)], ids=["list", "float", "int8"])
@pytest.mark.parametrize("layout", ["padded", "jagged"])
def test_what_has_no_elements_takes_the_dtype_of_the_others(folder: Path, empty: Any, layout: str) -> None:
    expected = list(Batches(folder / "rows", 5, layout=layout))
    found = list(Batches(folder / "rows", 5, layout=layout, transform=lambda row: row if len(row) else empty))
    assert [batch.values.dtype for batch in found] == [np.int16] * len(expected)
    assert plain(found) == plain(expected)


def test_a_batch_that_there_is_not(folder: Path) -> None:
    with pytest.raises(ArgumentError, match="k is 5, but an epoch has 5 batches"):
        Batches(folder / "dense", 5).batch(0, 5)
    with pytest.raises(ArgumentError, match="batches of an order that was given have no number: iterate"):
        Batches(folder / "dense", order=[[0]]).batch(0, 0)


def test_an_error_in_a_batch_by_its_number_names_it(folder: Path) -> None:
    def fail(row: np.ndarray) -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose") as caught:
        Batches(folder / "rows", 5, transform=fail).batch(2, 3)
    assert "while making batch 3 of epoch 2" in str(getattr(caught.value, "__notes__", caught.value))


def test_what_comes_out_of_a_conversion_counts_as_handed_out(folder: Path) -> None:
    def two_ahead(batches: Iterator[Any]) -> Iterator[Any]:
        waiting = [next(batches), next(batches)]
        for batch in batches:
            waiting.append(batch)
            yield waiting.pop(0) * 2
        yield from (batch * 2 for batch in waiting)

    expected = [batch * 2 for batch in Batches(folder / "dense", 5, shuffle=True)]
    for stop in range(len(expected) + 1):
        batches = Batches(folder / "dense", 5, shuffle=True)
        found = list(itertools.islice(batches.through(two_ahead), stop))
        other = Batches(folder / "dense", 5, shuffle=True)
        other.load_state_dict(batches.state_dict())
        if stop < len(expected):
            found += [batch * 2 for batch in other]
        assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_leaving_a_conversion_early_leaves_no_thread(folder: Path) -> None:
    for _ in Batches(folder / "dense", 5).through(lambda batches: (batch for batch in batches)):
        break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mmap_ninja")]


@pytest.mark.parametrize("layout", ["padded", "jagged", "stack"])
def test_arrays_that_are_filled_come_from_where_the_user_says(folder: Path, layout: str) -> None:
    made = []

    def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        made.append(np.empty(shape, dtype))
        return made[-1]

    source = ("rows" if layout != "stack" else "dense", "dense")
    paths = tuple(folder / name for name in source)
    transform = None if layout != "stack" else (lambda sample: sample)
    expected = list(Batches(paths, 5, layout=layout, transform=transform))
    found = list(Batches(paths, 5, layout=layout, transform=transform, empty=empty))
    assert len(made) == 2 * len(found)
    for (one, dense), (other, expected_dense) in zip(found, expected, strict=True):
        values = one if isinstance(one, np.ndarray) else one.values
        assert any(np.shares_memory(values, array) for array in made) or values.size == 0
        assert any(np.shares_memory(dense, array) for array in made)
        assert np.array_equal(values, other if isinstance(other, np.ndarray) else other.values)
        assert np.array_equal(dense, expected_dense)


def test_an_array_is_not_changed_through_a_batch() -> None:
    labels = np.arange(10)
    for batch in Batches(labels, 5):
        batch[:] = 0
    assert plain(labels) == list(range(10))


@pytest.mark.parametrize("layout", ["list", "padded", "jagged"])
def test_batches_of_views(folder: Path, layout: str) -> None:
    rows = RaggedMmap(folder / "rows")
    chosen = [20, 3, 3, 7, 0]
    expected = list(Batches(folder / "rows", order=[chosen[:2], chosen[2:4], chosen[4:]], layout=layout))
    assert list(map(plain, Batches(select(rows, chosen), 2, layout=layout))) == list(map(plain, expected))


def test_batches_of_a_split_are_all_samples(folder: Path) -> None:
    parts = split(RaggedMmap(folder / "rows"), (0.7, 0.3), seed=1)
    labels = split(DenseMmap(folder / "dense"), (0.7, 0.3), seed=1)
    seen = []
    for part, of_labels in zip(parts, labels, strict=True):
        for rows, values in Batches((part, of_labels), 4, shuffle=True):
            seen += values[:, 0, 0].tolist()
            assert plain(rows) == plain([ROWS[int(value) // 6] for value in values[:, 0, 0]])
    assert sorted(seen) == DENSE[:, 0, 0].tolist()


def test_batches_of_windows_are_arrays(folder: Path) -> None:
    view = windows(RaggedMmap(folder / "rows"), 2, stride=1)
    expected = [row[k : k + 2].tolist() for row in ROWS for k in range(len(row) - 1)]
    batches = list(Batches(view, 5))
    assert all(isinstance(batch, np.ndarray) and batch.shape[1:] == (2,) for batch in batches)
    assert plain(np.concatenate(batches)) == expected
    check_every_position(lambda: Batches(view, 5, shuffle=True))


# --- shuffled, shared, resumed


cases = st.fixed_dictionaries(
    {
        "batch_size": st.sampled_from([1, 2, 4, 6, 12, 24, 36]),
        "shuffle": st.booleans(),
        "drop_last": st.booleans(),
        "seed": st.integers(0, 3),
    }
)


@given(case=cases, count=st.sampled_from([1, 2]), prefetch=st.integers(0, 3))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_samples_are_those_of_the_order(folder: Path, case: dict[str, Any], count: int, prefetch: int) -> None:
    if case["batch_size"] % count:
        case["batch_size"] *= count
    for index in range(count):
        shard = ReaderShard(index, count)
        order = Order(N, shard=shard, **case)
        batches = Batches(folder / "dense", shard=shard, prefetch=prefetch, with_indices=True, **case)
        assert len(batches) == len(order)
        for epoch in range(2):
            expected = list(order.batches(epoch))
            found = list(batches)
            assert [plain(indices) for indices, _ in found] == [plain(indices) for indices in expected]
            assert all(np.array_equal(batch, DENSE[indices]) for indices, batch in found)


def uninterrupted(make: Callable[[], Batches], epochs: int) -> list[Any]:
    batches = make()
    return [plain(batch) for _ in range(epochs) for batch in batches]


def check_every_position(make: Callable[[], Batches], epochs: int = 2) -> None:
    """Start again from each state that there is, and see the rest of what was not interrupted."""
    expected, batches = uninterrupted(make, epochs), make()
    states, position = [(0, batches.state_dict())], 0
    for _ in range(epochs):
        for _ in batches:
            position += 1
            states.append((position, batches.state_dict()))
        states.append((position, batches.state_dict()))
    assert position == len(expected) > 0
    for position, state in states:
        again = make()
        again.load_state_dict(json.loads(json.dumps(state)))
        rest = []
        while len(rest) < len(expected) - position:
            rest += map(plain, again)
        assert rest == expected[position:]


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True}], ids=str)
def test_going_on_from_every_position(folder: Path, options: dict[str, Any], prefetch: int) -> None:
    check_every_position(lambda: Batches(folder / "rows", 4, seed=3, prefetch=prefetch, **options))


def test_going_on_from_every_position_of_an_order_that_was_given(folder: Path) -> None:
    order = [[0, 1], [22, -1, 5], np.array([7]), range(3, 6)]
    check_every_position(lambda: Batches(folder / "rows", order=order))


def test_going_on_from_every_position_with_a_transform_in_threads(folder: Path) -> None:
    check_every_position(
        lambda: Batches(folder / "rows", 4, shuffle=True, transform=lambda row: row.sum(), threads=3, layout="stack")
    )


def test_going_on_with_another_number_of_readers(folder: Path) -> None:
    def readers(count: int) -> list[Batches]:
        return [Batches(folder / "dense", 6, shuffle=True, shard=ReaderShard(k, count)) for k in range(count)]

    whole = [plain(batch) for batch in Batches(folder / "dense", 6, shuffle=True)]
    for before, after in itertools.product((1, 2, 3, 6), repeat=2):
        first = readers(before)
        for one in first:
            assert next(iter(one)) is not None
        state = first[-1].state_dict()
        rest = readers(after)
        for one in rest:
            one.load_state_dict(state)
        found = [plain(np.concatenate(parts)) for parts in zip(*rest, strict=True)]
        assert [batch[: len(expected)] for batch, expected in zip(found, whole[1:], strict=True)] == whole[1:]


def test_what_is_prefetched_is_not_counted(folder: Path) -> None:
    batches = Batches(folder / "rows", 4, prefetch=5)
    running = iter(batches)
    assert batches.state_dict()["samples_seen"] == 0
    next(running)
    assert batches.state_dict()["samples_seen"] == 4


def test_an_epoch_that_is_given_up_leads_to_the_next(folder: Path) -> None:
    batches = Batches(folder / "rows", 4)
    for _ in batches:
        break
    assert (plain(next(iter(batches))), batches.epoch) == (plain(ROWS[:4]), 1)  # unshuffled, all epochs are the same
    batches.set_epoch(5)
    assert (batches.epoch, batches.state_dict()["epoch"]) == (5, 5)


def test_a_pickled_one_goes_on_from_its_position(folder: Path) -> None:
    batches = Batches(folder / "rows", 4, shuffle=True)
    running = iter(batches)
    next(running)
    state = batches.state_dict()
    for twin in (pickle.loads(pickle.dumps(batches)), copy.deepcopy(batches)):
        assert twin.state_dict() == state
        assert [plain(batch) for batch in twin] == [
            plain(batch) for batch in Batches(folder / "rows", 4, shuffle=True)
        ][1:]
    assert len(pickle.dumps(batches)) < 2048


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"batch_size": 5}, "batch_size is 4 there and 5 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"source": np.arange(9)}, "n is 23 there and 9 here"),
        ({"order": [[1]], "batch_size": None, "shuffle": False}, "the state lacks order, batches_seen"),
    ],
)
def test_a_state_of_other_batches_is_refused(folder: Path, other: dict[str, Any], message: str) -> None:
    options = {"source": folder / "rows", "batch_size": 4, "shuffle": True}
    state = Batches(**options).state_dict()
    with pytest.raises(StateError, match=message):
        Batches(**{**options, **other}).load_state_dict(state)


# --- an order that was given


def test_an_order_that_was_given(folder: Path) -> None:
    order = [[3, 3, -1], np.array([0]), range(2), np.array([True] + [False] * (N - 1))]
    batches = Batches(folder / "rows", order=order, with_indices=True)
    assert len(batches) == 4
    expected = [[3, 3, N - 1], [0], [0, 1], [0]]
    for _ in range(2):
        found = list(batches)
        assert [plain(indices) for indices, _ in found] == expected
        assert [plain(batch) for _, batch in found] == [plain([ROWS[i] for i in part]) for part in expected]


def test_an_order_without_length(folder: Path) -> None:
    class Endless:
        def __iter__(self) -> Iterator[list[int]]:
            return iter(lambda: [1, 2], None)

    batches = Batches(folder / "rows", order=Endless())
    with pytest.raises(TypeError, match="no length"):
        len(batches)
    assert len(list(itertools.islice(batches, 7))) == 7
    assert batches.state_dict()["batches_seen"] == 7


@pytest.mark.parametrize("order", [[[0], [1]], type("Two", (), {"__iter__": lambda self: iter([[0], [1]])})()])
def test_a_state_that_an_order_does_not_reach_is_refused(folder: Path, order: Any) -> None:
    batches = Batches(folder / "rows", order=order)
    with pytest.raises(StateError, match="the state is of batch 77, but the order that was given has only 2"):
        batches.load_state_dict({**batches.state_dict(), "batches_seen": 77}) or list(batches)


def test_an_order_hears_of_the_epoch(folder: Path) -> None:
    class Sampler:
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[list[int]]:
            yield [self.epoch]

    batches = Batches(folder / "rows", order=Sampler(), with_indices=True)
    assert [indices.tolist() for _ in range(3) for indices, _ in batches] == [[0], [1], [2]]


def test_an_iterator_is_gone_through_once(folder: Path) -> None:
    batches = Batches(folder / "rows", order=iter([[0], [1]]))
    assert len(list(batches)) == 2
    with pytest.raises(ArgumentError, match="iterator, which can be gone through once"):
        list(batches)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([0, N], SampleIndexError, f"batch 1 of the order that was given: index {N} is out of range for a map of {N}"),
        ([0.5], IndexTypeError, "batch 1 of the order that was given: a map is indexed by integers"),
        (7, ArgumentTypeError, "batch 1 of the order that was given is 7, expected the indices of several samples"),
        ([], ArgumentError, "batch 1 of the order that was given has no samples"),
    ],
)
def test_an_order_with_a_bad_batch(folder: Path, bad: Any, error: type[Exception], message: str) -> None:
    running = iter(Batches(folder / "rows", order=[[0], bad]))
    next(running)
    with pytest.raises(error, match=message):
        next(running)


# --- parts of a batch in forms of their own


def test_layout_and_padding_of_each_part(folder: Path) -> None:
    source = {"tokens": folder / "rows", "labels": (folder / "rows", folder / "images"), "y": np.arange(N)}
    layout = {"tokens": "padded", "labels": ("padded", "jagged")}
    batch = next(iter(Batches(source, 3, layout=layout, pad_value={"labels": (-100, 0)})))
    assert plain(batch["tokens"].values) == [[0, 0], [100, 0], [200, 201]]
    assert plain(batch["labels"][0].values) == [[-100, -100], [100, -100], [200, 201]]
    assert isinstance(batch["labels"][1], Jagged)
    assert plain(batch["y"]) == [0, 1, 2]


def test_forms_of_what_a_transform_makes(folder: Path) -> None:
    def both(row: np.ndarray) -> dict[str, Any]:
        return {"row": row, "total": row.sum()}

    layout = {"row": "padded", "total": "stack"}
    batch = next(iter(Batches(folder / "rows", 3, transform=both, layout=layout, pad_value={"row": 7})))
    assert plain(batch["row"].values) == [[7, 7], [100, 7], [200, 201]]
    assert plain(batch["total"]) == [0, 100, 401]
    batches = Batches(folder / "rows", 3, transform=both, layout={"rows": "padded"})
    with pytest.raises(
        ArgumentError, match=r"layout has an entry for 'rows', but the parts of a batch are \['row', 'to"
    ):
        next(iter(batches))
    with pytest.raises(ArgumentError, match="sample 0 became no dict or tuple"):
        next(iter(Batches(folder / "rows", 3, transform=len, layout=layout)))


class Pair(NamedTuple):
    x: Any
    y: Any


def test_named_tuples_stay_what_they_are(folder: Path) -> None:
    batch = next(iter(Batches(Pair(folder / "dense", np.arange(N)), 2)))
    assert isinstance(batch, Pair)
    assert plain(batch.y) == [0, 1]
    options = {"transform": lambda s: Pair(s.x.sum(), s.y + 1), "layout": "stack"}
    batch = next(iter(Batches(Pair(folder / "dense", np.arange(N)), 2, **options)))
    assert isinstance(batch, Pair)
    assert plain(batch) == [[15.0, 51.0], [1, 2]]


def test_mappings_of_any_class(folder: Path) -> None:
    source = OrderedDict(y=np.arange(N), x=folder / "rows")
    batch = next(iter(Batches(source, 2, transform=lambda s: OrderedDict(a=s["y"], b=len(s["x"])), layout="stack")))
    assert plain(batch) == {"a": [0, 1], "b": [0, 1]}


def test_an_error_names_the_part_of_the_batch(folder: Path) -> None:
    source = {"a": folder / "images", "b": folder / "rows"}
    with pytest.raises(SampleError) as caught:
        list(Batches(source, 4, layout={"a": "stack"}))
    assert "of source['a']" in " ".join(getattr(caught.value, "__notes__", [str(caught.value)]))


def test_labels_in_memory_beside_a_split(folder: Path) -> None:
    labels = np.arange(N) * 10
    train, _ = split(RaggedMmap(folder / "rows"), (0.7, 0.3))
    for rows, of_rows in Batches((train, labels[train.indices]), 4, shuffle=True):
        assert plain(rows) == plain([ROWS[label // 10] for label in of_rows])


# --- functions of the user


def test_a_transform_may_change_its_sample(folder: Path) -> None:
    def negative(row: np.ndarray) -> np.ndarray:
        row *= -1
        return row

    found = list(itertools.chain(*Batches(folder / "rows", 4, transform=negative)))
    assert plain(found) == plain([-row for row in ROWS])
    assert plain(RaggedMmap(folder / "rows")[:]) == plain(ROWS)


def test_a_transform_may_change_records_of_an_array() -> None:
    records = np.zeros(4, [("x", "i4"), ("y", "f4")])

    def changed(record: np.void) -> np.void:
        record["x"] = 7
        return record

    assert [record["x"] for record in itertools.chain(*Batches(records, 2, transform=changed))] == [7] * 4
    assert not records["x"].any()


def test_without_the_copy_it_gets_the_view(folder: Path) -> None:
    m = RaggedMmap(folder / "rows", copy_before_wrapper_fn=False)
    flags = list(itertools.chain(*Batches(m, 4, transform=lambda row: row.flags.writeable)))
    assert flags == [False] * N


def test_a_transform_of_fields(folder: Path) -> None:
    source = {"row": folder / "rows", "label": np.arange(N)}
    batches = Batches(
        source, 4, transform=lambda s: {"sum": int(s["row"].sum()), "pair": (s["label"], "x")}, layout="stack"
    )
    batch = next(iter(batches))
    assert plain(batch) == {"sum": [int(row.sum()) for row in ROWS[:4]], "pair": [[0, 1, 2, 3], ["x"] * 4]}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("layout", ["list", "padded", "jagged"])
def test_what_a_transform_makes_is_put_together_by_layout(folder: Path, layout: str, threads: int) -> None:
    def longer(row: np.ndarray) -> np.ndarray:
        return np.concatenate([row, row]).astype(np.int64)

    expected = [longer(row) for row in ROWS[:4]]
    batch = next(iter(Batches(folder / "rows", 4, layout=layout, transform=longer, threads=threads)))
    if layout == "list":
        assert plain(batch) == plain(expected)
    elif layout == "jagged":
        assert plain(batch.values) == plain(np.concatenate(expected))
        assert plain(batch.offsets) == [0, 0, 2, 6, 12]
    else:
        assert plain(batch.values) == [[*row.tolist(), *[0] * (6 - len(row))] for row in expected]
        assert plain(batch.lengths) == [0, 2, 4, 6]


def test_a_wrapper_fn_makes_the_samples(folder: Path) -> None:
    m = DenseMmap(folder / "dense", wrapper_fn=lambda sample: sample.sum())
    assert [len(batch) for batch in Batches(m, 20)] == [20, 3]
    (first, second) = Batches((m, folder / "rows"), 20, layout="stack", transform=lambda s: (s[0], len(s[1])))
    assert np.array_equal(np.concatenate([first[0], second[0]]), DENSE.sum(axis=(1, 2)))


def test_a_batch_transform(folder: Path) -> None:
    batches = Batches(folder / "dense", 4, batch_transform=lambda batch: batch.mean(axis=(1, 2)), with_indices=True)
    for indices, batch in batches:
        assert np.array_equal(batch, DENSE[indices].mean(axis=(1, 2)))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_of_a_transform_names_batch_and_sample(folder: Path, threads: int, prefetch: int) -> None:
    def fail(row: np.ndarray) -> np.ndarray:
        if len(row) and row[0] == 900:
            raise KeyError("on purpose")
        return row

    batches = Batches(folder / "rows", 4, transform=fail, threads=threads, prefetch=prefetch)
    running = iter(batches)
    assert len(list(itertools.islice(running, 2))) == 2
    with pytest.raises(KeyError, match="on purpose") as caught:
        next(running)
    notes = getattr(caught.value, "__notes__", None) or [str(caught.value)]
    assert "while making sample 9" in " ".join(notes)
    assert "while making batch 2 of epoch 0" in " ".join(notes)
    assert batches.state_dict()["samples_seen"] == 8  # the batch that has failed is the next one


def test_an_error_of_a_batch_transform_names_the_batch(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(Batches(folder / "rows", 4, batch_transform=lambda batch: 1 / (len(batch) - 3)))
    assert "while making batch 5 of epoch 0" in " ".join(getattr(caught.value, "__notes__", [str(caught.value)]))


@pytest.mark.parametrize(
    ("transform", "layout", "error", "message"),
    [
        (
            lambda i: np.zeros(2 + i % 2),
            "stack",
            SampleError,
            r"sample 0 became an array of shape \(2,\), sample 1 one of",
        ),
        (
            lambda i: np.zeros(2, [np.int8, np.int16][i % 2]),
            "padded",
            SampleError,
            "of dtype int8, sample 1 one of int16",
        ),
        (lambda i: np.zeros([(2,), (2, 2)][i % 2]), "jagged", SampleError, "of ndim 1, sample 1 one of 2"),
        (lambda i: object(), "stack", SampleTypeError, "sample 0 became a object; layout='list' takes everything"),
        (lambda i: [[1], [1, 2]], "stack", SampleTypeError, "sample 0 became a list; layout='list' takes everything"),
        (lambda i: [1, "a"], "stack", SampleTypeError, "sample 0 became a list; layout='list' takes everything"),
        (lambda i: {"a": i} if i else {"b": i}, "list", SampleError, "became a dict of 'b', sample 1 a dict of 'a'"),
        (lambda i: (i,) * (1 + i), "list", SampleError, "became a tuple of 1, sample 1 a tuple of 2"),
        (lambda i: {"a": i} if i else i, "list", None, ""),
        (lambda i: i if i else {"a": i}, "list", SampleError, "became a dict of 'a', sample 1 a "),
    ],
)
def test_samples_that_make_no_batch(
    transform: Callable[[Any], Any], layout: str, error: type[Exception] | None, message: str
) -> None:
    batches = Batches(np.arange(4), 2, transform=lambda i: transform(int(i)), layout=layout)
    if error is None:
        assert len(list(batches)) == 2
        return
    with pytest.raises(error, match=message):
        list(batches)


# --- real photographs


def test_decoding_photographs_in_threads(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    from sklearn.datasets import load_sample_images

    pictures = [
        image.fromarray(photo).resize((64 + 8 * k, 48)) for k in range(6) for photo in load_sample_images().images
    ]
    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG")
        files.append(buffer.getvalue())
    m = BytesMmap.from_bytes(tmp_path / "photographs", files)

    def decoded(raw: bytes) -> np.ndarray:
        return np.asarray(image.open(io.BytesIO(raw)))

    expected = [decoded(raw) for raw in files]
    for threads in (1, 2):
        batches = Batches(m, 5, shuffle=True, transform=decoded, threads=threads, layout="padded", with_indices=True)
        seen = []
        for indices, batch in batches:
            seen += indices.tolist()
            for k, i in enumerate(indices):
                assert np.array_equal(batch.values[k][:, : batch.shapes[k][1]], expected[i])
        assert sorted(seen) == list(range(len(files)))


# --- batches never change


@pytest.mark.parametrize("layout", ["padded", "jagged", "stack"])
def test_fifty_batches_that_are_kept_never_change(tmp_path: Path, layout: str) -> None:
    samples = np.random.default_rng(0).integers(0, 255, (60, 70_000), np.uint8)  # large enough for the pool
    m = RaggedMmap.from_lists(tmp_path / "m", list(samples))
    kept, seen = [], 0
    for indices, batch in Batches(m, 4, shuffle=True, layout=layout, with_indices=True):
        kept.append((indices, batch[0][1] if layout != "jagged" else batch.values[70_000:140_000], layout))
        if layout == "padded":
            kept[-1] = (indices, batch.values[1], layout)
        elif layout == "stack":
            kept[-1] = (indices, batch[1][:], layout)
        del batch
    for indices, part, _ in kept:
        assert np.array_equal(part, samples[indices[1]])
        seen += 1
    assert seen == 15


def test_memory_of_batches_that_are_gone_is_used_again(tmp_path: Path) -> None:
    m = DenseMmap.from_ndarray(tmp_path / "m", np.zeros((400, 100_000), np.uint8))
    places = set()
    for batch in Batches(m, 4):
        places.add(batch.__array_interface__["data"][0])
        assert batch.__array_interface__["data"][0] % 64 == 0
    assert len(places) <= 6  # of 100 batches


@pytest.mark.parametrize("layout", ["padded", "jagged", "stack"])
def test_memory_is_used_again_in_every_layout(tmp_path: Path, layout: str) -> None:
    m = RaggedMmap.from_lists(tmp_path / "m", list(np.zeros((400, 20_000), np.uint8)))
    places = set()
    for batch in Batches(m, 4, layout=layout):
        values = batch if layout == "stack" else batch.values
        places.add(values.__array_interface__["data"][0])
        assert values.__array_interface__["data"][0] % 64 == 0
        del batch, values
    assert len(places) <= 5  # of 100: two ready, one in the making, one handed out, one on its way back


@pytest.mark.parametrize("of", ["dense", "memory"])
def test_a_transform_of_samples_of_one_shape_may_change_them(folder: Path, of: str) -> None:
    source = DENSE.copy() if of == "memory" else folder / "dense"

    def cleared(sample: np.ndarray) -> np.ndarray:
        sample[...] = 0
        return sample

    assert not np.any(np.concatenate(list(Batches(source, 4, transform=cleared, layout="stack"))))
    assert np.array_equal(source if of == "memory" else DenseMmap(folder / "dense")[:], DENSE)


# --- leaving


@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"prefetch": 0}, {"prefetch": 0, "threads": 2}], ids=str)
def test_leaving_does_not_wait_for_a_whole_batch(options: dict[str, Any]) -> None:
    begun, may_go_on = [], threading.Event()

    def slow(sample: np.ndarray) -> np.ndarray:
        begun.append(int(sample))
        if sample >= 4:
            may_go_on.wait(60)
        return sample

    running = iter(Batches(np.arange(400), 4, transform=slow, **{"prefetch": 1, **options}))
    next(running)
    del running  # waits for a second, as the next samples are held up
    may_go_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("mmap_ninja"):
            thread.join(60)
    assert len(begun) <= 4 + 2 * options.get("threads", 1)


# --- the map underneath


def test_a_map_that_grows_meanwhile(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "m", ROWS)
    batches = Batches(m, 4)
    running = iter(batches)
    found = list(next(running))
    m.extend([np.arange(3, dtype=np.int16)])
    found += itertools.chain(*running)
    assert plain(found) == plain(ROWS)
    with pytest.raises(MapChangedError, match=f"source has {N + 1} samples now, {N} when these batches were made"):
        next(iter(batches))


def test_a_map_that_is_replaced_meanwhile(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "m", ROWS)
    batches = Batches(m, 4)
    saved = pickle.dumps(batches)
    running = iter(batches)
    found = list(next(running))
    RaggedMmap.from_lists(tmp_path / "m", [row + 1 for row in ROWS])
    m.refresh()
    found += itertools.chain(*running)
    assert plain(found) == plain(ROWS)  # an iteration sees what there was when it began
    with pytest.raises(MapChangedError, match="a map was replaced since these batches were made"):
        next(iter(batches))
    with pytest.raises(MapChangedError, match="replaced"):
        pickle.loads(saved)


@pytest.mark.parametrize("of", [str, RaggedMmap, lambda path: select(RaggedMmap(path), slice(2, 9))])
def test_a_map_that_is_replaced_by_somebody_else(tmp_path: Path, of: Callable[[Path], Any]) -> None:
    RaggedMmap.from_lists(tmp_path / "m", ROWS)
    batches = Batches({"rows": of(tmp_path / "m")}, 4)
    assert len(list(batches)) > 0
    RaggedMmap.from_lists(tmp_path / "m", [row + 1 for row in ROWS])
    with pytest.raises(MapChangedError, match=r"m was replaced since it was opened; open it again"):
        next(iter(batches))


def test_samples_that_somebody_else_appends_are_for_new_batches(tmp_path: Path) -> None:
    RaggedMmap.from_lists(tmp_path / "m", ROWS)
    batches = Batches(tmp_path / "m", 4)
    RaggedMmap(tmp_path / "m").append(ROWS[0])
    assert plain(list(itertools.chain(*batches))) == plain(ROWS)
    assert len(list(itertools.chain(*Batches(tmp_path / "m", 4)))) == N + 1


def test_a_map_that_is_closed_meanwhile(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "m", ROWS)
    batches = Batches(m, 4)
    running = iter(batches)
    found = list(next(running))
    m.close()
    found += itertools.chain(*running)
    assert plain(found) == plain(ROWS)
    with pytest.raises(ValueError, match="closed"):
        next(iter(batches))


def test_an_empty_map(tmp_path: Path) -> None:
    for layout in ("list", "padded", "jagged", "stack"):
        assert list(Batches(RaggedMmap(tmp_path / "none"), 4, layout=layout, shuffle=True)) == []


# --- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ArgumentError, "batch_size is 0, expected at least 1"),
        ({"batch_size": -1}, ArgumentError, "batch_size is -1"),
        ({"batch_size": 2.5}, ArgumentTypeError, "batch_size is 2.5, expected an integer"),
        ({"batch_size": np.arange(3)}, ArgumentTypeError, r"batch_size is array\(\[0, 1, 2\]\), expected an integer"),
        ({"batch_size": None}, ArgumentTypeError, "batch_size is missing"),
        ({"shard": ReaderShard(0, 3)}, ArgumentError, "batch_size is 4, which 3 readers cannot share evenly"),
        ({"shard": 3}, ArgumentTypeError, "shard is 3, expected a ReaderShard"),
        ({"order": [[0]]}, ArgumentError, "batch_size is 4, but order= says"),
        ({"order": [[0]], "batch_size": None, "shuffle": True}, ArgumentError, "shuffle and order= contradict"),
        ({"order": 7, "batch_size": None}, ArgumentTypeError, "order is 7, expected an iterable"),
        ({"order": Order(3, 1), "batch_size": None}, ArgumentError, "order is for 3 samples, source has 23"),
        (
            {"layout": "ragged"},
            ArgumentError,
            "layout is 'ragged', expected one of 'list', 'stack', 'padded', 'jagged'",
        ),
        ({"transform": 7}, ArgumentTypeError, "transform is 7, expected a function"),
        ({"batch_transform": "x"}, ArgumentTypeError, "batch_transform is 'x', expected a function"),
        ({"empty": None}, ArgumentTypeError, "empty is None, expected a function"),
        ({"threads": 0}, ArgumentError, "threads is 0, expected at least 1"),
        ({"threads": "two"}, ArgumentTypeError, "threads is 'two', expected an integer"),
        ({"prefetch": -1}, ArgumentError, "prefetch is -1, expected at least 0"),
        ({"prefetch": 1.5}, ArgumentTypeError, "prefetch is 1.5, expected a number of batches"),
        ({"readahead": "often"}, ArgumentError, "readahead is 'often', expected \"auto\" or a number of batches"),
        ({"readahead": -2}, ArgumentError, "readahead is -2"),
        ({"readahead": None}, ArgumentTypeError, "readahead is None"),
        ({"layout": {"x": "padded"}}, ArgumentError, "layout is {'x': 'padded'} for source, which is no dict or tuple"),
        (
            {"source": {"x": np.arange(3)}, "layout": {"y": "list"}},
            ArgumentError,
            r"layout has an entry for 'y', but the parts of a batch are \['x'\]",
        ),
        ({"pad_value": 3}, ArgumentError, "pad_value is for layout='padded', not for 'list'"),
        ({"with_indices": "no"}, ArgumentTypeError, "with_indices is 'no', expected True or False"),
        ({"source": 7}, ArgumentTypeError, "source is 7, expected a map"),
        ({"source": {}}, ArgumentTypeError, "source is {}, expected a map"),
        ({"source": {"x": [1, 2]}}, ArgumentTypeError, r"source\['x'\] is \[1, 2\], expected a map"),
        ({"source": np.array(3)}, ArgumentTypeError, "expected a map"),
        ({"source": np.array([{}])}, ArgumentTypeError, "expected a map"),
        ({"source": np.ma.array([1, 2], mask=[0, 1])}, ArgumentTypeError, "expected a map"),
        (
            {"source": {"x": np.arange(3), "y": (np.arange(3), np.arange(4))}},
            ArgumentError,
            r"of one length: source\['x'\] has 3, source\['y'\]\[0\] has 3, source\['y'\]\[1\] has 4",
        ),
    ],
)
def test_arguments_that_make_no_sense(
    folder: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Batches(**{"source": folder / "rows", "batch_size": 4, **options})


def test_a_path_without_a_map(tmp_path: Path) -> None:
    with pytest.raises(MapNotFoundError, match="there is no map"):
        Batches(tmp_path / "nowhere", 4)


def test_a_padding_that_the_dtype_does_not_have(folder: Path) -> None:
    with pytest.raises(ArgumentError, match="pad_value"):
        list(Batches(folder / "images", 4, layout="padded", pad_value=-1))


def test_its_repr(folder: Path) -> None:
    assert repr(Batches(folder / "rows", 4)).startswith("Batches(Order(23, 4,")


@pytest.mark.parametrize("given", ["transform", "batch_transform", "wrapper_fn", "empty"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_function_that_stops_is_no_end(tmp_path: Path, given: str, threads: int) -> None:
    def stop(*_: Any) -> Any:
        raise StopIteration("enough")

    m = RaggedMmap.from_lists(tmp_path / "m", ROWS, wrapper_fn=stop if given == "wrapper_fn" else None)
    options = {} if given == "wrapper_fn" else {given: stop}
    batches = Batches({"a": m}, 4, layout="padded", threads=threads, **options)
    for make in (lambda: next(iter(batches)), batches.peek, lambda: batches.batch(0, 0), lambda: list(batches)):
        with pytest.raises(RuntimeError, match="a function raised StopIteration") as caught:
            make()
        assert "while making batch 0 of epoch" in str(getattr(caught.value, "__notes__", caught.value))
        assert isinstance(caught.value.__cause__, StopIteration)
    with pytest.raises(RuntimeError, match="a function raised StopIteration"):
        list(map(batches.batch, [0], [1]))
