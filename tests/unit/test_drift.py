"""How far a policy has moved, on models whose numbers are known by hand."""

import math

import pytest
import torch

from rlhf_helpers.evaluation import perplexity
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import read_texts

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
