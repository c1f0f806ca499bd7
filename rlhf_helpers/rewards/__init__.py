"""What an answer is worth: a reward model, programs that check it, or a weighted sum of them.

    brevity = load_rewards(["my_rewards.py:brevity=0.5"])
    rewards = Rewards(reward_model, brevity)
    scores, means = rewards(rollout)

`functions` calls them and checks what they return, `files` loads them from a user's file.
`ensembles` makes one reward model of several, and puts a price on length.
"""

from rlhf_helpers.rewards.ensembles import Ensemble, words_over
from rlhf_helpers.rewards.files import load_rewards, parse_reward
from rlhf_helpers.rewards.functions import Reward, Rewards

__all__ = ["Ensemble", "Reward", "Rewards", "load_rewards", "parse_reward", "words_over"]
