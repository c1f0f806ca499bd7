"""RLHF step by step: the package behind the notebooks."""

import logging

# On CPUs with bfloat16, bitsandbytes looks on the hub for another kernel and warns when it finds
# none; its own does the same.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
