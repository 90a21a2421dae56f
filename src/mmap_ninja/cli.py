"""`python -m mmap_ninja`: what can be done to a map from a shell."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from mmap_ninja._storage.legacy import Keys
from mmap_ninja.errors import MmapNinjaError, SalvageWarning
from mmap_ninja.upgrade import upgrade
from mmap_ninja.verify import verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    keys = Keys(options.starts, options.ends, options.shapes, options.flattened_shapes)
    is_right = True
    for folder in options.folders:
        try:
            is_right = options.run(folder, keys, options) and is_right
        except (MmapNinjaError, OSError) as error:
            print(f"mmap-ninja: {error}", file=sys.stderr)
            is_right = False
    return 0 if is_right else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmap-ninja", description="Look after memory-mapped datasets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "verify",
        help="compare every byte of a map with its checksums",
        description="Print one line for everything that is wrong; the exit code is 1 if there is any that stays.",
    )
    command.add_argument("--repair", action="store_true", help="remove leftovers, renew headers")
    command.add_argument(
        "--accept", action="store_true", help="checksum values that were assigned in place, as they are"
    )
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=_verify)
    _add_folders(command)

    command = commands.add_parser("upgrade", help="turn a folder of mmap_ninja 0.9.0 into the current format, in place")
    command.add_argument(
        "--salvage",
        action="store_true",
        help="save what is whole where 0.9.0 was interrupted, and list the rest; copy the folder before",
    )
    command.add_argument(
        "--sample-shape",
        type=_shape,
        metavar="N,N,...",
        help="the shape of a sample, for a dense map that does not know it any more (with --salvage)",
    )
    command.set_defaults(run=_upgrade)
    _add_folders(command)
    return parser


def _add_folders(command: argparse.ArgumentParser) -> None:
    command.add_argument("folders", nargs="+", metavar="DIR")
    for key in ("starts", "ends", "shapes", "flattened_shapes"):
        flag = f"--{key.replace('_', '-')}-key"
        what = f"the name of the subfolder {key} in a folder of 0.9.0"
        command.add_argument(flag, dest=key, default=key, metavar="NAME", help=what)


def _verify(folder: str, keys: Keys, options: argparse.Namespace) -> bool:
    is_shown = not options.quiet and sys.stderr.isatty()
    findings = verify(folder, verbose=is_shown, repair=options.repair, accept=options.accept, keys=keys)
    for finding in findings:
        print(finding)
    if not findings:
        print(f"{folder}: nothing is wrong")
    return all(finding.repaired for finding in findings)


def _upgrade(folder: str, keys: Keys, options: argparse.Namespace) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SalvageWarning)
        is_done = upgrade(folder, keys, salvage=options.salvage, sample_shape=options.sample_shape)
    for warning in caught:
        print(warning.message)
    print(f"{folder}: {'upgraded to format 2' if is_done else 'has format 2 already'}")
    return not caught


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(axis) for axis in text.split(",") if axis.strip())
