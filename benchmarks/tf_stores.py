"""What a training loop in TensorFlow goes through: datasets over maps of either version, and over what others store.

The first bytes of each sample are its number, so that whoever gets a batch can tell which samples are in it. Only the
processes that measure import TensorFlow: it takes them seconds, and the one that asks them needs it not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import samples, stores
from .workers import OLD, OURS

BATCH = 256
AHEAD = 2  # batches, where a pipeline is written by hand: as many as `to_tf_dataset` makes
BUFFER = 1_024  # records that are shuffled among each other
SHAPE = (100, 160, 3)  # of an image
NUMBER = 8  # bytes
FIXED, ROWS, TEXTS = "images of 48 kB", samples.TOKENS, samples.TEXTS
MAPS = {FIXED: samples.DENSE, ROWS: samples.TOKENS, TEXTS: samples.TEXTS}  # the kind of map
DTYPES = {FIXED: np.uint8, ROWS: np.uint16}
OTHERS = "others"  # a process: what one way leaves in memory is not for another

Batch = Any
Dataset = Any  # a `tf.data.Dataset`


def stored(kind: str, count: int) -> Iterator[Any]:
    """The samples of a kind."""
    return samples.numbered(count) if kind == FIXED else map(numbered, samples.make(kind, count), range(count))


def numbered(sample: Any, number: int) -> Any:
    """The sample with its number in its first bytes."""
    if isinstance(sample, str):
        return f"{number:0{NUMBER}}{sample[NUMBER:]}"
    made = sample.copy()
    made.view(np.uint8)[:NUMBER] = np.frombuffer(number.to_bytes(NUMBER, "little"), np.uint8)
    return made


@cache
def map_of(kind: str, folder: Path, count: int) -> Path:
    """The folder of a map by the version of this process."""
    version = OURS if hasattr(stores.mmap_ninja, "DenseMmap") else OLD
    below = folder / f"{kind.replace(' ', '-')}-{version}"
    stores.build(MAPS[kind], below, stored(kind, count))
    return below


def together(kind: str, dataset: Dataset) -> Dataset:
    """Batches of samples that come one by one."""
    return dataset.ragged_batch(BATCH) if kind == ROWS else dataset.batch(BATCH)


def by_hand(kind: str, folder: Path, count: int, *, is_padded: bool = False) -> Dataset:
    """What users of 0.9.0 write: a generator of its samples."""
    import tensorflow as tf

    kept = stores.open_(MAPS[kind], map_of(kind, folder, count))
    spec = {
        FIXED: tf.TensorSpec(SHAPE, tf.uint8),
        ROWS: tf.TensorSpec([None], tf.uint16),
        TEXTS: tf.TensorSpec([], tf.string),
    }

    def shuffled() -> Iterator[Any]:
        return (kept[i] for i in np.random.default_rng().permutation(count).tolist())

    made = tf.data.Dataset.from_generator(shuffled, output_signature=spec[kind])
    return (made.padded_batch(BATCH) if is_padded else together(kind, made)).prefetch(AHEAD)


def ours(
    kind: str, folder: Path, count: int, *, batch_size: int | None = BATCH, is_unbatched: bool = False, **options: Any
) -> Dataset:
    """`to_tf_dataset`, and what is made of it."""
    import mmap_ninja_tf

    made = mmap_ninja_tf.to_tf_dataset(map_of(kind, folder, count), batch_size, shuffle=True, **options)
    made = made.unbatch() if is_unbatched else made
    return together(kind, made) if is_unbatched or batch_size is None else made


@cache
def in_memory(kind: str, count: int) -> Any:
    """All samples as a tensor."""
    import tensorflow as tf

    if kind == ROWS:
        rows = list(stored(kind, count))
        return tf.RaggedTensor.from_row_lengths(np.concatenate(rows), list(map(len, rows)))
    if kind == TEXTS:
        return tf.constant(list(stored(kind, count)))
    images = np.empty((count, *SHAPE), np.uint8)
    for place, image in zip(images, stored(kind, count), strict=True):
        place[...] = image
    return tf.constant(images)


def slices(kind: str, folder: Path, count: int, *, ahead: int = 0) -> Dataset:
    """A tensor in RAM, shuffled as a whole."""
    import tensorflow as tf

    made = tf.data.Dataset.from_tensor_slices(in_memory(kind, count)).shuffle(count).batch(BATCH)
    return made.prefetch(ahead) if ahead else made


def records(kind: str, folder: Path, count: int) -> Dataset:
    """TFRecord, a record the bytes of a sample: a file in the order of the samples, shuffled by a buffer."""
    import tensorflow as tf

    path = str(folder / f"{kind.replace(' ', '-')}.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for sample in stored(kind, count):
            writer.write(sample.encode() if kind == TEXTS else sample.tobytes())
    found = tf.data.TFRecordDataset(path).shuffle(BUFFER)
    if kind == ROWS:
        found = found.map(lambda row: tf.io.decode_raw(row, tf.uint16), num_parallel_calls=tf.data.AUTOTUNE)
    made = together(kind, found)
    if kind == FIXED:
        made = made.map(
            lambda batch: tf.reshape(tf.io.decode_raw(batch, tf.uint8), (-1, *SHAPE)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    return made.prefetch(AHEAD)


def hugging_face(kind: str, folder: Path, count: int) -> Dataset:
    """Hugging Face datasets: an Arrow file, whose integers become int64; rows are padded."""
    import datasets

    datasets.disable_progress_bars()
    feature = {
        FIXED: datasets.Array3D(SHAPE, "uint8"),
        ROWS: datasets.List(datasets.Value("uint16")),
        TEXTS: datasets.Value("string"),
    }

    def rows() -> Iterator[dict[str, Any]]:
        return ({"sample": sample} for sample in stored(kind, count))

    made = datasets.Dataset.from_generator(
        rows,
        features=datasets.Features({"sample": feature[kind]}),
        cache_dir=str(folder / "datasets"),
        fingerprint=kind.replace(" ", "-"),
    )
    options = {"collate_fn": filled_up} if kind == ROWS else {}
    return made.to_tf_dataset(BATCH, columns="sample", shuffle=True, prefetch=True, **options)


def filled_up(found: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The collate that users of Hugging Face datasets write."""
    rows = [one["sample"] for one in found]
    values = np.zeros((len(rows), max(map(len, rows))), rows[0].dtype)
    for place, row in zip(values, rows, strict=True):
        place[: len(row)] = row
    return {"sample": values}


class Way(NamedTuple):
    """The process that it runs in, and what makes its dataset."""

    process: str
    make: Callable[..., Dataset]
    options: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it
    is_fast: bool = False  # some milliseconds an epoch
    is_slow: bool = False  # seconds for a thousand samples
    needs: str = "tensorflow"

    @property
    def is_installed(self) -> bool:
        return find_spec(self.needs) is not None


EACH, EACH_PADDED = "from_generator over 0.9.0", "from_generator over 0.9.0, padded_batch"
RAM, RAM_AHEAD = "from_tensor_slices, in RAM", f"from_tensor_slices, in RAM, prefetch({AHEAD})"
BATCHED, PADDED = f"to_tf_dataset({BATCH})", f"to_tf_dataset({BATCH}, layout='padded')"
SINGLE, UNBATCHED = "to_tf_dataset(), batch", f"to_tf_dataset({BATCH}), unbatch, batch"
HF = "datasets, to_tf_dataset"
OF_ALL = {
    EACH: Way(OLD, by_hand),
    RAM: Way(OTHERS, slices, is_fast=True),
    RAM_AHEAD: Way(OTHERS, slices, {"ahead": AHEAD}, is_fast=True),
    "TFRecord": Way(OTHERS, records),
    HF: Way(OTHERS, hugging_face, is_slow=True, needs="datasets"),
    BATCHED: Way(OURS, ours, is_fast=True),
    SINGLE: Way(OURS, ours, {"batch_size": None}),
    UNBATCHED: Way(OURS, ours, {"is_unbatched": True}),
}
OF_ROWS = {
    EACH_PADDED: Way(OLD, by_hand, {"is_padded": True}),
    PADDED: Way(OURS, ours, {"layout": "padded"}, is_fast=True),
}
WAYS = {FIXED: OF_ALL, ROWS: OF_ALL | OF_ROWS, TEXTS: OF_ALL}


@cache
def dataset_of(kind: str, label: str, folder: str, count: int) -> Dataset:
    """The dataset of a way, after an epoch in which every sample has come, and only once."""
    way = WAYS[kind][label]
    dataset = way.make(kind, Path(folder), count, **way.options)
    found = sorted(number for batch in dataset for number in numbers_of(kind, batch))
    assert found == list(range(count)), f"{label} does not read what is stored: {kind}"
    return dataset


def values_of(batch: Batch) -> np.ndarray:
    """Those of all its samples, not copied unless they are texts."""
    return np.asarray(batch.flat_values if hasattr(batch, "flat_values") else batch)


def numbers_of(kind: str, batch: Batch) -> list[int]:
    """The numbers of the samples in it."""
    found: Any = values_of(batch)
    if hasattr(batch, "row_splits"):
        found = np.split(found, np.asarray(batch.row_splits)[1:-1])
    if kind == TEXTS:
        return [int(text[:NUMBER]) for text in found]
    heads = (sample.reshape(-1)[:NUMBER].astype(DTYPES[kind]).tobytes() for sample in found)
    return [int.from_bytes(head[:NUMBER], "little") for head in heads]


def look_at(batch: Batch) -> None:
    """All that the consumer does: it reads the last element."""
    values_of(batch).item(-1)
