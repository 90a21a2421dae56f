"""FitPosition: a fit that was interrupted goes on with the batches that would have come, bit by bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="the adapter for TensorFlow needs it")

import keras  # noqa: E402

import tf_fits  # noqa: E402
from mmap_ninja import Batches, ReaderShard  # noqa: E402
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, StateError  # noqa: E402
from mmap_ninja_tf import FitPosition, MmapPyDataset, to_tf_dataset  # noqa: E402
from tf_fits import EPOCHS, MOMENTS, ORDER, SIZE, STEPS, Hook, X, Y, made_model, numbers, py_dataset  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # Keras, with NumPy 2
)


def tf_dataset(**options: Any) -> Any:
    return to_tf_dataset((X, Y), SIZE, **{**ORDER, **options})


def mapped(dataset: Any) -> Any:
    """What a training script makes of it."""
    return dataset.map(lambda x, y: (x * 1, y), num_parallel_calls=2).prefetch(2)


KINDS: dict[str, Callable[..., Any]] = {"tf": tf_dataset, "py": py_dataset}
every_kind = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in KINDS.items()])


def at(make: Callable[..., Any], epoch: int, batch: int) -> tuple[Any, FitPosition]:
    """A dataset, and its position before a batch."""
    dataset = make()
    position = FitPosition(dataset)
    position.load_state_dict({**position.state_dict(), "epoch": epoch, "samples_seen": batch * SIZE})
    return dataset, position


def fitted(position: FitPosition, dataset: Any, epochs: int = EPOCHS, model: Any = None, **options: Any) -> Any:
    """The model, trained, and its history."""
    model = made_model() if model is None else model
    return model, position.fit(model, dataset, epochs=epochs, verbose=0, **options)


# --- going on


def test_readers_that_go_on_are_not_warned_of_what_was_given_up() -> None:
    dataset, position = at(lambda: tf_dataset(shard=ReaderShard(0, 2)), 1, 1)
    next(iter(dataset.take(1)))  # a look, but the position says where the fit begins
    model, _ = fitted(position, dataset, epochs=3)
    parts = [
        Batches(np.arange(len(X)), SIZE, shard=ReaderShard(0, 2), **ORDER).batch(e, k) for e, k in [(1, 1), (2, 0)]
    ]
    assert [model.seen[0], model.seen[STEPS - 1]] == [part.tolist() for part in parts]
    assert len(model.seen) == 2 * STEPS - 1


@pytest.mark.parametrize(
    ("make", "moment"),
    [
        (tf_dataset, MOMENTS[2]),
        (py_dataset, MOMENTS[2]),
        *(pytest.param(tf_dataset, moment, marks=pytest.mark.long) for moment in MOMENTS if moment != MOMENTS[2]),
        pytest.param(py_dataset, MOMENTS[5], marks=pytest.mark.long),
    ],
)
def test_an_interrupted_fit_goes_on_with_the_batches_that_would_have_come(
    make: Callable[..., Any], moment: tuple[str, int, int]
) -> None:
    tf_fits.check_goes_on(make, *moment)


def test_it_goes_on_in_what_was_made_of_the_dataset() -> None:
    tf_fits.check_goes_on(tf_dataset, "on_train_batch_end", 8, 9, feed=mapped)


@pytest.mark.parametrize("steps", [1, 4])
@every_kind
@pytest.mark.long
def test_it_goes_on_in_a_graph_of_several_steps(tmp_path: Path, make: Callable[..., Any], steps: int) -> None:
    def model() -> Any:
        return made_model(keras.Sequential, steps_per_execution=steps)

    dataset = make()
    whole, history = fitted(FitPosition(dataset), dataset, model=model())
    dataset = make()
    tf_fits.stop(tmp_path, model(), FitPosition(dataset), dataset, ("on_train_batch_end", -(-8 // steps)))
    dataset = make()
    again, position = tf_fits.resumed(tmp_path, dataset)
    assert position.state_dict()["samples_seen"] == {1: 3, 4: 4}[steps] * SIZE
    _, rest = fitted(position, dataset, model=again)
    assert tf_fits.weights(again) == tf_fits.weights(whole)
    assert rest.history["loss"][1:] == history.history["loss"][2:]


@every_kind
def test_it_goes_on_without_the_rest_of_the_samples(make: Callable[..., Any]) -> None:
    dataset, position = at(lambda: make(drop_remainder=True), 1, 2)
    model, history = fitted(position, dataset, 3)
    assert model.seen == numbers([1, 2], drop_last=True)[2:]
    assert history.params["steps"] == STEPS - 1


@every_kind
@pytest.mark.long
def test_it_goes_on_after_several_interruptions_in_the_same_process(make: Callable[..., Any]) -> None:
    dataset, model = make(), made_model()
    position = FitPosition(dataset)
    for call in (1, 2, 0, 7, 1):  # 2 batches, 3, 1 (the last of the epoch), 8, 2
        with pytest.raises(KeyboardInterrupt):
            fitted(position, dataset, model=model, callbacks=[tf_fits.interrupt("on_train_batch_end", call)])
    assert len(model.seen) == 16
    fitted(position, dataset, model=model)
    assert model.seen == numbers(range(EPOCHS))
    assert tf_fits.weights(model) == tf_fits.expected_weights()


@pytest.mark.long
def test_it_goes_on_in_another_backend() -> None:
    """Where there is no TensorFlow at work: with worker processes, too."""
    pytest.importorskip("torch", reason="the second backend")
    script = Path(__file__).with_name("tf_fits.py")
    done = subprocess.run(
        [sys.executable, str(script), "learns", "fits_go_on", "workers_make_each_batch_once"],
        env={**os.environ, "KERAS_BACKEND": "torch", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, done.stdout) == (0, "torch\n"), done.stderr


# --- what fit does besides


@every_kind
def test_the_history_is_that_of_all_epochs(make: Callable[..., Any]) -> None:
    dataset, position = at(make, 1, 4)
    _, history = fitted(position, dataset, 5, validation_data=make(shuffle=False), validation_freq=2)
    assert history.epoch == [1, 2, 3, 4]
    assert {name: len(values) for name, values in history.history.items()} == {
        "accuracy": 4, "loss": 4, "val_accuracy": 2, "val_loss": 2
    }  # fmt: skip
    assert (history.params["steps"], position.epoch) == (STEPS, 5)


@every_kind
def test_a_fit_that_stops_early_stops_for_good(make: Callable[..., Any]) -> None:
    dataset, position = at(make, 1, 4)
    early = keras.callbacks.EarlyStopping(monitor="loss", mode="max", min_delta=100, patience=2)
    model, history = fitted(position, dataset, 10, callbacks=[early])
    assert history.epoch == [1, 2, 3, 4][: len(history.epoch)]
    assert model.seen == numbers(range(1, position.epoch))[4:]
    assert 2 < position.epoch < 10

    dataset, position = at(make, 1, 4)
    model = made_model()
    stop = Hook("on_train_batch_end", lambda: setattr(model, "stop_training", True))
    assert fitted(position, dataset, model=model, callbacks=[stop])[1].epoch == [1]
    assert (model.seen, position.state_dict()["samples_seen"]) == ([numbers([1])[4]], 5 * SIZE)
    fitted(position, dataset, 3, model)
    assert model.seen == numbers([1, 2])[4:]


@every_kind
def test_callbacks_see_one_training(make: Callable[..., Any], tmp_path: Path) -> None:
    calls: list[str] = []

    class Noted(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            calls.append("begin")

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            calls.append(f"epoch {epoch}")

        def on_train_end(self, logs: Any = None) -> None:
            calls.append(f"end {sorted(logs)}")

    dataset, position = at(make, 1, 2)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    fitted(position, dataset, callbacks=[Noted(), log])
    assert calls == ["begin", *(f"epoch {epoch}" for epoch in range(1, EPOCHS)), "end ['accuracy', 'loss']"]
    lines = (tmp_path / "log.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == [str(epoch) for epoch in range(1, EPOCHS)]


@pytest.mark.parametrize("given", [None, keras.callbacks.TerminateOnNaN()], ids=["none", "one"])
def test_callbacks_may_be_none_or_one(given: Any) -> None:
    dataset, position = at(tf_dataset, 0, 0)
    assert fitted(position, dataset, 1, callbacks=given)[1].epoch == [0]
    with pytest.raises(ArgumentTypeError, match="expected callbacks of Keras"):
        fitted(position, dataset, 2, callbacks=["one"])


@every_kind
def test_there_is_nothing_left_to_do(make: Callable[..., Any]) -> None:
    dataset, position = at(make, 2, 3)
    model, history = fitted(position, dataset, 2)
    assert (history.epoch, history.history, hasattr(model, "seen")) == ([], {}, False)
    assert position.state_dict()["samples_seen"] == 3 * SIZE


@pytest.mark.parametrize(
    ("make", "predicts", "hook"),
    [
        *((tf_dataset, False, f"on_{hook}") for hook in ("epoch_begin", "train_batch_begin", "epoch_end")),
        *((make, True, f"on_{hook}") for make in KINDS.values() for hook in ("epoch_begin", "train_batch_end")),
    ],
)
@pytest.mark.long
def test_going_through_the_dataset_in_callbacks_changes_nothing(
    make: Callable[..., Any], predicts: bool, hook: str
) -> None:
    dataset, position = at(make, 1, 4)
    other = made_model(keras.Sequential)

    def function() -> None:
        found = other.predict(dataset, verbose=0) if predicts else [x for batch, _ in dataset for x in batch]
        assert len(found) == len(X)

    model, _ = fitted(position, dataset, 3, callbacks=[Hook(hook, function)], validation_data=dataset)
    assert model.seen == numbers([1, 2])[4:]


# --- states


@every_kind
def test_the_state_at_each_batch_is_that_of_the_core(make: Callable[..., Any]) -> None:
    dataset, states = make(), []
    position = FitPosition(dataset)
    fitted(position, dataset, 2, callbacks=[Hook("on_train_batch_end", lambda: states.append(position.state_dict()))])
    batches, come = Batches(np.arange(len(X)), SIZE, **ORDER), numbers(range(3))
    for count, state in enumerate(states, 1):
        batches.load_state_dict(state)
        assert next(iter(batches)).tolist() == come[count]
    assert len(states) == 2 * STEPS


@every_kind
def test_it_goes_on_from_a_state_of_the_core(make: Callable[..., Any]) -> None:
    batches = Batches(np.arange(len(X)), SIZE, **ORDER)
    list(batches)
    running = iter(batches)
    [next(running) for _ in range(3)]
    dataset = make()
    position = FitPosition(dataset)
    position.load_state_dict(batches.state_dict())
    assert position.state_dict() == batches.state_dict()
    assert fitted(position, dataset, 2)[0].seen == numbers([1])[3:]


@every_kind
def test_the_state_is_that_of_all_readers(make: Callable[..., Any]) -> None:
    shard = ReaderShard(1, 2)
    dataset, position = at(lambda: make(shard=shard), 1, 2)
    assert fitted(position, dataset, 2)[0].seen == numbers([1], shard=shard)[2:]
    alone = FitPosition(make())
    alone.load_state_dict(position.state_dict())
    assert alone.epoch == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 4}, "the state belongs to another order: seed is 4 there and 3 here"),
        ({"n": 23}, "n is 23 there and 22 here"),
        ({"batch_size": 2}, "batch_size is 2 there and 4 here"),
        ({"shuffle": False}, "shuffle is False there and True here"),
        ({"samples_seen": 5}, "samples_seen is 5, no multiple of batch_size, 4"),
        ({"epoch": -1}, "damaged state: epoch"),
        ({"version": 2}, "version"),
    ],
)
@every_kind
def test_a_state_of_something_else_is_refused(make: Callable[..., Any], changed: dict[str, Any], message: str) -> None:
    _, position = at(make, 1, 2)
    before = position.state_dict()
    with pytest.raises(StateError, match=message):
        position.load_state_dict({**before, **changed})
    assert position.state_dict() == before


# --- what is refused


def test_only_what_has_batches_has_a_position() -> None:
    datasets = [tf.data.Dataset.range(3), tf_dataset().prefetch(1), to_tf_dataset((X, Y)), X, None]
    for dataset in datasets:
        with pytest.raises(ArgumentTypeError, match=r"expected what to_tf_dataset\(source, batch_size\) returned, or"):
            FitPosition(dataset)
    with pytest.raises(ArgumentError, match="the dataset has no batches"):
        FitPosition(MmapPyDataset((X[:3], Y[:3]), 4, drop_remainder=True))


@pytest.mark.parametrize(
    ("feed", "steps"),
    [
        (lambda dataset: dataset.unbatch(), "None"),
        (lambda dataset: dataset.take(2), "2"),
        (lambda dataset: dataset.repeat(2), "12"),
        (lambda dataset: dataset.skip(1), "5"),
        (lambda dataset: dataset.filter(lambda x, y: True), "None"),
    ],
    ids=["unbatch", "take", "repeat", "skip", "filter"],
)
def test_steps_that_are_no_batches_are_refused(feed: Callable[[Any], Any], steps: str) -> None:
    dataset, model = tf_dataset(), made_model()
    with pytest.raises(ArgumentError, match=f"fit has {steps} steps, but 6 batches of the epoch are to come"):
        fitted(FitPosition(dataset), feed(dataset), model=model)
    assert not hasattr(model, "seen")


def test_fewer_batches_than_an_epoch_has_are_refused() -> None:
    dataset, model = py_dataset().take(2), made_model()
    with pytest.raises(ArgumentError, match="fit has 2 steps, but 6 batches"):
        fitted(FitPosition(dataset), dataset, model=model)
    assert not hasattr(model, "seen")


@pytest.mark.parametrize("name", ["initial_epoch", "steps_per_epoch", "shuffle"])
def test_arguments_that_the_position_decides_are_refused(name: str) -> None:
    dataset = py_dataset()
    with pytest.raises(ArgumentError, match=f"{name} is what the position says: leave it out"):
        fitted(FitPosition(dataset), dataset, **{name: 1})


def test_as_a_plain_callback_it_is_refused() -> None:
    dataset, model = tf_dataset(), made_model()
    position = FitPosition(dataset)
    with pytest.raises(ArgumentError, match=r"call position\.fit\(model, dataset, \.\.\.\)"):
        model.fit(dataset, callbacks=[position], shuffle=False, verbose=0)
    with pytest.raises(KeyboardInterrupt):
        fitted(position, dataset, model=model, callbacks=[tf_fits.interrupt("on_epoch_end", 0)])
    with pytest.raises(ArgumentError, match=r"call position\.fit"):  # also after it was interrupted
        model.fit(dataset, callbacks=[position], shuffle=False, verbose=0)


@every_kind
def test_another_dataset_is_refused(make: Callable[..., Any]) -> None:
    _, position = at(make, 1, 2)
    model = made_model()
    with pytest.raises(ArgumentError, match="dataset is another one than that of this position"):
        fitted(position, make(), model=model)
    assert not hasattr(model, "seen")


def test_what_was_made_of_another_dataset_is_refused_after_a_step() -> None:
    _, position = at(tf_dataset, 1, 2)
    model = made_model()
    with pytest.raises(ArgumentError, match="an epoch goes by without this dataset"):
        fitted(position, mapped(tf_dataset()), model=model)
    assert len(model.seen) == 1


def test_a_dataset_that_is_cached_is_refused() -> None:
    """Its second epoch would be the first once more."""
    dataset, model = tf_dataset(), made_model()
    with pytest.raises(ArgumentError, match=r"made of it without cache\(\)"):
        fitted(FitPosition(dataset), dataset.cache(), model=model)
    assert len(model.seen) == STEPS + 1
