"""`state_at` and `position_of`, which turn positions into states and back; and `rows`, which takes batches apart."""

import json
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmap_ninja import Batches, Order, ReaderShard
from mmap_ninja.errors import ArgumentError, StateError
from mmap_ninja.fields import rows

modest = settings(max_examples=100, deadline=None, derandomize=True)
Pair = namedtuple("Pair", "x y")


def order_of(n, size, **options):
    return Order(n, size, **options)


def batches_of(n, size, **options):
    return Batches(np.arange(n), size, prefetch=0, **options)


both = pytest.mark.parametrize("make", [order_of, batches_of], ids=["Order", "Batches"])


@both
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_state_at_each_position_is_that_of_an_iteration_which_stands_there(make, drop_last):
    walked, asked = (make(10, 4, shuffle=True, seed=3, drop_last=drop_last) for _ in range(2))
    for epoch in range(3):
        for k, _ in enumerate(walked):
            assert asked.state_at(epoch, k + 1) == walked.state_dict()
            assert asked.position_of(walked.state_dict()) == ((epoch, k + 1) if k + 1 < len(asked) else (epoch + 1, 0))
        assert asked.state_at(epoch + 1, 0) == walked.state_dict()
    assert asked.state_dict() == asked.state_at(0, 0)  # which has stayed where it was


@modest
@given(
    n=st.integers(1, 50),
    size=st.integers(1, 9),
    epoch=st.sampled_from([0, 1, 7, 2**40]),
    at=st.floats(0, 1),
    drop_last=st.booleans(),
)
def test_a_position_comes_back_from_its_state(n, size, epoch, at, drop_last):
    order = Order(n, size, drop_last=drop_last)
    k = int(at * (len(order) - 1)) if len(order) else 0
    state = json.loads(json.dumps(order.state_at(epoch, k)))
    assert order.position_of(state) == (epoch, k)
    assert order.position_of(order.state_at(epoch, len(order))) == ((epoch + 1, 0) if len(order) else (epoch, 0))


@both
def test_going_on_from_a_state_gives_the_batches_from_there(make):
    whole = [batch.tolist() for batch in make(10, 3, shuffle=True)]
    for k in range(len(whole)):
        one = make(10, 3, shuffle=True)
        one.load_state_dict(one.state_at(0, k))
        assert [batch.tolist() for batch in one] == whole[k:]


@both
def test_states_are_the_same_for_all_readers(make):
    parts = [make(10, 4, shard=ReaderShard(index, 2)) for index in range(2)]
    assert parts[0].state_at(2, 1) == parts[1].state_at(2, 1) == make(10, 4).state_at(2, 1)
    assert parts[1].position_of(make(10, 4).state_at(2, 3)) == (3, 0)


@both
def test_the_position_of_nothing_or_of_something_else_is_refused(make):
    here, there = make(10, 4), make(10, 4, shuffle=True)
    with pytest.raises(StateError, match="belongs to another order: shuffle is True there and False here"):
        here.position_of(there.state_at(0, 1))
    with pytest.raises(StateError, match="the state lacks"):
        here.position_of({})
    with pytest.raises(StateError, match="not a list"):
        here.position_of([])
    with pytest.raises(StateError, match="no multiple of batch_size"):
        here.position_of({**here.state_at(0, 1), "samples_seen": 3})
    assert here.state_dict() == here.state_at(0, 0)


def test_batches_of_an_order_that_was_given_have_positions_too():
    batches = Batches(np.arange(6), order=[[0, 1], [5, 2], [3]], prefetch=0)
    running = iter(batches)
    next(running)
    assert batches.state_dict() == batches.state_at(0, 1)
    assert batches.position_of(batches.state_at(2, 1)) == (2, 1)


# --- rows


def test_rows_of_arrays_and_lists_are_their_samples():
    array = np.arange(6).reshape(3, 2)
    assert [row.tolist() for row in rows(array)] == [[0, 1], [2, 3], [4, 5]]
    assert rows(["a", "ß"]) == ["a", "ß"]
    assert rows([]) == []


def test_rows_of_dicts_and_tuples_have_all_parts():
    batch = {"b": Pair(np.array([1, 2]), ["x", "y"]), "a": ({"z": [b"p", b"q"]},)}
    assert rows(batch) == [{"b": Pair(1, "x"), "a": ({"z": b"p"},)}, {"b": Pair(2, "y"), "a": ({"z": b"q"},)}]
    assert [list(row) for row in rows(batch)] == [["b", "a"]] * 2
    assert type(rows(batch)[0]["b"]) is Pair
    assert rows({"x": [], "y": []}) == []
    assert rows(([1, 2], [3, 4])) == [(1, 3), (2, 4)]


def test_rows_of_parts_of_different_lengths_are_refused():
    for parts in ({"x": [1, 2], "y": [3]}, ([1], [2, 3])):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            rows(parts)


def test_rows_of_arrays_look_into_the_batch():
    batch = {"x": np.zeros((2, 3))}
    rows(batch)[1]["x"][:] = 7
    assert batch["x"].tolist() == [[0, 0, 0], [7, 7, 7]]


def test_the_rows_of_a_batch_are_its_samples():
    source = {"n": np.arange(7), "pair": Pair(np.arange(7) * 2, np.arange(14).reshape(7, 2))}
    batches = Batches(source, 3, shuffle=True, prefetch=0)
    found = [row for batch in batches for row in rows(batch)]
    assert sorted(int(row["n"]) for row in found) == list(range(7))
    assert all(row["pair"].x == 2 * row["n"] and row["pair"].y[1] == 2 * row["n"] + 1 for row in found)


def test_a_batch_that_there_is_not_is_refused():
    with pytest.raises(ArgumentError, match="k is 3, but an epoch has 3 batches"):
        batches_of(10, 4).batch(0, 3)
