"""``python -m patchdrop``."""

import sys

from patchdrop.cli import main

if __name__ == "__main__":
    sys.exit(main())
