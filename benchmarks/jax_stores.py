"""What a training loop in JAX goes through: batches from maps of either version, and from what others store.

The first bytes of each sample are its number, so that whoever gets a batch can tell which samples are in it. Only the
processes that measure import JAX and the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import samples, stores, tf_stores
from .bench_batches import aligned, copied
from .workers import OLD, OURS

BATCH = 256
SHAPE = (100, 160, 3)  # of an image
BUCKETS = (448, 512, 576, 640)  # lengths of padded rows, which have 205 to 615 tokens
NUMBER = 8  # bytes
FIXED, ROWS = "images", samples.TOKENS
MAPS = {FIXED: samples.DENSE, ROWS: samples.TOKENS}  # the kind of map
DTYPES = {FIXED: np.uint8, ROWS: np.uint16}
RECORDS, RAM = "ArrayRecord", "RAM"
LOADERS, GRAIN, TF = "MmapLoader", "grain", "tf.data"  # processes: what one way leaves in memory is not for another

Batch = Any
Batches = Iterable[Batch]


def stored(kind: str, count: int) -> Iterator[np.ndarray]:
    """The samples of a kind."""
    if kind == FIXED:
        return samples.numbered(count)
    return map(tf_stores.numbered, samples.make(kind, count), range(count))


@cache
def map_of(kind: str, folder: Path, count: int) -> Path:
    """The folder of a map by the version of this process; written at the first call."""
    version = OURS if hasattr(stores.mmap_ninja, "DenseMmap") else OLD
    below = folder / f"{kind.replace(' ', '-')}-{count}-{version}"
    if not below.exists():
        stores.build(MAPS[kind], below, stored(kind, count))
    return below


def ours(kind: str, folder: Path, count: int, *, batch_size: int = BATCH, **options: Any) -> Batches:
    """`MmapLoader`."""
    import mmap_ninja_jax

    return mmap_ninja_jax.MmapLoader(map_of(kind, folder, count), batch_size, shuffle=True, **options)


class Copies:
    """A memcpy of as many bytes in the order in which they lie, into one buffer that stays in the cache."""

    def __init__(self, kind: str, folder: Path, count: int) -> None:
        self._array = np.asarray(stores.open_(MAPS[kind], map_of(kind, folder, count))[:])
        self._ring = aligned(1, self._array)

    def __iter__(self) -> Iterator[np.ndarray]:
        return copied(self._array, self._ring)


class ByHand:
    """The loop that users of 0.9.0 write: shuffled samples one by one, put together, and on to the device."""

    def __init__(self, kind: str, folder: Path, count: int, *, put: str) -> None:
        import jax

        self._kept, self._count = stores.open_(MAPS[kind], map_of(kind, folder, count)), count
        self._together = np.stack if kind == FIXED else in_bucket
        self._put = {"asarray": jax.numpy.asarray, "device_put": jax.device_put}[put]

    def __iter__(self) -> Iterator[Batch]:
        order = np.random.default_rng().permutation(self._count).tolist()
        for first in range(0, self._count, BATCH):
            yield self._put(self._together([self._kept[i] for i in order[first : first + BATCH]]))


def in_bucket(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Values, filled up to the first bucket that they fit into, and lengths."""
    lengths = np.array([len(row) for row in rows], np.int32)
    values = np.zeros((len(rows), next(size for size in BUCKETS if size >= lengths.max())), rows[0].dtype)
    for place, row in zip(values, rows, strict=True):
        place[: len(row)] = row
    return values, lengths


class Grain:
    """Grain's shuffled batches of a map, of samples in RAM, or of ArrayRecord: the bytes of each, uncompressed."""

    def __init__(self, kind: str, folder: Path, count: int, *, over: str, reading: str) -> None:
        import grain

        source = {OURS: map_source, RAM: in_ram, RECORDS: records}[over](kind, folder, count)
        found = grain.MapDataset.source(source).shuffle(seed=1)
        if over == RECORDS:
            found = found.map(decoder(kind))
        if kind == ROWS:
            found = found.map(filled_up)
        self._made = READINGS[reading](grain, found)

    def __iter__(self) -> Iterator[Batch]:
        import jax

        return map(jax.device_put, self._made)


READINGS: dict[str, Callable[[Any, Any], Any]] = {
    # As its documentation has it: 16 threads, 500 samples ahead.
    "as it comes": lambda grain, found: found.to_iter_dataset().batch(BATCH),
    # What it recommends for data that is in memory.
    "no threads": lambda grain, found: found.to_iter_dataset(grain.ReadOptions(0, 0)).batch(BATCH),
    # Each of two threads makes a batch, as many as `MmapLoader` has ahead.
    "2 threads": lambda grain, found: found.batch(BATCH).to_iter_dataset(grain.ReadOptions(2, 2)),
}


def map_source(kind: str, folder: Path, count: int) -> Any:
    """A map, as it is."""
    return stores.open_(MAPS[kind], map_of(kind, folder, count))


@cache
def in_ram(kind: str, folder: Path, count: int) -> Any:
    """What reads faster than any file: an array, or a list of arrays."""
    found = list(stored(kind, count))
    return np.stack(found) if kind == FIXED else found


@cache
def records(kind: str, folder: Path, count: int) -> Any:
    """An ArrayRecord file, each record of which can be found and read by itself."""
    import grain
    from array_record.python.array_record_module import ArrayRecordWriter

    path = str(folder / f"{kind.replace(' ', '-')}.array_record")
    writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
    for sample in stored(kind, count):
        writer.write(sample.tobytes())
    writer.close()
    return grain.sources.ArrayRecordDataSource(path)


def decoder(kind: str) -> Callable[[bytes], np.ndarray]:
    """What makes a sample of a record, without a copy."""
    if kind == FIXED:
        return lambda record: np.frombuffer(record, np.uint8).reshape(SHAPE)
    return lambda record: np.frombuffer(record, np.uint16)


def filled_up(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A row as long as all others, and its length: Grain puts together what has one shape."""
    values = np.zeros(BUCKETS[-1], row.dtype)
    values[: len(row)] = row
    return values, np.int32(len(row))


class TfRecords:
    """A pipeline of tf.data over TFRecord, shuffled by a buffer."""

    def __init__(self, kind: str, folder: Path, count: int) -> None:
        self._made = tf_stores.records(tf_stores.FIXED, folder, count)

    def __iter__(self) -> Iterator[Batch]:
        import jax

        return map(jax.device_put, self._made.as_numpy_iterator())


class Way(NamedTuple):
    """The process that it runs in, and what makes its batches."""

    process: str
    make: Callable[..., Batches]
    options: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it
    needs: tuple[str, ...] = ("jax",)
    is_slow: bool = False  # one epoch of some of the samples is enough

    @property
    def is_installed(self) -> bool:
        return all(map(find_spec, self.needs))


HOT, LOADER = "memcpy into one buffer", "MmapLoader"
STACK, STACK_PUT = "np.stack over 0.9.0, jnp.asarray", "np.stack over 0.9.0, device_put"
LOADER_ROWS, OLD_ROWS = f"{LOADER}, buckets", "loop over 0.9.0, buckets"
OVER_RECORDS = {reading: f"Grain over {RECORDS}, {reading}" for reading in READINGS}
OVER_MAP = {reading: f"Grain over a map, {reading}" for reading in READINGS}
OVER_RAM = {reading: f"Grain over samples in RAM, {reading}" for reading in READINGS}


def grain_ways(reading: str) -> dict[str, Way]:
    """The same settings over all three."""
    labels = {RECORDS: OVER_RECORDS[reading], OURS: OVER_MAP[reading], RAM: OVER_RAM[reading]}
    needs = "jax", "grain", "array_record"
    return {
        label: Way(GRAIN, Grain, {"over": over, "reading": reading}, needs, is_slow=True)
        for over, label in labels.items()
    }


WAYS = {
    FIXED: {
        HOT: Way(LOADERS, Copies),
        LOADER: Way(LOADERS, ours),
        f"{LOADER}, prefetch=0": Way(LOADERS, ours, {"prefetch": 0}),
        STACK: Way(OLD, ByHand, {"put": "asarray"}),
        STACK_PUT: Way(OLD, ByHand, {"put": "device_put"}),
        **{label: way for reading in READINGS for label, way in grain_ways(reading).items()},
        "tf.data over TFRecord": Way(TF, TfRecords, needs=("jax", "tensorflow"), is_slow=True),
    },
    ROWS: {
        LOADER_ROWS: Way(LOADERS, ours, {"buckets": BUCKETS}),
        OLD_ROWS: Way(OLD, ByHand, {"put": "device_put"}),
        **grain_ways("no threads"),
    },
}


@cache
def batches_of(kind: str, label: str, folder: str, count: int) -> Batches:
    """The batches of a way, after an epoch in which every sample has come, and only once."""
    way = WAYS[kind][label]
    batches = way.make(kind, Path(folder), count, **way.options)
    found = sorted(number for batch in batches for number in numbers_of(kind, batch))
    assert found == list(range(count)), f"{label} does not read what is stored: {kind}"
    return batches


def numbers_of(kind: str, batch: Batch) -> list[int]:
    """The numbers of the samples in it."""
    values = np.asarray(batch[0] if isinstance(batch, tuple) else batch)
    heads = values.reshape(len(values), -1)[:, : NUMBER // values.itemsize]
    return np.ascontiguousarray(heads).view("<i8")[:, 0].tolist()
