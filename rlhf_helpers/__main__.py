"""`python -m rlhf_helpers`: see `cli`."""

import sys

from rlhf_helpers.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
