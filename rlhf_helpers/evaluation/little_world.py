"""The measures of this package with the little world's gold filled in.

Where the prompts are posts of the little world, what an answer is truly worth is known, and so is
reported without asking. Other prompts are measured without gold. Pass `gold` to name another truth.
"""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, combinations

import numpy as np

from rlhf_helpers.evaluation import methods, metrics, report
from rlhf_helpers.little_world.annotators import (
    ANNOTATORS,
    TEMPERATURE,
    gold,
    gold_columns,
    measure,
)
from rlhf_helpers.little_world.grammar import SLOTS, Facts, find_post, read_post
from rlhf_helpers.little_world.writers import state_facts
from rlhf_helpers.schemas import Preference

WORDINGS = 6  # of a summary, of which a recipe takes the best


def known_gold(
    input_texts: Sequence[str], responses: Sequence[str]
) -> Mapping[str, Sequence[float]]:
    """The columns of `gold_columns`, or none where a text is no post of the little world."""
    try:
        return gold_columns(input_texts, responses)
    except ValueError:
        return {}


evaluate_policy = partial(metrics.evaluate_policy, gold=known_gold)
temperature_curve = partial(metrics.temperature_curve, gold=known_gold)
report_policy = partial(report.report_policy, gold=known_gold)
evaluate_scores = partial(metrics.evaluate_scores, gold=known_gold)
evaluate_reward_model = partial(metrics.evaluate_reward_model, gold=known_gold)
compare_methods = partial(methods.compare_methods, gold=gold_columns)
best_of_n_row = partial(methods.best_of_n_row, gold=gold_columns)
for _measure in (
    evaluate_policy,
    temperature_curve,
    report_policy,
    evaluate_scores,
    evaluate_reward_model,
    compare_methods,
    best_of_n_row,
):
    _measure.__doc__ = _measure.func.__doc__


def label_ceiling(preferences: Sequence[Preference]) -> float:
    """The best possible accuracy against labels, for a judge who knows every utility exactly.

    Which annotator labels a pair is chance, and so is the label. The judge says what is likelier:
    with p, the mean over the annotators of the probability that candidate 1 is chosen, this is the
    mean of max(p, 1 - p) over the pairs. Raises ValueError for an `input_text` without a post.
    """
    best = []
    for record in preferences:
        facts, post = read_post(record["input_text"]), find_post(record["input_text"])
        answers = (record["candidate_0"], record["candidate_1"])
        first, second = (measure(facts, answer, post) for answer in answers)
        gaps = np.array([a.utility(second) - a.utility(first) for a in ANNOTATORS])
        chosen = (1 / (1 + np.exp(-gaps / TEMPERATURE))).mean()
        best.append(max(chosen, 1 - chosen))
    return float(np.mean(best))


def recipe_gold(input_texts: Sequence[str]) -> dict[tuple[str, ...], np.ndarray]:
    """Gold (N,) of every fixed recipe for a summary: which facts to tell, all of them right.

    The grammar tells them, in the best of six wordings for each post. What the best recipe is worth
    on average, a policy can reach that never asks what matters to a post's writer.
    """
    facts = [read_post(text) for text in input_texts]
    recipes = chain.from_iterable(combinations(SLOTS, count) for count in range(len(SLOTS) + 1))

    def worth(slots: tuple[str, ...], text: str, told: Facts) -> float:
        return max(gold(text, state_facts(told, random.Random(i), slots)) for i in range(WORDINGS))

    pairs = list(zip(input_texts, facts, strict=True))
    return {slots: np.array([worth(slots, *pair) for pair in pairs]) for slots in recipes}
