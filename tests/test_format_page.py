"""`docs/format.md` lists the keys of a manifest: those that are written, and no others."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmap_ninja import RaggedMmap
from mmap_ninja._storage.manifest import Manifest, encode

PAGE = Path(__file__).parents[1] / "docs" / "format.md"


def test_the_page_lists_every_key_of_a_manifest(tmp_path):
    def interrupted():
        yield np.arange(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RaggedMmap.from_generator(tmp_path / "rows", interrupted(), 1)
    written = json.loads((tmp_path / "rows" / "building.json").read_bytes())
    table = PAGE.read_text().partition("## The manifest")[2].partition("\n## ")[0]
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE)}
    lost = json.loads(encode(replace(Manifest("ragged", "0" * 32), lost=True)))
    assert sorted(rows) == sorted(written.keys() | lost.keys())
    assert set(written["files"]["data"]) <= set(re.findall(r"`(\w+)`", rows["files"]))
    assert set(written["building"]) == set(re.findall(r"`(\w+)`", rows["building"])) & set(written["building"])
