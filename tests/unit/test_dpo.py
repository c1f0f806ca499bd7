"""DPO: which tokens are compared, what the losses are, and from which records pairs come."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from trl import DPOTrainer

from rlhf_helpers import dpo
from rlhf_helpers.commands.main import main
from rlhf_helpers.configs import DPOConfig
from rlhf_helpers.dpo import encode_pair
from rlhf_helpers.generation import encode_prompts, sample
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import DataError, format_prompt, write_jsonl

BASE = Scale().base_model  # any causal LM will do for a start
PAIR = {
    "input_text": "r/work: My boss stole my chair, what now? [summary]: ",
    "candidate_0": "Help!",
    "candidate_1": "My boss steals my chair, any advice?",
    "choice": 1,
}


def config(folder: Path = Path("nowhere"), **changes) -> DPOConfig:
    return DPOConfig(
        **{"model": BASE, "data": folder / "data.jsonl", "output_dir": folder / "out"} | changes
    )


@pytest.fixture(scope="module")
def base_tokenizer():
    return load_tokenizer(BASE)


# Encoding


def test_the_tokens_are_those_that_ppo_samples(base_tokenizer):
    """An answer that the policy has sampled, decoded and encoded again, has the same tokens."""
    policy, prompt = load_policy(BASE), format_prompt(PAIR["input_text"])
    ids, mask = encode_prompts(base_tokenizer, [prompt] * 16)
    generator = torch.Generator().manual_seed(0)
    drawn = sample(policy, base_tokenizer, ids, mask, max_new_tokens=48, generator=generator)
    ended = drawn.ended.nonzero()[:, 0].tolist()
    assert len(ended) > 8
    for i in ended:
        answer = drawn.response_ids[i][drawn.response_mask[i]].tolist()
        text = base_tokenizer.decode(answer, skip_special_tokens=True)
        encoded = encode_pair(PAIR | {"candidate_1": text}, base_tokenizer, config())
        assert encoded["prompt_ids"] == ids[0].tolist()
        assert encoded["chosen_ids"] == answer


@pytest.mark.parametrize("choice", [0, 1])
def test_the_chosen_answer_is_the_one_that_choice_names(base_tokenizer, choice):
    settings = config(instruction="Be brief.")
    encoded = encode_pair(PAIR | {"choice": choice}, base_tokenizer, settings)
    texts = {name: base_tokenizer.decode(ids) for name, ids in encoded.items() if "ids" in name}
    assert texts["prompt_ids"].removeprefix("</s>") == "Be brief. " + PAIR["input_text"].strip()
    assert texts["chosen_ids"] == f" {PAIR[f'candidate_{choice}']}</s>"
    assert texts["rejected_ids"] == f" {PAIR[f'candidate_{1 - choice}']}</s>"


@pytest.mark.parametrize("room", [0, 5])
def test_a_prompt_that_is_too_long_loses_its_beginning_alike_for_both(base_tokenizer, room):
    whole = encode_pair(PAIR, base_tokenizer, config())
    longest = len(whole["chosen_ids"])
    cut = encode_pair(PAIR, base_tokenizer, config(max_length=longest + room))
    assert cut["prompt_ids"][1:] == whole["prompt_ids"][len(whole["prompt_ids"]) - room + 1 :]
    assert cut["prompt_ids"][:1] == [base_tokenizer.bos_token_id] * bool(room)
    assert cut["chosen_ids"] == whole["chosen_ids"]
    assert cut["rejected_ids"] == whole["rejected_ids"]
    assert cut["length"] == longest + room


# The losses


def written_out(chosen, rejected, lengths, settings: DPOConfig) -> torch.Tensor:
    """The losses as their papers give them, of log ratios (B,); lengths (2, B) in tokens."""
    if settings.loss_type == "ipo":
        difference = chosen / lengths[0] - rejected / lengths[1]
        return ((difference - 1 / (2 * settings.beta)) ** 2).mean()
    logits, share = settings.beta * (chosen - rejected), settings.label_smoothing
    return -((1 - share) * logsigmoid(logits) + share * logsigmoid(-logits)).mean()


@pytest.mark.parametrize(
    "settings",
    [{}, {"beta": 0.5}, {"label_smoothing": 0.2}, {"loss_type": "ipo", "beta": 0.7}],
    ids=str,
)
def test_trl_computes_the_loss_that_was_asked_for(tmp_path, base_tokenizer, settings):
    settings = config(tmp_path, batch_size=2, **settings)
    other = PAIR | {"candidate_0": "My chair is gone and I am sad.", "choice": 0}
    rows = [encode_pair(pair, base_tokenizer, settings) for pair in (PAIR, other)]
    trainer = dpo.preference_trainer(settings, rows, base_tokenizer)
    with torch.no_grad():  # the policy moves away from its reference
        for weight in trainer.model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    found = trainer.compute_loss(trainer.model, batch)

    sums = [
        [log_probs(model, row, kind) for row in rows for kind in ("chosen_ids", "rejected_ids")]
        for model in (trainer.model, load_policy(BASE))
    ]
    ratios = torch.tensor(sums[0]) - torch.tensor(sums[1])
    lengths = torch.tensor([[len(r[k]) for r in rows] for k in ("chosen_ids", "rejected_ids")])
    expected = written_out(ratios[::2], ratios[1::2], lengths, settings)
    assert abs(ratios[::2] - ratios[1::2]).min() > 0.1
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_sweep_asks_the_reference_once(tmp_path, base_tokenizer, monkeypatch):
    settings = config(tmp_path, seed=1)
    rows = [encode_pair(PAIR | {"input_text": "Once only."}, base_tokenizer, settings)]
    first = dpo.preference_trainer(settings, rows, base_tokenizer).train_dataset
    monkeypatch.setattr(dpo.PairTrainer, "compute_ref_log_probs", None)
    again = dpo.preference_trainer(replace(settings, beta=3.0), rows, base_tokenizer).train_dataset
    assert again["ref_chosen_logps"] == first["ref_chosen_logps"]
    with pytest.raises(TypeError):  # other pairs must be asked about
        dpo.preference_trainer(settings, rows * 2, base_tokenizer)


@torch.no_grad()
def log_probs(model, row: dict, kind: str) -> float:
    """Log-prob of one answer, from the model's plain logits."""
    ids = torch.tensor(row["prompt_ids"] + row[kind])
    words = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    return words[torch.arange(len(ids) - 1), ids[1:]][len(row["prompt_ids"]) - 1 :].sum().item()


def test_the_lm_head_scores_the_answers_only(tmp_path, base_tokenizer, monkeypatch):
    row, scored = encode_pair(PAIR, base_tokenizer, config()), []

    def watched(*arguments):
        model = load_policy(*arguments)
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(lambda _, states: scored.append(states[0].shape[1]))
        return model

    monkeypatch.setattr(dpo, "load_policy", watched)
    write_jsonl(tmp_path / "data.jsonl", [PAIR])
    dpo.train(config(tmp_path))
    longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    assert scored == [longest, longest]  # the reference, and the step


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.2}, {"loss_type": "ipo"}], ids=str)
def test_the_losses_and_what_is_logged_are_trl_s_own(tmp_path, monkeypatch, settings):
    other = PAIR | {"input_text": "r/chairs: Short. [summary]: ", "choice": 0}
    write_jsonl(tmp_path / "data.jsonl", [PAIR, other])
    settings = {"batch_size": 2, "warmup_steps": 0, "epochs": 3, **settings}
    ours = dpo.train(config(tmp_path, **settings)).history
    monkeypatch.setattr(dpo, "scored_responses", lambda model: model)
    theirs = dpo.train(config(tmp_path, **settings)).history
    assert len(ours) == len(theirs) == 3
    for row, expected in zip(ours, theirs, strict=True):
        assert row.keys() == expected.keys()
        # At the first step policy and reference are equal, and the order of equals is chance.
        untold = {"epoch", "step"} | ({"rewards/accuracies"} if row is ours[0] else set())
        for name in row.keys() - untold:
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-3, abs=1e-5), (
                name
            )


def test_a_trl_that_encodes_pairs_itself_learns_the_same(tmp_path, monkeypatch, caplog):
    """As where TRL has lost the method by which it is told not to."""
    write_jsonl(tmp_path / "data.jsonl", [PAIR])
    ours = dpo.train(config(tmp_path, epochs=2, warmup_steps=0)).history
    monkeypatch.setattr(dpo.PairTrainer, "_prepare_dataset", DPOTrainer._prepare_dataset)
    monkeypatch.delattr(DPOTrainer, "_prepare_dataset")
    theirs = dpo.train(config(tmp_path, epochs=2, warmup_steps=0)).history
    assert [row["loss"] for row in theirs] == pytest.approx([row["loss"] for row in ours], rel=1e-5)
    assert (
        caplog.messages.count("this version of TRL encodes pairs itself: cut answers get an EOS")
        == 1
    )


def test_the_command_line_gives_one_error(capsys):
    assert main(["train", "dpo", "--scale", "smoke", "--beta", "-1"]) == 2
    assert capsys.readouterr().err == "error: beta is -1.0: it must be a number above 0\n"


# The data


def test_of_a_ranking_the_best_is_set_against_the_worst(tmp_path):
    ranking = {"input_text": "p", "candidates": ["a", "b", "c", "d"], "ranking": [[2, 0], 1, 3]}
    assert [(p["candidate_0"], p["candidate_1"], p["choice"]) for p in dpo.pairs_of(ranking)] == [
        ("c", "d", 0)
    ]
    assert dpo.pairs_of(ranking | {"ranking": [[0, 1, 2, 3]]}) == []
    assert dpo.pairs_of(PAIR) == [PAIR]


def test_pairs_that_cutting_makes_equal_are_dropped_and_counted(tmp_path):
    alike = PAIR | {"candidate_0": PAIR["candidate_1"] + " Please."}
    write_jsonl(tmp_path / "data.jsonl", [PAIR, alike])
    metrics = dpo.train(config(tmp_path, max_length=5)).metrics
    assert (metrics["pairs"], metrics["dropped_pairs"]) == (1, 1)
    write_jsonl(tmp_path / "data.jsonl", [alike])
    with pytest.raises(DataError, match=r"data.jsonl: every pair ties.*Raise --max-length"):
        dpo.train(config(tmp_path, max_length=5))


# Training


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}, {"lora_rank": 4, "bits": 4}], ids=str)
def test_training_prefers_the_chosen_and_leaves_a_whole_model(tmp_path, settings):
    write_jsonl(tmp_path / "data.jsonl", [PAIR])
    steps = {"epochs": 4, "warmup_steps": 0, "learning_rate": 2e-3}
    result = dpo.train(config(tmp_path, **steps, **settings))
    assert result.history[0]["loss"] == pytest.approx(math.log(2))  # no margin yet
    assert result.metrics["margin"] > 0.05
    assert not list(tmp_path.glob("out/adapter*"))
    trained, base = (load_file(p / "model.safetensors") for p in (tmp_path / "out", BASE))
    name = "model.decoder.layers.0.self_attn.q_proj.weight"
    assert trained.keys() == base.keys()
    assert not torch.equal(trained[name], base[name].float())
    frozen = "model.decoder.embed_tokens.weight"
    assert torch.equal(trained[frozen], base[frozen].float()) == bool(settings)
