"""What the tests of PPO share: random batches, and small runs of a tiny trainer."""

from dataclasses import fields

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_helpers.ppo import PPOTrainer, Rollout

PROMPTS = ["The cat", "sat on the mat.", "x", "Why not?"]
STATS = {
    "reward_mean",
    "reward_std",
    "kl",
    "kl_coef",
    "policy_loss",
    "value_loss",
    "entropy",
    "clip_fraction",
    "approx_kl",
    "explained_variance",
    "response_length",
    "eos_rate",
    "grad_norm",
    "seconds_rollout",
    "seconds_update",
}
SMALL = {
    "steps": 10,
    "warmup_steps": 1,
    "batch_size": 8,
    "mini_batch_size": 4,
    "samples_per_prompt": 2,
    "ppo_epochs": 2,
    "max_new_tokens": 8,
    "learning_rate": 3e-3,
}


def upper_share(rollout: Rollout) -> Tensor:
    """The rule that the tests reward: the share of tokens from the upper half of the vocabulary."""
    rewarded = (rollout.response_ids >= 49) & rollout.response_mask
    return rewarded.sum(1) / rollout.response_mask.sum(1)


def run(trainer: PPOTrainer, steps: int) -> list[dict[str, float]]:
    """A history of some steps on the same prompts, without what depends on the clock."""
    history = []
    for _ in range(steps):
        rollout = trainer.rollout(PROMPTS)
        stats = trainer.step(rollout, upper_share(rollout))
        history.append({k: v for k, v in stats.items() if not k.startswith("seconds")})
    return history


def step_with(
    trainer: PPOTrainer, rollout: Rollout, advantages: Tensor, returns: Tensor
) -> dict[str, float]:
    """The statistics of a step with these advantages and returns.

    The gradients of its last update stay: with one epoch and one mini-batch, of the whole rollout.
    """
    trainer.advantages = lambda *_: (advantages, returns)
    return trainer.step(rollout, torch.zeros(len(rollout.ended)))


def weights(trainer: PPOTrainer) -> dict[str, Tensor]:
    modules = torch.nn.ModuleList([trainer.policy, trainer.value_head])
    return {name: p.detach().clone() for name, p in modules.named_parameters()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(weight.equal(second[name]) for name, weight in first.items())


def gradient_norm(trainer: PPOTrainer) -> float:
    parameters = [*trainer.policy.parameters(), *trainer.value_head.parameters()]
    return sum(p.grad.square().sum().item() for p in parameters) ** 0.5


def assert_same_rollout(actual: Rollout, expected: Rollout) -> None:
    for field in fields(Rollout):
        if field.name == "seconds":
            continue
        ours, theirs = getattr(actual, field.name), getattr(expected, field.name)
        assert ours.equal(theirs) if isinstance(ours, Tensor) else ours == theirs, field.name


def prefix_mask(lengths: list[int], width: int) -> Tensor:
    """(B, R), True on the first tokens of each row."""
    return torch.arange(width) < torch.tensor(lengths)[:, None]


@st.composite
def batches(draw, tensors: int) -> tuple[Tensor, ...]:
    """A mask (B, R) of responses of random lengths, and random float64 tensors of that shape."""
    width = draw(st.integers(1, 10))
    lengths = draw(st.lists(st.integers(1, width), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    size = (tensors, len(lengths), width)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    return prefix_mask(lengths, width), *values


properties = settings(max_examples=60, deadline=None, derandomize=True)
