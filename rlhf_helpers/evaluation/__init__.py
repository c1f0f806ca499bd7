"""How good is it, and how sure are we?"""

from rlhf_helpers.evaluation.comparison import WinRate, side_by_side, win_rate
from rlhf_helpers.evaluation.drift import perplexity
from rlhf_helpers.evaluation.event_files import read_tensorboard
from rlhf_helpers.evaluation.metrics import (
    evaluate_policy,
    evaluate_reward_model,
    standard_error,
    wilson_interval,
)

__all__ = [
    "WinRate",
    "evaluate_policy",
    "evaluate_reward_model",
    "perplexity",
    "read_tensorboard",
    "side_by_side",
    "standard_error",
    "wilson_interval",
    "win_rate",
]
