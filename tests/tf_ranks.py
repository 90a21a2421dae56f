"""What a process of `tf.distribute` does: goes through datasets, and tells which samples each replica got.

`tf_ranks.py STRATEGY MAP RESULT`: STRATEGY is `workers` (MultiWorkerMirroredStrategy, by TF_CONFIG) or `mirrored` (two
logical CPUs). RESULT is the JSON file that it writes: for each run the epochs, for each epoch the steps, for each step
the samples of each replica that is here and then the sum of those of all replicas; and what `fits` returns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mmap_ninja_tf import FitPosition, to_tf_dataset

GLOBAL, EPOCHS, SEED = 12, 2, 5
RUNS = {"all": {}, "complete": {"drop_remainder": True}, "in order": {"shuffle": False}}  # options of `to_tf_dataset`


def gone_through(strategy: Any, folder: str, **options: Any) -> Iterator[list[list[list[int]]]]:
    """The epochs. The replicas add up the samples of each step: with batches missing this would hang."""

    def made(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return to_tf_dataset(folder, GLOBAL, shard=context, **{"shuffle": True, "seed": SEED, **options})

    @tf.function(reduce_retracing=True)
    def summed(batch: Any) -> Any:
        return strategy.reduce("SUM", strategy.run(tf.reduce_sum, [batch]), axis=None)

    dataset = strategy.distribute_datasets_from_function(made)
    for _ in range(EPOCHS):
        steps = []
        for batch in dataset:
            here = [part.numpy().tolist() for part in strategy.experimental_local_results(batch)]
            steps.append([*here, int(summed(batch))])
        yield steps


def label(labels: Any, predicted: Any) -> Any:
    """A metric: on average what it is for all samples, where an epoch has each of them once."""
    return labels


def model(strategy: Any) -> Any:
    with strategy.scope():
        start = keras.initializers.GlorotUniform(seed=1)
        made = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer=start)])
        made.compile("adam", "mse", metrics=[label])
    return made


def pairs(folder: str, **options: Any) -> tuple[Any, Any]:
    """A dataset, and what a model is trained with."""
    dataset = to_tf_dataset(folder, GLOBAL, shuffle=True, seed=SEED, **options)
    return dataset, dataset.map(lambda x: (tf.cast(x % 3, tf.float32)[:, None], tf.cast(x, tf.float32) / 50))


def fits(strategy: Any, folder: str) -> dict[str, Any]:
    """What three epochs of `fit` make of a model: alone, with the strategy, and in two parts with it."""
    found, even = {}, {"drop_remainder": True}  # so that the mean of the replicas is that of the samples
    for name, used in (("alone", tf.distribute.get_strategy()), ("together", strategy)):
        one, (dataset, fed) = model(used), pairs(folder, **even)
        history = FitPosition(dataset).fit(one, fed, epochs=3, verbose=0)
        found[name] = [one.get_weights(), history.history["loss"], history.params["steps"]]
    one, (_, fed) = model(strategy), pairs(folder)
    plain = one.fit(fed, epochs=3, shuffle=False, verbose=0)
    found["plain"] = [one.get_weights(), plain.history["label"], plain.params["steps"]]
    one, (dataset, fed) = model(strategy), pairs(folder, **even)
    position, stop = FitPosition(dataset), keras.callbacks.LambdaCallback(on_train_batch_end=interrupt_at(11))
    try:
        position.fit(one, fed, epochs=3, callbacks=[stop], verbose=0)
    except KeyboardInterrupt:
        dataset, fed = pairs(folder, **even)
        again = FitPosition(dataset)
        again.load_state_dict(position.state_dict())
        found["state"] = position.state_dict()
        history = again.fit(one, fed, epochs=3, verbose=0)
        found["resumed"] = [one.get_weights(), history.history["loss"], history.params["steps"]]
    return found


def interrupt_at(count: int) -> Any:
    """Ctrl-C at the end of this batch, counted from 1."""
    left = iter(range(count - 1))

    def function(batch: int, logs: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return function


def main(kind: str, folder: str, result: str) -> None:
    if kind == "mirrored":
        cpus = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    else:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    found: dict[str, Any] = {name: list(gone_through(strategy, folder, **options)) for name, options in RUNS.items()}
    if kind == "mirrored":
        found["fits"] = fits(strategy, folder)
    Path(result).write_text(json.dumps(found, default=np.ndarray.tolist))


if __name__ == "__main__":
    main(*sys.argv[1:])
