"""Trainers that drive the loop: what Lightning and Accelerate make of a loader of ours, and of a stock one."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch.utils.data import DataLoader  # noqa: E402

from mmap_ninja import DenseMmap, Order, ReaderShard  # noqa: E402
from mmap_ninja_torch import MmapDataset, MmapLoader, OrderBatchSampler  # noqa: E402

N, BATCH = 20, 4
PATIENCE = 120  # seconds after which a loader that waits for a worker gives up

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own use of torch
    pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*pkg_resources:DeprecationWarning"),
]
forks = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"  # torch's idle threads make Python 3.12 warn of any fork
)


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    DenseMmap.from_ndarray(tmp_path / "numbers", np.arange(N))
    return tmp_path / "numbers"


def numbers_of(batch: Any) -> Any:
    """The tensor of a batch, whether it came alone or in a dict."""
    return batch["number"] if isinstance(batch, dict) else batch


class Killed(Exception):
    """The end of a program, in the middle of an epoch."""


def trained(
    loader: Any,
    *,
    saved: Path | None = None,
    save: Path | None = None,
    after: int = -1,
    validation: Any = None,
    validated: list[list[int]] | None = None,
    **options: Any,
) -> list[list[int]]:
    """The batches that Lightning has seen, which goes on from a checkpoint, or dies after saving one."""
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
    seen: list[list[int]] = []

    class Sum(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, number: int) -> Any:
            numbers = numbers_of(batch)
            seen.append(numbers.tolist())
            return (numbers * self.weight).sum()

        def validation_step(self, batch: Any, number: int) -> None:
            if validated is not None:
                validated.append(numbers_of(batch).tolist())

        def on_train_batch_end(self, *_: Any) -> None:
            if len(seen) == after:
                self.trainer.save_checkpoint(save)
                raise Killed

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with suppress(Killed):
        trainer.fit(Sum(), loader, validation, ckpt_path=saved)
    return seen


def batches(epoch: int) -> list[list[int]]:
    return [indices.tolist() for indices in Order(N, BATCH, shuffle=True).batches(epoch)]


@pytest.fixture(params=["MmapLoader", "OrderBatchSampler"])
def loader(request: pytest.FixtureRequest, numbers: Path) -> Any:
    if request.param == "MmapLoader":
        return MmapLoader(numbers, BATCH, shuffle=True)
    dataset = MmapDataset(numbers)
    return DataLoader(dataset, batch_sampler=OrderBatchSampler(dataset, BATCH, shuffle=True))


@pytest.fixture
def stock(numbers: Path) -> Any:
    """A DataLoader as anybody makes one, with a worker, over samples that are dicts."""
    options = {"num_workers": 1, "multiprocessing_context": "fork", "timeout": PATIENCE}
    return DataLoader(MmapDataset({"number": numbers}), 3, shuffle=True, **options)


@forks
def test_lightning_sees_every_sample_once(stock: Any) -> None:
    seen = trained(stock, max_epochs=1)
    assert sorted(chain(*seen)) == list(range(N))


@forks
def test_accelerate_sees_every_sample_once(stock: Any) -> None:
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")
    seen = [batch["number"].tolist() for batch in accelerate.Accelerator(cpu=True).prepare(stock)]
    assert sorted(chain(*seen)) == list(range(N))


def test_lightning_goes_from_epoch_to_epoch(loader: Any) -> None:
    assert trained(loader, max_epochs=3) == [*batches(0), *batches(1), *batches(2)]


def test_lightning_gets_other_batches_in_each_epoch_that_it_leaves_early(loader: Any) -> None:
    seen = trained(loader, max_epochs=3, limit_train_batches=2)
    assert seen == [*batches(0)[:2], *batches(1)[:2], *batches(2)[:2]]


def test_the_sanity_check_of_lightning_takes_nothing_from_validation(loader: Any, numbers: Path) -> None:
    training = MmapLoader(numbers, BATCH, shuffle=True, seed=1)
    validated: list[list[int]] = []
    trained(training, validation=loader, validated=validated, max_epochs=2, num_sanity_val_steps=2)
    assert validated == [*batches(0)[:2], *batches(0), *batches(1)]
    validated.clear()
    trained(training, validation=loader, validated=validated, max_epochs=2, limit_val_batches=3)
    assert validated == [*batches(0)[:2], *batches(0)[:3], *batches(1)[:3]]


def test_ranks_under_lightning_are_not_warned(numbers: Path) -> None:
    options = {"shuffle": True, "shard": ReaderShard(1, 2)}  # what is divided: Lightning sets the epoch
    loader = MmapLoader(numbers, BATCH, **options)
    seen = trained(loader, max_epochs=3, limit_train_batches=2, validation=MmapLoader(numbers, BATCH, **options))
    assert len(seen) == 6
    assert len(set(map(tuple, seen))) == 6


def test_lightning_saves_the_position_and_goes_on_from_it(numbers: Path, tmp_path: Path) -> None:
    seen = trained(MmapLoader(numbers, BATCH, shuffle=True), save=tmp_path / "checkpoint", after=7, max_epochs=3)
    assert len(seen) == 7
    rest = trained(MmapLoader(numbers, BATCH, shuffle=True), saved=tmp_path / "checkpoint", max_epochs=3)
    assert seen + rest == [*batches(0), *batches(1), *batches(2)]


def test_accelerate_takes_both_as_they_are(loader: Any) -> None:
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")
    prepared = accelerate.Accelerator(cpu=True).prepare(loader)
    assert [batch.tolist() for _ in range(2) for batch in prepared] == [*batches(0), *batches(1)]


def test_accelerate_gets_other_batches_in_each_epoch_that_is_left_early(loader: Any) -> None:
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")
    prepared = accelerate.Accelerator(cpu=True).prepare(loader)
    for epoch in range(3):
        if isinstance(loader, DataLoader):  # Accelerate sets its sampler to an epoch that it counts, when one ends
            prepared.set_epoch(epoch)
        assert [batch.tolist() for _, batch in zip(range(2), prepared, strict=False)] == batches(epoch)[:2]


def test_what_divides_batches_itself_gets_those_of_a_single_process(numbers: Path) -> None:
    sampler = OrderBatchSampler(N, BATCH, shuffle=True, shard=ReaderShard())
    assert list(sampler) == batches(0)
