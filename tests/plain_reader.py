"""Format 2 read by nothing but json, zlib and numpy: what the tests compare the package with. And forged manifests."""

import json
import re
import zlib
from pathlib import Path

import numpy as np

BLOCK = 1 << 20
START = len(b'{"crc32": "00000000"')  # the checksum is over all bytes from here on


def checked(rest: bytes) -> bytes:
    """A manifest whose bytes after the checksum are these."""
    return b'{"crc32": "%08x"' % zlib.crc32(rest) + rest


def sealed(fields: dict) -> bytes:
    """A manifest of any content, with the right checksum."""
    return checked(b", " + json.dumps(fields).encode()[1:])


def fields(folder: Path, name: str = "manifest.json") -> dict:
    raw = (folder / name).read_bytes()
    assert re.fullmatch(rb'\{"crc32": "[0-9a-f]{8}"', raw[:START])
    found = json.loads(raw)
    assert found.pop("crc32") == f"{zlib.crc32(raw[START:]):08x}"
    return found


def forge(folder: Path, name: str = "manifest.json", **changes: object) -> None:
    (folder / name).write_bytes(sealed({**fields(folder, name), **changes}))


def names(folder: Path) -> set[str]:
    """The files that a finished map consists of."""
    found = {"manifest.json"}
    for file in fields(folder)["files"].values():
        found |= {file["name"]} | ({crc_name(file)} if file["size"] >= BLOCK else set())
    return found


def crc_name(file: dict) -> str:
    return file["name"].rpartition(".")[0] + ".crc"


def values(folder: Path, file: dict) -> bytes:
    """The committed bytes of a file."""
    with open(folder / file["name"], "rb", buffering=0) as opened:
        opened.seek(file["offset"])
        return opened.read(file["size"])


def check(folder: Path, name: str = "manifest.json") -> None:
    """Every checksum that a map has, recomputed."""
    for file in fields(folder, name)["files"].values():
        if file["offset"] + file["size"] == 0:  # named before it is made
            continue
        whole = file["size"] // BLOCK
        assert (folder / file["name"]).stat().st_size >= file["offset"] + file["size"], file["name"]
        raw = np.memmap(folder / file["name"], np.uint8, "r")[file["offset"] :][: file["size"]]  # no copy of it
        if not file["checked"]:
            continue
        expected = [zlib.crc32(raw[at * BLOCK : (at + 1) * BLOCK]) for at in range(whole)]
        found = np.fromfile(folder / crc_name(file), "<u4", whole).tolist() if whole else []
        assert found == expected, file["name"]
        assert file["blocks_crc"] == zlib.crc32(np.array(expected, "<u4").tobytes()), file["name"]
        assert file["tail_crc"] == zlib.crc32(raw[whole * BLOCK :]), file["name"]


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """The `.npy` files of a map as np.load opens them, by their role."""
    files = fields(folder)["files"]
    return {role: np.load(folder / file["name"], mmap_mode="r") for role, file in files.items() if role != "dictionary"}


def samples(folder: Path) -> list:
    """Every sample of an uncompressed map, from the arrays alone."""
    found, loaded = fields(folder), arrays(folder)
    data = loaded["data"]
    if found["kind"] == "dense":
        return list(data)
    result = []
    for start, *shape in loaded["index"].tolist():
        shape = [axis for axis in shape if axis >= 0]
        part = data[start : start + int(np.prod(shape, dtype=np.int64))]
        if found["kind"] == "ragged":
            result.append(part.reshape(shape))
        else:
            result.append(part.tobytes() if found["kind"] == "bytes" else part.tobytes().decode())
    return result


def same(left: list, right: list) -> bool:
    """Whether two lists of samples are equal, dtypes and shapes included."""
    return len(left) == len(right) and all(map(_same, left, right))


def _same(left: object, right: object) -> bool:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and _same_bytes(left.ravel(), right.ravel())
    return type(left) is type(right) and left == right


def _same_bytes(left: np.ndarray, right: np.ndarray, piece: int = 8192) -> bool:
    """Compared in pieces: to copy large arrays as a whole costs more than to compare them."""
    starts = range(0, len(left), piece)
    return all(left[at : at + piece].tobytes() == right[at : at + piece].tobytes() for at in starts)
