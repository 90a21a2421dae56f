"""The preloaded library, reached from the process that it is in: which calls it strikes, and which it has seen."""

import ctypes
import errno
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("preload.c")
VARIABLE = "LD_PRELOAD"
# In the order of preload.c.
OPERATIONS = (
    *("create", "open", "read", "write", "sync", "rename", "link", "unlink", "mkdir", "rmdir", "cut", "stat", "map"),
    *("close", "lock", "dup", "copy", "list"),
)
MOMENTS = "before", "after", "short", "interrupt", "interrupt-after"
_LAST = 2**31 - 1


def missing() -> str | None:
    """Why the library cannot be built here; None where it can."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "calls are intercepted in the GNU C library of Linux alone"
    if tuple(map(int, platform.libc_ver()[1].split(".")[:2])) < (2, 33):
        return "before 2.33, the GNU C library had other names for `stat`"
    return None if _compiler() else "there is no C compiler"


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def built(folder: Path) -> Path:
    """The compiled library, in this folder."""
    target = folder / "preload.so"
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-Wno-nonnull-compare", "-shared", "-fPIC"]
    command = [_compiler() or "cc", *options, "-o", str(target), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


class _Fault(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("moment", "number", "start", "stop")] + [
        ("operations", ctypes.c_uint)
    ]


class _Call(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_int), ("is_struck", ctypes.c_int), ("name", ctypes.c_char * 56)]


@dataclass(frozen=True)
class Call:
    """One call: what it does, and the last name of its path."""

    operation: str
    name: str
    is_struck: bool = False

    def __str__(self) -> str:
        return f"{self.operation} {self.name}"


@dataclass(frozen=True)
class Fault:
    """What befalls the call number `at`, or each one from there on; with `only`, calls of these operations alone.

    `before`: an error instead of the call. `after`: the call is done, and reports an error. `short`: it moves half of
    the bytes. `interrupt`, `interrupt-after`: Ctrl-C while it is made. Its text is what `parse` reads:
    `before:12:EIO`, `short:7`, `before:12+:ENOSPC:write,create`.
    """

    moment: str
    at: int
    errno: int = 0
    is_lasting: bool = False
    only: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.moment}:{self.at}{'+' * self.is_lasting}"
        text += f":{errno.errorcode[self.errno]}" if self.errno else ":" * bool(self.only)
        return text + (f":{','.join(self.only)}" if self.only else "")

    @classmethod
    def parse(cls, text: str) -> "Fault":
        moment, at, name, only = re.fullmatch(r"([a-z-]+):(\d+\+?)(?::(\w*))?(?::([a-z,]+))?", text).groups()
        number = getattr(errno, name) if name else 0
        return cls(moment, int(at.rstrip("+")), number, at.endswith("+"), tuple(only.split(",")) if only else ())

    def strikes(self, at: int, call: Call) -> bool:
        """True if this is what befell a call that was struck."""
        is_there = at >= self.at if self.is_lasting else at == self.at
        return is_there and (not self.only or call.operation in self.only)

    @property
    def is_error(self) -> bool:
        return self.moment in ("before", "after")

    def for_c(self) -> _Fault:
        bits = sum(1 << OPERATIONS.index(name) for name in self.only or OPERATIONS)
        stop = _LAST if self.is_lasting else self.at
        return _Fault(MOMENTS.index(self.moment), self.errno, self.at, stop, bits)


class Library:
    """The library in this process."""

    def __init__(self, path: str) -> None:
        self._c = ctypes.CDLL(path)
        self._c.faults_calls.restype = ctypes.POINTER(_Call)

    def watch(self, folder: Path) -> None:
        """Look at the calls below this folder from now on."""
        self._c.faults_root(os.fsencode(folder))

    def arm(self, faults: Iterable[Fault] = ()) -> None:
        """Count from 0, and strike."""
        given = [fault.for_c() for fault in faults]
        self._c.faults_arm((_Fault * len(given))(*given), len(given))

    def disarm(self) -> None:
        self._c.faults_disarm()

    def calls(self) -> list[Call]:
        """Those since it was armed."""
        found = self._c.faults_calls()[: self._c.faults_count()]
        return [Call(OPERATIONS[call.operation], call.name.decode(), bool(call.is_struck)) for call in found]
