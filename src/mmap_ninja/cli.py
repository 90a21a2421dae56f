"""`python -m mmap_ninja`: what can be done to a map from a shell."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from mmap_ninja import __version__
from mmap_ninja._backup import backup
from mmap_ninja._storage.legacy import Keys
from mmap_ninja.errors import MmapNinjaError, SalvageWarning
from mmap_ninja.upgrade import upgrade
from mmap_ninja.verify import verify

_KINDS = """\
One line is printed for each finding:
  damaged     bytes are not those that were written
  changed     its writer was faster than the check: check again when it rests
  unchecked   nothing vouches for them: assigned in place, or of format 1, which has no checksums
  unfinished  a build was interrupted
  leftover    files of an interrupted writer that nobody needs; --repair removes them
  header      np.load would read another shape; --repair renews it

The exit code is 0 if there is none that stays, 1 if there is, 2 for a wrong command line."""


_COPIED = """\
Where OUT is there already and not empty, where DIR is damaged, or where anything else fails, nothing is left, and the
exit code is 1. One line is printed for each thing in the copy that nothing vouches for: values that were being
assigned in place, and all of format 1, which has no checksums."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    keys = Keys(options.starts, options.ends, options.shapes, options.flattened_shapes)
    is_right = True
    try:
        for folder in options.folders:
            is_right = _run(folder, keys, options) and is_right
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("mmap-ninja: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of `| head`: nobody reads on, and Python shall not try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0 if is_right else 1


def _run(folder: str, keys: Keys, options: argparse.Namespace) -> bool:
    try:
        return bool(options.run(folder, keys, options))
    except BrokenPipeError:
        raise
    except (MmapNinjaError, OSError) as error:
        print(f"mmap-ninja: {error}", file=sys.stderr)
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmap-ninja", description="Look after memory-mapped datasets.")
    parser.add_argument("--version", action="version", version=f"mmap-ninja {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "verify",
        help="compare every byte of a map with its checksums",
        description="Compare every byte of a map with its checksums, and every row of its index with the data.",
        epilog=_KINDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--repair", action="store_true", help="remove leftovers, renew headers")
    command.add_argument("--accept", action="store_true", help="checksum assigned values as they are")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=_verify)
    _add_folders(command)

    command = commands.add_parser(
        "backup",
        help="copy a map to a folder that is new or empty, and compare every byte of the copy with its checksum",
        description="Copy the newest state of a map to a folder that is new or empty. Its writers may go on meanwhile.",
        epilog=_COPIED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("folders", nargs=1, metavar="DIR", help="the map")
    command.add_argument("out", metavar="OUT", help="the folder to make")
    command.add_argument("--no-sync", action="store_true", help="leave it to the kernel when the copy is on the disk")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=_backup)
    _add_keys(command)

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
    what = "how long to wait for another writer (0)"
    command.add_argument("--timeout", type=float, default=0.0, metavar="SECONDS", help=what)
    _add_keys(command)


def _add_keys(command: argparse.ArgumentParser) -> None:
    for key in ("starts", "ends", "shapes", "flattened_shapes"):
        flag = f"--{key.replace('_', '-')}-key"
        what = f"the name of the subfolder {key} in a folder of 0.9.0"
        command.add_argument(flag, dest=key, default=key, metavar="NAME", help=what)


def _verify(folder: str, keys: Keys, options: argparse.Namespace) -> bool:
    is_shown, is_mended = not options.quiet and sys.stderr.isatty(), True
    try:
        findings = verify(
            folder,
            verbose=is_shown,
            repair=options.repair,
            accept=options.accept,
            keys=keys,
            timeout=options.timeout,
        )
    except (MmapNinjaError, OSError) as error:
        if not options.repair and not options.accept:
            raise
        print(f"mmap-ninja: {error}", file=sys.stderr)  # and what there was to mend
        findings = verify(folder, verbose=is_shown, keys=keys)
        is_mended = False
    for finding in findings:
        print(finding)
    if not findings and is_mended:
        print(f"{folder}: nothing is wrong")
    return is_mended and all(finding.repaired for finding in findings)


def _backup(folder: str, keys: Keys, options: argparse.Namespace) -> bool:
    is_shown = not options.quiet and sys.stderr.isatty()
    for finding in backup(folder, options.out, sync=not options.no_sync, verbose=is_shown, keys=keys):
        print(finding)
    print(f"{folder}: copied to {options.out}")
    return True


def _upgrade(folder: str, keys: Keys, options: argparse.Namespace) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SalvageWarning)
        is_done = upgrade(folder, keys, options.timeout, salvage=options.salvage, sample_shape=options.sample_shape)
    lost = [warning.message for warning in caught if issubclass(warning.category, SalvageWarning)]
    for message in lost:
        print(message)
    print(f"{folder}: {'upgraded to format 2' if is_done else 'has format 2 already'}")
    return not lost


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(axis) for axis in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected integers with commas between them") from None
