"""Maps that mmap_ninja 0.9.0 itself makes during the run, and what it reads from them.

A file of tests that uses the fixtures names them: `originals = maps_of_0_9.originals`.
"""

import hashlib
import pickle
import shutil

import numpy as np
import pytest

from mmap_ninja import DenseMmap, RaggedMmap, StringsMmap
from old import run_old

RNG = np.random.default_rng(2024)
DTYPES = ["bool", "int8", "uint16", "int64", "float16", "float32", "complex64", "datetime64[s]", "timedelta64[ms]"]
TEXT_KEYS = {"starts_key": "from", "ends_key": "to"}
KEYS = {**TEXT_KEYS, "shapes_key": "forms", "flattened_shapes_key": "counts"}
TEXTS = ["Torba", "", "зеле 🥧", "a" * 5000, "", "popo"]
MANY_TEXTS = [f"{text[:10]} number {i}".ljust(60) for i in range(40) for text in TEXTS]


def numbers(*shape):
    return RNG.integers(-100, 100, shape)


DENSE = {
    **{f"dense {dtype}": numbers(6, 2, 3).astype(dtype) for dtype in DTYPES},
    "dense row": numbers(9),
    "dense empty": np.zeros((0, 3)),
    "dense fortran": np.asfortranarray(numbers(5, 4)),
    "dense fortran 3d": np.asfortranarray(numbers(5, 2, 3).astype(np.float32)),
}
RAGGED = {
    "ragged rows": [RNG.random(n, np.float32) for n in (3, 0, 1, 400, 2)],
    "ragged images": [numbers(h, w, 3).astype(np.uint8) for h, w in ((5, 2), (0, 4), (1, 1), (30, 20), (2, 0))],
    "ragged mixed": [numbers(2, 2), numbers(3), numbers(2, 1), numbers(1, 1, 3, 2), numbers(0)],
    "ragged integers": [3, -1, 7, 0],
    "ragged floats": [0.5, float("nan"), -0.0],
    "ragged bools": [True, False, True],
    "ragged numbers and rows": [1, [], [3], [4, 5], 6],
    "ragged nothing": [[], [], []],
    "ragged rows keys": [numbers(n) for n in (2, 3, 1)],
    "ragged images keys": [numbers(n, 2, n) for n in (2, 3, 1)],
}
STRINGS = {
    "string": TEXTS,
    "string keys": TEXTS,
    "string zstd": TEXTS,
    "string zstd dictionary": MANY_TEXTS,
}
MADE = {**DENSE, **RAGGED, **STRINGS}
KINDS = {"dense": DenseMmap, "ragged": RaggedMmap, "string": StringsMmap}
COMPRESSED = [name for name in MADE if "zstd" in name]

MAKE = """
import contextlib, pickle
import numpy as np
from pathlib import Path
from mmap_ninja import RaggedMmap, StringsMmap, numpy

make = {"dense": numpy.from_ndarray, "ragged": RaggedMmap.from_lists, "string": StringsMmap.from_strings}
read = {}
for name, (samples, options) in pickle.loads(Path("samples.pickle").read_bytes()).items():
    kind = name.split()[0]
    first = len(samples) if "fortran" in name else (len(samples) + 1) // 2
    m = make[kind](name, samples[:first], **options)
    if kind == "dense":
        numpy.extend(m, samples[first:])
        m = numpy.open_existing(name)
    else:
        m.extend(samples[first:])
    read[name] = [np.array(x) if isinstance(x, np.ndarray) else x for x in m[:]]
Path("read.pickle").write_bytes(pickle.dumps(read))

# What 0.9.0 writes and cannot read itself
RaggedMmap.from_lists("number among images", [np.array(4), np.array([[1, 2]])])
with contextlib.suppress(ValueError):
    StringsMmap.from_strings("empty texts", ["", ""])
"""


def keys_of(name):
    if not name.endswith("keys"):
        return {}
    return KEYS if name.startswith("ragged") else TEXT_KEYS


def options_of(name):
    zstd = {"zstd_level": 5} if name in COMPRESSED else {}
    dictionary = {"zstd_train_dictionary_size": 256} if "dictionary" in name else {}
    return {**keys_of(name), **zstd, **dictionary}


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """A folder with all maps, made by 0.9.0; only for reading."""
    folder = tmp_path_factory.mktemp("made-by-0-9")
    samples = {name: (samples, options_of(name)) for name, samples in MADE.items()}
    (folder / "samples.pickle").write_bytes(pickle.dumps(samples))
    run_old(MAKE, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def read_by_old(originals):
    """The samples of each map, as 0.9.0 reads them."""
    return pickle.loads((originals / "read.pickle").read_bytes())


@pytest.fixture
def copy(originals, tmp_path):
    """Copies a map into a folder that may be written to."""
    return lambda name: shutil.copytree(originals / name, tmp_path / "map")


def open_kind(folder, name, **options):
    return KINDS[name.split()[0]](folder, **keys_of(name), **options)


def assert_equal(samples, expected):
    """The same values bit for bit, of the same types, shapes and dtypes."""
    assert len(samples) == len(expected)
    for got, old in zip(samples, expected, strict=True):
        if isinstance(old, np.ndarray):
            assert isinstance(got, np.ndarray)
            assert (got.shape, got.dtype) == (old.shape, old.dtype)
            assert got.tobytes() == old.tobytes()
        elif isinstance(old, np.generic | float):
            assert type(got) is type(old)
            assert np.asarray(got).tobytes() == np.asarray(old).tobytes()
        else:
            assert (type(got), got) == (type(old), old)


def state(folder):
    """Every name under a folder, with its time stamp and its bytes' hash."""
    paths = sorted([folder, *folder.rglob("*")])
    stats = [(str(path), path.stat().st_mtime_ns, path.stat().st_mode) for path in paths]
    return stats, [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()]


def to_bytes(sample):
    return sample.encode() if isinstance(sample, str) else np.asarray(sample).tobytes()


def longer(folder):
    """One more number at the end of a column, as when a writer died between two files."""
    length = int.from_bytes((folder / "shape.ninja").read_bytes()[:8], "little")
    (folder / "shape.ninja").write_bytes((length + 1).to_bytes(8, "little"))
    with open(folder / "data.ninja", "ab") as file:
        file.write(bytes(8))
