"""Batches of packed rows: epochs, readers and states of `Batches` with a `PackedOrder`."""

import json
import pickle
from itertools import chain

import numpy as np
import pytest

from mmap_ninja import Batches, RaggedMmap, ReaderShard
from mmap_ninja.errors import StateError
from mmap_ninja.packing import PackedOrder, packed

SIZES = np.random.default_rng(1).integers(0, 9, 60)
SAMPLES = [[*range(100 * k, 100 * k + size)] for k, size in enumerate(SIZES.tolist())]
ROWS, LENGTH = 4, 9


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    samples = [np.array(sample, np.int32) for sample in SAMPLES]
    return RaggedMmap.from_lists(tmp_path_factory.mktemp("packing") / "rows", samples, sync=False)


def batches_of(ragged, index=0, count=1, *, rows=ROWS, length=LENGTH, prefetch=2, **options):
    order = PackedOrder(ragged.lengths, rows, length, shard=ReaderShard(index, count), **options)
    return Batches(ragged, order=order, layout="jagged", prefetch=prefetch)


def order_of(epoch, **options):
    order = PackedOrder(SIZES, ROWS, LENGTH, **options)
    order.set_epoch(epoch)
    return [batch.tolist() for batch in order]


def side_by_side(batches, rows):
    """The rows of several readers, as those of one batch."""
    return [
        list(chain.from_iterable(parts)) for parts in zip(*(in_rows(batch, rows) for batch in batches), strict=True)
    ]


def in_rows(batch, rows=ROWS):
    return [part.tolist() for part in packed(batch, rows=rows, length=LENGTH)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_go_through_the_epochs(ragged, shuffle, prefetch):
    batches = batches_of(ragged, shuffle=shuffle, prefetch=prefetch)
    for epoch in (0, 1, 2, 1):
        batches.set_epoch(epoch)
        numbers = order_of(epoch, shuffle=shuffle)
        for batch, chosen in zip(batches, numbers, strict=True):
            assert batch.values.dtype == np.int32
            assert [part.tolist() for part in np.split(batch.values, batch.offsets[1:-1])] == [
                SAMPLES[k] for k in chosen
            ]
        assert batches.epoch == epoch + 1


@pytest.mark.parametrize("count", [2, 4])
def test_readers_of_a_map_share_its_rows(ragged, count):
    readers = [batches_of(ragged, k, count, shuffle=True, seed=2) for k in range(count)]
    for batch, *parts in zip(batches_of(ragged, shuffle=True, seed=2), *readers, strict=True):
        assert side_by_side(parts, ROWS // count) == in_rows(batch)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_reader_without_samples_gets_an_empty_batch(tmp_path, prefetch):
    m = RaggedMmap.from_lists(tmp_path / "one", [np.arange(9, dtype=np.int16)])
    for index in range(2):
        order = PackedOrder(m.lengths, 2, 9, shard=ReaderShard(index, 2))
        (batch,) = Batches(m, order=order, layout="jagged", prefetch=prefetch)
        assert (batch.values.dtype, len(batch.values)) == (np.int16, 0 if index else 9)
        assert in_rows(batch, 1)[1] == [[0 if index else 1] * 9]


def test_an_empty_map_has_no_batches(tmp_path):
    assert list(batches_of(RaggedMmap(tmp_path / "none"))) == []


def test_how_many_batches_there_are_is_not_known(ragged):
    with pytest.raises(TypeError, match="has no length"):
        len(batches_of(ragged))


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True, "prefetch": 0}])
def test_it_goes_on_from_every_position(ragged, options):
    batches, expected, states = batches_of(ragged, **options), [], []
    for _ in range(2):
        states.append(batches.state_dict())
        for batch in batches:
            expected.append(in_rows(batch))
            states.append(batches.state_dict())
    for k, state in enumerate(states[: len(states) // 2]):
        again, rest = batches_of(ragged, **options), []
        again.load_state_dict(json.loads(json.dumps(state)))
        while len(rest) < len(expected) - k:
            rest += map(in_rows, again)
        assert rest == expected[k:]


def test_it_goes_on_with_another_number_of_readers(ragged):
    expected = list(map(in_rows, batches_of(ragged, shuffle=True)))
    for before, after in [(1, 2), (2, 4), (4, 1)]:
        batches = batches_of(ragged, before - 1, before, shuffle=True)
        running = iter(batches)
        next(running), next(running)
        readers = [batches_of(ragged, k, after, shuffle=True) for k in range(after)]
        for reader in readers:
            reader.load_state_dict(batches.state_dict())
        for batch, *parts in zip(expected[2:], *readers, strict=True):
            assert side_by_side(parts, ROWS // after) == batch


@pytest.mark.parametrize("other", [{"rows": 8}, {"length": 10}, {"seed": 1}, {"shuffle": False}], ids=str)
def test_a_state_of_other_rows_is_refused(ragged, other):
    state = batches_of(ragged, shuffle=True).state_dict()
    batches = batches_of(ragged, **{"shuffle": True, **other})
    before = batches.state_dict()
    (name, value), was = *other.items(), {"rows": ROWS, "length": LENGTH, "seed": 0, "shuffle": True}
    with pytest.raises(StateError, match=rf"'{name}': {was[name]}.* there and .*'{name}': {value}.* here"):
        batches.load_state_dict(state)
    assert batches.state_dict() == before


def test_a_state_behind_the_last_batch_is_refused(ragged):
    batches = batches_of(ragged)
    batches.load_state_dict({**batches.state_dict(), "batches_seen": 99})
    with pytest.raises(StateError, match="the state is of batch 99, but the order that was given has only"):
        list(batches)


def test_pickled_batches_go_on_where_they_were(ragged):
    batches = batches_of(ragged, 1, 2, shuffle=True)
    expected = [in_rows(batch, 2) for batch in batches_of(ragged, 1, 2, shuffle=True)]
    running = iter(batches)
    next(running)
    batches.load_state_dict(batches.state_dict())
    again = pickle.loads(pickle.dumps(batches))
    assert [in_rows(batch, 2) for batch in again] == expected[1:]
