"""The device of this machine, and how numbers are multiplied on it: precision and attention."""

import logging
import os
import time
from functools import cache

import torch

logger = logging.getLogger(__name__)
PRECISIONS = ("bfloat16", "float16", "float32")


def default_device() -> torch.device:
    """The GPU if there is one, else Apple's, else the CPU. RLHF_DEVICE overrides the choice."""
    if choice := os.environ.get("RLHF_DEVICE", ""):
        return torch.device(choice)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@cache
def matmul_precision() -> str:
    """Choose how float32 matrices are multiplied on this machine, set it, and return it.

    On many CPUs `medium` picks a path about twice as fast at the same error, on others it means
    bfloat16, or nothing; so both are measured once. Only a clear gain counts: attention is slower
    then, and chance must not decide. The variable RLHF_MATMUL_PRECISION overrides the choice.
    """
    choice = os.environ.get("RLHF_MATMUL_PRECISION", "")
    if not choice:
        gain, error = measure_matmul()
        choice = "medium" if gain > 1.5 and error < 1e-5 else "highest"
        logger.info("float32 matmul: %s (medium %.1fx, error %.0e)", choice, gain, error)
    torch.set_float32_matmul_precision(choice)
    return choice


def measure_matmul(size: int = 512) -> tuple[float, float]:
    """How many times faster `medium` is, and its largest error relative to the largest entry.

    The two take turns, and the best of each counts: other work on the machine slows down both.
    """
    left, right = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {"highest": [], "medium": []}
    for precision in ["highest", "medium"] * 12:
        torch.set_float32_matmul_precision(precision)
        start = time.perf_counter()
        product = left @ right
        seconds[precision].append(time.perf_counter() - start)
    exact = left.double() @ right.double()
    error = (product - exact).abs().max() / exact.abs().max()
    return min(seconds["highest"]) / min(seconds["medium"]), error.item()


def attention() -> str:
    """torch's CPU flash attention is slower than plain attention once matmuls are fast."""
    fast_matmul = default_device().type == "cpu" and matmul_precision() == "medium"
    return "eager" if fast_matmul else "sdpa"


def compute_dtype() -> torch.dtype:
    """What weights of 4 bits are multiplied in, and on GPUs all matrices of TRL's stages.

    bfloat16 where the hardware is made for it; GPUs before Ampere take float16. On a CPU with AVX2
    alone the products took 14 times as long as with float32. RLHF_PRECISION overrides the choice.
    """
    if choice := os.environ.get("RLHF_PRECISION", ""):
        if choice not in PRECISIONS:
            raise ValueError(f"RLHF_PRECISION is {choice}; choose one of {', '.join(PRECISIONS)}")
        return getattr(torch, choice)
    if default_device().type == "cuda":
        made_for_it = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if made_for_it else torch.float16
    found = torch.cpu.get_capabilities()
    made_for_it = any(has for name, has in found.items() if name.endswith("bf16"))
    return torch.bfloat16 if made_for_it else torch.float32


def describe_device() -> str:
    """One line that says what the device is and how numbers are multiplied on it."""
    device = default_device()
    precision = str(compute_dtype()).removeprefix("torch.")
    described = f"device {device}, {attention()} attention, quantised weights in {precision}"
    if device.type == "cuda":
        return described.replace("cuda", f"cuda ({torch.cuda.get_device_name()})", 1)
    return described + f", float32 matrices at {matmul_precision()!r} precision"
