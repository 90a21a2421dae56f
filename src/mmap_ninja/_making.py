"""How maps are made: from a generator or an indexable, batch by batch, whole or not at all."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmap_ninja import _ingest
from mmap_ninja._encode import Samples, asked_for
from mmap_ninja._reading import AnyPath, check_mode, folder_of
from mmap_ninja._storage.build import Build
from mmap_ninja._storage.legacy import Keys
from mmap_ninja._storage.manifest import Manifest
from mmap_ninja._storage.writer import new_id
from mmap_ninja._writing import Writing, json_values
from mmap_ninja.errors import BEFORE_COMMIT, ArgumentTypeError, Outcome
from mmap_ninja.indexing import boolean, integer


@dataclass(frozen=True)
class Plan:
    """What a `from_*` call asks for: the map to make, and how to open it afterwards."""

    template: Manifest
    opening: Mapping[str, Any]
    dictionary_size: int | None = None

    def check(self, kind: Callable[..., Any]) -> None:
        """Refuse options that opening would refuse when the map is built already."""
        import inspect

        if "expect" in self.opening:
            raise ArgumentTypeError(f"{kind.__name__}: expect= is for maps that are there already")
        boolean("check", self.opening.get("check", False))
        try:
            inspect.signature(kind).bind("out_dir", **self.opening)
        except TypeError as error:
            raise ArgumentTypeError(f"{kind.__name__}: {error}") from None
        check_mode(self.opening["mode"])

    def keys(self) -> Keys:
        """The names of the subfolders that a map of format 1 in the same place may have."""
        given = {name.removesuffix("_key"): key for name, key in self.opening.items() if name.endswith("_key")}
        return Keys(**given)


class Making(Writing):
    """The class methods that make a map of any kind."""

    @classmethod
    @abstractmethod
    def _plan(cls, **options: Any) -> Plan:
        """The plan for these options of the kind's own constructor method."""

    @classmethod
    def _empty(cls) -> Manifest:
        return cls._plan().template

    @classmethod
    def from_generator(
        cls,
        out_dir: AnyPath,
        sample_generator: Iterable[Any],
        batch_size: int,
        verbose: bool = False,
        *,
        resume: bool = False,
        sync: bool = True,
        timeout: float = 0.0,
        **options: Any,
    ) -> Any:
        """Make a map from an iterable of samples, of which at most `batch_size` are in memory at once.

        Each sample is checked, and copied or written, when it arrives, so the generator may hand out one buffer again
        and again. It is not asked again after its end.

        What is in `out_dir` stays whole until the new map takes its place, durable, at the end. If the generator
        raises or the process dies, the part that was built can be read (with a `PartBuiltWarning`) and finished by
        the same call with `resume=True`, which takes and drops the samples that are there already. `verbose` shows
        a progress bar. Further options are those of the kind's plain constructor method (`dtype`, `mode`,
        `wrapper_fn`, `metadata`, ...). Returns the opened map.
        """
        size = integer("batch_size", batch_size, 1)
        if isinstance(sample_generator, str | bytes | Mapping) or not _is_iterable(sample_generator):
            raise ArgumentTypeError(f"expected an iterable of samples, got a {type(sample_generator).__name__}")
        return cls._build(
            out_dir,
            lambda start: _ingest.from_iterable(sample_generator, start, verbose, size),
            cls._plan(**options),
            resume=resume,
            sync=sync,
            timeout=timeout,
        )

    @classmethod
    def from_indexable(
        cls,
        out_dir: AnyPath,
        indexable: Any,
        batch_size: int,
        n_jobs: int | None = None,
        verbose: bool = False,
        *,
        resume: bool = False,
        sync: bool = True,
        timeout: float = 0.0,
        **options: Any,
    ) -> Any:
        """Make a map of `indexable[i]`, or `indexable(i)`, for i = 0, 1, ...; otherwise as `from_generator`.

        An indexable without `len` ends at its first `IndexError`. With `n_jobs` other than None or 1, that many
        processes load (-1: one for each core): the indexable travels to each once, the samples keep their order.
        """
        size = integer("batch_size", batch_size, 1)
        _ingest.loader(indexable)
        _ingest.check_jobs(n_jobs)
        with _ingest.from_indexable(indexable, n_jobs, verbose, size) as batches:
            return cls._build(out_dir, batches, cls._plan(**options), resume=resume, sync=sync, timeout=timeout)

    @classmethod
    def _build(
        cls,
        out_dir: AnyPath,
        batches: Callable[[int], Iterable[Samples | Iterator[Any]]],
        plan: Plan,
        *,
        resume: bool = False,
        sync: bool = True,
        timeout: float = 0.0,
    ) -> Any:
        """Make a map of `batches(start)`, the samples from number `start` on, each checked before it is written."""
        folder = folder_of(out_dir)
        plan.check(cls)
        with Outcome() as outcome:
            with Build(folder, plan.template, plan.keys(), resume=resume, timeout=timeout) as build:
                with BEFORE_COMMIT:  # whatever a source says of calls of its own
                    encode = cls._encoder(build.dictionary(), plan.dictionary_size, build.ahead)
                    for samples in batches(build.state.length):
                        build.append(encode(build.state, samples))
                build.finish(sync=sync)
                outcome.committed = True
            made = cls(out_dir, **plan.opening)  # type: ignore[call-arg]
            made._is_unsynced = not sync
            return made


def template(kind: str, *, metadata: Mapping[str, Any] | None = None, **fields: Any) -> Manifest:
    """The manifest of a new, empty map."""
    return Manifest(kind=kind, id=new_id(), metadata=json_values(metadata or {}), **fields)


def plan_of_arrays(
    kind: str, *, dtype: Any = None, metadata: Mapping[str, Any] | None = None, mode: str = "r+", **opening: Any
) -> Plan:
    """The plan for a map of arrays, of a dtype that may be given or is that of the first sample."""
    given = asked_for(dtype)
    made = template(kind, dtype=given, dtype_given=given is not None, metadata=metadata)
    return Plan(made, {"mode": mode, **opening})


def _is_iterable(samples: Any) -> bool:
    return hasattr(samples, "__iter__") or hasattr(samples, "__getitem__")
