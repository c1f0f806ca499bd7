"""The reward model: its loss, its tokenizer, its scores, and what it is trained on."""

import itertools
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from rlhf_helpers import reward_model
from rlhf_helpers.annotation.judges import reward_judge
from rlhf_helpers.configs import RewardConfig
from rlhf_helpers.evaluation import evaluate_reward_model
from rlhf_helpers.little_world.grammar import as_input_text, draw_posts
from rlhf_helpers.little_world.writers import write_summary
from rlhf_helpers.models import (
    HEAD_FILE,
    load_classifier,
    load_policy,
    load_tokenizer,
    without_dropout,
)
from rlhf_helpers.reward_model import (
    AnswerTokenRewardModel,
    RewardModel,
    append_eos,
    encode_pairs,
    pairwise_loss,
)
from rlhf_helpers.reward_model.answer_tokens import AnswerTokenHead, feature_size
from rlhf_helpers.reward_model.model import beginning_alike, split_text
from rlhf_helpers.rewards import Rewards
from rlhf_helpers.scales import ANSWER_TOKENS, Scale
from rlhf_helpers.schemas import (
    DataError,
    format_prompt,
    format_response,
    write_jsonl,
)
from rlhf_helpers.training import Result, interrupts
from rlhf_helpers.training.checkpoints import status
from rlhf_helpers.training.interrupts import Stopped

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
    scorer.standardise(scorer.raw_scores(samples))
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
    scorer.standardise(scorer.raw_scores(["the same"] * 3))
    assert all(map(math.isfinite, scorer(["the same", "another"])))
    scorer.standardise(scorer.raw_scores(texts(10)))


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
    folder.mkdir(exist_ok=True)
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


# A head that scores the tokens of answers


POSTS = [f"A post about {who} and more [summary]:" for who in ("me", "us", "nobody at all")]
ANSWERS = [" Why?", " My boss.", " My", " Somebody else, who is away."]
PAIRED = [(prompt, answer) for prompt in POSTS for answer in ANSWERS]


@pytest.fixture
def reader(make_model, tokenizer, kind) -> AnswerTokenRewardModel:
    """A tiny language model with a random head."""
    tokenizer.model_max_length = 100
    model = without_dropout(make_model(kind)).eval()
    torch.manual_seed(0)
    head = AnswerTokenHead(feature_size(model))
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(std=0.5)
        head.mean.normal_()
    return AnswerTokenRewardModel(model, tokenizer, head)


@torch.no_grad()
def plain_score(reader: AnswerTokenRewardModel, prompt: str, answer: str) -> float:
    """The score by one plain forward pass over prompt, answer and EOS."""
    before, after = (reader.tokenizer(text)["input_ids"] for text in (prompt, answer))
    ids = torch.tensor([[*before, *after, reader.tokenizer.eos_token_id]])
    output = reader.model(input_ids=ids, output_hidden_states=True)
    states, words = output.hidden_states[-1][0], output.logits[0].log_softmax(-1)
    scores = []
    for i in range(len(before), ids.shape[1]):
        said, likeliest = words[i - 1, ids[0, i]], words[i - 1].max()
        features = torch.cat([states[i], torch.stack([said, likeliest])])
        features = (features - reader.head.mean) / reader.head.deviation
        scores.append(reader.head.layers(features).item())
    return sum(scores) / len(scores)


def test_a_score_is_the_mean_over_the_tokens_of_the_answer_and_its_eos(reader):
    expected = [plain_score(reader, prompt, answer) for prompt, answer in PAIRED]
    found = reader.raw_answer_scores(*zip(*PAIRED, strict=True))
    assert found.std() > 0.1
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


def test_neither_batch_nor_order_nor_padding_changes_the_score_of_an_answer(reader):
    expected = reader.raw_answer_scores(*zip(*PAIRED, strict=True))
    order = torch.randperm(len(PAIRED), generator=torch.Generator().manual_seed(0)).tolist()
    longer = ("Much longer than all the others " * 2 + "[summary]:", " And so is its answer.")
    for batch_size in (1, 3, 64):
        chosen = [PAIRED[i] for i in order] + [longer]
        found = reader.raw_answer_scores(*zip(*chosen, strict=True), batch_size)
        torch.testing.assert_close(found[:-1], expected[order], atol=1e-5, rtol=0)


def test_the_prompt_is_read_once_for_all_its_answers_wherever_they_stand(reader, monkeypatch):
    reader.raw_answer_scores(*zip(*PAIRED, strict=True))
    read, forward = [], reader.model.forward
    monkeypatch.setattr(
        reader.model,
        "forward",
        lambda input_ids, **k: read.append(input_ids.shape) or forward(input_ids, **k),
    )
    mixed = PAIRED[::2] + PAIRED[1::2]
    reader.raw_answer_scores(*zip(*mixed, strict=True))
    assert [rows for rows, _ in read] == [len(POSTS), len(PAIRED)]


def test_a_text_that_is_too_long_loses_the_beginning_of_its_prompt(reader):
    reader.tokenizer.model_max_length = 30
    prompt, answer = "x" * 50 + " [summary]:", " short"
    cut = prompt[-(30 - len(answer) - 1) :]
    (found,) = reader.raw_answer_scores([prompt], [answer])
    assert found.item() == pytest.approx(plain_score(reader, cut, answer), abs=1e-5)
    assert reader.raw_answer_scores([prompt], [" long" * 50]).isfinite().all()


def test_a_text_is_split_behind_its_mark_and_one_without_a_mark_is_refused(reader):
    prompts, answers = zip(*PAIRED, strict=True)
    reader.standardise(reader.raw_answer_scores(prompts, answers))
    scores = torch.tensor(reader([p + a for p, a in PAIRED]))
    assert scores.tolist() == reader.score(prompts, answers)
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std().item() == pytest.approx(1, abs=1e-5)
    assert split_text("a [continued]: b [summary]: c") == ("a [continued]:", " b [summary]: c")
    with pytest.raises(ValueError, match=r"no \[summary\]: .*Give prompts and responses apart"):
        reader(["Question: why? Answer: so."])
    assert len(reader.score(["Question: why?"], [" so."])) == 1


def test_prompts_without_a_mark_can_be_evaluated_judged_and_rewarded(reader):
    prompt, answers = "Question: why?", [" so.", " no."]
    scores = reader.score([prompt] * 2, answers)
    pair = {"input_text": prompt, "candidate_0": "so.", "candidate_1": "no.", "choice": 0}
    _, table = evaluate_reward_model(reader, [pair])
    assert table[["score_0", "score_1"]].values[0].tolist() == pytest.approx(scores)
    (probability,) = reward_judge(reader)([prompt], ["so."], ["no."])
    assert probability == pytest.approx(1 / (1 + math.exp(scores[0] - scores[1])), abs=1e-6)
    texts = [prompt + answer for answer in answers]
    sampled = SimpleNamespace(
        prompts=[prompt] * 2,
        texts=texts,
        responses=["so.", "no."],
        answers=answers,
        records=[],
    )
    assert Rewards(reader)(sampled)[0] == scores


def summaries(count: int, seed: int) -> list[dict]:
    """Pairs of a post's own summary and another post's, in turn; only reading tells them apart."""
    rng = random.Random(seed)
    drawn = list(itertools.islice(draw_posts(rng), count + 1))
    written = [write_summary(facts, post, rng) for facts, post in drawn]
    pairs = []
    for i, (_, post) in enumerate(drawn[:-1]):
        answers = {f"candidate_{(i + j) % 2}": written[i + j] for j in range(2)}
        pairs.append({"input_text": as_input_text(post), **answers, "choice": i % 2})
    return pairs


READER = {**ANSWER_TOKENS, "batch_size": 8, "save_steps": 10}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Result:
    folder = tmp_path_factory.mktemp("reader")
    return reward_model.train(config(folder, summaries(80, 0), **READER | {"epochs": 15}))


def test_a_head_on_a_frozen_language_model_learns_to_read(trained):
    held_out = summaries(40, 1)
    scorer = RewardModel.from_pretrained(trained.output_dir)
    found, _ = evaluate_reward_model(scorer, held_out)
    assert found["accuracy_noisy"] > 0.85
    # The posts move by one: now the other summary is the post's own, for every pair but the last.
    moved = [
        {**pair, "input_text": other["input_text"]} for pair, other in itertools.pairwise(held_out)
    ]
    assert evaluate_reward_model(scorer, moved)[0]["accuracy_noisy"] < 0.25
    assert trained.history[-1]["accuracy"] > 0.9 and trained.metrics["pairs"] == 80
    assert {"loss", "margin", "mean_reward", "learning_rate", "step"} <= set(trained.history[-1])


def test_the_language_model_stays_as_it_is_and_the_folder_gives_the_same_scores(trained):
    first, again = (RewardModel.from_pretrained(trained.output_dir) for _ in range(2))
    base = load_policy(BASE)
    weights = first.model.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in base.state_dict().items())
    held_out = texts(10, seed=2)
    assert first(held_out) == again(held_out)
    head = load_file(trained.output_dir / HEAD_FILE)
    assert all(torch.equal(first.head.state_dict()[name], head[name]) for name in head)


def test_the_head_is_no_classifier_s(trained):
    with pytest.raises(ValueError, match="no trained head with one label"):
        load_classifier(trained.output_dir, trained=True)


@pytest.mark.parametrize("fault", ["missing", "damaged", "other", "nan"])
def test_a_folder_without_a_good_head_is_refused(trained, tmp_path, fault):
    folder = shutil.copytree(trained.output_dir, tmp_path / "copy")
    file = folder / HEAD_FILE
    weights = load_file(file)
    if fault == "missing":
        file.unlink()
    elif fault == "damaged":
        file.write_bytes(file.read_bytes()[:-10])
    elif fault == "other":
        save_file(AnswerTokenHead(7).state_dict(), file)
    else:
        weights["layers.0.bias"][3] = math.nan
        save_file(weights, file)
    message = {"missing": "missing", "nan": r"layers\.0\.bias holds NaN"}.get(fault, "damaged")
    kind = FileNotFoundError if fault == "missing" else ValueError
    with pytest.raises(kind, match=f"reward_head.*{message}.*[Tt]rain the reward model again"):
        RewardModel.from_pretrained(folder)


def test_an_interrupted_training_of_a_head_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    pairs = summaries(12, 0)
    settings = {**READER, "batch_size": 4, "epochs": 2}
    expected = reward_model.train(config(tmp_path / "whole", pairs, **settings))
    stopped = config(tmp_path / "stopped", pairs, **settings)
    asked = iter([False, True])
    monkeypatch.setattr(interrupts, "is_asked_to_stop", lambda: next(asked))
    monkeypatch.setattr(interrupts, "stop_if_asked", lambda: (_ for _ in ()).throw(Stopped(2)))
    with pytest.raises(Stopped):
        reward_model.train(stopped)
    monkeypatch.undo()
    assert status(stopped.output_dir) == "unfinished"
    resumed = reward_model.train(stopped, resume=True)
    assert resumed.history == expected.history
    heads = [load_file(result.output_dir / HEAD_FILE) for result in (resumed, expected)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_a_head_that_diverges_stops_and_leaves_nothing(tmp_path):
    diverging = config(tmp_path, summaries(8, 0), **READER | {"learning_rate": 1e37})
    with pytest.raises(FloatingPointError, match=r"training diverged: .*Lower learning_rate"):
        reward_model.train(diverging)
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_pair_is_a_ranking_of_two_and_graded_pairs_want_their_margin(tmp_path):
    pairs = summaries(8, 0)
    rankings = [
        {
            "input_text": pair["input_text"],
            "candidates": [pair["candidate_0"], pair["candidate_1"]],
            "ranking": [pair["choice"], 1 - pair["choice"]],
        }
        for pair in pairs
    ]
    graded = [{**pair, "margin": 1.0} for pair in pairs]
    losses = []
    for name, records in {"pairs": pairs, "rankings": rankings, "graded": graded}.items():
        settings = {**READER, "epochs": 1, "center_rewards_coefficient": 0}
        result = reward_model.train(config(tmp_path / name, records, **settings))
        losses.append(result.history[0]["loss"])
    assert losses[1] == losses[0] and losses[2] > losses[0] + 0.3


def test_held_out_pairs_are_measured_at_checkpoints_and_at_the_end(tmp_path):
    write_jsonl(tmp_path / "held_out.jsonl", summaries(4, 1))
    settings = {**READER, "epochs": 1, "eval_data": tmp_path / "held_out.jsonl"}
    result = reward_model.train(config(tmp_path, summaries(8, 0), **settings))
    assert 0 < result.metrics["eval_loss"] < 1


def test_a_head_of_the_other_kind_in_the_same_folder_leaves_nothing_of_the_first(tmp_path):
    pairs = summaries(8, 0)
    reward_model.train(config(tmp_path, pairs, **READER | {"epochs": 1}))
    assert (tmp_path / "out" / HEAD_FILE).exists()
    reward_model.train(config(tmp_path, pairs))
    assert not (tmp_path / "out" / HEAD_FILE).exists()
    assert type(RewardModel.from_pretrained(tmp_path / "out")) is RewardModel


def test_the_scale_gives_a_head_of_answer_tokens_its_settings_and_the_sft_model():
    found, changed = Scale().config("reward", head="answer_tokens"), {"epochs": 2.0}
    assert (found.model, found.epochs, found.learning_rate) == (Scale().dir("sft"), 6, 2e-3)
    assert Scale().config("reward", head="answer_tokens", **changed).epochs == 2
    assert Scale("full").config("reward", head="answer_tokens").model == Scale("full").dir("sft")
    plain = Scale().config("reward", head="last_token")
    assert (plain.model, plain.epochs) == (Scale().dir("sft"), 1)
    with pytest.raises(ValueError, match="lora_rank to 0, or the head to last_token"):
        Scale().config("reward", head="answer_tokens", lora_rank=4)
