"""MmapPyDataset, and `fit`, `evaluate` and `predict` of Keras with it and with what `to_tf_dataset` makes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="the adapter for TensorFlow needs it")

import keras  # noqa: E402

import tf_fits  # noqa: E402
from meanwhile import refuses_damage  # noqa: E402
from mmap_ninja import Batches, BytesMmap, DenseMmap, Padding, RaggedMmap, ReaderShard, StringsMmap  # noqa: E402
from mmap_ninja.errors import ArgumentError, ArgumentTypeError, EpochWarning, MapNotFoundError, SampleError  # noqa: E402
from mmap_ninja.gather import Padded  # noqa: E402
from mmap_ninja_tf import FitPosition, MmapPyDataset, to_tf_dataset  # noqa: E402
from tf_fits import SIZE, STEPS, Hook, N, X, Y, made_model, numbers  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # Keras, with NumPy 2
)
ROWS = [np.arange(k, k + 1 + k % 4, dtype=np.int32) for k in range(N)]
TEXTS = [f"word{k % 3} ß word{k % 2}" for k in range(N)]
W = np.linspace(0, 2, N, dtype=np.float32)


class Pair(NamedTuple):
    x: Any
    y: Any


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    RaggedMmap.from_lists(folder / "rows", ROWS)
    DenseMmap.from_ndarray(folder / "x", X)
    DenseMmap.from_ndarray(folder / "y", Y)
    DenseMmap.from_ndarray(folder / "big", X.astype(">f4"))
    StringsMmap.from_strings(folder / "texts", TEXTS)
    BytesMmap.from_bytes(folder / "files", [text.encode() for text in TEXTS])
    return folder


SOURCES: dict[str, Callable[[Path], Any]] = {
    **{name: lambda maps, name=name: maps / name for name in ("rows", "x", "big", "texts", "files")},
    "tuple": lambda maps: (maps / "x", maps / "y", W),
    "named": lambda maps: Pair(maps / "rows", Y),
    "dict": lambda maps: {"a": maps / "x", "b": (maps / "texts", maps / "rows")},
}


def as_arrays(value: Any) -> Any:
    """A batch of the core as arrays."""
    if isinstance(value, Padded):
        return value.values
    if isinstance(value, dict):
        return {key: as_arrays(part) for key, part in value.items()}
    if isinstance(value, tuple):
        parts = [as_arrays(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return np.array(value, object)
    return value.astype(value.dtype.newbyteorder("="))


def check_same(found: Any, expected: Any) -> None:
    """Types, dtypes, shapes and values, through dicts and tuples."""
    assert type(found) is type(expected)
    if isinstance(found, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(found, expected)
    else:
        assert len(found) == len(expected)
        for key in found if isinstance(found, dict) else range(len(found)):
            check_same(found[key], expected[key])


both_kinds = pytest.mark.parametrize("make", [to_tf_dataset, MmapPyDataset])


def fitted(model: Any, dataset: Any, **options: Any) -> Any:
    return model.fit(dataset, shuffle=False, verbose=0, **options)  # Keras warns of shuffle=True with tf.data


# --- MmapPyDataset


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_its_batches_are_those_of_the_core_epoch_after_epoch(maps: Path, source: Callable[[Path], Any]) -> None:
    dataset = MmapPyDataset(source(maps), SIZE, shuffle=True, seed=7)
    batches = Batches(source(maps), SIZE, shuffle=True, seed=7, layout="padded")
    assert len(dataset) == dataset.num_batches == STEPS
    for epoch in range(3):
        for k in (5, *range(STEPS)):
            check_same(dataset[k], as_arrays(batches.batch(epoch, k)))
        for k in (-1, STEPS, STEPS + 1):
            with pytest.raises(IndexError, match=f"index is {k}, but there are 6 batches"):
                dataset[k]
        dataset.on_epoch_end()


def test_shards_and_remainders_are_those_of_the_core(maps: Path) -> None:
    for options in ({"drop_last": True}, {"shard": ReaderShard(1, 2)}, {"shard": ReaderShard(0, 4), "shuffle": True}):
        given = {"drop_remainder" if name == "drop_last" else name: value for name, value in options.items()}
        dataset, batches = MmapPyDataset(maps / "y", SIZE, **given), Batches(maps / "y", SIZE, **options)
        assert len(dataset) == len(batches) == (5 if "drop_last" in options else 6)
        assert [batch.tolist() for batch in dataset] == [batch.tolist() for batch in batches]


def test_the_first_batches_of_each_epoch_are_taken(maps: Path) -> None:
    dataset = MmapPyDataset(maps / "y", SIZE, shuffle=True)
    dataset.on_epoch_end()
    taken = dataset.take(2)
    assert (len(taken), len(dataset), len(dataset.take(9)), len(dataset.take(0))) == (2, 6, 6, 0)
    for _ in range(2):
        assert [batch.tolist() for batch in taken] == [dataset[k].tolist() for k in range(2)]
        with pytest.raises(IndexError, match="index is 2, but there are 2 batches"):
            taken[2]
        taken.on_epoch_end()
        assert taken[0].tolist() != dataset[0].tolist()  # its epochs are its own
        dataset.on_epoch_end()


@pytest.mark.parametrize("calls", [False, True], ids=["alone", "with on_epoch_end"])
def test_loops_without_keras_see_an_epoch_each(calls: bool) -> None:
    dataset, order = MmapPyDataset(Y, SIZE, shuffle=True), Batches(np.arange(N), SIZE, shuffle=True)
    epochs = [[Y[batch].tolist() for batch in order] for _ in range(5)]
    assert epochs[0][:2] != epochs[1][:2] != epochs[2][:2]
    iter(dataset)  # one that never began
    for epoch, k in enumerate((2, 1, STEPS, 3)):
        assert [dataset.peek().tolist(), dataset.peek().tolist()] == epochs[epoch][:1] * 2
        assert [batch.tolist() for _, batch in zip(range(k), dataset, strict=False)] == epochs[epoch][:k]
        assert [batch.tolist() for batch in map(dataset.__getitem__, range(STEPS))] == epochs[epoch]
        for twin in (pickle.loads(pickle.dumps(dataset)), dataset.take(2)):
            assert twin.peek().tolist() == epochs[epoch + 1][0]
        if calls:
            dataset.on_epoch_end()
            assert dataset[0].tolist() == epochs[epoch + 1][0]
    assert [batch.tolist() for batch in dataset] == epochs[4]


def by_zip(dataset: Any, k: int = 1) -> list[Any]:
    return [batch for _, batch in zip(range(k), dataset, strict=False)]


def test_readers_are_warned_once_of_a_loop_that_was_given_up() -> None:
    for alone in (MmapPyDataset(Y, SIZE), MmapPyDataset(Y, SIZE, shard=ReaderShard(0, 1))):
        by_zip(alone), by_zip(alone)
    dataset = MmapPyDataset(Y, SIZE, shuffle=True, shard=ReaderShard(0, 2))
    by_zip(dataset)
    dataset.peek()
    for one in (pickle.loads(pickle.dumps(dataset)), dataset.take(2), dataset):
        with pytest.warns(EpochWarning, match=r"one of 2 readers.*equally many.*peek\(\)") as seen:
            by_zip(one)
        assert [warning.filename for warning in seen] == [__file__]
        by_zip(one), by_zip(one)  # once


def test_a_warning_that_is_an_error_leaves_the_loops_where_they_were() -> None:
    options = {"shuffle": True, "shard": ReaderShard(0, 2)}
    dataset, batches = MmapPyDataset(Y, SIZE, **options), Batches(Y, SIZE, layout="stack", **options)
    by_zip(dataset)
    with pytest.raises(EpochWarning):
        by_zip(dataset)
    assert [batch.tolist() for batch in dataset] == [batch.tolist() for batch in [*batches, *batches][STEPS:]]


def test_loops_that_are_finished_or_led_on_by_hand_are_no_warning() -> None:
    dataset = MmapPyDataset(Y, SIZE, shuffle=True, shard=ReaderShard(1, 2))
    by_zip(dataset, STEPS)  # left after the last one
    list(dataset)
    dataset[0], dataset.peek()
    by_zip(dataset)
    dataset.on_epoch_end()
    part = dataset.take(2)
    list(part), list(part), list(dataset)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fit_of_one_of_several_readers_is_no_warning(workers: int) -> None:
    model, dataset = made_model(), MmapPyDataset((X, Y), SIZE, shard=ReaderShard(0, 2), workers=workers)
    by_zip(dataset)  # which begins no loop later
    fitted(model, dataset, epochs=2, steps_per_epoch=2)
    model.evaluate(dataset, verbose=0, steps=1)
    by_zip(dataset)
    fitted(model, dataset, epochs=2)
    FitPosition(dataset).fit(model, dataset, epochs=2, verbose=0)
    by_zip(dataset)


def test_a_look_at_nothing_is_refused() -> None:
    for nothing in (MmapPyDataset(Y[:0], SIZE), MmapPyDataset(Y, SIZE).take(0)):
        with pytest.raises(ArgumentError, match="an epoch has no batches"):
            nothing.peek()


@both_kinds
def test_parts_of_epochs_are_other_parts_in_a_fit(make: Any) -> None:
    model, dataset = made_model(), make((X, Y), SIZE, shuffle=True, seed=3)
    fitted(model, dataset, epochs=5, steps_per_epoch=2)
    for _ in range(3):
        fitted(model, dataset, steps_per_epoch=2)
    assert len(model.seen) == 16
    assert len(set(map(str, model.seen))) == 16


def test_what_is_padded_has_lengths_on_request(maps: Path) -> None:
    padding = Padding(-1, multiple_of=8, side="left")
    dataset = MmapPyDataset((maps / "rows", maps / "y"), SIZE, pad_value=padding, with_lengths=True)
    expected = Batches(maps / "rows", SIZE, layout="padded", pad_value=padding).batch(0, 2)
    rows, labels = dataset[2]
    check_same(rows, {"values": expected.values, "lengths": expected.lengths})
    assert (rows["values"].shape, rows["lengths"].dtype, labels.tolist()) == ((4, 8), np.int64, Y[8:12].tolist())


def test_parts_are_chosen_as_features_and_labels(maps: Path) -> None:
    source = {"x": maps / "x", "y": maps / "y", "rows": maps / "rows", "w": W}
    features, labels = MmapPyDataset(source, SIZE, columns=["w", "x"], label_cols="y")[1]
    check_same(features, {"w": W[4:8], "x": X[4:8]})
    check_same(labels, Y[4:8])
    check_same(MmapPyDataset(source, SIZE, columns="w")[0], W[:4])
    rest, labels = MmapPyDataset(source, SIZE, label_cols=["y", "w"])[0]
    assert (list(rest), list(labels)) == (["x", "rows"], ["y", "w"])


def test_functions_make_the_batches(maps: Path) -> None:
    def of_sample(pair: Any) -> dict[str, Any]:
        return {"sum": pair[0].sum(), "row": pair[0][:1], "y": pair[1]}

    def of_batch(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "y": batch["y"] + 100, "texts": [str(value) for value in batch["sum"]]}

    dataset = MmapPyDataset((maps / "rows", maps / "y"), SIZE, transform=of_sample, batch_transform=of_batch)
    sums = np.array([row.sum() for row in ROWS[4:8]])
    texts = np.array(list(map(str, sums)), object)
    rows = np.arange(4, 8, dtype=np.int32)[:, None]
    check_same(dataset[1], {"sum": sums, "row": rows, "y": Y[4:8] + 100, "texts": texts})
    with pytest.raises(SampleError, match="layout='padded'"):
        MmapPyDataset(maps / "rows", SIZE, transform=lambda row: row)[0]
    assert MmapPyDataset(maps / "rows", SIZE, transform=lambda row: row, layout="padded")[0].shape == (4, 4)


def test_arrays_are_of_the_batch_alone_and_never_change(maps: Path) -> None:
    dataset = MmapPyDataset((maps / "x", maps / "rows", W), SIZE, shuffle=True)
    kept = []
    for _ in range(3):
        kept += [(batch, pickle.dumps(batch)) for batch in dataset]
        for array in (array for batch in dataset for array in batch):
            array[...] = 0  # may be written to: it is nobody else's
        dataset.on_epoch_end()
    for batch, bits in kept:
        assert pickle.dumps(batch) == bits
    check_same(MmapPyDataset((maps / "x", maps / "rows", W), SIZE, shuffle=True)[0], kept[0][0])


def test_it_is_pickled_with_its_position(maps: Path) -> None:
    dataset = MmapPyDataset((maps / "x", maps / "rows"), SIZE, shuffle=True, workers=3, max_queue_size=2)
    dataset.on_epoch_end()
    loaded = pickle.loads(pickle.dumps(dataset))
    assert (loaded.workers, loaded.max_queue_size, len(loaded)) == (3, 2, STEPS)
    for _ in range(2):
        check_same(list(loaded), list(dataset))
        loaded.on_epoch_end()
        dataset.on_epoch_end()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layout": "ragged"}, ArgumentError, "layout is 'ragged', expected one of 'padded', 'stack'"),
        ({"layout": "list"}, ArgumentError, "layout is 'list', expected one of"),
        ({"batch_size": 0}, ArgumentError, "batch_size is 0"),
        ({"batch_size": None}, ArgumentTypeError, "batch_size is None"),
        ({"batch_size": 3, "shard": ReaderShard(0, 2)}, ArgumentError, "3, which 2 readers cannot share evenly"),
        ({"shard": 1}, ArgumentTypeError, "shard is 1, expected a ReaderShard"),
        ({"columns": "z"}, ArgumentError, "there is no column 'z'; there are 'x', 'y'"),
        ({"label_cols": ["y", "z"]}, ArgumentError, "there is no column 'z'"),
        ({"source": (X, Y[1:])}, ArgumentError, r"source\[0\] has 22, source\[1\] has 21"),
        ({"source": "nowhere"}, MapNotFoundError, "nowhere"),
        ({"source": 5}, ArgumentTypeError, "source is 5"),
        ({"seed": -1}, ArgumentError, "seed is -1"),
        ({"shuffle": 1}, ArgumentTypeError, "shuffle is 1"),
    ],
)
def test_bad_arguments_are_refused_at_once(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MmapPyDataset(**{"source": {"x": X, "y": Y}, "batch_size": SIZE, **options})


# --- fit, evaluate, predict


@both_kinds
@pytest.mark.parametrize("count", [2, 3], ids=["x, y", "x, y, sample_weight"])
def test_it_is_as_with_arrays_in_memory(maps: Path, make: Any, count: int) -> None:
    dataset, arrays = make((maps / "x", maps / "y", W)[:count], SIZE), dict(zip("xy", (X, Y), strict=True))
    weighted = {"sample_weight": W} if count == 3 else {}
    one, other, steps = made_model(keras.Sequential), made_model(keras.Sequential), []
    counted = Hook("on_train_batch_end", lambda: steps.append(counted.params["steps"]))
    found = fitted(one, dataset, epochs=2, validation_data=dataset, callbacks=[counted])
    given = {**arrays, **weighted, "batch_size": SIZE, "verbose": 0}
    expected = other.fit(**given, epochs=2, shuffle=False, validation_data=(X, Y, *weighted.values()))
    assert tf_fits.weights(one) == tf_fits.weights(other)
    assert steps == [STEPS] * 2 * STEPS
    assert found.history["loss"] == expected.history["loss"]
    assert found.history["val_loss"] == pytest.approx(expected.history["val_loss"], rel=1e-5)
    assert one.evaluate(dataset, verbose=0) == other.evaluate(**given)
    for source in ((maps / "x", maps / "y"), maps / "x"):
        assert np.array_equal(one.predict(make(source, SIZE), verbose=0), other.predict(X, SIZE, verbose=0))


@both_kinds
def test_each_epoch_of_a_fit_has_each_sample_once_in_another_order(make: Any) -> None:
    model = made_model()
    fitted(model, make((X, Y), SIZE, shuffle=True, seed=3), epochs=3)
    epochs = [model.seen[at : at + STEPS] for at in range(0, 3 * STEPS, STEPS)]
    first = next(number for number in range(3) if numbers([number]) == epochs[0])
    assert epochs == [numbers([first + k]) for k in range(3)]


def test_threads_make_the_same_batches() -> None:
    models = [made_model() for _ in range(2)]
    for model, workers in zip(models, (1, 3), strict=True):
        fitted(model, MmapPyDataset((X, Y), SIZE, shuffle=True, workers=workers), epochs=3)
    assert models[0].seen == models[1].seen
    assert tf_fits.weights(models[0]) == tf_fits.weights(models[1])


def test_keras_may_shuffle_the_batches_as_well() -> None:
    keras.utils.set_random_seed(1)
    model = made_model()
    model.fit(MmapPyDataset((X, Y), SIZE), epochs=2, verbose=0)
    assert model.seen[:STEPS] != model.seen[STEPS:]
    assert sorted(model.seen[:STEPS]) == sorted(model.seen[STEPS:]) == numbers([0], shuffle=False)


@both_kinds
def test_parts_of_a_dict_are_inputs_by_name(maps: Path, make: Any) -> None:
    inputs = {"x": keras.Input((N,), name="x"), "w": keras.Input((), name="w")}
    joined = keras.layers.Concatenate()([inputs["x"], keras.layers.Reshape((1,))(inputs["w"])])
    model = keras.Model(inputs, keras.layers.Dense(1, name="out")(joined))
    model.compile("adam", "mse")
    source = {"w": W, "x": maps / "x", "unused": maps / "texts", "y": maps / "y"}
    dataset = make(source, SIZE, columns=["w", "x"], label_cols="y")
    fitted(model, dataset)
    assert model.evaluate(dataset, verbose=0) == pytest.approx(model.evaluate({"x": X, "w": W}, Y, verbose=0), rel=1e-5)
    assert np.allclose(model.predict(dataset, verbose=0), model.predict({"x": X, "w": W}, verbose=0))


@pytest.mark.parametrize(("make", "options"), [(to_tf_dataset, {}), (MmapPyDataset, {"pad_value": Padding(length=4)})])
def test_rows_of_several_lengths_reach_an_embedding(maps: Path, make: Any, options: dict[str, Any]) -> None:
    """As a ragged tensor, and as a padded one whose zeros are masked, which Keras wants to be of one length."""
    is_ragged = make is to_tf_dataset
    keras.utils.set_random_seed(1)
    embedding = keras.layers.Embedding(N + 4, 4, mask_zero=not is_ragged)
    mean = keras.layers.Lambda(lambda rows: tf.reduce_mean(rows, axis=1), output_shape=(4,))
    shape = keras.Input((None,), dtype="int32", ragged=is_ragged)
    pool = mean if is_ragged else keras.layers.GlobalAveragePooling1D()
    model = keras.Sequential([shape, embedding, pool, keras.layers.Dense(1)])
    model.compile("adam", "mse")
    source = (RaggedMmap.from_lists(maps / f"tokens {is_ragged}", [row + 1 for row in ROWS]), maps / "y")
    fitted(model, make(source, SIZE, **options), epochs=2)
    table, (kernel, bias) = embedding.get_weights()[0], model.layers[-1].get_weights()
    expected = [table[row + 1].mean(axis=0) @ kernel + bias for row in ROWS]
    assert np.allclose(model.predict(make(source, SIZE, **options), verbose=0), expected, atol=1e-6)


def vectorizer() -> Any:
    layer = keras.layers.TextVectorization(output_mode="multi_hot", max_tokens=4)
    layer.adapt(["word0 word1 word2"])
    return layer


def test_texts_reach_a_vectorizing_layer(maps: Path) -> None:
    model = keras.Sequential([keras.Input((), dtype="string"), vectorizer(), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    dataset = to_tf_dataset((maps / "texts", maps / "y"), SIZE)
    fitted(model, dataset)
    assert np.allclose(model.predict(dataset, verbose=0), model(tf.constant(TEXTS)))


def test_texts_become_numbers_before_keras_takes_them(maps: Path) -> None:
    vectorize, model = vectorizer(), keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="Invalid dtype: object"):  # a limit of Keras
        fitted(model, MmapPyDataset((maps / "texts", maps / "y"), SIZE))
    dataset = MmapPyDataset(
        (maps / "texts", maps / "y"),
        SIZE,
        batch_transform=lambda batch: (vectorize(tf.constant(batch[0])).numpy(), batch[1]),
    )
    fitted(model, dataset)
    assert np.allclose(model.predict(dataset, verbose=0), model(vectorize(tf.constant(TEXTS))))


# --- without TensorFlow, or Keras


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=given, timeout=120)


def test_without_keras_the_extra_is_named() -> None:
    for name in ("MmapPyDataset", "FitPosition"):
        done = run(f"import sys; sys.modules['keras'] = None\nfrom mmap_ninja_tf import {name}")
        assert done.stderr.splitlines()[-1] == (
            "mmap_ninja.errors.MissingExtraError: mmap_ninja_tf.keras needs Keras: pip install 'mmap-ninja[tf]'"
        )


def test_without_tensorflow_there_are_batches_for_another_backend() -> None:
    program = "import sys; sys.modules['tensorflow'] = None\nimport numpy as np\n"
    program += "from mmap_ninja_tf import MmapPyDataset\nprint(MmapPyDataset(np.arange(5), 2)[2])\n"
    done = run(program + "from mmap_ninja_tf import to_tf_dataset", KERAS_BACKEND="numpy")
    assert done.stdout == "[4]\n"
    assert done.stderr.splitlines()[-1] == (
        "mmap_ninja.errors.MissingExtraError: mmap_ninja_tf needs TensorFlow: pip install 'mmap-ninja[tf]'"
    )


def test_everything_is_there_to_be_found() -> None:
    import mmap_ninja_tf

    assert mmap_ninja_tf.__all__ == ["FitPosition", "MmapPyDataset", "to_tf_dataset"]
    assert set(mmap_ninja_tf.__all__) <= set(dir(mmap_ninja_tf))
    assert issubclass(MmapPyDataset, keras.utils.PyDataset)
    with pytest.raises(AttributeError, match="module 'mmap_ninja_tf' has no attribute 'nothing'"):
        mmap_ninja_tf.nothing


def test_check_refuses_what_is_damaged(tmp_path: Path) -> None:
    refuses_damage(lambda source, check: MmapPyDataset(source, 2, check=check), tmp_path)


@pytest.mark.parametrize("given", ["transform", "batch_transform", "wrapper_fn"])
def test_a_function_that_stops_drops_no_batch(tmp_path: Path, given: str) -> None:
    def stop(made: Any) -> Any:
        if np.max(made) >= 6:
            raise StopIteration("enough")
        return made

    map_ = DenseMmap.from_ndarray(tmp_path / "m", np.arange(10), wrapper_fn=stop if given == "wrapper_fn" else None)
    dataset = MmapPyDataset(map_, 2, **({} if given == "wrapper_fn" else {given: stop}))
    with pytest.raises(RuntimeError, match="a function raised StopIteration") as caught:
        list(dataset)
    assert isinstance(caught.value.__cause__, StopIteration)
    with pytest.raises(RuntimeError, match="a function raised StopIteration"):
        dataset[3]
