"""`Permutation`: the same numbers everywhere and for ever, each number once, and nothing that tells it from chance.

Every check of randomness gives how many standard deviations a figure is off. Ours has to stay below LIMIT and weaker
shuffles have to exceed it by far, so none of the checks is blind. Seeds are fixed: what passes once passes always.
"""

import math
import zlib

import numpy as np
import pytest

from mmap_ninja.permutation import Permutation, _Feistel, _hashes

LIMIT = 5.5

# --- the same numbers everywhere


def plain(n, seed, epoch):
    """The definition of the permutation, in whole numbers and nothing else."""

    def mixed(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    def after(key, count):
        return [mixed((key + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(1, count + 1)]

    def hashed(value, key):
        value = (value ^ key >> 32) * 0x7FEB352D % 2**32
        return (value ^ value >> 15 ^ key % 2**32) * 0x846CA68B % 2**32

    key = 0
    for word in (n, seed, epoch):
        key = after(key ^ word, 1)[0]
    if n <= 2**14:
        hashes = after(key, n)
        return sorted(range(n), key=hashes.__getitem__).__getitem__
    width = (n - 1).bit_length() // 2
    size = -(-n // 2**width)
    keys = after(key, 6)

    def value(position):
        left, right = divmod(position, 2**width)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            right ^= hashed(left, even) >> 32 - width
            left = (left + (hashed(right, odd) * size >> 32)) % size
        position = left * 2**width + right
        return position if position < n else value(position)

    return value


GOLDEN = [
    (10, 0, 0, [4, 1, 3, 6], 2611618256),
    (10, 0, 1, [1, 0, 4, 5], 3024952413),
    (10, 1, 0, [7, 9, 4, 2], 4027304864),
    (2**14, 2**64 - 1, 0, [121, 1698, 6719, 13282], 3511689606),
    (2**14 + 1, 0, 0, [4518, 14505, 12001, 6491], 2335814826),
    (2**21 + 1, 1, 2, [1270273, 659384, 1176358, 616517], 3361048634),
    (10**9, 0, 0, [547022144, 301326439, 980569863, 331801322], 4077451265),
    (10**12, 0, 2**64 - 1, [545473668463, 65132108492, 579013401850, 128917478484], 1059443211),
    (10**12, 12345, 6, [483607184938, 238410424909, 279028840953, 180889940825], 1486370769),
]


@pytest.mark.parametrize(("n", "seed", "epoch", "first", "crc"), GOLDEN)
def test_values_never_change(n, seed, epoch, first, crc):
    """A release that changes one of these breaks every run that was begun before it."""
    values = Permutation(n, seed, epoch)(np.arange(min(n, 1000)))
    assert values[: len(first)].tolist() == first
    assert zlib.crc32(values.astype("<i8").tobytes()) == crc


@pytest.mark.parametrize("n", [1, 2, 10, 2**14, 2**14 + 1, 40_000, 2**16 + 1, 2**21, 10**9, 10**12, 2**62 - 1, 2**62])
def test_values_are_those_of_the_definition(n):
    rng = np.random.default_rng(n)
    positions = np.unique(np.concatenate([[0, n - 1], rng.integers(0, n, 300)]))
    for seed, epoch in [(0, 0), (2**64 - 1, 3), (5, 2**64 - 1)]:
        expected = plain(n, seed, epoch)
        assert Permutation(n, seed, epoch)(positions).tolist() == [expected(int(i)) for i in positions]


# --- each number once


def is_bijection(n, seed):
    seen = np.zeros(n, bool)
    seen[Permutation(n, seed)(np.arange(n))] = True  # a number outside of the range is an IndexError
    return seen.all()


def test_each_number_comes_once_for_every_small_n():
    assert [n for n in range(2001) if not is_bijection(n, seed=n)] == []


@pytest.mark.parametrize("bits", range(11, 23))
def test_each_number_comes_once_around_powers_of_two(bits):
    assert [n for n in (2**bits - 1, 2**bits, 2**bits + 1) if not is_bijection(n, seed=bits)] == []


@pytest.mark.parametrize("n", [17_000, 65_537 * 3, 999_983, 1_000_000, 1024 * 1025 + 1])
def test_each_number_comes_once_for_other_n(n):
    assert is_bijection(n, seed=1)


@pytest.mark.parametrize("n", [2**32, 2**33 + 1, 10**12, 2**48 + 1, 2**62])
def test_numbers_of_huge_permutations_are_distinct(n):
    permutation = Permutation(n, seed=1)
    half = 2**17
    positions = np.concatenate([np.arange(half), np.arange(n - half, n), np.arange(half, n - half, n // 2**17)])
    values = permutation(positions)
    assert values.min() >= 0
    assert values.max() < n
    assert len(np.unique(values)) == len(positions)


def test_a_network_walks_back_into_the_range():
    """With an n so far below the product of the ranges that many values fall outside, several times in a row."""
    for n in range(5, 300):
        network = _Feistel(n, _hashes(n, 6).tolist())
        network.size += 40
        assert sorted(network(np.arange(n)).tolist()) == list(range(n))


# --- like chance: the checks


def off(counts, expected, degrees=None):
    """By how many standard deviations the counts are further from what is expected than chance would have it."""
    degrees = degrees or counts.size - 1
    return (float(((counts - expected) ** 2 / expected).sum()) - degrees) / math.sqrt(2 * degrees)


def grid(a, b, cells=32):
    """How often the pairs of two columns of cell numbers come, against unrelated columns."""
    counts = np.bincount(a * cells + b, minlength=cells**2).reshape(cells, cells)
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    return off(counts, expected, (cells - 1) ** 2)


def cell(values, n, cells=32):
    return (values.astype(float) * cells / n).astype(int)


def where(at, values, n):
    """Parts of the range in which positions lie, against those of their values."""
    return grid(cell(at - at[0], at[-1] - at[0] + 1), cell(values, n))


def low_bits(at, values, n):
    return grid(at % 32, values % 32)


def serial(at, values, n):
    """Correlation with the next value, and with those up to ten further."""
    x = (values - (n - 1) / 2) / (n / math.sqrt(12))
    squares = [float(x[lag:] @ x[:-lag]) ** 2 / (len(x) - lag) for lag in range(1, 11)]
    return (sum(squares) - 10) / math.sqrt(20)


def pairs(values):
    return values[: len(values) // 2 * 2].reshape(-1, 2).T


def distance(at, values, n):
    """Of two neighbours, in 32 classes; each pair is used once."""
    first, second = pairs(values)
    below = np.arange(33) / 32
    share = np.diff(2 * below - below**2)
    counts = np.bincount(cell(abs(first - second), n), minlength=32)
    return off(counts, share * len(first))


def low_distance(at, values, n):
    """Of two neighbours, in the lowest five bits: where too few rounds of a Feistel network show last."""
    first, second = pairs(values)
    counts = np.bincount((first ^ second) % 32, minlength=32)
    return off(counts, len(first) / 32)


def order_of_four(at, values, n):
    """Which of the 24 orders the values of four neighbours have."""
    four = values[: len(values) // 4 * 4].reshape(-1, 4).T
    larger = [four[i] > four[j] for i in range(4) for j in range(i)]
    counts = np.unique(sum(bit.astype(int) << k for k, bit in enumerate(larger)), return_counts=True)[1]
    return off(np.pad(counts, (0, 24 - len(counts))), four.shape[1] / 24)


CHECKS = [where, low_bits, serial, distance, low_distance, order_of_four]


# --- like chance: the shuffles


def ours(n, seed, epoch=0):
    return Permutation(n, seed, epoch)(np.arange(n))


def rounds(count):
    def shuffled(n, seed, epoch=0):
        return _Feistel(n, _hashes(seed * 2**32 + epoch, count).tolist())(np.arange(n))

    return shuffled


def linear(n, seed, epoch=0):
    factor = next(f for f in range(int(n * 0.618), n) if math.gcd(f, n) == 1)
    return (np.arange(n) * factor + 7919 * seed + epoch) % n


def in_a_buffer(n, seed, epoch=0):
    rng = np.random.default_rng([seed, epoch])
    return np.concatenate([start + rng.permutation(min(1000, n - start)) for start in range(0, n, 1000)])


def strangest(check, shuffle, n, seeds):
    """The figure of the worst seed, or the one of all seeds together if that is more."""
    at = np.arange(n)
    figures = np.array([check(at, shuffle(n, seed), n) for seed in range(seeds)])
    return max(abs(figures).max(), abs(figures.sum()) / math.sqrt(seeds))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("n", [10_000, 2**14, 2**14 + 1, 100_003, 2**20])
def test_permutation_is_like_chance(check, n):
    assert strangest(check, ours, n, seeds=4) < LIMIT


@pytest.mark.parametrize("check", [where, low_bits, low_distance])
@pytest.mark.parametrize("n", [2**14 + 1, 2**15])
def test_many_permutations_together_show_no_trace_of_the_network(check, n):
    assert strangest(check, ours, n, seeds=300) < LIMIT


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("start", [0, 123_456_789_012])
@pytest.mark.parametrize("n", [10**9, 10**12])
def test_part_of_a_huge_permutation_is_like_chance(check, n, start):
    at = np.arange(start % n, start % n + 2**18)
    assert abs(check(at, Permutation(n, seed=3, epoch=1)(at), n)) < LIMIT


SEEN = [
    *[(rounds(2), check, 4) for check in CHECKS],
    *[(rounds(3), check, 4) for check in (where, distance, order_of_four)],
    (rounds(4), low_distance, 300),
    (rounds(5), where, 300),
    *[(linear, check, 4) for check in (where, serial, distance, low_distance, order_of_four)],
    *[(in_a_buffer, check, 4) for check in (where, serial, distance)],
]


@pytest.mark.parametrize(("weak", "check", "seeds"), SEEN)
def test_the_checks_see_weak_shuffles(weak, check, seeds):
    assert strangest(check, weak, 2**15, seeds) > 1.5 * LIMIT


# --- like chance over many seeds, and over many epochs


def over_seeds(shuffle, n, count):
    return np.array([shuffle(n, seed, 0) for seed in range(count)])


def over_epochs(shuffle, n, count):
    return np.array([shuffle(n, 7, epoch) for epoch in range(count)])


def fixed_points(tables):
    """One a permutation on average, with a variance of one."""
    rows, n = tables.shape
    return ((tables == np.arange(n)).sum() - rows) / math.sqrt(rows)


def ascents(tables):
    """How often a value is followed by a larger one: (n - 1) / 2 times, with a variance of (n + 1) / 12."""
    rows, n = tables.shape
    return ((tables[:, 1:] > tables[:, :-1]).sum() - rows * (n - 1) / 2) / math.sqrt(rows * (n + 1) / 12)


def every_position(tables):
    """Each value as often as any other at each position. As rows and columns have fixed sums, there are fewer degrees
    of freedom than cells."""
    rows, n = tables.shape
    counts = np.bincount((np.arange(n) * n + tables).ravel(), minlength=n * n)
    scale = (n - 1) / n  # what a cell varies less by than if the others were free
    return (float(((counts - rows / n) ** 2).sum()) / (rows / n * scale) - n * n) / math.sqrt(2) / (n - 1)


def agreements(tables):
    """Positions at which one permutation and the next have the same value: one a pair on average."""
    rows, _ = tables.shape
    return ((tables[1:] == tables[:-1]).sum() - (rows - 1)) / math.sqrt(rows - 1)


def one_after_the_other(tables):
    """Where the value of one permutation lies, against that of the next one at the same position."""
    _, n = tables.shape
    return grid(cell(tables[:-1].ravel(), n, 16), cell(tables[1:].ravel(), n, 16), 16)


def odd_ones(tables):
    """Half of all permutations are odd: those with an odd number of values less cycles."""
    rows, n = tables.shape
    reached, cycles = np.zeros(tables.shape, bool), np.zeros(rows, int)
    for start in range(n):
        new = ~reached[:, start]
        cycles += new
        at = np.full(rows, start)
        while not reached[np.arange(rows), at].all():
            reached[np.arange(rows), at] = True
            at = tables[np.arange(rows), at]
    return (((n - cycles) % 2).sum() - rows / 2) / math.sqrt(rows / 4)


OVER_MANY = [fixed_points, ascents, every_position, agreements, one_after_the_other, odd_ones]


@pytest.mark.parametrize("over", [over_seeds, over_epochs])
@pytest.mark.parametrize("check", OVER_MANY)
@pytest.mark.parametrize("n", [16, 17, 50])
def test_small_permutations_are_like_chance(check, n, over):
    assert abs(check(over(ours, n, 4000))) < LIMIT


@pytest.mark.parametrize("over", [over_seeds, over_epochs])
@pytest.mark.parametrize("check", [fixed_points, ascents, agreements, one_after_the_other])
@pytest.mark.parametrize("n", [2**14, 2**14 + 1])
def test_larger_permutations_are_like_chance(check, n, over):
    assert abs(check(over(ours, n, 100))) < LIMIT


def turned(n, seed, epoch=0):
    return (ours(n, 0) + seed + epoch) % n


def same(n, seed, epoch=0):
    return ours(n, 0)


def neighbours_swapped(n, seed, epoch=0):
    """One exchange more or less makes odd ones even."""
    values = ours(n, seed, epoch)
    if odd_ones(values[np.newaxis]) > 0:
        values[[0, 1]] = values[[1, 0]]
    return values


@pytest.mark.parametrize("over", [over_seeds, over_epochs])
@pytest.mark.parametrize(
    ("weak", "check"),
    [
        (turned, agreements),
        (turned, one_after_the_other),
        (same, every_position),
        (same, agreements),
        (linear, ascents),
        (neighbours_swapped, odd_ones),
    ],
)
def test_the_checks_see_weak_families(weak, check, over):
    assert abs(check(over(weak, 16, 1000))) > 2 * LIMIT


@pytest.mark.parametrize("over", [over_seeds, over_epochs])
def test_all_orders_of_four_come_equally_often(over):
    def off_by(shuffle):
        tables = over(shuffle, 4, 6000)
        counts = np.unique(tables, axis=0, return_counts=True)[1]
        return off(np.pad(counts, (0, 24 - len(counts))), len(tables) / 24)

    assert abs(off_by(ours)) < LIMIT
    assert off_by(rounds(3)) > 2 * LIMIT


def test_seed_epoch_and_n_do_not_stand_in_for_each_other():
    beginnings = [tuple(ours(n, s, e)[:8]) for n in (200, 201) for s in range(20) for e in range(20)]
    assert len({*beginnings}) == len(beginnings)
    tables = np.array([ours(50, *pair) for k in range(1000) for pair in [(k, k + 1), (k + 1, k)]])
    assert abs(agreements(tables)) < LIMIT
    assert abs(one_after_the_other(tables)) < LIMIT
