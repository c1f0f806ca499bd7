"""RLHF step by step: the package behind the notebooks."""

import logging

# On CPUs with bfloat16, bitsandbytes looks on the hub for another kernel and warns when it finds
# none; its own does the same.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# And at every product of 8-bit weights that it computes in float16.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
