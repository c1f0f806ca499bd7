"""How often two judges of the same pairs agree: people, labels, models or rules.

If labels are right with probability p, two of them are alike with probability p^2 + (1 - p)^2, and
not even the truth agrees with the labels more often than p. So the agreement of annotators bounds
the accuracy that any model can reach on their labels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, TypeVar

import pandas as pd

from rlhf_helpers.annotation.judgements import Pair, pair_of
from rlhf_helpers.extras import needs_extra
from rlhf_helpers.schemas import Preference, Scorer, candidate_answers, score_answers

T = TypeVar("T")
EQUAL = 1e-9  # scores that differ by less are a tie


@dataclass(frozen=True)
class Agreement:
    """The `share` of `pairs` on which two sides make the same choice, with its 95% interval.

    The interval is Wilson's (1927). `kappa` (Cohen 1960) is 1 for full agreement and 0 for as much
    as chance alone would give; it is NaN where both sides made one and the same choice throughout.
    `left_out` counts the pairs that were not compared, since one side made no choice.
    """

    share: float
    low: float
    high: float
    kappa: float
    pairs: int
    left_out: int


def agreement(choices: Iterable[tuple[int | None, int | None]]) -> Agreement:
    """Compare the choices of two sides, given pair by pair; None is no choice.

    Raises ValueError if there is no pair on which both sides made a choice.
    """
    with needs_extra("course"):
        from scipy.stats import binomtest
        from sklearn.metrics import cohen_kappa_score

    both = list(choices)
    decided = [pair for pair in both if None not in pair]
    if not decided:
        raise ValueError(
            f"No pair of answers is decided by both sides ({len(both)} ties or skips), so there is "
            "nothing to compare: judge some more pairs."
        )
    alike = sum(one == other for one, other in decided)
    low, high = binomtest(alike, len(decided)).proportion_ci(method="wilson")
    known = len({choice for pair in decided for choice in pair}) > 1  # else kappa is 0 / 0
    kappa = float(cohen_kappa_score(*zip(*decided, strict=True))) if known else math.nan
    share = alike / len(decided)
    return Agreement(share, low, high, kappa, len(decided), len(both) - len(decided))


def agreement_with_scorer(judgements: Sequence[Mapping[str, Any]], scorer: Scorer) -> Agreement:
    """Agreement of judgements with a reward model or any other scorer of prompt + answer.

    Equal scores are a tie; ties and skips are left out. Raises ValueError where no pair is decided
    by both.
    """
    scores = score_answers(scorer, *candidate_answers(judgements))  # type: ignore[arg-type]
    gaps = [second - first for first, second in zip(scores[0::2], scores[1::2], strict=True)]
    verdicts = [None if abs(gap) < EQUAL else int(gap > 0) for gap in gaps]
    return agreement((record["choice"], v) for record, v in zip(judgements, verdicts, strict=True))


def agreement_between(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> Agreement:
    """Agreement of two annotators' judgements (or preferences) on the pairs that both have seen.

    Raises ValueError where no pair is decided by both, or where one side has a pair twice.
    """
    ours, theirs = _choices(first), _choices(second)
    return agreement(_shared(ours, theirs))


def _choices(records: Sequence[Mapping[str, Any]]) -> dict[Pair, int | None]:
    choices = {pair_of(record): record["choice"] for record in records}
    if len(choices) < len(records):
        raise ValueError("A pair is there twice: give the judgements of one annotator, once each.")
    return choices


def annotator_agreement(records: Sequence[Preference]) -> pd.DataFrame:
    """Agreement of every two `annotator`s of preferences, and of `all` such twos together.

    For the columns see `agreement_table`. Raises ValueError if no pair has two annotators.
    """
    choices: dict[str, dict[Pair, int]] = {}
    for record in records:
        choices.setdefault(record.get("annotator", ""), {})[pair_of(record)] = record["choice"]
    return agreement_table({name: choices[name] for name in sorted(choices)}, total=True)


def agreement_table(choices: Mapping[str, Mapping[Any, int]], total: bool = False) -> pd.DataFrame:
    """Agreement of every two judges on the pairs that both have judged: a row for every two.

    `choices` maps a judge's name to its choice for each pair. Columns: `pairs`, `agreement` with
    its 95% interval `low` to `high`, and Cohen's `kappa` (see `Agreement`). With `total` a last row
    `all` pools the rows above. Raises ValueError if no pair was judged by two judges.
    """
    compared = {
        f"{a} and {b}": _shared(choices[a], choices[b]) for a, b in combinations(choices, 2)
    }
    compared = {names: both for names, both in compared.items() if both}
    if not compared:
        raise ValueError("no pair was judged by two judges")
    if total:
        compared["all"] = [pair for both in compared.values() for pair in both]
    found = {names: asdict(agreement(both)) for names, both in compared.items()}
    table = pd.DataFrame.from_dict(found, orient="index").rename(columns={"share": "agreement"})
    return table[["pairs", "agreement", "low", "high", "kappa"]]


def _shared(first: Mapping[Any, T], second: Mapping[Any, T]) -> list[tuple[T, T]]:
    """Both values of each key that both mappings have."""
    return [(value, second[key]) for key, value in first.items() if key in second]
