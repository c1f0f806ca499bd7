"""The maths of PPO against hand-computed and obviously right values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ppo_helpers import batches, prefix_mask, properties
from torch import Tensor

from rlhf_helpers.ppo import (
    gae,
    kl_penalty,
    masked_mean,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)

close = torch.testing.assert_close


# ---- means, whitening ----------------------------------------------------------------------


def test_masked_mean_weighs_every_real_token_of_the_batch_alike():
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0]])
    assert masked_mean(values, prefix_mask([3, 1], 3)).item() == 4.0


@given(batches(1))
@properties
def test_whitened_tokens_have_mean_0_and_variance_1_and_are_0_behind_the_mask(batch):
    mask, values = batch
    white = whiten(5 * values + 3, mask)
    assert (white[~mask] == 0).all()
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-6)
    if mask.sum() > 1 and values[mask].std() > 0.1:
        assert white[mask].var(correction=0).item() == pytest.approx(1, abs=1e-6)
        ratios = (values[mask] - values[mask].mean()) / white[mask]  # the order is kept
        close(ratios, ratios[:1].expand_as(ratios))


def test_whitening_equal_values_gives_zeros():
    mask = prefix_mask([3, 1], 3)
    assert whiten(torch.full((2, 3), 7.0), mask).tolist() == torch.zeros(2, 3).tolist()


# ---- KL ------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_kl_of_equals_is_zero(estimator):
    logprobs = torch.tensor([[-0.1, -2.0, -30.0]])
    assert kl_penalty(logprobs, logprobs, estimator).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_expected_kl_estimate_is_the_exact_kl(estimator):
    """Summed over all outcomes of a small distribution: there is no sampling error."""
    policy = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    exact = sum(
        p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True)
    )
    assert exact > 0.7
    expected = (policy * kl_penalty(policy.log(), reference.log(), estimator)).sum()
    assert expected.item() == pytest.approx(exact, abs=1e-12)


@given(batches(2))
@properties
def test_k3_is_never_negative(batch):
    _, logprobs, ref_logprobs = batch
    assert (kl_penalty(logprobs, ref_logprobs, "k3") >= 0).all()


def test_k1_is_negative_where_the_reference_is_surer():
    assert kl_penalty(torch.tensor([[-2.0]]), torch.tensor([[-0.5]])).item() == -1.5


def test_an_unknown_kl_estimator_is_refused():
    with pytest.raises(ValueError, match="'k2': choose k1 or k3"):
        kl_penalty(torch.zeros(1, 1), torch.zeros(1, 1), "k2")


# ---- rewards and advantages ----------------------------------------------------------------


def test_the_score_lands_on_the_last_real_token_and_kl_is_paid_on_every_one():
    kl = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, 99.0], [6.0, 99.0, 99.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0, 30.0]), kl, prefix_mask([3, 2, 1], 3), 0.1)
    close(rewards, torch.tensor([[-0.1, 0.2, 9.7], [-0.4, 19.5, 0.0], [29.4, 0.0, 0.0]]))


def test_gae_of_three_tokens_by_hand():
    """delta = (-0.04, 0.07, 0.7); A_2 = 0.7, A_1 = 0.07 + 0.45 A_2, A_0 = -0.04 + 0.45 A_1."""
    rewards, values = torch.tensor([[0.1, 0.2, 1.0]]), torch.tensor([[0.5, 0.4, 0.3]])
    advantages, returns = gae(rewards, values, prefix_mask([3], 3), gamma=0.9, lam=0.5)
    close(advantages, torch.tensor([[0.13325, 0.385, 0.7]]))
    close(returns, torch.tensor([[0.63325, 0.785, 1.0]]))


@given(batches(2))
@properties
def test_gae_with_gamma_and_lambda_1_is_monte_carlo_returns_minus_values(batch):
    mask, rewards, values = batch
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    monte_carlo = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    close(returns, monte_carlo)
    close(advantages, monte_carlo - values * mask)


@given(batches(2), st.floats(0, 1))
@properties
def test_gae_with_lambda_0_is_the_one_step_error(batch, gamma):
    mask, rewards, values = batch
    advantages, _ = gae(rewards, values, mask, gamma=gamma, lam=0.0)
    next_values = torch.nn.functional.pad(values * mask, (0, 1))[:, 1:]
    close(advantages, (rewards + gamma * next_values - values) * mask)


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum over l of (gamma lam)^l delta_{t+l}: the definition, for one response."""
    values = [*values, 0.0]
    deltas = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [
        sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


@given(batches(2), st.floats(0, 1), st.floats(0, 1))
@properties
def test_gae_agrees_with_its_definition(batch, gamma, lam):
    mask, rewards, values = batch
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(mask.sum(1).tolist()):
        real = rewards[row, :length].tolist(), values[row, :length].tolist()
        expected = slow_gae(*real, gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-6)
        expected_returns = [a + v for a, v in zip(expected, real[1], strict=True)]
        assert returns[row, :length].tolist() == pytest.approx(expected_returns, abs=1e-6)
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


@given(batches(2))
@properties
def test_gae_ignores_what_lies_behind_the_mask(batch):
    mask, rewards, values = batch
    expected = gae(rewards, values, mask, 0.9, 0.8)
    garbage = (x.masked_fill(~mask, 1e9) for x in (rewards, values))
    for actual, clean in zip(gae(*garbage, mask, 0.9, 0.8), expected, strict=True):
        assert actual.equal(clean)


# ---- losses --------------------------------------------------------------------------------


def test_policy_loss_by_hand():
    """-min(ratio A, clipped ratio A) is -1, -1.2 (clipped), -0.5, 1.5 and 0.8 (clipped)."""
    logprobs = torch.tensor([[1.0, 1.5, 0.5, 1.5, 0.5]]).log()
    advantages = torch.tensor([[1.0, 1.0, 1.0, -1.0, -1.0]])
    mask = torch.ones(1, 5, dtype=torch.bool)
    loss, clip_fraction = policy_loss(logprobs, torch.zeros(1, 5), advantages, mask, 0.2)
    assert loss.item() == pytest.approx(-0.4 / 5)
    assert clip_fraction.item() == pytest.approx(2 / 5)


@given(batches(2))
@properties
def test_at_ratio_1_the_policy_loss_is_minus_the_mean_advantage(batch):
    mask, logprobs, advantages = batch
    loss, clip_fraction = policy_loss(logprobs, logprobs, advantages, mask, 0.2)
    assert loss.item() == pytest.approx(-advantages[mask].mean().item())
    assert clip_fraction.item() == 0


@given(batches(3))
@properties
def test_policy_loss_agrees_with_its_definition_and_a_clipped_token_has_no_gradient(batch):
    mask, logprobs, old_logprobs, advantages = batch
    logprobs.requires_grad_()
    loss, clip_fraction = policy_loss(logprobs, old_logprobs, advantages, mask, 0.2)
    loss.backward()
    ratio = (logprobs - old_logprobs).exp().detach()
    pairs = list(zip(ratio[mask].tolist(), advantages[mask].tolist(), strict=True))
    slow = [-min(r * a, min(max(r, 0.8), 1.2) * a) for r, a in pairs]
    assert loss.item() == pytest.approx(sum(slow) / len(slow))
    clipped = torch.where(advantages > 0, ratio > 1.2, ratio < 0.8)
    expected = torch.where(clipped | ~mask, 0.0, -advantages * ratio) / mask.sum()
    close(logprobs.grad, expected)
    assert clip_fraction.item() == pytest.approx(clipped[mask].double().mean().item())


def test_value_loss_by_hand():
    """Errors are 0.81 in range, 0.64 as clipped at 0.2 (0 if not), 4 (1.44 if clipped)."""
    values = torch.tensor([[0.1, 1.0, -1.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    loss, clip_fraction = value_loss(values, torch.zeros(1, 3), torch.ones(1, 3), mask, 0.2)
    assert loss.item() == pytest.approx(0.5 * (0.81 + 0.64 + 4) / 3)
    assert clip_fraction.item() == pytest.approx(1 / 3)


@given(batches(3))
@properties
def test_value_loss_agrees_with_its_definition_and_a_clipped_token_has_no_gradient(batch):
    mask, values, old_values, returns = batch
    values.requires_grad_()
    loss, clip_fraction = value_loss(values, old_values, returns, mask, 0.2)
    loss.backward()
    change, error = (values - old_values).detach(), (values - returns).detach()
    error_at_the_clip = old_values + 0.2 * change.sign() - returns
    clipped = (change.abs() > 0.2) & (error_at_the_clip.abs() > error.abs())
    expected_loss = 0.5 * torch.where(clipped, error_at_the_clip, error)[mask].square().mean()
    assert loss.item() == pytest.approx(expected_loss.item())
    close(values.grad, torch.where(clipped | ~mask, 0.0, error) / mask.sum())
    assert clip_fraction.item() == pytest.approx(clipped[mask].double().mean().item())


def test_no_value_within_the_range_counts_as_clipped():
    """In float32 `old + (new - old)` is not always `new`: rounding is not clipping."""
    generator = torch.Generator().manual_seed(0)
    old_values, returns, values = torch.randn(3, 50, 20, generator=generator)
    old_values, values = 0.01 * old_values, 0.1 * values.tanh()
    mask = torch.ones(50, 20, dtype=torch.bool)
    assert value_loss(values, old_values, returns, mask, 0.2)[1].item() == 0


@pytest.mark.parametrize("loss_function", [policy_loss, value_loss])
def test_the_losses_have_the_gradients_of_finite_differences(loss_function):
    generator = torch.Generator().manual_seed(0)
    new, old, target = torch.randn(3, 3, 6, generator=generator, dtype=torch.float64)
    mask = prefix_mask([6, 3, 1], 6)
    assert torch.autograd.gradcheck(
        lambda new: loss_function(new, old, target, mask, 0.2)[0], new.requires_grad_()
    )


@pytest.mark.parametrize("garbage", [1e4, -1e4])
@pytest.mark.parametrize("loss_function", [policy_loss, value_loss])
def test_the_losses_ignore_what_lies_behind_the_mask(loss_function, garbage):
    generator = torch.Generator().manual_seed(0)
    new, old, target = torch.randn(3, 3, 6, generator=generator)
    mask = prefix_mask([6, 3, 1], 6)

    def evaluate(new: Tensor, old: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        new.requires_grad_()
        loss, clip_fraction = loss_function(new, old, target, mask, 0.2)
        loss.backward()
        return loss.detach(), clip_fraction, new.grad

    dirty = (x.masked_fill(~mask, fill) for x, fill in ((new, garbage), (old, 0.0), (target, 9.0)))
    for actual, clean in zip(evaluate(*dirty), evaluate(new, old, target), strict=True):
        assert actual.equal(clean)
