"""python -m fastadv: see fastadv.cli."""

import sys

from fastadv.cli import main

if __name__ == "__main__":
    sys.exit(main())
