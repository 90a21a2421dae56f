"""Large samples of a build, which are written when they arrive, before their batch is complete."""

import errno
import os
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import plain_reader
from faults import Disk, Strike, killed_at, recorded, tree
from mmap_ninja import DenseMmap, Mmap, RaggedMmap, open_map, verify
from mmap_ninja.errors import MapNotFoundError, PartBuiltWarning, SampleError, SampleTypeError
from plain_reader import same

CLASSES = [DenseMmap, RaggedMmap]
SIZE = 6_000  # float64 elements, 48 kB


def values(count: int, start: int = 0) -> list[np.ndarray]:
    return [np.full(SIZE, float(i)) for i in range(start, start + count)]


def again(count: int) -> Iterator[np.ndarray]:
    """As `values`, in one buffer."""
    buffer = np.zeros(SIZE)
    for i in range(count):
        buffer[:] = i
        yield buffer


def then(samples: Iterator[np.ndarray], last: object) -> Iterator[object]:
    yield from samples
    yield last


@pytest.mark.parametrize("batch_size", [30, 100])
@pytest.mark.parametrize("cls", CLASSES)
def test_one_buffer_for_all(tmp_path: Path, cls: type[Mmap], batch_size: int) -> None:
    made = cls.from_generator(tmp_path / "a", again(100), batch_size)
    assert same(list(made), values(100))
    cls.from_ndarray(tmp_path / "b", np.stack(values(100))) if cls is DenseMmap else cls.from_lists(
        tmp_path / "b", values(100)
    )
    found, expected = ({**tree(tmp_path / folder), "manifest.json": b""} for folder in "ab")
    assert found == expected
    plain_reader.check(tmp_path / "a")
    assert verify(tmp_path / "a") == []


@pytest.mark.parametrize("cls", CLASSES)
def test_samples_of_all_sizes_dtypes_and_layouts_come_out_in_their_order(tmp_path: Path, cls: type[Mmap]) -> None:
    def kind(i: int) -> np.ndarray:
        row = np.full((SIZE, 2), i)
        made = [row, row.astype("f4"), row[::-1], np.asfortranarray(row), row.astype(">i8")][i % 5]
        return made[: i % 7] if cls is RaggedMmap and i % 3 == 0 else made

    samples = [kind(i) for i in range(90)]
    made = cls.from_generator(tmp_path / "map", iter(samples), 40)
    assert same(list(made), [sample.astype("i8") for sample in samples])
    plain_reader.check(tmp_path / "map")


@pytest.mark.parametrize("bad", ["text", np.full(SIZE + 1, 0.5)], ids=["type", "shape"])
def test_a_bad_sample_late_in_a_batch_leaves_nothing_of_it(tmp_path: Path, bad: object) -> None:
    cls = DenseMmap
    with pytest.raises((SampleError, SampleTypeError), match=r"sample 79 \(item 39 of this batch\)"):
        cls.from_generator(tmp_path / "map", then(again(79), bad), 40)
    with pytest.warns(PartBuiltWarning, match="has the 40 samples"):
        part = open_map(tmp_path / "map")
    assert same(list(part), values(40))
    file = part._opened().manifest.files["data"]
    assert os.path.getsize(tmp_path / "map" / file.name) == file.end
    assert os.path.getsize(tmp_path / "map" / file.crc_name) == file.size // (1 << 20) * 4
    made = cls.from_generator(tmp_path / "map", again(90), 40, resume=True)
    assert same(list(made), values(90))
    assert verify(tmp_path / "map") == []


@pytest.mark.parametrize("cls", CLASSES)
def test_a_bad_sample_late_in_the_first_batch_leaves_no_build(tmp_path: Path, cls: type[Mmap]) -> None:
    with pytest.raises(SampleTypeError, match=r"sample 79 \(item 79 of this batch\)"):
        cls.from_generator(tmp_path / "map", then(again(79), "text"), 100)
    assert set(tree(tmp_path / "map")) == {".lock"}
    with pytest.raises(MapNotFoundError):
        open_map(tmp_path / "map")
    old = cls.from_generator(tmp_path / "map", again(3), 100)
    before = tree(tmp_path / "map")
    with pytest.raises(SampleTypeError):
        cls.from_generator(tmp_path / "map", then(again(79), "text"), 100)
    assert tree(tmp_path / "map") == before
    assert same(list(old), values(3))


def test_a_few_large_samples_and_a_bad_one_leave_no_trace(tmp_path: Path) -> None:
    with pytest.raises(SampleTypeError):
        RaggedMmap.from_generator(tmp_path / "map", then(again(20), "text"), 100)
    assert not (tmp_path / "map").exists()


def test_samples_of_no_axes_are_still_told_from_others(tmp_path: Path) -> None:
    scalar = np.zeros((), "S40000")
    with pytest.raises(SampleError, match=r"sample 50 .*shape \(1,\), expected \(\)"):
        DenseMmap.from_generator(tmp_path / "map", iter([*[scalar] * 50, scalar[None]]), 100)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_build_killed_within_a_batch_is_resumed_from_the_one_before(tmp_path: Path, cls: type[Mmap]) -> None:
    def build(name: str, **options: bool) -> Mmap:
        return cls.from_generator(tmp_path / name, again(60), 25, **options)

    calls = recorded(lambda: build("recorded")).calls
    at = [k for k, call in enumerate(calls) if call.function == "write_at" and call.name.startswith("data")]
    assert len(at) > 40
    for k, struck in enumerate(at[3::9]):
        killed_at(Strike(struck), lambda k=k: build(f"killed {k}"))
        try:
            with pytest.warns(PartBuiltWarning):
                part = open_map(tmp_path / f"killed {k}")
        except MapNotFoundError:
            continue
        assert len(part) in (0, 25, 50, 60)
        assert same(list(part), values(len(part)))
        assert same(list(build(f"killed {k}", resume=True)), values(60))
        assert verify(tmp_path / f"killed {k}") == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full", "interrupt"])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_build_of_which_a_call_fails_is_resumed(tmp_path: Path, cls: type[Mmap], error: BaseException) -> None:
    """From a whole batch, with the room of the next one given back."""

    def build(name: str, **options: bool) -> Mmap:
        return cls.from_generator(tmp_path / name, again(60), 25, **options)

    def fail() -> None:
        raise error

    strikes = [s for s in recorded(lambda: build("recorded")).strikes() if s.at > 5]
    for k, strike in enumerate(strikes[::7]):
        name = f"failed {k}"
        with Disk(strike, fault=fail).installed(), suppress(type(error)):
            build(name)
        with warnings.catch_warnings(), suppress(MapNotFoundError):
            warnings.simplefilter("ignore", PartBuiltWarning)
            part = open_map(tmp_path / name)
            assert len(part) in (0, 25, 50, 60)
            assert same(list(part), values(len(part)))
        assert same(list(build(name, resume=True)), values(60))
        assert verify(tmp_path / name) == []


def peak(act: Callable[[], object]) -> int:
    """The most bytes that were allocated at once."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cls", CLASSES)
def test_a_batch_of_large_samples_is_not_in_memory(tmp_path: Path, cls: type[Mmap]) -> None:
    """Of 19 MB."""
    assert peak(lambda: cls.from_generator(tmp_path / "map", again(400), 400)) < 12 << 20
    samples = values(400)
    assert peak(lambda: cls.from_generator(tmp_path / "list", samples, 400)) < 2 << 20
    assert peak(lambda: cls.from_indexable(tmp_path / "indexable", samples, 400)) < 2 << 20
