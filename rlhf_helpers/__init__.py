"""RLHF step by step: supervised fine-tuning, reward models, PPO and its alternatives.

    from rlhf_helpers import PPOConfig, PPOTrainer, RewardModel, Rollout

These names are loaded at their first use, so that importing the package takes milliseconds. The
rest is imported from the module of its subject, such as `rlhf_helpers.dpo` or
`rlhf_helpers.evaluation`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_helpers.configs import PPOConfig
    from rlhf_helpers.ppo import PPOTrainer, Rollout
    from rlhf_helpers.reward_model import RewardModel

__version__ = "0.2.0"
__all__ = ["PPOConfig", "PPOTrainer", "RewardModel", "Rollout", "__version__"]

_MODULES = {
    "PPOConfig": "rlhf_helpers.configs",
    "PPOTrainer": "rlhf_helpers.ppo",
    "RewardModel": "rlhf_helpers.reward_model",
    "Rollout": "rlhf_helpers.ppo",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
