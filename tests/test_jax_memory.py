"""The memory of batches of MmapLoader: never copied if large, never written to while somebody holds them."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the adapter for JAX needs it")

from jax_data import check_same  # noqa: E402
from mmap_ninja import Batches, DenseMmap, RaggedMmap, open_map  # noqa: E402
from mmap_ninja_jax import MmapLoader  # noqa: E402

LARGE = np.random.default_rng(0).random((640, 2048), np.float32)  # eight samples are 64 kB


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "map"
    RaggedMmap.from_lists(folder, [*LARGE], sync=False)
    return folder


@pytest.mark.parametrize("kind", ["dense", "padded", "list", "transform", "batch_transform"])
def test_batches_that_are_kept_never_change(large: Path, kind: str) -> None:
    options: dict[str, Any] = {
        "list": {"layout": "list"},
        "transform": {"transform": lambda row: row, "threads": 2},
        "batch_transform": {"layout": "stack", "batch_transform": lambda batch: batch[:, ::-1]},
    }.get(kind, {})
    loader = MmapLoader(LARGE if kind == "dense" else large, 8, shuffle=True, **options)
    order = Batches(np.arange(len(LARGE)), 8, shuffle=True)
    kept, numbers = [], []
    for _ in range(3):
        for k, (batch, chosen) in enumerate(zip(loader, order, strict=True)):
            if k % 4 < 3:  # the memory of the others is used again
                kept.append(batch)
                numbers.append(chosen)
    assert len(kept) >= 50
    for batch, chosen in zip(kept, numbers, strict=True):
        found = batch.values if kind == "padded" else batch
        expected = LARGE[chosen][:, ::-1] if kind == "batch_transform" else LARGE[chosen]
        check_same(found, [*expected] if kind == "list" else expected)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_a_function_writes_to_later_does_not_change_a_batch(prefetch: int) -> None:
    memory = np.empty((9, 1 << 14), np.float32)
    start = -memory.__array_interface__["data"][0] % 64 // 4
    own = memory.reshape(-1)[start:][: 8 << 14].reshape(8, -1)  # JAX takes what is aligned like this without a copy

    def batch_transform(batch: np.ndarray) -> np.ndarray:
        own[:] = batch[:, np.newaxis]
        return own

    numbers = np.arange(32, dtype=np.float32)
    found = list(MmapLoader(numbers, 8, batch_transform=batch_transform, prefetch=prefetch))
    check_same(found, [np.repeat(part[:, np.newaxis], 1 << 14, axis=1) for part in np.split(numbers, 4)])


def test_writing_to_a_map_does_not_change_a_batch_of_views_of_it(tmp_path: Path) -> None:
    DenseMmap.from_ndarray(tmp_path / "m", LARGE[:8])
    views = open_map(tmp_path / "m", wrapper_fn=lambda row: row, copy_before_wrapper_fn=False)
    (batch,) = MmapLoader(views, 8, layout="list")
    with DenseMmap(tmp_path / "m", mode="r+") as m:
        m[3] = np.zeros(2048, np.float32)
    check_same(batch, [*LARGE[:8]])
    assert not views[3].any()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_donated_and_deleted_batches_do_no_harm_to_later_ones(large: Path, prefetch: int) -> None:
    double = jax.jit(lambda batch: batch * 2, donate_argnums=0)
    loader, results = MmapLoader(large, 8, shuffle=True, layout="stack", prefetch=prefetch), []
    for k, batch in enumerate(itertools.chain(loader, loader)):
        if k % 3:
            results.append(double(batch))
        else:
            results.append(batch + batch)
            batch.delete()
        assert batch.is_deleted()
    order = Batches(np.arange(len(LARGE)), 8, shuffle=True)
    for result, chosen in zip(results, itertools.chain(order, order), strict=True):
        check_same(result, LARGE[chosen] * 2)


def test_a_large_batch_is_the_memory_that_it_was_gathered_into() -> None:
    gathered = []

    def note(batch: np.ndarray) -> np.ndarray:
        gathered.append(batch.ctypes.data)
        return batch

    found = []
    for batch in MmapLoader(LARGE, 8, batch_transform=note):
        found.append(batch.unsafe_buffer_pointer())
        view = np.asarray(batch)
        assert view.ctypes.data == found[-1]
        assert not view.flags.writeable
    assert found == gathered
    assert all(pointer % 64 == 0 for pointer in found)
    assert len({*found}) < len(found) / 4  # what nobody holds is used again


@pytest.mark.parametrize("options", [{}, {"prefetch": 0}, {"transform": np.copy, "threads": 3}], ids="-".join)
def test_leaving_early_leaves_no_thread(large: Path, options: dict[str, Any]) -> None:
    for _ in MmapLoader(large, 8, layout="stack", **options):
        break
    for thread in threading.enumerate():
        if thread.name.startswith("mmap_ninja"):  # one that was about to end
            thread.join(10)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("mmap_ninja")]
