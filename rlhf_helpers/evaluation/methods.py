"""Methods side by side: how good the answers of each are, and its KL from the SFT model."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from rlhf_helpers import generation
from rlhf_helpers.evaluation.comparison import win_rate
from rlhf_helpers.evaluation.metrics import Gold, evaluate_policy, standard_error
from rlhf_helpers.evaluation.overoptimisation import best_of_n_kl
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.schemas import Prompt, Scorer, format_prompt, score_answers


def compare_methods(
    policies: Mapping[str, str | Path],
    reference: str | Path,
    prompts: list[Prompt],
    *,
    gold: Gold,
    temperature: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
) -> pd.DataFrame:
    """Sample one answer to each prompt from every policy (name -> folder): a row a policy.

    All policies use the tokenizer of the `reference`, the SFT model, and all sample at one
    `temperature`, the reference too; 0 is greedy.

    Columns: `gold`, and `gain` over the reference on the same prompt, each with its standard error;
    `win_rate` by gold against the reference's answer, with a 95% interval; `kl` from the reference
    at temperature 1, in nats a response (see `evaluate_policy`); `words`.
    """
    model, tokenizer, rows = load_policy(reference), load_tokenizer(reference), {}

    @cache  # the reference may be among the policies
    def evaluate(folder: str) -> tuple[dict[str, float], pd.DataFrame]:
        settings = {"reference": model, "temperature": temperature, "gold": gold, "seed": seed}
        settings["max_new_tokens"] = max_new_tokens
        return evaluate_policy(load_policy(folder), tokenizer, prompts, **settings)

    _, before = evaluate(str(reference))
    for name, folder in policies.items():
        found, after = evaluate(str(folder))
        rows[name] = _row(after["gold"], before["gold"]) | {"kl": found["kl"]}
        rows[name]["words"] = found["words"]
    return pd.DataFrame(rows).T


def best_of_n_row(
    reference: str | Path,
    reward_model: Scorer,
    prompts: list[Prompt],
    n: int,
    *,
    gold: Gold,
    max_new_tokens: int = 48,
    seed: int = 0,
) -> dict[str, float]:
    """A row of `compare_methods` for the best-scored of n answers of the reference.

    It is compared with the first of the n. `kl` is the bound log n - (n - 1) / n, not an
    estimate.
    """
    texts = [format_prompt(record["input_text"]) for record in prompts]
    policy, tokenizer = load_policy(reference), load_tokenizer(reference)
    settings = {"max_new_tokens": max_new_tokens, "samples_per_prompt": n, "seed": seed}
    answers = generation.respond(policy, tokenizer, texts, **settings).texts
    repeated = [text for text in texts for _ in range(n)]
    scores = np.reshape(score_answers(reward_model, repeated, answers), (-1, n))
    worth = np.reshape(gold(repeated, answers)["gold"], (-1, n))
    words = np.reshape([len(answer.split()) for answer in answers], (-1, n))
    best = (np.arange(len(prompts)), scores.argmax(axis=1))
    row = _row(pd.Series(worth[best]), pd.Series(worth[:, 0]))
    return row | {"kl": float(best_of_n_kl(n)), "words": words[best].mean()}


def _row(after: pd.Series, before: pd.Series) -> dict[str, float]:
    gain, won = after - before, win_rate(after.tolist(), before.tolist())
    return {
        "gold": after.mean(),
        "gold_se": standard_error(after),
        "gain": gain.mean(),
        "gain_se": standard_error(gain),
        "win_rate": won.rate,
        "win_rate_low": won.low,
        "win_rate_high": won.high,
    }
