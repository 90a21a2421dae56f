"""What iterations of an order, of batches and of every loader have in common: each one is the next epoch."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from mmap_ninja import ReaderShard
from mmap_ninja.errors import EpochWarning

N, SIZE = 23, 4  # samples, and samples a batch of all readers


def by_zip(k: int, loader: Any) -> list[Any]:
    return [batch for _, batch in zip(range(k), loader, strict=False)]


def by_islice(k: int, loader: Any) -> list[Any]:
    return list(islice(loader, k))


def by_break(k: int, loader: Any) -> list[Any]:
    found = []
    for batch in loader:
        found.append(batch)
        if len(found) == k:
            break
    return found


def by_next(k: int, loader: Any) -> list[Any]:
    running = iter(loader)
    return [next(running) for _ in range(k)]


every_way = pytest.mark.parametrize("part", [by_zip, by_islice, by_break, by_next])


class EpochContract:
    """Classes of tests have a fixture `make`, of shuffled things with an option `shard`, and `lists`.

    Batches of `N` samples, `SIZE` at a time, or of as many as that makes about six of.
    """

    @staticmethod
    def lists(batches: Any) -> list[Any]:
        """Batches to compare."""
        return [batch.tolist() for batch in batches]

    def epochs(self, make: Any, count: int) -> list[list[Any]]:
        """Each of them whole."""
        loader = make()
        return [self.lists(loader) for _ in range(count)]

    @every_way
    def test_a_part_of_each_epoch_is_another_part(self, make: Any, part: Any) -> None:
        epochs, loader = self.epochs(make, 5), make()
        assert all(one[:2] != other[:2] for one in epochs for other in epochs if one is not other)
        for epoch, k in enumerate((2, 1, 3)):
            assert self.lists(part(k, loader)) == epochs[epoch][:k]
            assert loader.epoch == epoch
        assert self.lists(loader) == epochs[3]
        assert self.lists(part(len(epochs[4]), loader)) == epochs[4]  # left after the last one
        assert self.lists(loader) == self.epochs(make, 6)[5]

    def test_what_never_began_changes_nothing(self, make: Any) -> None:
        epochs, loader = self.epochs(make, 2), make()
        before = loader.state_dict()
        kept: list[Iterator[Any]] = [iter(loader) for _ in range(3)]
        assert loader.state_dict() == before
        assert self.lists(loader) == epochs[0]
        assert self.lists(kept[0]) == epochs[1]  # it begins now

    @every_way
    @pytest.mark.parametrize("k", [1, 3])
    def test_the_rest_is_what_another_process_gets(self, make: Any, part: Any, k: int) -> None:
        epochs, loader = self.epochs(make, 3), make()
        part(k, loader)
        state, pickled = json.loads(json.dumps(loader.state_dict())), pickle.dumps(loader)
        assert (loader.epoch, state["epoch"]) == (0, 0)
        again = make()
        again.load_state_dict(state)
        for other in (again, pickle.loads(pickled)):
            assert other.state_dict() == state
            assert self.lists(other) == epochs[0][k:]
            assert self.lists(other) == epochs[1]
        assert self.lists(loader) == epochs[1]  # and in this one it is the next epoch
        loader.load_state_dict(state)
        assert self.lists(part(1, loader)) == epochs[0][k:][:1]  # once
        assert self.lists(loader) == epochs[1]

    def after_the_last_batch(self, make: Any, epochs: list[list[Any]]) -> tuple[Any, Any]:
        """Loaders that go on after the last batch of an epoch whose end was not looked for: by a state, and pickled."""
        loader, again = make(), make()
        by_next(len(epochs[0]), loader)
        again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        return again, pickle.loads(pickle.dumps(loader))

    def test_a_state_after_the_last_batch_leads_to_the_next_epoch(self, make: Any) -> None:
        epochs = self.epochs(make, 3)
        for other in self.after_the_last_batch(make, epochs):
            if hasattr(other, "peek"):
                assert self.lists([other.peek(), other.peek()]) == epochs[1][:1] * 2
            assert self.lists(by_break(2, other)) == epochs[1][:2]
            state, rest = other.state_dict(), make()
            assert (other.epoch, state["epoch"]) == (1, 1)
            rest.load_state_dict(state)
            assert self.lists(rest) == epochs[1][2:]
            assert self.lists(other) == epochs[2]

    def test_a_loop_that_sets_each_epoch_has_each_batch_once_after_it(self, make: Any) -> None:
        epochs = self.epochs(make, 3)
        for other in self.after_the_last_batch(make, epochs):
            found = []
            for epoch in range(other.epoch, 3):
                other.set_epoch(epoch)
                found += self.lists(pickle.loads(pickle.dumps(other)))
                found += self.lists(other)
            assert found == epochs[1] * 2 + epochs[2] * 2

    def test_set_epoch_begins_an_epoch_anew_unless_a_state_of_it_was_loaded(self, make: Any) -> None:
        epochs, loader = self.epochs(make, 3), make()
        for epoch in (0, 0, 2, 2, 1):
            loader.set_epoch(epoch)
            assert self.lists(by_break(2, loader)) == epochs[epoch][:2]
        state = loader.state_dict()
        for _ in range(2):
            loader.load_state_dict(state)
            loader.set_epoch(1)
            assert self.lists(by_break(2, loader)) == epochs[1][2:4]

    def test_iterations_side_by_side_are_epochs_of_their_own(self, make: Any) -> None:
        epochs, loader = self.epochs(make, 3), make()
        one, other, *_ = zip(*zip(loader, loader, strict=False), strict=True)
        assert self.lists(one)[:4] == epochs[0][:4]
        assert self.lists(other)[:4] == epochs[1][:4]
        assert self.lists(loader) == epochs[2]

    def test_several_readers_are_warned_once_of_an_iteration_that_was_given_up(self, make: Any) -> None:
        loader = make(shard=ReaderShard(0, 2))
        self.lists(loader), by_break(2, loader)
        text = r"epoch 1 was given up.* next one is epoch 2.*of 2 readers.*set_epoch"
        with pytest.warns(EpochWarning, match=text) as seen:
            by_break(2, loader)
        assert [warning.filename for warning in seen] == [__file__]
        by_break(2, loader), self.lists(loader)  # once

    def test_they_are_not_warned_where_they_stand_at_one_place(self, make: Any) -> None:
        alone, loader, state = make(), make(shard=ReaderShard(0, 2)), None
        by_break(2, alone), by_break(2, alone)
        self.lists(loader), self.lists(loader)
        for epoch in (0, 7, 8):
            loader.set_epoch(epoch)
            by_break(2, loader)
            state = state or loader.state_dict()
        loader.load_state_dict(state)
        by_break(1, loader)

    def test_a_warning_that_is_an_error_comes_once_too(self, make: Any) -> None:
        loader = make(shard=ReaderShard(0, 2))
        by_break(1, loader)
        state = loader.state_dict()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(EpochWarning):
                by_break(1, loader)
            assert loader.state_dict() == state
            by_break(1, loader)


class PeekContract(EpochContract):
    """The same, for what gives the first batch of the next iteration before there is one."""

    def check_peek(self, loader: Any) -> None:
        """It is the first batch of the next iteration, and changes nothing."""
        before = loader.epoch, loader.state_dict()
        peeked = self.lists([loader.peek(), loader.peek()])
        assert (loader.epoch, loader.state_dict()) == before
        assert peeked == self.lists(by_next(1, loader)) * 2

    def test_a_look_at_the_first_batch_does_not_count(self, make: Any) -> None:
        loader = make()
        for _ in range(2):
            self.check_peek(loader)  # of a new one, and of one that was given up
        state = {**loader.state_dict(), "epoch": 5}
        loader.load_state_dict(state)
        self.check_peek(loader)
        loader.load_state_dict(state)
        loader.peek()
        loader.set_epoch(5)
        assert loader.state_dict() == state  # a state that was loaded, and not begun
        loader.set_epoch(2)
        self.check_peek(loader)
        self.lists(loader)
        self.check_peek(loader)

    def test_a_look_from_the_middle_is_at_the_next_iteration(self, make: Any) -> None:
        loader = make()
        running = iter(loader)
        first = self.lists([next(running), next(running)])
        peeked = self.lists([loader.peek()])
        assert first + self.lists(running) == self.epochs(make, 1)[0]
        assert peeked == self.epochs(make, 2)[1][:1]

    def test_readers_may_look_without_a_warning(self, make: Any) -> None:
        loader = make(shard=ReaderShard(1, 2))
        by_next(1, loader)
        loader.peek()
