"""0.9.0's own tests pass with this package, and our tests of 0.9.0's calls pass with 0.9.0."""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

import mmap_ninja
from old import source

PRIVATE = {  # tests of functions whose names start with an underscore
    "test_base.py": [
        "test_int_conversions",
        "test_int_file_conversions",
        "test_large_num",
        "test_shape_conversions",
        "test_shape_file",
        "test_str_conversions",
        "test_str_file_conversions",
    ],
    "test_generic.py": ["test_open_throws_exception_if_type_is_unknown"],  # sets up with base._str_to_file
    "test_numpy.py": ["test_numpy_from_empty"],
}
PUBLIC = {"test_base": 2, "test_numpy": 6, "test_ragged": 28, "test_string": 16}

SAME_PACKAGE = """
import pathlib, mmap_ninja
assert pathlib.Path(mmap_ninja.__file__).resolve() == pathlib.Path({!r}), mmap_ninja.__file__
"""


def run_tests(folder: Path, package: Path, *options: str) -> tuple[Counter, Counter, str]:
    """How many tests of each file in `folder` pass with the package at that path, how many do not, and why."""
    (folder / "pytest.ini").write_text("[pytest]\n")  # so that none of our settings apply
    (folder / "conftest.py").write_text(SAME_PACKAGE.format(str(package / "__init__.py")))
    pytest_here = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=results.xml", *options]
    env = {**os.environ, "PYTHONPATH": str(package.parent), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(pytest_here, cwd=folder, env=env, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert done.returncode in (0, 1), printed
    passed, failed = Counter(), Counter()
    for case in ElementTree.parse(folder / "results.xml").iter("testcase"):
        (failed if len(case) else passed)[case.get("classname")] += 1
    return passed, failed, printed


@pytest.fixture(scope="module")
def their_tests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite-of-0-9")
    shutil.copytree(source() / "tests", folder, dirs_exist_ok=True)
    left_out = [f"--deselect={file}::{name}" for file, names in PRIVATE.items() for name in names]
    return run_tests(folder, Path(mmap_ninja.__file__).resolve().parent, *left_out)


@pytest.mark.parametrize("file", PUBLIC)
def test_a_file_of_their_tests_passes(file, their_tests):
    passed, failed, printed = their_tests
    assert (passed[file], failed[file]) == (PUBLIC[file], 0), printed


def test_they_have_no_other_tests(their_tests):
    passed, failed, _ = their_tests
    assert set(passed) | set(failed) == set(PUBLIC)


def test_what_we_say_of_its_calls_is_true_of_0_9(tmp_path):
    files = sorted(Path(__file__).parent.glob("*calls_of_0_9*.py"))
    for file in files:
        shutil.copy(file, tmp_path)
    passed, failed, printed = run_tests(tmp_path, source() / "src" / "mmap_ninja")
    assert set(passed) == {file.stem for file in files if file.stem.startswith("test_")}, printed
    assert passed.total() > 150, printed
    assert not failed, printed
