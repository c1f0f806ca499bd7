"""Find wrong labels with the help of models that have not seen them.

Confident learning (Northcutt et al. 2021) judges every label by out-of-sample probabilities:
`cross_fit` trains on one part of the pairs and scores the rest, so that no label has taught the
model that judges it. How many labels were turned round, `flip_rate` reads off the pairs about which
the model is sure: Bradley-Terry noise fades as the gap between two answers grows, flips do not.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlhf_helpers.configs import RewardConfig
from rlhf_helpers.extras import needs_extra
from rlhf_helpers.reward_model.model import RewardModel
from rlhf_helpers.reward_model.run import train
from rlhf_helpers.schemas import Preference, candidate_answers, write_jsonl

with needs_extra("course"):
    from scipy.optimize import minimize, minimize_scalar
    from scipy.special import expit


def flip_labels(
    records: Sequence[Preference], share: float, seed: int = 0
) -> tuple[list[Preference], np.ndarray]:
    """The records with `share` of the labels turned round, and which ones (N,), for a trial."""
    flipped = np.zeros(len(records), dtype=bool)
    chosen = random.Random(seed).sample(range(len(records)), round(share * len(records)))
    flipped[chosen] = True
    turned = [
        Preference(**{**record, "choice": 1 - record["choice"]}) if flip else record
        for record, flip in zip(records, flipped, strict=True)
    ]
    return turned, flipped


def cross_fit(config: RewardConfig, records: Sequence[Preference], folds: int = 2) -> np.ndarray:
    """Gaps (N,), chosen minus rejected raw score, by models that have not seen the pair.

    Trains `folds` reward models by `config`, each without one fold; they are written below
    `config.output_dir`.
    """
    gaps = np.zeros(len(records))
    order = np.random.default_rng(config.seed).permutation(len(records))
    for fold, held_out in enumerate(np.array_split(order, folds)):
        folder = config.output_dir / f"fold_{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        seen = sorted(set(range(len(records))) - set(held_out.tolist()))
        write_jsonl(folder / "pairs.jsonl", [records[i] for i in seen])
        train(replace(config, data=folder / "pairs.jsonl", output_dir=folder))
        scorer = RewardModel.from_pretrained(folder)
        answers = candidate_answers([records[i] for i in held_out], config.instruction)
        scores = scorer.raw_answer_scores(*answers).numpy().reshape(-1, 2)
        sign = np.array([2 * records[i]["choice"] - 1 for i in held_out])
        gaps[held_out] = sign * (scores[:, 1] - scores[:, 0])
    return gaps


def flip_rate(gaps: np.ndarray, trusted: np.ndarray | None = None) -> float:
    """The share of labels turned round at random, by maximum likelihood.

    `gaps` (N,) are chosen minus rejected score by a model that has not seen the labels, as
    `cross_fit` gives them: negative where the model disagrees. The model of a label: P(right) =
    f + (1 - 2 f) sigmoid(a gap). The flip rate f is the share that disagrees however large the gap,
    a the sharpness of the other choices.

    With `trusted`, the same model's gaps for labels believed good, f and a are fitted to those, and
    f is the model's own: how often it is sure and wrong. Then the flips of `gaps` come on top.
    """
    own, sharpness = _fit_labels(gaps if trusted is None else trusted)
    if trusted is None:
        return own
    right = own + (1 - 2 * own) * expit(sharpness * gaps)

    def negative_log_likelihood(rate: float) -> float:
        return -np.log(rate + (1 - 2 * rate) * right).mean()

    return float(minimize_scalar(negative_log_likelihood, bounds=(0, 0.5), method="bounded").x)


def _fit_labels(gaps: np.ndarray) -> tuple[float, float]:
    """The flip rate and the sharpness that make these labels likeliest."""

    def negative_log_likelihood(parameters: np.ndarray) -> float:
        rate, sharpness = 0.5 * expit(parameters[0]), np.exp(parameters[1])
        return -np.log(rate + (1 - 2 * rate) * expit(sharpness * gaps)).mean()

    scale = 1 / max(float(np.abs(gaps).mean()), 1e-12)
    best = minimize(negative_log_likelihood, [-1.0, np.log(scale)], method="Nelder-Mead")
    return float(0.5 * expit(best.x[0])), float(np.exp(best.x[1]))


def most_suspect(gaps: np.ndarray, count: int) -> np.ndarray:
    """Indices of the labels with the smallest gaps: the model contradicts the first most."""
    return np.argsort(gaps, kind="stable")[:count]
