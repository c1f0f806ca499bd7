"""The trainer through its public face: what a rollout holds, and what a step does to the policy."""

import copy
import math
import textwrap
from dataclasses import replace

import pytest
import torch
from ppo_helpers import PROMPTS, SMALL, gradient_norm, run, step_with, upper_share, weights
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    MambaConfig,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
    RwkvConfig,
)

from rlhf_helpers import logprobs, ppo
from rlhf_helpers.generation import encode_prompts
from rlhf_helpers.logprobs import Tokens, forward_responses, token_logprobs
from rlhf_helpers.models import add_lora, without_dropout
from rlhf_helpers.ppo import (
    PPOConfig,
    PPOTrainer,
    gae,
    kl_penalty,
    masked_mean,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from rlhf_helpers.reward_model import RewardModel, append_eos

close = torch.testing.assert_close


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
        logits, _ = forward_responses(original, rollout)
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


def moved_adapter(trainer: PPOTrainer) -> None:
    """Give a LoRA adapter weights, as if it had been trained: it starts as nothing."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trainer.policy.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.2 * noise)


@pytest.mark.parametrize("samples_per_prompt", [1, 4])
@pytest.mark.parametrize("prompts", [["The cat", "cat sat"], PROMPTS], ids=["level", "left padded"])
@pytest.mark.parametrize("lora", [False, True])
def test_kept_logprobs_are_those_of_a_fresh_pass_over_each_response_alone(
    make_trainer, kind, lora, prompts, samples_per_prompt
):
    trainer = make_trainer(
        kind, lora, samples_per_prompt=samples_per_prompt, batch_size=16, mini_batch_size=4
    )
    if lora:
        moved_adapter(trainer)
    rollout = trainer.rollout(prompts[-2:] if lora else prompts)
    for row, mask in enumerate(rollout.response_mask):
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()]
        response = rollout.response_ids[row][mask]
        with torch.no_grad():
            logits = trainer.policy(torch.cat([prompt, response])[None]).logits[
                :, len(prompt) - 1 : -1
            ]
        close(
            rollout.logprobs[row][mask],
            token_logprobs(logits, response[None])[0],
            rtol=0,
            atol=1e-5,
        )
    if lora:  # the adapter has a say, and the reference goes without it
        assert (rollout.logprobs - rollout.ref_logprobs).abs().max() > 0.1


def test_the_pad_token_may_be_the_eos_token(make_trainer, tokenizer):
    outcomes = []
    for pad in ("<pad>", "</s>"):
        tokenizer.pad_token = pad
        trainer = make_trainer()
        outcomes.append(run(trainer, 2))
    assert 0 < outcomes[0][0]["eos_rate"] < 1
    for ours, theirs in zip(*outcomes, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_the_padding_side_of_the_tokenizer_changes_nothing(make_trainer, tokenizer):
    histories = []
    for side in ("left", "right"):
        tokenizer.padding_side = side
        histories.append(run(make_trainer(), 2))
    assert histories[0] == histories[1]


def test_the_order_of_the_batch_changes_nothing(make_trainer):
    """As one mini-batch, so that the shuffle can't change what is learnt together."""
    gradients, order = [], torch.tensor([4, 5, 0, 1, 6, 7, 2, 3])  # the two of a prompt stay so
    for rows in (torch.arange(8), order):
        trainer = make_trainer(mini_batch_size=8, ppo_epochs=1)
        rollout = trainer.rollout(PROMPTS)
        scores = upper_share(rollout)
        shuffled = {
            name: value[rows]
            for name, value in vars(rollout).items()
            if isinstance(value, torch.Tensor)
        }
        stats = trainer.step(replace(rollout, **shuffled), scores[rows])
        gradients.append({n: p.grad for n, p in trainer.policy.named_parameters()})
    for name, gradient in gradients[0].items():
        close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)
    assert math.isfinite(stats["kl"])


def test_any_callable_on_texts_may_score_also_a_model_with_another_tokenizer(
    make_trainer, make_model, tokenizer
):
    """Its tokens are words, the policy's are letters: what they share is the text."""
    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "cat": 2, "the": 3, "?": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    other = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = copy.deepcopy(make_model("llama").config)
        config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(config)
    reward_model = RewardModel(model, append_eos(other, 64))
    trainer = make_trainer()
    rollout = trainer.rollout(PROMPTS)
    scores = reward_model(rollout.texts)
    for text, score in zip(rollout.texts, scores, strict=True):
        assert score == pytest.approx(reward_model([text])[0], abs=1e-5)
    stats = trainer.step(rollout, scores)
    assert stats["reward_mean"] == pytest.approx(sum(scores) / 8)
    lengths = [float(len(text)) for text in trainer.rollout(PROMPTS).texts]  # or a plain rule
    assert trainer.step(trainer.rollout(PROMPTS), lengths)["reward_mean"] > 0


# ---- a step --------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_first_mini_batch_has_ratio_1(make_trainer, monkeypatch, kind, temperature):
    """Even if someone has put the policy into training mode since: there is no dropout left."""
    trainer, ratios = make_trainer(kind, temperature=temperature), []

    def spy(logprobs, old_logprobs, advantages, mask, *clips):
        ratios.append((logprobs - old_logprobs).exp()[mask].detach())
        return policy_loss(logprobs, old_logprobs, advantages, mask, *clips)

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


def real_tokens(tokens: Tokens) -> list[tuple]:
    """The tokens of each response and of its prompt, without padding."""
    repeat = tokens.samples_per_prompt
    prompts, responses = (
        [tuple(i[m.bool()].tolist()) for i, m in zip(ids, mask, strict=True)]
        for ids, mask in (
            (tokens.prompt_ids, tokens.prompt_mask),
            (tokens.response_ids, tokens.response_mask),
        )
    )
    return [(prompts[i // repeat], response) for i, response in enumerate(responses)]


def test_every_epoch_takes_every_response_once_with_no_needless_padding(make_trainer, monkeypatch):
    trainer, taken, shapes = make_trainer(ppo_epochs=4), [], set()
    rollout = trainer.rollout(PROMPTS)
    expected = real_tokens(rollout)

    def spy(policy, tokens):
        assert tokens.prompt_mask[:, 0].any()
        assert tokens.response_mask[:, -1].any()
        shapes.add((tokens.prompt_mask.shape[1], tokens.response_mask.shape[1]))
        taken.extend(real_tokens(tokens))
        return forward_responses(policy, tokens)

    monkeypatch.setattr(logprobs, "forward_responses", spy)
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

    def spy_policy(logprobs, old_logprobs, advantages, mask, *clips):
        seen.extend([o[m], a[m]] for o, a, m in zip(old_logprobs, advantages, mask, strict=True))
        return policy_loss(logprobs, old_logprobs, advantages, mask, *clips)

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


@pytest.mark.parametrize("samples_per_prompt", [2, 4])
def test_a_rollout_in_another_order_gives_the_same_gradient(make_trainer, samples_per_prompt):
    """Its responses are no longer beside those to the same prompt."""
    gradients, order = [], torch.tensor([4, 0, 7, 1, 6, 2, 5, 3])
    prompts = PROMPTS[: 8 // samples_per_prompt]
    for rows in (torch.arange(8), order):
        trainer = make_trainer(
            mini_batch_size=8, ppo_epochs=1, samples_per_prompt=samples_per_prompt
        )
        rollout = trainer.rollout(prompts)
        scores = upper_share(rollout)[rows]
        rollout = rollout.select(rows)
        assert rollout.texts[0].endswith(rollout.responses[0])
        stats = trainer.step(rollout, scores)
        assert abs(stats["approx_kl"]) < 1e-5
        gradients.append({n: p.grad for n, p in trainer.policy.named_parameters()})
    for name, gradient in gradients[0].items():
        close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)


def test_a_filtered_rollout_is_learned_from_whole(make_trainer, monkeypatch):
    """Three of eight responses are taken out: the others keep their prompts, and none is lost."""
    trainer, taken, kls = make_trainer(ppo_epochs=1), [], []
    rollout = trainer.rollout(PROMPTS).select(torch.tensor([0, 2, 3, 4, 7]))
    expected = real_tokens(rollout)

    def spy(policy, tokens):
        taken.extend(real_tokens(tokens))
        return forward_responses(policy, tokens)

    def spy_loss(new, old, *rest):
        kls.append(masked_mean((old - new).detach(), rest[1]).item())
        return policy_loss(new, old, *rest)

    monkeypatch.setattr(logprobs, "forward_responses", spy)
    monkeypatch.setattr(ppo.trainer, "policy_loss", spy_loss)
    trainer.step(rollout, upper_share(rollout))
    assert sorted(taken) == sorted(expected)
    assert len(kls) == 2 and abs(kls[0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trained_weights_of_16_bits_are_refused(make_model, tokenizer, dtype):
    policy, config = make_model("opt").to(dtype), PPOConfig(**SMALL)
    with pytest.raises(ValueError, match=f"trained weights are {dtype}, in which small steps"):
        PPOTrainer(policy, tokenizer, config)
    trainer = PPOTrainer(add_lora(policy, rank=4), tokenizer, config)
    assert {p.dtype for p in trainer.trained} == {torch.float32}


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_an_adapter_that_was_trained_before_is_part_of_the_reference(make_trainer, tokenizer, kind):
    trained = make_trainer(kind, lora=True)
    moved_adapter(trained)
    policy, config = trained.policy, PPOConfig(**SMALL | {"learning_rate": 0.01})
    before = copy.deepcopy(policy).eval()
    trainer = PPOTrainer(policy, tokenizer, config)
    first = trainer.rollout(PROMPTS)
    close(first.logprobs, first.ref_logprobs, rtol=0, atol=1e-5)
    trainer.step(first, upper_share(first))
    weights_now = weights(trainer)
    rollout = trainer.rollout(PROMPTS)
    assert all(weight.equal(weights_now[name]) for name, weight in weights(trainer).items())
    with torch.no_grad():
        logits, _ = forward_responses(before, rollout)
    expected = token_logprobs(logits, rollout.response_ids) * rollout.response_mask
    close(rollout.ref_logprobs, expected, rtol=0, atol=1e-5)
    assert (rollout.logprobs - expected).abs().max() > 0.01


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_for_less_memory(make_trainer, kind, lora):
    def gradients(checkpointing: bool):
        trainer = make_trainer(kind, lora, mini_batch_size=8, ppo_epochs=1, max_grad_norm=1e9)
        if lora:
            moved_adapter(trainer)
        if checkpointing:
            trainer.policy.gradient_checkpointing_enable()
        trainer = PPOTrainer(trainer.policy, trainer.tokenizer, trainer.config)
        torch.nn.init.constant_(trainer.value_head.weight, 0.05)
        rollout, saved = trainer.rollout(PROMPTS), []
        note = lambda tensor: saved.append(tensor.numel()) or tensor  # noqa: E731
        advantages = torch.ones_like(rollout.values) * rollout.response_mask
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            stats = step_with(trainer, rollout, advantages, 2 * advantages)
        assert not trainer.policy.training
        assert abs(stats["approx_kl"]) < 1e-5
        found = {n: p.grad for n, p in trainer.policy.named_parameters() if p.grad is not None}
        return found, sum(saved)

    (plain, memory), (checkpointed, less) = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys() and plain
    for name, gradient in plain.items():
        close(gradient, checkpointed[name], rtol=1e-3, atol=1e-5)
    assert less < 0.7 * memory


@pytest.mark.parametrize("recurrent", [MambaConfig, RwkvConfig, Qwen3NextConfig])
def test_a_policy_that_cannot_share_prompts_is_refused_by_name(recurrent, tokenizer):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    if recurrent is Qwen3NextConfig:
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        sizes |= {"intermediate_size": 32, "num_experts": 2, "num_experts_per_tok": 1}
        sizes |= {"layer_types": ["linear_attention", "full_attention"]}
    config = recurrent(**sizes)
    policy = without_dropout(AutoModelForCausalLM.from_config(config))
    with pytest.raises(ValueError, match=f"^{config.model_type}: .* key-value cache"):
        PPOTrainer(policy, tokenizer, PPOConfig(**SMALL))


def test_a_policy_without_weights_to_train_is_refused(make_model, tokenizer):
    policy = make_model("opt").requires_grad_(False)
    with pytest.raises(ValueError, match="the policy has no weights to train"):
        PPOTrainer(policy, tokenizer, PPOConfig(**SMALL))


# ---- parts of one's own --------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True])
def test_the_kl_is_measured_to_the_reference_that_was_given(
    make_trainer, make_model, tokenizer, lora
):
    policy = make_trainer(lora=lora).policy
    own = without_dropout(make_model("opt", seed=7))
    trainer = PPOTrainer(policy, tokenizer, PPOConfig(**SMALL), reference=own)
    assert trainer.reference is own  # no copy is made
    rollout = trainer.rollout(PROMPTS)
    with torch.no_grad():
        logits, _ = forward_responses(own, rollout)
    expected = token_logprobs(logits, rollout.response_ids) * rollout.response_mask
    close(rollout.ref_logprobs, expected, rtol=0, atol=1e-5)
    before = {name: p.detach().clone() for name, p in own.named_parameters()}
    assert trainer.step(rollout, upper_share(rollout))["kl"] > 1
    assert all(p.equal(before[name]) for name, p in own.named_parameters())


def test_a_reference_that_cannot_be_one_is_refused(make_model, tokenizer):
    policy, config = make_model("opt"), PPOConfig(**SMALL)
    with pytest.raises(ValueError, match="the reference is the policy itself"):
        PPOTrainer(policy, tokenizer, config, reference=policy)
    other = make_model("gpt2")
    other.resize_token_embeddings(50)
    with pytest.raises(ValueError, match="the reference knows 50 tokens, the tokenizer has 98"):
        PPOTrainer(policy, tokenizer, config, reference=other)


def test_the_example_of_an_estimator_of_one_s_own_does_what_it_says(make_trainer):
    """The class in the docstring of `PPOTrainer.advantages`, as it stands there."""
    _, example = PPOTrainer.advantages.__doc__.split("class ")
    namespace = {"PPOTrainer": PPOTrainer, "masked_mean": ppo.masked_mean}
    exec("class " + textwrap.dedent(" " * 12 + example), namespace)
    plain = make_trainer()
    trainer = namespace["BatchMean"](plain.policy, plain.tokenizer, plain.config)
    rollout = trainer.rollout(PROMPTS)
    mask, scores = rollout.response_mask, upper_share(rollout)
    advantages, returns = trainer.advantages(rollout, scores)
    final = scores - 1.0 * ~rollout.ended  # the KL to the reference is 0
    close(returns, final[:, None] * mask, rtol=0, atol=1e-5)
    close(advantages.sum(), torch.tensor(0.0), rtol=0, atol=1e-4)
    assert advantages[~mask].abs().sum() == 0
    before = upper_share(rollout).mean()
    run(trainer, 8)
    assert upper_share(trainer.rollout(PROMPTS)).mean() > before + 0.1
