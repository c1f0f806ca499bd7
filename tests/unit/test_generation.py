"""Sampling keeps what training recomputes, whatever the padding, sharing and model type.

The reference throughout is `plain_forward`: each prompt and response alone, no padding, no cache.
"""

import importlib

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    cache_utils,
)

from rlhf_helpers import generation, prompt_cache
from rlhf_helpers.generation import Samples, encode_prompts, respond, sample, seeded
from rlhf_helpers.logprobs import (
    Tokens,
    forward_responses,
    logprobs_and_entropy,
    response_logprobs,
    token_logprobs,
)

PROMPTS = ["The cat", "sat on the mat.", "x"]


def draw(
    policy, tokenizer, prompts=PROMPTS, *, seed=0, **settings
) -> tuple[Tensor, Tensor, Samples]:
    """Encode the prompts and sample up to 10 tokens after each."""
    encoded = encode_prompts(tokenizer, prompts)
    settings = {"max_new_tokens": 10, "generator": seeded(policy, seed)} | settings
    return *encoded, sample(policy, tokenizer, *encoded, **settings)


def plain_forward(policy, prompt_ids, prompt_mask, samples: Samples) -> list[tuple[Tensor, Tensor]]:
    """Of each response alone: the logits (R, V) and hidden states (R, H) that predict it."""
    repeat, found = len(samples.response_ids) // len(prompt_ids), []
    for row, (ids, mask) in enumerate(
        zip(samples.response_ids, samples.response_mask, strict=True)
    ):
        prompt = prompt_ids[row // repeat][prompt_mask[row // repeat].bool()]
        with torch.no_grad():
            output = policy(torch.cat([prompt, ids[mask]])[None], output_hidden_states=True)
        predicting = slice(len(prompt) - 1, -1)
        found.append((output.logits[0, predicting], output.hidden_states[-1][0, predicting]))
    return found


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


# ---- sampling and training agree -----------------------------------------------------------


@pytest.mark.parametrize("samples_per_prompt", [1, 3])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampling_keeps_the_logprobs_and_hidden_states_of_the_training_pass(
    make_model, tokenizer, kind, temperature, samples_per_prompt
):
    policy = make_model(kind, eos_bias=3.0)
    prompt_ids, prompt_mask, samples = draw(
        policy,
        tokenizer,
        temperature=temperature,
        samples_per_prompt=samples_per_prompt,
        keep_hidden=True,
    )
    ids, mask = samples.response_ids, samples.response_mask
    logits, hidden = forward_responses(policy, Tokens(prompt_ids, prompt_mask, ids, mask))
    close(samples.logprobs, token_logprobs(logits, ids, temperature) * mask)
    close(samples.hidden, hidden * mask[..., None])
    assert mask.sum() < mask.numel()  # else the masks have not been tested


def test_long_responses_and_rows_that_leave_keep_their_logprobs(make_model, tokenizer, kind):
    policy = make_model(kind, eos_bias=-1e9)
    lengths = torch.tensor([100, 3, 70])
    ids, mask, samples = draw(policy, tokenizer, max_new_tokens=100, lengths=lengths)
    assert samples.response_mask.sum(1).tolist() == lengths.tolist()
    again = response_logprobs(
        policy, Tokens(ids, mask, samples.response_ids, samples.response_mask)
    )
    close(samples.logprobs, again)


def test_forward_responses_equals_a_forward_of_each_sequence_alone(make_model, tokenizer, kind):
    policy = make_model(kind)
    prompt_ids, prompt_mask, samples = draw(policy, tokenizer, samples_per_prompt=3)
    ids, mask = samples.response_ids, samples.response_mask
    logits, hidden = forward_responses(policy, Tokens(prompt_ids, prompt_mask, ids, mask))
    for row, (its_logits, its_hidden) in enumerate(
        plain_forward(policy, prompt_ids, prompt_mask, samples)
    ):
        close(logits[row][mask[row]], its_logits)
        close(hidden[row][mask[row]], its_hidden)


def test_responses_of_one_token_need_no_second_pass(make_model, tokenizer, kind):
    policy = make_model(kind)
    prompt_ids, prompt_mask, samples = draw(
        policy, tokenizer, max_new_tokens=1, samples_per_prompt=2, keep_hidden=True
    )
    assert samples.response_mask.tolist() == [[True]] * 6
    logits, hidden = forward_responses(
        policy, Tokens(prompt_ids, prompt_mask, samples.response_ids, samples.response_mask)
    )
    close(token_logprobs(logits, samples.response_ids), samples.logprobs)
    close(hidden, samples.hidden)


def test_sampling_is_without_dropout_also_in_training_mode(make_model, tokenizer):
    policy = make_model("opt").train()
    prompt_ids, prompt_mask, samples = draw(policy, tokenizer)
    expected = plain_forward(policy.eval(), prompt_ids, prompt_mask, samples)
    for row, (logits, _) in enumerate(expected):
        mask = samples.response_mask[row]
        logprobs = token_logprobs(logits, samples.response_ids[row][mask])
        close(samples.logprobs[row][mask], logprobs)


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_logprobs_do_not_depend_on_the_chunks_they_are_computed_in(make_model, tokenizer, rows):
    policy = make_model("opt")
    prompt_ids, prompt_mask, samples = draw(
        policy, tokenizer, samples_per_prompt=2, temperature=0.7
    )
    tokens = Tokens(prompt_ids, prompt_mask, samples.response_ids, samples.response_mask)
    logprobs = response_logprobs(policy, tokens, temperature=0.7, rows=rows)
    close(logprobs, samples.logprobs)


# ---- a prompt shared by its samples --------------------------------------------------------


def test_shared_prompts_give_the_logits_and_gradients_of_repeated_ones(make_model, tokenizer, kind):
    policy = make_model(kind)
    prompt_ids, prompt_mask, samples = draw(policy, tokenizer, samples_per_prompt=3)
    ids, mask = samples.response_ids, samples.response_mask

    def logits_and_gradients(prompt_ids, prompt_mask):
        policy.zero_grad()
        logits, hidden = forward_responses(policy, Tokens(prompt_ids, prompt_mask, ids, mask))
        loss = (token_logprobs(logits, ids) * mask).mean() + hidden[mask].square().mean()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in policy.named_parameters()}
        return logits.detach()[mask], gradients

    logits, gradients = logits_and_gradients(prompt_ids, prompt_mask)
    repeated_logits, repeated_gradients = logits_and_gradients(
        prompt_ids.repeat_interleave(3, 0), prompt_mask.repeat_interleave(3, 0)
    )
    close(logits, repeated_logits)
    for name, gradient in gradients.items():
        close(gradient, repeated_gradients[name])
    assert max(gradient.abs().max() for gradient in gradients.values()) > 0.1


# ---- what is sampled -----------------------------------------------------------------------


def test_tokens_are_drawn_from_the_distribution_at_the_temperature(make_model, tokenizer):
    policy, draws = make_model("opt").eval(), 10_000
    prompt_ids, _, samples = draw(
        policy, tokenizer, ["The cat"], max_new_tokens=1, samples_per_prompt=draws, temperature=0.7
    )
    with torch.no_grad():
        expected = torch.softmax(policy(prompt_ids).logits[0, -1] / 0.7, -1)
    seen = torch.bincount(samples.response_ids[:, 0], minlength=len(expected)) / draws
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((seen - expected).abs() < 5 * deviation + 1 / draws).all()


def test_greedy_sampling_equals_generate_of_transformers(make_model, tokenizer, kind):
    policy, lengths = make_model(kind), set()
    for prompt in ["The cat", "sat on the mat.", "x", "tree", "Why not?"]:
        prompt_ids, _, samples = draw(policy, tokenizer, [prompt], temperature=0)
        expected = policy.generate(prompt_ids, do_sample=False, max_new_tokens=10)
        assert samples.response_ids.tolist() == expected[:, prompt_ids.shape[1] :].tolist()
        lengths.add(samples.response_ids.shape[1])
    assert len(lengths) > 1  # some of them end


def test_min_new_tokens_means_what_it_means_to_transformers(make_model, tokenizer, kind):
    policy, lengths = make_model(kind, eos_bias=6.0), set()
    for prompt in ["The cat", "sat on the mat.", "x", "tree", "Why not?"]:
        prompt_ids, _, samples = draw(policy, tokenizer, [prompt], temperature=0, min_new_tokens=4)
        expected = policy.generate(prompt_ids, do_sample=False, max_new_tokens=10, min_new_tokens=4)
        assert samples.response_ids.tolist() == expected[:, prompt_ids.shape[1] :].tolist()
        lengths.add(samples.response_ids.shape[1])
    assert min(lengths) == 5


def test_greedy_logprobs_are_those_of_temperature_one(make_model, tokenizer):
    policy = make_model("opt")
    prompt_ids, prompt_mask, samples = draw(policy, tokenizer, temperature=0)
    ids, mask = samples.response_ids, samples.response_mask
    logits, _ = forward_responses(policy, Tokens(prompt_ids, prompt_mask, ids, mask))
    close(samples.logprobs, token_logprobs(logits, ids) * mask)


def test_the_seed_alone_decides_the_samples(make_model, tokenizer):
    policy = make_model("opt")
    first, again, other = (
        draw(policy, tokenizer, seed=seed, samples_per_prompt=4)[2] for seed in (1, 1, 2)
    )
    assert first.response_ids.equal(again.response_ids)
    assert first.logprobs.equal(again.logprobs)
    assert first.response_ids.tolist() != other.response_ids.tolist()


def test_sampling_with_a_generator_leaves_the_global_random_state_alone(make_model, tokenizer):
    policy, before = make_model("opt"), torch.get_rng_state()
    draw(policy, tokenizer)
    assert torch.get_rng_state().equal(before)


# ---- ends ----------------------------------------------------------------------------------


def test_a_response_ends_with_its_only_eos_or_is_cut_off(make_model, tokenizer, kind):
    _, _, samples = draw(make_model(kind), tokenizer, samples_per_prompt=8)
    lengths = samples.response_mask.sum(1)
    for row, length in enumerate(lengths.tolist()):
        ids = samples.response_ids[row].tolist()
        assert samples.response_mask[row].tolist() == [t < length for t in range(len(ids))]
        if samples.ended[row]:
            assert ids.index(tokenizer.eos_token_id) == length - 1
        else:
            assert tokenizer.eos_token_id not in ids
            assert length == 10
        assert set(ids[length:]) <= {tokenizer.pad_token_id}
        assert (samples.logprobs[row, :length] < 0).all()
        assert (samples.logprobs[row, length:] == 0).all()
    assert 0 < samples.ended.sum() < len(lengths)


def test_any_eos_of_the_generation_config_ends_a_response(make_model, tokenizer, kind):
    policy, full_stop = make_model(kind, eos_bias=-1e9), tokenizer("z")["input_ids"][0]
    policy.lm_head.bias.data[full_stop] = 4.0
    _, _, without = draw(policy, tokenizer, samples_per_prompt=8)
    assert not without.ended.any()
    policy.generation_config.eos_token_id = [tokenizer.eos_token_id, full_stop]
    _, _, samples = draw(policy, tokenizer, samples_per_prompt=8)
    last = samples.response_mask.sum(1) - 1
    assert 0 < samples.ended.sum() < len(last)
    assert (samples.response_ids.gather(1, last[:, None])[:, 0] == full_stop).equal(samples.ended)
    earlier = torch.arange(samples.response_ids.shape[1]) < last[:, None]
    assert not (samples.response_ids[earlier] == full_stop).any()
    assert not any("z" in text for text in generation.decode(tokenizer, samples))
    for row, prompt in enumerate(PROMPTS):  # transformers stops at the same token
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        theirs = policy.generate(ids, do_sample=False, max_new_tokens=10)[:, ids.shape[1] :]
        ours = draw(policy, tokenizer, [prompt], temperature=0)[2].response_ids
        assert ours.tolist() == theirs.tolist(), row


def test_a_tokenizer_without_eos_is_refused_with_the_remedy(make_model, make_trainer, tokenizer):
    trainer = make_trainer()
    tokenizer.pad_token = "<pad>"
    tokenizer.eos_token = None
    message = r"the tokenizer has no EOS token.* set tokenizer.eos_token.* ends at \['</s>'\]"
    with pytest.raises(ValueError, match=message):
        draw(make_model("opt"), tokenizer)
    with pytest.raises(ValueError, match=message):
        type(trainer)(trainer.policy, tokenizer, trainer.config)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_ids_that_are_no_token_are_never_sampled(make_model, tokenizer, kind, temperature):
    """The log-probs stay those of the training pass, which knows all rows of the embeddings."""
    policy = make_model(kind, vocab_size=len(tokenizer) + 30)
    policy.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer) + 30))
    policy.lm_head.bias.data[len(tokenizer) :] = 3.0  # likelier than any token
    prompt_ids, prompt_mask, samples = draw(
        policy, tokenizer, samples_per_prompt=8, temperature=temperature
    )
    assert samples.response_ids.max() < len(tokenizer)
    tokens = Tokens(prompt_ids, prompt_mask, samples.response_ids, samples.response_mask)
    close(samples.logprobs, response_logprobs(policy, tokens))


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(make_model, tokenizer, kind, value, temperature):
    policy = make_model(kind)
    policy.lm_head.bias.data[20] = value
    with pytest.raises(FloatingPointError, match="the policy's logits are NaN or infinite"):
        draw(policy, tokenizer, temperature=temperature)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_words_masked_by_logits_of_minus_infinity_are_no_error(make_model, tokenizer, temperature):
    policy = make_model("opt")
    policy.lm_head.bias.data[30:] = -torch.inf
    _, _, samples = draw(policy, tokenizer, samples_per_prompt=8, temperature=temperature)
    assert samples.response_ids.max() < 30
    assert samples.logprobs.isfinite().all()


def test_the_tensors_are_as_wide_as_the_longest_response(make_model, tokenizer):
    policy = make_model("opt", eos_bias=6.0)
    _, _, samples = draw(policy, tokenizer, max_new_tokens=50, keep_hidden=True)
    longest = int(samples.response_mask.sum(1).max())
    assert longest < 50
    assert samples.response_ids.shape == samples.logprobs.shape == (3, longest)
    assert samples.hidden.shape == (3, longest, 32)


def test_rows_that_have_ended_leave_the_batch(make_model, tokenizer):
    policy, batches = make_model("opt"), []
    policy.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    prompt_ids, _, samples = draw(policy, tokenizer, samples_per_prompt=8)
    lengths = samples.response_mask.sum(1)
    prompts, width = prompt_ids.shape
    still_going = [((lengths > step).sum().item(), 1) for step in range(int(lengths.max()))]
    assert batches == [(prompts, width - 1), *still_going]
    assert batches[-1][0] < batches[2][0] < batches[1][0] == len(lengths)


@pytest.mark.parametrize("samples_per_prompt", [1, 3])
def test_the_last_layer_makes_nothing_of_the_prompts(
    make_model, tokenizer, kind, samples_per_prompt
):
    policy, last, read = make_model(kind), [], []
    prompt_ids, prompt_mask, samples = draw(
        policy, tokenizer, samples_per_prompt=samples_per_prompt
    )
    layers = next(m for m in policy.modules() if isinstance(m, torch.nn.ModuleList))
    mark = lambda seen: lambda module, args, output: seen.append(args[0].shape[:-1].numel())  # noqa: E731
    layers[-1].register_forward_hook(mark(last))
    layers[0].register_forward_hook(mark(read))
    responses = samples.response_ids, samples.response_mask
    forward_responses(policy, Tokens(prompt_ids, prompt_mask, *responses))
    assert last == [samples.response_ids.numel()]
    assert read == [len(prompt_ids) * (-(-(prompt_ids.shape[1] - 1) // 8) * 8), *last]


def test_layers_with_a_sliding_window_keep_their_own_cache(tokenizer):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=6,
    )
    policy = MistralForCausalLM(config).eval()
    prompt_ids, prompt_mask, samples = draw(policy, tokenizer, samples_per_prompt=2)
    assert prompt_ids.shape[1] > 2 * config.sliding_window
    ids, mask = samples.response_ids, samples.response_mask
    logits, _ = forward_responses(policy, Tokens(prompt_ids, prompt_mask, ids, mask))
    close(token_logprobs(logits, ids) * mask, samples.logprobs)
    for row, (expected, _) in enumerate(plain_forward(policy, prompt_ids, prompt_mask, samples)):
        close(logits[row][mask[row]], expected)


def test_without_the_layer_class_of_transformers_sampling_is_slower_but_the_same(
    make_model, tokenizer, kind, monkeypatch, caplog
):
    policy = make_model(kind)
    _, _, expected = draw(policy, tokenizer, samples_per_prompt=3)
    with monkeypatch.context() as patch:
        patch.delattr(cache_utils, "DynamicLayer")
        poorer = importlib.reload(prompt_cache)
    try:
        assert [record.message for record in caplog.records] == [
            "this transformers has no DynamicLayer: sampling copies its cache at each token"
        ]
        monkeypatch.setattr(generation, "prompt_cache", poorer.prompt_cache)
        _, _, samples = draw(policy, tokenizer, samples_per_prompt=3)
    finally:
        importlib.reload(prompt_cache)
    assert samples.response_ids.equal(expected.response_ids)
    close(samples.logprobs, expected.logprobs)


def test_the_pad_token_may_equal_eos(make_model, tokenizer):
    policy = make_model("opt")
    _, _, expected = draw(policy, tokenizer, samples_per_prompt=4)
    tokenizer.pad_token = tokenizer.eos_token
    prompt_ids, prompt_mask, samples = draw(policy, tokenizer, samples_per_prompt=4)
    ids, mask = samples.response_ids, samples.response_mask
    assert mask.equal(expected.response_mask)
    assert samples.ended.equal(expected.ended)
    assert ids[mask].equal(expected.response_ids[mask])
    assert (ids[~mask] == tokenizer.eos_token_id).all()
    assert (ids[mask] == tokenizer.eos_token_id).sum() == samples.ended.sum() > 0
    logits, _ = forward_responses(policy, Tokens(prompt_ids, prompt_mask, ids, mask))
    close(token_logprobs(logits, ids) * mask, expected.logprobs)


def test_decode_gives_the_response_as_it_stands_after_the_prompt_and_nothing_behind_it(tokenizer):
    end, other = tokenizer.eos_token_id, tokenizer("z").input_ids[0]
    ids = [[*tokenizer(" a b").input_ids, end], [*tokenizer("c").input_ids, end, *[other] * 3]]
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    samples = Samples(torch.tensor(ids), mask, torch.zeros(2, 5), None, torch.tensor([True, True]))
    assert generation.decode(tokenizer, samples) == [" a b", "c"]


def test_decode_keeps_the_blank_that_a_sentencepiece_decoder_drops(tokenizer):
    """The decoder of Llama 2 strips one blank in front; behind a prompt it is part of the text."""
    pieces = {"<unk>": 0, "</s>": 1, "a": 2, "\u2581a": 3, "\u2581cat": 4, "\u2581": 5, "s": 6}
    letters = Tokenizer(WordLevel(pieces, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Metaspace()
    letters.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    llama = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="</s>", unk_token="<unk>")
    assert llama.decode([4, 6]) == "cats"
    ids = torch.tensor([[4, 6, 1], [6, 4, 4]])
    ended = torch.tensor([True, False])
    samples = Samples(ids, torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3), None, ended)
    assert generation.decode(llama, samples) == [" cats", "s cat cat"]


# ---- padding and order do not matter -------------------------------------------------------


def test_extra_left_padding_changes_nothing(make_model, tokenizer, kind):
    policy = make_model(kind)
    prompt_ids, prompt_mask, samples = draw(policy, tokenizer, samples_per_prompt=2)
    ids, mask = samples.response_ids, samples.response_mask
    padded_ids = torch.nn.functional.pad(prompt_ids, (7, 0), value=tokenizer.pad_token_id)
    padded_mask = torch.nn.functional.pad(prompt_mask, (7, 0))
    logits, _ = forward_responses(policy, Tokens(prompt_ids, prompt_mask, ids, mask))
    padded_logits, _ = forward_responses(policy, Tokens(padded_ids, padded_mask, ids, mask))
    close(padded_logits[mask], logits[mask])
    again = sample(
        policy,
        tokenizer,
        padded_ids,
        padded_mask,
        max_new_tokens=10,
        samples_per_prompt=2,
        generator=seeded(policy, 0),
    )
    assert again.response_ids.equal(ids)
    close(again.logprobs, samples.logprobs)


def test_what_lies_behind_the_end_of_a_response_changes_nothing(make_model, tokenizer, kind):
    policy = make_model(kind)
    prompt_ids, prompt_mask, samples = draw(policy, tokenizer, samples_per_prompt=2)
    ids, mask = samples.response_ids, samples.response_mask
    logits, _ = forward_responses(policy, Tokens(prompt_ids, prompt_mask, ids, mask))
    garbage, true = ids.masked_fill(~mask, 50), torch.ones(len(mask), 4, dtype=torch.bool)
    wider = torch.cat([garbage, torch.full((len(ids), 4), 60)], 1)
    wider_mask = torch.cat([mask, ~true], 1)
    wider_logits, _ = forward_responses(policy, Tokens(prompt_ids, prompt_mask, wider, wider_mask))
    close(wider_logits[wider_mask], logits[mask])


def test_prompts_are_padded_left_whatever_the_tokenizer_prefers(tokenizer):
    ids, mask = encode_prompts(tokenizer, PROMPTS)
    tokenizer.padding_side = "right"
    other_ids, other_mask = encode_prompts(tokenizer, PROMPTS)
    assert ids.equal(other_ids)
    assert mask.equal(other_mask)
    assert mask.sum(1).tolist() == [len(prompt) for prompt in PROMPTS]
    assert mask[:, -1].tolist() == [1, 1, 1]


def test_the_order_of_the_batch_changes_nothing(make_model, tokenizer, kind):
    policy = make_model(kind)
    prompt_ids, prompt_mask, samples = draw(policy, tokenizer)
    ids, mask, order = samples.response_ids, samples.response_mask, torch.tensor([2, 0, 1])
    logits, _ = forward_responses(policy, Tokens(prompt_ids, prompt_mask, ids, mask))
    shuffled, _ = forward_responses(
        policy, Tokens(prompt_ids[order], prompt_mask[order], ids[order], mask[order])
    )
    close(shuffled[mask[order]], logits[order][mask[order]])


def test_gradients_of_logprobs_are_those_of_autograd():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 11, generator=generator) * 4
    ids = torch.randint(11, (3, 5), generator=generator)
    weights = torch.randn(3, 5, generator=generator)
    own, expected = logits.clone().requires_grad_(), logits.clone().requires_grad_()

    logprobs, entropy = logprobs_and_entropy(own / 0.7, ids)
    (weights * logprobs).sum().backward()
    reference = token_logprobs(expected, ids, 0.7)
    (weights * reference).sum().backward()

    close(logprobs, reference)
    close(own.grad, expected.grad)
    distribution = torch.distributions.Categorical(logits=logits / 0.7)
    close(entropy, distribution.entropy())
    assert not entropy.requires_grad


# ---- respond -------------------------------------------------------------------------------


def test_respond_gives_the_same_greedy_answers_in_batches_of_any_size(make_model, tokenizer):
    policy = make_model("opt")
    whole, single = (
        respond(policy, tokenizer, PROMPTS, max_new_tokens=10, temperature=0, batch_size=size)
        for size in (128, 1)
    )
    assert whole == single
    assert len(whole.texts) == len(whole.ended) == len(whole.lengths) == len(PROMPTS)
    assert whole.log_ratios == []


def test_several_responses_to_a_prompt_stand_side_by_side(make_model, tokenizer):
    policy = make_model("opt")
    several = {"samples_per_prompt": 2, "batch_size": 4, "reference": policy}
    found = respond(policy, tokenizer, PROMPTS, max_new_tokens=10, **several)
    _, _, samples = draw(policy, tokenizer, PROMPTS[:2], samples_per_prompt=2)
    assert found.texts[:4] == generation.decode(tokenizer, samples)
    assert len(found.texts) == len(found.log_ratios) == 2 * len(PROMPTS)


def test_log_ratios_are_the_summed_differences_to_the_reference(make_model, tokenizer):
    policy, reference = make_model("opt"), make_model("opt", seed=1).eval()
    found = respond(policy, tokenizer, PROMPTS, max_new_tokens=10, reference=reference)
    prompt_ids, prompt_mask, samples = draw(policy, tokenizer)
    assert found.texts == generation.decode(tokenizer, samples)
    assert found.lengths == samples.response_mask.sum(1).tolist()
    assert found.ended == samples.ended.tolist()
    for row, (logits, _) in enumerate(plain_forward(reference, prompt_ids, prompt_mask, samples)):
        mask = samples.response_mask[row]
        expected = token_logprobs(logits, samples.response_ids[row][mask])
        expected = (samples.logprobs[row][mask] - expected).sum()
        assert found.log_ratios[row] == pytest.approx(expected.item(), abs=1e-4)


def test_log_ratios_to_the_policy_itself_are_zero(make_model, tokenizer, kind):
    policy = make_model(kind)
    found = respond(policy, tokenizer, PROMPTS, max_new_tokens=10, reference=policy)
    assert found.log_ratios == pytest.approx([0.0] * len(PROMPTS), abs=1e-4)


def test_responses_are_sampled_at_once_as_their_keys_and_values_fit():
    """Qwen2.5-0.5B with its 32,768 positions: 24 layers, 2 of 14 heads of 64 numbers are kept."""
    config = Qwen2Config(
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
    )
    each = 2 * 4 * 24 * 2 * 64 * 160  # keys and values in float32 of 160 tokens
    assert prompt_cache.cache_bytes(config, 160) == each
    assert prompt_cache.fitting(config, 160) == 2**33 // each > 2000
    assert prompt_cache.fitting(config, 10**9) == 1
    config.head_dim = 128
    assert prompt_cache.cache_bytes(config, 160) == 2 * each


def test_a_model_of_many_positions_responds_to_all_prompts_at_once(
    make_model, tokenizer, monkeypatch
):
    policy, sizes = make_model("llama"), []
    policy.config.max_position_embeddings = 2**31
    policy.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    respond(policy, tokenizer, PROMPTS, max_new_tokens=4)
    assert sizes[0] == len(PROMPTS)
