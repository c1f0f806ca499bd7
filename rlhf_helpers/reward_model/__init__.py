"""Stage 2: the reward model, which scores a text the way the annotators would.

`losses` has the maths, `model` the class that scores, `pairs` and `kwise` what they are trained
with, `run` goes from folders to a folder. `label_noise` and `learning_curve` train it again and
again, to find out about its data.
"""

from rlhf_helpers.configs import RewardConfig
from rlhf_helpers.reward_model.kwise import (
    KwiseTrainer,
    encode_rankings,
    rank_scores,
    standardise_by_annotator,
)
from rlhf_helpers.reward_model.losses import kwise_loss, pairwise_loss, ranked_pairs
from rlhf_helpers.reward_model.model import RewardModel, append_eos
from rlhf_helpers.reward_model.pairs import PairTrainer, encode_pairs
from rlhf_helpers.reward_model.run import reward_trainer, train

__all__ = [
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
