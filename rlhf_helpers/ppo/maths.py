"""The maths of PPO for language models, from rewards to losses, in the order of use.

The two losses are `policy_loss` and `value_loss`. Tensors have the shape (B, R), B responses of R
tokens, and `mask` is True on the tokens of a response (its EOS included). `PPOTrainer.step` puts
these functions together.

Sources: Schulman et al. 2017 (PPO), Schulman et al. 2016 (GAE), Ziegler et al. 2019 and Ouyang
et al. 2022 (InstructGPT) for language models, Huang et al. 2024 for the details.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]


def own(part: Tensor) -> Tensor:
    """The total over a batch that one process holds by itself: no other has a part."""
    return part


def masked_mean(values: Tensor, mask: Tensor, total: Total = own) -> Tensor:
    """Mean over the real tokens of the whole batch; a scalar."""
    return total((values * mask).sum()) / total(mask.sum())


def whiten(values: Tensor, mask: Tensor, total: Total = own) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over the real tokens; 0 elsewhere.

    Where several processes share the batch, `total` sums a scalar over all of them.
    """
    mean = masked_mean(values, mask, total)
    variance = masked_mean((values - mean) ** 2, mask, total)
    return (values - mean) * (variance + 1e-8).rsqrt() * mask


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Estimate KL(policy || reference) a token from samples of the policy (Schulman 2020).

    k1 = log pi - log pi_ref: unbiased, can be negative. k3 = exp(-k1) - 1 + k1: unbiased, never
    negative, of lower variance while the two are close. Shape (B, R), nats.
    """
    k1 = logprobs - ref_logprobs
    if estimator == "k1":
        return k1
    if estimator == "k3":
        return torch.exp(-k1) - 1 + k1
    raise ValueError(f"unknown KL estimator {estimator!r}: choose k1 or k3")


def final_scores(
    scores: Tensor, ended: Tensor, score_clip: float | None, eos_penalty: float
) -> Tensor:
    """Scores (B,) cut to +- score_clip, then lowered for a response that did not end.

    Clipped rewards bound what one response can do (Mnih et al. 2015); the penalty teaches to stop
    in time, since a reward model judges what it was trained on: whole responses (Huang et al. 2024,
    the "EOS trick").
    """
    if score_clip is not None:
        scores = scores.clamp(-score_clip, score_clip)
    return scores - eos_penalty * ~ended


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """r_t = -kl_coef * kl_t, plus the score (B,) on the last real token (Ziegler et al. 2019)."""
    rewards = -kl_coef * kl * mask
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def adapted_kl_coef(
    kl_coef: float, kl: float, kl_target: float, responses: int, kl_horizon: float
) -> float:
    """The next step's kl_coef, higher above the target and lower below (Ziegler et al. 2019, 2.2).

    It changes in proportion to the relative error, which counts as +-0.2 at most. `kl` is the mean
    KL of a response in nats. `kl_horizon` is the number of responses over which an error of e
    multiplies the coefficient by about exp(e); with a shorter one than a step's responses, a step
    still changes the coefficient by the error at most, so that it stays above 0.
    """
    error = max(-0.2, min(0.2, kl / kl_target - 1))
    return kl_coef * (1 + error * min(1.0, responses / kl_horizon))


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), backwards in time.

    delta_t = r_t + gamma V_{t+1} - V_t, and A_t = delta_t + gamma lam A_{t+1}; after the last real
    token V and A are 0. Returns advantages and returns A + V, both (B, R), 0 where masked.
    """
    values = values * mask
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    cliprange: float,
    cliprange_high: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate (Schulman et al. 2017, eq. 7), to be minimised.

    -min(ratio A, clip(ratio, 1 - cliprange, 1 + cliprange) A), averaged over the real tokens;
    `cliprange_high` is another range upwards (Yu et al. 2025, DAPO). Returns the loss and the share
    of tokens whose gradient the clip has cut.
    """
    ratio = torch.exp((logprobs - old_logprobs) * mask)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + (cliprange_high or cliprange))
    loss = masked_mean(torch.maximum(unclipped, clipped), mask)
    return loss, masked_mean((clipped > unclipped).float(), mask).detach()


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error of the values, clipped around the old ones (Ziegler et al. 2019).

    Returns the loss and the share of tokens on which the clipped error was the larger.
    """
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    error, clipped_error = (values - returns) ** 2, (clipped - returns) ** 2
    loss = 0.5 * masked_mean(torch.maximum(error, clipped_error), mask)
    outside = (values - old_values).abs() > cliprange_value
    return loss, masked_mean((outside & (clipped_error > error)).float(), mask).detach()


def pretraining_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """-log pi of every token of a document but its first, averaged (Ouyang et al. 2022, eq. 2).

    The language model's own loss, which PPO-ptx adds. Logits (B, T, V); ids and mask (B, T).
    """
    logprobs = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    return -masked_mean(logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1), mask[:, 1:])
