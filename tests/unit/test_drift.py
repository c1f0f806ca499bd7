"""How far a policy has moved, on models whose numbers are known by hand."""

import math

import pytest
import torch

from rlhf_helpers.evaluation import kl_from_reference, perplexity
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import read_texts

# KL


def response_kl(policy, reference, tokenizer, prompt: str) -> float:
    """KL of responses of at most two tokens, summed over every one of them."""
    size = len(tokenizer)
    first = torch.arange(size)[:, None]
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].expand(size, -1)
    ids = torch.cat([ids, first], 1)
    log_pi, log_ref = (
        model.eval()(input_ids=ids).logits.double().log_softmax(-1) for model in (policy, reference)
    )
    total = 0.0
    for token in range(size):
        p, q = log_pi[0, -2, token], log_ref[0, -2, token]
        if token == tokenizer.eos_token_id:
            total += (p.exp() * (p - q)).item()
        else:
            p, q = p + log_pi[token, -1], q + log_ref[token, -1]
            total += (p.exp() * (p - q)).sum().item()
    return total


def test_both_kls_have_the_kl_of_a_response_for_their_mean(make_model, tokenizer, kind):
    policy, reference = make_model(kind, eos_bias=3.0), make_model(kind, seed=1, eos_bias=3.0)
    truth = response_kl(policy, reference, tokenizer, "a b")
    found, table = kl_from_reference(
        policy, reference, tokenizer, ["a b"] * 1500, max_new_tokens=2, batch_size=500
    )
    assert set(table["tokens"]) == {1, 2}
    assert (table["exact"] > 0).all() and (table["estimated"] < 0).any()
    for name in ("exact", "estimated"):
        assert found[f"kl_{name}"] == table[name].mean()
        assert found[f"kl_{name}"] == pytest.approx(truth, abs=4 * found[f"kl_{name}_se"])
    assert found["kl_exact_se"] < found["kl_estimated_se"] / 2
    assert found["kl_token"] == pytest.approx(table["exact"].sum() / table["tokens"].sum())


def test_the_kl_of_one_token_is_exact_without_any_luck(make_model, tokenizer):
    policy, reference = make_model("gpt2"), make_model("gpt2", seed=1)
    prompts = ["a b", "a much longer prompt"]  # padding must not matter
    _, table = kl_from_reference(policy, reference, tokenizer, prompts, max_new_tokens=1)
    for prompt, found in zip(prompts, table["exact"], strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        p, q = (
            model.eval()(input_ids=ids).logits[0, -1].softmax(-1) for model in (policy, reference)
        )
        assert found == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-4)


def test_the_kl_of_a_policy_from_itself_is_zero(make_model, tokenizer, kind):
    policy = make_model(kind).train()  # dropout, which must not matter
    found, table = kl_from_reference(policy, policy, tokenizer, ["a", "bcd"], max_new_tokens=6)
    assert found["kl_exact"] == found["kl_estimated"] == 0
    assert table["tokens"].between(1, 6).all()


# Perplexity

DOCUMENTS = ["Hello.", "A longer text, of several words.", "x"]


def test_perplexity_is_the_exponential_of_the_mean_loss_of_all_tokens(make_model, tokenizer, kind):
    """Against transformers' own loss, one document at a time, so without padding."""
    policy = make_model(kind).eval()
    losses, tokens = [], []
    for text in DOCUMENTS:
        ids = tokenizer(text + "</s>", return_tensors="pt")["input_ids"]
        tokens.append(ids.shape[1] - 1)
        losses.append(policy(input_ids=ids, labels=ids).loss.item() * tokens[-1])
    expected = math.exp(sum(losses) / sum(tokens))
    for batch_size in (1, 2, 3):
        found = perplexity(policy, tokenizer, DOCUMENTS, batch_size)
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_policy_that_knows_nothing_chooses_among_its_whole_vocabulary(make_model, tokenizer):
    policy = make_model("gpt2", eos_bias=0.0)
    torch.nn.init.zeros_(policy.lm_head.weight)
    assert perplexity(policy, tokenizer, DOCUMENTS) == pytest.approx(len(tokenizer))


def test_perplexity_does_not_depend_on_dropout(make_model, tokenizer):
    policy = make_model("opt").train()
    found = [perplexity(policy, tokenizer, DOCUMENTS) for _ in range(2)]
    assert found[0] == found[1]


def test_the_base_model_knows_the_documents_of_its_pretraining():
    policy, tokenizer = load_policy(Scale().base_model), load_tokenizer(Scale().base_model)
    texts = [record["text"] for record in read_texts(Scale().data("pretraining", "test"))[:16]]
    known = perplexity(policy, tokenizer, texts)
    assert 1 < known < 1.8  # its model card: 0.43 nats a token on 500 documents
    backwards = [" ".join(reversed(text.split())) for text in texts]
    assert perplexity(policy, tokenizer, backwards) > 20 * known


def test_perplexity_of_no_text_is_an_error(make_model, tokenizer):
    with pytest.raises(ValueError, match="pass at least one"):
        perplexity(make_model("opt"), tokenizer, [])
