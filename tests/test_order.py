"""`Order`: every sample once an epoch, the same batches for any number of readers, and going on from any position."""

import copy
import json
import pickle
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmap_ninja.errors import ArgumentError, ArgumentTypeError, StateError
from mmap_ninja.order import Order, ReaderShard
from mmap_ninja.permutation import Permutation

modest = settings(max_examples=150, deadline=None, derandomize=True)


def lists(batches):
    return [batch.tolist() for batch in batches]


def joined(parts):
    return np.concatenate(list(parts)).tolist()


def readers(n, batch_size, count, **options):
    return [Order(n, batch_size, shard=ReaderShard(index, count), **options) for index in range(count)]


def oracle(n, batch_size, *, shuffle, seed, epoch, drop_last):
    """The global batches of an epoch, out of a list of all of its samples."""
    samples = Permutation(n, seed, epoch)(np.arange(n)).tolist() if shuffle else list(range(n))
    batches = [samples[start : start + batch_size] for start in range(0, n, batch_size)]
    return [batch for batch in batches if len(batch) == batch_size or not drop_last]


class Case:
    """An order of any size, with a number of readers that its batches can be shared by."""

    def __init__(self, n, part, count, **options):
        self.n, self.batch_size, self.count, self.options = n, part * count, count, options

    def __repr__(self):
        return f"Case(n={self.n}, batch_size={self.batch_size}, count={self.count}, {self.options})"

    def order(self, count=1, index=0):
        return Order(self.n, self.batch_size, shard=ReaderShard(index, count), **self.options)

    def filled(self, epoch):
        """The global batches; the last one filled up for the readers from the start of the epoch."""
        batches = oracle(self.n, self.batch_size, epoch=epoch, **self.options)
        if batches:
            samples = [sample for batch in oracle(self.n, 1, epoch=epoch, **self.options) for sample in batch]
            needed = -len(batches[-1]) % self.count
            batches[-1] = batches[-1] + (samples * (needed // self.n + 1))[:needed]
        return batches


cases = st.builds(
    Case,
    n=st.integers(0, 60),
    part=st.integers(1, 9),
    count=st.sampled_from([1, 2, 3, 4, 7, 16]),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
    drop_last=st.booleans(),
)


# --- batches


@modest
@given(case=cases, epoch=st.integers(0, 3))
def test_a_single_reader_gets_every_sample_once(case, epoch):
    order = case.order()
    expected = oracle(case.n, case.batch_size, epoch=epoch, **case.options)
    assert lists(order.batches(epoch)) == expected
    assert len(order) == len(expected)
    samples = [sample for batch in expected for sample in batch]
    complete = case.n - case.n % case.batch_size if case.options["drop_last"] else case.n
    assert len(samples) == len({*samples}) == complete


@modest
@given(case=cases, epoch=st.integers(0, 3))
def test_the_parts_of_all_readers_are_the_batches_of_one(case, epoch):
    all_readers = [case.order(case.count, index) for index in range(case.count)]
    expected = case.filled(epoch)
    assert {len(reader) for reader in all_readers} == {len(expected)}
    parts = list(zip(*[reader.batches(epoch) for reader in all_readers], strict=True))
    assert [joined(batch) for batch in parts] == expected
    assert all(len({len(part) for part in batch}) == 1 for batch in parts)


@modest
@given(case=cases, epoch=st.integers(0, 3), data=st.data())
def test_any_batch_directly(case, epoch, data):
    order = case.order(case.count, data.draw(st.integers(0, case.count - 1)))
    epochs = [lists(order.batches(e)) for e in (epoch, epoch + 1)]
    before = order.state_dict()
    for k in data.draw(st.permutations(range(len(order)))):
        for e in (0, 1):
            assert order.batch(epoch + e, k).tolist() == epochs[e][k]
    start = data.draw(st.integers(0, len(order)))
    assert lists(order.batches(epoch, start)) == epochs[0][start:]
    assert order.state_dict() == before


@pytest.mark.parametrize("n", [40_000, 2**16 + 1])
@pytest.mark.parametrize(("batch_size", "count"), [(6, 3), (252, 1), (252, 4), (33_000, 2), (10**6, 5)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_that_span_blocks(n, batch_size, count, shuffle):
    all_readers = readers(n, batch_size, count, shuffle=shuffle, seed=9)
    parts = zip(*[reader.batches(2) for reader in all_readers], strict=True)
    found = [np.concatenate(part) for part in parts]
    expected = oracle(n, batch_size, shuffle=shuffle, seed=9, epoch=2, drop_last=False)
    for batch, of_one in zip(found, expected, strict=True):
        assert batch[: len(of_one)].tolist() == of_one
        assert len(batch) - len(of_one) in range(count)
    for k in (0, len(expected) // 2, len(expected) - 1):
        assert np.array_equal(np.concatenate([reader.batch(2, k) for reader in all_readers]), found[k])


def test_batches_are_int64_arrays_that_may_be_changed():
    for shuffle in (False, True):
        order = Order(10, 4, shuffle=shuffle)
        expected = lists(order.batches(0))
        for batch in [*order.batches(0), order.batch(0, 1)]:
            assert batch.dtype == np.int64
            assert batch.ndim == 1
            batch[:] = -1
        assert lists(order.batches(0)) == expected


def test_a_part_is_contiguous_and_the_fill_comes_from_the_start_of_the_epoch():
    assert [lists(reader.batches(0)) for reader in readers(10, 4, 4)] == [
        [[0], [4], [8]],
        [[1], [5], [9]],
        [[2], [6], [0]],
        [[3], [7], [1]],
    ]
    assert [lists(reader.batches(0)) for reader in readers(2, 10, 5)] == [[[0]], [[1]], [[0]], [[1]], [[0]]]
    assert Order(3, 2**90, shard=ReaderShard(2**80, 2**90)).batch(0, 0).tolist() == [2**80 % 3]
    assert [lists(reader.batches(0)) for reader in readers(10, 4, 2, drop_last=True)] == [
        [[0, 1], [4, 5]],
        [[2, 3], [6, 7]],
    ]


def test_epochs_and_seeds_come_in_orders_of_their_own():
    order = Order(1000, 1000, shuffle=True, seed=1)
    epochs = [order.batch(epoch, 0).tolist() for epoch in range(4)]
    epochs += [Order(1000, 1000, shuffle=True, seed=seed).batch(0, 0).tolist() for seed in range(2, 5)]
    assert len({*map(tuple, epochs)}) == len(epochs)
    assert all(sorted(epoch) == list(range(1000)) for epoch in epochs)
    assert Order(5, 5, seed=1).batch(3, 0).tolist() == [0, 1, 2, 3, 4]


def test_an_epoch_without_batches():
    for order in (Order(0, 4), Order(0, 4, shuffle=True), Order(3, 4, drop_last=True, shuffle=True)):
        assert len(order) == 0
        assert lists(order) == []
        assert order.epoch == 1
        with pytest.raises(ArgumentError, match="k is 0, but an epoch has 0 batches"):
            order.batch(0, 0)


# --- position


def test_a_finished_iteration_leads_to_the_next_epoch():
    order = Order(10, 4, shuffle=True, seed=3, epoch=5)
    for epoch in (5, 6, 7):
        assert order.epoch == epoch
        assert lists(order) == lists(order.batches(epoch))
    order.set_epoch(1)
    assert lists(order) == lists(order.batches(1))
    assert order.epoch == 2


def test_an_abandoned_iteration_leads_to_the_next_epoch():
    order = Order(10, 4, shuffle=True)
    for epoch in range(3):
        assert next(iter(order)).tolist() == order.batch(epoch, 0).tolist()
        assert (order.epoch, order.state_dict()["samples_seen"]) == (epoch, 4)
    assert lists(order) == lists(order.batches(3))
    assert order.epoch == 4


def test_an_iteration_that_was_left_after_its_last_batch_is_finished():
    order = Order(10, 4, shuffle=True)
    for epoch in range(3):
        assert [batch.tolist() for _, batch in zip(range(len(order)), order, strict=False)] == lists(
            order.batches(epoch)
        )


def test_only_the_youngest_iteration_counts():
    order = Order(10, 2)
    first = iter(order)
    next(first)
    second = iter(order)
    assert order.state_dict()["samples_seen"] == 2  # an iteration begins with its first batch
    next(second)
    next(second)
    assert len(list(first)) == 4
    assert (order.epoch, order.state_dict()["samples_seen"]) == (1, 4)
    order.set_epoch(7)
    assert len(list(second)) == 3
    assert (order.epoch, order.state_dict()["samples_seen"]) == (7, 0)


def test_what_was_only_prefetched_was_not_seen():
    order = Order(10, 2)
    fetched = []

    def ahead(epoch, start):
        fetched.extend(order.batches(epoch, start))
        yield from fetched

    batches = order.through(ahead)
    next(batches)
    assert len(fetched) == 5
    assert order.state_dict()["samples_seen"] == 2
    order.load_state_dict(order.state_dict())
    assert lists(order.through(order.batches)) == [[2, 3], [4, 5], [6, 7], [8, 9]]


def test_an_error_of_the_source_leaves_the_position():
    order = Order(10, 2)

    def failing(epoch, start):
        yield "one"
        raise OSError("disk")

    batches = order.through(failing)
    next(batches)
    with pytest.raises(OSError, match="disk"):
        next(batches)
    assert (order.epoch, order.state_dict()["samples_seen"]) == (0, 2)
    assert lists(order) == lists(order.batches(1))  # whoever wants the rest loads that state


# --- state


@modest
@given(case=cases, data=st.data())
def test_going_on_from_every_position(case, data):
    """Two epochs, saved before the first batch, after each one, and after the end of an epoch."""
    epochs = [case.filled(epoch) for epoch in range(2)]
    uninterrupted = epochs[0] + epochs[1]
    order = case.order(case.count, data.draw(st.integers(0, case.count - 1)))
    states = [order.state_dict()]
    for _ in range(2):
        for _ in order:
            states.append(order.state_dict())
        states.append(order.state_dict())
    end = len(order)  # both of an epoch that was all seen and of one that has not begun
    positions = [*range(end + 1), *range(end, 2 * end + 1), 2 * end]
    for state, position in zip(states, positions, strict=True):
        others = [case.order(case.count, index) for index in range(case.count)]
        for other in others:
            other.load_state_dict(json.loads(json.dumps(state)))
        rest = []
        while others[0].epoch < 2:
            rest += [joined(parts) for parts in zip(*others, strict=True)]
        assert rest == uninterrupted[position:]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_state_fits_any_number_of_readers(shuffle, drop_last):
    options = {"shuffle": shuffle, "drop_last": drop_last, "seed": 4}
    epoch = oracle(100, 12, epoch=0, **options)
    for saved in (1, 2, 3, 4, 6, 12):
        for loaded in (1, 2, 3, 4, 6, 12):
            before = readers(100, 12, saved, **options)
            states = []
            for order in before:
                batches = iter(order)
                for _ in range(5):
                    next(batches)
                states.append(order.state_dict())
            assert all(state == states[0] for state in states)
            assert states[0]["samples_seen"] == 60
            after = readers(100, 12, loaded, **options)
            for order in after:
                order.load_state_dict(states[-1])
            rest = [joined(parts) for parts in zip(*after, strict=True)]
            assert [batch[: len(of_one)] for batch, of_one in zip(rest, epoch[5:], strict=True)] == epoch[5:]


def test_the_state_is_plain_and_complete():
    order = Order(np.int64(10), np.int32(4), shuffle=np.True_, seed=np.uint64(2**64 - 1), epoch=np.uint8(3))
    batches = iter(order)
    seen = []
    for _ in range(len(order)):
        next(batches)
        state = order.state_dict()
        seen.append(state.pop("samples_seen"))
        assert state == {"version": 1, "n": 10, "batch_size": 4, "shuffle": True, "seed": 2**64 - 1, "epoch": 3}
        assert {type(value) for value in state.values()} == {int, bool}
    assert seen == [4, 8, 10]


def test_a_loop_that_sets_every_epoch_goes_on_from_a_loaded_state():
    order = Order(10, 2)
    order.load_state_dict({**order.state_dict(), "epoch": 3, "samples_seen": 6})
    order.set_epoch(3)
    assert lists(order) == [[6, 7], [8, 9]]
    order.load_state_dict({**order.state_dict(), "epoch": 3, "samples_seen": 6})
    order.set_epoch(4)  # another one: the position is given up
    assert lists(order)[0] == [0, 1]
    order.load_state_dict({**order.state_dict(), "epoch": 3, "samples_seen": 6})
    next(iter(order))
    order.set_epoch(3)  # begun already: from the start
    assert lists(order)[0] == [0, 1]


def test_a_loaded_state_is_for_one_iteration():
    order = Order(10, 2)
    state = {**order.state_dict(), "samples_seen": 6, "epoch": 2}
    order.load_state_dict(state)
    assert order.state_dict() == state
    assert next(iter(order)).tolist() == [6, 7]
    assert (next(iter(order)).tolist(), order.epoch) == ([0, 1], 3)
    order.load_state_dict(state)
    assert lists(order) == [[6, 7], [8, 9]]
    assert lists(order) == lists(order.batches(3))


@pytest.mark.parametrize(
    ("drop_last", "samples_seen", "position"),
    [
        (False, 10, (1, 0)),
        (True, 10, (1, 0)),
        (True, 8, (1, 0)),  # all there is without the last batch
        (False, 8, (0, 8)),
    ],
)
def test_the_end_of_an_epoch_is_the_start_of_the_next(drop_last, samples_seen, position):
    order = Order(10, 4, drop_last=drop_last)
    order.load_state_dict({**order.state_dict(), "samples_seen": samples_seen})
    assert (order.epoch, order.state_dict()["samples_seen"]) == position
    assert len(list(order)) == (3 - drop_last) - position[1] // 4


BAD_STATES = [
    ({"n": 11}, "another order: n is 11 there and 10 here$"),
    ({"seed": 1}, "another order: seed is 1 there and 0 here$"),
    ({"batch_size": 5}, "another order: batch_size is 5 there and 4 here$"),
    ({"shuffle": False}, "another order: shuffle is False there and True here$"),
    ({"shuffle": 1}, "another order: shuffle is 1 there and True here$"),
    ({"n": 10.0}, r"another order: n is 10\.0 there and 10 here$"),
    ({"seed": False}, "another order: seed is False there and 0 here$"),
    ({"n": np.arange(3)}, r"another order: n is array\(\[0, 1, 2\]\) there and 10 here$"),
    ({"n": 11, "seed": 1}, "another order: n is 11 there and 10 here, seed is 1 there and 0 here$"),
    ({"version": 2, "n": 11}, "the state is of version 2, this release reads version 1$"),
    ({"version": None}, "the state is of version None, this release reads version 1$"),
    ({"version": np.arange(3)}, r"the state is of version array\(\[0, 1, 2\]\), this release reads version 1$"),
    ({"epoch": -1}, "a damaged state: epoch is -1, expected 0 to 18446744073709551615$"),
    ({"epoch": "2"}, "a damaged state: epoch is '2', expected an integer$"),
    ({"epoch": True}, "a damaged state: epoch is True, expected an integer$"),
    ({"samples_seen": -4}, "a damaged state: samples_seen is -4, expected at least 0$"),
    ({"samples_seen": 12}, "a damaged state: samples_seen is 12, expected 0 to 10$"),
    ({"samples_seen": 4.0}, r"a damaged state: samples_seen is 4\.0, expected an integer$"),
    ({"samples_seen": 5}, "a damaged state: samples_seen is 5, no multiple of batch_size, 4$"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_STATES)
def test_a_state_of_another_order_is_refused(changed, message):
    order = Order(10, 4, shuffle=True)
    batches = iter(order)
    next(batches)
    before = order.state_dict()
    with pytest.raises(StateError, match=message):
        order.load_state_dict({**before, **changed})
    assert order.state_dict() == before
    next(batches)  # still counts
    assert order.state_dict()["samples_seen"] == 8


def test_a_state_that_is_none_is_refused():
    order = Order(10, 4)
    with pytest.raises(StateError, match=r"a state is what state_dict\(\) gives, not a list"):
        order.load_state_dict([1, 2])
    for key in order.state_dict():
        state = order.state_dict()
        del state[key]
        with pytest.raises(StateError, match=f"the state lacks {key}; a state is what"):
            order.load_state_dict(state)
    with pytest.raises(StateError, match="the state lacks version, n, batch_size, shuffle, seed, epoch, samples_seen;"):
        order.load_state_dict({})


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((-1, 4), {}, ArgumentError, "n is -1, expected 0 to 4611686018427387904"),
        ((2**62 + 1, 4), {}, ArgumentError, "n is 4611686018427387905, expected 0 to 4611686018427387904"),
        ((10.0, 4), {}, ArgumentTypeError, r"n is 10\.0, expected an integer"),
        ((True, 4), {}, ArgumentTypeError, "n is True, expected an integer"),
        ((np.True_, 4), {}, ArgumentTypeError, "n is np.True_, expected an integer|n is True, expected an integer"),
        ((10, 0), {}, ArgumentError, "batch_size is 0, expected at least 1"),
        ((10, "4"), {}, ArgumentTypeError, "batch_size is '4', expected an integer"),
        ((10, 4), {"seed": -1}, ArgumentError, "seed is -1, expected 0 to 18446744073709551615"),
        ((10, 4), {"seed": 2**64}, ArgumentError, "seed is 18446744073709551616, expected 0 to 18446744073709551615"),
        ((10, 4), {"seed": None}, ArgumentTypeError, "seed is None, expected an integer"),
        ((10, 4), {"epoch": -1}, ArgumentError, "epoch is -1, expected 0 to"),
        ((10, 4), {"shuffle": 1}, ArgumentTypeError, "shuffle is 1, expected True or False"),
        ((10, 4), {"drop_last": "no"}, ArgumentTypeError, "drop_last is 'no', expected True or False"),
        ((10, 4), {"shard": (0, 2)}, ArgumentTypeError, r"shard is \(0, 2\), expected a ReaderShard\(index, count\)"),
        ((10, 10), {"shard": ReaderShard(0, 4)}, ArgumentError, "batch_size is 10, which 4 readers .* take 8 or 12$"),
        ((10, 3), {"shard": ReaderShard(0, 4)}, ArgumentError, "batch_size is 3, which 4 readers .* evenly: take 4$"),
    ],
)
def test_arguments_that_make_no_sense(arguments, options, error, message):
    with pytest.raises(error, match=message):
        Order(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((2, 2), ArgumentError, "index is 2, expected 0 to 1"),
        ((-1, 2), ArgumentError, "index is -1, expected 0 to 1"),
        ((0, 0), ArgumentError, "count is 0, expected at least 1"),
        ((0.0, 2), ArgumentTypeError, r"index is 0\.0, expected an integer"),
        ((False, 2), ArgumentTypeError, "index is False, expected an integer"),
        ((0, True), ArgumentTypeError, "count is True, expected an integer"),
    ],
)
def test_readers_that_make_no_sense(arguments, error, message):
    with pytest.raises(error, match=message):
        ReaderShard(*arguments)


def test_a_reader_shard_is_a_frozen_value():
    shard = ReaderShard(np.int64(1), np.uint8(2))
    assert shard == ReaderShard(index=1, count=2)
    assert hash(shard) == hash(ReaderShard(1, 2))
    assert (type(shard.index), type(shard.count)) == (int, int)
    assert ReaderShard() == ReaderShard(0, 1)
    with pytest.raises(AttributeError, match="cannot assign to field 'index'"):
        shard.index = 0


def test_batches_that_do_not_exist():
    order = Order(10, 4)
    with pytest.raises(ArgumentError, match="k is 3, but an epoch has 3 batches"):
        order.batch(0, 3)
    with pytest.raises(ArgumentError, match="k is -1, expected at least 0"):
        order.batch(0, -1)
    with pytest.raises(ArgumentTypeError, match=r"k is 1\.0, expected an integer"):
        order.batch(0, 1.0)
    with pytest.raises(ArgumentError, match="epoch is -1, expected 0 to"):
        order.batch(-1, 0)
    with pytest.raises(ArgumentError, match="start is 4, expected 0 to 3"):  # at the call, not at the first batch
        order.batches(0, 4)
    with pytest.raises(ArgumentError, match="epoch is -1, expected 0 to"):
        order.set_epoch(-1)
    assert lists(order.batches(0, 3)) == []


@pytest.mark.parametrize("n", [10, 2**14 + 1])
def test_positions_of_a_permutation(n):
    permutation = Permutation(n, seed=1)
    expected = permutation(np.arange(10))
    for dtype in ("i1", "u2", ">i4", "i8", ">u8"):
        assert np.array_equal(permutation(np.arange(10).astype(dtype)), expected)
    assert np.array_equal(permutation(np.arange(20)[::2] // 2), expected)
    assert np.array_equal(permutation([[0, 1], [2, 3]]), expected[:4].reshape(2, 2))
    assert permutation(3) == expected[3]
    assert permutation(3).shape == ()
    assert permutation([]).tolist() == []
    assert permutation(np.empty((0, 3), int)).shape == (0, 3)
    assert permutation(range(10)).dtype == np.int64
    for outside in (-1, n, 2**63, -(2**63)):
        with pytest.raises(ArgumentError, match=f"position {outside} lies outside of a permutation of {n} numbers"):
            permutation(np.array([0, outside]) if outside < 2**63 else np.array([0, outside], np.uint64))
    for wrong in ([0.5], [True], ["1"], [2**70], None):
        with pytest.raises(ArgumentTypeError, match=r"positions are of dtype .*, expected integers"):
            permutation(wrong)


def test_a_permutation_of_nothing():
    assert Permutation(0, seed=0)([]).tolist() == []
    with pytest.raises(ArgumentError, match="position 0 lies outside of a permutation of 0 numbers"):
        Permutation(0, seed=0)([0])


# --- copies, threads, memory


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
def test_a_copy_goes_on_from_the_same_position(copied):
    order = Order(1000, 4, shuffle=True, seed=3, epoch=2, shard=ReaderShard(1, 2))
    batches = iter(order)
    next(batches)
    clone = copied(order)
    assert clone.state_dict() == order.state_dict()
    assert repr(clone) == repr(order)
    rest = lists(clone)
    assert rest == lists(order.batches(2))[1:]
    assert order.state_dict()["samples_seen"] == 4  # each has a position of its own
    assert lists(batches) == rest


def test_what_is_pickled_is_small():
    for n in (10_000, 10**12):
        order = Order(n, 256, shuffle=True)
        next(iter(order))
        assert len(pickle.dumps(order)) < 500
        permutation = Permutation(n, seed=1, epoch=2)
        assert len(pickle.dumps(permutation)) < 100
        clone = pickle.loads(pickle.dumps(permutation))
        assert np.array_equal(clone(np.arange(100)), permutation(np.arange(100)))


def test_reprs_are_code():
    order = Order(10, 4, shuffle=True, seed=5, epoch=2, drop_last=True, shard=ReaderShard(1, 2))
    assert repr(eval(repr(order))) == repr(order)
    assert lists(eval(repr(order))) == lists(order)
    permutation = Permutation(10, seed=2, epoch=3)
    assert eval(repr(permutation))(range(10)).tolist() == permutation(range(10)).tolist()


def test_threads_may_ask_for_batches_of_any_epochs():
    order = Order(20_000, 100, shuffle=True)
    expected = {epoch: lists(order.batches(epoch)) for epoch in range(4)}
    wrong = []

    def ask(epoch):
        for k in range(len(order)):
            if order.batch(epoch, k).tolist() != expected[epoch][k]:
                wrong.append((epoch, k))

    threads = [threading.Thread(target=ask, args=(epoch,)) for epoch in range(4) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("n", [10**6, 10**12])
def test_memory_does_not_grow_with_n(n):
    tracemalloc.start()
    try:
        order = Order(n, 256, shuffle=True)
        batches = iter(order)
        for _ in range(200):
            next(batches)
        order.batch(3, len(order) - 1)
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()
