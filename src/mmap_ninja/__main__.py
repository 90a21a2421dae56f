"""`python -m mmap_ninja`."""

import sys

from mmap_ninja.cli import main

if __name__ == "__main__":
    sys.exit(main())
