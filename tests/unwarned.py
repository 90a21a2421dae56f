"""Without the warnings that a test brings about."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mmap_ninja.errors import PartBuiltWarning, UpgradeWarning


@contextmanager
def unwarned() -> Iterator[None]:
    """Without the warnings of unfinished maps and of upgrades."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartBuiltWarning)
        warnings.simplefilter("ignore", UpgradeWarning)
        yield
