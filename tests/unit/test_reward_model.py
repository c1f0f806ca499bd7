"""The reward model: its loss, its tokenizer, its scores, and what it is trained on."""

import itertools
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from rlhf_helpers import reward_model
from rlhf_helpers.configs import RewardConfig
from rlhf_helpers.little_world.grammar import as_input_text, draw_posts
from rlhf_helpers.little_world.writers import write_summary
from rlhf_helpers.models import load_tokenizer
from rlhf_helpers.reward_model import RewardModel, append_eos, encode_pairs, pairwise_loss
from rlhf_helpers.reward_model.model import beginning_alike
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import DataError, format_prompt, format_response, write_jsonl

BASE = Scale().base_model
PAIR = {"input_text": "a post [summary]: ", "candidate_0": "one", "candidate_1": "two", "choice": 1}


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        format_prompt(as_input_text(post)) + format_response(write_summary(facts, post, rng))
        for facts, post in itertools.islice(draw_posts(rng), count)
    ]


MIXED = ["a", *texts(5), "Why? " * 600 + "The end.", "漢字 \u2028 \U0001f600"]


def base_tokenizer(max_length: int = 512):
    return append_eos(load_tokenizer(BASE), max_length)


@pytest.fixture(scope="module")
def scorer() -> RewardModel:
    """The base model with a random head, large enough for scores to differ."""
    model = AutoModelForSequenceClassification.from_pretrained(
        BASE, num_labels=1, dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.score.weight.normal_(std=0.1, generator=generator)
    return RewardModel(model, base_tokenizer())


# The loss


def test_the_pairwise_loss_by_hand():
    chosen, rejected = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([0.0, 0.0, 1.0])
    expected = (math.log1p(math.exp(-1)) + math.log(2) + math.log1p(math.exp(3))) / 3
    assert pairwise_loss(chosen, rejected).item() == pytest.approx(expected)
    assert pairwise_loss(chosen + 7, rejected + 7).item() == pytest.approx(expected)


def test_the_pairwise_loss_of_extreme_scores_is_finite():
    far = torch.tensor([1e4])
    assert pairwise_loss(far, -far).item() == 0
    assert pairwise_loss(-far, far).item() == 2e4


def test_the_gradient_of_the_pairwise_loss():
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (
        torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True) for _ in "cr"
    )
    assert torch.autograd.gradcheck(pairwise_loss, (chosen, rejected))
    pairwise_loss(chosen, rejected).backward()
    wrong = torch.sigmoid(rejected - chosen).detach() / 6  # how far the model is from the choice
    torch.testing.assert_close(chosen.grad, -wrong)
    torch.testing.assert_close(rejected.grad, wrong)


# The tokenizer


def test_every_text_ends_with_eos_once_however_often_it_is_asked_for():
    plain, tokenizer = load_tokenizer(BASE), base_tokenizer()
    for _ in range(3):
        for text in MIXED[:-2]:
            expected = plain(text)["input_ids"] + [plain.eos_token_id]
            assert tokenizer(text)["input_ids"] == expected
        append_eos(tokenizer, 512)


def test_the_tokenizer_keeps_its_habits_when_saved(tmp_path):
    tokenizer = base_tokenizer(40)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.model_max_length == 40
    for text in MIXED:
        assert again(text, truncation=True) == tokenizer(text, truncation=True)


def test_a_long_text_loses_its_beginning_and_keeps_bos_and_eos():
    tokenizer, text = base_tokenizer(12), texts(1)[0]
    ids = tokenizer(text, truncation=True)["input_ids"]
    assert len(ids) == 12
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    whole = load_tokenizer(BASE)(text)["input_ids"]
    assert ids[1:-1] == whole[-10:]


def test_an_encoder_s_tokenizer_is_left_with_its_own_end():
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5}
    letters = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    letters.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    append_eos(tokenizer, 4)
    assert tokenizer("a b")["input_ids"] == [2, 4, 5, 3]
    assert tokenizer("a a b", truncation=True)["input_ids"] == [2, 4, 5, 3]


def test_a_tokenizer_without_bos_gets_none(tokenizer):
    plain = tokenizer("ab")["input_ids"]
    assert append_eos(tokenizer, 8)("ab")["input_ids"] == [*plain, tokenizer.eos_token_id]


# The scores


@torch.no_grad()
def test_a_raw_score_is_the_head_applied_to_the_state_at_eos(scorer):
    ids = scorer.tokenizer(MIXED[1], return_tensors="pt")
    state = scorer.model.model(**ids).last_hidden_state[0, -1]
    expected = (scorer.model.score.weight[0] @ state).item()
    assert scorer.raw_scores([MIXED[1]]).item() == pytest.approx(expected, abs=1e-5)


def test_scores_depend_neither_on_the_batch_nor_on_the_order(scorer):
    scores = scorer.raw_scores(MIXED)
    assert scores.shape == (len(MIXED),) and scores.std() > 0.1
    order = torch.randperm(len(MIXED), generator=torch.Generator().manual_seed(0))
    for batch_size in (1, 3, 64):
        shuffled = scorer.raw_scores([MIXED[i] for i in order], batch_size)
        torch.testing.assert_close(shuffled, scores[order], atol=1e-5, rtol=0)


def test_answers_to_one_prompt_are_scored_as_when_each_is_read_whole(scorer, monkeypatch):
    prompts = [f"A post about {who} and a long story around it [summary]:" for who in ("me", "us")]
    texts = [prompt + answer for prompt in prompts for answer in (" Why?", " My boss.", " My")]
    widths: list[int] = []
    whole = reward_model.RewardModel(scorer.model, scorer.tokenizer)
    whole.shares_prompts = False
    together = reward_model.RewardModel(scorer.model, scorer.tokenizer)
    together.raw_scores(texts)  # finds out that the model can
    forward = scorer.model.forward
    monkeypatch.setattr(
        scorer.model,
        "forward",
        lambda input_ids, **k: widths.append(input_ids.numel()) or forward(input_ids, **k),
    )
    expected = whole.raw_scores(texts)
    read_whole = sum(widths)
    widths.clear()
    torch.testing.assert_close(together.raw_scores(texts), expected, atol=1e-5, rtol=0)
    assert sum(widths) < 0.6 * read_whole


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=8))
def test_every_text_is_in_one_group_that_begins_like_it(encoded):
    groups = beginning_alike(encoded)
    assert sorted(i for group in groups for i in group) == list(range(len(encoded)))
    for first, *others in groups:
        for i in others:
            half = len(encoded[i]) // 2 + 1
            assert encoded[first][:half] == encoded[i][:half]


def test_a_fresh_model_gives_raw_scores(scorer):
    model = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1)
    fresh = RewardModel(model.float(), scorer.tokenizer)
    assert fresh(MIXED) == fresh.raw_scores(MIXED).tolist()


def test_standardised_scores_have_mean_0_and_deviation_1_also_when_loaded(scorer, tmp_path):
    samples = texts(40, seed=1)
    scorer.standardise(samples)
    scores = torch.tensor(scorer(samples))
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std().item() == pytest.approx(1, abs=1e-5)

    scorer.model.save_pretrained(tmp_path)
    scorer.tokenizer.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    raw, closely = scorer.raw_scores(MIXED), {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(torch.tensor(loaded(samples)), scores, **closely)
    torch.testing.assert_close(loaded.raw_scores(MIXED), raw, **closely)

    plain = pipeline(
        "text-classification", model=str(tmp_path), function_to_apply="none", device="cpu"
    )
    found = torch.tensor([result["score"] for result in plain(MIXED, truncation=True)])
    torch.testing.assert_close(found, raw, **closely)
    assert plain(MIXED[1])[0]["score"] == pytest.approx(found[1].item(), abs=1e-5)


def test_samples_that_are_all_alike_do_not_divide_by_0(scorer):
    scorer.standardise(["the same"] * 3)
    assert all(map(math.isfinite, scorer(["the same", "another"])))
    scorer.standardise(texts(10))


# What it is trained on


def test_pairs_are_encoded_by_choice_with_the_formatted_prompt():
    tokenizer = base_tokenizer()
    prompt = "Be brief. a post [summary]:"
    one, two = (tokenizer(f"{prompt} {text}")["input_ids"] for text in ("one", "two and more"))
    for choice, (chosen, rejected) in ((0, (one, two)), (1, (two, one))):
        record = {**PAIR, "candidate_0": " one\n", "candidate_1": "two and more", "choice": choice}
        (row,) = encode_pairs([record], tokenizer, "Be brief.")
        assert row == {"chosen_ids": chosen, "rejected_ids": rejected, "length": len(two)}


def test_pairs_that_cutting_makes_equal_are_dropped_and_the_others_kept():
    ending = " and so on" * 20
    equal = {**PAIR, "candidate_0": "one" + ending, "candidate_1": "two" + ending}
    rows = encode_pairs([PAIR, equal, PAIR], base_tokenizer(16))
    assert len(rows) == 2
    assert all(row["chosen_ids"] != row["rejected_ids"] for row in rows)
    assert len(encode_pairs([PAIR, equal, PAIR], base_tokenizer(512))) == 3


def config(folder: Path, pairs: list[dict], **changes) -> RewardConfig:
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "prompts.jsonl", [{"input_text": text} for text in texts(4)])
    settings = {
        "model": BASE,
        "sft_model": BASE,
        "data": folder / "pairs.jsonl",
        "max_new_tokens": 4,
        "prompts": folder / "prompts.jsonl",
        "output_dir": folder / "out",
        "batch_size": 2,
    }
    return RewardConfig(**settings | changes)


def test_training_refuses_data_of_which_cutting_leaves_nothing(tmp_path, monkeypatch):
    ending = " and so on" * 20
    pairs = [{**PAIR, "candidate_0": "one" + ending, "candidate_1": "two" + ending}]
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", None)
    with pytest.raises(DataError, match=r"equal after cutting to 16 tokens\. Raise --max-length"):
        reward_model.train(config(tmp_path, pairs, max_length=16))
    assert not (tmp_path / "out").exists()


def test_training_counts_dropped_pairs(tmp_path):
    ending = " and so on" * 20
    dropped = {**PAIR, "candidate_0": "one" + ending, "candidate_1": "two" + ending}
    pairs = [{**PAIR, "candidate_0": f"number {i}"} for i in range(6)] + [dropped] * 2
    result = reward_model.train(config(tmp_path, pairs, max_length=32))
    assert (result.metrics["pairs"], result.metrics["dropped_pairs"]) == (6, 2)


def test_training_learns_which_candidate_is_better(tmp_path):
    pairs = []
    for i in range(20):
        for choice, words in enumerate([("yes", "no"), ("no", "yes")]):
            candidates = {f"candidate_{c}": f"{word} {i}" for c, word in enumerate(words)}
            pairs.append({**PAIR, **candidates, "choice": choice})
    settings = {"epochs": 2.0, "batch_size": 8, "warmup_steps": 0}
    trained = reward_model.train(config(tmp_path, pairs, **settings))
    scorer = RewardModel.from_pretrained(trained.output_dir)
    prompt = format_prompt(PAIR["input_text"])
    scores = scorer([f"{prompt} yes 50", f"{prompt} no 50"])
    assert scores[0] > scores[1]
    assert trained.history[-1]["accuracy"] > 0.9
