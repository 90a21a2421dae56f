"""Seeds: small maps of every kind and both formats, which are right."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import mmap_ninja
from changes import KINDS, interrupt, made_by_0_9, unpack
from fuzz.values import sealed
from mmap_ninja import DenseMmap, Mmap, RaggedMmap

MANIFESTS = ("manifest.json", "building.json")


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
