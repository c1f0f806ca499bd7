"""Numbers on held-out data: what a policy writes is worth, and how often a reward model is right.

In the little world the annotators' true taste, `gold`, is known; elsewhere what needs it is left
out.
"""

import math

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import generation
from rlhf_helpers.little_world.annotators import gold, measure
from rlhf_helpers.little_world.grammar import read_post
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.schemas import Preference, Prompt, candidate_texts, format_prompt

CLEAR_GAP = 1.0  # pairs whose gold values differ by more are called clear


def standard_error(values: pd.Series) -> float:
    """Of the mean of independent values."""
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
    reward_model: RewardModel | None = None,
    reference: PreTrainedModel | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 48,
    instruction: str = "",
    seed: int = 0,
) -> tuple[dict[str, float], pd.DataFrame]:
    """One response to each prompt: the means, and a table with a row a response.

    `reward` is in standard deviations of the SFT model's samples. `kl` is KL(policy || reference)
    in nats a response, estimated from the samples, so at temperature 1 only. `gold`, `covered`
    (facts, of 5), `wrong` (facts) and of completions `unkind` (words) are there if the prompts are
    posts of the little world.
    """
    texts = [format_prompt(record["input_text"], instruction) for record in prompts]
    responses = generation.respond(
        policy, tokenizer, texts,
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
        reference=reference if temperature == 1.0 else None,
    )  # fmt: skip
    columns: dict[str, list] = {
        "prompt": texts,
        "response": [text.strip() for text in responses.texts],
        "length": responses.lengths,
        "eos_rate": [float(ended) for ended in responses.ended],
    }
    if responses.log_ratios:
        columns["kl"] = responses.log_ratios
    if reward_model is not None:
        columns["reward"] = reward_model(
            [a + b for a, b in zip(texts, responses.texts, strict=True)]
        )
    table = pd.DataFrame(columns).join(_gold_columns(texts, columns["response"]))
    metrics = table.drop(columns=["prompt", "response"]).mean().to_dict()
    if "gold" in table:
        metrics["gold_se"] = standard_error(table["gold"])
    return metrics | {"prompts": len(table)}, table


def _gold_columns(prompts: list[str], responses: list[str]) -> pd.DataFrame:
    """`gold` and some of `measure`; empty if these are not posts of the little world."""
    try:
        facts = [read_post(prompt) for prompt in prompts]
    except ValueError:
        return pd.DataFrame()
    measured = [measure(f, r, p) for f, r, p in zip(facts, responses, prompts, strict=True)]
    table = pd.DataFrame(measured).filter(["covered", "wrong", "unkind", "words"])
    table["gold"] = [gold(p, r) for p, r in zip(prompts, responses, strict=True)]
    return table


def evaluate_reward_model(
    reward_model: RewardModel, preferences: list[Preference], instruction: str = ""
) -> tuple[dict[str, float], pd.DataFrame]:
    """How often the better candidate scores higher, and a table with a row a pair.

    `accuracy_noisy` takes the labels for truth, `accuracy_gold` the gold order (ties left out),
    `accuracy_clear` the same where gold differs by more than 1; each with a 95% interval. An
    accuracy over no pair at all is left out.
    """
    texts = [candidate_texts(record, instruction) for record in preferences]
    scores = reward_model([text for pair in texts for text in pair])
    table = pd.DataFrame(
        {
            "score_0": scores[0::2],
            "score_1": scores[1::2],
            "choice": [record["choice"] for record in preferences],
        }
    )
    prefers_1 = table["score_1"] > table["score_0"]
    right = {"noisy": prefers_1 == (table["choice"] == 1)}
    try:
        table["gold_0"] = [gold(r["input_text"], r["candidate_0"]) for r in preferences]
        table["gold_1"] = [gold(r["input_text"], r["candidate_1"]) for r in preferences]
    except ValueError:
        pass
    else:
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
