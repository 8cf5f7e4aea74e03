"""``python -m cdmtrace``."""

import sys

from cdmtrace.cli import main

if __name__ == "__main__":
    sys.exit(main())
