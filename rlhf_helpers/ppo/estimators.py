"""Advantages without a critic: a response is compared with others that were sampled beside it.

Returns G (B,) are the summed rewards of whole responses. The K responses to a prompt stand side by
side. Each estimator gives one advantage (B,) a response, which holds for all of its tokens.

    G = torch.tensor([1.0, 0.0, 5.0, 4.0])  # two answers to each of two prompts
    rloo(G, samples=2)                      # 1, -1, 1, -1: better or worse than the other one
"""

import torch
from torch import Tensor

from rlhf_helpers.configs import PPOConfig
from rlhf_helpers.ppo.maths import Total, own, whiten


def reinforce(returns: Tensor, total: Total = own) -> Tensor:
    """(G - mean) / deviation over the whole batch (Williams 1992, with a baseline)."""
    return whiten(returns, torch.ones_like(returns), total)


def rloo(returns: Tensor, samples: int) -> Tensor:
    """G_i minus the mean of the K - 1 other responses to its prompt (Ahmadian et al. 2024, eq. 8).

    That baseline does not depend on the response itself, so the gradient has no bias.
    """
    groups = returns.view(-1, samples)
    others = (groups.sum(1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).flatten()


def grpo(returns: Tensor, samples: int) -> Tensor:
    """(G - mean) / deviation of the group (Shao et al. 2024, section 4.1.2).

    Prompts on which all responses score nearly alike get as large advantages as any; where all are
    alike they are 0.
    """
    groups = returns.view(-1, samples)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def dr_grpo(returns: Tensor, samples: int) -> Tensor:
    """G minus the mean of its group, without the deviation (Liu et al. 2025, section 3.2)."""
    groups = returns.view(-1, samples)
    return (groups - groups.mean(1, keepdim=True)).flatten()


def critic_free(name: str, returns: Tensor, samples: int, total: Total = own) -> Tensor:
    """The advantages (B,) of the estimator called `name`."""
    if name == "reinforce":
        return reinforce(returns, total)
    return {"rloo": rloo, "grpo": grpo, "dr_grpo": dr_grpo}[name](returns, samples)


def equal_groups(scores: Tensor, samples: int) -> Tensor:
    """Whether all responses to the same prompt score alike, but for rounding; (B,) bool.

    Then none of them is better than another, and the prompt teaches nothing.
    """
    groups = scores.view(-1, samples)
    spread = groups.amax(1) - groups.amin(1)
    return (spread <= 1e-6 * groups.abs().amax(1)).repeat_interleave(samples)


def token_weights(
    aggregation: str, lengths: Tensor, tokens: Tensor, responses: Tensor, longest: int
) -> Tensor:
    """How much a token of each response counts, beside 1 in the mean over all tokens; (B, 1).

    `token`: all the same. `sequence`: 1 / length, so that each response counts the same and a token
    of a long one less (Shao et al. 2024). `constant`: 1 / `longest`, so that a response counts by
    its length (Liu et al. 2025). `tokens` and `responses` are those of the whole mini-batch. A
    response of length 0 is left out: its weight is 0.
    """
    counted = lengths > 0
    if aggregation == "token":
        return counted.float()[:, None]
    divisor = lengths.clamp(min=1) if aggregation == "sequence" else longest
    return (counted * (tokens / responses / divisor))[:, None]


def minibatch_weights(
    mask: Tensor, counted: Tensor, rows: Tensor, config: PPOConfig, total: Total = own
) -> tuple[Tensor, Tensor]:
    """The number of tokens in a mini-batch, and the `token_weights` (B, 1) beside 1 in their mean.

    Only the responses that are `counted` (B,) have a weight, and the others are in no mean.
    """
    lengths = mask.sum(1)
    left = lengths * counted
    numbers = torch.stack([lengths[rows].sum(), left[rows].sum(), counted[rows].sum()])
    tokens, tokens_left, responses = total(numbers).clamp(min=1)
    weights = token_weights(
        config.loss_aggregation, left, tokens_left, responses, config.max_new_tokens
    )
    return tokens, weights * (tokens / tokens_left)
