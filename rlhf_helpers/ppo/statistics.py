"""What a step says about itself, over the responses of all processes, and what it refuses."""

import logging
import math
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_helpers import processes
from rlhf_helpers.configs import PPOConfig
from rlhf_helpers.ppo.estimators import equal_groups
from rlhf_helpers.ppo.maths import kl_penalty
from rlhf_helpers.ppo.rollout import Rollout

logger = logging.getLogger(__name__)


def checked_scores(scores: list[float] | Tensor, rollout: Rollout, step: int) -> Tensor:
    """Scores (B,) in float32 beside the rollout; ValueError unless one finite score a response."""
    scores = torch.as_tensor(scores, dtype=torch.float32, device=rollout.ended.device)
    if scores.shape != rollout.ended.shape:
        raise ValueError(f"{len(rollout.ended)} responses need as many scores: {scores.shape}")
    finite = scores.isfinite()
    if not finite.all():
        i = int(finite.int().argmin())
        raise ValueError(
            f"step {step}: the score of response {i} is {scores[i]}: {rollout.texts[i]!r}"
        )
    if len(set(processes.gather(len(scores)))) > 1:
        raise ValueError("every process must bring as many responses to a step")
    return scores


def step_statistics(
    rollout: Rollout, scores: Tensor, returns: Tensor, updates: list[dict[str, float]]
) -> dict[str, float]:
    """The statistics of a step as a flat dict.

    `scores` are (B,), `returns` (B, R); `updates` are one dict for each mini-batch, all of the same
    keys, which are averaged.
    """
    mask, gather = rollout.response_mask, processes.gather_rows
    kl = gather((kl_penalty(rollout.logprobs, rollout.ref_logprobs) * mask).sum(1))
    scores = gather(scores)
    stats = {
        "reward_mean": scores.mean().item(),
        "reward_std": scores.std(unbiased=False).item(),
        "kl": kl.mean().item(),
        **{key: sum(update[key] for update in updates) / len(updates) for key in updates[0]},
        "response_length": gather(mask.sum(1).float()).mean().item(),
        "eos_rate": gather(rollout.ended.float()).mean().item(),
        "seconds_rollout": rollout.seconds,
    }
    if rollout.values is not None:
        unexplained = gather((returns - rollout.values)[mask])
        stats["explained_variance"] = explained_variance(unexplained, gather(returns[mask]))
    if rollout.logprob_gap is not None:
        stats["logprob_gap"] = rollout.logprob_gap
    return stats


def compare_groups(
    rollout: Rollout, scores: Tensor, config: PPOConfig, step: int
) -> tuple[Rollout, dict[str, float]]:
    """The share of groups of responses to one prompt that score alike, as `equal_groups`.

    Says so where that is all of them. With `drop_equal_groups` the rollout that is returned counts
    none of their responses.
    """
    equal = equal_groups(scores, config.samples_per_prompt)
    share = processes.gather_rows(equal.float()).mean().item()
    if share == 1 and processes.rank() == 0:
        logger.warning(
            "step %d: all answers to each prompt score alike, so none is better than another", step
        )
    if config.drop_equal_groups:
        rollout = replace(rollout, counted=rollout.counted & ~equal)
    return rollout, {"equal_groups": share}


def explained_variance(unexplained: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant one.

    Equal returns have no variance to explain (but for rounding): 0.
    """
    variance = returns.var(unbiased=False)
    if variance <= 1e-10 * returns.square().mean():
        return 0.0
    return (1 - unexplained.var(unbiased=False) / variance).item()


def stop_unless_finite(update: dict[str, float], step: int, rollout: Rollout, rows: Tensor) -> None:
    """Raise FloatingPointError, which names the mini-batch, if one of its numbers is not finite."""
    wrong = {name: value for name, value in update.items() if not math.isfinite(value)}
    if wrong:
        raise FloatingPointError(
            f"step {step}: {wrong} on the mini-batch of responses {rows.tolist()}, "
            f"the first of which is {rollout.texts[int(rows[0])]!r}"
        )
