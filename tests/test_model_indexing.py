"""An index means what lists and NumPy say, in maps of every kind."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmap_ninja.errors import SampleIndexError
from model import quiet
from model.indexing import check_index, indices
from model.kinds import KINDS, TEXTS, floats, mixed, small

INDICES, LONG_INDICES = 100, 3_000  # of each kind, eight at a time


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_means_what_lists_and_numpy_say(tmp_path: Path, kind: str) -> None:
    index_all(kind, tmp_path, INDICES)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_means_what_lists_and_numpy_say_at_length(tmp_path: Path, kind: str) -> None:
    index_all(kind, tmp_path, LONG_INDICES)


def index_all(kind: str, folder: Path, examples: int) -> None:
    cls, options = KINDS[kind].cls, KINDS[kind].options
    pool = {"strings": TEXTS, "zstd": TEXTS, "bytes": list(map(str.encode, TEXTS))}.get(kind)
    if pool is None:
        pool = [{"mixed": mixed, "floats": floats, "dense": small}[kind]((2, 3), [i]) for i in range(5)]
    maps = [cls.from_generator(folder / str(n), iter(pool[:n]), 10, sync=False, **options) for n in range(6)]
    seen: set[str] = set()

    @settings(quiet, max_examples=examples)
    @given(data=st.data())
    def act(data: st.DataObject) -> None:
        n = data.draw(st.integers(0, 5), label="samples")
        for index in data.draw(st.lists(indices(n), min_size=8, max_size=8), label="indices"):
            seen.add(check_index(maps[n], pool[:n], index, is_dense=kind == "dense"))

    act()
    assert seen >= {"many", "index SampleIndexError", "index IndexTypeError", "index ArgumentError"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [2**63, 2**64 - 1])
def test_an_integer_that_no_array_takes_is_out_of_range(tmp_path: Path, kind: str, index: int) -> None:
    sample = {"strings": "a", "zstd": "a", "bytes": b"a"}.get(kind, np.zeros((2, 3), "<i4"))
    m = KINDS[kind].cls.from_generator(tmp_path / "map", iter([sample]), 1, **KINDS[kind].options)
    with pytest.raises(SampleIndexError, match=f"index {index} is out of range for a map of 1 samples"):
        m[index]
