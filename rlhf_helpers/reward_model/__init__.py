"""Stage 2: the reward model, which scores a text the way the annotators would.

`losses` has the maths and `model` the classes that score. A classifier is trained by `pairs` or
`kwise`; a head that scores the tokens of answers (`answer_tokens`) by `fit_head`. `run` goes from
folders to a folder. `label_noise` and `learning_curve` train reward models again and again, to find
out about their data.
"""

from rlhf_helpers.configs import RewardConfig
from rlhf_helpers.reward_model.kwise import (
    KwiseTrainer,
    encode_rankings,
    rank_scores,
    standardise_by_annotator,
)
from rlhf_helpers.reward_model.losses import kwise_loss, pairwise_loss, ranked_pairs
from rlhf_helpers.reward_model.model import AnswerTokenRewardModel, RewardModel, append_eos
from rlhf_helpers.reward_model.pairs import PairTrainer, encode_pairs
from rlhf_helpers.reward_model.run import reward_trainer, train

__all__ = [
    "AnswerTokenRewardModel",
    "KwiseTrainer",
    "PairTrainer",
    "RewardConfig",
    "RewardModel",
    "append_eos",
    "encode_pairs",
    "encode_rankings",
    "kwise_loss",
    "pairwise_loss",
    "rank_scores",
    "ranked_pairs",
    "reward_trainer",
    "standardise_by_annotator",
    "train",
]
