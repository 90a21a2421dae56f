"""Which sample comes when: batches of a shuffled order, against a shuffled list of all sample numbers.

`Order` computes the numbers of a batch when it is asked for them; `np.random.Generator.permutation` makes an array of
all n first, of 8 bytes each. Seconds are those of the core that the work runs on. "An index" is one of a whole pass in
batches of 256, the array's batches being slices of it. Memory is the most that was allocated at one time, and "resume"
is loading a state and getting the next batch: at batch 1,000,000, or in the middle of a shorter epoch.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np

from mmap_ninja.order import Order

from .harness import Report, Seconds, Size, Times, arguments, medians

SIZES = {"2 M": 2_000_000, "2**21 + 1": 2**21 + 1, "10**9": 10**9, "10**12": 10**12}
BATCH = 256
FITS = 2**22  # samples that an array may have here
REQUIRED = {2_000_000: 40e-9}  # seconds an index
REQUIRED_WORST = 80e-9
REQUIRED_FIRST, REQUIRED_RESUME, REQUIRED_MEMORY = 5e-3, 10e-3, 20e6


def seconds(work: Callable[[], object]) -> float:
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def consumed(batches: Any) -> int:
    """Looks at every number, as a reader would; the same for both sides."""
    return sum(int(batch[-1]) for batch in batches)


def by_order(n: int, samples: int) -> int:
    return consumed(islice(Order(n, BATCH, shuffle=True, seed=1), samples // BATCH))


def by_array(n: int, samples: int) -> int:
    order = np.random.default_rng(1).permutation(n)
    return consumed(order[start : start + BATCH] for start in range(0, samples // BATCH * BATCH, BATCH))


def most_memory(work: Callable[[], object]) -> Size:
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Size(most)


def verdict(figure: float, required: float, shown: object) -> str:
    return f"{shown}{'' if figure <= required else '  MISSED'}"


def each_index(name: str, n: int, samples: int, rounds: int) -> dict[str, Any]:
    """Time and memory of a pass, or of the first `samples` of it."""
    count = min(n, samples)
    sides = {"Order": lambda: seconds(lambda: by_order(n, count))}
    if n <= FITS:  # it has to shuffle all, so it is charged for all, whatever is read of it
        sides["permutation"] = lambda: seconds(lambda: by_array(n, n))
    figures = medians(sides, rounds)
    index, required = figures["Order"] / count, REQUIRED.get(n, REQUIRED_WORST)
    row = {"n": name, "an index": Seconds(index), "required": verdict(index, required, Seconds(required))}
    memory = most_memory(lambda: by_order(n, 50 * BATCH))
    row |= {"memory": memory, "memory required": verdict(memory, REQUIRED_MEMORY, Size(REQUIRED_MEMORY))}
    if n <= FITS:
        array = figures["permutation"] / n
        row |= {"permutation, an index": Seconds(array), "Order is faster": Times(array / index)}
        row["permutation, memory"] = most_memory(lambda: by_array(n, BATCH))
    return row


def one_batch(name: str, n: int, rounds: int) -> dict[str, Any]:
    """What it takes to get one batch: the first, the next one after loading a state, any one of a running order."""
    k = min(10**6, n // BATCH // 2)
    state = Order(n, BATCH, shuffle=True, seed=1).state_dict() | {"samples_seen": k * BATCH}
    running = Order(n, BATCH, shuffle=True, seed=1)

    def resumed() -> None:
        order = Order(n, BATCH, shuffle=True, seed=1)
        order.load_state_dict(state)
        next(iter(order))

    figures = medians(
        {
            "first": lambda: seconds(lambda: next(iter(Order(n, BATCH, shuffle=True, seed=1)))),
            "resume": lambda: seconds(resumed),
            "any": lambda: seconds(lambda: [running.batch(0, at) for at in range(k, k + 20)]) / 20,
        },
        rounds,
    )
    return {
        "n": name,
        "first batch": Seconds(figures["first"]),
        "required": verdict(figures["first"], REQUIRED_FIRST, Seconds(REQUIRED_FIRST)),
        "resume": Seconds(figures["resume"]),
        "resume required": verdict(figures["resume"], REQUIRED_RESUME, Seconds(REQUIRED_RESUME)),
        "at batch": f"{k:,}",
        "batch(epoch, k)": Seconds(figures["any"]),
    }


def main() -> None:
    args = arguments(__doc__, samples=(2_000_000, 200_000))
    report = Report(args)
    passes = [each_index(name, n, args.samples, args.rounds) for name, n in SIZES.items()]
    report.section("A shuffled pass in batches of 256", passes)
    report.section("One batch", [one_batch(name, n, args.rounds) for name, n in SIZES.items()])
    report.finish()


if __name__ == "__main__":
    main()
