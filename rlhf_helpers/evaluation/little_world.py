"""The measures of this package with the little world's gold filled in.

Where the prompts are posts of the little world, what an answer is truly worth is known, and so is
reported without asking. Other prompts are measured without gold. Pass `gold` to name another truth.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from rlhf_helpers.evaluation import methods, metrics, report
from rlhf_helpers.little_world.annotators import gold_columns


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
