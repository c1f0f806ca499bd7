"""Can a reward model be trusted? Calibration, length bias and its weak spots.

Whether it reads the prompt at all is the subject of `reading`.

The measures take the table of `evaluate_reward_model`: a row a pair, with `score_0`, `score_1`,
`choice`, and where gold is known `gold_0`, `gold_1`.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from rlhf_helpers.evaluation.metrics import wilson_interval
from rlhf_helpers.extras import needs_extra
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.schemas import Preference

with needs_extra("course"):
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

# Input texts (N,), answers (N,) -> how much of each fault an answer has: a column (N,) a fault.
Faults = Callable[[Sequence[str], Sequence[str]], Mapping[str, Sequence[float]]]


def preference_probabilities(reward_model: RewardModel, table: pd.DataFrame) -> pd.Series:
    """P(candidate 1 is better): the sigmoid of the gap of raw scores (Bradley and Terry 1952)."""
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
    """Compare predicted probabilities with what came true, in bins of probability: a row a bin.

    Columns: `predicted` (mean probability), `observed` (share that came true), `pairs`. Empty bins
    are left out.
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
    """Accuracy with its 95% interval in each group, such as a bin, an annotator or a topic.

    A pair whose group is missing is left out.
    """
    groups = pd.Series(groups).reset_index(drop=True)
    grouped = pd.Series(np.asarray(correct)).groupby(groups, observed=True)
    rows = {name: _accuracy(right) for name, right in grouped}
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
    """How much the scores depend on length alone.

    `correlation` is that of the gap in scores with the gap in words between the candidates of a
    pair. `given_gold` is the same after gold's gap has been regressed out of both, which leaves the
    effect of length among equally good answers. `accuracy_controlled` is the mean of the accuracy
    where the better candidate is longer and of that where it is shorter, so that a scorer of length
    alone gets one half. Without gold the labels say which is better, and `given_gold` is left out.
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


def accuracy_by_fault(
    table: pd.DataFrame, preferences: Sequence[Preference], faults: Faults
) -> pd.DataFrame:
    """Accuracy where the truly worse candidate has more of a fault than the better one: a row each.

    A pair may stand in several rows; `alone` counts the pairs that differ in this fault only.
    For data with subsets of their own (hh-rlhf's harmful content, say) use `accuracy_by`.
    """
    ordered = in_gold_order(table)
    posts = [preferences[i]["input_text"] for i in ordered.index]
    first, second = (
        pd.DataFrame(faults(posts, [preferences[i][field] for i in ordered.index]))
        for field in ("candidate_0", "candidate_1")
    )
    sign = np.sign(ordered["gap"].to_numpy())  # 1 where candidate 0 is the worse one
    worse_has_more = (first - second).mul(sign, axis=0) > 0
    only = worse_has_more.sum(axis=1) == 1
    right, rows = ordered["correct"].to_numpy(), {}
    for name, has in worse_has_more.items():
        alone = right[has & only]
        rows[name] = _accuracy(right[has]) | {
            "alone": len(alone),
            "accuracy_alone": _accuracy(alone)["accuracy"],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _accuracy(right: Sequence[bool]) -> dict[str, float]:
    """`pairs`, and the share that is right, `accuracy`, with its 95% interval; NaN if empty."""
    pairs, correct = len(right), int(np.sum(right))
    low, high = wilson_interval(correct, pairs) if pairs else (np.nan, np.nan)
    accuracy = correct / pairs if pairs else np.nan
    return {"pairs": pairs, "accuracy": accuracy, "low": low, "high": high}
