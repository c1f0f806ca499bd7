"""`python -m rlhf_helpers`, the same as the script `rlhf-helpers`: see `commands.main`."""

import sys

from rlhf_helpers.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
