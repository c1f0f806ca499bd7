"""How good a policy or a reward model is, and how certain the measurement is.

What reports gold here does so where the prompts are posts of the little world; the modules
`metrics` and `methods` have the same functions without it.
"""

from rlhf_helpers.evaluation.comparison import WinRate, side_by_side, win_rate
from rlhf_helpers.evaluation.diagnosis import Finding, diagnose, diagnose_reward_model
from rlhf_helpers.evaluation.drift import kl_from_reference, perplexity
from rlhf_helpers.evaluation.event_files import read_tensorboard
from rlhf_helpers.evaluation.little_world import (
    best_of_n_row,
    compare_methods,
    evaluate_policy,
    evaluate_reward_model,
    evaluate_scores,
    label_ceiling,
    recipe_gold,
    report_policy,
    temperature_curve,
)
from rlhf_helpers.evaluation.metrics import standard_error, wilson_interval
from rlhf_helpers.evaluation.overoptimisation import best_of_n, best_of_n_kl
from rlhf_helpers.evaluation.questions import QUESTIONS, before_and_after
from rlhf_helpers.evaluation.texts import distinct, repetition, rouge, text_metrics

__all__ = [
    "QUESTIONS",
    "Finding",
    "WinRate",
    "before_and_after",
    "best_of_n",
    "best_of_n_kl",
    "best_of_n_row",
    "compare_methods",
    "diagnose",
    "diagnose_reward_model",
    "distinct",
    "evaluate_policy",
    "evaluate_reward_model",
    "evaluate_scores",
    "kl_from_reference",
    "label_ceiling",
    "perplexity",
    "read_tensorboard",
    "recipe_gold",
    "repetition",
    "report_policy",
    "rouge",
    "side_by_side",
    "standard_error",
    "temperature_curve",
    "text_metrics",
    "wilson_interval",
    "win_rate",
]
