"""What a step says about itself: a flat dict of floats, over the responses of all processes."""

import math

from torch import Tensor

from rlhf_helpers import processes
from rlhf_helpers.ppo.rollout import Rollout


def step_statistics(
    rollout: Rollout, scores: Tensor, kl: Tensor, returns: Tensor, updates: list[dict[str, float]]
) -> dict[str, float]:
    """Scores (B,), kl and returns (B, R), and one dict for each mini-batch, which are averaged."""
    mask = rollout.response_mask
    scores, kl, returns, unexplained, ended, lengths = map(
        processes.gather_rows,
        (scores, (kl * mask).sum(1), returns[mask], (returns - rollout.values)[mask],
         rollout.ended.float(), mask.sum(1).float()),
    )  # fmt: skip
    variance = returns.var(unbiased=False).clamp(min=1e-8)
    stats = {
        "reward_mean": scores.mean().item(),
        "reward_std": scores.std(unbiased=False).item(),
        "kl": kl.mean().item(),
        **{key: sum(u[key] for u in updates) / len(updates) for key in updates[0]},
        "explained_variance": (1 - unexplained.var(unbiased=False) / variance).item(),
        "response_length": lengths.mean().item(),
        "eos_rate": ended.mean().item(),
        "seconds_rollout": rollout.seconds,
    }
    gap = rollout.logprob_gap
    return stats if gap is None else stats | {"logprob_gap": gap}


def stop_unless_finite(update: dict[str, float], step: int, rollout: Rollout, rows: Tensor) -> None:
    """Raise FloatingPointError, which names the mini-batch, if one of its numbers is not finite."""
    wrong = {name: value for name, value in update.items() if not math.isfinite(value)}
    if wrong:
        raise FloatingPointError(
            f"step {step}: {wrong} on the mini-batch of responses {rows.tolist()}, "
            f"the first of which is {rollout.texts[int(rows[0])]!r}"
        )
