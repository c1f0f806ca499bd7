"""Proximal Policy Optimisation for language models, step by step.

    trainer = PPOTrainer(policy, tokenizer, config)
    for prompts in loader:
        rollout = trainer.rollout(prompts)
        scores = reward_model.score(rollout.prompts, rollout.answers)
        stats = trainer.step(rollout, scores)

To read it: the losses are `maths.policy_loss` and `maths.value_loss`; `trainer.PPOTrainer.step`
calls them in order; their log-probs come from `rlhf_helpers.logprobs`. To build on it: choose one
of `estimators`, which need no critic, pass `PPOTrainer(reference=...)`, or override
`PPOTrainer.advantages`. The other modules are the trainer's parts; `run` reads and writes folders.
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
