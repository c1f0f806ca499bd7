"""`evaluate` and `generate`: on models of one's own, and never against another run's."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_helpers import schemas
from rlhf_helpers.commands.main import main
from rlhf_helpers.evaluation import report_policy, wilson_interval
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.runs import write_json
from rlhf_helpers.scales import Scale

PROMPTS = [f"question {i}?" for i in range(6)]
SHORT = ["--scale", "smoke", "--max-new-tokens", "5"]


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def own(tmp_path, make_model, tokenizer):
    """Folders `policy`, `reference` and `reward` of small models, and `prompts.jsonl`."""
    for seed, name in enumerate(("policy", "reference")):
        make_model("gpt2", seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    torch.manual_seed(0)  # of the classifier's new head
    classifier = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "reference", num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    classifier.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    schemas.write_jsonl(tmp_path / "prompts.jsonl", [{"input_text": text} for text in PROMPTS])
    return tmp_path


def arguments(own, command, **options) -> list[str]:
    given = {"policy": own / "policy", "prompts": own / "prompts.jsonl"} | options
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [command, *SHORT, *words]


def error_of(words, capsys) -> str:
    assert main([str(word) for word in words]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    return line


# evaluate


def test_a_model_alone_is_measured_by_what_needs_no_other(own, capsys):
    words = [*arguments(own, "evaluate"), "--output-dir", str(own / "out")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"policy        {own / 'policy'}" in shown
    assert "reference     none" in shown and "reward model  none" in shown
    assert f"prompts       6 of {own / 'prompts.jsonl'}" in shown
    report = json.loads((own / "out" / "evaluation.json").read_text())
    assert list(report) == ["sampled", "sampled_0.4", "greedy"]
    expected = {"length", "eos_rate", "prompts", "words", "repetition", "distinct_1", "distinct_2"}
    assert all(set(metrics) == expected for metrics in report.values())
    assert all(0 < metrics["length"] <= 5 for metrics in report.values())
    for temperature in ("1", "0.4", "0"):
        assert shown.count(f"\npolicy, T = {temperature}: ") == 3
    assert shown.count("\nprompt: ") == 3 and "reference, T" not in shown


def test_reward_kl_and_win_rate_against_the_models_that_are_named(own, capsys):
    options = {"reference": own / "reference", "reward-model": own / "reward"}
    words = [*arguments(own, "evaluate", **options), "--output-dir", str(own / "out")]
    assert main([*words, "--temperatures", "1", "0", "--instruction", "Be brief."]) == 0
    report = json.loads((own / "out" / "evaluation.json").read_text())
    assert list(report) == ["sampled", "greedy"]
    for metrics in report.values():
        assert metrics["kl"] > 0.5
        interval = metrics["win_rate_low"], metrics["win_rate_high"]
        assert interval == pytest.approx(wilson_interval(6 * metrics["win_rate"], 6))
        assert {"reward", "reference_reward", "reference_length"} <= set(metrics)
        assert not {"gold", "reference_gold"} & set(metrics)
    page = (own / "out" / "samples.html").read_text()
    assert page.count("<tr") == 1 + 2 * 6 and "Be brief. question 5?" in page
    shown = capsys.readouterr().out
    assert shown.count("\nreference, T = 0: ") == shown.count("\npolicy, T = 1: ") == 3


def test_a_policy_is_compared_with_what_its_folder_says_it_was_trained_with(own, capsys):
    config = {"model": str(own / "reference"), "reward_model": str(own / "reward")}
    write_json(own / "policy" / "metrics.json", {"config": config})
    assert main(arguments(own, "evaluate")) == 0
    shown = capsys.readouterr().out
    assert f"reference     {own / 'reference'}\n" in shown
    assert f"reward model  {own / 'reward'}\n" in shown


def test_preferences_measure_the_reward_model(own, capsys):
    pair = {"input_text": "a", "candidate_0": "b", "candidate_1": "c", "choice": 1}
    schemas.write_jsonl(own / "pairs.jsonl", [pair])
    words = arguments(own, "evaluate", preferences=own / "pairs.jsonl")
    assert "name one with --reward-model" in error_of(words, capsys)
    words += ["--reward-model", str(own / "reward"), "--output-dir", str(own / "out")]
    assert main(words) == 0
    report = json.loads((own / "out" / "evaluation.json").read_text())
    assert report["reward_model"]["accuracy_noisy"] in (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperatures", "1", "-0.4"], "--temperatures: -0.4 is below 0. Give 0 (greedy)"),
        (["--temperatures", "nan"], "--temperatures: nan is below 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens: 0 is below 1"),
        (["--policy", "mine"], "'mine' is neither a stage (sft, reward, ppo"),
        (["--policy", "./nowhere"], "nowhere: no such model"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_bad_settings_are_named_before_anything_is_loaded(command, options, message, capsys):
    assert message in error_of([command, "--scale", "smoke", *options], capsys)


def test_texts_without_a_post_are_refused_for_the_little_world_s_own_models(own, capsys):
    post = schemas.read_prompts(Scale().data("prompts", "test"))[0]
    schemas.write_jsonl(own / "prompts.jsonl", [post, {"input_text": "What is a wave?"}])
    words = ["evaluate", "--scale", "smoke", "--prompts", str(own / "prompts.jsonl")]
    line = error_of(words, capsys)
    assert line.startswith(f"error: {own / 'prompts.jsonl'}, prompt 2: no post of the little world")
    assert line.endswith("name a model of your own with --policy.")


def test_a_reference_with_other_tokens_is_refused(own, capsys):
    words = arguments(own, "evaluate", reference=Scale().base_model)
    assert "reads texts as other tokens" in error_of(words, capsys)


# generate


def test_own_answers_at_several_temperatures_and_by_beams(own, capsys):
    words = [*arguments(own, "generate"), "--reference", str(own / "reference")]
    sampled = [*words, "--temperatures", "1", "0", "--output-dir", str(own / "out")]
    assert main(sampled) == 0
    shown = capsys.readouterr().out
    for name in ("prompt", "before, T = 1", "before, T = 0", "after, T = 1", "after, T = 0"):
        assert shown.count(f"{name}: ") == 6, name
    assert (own / "out" / "samples.html").read_text().count("<tr") == 1 + 6
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.count("\nbefore: ") == shown.count("\nafter: ") == 6


def test_a_model_without_a_known_reference_answers_alone(own, capsys):
    assert main(arguments(own, "generate")) == 0
    shown = capsys.readouterr().out
    assert "before" not in shown and shown.count("after: ") == 6


# The report


def test_a_policy_ties_with_itself_at_every_temperature():
    policy, tokenizer = load_policy(Scale().base_model), load_tokenizer(Scale().base_model)
    prompts = schemas.read_prompts(Scale().data("prompts", "test"))[:4]
    settings = {"reference": policy, "max_new_tokens": 4, "reward_model": lambda texts: [0.0] * 4}
    report, samples = report_policy(policy, tokenizer, prompts, **settings)
    for metrics in report.values():
        assert metrics["win_rate"] == metrics["win_rate_gold"] == 0.5
        assert metrics["reference_gold"] == metrics["gold"]
    assert report["sampled"]["kl"] == pytest.approx(0, abs=1e-4)
    assert report["greedy"]["kl"] > report["sampled_0.4"]["kl"] > 0
    assert samples["policy"].tolist() == samples["reference"].tolist()
    assert samples["temperature"].tolist() == [1.0, 0.4, 0.0] * 4
    assert samples["prompt"].nunique() == 4 and samples["prompt"][0] == samples["prompt"][2]
