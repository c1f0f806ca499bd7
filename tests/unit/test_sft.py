"""Supervised fine-tuning: which tokens are learnt, and from where the loss comes."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from rlhf_helpers import sft
from rlhf_helpers.configs import SFTConfig
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import format_prompt, format_response, read_demonstrations, write_jsonl
from rlhf_helpers.sft import encode_demonstration

BASE = Scale().base_model
RECORD = {
    "input_text": "r/work: My boss stole my chair, what now? [summary]: ",
    "output_text": "My boss steals my chair, any advice?",
}
TEXTS = st.text().filter(str.strip)


def config(folder: Path = Path("nowhere"), **changes) -> SFTConfig:
    return SFTConfig(
        **{"model": BASE, "data": folder / "data.jsonl", "output_dir": folder / "out"} | changes
    )


@pytest.fixture(scope="module")
def base_tokenizer():
    return load_tokenizer(BASE)


# Encoding


@pytest.mark.parametrize("instruction", ["", "Summarize in less than 50 words."])
def test_the_response_and_its_eos_are_learnt_and_nothing_else(base_tokenizer, instruction):
    prompt = f"{instruction} {RECORD['input_text']}".strip()
    whole = base_tokenizer(f"{prompt} {RECORD['output_text']}</s>")["input_ids"]
    encoded = encode_demonstration(RECORD, base_tokenizer, config(instruction=instruction))
    assert encoded["input_ids"] == whole
    start = len(base_tokenizer(prompt)["input_ids"])
    assert encoded["labels"] == [-100] * start + whole[start:]
    assert whole[0] == base_tokenizer.bos_token_id
    assert encoded["labels"][-1] == base_tokenizer.eos_token_id
    learnt = base_tokenizer.decode(encoded["labels"][start:-1])
    assert learnt == f" {RECORD['output_text']}"


@pytest.mark.parametrize("room", [0, 1, 5])
def test_a_prompt_that_is_too_long_loses_its_beginning_but_for_bos(base_tokenizer, room):
    whole = encode_demonstration(RECORD, base_tokenizer, config())
    answer = [label for label in whole["labels"] if label != -100]
    cut = encode_demonstration(RECORD, base_tokenizer, config(max_length=len(answer) + room))
    kept = whole["input_ids"][-len(answer) - room + 1 :]
    assert cut["input_ids"] == ([base_tokenizer.bos_token_id, *kept] if room else answer)
    assert cut["labels"] == [-100] * room + answer


def test_a_response_longer_than_all_there_is_room_for_is_cut_at_its_end(base_tokenizer):
    whole = encode_demonstration(RECORD, base_tokenizer, config())
    answer = [label for label in whole["labels"] if label != -100]
    cut = encode_demonstration(RECORD, base_tokenizer, config(max_length=4))
    assert cut == {"input_ids": answer[:4], "labels": answer[:4]}


def test_nothing_is_cut_from_the_shipped_demonstrations(base_tokenizer):
    for record in read_demonstrations(Scale().data("demonstrations", "validation")):
        prompt = format_prompt(record["input_text"])
        whole = base_tokenizer(prompt + format_response(record["output_text"]))["input_ids"]
        encoded = encode_demonstration(record, base_tokenizer, config())
        assert encoded["input_ids"] == [*whole, base_tokenizer.eos_token_id]


@given(TEXTS, TEXTS, st.text())
def test_the_tokens_of_the_prompt_are_a_prefix_of_those_of_the_whole(
    base_tokenizer, input_text, output_text, instruction
):
    prompt = format_prompt(input_text, instruction)
    ids = base_tokenizer(prompt)["input_ids"]
    whole = base_tokenizer(prompt + format_response(output_text))["input_ids"]
    assert whole[: len(ids)] == ids
    assert len(whole) > len(ids)


# Training


def demonstrations(folder: Path) -> list[dict]:
    records = read_demonstrations(Scale().data("demonstrations", "validation"))[:4]
    write_jsonl(folder / "data.jsonl", records)
    return records


@torch.no_grad()
def test_the_loss_is_the_mean_over_the_tokens_of_the_responses(tmp_path, base_tokenizer):
    records, policy = demonstrations(tmp_path), load_policy(BASE)
    nats = []
    for record in records:
        row = encode_demonstration(record, base_tokenizer, config())
        logits = policy(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        nats.append(cross_entropy(logits, labels, ignore_index=-100, reduction="none")[labels >= 0])
    with torch.enable_grad():
        result = sft.train(config(tmp_path, batch_size=4))
    assert result.metrics["loss"] == pytest.approx(torch.cat(nats).mean().item(), rel=1e-4)
    assert result.metrics["demonstrations"] == 4


def test_only_positions_with_a_label_go_through_the_head(tmp_path, monkeypatch):
    """On CPUs TRL would score the prompts too: the same loss, for nearly twice the time."""
    records, seen = demonstrations(tmp_path), []

    def watched(*arguments):
        model = load_policy(*arguments)
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(lambda _, states: seen.append(states[0].shape[1]))
        return model

    monkeypatch.setattr(sft, "load_policy", watched)
    sft.train(config(tmp_path, batch_size=1))
    rows = [encode_demonstration(record, load_tokenizer(BASE), config()) for record in records]
    assert sorted(seen) == sorted(sum(label >= 0 for label in row["labels"]) for row in rows)


@pytest.mark.parametrize("packing", [False, True])
def test_the_losses_and_what_is_logged_are_trl_s_own(tmp_path, monkeypatch, packing):
    demonstrations(tmp_path)
    settings = {"batch_size": 2, "warmup_steps": 0, "epochs": 6, "packing": packing}
    ours = sft.train(config(tmp_path, **settings)).history
    monkeypatch.setattr(sft, "scored_responses", lambda model: model)
    theirs = sft.train(config(tmp_path, **settings)).history
    assert len(ours) == len(theirs) > 1
    for row, expected in zip(ours, theirs, strict=True):
        assert row.keys() == expected.keys()
        for name in ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-3), name


@pytest.mark.parametrize("rank", [0, 2])
def test_the_seed_decides_the_result(tmp_path, rank):
    weights = []
    for i in range(2):
        demonstrations(tmp_path)
        torch.manual_seed(i)  # what happened before must not matter
        out = tmp_path / str(i)
        sft.train(config(tmp_path, output_dir=out, batch_size=2, warmup_steps=0, lora_rank=rank))
        weights.append(load_file(out / "model.safetensors"))
    base = load_file(BASE / "model.safetensors")
    name = "model.decoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(weights[0][name], base[name].float())
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-6, rtol=0, msg=name)


def test_quantised_weights_cannot_be_trained_without_lora(tmp_path):
    demonstrations(tmp_path)
    with pytest.raises(ValueError, match="weights of 4 bits cannot be trained: set lora_rank"):
        sft.train(config(tmp_path, bits=4))
    assert not (tmp_path / "out").exists()
