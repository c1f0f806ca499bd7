"""The exercises of L9: direct preference optimisation."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_helpers.checks.feedback import Feedback, try_function


def implicit_reward(answer: Any) -> Feedback:
    """Check `answer(logprobs, reference, mask, beta)`: rewards (B,) from (B, R) log-probs."""
    logprobs = torch.tensor([[-0.5, -1.0, -2.0], [-0.1, -0.3, -9.0]])
    reference = torch.tensor([[-1.5, -1.0, -1.0], [-1.1, -1.3, -5.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    return try_function(
        answer,
        lambda pi, ref, mask, beta: beta * ((pi - ref) * mask).sum(1),
        [(logprobs, reference, mask, 0.1), (reference, logprobs, mask, 2.0)],
        {
            "What the mask leaves out is padding, no token of the answer.": (
                lambda pi, ref, mask, beta: beta * (pi - ref).sum(1)
            ),
            "An answer's log-prob is the sum over its tokens, not their mean.": (
                lambda pi, ref, mask, beta: beta * ((pi - ref) * mask).sum(1) / mask.sum(1)
            ),
            "Its own log-prob is not enough: what did the reference think of this answer?": (
                lambda pi, ref, mask, beta: beta * (pi * mask).sum(1)
            ),
            "Times beta, not divided by it: r = beta log(pi / pi_ref).": (
                lambda pi, ref, mask, beta: ((pi - ref) * mask).sum(1) / beta
            ),
        },
        "Right. That is the reward model inside the policy.",
        "beta times the sum, over the answer's real tokens, of logprobs - reference.",
    )


def dpo_loss(answer: Any) -> Feedback:
    """Check `answer(chosen, rejected, reference_chosen, reference_rejected, beta)`: a scalar.

    The first four are the log-probs (B,) of whole answers, under the policy and the reference.
    """

    def loss(chosen: Tensor, rejected: Tensor, ref_c: Tensor, ref_r: Tensor, beta: float) -> Tensor:
        return -logsigmoid(beta * ((chosen - ref_c) - (rejected - ref_r))).mean()

    sums = (
        torch.tensor([-5.0, -9.0]),
        torch.tensor([-8.0, -4.0]),
        torch.tensor([-6.0, -9.5]),
        torch.tensor([-7.0, -6.0]),
    )
    far = tuple(torch.tensor([value]) for value in (-900.0, -10.0, -20.0, -800.0))
    return try_function(
        answer,
        loss,
        [(*sums, 0.1), (*sums, 1.0), (*far, 1.0)],
        {
            "A loss is to be *minimised*: where is the minus?": lambda *case: -loss(*case),
            "That rewards the rejected answer.": lambda c, r, a, b, beta: loss(r, c, b, a, beta),
            "Where is the reference? Only changes from it count as reward.": (
                lambda c, r, a, b, beta: loss(c, r, 0 * a, 0 * b, beta)
            ),
            "Where is beta? It turns log ratios into rewards.": (
                lambda c, r, a, b, beta: loss(c, r, a, b, 1.0)
            ),
            "Average over the pairs, or a larger batch means larger steps.": (
                lambda c, r, a, b, beta: loss(c, r, a, b, beta) * len(c)
            ),
            "log(sigmoid(x)) is -inf for very wrong pairs; torch has a stable `logsigmoid`.": (
                lambda c, r, a, b, beta: -torch.sigmoid(beta * ((c - a) - (r - b))).log().mean()
            ),
        },
        "Right: Bradley and Terry's loss, with log ratios for scores.",
        "Two implicit rewards, beta * (policy - reference); then L7's loss of their difference.",
    )
