"""Answers to the exercises: `checks.gae(gae)` says at once whether yours is right, or why not."""

from rlhf_helpers.checks.data_and_evaluation import (
    bad_line,
    beta_for_share,
    longer_wins,
    optimal_policy,
    precision_recall,
    preference_record,
    prompts_needed,
    ranking_scores,
    win_rate,
)
from rlhf_helpers.checks.feedback import Feedback
from rlhf_helpers.checks.training import (
    bradley_terry_loss,
    clipped_loss,
    gae,
    hacking_curve,
    kwise_loss,
    labels,
    last_token_score,
    lora_parameters,
    masked_mean,
    score_gap,
    weights_in_gigabytes,
)

__all__ = [
    "Feedback",
    "bad_line",
    "beta_for_share",
    "bradley_terry_loss",
    "clipped_loss",
    "gae",
    "hacking_curve",
    "kwise_loss",
    "labels",
    "last_token_score",
    "longer_wins",
    "lora_parameters",
    "masked_mean",
    "optimal_policy",
    "precision_recall",
    "preference_record",
    "prompts_needed",
    "ranking_scores",
    "score_gap",
    "weights_in_gigabytes",
    "win_rate",
]
