"""`python -m mmap_ninja`: what can be done to a map from a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmap_ninja._storage.legacy import Keys
from mmap_ninja.errors import MmapNinjaError
from mmap_ninja.upgrade import upgrade


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _upgrade(options)
    except (MmapNinjaError, OSError) as error:
        print(f"mmap-ninja: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmap-ninja", description="Look after memory-mapped datasets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("upgrade", help="turn a folder of mmap_ninja 0.9.0 into the current format, in place")
    command.add_argument("folders", nargs="+", metavar="DIR")
    for key in ("starts", "ends", "shapes", "flattened_shapes"):
        flag = f"--{key.replace('_', '-')}-key"
        command.add_argument(flag, dest=key, default=key, metavar="NAME", help=f"the name of its subfolder {key}")
    return parser


def _upgrade(options: argparse.Namespace) -> int:
    keys = Keys(options.starts, options.ends, options.shapes, options.flattened_shapes)
    for folder in options.folders:
        is_done = upgrade(folder, keys)
        print(f"{folder}: {'upgraded to format 2' if is_done else 'has format 2 already'}")
    return 0
