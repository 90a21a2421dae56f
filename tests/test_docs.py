"""Every Python block of README.md and docs/ runs, page by page, in an empty folder. (pytest runs the docstrings.)"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FRAMEWORKS = "torch", "tensorflow", "jax"  # of the adapters; the core is tested without them, too

# Looser than any reader of Markdown: whatever somebody could have meant as Python. A language that is not
# Python has to be named, so that a block without a name counts too.
FENCE = re.compile(r"^[ \t>*+-]*(?:\d+[.)])?[ \t]*(`{3,}|~{3,})[ \t]*(.*)$")
OTHER = re.compile(r"(bash|console|json|make|mermaid|sh|text|toml|yaml)\b")


def parse(page: Path) -> Document:
    return Sybil(parsers=[PythonCodeBlockParser()]).parse(page)


def escaped(page: Path) -> list[int]:
    """Lines at which a block opens that is not known to be another language, and yet is not run."""
    run = {example.line for example in parse(page).examples()}
    lines, opening = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not (fence := FENCE.match(line)):
            continue
        if opening is None:
            opening = fence[1]
            if number not in run and not OTHER.match(fence[2]):
                lines.append(number)
        elif fence[1].startswith(opening) and not fence[2]:
            opening = None
    return lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = parse(page)
    document.namespace["__name__"] = "__main__"  # as in a script, so that what a guard protects runs too
    missing = set()
    for example in document.examples():
        named = {name for name in FRAMEWORKS if name in example.parsed or name == page.stem}
        lacks = {name for name in named if find_spec(name) is None}
        if not lacks:
            example.evaluate()
        missing |= lacks
    if missing:
        pytest.skip(f"the blocks that need {', '.join(missing)} did not run")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_block_escapes(page: Path) -> None:
    assert escaped(page) == [], f"{page}: not run; write ```python, or name the other language"


@pytest.mark.parametrize(
    "block",
    [
        "```py\n1 / 0\n```",
        "```Python\n1 / 0\n```",
        "``` python\n1 / 0\n```",
        '```python title="a.py"\n1 / 0\n```',
        "```pycon\n>>> 1 / 0\n```",
        "```{python}\n1 / 0\n```",
        "~~~python3\n1 / 0\n~~~",
        "```\n1 / 0\n```",
        "- a list\n\n  ```py\n  1 / 0\n  ```",
        "> ```py\n> 1 / 0\n> ```",
        "````text\n```\n````\n\n```py\n1 / 0\n```",
    ],
)
def test_the_guard_sees_what_is_not_run(block: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```python\nx = 1\n```\n\n{block}\n", encoding="utf-8")
    assert len(escaped(page)) == 1


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("```python\nassert 1 + 1 == 3\n```", AssertionError),
        ("- a list\n\n  ```python\n  1 / 0\n  ```", ZeroDivisionError),
        ("```python\nif __name__ == '__main__':\n    1 / 0\n```", ZeroDivisionError),
        ("```python\nimport warnings\nwarnings.warn('no')\n```", UserWarning),
    ],
)
def test_a_wrong_block_fails(
    block: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```python\nx = 1\n```\n\n{block}\n", encoding="utf-8")
    assert escaped(page) == []
    with pytest.raises(error):
        test_every_block_runs(page, tmp_path, monkeypatch)
