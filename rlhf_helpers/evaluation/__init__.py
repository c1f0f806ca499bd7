"""How good is it, and how sure are we?"""

from rlhf_helpers.evaluation.metrics import (
    evaluate_policy,
    evaluate_reward_model,
    standard_error,
    wilson_interval,
)

__all__ = ["evaluate_policy", "evaluate_reward_model", "standard_error", "wilson_interval"]
