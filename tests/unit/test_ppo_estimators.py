"""Advantages without a critic: against slow float64 references, and in the trainer."""

import copy
import math
import re
from dataclasses import replace
from statistics import fmean, pstdev, stdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ppo_helpers import PROMPTS, STATS, properties, run, upper_share
from torch import Tensor

from rlhf_helpers import generation
from rlhf_helpers.ppo import estimators, policy_loss
from rlhf_helpers.runs import project_root

GROUPS = {"rloo": estimators.rloo, "grpo": estimators.grpo, "dr_grpo": estimators.dr_grpo}
ALL = ["reinforce", *GROUPS]


def slow(name: str, groups: list[list[float]]) -> list[float]:
    """Each advantage from its definition, a response at a time."""
    everything, found = [g for group in groups for g in group], []
    for group in groups:
        for i, own in enumerate(group):
            others = group[:i] + group[i + 1 :]
            if name == "reinforce":
                deviation = math.sqrt(pstdev(everything) ** 2 + 1e-8)
                found.append((own - fmean(everything)) / deviation)
            elif name == "rloo":
                found.append(own - fmean(others))
            elif name == "grpo":
                found.append((own - fmean(group)) / (stdev(group) + 1e-4))
            else:
                found.append(own - fmean(group))
    return found


@pytest.mark.parametrize("name", ALL)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 10**6))
@properties
def test_estimators_agree_with_the_slow_reference(name, prompts, samples, seed):
    generator = torch.Generator().manual_seed(seed)
    returns = torch.randn(prompts, samples, generator=generator, dtype=torch.float64)
    found = estimators.critic_free(name, returns.flatten(), samples)
    assert found.tolist() == pytest.approx(slow(name, returns.tolist()), rel=1e-6, abs=1e-9)
    shifted = estimators.critic_free(name, returns.flatten() + 7, samples)  # any constant
    torch.testing.assert_close(shifted, found, rtol=1e-6, atol=1e-6)


def test_the_example_of_the_module():
    returns = torch.tensor([1.0, 0.0, 5.0, 4.0])
    assert estimators.rloo(returns, samples=2).tolist() == [1, -1, 1, -1]


@pytest.mark.parametrize("name", ALL)
def test_responses_that_score_alike_have_no_advantage(name):
    found = estimators.critic_free(name, torch.full((6,), 2.5), 3)
    assert found.tolist() == pytest.approx([0.0] * 6, abs=1e-6)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 10**6))
@properties
def test_the_weights_of_tokens_give_the_mean_that_is_named(aggregation, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randn(len(lengths), 9, generator=generator, dtype=torch.float64)
    rows = [row[:n].tolist() for row, n in zip(losses, lengths, strict=True)]
    expected = {
        "token": fmean(x for row in rows for x in row),
        "sequence": fmean(fmean(row) for row in rows),
        "constant": sum(sum(row) for row in rows) / (len(rows) * 9),
    }[aggregation]
    count = torch.tensor(lengths)
    mask = torch.arange(9) < count[:, None]
    weights = estimators.token_weights(aggregation, count, count.sum(), len(lengths), 9)
    found = (weights * losses * mask).sum() / mask.sum()
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def weights_of(trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}


# ---- in the trainer ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_there_is_no_critic_and_nothing_is_kept_for_one(make_trainer, name):
    trainer = make_trainer(advantages=name)
    assert trainer.value_head is None and trainer.critic is None
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(
        list(trainer.policy.parameters())
    )
    rollout = trainer.rollout(PROMPTS)
    assert rollout.values is None
    stats = trainer.step(rollout, upper_share(rollout))
    groups = {"equal_groups"} if name in GROUPS else set()
    assert stats.keys() == STATS - {"value_loss", "explained_variance"} | groups
    assert all(math.isfinite(value) for value in stats.values())


@pytest.mark.parametrize("name", ["gae", *ALL])
def test_sampling_keeps_hidden_states_for_a_critic_alone(make_trainer, monkeypatch, name):
    trainer, kept, sample = make_trainer(advantages=name), [], generation.sample

    def spy(*arguments, **keywords):
        samples = sample(*arguments, **keywords)
        kept.append(samples.hidden is not None)
        return samples

    monkeypatch.setattr(generation, "sample", spy)
    trainer.rollout(PROMPTS)
    assert kept == [name == "gae"]


@pytest.mark.parametrize("name", ["gae", *ALL])
def test_responses_of_a_single_token(make_trainer, name):
    trainer = make_trainer(advantages=name, max_new_tokens=1)
    before = weights_of(trainer)
    for stats in run(trainer, 2):
        assert stats["response_length"] == 1
        assert all(math.isfinite(value) for value in stats.values())
    assert any(not weight.equal(before[n]) for n, weight in weights_of(trainer).items())


@pytest.mark.parametrize("name", ALL)
def test_advantages_are_those_of_whole_responses(make_trainer, name):
    trainer = make_trainer(advantages=name, missing_eos_penalty=0.5, kl_place="reward")
    torch.nn.init.normal_(trainer.reference.lm_head.bias)  # so that there is a KL to pay
    rollout = trainer.rollout(PROMPTS)
    mask, scores = rollout.response_mask, upper_share(rollout)
    kl = ((rollout.logprobs - rollout.ref_logprobs) * mask).sum(1)
    returns = scores - 0.5 * ~rollout.ended - 0.15 * kl
    advantages, _ = trainer.advantages(rollout, scores)
    expected = torch.tensor(slow(name, returns.view(-1, 2).tolist()))
    torch.testing.assert_close(advantages, expected[:, None] * mask, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_is_the_same_however_a_mini_batch_is_cut(make_trainer, name):
    gradients = []
    for parts in (1, 2, 4):
        trainer = make_trainer(
            advantages=name, mini_batch_size=8, ppo_epochs=1, gradient_accumulation_steps=parts
        )
        torch.nn.init.normal_(
            trainer.reference.lm_head.bias, generator=torch.Generator().manual_seed(0)
        )
        rollout = trainer.rollout(PROMPTS)
        stats = trainer.step(rollout, upper_share(rollout))
        assert abs(stats["approx_kl"]) < 1e-5
        gradients.append({n: p.grad for n, p in trainer.policy.named_parameters()})
    for other in gradients[1:]:
        for parameter, gradient in gradients[0].items():
            torch.testing.assert_close(other[parameter], gradient, rtol=1e-3, atol=1e-5)


def test_the_kl_in_the_loss_is_not_paid_in_the_reward_too(make_trainer):
    for place, paid in (("reward", True), ("loss", False)):
        trainer = make_trainer(advantages="grpo", kl_place=place)
        torch.nn.init.normal_(trainer.reference.lm_head.bias)
        rollout = trainer.rollout(PROMPTS)
        rewards = trainer.rewards(rollout, torch.zeros(8))
        assert bool((rewards[:, 0] != 0).any()) == paid
    defaults = {
        name: (config.kl_is_in_loss, config.loss_aggregation)
        for name in ("gae", *ALL)
        if (config := make_trainer(advantages=name).config)
    }
    assert defaults == {
        "gae": (False, "token"),
        "reinforce": (False, "token"),
        "rloo": (False, "token"),
        "grpo": (True, "sequence"),
        "dr_grpo": (True, "constant"),
    }


@pytest.mark.parametrize("name", GROUPS)
def test_groups_that_a_filter_has_torn_apart_are_refused(make_trainer, name):
    trainer = make_trainer(advantages=name)
    rollout = trainer.rollout(PROMPTS)
    for rows in ([0, 2, 1, 3, 4, 5, 6, 7], [1, 2, 3, 4], [0, 1, 2]):
        torn = rollout.select(torch.tensor(rows))
        with pytest.raises(ValueError, match="not in groups of 2 responses to one prompt"):
            trainer.step(torn, upper_share(torn))
    whole = rollout.select(torch.tensor([4, 5, 0, 1]))  # whole groups may go and change places
    assert math.isfinite(trainer.step(whole, upper_share(whole))["grad_norm"])


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 0.3, 1e6])] * 3), min_size=1))
@properties
def test_groups_are_equal_where_all_their_scores_are(groups):
    found = estimators.equal_groups(torch.tensor(groups).flatten(), 3)
    assert found.tolist() == [len(set(group)) == 1 for group in groups for _ in group]


def scores_with_equal_groups(equal: list[bool]) -> Tensor:
    """Two scores a prompt, which are alike where that is said."""
    return torch.tensor([x for e in equal for x in ((0.5, 0.5) if e else (0.0, 1.0))])


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("parts", [1, 2])
def test_dropped_groups_are_left_out_of_every_mean(make_trainer, name, parts):
    """The gradient is that of a rollout that never had them, however it is cut."""
    equal, gradients = [True, False, True, False], []
    for drop in (True, False):
        trainer = make_trainer(
            advantages=name,
            drop_equal_groups=drop,
            mini_batch_size=8,
            ppo_epochs=1,
            gradient_accumulation_steps=parts,
            missing_eos_penalty=0.0,
        )
        noise = torch.Generator().manual_seed(0)
        torch.nn.init.normal_(trainer.reference.lm_head.bias, generator=noise)
        rollout, scores = trainer.rollout(PROMPTS), scores_with_equal_groups(equal)
        if not drop:
            kept = torch.tensor([2, 3, 6, 7])
            rollout, scores = rollout.select(kept), scores[kept]
        stats = trainer.step(rollout, scores)
        assert stats["equal_groups"] == (0.5 if drop else 0)
        gradients.append({n: p.grad for n, p in trainer.policy.named_parameters()})
    for parameter, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][parameter], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", GROUPS)
def test_where_all_groups_are_equal_it_says_so_and_goes_on(make_trainer, name, caplog):
    trainer = make_trainer(advantages=name, drop_equal_groups=True)
    run(trainer, 2)  # so that the optimiser has momentum
    before = weights_of(trainer)
    stats = trainer.step(trainer.rollout(PROMPTS), [1.0 - trainer.eos_penalty] * 8)
    assert not caplog.messages and stats["equal_groups"] < 1  # some were cut off, others not
    trainer.eos_penalty = 0.0
    before = weights_of(trainer)
    stats = trainer.step(trainer.rollout(PROMPTS), [1.0] * 8)
    assert stats["equal_groups"] == 1 and stats["policy_loss"] == 0
    assert caplog.messages == [
        "step 3: all answers to each prompt score alike, so none is better than another"
    ]
    assert all(weight.equal(before[n]) for n, weight in weights_of(trainer).items())
    stats = trainer.step(trainer.rollout(PROMPTS), torch.arange(8.0))
    assert stats["grad_norm"] > 0


def test_responses_can_be_left_uncounted_by_hand(make_trainer):
    """Those of one's own choice, under any estimator: their tokens get no gradient."""
    trainer = make_trainer(advantages="reinforce", mini_batch_size=8, ppo_epochs=1)
    rollout = trainer.rollout(PROMPTS)
    counted = torch.arange(8) % 2 == 0
    trainer.step(replace(rollout, counted=counted), upper_share(rollout))
    mine = {n: p.grad.clone() for n, p in trainer.policy.named_parameters()}
    trainer = make_trainer(advantages="reinforce", mini_batch_size=8, ppo_epochs=1)
    rollout = trainer.rollout(PROMPTS)
    advantages, returns = trainer.advantages(rollout, upper_share(rollout))
    trainer._set_gradients(rollout, advantages * counted[:, None], returns, torch.arange(8))
    for name, p in trainer.policy.named_parameters():  # clipping may have scaled them
        cosine = torch.nn.functional.cosine_similarity(mine[name].flatten(), p.grad.flatten(), 0)
        assert cosine > 0.9999 or mine[name].abs().max() < 1e-7, name


def test_a_clip_that_is_higher_upwards(make_trainer):
    old = torch.zeros(1, 2)
    new = torch.tensor([[math.log(1.25), math.log(1.35)]])
    one, mask = torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
    assert policy_loss(new, old, one, mask, 0.2)[1] == 1
    assert policy_loss(new, old, one, mask, 0.2, 0.28)[1] == 0.5
    assert make_trainer(cliprange_high=0.28).config.cliprange_high == 0.28


@pytest.mark.parametrize("name", ALL)
def test_each_learns_a_rule(make_trainer, name):
    trainer = make_trainer(
        advantages=name,
        kl_coef=0.02,
        batch_size=32,
        mini_batch_size=16,
        samples_per_prompt=8,
        steps=20,
        missing_eos_penalty=0.0,
    )
    rewards = [stats["reward_mean"] for stats in run(trainer, 20)]
    assert rewards[0] < 0.5 < 0.7 < fmean(rewards[-4:])


def test_a_run_without_a_critic_resumes_exactly(make_trainer):
    trainer = make_trainer(advantages="rloo")
    run(trainer, 2)
    policy, state = copy.deepcopy([trainer.policy.state_dict(), trainer.state_dict()])
    resumed = make_trainer(advantages="rloo")
    resumed.policy.load_state_dict(policy)
    resumed.load_state_dict(state)
    assert run(resumed, 2) == run(trainer, 2)


# ---- docs/rewards.md -----------------------------------------------------------------------


def test_the_page_on_rewards_runs_as_it_stands(make_trainer):
    page = (project_root() / "docs" / "rewards.md").read_text(encoding="utf-8")
    functions, loop, estimator = re.findall(r"```python\n(.*?)```", page, re.S)
    mine: dict = {}
    exec(functions, mine)
    assert mine["brevity"](["x" * 50]) == [-0.5]
    assert mine["correct"]("2 + 2?", "It is 4.", {"answer": "4"}) is True
    trainer = make_trainer(advantages="rloo")
    here = {"trainer": trainer, "prompts": PROMPTS}
    exec(loop, here)
    assert here["stats"]["reward/digits"] == here["stats"]["reward_mean"]
    exec(estimator, here)
    own = here["BestOfGroup"](trainer.policy, trainer.tokenizer, trainer.config)
    rollout = own.rollout(PROMPTS)
    advantages, _ = own.advantages(rollout, torch.tensor([1.0, 0, 0, 2, 3, 3, 4, 5]))
    assert advantages[:, 0].tolist() == [1, 0, 0, 1, 1, 1, 0, 1]
    assert math.isfinite(own.step(rollout, upper_share(rollout))["grad_norm"])
