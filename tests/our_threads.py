"""The threads that make items ahead, none of which a test may leave behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from mmap_ninja._pace import Pace


def threads() -> list[threading.Thread]:
    """Those that run."""
    return [thread for thread in threading.enumerate() if thread.name == "mmap_ninja"]


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """After each test of a file that names it, they have ended."""
    yield
    gc.collect()
    for thread in threads():
        thread.join(10)
    assert threads() == []


@pytest.fixture(autouse=True)
def always_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file that names it, a thread makes all batches from the first one on, whether it pays or not."""

    def begin(pace: Pace, *, pays: bool) -> None:
        pace.pays = True

    monkeypatch.setattr(Pace, "_begin", begin)
    monkeypatch.setattr(Pace, "count", lambda *_, **__: None)
