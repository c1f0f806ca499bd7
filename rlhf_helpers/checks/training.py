"""The exercises of L6, L7 and L8: labels, losses, advantages."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_helpers.checks.feedback import Feedback, try_function, try_number
from rlhf_helpers.reward_model.losses import kwise_loss as package_kwise_loss
from rlhf_helpers.reward_model.losses import pairwise_loss

# ---- L6: supervised fine-tuning ------------------------------------------------------------


def labels(answer: Any) -> Feedback:
    """`answer(prompt_ids, response_ids, eos)` -> `input_ids` and `labels`, two lists."""

    def encoded(prompt: list[int], response: list[int], eos: int) -> tuple[list[int], list[int]]:
        return [*prompt, *response, eos], [*[-100] * len(prompt), *response, eos]

    return try_function(
        answer,
        encoded,
        [([5, 6, 7], [8, 9], 2), ([4], [3, 2, 1], 0)],
        {
            "The end-of-sequence token is missing: such a model learns never to stop.": (
                lambda prompt, response, eos: (prompt + response, [-100] * len(prompt) + response)
            ),
            "The end-of-sequence token needs a label, or nobody teaches the model to stop.": (
                lambda prompt, response, eos: (
                    [*prompt, *response, eos],
                    [*[-100] * len(prompt), *response, -100],
                )
            ),
            "Mask the prompt with -100: we want good answers, not more posts.": (
                lambda prompt, response, eos: ([*prompt, *response, eos],) * 2
            ),
            "No shift here: the model compares position t with the label at t + 1 by itself.": (
                lambda prompt, response, eos: (
                    [*prompt, *response, eos],
                    [*[-100] * (len(prompt) - 1), *response, eos, -100],
                )
            ),
        },
        "Right: the loss is on the response and its end, and nowhere else.",
        "input_ids are prompt + response + [eos]; labels are as long, with -100 on the prompt.",
    )


def lora_parameters(answer: Any) -> Feedback:
    """`answer(inputs, outputs, rank)` -> how many weights LoRA trains beside one matrix."""
    return try_function(
        answer,
        lambda inputs, outputs, rank: rank * (inputs + outputs),
        [(2048, 2048, 16), (2048, 8192, 16), (10, 20, 1)],
        {
            "That is the whole matrix, which stays frozen.": (
                lambda inputs, outputs, rank: inputs * outputs
            ),
            "There are two matrices: A is rank × inputs, B is outputs × rank.": (
                lambda inputs, outputs, rank: rank * inputs
            ),
            "Two thin matrices beside each other: their sizes add.": (
                lambda inputs, outputs, rank: rank * inputs * outputs
            ),
        },
        "Right: at rank 16, a matrix of 2,048 × 2,048 is trained with 1.6% of its weights.",
        "A has rank × inputs weights and B outputs × rank.",
    )


def weights_in_gigabytes(answer: Any) -> Feedback:
    """`answer`: 1.3 billion weights at 4 bits, in gigabytes: 0.65, a little more with constants."""
    return try_number(
        answer, 0.6, 0.75, "Right: half a byte a weight. At 32 bits it would be 5.2.",
        "4 bits are half a byte. How many bytes are 1.3 billion halves?",
        "4 bits are half a byte, not 4 bytes; a gigabyte is a billion bytes.",
    )  # fmt: skip


# ---- L7: the reward model ------------------------------------------------------------------


def bradley_terry_loss(answer: Any) -> Feedback:
    """`answer(chosen, rejected)` -> the mean loss of scores (B,), a scalar."""
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
    """`answer(scores, ranking)` -> the mean over all pairs of one ranking, a scalar.

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


def score_gap(answer: Any) -> Feedback:
    """`answer`: the difference in score at which 9 of 10 prefer the better one: 2.2."""
    return try_number(
        answer, 2.1, 2.3, "Right: log(0.9 / 0.1). And at the same score it is one in two.",
        "sigmoid(d) = 0.9 means d = log(0.9 / 0.1): the log of the odds.",
        "sigmoid(d) = 0.9 means d = log(0.9 / 0.1), with the natural logarithm.",
    )  # fmt: skip


def last_token_score(answer: Any) -> Feedback:
    """`answer(scores, mask)` -> the score at each text's last real token, (B, T) to (B,)."""
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


# ---- L8: PPO -------------------------------------------------------------------------------


def masked_mean(answer: Any) -> Feedback:
    """`answer(values, mask)` -> the mean over the real tokens of the batch, a scalar."""
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, 50.0, 70.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    return try_function(
        answer,
        lambda values, mask: values[mask].mean(),
        [(values, mask), (-values, torch.ones_like(mask)), (values, ~mask)],
        {
            "What stands behind the end of a response is padding; give it no weight.": (
                lambda values, mask: values.mean()
            ),
            "Divide by the number of real tokens, not by the size of the tensor.": (
                lambda values, mask: (values * mask).mean()
            ),
            "Every token counts alike, so that a long response counts more than a short one.": (
                lambda values, mask: ((values * mask).sum(1) / mask.sum(1)).mean()
            ),
        },
        "Right.",
        "Sum what is real, divide by how many are real.",
    )


def gae(answer: Any) -> Feedback:
    """`answer(rewards, values, gamma, lam)` -> advantages (R,) of one response."""
    from rlhf_helpers import ppo  # here, since it costs seconds that other lessons do without

    rewards, values = torch.tensor([-0.1, 0.0, 2.0]), torch.tensor([1.0, 1.5, 1.8])

    def ours(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
        mask = torch.ones(1, len(rewards), dtype=torch.bool)
        return ppo.gae(rewards[None], values[None], mask, gamma, lam)[0][0]

    def from_the_left(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
        deltas, total = ours(rewards, values, gamma, 0.0), torch.tensor(0.0)
        return torch.stack([total := delta + gamma * lam * total for delta in deltas])

    return try_function(
        answer,
        ours,
        [(rewards, values, 1.0, 0.95), (rewards, values, 0.9, 0.5), (values, rewards, 1.0, 1.0)],
        {
            "These are the surprises delta alone. An advantage adds the later ones, discounted.": (
                lambda rewards, values, gamma, lam: ours(rewards, values, gamma, 0.0)
            ),
            "lam weighs the later surprises down; yours all count in full.": (
                lambda rewards, values, gamma, lam: ours(rewards, values, gamma, 1.0)
            ),
            "A token is credited with what comes *after* it: go through them from the last.": (
                from_the_left
            ),
            "These are the returns, A + V. The advantage is what exceeds the value.": (
                lambda rewards, values, gamma, lam: ours(rewards, values, gamma, lam) + values
            ),
            "A surprise subtracts what was expected: r + gamma V_next - V.": (
                lambda rewards, values, gamma, lam: ours(rewards, 0 * values, gamma, lam)
            ),
        },
        "Right: that is the loop of the package.",
        "From the last token to the first: delta = r + gamma V_next - V, and "
        "A = delta + gamma lam A_next; behind the last token V and A are 0.",
    )


def clipped_loss(answer: Any) -> Feedback:
    """`answer(ratio, advantages, cliprange)` -> the loss of each token, same shape."""
    ratio = torch.tensor([0.5, 0.9, 1.0, 1.1, 1.5, 0.5, 1.5])
    advantages = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0])

    def clip(ratio: Tensor, cliprange: float) -> Tensor:
        return ratio.clamp(1 - cliprange, 1 + cliprange)

    return try_function(
        answer,
        lambda r, a, c: -torch.minimum(r * a, clip(r, c) * a),
        [(ratio, advantages, 0.2), (ratio, 2 * advantages, 0.6)],
        {
            "PPO *minimises* its loss: where is the minus?": (
                lambda r, a, c: torch.minimum(r * a, clip(r, c) * a)
            ),
            "Clipping alone also stops a token that moved the wrong way; take the minimum.": (
                lambda r, a, c: -clip(r, c) * a
            ),
            "Take the *smaller* gain of the two, so that leaving the range never pays.": (
                lambda r, a, c: -torch.maximum(r * a, clip(r, c) * a)
            ),
            "Nothing is clipped yet.": lambda r, a, c: -r * a,
        },
        "Right: compare it with the source above.",
        "-min(ratio · A, clip(ratio, 1 - cliprange, 1 + cliprange) · A)",
    )


CURVES = ("rises and stays", "rises, then falls", "falls from the start")


def hacking_curve(answer: Any, gold: Sequence[float]) -> Feedback:
    """`answer` is one of CURVES: what the true value did while only the score was rewarded."""
    if answer not in CURVES:
        return Feedback(False, f"The answer is {answer!r}.", "Choose from: " + "; ".join(CURVES))
    width = max(1, len(gold) // 20)
    means = torch.tensor(gold).unfold(0, width, 1).mean(1)
    rise, fall = (means.max() - means[0]).item(), (means.max() - means[-1]).item()
    happened = CURVES[0] if fall < rise / 2 else CURVES[1 if rise > 0.5 else 2]
    measured = f"gold went from {means[0]:.1f} up to {means.max():.1f} and ended at {means[-1]:.1f}"
    if answer == happened:
        return Feedback(True, f"Right: {measured}.")
    hint = "Look at the right-hand plot of section 7, the line of kl_coef 0."
    return Feedback(False, f"Not this time: {measured}.", hint)
