"""`python -m phrase_loc COMMAND ...` is `phrase-loc COMMAND ...`."""

import sys

from phrase_loc.cli import main

if __name__ == "__main__":
    sys.exit(main())
