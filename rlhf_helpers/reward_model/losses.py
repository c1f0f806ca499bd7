"""The maths of learning from preferences: what a pair, or a ranking of K answers, costs.

Bradley and Terry (1952): answer a is preferred to b with probability sigmoid(r_a - r_b). Each loss
below is the negative log-likelihood of what the annotators said. Scores are raw, as the reward
model's head gives them.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Places = Sequence[int | Sequence[int]]  # a ranking: indices, best first; a list inside is a tie


def pairwise_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """-log sigmoid(chosen - rejected), averaged: Bradley-Terry (Ouyang et al. 2022, eq. 1, K=2).

    `chosen` and `rejected` are raw scores of shape (B,). `margin` (B,), how far apart graded
    preferences want them, is taken off the difference (Touvron et al. 2023, eq. 2).
    `label_smoothing` is the share of labels believed to be the wrong way round: the loss is its
    expectation over such mistakes.
    """
    right = -logsigmoid(chosen - rejected - margin).mean()
    if not label_smoothing:
        return right
    wrong = -logsigmoid(rejected - chosen - margin).mean()
    return (1 - label_smoothing) * right + label_smoothing * wrong


def ranked_pairs(rankings: Sequence[Places]) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of all rankings: which answer is better, which is worse, and the pair's weight.

    The first two, of shape (P,), count the answers of the whole batch one after the other. Tied
    answers make no pair. Weights are 1 / (pairs of this prompt x prompts), so that they sum to 1;
    a prompt whose answers all tie does not count.
    """
    better, worse, owner, start = [], [], [], 0
    for prompt, ranking in enumerate(rankings):
        groups = [group if isinstance(group, Sequence) else [group] for group in ranking]
        for above, below in combinations(groups, 2):
            better += [start + i for i in above for _ in below]
            worse += [start + j for _ in above for j in below]
            owner += [prompt] * (len(above) * len(below))
        start += sum(map(len, groups))
    counts = torch.bincount(torch.tensor(owner, dtype=torch.long), minlength=len(rankings))
    weights = 1.0 / (counts[owner] * max(1, int((counts > 0).sum()))).double()
    return torch.tensor(better, dtype=torch.long), torch.tensor(worse, dtype=torch.long), weights


def kwise_loss(
    scores: Sequence[Tensor],
    rankings: Sequence[Places],
    label_smoothing: float = 0.0,
    margins: Tensor | float = 0.0,
) -> Tensor:
    """Mean of -log sigmoid(better - worse) over a prompt's C(K,2) pairs, then over the prompts.

    Ouyang et al. (2022), eq. 1. `scores` holds the raw scores (K,) of each prompt's answers, and K
    may differ between prompts; `rankings` lists their indices, best first, a tie as a list inside:
    `[2, [0, 3], 1]`. A tied pair contributes nothing, to the sum or to the number of pairs; a
    batch of nothing but ties costs 0. Every answer's score is computed once, not once a pair.
    `margins` (P,), one for each of the `ranked_pairs`, are taken off as in `pairwise_loss`.
    """
    flat = torch.cat(list(scores))
    better, worse, weights = ranked_pairs(rankings)
    gap = flat[better] - flat[worse]
    losses = -logsigmoid(gap - margins)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * logsigmoid(-gap - margins)
    return (weights.to(flat) * losses).sum()
