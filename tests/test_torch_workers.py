"""`MmapDataset` in a stock DataLoader and what is built on one: every kind of worker, every sampler, flat memory."""

from __future__ import annotations

import multiprocessing
import os
import re
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch.utils.data import (  # noqa: E402
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    Subset,
    WeightedRandomSampler,
    random_split,
)

from mmap_ninja import DenseMmap, RaggedMmap, open_map, split  # noqa: E402
from mmap_ninja.errors import MapChangedError, SampleIndexError  # noqa: E402
from mmap_ninja_torch import MmapDataset, list_collate  # noqa: E402
from torch_data import COUNT, make_maps, same, tensors  # noqa: E402

METHODS = sorted(set(multiprocessing.get_all_start_methods()) & {"fork", "spawn", "forkserver"})
NAMES = ("points", "labels", "big", "texts")  # what the default collate takes
PATIENCE = 120  # seconds after which a loader that waits for a worker gives up

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"  # torch's idle threads make Python 3.12 warn of any fork
)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_maps(tmp_path_factory.mktemp("maps"))


@pytest.fixture
def dataset(maps: Path) -> MmapDataset:
    return MmapDataset({name: maps / name for name in NAMES})


SINGLE = [dict(zip(NAMES, parts, strict=True)) for parts in zip(*map(tensors, NAMES), strict=True)]


def batches_of(indices: list[int], size: int) -> list[Any]:
    """The plain loop: what the default collate makes of the samples, batch by batch."""
    parts = [[SINGLE[k] for k in indices[at : at + size]] for at in range(0, len(indices), size)]
    return [
        {
            name: [one[name] for one in part] if name == "texts" else torch.stack([one[name] for one in part])
            for name in NAMES
        }
        for part in parts
    ]


def loader(dataset: Any, batch_size: int | None = 4, workers: int = 0, method: str = "fork", **options: Any) -> Any:
    if workers:
        options |= {"num_workers": workers, "multiprocessing_context": method, "timeout": PATIENCE}
    return DataLoader(dataset, batch_size, **options)


# -- workers of every kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_is_that_of_the_plain_loop(dataset: MmapDataset, workers: int) -> None:
    made = loader(dataset, workers=workers)
    for _ in range(2):
        assert same(list(made), batches_of(list(range(COUNT)), 4))


@pytest.mark.parametrize("method", METHODS)
def test_persistent_workers_of_every_kind_go_on_with_the_next_epoch(dataset: MmapDataset, method: str) -> None:
    made = loader(dataset, workers=2, method=method, persistent_workers=True)
    for _ in range(2):
        assert same(list(made), batches_of(list(range(COUNT)), 4))


def test_samples_one_by_one(dataset: MmapDataset) -> None:
    """Without a batch size a loader asks for single samples."""
    for workers in (0, 1):
        assert same(list(loader(dataset, None, workers)), SINGLE)


def test_a_shuffled_epoch_has_every_sample_once(dataset: MmapDataset) -> None:
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3)).tolist()
    batches = list(loader(dataset, 4, 2, shuffle=True, generator=generator))
    points = torch.cat([batch["points"] for batch in batches])[:, 0, 0]
    assert sorted((points / 20).int().tolist()) == sorted(order) == list(range(COUNT))


def test_ragged_samples_keep_their_shapes(maps: Path) -> None:
    dataset = MmapDataset((maps / "images", maps / "halves", maps / "files", maps / "numbers"))
    rows = list(zip(*map(tensors, ("images", "halves", "files", "numbers")), strict=True))
    found = [row for batch in loader(dataset, 4, 2, collate_fn=list) for row in batch]
    assert same(found, rows)


def test_views_in_workers(maps: Path) -> None:
    parts = split(open_map(maps / "points"), (0.6, 0.4), seed=5)
    for part in parts:
        expected = torch.stack([tensors("points")[k] for k in part.indices])
        assert same(torch.cat(list(loader(MmapDataset(part), 3, 2))), expected)


def test_a_worker_reads_on_what_was_opened_when_the_map_is_replaced(tmp_path: Path) -> None:
    make_maps(tmp_path, "points")
    made = loader(MmapDataset(tmp_path / "points"), COUNT, 1)
    DenseMmap.from_ndarray(tmp_path / "points", np.zeros((3, 2)))
    assert same(list(made), [torch.stack(tensors("points"))])


def test_a_spawned_worker_tells_that_the_map_was_replaced(tmp_path: Path) -> None:
    make_maps(tmp_path, "points")
    made = loader(MmapDataset(tmp_path / "points"), COUNT, 1, "spawn")
    DenseMmap.from_ndarray(tmp_path / "points", np.zeros((3, 2)))
    with pytest.raises(MapChangedError, match="was replaced"):
        list(made)


# -- what is built on a dataset --------------------------------------------------------------------------------------

INDICES = [12, 0, 5, 5, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_subset(dataset: MmapDataset, workers: int) -> None:
    assert same(list(loader(Subset(dataset, INDICES), 2, workers)), batches_of(INDICES, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_concat_dataset(dataset: MmapDataset, workers: int) -> None:
    both = ConcatDataset([dataset, Subset(dataset, INDICES)])
    assert same(list(loader(both, 4, workers)), batches_of([*range(COUNT), *INDICES], 4))


@pytest.mark.parametrize("workers", [0, 2])
def test_random_split(dataset: MmapDataset, workers: int) -> None:
    parts = random_split(dataset, [8, 5], torch.Generator().manual_seed(1))
    assert sorted([*parts[0].indices, *parts[1].indices]) == list(range(COUNT))
    for part in parts:
        assert same(list(loader(part, 3, workers)), batches_of(list(part.indices), 3))


@pytest.mark.parametrize("workers", [0, 2])
def test_weighted_random_sampler(dataset: MmapDataset, workers: int) -> None:
    weights = [float(k % 3) for k in range(COUNT)]
    order = list(WeightedRandomSampler(weights, 20, generator=torch.Generator().manual_seed(2)))
    sampler = WeightedRandomSampler(weights, 20, generator=torch.Generator().manual_seed(2))
    assert len(set(order)) < len(order)
    assert same(list(loader(dataset, 6, workers, sampler=sampler)), batches_of(order, 6))


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_sampler_and_batches_as_samples(dataset: MmapDataset, workers: int) -> None:
    sampler = BatchSampler(INDICES, 2, drop_last=True)
    assert same(list(loader(dataset, 1, workers, batch_sampler=sampler)), batches_of(INDICES[:4], 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_distributed_samplers_are_disjoint_and_complete(dataset: MmapDataset, workers: int) -> None:
    even, seen = Subset(dataset, range(12)), []
    for rank in range(2):
        sampler = DistributedSampler(even, num_replicas=2, rank=rank, shuffle=True, seed=4)
        order = list(sampler)
        assert same(list(loader(even, 4, workers, sampler=sampler)), batches_of(order, 4))
        seen.append(set(order))
    assert seen[0] & seen[1] == set()
    assert seen[0] | seen[1] == set(range(12))


# -- errors in workers -----------------------------------------------------------------------------------------------


def assert_raises(error: type[Exception], words: str, made: Any) -> None:
    with pytest.raises(error, match=words) as caught:
        list(made)
    # Its frames hold the loader in a circle; the garbage collector would end the workers the slow way, or in a fork.
    traceback.clear_frames(caught.tb)


def dies_at_zero(sample: Any) -> Any:
    if sample == 0:  # before this worker has sent a batch: the reader fetches its memory from a worker that lives
        os._exit(7)
    return sample


def raises_at_five(sample: Any) -> Any:
    if sample == 5:
        raise ValueError("sample 5 is broken")
    return sample


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    DenseMmap.from_ndarray(tmp_path / "numbers", np.arange(10))
    return tmp_path / "numbers"


def test_a_worker_that_dies_is_an_error_and_no_hang(numbers: Path) -> None:
    made = loader(MmapDataset(numbers, transform=dies_at_zero), 2, 2)
    assert_raises(RuntimeError, r"worker \(pid.*exited unexpectedly", made)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("function", ["transform", "wrapper_fn"])
def test_an_exception_of_a_function_comes_through(numbers: Path, function: str, workers: int) -> None:
    made = loader(MmapDataset(numbers, **{function: raises_at_five}), 2, workers)
    assert_raises(ValueError, "sample 5 is broken", made)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_index_out_of_range_comes_through(numbers: Path, workers: int) -> None:
    made = loader(MmapDataset(numbers), 2, workers, sampler=[1, 10])
    assert_raises(SampleIndexError, "index 10 is out of range for a map of 10 samples", made)


# -- memory ----------------------------------------------------------------------------------------------------------

needs_smaps = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists() or "fork" not in METHODS, reason="the kernel does not tell what is private"
)
HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ .{4} \S+ \S+ \d+ *(.*)")
PRIVATE = re.compile(r"Private_(?:Clean|Dirty): +(\d+) kB")


def private_memory(pid: int, folder: Path) -> int:
    """Bytes that only this process holds: not the pages of the map, nor those of tensors on their way to a reader."""
    total, is_counted = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if found := HEADER.fullmatch(line):
            is_counted = not found[1].startswith((str(folder), "/dev/shm"))
        elif is_counted and (found := PRIVATE.fullmatch(line)):
            total += int(found[1]) * 1024
    return total


def resident_memory(pid: int) -> int:
    """Bytes of the anonymous part of the resident set: the rest of it are pages of files, which belong to all."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


def after_each_epoch(made: Any, measure: Callable[[int], int], epochs: int = 3) -> list[int]:
    """What the workers hold together, when they have read everything once, twice and so on."""
    others, figures = set(multiprocessing.active_children()), []
    for _ in range(epochs):
        for _ in made:
            pass
        workers = set(multiprocessing.active_children()) - others
        assert len(workers) == made.num_workers
        figures.append(sum(measure(worker.pid) for worker in workers))
    return figures


def first_elements(samples: list[Any]) -> Any:
    """Little to send: the memory of batches on their way is not what is measured."""
    return torch.stack([sample.reshape(-1)[0] for sample in samples])


def ragged_map(folder: Path, size: int, count: int, *, sync: bool = False) -> Path:
    """Rows of two lengths that take `size` bytes in all."""
    mean = size // count // 4
    rows = (np.full(mean + (8 if k % 2 else -8), k, np.int32) for k in range(count))
    RaggedMmap.from_generator(folder, rows, 1024, sync=sync)
    assert open_map(folder).nbytes == size // count // 4 * 4 * count
    return folder


def persistent(dataset: Any, workers: int) -> Any:
    return loader(dataset, 64, workers, collate_fn=first_elements, persistent_workers=True, shuffle=True)


MARGIN = 4 << 20  # bytes; what is kept of each sample would be far more


@needs_smaps
@pytest.mark.parametrize("copy", [True, False], ids=["copy", "no copy"])
def test_private_memory_of_forked_workers_stays_flat(tmp_path: Path, copy: bool) -> None:
    ragged_map(tmp_path / "rows", 50 << 20, 12_800)
    made = persistent(MmapDataset(tmp_path / "rows", copy=copy), 2)
    figures = after_each_epoch(made, lambda pid: private_memory(pid, tmp_path))
    assert figures[2] - figures[0] < MARGIN


@needs_smaps
def test_what_a_worker_keeps_of_each_sample_would_be_seen(tmp_path: Path) -> None:
    kept: list[Any] = []
    ragged_map(tmp_path / "rows", 10 << 20, 2_560)
    dataset = MmapDataset(tmp_path / "rows", transform=lambda sample: (kept.append(sample), sample)[1])
    figures = after_each_epoch(persistent(dataset, 2), lambda pid: private_memory(pid, tmp_path))
    assert figures[2] - figures[0] > 2 * MARGIN


@needs_smaps
def test_the_anonymous_resident_set_does_not_depend_on_the_map(tmp_path: Path) -> None:
    figures = []
    for size in (1 << 20, 50 << 20):
        ragged_map(tmp_path / str(size), size, size >> 12)
        made = persistent(MmapDataset(tmp_path / str(size)), 1)
        figures += after_each_epoch(made, resident_memory, 1)
    assert abs(figures[1] - figures[0]) < 2 * MARGIN


more_than_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")


@needs_smaps
@more_than_cores
@pytest.mark.long
def test_private_memory_of_four_workers_stays_flat_over_a_large_map(tmp_path: Path) -> None:
    ragged_map(tmp_path / "rows", 2 << 30, 1 << 17)
    made = persistent(MmapDataset(tmp_path / "rows"), 4)
    figures = after_each_epoch(made, lambda pid: private_memory(pid, tmp_path))
    print("private memory of 4 workers after each epoch, in MB:", [round(figure / 1e6, 1) for figure in figures])
    assert figures[2] - figures[0] < MARGIN


@more_than_cores
@pytest.mark.long
def test_the_start_of_spawned_workers_does_not_depend_on_the_map(tmp_path: Path) -> None:
    """The only look at a clock, and a loose one: a worker that got or read the map would take far longer."""
    sizes = (1 << 20, 2 << 30)
    for size in sizes:
        ragged_map(tmp_path / str(size), size, size >> 14, sync=True)  # nothing is left for the disk to do
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(5):
        for size in sizes:
            seconds[size].append(seconds_to_a_batch_of_each(MmapDataset(tmp_path / str(size))))
    small, large = map(statistics.median, seconds.values())
    print(f"start of 4 spawned workers: {small:.2f} s for 1 MB, {large:.2f} s for 2 GB, ratio {large / small:.2f}")
    assert large < 2 * small


def seconds_to_a_batch_of_each(dataset: Any) -> float:
    made = loader(dataset, 16, 4, "spawn", collate_fn=list_collate)
    started = time.perf_counter()
    batches = iter(made)
    for _ in range(4):
        next(batches)
    return time.perf_counter() - started
