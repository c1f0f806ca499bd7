"""Can a reward model be trusted? Calibration, length bias and its weak spots.

All of it works on the table of `evaluate_reward_model`: a row a pair, with `score_0`, `score_1`,
`choice`, and in the little world `gold_0`, `gold_1`.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, cohen_kappa_score, precision_recall_fscore_support

from rlhf_helpers.evaluation.metrics import wilson_interval
from rlhf_helpers.little_world.annotators import measure
from rlhf_helpers.little_world.grammar import find_post, read_post
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.schemas import Preference

# Aspect -> how much of that fault `measure` counts.
FAULTS = {
    "missing fact": lambda measured: -measured["covered"],
    "wrong fact": lambda measured: measured["wrong"],
    "too long": lambda measured: measured["over_budget"],
    "rambling": lambda measured: measured["rambling"],
}


def preference_probabilities(reward_model: RewardModel, table: pd.DataFrame) -> pd.Series:
    """P(candidate 1 is better), which is sigmoid of the gap of the raw scores."""
    deviation = getattr(reward_model.model.config, "reward_std", 1.0)
    return 1 / (1 + np.exp(-(table["score_1"] - table["score_0"]) * deviation))


def classification_metrics(
    probabilities: Sequence[float], outcomes: Sequence[bool], bins: int = 10
) -> dict[str, float]:
    """Precision, recall, F1 and calibration error of "candidate 1 is better".

    `probabilities` (N,) are the model's, `outcomes` (N,) what is true: the labels, or gold's order.
    """
    predicted = np.asarray(probabilities) > 0.5
    precision, recall, f1, _ = precision_recall_fscore_support(
        outcomes, predicted, average="binary", zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(outcomes, predicted)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "calibration_error": expected_calibration_error(probabilities, outcomes, bins),
    }


def calibration_table(
    probabilities: Sequence[float], outcomes: Sequence[bool], bins: int = 10
) -> pd.DataFrame:
    """Of the pairs given about such a probability, how many came true: a row a bin.

    Columns: `predicted` (mean probability), `observed` (share), `pairs`. Empty bins are left out.
    """
    observed, predicted = calibration_curve(outcomes, probabilities, n_bins=bins)
    edges = np.linspace(0, 1, bins + 1)[1:-1]  # the same bins as scikit-learn's
    counts = np.bincount(np.searchsorted(edges, probabilities), minlength=bins)
    return pd.DataFrame({"predicted": predicted, "observed": observed, "pairs": counts[counts > 0]})


def expected_calibration_error(
    probabilities: Sequence[float], outcomes: Sequence[bool], bins: int = 10
) -> float:
    """Mean gap between what was predicted and what came true (Guo et al. 2017, eq. 3)."""
    table = calibration_table(probabilities, outcomes, bins)
    gaps = (table["predicted"] - table["observed"]).abs()
    return float(np.average(gaps, weights=table["pairs"]))


def accuracy_by(correct: Sequence[bool], groups: Sequence) -> pd.DataFrame:
    """Accuracy with its 95% interval in each group: a bin, an annotator, a subset of the data.

    A pair whose group is missing is left out.
    """
    rows = {}
    for name, right in pd.Series(np.asarray(correct)).groupby(
        pd.Series(groups).reset_index(drop=True), observed=True
    ):
        low, high = wilson_interval(int(right.sum()), len(right))
        rows[name] = {"pairs": len(right), "accuracy": right.mean(), "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index")


def in_gold_order(table: pd.DataFrame) -> pd.DataFrame:
    """The pairs that gold does not tie, with `gap` (gold of candidate 1 minus 0) and `correct`."""
    gap = table["gold_1"] - table["gold_0"]
    table = table.assign(gap=gap, correct=(table["score_1"] > table["score_0"]) == (gap > 0))
    return table[gap.abs() > 1e-9]


def word_gaps(preferences: Sequence[Preference]) -> pd.Series:
    """By how many words candidate 1 is longer than candidate 0."""
    return pd.Series(
        [len(r["candidate_1"].split()) - len(r["candidate_0"].split()) for r in preferences]
    )


def length_bias(table: pd.DataFrame, preferences: Sequence[Preference]) -> dict[str, float]:
    """How much a score goes by length alone.

    `correlation` of the two gaps, of scores and of words, between the candidates of a pair.
    `given_gold`: the same once gold's gap is regressed out of both, which leaves what length buys
    among equally good answers. `accuracy_controlled`: the mean of the accuracies where the better
    one is longer and where it is shorter, so that length alone earns one half. Without gold the
    labels say what is better, and `given_gold` is left out.
    """
    scores = (table["score_1"] - table["score_0"]).to_numpy()
    words = word_gaps(preferences).to_numpy(dtype=float)
    found = {"correlation": float(np.corrcoef(scores, words)[0, 1])}
    truth = (2 * table["choice"] - 1).to_numpy(dtype=float)
    if "gold_0" in table:
        truth = (table["gold_1"] - table["gold_0"]).to_numpy()
        left = [
            values - np.polyval(np.polyfit(truth, values, 1), truth) for values in (scores, words)
        ]
        found["given_gold"] = float(np.corrcoef(*left)[0, 1])
    right = (scores > 0) == (truth > 0)
    longer = words * truth  # > 0 where the better one is longer
    sides = [right[longer > 1e-9], right[longer < -1e-9]]
    found["accuracy_controlled"] = float(np.mean([side.mean() for side in sides if len(side)]))
    return found


def accuracy_by_aspect(table: pd.DataFrame, preferences: Sequence[Preference]) -> pd.DataFrame:
    """Accuracy where the truly worse candidate has more of a fault: a row a fault of the little
    world. A pair may stand in several rows; `alone` counts those that differ in this fault only.

    For data with subsets of their own (hh-rlhf's harmful content, say) use `accuracy_by`.
    """
    ordered = in_gold_order(table)
    faults = pd.DataFrame([_faults(preferences[i], ordered["gap"][i]) for i in ordered.index])
    faults, right = faults[list(FAULTS)].to_numpy(), ordered["correct"].to_numpy()
    alone = faults & (faults.sum(axis=1, keepdims=True) == 1)
    rows = {}
    for i, name in enumerate(FAULTS):
        has, only = right[faults[:, i]], right[alone[:, i]]
        low, high = wilson_interval(int(has.sum()), len(has)) if len(has) else (np.nan, np.nan)
        rows[name] = {
            "pairs": len(has), "accuracy": has.mean() if len(has) else np.nan,
            "low": low, "high": high,
            "alone": len(only), "accuracy_alone": only.mean() if len(only) else np.nan,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").astype({"pairs": int, "alone": int})


def _faults(record: Preference, gap: float) -> dict[str, bool]:
    """Which faults the worse candidate has more of; `gap` is gold of candidate 1 minus 0."""
    facts, post = read_post(record["input_text"]), find_post(record["input_text"])
    texts = (record["candidate_0"], record["candidate_1"])
    first, second = (measure(facts, text, post) for text in texts)
    worse, better = (first, second) if gap > 0 else (second, first)
    return {name: fault(worse) > fault(better) for name, fault in FAULTS.items()}


def annotator_agreement(records: Sequence[Preference]) -> pd.DataFrame:
    """How often two annotators choose alike on the same pair, which bounds any model's accuracy.

    If labels are right with probability p, two are alike with p^2 + (1 - p)^2 = `agreement`, and
    not even the truth agrees with the labels more often than p.

    A row for every two annotators and one for `all`: `pairs`, `agreement` with its 95% interval,
    and Cohen's `kappa`, which is 0 for chance. Raises ValueError if no pair has two annotators.
    """
    choices: dict[tuple, dict[str, int]] = {}
    for record in records:
        key = (record["input_text"], record["candidate_0"], record["candidate_1"])
        choices.setdefault(key, {})[record.get("annotator", "")] = record["choice"]
    names = sorted({name for said in choices.values() for name in said})
    both = {
        f"{a} and {b}": [(s[a], s[b]) for s in choices.values() if a in s and b in s]
        for a, b in combinations(names, 2)
    }
    both = {who: said for who, said in both.items() if said}
    if not both:
        raise ValueError("no pair was labelled by two annotators")
    both["all"] = [pair for said in both.values() for pair in said]
    rows = {}
    for who, said in both.items():
        alike = sum(a == b for a, b in said)
        low, high = wilson_interval(alike, len(said))
        kappa = cohen_kappa_score(*zip(*said, strict=True), labels=[0, 1])
        rows[who] = {
            "pairs": len(said), "agreement": alike / len(said), "low": low, "high": high,
            "kappa": kappa,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")
