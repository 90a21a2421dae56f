"""What every kind of map does, once: a kind inherits `MapContract` and says which samples it holds."""

from contracts.assigning import AssigningContract
from contracts.comparison import assert_same, manifest, notes, same, tree
from contracts.growing import GrowingContract
from contracts.handles import HandleContract
from contracts.indices import MANY, OUTSIDE, WRONG_TYPES, N, pick
from contracts.making import MakingContract
from contracts.processes import drop_privileges, in_process, locked
from contracts.reading import ReadingContract
from contracts.sources import FailsAt, Unsized, failing

__all__ = [
    "MANY",
    "OUTSIDE",
    "WRONG_TYPES",
    "FailsAt",
    "MapContract",
    "N",
    "Unsized",
    "assert_same",
    "drop_privileges",
    "failing",
    "in_process",
    "locked",
    "manifest",
    "notes",
    "pick",
    "same",
    "tree",
]


class MapContract(MakingContract, ReadingContract, GrowingContract, HandleContract, AssigningContract):
    """Tests that hold for every kind. A subclass sets what `KindContract` names."""
