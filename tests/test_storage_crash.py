"""Killed, out of space or interrupted at every call that changes the disk: the old samples or the new ones.

Each change below is first done and recorded, then done again in a fresh copy of its folder for every call of it.
"""

import errno
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import plain_reader
from faults import Disk, Strike, killed_at, recorded
from mmap_ninja import BytesMmap, DenseMmap, Mmap, RaggedMmap, StringsMmap, open_map, upgrade
from mmap_ninja.errors import MapNotFoundError, PartBuiltWarning, SyncError
from plain_reader import same

RNG = np.random.default_rng(5)
ROWS = [RNG.integers(0, 1000, size) for size in (60_000, 3, 0, 80_000, 7, 130_000, 2, 9)]  # blocks end in between
SMALL = [np.arange(n) + 100 * n for n in (3, 1, 0, 4, 2, 6, 5)]
DENSE = [np.array([n, -n]) for n in range(7)]
TEXTS = ["one", "", "zwölf", "🥧" * 5, "e", "six", "seven"]
BYTES = [text.encode() for text in TEXTS]
OTHER = {
    "ragged": (RaggedMmap, [np.arange(11) - 50, np.arange(2)]),
    "dense": (DenseMmap, [np.array([500, 501]), np.array([502, 503])]),
    "strings": (StringsMmap, ["other", "ß"]),
    "bytes": (BytesMmap, [b"other", b"\0\xff"]),
}


def build(cls: type[Mmap], folder: Path, samples: list, batch_size: int = 4, **options: object) -> Mmap:
    return cls.from_generator(folder, iter(samples), batch_size, **options)


def nothing(folder: Path) -> None:
    """There is no map to begin with."""


def made(cls: type[Mmap], samples: list) -> Callable[[Path], object]:
    return lambda folder: build(cls, folder, samples)


def interrupted(cls: type[Mmap], samples: list, beside: list | None = None) -> Callable[[Path], None]:
    """A build that stopped after these samples, beside a finished map or not."""

    def begin(folder: Path) -> None:
        if beside is not None:
            build(cls, folder, beside)

        def loader():
            yield from samples
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            cls.from_generator(folder, loader(), 1)

    return begin


def format_1_column(folder: Path, values: np.ndarray, order: str = "C") -> None:
    """A dense map as mmap_ninja 0.9.0 laid it out."""
    folder.mkdir()
    (folder / "data.ninja").write_bytes(values.tobytes(order))
    (folder / "dtype.ninja").write_text(str(values.dtype))
    (folder / "shape.ninja").write_bytes(np.array(values.shape, "<i8").tobytes())
    (folder / "order.ninja").write_text(order)
    (folder / "type.ninja").write_text("numpy")


def format_1_rows(folder: Path) -> None:
    """`SMALL` as a ragged map of mmap_ninja 0.9.0."""
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


@dataclass(frozen=True)
class Change:
    """What is there before, what is done, and the samples before and after; `old` None where there is no map."""

    begin: Callable[[Path], object]
    act: Callable[[Path], object]
    old: list | None
    new: list
    is_build: bool = False  # may leave a part of the new samples, which opens with a warning
    kind: str = "ragged"


WIDE = np.arange(6).reshape(2, 3)
CHANGES = {
    "create": Change(nothing, lambda f: build(RaggedMmap, f, SMALL), None, SMALL, is_build=True),
    "create mixed": Change(
        nothing, lambda f: build(RaggedMmap, f, [*SMALL, WIDE]), None, [*SMALL, WIDE], is_build=True
    ),
    "create over blocks": Change(nothing, lambda f: build(RaggedMmap, f, ROWS), None, ROWS, is_build=True),
    "first append": Change(nothing, lambda f: RaggedMmap(f).append(SMALL[0]), None, SMALL[:1], is_build=True),
    "extend": Change(made(RaggedMmap, SMALL[:4]), lambda f: RaggedMmap(f).extend(SMALL[4:]), SMALL[:4], SMALL),
    "extend unsynced": Change(
        made(RaggedMmap, SMALL[:4]), lambda f: RaggedMmap(f).extend(SMALL[4:], sync=False), SMALL[:4], SMALL
    ),
    "extend over blocks": Change(made(RaggedMmap, ROWS[:3]), lambda f: RaggedMmap(f).extend(ROWS[3:]), ROWS[:3], ROWS),
    "append": Change(made(RaggedMmap, SMALL[:4]), lambda f: RaggedMmap(f).append(SMALL[4]), SMALL[:4], SMALL[:5]),
    "widen": Change(made(RaggedMmap, SMALL), lambda f: RaggedMmap(f).append(WIDE), SMALL, [*SMALL, WIDE]),
    "replace": Change(
        made(RaggedMmap, SMALL[::-1]), lambda f: build(RaggedMmap, f, SMALL), SMALL[::-1], SMALL, is_build=True
    ),
    "resume": Change(
        interrupted(RaggedMmap, SMALL[:3]),
        lambda f: build(RaggedMmap, f, SMALL, resume=True),
        SMALL[:3],
        SMALL,
        is_build=True,
    ),
    "resume mixed": Change(
        interrupted(RaggedMmap, SMALL[:3]),
        lambda f: build(RaggedMmap, f, [*SMALL, WIDE], resume=True),
        SMALL[:3],
        [*SMALL, WIDE],
        is_build=True,
    ),
    "resume beside a map": Change(
        interrupted(RaggedMmap, SMALL[:3], beside=SMALL[::-1]),
        lambda f: build(RaggedMmap, f, SMALL, resume=True),
        SMALL[::-1],
        SMALL,
        is_build=True,
    ),
    "upgrade": Change(format_1_rows, upgrade, SMALL[:4], SMALL[:4]),
    "extend format 1": Change(format_1_rows, lambda f: RaggedMmap(f).extend(SMALL[4:]), SMALL[:4], SMALL),
    "dense create": Change(nothing, lambda f: build(DenseMmap, f, DENSE), None, DENSE, is_build=True, kind="dense"),
    "dense extend": Change(
        made(DenseMmap, DENSE[:4]), lambda f: DenseMmap(f).extend(DENSE[4:]), DENSE[:4], DENSE, kind="dense"
    ),
    "dense upgrade": Change(
        lambda f: format_1_column(f, np.asfortranarray(DENSE), "F"), upgrade, DENSE, DENSE, kind="dense"
    ),
    "strings extend": Change(
        made(StringsMmap, TEXTS[:4]), lambda f: StringsMmap(f).extend(TEXTS[4:]), TEXTS[:4], TEXTS, kind="strings"
    ),
    "strings replace": Change(
        made(StringsMmap, TEXTS[::-1]),
        lambda f: build(StringsMmap, f, TEXTS, 7),
        TEXTS[::-1],
        TEXTS,
        is_build=True,
        kind="strings",
    ),
    "zstd create": Change(
        nothing, lambda f: build(StringsMmap, f, TEXTS, 3, zstd_level=3), None, TEXTS, is_build=True, kind="strings"
    ),
    "bytes extend": Change(
        made(BytesMmap, BYTES[:4]), lambda f: BytesMmap(f).extend(BYTES[4:]), BYTES[:4], BYTES, kind="bytes"
    ),
}
SOME = ["create mixed", "extend over blocks", "widen", "replace", "resume", "dense upgrade"]


@dataclass
class Trial:
    """A change, the folder that it starts from, and the calls that it makes."""

    change: Change
    start: Path
    double: Disk
    work: Path

    def folder(self, strike: Strike) -> Path:
        """A fresh copy of the start."""
        folder = self.work / f"{strike.at} {strike.moment}"
        if self.start.is_dir():
            shutil.copytree(self.start, folder)
        return folder

    def act(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the upgrade, of what was never finished
            self.change.act(folder)


@pytest.fixture
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> Trial:
    change = CHANGES[request.param]
    change.begin(tmp_path / "start")
    if (tmp_path / "start").is_dir():
        shutil.copytree(tmp_path / "start", tmp_path / "whole")
    found = Trial(change, tmp_path / "start", Disk(), tmp_path)
    found.double = recorded(lambda: found.act(tmp_path / "whole"))
    assert len(found.double.calls) > 8
    check(change, tmp_path / "whole", is_done=True)
    return found


def opened(folder: Path) -> tuple[Mmap | None, bool]:
    """The map, if there is one, and whether it was said to be unfinished."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            m = open_map(folder)
        except MapNotFoundError:
            return None, False
    return m, any(issubclass(warning.category, PartBuiltWarning) for warning in caught)


def check(change: Change, folder: Path, *, is_done: bool = False, may_be_new: bool = True) -> tuple[Mmap | None, bool]:
    """The old state or the new one, or an unfinished part of the new one, its checksums right."""
    m, is_part = opened(folder)
    if m is None:
        assert not is_done
        assert change.old is None
        return m, is_part
    found = [m[i] for i in range(len(m))]
    if is_part:
        assert not is_done
        assert change.is_build
        assert same(found, change.new[: len(found)])
        plain_reader.check(folder, "building.json")
        return m, is_part
    allowed = [change.new] if is_done else [state for state in (change.old, change.new) if state is not None]
    if not may_be_new:
        allowed = [state for state in (change.old,) if state is not None]
    assert any(same(found, state) for state in allowed), found
    if (folder / "manifest.json").exists():
        plain_reader.check(folder)
    return m, is_part


def go_on(change: Change, folder: Path) -> None:
    """Whatever is there can be written to again, with other values; a new build leaves nothing over."""
    m, is_part = check(change, folder)
    cls, other = OTHER[change.kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what was never finished, of format 1
        if m is not None:
            found = [m[i] for i in range(len(m))]
            if is_part:
                codec = m._snapshot.manifest.codec
                options = {} if codec is None else {"zstd_level": codec.level}
                build(cls, folder, [*found, *other], resume=True, sync=False, **options)
            else:
                m.extend(other, sync=False)
            whole(folder, found + other)
    if m is None or change.is_build:
        build(cls, folder, other, sync=False)
        whole(folder, other)
        left = {path.name for path in folder.iterdir()} - plain_reader.names(folder)
        assert left <= {".lock", "manifest.json.new"}


def whole(folder: Path, expected: list) -> None:
    m, is_part = opened(folder)
    assert not is_part
    assert same([m[i] for i in range(len(m))], expected)
    plain_reader.check(folder)


@pytest.mark.parametrize("trial", CHANGES, indirect=True)
def test_killed_at_every_call(trial: Trial) -> None:
    for strike in trial.double.strikes(seen=trial.change not in (CHANGES["extend"], CHANGES["replace"])):
        folder = trial.folder(strike)
        killed_at(strike, lambda folder=folder: trial.act(folder))
        go_on(trial.change, folder)


@pytest.mark.parametrize("trial", ["first append"], indirect=True)
def test_a_first_append_that_was_killed_can_be_done_again(trial: Trial) -> None:
    """It is no build that anybody would resume."""
    for strike in trial.double.strikes(seen=True):
        folder = trial.folder(strike)
        killed_at(strike, lambda folder=folder: trial.act(folder))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartBuiltWarning)
            RaggedMmap(folder).append(SMALL[3])
        m, is_part = opened(folder)
        assert not is_part
        assert same(m[:], [SMALL[3]]) or same(m[:], [SMALL[0], SMALL[3]])


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("trial", SOME, indirect=True)
@pytest.mark.parametrize("fault", [no_space, interrupt])
def test_an_error_at_every_call(trial: Trial, fault: Callable[[], None]) -> None:
    calls, change = trial.double.calls, trial.change
    commit = max(at for at, call in enumerate(calls) if call[:2] == ("replace", "manifest.json"))
    had_manifest = (trial.start / "manifest.json").exists()  # else a whole build counts before it is renamed
    for strike in trial.double.strikes(after=fault is interrupt):
        folder, surfaced = trial.folder(strike), None
        with Disk(strike, fault).installed():
            try:
                trial.act(folder)
            except (OSError, KeyboardInterrupt) as error:
                surfaced = error
        if surfaced is None:  # only a header may fail and not be missed
            assert calls[strike.at].function == "write_at"
            assert calls[strike.at].offset == 0
        elif fault is no_space:
            assert surfaced.errno == errno.ENOSPC
        is_before = strike.at < commit or (strike.at == commit and strike.moment != "after")
        may_be_new = surfaced is None or not (is_before and had_manifest)
        check(change, folder, is_done=surfaced is None, may_be_new=may_be_new)
        go_on(change, folder)


@pytest.mark.parametrize("fault", [no_space, interrupt])
def test_a_handle_goes_on_after_an_error(tmp_path: Path, fault: Callable[[], None]) -> None:
    build(RaggedMmap, tmp_path / "start", SMALL[:4])
    shutil.copytree(tmp_path / "start", tmp_path / "whole")
    double = recorded(lambda: RaggedMmap(tmp_path / "whole").extend(SMALL[4:]))
    for strike in double.strikes():
        folder = tmp_path / f"{strike.at} {strike.moment}"
        shutil.copytree(tmp_path / "start", folder)
        m = RaggedMmap(folder)
        with Disk(strike, fault).installed(), suppress(OSError, KeyboardInterrupt):
            m.extend(SMALL[4:])
        assert same(m[: len(SMALL[:4])], SMALL[:4])
        before = open_map(folder)[:]
        m.append(WIDE)
        assert same(m[:], [*before, WIDE])
        assert same(open_map(folder)[:], m[:])


def assign(m: RaggedMmap) -> None:
    m[0] = np.array([7_000])
    m[3] = np.array([8_000, 8_001])
    m.flush()


def assigned(folder: Path) -> None:
    """All samples but those assigned are right, and what is vouched for is right too."""
    m = open_map(folder)
    others = [i for i in range(len(SMALL) - 1) if i not in (0, 3)]
    assert same(m[others], [SMALL[1:][i] for i in others])
    assert m.lengths.tolist() == [len(row) for row in SMALL[1:]]
    plain_reader.check(folder)


def test_killed_at_every_call_of_an_assignment(tmp_path: Path) -> None:
    build(RaggedMmap, tmp_path / "start", SMALL[1:])
    shutil.copytree(tmp_path / "start", tmp_path / "whole")
    double = recorded(lambda: assign(RaggedMmap(tmp_path / "whole", mode="r+")))
    assert open_map(tmp_path / "whole")[0].tolist() == [7_000]
    assert plain_reader.fields(tmp_path / "whole")["files"]["data"]["checked"]
    assert len(double.of("write_at")) >= 4
    for strike in double.strikes():
        folder = tmp_path / f"{strike.at} {strike.moment}"
        shutil.copytree(tmp_path / "start", folder)
        killed_at(strike, lambda folder=folder: assign(RaggedMmap(folder, mode="r+")))
        assigned(folder)
        assign(RaggedMmap(folder, mode="r+"))
        assert open_map(folder)[3].tolist() == [8_000, 8_001]
        RaggedMmap(folder).append(SMALL[0])
        assert same(open_map(folder)[-1:], SMALL[:1])


class Syncs:
    """`os.fsync` and `os.fdatasync`, of which number `bad` fails as a bad disk does: once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bad: int | None) -> None:
        self.count, self._bad = 0, bad
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))

    def _failing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            self.count += 1
            if self.count - 1 == self._bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(fd)

        return sync


@pytest.mark.parametrize("bad", range(4))
def test_a_failed_sync_ends_the_writing_of_a_handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    m = build(RaggedMmap, tmp_path / "map", SMALL[:4])
    with monkeypatch.context() as patch:
        Syncs(patch, bad)
        with pytest.raises(SyncError) as caught:
            m.extend(SMALL[4:])
    assert caught.value.errno == errno.EIO
    for call in (lambda: m.append(SMALL[0]), lambda: m.extend(SMALL), lambda: m.__setitem__(0, SMALL[0])):
        with pytest.raises(SyncError, match="open the map again"):
            call()
    found = open_map(tmp_path / "map")[:]
    assert same(found, SMALL if bad == 3 else SMALL[:4])  # only the sync of the folder comes after the commit
    assert same(m[:], SMALL[:4])
    RaggedMmap(tmp_path / "map").append(SMALL[0])
    assert same(open_map(tmp_path / "map")[:], [*found, SMALL[0]])


def test_there_are_four_syncs_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = build(RaggedMmap, tmp_path / "map", SMALL[:4])
    syncs = Syncs(monkeypatch, None)
    m.extend(SMALL[4:])
    assert syncs.count == 4


@pytest.mark.parametrize("bad", range(4))
def test_a_failed_flush_is_not_made_good_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    """The kernel tells of a lost write once; a second sync says nothing about it."""
    m = build(RaggedMmap, tmp_path / "map", SMALL[:4])
    m.extend(SMALL[4:], sync=False)
    Syncs(monkeypatch, bad)
    with pytest.raises(SyncError):
        m.flush()
    with pytest.raises(SyncError):
        m.flush()
    with pytest.raises(SyncError):
        m.append(SMALL[0])


def test_a_failed_sync_of_a_build_is_not_made_good_by_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch, None)

    def loader():
        yield from SMALL
        syncs._bad = syncs.count  # the next one is the first of those at the end

    with pytest.raises(SyncError):
        RaggedMmap.from_generator(tmp_path / "map", loader(), 2)
    with Disk().installed() as double, warnings.catch_warnings():
        warnings.simplefilter("ignore", PartBuiltWarning)
        try:
            build(RaggedMmap, tmp_path / "map", SMALL, resume=True)
        except SyncError:
            return  # refused, which is fine
    # Else the bytes have to be written again: nobody knows whether those that are there are on the disk.
    assert [call for call in double.of("write_at") if call.name.endswith(".npy") and call.offset]


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_build_never_resumes_into_the_files_of_a_map(tmp_path: Path, how: str) -> None:
    """A build that stopped around its commit leaves a `building.json` that names the files of the map itself."""
    whole = recorded(lambda: build(RaggedMmap, tmp_path / "whole", SMALL))
    rename = max(at for at, call in enumerate(whole.calls) if call[:2] == ("replace", "manifest.json"))
    for strike in (Strike(rename), Strike(rename, "after"), Strike(rename + 1)):
        folder = tmp_path / f"{strike.at} {strike.moment}"
        act = lambda folder=folder: build(RaggedMmap, folder, SMALL)
        if how == "killed":
            killed_at(strike, act)
        else:
            with Disk(strike, no_space).installed(), pytest.raises(OSError, match="No space"):
                act()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartBuiltWarning)
            if isinstance(opened(folder)[0], RaggedMmap) and opened(folder)[1]:
                build(RaggedMmap, folder, SMALL, resume=True)  # it was not committed yet
        RaggedMmap(folder).extend(OTHER["ragged"][1])

        def loader():
            yield from SMALL
            yield from [np.zeros(50, np.int64)] * 4
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            RaggedMmap.from_generator(folder, loader(), 1, resume=True)
        assert same(open_map(folder)[:], SMALL + OTHER["ragged"][1])
        plain_reader.check(folder)
