"""Answers to the exercises: `checks.gae(gae)` says at once whether yours is right, or why not."""

from rlhf_helpers.checks.cloud import least_roles, valid_together
from rlhf_helpers.checks.data_and_evaluation import (
    beta_for_share,
    longer_wins,
    optimal_policy,
    precision_recall,
    preference_record,
    ranking_scores,
    two_ceilings,
    win_rate,
)
from rlhf_helpers.checks.dpo import dpo_loss, implicit_reward
from rlhf_helpers.checks.feedback import Feedback
from rlhf_helpers.checks.numbers import (
    bad_line,
    kept_share_ratio,
    log_ratio_gap,
    prompts_needed,
    questions_asked,
    score_gap,
    weekend_cost,
    weights_in_gigabytes,
)
from rlhf_helpers.checks.pipelines import (
    adapted_kl_coeff,
    pipeline_parameters,
    runs_again,
    training_steps,
)
from rlhf_helpers.checks.ppo import clipped_loss, gae, hacking_curve, masked_mean
from rlhf_helpers.checks.rest import expected_best, improve_loss
from rlhf_helpers.checks.reward_model import (
    bradley_terry_loss,
    kwise_loss,
    last_token_score,
)
from rlhf_helpers.checks.rlaif import expected_agreement, label_probability
from rlhf_helpers.checks.sft import labels, lora_parameters

__all__ = [
    "Feedback",
    "adapted_kl_coeff",
    "bad_line",
    "beta_for_share",
    "bradley_terry_loss",
    "clipped_loss",
    "dpo_loss",
    "expected_agreement",
    "expected_best",
    "gae",
    "hacking_curve",
    "implicit_reward",
    "improve_loss",
    "kept_share_ratio",
    "kwise_loss",
    "label_probability",
    "labels",
    "last_token_score",
    "least_roles",
    "log_ratio_gap",
    "longer_wins",
    "lora_parameters",
    "masked_mean",
    "optimal_policy",
    "pipeline_parameters",
    "precision_recall",
    "preference_record",
    "prompts_needed",
    "questions_asked",
    "ranking_scores",
    "runs_again",
    "score_gap",
    "training_steps",
    "two_ceilings",
    "valid_together",
    "weekend_cost",
    "weights_in_gigabytes",
    "win_rate",
]
