"""What does not go together is refused before training, by every stage and in clear words."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_helpers import dpo, ppo, rest, reward_model, sft
from rlhf_helpers.configs import DPOConfig, PPORunConfig, RestConfig, RewardConfig, SFTConfig
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.schemas import write_jsonl


@pytest.fixture
def policy(make_model, tokenizer, tmp_path):
    """A folder with a language model of 128 positions."""
    make_model("gpt2").save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def judge(policy, tokenizer, tmp_path):
    """A folder with a classifier of one label, head and all."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


@pytest.fixture
def stage(policy, judge, tmp_path):
    """`stage("sft")`: a stage's training on a few records; keywords change its settings."""

    def train(name: str, **changes):
        pair = {"input_text": "a post", "candidate_0": "x", "candidate_1": "y", "choice": 0}
        records = [pair | {"output_text": "x"}] * 8
        write_jsonl(tmp_path / "data.jsonl", records)
        common = {
            "model": policy,
            "data": tmp_path / "data.jsonl",
            "output_dir": tmp_path / "out",
        }
        sampling = {"reward_model": judge, "max_new_tokens": 4}
        calibration = {"sft_model": policy, "prompts": tmp_path / "data.jsonl", "max_new_tokens": 4}
        rollouts = {"steps": 1, "batch_size": 8, "mini_batch_size": 8}
        grown = {"grow_steps": 1, "improve_steps": 1, "grow_prompts": 8}
        run, config, more = {
            "sft": (sft.train, SFTConfig, {"batch_size": 4}),
            "reward": (reward_model.train, RewardConfig, calibration),
            "dpo": (dpo.train, DPOConfig, {"batch_size": 4}),
            "ppo": (ppo.train, PPORunConfig, sampling | rollouts),
            "rest": (rest.train, RestConfig, sampling | grown),
        }[name]
        return run(config(**common | more | changes))

    yield train
    assert not (tmp_path / "out").exists()


STAGES = pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo", "rest"])


@pytest.mark.parametrize("name", ["reward", "ppo", "rest"])
def test_answers_that_would_run_past_the_last_position(stage, name):
    with pytest.raises(ValueError, match="max_new_tokens is 200, but the model reads at most 128"):
        stage(name, max_new_tokens=200)


@STAGES
def test_a_tokenizer_with_more_tokens_than_the_model_embeds(stage, policy, tokenizer, name):
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(policy)
    with pytest.raises(ValueError, match=r"has a token 98, but the model embeds 98 tokens only"):
        stage(name)


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "rest"])
def test_a_policy_without_a_language_model_head(stage, judge, name):
    with pytest.raises(ValueError, match="GPT2ForSequenceClassification has no trained language-"):
        stage(name, model=judge)


@pytest.mark.parametrize("name", ["ppo", "rest"])
def test_a_reward_model_without_a_trained_head(stage, policy, name):
    with pytest.raises(ValueError) as error:
        stage(name, reward_model=policy)
    assert str(error.value).startswith(f"{policy}: no reward model: it has no trained head")


def test_a_classifier_with_other_labels(policy, tokenizer, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=3)
    model.save_pretrained(tmp_path / "three")
    tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="no trained head with one label"):
        RewardModel.from_pretrained(tmp_path / "three")


def test_a_tokenizer_without_an_eos(stage, policy, tokenizer):
    tokenizer.eos_token = None
    tokenizer.save_pretrained(policy)
    with pytest.raises(ValueError, match="its tokenizer has no EOS token"):
        stage("ppo")


def test_one_prompt_is_too_few_to_standardise_on(stage, tmp_path):
    write_jsonl(tmp_path / "one.jsonl", [{"input_text": "a post"}])
    with pytest.raises(ValueError, match=r"one\.jsonl: one prompt gives scores no deviation"):
        stage("reward", prompts=tmp_path / "one.jsonl")
