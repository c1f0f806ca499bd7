"""Two models on the same prompts: how often each one wins, and what they wrote."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

import numpy as np
import pandas as pd

from rlhf_helpers.evaluation.metrics import wilson_interval
from rlhf_helpers.schemas import DataError, StrPath, read_predictions

RESAMPLES = 10_000


@dataclass(frozen=True)
class WinRate:
    """`rate` counts a tie as half a win; `low` and `high` are its 95% interval (Wilson 1927).

    Wilson's interval takes no account of ties, so it is too wide where there are many. The interval
    from `bootstrap_low` to `bootstrap_high`, percentiles over resampled prompts (Efron 1979), is
    not, but it fails for few prompts: without a single loss it has no width.
    """

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    bootstrap_low: float
    bootstrap_high: float


def win_rate(tuned: Sequence[float], untuned: Sequence[float]) -> WinRate:
    """How often the tuned model's answer is worth more than the untuned one's, prompt by prompt.

    Both hold the values (N,) of the answers to the same N prompts, in the same order. Raises
    ValueError if their lengths differ, or if they are empty or hold NaN.
    """
    difference = np.asarray(tuned, dtype=float) - np.asarray(untuned, dtype=float)
    if len(tuned) != len(untuned) or not len(tuned) or np.isnan(difference).any():
        raise ValueError(
            f"{len(tuned)} values of the tuned model against {len(untuned)} of the untuned one: "
            "give one number for each prompt, of both."
        )
    wins, ties = int((difference > 0).sum()), int((difference == 0).sum())
    score, trials = wins + ties / 2, len(difference)
    losses = trials - wins - ties
    low, high = wilson_interval(score, trials)
    # Drawing N prompts with replacement draws N outcomes with these probabilities.
    shares = np.array([wins, ties, losses]) / trials
    draws = np.random.default_rng(0).multinomial(trials, shares, size=RESAMPLES)
    bounds = np.quantile(draws @ [1, 0.5, 0] / trials, [0.025, 0.975]).tolist()
    return WinRate(score / trials, low, high, wins, ties, losses, *bounds)


def side_by_side(tuned_path: StrPath, untuned_path: StrPath) -> pd.DataFrame:
    """Match the predictions of two files by prompt: columns `prompt`, `untuned`, `tuned`.

    Rows keep the order of the tuned file. Prompts that only one file has are left out, with a
    warning that counts and names them, since bulk inference may lose a few. Raises DataError
    if a file has a prompt twice, or if the files have no prompt in common.
    """
    tuned, untuned = _by_prompt(tuned_path), _by_prompt(untuned_path)
    rows = [(p, untuned[p], answer) for p, answer in tuned.items() if p in untuned]
    if not rows:
        raise DataError(
            f"{tuned_path}: none of its {len(tuned)} prompts is in {untuned_path}, which has "
            f"{next(iter(untuned))!r}, say. Let both models answer the same prompts."
        )
    for here, prompts, others in ((tuned_path, tuned, untuned), (untuned_path, untuned, tuned)):
        if alone := [prompt for prompt in prompts if prompt not in others]:
            named = ", ".join(repr(shorten(prompt, 60)) for prompt in alone[:3])
            warnings.warn(
                f"{here}: {len(alone)} of {len(prompts)} prompts are not in the other file and "
                f"are left out: {named}{', …' if alone[3:] else ''}",
                stacklevel=2,
            )
    return pd.DataFrame(rows, columns=["prompt", "untuned", "tuned"])


def _by_prompt(path: StrPath) -> dict[str, str]:
    answers: dict[str, str] = {}
    for record in read_predictions(path):
        prompt = record["inputs"]["inputs_pretokenized"].strip()
        if prompt in answers:
            raise DataError(f"{path}: the prompt {prompt!r} is there twice. Keep one answer to it.")
        answers[prompt] = record["prediction"]
    return answers
