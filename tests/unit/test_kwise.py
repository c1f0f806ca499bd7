"""Rankings: how they are encoded, prompts read once, and what training on them minimises."""

import random
from pathlib import Path

import pytest
import torch
from torch.nn.functional import mse_loss
from transformers import (
    AutoModelForSequenceClassification,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    OPTForSequenceClassification,
    pipeline,
)

from rlhf_helpers import reward_model
from rlhf_helpers.configs import RewardConfig
from rlhf_helpers.models import load_tokenizer, without_dropout
from rlhf_helpers.reward_model import (
    PairTrainer,
    RewardModel,
    append_eos,
    encode_pairs,
    kwise,
    rank_scores,
    standardise_by_annotator,
)
from rlhf_helpers.reward_model.kwise import KwiseTrainer, encode_rankings, shared_prompt_scores
from rlhf_helpers.reward_model.losses import kwise_loss, pairwise_loss
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import DataError, format_prompt, format_response, write_jsonl

BASE = Scale().base_model
CLASSIFIERS = {
    "opt": OPTForSequenceClassification,
    "gpt2": GPT2ForSequenceClassification,
    "llama": LlamaForSequenceClassification,
}


def ranking(candidates: list[str], order: list, **fields) -> dict:
    record = {"input_text": "a post [summary]: ", "candidates": candidates, "ranking": order}
    return record | fields


def decoder(make_model, kind: str, pad_token_id: int = 0):
    """A classifier over a random trunk, whose scores differ."""
    causal = make_model(kind)
    causal.config.num_labels, causal.config.pad_token_id = 1, pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = CLASSIFIERS[kind](causal.config)
    return without_dropout(model)


# Encoding


def test_a_ranking_is_encoded_text_by_text_best_first():
    tokenizer = append_eos(load_tokenizer(BASE), 512)
    record = ranking(["one", "two and more", "three"], [2, [0, 1]], annotator="ada")
    (row,) = encode_rankings([record], tokenizer, "Be brief.")
    texts = [f"Be brief. a post [summary]: {text}" for text in ("three", "one", "two and more")]
    assert row["candidate_ids"] == tokenizer(texts)["input_ids"]
    assert row["ranking"] == [[0], [1, 2]]
    assert row["length"] == max(map(len, row["candidate_ids"]))
    assert row["annotator"] == "ada"


def test_of_texts_that_cutting_made_equal_the_best_placed_stays():
    tokenizer = append_eos(load_tokenizer(BASE), 16)
    ending = " and so on" * 20
    records = [
        ranking(["one" + ending, "short", "two" + ending], [2, 1, 0]),
        ranking(["one" + ending, "two" + ending], [1, 0]),
        ranking(["here", "there"], [[0, 1]]),
    ]
    (row,) = encode_rankings(records, tokenizer)
    assert row["ranking"] == [[0], [1]]
    assert len(row["candidate_ids"]) == 2
    assert row["candidate_ids"][0] != row["candidate_ids"][1]


# Prompts read once


def batch(sizes: list[int], prompts: list[int], seed: int = 0, eos: int = 1):
    """Right-padded texts: each prompt with its answers of many lengths, EOS at the end."""
    rng = random.Random(seed)
    texts = []
    for size, length in zip(sizes, prompts, strict=True):
        prompt = [rng.randrange(2, 90) for _ in range(length)]
        for k in range(size):  # the first token tells the answers apart
            answer = [10 + k, *(rng.randrange(2, 90) for _ in range(rng.randrange(6)))]
            texts.append([*prompt, *answer, eos])
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    lengths = torch.tensor(list(map(len, texts)))
    return ids, (torch.arange(width) < lengths[:, None]).long(), torch.tensor(sizes)


@pytest.mark.parametrize("sizes", [[2], [4, 4], [2, 5, 3]])
def test_scores_and_gradients_are_the_same_with_shared_prompts(make_model, kind, sizes):
    model = decoder(make_model, kind).double()
    ids, mask, groups = batch(sizes, prompts=[3, 17, 8][: len(sizes)])
    plain = model(input_ids=ids, attention_mask=mask).logits[:, 0]
    shared = shared_prompt_scores(model, ids, mask, groups)
    assert plain.std() > 0.01
    torch.testing.assert_close(shared, plain, atol=1e-9, rtol=0)
    weights = [p for p in model.parameters() if p.requires_grad]
    expected, found = (
        torch.autograd.grad(scores.sin().sum(), weights, allow_unused=True)
        for scores in (plain, shared)
    )
    for a, b in zip(found, expected, strict=True):
        if b is not None:  # Llama's rotations are in float32
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_texts_without_a_common_beginning_are_read_whole(make_model):
    model = decoder(make_model, "gpt2").double()
    ids, mask, groups = batch([3, 2], prompts=[0, 5])
    plain = model(input_ids=ids, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(shared_prompt_scores(model, ids, mask, groups), plain)


def test_an_answer_that_goes_on_where_another_ends_is_no_problem_even_if_pad_is_eos(make_model):
    model = decoder(make_model, "llama", pad_token_id=1).double()
    ids = torch.tensor([[7, 8, 9, 5, 1, 1, 1], [7, 8, 9, 5, 6, 4, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])
    plain = model(input_ids=ids, attention_mask=mask).logits[:, 0]
    found = shared_prompt_scores(model, ids, mask, torch.tensor([2]))
    torch.testing.assert_close(found, plain, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["opt", "gpt2"])
def test_padding_needs_no_position_beyond_those_of_the_longest_text(make_model, kind):
    """A long prompt with short answers beside a short one with long answers."""
    model = decoder(make_model, kind, pad_token_id=0).double()
    width = model.config.max_position_embeddings
    ids = torch.zeros(4, width, dtype=torch.long)
    for row, (prompt, answer) in enumerate([(width - 2, 2), (width - 2, 1), (3, 12), (3, 11)]):
        ids[row, :prompt] = 5 + row // 2
        ids[row, prompt : prompt + answer] = torch.arange(answer) % 3 + 7 + row % 2
    mask = (ids != 0).long()
    plain = model(input_ids=ids, attention_mask=mask).logits[:, 0]
    found = shared_prompt_scores(model, ids, mask, torch.tensor([2, 2]))
    torch.testing.assert_close(found, plain, atol=1e-9, rtol=0)


def test_the_shared_pass_reads_fewer_tokens(make_model, monkeypatch):
    model = decoder(make_model, "opt")
    ids, mask, groups = batch([4, 4], prompts=[60, 60])
    read = []
    forward = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda input_ids, **rest: read.append(input_ids.numel()) or forward(input_ids, **rest),
    )
    shared_prompt_scores(model, ids, mask, groups)
    assert sum(read) < ids.numel() / 2.5


def test_a_model_shares_prompts_only_if_that_changes_nothing(make_model, encoder, monkeypatch):
    model = decoder(make_model, "opt")
    inputs = batch([4, 3], prompts=[9, 5])
    assert kwise.can_share(model, *inputs)
    wrong = kwise.shared_prompt_scores
    monkeypatch.setattr(kwise, "shared_prompt_scores", lambda *a: wrong(*a) + 0.5)
    assert not kwise.can_share(model, *inputs)
    assert not kwise.can_share(AutoModelForSequenceClassification.from_pretrained(encoder), *inputs)


# Training


def config(folder: Path, records: list[dict], **changes) -> RewardConfig:
    write_jsonl(folder / "records.jsonl", records)
    write_jsonl(folder / "prompts.jsonl", [{"input_text": f"number {i}"} for i in range(4)])
    settings = {
        "model": BASE,
        "sft_model": BASE,
        "data": folder / "records.jsonl",
        "max_new_tokens": 4,
        "prompts": folder / "prompts.jsonl",
        "output_dir": folder / "out",
        "batch_size": 4,
        "max_length": 64,
        "warmup_steps": 0,
    }
    return RewardConfig(**settings | changes)


WORDS = ("superb", "good", "poor", "awful")  # from the best to the worst


def records(count: int = 24, seed: int = 0) -> list[dict]:
    """Rankings by WORDS, of 2 to 4 answers, some with a tie."""
    rng, found = random.Random(seed), []
    for i in range(count):
        grades = sorted(rng.sample(range(4), 2 + i % 3))
        shuffled = rng.sample(grades, len(grades))
        order = [shuffled.index(grade) for grade in grades]
        if i % 5 == 4 and len(order) > 2:
            order = [order[0], order[1:]]
        candidates = [f"{WORDS[grade]} {rng.randrange(100)}" for grade in shuffled]
        found.append(ranking(candidates, order, annotator=rng.choice("ab")))
    return found


def trainer_of(folder: Path, data: list[dict], **changes):
    """The trainer that `train` would run, its rows, and its first batch."""
    settings = config(folder, data, **changes)
    tokenizer = append_eos(load_tokenizer(BASE), settings.max_length)
    encode = encode_rankings if "candidates" in data[0] else encode_pairs
    rows = encode(data, tokenizer)
    trainer = reward_model.reward_trainer(settings, rows, tokenizer)
    return trainer, rows, trainer.data_collator(rows[: settings.batch_size])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_what_is_minimised_is_the_k_wise_loss_and_the_centring(tmp_path, label_smoothing):
    data = records(4)
    trainer, rows, inputs = trainer_of(
        tmp_path, data, label_smoothing=label_smoothing, center_rewards_coefficient=0.5
    )
    assert isinstance(trainer, KwiseTrainer)
    scorer = RewardModel(trainer.model, trainer.processing_class)
    scores = []
    for record in data:
        order = [c for g in record["ranking"] for c in (g if isinstance(g, list) else [g])]
        prompt = format_prompt(record["input_text"])
        texts = [prompt + format_response(record["candidates"][c]) for c in order]
        scores.append(scorer.raw_scores(texts))
    rankings = [row["ranking"] for row in rows]
    means = []
    for s, r in zip(scores, rankings, strict=True):
        pairs = [(i, j) for a, g in enumerate(r) for h in r[a + 1 :] for i in g for j in h]
        means.append(sum((s[i] + s[j]) ** 2 for i, j in pairs) / len(pairs))
    expected = kwise_loss(scores, rankings, label_smoothing) + 0.5 * sum(means) / len(means)
    loss = trainer.compute_loss(trainer.model, inputs)
    assert trainer.shares_prompts
    torch.testing.assert_close(loss.detach(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("label_smoothing", "graded"), [(0.0, 0), (0.2, 0), (0.0, 1), (0.2, 1)])
def test_pairs_cost_the_pairwise_loss_with_margin_smoothing_and_centring(
    tmp_path, label_smoothing, graded
):
    data = [
        {"input_text": f"a post {i}", "candidate_0": "one", "candidate_1": "two", "choice": i % 2}
        for i in range(4)
    ]
    if graded:
        data[1]["margin"], data[2]["margin"] = 1.0, 0.25
    trainer, _, inputs = trainer_of(
        tmp_path, data, label_smoothing=label_smoothing, center_rewards_coefficient=0.5
    )
    assert isinstance(trainer, PairTrainer)
    assert ("margin" in inputs) == bool(graded)
    scorer = RewardModel(trainer.model, trainer.processing_class)
    texts = [[f"a post {i} one", f"a post {i} two"] for i in range(4)]
    chosen = scorer.raw_scores([texts[i][i % 2] for i in range(4)])
    rejected = scorer.raw_scores([texts[i][1 - i % 2] for i in range(4)])
    margin = torch.tensor([0.0, 1.0, 0.25, 0.0]) if graded else 0.0
    expected = pairwise_loss(chosen, rejected, margin, label_smoothing)
    expected = expected + 0.5 * ((chosen + rejected) ** 2).mean()
    loss = trainer.compute_loss(trainer.model, inputs)
    torch.testing.assert_close(loss.detach(), expected, atol=1e-5, rtol=0)


def test_two_answers_ranked_cost_what_the_pair_costs(tmp_path):
    pairs = [
        {"input_text": f"post {i}", "candidate_0": "one", "candidate_1": "two", "choice": i % 2}
        for i in range(4)
    ]
    ranked = [
        {
            "input_text": p["input_text"],
            "candidates": ["one", "two"],
            "ranking": [p["choice"], 1 - p["choice"]],
        }
        for p in pairs
    ]
    losses = []
    for data in (pairs, ranked):
        trainer, _, inputs = trainer_of(tmp_path, data, center_rewards_coefficient=0.1)
        losses.append(trainer.compute_loss(trainer.model, inputs))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)


def test_the_objective_scores_is_regression_on_standardised_ranks(tmp_path):
    data = records(4)
    trainer, rows, inputs = trainer_of(tmp_path, data, objective="scores")
    targets = torch.tensor([score for row in rows for score in row["targets"]])
    torch.testing.assert_close(inputs["targets"], targets)
    scores = trainer.raw_scores(
        trainer.model, inputs["input_ids"], inputs["attention_mask"], inputs["sizes"]
    )
    torch.testing.assert_close(
        trainer.compute_loss(trainer.model, inputs), mse_loss(scores, targets)
    )


def in_order(folder: Path) -> list[float]:
    scorer = RewardModel.from_pretrained(folder)
    prompt = format_prompt("a post [summary]: ")
    return scorer([f"{prompt} {word} 7" for word in WORDS])


def same_in_the_pipeline(folder: Path, texts: list[str]) -> None:
    """transformers alone gives the raw score; ours is standardised."""
    raw = RewardModel.from_pretrained(folder).raw_scores(texts)
    plain = pipeline(
        "text-classification", model=str(folder), function_to_apply="none", device="cpu"
    )
    found = torch.tensor([result["score"] for result in plain(texts, truncation=True)])
    torch.testing.assert_close(found, raw, atol=1e-5, rtol=0)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 1
    standardised = (raw - model.config.reward_mean) / model.config.reward_std
    ours = RewardModel.from_pretrained(folder)(texts)
    torch.testing.assert_close(torch.tensor(ours), standardised, atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", ["order", "scores"])
def test_training_on_rankings_learns_the_order(tmp_path, objective):
    settings = config(tmp_path, records(60), epochs=3.0, objective=objective)
    result = reward_model.train(settings)
    assert (result.metrics["rankings"], result.metrics["dropped_rankings"]) == (60, 0)
    assert result.metrics["accuracy"] > 0.8
    scores = in_order(result.output_dir)
    assert scores == sorted(scores, reverse=True)
    assert result.history[-1]["step"] == 45
    same_in_the_pipeline(result.output_dir, ["a post [summary]: superb 7", "漢字 " * 90])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])  # which DeBERTa has not
def test_an_encoder_is_trained_on_pairs_and_on_rankings(tmp_path, encoder, attention, monkeypatch):
    monkeypatch.setattr("rlhf_helpers.models.attention", lambda: attention)
    pairs = [
        {"input_text": "a", "candidate_0": "b" * n, "candidate_1": "c" * n, "choice": 0}
        for n in range(1, 9)
    ]
    pairs[3]["margin"] = 1
    for data in (pairs, records(8)):
        settings = config(tmp_path, data, model=encoder, label_smoothing=0.1)
        result = reward_model.train(settings)
        same_in_the_pipeline(result.output_dir, ["a b", "a c", "a " * 100])


# LoRA and quantised trunks


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("trunk", ["decoder", "encoder"])
def test_lora_leaves_a_whole_classifier_with_a_trained_head(tmp_path, encoder, trunk, bits):
    base = BASE if trunk == "decoder" else encoder
    head = "score.weight" if trunk == "decoder" else "classifier.weight"
    settings = config(tmp_path, records(16), model=base, lora_rank=4, bits=bits, learning_rate=0.01)
    trainer, _, _ = (
        trainer_of(tmp_path, records(16), model=base, lora_rank=4, bits=bits)
        if trunk == "decoder"
        else (None, None, None)
    )
    if trainer is not None:
        trained = {n: p.dtype for n, p in trainer.model.named_parameters() if p.requires_grad}
        assert {"lora" in name or head.split(".")[0] in name for name in trained} == {True}
        assert set(trained.values()) == {torch.float32}
    result = reward_model.train(settings)
    assert not list(result.output_dir.glob("adapter*"))
    model, problems = AutoModelForSequenceClassification.from_pretrained(
        result.output_dir, output_loading_info=True
    )
    assert not any(problems.values()), problems
    assert not hasattr(model.config, "quantization_config")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.manual_seed(settings.seed)
    before = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).state_dict()
    changed = {n for n, w in model.state_dict().items() if not torch.equal(w, before[n].float())}
    assert head in changed
    assert any("layer" in name and name.endswith("weight") for name in changed)
    assert not any("embed" in name or "norm" in name.lower() for name in changed)
    same_in_the_pipeline(result.output_dir, ["a post [summary]: good", "b"])


@pytest.mark.parametrize("bits", [8, 4])
def test_heads_are_never_quantised(encoder, bits):
    from rlhf_helpers.models import load_classifier

    model = load_classifier(encoder, bits)
    assert type(model.deberta.encoder.layer[0].intermediate.dense) is not torch.nn.Linear
    assert type(model.classifier) is type(model.pooler.dense) is torch.nn.Linear
    assert type(load_classifier(BASE, bits).score) is torch.nn.Linear


# What is refused


def test_quantised_weights_need_an_adapter(tmp_path):
    with pytest.raises(ValueError, match="weights of 8 bits cannot be trained: set lora_rank too"):
        reward_model.train(config(tmp_path, records(4), bits=8))


def test_pairs_have_no_ranks_to_learn_scores_from(tmp_path):
    pair = {"input_text": "a", "candidate_0": "b", "candidate_1": "c", "choice": 0}
    with pytest.raises(ValueError, match="pairs have no ranks to score"):
        reward_model.train(config(tmp_path, [pair], objective="scores"))


def test_a_file_of_both_kinds_is_refused(tmp_path):
    pair = {"input_text": "a", "candidate_0": "b", "candidate_1": "c", "choice": 0}
    with pytest.raises(DataError, match=r"line 2: the field `candidates` is missing"):
        reward_model.train(config(tmp_path, [*records(1), pair]))


# Resuming


def test_a_stopped_run_on_rankings_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    shared = []
    plain = kwise.shared_prompt_scores
    monkeypatch.setattr(
        kwise, "shared_prompt_scores", lambda *batch: shared.append(1) or plain(*batch)
    )
    settings = {"save_steps": 2, "epochs": 1.0}
    whole = reward_model.train(config(tmp_path, records(24), **settings))
    assert whole.history[-1]["step"] == 6  # logged at least as often as a checkpoint is written
    assert len(shared) == 6 + 1  # and one to try
    stopped = config(tmp_path, records(24), output_dir=tmp_path / "stopped", **settings)
    step, done = KwiseTrainer.training_step, []

    def stop_after(self, *arguments, **keywords):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(KwiseTrainer, "training_step", stop_after)
        with pytest.raises(KeyboardInterrupt):
            reward_model.train(stopped)
    resumed = reward_model.train(stopped, resume=True)
    first, second = (
        AutoModelForSequenceClassification.from_pretrained(result.output_dir).state_dict()
        for result in (whole, resumed)
    )
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-6, rtol=0)
    assert {"loss", "accuracy", "margin", "mean_reward"} <= set(resumed.history[-1])


# Ranks as scores


def test_ranks_become_evenly_spaced_scores_and_ties_share_theirs():
    assert rank_scores([1, 0]) == [0.0, 1.0]
    assert rank_scores([2, 0, 4, 1, 3]) == [0.75, 0.25, 1.0, 0.0, 0.5]
    assert rank_scores([2, [0, 3], 1]) == pytest.approx([0.5, 0.0, 1.0, 0.5])
    assert rank_scores([[0, 1, 2]]) == [0.5] * 3


def test_scores_are_standardised_annotator_by_annotator():
    scores = [1.0, 5.0, 2.0, 9.0, 3.0, 5.0, 9.0]
    annotators = ["ada", "ben", "ada", "cleo", "ada", "ben", "cleo"]
    found = standardise_by_annotator(scores, annotators)
    ada = torch.tensor([found[i] for i in (0, 2, 4)])
    assert ada.tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert ada.std(correction=0).item() == pytest.approx(1)
    assert [found[i] for i in (1, 3, 5, 6)] == [0.0] * 4  # who always says the same says nothing
