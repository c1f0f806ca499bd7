"""What makes a learned reward harder to exploit: several reward models, and a price on length.

A policy that is optimised against a reward model finds its mistakes (Gao et al. 2022). Models that
were trained apart make different ones, so that an answer which all of them like is more likely good
(Coste et al. 2023, arXiv:2310.02743; Eisenstein et al. 2023, arXiv:2312.09244).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

RULES = ("mean", "quantile", "deviation")


class Ensemble:
    """Several reward models as one: call it with texts, as any of them."""

    def __init__(
        self,
        models: Sequence[Callable[[list[str]], Sequence[float]]],
        rule: str = "mean",
        *,
        quantile: float = 0.25,
        deviations: float = 1.0,
    ):
        """Make one score of those of the `models`, by a `rule`.

        `mean`; `quantile`: the lower `quantile` of the scores, with 0 the lowest, the worst case of
        Coste et al. 2023; `deviation`: the mean minus so many standard deviations between the
        models, nearly what they call uncertainty-weighted (they take the variance). Raises
        ValueError for another rule, a quantile that is none, or fewer than two models.
        """
        if rule not in RULES:
            raise ValueError(f"rule is {rule!r}: it must be one of {', '.join(RULES)}")
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile is {quantile}: it must be a number from 0 to 1")
        if len(models) < 2:
            raise ValueError(f"an ensemble needs two models or more, not {len(models)}")
        self.models, self.rule = list(models), rule
        self.quantile, self.deviations = quantile, deviations

    def scores(self, texts: list[str]) -> Tensor:
        """Scores (M, N) of each model for each text."""
        scores = [list(model(texts)) for model in self.models]
        return torch.tensor(scores, dtype=torch.float32)

    def __call__(self, texts: list[str]) -> list[float]:
        """One score for each text."""
        return self.combined(self.scores(texts)).tolist()

    def combined(self, scores: Tensor) -> Tensor:
        """One score (N,) for each column of scores (M, N)."""
        if self.rule == "quantile":
            return scores.quantile(self.quantile, dim=0)
        if self.rule == "deviation":
            return scores.mean(0) - self.deviations * scores.std(0, unbiased=False)
        return scores.mean(0)


def words_over(limit: int) -> Callable[[str, str, Mapping[str, Any]], float]:
    """A function that counts the words of an answer beyond a limit; give it a negative weight.

        Reward("length", words_over(20), weight=-0.1)

    Reward models often take length for quality (Singhal et al. 2023, arXiv:2310.03716).
    """

    def count(prompt: str, response: str, record: Mapping[str, Any]) -> float:
        return float(max(0, len(response.split()) - limit))

    return count
