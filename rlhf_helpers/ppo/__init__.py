"""Proximal Policy Optimisation for language models, step by step.

    trainer = PPOTrainer(policy, tokenizer, config)
    for prompts in loader:
        rollout = trainer.rollout(prompts)
        scores = reward_model(rollout.texts)
        stats = trainer.step(rollout, scores)

`maths` has the losses and all that leads to them, `trainer` the class above; `rollout`, `critic`,
`pretraining` and `statistics` are its parts, `run` goes from folders to a folder.
"""

from rlhf_helpers.configs import PPOConfig, PPORunConfig
from rlhf_helpers.ppo.maths import (
    adapted_kl_coef,
    final_scores,
    gae,
    kl_penalty,
    masked_mean,
    policy_loss,
    pretraining_loss,
    token_rewards,
    value_loss,
    whiten,
)
from rlhf_helpers.ppo.rollout import Rollout
from rlhf_helpers.ppo.run import prompt_batches, train
from rlhf_helpers.ppo.trainer import PPOTrainer

__all__ = [
    "PPOConfig",
    "PPORunConfig",
    "PPOTrainer",
    "Rollout",
    "adapted_kl_coef",
    "final_scores",
    "gae",
    "kl_penalty",
    "masked_mean",
    "policy_loss",
    "pretraining_loss",
    "prompt_batches",
    "token_rewards",
    "train",
    "value_loss",
    "whiten",
]
