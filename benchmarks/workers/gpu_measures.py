"""How `benchmarks/gpu.py` measures: seconds, operations, peak memory, the rate of the machine."""

import gc
import resource
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from rlhf_helpers.models.devices import compute_dtype, default_device

HEADS = ("lm_head", "classifier", "pooler.dense")  # not every token passes through these
WARMUP, STEPS = 2, 8  # of the Trainer's


class Row(NamedTuple):
    """One line of the table."""

    case: str
    seconds: float
    count: float  # tokens or samples of a step
    unit: str
    flops: float
    dtype: torch.dtype
    memory: float  # bytes


def model_flops(model: nn.Module, tokens: float, scored: float, training: bool) -> float:
    """Operations of a pass, in the linear layers: 2 a weight and token forward; in training 2 more
    for the gradient of the inputs, and 2 more where the weight is trained. That is 6 N in all, or
    4 N below a LoRA adapter. The heads see `scored` tokens or texts only.
    """
    total = 0.0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):  # whose quantised weights are packed: count by its sides
            a_weight = 2 + training * (2 + 2 * module.weight.requires_grad)
            count = scored if name.endswith(HEADS) else tokens
            total += a_weight * module.in_features * module.out_features * count
    return total


def on_gpu() -> bool:
    return default_device().type == "cuda"


def dtype_of(bits: int) -> torch.dtype:
    """What a stage multiplies in, or what weights of 8 bits are held against."""
    if bits == 16:
        return torch.bfloat16
    return compute_dtype() if on_gpu() or bits < 16 else torch.float32


def matmul_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large product of matrices, the best of ten."""
    side = 8192 if on_gpu() else 512
    left, right = torch.randn(2, side, side, device=default_device()).to(dtype)
    seconds = []
    for _ in range(11):
        started = now()
        left @ right.T  # as a linear layer does
        seconds.append(now() - started)
    return 2 * side**3 / min(seconds[1:])


def now() -> float:
    """The time, when all that was begun on the GPU is done."""
    if on_gpu():
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak() -> None:
    """Start to look for the peak anew."""
    gc.collect()
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # only Linux can; elsewhere the peak is that of all cases so far
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Bytes: of tensors on the GPU, or of the whole process."""
    if on_gpu():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Clock(TrainerCallback):
    """Seconds from the end of a step to the next one's, what a step computes, and peak memory."""

    def __init__(self, allowance: float):
        self.ends, self.allowance = [now()], allowance

    def on_train_begin(self, args, state, control, model, train_dataloader, **_) -> None:
        rows, batch = list(train_dataloader.dataset), args.per_device_train_batch_size
        if "chosen_ids" in rows[0]:
            self.count, self.unit, scored = batch, "pairs", 2 * batch
            tokens = batch * np.mean([len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows])
        else:
            tokens = self.count = batch * np.mean([len(row["input_ids"]) for row in rows])
            scored = batch * np.mean([(np.array(row["labels"]) != -100).sum() for row in rows])
            self.unit = "tokens"
        self.flops = model_flops(model, tokens, scored, training=True)
        reset_peak()

    def on_step_end(self, args, state, control, **_) -> None:
        self.ends.append(now())
        late = self.ends[-1] - self.ends[0] > self.allowance and len(self.ends) > WARMUP + 2
        control.should_training_stop |= late or len(self.ends) > WARMUP + STEPS
        self.memory = peak()

    def row(self, case: str, dtype: torch.dtype) -> Row:
        seconds = statistics.median(np.diff(self.ends)[WARMUP:])
        return Row(case, seconds, self.count, self.unit, self.flops, dtype, self.memory)
