"""What one sampling leaves for several updates, and the options of sampling."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_helpers import processes
from rlhf_helpers.generation import response_logprobs
from rlhf_helpers.models import is_exact
from rlhf_helpers.ppo.maths import masked_mean


@dataclass
class Rollout:
    """B responses to B / K prompts, sampled once; what `PPOTrainer.step` learns from."""

    prompt_ids: Tensor  # (B, P) left padded; each prompt K times in a row
    prompt_mask: Tensor  # (B, P)
    response_ids: Tensor  # (B, R) right padded, EOS included
    response_mask: Tensor  # (B, R) bool, from lengths: a pad token may equal EOS
    logprobs: Tensor  # (B, R) of the sampled tokens under the sampling policy
    ref_logprobs: Tensor  # (B, R) of the same tokens under the reference
    values: Tensor  # (B, R) expected return before each token
    ended: Tensor  # (B,) bool, False if the response was cut off
    responses: list[str]
    texts: list[str]  # prompt and response: what a reward model reads
    seconds: float  # that sampling took
    logprob_gap: float | None = None  # mean |sampled - recomputed| log-prob, where recomputed


def draw_lengths(low: int, high: int, size: int, generator: torch.Generator) -> Tensor | None:
    """Lengths (size,) drawn evenly from low to high; None for low 0: EOS decides.

    After TRL's LengthSampler, which drew one length for every few responses and stopped at no EOS
    either: the answers of a batch then differ in length by chance, not by the policy's choice.
    """
    if not low:
        return None
    return torch.randint(low, high + 1, (size,), generator=generator, device=generator.device)


def reference_logprobs(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    batch: list[Tensor],
    temperature: float,
    rows: int,
) -> Tensor:
    """Log-probs (B, R) under the reference, or (None) the policy with its adapter switched off.

    `batch` holds prompts and responses as in `generation.response_logprobs`, and `rows` says how
    many responses at a time.
    """
    if reference is not None:
        return response_logprobs(reference, *batch, temperature=temperature, rows=rows)
    with policy.disable_adapter():
        return response_logprobs(policy, *batch, temperature=temperature, rows=rows)


def comparable_logprobs(
    policy: PreTrainedModel, sampled: Tensor, batch: list[Tensor], temperature: float, rows: int
) -> tuple[Tensor, float | None]:
    """The log-probs (B, R) that ratios start from, and how far the sampled ones are from them.

    In float32 those of sampling will do. A bf16 or quantised policy rounds differently token by
    token than in one pass, so they are computed again, else the first ratio were not 1.
    """
    if is_exact(policy):
        return sampled, None
    logprobs = response_logprobs(policy, *batch, temperature=temperature, rows=rows)
    return logprobs, masked_mean((sampled - logprobs).abs(), batch[-1], processes.total).item()
