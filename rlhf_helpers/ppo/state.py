"""What a trainer needs of a checkpoint, beside its policy's weights."""

from typing import TYPE_CHECKING

import torch

from rlhf_helpers import processes
from rlhf_helpers.models import load_trained_weights, trained_weights

if TYPE_CHECKING:
    from rlhf_helpers.ppo.trainer import PPOTrainer


def trainer_state(trainer: "PPOTrainer") -> dict:
    """The state of optimiser, schedule, critic and random numbers; all processes must call it."""
    return {
        "value_head": trainer.value_head.state_dict() if trainer.value_head else {},
        "critic": trained_weights(trainer.critic) if trainer.critic else {},
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "kl_coef": trainer.kl_coef,
        "generators": processes.gather([g.get_state() for g in _generators(trainer)]),
    }


def load_trainer_state(trainer: "PPOTrainer", state: dict) -> None:
    """Load what `trainer_state` returned; ValueError for another number of processes."""
    if len(state["generators"]) != processes.count():
        raise ValueError(
            f"the checkpoint is of {len(state['generators'])} processes, not of {processes.count()}"
        )
    if trainer.value_head:
        trainer.value_head.load_state_dict(state["value_head"])
    if trainer.critic:
        load_trained_weights(trainer.critic, state["critic"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    trainer.kl_coef = state["kl_coef"]
    own = state["generators"][processes.rank()]
    for generator, numbers in zip(_generators(trainer), own, strict=True):
        generator.set_state(numbers.cpu())


def _generators(trainer: "PPOTrainer") -> list[torch.Generator]:
    own = [trainer.sampling, trainer.shuffling]
    return own if trainer.pretraining is None else [*own, trainer.pretraining.generator]
