"""Imports point downward: the levels of the packages under `src/`, and a check that each import keeps to them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
CORE = "mmap_ninja"


def full(unit: str) -> str:
    """Its name as an import has it, so that our `numpy` and `string` are not taken for the others of that name."""
    return unit if unit.startswith(CORE) else f"{CORE}.{unit}"


# A unit is a module or package right under mmap_ninja, or one of the other import packages as a whole.
# Each may import what is on a lower level; inside a unit everything goes that makes no circle.
LEVELS: list[set[str]] = [
    {"errors"},
    {
        "_storage",
        "lossless",
        "_times",
        "_arrival",
        "_worker",
        "_workers",
        "codec",
        "gather",
        "order",
        "buffers",
        "_ahead",
        "_pace",
        "_progress",
        "_readahead",
        "permutation",
        "indexing",
        "pipeline",
    },
    {"base", "_encode", "_ingest", "_making", "_reading", "_taking", "_writing"},
    {"dense", "ragged", "binary", "string", "views", "_view", "_windows", "_grid"},
    {"records"},
    {"sharded"},
    {"generic", "numpy", "batches", "_batch", "collate", "fields", "packing", "_given"},
    {"convert", "verify", "upgrade", "remote", "_backup"},
    {"cli", "__main__", CORE},  # mmap_ninja/__init__.py gathers the public names, so it may import all of its own
    {"mmap_ninja_torch", "mmap_ninja_tf", "mmap_ninja_jax"},
]
LEVEL = {full(unit): level for level, units in enumerate(LEVELS) for unit in units}

# (importer, imported): the only arrows between units of one level.
SAME_LEVEL = {
    (full(importer), full(imported))
    for importer, imported in [
        ("base", "_ingest"),
        ("base", "_making"),
        ("base", "_reading"),
        ("lossless", "_arrival"),
        ("lossless", "_times"),
        ("_worker", "_arrival"),
        ("_workers", "_worker"),
        ("_pace", "_ahead"),
        ("_making", "_encode"),
        ("_making", "_ingest"),
        ("_making", "_reading"),
        ("_making", "_writing"),
        ("_writing", "_encode"),
        ("_writing", "_reading"),
        ("_reading", "_encode"),
        ("_reading", "_taking"),
        ("_readahead", "pipeline"),
        ("order", "_progress"),
        ("order", "indexing"),
        ("permutation", "indexing"),
        ("_progress", "indexing"),
        ("order", "permutation"),
        ("permutation", "_progress"),
        ("_storage", "codec"),  # format 1 did not write down how large a compressed sample is
        ("string", "binary"),  # a text is bytes in UTF-8
        ("views", "_view"),
        ("views", "_windows"),
        ("views", "_grid"),
        ("_windows", "_view"),
        ("_windows", "_grid"),
        ("batches", "_batch"),
        ("batches", "fields"),
        ("batches", "_given"),
        ("_batch", "collate"),
        ("collate", "fields"),
        ("batches", "collate"),
        ("_batch", "fields"),
        ("generic", "numpy"),  # open_existing gives dense maps as np_open_existing does
        ("cli", CORE),  # the version
        ("__main__", "cli"),
    ]
}

# Which unit may import a framework; every other one must do without.
FRAMEWORKS = {
    "torch": "mmap_ninja_torch",
    "tensorflow": "mmap_ninja_tf",
    "keras": "mmap_ninja_tf",
    "jax": "mmap_ninja_jax",
    "jaxlib": "mmap_ninja_jax",
}


def unit_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2] if parts[0] == CORE else parts[:1])


def modules_of(src: Path) -> dict[str, Path]:
    names = {}
    for path in sorted(src.rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_of(module: str, path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module, name or "") for each import, those in functions and under TYPE_CHECKING included."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, node.module] if node.module else above)
            yield from ((node.lineno, origin, alias.name) for alias in node.names)


def problem_of(module: str, origin: str, target: str, name: str) -> str | None:
    """Why `module` may not import `name` of `origin`, where `target` is the file that this reaches, or None."""
    importer, imported = unit_of(module), unit_of(target)
    owner = FRAMEWORKS.get(origin.partition(".")[0])
    if owner:
        return None if owner == importer else f"{importer} imports a framework, which only {owner} may"
    if imported not in LEVEL or importer == imported:
        return None  # another distribution, or the unit itself
    if importer != CORE and LEVEL[imported] >= LEVEL[importer] and (importer, imported) not in SAME_LEVEL:
        return f"{importer} (level {LEVEL[importer]}) imports {imported} (level {LEVEL[imported]})"
    private = [part for part in (*target.split("."), name) if part.startswith("_") and not part.endswith("__")]
    if private and module.partition(".")[0] != CORE:
        return f"{importer} imports {private[0]}, which is not public"
    return None


def problems_of(src: Path) -> list[str]:
    modules = modules_of(src)
    problems = [
        f"{name}: {unit_of(name)} has no level; list it in LEVELS" for name in modules if unit_of(name) not in LEVEL
    ]
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for module, path in modules.items():
        if unit_of(module) not in LEVEL:
            continue
        for line, origin, name in imports_of(module, path):
            target = f"{origin}.{name}" if f"{origin}.{name}" in modules else origin
            if problem := problem_of(module, origin, target, name):
                problems.append(f"{path.relative_to(src)}:{line}: {problem}")
            if target in modules and target != module and CORE not in (module, target):
                graph[module].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        problems.append("a circle of imports: " + " -> ".join(reversed(error.args[1])))
    return problems


def test_imports_point_downward() -> None:
    assert f"{CORE}.errors" in modules_of(SRC)  # it is really our tree that is read
    assert problems_of(SRC) == []


GOOD = {
    "mmap_ninja/__init__.py": "from mmap_ninja.dense import Dense\nfrom .numpy import extend",
    "mmap_ninja/errors.py": "import numpy as np",
    "mmap_ninja/_storage/__init__.py": "",
    "mmap_ninja/_storage/disk.py": "from .. import errors",
    "mmap_ninja/_storage/commit.py": "from . import disk\nfrom mmap_ninja._storage.disk import write",
    "mmap_ninja/dense.py": "def f():\n    from mmap_ninja._storage import commit",
    "mmap_ninja/numpy.py": "import numpy\nfrom .dense import Dense",
    "mmap_ninja/generic.py": "import mmap_ninja.numpy",
    "mmap_ninja_torch/__init__.py": "import torch\nfrom mmap_ninja import Dense\nfrom mmap_ninja_torch._own import x",
    "mmap_ninja_torch/_own.py": "from mmap_ninja import __version__",
}


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_the_check_accepts_what_is_allowed(tmp_path: Path) -> None:
    assert problems_of(tree(tmp_path, GOOD)) == []


BAD = [
    ("errors.py", "from mmap_ninja import dense", "errors.py:1: mmap_ninja.errors (level 0) imports mmap_ninja.dense"),
    ("errors.py", "import mmap_ninja.dense as d", "errors (level 0) imports mmap_ninja.dense (level 3)"),
    ("errors.py", "\ndef f():\n    from .dense import D", "errors.py:3: mmap_ninja.errors (level 0) imports"),
    ("errors.py", "if TYPE_CHECKING:\n    from .dense import D", "errors.py:2: mmap_ninja.errors (level 0) imports"),
    ("_storage/disk.py", "from ..dense import D", "disk.py:1: mmap_ninja._storage (level 1) imports mmap_ninja.dense"),
    ("_storage/__init__.py", "from .. import dense", "_storage (level 1) imports mmap_ninja.dense (level 3)"),
    ("_storage/disk.py", "from . import commit", "a circle of imports: mmap_ninja._storage."),
    ("dense.py", "from mmap_ninja import D", "dense (level 3) imports mmap_ninja (level 8)"),
    ("numpy.py", "from mmap_ninja import generic", "numpy (level 6) imports mmap_ninja.generic (level 6)"),
    ("gather.py", "from .order import Order", "gather (level 1) imports mmap_ninja.order (level 1)"),
    ("gather.py", "from . import _storage", "gather (level 1) imports mmap_ninja._storage (level 1)"),
    ("dense.py", "import torch", "dense imports a framework, which only mmap_ninja_torch may"),
    ("dense.py", "def f():\n    from jax.numpy import x", "dense imports a framework, which only mmap_ninja_jax may"),
    ("utils.py", "", "mmap_ninja.utils has no level"),
    ("../mmap_ninja_rust/__init__.py", "", "mmap_ninja_rust has no level"),
    ("../mmap_ninja_tf/a.py", "import torch", "mmap_ninja_tf imports a framework, which only mmap_ninja_torch may"),
    ("../mmap_ninja_tf/a.py", "import mmap_ninja_torch", "mmap_ninja_tf (level 9) imports mmap_ninja_torch (level 9)"),
    ("../mmap_ninja_tf/a.py", "import mmap_ninja._storage.disk", "mmap_ninja_tf imports _storage, which is not public"),
    ("../mmap_ninja_tf/a.py", "from mmap_ninja.dense import _x", "mmap_ninja_tf imports _x, which is not public"),
]


@pytest.mark.parametrize(("file", "text", "problem"), BAD, ids=range(len(BAD)))
def test_the_check_can_fail(tmp_path: Path, file: str, text: str, problem: str) -> None:
    tree(tmp_path, GOOD)
    tree(tmp_path / CORE, {file: text})
    assert any(problem in found for found in problems_of(tmp_path)), problems_of(tmp_path)


LAZY = {*FRAMEWORKS, "joblib", "cloudpickle", "zstandard", "tqdm", "ml_dtypes"}


def test_importing_the_core_imports_nothing_optional() -> None:
    code = f"import {CORE}, sys; print({CORE}.__file__, *sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    file, *loaded = result.stdout.split()
    assert Path(file) == SRC / CORE / "__init__.py"
    assert "numpy" in loaded
    assert LAZY.intersection(loaded) == set()
