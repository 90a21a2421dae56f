"""Indices of every form, right and wrong, for a map of `N` samples."""

import numpy as np

N = 9  # samples of every contract map

SINGLE = [0, 3, N - 1, -1, -N, np.int64(2), np.int8(-3), np.uint8(4), np.array(5)]
MANY = [
    slice(None),
    slice(2, 5),
    slice(None, None, 3),
    slice(None, None, -1),
    slice(-2, None),
    slice(7, 1, -2),
    slice(5, 2),
    slice(20, 30),
    [],
    [3],
    [0, -1, 4, 4],
    range(1, 8, 3),
    range(0),
    np.array([2, 0, -9]),
    np.array([], int),
    np.array([1, 8], np.uint8),
    np.arange(N)[::-2],
    np.arange(N) % 2 == 0,
    np.zeros(N, bool),
    [True, False, False, True, True, False, False, False, True],
]
OUTSIDE = [N, -N - 1, -2 * N, 10**6, 2**70, np.int64(N), [0, N], [-N - 1], np.array([0, 99]), np.array([200], np.uint8)]
WRONG_TYPES = [
    True,
    np.True_,
    1.0,
    np.float64(1),
    None,
    "1",
    (0, 1),
    Ellipsis,
    [0.5],
    ["a"],
    [[0], [1]],
    [[0], [1, 2]],
    np.zeros((2, 2), int),
    np.zeros((3, 3), bool),
    np.array([1.0]),
    np.array(1.0),
    np.array(True),
    slice("a", "b"),
]


def pick(samples, index):
    """`samples[index]` for a list and everything that a map takes as an index for many."""
    if isinstance(index, slice):
        return samples[index]
    index = np.asarray(index)
    if index.dtype == bool:
        index = np.flatnonzero(index)
    return [samples[int(i)] for i in index]
