"""``python -m spatialdata_segment`` is the command line."""

import sys

from spatialdata_segment.cli import main

if __name__ == "__main__":
    sys.exit(main())
