"""`python -m rlhf_helpers`: see `cli`."""

import sys

from rlhf_helpers.cli import main

if __name__ == "__main__":
    sys.exit(main())
