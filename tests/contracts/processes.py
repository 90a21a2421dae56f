"""What other processes run, and how they are started."""

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor

from mmap_ninja import open_map


def read_all(m):
    return list(m)


def read_pickled(raw):
    return list(pickle.loads(raw))


def open_and_read(path):
    m = open_map(path)
    return list(m), m[:2], m.lengths.tolist(), repr(m)


def extend_by_one(m, sample):
    m.append(sample)
    return len(m)


def drop_privileges():
    """Root may do everything; without its capabilities it is bound by permissions like everybody else."""
    if os.geteuid() == 0:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
            raise OSError(ctypes.get_errno(), "capset")


def in_process(function, *args, method="fork", unprivileged=False):
    """What `function(*args)` returns in another process."""
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, context, drop_privileges if unprivileged else None) as pool:
        return pool.submit(function, *args).result()


@contextlib.contextmanager
def locked(path):
    """Hold the writer's lock of a map, as another process would; yields a function that lets go of it."""
    with open(path / ".lock", "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)
