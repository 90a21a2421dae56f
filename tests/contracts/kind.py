"""What a kind says of itself, and the maps that its tests begin with."""

import numpy as np
import pytest


class KindContract:
    """A kind of map. A subclass sets what follows."""

    kind = None  # the class
    samples = None  # N different samples as they go in
    more = None  # three further ones
    bad = None  # one that the kind refuses ...
    bad_match = None  # ... because
    options = {}  # of the kind's constructor method
    new_values = {}  # samples of the same size to assign, by number
    wrong_size = None  # a value that does not fit any sample

    def make(self, path, samples=None, **options):
        """By the kind's own constructor method."""
        raise NotImplementedError

    def read(self, sample):
        """The sample as it comes out."""
        return sample

    def all_read(self, samples=None):
        return [self.read(sample) for sample in (self.samples if samples is None else samples)]

    def window(self, sample, start, length):
        """The part of a sample as it comes out, None where a sample has no parts."""
        return sample[start : start + length]

    def length(self, sample):
        return len(sample) if np.ndim(sample) or isinstance(sample, bytes) else 1

    def shape(self, sample):
        return np.shape(sample)

    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "map"

    @pytest.fixture
    def m(self, path):
        self.make(path, sync=False)
        return self.kind(path, mode="r")

    @pytest.fixture(scope="class")
    @classmethod
    def reader(cls, tmp_path_factory):
        """A map that is only read, made once for all tests of the kind."""
        path = tmp_path_factory.mktemp("read") / "map"
        cls().make(path, sync=False)
        return cls.kind(path, mode="r")


def tagged(sample):
    return ("wrapped", sample)
