"""Does a reward model read the prompt, or does it judge the form of an answer alone?

A scorer of form can be right in most pairs and still be useless: whoever optimises it learns to
write well-formed answers to nothing. Three tests tell. Under another, random prompt the order of
two answers should become a coin's. On pairs that differ in one fault only, accuracy shows what the
model sees. And it should beat what needs no preferences (the SFT model's log-prob of the answers)
and what cannot read (a linear probe on the answers' form).
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import generation
from rlhf_helpers.evaluation.metrics import Gold, evaluate_reward_model, evaluate_scores
from rlhf_helpers.evaluation.texts import repetition
from rlhf_helpers.extras import needs_extra
from rlhf_helpers.logprobs import Tokens, response_logprobs
from rlhf_helpers.prompts import answer_end, answer_tokens
from rlhf_helpers.schemas import Preference, Scorer, format_prompt, format_response

with needs_extra("course"):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

FIELDS = ("candidate_0", "candidate_1")

# What the form of an answer shows to someone who has not read the prompt.
FORM: Mapping[str, Callable[[str], float]] = {
    "words": lambda text: len(text.split()),
    "letters per word": lambda text: len(text) / max(1, len(text.split())),
    "sentences": lambda text: sum(text.count(mark) for mark in ".?!"),
    "commas": lambda text: text.count(","),
    "brackets": lambda text: text.count("("),
    "questions": lambda text: text.count("?"),
    "ends in a full stop": lambda text: text.rstrip().endswith("."),
    "ends in a question": lambda text: text.rstrip().endswith("?"),
    "repetition": repetition,
}


def under_other_prompts(preferences: Sequence[Preference], seed: int = 0) -> list[Preference]:
    """The same answers under the prompt of another, randomly chosen record.

    All pairs of a prompt get the same other prompt, and none keeps its own. Raises ValueError if
    there is only one prompt.
    """
    prompts = list(dict.fromkeys(record["input_text"] for record in preferences))
    if len(prompts) < 2:
        raise ValueError("only one prompt: give pairs with at least two different prompts")
    random.Random(seed).shuffle(prompts)
    other = dict(zip(prompts, [*prompts[1:], prompts[0]], strict=True))
    return [{**record, "input_text": other[record["input_text"]]} for record in preferences]


def prompt_sensitivity(
    reward_model: Scorer,
    preferences: list[Preference],
    instruction: str = "",
    *,
    gold: Gold | None = None,
    seed: int = 0,
) -> tuple[dict[str, float], pd.DataFrame]:
    """The shuffled-prompt test: score each pair under its own and under another, random prompt.

    The truth stays that of the own prompt. Metrics: those of `evaluate_scores`, and the same named
    `accuracy_…_other_post` for the scores under the other prompt; `order_kept`, the share of pairs
    whose order is the same under both; and `score_correlation` of the scores of all answers under
    both. A model that does not read comes out with equal accuracies, `order_kept` and
    `score_correlation` near 1. The table adds `other_score_0` and `other_score_1`.
    """
    metrics, table = evaluate_reward_model(reward_model, preferences, instruction, gold=gold)
    shuffled = under_other_prompts(preferences, seed)
    _, under_other = evaluate_reward_model(reward_model, shuffled, instruction)
    own, other = (scored[["score_0", "score_1"]].to_numpy() for scored in (table, under_other))
    found, _ = evaluate_scores(other, preferences, gold=gold)
    for name in (name for name in found if name.startswith("accuracy")):
        metrics[re.sub("(_low|_high)?$", r"_other_post\1", name, count=1)] = found[name]
    metrics["order_kept"] = float(np.mean(np.sign(np.diff(own)) == np.sign(np.diff(other))))
    metrics["score_correlation"] = float(np.corrcoef(own.ravel(), other.ravel())[0, 1])
    return metrics, table.assign(other_score_0=other[:, 0], other_score_1=other[:, 1])


def answer_logprobs(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    preferences: Sequence[Preference],
    instruction: str = "",
    batch_size: int = 32,
) -> np.ndarray:
    """Summed log-probs (N, 2) of both candidates with EOS, given their prompt, in nats.

    As scores in `evaluate_scores` they are the baseline of a model that has seen no preference.
    """
    policy.eval()
    found = []
    for start in range(0, len(preferences), batch_size):
        batch = preferences[start : start + batch_size]
        prompts = [format_prompt(record["input_text"], instruction) for record in batch]
        rows = [
            torch.tensor([*ids, answer_end(tokenizer)])
            for prompt, record in zip(prompts, batch, strict=True)
            for ids in answer_tokens(
                tokenizer,
                prompt,
                [format_response(record[field]) for field in FIELDS],  # type: ignore[literal-required]
            )
        ]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        mask = torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])
        prompt_ids, prompt_mask = generation.encode_prompts(tokenizer, prompts)
        tokens = Tokens(prompt_ids, prompt_mask, ids, mask).to(policy.device)
        logprobs = response_logprobs(policy, tokens)
        found.append(logprobs.double().sum(1).view(-1, 2).cpu())
    return torch.cat(found).numpy()


def form_scores(
    labelled: Sequence[Preference],
    preferences: Sequence[Preference],
    features: Mapping[str, Callable[[str], float]] = FORM,
) -> np.ndarray:
    """Scores (N, 2) by a linear probe on the form of the answers, fitted to labelled preferences.

    The probe is a logistic regression of the choice on the difference of the candidates' features,
    which is a Bradley-Terry reward model without a view of the prompt. With `features` of words
    alone it is the baseline of length.
    """
    probe = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(fit_intercept=False))
    first, second = _features(labelled, features)
    probe.fit(second - first, [record["choice"] for record in labelled])
    return np.stack([probe.decision_function(x) for x in _features(preferences, features)], axis=1)


def _features(
    preferences: Sequence[Preference], features: Mapping[str, Callable[[str], float]]
) -> tuple[np.ndarray, np.ndarray]:
    """The features (N, F) of candidates 0 and of candidates 1."""
    rows = [
        [[float(feature(record[field])) for feature in features.values()] for record in preferences]  # type: ignore[literal-required]
        for field in FIELDS
    ]
    return np.array(rows[0]), np.array(rows[1])
