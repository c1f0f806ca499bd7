"""Every option of PPOConfig does what its line says, and only that."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ppo_helpers import (
    PROMPTS,
    SMALL,
    STATS,
    properties,
    run,
    same,
    step_with,
    upper_share,
    weights,
)

from rlhf_helpers.logprobs import forward_responses, token_logprobs
from rlhf_helpers.ppo import (
    PPOConfig,
    adapted_kl_coef,
    critic,
    kl_penalty,
    masked_mean,
    pretraining_loss,
)

close = torch.testing.assert_close

ONE_UPDATE = {"ppo_epochs": 1, "mini_batch_size": 8, "max_grad_norm": 1e9}


# ---- KL control ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.2),
        (6.6, 0.2 * (1 + 0.1 * 0.064)),  # a tenth above the target
        (100.0, 0.2 * (1 + 0.2 * 0.064)),  # the error counts as 0.2 at most
        (-3.0, 0.2 * (1 - 0.2 * 0.064)),
    ],
)
def test_the_adapted_coefficient_by_hand(kl, expected):
    found = adapted_kl_coef(0.2, kl, kl_target=6.0, responses=64, kl_horizon=1000)
    assert found == pytest.approx(expected)


@given(
    st.floats(1e-6, 10),
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e3),
    st.integers(1, 10_000),
    st.floats(1e-3, 1e6),
)
@properties
def test_the_coefficient_stays_above_0_whatever_the_horizon(
    kl_coef, kl, kl_target, responses, kl_horizon
):
    found = adapted_kl_coef(kl_coef, kl, kl_target, responses, kl_horizon)
    assert 0.8 * kl_coef <= found * (1 + 1e-9) and found <= 1.2 * kl_coef * (1 + 1e-9)
    assert adapted_kl_coef(0.2, 0.0, kl_target=6.0, responses=64, kl_horizon=8) == 0.8 * 0.2


def test_with_adaptive_kl_each_step_pays_what_the_one_before_has_set(make_trainer):
    trainer = make_trainer(adaptive_kl=True, kl_target=0.5, kl_horizon=20, learning_rate=0.01)
    history = run(trainer, 6)
    assert history[0]["kl_coef"] == 0.15
    for now, after in itertools.pairwise(history):
        expected = adapted_kl_coef(now["kl_coef"], now["kl"], 0.5, 8, 20)
        assert after["kl_coef"] == pytest.approx(expected)
    coefficients = [stats["kl_coef"] for stats in history]
    assert coefficients[1] < 0.15 < max(coefficients)  # cheaper below the target, dearer above


def test_the_coefficient_that_is_paid_is_the_adapted_one(make_trainer):
    outcomes = []
    for kl_coef in (0.15, 5.0):
        trainer = make_trainer(adaptive_kl=True)
        trainer.kl_coef = kl_coef
        torch.nn.init.normal_(trainer.reference.lm_head.bias)
        run(trainer, 1)
        outcomes.append(weights(trainer))
    assert not same(*outcomes)


def test_without_adaptive_kl_the_coefficient_stays(make_trainer):
    assert {stats["kl_coef"] for stats in run(make_trainer(learning_rate=0.01), 3)} == {0.15}


# ---- target_kl -----------------------------------------------------------------------------


def counted_steps(trainer) -> list[int]:
    steps: list[int] = []
    trainer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    return steps


def approx_kl(trainer, rollout) -> float:
    """The mean over the tokens of a rollout of how far the policy has moved since it."""
    with torch.no_grad():
        logits, _ = forward_responses(trainer.policy, rollout)
    kl = kl_penalty(rollout.logprobs, token_logprobs(logits, rollout.response_ids))
    return masked_mean(kl, rollout.response_mask).item()


def test_updates_stop_before_the_first_step_beyond_the_target(make_trainer):
    settings = {"learning_rate": 0.01, "ppo_epochs": 16, "mini_batch_size": 8}
    trainer, seen = make_trainer(target_kl=0.02, **settings), []
    rollout = trainer.rollout(PROMPTS)
    trainer.optimizer.register_step_pre_hook(lambda *_: seen.append(approx_kl(trainer, rollout)))
    stats = trainer.step(rollout, upper_share(rollout))
    last = approx_kl(trainer, rollout)
    assert stats["optimizer_steps"] == len(seen) < 16
    assert seen and max(seen) <= 1.5 * 0.02 < last
    assert stats["approx_kl"] == pytest.approx(sum([*seen, last]) / (len(seen) + 1), rel=1e-3)


def test_a_target_out_of_reach_changes_nothing(make_trainer):
    far, none = make_trainer(target_kl=1e9), make_trainer()
    histories = run(far, 2), run(none, 2)
    assert [stats.pop("optimizer_steps") for stats in histories[0]] == [4.0, 4.0]
    assert histories[0] == histories[1]
    assert same(weights(far), weights(none))


# ---- lengths -------------------------------------------------------------------------------


def test_lengths_are_drawn_between_the_two_and_no_eos_stops(make_trainer, tokenizer):
    trainer = make_trainer(
        min_new_tokens=3, max_new_tokens=6, draw_lengths=True, samples_per_prompt=4
    )
    trainer.policy.lm_head.bias.data[tokenizer.eos_token_id] = 5.0  # in nearly every response
    rollouts = [trainer.rollout(PROMPTS) for _ in range(4)]
    lengths = [n for rollout in rollouts for n in rollout.response_mask.sum(1).tolist()]
    assert set(lengths) == {3, 4, 5, 6}
    assert max(lengths.count(n) for n in range(3, 7)) < 40  # of 64
    rollout = rollouts[0]
    inside = (rollout.response_ids == tokenizer.eos_token_id)[:, :-1] & rollout.response_mask[:, 1:]
    assert inside.any()
    logits, _ = forward_responses(trainer.policy, rollout)
    expected = token_logprobs(logits, rollout.response_ids) * rollout.response_mask
    close(rollout.logprobs, expected, rtol=0, atol=1e-5)


def test_no_response_ends_before_the_shortest_length(make_trainer, tokenizer):
    trainer = make_trainer(min_new_tokens=5, samples_per_prompt=4)
    trainer.policy.lm_head.bias.data[tokenizer.eos_token_id] = 6.0  # at once, without it
    rollout = trainer.rollout(PROMPTS)
    lengths = rollout.response_mask.sum(1)
    assert lengths.min() == 6 and rollout.ended.any()  # five tokens and EOS, as in transformers
    logits, _ = forward_responses(trainer.policy, rollout)
    expected = token_logprobs(logits, rollout.response_ids) * rollout.response_mask
    close(rollout.logprobs, expected, rtol=0, atol=1e-5)  # as training computes them


def test_without_a_minimum_eos_decides(make_trainer):
    rollout = make_trainer(min_new_tokens=0).rollout(PROMPTS)
    assert 0 < rollout.ended.sum() < 8


def test_where_lengths_are_drawn_nobody_pays_for_a_missing_eos(make_trainer):
    outcomes = []
    for penalty in (0.0, 3.0):
        trainer = make_trainer(min_new_tokens=3, draw_lengths=True, missing_eos_penalty=penalty)
        history = run(trainer, 2)
        outcomes.append((history, weights(trainer)))
    assert outcomes[0][0] == outcomes[1][0]
    assert same(outcomes[0][1], outcomes[1][1])


# ---- clipped scores ------------------------------------------------------------------------


def test_scores_beyond_the_clip_count_as_the_clip(make_trainer):
    scores = torch.tensor([-9.0, -0.5, 0.0, 0.2, 0.5, 0.7, 3.0, 99.0])
    outcomes = []
    for clip, scored in ((0.5, scores), (None, scores.clamp(-0.5, 0.5)), (None, scores)):
        trainer = make_trainer(score_clip=clip)
        stats = trainer.step(trainer.rollout(PROMPTS), scored)
        outcomes.append(weights(trainer))
        assert stats["reward_mean"] == pytest.approx(scored.mean().item())  # as it was given
    assert same(outcomes[0], outcomes[1])
    assert not same(outcomes[0], outcomes[2])


# ---- accumulation --------------------------------------------------------------------------


def test_accumulated_parts_make_the_step_of_the_whole_mini_batch(make_trainer):
    trainers = [make_trainer(mini_batch_size=8, gradient_accumulation_steps=n) for n in (1, 2, 4)]
    steps = [counted_steps(trainer) for trainer in trainers]
    sizes: list[int] = []
    loss = trainers[-1]._loss
    trainers[-1]._loss = lambda *given: sizes.append(len(given[-1])) or loss(*given)
    histories = [run(trainer, 1)[0] for trainer in trainers]
    assert [len(taken) for taken in steps] == [2, 2, 2]  # epochs times mini-batches
    assert sizes == [2] * 8
    for trainer, stats in zip(trainers[1:], histories[1:], strict=True):
        assert stats == pytest.approx(histories[0], rel=1e-3, abs=1e-5)
        for name, gradient in trainer.policy.named_parameters():
            close(
                gradient.grad,
                dict(trainers[0].policy.named_parameters())[name].grad,
                rtol=1e-3,
                atol=1e-5,
            )


def test_the_gradient_is_clipped_once_a_mini_batch_however_it_is_cut(make_trainer):
    trainer, norms = make_trainer(max_grad_norm=1e-3, gradient_accumulation_steps=2), []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(sum(p.grad.square().sum().item() for p in trainer.trained) ** 0.5)
    )
    run(trainer, 1)
    assert norms == pytest.approx([1e-3] * 4, rel=1e-2)


# ---- PPO-ptx -------------------------------------------------------------------------------

DOCUMENTS = ["the cat sat on the mat.", "abcabcabcabc", "to be or not to be", "x" * 600]


def with_documents(make_trainer, **changes):
    return make_trainer(documents=DOCUMENTS, **changes)


def test_a_ptx_coef_needs_documents(make_trainer):
    with pytest.raises(ValueError, match="ptx_coef needs pretraining documents"):
        make_trainer(ptx_coef=1.0)


def test_the_pretraining_loss_by_hand():
    """Two tokens are predicted, with probabilities 1/2 and 1/4; what is masked has no say."""
    probabilities = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [1, 0, 0], [1, 0, 0]]])
    ids, mask = torch.tensor([[0, 1, 2, 2]]), torch.tensor([[1, 1, 1, 0]])
    loss = pretraining_loss(probabilities.clamp(min=1e-9).log(), ids, mask)
    assert loss.item() == pytest.approx((torch.tensor(2.0).log() + torch.tensor(4.0).log()) / 2)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_ptx_adds_the_gradient_of_the_language_model_loss(make_trainer, accumulation):
    """Of documents drawn like ours, each alone, weighed by its tokens; cut at 512 of these."""
    settings = ONE_UPDATE | {"gradient_accumulation_steps": accumulation}
    gradients, long = [], {"max_position_embeddings": 512}
    for coef in (0.0, 2.0):
        trainer = with_documents(make_trainer, model=long, ptx_coef=coef, **settings)
        rollout = trainer.rollout(PROMPTS)
        generator = torch.Generator().manual_seed(0)
        advantages = torch.randn(rollout.values.shape, generator=generator)
        step_with(trainer, rollout, advantages, rollout.values)
        gradients.append({n: p.grad.clone() for n, p in trainer.policy.named_parameters()})
    twin = with_documents(make_trainer, model=long, ptx_coef=2.0).pretraining
    ids, mask = twin.draw(len(PROMPTS))
    assert ids.shape[1] <= 512
    policy, total = twin.policy, mask[:, 1:].sum()
    for row, m in zip(ids, mask, strict=True):
        logprobs = torch.log_softmax(policy(row[m.bool()][None]).logits[0, :-1], -1)
        chosen = logprobs.gather(1, row[m.bool()][1:, None])
        (-2.0 * chosen.sum() / total).backward()
    for name, parameter in policy.named_parameters():
        close(gradients[1][name] - gradients[0][name], parameter.grad, rtol=1e-3, atol=1e-4)


def test_ptx_lowers_the_pretraining_loss(make_trainer):
    losses = {}
    for coef in (0.0, 1.0):
        trainer = make_trainer(documents=DOCUMENTS[:3], ptx_coef=coef)
        history = run(trainer, 8)
        assert ("ptx_loss" in history[0]) == (coef > 0)
        batch = trainer.tokenizer(
            DOCUMENTS[:3], padding=True, return_tensors="pt", padding_side="right"
        )
        with torch.no_grad():
            logits = trainer.policy(**batch).logits
        losses[coef] = pretraining_loss(logits, batch["input_ids"], batch["attention_mask"]).item()
    assert losses[1.0] < losses[0.0] - 0.5
    assert history[-1]["ptx_loss"] < history[0]["ptx_loss"]


# ---- a separate critic ---------------------------------------------------------------------


def test_a_separate_critic_starts_as_the_model_it_is_given_and_learns_alone(
    make_trainer, make_model
):
    other = make_model("opt", seed=5)
    trainer = make_trainer(critic="separate", critic_model=other)
    before = copy.deepcopy(other.state_dict())
    for name, weight in trainer.critic.state_dict().items():
        assert weight.equal(before[f"model.{name}"]), name
    run(trainer, 2)
    assert not same(dict(trainer.critic.named_parameters()), dict(other.model.named_parameters()))
    assert same(other.state_dict(), before)  # the model itself is not touched


def test_without_one_a_separate_critic_starts_as_the_policy(make_trainer):
    trainer = make_trainer(critic="separate")
    policy = dict(trainer.policy.model.named_parameters())
    assert same(dict(trainer.critic.named_parameters()), policy)
    own = {id(p) for p in trainer.critic.parameters()}
    assert not own & {id(p) for p in trainer.policy.parameters()}


def test_a_separate_critic_leaves_the_policy_s_gradient_to_the_policy_loss(make_trainer):
    gradients = {}
    for kind in ("separate", "shared"):
        for vf_coef in (0.0, 5.0):
            trainer = make_trainer(critic=kind, vf_coef=vf_coef, **ONE_UPDATE)
            torch.nn.init.constant_(trainer.value_head.weight, 0.05)
            rollout = trainer.rollout(PROMPTS)
            advantages = torch.ones_like(rollout.values)
            step_with(trainer, rollout, advantages, 3 * advantages)
            gradients[kind, vf_coef] = {
                name: p.grad.clone() for name, p in trainer.policy.named_parameters()
            }
    assert same(gradients["separate", 0.0], gradients["separate", 5.0])
    assert not same(gradients["shared", 0.0], gradients["shared", 5.0])


def test_a_random_value_head_lets_the_trunk_learn_values_from_the_first_step(make_trainer):
    def gradients(std: float, vf_coef: float) -> dict[str, torch.Tensor]:
        trainer = make_trainer(value_head_std=std, vf_coef=vf_coef, **ONE_UPDATE)
        rollout = trainer.rollout(PROMPTS)
        assert bool(rollout.values.any()) == bool(std)
        advantages = torch.ones_like(rollout.values)
        step_with(trainer, rollout, advantages, 3 * advantages)
        return {name: p.grad.clone() for name, p in trainer.policy.named_parameters()}

    assert same(gradients(0.0, 0.0), gradients(0.0, 5.0))
    assert not same(gradients(0.05, 0.0), gradients(0.05, 5.0))
    assert same(gradients(0.05, 5.0), gradients(0.05, 5.0))  # drawn from the seed


def test_the_values_of_a_separate_critic_are_of_the_states_before_each_token(make_trainer, kind):
    trainer = make_trainer(kind, critic="separate")
    torch.nn.init.constant_(trainer.value_head.weight, 0.1)
    rollout = trainer.rollout(PROMPTS)
    for row, mask in enumerate(rollout.response_mask):
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()]
        whole = torch.cat([prompt, rollout.response_ids[row][mask]])[None]
        with torch.no_grad():
            hidden = trainer.critic(whole).last_hidden_state[0]
        expected = 0.1 * hidden[len(prompt) - 1 : -1].sum(1)
        close(rollout.values[row][mask], expected, rtol=0, atol=1e-5)
        assert (rollout.values[row][~mask] == 0).all()


def test_a_critic_must_have_the_policy_s_tokens_and_kind(make_model, tokenizer):
    policy, other = make_model("opt"), copy.deepcopy(tokenizer)
    assert critic.fits(make_model("opt", seed=1), other, policy, tokenizer)
    assert not critic.fits(make_model("gpt2"), other, policy, tokenizer)
    other.add_tokens("dog")
    assert not critic.fits(make_model("opt", seed=1), other, policy, tokenizer)


# ---- all at once ---------------------------------------------------------------------------


def test_with_every_option_the_statistics_are_the_promised_ones_and_theirs(make_trainer):
    trainer = make_trainer(
        documents=DOCUMENTS[:2],
        ptx_coef=0.1,
        adaptive_kl=True,
        target_kl=0.5,
        score_clip=1.0,
        critic="separate",
        gradient_accumulation_steps=2,
        min_new_tokens=2,
        draw_lengths=True,
    )
    rollout = trainer.rollout(PROMPTS)
    stats = trainer.step(rollout, upper_share(rollout))
    assert stats.keys() == STATS | {"ptx_loss", "optimizer_steps"}


@pytest.mark.parametrize("lora", [False, True])
def test_what_the_options_change_is_in_the_state(make_trainer, lora, tmp_path):
    settings = {
        "lora": lora,
        "documents": DOCUMENTS[:2],
        "ptx_coef": 0.1,
        "adaptive_kl": True,
        "kl_target": 0.5,
        "kl_horizon": 20,
        "critic": "separate",
        "min_new_tokens": 2,
        "draw_lengths": True,
        "gradient_accumulation_steps": 2,
        "target_kl": 0.5,
    }
    trainer = make_trainer(**settings)
    run(trainer, 2)
    torch.save(
        {"policy": trainer.policy.state_dict(), "trainer": trainer.state_dict()}, tmp_path / "s.pt"
    )
    expected = run(trainer, 2)
    state = torch.load(tmp_path / "s.pt")
    resumed = make_trainer(**settings)
    resumed.policy.load_state_dict(state["policy"])
    resumed.load_state_dict(state["trainer"])
    assert run(resumed, 2) == expected
    assert same(weights(resumed), weights(trainer))
    assert same(dict(resumed.critic.named_parameters()), dict(trainer.critic.named_parameters()))


def test_making_a_trainer_leaves_the_global_random_state_alone(make_trainer):
    before = torch.get_rng_state()
    for kind in ("shared", "separate"):
        with_documents(make_trainer, critic=kind, ptx_coef=1.0)
        assert torch.get_rng_state().equal(before)


def test_the_defaults_switch_every_option_off():
    config = PPOConfig(**SMALL)
    assert not config.adaptive_kl and config.target_kl is None and config.score_clip is None
    assert config.ptx_coef == config.min_new_tokens == 0 and not config.draw_lengths
    assert config.gradient_accumulation_steps == 1 and config.critic == "shared"
