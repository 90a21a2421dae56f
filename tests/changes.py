"""Every operation that changes a map, for every kind of map: what the crash, error and power-cut tests go through.

`CHANGES` has an entry for each kind and each operation that the kind has, by the name `"kind: operation"`.
"""

import itertools
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plain_reader
from mmap_ninja import (
    BytesMmap,
    DenseMmap,
    Mmap,
    RaggedMmap,
    StringsMmap,
    backup,
    np_open_existing,
    open_map,
    upgrade,
    verify,
)
from mmap_ninja._storage import build
from mmap_ninja.errors import MapCorruptError, MapNotFoundError, PartBuiltWarning
from old import run_old
from plain_reader import same

RNG = np.random.default_rng(5)
SMALL = [np.arange(n) + 100 * n for n in (3, 1, 0, 4, 2, 6, 5)]
WIDE = np.arange(6).reshape(2, 3)
TEXTS = ["one", "", "zwölf", "🥧" * 5 + "!", "e", "six", "seven"]
MANY_TEXTS = [f"{text} number {i}".ljust(60) for i in range(12) for text in TEXTS]
METADATA = {"split": "train"}
ORDERED = "dense fortran"  # a layout of format 1, not a kind
LARGE = " large"
_PLACES = 0, 3  # what is assigned


@dataclass(frozen=True)
class Kind:
    """A kind of map, and samples of it.

    `large` samples make several blocks of 1 MiB, which end within samples. `wide` has more axes than all others.
    `in_0_9` says whether mmap_ninja 0.9.0 wrote such maps.
    """

    cls: type[Mmap]
    samples: list
    large: list
    wide: np.ndarray | None = None
    options: dict = field(default_factory=dict)
    in_0_9: bool = True

    @property
    def first(self) -> list:
        """What is there before the rest is added: two batches."""
        return self.samples[: 2 * self.batch_size]

    @property
    def rest(self) -> list:
        return self.samples[len(self.first) :]

    @property
    def batch_size(self) -> int:
        """So that the samples are several batches, each enough to train a dictionary on."""
        return len(self.samples) // 3

    def build(self, folder: Path, samples: list, **options: object) -> Mmap:
        return self.cls.from_generator(folder, iter(samples), self.batch_size, **self.options, **options)

    def changed(self, sample: object) -> object:
        """Another sample of the same size."""
        return sample + sample.dtype.type(100) if isinstance(sample, np.ndarray) else sample[::-1]


def _bytes(*sizes: int) -> list[bytes]:
    return [RNG.bytes(size) for size in sizes]


def _texts(*sizes: int) -> list[str]:
    """Texts of two bytes a character, which zstd does not make much smaller."""
    return ["".join(map(chr, RNG.integers(0x100, 0x800, size))) for size in sizes]


_ZSTD = {"zstd_level": 3}
_SIZES = 700_000, 3, 500_000, 60, 900_000, 0, 9  # bytes, roughly
KINDS = {
    "rows": Kind(RaggedMmap, SMALL, [RNG.integers(0, 1000, size // 8) for size in _SIZES], WIDE),
    "mixed": Kind(
        RaggedMmap,
        [*SMALL[:2], WIDE, *SMALL[2:4], np.array([[7]]), SMALL[4]],
        [RNG.integers(0, 1000, (2, size // 16) if size % 100 else size // 8) for size in _SIZES],
        WIDE.reshape(1, 3, 2, 1),
    ),
    "images": Kind(
        RaggedMmap,
        [RNG.integers(0, 255, shape).astype(np.uint8) for shape in ((5, 2), (3, 4), (0, 4), (1, 1), (2, 0), (4, 4))],
        [RNG.integers(0, 255, (max(size // 500, 1), 500)).astype(np.uint8) for size in _SIZES],
        np.ones((2, 2, 3), np.uint8),
    ),
    "dense": Kind(DenseMmap, [np.array([n, -n]) for n in range(7)], list(RNG.integers(0, 1000, (7, 2, 20_000)))),
    "bytes": Kind(BytesMmap, [text.encode() for text in TEXTS], _bytes(*_SIZES), in_0_9=False),
    "strings": Kind(StringsMmap, TEXTS, _texts(*(size // 2 for size in _SIZES))),
    "zstd strings": Kind(StringsMmap, TEXTS, _texts(*(size * 2 // 3 for size in _SIZES)), options=_ZSTD),
    "zstd bytes": Kind(BytesMmap, [text.encode() for text in TEXTS], _bytes(*_SIZES), options=_ZSTD, in_0_9=False),
    "zstd dictionary": Kind(
        StringsMmap,
        MANY_TEXTS,
        [*MANY_TEXTS, *_texts(*(size * 2 // 3 for size in _SIZES))],
        options={**_ZSTD, "zstd_train_dictionary_size": 256},
    ),
}


def _same(folder: Path) -> Path:
    return folder


@dataclass(frozen=True)
class Change:
    """What is there before, what is done, and the samples before and after; `old` None where there is no map.

    `act` does it to a folder: `opening` gives the handle, or the folder itself, that `call` is done to. `assigned` are
    the samples whose values a crash leaves in either state, or between.
    """

    begin: Callable[[Path], object]
    call: Callable[[Any], object]
    old: list | None
    new: list
    opening: Callable[[Path], object] = _same
    is_build: bool = False  # may leave a part of the new samples, which opens with a warning
    kind: str = "rows"
    operation: str = ""
    assigned: tuple[int, ...] = ()

    @property
    def of(self) -> Kind:
        return KINDS["dense" if self.kind == ORDERED else self.kind]

    def act(self, folder: Path) -> None:
        quietly(lambda folder: self.call(self.opening(folder)), folder)


def quietly(act: Callable[[Any], object], to: object) -> object:
    """Do it without the warnings of the upgrade and of what was never finished."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return act(to)


def nothing(folder: Path) -> None:
    """There is no map to begin with."""


def interrupt(kind: Kind, folder: Path, samples: list) -> None:
    """Begin a build that stops after these samples."""

    def loader():
        yield from samples
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        kind.cls.from_generator(folder, loader(), kind.batch_size, **kind.options)


def unpack(files: dict[str, bytes], folder: Path) -> None:
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)


_MAKE = """
import pickle
import shutil
from pathlib import Path
from mmap_ninja import RaggedMmap, StringsMmap, numpy

make = {"dense": numpy.from_ndarray, "ragged": RaggedMmap.from_lists, "strings": StringsMmap.from_strings}
for name, (kind, samples, options) in pickle.loads(Path("samples.pickle").read_bytes()).items():
    make[kind](name, samples, **options)
"""


@cache
def made_by_0_9() -> dict[str, dict[str, bytes]]:
    """The files of maps that mmap_ninja 0.9.0 itself has written, in one process: of each kind, small and large."""
    given = {}
    for name, kind in KINDS.items():
        for size, samples in (("", kind.first), (LARGE, kind.large)):
            if kind.cls is DenseMmap:
                given[name + size] = ("dense", np.array(samples), {})
                given[ORDERED + size] = ("dense", np.asfortranarray(samples), {})
            elif kind.in_0_9:
                given[name + size] = (kind.cls.kind, samples, kind.options)
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "samples.pickle").write_bytes(pickle.dumps(given))
        run_old(_MAKE, cwd=Path(work))
        return {
            name: {
                str(path.relative_to(Path(work) / name)): path.read_bytes()
                for path in (Path(work) / name).rglob("*")
                if path.is_file()
            }
            for name in given
        }


def tear(layout: str, folder: Path) -> None:
    """What 0.9.0 leaves of a map of this layout when it is killed while it extends: `kind.first` is whole."""
    files = dict(made_by_0_9()[layout])
    files["starts/shape.ninja"] = (len(KINDS[layout].first) + 1).to_bytes(8, "little")
    files["starts/data.ninja"] += files["ends/data.ninja"][-8:]
    unpack(files, folder)


def format_1_column(folder: Path, values: np.ndarray, order: str = "C") -> None:
    """A dense map as mmap_ninja 0.9.0 laid it out."""
    folder.mkdir()
    (folder / "data.ninja").write_bytes(values.tobytes(order))
    (folder / "dtype.ninja").write_text(str(values.dtype))
    (folder / "shape.ninja").write_bytes(np.array(values.shape, "<i8").tobytes())
    (folder / "order.ninja").write_text(order)
    (folder / "type.ninja").write_text("numpy")


def format_1_rows(folder: Path) -> None:
    """`SMALL[:4]` as a ragged map of mmap_ninja 0.9.0."""
    sizes = np.array([len(row) for row in SMALL[:4]])
    format_1_column(folder, np.concatenate(SMALL[:4]))
    (folder / "type.ninja").write_text("ragged")
    (folder / "shapes_are_flat.ninja").write_bytes((1).to_bytes(4, "little"))
    for name, column in {
        "starts": sizes.cumsum() - sizes,
        "ends": sizes.cumsum(),
        "flattened_shapes": sizes,
        "shapes": sizes,
    }.items():
        format_1_column(folder / name, column)


def _operations(kind: Kind, successor: Kind) -> dict[str, Change]:
    """All that can be done to maps of this kind but what is done to those of format 1."""
    cls, build = kind.cls, kind.build
    samples, first, rest, large = kind.samples, kind.first, kind.rest, kind.large
    large_first, large_rest = large[:-4], large[-4:]
    reverse = samples[::-1]

    def made(samples: list) -> Callable[[Path], object]:
        return lambda f: build(f, samples)

    def stopped(f: Path) -> None:
        interrupt(kind, f, first)

    def stopped_beside(f: Path) -> None:
        build(f, reverse)
        interrupt(kind, f, first)

    def extended(f: Path) -> Mmap:
        m = cls(f)
        m.extend(rest, sync=False)
        return m

    def creation(samples: list, **options: object) -> Change:
        return Change(nothing, lambda f: build(f, samples, **options), None, samples, is_build=True)

    def extension(old: list, added: list, **options: object) -> Change:
        return Change(made(old), lambda m: m.extend(added, **options), old, [*old, *added], cls)

    found = {
        "create": creation(samples),
        "create unsynced": creation(samples, sync=False),
        "create over blocks": creation(large),
        "append": Change(made(first), lambda m: m.append(rest[0]), first, [*first, rest[0]], cls),
        "extend": extension(first, rest),
        "extend unsynced": extension(first, rest, sync=False),
        "extend over blocks": extension(large_first, large_rest),
        "flush": Change(made(first), lambda m: m.flush(), first, samples, extended),
        "replace": Change(made(reverse), lambda f: build(f, samples), reverse, samples, is_build=True),
        "replace by another kind": Change(
            made(samples), lambda f: successor.build(f, successor.samples), samples, successor.samples, is_build=True
        ),
        "resume": Change(stopped, lambda f: build(f, samples, resume=True), first, samples, is_build=True),
        "resume beside a map": Change(
            stopped_beside, lambda f: build(f, samples, resume=True), reverse, samples, is_build=True
        ),
        "metadata": Change(made(first), lambda m: setattr(m, "metadata", METADATA), first, first, cls),
    }
    found |= {
        "backup": _backup(made(samples), samples),
        "backup unsynced": _backup(made(samples), samples, sync=False),
        "backup over blocks": _backup(made(large), large),
    }
    if not kind.options:
        found["first append"] = Change(nothing, lambda m: m.append(samples[0]), None, samples[:1], cls, is_build=True)
    if "zstd_train_dictionary_size" not in kind.options:  # a dictionary is trained by what makes a map
        found["extend an empty map"] = replace(extension([], samples), is_build=True)
    if kind.wide is not None:
        wider = [*samples, kind.wide]
        deep = [np.full((1,) * 31, i % 251, samples[0].dtype) for i in range(4_200)]  # 256 bytes each in the index
        before = [*first, *deep[:4_000]]
        over_index_blocks = replace(extension(before, deep[4_000:]), begin=lambda f: cls.from_lists(f, before))
        found["extend over index blocks"] = over_index_blocks
        found["widen"] = Change(made(samples), lambda m: m.append(kind.wide), samples, wider, cls)
        found["create widening"] = creation(wider)
        found["resume widening"] = Change(stopped, lambda f: build(f, wider, resume=True), first, wider, is_build=True)
    if "zstd_level" not in kind.options:
        found["assign"] = _assignment(kind, made(samples), samples)
        found["assign over blocks"] = _assignment(kind, made(large), large)
    if kind.cls is DenseMmap:
        found["assign to the memmap"] = _assignment_to_the_memmap(kind, made(samples), samples)
    return found


def _backup(begin: Callable[[Path], object], samples: list, **options: object) -> Change:
    """A backup of a map beside the folder, into it."""

    def make(folder: Path) -> None:
        shutil.rmtree(folder.with_name("source"), ignore_errors=True)
        begin(folder.with_name("source"))

    return Change(make, lambda f: backup(f.with_name("source"), f, **options), None, samples)


def _assignment(kind: Kind, begin: Callable[[Path], object], samples: list) -> Change:
    """Assign two samples, one of them in the middle, and flush."""
    new = [kind.changed(sample) if i in _PLACES else sample for i, sample in enumerate(samples)]

    def call(m: Mmap | np.memmap) -> None:
        for i in _PLACES:
            m[i] = new[i]
        m.flush()

    return Change(begin, call, samples, new, lambda f: kind.cls(f, mode="r+"), assigned=_PLACES)


def _assignment_to_the_memmap(kind: Kind, begin: Callable[[Path], object], samples: list) -> Change:
    """The same through `np_open_existing`; opening it is what changes the map."""
    change = _assignment(kind, begin, samples)
    return replace(change, opening=_same, call=lambda f: change.call(np_open_existing(f, mode="r+")))


def _operations_on_format_1(layout: str, kind: Kind) -> dict[str, Change]:
    """What is done to a folder that mmap_ninja 0.9.0 has written."""
    first, reverse = kind.first, kind.samples[::-1]
    begin = lambda f: unpack(made_by_0_9()[layout], f)
    begin_large = lambda f: unpack(made_by_0_9()[layout + LARGE], f)
    found = {
        "upgrade": Change(begin, upgrade, first, first),
        "upgrade over blocks": Change(begin_large, upgrade, kind.large, kind.large),
        "extend format 1": Change(begin, lambda m: m.extend(kind.rest), first, kind.samples, kind.cls),
        "replace format 1": Change(begin, lambda f: kind.build(f, reverse), first, reverse, is_build=True),
        "backup format 1": _backup(begin, first),
    }
    if "zstd_level" not in kind.options:
        found["assign to format 1"] = _assignment(kind, begin, first)
    if kind.cls is DenseMmap:
        found["assign to the memmap of format 1"] = _assignment_to_the_memmap(kind, begin, first)
    return found


def _table() -> dict[str, Change]:
    found, cycle = {}, itertools.cycle(KINDS.values())
    next(cycle)
    for name, kind in KINDS.items():
        operations = _operations(kind, next(cycle))
        if kind.in_0_9:
            operations |= _operations_on_format_1(name, kind)
        found |= {(name, operation): change for operation, change in operations.items()}
    on_format_1 = _operations_on_format_1(ORDERED, KINDS["dense"])
    found |= {(ORDERED, operation): change for operation, change in on_format_1.items()}
    return {
        f"{name}: {operation}": replace(change, kind=name, operation=operation)
        for (name, operation), change in found.items()
    }


CHANGES = _table()


def others(m: Mmap) -> list:
    """Samples to write after a crash: they fit the map, and are not what anybody has written before."""
    if m.kind in ("strings", "bytes"):
        texts = ["other", "ß", *(f"other number {i}".ljust(60) for i in range(30))]  # enough to train a dictionary on
        return texts if m.kind == "strings" else [text.encode() for text in texts]
    dtype = m.dtype if len(m) else np.dtype(np.int64)
    shapes = [m[0].shape if len(m) else (2,)] * 2 if m.kind == "dense" else [(11,), (2,)]
    return [np.full(shape, 77 + k, dtype) for k, shape in enumerate(shapes)]


def no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the time: what the kernel has taken outlives a process, synced or not. And save a build's manifest once."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: None)
    monkeypatch.setattr(build, "_SAVE_EVERY", 1e9)  # so that each run makes the same calls


def copied(start: Path, to: Path) -> Path:
    """A fresh copy of a folder, or nothing where there is none."""
    if start.is_dir():
        shutil.copytree(start, to)
    return to


def opened(folder: Path) -> tuple[Mmap | None, bool]:
    """The map, if there is one, and whether it was said to be unfinished."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            m = open_map(folder)
        except MapNotFoundError:
            return None, False
        except MapCorruptError as error:
            if "a backup that was interrupted" not in str(error):
                raise
            return None, False
    return m, any(issubclass(warning.category, PartBuiltWarning) for warning in caught)


def listed(m: Mmap, but: tuple[int, ...] = ()) -> list:
    """The samples, without some of them."""
    return [m[i] for i in range(len(m)) if i not in but]


def check(change: Change, folder: Path, *, may_be_old: bool = True, may_be_new: bool = True) -> list | None:
    """The old samples or the new ones, or an unfinished part of the new ones; every checksum right. Returns them."""
    m, is_part = opened(folder)
    if m is None:
        assert change.old is None
        assert may_be_old
        return None
    findings = verify(folder)
    assert not [finding for finding in findings if finding.kind == "damaged"]
    found = listed(m, change.assigned)
    if is_part:
        assert change.is_build
        assert may_be_old
        assert not (folder / "manifest.json").exists()
        assert same(found, change.new[: len(found)])
        plain_reader.check(folder, "building.json")
        return found
    allowed = [change.old] * may_be_old + [change.new] * may_be_new
    assert any(same(found, but(state, change.assigned)) for state in allowed if state is not None), found
    assert len(m) == len(found) + len(change.assigned)
    assert m.metadata in ({}, METADATA)
    if (folder / "manifest.json").exists():
        plain_reader.check(folder)
        if plain_reader.fields(folder)["files"].get("data", {}).get("checked", True):  # else nobody vouches for them
            for i in change.assigned:
                assert same([m[i]], [change.old[i]]) or same([m[i]], [change.new[i]])
        else:
            assert [finding for finding in findings if finding.kind == "unchecked"]
    return found


def but(samples: list, places: tuple[int, ...]) -> list:
    return [sample for i, sample in enumerate(samples) if i not in places]


def go_on(change: Change, folder: Path) -> None:
    """Whatever is there can be written to again, with other values; a new build leaves nothing over."""
    if change.assigned:
        change.act(folder)
        whole(folder, change.new)
    m, is_part = opened(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what was never finished, of format 1
        if m is not None:
            found, added = listed(m), others(m)
            if is_part:
                change.of.build(folder, [*found, *added], resume=True, sync=False)
            else:
                m.extend(added, sync=False)
            whole(folder, [*found, *added])
    if m is None or change.is_build:
        change.of.build(folder, change.of.samples[::-1], sync=False)
        whole(folder, change.of.samples[::-1])
        assert {path.name for path in folder.iterdir()} == plain_reader.names(folder) | {".lock"}


def whole(folder: Path, expected: list) -> None:
    """A finished map of these samples, its checksums right."""
    m, is_part = opened(folder)
    assert not is_part
    assert m is not None
    assert same(listed(m), expected)
    assert not [finding for finding in verify(folder) if finding.kind == "damaged"]
    if (folder / "type.ninja").exists() and not (folder / "manifest.json").exists():
        return  # a copy of what 0.9.0 has written, which has no checksums
    # A build counts from when its `building.json` says that it is finished, if there was nothing before.
    plain_reader.check(folder, "manifest.json" if (folder / "manifest.json").exists() else "building.json")


def _covering() -> set[str]:
    """Each operation with one kind, in turn; together every kind."""
    operations = list(dict.fromkeys(change.operation for change in CHANGES.values()))
    found = set()
    for k, operation in enumerate(operations):
        names = [name for name, change in CHANGES.items() if change.operation == operation]
        found.add(names[k % len(names)])
    return found


SHORT = _covering()
SHORT_AND_LONG = [pytest.param(name, marks=() if name in SHORT else pytest.mark.long) for name in CHANGES]
