"""Batches on their way to another device."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping
from copy import copy
from functools import cache
from itertools import chain, starmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmap_ninja.buffers import empty
from mmap_ninja.errors import ArgumentError, ArgumentTypeError
from mmap_ninja.fields import like
from mmap_ninja.pipeline import behind

Array = np.ndarray[Any, np.dtype[Any]]


def device_of(device: Any) -> torch.device | None:
    """The device that was meant, None where batches stay where they are made."""
    if device is None or str(device).partition(":")[0] == "cpu":
        return None
    try:
        return torch.empty(0, device=device).device  # with its number
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"device is {device!r}, which cannot be used here: {error}") from error


def memory(pin_memory: bool | None, device: torch.device | None) -> Callable[[tuple[int, ...], np.dtype[Any]], Array]:
    """What makes the arrays that batches are gathered into: of pinned memory, if asked for or of use."""
    if pin_memory is not None and not isinstance(pin_memory, bool):
        raise ArgumentTypeError(f"pin_memory is {pin_memory!r}, expected True or False")
    if pin_memory is None:
        pin_memory = device is not None and device.type == "cuda"
    if pin_memory and not torch.cuda.is_available():
        warnings.warn("pin_memory=True does nothing: there is no CUDA device here", stacklevel=3)
        return empty
    return pinned if pin_memory else empty


def pinned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialised array of pinned memory, as `np.empty` makes one.

    It is torch's own allocator that keeps the memory for the next batch: it knows which copies are still under way, as
    `convert.tensor` makes tensors of what it has allocated.
    """
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True).numpy().view(dtype).reshape(shape)


def sent(batches: Iterator[Any], device: torch.device) -> Generator[Any, None, None]:
    """The same batches on a device; on CUDA, each is copied while its predecessor is in use."""
    if device.type == "cuda":
        yield from _ahead(batches, device)
    else:
        for batch in batches:
            yield Copy(device)(batch)


def _ahead(batches: Iterator[Any], device: torch.device) -> Generator[Any, None, None]:
    side = _side_stream(device)
    under_way: deque[tuple[Any, Any]] = deque()  # copies, and the memory that they read from

    def copied(batch: Any) -> tuple[Any, Any]:
        while under_way and under_way[0][0].query():
            under_way.popleft()
        with torch.cuda.stream(side):
            there = Copy(device)(batch)
            event = side.record_event()
        under_way.append((event, batch))
        return there, event

    def handed_out(there: Any, event: Any) -> Any:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(event)
        # Its memory belongs to the other stream, which must not use it again before this one is through with it.
        for tensor in _tensors(there):
            tensor.record_stream(stream)
        return there

    try:
        yield from starmap(handed_out, behind(map(copied, batches), 1))
    finally:
        side.synchronize()


@cache
def _side_stream(device: torch.device) -> Any:
    """One for all: what the allocator has cached for one stream is of no use to another one."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Copy:
    """Copies what is in a batch to a device, without waiting for it: lists, dicts and tuples of tensors stay such.

    What has a `to` of its own is asked for it. Parts of one tensor are copied together, and nested tensors that share
    their offsets still do so afterwards.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[int, Tensor] = {}  # by the id of what was copied, which the batch keeps

    def __call__(self, value: Any) -> Any:
        """The same there."""
        if isinstance(value, Tensor) and value.is_nested and value.layout == torch.jagged:
            return self._nested(value)
        if hasattr(value, "to"):
            return value.to(self._device, non_blocking=True)
        if isinstance(value, Mapping):
            return _like_mapping(value, {key: self(part) for key, part in value.items()})
        if isinstance(value, list):
            whole = _whole(value)
            return list(map(self, value)) if whole is None else _parts(self(whole), value)
        return like(value, map(self, value)) if isinstance(value, tuple) else value

    def _nested(self, value: Any) -> Tensor:
        # Its own `to` waits for the offsets, and gives each tensor some of its own.
        offsets = value.offsets()
        if id(offsets) not in self._known:
            self._known[id(offsets)] = offsets.to(self._device, non_blocking=True)
        lengths, values = offsets.diff(), value.values().to(self._device, non_blocking=True)
        shortest, longest = int(lengths.min()), int(lengths.max())
        return torch.nested.nested_tensor_from_jagged(
            values, self._known[id(offsets)], min_seqlen=shortest, max_seqlen=longest
        )


def _like_mapping(given: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """The parts as a mapping of the same kind."""
    if type(given) is dict or not isinstance(given, MutableMapping):
        return parts
    made = copy(given)
    made.update(parts)
    return made


def _whole(tensors: list[Any]) -> Tensor | None:
    """All of the memory that these share, where they have one dtype and nothing of it is anybody else's."""
    if len(tensors) < 2 or not all(isinstance(one, Tensor) and one.layout == torch.strided for one in tensors):
        return None
    storage, dtype = tensors[0].untyped_storage(), tensors[0].dtype
    if any(one.dtype != dtype or one.untyped_storage()._cdata != storage._cdata for one in tensors):
        return None
    if any(one.requires_grad for one in tensors):
        return None
    if sum(one.nbytes for one in tensors) != storage.nbytes():
        return None
    return torch.empty(0, dtype=dtype, device=tensors[0].device).set_(storage)


def _parts(there: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The same parts of its copy."""
    return [there.as_strided(one.shape, one.stride(), one.storage_offset()).data for one in tensors]


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors on a device that are in lists, dicts and tuples."""
    if isinstance(value, Tensor):
        if not value.is_cpu:
            yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_tensors, value.values()))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_tensors, value))
