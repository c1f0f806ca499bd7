"""The exercises of L8: means over real tokens, advantages, the clipped loss, reward hacking."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_helpers.checks.feedback import Feedback, try_function


def masked_mean(answer: Any) -> Feedback:
    """Check `answer(values, mask)`: the mean over the real tokens of the batch, a scalar."""
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
    """Check `answer(rewards, values, gamma, lam)`: advantages (R,) of one response."""
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
    """Check `answer(ratio, advantages, cliprange)`: the loss of each token, same shape."""
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
    """Check that `answer`, one of CURVES, is what gold did while only the score was rewarded."""
    if answer not in CURVES:
        return Feedback(False, f"The answer is {answer!r}.", "Choose from: " + "; ".join(CURVES))
    if len(gold) < 6:
        return Feedback(True, f"{len(gold)} steps show no curve yet: run the lesson at `tiny`.")
    width = max(1, len(gold) // 20)
    means = torch.tensor(gold).unfold(0, width, 1).mean(1)
    rise, fall = (means.max() - means[0]).item(), (means.max() - means[-1]).item()
    happened = CURVES[0] if fall < rise / 2 else CURVES[1 if rise > 0.5 else 2]
    measured = f"gold went from {means[0]:.1f} up to {means.max():.1f} and ended at {means[-1]:.1f}"
    if answer == happened:
        return Feedback(True, f"Right: {measured}.")
    hint = "Look at the first right-hand plot of section 7, the line of kl_coef 0."
    return Feedback(False, f"Not this time: {measured}.", hint)
