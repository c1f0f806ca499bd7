"""What each stage's `train(config)` needs, as dataclasses; `scales` fills them in.

The defaults are those of `tiny` on the little world. Each field says what it means and which
values it takes (see `settings`); a config with any other value cannot be made.
"""

from rlhf_helpers.configs.base import StageConfig, TRLStageConfig
from rlhf_helpers.configs.ppo import (
    GRPOConfig,
    PPOConfig,
    PPORunConfig,
    RLAIFConfig,
    RLOOConfig,
)
from rlhf_helpers.configs.supervised import DPOConfig, RestConfig, RewardConfig, SFTConfig

__all__ = [
    "DPOConfig",
    "GRPOConfig",
    "PPOConfig",
    "PPORunConfig",
    "RLAIFConfig",
    "RLOOConfig",
    "RestConfig",
    "RewardConfig",
    "SFTConfig",
    "StageConfig",
    "TRLStageConfig",
]
