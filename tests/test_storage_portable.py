"""Without what only POSIX has: the core imports and round-trips."""

import subprocess
import sys
from pathlib import Path

import pytest

import plain_reader

HIDE = r"""
import os, sys

for name in (
    *("pwrite", "pread", "preadv", "pwritev", "fdatasync", "posix_fadvise", "posix_fallocate"),
    *("register_at_fork", "fork", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"),
):
    if hasattr(os, name):
        delattr(os, name)
sys.modules["fcntl"] = sys.modules["resource"] = None
"""

ROUND_TRIP = r"""
import pickle
import numpy as np
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap, np_from_ndarray, np_open_existing, open_map
from mmap_ninja._storage import disk, lock

assert (disk.fcntl is None, lock._flock is None) == (HIDDEN, HIDDEN)
rows = [np.arange(n) for n in (3, 0, 200_000)]
kinds = {
    RaggedMmap: rows,
    DenseMmap: [np.array([n, -n]) for n in range(3)],
    StringsMmap: ["one", "", "zwölf"],
    BytesMmap: [b"one", b"", b"\0\xff"],
}

def same(left, right):
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right))

for cls, samples in kinds.items():
    path = "maps/" + cls.__name__
    m = cls.from_generator(path, iter(samples), 2)
    for _ in range(2):
        m.extend(samples)
    m.append(samples[0], sync=False)
    m[0] = samples[0]
    m.will_need([0])
    m.flush()
    m.refresh()
    assert same(m[:], [*samples * 3, samples[0]])
    assert same(pickle.loads(pickle.dumps(m))[:], m[:])
    m.close()
    cls.from_generator(path, iter(samples[::-1]), 2)
    assert same(open_map(path)[:], samples[::-1])

    def stops():
        yield samples[0]
        raise RuntimeError

    try:
        cls.from_generator(path + "2", stops(), 1)
    except RuntimeError:
        pass
    assert same(cls.from_generator(path + "2", iter(samples), 1, resume=True)[:], samples)
assert np_from_ndarray("maps/array", np.arange(5)).sum() == np_open_existing("maps/array").sum() == 10
print("done")
"""


@pytest.mark.parametrize("hidden", [False, True])
def test_the_core_round_trips(tmp_path: Path, hidden: bool) -> None:
    code = (HIDE if hidden else "") + ROUND_TRIP.replace("HIDDEN", str(hidden))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    for name in ("RaggedMmap", "DenseMmap", "StringsMmap", "BytesMmap", "array"):
        plain_reader.check(tmp_path / "maps" / name)
