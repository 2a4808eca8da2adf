"""`python -m pipeline`."""

import sys

from pipeline.cli.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
