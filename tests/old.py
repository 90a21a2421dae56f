"""mmap_ninja 0.9.0: fetched once per checkout, run in processes of its own, never imported here."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "old-0.9.0"

_IS_OLD = "import mmap_ninja; assert mmap_ninja.__version__ == '0.9.0', mmap_ninja.__file__\n"


def source() -> Path:
    """The unpacked source distribution, which has the package in `src` and its tests in `tests`."""
    if not CACHE.is_dir():
        CACHE.parent.mkdir(exist_ok=True)
        (CACHE.parent / ".gitignore").write_text("*\n")
        with tempfile.TemporaryDirectory(dir=CACHE.parent) as work:
            _download(work)
            try:  # the rename comes last, so that an interrupted download is done again
                os.rename(Path(work) / "mmap_ninja-0.9.0", CACHE)
            except OSError:
                if not CACHE.is_dir():  # else another test run was faster
                    raise
    return CACHE


def run_old(code: str, cwd: Path) -> str:
    """What `code` prints when it is run under 0.9.0 in the folder `cwd`."""
    env = {**os.environ, "PYTHONPATH": str(source() / "src")}
    done = subprocess.run([sys.executable, "-c", _IS_OLD + code], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _download(work: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--dest", work]
    wanted = ["--no-deps", "--no-binary", "mmap-ninja", "mmap-ninja==0.9.0"]
    done = subprocess.run(pip + wanted, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"mmap_ninja 0.9.0, which these tests compare with, cannot be fetched:\n{done.stderr}")
    [archive] = Path(work).glob("*.tar.gz")
    shutil.unpack_archive(archive, work, filter="data")
