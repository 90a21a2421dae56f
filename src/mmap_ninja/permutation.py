"""A shuffle of any number of samples that nobody has to keep: computed number by number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np

from mmap_ninja._progress import LARGEST, Int64s
from mmap_ninja.errors import ArgumentError, ArgumentTypeError
from mmap_ninja.indexing import integer

_UInt32s = np.ndarray[Any, np.dtype[np.uint32]]

MOST_SAMPLES = 2**62  # both halves of a number then fit 31 bits, and no sum of two positions overflows an int64
BLOCK = 2**14  # positions at a time: with fewer the calls cost more than the work, with more the cache is too small
_TABLE = 2**14  # so many samples are shuffled as a table of 128 kB, in about a millisecond
_ROUNDS = 6  # 2,500 permutations of 2**15 show no trace of the network; with 5 they are 38 standard deviations off


class Permutation:
    """A shuffle of `range(n)` that is computed number by number: a keyed bijection, one for each (n, seed, epoch).

    Up to 2**14 numbers are a table: the order of as many distinct 64-bit hashes, which gives every permutation, odd
    and even, the same chance. Beyond, it is the generalised Feistel cipher of Black and Rogaway ("Ciphers with
    Arbitrary Finite Domains", CT-RSA 2002) of 6 rounds (see Patarin, "Security of Random Feistel Schemes with 5 or
    More Rounds", CRYPTO 2004). It is made for shuffling, not for secrecy.

    Args:
        n: How many numbers, at most 2**62.
        seed: 0 to 2**64 - 1, as in NumPy and PyTorch.
        epoch: 0 to 2**64 - 1. Other epochs are as unrelated as other seeds.

    Raises:
        ArgumentTypeError: An argument is no integer.
        ArgumentError: An argument is out of its range.

    >>> Permutation(10, seed=0)(np.arange(10))
    array([4, 1, 3, 6, 2, 7, 5, 8, 0, 9])
    >>> Permutation(10**12, seed=0)([0, 1, 10**12 - 1])
    array([504875331240, 937234747847, 786849126387])
    """

    def __init__(self, n: int, seed: int, epoch: int = 0) -> None:
        self.n: Final = integer("n", n, 0, MOST_SAMPLES)
        self.seed: Final = integer("seed", seed, 0, LARGEST)
        self.epoch: Final = integer("epoch", epoch, 0, LARGEST)
        key = 0
        for word in (self.n, self.seed, self.epoch):
            key = int(_hashes(key ^ word, 1)[0])
        self._values: Callable[[Int64s], Int64s]
        if self.n <= _TABLE:
            self._values = np.argsort(_hashes(key, self.n)).astype(np.int64, copy=False).take
        else:
            self._values = _Feistel(self.n, _hashes(key, _ROUNDS).tolist())

    def __call__(self, positions: Any) -> Int64s:
        """The numbers at these positions: int64, a new array of the same shape.

        Args:
            positions: Integers from 0 to n - 1, as an array or list of any shape.

        Raises:
            ArgumentTypeError: They are no integers.
            ArgumentError: One of them lies outside of the permutation.
        """
        array = np.asarray(positions)
        if array.size == 0:
            return np.empty(array.shape, np.int64)
        if array.dtype.kind not in "iu":
            raise ArgumentTypeError(f"positions are of dtype {array.dtype}, expected integers")
        least, most = int(array.min()), int(array.max())
        if least < 0 or most >= self.n:
            outside = least if least < 0 else most
            raise ArgumentError(f"position {outside} lies outside of a permutation of {self.n} numbers")
        flat = array.astype(np.int64, copy=False).reshape(-1)
        if flat.size <= BLOCK:
            return self._values(flat).reshape(array.shape)
        values = np.empty(flat.shape, np.int64)
        for start in range(0, flat.size, BLOCK):
            values[start : start + BLOCK] = self._values(flat[start : start + BLOCK])
        return values.reshape(array.shape)

    def number(self, position: int) -> int:
        """The number at one position, an `int`: in a tenth of the time that a call takes for an array of one."""
        if not 0 <= position < self.n:
            raise ArgumentError(f"position {position} lies outside of a permutation of {self.n} numbers")
        values = self._values
        return values.number(position) if isinstance(values, _Feistel) else int(values(np.array([position]))[0])

    def __repr__(self) -> str:
        return f"Permutation({self.n}, seed={self.seed}, epoch={self.epoch})"

    def __reduce__(self) -> tuple[type[Permutation], tuple[int, int, int]]:
        return Permutation, (self.n, self.seed, self.epoch)


class _Feistel:
    """A bijection of `range(n)` by a Feistel network, each of whose rounds takes one 64-bit key.

    A number is `left * 2**width + right`, both parts about sqrt(n). Every other round changes right by a hash of left:
    XOR, as its range is a power of two. The rounds between change left by a hash of right: addition modulo `size`.
    The two ranges have a product below n + sqrt(n), so few values fall outside of `range(n)`, whatever n is; they are
    permuted again until they lie inside ("cycle walking"). With parts of whole bits that could be half of all values.
    """

    def __init__(self, n: int, keys: Iterable[int]) -> None:
        self.n = n
        self.width = (n - 1).bit_length() // 2
        self.size = -(-n >> self.width)
        self.keys = [(np.uint32(key >> 32), np.uint32(key & 0xFFFFFFFF)) for key in keys]

    def __call__(self, positions: Int64s) -> Int64s:
        values = self._once(positions)
        outside = np.flatnonzero(values >= self.n)
        while outside.size:
            again = self._once(values[outside])
            values[outside] = again
            outside = outside[again >= self.n]
        return values

    def number(self, position: int) -> int:
        """The same for one position, by Python's integers: so few are not worth the calls of NumPy."""
        while True:
            left, right = position >> self.width, position & ((1 << self.width) - 1)
            for number, (first, second) in enumerate(self.keys):
                hashed = ((left, right)[number % 2] ^ int(first)) * 0x7FEB352D & 0xFFFFFFFF
                hashed = ((hashed ^ (hashed >> 15)) ^ int(second)) * 0x846CA68B & 0xFFFFFFFF
                if number % 2 == 0:
                    right ^= hashed >> (32 - self.width)
                else:
                    left = (left + (hashed * self.size >> 32)) % self.size
            position = left << self.width | right
            if position < self.n:
                return position

    def _once(self, numbers: Int64s) -> Int64s:
        left = (numbers >> self.width).astype(np.uint32)
        right = (numbers & ((1 << self.width) - 1)).astype(np.uint32)
        hashed, spare, wide = np.empty_like(left), np.empty_like(left), np.empty(left.shape, np.uint64)
        size, shift = np.uint32(self.size), np.uint32(32 - self.width)
        for number, keys in enumerate(self.keys):
            if number % 2 == 0:
                _hash(left, keys, hashed, spare)
                hashed >>= shift
                right ^= hashed
                continue
            _hash(right, keys, hashed, spare)
            np.copyto(wide, hashed)
            wide *= size  # the upper half of the product is in [0, size)
            wide >>= np.uint64(32)
            np.copyto(hashed, wide, casting="unsafe")
            left += hashed
            np.minimum(left, np.subtract(left, size, out=hashed), out=left)  # below size, the difference wraps around
        values = left.astype(np.int64)
        values <<= self.width
        values |= right
        return values


def _hash(values: _UInt32s, keys: tuple[np.uint32, np.uint32], out: _UInt32s, spare: _UInt32s) -> None:
    """Hashes into `out`: Wellons' lowbias32 with keys, less its last shift, as only the upper bits are used.

    The first shift is left out too: it is for the bits from 16 up, of which values have none below n = 2**32 and few
    beyond.
    """
    np.bitwise_xor(values, keys[0], out=out)
    out *= np.uint32(0x7FEB352D)
    out ^= np.right_shift(out, np.uint32(15), out=spare)
    out ^= keys[1]
    out *= np.uint32(0x846CA68B)


def _hashes(key: int, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Distinct numbers: what splitmix64 (Steele, Lea and Flood, OOPSLA 2014) gives first when seeded with `key`."""
    hashes = np.arange(1, count + 1, dtype=np.uint64)
    hashes *= np.uint64(0x9E3779B97F4A7C15)
    hashes += np.uint64(key)
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    return hashes
