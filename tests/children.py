"""Forked children that a test waits for, or kills."""

import os
import signal
from collections.abc import Callable

from faults import exit_code, start_child


class Children(list[int]):
    """Forked children, killed and reaped at the end of a `with` block."""

    def start(self, act: Callable[[], object]) -> int:
        self.append(start_child(act))
        return self[-1]

    def wait(self, pid: int) -> int:
        self.remove(pid)
        return exit_code(pid)

    def kill(self, pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        return self.wait(pid)

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *error: object) -> None:
        for pid in self[:]:
            self.kill(pid)


def ready(read: int) -> str:
    """What another process has to say first."""
    found = os.read(read, 100).decode()
    assert found, "the other process has died"
    return found
