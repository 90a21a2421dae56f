"""Hostile folders: mutants of small maps of every kind and both formats, and everything that a reader does to one.

`mutant(seeds, number)` is a pure function: a failure is reported by its number, and can be made again. What is mutated
is a value of the manifest (sealed with a right checksum), a row of an index, a small file of format 1, a zstd frame, or
plain bytes; the sizes around it are made to agree with it half of the time, or nothing would get past the first check.
"""

import contextlib
import itertools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  all that is imported at the first use, so that any other import is heard
import numpy as np
import numpy.ma  # np.unique
import zstandard  # noqa: F401

import mmap_ninja
from changes import KINDS, interrupt, made_by_0_9, unpack
from mmap_ninja import BytesMmap, DenseMmap, Mmap, RaggedMmap, StringsMmap, np_open_existing, open_existing, open_map
from mmap_ninja._storage.dtypes import parse_dtype
from mmap_ninja.errors import MmapNinjaError, PartBuiltWarning, SampleIndexError, UpgradeWarning
from plain_reader import checked

MANIFESTS = ("manifest.json", "building.json")
ROOM = 1 << 18  # bytes up to which a file is made as large as a mutant claims
ALLOWED = 64 << 20  # bytes that reading any mutant may take
SLOW = 5  # seconds after which one mutant is a hang


class Raw(str):
    """Text that stands in the JSON as it is."""


class Pairs(list):
    """A JSON object in which a key may stand twice."""


def dumped(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict | Pairs):
        pairs = value if isinstance(value, Pairs) else value.items()
        return "{" + ", ".join(f"{dumped(key)}: {dumped(item)}" for key, item in pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dumped, value)) + "]"
    return json.dumps(value)


def sealed(fields: dict | Pairs) -> bytes:
    """A manifest of any content, with the right checksum."""
    return checked(b", " + dumped(fields)[1:].encode("utf-8", "surrogatepass"))


def nested(depth: int, inner: str = "") -> Raw:
    return Raw("[" * depth + inner + "]" * depth)


def nested_dtype(depth: int) -> Raw:
    return Raw('[["a", ' * depth + '"<i4"' + "]]" * depth)


# Hostile values. Packed by hand: one a line would be 300 lines.
# fmt: off
INTS = [-1, 0, 1, 2, 3, 7, 8, 63, 64, 65, 255, 4096, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**61, 2**62, 2**63 - 1,
        2**63, 2**64 - 1, 2**64, 10**30, -(2**31), -(2**63), -(2**64)]
COUNTS = [-1, -2, -8, 0, 1, 2, 5, 63, 64, 65, 2**31, 2**32, 2**53, 2**60, 2**61, 2**62, 2**63 - 8, 2**63 - 1, -(2**63)]
NAMES = """
.. ../data.npy /etc/passwd a/b a/../b . .lock größe manifest.json building.json manifest.json.new building.json.new
data.npy index.npy data a. data.crc zstd.dict data-2.npy index-999999999.npy data-1000000000.npy con - sub data.ninja
""".split()  # noqa: SIM905
NAMES += ["\0", "data.npy\0", "x" * 10_000, "x" * 128]
OTHERS = [True, False, None, 1.0, 0.5, -0.0, 1e308, "", "0", [], {}, [[]], [0], {"a": 1}, [1] * 63, [1] * 64,
          Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("-0"), Raw("9" * 4000), Raw("9" * 5000),
          nested(200), nested(800), nested(10_000), Raw('{"a":' * 300 + "1" + "}" * 300), Raw('"\\ud800"'),
          Raw('"\ud800"')]
SHAPES = [[], [0], [1], [2**62], [2**63 - 1], [0, 2**62], [0, 2**62, 2**62], [2**62, 0], [1] * 31, [1] * 32, [1] * 63,
          [2] * 63, [2, 2**63 - 1], [2**32, 2**32], [-1], [-1, -1], [True], [None], [1.0], [[1]], ["1"], [2**64]]
DTYPES: list[Any] = """
O |O O8 V0 S0 U0 V1 V8 S2147483647 S2147483648 U536870911 U536870912 V2147483647 i4,f4 (2,3)i4 (2,3)i4,f4 (2)i4,i1 2i4
3f8, i4, (1000000000,)i4,i1 a5 c p P g G e m8 M8 M8[ns] M8[99999999999s] M8[s/3] M8[generic] m8[7D] <M8[2147483647Y]
M8[0s] M8[-1s] object str bytes void bool int float complex longdouble float128 intp ? b B1 =i4 <i4 >i4 |i4 |u1 |b1 <u8
<f8 <c16 <f2 <U1 <U3 bfloat16 float8_e4m3fn int4 uint2 ml_dtypes finfo __name__ __doc__ __file__ __path__ __builtins__
__loader__ __dict__ _finfo np numpy.float64 np.float64 StringDType T os.system __import__('os') é rec f3 > < = <<i4 U-1
9999999999999999999i4 i99999999999 M8[ns][ns] S-1 V-5 i4:i4 i4=i4 datetime64[s] timedelta64[ms] float32 uint16 str96
bytes24 void64 int0 bool8 Float64 (
""".split()  # noqa: SIM905
DTYPES += [" <i4", "<i4 ", "<i4\0", "\0", "i4\n", "", ",", "(" * 500, "1" * 1000, "datetime64[ns, UTC]", "i4 , f4",
           "(2, 3)i4, f4", Raw('"\\ud800"'), Raw('"M8[\\ud800]"'), 5, {}, None, True, ["a"], ["<i4"],
           {"names": ["a"], "formats": ["<i4"]}, [], [[]], [["a"]], [["a", "<i4"]], [["a", "O"]], [["a", "|O"]],
           [["a", "V0"]], [["", "<i4"]], [["", "|V4"]], [["", "|V4"], ["a", "<i4"]], [["a", "<i4"], ["a", "<i4"]],
           [["a", "<i4", 5]], [["a", "<i4", [2, 3]]], [[["t", "a"], "<i4"]], [[["t", "t"], "<i4"]], [[5, "<i4"]],
           [[["a", "b", "c"], "<i4"]], [[[], "<i4"]], [[None, "<i4"]], [[["x", "a"], "<i4"], [["x", "b"], "<i4"]],
           [[["b", "a"], "<i4"], ["b", "<i4"]], [[["", "a"], "<i4"]], [["a", ["b"]]], [["a", [["b", "<i4"]]]],
           [["a", [["b", "<i4"]], [2]]], [["a", [["b", "|O"]]]], [["a", "S2147483647"], ["b", "S2147483647"]],
           [["a", "i4,f4"]], [["a", "(2,3)i4,f4"]], [["a", "bfloat16"]], [["a" * 10_000, "<i4"]], [["\0", "<i4"]],
           [[Raw('"\\ud800"'), "<i4"]], [["größe", "<i4"]], [["a", "<M8"]]]
DTYPES += [[["a", "<i4", shape]] for shape in [*SHAPES, [1] * 65, [2**31], [65536, 65536], [1.5], ["x"], [[2]]]]
DTYPES += [nested_dtype(depth) for depth in (20, 100, 200, 320, 700)]
DTYPES += [[[f"f{i}", "|u1"] for i in range(count)] for count in (64, 300)]
SMALL_FILES = ["", "C", "F", "CF", "c", "\n", "numpy", "ragged", "string", "numpy ", "dense", "é", "\0", "0", "-1", "3",
               "22", "23", "99", "1_0", "\u0663", "1e3", "9" * 4096, "9" * 4097, "x" * 5000, " 3 ", "3\n", "-131072"]
FRAME = b"\x28\xb5\x2f\xfd"  # how each zstd frame begins
# fmt: on


@dataclass(frozen=True)
class Seed:
    """A small map that is right, with its files and its samples."""

    name: str
    cls: type[Mmap]
    files: dict[str, bytes]
    samples: list
    options: dict = field(default_factory=dict)

    @property
    def manifest(self) -> str | None:
        return next((name for name in MANIFESTS if name in self.files), None)


class Mutant(NamedTuple):
    """A damaged copy of a seed: the files that differ (None for one that is gone) and what was done to them."""

    number: int
    seed: Seed
    changes: dict[str, bytes | None]
    what: list[str]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def seeds(work: Path) -> list[Seed]:
    """One map of every kind and layout."""
    found = []

    def add(name: str, cls: type[Mmap], samples: list, folder: Path, **options: object) -> None:
        found.append(Seed(name, cls, {k: v for k, v in files_of(folder).items() if k != ".lock"}, samples, options))

    for name, kind in KINDS.items():
        samples = kind.samples[:18]
        options = {"zstd_level": 3} if "zstd_level" in kind.options else {}
        kind.build(work / name, samples if "dictionary" not in name else kind.samples)
        add(name, kind.cls, samples if "dictionary" not in name else kind.samples, work / name, **options)
    for name, array in {
        "flat": np.arange(40.0),
        "texts in an array": np.array(["a", "bc", "", "🥧"]),
        "records": np.zeros(5, [("x", "<f4"), ("y", "<i2", (2,))]),
        "no bytes": np.zeros((4, 0, 3), np.int16),
        "no samples": np.zeros((0, 3)),
    }.items():
        add(name, DenseMmap, list(DenseMmap.from_ndarray(work / name, array)), work / name)
    for name, samples in {
        "scalars": [1, 2, 3],
        "numbers and rows": [1.5, np.arange(3.0), 2.5, np.zeros((2, 0))],
        "small floats": [np.arange(3, dtype=np.float16), np.zeros(4, np.float16)],
        "nothing": [],
    }.items():
        RaggedMmap.from_lists(work / name, samples)
        add(name, RaggedMmap, samples, work / name)
    for name, kind in {
        "part rows": KINDS["rows"],
        "part strings": KINDS["strings"],
        "part dense": KINDS["dense"],
    }.items():
        interrupt(kind, work / name, kind.samples)
        path = work / name / "building.json"
        fields = json.loads(path.read_bytes())
        del fields["crc32"]
        fields["building"]["boot_id"] = "another one"
        path.write_bytes(sealed(fields))
        add(name, kind.cls, kind.samples, work / name)
    for name, files in made_by_0_9().items():
        if "large" in name:
            continue
        kind = KINDS["dense" if "dense" in name else name]
        options = {"zstd_level": 3} if "zstd" in name else {}
        found.append(Seed(f"old {name}", kind.cls, files, kind.first, options))
        if name in ("rows", "zstd strings"):
            unpack(files, work / f"upgraded {name}")
            mmap_ninja.upgrade(work / f"upgraded {name}")
            add(f"upgraded {name}", kind.cls, kind.first, work / f"upgraded {name}", **options)
    return found


def mutant(all_seeds: list[Seed], number: int) -> Mutant:
    """Mutant number so-and-so, the same one in every run."""
    rng = random.Random(number)
    seed = rng.choice(all_seeds)
    made = _Making(rng, seed, all_seeds)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        made.mutate()
    return Mutant(number, seed, made.changes, made.what)


class _Making:
    """A mutant that is being made."""

    def __init__(self, rng: random.Random, seed: Seed, all_seeds: list[Seed]) -> None:
        self.rng, self.seed, self._seeds = rng, seed, all_seeds
        self.changes: dict[str, bytes | None] = {}
        self.what: list[str] = []

    def mutate(self) -> None:
        rng = self.rng
        if self.seed.manifest is None:
            ways = [self._small_file] * 5 + [self._column] * 6 + [self._bytes] * 2
        else:
            ways = [self._manifest] * 7 + [self._index] * 6 * ("index.npy" in self.seed.files) + [self._bytes] * 2
        if "zstd" in self.seed.name:
            ways += [self._frame] * 4
        with contextlib.suppress(RecursionError):  # of what was nested before
            rng.choice(ways)()

    def _now(self, name: str) -> bytes:
        return (self.changes[name] if name in self.changes else self.seed.files.get(name)) or b""

    def _put(self, name: str, raw: bytes | None, what: str) -> None:
        self.changes[name] = raw
        self.what.append(f"{name}: {what}")

    # The manifest.

    def _manifest(self) -> None:
        rng, name = self.rng, self.seed.manifest
        try:
            fields = json.loads(self._now(name))
        except (ValueError, RecursionError):  # mutated before
            return
        if not isinstance(fields, dict):
            return
        fields.pop("crc32", None)
        key = rng.choice(sorted(fields))
        what, twice = "", None
        if key == "dtype" or rng.random() < 0.12:
            key, fields["dtype"] = "dtype", rng.choice(DTYPES)
        elif key == "sample_shape" or rng.random() < 0.05:
            key, fields["sample_shape"] = "sample_shape", rng.choice(SHAPES)
        elif key in ("files", "codec", "building") and isinstance(fields[key], dict) and fields[key]:
            what = self._inside(fields[key], key)
        elif key == "obsolete":
            fields[key] = [rng.choice(NAMES) for _ in range(rng.choice((1, 2, 300)))]
        elif rng.random() < 0.1:
            del fields[key]
        elif rng.random() < 0.08:
            twice = (key, rng.choice([fields[key], self._value(fields[key])]))
        elif rng.random() < 0.15:
            other = rng.choice([seed for seed in self._seeds if seed.manifest])
            fields[key] = json.loads(other.files[other.manifest]).get(key)
        else:
            fields[key] = self._value(fields[key])
        if rng.random() < 0.8:
            self._agree(fields)
        text: dict | Pairs = Pairs([*fields.items(), twice]) if twice else fields
        self._put(name, sealed(text), what or f"{key} = {dumped(fields.get(key))[:200]}{' twice' * bool(twice)}")

    def _inside(self, part: dict, path: str) -> str:
        key = self.rng.choice(sorted(part))
        if isinstance(part[key], dict) and part[key] and self.rng.random() < 0.9:
            return self._inside(part[key], f"{path}.{key}")
        if self.rng.random() < 0.08:
            del part[key]
            return f"{path}.{key} is gone"
        part[key] = self._value(part[key])
        return f"{path}.{key} = {dumped(part[key])[:200]}"

    def _value(self, now: Any) -> Any:
        rng = self.rng
        if type(now) is int and rng.random() < 0.8:
            near = [now - 1, now + 1, now * 2, now // 2, -now, now + 8, now - 8, now + 64]
            return rng.choice(INTS) if rng.random() < 0.5 else rng.choice(near)
        if isinstance(now, str) and rng.random() < 0.7:
            return rng.choice(NAMES)
        if isinstance(now, bool) and rng.random() < 0.7:
            return not now
        return rng.choice(rng.choice((INTS, NAMES, OTHERS)))

    def _agree(self, fields: dict) -> None:
        """Make the sizes agree with the rest of the manifest, and the files with the sizes, as far as that goes."""
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            files, length = fields["files"], fields["length"]
            itemsize = 1 if fields["dtype"] is None else parse_dtype(json.loads(dumped(fields["dtype"]))).itemsize
            if fields["sample_shape"] is not None:
                count = length
                for axis in fields["sample_shape"]:
                    count *= axis
                files["data"]["size"] = count * itemsize
            else:
                files["data"]["size"] -= files["data"]["size"] % itemsize
            if "index" in files:
                files["index"]["size"] = 8 * (1 + fields["ndim"] + (fields["codec"] is not None)) * length
            for file in files.values():
                if type(file["name"]) is not str or not file["name"].isprintable() or set("./") & set(file["name"][:1]):
                    continue
                if "/" in file["name"] or len(file["name"]) > 128:
                    continue
                end = file["offset"] + file["size"]
                raw = self._now(file["name"])
                if len(raw) < end <= ROOM:
                    self._put(file["name"], raw.ljust(end, b"\0"), f"{end} bytes")

    # What is in the files.

    def _index(self) -> None:
        self._numbers("index.npy", 128)
        if self.rng.random() < 0.5:
            self._right_crc("index", "index.npy")

    def _right_crc(self, role: str, file: str) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            fields = json.loads(self._now(self.seed.manifest))
            del fields["crc32"]
            entry = fields["files"][role]
            entry["tail_crc"] = zlib.crc32(self._now(file)[entry["offset"] :][: entry["size"]])
            self._put(self.seed.manifest, sealed(fields), f"crc of {file}")

    def _numbers(self, name: str, offset: int) -> None:
        rng, raw = self.rng, bytearray(self._now(name))
        places = range(offset, len(raw) - 7, 8)
        if not len(places):
            return
        what = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.choice([places[0], places[-1], rng.choice(places)])
            now = int.from_bytes(raw[at : at + 8], "little", signed=True)
            new = rng.choice([rng.choice(COUNTS), now + rng.choice((-8, -1, 1, 8)), rng.randrange(0, 4096)])
            new = (new + 2**63) % 2**64 - 2**63
            raw[at : at + 8] = new.to_bytes(8, "little", signed=True)
            what.append(f"[{(at - offset) // 8}] = {new}")
        self._put(name, bytes(raw), ", ".join(what))

    def _column(self) -> None:
        names = [name for name in self.seed.files if name.endswith("/data.ninja")]
        if names:
            self._numbers(self.rng.choice(sorted(names)), 0)
        else:
            self._small_file()

    def _small_file(self) -> None:
        rng = self.rng
        name = rng.choice([name for name in sorted(self.seed.files) if not name.endswith("data.ninja")])
        if name.endswith("shape.ninja"):
            axes = rng.choice([[rng.choice(INTS)], rng.choice(SHAPES), [rng.choice(COUNTS) for _ in range(2)]])
            axes = [axis % 2**64 for axis in axes if type(axis) is int]
            if rng.random() < 0.4:
                first = int.from_bytes(self._now(name)[:8], "little")
                axes = [first, *axes][: rng.choice((1, 2, 3, 64))]
            self._put(name, b"".join(axis.to_bytes(8, "little") for axis in axes), f"{axes}")
        elif name.endswith("dtype.ninja"):
            text = rng.choice([dtype for dtype in DTYPES if type(dtype) is str])
            self._put(name, text.encode(), text)
        elif rng.random() < 0.7 and not name.endswith("dict.ninja"):
            text = rng.choice(SMALL_FILES)
            self._put(name, text.encode(), text[:50])
        elif name.endswith("flat.ninja"):
            self._put(name, bytes([self._now(name)[:1] == b"\0", 0, 0, 0]), "the other")
        else:
            self._spoil(name)

    def _frame(self) -> None:
        """A frame that says another size than it has, and an index that says so too, or does not know."""
        rng = self.rng
        size = rng.choice([0, 1, 2**20, 2**27, 2**30, 2**31, 2**40, 2**62, 2**63 - 1, 2**64 - 1, 2**64 - 3])
        head = FRAME + (b"\xe0" + size.to_bytes(8, "little") if rng.random() < 0.8 else b"\x00\x58")
        head += rng.choice([b"", (2**21 * rng.randrange(8) + 3 & 0xFFFFFF).to_bytes(3, "little"), b"\x50\x2a\x4d\x18"])
        name = "data.ninja" if "data.ninja" in self.seed.files else "data.npy"
        raw = self._now(name)
        at = max(raw.find(FRAME), 0)
        self._put(name, raw[:at] + head + raw[at + len(head) :], f"a frame of {size} bytes")
        if "index.npy" in self.seed.files and rng.random() < 0.8:
            index = bytearray(self._now("index.npy"))
            new = rng.choice([size, size, 2**64 - 1, 2**64 - 2, 0])
            index[128 + 16 : 128 + 24] = new.to_bytes(8, "little")
            self._put("index.npy", bytes(index), f"raw size {new}")

    def _bytes(self) -> None:
        self._spoil(self.rng.choice(sorted(self.seed.files)))

    def _spoil(self, name: str) -> None:
        rng, raw = self.rng, bytearray(self._now(name))
        way = rng.choice(("flip", "flip", "cut", "zeros", "random", "longer", "missing", "swap", "foreign"))
        if way == "missing":
            self._put(name, None, way)
        elif way == "longer":
            self._put(name, bytes(raw) + rng.randbytes(rng.choice((1, 8, 500))), way)
        elif way in ("swap", "foreign"):
            source = self.seed if way == "swap" else rng.choice(self._seeds)
            other = rng.choice(sorted(source.files))
            self._put(name, source.files[other], f"{other} of {source.name}")
        elif way == "cut":
            self._put(name, bytes(raw[: rng.choice((0, len(raw) - 1, rng.randrange(len(raw) + 1)))]), way)
        elif raw:
            at = rng.randrange(len(raw))
            if way == "flip":
                raw[at] ^= 1 << rng.randrange(8)
            else:
                size = rng.choice((1, 4, 64))
                raw[at : at + size] = (
                    bytes(len(raw[at : at + size])) if way == "zeros" else rng.randbytes(len(raw[at : at + size]))
                )
            self._put(name, bytes(raw), f"{way} at {at}")


# What is done to a mutant.

WAYS = ("append", "assign", "upgrade", "build", "metadata")  # to write to it


class Failure(NamedTuple):
    """What must not happen: the number of the mutant, what was mutated, the operation, and what came of it."""

    number: int
    seed: str
    what: list[str]
    operation: str
    error: str
    where: str

    @property
    def key(self) -> tuple[str, str]:
        return self.error.split(":")[0], self.where


class Wrong(Exception):
    """A value that cannot be."""


class Ears:
    """An audit hook, which cannot be removed, that listens only while it is told to."""

    FORBIDDEN = (
        "import",
        "exec",
        "compile",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "subprocess",
        "socket",
    )
    FORBIDDEN += (
        "pickle.find_class",
        "ctypes",
        "code.__new__",
        "marshal",
        "os.symlink",
        "os.link",
        "os.chmod",
        "shutil",
    )
    FORBIDDEN += ("webbrowser", "ftplib", "urllib", "os.startfile", "pty", "sqlite3", "builtins.input")
    CHANGES = ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.listdir", "os.scandir")

    def __init__(self) -> None:
        self.folder: str | None = None
        self.heard: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if self.folder is None:
            return
        if event in self.CHANGES:
            folder, self.folder = self.folder, None
            if isinstance(args[0], str | bytes | os.PathLike):
                path = os.fsdecode(args[0])
                if not path.startswith(folder + os.sep) or os.pardir in path:
                    path = os.path.realpath(path)
                    is_parent = event == "open" and path == os.path.dirname(folder)  # its names are synced
                    if path not in (folder, "/proc/sys/kernel/random/boot_id") and not is_parent:
                        self.heard.append(f"{event} {path}")
            self.folder = folder
        elif event.startswith(self.FORBIDDEN) and not (
            event == "pickle.find_class" and str(args[0]).startswith("mmap_ninja")
        ):
            self.heard.append(f"{event} {args}"[:300])


class Exercise:
    """Does everything that a reader may do to one folder, and notes what must not happen."""

    def __init__(self, folder: Path, seed: Seed, number: int, what: list[str], ears: Ears | None) -> None:
        self.folder, self.seed, self.number, self.what = folder, seed, number, what
        self.failures: list[Failure] = []
        self._ears, self._real = ears, os.path.realpath(folder)
        self._rng = random.Random(-number)

    def fail(self, operation: str, error: str, where: str = "") -> None:
        self.failures.append(Failure(self.number, self.seed.name, self.what, operation, error[:300], where))

    def do(self, operation: str, act: Callable[[], Any], *allowed: type[BaseException]) -> Any:
        """What `act` returns, None where it raised what it may raise."""
        ears = self._ears
        try:
            if ears is not None:
                ears.folder = self._real
            return act()
        except (MmapNinjaError, *allowed):
            return None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if ears is not None:
                ears.folder = None
            frames = traceback.extract_tb(error.__traceback__)[-60:]
            ours = [frame for frame in frames if "/mmap_ninja/" in frame.filename] or [frames[-1]]
            where = f"{os.path.basename(ours[-1].filename)}:{ours[-1].name}"
            self.fail(operation, f"{type(error).__name__}: {error}", where)
            return None
        finally:
            if ears is not None:
                ears.folder = None
                for heard in ears.heard:
                    self.fail(operation, f"Heard {heard.split()[0]}: {heard}")
                ears.heard.clear()

    def read(self) -> None:
        if self._is_turn(4):
            for cls in {self.seed.cls, self._rng.choice((DenseMmap, RaggedMmap, BytesMmap, StringsMmap))}:
                self.do(cls.__name__, lambda cls=cls: cls(self.folder))
            self.do("open_existing", lambda: open_existing(self.folder))
        if self._is_turn(4 if self.seed.cls is DenseMmap else 16):
            self._memmap()
        m = self.do("open_map", lambda: open_map(self.folder))
        if m is not None:
            self._use(m)
        if hasattr(mmap_ninja, "verify"):
            self.do("verify", lambda: list(mmap_ninja.verify(self.folder)))

    def _is_turn(self, one_of: int) -> bool:
        """Whether this mutant is one of those for which something is done that is not done for all."""
        return self.number == 0 or self._rng.randrange(one_of) == 0

    def _memmap(self) -> None:
        array = self.do("np_open_existing", lambda: np_open_existing(self.folder))
        if array is not None and array.nbytes <= ROOM * 4:
            self.do("bytes of the memmap", array.tobytes)
            self.do("pickle of the memmap", lambda: pickle.loads(pickle.dumps(array)))

    def _use(self, m: Mmap) -> None:
        do = self.do
        n = do("len", lambda: len(m)) or 0
        for name in ("dtype", "nbytes", "metadata", "lengths", "shapes", "starts", "ends"):
            do(name, lambda name=name: getattr(m, name))
        do("repr", lambda: repr(m))
        if isinstance(m, RaggedMmap):
            do("memmap", lambda: m.memmap)
        elif isinstance(m, DenseMmap):
            do("sample_shape", lambda: m.sample_shape)
        for i in {0, n - 1, n // 2} if n else ():
            sample = do("m[i]", lambda i=i: self._in_range(m, i))
            do("type", lambda sample=sample: self._check(m, sample))
            do("m[-]", lambda i=i: m[i - n])
            do("window", lambda i=i: m.window(i, 0, 1))
        for i in (n, -n - 1):
            do("out of range", lambda i=i: self._out_of_range(m, i))
        if n <= 4096:
            for index in (slice(None), slice(None, None, -2), np.arange(n) % 2 == 0):
                many = do("many", lambda index=index: m[index])
                for sample in many[:50] if isinstance(many, list) else ():
                    do("type of many", lambda sample=sample: self._check(m, sample))
            do("will_need", lambda: m.will_need(range(n)))
        if n:
            do("list", lambda: m[[0, -1]])
            do("take", lambda: m.take([n - 1, 0]))
            do("will_need", lambda: m.will_need([0, -1]))
        do("slice", lambda: m[:3])
        do("iteration", lambda: list(itertools.islice(m, 50)))
        do("reversed", lambda: list(itertools.islice(reversed(m), 50)))
        if n <= 4096:
            do("in", lambda: b"?" in m)
        if self._is_turn(4):
            raw = do("dumps", lambda: pickle.dumps(m))
            again = do("loads", lambda: pickle.loads(raw)) if raw else None
            if again is not None and len(again) != n:
                self.fail("loads", f"Wrong: {len(again)} samples of {n}")
            do("refresh", m.refresh)
        for name in ("flush", "close"):
            do(name, getattr(m, name))

    def _in_range(self, m: Mmap, i: int) -> Any:
        try:
            return m[i]
        except SampleIndexError as error:
            raise Wrong(str(error)) from error

    def _out_of_range(self, m: Mmap, i: int) -> None:
        with contextlib.suppress(SampleIndexError):
            m[i]
            raise Wrong(f"m[{i}] of {len(m)}")

    def _check(self, m: Mmap, sample: Any) -> None:
        """The type that samples of this map have; every byte is touched."""
        if isinstance(m, BytesMmap):
            right = isinstance(sample, str) if isinstance(m, StringsMmap) else isinstance(sample, bytes)
        else:
            dtype = getattr(sample, "dtype", m.dtype)
            right = dtype == m.dtype or (not isinstance(sample, np.ndarray) and dtype.kind == m.dtype.kind)
            right = right and isinstance(sample, np.ndarray | np.generic | int | float | bool)
            if isinstance(sample, np.ndarray) and sample.nbytes <= ROOM * 4:
                sample.tobytes()
        if sample is not None and not right:
            raise Wrong(f"a {type(sample).__name__} in a {m.kind} map of {m.dtype}")

    def write(self, way: str | None = None) -> None:
        """What is written stays in the files and can be read again; what failed has changed nothing."""
        way = way or self._rng.choice(WAYS)
        before = self._samples()
        reader = None if before is None else open_map(self.folder)
        is_part = (self.folder / "building.json").exists()
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        done = self.do(way, lambda: getattr(self, f"_{way}")(before))
        expected = done[0] if done is not None else None if is_part or way == "assign" else before
        if expected is not None and not self._is_right(expected):
            self.fail(way, f"Wrong: {way} {'failed' if done is None else 'went well'}, but left other samples", way)
        if reader is not None and way != "assign":
            found = self.do("an open reader", lambda: [_copied(reader[i]) for i in range(len(reader))])
            if found is not None and list(map(_bits, found)) != list(map(_bits, before)):
                self.fail(way, f"Wrong: an open reader sees what {way} has written", way)
        after = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if after > size + ROOM:
            self.fail(way, f"Wrong: {size} bytes have become {after}", way)

    def _samples(self) -> list | None:
        """All samples, copied; None where any cannot be read."""
        try:
            with open_map(self.folder) as m:
                return [_copied(m[i]) for i in range(len(m))] if len(m) <= 4096 else None
        except BaseException:  # another operation has noted it
            return None

    def _is_right(self, expected: list) -> bool:
        try:
            with open_map(self.folder) as m:
                found = [_copied(m[i]) for i in range(len(m))]
        except MmapNinjaError:
            return False
        return list(map(_bits, found)) == list(map(_bits, expected))

    # Each returns a tuple of the samples that there should be then, None where nobody knows.

    def _append(self, before: list | None) -> tuple:
        with open_map(self.folder) as m:
            sample = before[0] if before else self.seed.samples[0] if self.seed.samples else np.zeros(3)
            m.append(sample, sync=False)
            return (None if before is None else [*before, m[-1] if not before else sample],)

    def _assign(self, before: list | None) -> tuple:
        with type(open_map(self.folder))(self.folder, mode="r+") as m:
            n = len(m)
            for i in {0, n - 1} if n else ():
                m[i] = self._of_that_size(m, i)
        return (None,)

    def _of_that_size(self, m: Mmap, i: int) -> Any:
        """A value that is fit to be assigned, going by what the index says of the sample."""
        if isinstance(m, BytesMmap):
            size = int(m.lengths[i])
            return ("x" if isinstance(m, StringsMmap) else b"x") * size if 0 <= size < ROOM else m[i]
        shape = [axis for axis in m.shapes[i].tolist() if axis >= 0]
        if np.prod(shape, dtype=float) * m.dtype.itemsize > ROOM:
            return m[i]
        return np.zeros(shape, m.dtype)

    def _upgrade(self, before: list | None) -> tuple:
        mmap_ninja.upgrade(self.folder)
        return (before,)

    def _build(self, before: list | None) -> tuple:
        samples, resume = self.seed.samples[:3] or [np.zeros(3)], self.number % 3 == 0
        self.seed.cls.from_generator(self.folder, iter(samples), 2, resume=resume, sync=False, **self.seed.options)
        return (None if resume else samples,)

    def _metadata(self, before: list | None) -> tuple:
        with open_map(self.folder) as m:
            m.metadata = {"a": 1}
        return (before,)


def _copied(sample: Any) -> Any:
    return sample.copy() if isinstance(sample, np.ndarray) else sample


def _bits(sample: Any) -> Any:
    """What tells samples of any dtype apart; structured ones have bytes between their fields that nobody copies."""
    if not isinstance(sample, np.ndarray | np.generic):
        return repr(sample)
    if sample.dtype.names is not None:
        return [_bits(sample[name]) for name in sample.dtype.names]
    return str(sample.dtype), sample.shape, sample.tobytes()


def quiet_disk() -> None:
    """Syncs cost milliseconds, and no power is cut here."""
    os.fsync = os.fdatasync = lambda fd: None


def restrained(room: int = ALLOWED) -> None:
    """Leave the process no more memory than reading any mutant may take."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))


@contextlib.contextmanager
def strict_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", PartBuiltWarning)
        warnings.simplefilter("ignore", UpgradeWarning)
        yield


def write_files(folder: Path, files: dict[str, bytes | None]) -> None:
    for name, raw in files.items():
        path = folder / name
        if path.is_dir():  # a name that a mutant has made of nothing
            continue
        if raw is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)


def try_mutants(
    all_seeds: list[Seed], numbers: range, work: Path, began: Callable[[int], None], *, writes_each: int = 16
) -> Iterator[Failure]:
    """Every mutant of these numbers, one after another in a folder of its seed; for a child process of its own."""
    ears = Ears()
    quiet_disk()
    restrained()
    ready: set[str] = set()
    with strict_warnings():
        for number in numbers:
            began(number)
            signal.setitimer(signal.ITIMER_REAL, SLOW)  # the signal ends the child: a hang
            made = mutant(all_seeds, number)
            folder = work / made.seed.name
            if made.seed.name not in ready:
                shutil.rmtree(folder, ignore_errors=True)
                write_files(folder, made.seed.files)
                ready.add(made.seed.name)
            write_files(folder, made.changes)
            exercise = Exercise(folder, made.seed, number, made.what, ears)
            exercise.read()
            if number % writes_each == 0:
                exercise.write()
                ready.remove(made.seed.name)
            else:
                write_files(folder, {name: made.seed.files.get(name) for name in made.changes})
            yield from exercise.failures
    signal.setitimer(signal.ITIMER_REAL, 0)
