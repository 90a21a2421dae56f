"""Where samples are kept: mmap_ninja (whichever version this process imports), a list, and other libraries.

Each store is a function that writes the samples under a folder and gives something to index: `store[i]` is one
sample, ready to use. Other libraries are imported when they are asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import mmap_ninja

from . import samples
from .workers import LIST, OLD, OURS

BATCH_SIZE = 1024  # as in the examples of 0.9.0's own documentation
MANY = 100_000  # for millions of short rows: 0.9.0 opens its whole map anew after each batch
TEXT_KINDS = samples.TEXTS, samples.LONG_TEXTS


def build(kind: str, folder: Path, stored: Iterable[Any], **options: Any) -> Any:
    """Writes a map of that kind from a generator and gives what the library gives."""
    generator = (sample for sample in stored)
    batch_size = MANY if kind == samples.SHORT else BATCH_SIZE
    if kind == samples.DENSE and not hasattr(mmap_ninja, "DenseMmap"):
        return mmap_ninja.np_from_generator(folder, generator, batch_size, **options)
    return map_class(kind).from_generator(folder, generator, batch_size, **options)


def open_(kind: str, folder: Path) -> Any:
    """Opens a map as its users do."""
    if kind == samples.DENSE and not hasattr(mmap_ninja, "DenseMmap"):
        return mmap_ninja.np_open_existing(folder)
    return map_class(kind)(folder)


def map_class(kind: str) -> Any:
    """The class of mmap_ninja that holds this kind."""
    if kind in TEXT_KINDS:
        return mmap_ninja.StringsMmap
    return mmap_ninja.DenseMmap if kind == samples.DENSE else mmap_ninja.RaggedMmap


def keep_map(kind: str, folder: Path, stored: Sequence[Any]) -> Any:
    """A map, closed after its writing and opened anew."""
    build(kind, folder, stored)
    return open_(kind, folder)


def keep_list(kind: str, folder: Path, stored: Sequence[Any]) -> Any:
    """The samples in memory; no disk."""
    return list(stored)


def keep_lmdb(kind: str, folder: Path, stored: Sequence[Any]) -> Any:
    """LMDB: one entry a sample, the key its number."""
    import lmdb

    key = struct.Struct(">Q").pack
    environment = lmdb.open(str(folder), map_size=1 << 36)
    with environment.begin(write=True) as transaction:
        for number, sample in enumerate(stored):
            transaction.put(key(number), encoded(sample), append=True)
    transaction = environment.begin(buffers=True)
    return Read(lambda number: decoded(transaction.get(key(number)), stored[0]))


def keep_bagz(kind: str, folder: Path, stored: Sequence[Any]) -> Any:
    """Bagz, uncompressed: one record a sample."""
    import bagz

    folder.mkdir(parents=True)
    path = str(folder / "samples.bag")
    with bagz.Writer(path) as writer:
        for sample in stored:
            writer.write(encoded(sample))
    reader = bagz.Reader(path)
    return Read(lambda number: decoded(reader[number], stored[0]))


def keep_hdf5(kind: str, folder: Path, stored: Sequence[Any]) -> Any:
    """HDF5: a dataset of rows of any length, with the shapes beside it."""
    import h5py

    folder.mkdir(parents=True)
    file = h5py.File(folder / "samples.h5", "w")
    is_text = isinstance(stored[0], str)
    row_type = h5py.string_dtype() if is_text else h5py.vlen_dtype(stored[0].dtype)
    rows = file.create_dataset("rows", len(stored), row_type)
    for number, sample in enumerate(stored):
        rows[number] = sample if is_text else sample.reshape(-1)
    file.close()
    rows = h5py.File(folder / "samples.h5", "r")["rows"]
    if is_text:
        return Read(lambda number: rows[number].decode())
    shapes = np.array([sample.shape for sample in stored])
    return Read(lambda number: rows[number].reshape(shapes[number]))


def keep_datasets(kind: str, folder: Path, stored: Sequence[Any]) -> Any:
    """Hugging Face datasets: an Arrow file, rows given as NumPy arrays."""
    import datasets

    datasets.disable_progress_bars()
    is_text = isinstance(stored[0], str)
    column = {"sample": list(stored) if is_text else [sample.reshape(-1) for sample in stored]}
    datasets.Dataset.from_dict(column).save_to_disk(str(folder))
    table = datasets.load_from_disk(str(folder))
    if is_text:
        return Read(lambda number: table[number]["sample"])
    table = table.with_format("numpy")
    shapes = [sample.shape for sample in stored]
    return Read(lambda number: table[number]["sample"].reshape(shapes[number]))


class Read:
    """Square brackets around a function that reads one sample."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self._read = read

    def __getitem__(self, number: int) -> Any:
        return self._read(number)


def encoded(sample: Any) -> bytes:
    """A sample as bytes, for libraries that store nothing else: three numbers of shape before an array."""
    if isinstance(sample, str):
        return sample.encode()
    return struct.pack("<3i", *sample.shape, *[-1] * (3 - sample.ndim)) + sample.tobytes()


def decoded(stored: Any, like: Any) -> Any:
    """What `encoded` made, read back without a copy where the library gave none."""
    if isinstance(like, str):
        return str(stored, "utf-8")
    shape = struct.unpack_from("<3i", stored)[: like.ndim]
    return np.ndarray(shape, like.dtype, stored, 12)


KEEPERS: dict[str, Callable[[str, Path, Sequence[Any]], Any]] = {
    OURS: keep_map,
    OLD: keep_map,
    LIST: keep_list,
    "lmdb": keep_lmdb,
    "bagz": keep_bagz,
    "h5py": keep_hdf5,
    "datasets": keep_datasets,
}
OTHERS = tuple(KEEPERS)[3:]


def installed_others() -> list[str]:
    """The other libraries that can be imported here."""
    return [name for name in OTHERS if find_spec(name)]
