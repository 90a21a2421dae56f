"""Every docstring example of `src/` runs in an empty folder of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from _pytest.doctest import DoctestItem

# An adapter cannot be imported without its framework; the core is tested without any.
PACKAGES = {"torch": "src/mmap_ninja_torch", "tensorflow": "src/mmap_ninja_tf", "jax": "src/mmap_ninja_jax"}
collect_ignore = [package for framework, package in PACKAGES.items() if not find_spec(framework)]


@pytest.fixture(autouse=True)
def empty_folder_for_examples(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, DoctestItem):
        monkeypatch.chdir(tmp_path)
