"""MmapLoader and devices: those without values, a fake of CUDA that is late on purpose, and CUDA where there is one."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter for PyTorch needs it")

from torch import Tensor  # noqa: E402

import torch_batches  # noqa: E402
from mmap_ninja import Batches, DenseMmap, RaggedMmap  # noqa: E402
from mmap_ninja_torch import MmapLoader, OrderBatchSampler, Padded  # noqa: E402
from mmap_ninja_torch import device as devices  # noqa: E402
from torch_batches import DENSE, TALL, N, Pair, check_every_position, check_same, plain  # noqa: E402

folder, made, no_thread_is_left = torch_batches.folder, torch_batches.made, torch_batches.no_thread_is_left
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict | list | tuple):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from tensors(part)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), torch.device("cpu", 0)], ids=str)
def test_on_the_cpu_batches_stay_where_they_were_gathered(folder: Path, device: Any, made: list[np.ndarray]) -> None:
    loader = MmapLoader(folder / "dense", 4, device=device, prefetch=0)
    for batch, expected in zip(loader, Batches(folder / "dense", 4), strict=True):
        check_same(batch, expected)
        assert batch.device.type == "cpu"
        assert any(np.shares_memory(batch.numpy(), array) for array in made)


@pytest.mark.parametrize("device", ["meta", torch.device("meta")], ids=repr)
def test_every_tensor_goes_to_the_device(folder: Path, device: Any) -> None:
    source = {
        "padded": folder / "rows",
        "rest": Pair(folder / "rows", (folder / "tall", folder / "dense")),
        "texts": folder / "texts",
    }
    layout = {"padded": "padded", "rest": Pair("list", ("jagged", "list"))}
    here, there = (MmapLoader(source, 4, layout=layout, device=where) for where in (None, device))
    for one, other in zip(here, there, strict=True):
        assert {tensor.device.type for tensor in tensors(other)} == {"meta"}
        assert type(other["padded"]) is Padded
        assert type(other["rest"]) is Pair
        assert other["texts"] == one["texts"]
        assert other["rest"].y[0]._get_max_seqlen() == one["rest"].y[0]._get_max_seqlen()
        pairs = list(zip(tensors(one), tensors(other), strict=True))
        assert len(pairs) == 3 + len(one["texts"]) + 2
        for here_one, there_one in pairs:
            assert (here_one.dtype, here_one.layout, here_one.ndim) == (
                there_one.dtype,
                there_one.layout,
                there_one.ndim,
            )
            assert here_one.is_nested or here_one.shape == there_one.shape


def test_a_batch_transform_sees_the_batch_before_it_goes_to_the_device(folder: Path) -> None:
    seen = []
    loader = MmapLoader(folder / "dense", 4, device="meta", batch_transform=lambda batch: seen.append(batch) or [batch])
    assert {tensor.device.type for batch in loader for tensor in batch} == {"meta"}
    assert np.array_equal(torch.cat(seen).numpy(), DENSE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here, which pinned memory is for")
def test_pinned_memory_without_a_cuda_device_warns_and_works(folder: Path) -> None:
    with pytest.warns(UserWarning, match="pin_memory=True does nothing: there is no CUDA device here") as caught:
        loader = MmapLoader(folder / "dense", 4, pin_memory=True)
    assert caught[0].filename == __file__
    for batch, expected in zip(loader, Batches(folder / "dense", 4), strict=True):
        check_same(batch, expected)


# --- the way to a CUDA device, without one


class Host(Tensor):
    """A tensor that a copy to the fake device can be made of."""

    fake: FakeCuda

    def to(self, device: Any, *, non_blocking: bool) -> Tensor:
        assert (device.type, non_blocking) == ("cuda", True)
        return self.fake.copy(self)


class Device(Tensor):
    """Its copy there: of no use until the copy was made, in memory of the stream that it was made on."""

    users: list[Any]
    is_cpu = False

    def record_stream(self, stream: Any) -> None:
        self.users.append(stream)


class FakeStream:
    def __init__(self, fake: FakeCuda, name: str) -> None:
        self.fake, self.name = fake, name

    def record_event(self) -> FakeEvent:
        return FakeEvent(self.fake)

    def wait_event(self, event: FakeEvent) -> None:
        self.fake.waited.append(event.number)
        assert self.name == "main", "the stream of the copies waits for itself"
        if self.fake.is_fast:
            self.fake.finish(event.number)

    def synchronize(self) -> None:
        assert self.name == "side"
        self.fake.finish(self.fake.begun)
        self.fake.synchronized += 1


class FakeEvent:
    """Done when all copies are that were begun before it was recorded."""

    def __init__(self, fake: FakeCuda) -> None:
        self.fake, self.number = fake, fake.begun

    def query(self) -> bool:
        return self.fake.done >= self.number


class FakeCuda:
    """Copies that are made when somebody waits for them, as those of `torch.cuda` may be, out of host memory that has
    to be there still."""

    def __init__(self, is_fast: bool) -> None:
        self.is_fast = is_fast
        self.begun = self.done = self.synchronized = 0
        self.under_way: deque[tuple[Any, Tensor]] = deque()
        self.hosts: list[Any] = []
        self.waited: list[int] = []
        self.main, self.current = FakeStream(self, "main"), FakeStream(self, "main")

    def Stream(self, device: Any) -> FakeStream:
        return FakeStream(self, "side")

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def current_stream(self, device: Any) -> FakeStream:
        return self.current

    def copy(self, host: Tensor) -> Tensor:
        assert self.current.name == "side", "a copy on the stream that computes"
        there = torch.full(host.shape, -1, dtype=host.dtype).as_subclass(Device)
        there.users = []
        self.begun += 1
        self.hosts.append(weakref.ref(host))
        self.under_way.append((self.hosts[-1], there))
        return there

    def finish(self, number: int) -> None:
        while self.done < number:
            host, there = self.under_way.popleft()
            assert host() is not None, "host memory was given away while a copy out of it was under way"
            there.as_subclass(Tensor).copy_(host().as_subclass(Tensor))
            self.done += 1

    def held(self) -> int:
        return sum(host() is not None for host in self.hosts)


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(request.param)
    monkeypatch.setattr(Host, "fake", fake, raising=False)
    names = {name: getattr(torch, name) for name in ("device", "empty", "jagged", "nested", "strided")}
    monkeypatch.setattr(devices, "torch", SimpleNamespace(cuda=fake, **names))
    devices._side_stream.cache_clear()
    monkeypatch.setattr(devices, "device_of", torch.device)
    monkeypatch.setattr(devices, "memory", lambda pin_memory, device: devices.empty)
    return fake


def hosted(batch: Tensor) -> Tensor:
    return batch.as_subclass(Host)


def on_fake(folder: Path, **options: Any) -> MmapLoader:
    return MmapLoader(folder / "numbers", 4, shuffle=True, device="cuda:0", batch_transform=hosted, **options)


def values(batch: Tensor, fake: FakeCuda, number: int) -> list[int]:
    """The values of batch `number`, counted from 1, which the stream that uses them has waited for."""
    assert fake.waited[-1] >= number
    assert [stream.name for stream in batch.users] == ["main"], "the allocator has to know who uses the memory"
    fake.finish(fake.waited[-1])
    return batch.tolist()


@pytest.mark.parametrize("name", ["rows", "images"])
def test_a_list_goes_to_a_device_in_one_copy(folder: Path, name: str) -> None:
    for batch in MmapLoader(folder / name, 4, device="meta"):
        assert len({id(tensor._base) for tensor in batch}) == 1
    expected = list(MmapLoader(folder / name, 4))
    for batch, sent in zip(expected, devices.sent(iter(expected), torch.device("cpu")), strict=True):
        assert all(torch.equal(one, other) and one.shape == other.shape for one, other in zip(batch, sent, strict=True))


def lists_of_parts() -> dict[str, list[Any]]:
    whole = torch.arange(12.0)
    return {
        "not all of it": list(whole.split(3))[1:],
        "twice": [*whole.split(6), whole[:0], whole[:6]],
        "other dtypes": [whole[:6], whole[6:].view(torch.int32)],
        "not contiguous": list(torch.arange(12).view(3, 4).t().unbind(0)),
        "others": [torch.ones(2), "text", torch.zeros(0), None],
        "nothing": [],
    }


@pytest.mark.parametrize("name", lists_of_parts())
def test_a_list_of_other_tensors_goes_to_a_device_one_by_one(name: str) -> None:
    given = lists_of_parts()[name]
    (sent,) = devices.sent(iter([given]), torch.device("cpu"))
    assert len(sent) == len(given)
    for one, other in zip(given, sent, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("prefetch", [0, 2])
def test_each_batch_goes_to_cuda_once_in_order_and_one_ahead(folder: Path, fake: FakeCuda, prefetch: int) -> None:
    loader, expected = on_fake(folder, prefetch=prefetch), list(OrderBatchSampler(N, 4, shuffle=True))
    found = []
    for number, batch in enumerate(loader, 1):
        assert fake.begun == min(number + 1, 6)
        assert loader.state_dict()["samples_seen"] == min(4 * number, N)
        found.append(values(batch, fake, number))
    assert found == expected
    assert fake.synchronized == 1


def test_a_look_at_the_first_batch_is_on_cuda_when_it_comes(folder: Path, fake: FakeCuda) -> None:
    loader, order = on_fake(folder), OrderBatchSampler(N, 4, shuffle=True)
    for epoch in range(2):
        seen = (fake.begun, fake.synchronized, loader.state_dict())
        peeked = loader.peek()
        assert (fake.begun, fake.synchronized, loader.state_dict()) == (seen[0] + 1, seen[1] + 1, seen[2])
        assert (fake.held(), fake.done) == (0, fake.begun)
        assert peeked.tolist() == next(iter(order))
        running = iter(loader)
        next(running)
        running.close()
        assert loader.epoch == epoch


def test_host_memory_is_held_until_its_copy_was_made(folder: Path, fake: FakeCuda) -> None:
    fake.is_fast = False
    running = iter(on_fake(folder, prefetch=0))
    for number in range(1, 5):
        next(running)
        assert fake.held() == number + 1  # none of the copies was made yet
    fake.finish(fake.begun)
    next(running)
    assert fake.held() <= 2  # the last one that was copied, and the one that was just begun


def test_leaving_early_waits_for_the_copies_under_way(folder: Path, fake: FakeCuda) -> None:
    running = iter(on_fake(folder))
    next(running), next(running)
    running.close()
    assert (fake.synchronized, fake.done) == (1, fake.begun)
    assert fake.held() == 0


def test_batches_on_cuda_that_are_kept_do_not_change(folder: Path, fake: FakeCuda) -> None:
    kept = list(on_fake(folder))
    assert [batch.tolist() for batch in kept] == list(OrderBatchSampler(N, 4, shuffle=True))


def test_going_on_from_every_position_on_cuda(folder: Path, fake: FakeCuda) -> None:
    fake.is_fast = True
    check_every_position(lambda: on_fake(folder))
    check_every_position(lambda: on_fake(folder, drop_last=True, prefetch=0))


def test_an_error_comes_in_its_turn_on_cuda(folder: Path, fake: FakeCuda) -> None:
    def fail(batch: Tensor) -> Tensor:
        if batch[0] == 12:
            raise KeyError("on purpose")
        return hosted(batch)

    loader = MmapLoader(folder / "numbers", 4, device="cuda", batch_transform=fail)
    running, found = iter(loader), []
    with pytest.raises(KeyError, match="on purpose"):
        found.extend(values(batch, fake, number) for number, batch in enumerate(running, 1))
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert loader.state_dict()["samples_seen"] == 12
    assert fake.synchronized == 1


# --- CUDA


@cuda
def test_batches_on_cuda_are_those_of_the_cpu(folder: Path) -> None:
    source = {"x": (folder / "rows", folder / "dense"), "texts": folder / "texts"}
    for layout in ("list", "padded"):
        here, there = (MmapLoader(source, 4, layout=layout, shuffle=True, device=where) for where in (None, "cuda"))
        for _ in range(2):
            for one, other in zip(here, there, strict=True):
                assert {str(tensor.device) for tensor in tensors(other)} == {f"cuda:{torch.cuda.current_device()}"}
                check_same(plain(other), plain(one))


@cuda
def test_batches_are_gathered_into_pinned_memory_for_cuda(folder: Path) -> None:
    seen = []
    options = {"batch_transform": lambda batch: seen.append(batch.is_pinned()) or batch}
    for given, device, expected in (
        (None, "cuda", True),
        (True, None, True),
        (False, "cuda", False),
        (None, None, False),
    ):
        seen.clear()
        batches = list(MmapLoader(folder / "dense", 4, pin_memory=given, device=device, **options))
        assert seen == [expected] * 6
        assert np.array_equal(torch.cat(batches).cpu().numpy(), DENSE)


@cuda
@pytest.mark.parametrize("layout", ["padded", "jagged", "stack"])
def test_batches_on_cuda_may_be_kept(tmp_path: Path, layout: str) -> None:
    samples = np.random.default_rng(0).integers(0, 255, (80, 250_000), np.uint8)
    RaggedMmap.from_lists(tmp_path / "m", list(samples))
    DenseMmap.from_ndarray(tmp_path / "numbers", np.arange(len(samples)))
    loader = MmapLoader((tmp_path / "m", tmp_path / "numbers"), 4, layout=layout, shuffle=True, device="cuda")
    kept = [batch for _ in range(3) for batch in loader]
    assert len(kept) == 60
    for batch, numbers in kept:
        found = {"padded": lambda b: b.values, "jagged": lambda b: b.values().view(4, -1), "stack": lambda b: b}
        assert np.array_equal(found[layout](batch).cpu().numpy(), samples[numbers.cpu().numpy()])


@cuda
def test_batches_on_cuda_are_safe_on_another_stream(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 255, (80, 1_000_000), np.uint8)
    m = DenseMmap.from_ndarray(tmp_path / "m", samples)
    sums = []
    with torch.cuda.stream(torch.cuda.Stream()):
        for batch in MmapLoader(m, 4, device="cuda"):
            torch.cuda._sleep(10_000_000)  # the stream is far behind when the batch is let go of
            sums.append(batch.sum(dim=1, dtype=torch.int64))
            del batch
    torch.cuda.synchronize()
    assert torch.cat(sums).tolist() == samples.sum(axis=1, dtype=np.int64).tolist()


@cuda
def test_the_state_counts_what_was_handed_out_on_cuda(folder: Path) -> None:
    loader = MmapLoader(folder / "numbers", 4, device="cuda")
    for number, batch in enumerate(loader, 1):
        assert loader.state_dict()["samples_seen"] == min(4 * number, N)
        assert batch[-1] == min(4 * number, N) - 1
    check_every_position(lambda: MmapLoader(folder / "numbers", 4, shuffle=True, device="cuda"))


@cuda
def test_jagged_batches_on_cuda_go_through_a_model(folder: Path) -> None:
    linear = torch.nn.Linear(6, 3).cuda()
    for k, batch in enumerate(MmapLoader(folder / "tall", 3, layout="jagged", device="cuda")):
        part = TALL[3 * k : 3 * k + 3]
        sizes = list(map(len, part))
        assert (batch.is_nested, batch.layout, batch.device.type) == (True, torch.jagged, "cuda")
        assert batch.offsets().device.type == "cuda"
        assert (batch._get_min_seqlen(), batch._get_max_seqlen()) == (min(sizes), max(sizes))
        for one, rows in zip(linear(batch).unbind(), part, strict=True):
            assert torch.allclose(one, linear(torch.from_numpy(rows).cuda()), atol=1e-5)
