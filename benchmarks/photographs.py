"""Real photographs as JPEG files, and what one pass over a collection of images does with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


class Photographs(Sequence[np.ndarray]):
    """JPEG files as a sequence: `photographs[i]` decodes one to `uint8` of shape `(height, width, 3)`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        with Image.open(self.paths[i]) as image:
            return np.asarray(image)


def make_photographs(folder: Path, count: int) -> Photographs:
    """`count` JPEG files of 200 to 500 pixels a side; those that the folder has from an earlier time are kept.

    They are cut from the two photographs that scikit-learn brings along, flipped and scaled, each in its own way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"photo-{number:05}.jpg" for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    originals = load_originals() if missing else []
    for number in missing:
        unfinished = paths[number].with_suffix(".part")
        varied(originals, number).save(unfinished, "JPEG", quality=90)
        unfinished.replace(paths[number])
    return Photographs(paths)


def load_originals() -> list[Image.Image]:
    """The two photographs of 640 x 427 pixels in scikit-learn, which takes a second to import."""
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def varied(originals: Sequence[Image.Image], number: int) -> Image.Image:
    """A part of one of the originals; the same number always gives the same."""
    random = np.random.default_rng(number)
    original = originals[random.integers(len(originals))]
    width, height = (int(random.integers(side // 2, side + 1)) for side in original.size)
    left, top = int(random.integers(original.width - width + 1)), int(random.integers(original.height - height + 1))
    part = original.crop((left, top, left + width, top + height))
    if random.integers(2):
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return part.resize(tuple(random.integers(200, 501, 2).tolist()), Image.Resampling.BICUBIC)


def shuffled(count: int) -> list[int]:
    """The order in which a pass reads: each number once, as a training epoch does."""
    return np.random.default_rng(6).permutation(count).tolist()


def sum_pixels(images: Sequence[np.ndarray], order: Sequence[int]) -> int:
    """Adds up every pixel of every image (in uint32, the fastest exact way that NumPy has)."""
    return sum(int(images[i].sum(dtype=np.uint32)) for i in order)


def find_brightest(images: Sequence[np.ndarray], order: Sequence[int]) -> int:
    """Reads every pixel as fast as memory gives it: the sum of each image's largest value."""
    return sum(int(images[i].max()) for i in order)


def make_views(images: Sequence[np.ndarray], order: Sequence[int]) -> int:
    """Reads no pixel at all: the sum of the sizes."""
    return sum(images[i].size for i in order)


PASSES: dict[str, Callable[[Sequence[np.ndarray], Sequence[int]], int]] = {
    "sum of all pixels": sum_pixels,
    "brightest pixel of each": find_brightest,
    "views only, no pixel read": make_views,
}
