"""Whole runs of `python -m rlhf_helpers train ppo`: options, quantised policies, what stops a run.

The base model stands for the SFT model, and a new head on it for the reward model.
"""

import json
from pathlib import Path

import pytest
import torch
from ppo_helpers import same
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_helpers import ppo
from rlhf_helpers.commands.main import main
from rlhf_helpers.models import add_lora, load_policy, load_tokenizer
from rlhf_helpers.models.devices import matmul_precision
from rlhf_helpers.ppo import PPOConfig, PPOTrainer
from rlhf_helpers.ppo.reference import reference_logprobs
from rlhf_helpers.reward_model import RewardModel, append_eos
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import write_jsonl

BASE = Scale("smoke").base_model
PROMPTS = ["A post about my cat [summary]:", "Why not? [summary]:"]
OPTIONS = {
    "ptx_coef": 0.1,
    "adaptive_kl": True,
    "kl_target": 0.01,
    "kl_horizon": 20.0,
    "critic": "separate",
    "gradient_accumulation_steps": 2,
}


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory) -> Path:
    """A reward model with an untrained head."""
    folder = tmp_path_factory.mktemp("reward")
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_MATMUL_PRECISION", "highest")
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1)
    model.save_pretrained(folder)
    append_eos(load_tokenizer(BASE), 512).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(reward_folder, tmp_path_factory) -> dict[str, Path]:
    """The models of a run, and data so short that it is quick."""
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "prompts.jsonl", [{"input_text": prompt} for prompt in PROMPTS])
    write_jsonl(
        folder / "documents.jsonl", [{"text": text} for text in ("A short one.", "Another")]
    )
    return {
        "model": BASE,
        "reward_model": reward_folder,
        "data": folder / "prompts.jsonl",
        "ptx_data": folder / "documents.jsonl",
    }


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_MATMUL_PRECISION", "highest")
    matmul_precision.cache_clear()
    yield
    matmul_precision.cache_clear()


@pytest.fixture
def config(folders, tmp_path):
    """`config("here", steps=3)`: a smoke run's settings, into a folder of that name."""

    def make(name: str = "run", **changes):
        return Scale("smoke").config("ppo", **folders | {"output_dir": tmp_path / name} | changes)

    return make


@pytest.fixture
def arguments(folders, tmp_path) -> list[str]:
    """The same as a command line, into `out`."""
    where = folders | {"output_dir": tmp_path / "out"}
    options = [part for k, v in where.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    return ["train", "ppo", "--scale", "smoke", *options]


def without_seconds(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in history]


def stop_after(steps: int, config, monkeypatch) -> None:
    """Run until someone stops it after so many steps."""
    step, done = PPOTrainer.step, []

    def stop(self, *arguments):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PPOTrainer, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            ppo.train(config)


# ---- options -------------------------------------------------------------------------------


def test_options_on_the_command_line_reach_the_run(arguments, tmp_path):
    options = [
        "--ptx-coef",
        "0.5",
        "--adaptive-kl",
        "--critic",
        "separate",
        "--score-clip",
        "2",
        "--target-kl",
        "0.2",
        "--gradient-accumulation-steps",
        "2",
        "--draw-lengths",
        "--min-new-tokens",
        "4",
    ]
    assert main(arguments + options) == 0
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["config"]["adaptive_kl"] is True
    assert report["config"]["critic"] == "separate"
    assert report["history"][0]["ptx_loss"] > 0
    assert 4 <= report["history"][0]["response_length"] <= 8
    assert report["history"][0]["kl_coef"] != report["history"][1]["kl_coef"]


def test_a_run_with_options_resumes_exactly(config, monkeypatch):
    whole = ppo.train(config("whole", steps=4, **OPTIONS))
    stop_after(3, config("stopped", steps=4, **OPTIONS), monkeypatch)
    resumed = ppo.train(config("stopped", steps=4, **OPTIONS), resume=True)
    assert without_seconds(resumed.history) == without_seconds(whole.history)
    files = [load_file(result.output_dir / "model.safetensors") for result in (whole, resumed)]
    assert same(*files)


def test_a_separate_critic_of_a_run_starts_from_the_reward_model(config, monkeypatch):
    starts, reward = [], load_file(config().reward_model / "model.safetensors")

    def rollout(self, *_):
        starts.append({f"model.{k}": v for k, v in self.critic.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(PPOTrainer, "rollout", rollout)
    with pytest.raises(KeyboardInterrupt):
        ppo.train(config(critic="separate"))
    assert same(starts[0], reward)


# ---- what stops a run ----------------------------------------------------------------------


def break_at(step: int, monkeypatch, what: str) -> None:
    """From this step on the reward model gives NaN, or the values are infinite."""
    rollout, done = PPOTrainer.rollout, []
    score = RewardModel.score

    def broken_rollout(self, *arguments):
        done.append(1)
        found = rollout(self, *arguments)
        if what == "loss" and len(done) > step:
            found.values[2] = torch.inf
        return found

    def broken_score(self, prompts, answers):
        scores = score(self, prompts, answers)
        return [*scores[:2], float("nan"), *scores[3:]] if len(done) > step else scores

    monkeypatch.setattr(PPOTrainer, "rollout", broken_rollout)
    if what == "score":
        monkeypatch.setattr(RewardModel, "score", broken_score)


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("score", ValueError, r"step 2: the score of response 2 is nan: '.*"),
        ("loss", FloatingPointError, r"step 2: \{.*nan.*\} on the mini-batch of responses \[\d, "),
    ],
)
def test_a_number_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(
    config, monkeypatch, what, error, message
):
    whole = ppo.train(config("whole", steps=4))
    with monkeypatch.context() as patch:
        break_at(2, patch, what)
        with pytest.raises(error, match=message) as stop:
            ppo.train(config("broken", steps=4))
        assert "\n" not in str(stop.value)
    folder = config("broken").output_dir
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert not (folder / "metrics.json").exists()
    resumed = ppo.train(config("broken", steps=4), resume=True)
    assert without_seconds(resumed.history) == without_seconds(whole.history)


@pytest.mark.parametrize(("what", "status"), [("score", 2), ("loss", 1)])
def test_the_command_line_says_so_in_one_line(arguments, monkeypatch, capsys, what, status):
    break_at(0, monkeypatch, what)
    assert main(arguments) == status
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: step 0: ")


# ---- LoRA and quantised policies -----------------------------------------------------------


def quantised(bits: int, **changes) -> PPOTrainer:
    settings = {
        "batch_size": 8,
        "mini_batch_size": 4,
        "max_new_tokens": 8,
        "steps": 3,
        "learning_rate": 3e-3,
        "warmup_steps": 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = add_lora(load_policy(BASE, bits), rank=4)
    return PPOTrainer(policy, load_tokenizer(BASE), PPOConfig(**settings | changes))


def learn(trainer: PPOTrainer, steps: int) -> list[dict]:
    history = []
    for _ in range(steps):
        rollout = trainer.rollout(PROMPTS)
        history.append(trainer.step(rollout, [float(len(text)) for text in rollout.texts]))
    return history


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_an_inexact_policy_starts_at_ratio_1_and_the_gap_is_logged(bits, monkeypatch):
    monkeypatch.setenv("RLHF_PRECISION", "float32")  # products in bfloat16 may round the gap away
    trainer, ratios = quantised(bits), []
    policy_loss = ppo.trainer.policy_loss

    def spy(logprobs, old_logprobs, advantages, mask, *clips):
        ratios.append((logprobs - old_logprobs).exp()[mask].detach())
        return policy_loss(logprobs, old_logprobs, advantages, mask, *clips)

    monkeypatch.setattr(ppo.trainer, "policy_loss", spy)
    history = learn(trainer, 1)
    sampled = torch.tensor(history[0]["logprob_gap"])
    assert 0 < sampled < 0.2
    # The rows of a mini-batch are others than those of the pass before, which bf16 feels a little.
    assert (ratios[0] - 1).abs().mean() < max(1e-4, 0.5 * sampled)


def test_an_exact_policy_logs_no_gap():
    assert "logprob_gap" not in learn(quantised(32), 1)[0]


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_only_the_adapter_learns_and_the_reference_stays(bits):
    trainer = quantised(bits)
    first = trainer.rollout(PROMPTS)  # in which 4 bits round the biases of their layers
    before = {k: v.clone() for k, v in trainer.policy.state_dict().items()}
    assert (first.logprobs - first.ref_logprobs).abs().mean() < 0.02
    history = learn(trainer, 3)
    after = trainer.policy.state_dict()
    changed = {name for name, weight in before.items() if not weight.equal(after[name])}
    assert changed and all("lora_" in name for name in changed)
    assert abs(history[-1]["kl"]) > 0.01
    again = reference_logprobs(trainer.policy, None, None, first, trainer.config)
    torch.testing.assert_close(again, first.ref_logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_a_run_with_lora_writes_a_merged_model(config, bits):
    result = ppo.train(config(lora_rank=4, bits=bits, learning_rate=0.01, warmup_steps=1))
    model, problems = AutoModelForCausalLM.from_pretrained(
        result.output_dir, output_loading_info=True
    )
    assert not any(problems.values()), problems
    assert not hasattr(model.config, "quantization_config")
    base = AutoModelForCausalLM.from_pretrained(BASE).state_dict()
    for name, weight in model.state_dict().items():
        change = (weight - base[name]).abs().max()
        trained = "layers" in name and name.endswith("weight") and "norm" not in name
        assert (change > 0) == trained, name
        assert change < 0.2, name


def test_a_run_with_lora_resumes_exactly(config, monkeypatch):
    settings = {"lora_rank": 4, "bits": 4, "steps": 3, "critic": "separate"}
    whole = ppo.train(config("whole", **settings))
    stop_after(2, config("stopped", **settings), monkeypatch)
    state = torch.load(config("stopped").output_dir / "checkpoints/checkpoint-2/state.pt")
    assert all("lora_" in name for name in state["policy"])
    resumed = ppo.train(config("stopped", **settings), resume=True)
    assert without_seconds(resumed.history) == without_seconds(whole.history)
