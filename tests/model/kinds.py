"""The kinds of map: samples of each as they read, as they may be given, and what each has to refuse."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import strategies as st

from contracts import same as same_sample
from mmap_ninja import BytesMmap, DenseMmap, RaggedMmap, StringsMmap


def same(found: list, expected: list) -> bool:
    return len(found) == len(expected) and all(map(same_sample, found, expected))


@dataclass
class Kind:
    """What the machine has to know about one kind of map."""

    cls: type
    good: st.SearchStrategy  # samples as they read, each of the dtype of the map
    bad: list  # what it has to refuse
    forms: Callable  # (sample, number) -> the sample as it may be given too
    like: Callable  # (sample, data) -> another one of the same size
    format_1: str | None = None
    options: dict = field(default_factory=dict)

    @property
    def is_dense(self) -> bool:
        return self.cls is DenseMmap

    @property
    def is_compressed(self) -> bool:
        """Whether builds compress: what a first `append` makes has no options, and is never compressed."""
        return "zstd_level" in self.options


def read(array: np.ndarray) -> object:
    """As a ragged map reads it."""
    return array.item() if array.ndim == 0 and array.dtype.kind in "biuf" else array


def filled(dtype: str, values: list) -> Callable[[tuple[int, ...], list], np.ndarray]:
    """Arrays of any shape from a few values, given by their bits."""
    pool = np.array(values, f"<u{np.dtype(dtype).itemsize}").view(dtype)
    return lambda shape, picks: np.resize(pool[picks], shape)


def forms_of_arrays(dtype: str) -> Callable[[object, int], object]:
    dtype = np.dtype(dtype)

    def forms(sample: object, number: int) -> object:
        array = np.asarray(sample, dtype)
        if number == 1:
            return array.astype(dtype.newbyteorder())
        if number == 2:
            return np.asfortranarray(array) if array.ndim else array[()]
        if number == 3:
            wide = np.zeros((*array.shape, 3), dtype)
            wide[..., 1] = array
            return wide[..., 1]
        if number == 4 and dtype.kind == "i" and array.size:
            return array.tolist()
        return array

    return forms


def like_array(dtype: str, make: Callable) -> Callable:
    def like(sample: object, data: st.DataObject) -> object:
        array = make(np.shape(sample), data.draw(picks))
        if array.ndim and data.draw(st.booleans(), label="flat"):
            return array, array.reshape(-1)  # as it reads, as it is given
        return read(array), forms_of_arrays(dtype)(array, data.draw(st.integers(0, 4)))

    return like


def like_text(encode: Callable, decode: Callable) -> Callable:
    def like(sample: object, data: st.DataObject) -> object:
        letter = data.draw(st.sampled_from("xyz"))
        other = decode((letter * len(encode(sample))).encode())
        return other, other

    return like


INTEGERS = [0, 1, 2**63, 2**64 - 1, 2**31, 7]
FLOATS = [0, 0x80000000, 0x7FC00001, 0xFFA00000, 0x3F800000, 1, 0x7F7FFFFF, 0xFF800000]  # −0, NaNs with payloads ...
SMALL = [0, 1, 2**31, 2**32 - 1, 500]
mixed, floats, small = filled("<i8", INTEGERS), filled("<f4", FLOATS), filled("<i4", SMALL)
picks = st.lists(st.integers(0, 4), min_size=1, max_size=4)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
TEXTS = ["", "a", "b" * 40, "zwölf", "🥧\0", "\r\n"]
texts = st.sampled_from(TEXTS)
NO_ARRAYS = [None, {"a": 1}, np.array([None]), "text", np.ma.array([1, 2], mask=[True, False])]

STRINGS = Kind(
    StringsMmap,
    texts,
    [None, b"a", 5, "\ud800", np.array(["a"])],
    lambda sample, number: sample,
    like_text(str.encode, bytes.decode),
    "1-strings",
)
KINDS = {
    "mixed": Kind(
        RaggedMmap,
        st.builds(lambda shape, few: read(mixed(shape, few)), shapes, picks),
        [np.array([0.5]), np.array([2**63], "u8"), np.array([1j]), [1, 2.5], *NO_ARRAYS],
        forms_of_arrays("<i8"),
        like_array("<i8", mixed),
        "1-ragged-mixed",
    ),
    "floats": Kind(
        RaggedMmap,
        st.builds(lambda n, few: floats((n,), few), st.integers(0, 4), picks),
        [np.array([0.1]), np.array([2**24 + 1]), np.array(["a"]), [1 + 2j], *NO_ARRAYS],
        forms_of_arrays("<f4"),
        like_array("<f4", floats),
        "1-ragged",
    ),
    "dense": Kind(
        DenseMmap,
        st.builds(lambda few: small((2, 3), few), picks),
        [np.zeros(3, "<i4"), np.zeros((3, 2), "<i4"), np.full((2, 3), 0.5), np.full((2, 3), 2**31), *NO_ARRAYS],
        forms_of_arrays("<i4"),
        like_array("<i4", small),
        "1-dense",
    ),
    "strings": STRINGS,
    "bytes": Kind(
        BytesMmap,
        texts.map(str.encode),
        [None, "a", 5, np.array([1], "u1")],
        lambda sample, number: [sample, bytearray(sample), memoryview(sample)][number % 3],
        like_text(bytes, bytes),
    ),
    "zstd": replace(STRINGS, format_1="1-strings-zstd", options={"zstd_level": 5}),
}
