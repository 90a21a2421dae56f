"""Batches on their way to another device."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from itertools import starmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmap_ninja.buffers import empty
from mmap_ninja.errors import ArgumentError, ArgumentTypeError
from mmap_ninja.fields import like

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
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(shape)


def sent(batches: Iterator[Any], device: torch.device) -> Generator[Any, None, None]:
    """The same batches on a device; on CUDA, each is copied while its predecessor is in use."""
    if device.type == "cuda":
        yield from _ahead(batches, device)
    else:
        for batch in batches:
            yield _each_tensor(lambda tensor: tensor.to(device), batch, one_copy=True)


def _ahead(batches: Iterator[Any], device: torch.device) -> Generator[Any, None, None]:
    side: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    under_way: deque[tuple[Any, Any]] = deque()  # copies, and the memory that they read from

    def copied(batch: Any) -> tuple[Any, Any]:
        while under_way and under_way[0][0].query():
            under_way.popleft()
        with torch.cuda.stream(side):
            there = _each_tensor(lambda tensor: tensor.to(device, non_blocking=True), batch, one_copy=True)
            event = side.record_event()
        under_way.append((event, batch))
        return there, event

    def handed_out(there: Any, event: Any) -> Any:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(event)
        # Its memory belongs to the other stream, which must not use it again before this one is through with it.
        return _each_tensor(partial(_used_by, stream), there)

    try:
        yield from starmap(handed_out, _one_behind(map(copied, batches)))
    finally:
        side.synchronize()


def _one_behind(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each when the next one is there; an error of theirs comes in its turn."""
    waiting: list[Any] = []
    failure = None
    try:
        for item in items:
            waiting.append(item)
            del item
            if len(waiting) > 1:
                yield waiting.pop(0)
    except Exception as error:
        failure = error
    yield from waiting
    if failure is not None:
        raise failure


def _used_by(stream: Any, tensor: Tensor) -> Tensor:
    tensor.record_stream(stream)
    return tensor


def _each_tensor(function: Callable[[Tensor], Tensor], value: Any, *, one_copy: bool = False) -> Any:
    """What the function makes of each tensor in lists, dicts and tuples, in the same ones.

    Where it copies, and the tensors of a list are parts of one, it gets that one.
    """
    if isinstance(value, Tensor):
        return function(value)
    part = partial(_each_tensor, function, one_copy=one_copy)
    if isinstance(value, Mapping):
        return {key: part(one) for key, one in value.items()}
    if isinstance(value, list):
        whole = _whole(value) if one_copy else None
        return list(map(part, value)) if whole is None else _parts(function(whole), value)
    return like(value, map(part, value)) if isinstance(value, tuple) else value


def _whole(tensors: list[Any]) -> Tensor | None:
    """The contiguous tensor that all of these are parts of, and nothing else is part of."""
    whole = getattr(tensors[0], "_base", None) if tensors else None
    if not isinstance(whole, Tensor) or not whole.is_contiguous():
        return None
    is_split = all(isinstance(one, Tensor) and one._base is whole and one.dtype == whole.dtype for one in tensors)
    return whole if is_split and sum(one.numel() for one in tensors) == whole.numel() else None


def _parts(there: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The same parts of its copy."""
    return [there.as_strided(one.shape, one.stride(), one.storage_offset()) for one in tensors]
