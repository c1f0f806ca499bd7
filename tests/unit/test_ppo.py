"""PPO: the maths against hand-computed and obviously right values, then the trainer.

The trainer is tested through its public face: what a rollout holds, what a step does to the
policy, and what its statistics say.
"""

import math
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from rlhf_helpers import ppo
from rlhf_helpers.generation import encode_prompts, forward_responses, token_logprobs
from rlhf_helpers.models import add_lora, without_dropout
from rlhf_helpers.ppo import (
    PPOTrainer,
    Rollout,
    gae,
    kl_penalty,
    masked_mean,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from rlhf_helpers.scales import PPOConfig

close = torch.testing.assert_close


def prefix_mask(lengths: list[int], width: int) -> Tensor:
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


# ---- the trainer: helpers ------------------------------------------------------------------

PROMPTS = ["The cat", "sat on the mat.", "x", "Why not?"]
STATS = {
    "reward_mean", "reward_std", "kl", "kl_coef", "policy_loss", "value_loss", "entropy",
    "clip_fraction", "approx_kl", "explained_variance", "response_length", "eos_rate",
    "grad_norm", "seconds_rollout", "seconds_update",
}  # fmt: skip
SMALL = {
    "steps": 10, "warmup_steps": 1, "batch_size": 8, "mini_batch_size": 4, "samples_per_prompt": 2,
    "ppo_epochs": 2, "max_new_tokens": 8, "learning_rate": 3e-3,
}  # fmt: skip


@pytest.fixture
def make_trainer(make_model, tokenizer) -> Callable[..., PPOTrainer]:
    """`make_trainer("opt", seed=1)`: a trainer of a tiny policy; keywords go to the config."""

    def make(kind: str = "opt", lora: bool = False, **changes) -> PPOTrainer:
        policy = without_dropout(make_model(kind))
        policy = add_lora(policy, rank=4) if lora else policy
        return PPOTrainer(policy, tokenizer, PPOConfig(**SMALL | changes))

    return make


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


def weights(trainer: PPOTrainer) -> dict[str, Tensor]:
    modules = torch.nn.ModuleList([trainer.policy, trainer.value_head])
    return {name: p.detach().clone() for name, p in modules.named_parameters()}


def gradient_norm(trainer: PPOTrainer) -> float:
    parameters = [*trainer.policy.parameters(), *trainer.value_head.parameters()]
    return sum(p.grad.square().sum().item() for p in parameters) ** 0.5


def assert_same_rollout(actual: Rollout, expected: Rollout) -> None:
    for field in fields(Rollout):
        if field.name == "seconds":
            continue
        ours, theirs = getattr(actual, field.name), getattr(expected, field.name)
        assert ours.equal(theirs) if isinstance(ours, Tensor) else ours == theirs, field.name


# ---- a rollout -----------------------------------------------------------------------------


def test_a_rollout_holds_k_responses_of_each_prompt_side_by_side(make_trainer, tokenizer):
    trainer = make_trainer()
    trainer.policy.lm_head.bias.data[tokenizer.convert_tokens_to_ids("Ġ")] = 6.0  # many blanks
    rollout = trainer.rollout(PROMPTS)
    ids, mask = encode_prompts(tokenizer, PROMPTS)
    rows = [0, 0, 1, 1, 2, 2, 3, 3]
    assert rollout.prompt_ids.equal(ids[rows])
    assert rollout.prompt_mask.equal(mask[rows])
    for tensor in (rollout.response_mask, rollout.logprobs, rollout.ref_logprobs, rollout.values):
        assert tensor.shape == rollout.response_ids.shape
    written = [
        tokenizer.decode(ids[mask], skip_special_tokens=True)
        for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)
    ]
    assert any(response.startswith(" ") for response in written)
    assert rollout.responses == [response.strip() for response in written]
    assert rollout.texts == [PROMPTS[row] + written[i] for i, row in enumerate(rows)]
    assert 0 < rollout.ended.sum() < 8


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("lora", [False, True])
def test_a_fresh_policy_has_no_kl_to_its_reference(make_trainer, kind, lora, temperature):
    rollout = make_trainer(kind, lora, temperature=temperature).rollout(PROMPTS)
    close(rollout.logprobs, rollout.ref_logprobs, rtol=0, atol=1e-5)
    assert rollout.logprobs.sum() < -10


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_stays_what_the_policy_was(make_trainer, make_model, lora):
    """Also in chunks: the mini-batch is smaller than the batch."""
    trainer, original = make_trainer(lora=lora, learning_rate=0.01), make_model("opt").eval()
    run(trainer, 2)
    rollout = trainer.rollout(PROMPTS)
    with torch.no_grad():
        logits, _ = forward_responses(
            original, rollout.prompt_ids, rollout.prompt_mask,
            rollout.response_ids, rollout.response_mask,
        )  # fmt: skip
    expected = token_logprobs(logits, rollout.response_ids) * rollout.response_mask
    close(rollout.ref_logprobs, expected, rtol=0, atol=1e-5)
    assert (rollout.logprobs - expected).abs().max() > 0.01


def test_values_are_those_of_the_head_on_the_states_before_each_token(make_trainer):
    trainer = make_trainer()
    torch.nn.init.constant_(trainer.value_head.weight, 0.1)
    torch.nn.init.constant_(trainer.value_head.bias, 0.5)
    rollout = trainer.rollout(PROMPTS)
    for row, mask in enumerate(rollout.response_mask):
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()]
        whole = torch.cat([prompt, rollout.response_ids[row][mask]])
        with torch.no_grad():
            hidden = trainer.policy(whole[None], output_hidden_states=True).hidden_states[-1][0]
        expected = 0.1 * hidden[len(prompt) - 1 : -1].sum(1) + 0.5
        close(rollout.values[row][mask], expected, rtol=0, atol=1e-5)
        assert (rollout.values[row][~mask] == 0).all()


# ---- a step --------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_first_mini_batch_has_ratio_1(make_trainer, monkeypatch, kind, temperature):
    """Even if someone has put the policy into training mode since: there is no dropout left."""
    trainer, ratios = make_trainer(kind, temperature=temperature), []

    def spy(logprobs, old_logprobs, advantages, mask, cliprange):
        ratios.append((logprobs - old_logprobs).exp()[mask].detach())
        return policy_loss(logprobs, old_logprobs, advantages, mask, cliprange)

    monkeypatch.setattr(ppo.trainer, "policy_loss", spy)
    rollout = trainer.rollout(PROMPTS)
    trainer.policy.train()
    trainer.step(rollout, upper_share(rollout))
    close(ratios[0], torch.ones_like(ratios[0]), rtol=0, atol=1e-5)
    assert (ratios[-1] - 1).abs().max() > 1e-3


def test_there_are_as_many_optimiser_steps_as_epochs_times_mini_batches(make_trainer):
    trainer, steps = make_trainer(ppo_epochs=3), []
    trainer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    run(trainer, 1)
    assert len(steps) == 3 * 2


def real_tokens(prompt_ids, prompt_mask, response_ids, response_mask) -> list[tuple]:
    """Of each row, the tokens of its prompt and of its response, without padding."""
    repeat = len(response_ids) // len(prompt_ids)
    prompts, responses = (
        [tuple(i[m.bool()].tolist()) for i, m in zip(ids, mask, strict=True)]
        for ids, mask in ((prompt_ids, prompt_mask), (response_ids, response_mask))
    )
    return [(prompts[i // repeat], response) for i, response in enumerate(responses)]


def test_every_epoch_takes_every_response_once_with_no_needless_padding(make_trainer, monkeypatch):
    trainer, taken, shapes = make_trainer(ppo_epochs=4), [], set()
    rollout = trainer.rollout(PROMPTS)
    expected = real_tokens(
        rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids, rollout.response_mask
    )

    def spy(policy, *batch):
        _, prompt_mask, _, response_mask = batch
        assert prompt_mask[:, 0].any()
        assert response_mask[:, -1].any()
        shapes.add((prompt_mask.shape[1], response_mask.shape[1]))
        taken.extend(real_tokens(*batch))
        return forward_responses(policy, *batch)

    monkeypatch.setattr(ppo.trainer.generation, "forward_responses", spy)
    trainer.step(rollout, upper_share(rollout))
    epochs = [taken[i : i + 8] for i in range(0, 32, 8)]
    assert len(taken) == 32
    for epoch in epochs:
        assert sorted(epoch) == sorted(expected)
        assert all(epoch[i][0] == epoch[i + 1][0] for i in range(0, 8, 2))  # K of one prompt
    assert len({tuple(epoch) for epoch in epochs}) > 1  # each in an order of its own
    assert len(shapes) > 1


def test_every_response_is_learned_from_with_its_own_advantages_and_returns(
    make_trainer, monkeypatch
):
    trainer, seen = make_trainer(mini_batch_size=2, ppo_epochs=1, missing_eos_penalty=0.5), []
    torch.nn.init.constant_(trainer.value_head.weight, 0.1)
    torch.nn.init.normal_(trainer.reference.lm_head.bias)  # so that there is a KL to pay
    rollout = trainer.rollout(PROMPTS)
    mask, scores = rollout.response_mask, upper_share(rollout)
    kl = kl_penalty(rollout.logprobs, rollout.ref_logprobs)
    rewards = token_rewards(scores - 0.5 * ~rollout.ended, kl, mask, trainer.config.kl_coef)
    advantages, returns = gae(rewards, rollout.values, mask, 1.0, 0.95)
    whitened = whiten(advantages, mask)

    def spy_policy(logprobs, old_logprobs, advantages, mask, cliprange):
        seen.extend([o[m], a[m]] for o, a, m in zip(old_logprobs, advantages, mask, strict=True))
        return policy_loss(logprobs, old_logprobs, advantages, mask, cliprange)

    def spy_value(values, old_values, returns, mask, cliprange_value):
        for found, *row, m in zip(seen[-len(mask) :], old_values, returns, mask, strict=True):
            found += [tensor[m] for tensor in row]
        return value_loss(values, old_values, returns, mask, cliprange_value)

    monkeypatch.setattr(ppo.trainer, "policy_loss", spy_policy)
    monkeypatch.setattr(ppo.trainer, "value_loss", spy_value)
    trainer.step(rollout, scores)
    assert len(seen) == 8
    found = {tuple(item[0].tolist()): item for item in seen}  # a response by its log-probs
    for row, m in enumerate(mask):
        expected = [x[row][m] for x in (rollout.logprobs, whitened, rollout.values, returns)]
        close(found[tuple(expected[0].tolist())], expected)


def test_the_gradient_is_clipped_before_every_optimiser_step(make_trainer):
    trainer, norms = make_trainer(max_grad_norm=1e-3), []
    trainer.optimizer.register_step_pre_hook(lambda *_: norms.append(gradient_norm(trainer)))
    history = run(trainer, 2)
    assert len(norms) == 2 * 4
    assert norms == pytest.approx([1e-3] * 8, rel=1e-2)
    assert all(stats["grad_norm"] > 0.01 for stats in history)  # as it was before the clip


def test_only_a_truncated_response_pays_the_penalty_for_a_missing_eos(make_trainer):
    """A penalty of 2 does what scores lowered by 2 on the truncated responses do without it."""
    results = {}
    for penalty, lowered in ((2.0, 0.0), (0.0, 2.0), (0.0, 0.0)):
        trainer = make_trainer(missing_eos_penalty=penalty)
        rollout = trainer.rollout(PROMPTS)
        assert 0 < rollout.ended.sum() < 8
        trainer.step(rollout, upper_share(rollout) - lowered * ~rollout.ended)
        results[penalty, lowered] = weights(trainer)
    for name, weight in results[2.0, 0.0].items():
        assert weight.equal(results[0.0, 2.0][name])
    different = [not w.equal(results[2.0, 0.0][name]) for name, w in results[0.0, 0.0].items()]
    assert any(different)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_refused_with_its_response_named(make_trainer, score):
    trainer = make_trainer()
    rollout, before = trainer.rollout(PROMPTS), weights(trainer)
    with pytest.raises(ValueError, match=f"response 3 is {score}") as error:
        trainer.step(rollout, [0.0, 1.0, 2.0, score, 4.0, 5.0, 6.0, 7.0])
    assert repr(rollout.texts[3]) in str(error.value)
    assert all(weight.equal(before[name]) for name, weight in weights(trainer).items())


@pytest.mark.parametrize("scores", [[0.0] * 7, [0.0] * 9, [], [[0.0]] * 8])
def test_scores_must_be_one_a_response(make_trainer, scores):
    trainer = make_trainer()
    rollout = trainer.rollout(PROMPTS)
    with pytest.raises(ValueError, match="8 responses"):
        trainer.step(rollout, scores)


def test_scores_may_be_a_list_or_a_tensor(make_trainer):
    outcomes = []
    for convert in (list, torch.tensor, lambda scores: torch.tensor(scores).double()):
        trainer = make_trainer()
        trainer.step(trainer.rollout(PROMPTS), convert([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]))
        outcomes.append(weights(trainer))
    for name, weight in outcomes[0].items():
        assert weight.equal(outcomes[1][name])
        assert weight.equal(outcomes[2][name])


def test_padding_and_what_stands_in_it_change_nothing_in_a_step(make_trainer):
    statistics = []
    for padding in (0, 5):
        trainer = make_trainer(ppo_epochs=1)
        rollout = trainer.rollout(PROMPTS)
        scores, pad = upper_share(rollout), torch.nn.functional.pad
        mask = pad(rollout.response_mask, (0, padding))
        widened = {
            name: pad(getattr(rollout, name), (0, padding)).masked_fill(~mask, 50)
            for name in ("response_ids", "logprobs", "ref_logprobs", "values")
        }
        widened["response_mask"] = mask
        for name in ("prompt_ids", "prompt_mask"):
            widened[name] = pad(getattr(rollout, name), (padding, 0))
        stats = trainer.step(replace(rollout, **widened) if padding else rollout, scores)
        statistics.append({k: v for k, v in stats.items() if not k.startswith("seconds")})
    assert statistics[0] == pytest.approx(statistics[1], rel=1e-4, abs=1e-5)


def test_a_trainer_may_learn_from_a_rollout_that_another_has_made(make_trainer):
    rollout = make_trainer().rollout(PROMPTS)
    stats = make_trainer().step(rollout, upper_share(rollout))
    assert stats["response_length"] == rollout.response_mask.sum().item() / 8


def test_the_learning_rate_warms_up_and_then_falls_to_about_a_tenth(make_trainer):
    trainer, rates = make_trainer(learning_rate=1e-3, steps=20, warmup_steps=4), []
    trainer.optimizer.register_step_post_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    run(trainer, 20)
    assert len(rates) == 80
    steps = rates[::4]
    assert rates == [rate for rate in steps for _ in range(4)]  # the same for a whole step
    assert steps[0] == pytest.approx(1e-3 / 4)
    assert steps[:4] == sorted(steps[:4])
    assert steps[3:] == sorted(steps[3:], reverse=True)
    assert 0.8e-3 < max(steps) <= 1e-3
    assert 1e-4 <= steps[-1] < 1.5e-4


def test_the_value_head_fits_a_policy_whose_embeddings_have_another_size(make_model, tokenizer):
    """facebook/opt-350m projects its states to the size of its embeddings before it returns."""
    policy = without_dropout(make_model("opt", word_embed_proj_dim=16))
    history = run(PPOTrainer(policy, tokenizer, PPOConfig(**SMALL)), 1)
    assert math.isfinite(history[0]["value_loss"])


# ---- statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 1, "mini_batch_size": 1, "samples_per_prompt": 1},
        {"batch_size": 1, "mini_batch_size": 1, "samples_per_prompt": 1, "max_new_tokens": 1},
    ],
    ids=["batch", "one response", "one token"],
)
def test_the_statistics_have_exactly_the_promised_keys_and_finite_floats(make_trainer, changes):
    trainer = make_trainer(**changes)
    rollout = trainer.rollout(PROMPTS if not changes else PROMPTS[:1])
    stats = trainer.step(rollout, upper_share(rollout))
    assert stats.keys() == STATS
    for key, value in stats.items():
        assert isinstance(value, float), key
        assert math.isfinite(value), key


def test_the_statistics_of_a_single_update_are_what_their_names_say(make_trainer):
    """One epoch of one mini-batch on a fresh policy: every number has a plain formula."""
    trainer = make_trainer(
        mini_batch_size=8, ppo_epochs=1, missing_eos_penalty=0.0, kl_coef=0.3, max_grad_norm=1e9
    )
    rollout = trainer.rollout(PROMPTS)
    mask, scores = rollout.response_mask, upper_share(rollout)
    with torch.no_grad():
        logits, _ = forward_responses(
            trainer.policy, rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids, mask
        )
    entropy = Categorical(logits=logits).entropy()[mask].mean()
    stats = trainer.step(rollout, scores)
    returns = scores[:, None] * 0.95 ** (mask.sum(1, keepdim=True) - 1 - torch.arange(8))
    expected = {
        "reward_mean": scores.mean().item(),
        "reward_std": scores.std(correction=0).item(),
        "kl": 0.0,
        "kl_coef": 0.3,
        "policy_loss": 0.0,  # minus the mean of whitened advantages
        "value_loss": 0.5 * returns[mask].square().mean().item(),  # V is 0
        "entropy": entropy.item(),
        "clip_fraction": 0.0,
        "approx_kl": 0.0,
        "explained_variance": 0.0,
        "response_length": mask.sum().item() / 8,
        "eos_rate": rollout.ended.sum().item() / 8,
        "grad_norm": gradient_norm(trainer),
    }
    assert {key: stats[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_kl_is_the_mean_of_the_summed_log_ratios_of_the_responses(make_trainer):
    trainer = make_trainer(learning_rate=0.01)
    run(trainer, 2)
    rollout = trainer.rollout(PROMPTS)
    expected = (rollout.logprobs - rollout.ref_logprobs).sum() / 8
    assert trainer.step(rollout, [0.0] * 8)["kl"] == pytest.approx(expected.item(), rel=1e-5)
    assert abs(expected) > 0.1


# ---- reproducible --------------------------------------------------------------------------


def test_one_seed_gives_one_history_and_another_seed_another(make_trainer):
    first, again, other = (run(make_trainer(seed=seed), 3) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_goes_on_from_its_saved_state_as_if_it_had_not_stopped(make_trainer, tmp_path, lora):
    trainer = make_trainer(lora=lora, warmup_steps=4)
    run(trainer, 2)
    state = {"policy": trainer.policy.state_dict(), "trainer": trainer.state_dict()}
    torch.save(state, tmp_path / "state.pt")

    resumed = make_trainer(lora=lora, warmup_steps=4)
    state = torch.load(tmp_path / "state.pt")
    resumed.policy.load_state_dict(state["policy"])
    resumed.load_state_dict(state["trainer"])
    assert_same_rollout(resumed.rollout(PROMPTS), trainer.rollout(PROMPTS))
    assert run(resumed, 2) == run(trainer, 2)
    for name, weight in weights(resumed).items():
        assert weight.equal(weights(trainer)[name])


def test_rollout_and_step_leave_the_global_random_state_alone(make_trainer):
    trainer = make_trainer()
    before = torch.get_rng_state()
    run(trainer, 1)
    assert torch.get_rng_state().equal(before)


def test_rollout_and_step_do_not_depend_on_the_global_random_state(make_trainer):
    histories = []
    for seed in (1, 2):
        trainer = make_trainer()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            histories.append(run(trainer, 2))
    assert histories[0] == histories[1]


# ---- it learns -----------------------------------------------------------------------------

LEARNING = {
    "steps": 25, "batch_size": 32, "mini_batch_size": 16, "samples_per_prompt": 8,
    "missing_eos_penalty": 0.0, "learning_rate": 3e-3,
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns_a_rule(make_trainer, seed):
    rewards = [
        stats["reward_mean"] for stats in run(make_trainer(seed=seed, kl_coef=0.02, **LEARNING), 25)
    ]
    assert rewards[0] < 0.5
    assert sum(rewards[-5:]) / 5 > 0.75


def test_a_large_kl_coef_keeps_the_policy_near_its_reference(make_trainer):
    free, held = (
        [stats["kl"] for stats in run(make_trainer(kl_coef=kl_coef, **LEARNING), 12)][-4:]
        for kl_coef in (0.0, 1.0)
    )
    assert min(free) > 4
    assert max(held) < 2


@pytest.mark.parametrize("kl_coef", [0.5, 1.0])
def test_a_bandit_reaches_the_closed_form_optimum(make_trainer, tokenizer, kl_coef):
    """One token a response: the best policy is the reference times exp(reward / kl_coef)."""
    trainer = make_trainer(
        kl_coef=kl_coef, max_new_tokens=1, samples_per_prompt=128, batch_size=128,
        mini_batch_size=128, missing_eos_penalty=0.0, learning_rate=1e-2, steps=60,
    )  # fmt: skip
    prompt_ids, _ = encode_prompts(tokenizer, PROMPTS[:1])

    def next_token(model, reward: Tensor | float = 0.0) -> Categorical:
        return Categorical(logits=model(prompt_ids).logits[0, -1].detach() + reward / kl_coef)

    optimum = next_token(trainer.reference, reward=torch.arange(98) % 2)
    assert kl_divergence(next_token(trainer.policy), optimum) > 0.1
    for _ in range(60):
        rollout = trainer.rollout(PROMPTS[:1])
        trainer.step(rollout, rollout.response_ids[:, 0] % 2)
    assert kl_divergence(next_token(trainer.policy), optimum) < 0.01
