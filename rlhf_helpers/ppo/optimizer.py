"""The optimiser of policy and critic, and how its learning rates change from step to step."""

import torch
from torch.optim.lr_scheduler import LambdaLR

from rlhf_helpers.configs import PPOConfig


def make_optimizer(
    actor: list[torch.nn.Parameter], critic: list[torch.nn.Parameter], config: PPOConfig
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW without weight decay, with a learning rate each for policy and critic; its schedule.

    Raises ValueError for weights of 16 bits: at a learning rate of 1e-5 nearly all steps are less
    than half the distance to the next such number, and are lost.
    """
    if not actor:
        raise ValueError(
            "the policy has no weights to train: call policy.requires_grad_(True), or load an "
            "adapter with is_trainable=True"
        )
    short = {p.dtype for p in actor if p.dtype in (torch.bfloat16, torch.float16)}
    if short:
        raise ValueError(
            f"the policy's trained weights are {short.pop()}, in which small steps round to "
            "nothing: pass policy.float(), or train a LoRA adapter (models.add_lora)"
        )
    groups = [
        {"params": actor, "lr": config.learning_rate},
        {"params": critic, "lr": config.value_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    return optimizer, LambdaLR(optimizer, lambda step: rate_factor(step, config))


def rate_factor(step: int, config: PPOConfig) -> float:
    """The part of the learning rate that holds in a step: warm-up, then linear to a tenth."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warmup * (1 - 0.9 * min(1.0, step / config.steps))
