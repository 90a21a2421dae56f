"""Mutants: seeds with something wrong, each made again from its number."""

import contextlib
import json
import random
import warnings
import zlib
from typing import Any, NamedTuple

from fuzz.seed import Seed
from fuzz.values import COUNTS, DTYPES, FRAME, INTS, NAMES, OTHERS, SHAPES, SMALL_FILES, Pairs, dumped, sealed
from mmap_ninja._storage.dtypes import parse_dtype

ROOM = 1 << 18  # bytes up to which a file is made as large as a mutant claims


class Mutant(NamedTuple):
    """A damaged copy of a seed: the files that differ (None for one that is gone) and what was done to them."""

    number: int
    seed: Seed
    changes: dict[str, bytes | None]
    what: list[str]


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
