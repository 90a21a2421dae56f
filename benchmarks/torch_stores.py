"""What a training loop in torch goes through: loaders over maps of either version, and over what others store.

The first bytes of each sample are its number, so that whoever gets a batch can tell which samples are in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, default_collate

from . import samples, stores
from .bench_batches import aligned, copied
from .workers import OLD, OURS

BATCH = 256
SHAPE = (100, 160, 3)  # of the images of one size
NUMBER = 8  # bytes
FIXED, RAGGED, ROWS = "images", "ragged images", samples.TOKENS
LOADERS, RAM, OTHERS = "MmapLoader", "RAM", "others"  # processes: what one way leaves in memory is not for another

Batch = Any
Loader = Iterable[Batch]

warnings.filterwarnings("ignore", "This DataLoader will create")  # that many are asked for, however few processors


def stored(kind: str, count: int) -> Iterator[np.ndarray]:
    """The samples of a kind."""
    return MAKERS[kind](count)


def ragged_images(count: int) -> Iterator[np.ndarray]:
    """As `samples.images`, about 48 kB each, but numbered."""
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, 1 << 20, np.uint8)
    for number, height in enumerate(random.integers(96, 161, count).tolist()):
        shape = (height, 128 * 128 // height, 3)
        start = number % (len(noise) - 50_000)
        yield with_number(noise[start : start + int(np.prod(shape))].reshape(shape), number)


def token_rows(count: int) -> Iterator[np.ndarray]:
    """Those of `samples`, but numbered."""
    return map(with_number, samples.make(samples.TOKENS, count), range(count))


def with_number(sample: np.ndarray, number: int) -> np.ndarray:
    made = sample.copy()
    made.reshape(-1).view(np.uint8)[:NUMBER] = np.frombuffer(number.to_bytes(NUMBER, "little"), np.uint8)
    return made


MAKERS: dict[str, Callable[[int], Iterator[np.ndarray]]] = {
    FIXED: samples.numbered,
    RAGGED: ragged_images,
    ROWS: token_rows,
}


def map_of(kind: str, folder: Path, count: int, *, is_dense: bool) -> Path:
    """The folder of a map by the version of this process; written at the first call."""
    version = OURS if hasattr(stores.mmap_ninja, "DenseMmap") else OLD
    below = folder / f"{kind.replace(' ', '-')}-{'dense' if is_dense else 'ragged'}-{version}"
    if not below.exists():
        stores.build(samples.DENSE if is_dense else samples.TOKENS, below, stored(kind, count))
    return below


class Samples(Dataset):
    """What users of 0.9.0 write: one sample at a time, copied, as a tensor."""

    def __init__(self, kept: Any, count: int) -> None:
        self._kept, self._count = kept, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self._kept[i]))


def padded(found: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The collate that goes with it: values and lengths."""
    return pad_sequence(found, batch_first=True), torch.tensor([len(row) for row in found])


def by_hand(
    kind: str, folder: Path, count: int, *, is_dense: bool = False, collate_fn: Any = default_collate
) -> Loader:
    """The same over whichever version of mmap_ninja this process has."""
    below = map_of(kind, folder, count, is_dense=is_dense)
    kept = stores.open_(samples.DENSE if is_dense else samples.TOKENS, below)
    return DataLoader(Samples(kept, count), BATCH, shuffle=True, collate_fn=collate_fn)


def stock(
    kind: str, folder: Path, count: int, *, copy: bool = True, workers: int = 0, collate: str = "", **options: Any
) -> Loader:
    """A stock DataLoader over `MmapDataset`; its workers stay from epoch to epoch."""
    import mmap_ninja_torch

    below = map_of(kind, folder, count, is_dense=kind == FIXED)
    collates = {
        "": default_collate,
        "list": mmap_ninja_torch.list_collate,
        "padded": mmap_ninja_torch.pad_collate(),
        "jagged": mmap_ninja_torch.jagged_collate,
    }
    return DataLoader(
        mmap_ninja_torch.MmapDataset(below, copy=copy),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collates[collate],
        **options,
    )


def ours(kind: str, folder: Path, count: int, **options: Any) -> Loader:
    """`MmapLoader`."""
    import mmap_ninja_torch

    below = map_of(kind, folder, count, is_dense=kind == FIXED)
    return mmap_ninja_torch.MmapLoader(below, BATCH, shuffle=True, **options)


class Copies:
    """A memcpy of as many bytes in the order in which they lie, into one buffer that stays in the cache."""

    def __init__(self, kind: str, folder: Path, count: int) -> None:
        self._array = np.asarray(stores.open_(samples.DENSE, map_of(kind, folder, count, is_dense=True))[:])
        self._ring = aligned(1, self._array)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(torch.from_numpy, copied(self._array, self._ring))


class InRam:
    """The samples as one tensor, of which a batch is `x[indices]`."""

    def __init__(self, kind: str, folder: Path, count: int) -> None:
        self._kept = whole(kind, count)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self._kept[indices] for indices in torch.randperm(len(self._kept)).split(BATCH))


def stock_in_ram(kind: str, folder: Path, count: int) -> Loader:
    """A stock DataLoader over a list of tensors: all that is left to do is to stack them."""
    return DataLoader(list(whole(kind, count)), BATCH, shuffle=True)


@cache
def whole(kind: str, count: int) -> torch.Tensor:
    """All samples, which have one shape."""
    return torch.from_numpy(np.stack(list(stored(kind, count))))


def hugging_face(kind: str, folder: Path, count: int) -> Loader:
    """Hugging Face datasets: an Arrow file, given as tensors of the same dtype."""
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Array3D(SHAPE, "uint8")})

    def rows() -> Iterator[dict[str, np.ndarray]]:
        for image in stored(kind, count):
            yield {"image": image}

    made = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(folder / "datasets"))
    images = made.with_format("torch", dtype=torch.uint8)
    return DataLoader(images, BATCH, shuffle=True, collate_fn=stacked)


def stacked(found: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """What the default collate does, without the dict."""
    return default_collate([one["image"] for one in found])


def tensor_dict(kind: str, folder: Path, count: int) -> Loader:
    """A TensorDict in memory-mapped files, which gives a whole batch at once."""
    from tensordict import TensorDict

    like = TensorDict({"image": torch.empty(SHAPE, dtype=torch.uint8).expand(count, *SHAPE)}, [count])
    kept = like.memmap_like(folder / "tensordict")
    for number, image in enumerate(stored(kind, count)):
        kept["image"][number] = torch.from_numpy(image)
    loaded = TensorDict.load_memmap(folder / "tensordict")
    return DataLoader(loaded, BATCH, shuffle=True, collate_fn=lambda found: found["image"])


def lmdb(kind: str, folder: Path, count: int) -> Loader:
    """LMDB, read as 0.9.0 is: the same hand-written Dataset."""
    kept = stores.keep_lmdb(samples.DENSE, folder / "lmdb", list(stored(kind, count)))
    return DataLoader(Samples(kept, count), BATCH, shuffle=True)


class Way(NamedTuple):
    """The kind of samples, the process that it runs in, and what makes its loader."""

    kind: str
    process: str
    make: Callable[..., Loader]
    options: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it
    needs: str = "torch"

    @property
    def is_installed(self) -> bool:
        return find_spec(self.needs) is not None


HOT = "memcpy into one buffer"
OLD_DENSE, OLD_RAGGED = "Dataset over 0.9.0, dense", "Dataset over 0.9.0, ragged"
STOCK, LOADER = "MmapDataset", "MmapLoader"
STOCK_RAM, INDEXED_RAM = "list of tensors in RAM", "x[indices] of a tensor in RAM"
OLD_LIST, STOCK_LIST, LOADER_LIST = (f"{way}, a list" for way in ("Dataset over 0.9.0", STOCK, LOADER))
OLD_PADDED, STOCK_PADDED, LOADER_PADDED = (f"{way}, padded" for way in ("Dataset over 0.9.0", STOCK, LOADER))
STOCK_JAGGED, LOADER_JAGGED = (f"{way}, jagged" for way in (STOCK, LOADER))
WAYS = {
    HOT: Way(FIXED, LOADERS, Copies),
    OLD_DENSE: Way(FIXED, OLD, by_hand, {"is_dense": True}),
    OLD_RAGGED: Way(FIXED, OLD, by_hand),
    STOCK: Way(FIXED, OURS, stock),
    f"{STOCK}, copy=False": Way(FIXED, OURS, stock, {"copy": False}),
    f"{STOCK}, 1 worker": Way(FIXED, OURS, stock, {"workers": 1}),
    f"{STOCK}, 2 workers": Way(FIXED, OURS, stock, {"workers": 2}),
    LOADER: Way(FIXED, LOADERS, ours),
    f"{LOADER}, prefetch=0": Way(FIXED, LOADERS, ours, {"prefetch": 0}),
    STOCK_RAM: Way(FIXED, RAM, stock_in_ram),
    INDEXED_RAM: Way(FIXED, RAM, InRam),
    "datasets": Way(FIXED, OTHERS, hugging_face, needs="datasets"),
    "TensorDict": Way(FIXED, OTHERS, tensor_dict, needs="tensordict"),
    "LMDB": Way(FIXED, OTHERS, lmdb, needs="lmdb"),
    OLD_LIST: Way(RAGGED, OLD, by_hand, {"collate_fn": list}),
    STOCK_LIST: Way(RAGGED, OURS, stock, {"collate": "list"}),
    LOADER_LIST: Way(RAGGED, LOADERS, ours, {"layout": "list"}),
    OLD_PADDED: Way(ROWS, OLD, by_hand, {"collate_fn": padded}),
    STOCK_PADDED: Way(ROWS, OURS, stock, {"collate": "padded"}),
    STOCK_JAGGED: Way(ROWS, OURS, stock, {"collate": "jagged"}),
    LOADER_PADDED: Way(ROWS, LOADERS, ours, {"layout": "padded"}),
    LOADER_JAGGED: Way(ROWS, LOADERS, ours, {"layout": "jagged"}),
}


@cache
def loader_of(label: str, folder: str, count: int) -> Loader:
    """The loader of a way, after an epoch in which every sample has come, and only once."""
    way = WAYS[label]
    loader = way.make(way.kind, Path(folder), count, **way.options)
    found = sorted(number for batch in loader for number in numbers_of(batch))
    assert found == list(range(count)), f"{label} does not read what is stored"
    return loader


def values_of(batch: Batch) -> Any:
    """Its samples, which may be joined."""
    if isinstance(batch, tuple):
        return batch[0]
    is_nested = isinstance(batch, torch.Tensor) and batch.is_nested
    return batch.values() if is_nested else batch


def numbers_of(batch: Batch) -> list[int]:
    """The numbers of the samples in it."""
    is_nested = isinstance(batch, torch.Tensor) and batch.is_nested
    found = batch.unbind() if is_nested else values_of(batch)
    heads = (sample.reshape(-1)[:NUMBER].numpy().tobytes()[:NUMBER] for sample in found)
    return [int.from_bytes(head, "little") for head in heads]


def look_at(batch: Batch) -> None:
    """All that the consumer does: it reads the last element."""
    values_of(batch)[-1].reshape(-1)[-1].item()
