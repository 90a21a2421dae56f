"""The threads that make items ahead, none of which a test may leave behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest


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
