"""PPO against a second implementation: plain Python floats, one response and one token at a time.

It takes nothing from the package. Gradients are the derivatives as they stand in a textbook, not
autograd's. Everything is float64, over random shapes, lengths and paddings.
"""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ppo_helpers import PROMPTS, batches, properties, step_with, upper_share

from rlhf_helpers.ppo import gae, kl_penalty, policy_loss, token_rewards, value_loss, whiten

KL_COEF, GAMMA, LAM, CLIP, CLIP_VALUE, VF_COEF = 0.3, 0.97, 0.9, 0.2, 0.3, 0.7


def slow_advantages(
    logprobs: list[float], ref_logprobs: list[float], values: list[float], score: float
) -> tuple[list[float], list[float]]:
    """Advantages and returns of one response, each from its definition as a sum."""
    last = len(logprobs) - 1
    rewards = [-KL_COEF * (logprobs[t] - ref_logprobs[t]) for t in range(last + 1)]
    rewards[last] += score
    advantages = []
    for t in range(last + 1):
        advantage = 0.0
        for s in range(t, last + 1):
            next_value = values[s + 1] if s < last else 0.0
            advantage += (GAMMA * LAM) ** (s - t) * (rewards[s] + GAMMA * next_value - values[s])
        advantages.append(advantage)
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def slow_whitened(rows: list[list[float]]) -> list[list[float]]:
    everything = [x for row in rows for x in row]
    mean = sum(everything) / len(everything)
    variance = sum((x - mean) ** 2 for x in everything) / len(everything)
    return [[(x - mean) / math.sqrt(variance + 1e-8) for x in row] for row in rows]


def slow_token_loss(
    new: float, old: float, advantage: float, value: float, old_value: float, target: float
) -> tuple[float, float, float]:
    """The loss of one token, and its derivatives by the new log-prob and by the new value."""
    ratio = math.exp(new - old)
    gain, gradient = ratio * advantage, -ratio * advantage
    if advantage > 0 and ratio > 1 + CLIP:
        gain, gradient = (1 + CLIP) * advantage, 0.0
    if advantage < 0 and ratio < 1 - CLIP:
        gain, gradient = (1 - CLIP) * advantage, 0.0
    error, value_gradient = 0.5 * (value - target) ** 2, value - target
    nearest = min(max(value, old_value - CLIP_VALUE), old_value + CLIP_VALUE)
    if 0.5 * (nearest - target) ** 2 > error:
        error, value_gradient = 0.5 * (nearest - target) ** 2, 0.0
    return -gain + VF_COEF * error, gradient, VF_COEF * value_gradient


@given(batches(6), st.integers(0, 3))
@properties
def test_losses_advantages_and_gradients_agree_with_the_slow_reference(batch, padding):
    mask, *tensors, scores = batch
    scores = scores[:, 0]
    lengths = mask.sum(1).tolist()
    new, old, ref, values, old_values = (
        [row[:n].tolist() for row, n in zip(tensor, lengths, strict=True)] for tensor in tensors
    )
    slow = [
        slow_advantages(*response)
        for response in zip(old, ref, old_values, scores.tolist(), strict=True)
    ]
    whitened = slow_whitened([advantages for advantages, _ in slow])
    parts = [
        [slow_token_loss(*token) for token in zip(*row, strict=True)]
        for row in zip(new, old, whitened, values, old_values, (r for _, r in slow), strict=True)
    ]
    tokens = sum(lengths)

    # The package's functions get more padding, with garbage in it.
    mask, *tensors = (torch.nn.functional.pad(x, (0, padding)) for x in (mask, *tensors))
    new, old, ref, values, old_values = (x.masked_fill(~mask, 3.0) for x in tensors)
    new.requires_grad_()
    values.requires_grad_()
    rewards = token_rewards(scores, kl_penalty(old, ref), mask, KL_COEF)
    advantages, returns = gae(rewards, old_values, mask, GAMMA, LAM)
    white = whiten(advantages, mask)
    pg_loss, _ = policy_loss(new, old, white, mask, CLIP)
    vf_loss, _ = value_loss(values, old_values, returns, mask, CLIP_VALUE)
    loss = pg_loss + VF_COEF * vf_loss
    loss.backward()

    def agree(actual: torch.Tensor, expected: list[list[float]]) -> None:
        for row, numbers in zip(actual, expected, strict=True):
            assert row[: len(numbers)].tolist() == pytest.approx(numbers, rel=1e-6, abs=1e-12)
            assert (row[len(numbers) :] == 0).all()

    agree(advantages, [row for row, _ in slow])
    agree(returns, [row for _, row in slow])
    agree(white, whitened)
    assert loss.item() == pytest.approx(
        sum(token[0] for row in parts for token in row) / tokens, rel=1e-6, abs=1e-12
    )
    agree(new.grad, [[token[1] / tokens for token in row] for row in parts])
    agree(values.grad, [[token[2] / tokens for token in row] for row in parts])


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_gradients_of_the_weights_are_those_of_every_response_alone(make_trainer, kind, critic):
    """The trainer's, over padded mini-batches with shared prompts, against a sum over responses.

    Each of these goes through a float64 copy of the policy alone, without padding or cache.
    """
    trainer = make_trainer(
        kind,
        critic=critic,
        temperature=0.8,
        mini_batch_size=8,
        max_grad_norm=1e9,
        gradient_accumulation_steps=2,
        cliprange=0.01,
        ppo_epochs=1,
    )
    torch.nn.init.constant_(trainer.value_head.weight, 0.05)
    rollout = trainer.rollout(PROMPTS)
    scores, mask, config = upper_share(rollout), rollout.response_mask, trainer.config
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(mask.shape, generator=generator)
    rollout.logprobs = (rollout.logprobs + noise) * mask  # so that some ratios are clipped
    rewards = token_rewards(
        scores - 1.0 * ~rollout.ended,
        kl_penalty(rollout.logprobs, rollout.ref_logprobs),
        mask,
        0.15,
    )
    advantages, returns = gae(rewards, rollout.values, mask, 1.0, 0.95)
    advantages = whiten(advantages, mask)

    def run_alone() -> dict[str, torch.Tensor]:
        modules = torch.nn.ModuleDict({"policy": trainer.policy, "head": trainer.value_head})
        if trainer.critic is not None:
            modules["critic"] = trainer.critic
        exact = copy.deepcopy(modules).double()
        exact.zero_grad()
        for row, m in enumerate(mask):
            prompt = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()]
            response = rollout.response_ids[row][m]
            whole = torch.cat([prompt, response])[None, :-1]
            before = slice(len(prompt) - 1, None)
            output = exact["policy"](whole, output_hidden_states=True)
            states = output.hidden_states[-1]
            if trainer.critic is not None:
                states = exact["critic"](whole).last_hidden_state
            logprobs = torch.log_softmax(output.logits[0, before] / 0.8, -1)
            logprobs = logprobs[torch.arange(len(response)), response]
            values = exact["head"](states[0, before])[:, 0]
            ratio = (logprobs - rollout.logprobs[row][m]).exp()
            a, target = advantages[row][m].double(), returns[row][m].double()
            gain = torch.minimum(ratio * a, ratio.clamp(0.99, 1.01) * a)
            error = 0.5 * (values - target) ** 2
            ((config.vf_coef * error - gain).sum() / mask.sum()).backward()
        return {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}

    expected = run_alone()
    step_with(trainer, rollout, advantages, returns)
    found = {f"policy.{name}": p.grad for name, p in trainer.policy.named_parameters()}
    found |= {f"head.{name}": p.grad for name, p in trainer.value_head.named_parameters()}
    if trainer.critic is not None:
        found |= {f"critic.{name}": p.grad for name, p in trainer.critic.named_parameters()}
    assert {name for name, gradient in found.items() if gradient is not None} == set(expected)
    for name, gradient in expected.items():
        difference = (found[name].double() - gradient).norm()
        assert difference < 1e-5 * gradient.norm() + 1e-7, name
