"""Things on their way that are begun some time before they are wanted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Anywhere:
    """A function of one thing that any thread may call, now this one and now that one: none of a user's."""

    function: Callable[[Any], Any]

    def __call__(self, thing: Any) -> Any:
        """What the function makes of it."""
        return self.function(thing)


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
