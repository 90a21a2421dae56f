"""What the tests of a contract compare: samples, folders, manifests, messages."""

import hashlib
import json
from pathlib import Path

import numpy as np


def same(found, expected):
    """Whether two samples are the same in type, dtype, shape and every bit."""
    if isinstance(expected, np.ndarray | np.generic):
        found_array, expected = np.asarray(found), np.asarray(expected)
        return (
            isinstance(found, np.ndarray | np.generic)
            and found_array.dtype == expected.dtype
            and found_array.shape == expected.shape
            and found_array.tobytes() == expected.tobytes()
        )
    return type(found) is type(expected) and found == expected


def assert_same(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert same(one, other), f"sample {i}: {one!r}, expected {other!r}"


def tree(folder):
    """Every file and folder below: what it contains, when it was written, its permissions."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        status = path.stat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        found[str(path.relative_to(folder))] = (content, status.st_mtime_ns, status.st_mode)
    return found


def manifest(folder):
    return json.loads((Path(folder) / "manifest.json").read_text())


def notes(error):
    """The message of an error with everything that was added to it."""
    return " ".join([str(error), *getattr(error, "__notes__", [])])
