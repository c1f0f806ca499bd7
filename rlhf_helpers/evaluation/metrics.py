"""Numbers on held-out data: what a policy's answers are worth, how often a reward model is right.

Where somebody knows what answers are truly worth, as in the little world, pass that as `gold`;
elsewhere what needs it is left out. `evaluation.evaluate_policy` and `evaluate_reward_model` of the
package itself are these functions with the little world's gold filled in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import generation
from rlhf_helpers.rewards import Reward
from rlhf_helpers.schemas import (
    Preference,
    Prompt,
    Scorer,
    candidate_answers,
    format_prompt,
    join,
    score_answers,
)

TEMPERATURES = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
CLEAR_GAP = 1.0  # pairs whose gold values differ by more are called clear

# Input texts (N,), answers (N,) -> columns (N,), `gold` among them; none where it is not known.
Gold = Callable[[Sequence[str], Sequence[str]], Mapping[str, Sequence[float]]]


def standard_error(values: pd.Series) -> float:
    """The standard error of the mean of independent values."""
    return float(values.std() / math.sqrt(len(values)))


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927); unlike the normal one it stays within 0 and 1."""
    share, extra = successes / trials, z**2 / trials
    centre = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / trials + extra / (4 * trials)) / (1 + extra)
    return centre - half, centre + half


def evaluate_policy(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    reward_model: Scorer | None = None,
    reward_functions: Sequence[Reward] = (),
    reference: PreTrainedModel | None = None,
    gold: Gold | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 48,
    instruction: str = "",
    seed: int = 0,
) -> tuple[dict[str, float], pd.DataFrame]:
    """Sample one response to each prompt; return the means, and a table with a row a response.

    Columns: `prompt`, `response`, `length` (tokens), `eos_rate`; with a reward model `reward`, in
    standard deviations of the SFT model's samples; of each reward function `reward/NAME`, without
    its weight; those of `gold`; with a reference `kl`, KL(q || reference) in nats a response,
    estimated from samples of q, the policy at `temperature` (0 is greedy; the reference stays at
    1). Raises ValueError for a temperature below 0.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature {temperature} is below 0: give 0 (greedy) or more")
    texts = [format_prompt(record["input_text"], instruction) for record in prompts]
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    found = generation.respond(policy, tokenizer, texts, seed=seed, reference=reference, **settings)
    answers = [text.strip() for text in found.texts]
    columns: dict[str, Sequence] = {"prompt": texts, "response": answers, "length": found.lengths}
    columns["eos_rate"] = [float(ended) for ended in found.ended]
    if found.log_ratios:
        columns["kl"] = found.log_ratios
    if reward_model is not None:
        columns["reward"] = score_answers(reward_model, texts, found.texts)
    whole = list(map(join, texts, found.texts))
    for reward in reward_functions:
        columns[f"reward/{reward.name}"] = reward(whole, texts, answers, prompts)
    if gold is not None:
        columns |= gold(texts, answers)
    table = pd.DataFrame(columns)
    metrics = table.drop(columns=["prompt", "response"]).mean().to_dict()
    if "gold" in table:
        metrics["gold_se"] = standard_error(table["gold"])
    return metrics | {"prompts": len(table)}, table


def temperature_curve(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    temperatures: Sequence[float] = TEMPERATURES,
    **settings: Any,
) -> pd.DataFrame:
    """Evaluate a policy at several temperatures, 0 (greedy) to 1 by default: a row a temperature.

    A lower temperature sharpens a policy without training and without a label, so what it gains is
    the baseline that training must beat. The columns are `temperature` and the means of
    `evaluate_policy`, whose keyword arguments `settings` are: `gold`, `gold_se`, `reward`, `kl`,
    `length`, `eos_rate`. With the policy itself as `reference`, `kl` is what sharpening costs.
    """
    rows = []
    for temperature in temperatures:
        found, _ = evaluate_policy(policy, tokenizer, prompts, temperature=temperature, **settings)
        rows.append({"temperature": temperature, **found})
    return pd.DataFrame(rows)


def evaluate_reward_model(
    reward_model: Scorer,
    preferences: list[Preference],
    instruction: str = "",
    *,
    gold: Gold | None = None,
) -> tuple[dict[str, float], pd.DataFrame]:
    """How often the better candidate scores higher, and a table with a row a pair.

    For metrics and columns see `evaluate_scores`.
    """
    scores = score_answers(reward_model, *candidate_answers(preferences, instruction))
    return evaluate_scores(np.reshape(scores, (-1, 2)), preferences, gold=gold)


def evaluate_scores(
    scores: np.ndarray, preferences: list[Preference], *, gold: Gold | None = None
) -> tuple[dict[str, float], pd.DataFrame]:
    """How often the better candidate has the higher of two scores (N, 2); a table, a row a pair.

    `accuracy_noisy` takes the labels for truth, `accuracy_gold` the gold order (ties left out),
    `accuracy_clear` the same where gold differs by more than 1; each with a 95% interval. An
    accuracy over no pair at all is left out. Columns: `score_0`, `score_1`, `choice`, and with
    `gold` `gold_0`, `gold_1`.
    """
    table = pd.DataFrame(scores, columns=["score_0", "score_1"])
    table["choice"] = [record["choice"] for record in preferences]
    prefers_1 = table["score_1"] > table["score_0"]
    right = {"noisy": prefers_1 == (table["choice"] == 1)}
    truth = _gold_of_pairs(preferences, gold) if gold is not None else {}
    if truth:
        table = table.assign(**truth)
        gap = table["gold_1"] - table["gold_0"]
        right["gold"] = (prefers_1 == (gap > 0))[gap.abs() > 1e-9]
        right["clear"] = (prefers_1 == (gap > 0))[gap.abs() > CLEAR_GAP]
    metrics: dict[str, float] = {"pairs": len(table)}
    for name, correct in right.items():
        if not len(correct):
            continue
        low, high = wilson_interval(int(correct.sum()), len(correct))
        metrics[f"accuracy_{name}"] = float(correct.mean())
        metrics[f"accuracy_{name}_low"], metrics[f"accuracy_{name}_high"] = low, high
    return metrics, table


def _gold_of_pairs(preferences: list[Preference], gold: Gold) -> dict[str, Sequence[float]]:
    """`gold_0` and `gold_1` of the candidates; empty where gold is not known."""
    prompts = [record["input_text"] for record in preferences]
    found = {
        "gold_0": gold(prompts, [record["candidate_0"] for record in preferences]),
        "gold_1": gold(prompts, [record["candidate_1"] for record in preferences]),
    }
    return {name: columns["gold"] for name, columns in found.items() if "gold" in columns}
