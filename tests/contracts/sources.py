"""Where samples come from that a list would be too kind for."""


class Unsized:
    """An indexable that has no `len`."""

    def __init__(self, samples):
        self.samples = samples

    def __getitem__(self, i):
        return self.samples[i]


class FailsAt:
    """An indexable that raises at one number."""

    def __init__(self, samples, number, error):
        self.samples, self.number, self.error = samples, number, error

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        if i == self.number:
            raise self.error
        return self.samples[i]


class Recording:
    """An indexable that writes down what was asked for."""

    def __init__(self, samples, asked):
        self.samples, self.asked = samples, asked

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        self.asked.append(i)
        return self.samples[i]


def failing(samples, number, error):
    """A generator that raises instead of sample `number`."""
    yield from samples[:number]
    raise error
