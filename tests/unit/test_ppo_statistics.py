"""The statistics of a step are what their names say, and a seed decides them."""

import math

import pytest
import torch
from ppo_helpers import (
    PROMPTS,
    STATS,
    assert_same_rollout,
    gradient_norm,
    run,
    upper_share,
    weights,
)
from torch.distributions import Categorical

from rlhf_helpers.logprobs import forward_responses
from rlhf_helpers.ppo.statistics import explained_variance

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
        logits, _ = forward_responses(trainer.policy, rollout)
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


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 1e-6])
def test_equal_returns_leave_no_variance_to_explain(value):
    returns = torch.full((50,), value)
    noise = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert explained_variance(noise, returns) == 0.0
    nearly = returns * (1 + 1e-7 * noise)  # equal but for rounding
    assert explained_variance(noise, nearly) == 0.0


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e4])
def test_explained_variance_by_hand(scale):
    returns = scale * torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(0 * returns, returns) == 1.0
    assert explained_variance(returns - 2.5 * scale, returns) == pytest.approx(0, abs=1e-6)
    assert explained_variance(returns / 2, returns) == pytest.approx(0.75)
    assert explained_variance(2 * returns, returns) == pytest.approx(-3)


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
