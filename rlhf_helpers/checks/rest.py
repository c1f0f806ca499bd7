"""The exercises of L10: what is kept, and what that is worth."""

from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_helpers.checks.feedback import Feedback, try_function


def improve_loss(answer: Any) -> Feedback:
    """Check `answer(nll, rewards, tau)`: the mean loss (scalar) of rewards above tau."""
    nll, rewards = torch.tensor([2.0, 1.0, 4.0, 3.0]), torch.tensor([0.5, -1.0, 1.5, 1.0])

    def kept_mean(nll: Tensor, rewards: Tensor, tau: float) -> Tensor:
        return nll[rewards > tau].mean()

    return try_function(
        answer,
        kept_mean,
        [(nll, rewards, 0.0), (nll, rewards, 1.0), (nll, rewards, -2.0)],
        {
            "Divide by how many are kept; else a high threshold means tiny steps.": (
                lambda nll, rewards, tau: (nll * (rewards > tau)).mean()
            ),
            "A weight of 0 or 1: the reward itself only decides which.": (
                lambda nll, rewards, tau: (nll * rewards)[rewards > tau].mean()
            ),
            "Keep what scores *above* tau: those are the answers to imitate.": (
                lambda nll, rewards, tau: nll[rewards <= tau].mean()
            ),
            "Just at tau is not above it: 1[R > tau].": (
                lambda nll, rewards, tau: nll[rewards >= tau].mean()
            ),
            "nll is a loss already: its minus is in it.": (
                lambda nll, rewards, tau: -kept_mean(nll, rewards, tau)
            ),
        },
        "Right: SFT on what is kept, and nothing else.",
        "rewards > tau is a mask; nll[mask] are the losses that count.",
    )


def expected_best(answer: Any) -> Feedback:
    """Check `answer(scores, n)`: the mean of the best of n, over all draws without replacement."""
    scores = [0.0, 3.0, 1.0, 2.0]
    return try_function(
        answer,
        lambda scores, n: np.mean([max(drawn) for drawn in combinations(scores, n)]),
        [(scores, 2), (scores, 4), ([-1.0, 5.0, 0.5], 1)],
        {
            "That is the best of *all* answers; with fewer one is seldom so lucky.": (
                lambda scores, n: max(scores)
            ),
            "That is the mean of all answers; take the best of each draw first.": (
                lambda scores, n: np.mean(scores)
            ),
            "The best of the first n is only one draw of many.": (
                lambda scores, n: max(scores[:n])
            ),
            "The n best answers are one draw, and the luckiest.": (
                lambda scores, n: np.mean(sorted(scores)[-n:])
            ),
        },
        "Right, and exact: `evaluation.best_of_n` does it without listing the draws.",
        "Take the max of each draw in combinations(scores, n), and their mean.",
    )
