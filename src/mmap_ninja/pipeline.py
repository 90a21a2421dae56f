"""Things on their way that are begun some time before they are wanted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def behind(items: Iterable[T], count: int) -> Iterator[T]:
    """The same items, each when `count` more have come; an error of theirs comes in its turn too.

    >>> list(behind("abc", 1))
    ['a', 'b', 'c']
    """
    waiting: deque[T] = deque()
    failure = None
    try:
        for item in items:
            waiting.append(item)
            del item  # what was handed out is not held
            if len(waiting) > count:
                yield waiting.popleft()
    except Exception as error:
        failure = error
    while waiting:
        yield waiting.popleft()
    if failure is not None:
        raise failure
