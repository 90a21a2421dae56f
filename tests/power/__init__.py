"""Power cuts, replayed in the manner of ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).

`Recording` notes every call of `mmap_ninja._storage.disk` that changes the disk, with all its bytes, while it is done
in a real folder. Its `states` are what a power cut can leave: for every prefix of those calls, every subset of what
was volatile then. What is written to a file (or cut from it) is volatile until that file is synced; names that are
made, moved or removed are volatile until their folder is synced. A sync of a file does not make its name durable. A
volatile write is not there, there as a whole, its first half, as many zeros, or as many bytes of what was in the same
blocks of the disk before, in files of others.

`replay` puts each state into a folder, opens it as after a reboot, compares it with what was promised, writes to it
again with other values, and compares again.
"""

from power.judge import findings, opened, others
from power.recording import ABSENT, HALF, STALE, WHOLE, ZEROS, Recording
from power.replaying import Figures, ram, rebooted, recorded, replay
from power.story import Step, Story

__all__ = [
    "ABSENT",
    "HALF",
    "STALE",
    "WHOLE",
    "ZEROS",
    "Figures",
    "Recording",
    "Step",
    "Story",
    "findings",
    "opened",
    "others",
    "ram",
    "rebooted",
    "recorded",
    "replay",
]
