"""Maps and views are sources for Grain, and positions go through its checkpoints and those of Orbax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the adapter for JAX needs it")
grain = pytest.importorskip("grain", reason="Grain reads maps here")
ocp = pytest.importorskip("orbax.checkpoint", reason="Orbax keeps checkpoints here")

from absl import flags  # noqa: E402
from grain._src.python.dataset import base  # noqa: E402 - where the protocol of batched reads is
from grain._src.python.dataset.transformations import batch as grain_batch  # noqa: E402

import adapter_data  # noqa: E402
from adapter_data import COUNT, NAMES, SIZE  # noqa: E402
from jax_data import plain  # noqa: E402
from mmap_ninja import DenseMmap, RaggedMmap, open_map, select, split, windows  # noqa: E402
from mmap_ninja_jax import MmapLoader  # noqa: E402

maps = adapter_data.maps

MAPS: dict[str, Callable[[Path], Any]] = {
    **{name: lambda maps, name=name: open_map(maps / name) for name in NAMES},
    "wrapped": lambda maps: open_map(maps / "rows", wrapper_fn=np.sum),
    "selection": lambda maps: select(open_map(maps / "rows"), [7, -1, 0, 7, 3]),
    "dense selection": lambda maps: select(open_map(maps / "points"), slice(None, None, -2)),
    "split": lambda maps: split(open_map(maps / "texts"), (0.5, 0.5), seed=1)[1],
    "windows": lambda maps: windows(open_map(maps / "rows"), 2, stride=1),
}
every_map = pytest.mark.parametrize("make", MAPS.values(), ids=MAPS)


@pytest.fixture(autouse=True, scope="module")
def flags_are_parsed() -> None:
    """What the processes of Grain are told by; a program of absl parses them itself."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["tests"])


def values(found: Any) -> Any:
    """Samples, or a batch, as something to compare."""
    if isinstance(found, list | tuple):
        return [values(part) for part in found]
    return (np.asarray(found).dtype.name, np.asarray(found).tolist()) if not isinstance(found, str | bytes) else found


def batches(dataset: Any) -> list[Any]:
    return [values(batch) for batch in dataset]


class Counted:
    """Counts the batched reads of a map, which Grain asks for by this very name."""

    def __init__(self, source: Any) -> None:
        self.source, self.asked = source, []

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("one sample was read by itself")

    def _getitems(self, indices: Any) -> Any:
        self.asked.append(list(indices))
        return self.source._getitems(indices)


# --- maps as sources


@every_map
def test_maps_and_views_are_sources_of_both_kinds(maps: Path, make: Callable[[Path], Any]) -> None:
    source = make(maps)
    assert isinstance(source, grain.sources.RandomAccessDataSource)
    assert isinstance(source, base.SupportsBatchedReadRandomAccessDataSource)


@every_map
def test_a_dataset_has_the_samples_of_the_map(maps: Path, make: Callable[[Path], Any]) -> None:
    source, dataset = make(maps), grain.MapDataset.source(make(maps))
    assert len(dataset) == len(source)
    assert batches(dataset) == [values(source[k]) for k in range(len(source))]
    chosen = [3, 0, 3, len(source) - 1]
    assert values(list(dataset._getitems(chosen))) == [values(source[k]) for k in chosen]
    assert values(dataset[len(source) + 1]) == values(source[1])  # Grain counts on in the next epoch


@every_map
def test_a_batched_read_gives_what_single_ones_give(maps: Path, make: Callable[[Path], Any]) -> None:
    source = make(maps)
    for chosen in ([], [0], np.array([2, 1, 2]), range(4)):
        assert values(list(source._getitems(chosen))) == [values(source[int(k)]) for k in chosen]


@pytest.mark.parametrize("name", ["points", "even", "labels"])
def test_shuffled_batches_have_each_sample_once(maps: Path, name: str) -> None:
    m = open_map(maps / name)
    dataset = grain.MapDataset.source(m).shuffle(seed=3).batch(SIZE)
    found = np.concatenate(list(dataset))
    assert found.dtype == np.asarray(m[0]).dtype
    assert sorted(found.tolist()) == sorted(np.asarray(sample).tolist() for sample in m)
    assert found.tolist() != [np.asarray(sample).tolist() for sample in m]
    assert found.tolist() == np.concatenate(list(dataset.to_iter_dataset())).tolist()


def test_grain_reads_whole_batches_where_it_asks_for_them(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grain_batch, "_is_batch_map_pushdown_experiment_enabled", lambda: True)
    source = Counted(open_map(maps / "points"))
    dataset = grain.MapDataset.source(source).shuffle(seed=3).batch(SIZE)
    found = [dataset[k] for k in range(len(dataset))]
    assert list(map(len, source.asked)) == [4, 4, 4, 4, 4, 3]
    for batch, chosen in zip(found, source.asked, strict=True):
        assert batch.tolist() == source.source.take(chosen).tolist()
    monkeypatch.undo()
    assert batches(grain.MapDataset.source(source.source).shuffle(seed=3).batch(SIZE)) == batches(found)


def test_a_dataset_of_ragged_rows_is_padded_in_a_batch_fn(maps: Path) -> None:
    def pad(rows: Any) -> np.ndarray:
        return np.stack([np.pad(row, (0, 5 - len(row))) for row in rows])

    found = list(grain.MapDataset.source(open_map(maps / "rows")).batch(SIZE, batch_fn=pad))
    expected = [np.pad(row, (0, 5 - len(row))) for row in adapter_data.ROWS]
    assert np.concatenate(found).tolist() == np.stack(expected).tolist()


# --- checkpoints of Grain


def check_goes_on(make: Callable[[], Any], stop: int = 2) -> None:
    """A new iterator goes on after each of the first batches as the old one would have."""
    running, states, found = iter(make()), [], []
    for _ in range(stop):
        states.append(running.get_state())
        found.append(values(next(running)))
    states.append(running.get_state())
    found += map(values, running)
    assert len(found) == -(-COUNT // SIZE)
    for k, state in enumerate(states):
        again = iter(make())
        again.set_state(state)
        assert batches(again) == found[k:]


def test_an_iterator_goes_on_from_its_state(maps: Path) -> None:
    check_goes_on(lambda: dataset_of(maps / "points"), stop=6)
    check_goes_on(lambda: dataset_of(maps / "even"))


def dataset_of(folder: Path) -> Any:
    """Over a handle of its own."""
    return grain.MapDataset.source(open_map(folder)).shuffle(seed=3).batch(SIZE).to_iter_dataset()


def test_worker_processes_read_the_same_and_go_on_from_their_state(maps: Path) -> None:
    expected = batches(dataset_of(maps / "points"))
    running = iter(dataset_of(maps / "points").mp_prefetch(grain.MultiprocessingOptions(num_workers=2)))
    try:
        first = [values(next(running)) for _ in range(2)]
        state, rest = running.get_state(), batches(running)
        assert first + rest == expected
        running.set_state(state)
        assert batches(running) == rest
    finally:
        running.close()


def loader_of(source: Any, seed: int = 1) -> Any:
    sampler = grain.samplers.IndexSampler(len(source), shuffle=True, seed=seed, num_epochs=1)
    return grain.DataLoader(data_source=source, sampler=sampler, operations=[grain.transforms.Batch(SIZE)])


@pytest.mark.parametrize("name", ["points", "even", "labels"])
def test_a_data_loader_goes_on_from_its_state_over_a_map_opened_again(maps: Path, name: str) -> None:
    check_goes_on(lambda: loader_of(open_map(maps / name)))
    running = iter(loader_of(open_map(maps / name)))
    next(running)
    other = iter(loader_of(open_map(maps / "clips")))
    with pytest.raises(ValueError, match="source"):
        other.set_state(running.get_state())


@every_map
def test_the_same_map_opened_twice_has_one_repr(maps: Path, make: Callable[[Path], Any]) -> None:
    assert repr(make(maps)) == repr(make(maps))
    assert "0x" not in repr(make(maps))


def test_maps_that_differ_have_other_reprs(tmp_path: Path) -> None:
    made = [RaggedMmap.from_lists(tmp_path / name, [[1]] * count) for name, count in (("a", 2), ("b", 2), ("c", 3))]
    made.append(DenseMmap.from_ndarray(tmp_path / "d", np.zeros(2)))
    assert len({repr(m) for m in made}) == 4
    before = repr(made[0])
    made[0].append([2])
    assert repr(made[0]) != before


def test_views_of_other_samples_of_a_map_have_other_reprs(maps: Path) -> None:
    m = open_map(maps / "rows")
    first, second = split(m, (0.5, 0.5), seed=1)
    views = [select(m, [1, 2]), select(m, [1, 3]), select(m, range(2, 4)), first, second]
    views += [split(m, (0.5, 0.5), seed=2)[0], windows(m, 2, stride=1), windows(m, 2), windows(m, 3, stride=1)]
    assert len({*map(repr, views)}) == len(views)
    with pytest.raises(ValueError, match="source"):
        iter(loader_of(views[1])).set_state(iter(loader_of(views[0])).get_state())


# --- Orbax


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Managers of the same checkpoints, as runs one after the other have them."""
    opened: list[Any] = []

    def manager() -> Any:
        opened.append(ocp.CheckpointManager(tmp_path / "checkpoints"))
        return opened[-1]

    yield manager
    for one in opened:
        one.close()


@pytest.mark.parametrize("step", [0, 2, 6, 9, 12])
def test_orbax_keeps_the_position_beside_the_weights(maps: Path, checkpoints: Callable[[], Any], step: int) -> None:
    def made() -> MmapLoader:
        return MmapLoader((maps / "rows", maps / "labels"), SIZE, shuffle=True, seed=7, buckets=(4, 8))

    whole = made()
    expected = [plain(batch) for _ in range(2) for batch in whole]
    weights, loader, number = {"w": jax.numpy.arange(3.0)}, made(), 0
    while number < step:
        for _ in loader:
            number += 1
            if number == step:
                break
    if step % 6:  # else the last epoch was gone through
        assert loader.state_dict()["samples_seen"] == step % 6 * SIZE
    args = ocp.args.Composite(weights=ocp.args.StandardSave(weights), data=ocp.args.JsonSave(loader.get_state()))
    manager = checkpoints()
    manager.save(step, args=args)
    manager.wait_until_finished()

    manager, again, rest = checkpoints(), made(), []
    restore = ocp.args.Composite(weights=ocp.args.StandardRestore(weights), data=ocp.args.JsonRestore())
    restored = manager.restore(manager.latest_step(), args=restore)
    assert restored.weights["w"].tolist() == weights["w"].tolist()
    again.set_state(restored.data)
    while len(rest) < len(expected) - step:
        rest += map(plain, again)
    assert rest == expected[step:]
