"""Trials drawn from a seed: each kind of fault at any call."""

import errno
from collections.abc import Iterator, Sequence

import numpy as np

from faults_below.library import Call, Fault
from faults_below.trial import Trial

_ANY = errno.EIO, errno.EACCES
_FULL = errno.EIO, errno.ENOSPC, errno.EDQUOT
# What each operation reports, where the operating system is not lying.
ERRNOS = {
    "create": (*_FULL, errno.EMFILE, errno.EACCES, errno.EROFS, errno.EINTR),
    "open": (*_ANY, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR),
    "read": (errno.EIO, errno.EINTR, errno.ESTALE),
    "write": (*_FULL, errno.EFBIG, errno.EINTR),
    "sync": (*_FULL, errno.EINTR),
    "rename": (*_FULL, errno.EACCES, errno.EROFS),
    "link": (*_FULL, errno.EMLINK, errno.EPERM),
    "unlink": (*_ANY, errno.EROFS),
    "mkdir": (*_FULL, errno.EACCES, errno.EROFS),
    "rmdir": (errno.EIO, errno.ENOTEMPTY),
    "cut": (errno.EIO, errno.EINTR),
    "stat": (*_ANY, errno.ENOMEM, errno.ESTALE),
    "map": (errno.ENOMEM, errno.EIO),
    "close": (*_FULL, errno.EINTR),
    "lock": (errno.EIO, errno.ENOLCK, errno.EINTR),
    "dup": (errno.EMFILE,),
    "copy": (*_FULL, errno.EOPNOTSUPP, errno.EXDEV),
    "list": (*_ANY, errno.EMFILE),
}
CHANGING = "create", "write", "sync", "rename", "link", "unlink", "mkdir", "cut", "copy"
DOING = *CHANGING, "close", "lock"  # what may be done, and yet report an error
# What goes wrong for good: an error, and the calls that it strikes; none means all.
LASTING = [
    (errno.EIO, ()),  # the device is gone
    (errno.ESTALE, ()),  # the server
    (errno.EIO, CHANGING),
    (errno.EROFS, ("create", "write", "rename", "link", "unlink", "mkdir", "rmdir", "cut", "copy")),
    (errno.ENOSPC, ("create", "write", "mkdir", "rename", "copy")),
    (errno.EDQUOT, ("create", "write", "mkdir", "sync", "close")),
    (errno.EMFILE, ("create", "open", "dup", "list")),
    (errno.ENOMEM, ("map", "dup", "stat")),
    (errno.EACCES, ("create", "open", "rename", "unlink", "mkdir", "rmdir", "list")),
    (errno.EIO, ("sync",)),
    (errno.EIO, ("read", "map")),
    (errno.EIO, ("cut", "unlink", "rmdir")),
]
_MOST_MORE = 30  # calls after the end of the change as it was recorded, which an error may add


class Drawing:
    """Trials of one change."""

    def __init__(self, name: str, calls: Sequence[Call], seed: int) -> None:
        self._name, self._calls = name, calls
        self._rng = np.random.default_rng([seed, *name.encode()])
        self._kinds = {
            "single": self._single,
            "after": self._after,
            "short": self._short,
            "interrupt": self._interrupt,
            "lasting": self._lasting,
            "pair": self._pair,
        }

    def every(self) -> Iterator[Trial]:
        """One fault at each call: an error, one after it is done, a short one, Ctrl-C before and after."""
        for at, call in enumerate(self._calls):
            faults = [self._error(at), Fault("interrupt", at), Fault("interrupt-after", at)]
            faults += [Fault("after", at, errno.EIO)] * (call.operation in DOING)
            faults += [Fault("short", at)] * (call.operation in ("read", "write", "copy"))
            for fault in faults:
                yield Trial(self._name, (fault,), bool(self._rng.integers(2)))

    def some(self) -> Iterator[Trial]:
        """Trials of any kind, without end."""
        while True:
            kind = self._pick([*self._kinds, "single"])
            faults = self._kinds[kind](int(self._rng.integers(len(self._calls))))
            yield Trial(self._name, tuple(faults), bool(self._rng.integers(2)))

    def _pick(self, choices: Sequence) -> object:
        return choices[int(self._rng.integers(len(choices)))]

    def _error(self, at: int, moment: str = "before") -> Fault:
        """One that this call can report; of a call that was not recorded, any."""
        operation = self._calls[at].operation if at < len(self._calls) else "write"
        errors = [number for number in ERRNOS[operation] if moment == "before" or number != errno.EINTR]
        return Fault(moment, at, self._pick(errors))  # what is done was not interrupted: Python would do it again

    def _next(self, at: int, *operations: str) -> int:
        """The first call from there on, or from the beginning, that is one of these; else the call itself."""
        found = [k for k, call in enumerate(self._calls) if call.operation in operations]
        return next((k for k in found if k >= at), found[0] if found else at)

    def _single(self, at: int) -> list[Fault]:
        return [self._error(at)]

    def _after(self, at: int) -> list[Fault]:
        at = self._next(at, *DOING)
        return [Fault("after", at, errno.EIO)]

    def _short(self, at: int) -> list[Fault]:
        at = self._next(at, "write", "read", "copy")
        found = [Fault("short", at, is_lasting=bool(self._rng.integers(3) == 0))]
        if self._rng.integers(2):
            found.insert(0, Fault("before", at + 1, self._pick(_FULL), is_lasting=bool(self._rng.integers(2))))
        return found

    def _interrupt(self, at: int) -> list[Fault]:
        found = [Fault(self._pick(["interrupt", "interrupt-after"]), at)]
        if self._rng.integers(4) == 0:
            found.append(Fault("interrupt", at + 1 + int(self._rng.integers(5))))
        return found

    def _lasting(self, at: int) -> list[Fault]:
        number, operations = self._pick(LASTING)
        if operations:
            at = self._next(at, *operations)
        moment = "after" if number == errno.EIO and self._rng.integers(4) == 0 else "before"
        return [Fault(moment, at, number, is_lasting=True, only=operations)]

    def _pair(self, at: int) -> list[Fault]:
        first = self._pick([self._single, self._after, self._interrupt])(at)[0]
        later = first.at + 1 + int(self._rng.integers(len(self._calls) - at + _MOST_MORE))
        if self._rng.integers(2):
            later = first.at + 1 + int(self._rng.integers(8))  # while the first one is dealt with
        return [first, self._pick([self._error, lambda at: self._error(at, "after"), self._interrupted])(later)]

    def _interrupted(self, at: int) -> Fault:
        return Fault("interrupt", at)
