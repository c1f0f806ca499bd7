"""The exercises of L7: the losses of a reward model, and what its scores mean."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_helpers.checks.feedback import Feedback, try_function
from rlhf_helpers.reward_model.losses import kwise_loss as package_kwise_loss
from rlhf_helpers.reward_model.losses import pairwise_loss


def bradley_terry_loss(answer: Any) -> Feedback:
    """Check `answer(chosen, rejected)`: the mean loss of scores (B,), a scalar."""
    chosen, rejected = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([1.0, 1.5, -1.0])
    return try_function(
        answer,
        pairwise_loss,
        [(chosen, rejected), (chosen[:1], rejected[:1]), (100 * rejected, 100 * chosen)],
        {
            "A loss is to be *minimised*: where is the minus?": (
                lambda chosen, rejected: logsigmoid(chosen - rejected).mean()
            ),
            "The chosen answer should score higher: chosen - rejected.": (
                lambda chosen, rejected: -logsigmoid(rejected - chosen).mean()
            ),
            "Average over the pairs, or a larger batch means larger steps.": (
                lambda chosen, rejected: -logsigmoid(chosen - rejected).sum()
            ),
            "That is the probability of the labels; the loss is its negative logarithm.": (
                lambda chosen, rejected: torch.sigmoid(chosen - rejected).mean()
            ),
            "log(sigmoid(x)) is -inf for very wrong pairs; torch has a stable `logsigmoid`.": (
                lambda chosen, rejected: -torch.sigmoid(chosen - rejected).log().mean()
            ),
        },
        "Right, also for pairs that are very wrong.",
        "-logsigmoid(chosen - rejected), averaged.",
    )


def kwise_loss(answer: Any) -> Feedback:
    """Check `answer(scores, ranking)`: the mean over all pairs of one ranking, a scalar.

    `scores` (K,) of the candidates, `ranking` their numbers, best first, no ties.
    """
    scores, ranking = torch.tensor([0.5, -1.0, 2.0, 1.0]), [2, 0, 3, 1]

    def losses(ordered: Tensor) -> Tensor:
        better, worse = torch.combinations(ordered).T
        return -logsigmoid(better - worse)

    return try_function(
        answer,
        lambda scores, ranking: package_kwise_loss([scores], [ranking]),
        [(scores, ranking), (scores[:2], [1, 0]), (scores[:3], [0, 1, 2])],
        {
            "Divide by the number of pairs, or long rankings count more than short ones.": (
                lambda scores, ranking: losses(scores[ranking]).sum()
            ),
            "Not only neighbours: the best answer beats the last one too.": (
                lambda scores, ranking: pairwise_loss(scores[ranking][:-1], scores[ranking][1:])
            ),
            "`ranking` holds the numbers of the candidates: best first is scores[ranking].": (
                lambda scores, ranking: losses(scores).mean()
            ),
            "The better answer of a pair should score higher: better - worse.": (
                lambda scores, ranking: losses(scores[ranking].flip(0)).mean()
            ),
        },
        "Right: with K = 2 it is the loss of exercise 1.",
        "torch.combinations(scores[ranking]) gives all pairs, the better one first.",
    )


def last_token_score(answer: Any) -> Feedback:
    """Check `answer(scores, mask)`: the score at each text's last real token, (B, T) to (B,)."""
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])

    def at(scores: Tensor, places: Tensor) -> Tensor:
        return scores[torch.arange(len(scores)), places]

    return try_function(
        answer,
        lambda scores, mask: at(scores, mask.sum(1) - 1),
        [(scores, mask), (scores, mask.roll(1, 0))],
        {
            "Still the last *place*: in the short text that is padding.": (
                lambda scores, mask: scores[:, -1]
            ),
            "One too far: a text of n tokens has its last one at n - 1.": (
                lambda scores, mask: at(scores, mask.sum(1) % scores.shape[1])
            ),
            "One token has read the whole text; a mean would count the prompt too.": (
                lambda scores, mask: scores[mask].mean().expand(len(scores))
            ),
        },
        "Right. The score no longer depends on what else is in the batch.",
        "mask.sum(1) counts the real tokens of each text; index with torch.arange(len(scores)).",
    )
