"""How good is it, and how sure are we?"""

from rlhf_helpers.evaluation.comparison import WinRate, side_by_side, win_rate
from rlhf_helpers.evaluation.drift import perplexity
from rlhf_helpers.evaluation.event_files import read_tensorboard
from rlhf_helpers.evaluation.judges import (
    gold_judge,
    human_judge,
    judge_agreement,
    judge_pairs,
    language_model_judge,
    plain_question,
    position_bias,
    principle_question,
    reward_judge,
)
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
    "gold_judge",
    "human_judge",
    "judge_agreement",
    "judge_pairs",
    "language_model_judge",
    "perplexity",
    "plain_question",
    "position_bias",
    "principle_question",
    "read_tensorboard",
    "reward_judge",
    "side_by_side",
    "standard_error",
    "wilson_interval",
    "win_rate",
]
