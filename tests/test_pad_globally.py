"""Parts of a batch that all readers pad alike: end to end, they are the padded batch of one reader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_ninja import Batches, DenseMmap, Order, Padding, RaggedMmap, ReaderShard, open_map, select
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, SampleError

LENGTHS = [3, 0, 7, 1, 1, 5, 2, 9, 4, 1, 6]
READERS = [1, 2, 3]
SIZE = 6


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    RaggedMmap.from_lists(folder / "rows", [np.full(size, k) for k, size in enumerate(LENGTHS)])
    grids = [np.full((size, 1 + k % 4), k, np.float32) for k, size in enumerate(LENGTHS)]
    RaggedMmap.from_lists(folder / "grids", grids)
    DenseMmap.from_ndarray(folder / "labels", np.arange(len(LENGTHS)))
    return folder


SOURCES: dict[str, Callable[[Path], Any]] = {
    "a path": lambda maps: maps / "rows",
    "two axes": lambda maps: maps / "grids",
    "a selection": lambda maps: select(open_map(maps / "rows"), [5, 0, 7, 2, 2, 10, 3]),
    "a selection of a selection": lambda maps: select(
        select(open_map(maps / "grids"), slice(None, None, -1)), range(1, 11)
    ),
    "a dict": lambda maps: {"rows": maps / "rows", "labels": maps / "labels"},
}
PADDINGS = {
    "the longest": 0,
    "another value": -1,
    "left": Padding(7, side="left"),
    "a multiple": Padding(multiple_of=4),
    "buckets": Padding(buckets=(2, 5, 9)),
    "a length": Padding(length=9),
}


def joined(parts: list[Any]) -> Any:
    """The parts of a batch end to end, dicts part by part."""
    if isinstance(parts[0], dict):
        return {key: joined([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(leaves) for leaves in zip(*parts, strict=True))
    return np.concatenate(parts)


def check_same(found: Any, expected: Any) -> None:
    np.testing.assert_equal(found, tuple(expected) if isinstance(expected, tuple) else expected)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("readers", READERS)
def test_the_parts_make_the_batch_of_one_reader(
    maps: Path, source: str, padding: str, drop_last: bool, readers: int
) -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": 3, "layout": "padded", "pad_value": PADDINGS[padding]}
    made = SOURCES[source](maps)
    one = Batches(made, SIZE, drop_last=True, **options)
    shards = [ReaderShard(k, readers) for k in range(readers)]
    own = [Batches(made, SIZE, drop_last=drop_last, shard=shard, pad_globally=True, **options) for shard in shards]
    for epoch in range(2):
        for k, parts in enumerate(zip(*own, strict=True)):
            if k < len(one):
                check_same(joined(list(parts)), one.batch(epoch, k) if source != "a dict" else plain(one, epoch, k))
                by_number = [batches.batch(epoch, k) for batches in own]
                check_same(joined(by_number), joined(list(parts)))
            shapes = {part["rows"].values.shape if source == "a dict" else part.values.shape for part in parts}
            assert len(shapes) == 1
        assert k + 1 == len(own[0])


def plain(one: Batches, epoch: int, k: int) -> dict[str, Any]:
    batch = one.batch(epoch, k)
    return {"rows": tuple(batch["rows"]), "labels": batch["labels"]}


def test_a_last_batch_is_filled_up_and_padded_by_all_its_samples(maps: Path) -> None:
    # The last batch is samples 6 to 10 and, to fill it up, sample 0; the longest is sample 7, of the first reader.
    options: dict[str, Any] = {"layout": "padded", "pad_globally": True}
    parts = [list(Batches(maps / "rows", SIZE, shard=ReaderShard(k, 2), **options))[-1] for k in range(2)]
    assert [part.values.shape for part in parts] == [(3, 9), (3, 9)]
    check_same(joined(parts), open_map(maps / "rows").take_padded([6, 7, 8, 9, 10, 0]))


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 2))
def test_a_whole_batch_is_the_parts_of_all_readers(
    n: int, part: int, readers: int, shuffle: bool, drop_last: bool, epoch: int
) -> None:
    options: dict[str, Any] = {"shuffle": shuffle, "seed": 1, "drop_last": drop_last}
    own = [Order(n, part * readers, shard=ReaderShard(k, readers), **options) for k in range(readers)]
    for k in range(len(own[0])):
        expected = np.concatenate([order.batch(epoch, k) for order in own])
        assert all(np.array_equal(order.whole_batch(epoch, k), expected) for order in own)


@pytest.mark.parametrize("shard", [ReaderShard(0, 2), ReaderShard(1, 2)])
def test_all_readers_refuse_a_sample_that_is_too_long_for_one_of_them(maps: Path, shard: ReaderShard) -> None:
    options: dict[str, Any] = {"layout": "padded", "pad_value": Padding(length=6), "pad_globally": True}
    with pytest.raises(SampleError, match="sample 2 has length 7, more than the 6"):
        next(iter(Batches(maps / "rows", SIZE, shard=shard, **options)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pad_globally": 1}, ArgumentTypeError, "pad_globally is 1, expected True or False"),
        ({"transform": np.copy}, ArgumentError, r"stored: .* pad_value=Padding\(length="),
        ({"order": [[0, 1]], "batch_size": None}, ArgumentError, "give no order=, or an Order"),
    ],
)
def test_what_cannot_be_padded_globally_is_refused(
    maps: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Batches(maps / "rows", **{"batch_size": 2, "layout": "padded", "pad_globally": True, **options})


def test_what_a_wrapper_makes_needs_a_length(maps: Path) -> None:
    m = open_map(maps / "rows", wrapper_fn=np.sort)
    for padding in [0, Padding(length=9), Padding(length=(None,)), Padding(buckets=[4, 9])]:
        with pytest.raises(ArgumentError, match=r"how long others become .* an entry for each axis"):
            Batches(m, SIZE, layout="padded", pad_value=padding, pad_globally=True)
    options: dict[str, Any] = {"layout": "padded", "pad_value": Padding(length=(9,)), "shard": ReaderShard(1, 2)}
    assert next(iter(Batches(m, SIZE, pad_globally=True, **options))).values.shape == (3, 9)


def test_other_layouts_and_an_order_of_its_own_stay_as_they_are(maps: Path) -> None:
    shard = ReaderShard(1, 2)
    for layout in ["list", "jagged"]:
        found, expected = (
            next(iter(Batches(maps / "rows", SIZE, shard=shard, layout=layout, pad_globally=is_so)))
            for is_so in (True, False)
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    order = Order(len(LENGTHS), SIZE, shard=shard)
    batch = next(iter(Batches(maps / "rows", order=order, layout="padded", pad_globally=True)))
    assert batch.values.shape == (3, 7)
