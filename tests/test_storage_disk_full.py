"""A disk that is really full, and a real limit on the size of files: an OSError with its number, and no harm."""

import errno
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from faults import in_child
from mmap_ninja import RaggedMmap, open_map
from plain_reader import check, same

OLD = [np.arange(n) for n in (5, 0, 3000)]

FULL = r"""
import errno, shutil, sys, warnings
from pathlib import Path
import numpy as np
import plain_reader
from mmap_ninja import RaggedMmap, open_map
from mmap_ninja.errors import PartBuiltWarning
from plain_reader import same

disk = Path(sys.argv[1])
rng = np.random.default_rng(1)
rows = [rng.random(30_000) for _ in range(60)]  # 14 MB

def fails(act):
    try:
        act()
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    else:
        raise AssertionError("8 MB hold 14 MB")

def free():
    (disk / "ballast").unlink()

def fill():
    with open(disk / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC

def holds(folder, expected):
    assert same(open_map(folder)[:], expected)
    plain_reader.check(folder)

# a full disk, until something is removed
m = RaggedMmap.from_lists(disk / "map", rows[:3])
fill()
for k in range(3):
    fails(lambda: m.extend(rows[3:9]))
    holds(disk / "map", rows[:3])
fails(lambda: RaggedMmap.from_lists(disk / "map", rows))
holds(disk / "map", rows[:3])
free()
m.extend(rows[3:9])
holds(disk / "map", rows[:9])

# an extend that does not fit, and one that does
(disk / "ballast").write_bytes(bytes(65536))
fails(lambda: m.extend(rows))
assert same(m[:], rows[:9])
holds(disk / "map", rows[:9])
free()  # what the failed one wrote is covered by the next one, which needs little room of its own
m.extend(rows[9:11])
holds(disk / "map", rows[:11])

# a build that does not fit, beside the map that it would replace, and one that does
m.close()
shutil.rmtree(disk / "map")
RaggedMmap.from_lists(disk / "map", rows[:5])
(disk / "ballast").write_bytes(bytes(65536))
fails(lambda: RaggedMmap.from_generator(disk / "map", iter(rows), 4))
holds(disk / "map", rows[:5])
free()
RaggedMmap.from_generator(disk / "map", iter(rows[5:11]), 4)
holds(disk / "map", rows[5:11])

# a build that is resumed when there is room
fails(lambda: RaggedMmap.from_generator(disk / "new", iter(rows), 4))
with warnings.catch_warnings():
    warnings.simplefilter("ignore", PartBuiltWarning)
    part = open_map(disk / "new")
assert len(part) % 4 == 0 and same(part[:], rows[: len(part)])
shutil.rmtree(disk / "map")
RaggedMmap.from_generator(disk / "new", iter(rows[:25]), 4, resume=True)
holds(disk / "new", rows[:25])
print("done")
"""


def test_an_8_mib_disk(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    mount = "mkdir disk && mount -t tmpfs -o size=8m tmpfs disk"
    namespace = [unshare or "", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if unshare is None or subprocess.run([*namespace, mount], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("no user namespaces here to mount a small disk in")
    (tmp_path / "disk").rmdir()
    (tmp_path / "full.py").write_text(FULL)
    run = f'{mount} && PYTHONPATH="$1:$PYTHONPATH" exec "$0" -W error full.py disk'
    command = [*namespace, run, sys.executable, str(Path(__file__).parent)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    m = RaggedMmap.from_lists(tmp_path / "map", OLD)
    large = [np.arange(100_000)]

    def write() -> None:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, most))
        for act in (
            lambda: m.extend(large),
            lambda: RaggedMmap.from_lists(tmp_path / "map", large),
            lambda: RaggedMmap.from_lists(tmp_path / "new", large),
        ):
            with pytest.raises(OSError, match="large") as caught:
                act()
            assert caught.value.errno == errno.EFBIG
            assert same(m[:], OLD)
            assert same(open_map(tmp_path / "map")[:], OLD)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        m.extend(large)

    assert in_child(write) == 0
    assert same(open_map(tmp_path / "map")[:], OLD + large)
    check(tmp_path / "map")
