"""Scales small and full: the courses' settings, and every stage on models and data of their kind.

No hub is asked: under its names lie tiny models of the same classes, in a hub cache made here, and
the data are local sets with the same columns.
"""

import json
import re
import shutil
import sys
from inspect import signature
from pathlib import Path

import deeplake
import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
import torch
from deeplake import types

from rlhf_helpers.commands.main import main
from rlhf_helpers.configs import PPOConfig
from rlhf_helpers.evaluation.questions import BEAMS, beam_answers
from rlhf_helpers.models import load_classifier, load_policy, load_tokenizer
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.scales import ASSISTANT_DATA, SCALES, Scale
from rlhf_helpers.stages import STAGES, train_stage
from rlhf_helpers.training import log_writer


@pytest.fixture(autouse=True)
def _own_random_numbers():
    with torch.random.fork_rng():
        yield


# Settings


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (
            "sft",
            {
                "model": "facebook/opt-1.3b",
                "data": "al://genai360/OpenOrca-1M-train-set",
                "eval_data": "al://genai360/OpenOrca-1M-valid-set",
                "epochs": 2,
                "batch_size": 8,
                "learning_rate": 1e-4,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 100,
                "weight_decay": 0.05,
                "max_length": 2048,
                "packing": True,
                "bits": 4,
                "lora_rank": 16,
                "lora_dropout": 0.05,
                "gradient_checkpointing": True,
                "save_steps": 2000,
            },
        ),
        (
            "reward",
            {
                "model": "microsoft/deberta-v3-base",
                "epochs": 20,
                "batch_size": 24,
                "data": "al://genai360/Anthropic-hh-rlhf-train-set",
                "eval_data": "al://genai360/Anthropic-hh-rlhf-test-set",
                "learning_rate": 2e-5,
                "lr_scheduler_type": "linear",
                "weight_decay": 0.001,
                "max_length": 512,
                "save_steps": 500,
            },
        ),
        (
            "ppo",
            {
                "data": "al://genai360/Alpaca-OrcaChat",
                "steps": 313,
                "learning_rate": 1.41e-5,
                "batch_size": 32,
                "mini_batch_size": 32,
                "ppo_epochs": 4,
                "kl_coef": 0.2,
                "adaptive_kl": True,
                "kl_target": 6.0,
                "kl_horizon": 10_000,
                "target_kl": None,
                "min_new_tokens": 32,
                "draw_lengths": True,
                "max_new_tokens": 400,
                "temperature": 1.0,
                "max_prompt_length": 400,
                "bits": 16,
                "lora_rank": 16,
                "save_steps": 50,
                "seed": 0,
            },
        ),
    ],
)
def test_full_has_the_settings_of_the_course_before(stage, expected):
    config = vars(Scale("full").config(stage))
    assert {name: config[name] for name in expected} == expected


def test_full_draws_the_samples_of_the_course_before_and_no_more():
    config = Scale("full").config("ppo")
    assert (config.steps - 1) * config.batch_size < 10_000 <= config.steps * config.batch_size


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_full_can_be_shared_by_eight_gpus_and_fewer(stage, gpus):
    config = Scale("full").config(stage)
    rows = config.batch_size
    if isinstance(config, PPOConfig):
        rows = config.mini_batch_size
        gpus *= config.gradient_accumulation_steps * config.samples_per_prompt
    assert rows % gpus == 0


def test_the_lessons_stay_in_the_little_world_on_larger_models():
    config = Scale("small", "summarize").config("sft")
    assert config.model == "facebook/opt-350m"
    assert config.data == Scale().config("sft").data
    assert Scale("small").task == Scale("full").task == "assistant"


def test_the_base_model_of_the_little_world_cannot_assist():
    with pytest.raises(ValueError, match="'tiny' speaks the little world's language only: choose"):
        Scale("tiny", "assistant")


# Every stage on models and data of the same classes and columns

ROWS = {
    "demonstrations": {
        "system_prompt": ["", "Be kind."],
        "question": ["why is it wet", "say more on it"],
        "response": ["rain fell on it", "no more is known"],
    },
    "preferences": {
        "chosen": ["\n\nHuman: hi\n\nAssistant: dear me", "\n\nHuman: b\n\nAssistant: yes"],
        "rejected": ["\n\nHuman: hi\n\nAssistant: go", "\n\nHuman: b\n\nAssistant: certainly"],
    },
    "prompts": {
        "instruction": ["make it short", "count them"],
        "input": ["a long text", ""],
        "output": ["a text", "one"],
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """Each data set as Parquet; the demonstrations in Deep Lake."""
    folder, paths = tmp_path_factory.mktemp("data"), {}
    for kind, columns in ROWS.items():
        table = pyarrow.table({name: values * 32 for name, values in columns.items()})
        paths[kind] = str(folder / f"{kind}.parquet")
        pyarrow.parquet.write_table(table, paths[kind])
    lake = deeplake.create(str(folder / "lake"))
    for name in ROWS["demonstrations"]:
        lake.add_column(name, types.Text())
    lake.append({name: values * 32 for name, values in ROWS["demonstrations"].items()})
    lake.commit()
    return paths | {"lake": str(folder / "lake")}


@pytest.fixture
def hub(make_model, tokenizer, encoder, tmp_path, monkeypatch):
    """A hub cache with tiny models under the names of `small`; what stages write goes to `runs`."""
    tokenizer.chat_template = "{{ messages[0].content }}"  # which nothing may stumble over
    tokenizer.pad_token = None
    make_model("opt", max_position_embeddings=512).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    names = {"facebook--opt-350m": tmp_path / "policy", "microsoft--deberta-v3-small": encoder}
    for name, folder in names.items():
        place = tmp_path / "hub" / f"models--{name}"
        shutil.copytree(folder, place / "snapshots" / "abc")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "runs"))
    return Scale("small")


def train(stage: str, **options) -> list[dict]:
    """The command at scale small, made short; returns the history."""
    short = {"max_length": 128, "save_steps": 2} if stage != "ppo" else {"save_steps": 1}
    words = [
        word
        for name, value in (short | options).items()
        for word in ("--" + name.replace("_", "-"), str(value))
    ]
    assert main(["train", stage, "--scale", "small", *words]) == 0
    return json.loads((Scale("small").dir(stage) / "metrics.json").read_text())["history"]


@pytest.mark.slow
def test_every_stage_trains_from_the_hub_s_models_and_streamed_data(hub, data, capsys):
    """SFT (QLoRA, packed), reward model (DeBERTa), PPO (8 bits) and DPO, one after the other."""
    history = train(
        "sft",
        data=data["lake"],
        eval_data=data["demonstrations"],
        learning_rate=0.02,
        demonstrations=60,
        epochs=2,
        warmup_steps=0,
    )
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]
    assert "device cpu" in capsys.readouterr().out
    assert not getattr(load_policy(hub.dir("sft")), "is_quantized", False)
    pairs = {"data": data["preferences"], "eval_data": data["preferences"], "batch_size": 8}
    history = train(
        "reward",
        prompts=data["prompts"],
        calibration_prompts=4,
        max_new_tokens=4,
        pairs=40,
        epochs=2,
        learning_rate=0.01,
        **pairs,
    )
    assert len(history) > 1 and history[-1]["loss"] < history[0]["loss"]
    assert type(load_classifier(hub.dir("reward"))).__name__.startswith("DebertaV2")
    better, worse = RewardModel.from_pretrained(hub.dir("reward"))(
        ["\n\nHuman: hi\n\nAssistant: dear me", "\n\nHuman: hi\n\nAssistant: go"]
    )
    assert better > worse
    history = train("ppo", data=data["prompts"], steps=2, batch_size=8, max_new_tokens=6)
    assert len(history) == 2 and history[-1]["kl"] != 0
    assert len(train("dpo", pairs=16, **pairs)) == 2
    metrics = json.loads((hub.dir("sft") / "metrics.json").read_text())["metrics"]
    assert 0 < metrics["eval_loss"] < 10
    capsys.readouterr()
    assert main(["generate", "--scale", "small"]) == 0
    shown = capsys.readouterr().out
    assert [shown.count(f"{name}: ") for name in ("prompt", "before", "after")] == [4, 4, 4]
    assert "standing waves" in shown and answers(shown, "before") != answers(shown, "after")


def answers(shown: str, name: str) -> list[str]:
    return re.findall(rf"^{name}: (.*)$", shown, re.MULTILINE)


def test_answers_are_drawn_from_beams_and_the_same_for_the_same_seed():
    """Four beams, each from the ten likeliest tokens at temperature 0.6, 128 tokens at most."""
    assert BEAMS == {
        "num_beams": 4,
        "do_sample": True,
        "top_k": 10,
        "temperature": 0.6,
    }
    assert signature(beam_answers).parameters["max_new_tokens"].default == 128
    model = load_policy(Scale().base_model), load_tokenizer(Scale().base_model)
    prompts = ["r/work:"]
    first, again, other = (beam_answers(*model, prompts, seed=seed) for seed in (0, 0, 3))
    assert first == again != other


def test_a_row_longer_than_the_model_reads_is_refused(hub, data, capsys):
    given = ["--data", data["lake"], "--eval-data", data["lake"], "--demonstrations", "8"]
    assert main(["train", "sft", "--scale", "small", *given]) == 2
    message = capsys.readouterr().err
    assert (
        "max_length is 1024, but facebook/opt-350m has 512 positions: lower --max-length" in message
    )


def test_a_source_that_cannot_be_reached_is_named(hub, capsys):
    assert main(["train", "sft", "--scale", "small", "--data", "al://nowhere/none"]) == 2
    message = capsys.readouterr().err
    assert "al://nowhere/none" in message and len(message.splitlines()) <= 3
    assert not (hub.dir("sft") / "metrics.json").exists()


def test_the_sources_are_those_of_the_course_before():
    assert {name.split("_")[0] for name in ASSISTANT_DATA} == set(ROWS)
    assert all(name.startswith("al://genai360/") for name in ASSISTANT_DATA.values())


# Tracking


def recorded_offline(folder: Path) -> bytes:
    """The one run that W&B has written below a stage's folder."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return file.read_bytes()


@pytest.mark.slow
def test_wandb_writes_offline_where_nobody_is_logged_in_and_asks_nobody(tmp_path, monkeypatch):
    def ask(*_: object) -> str:
        raise AssertionError("nobody sits there")

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("getpass.getpass", ask)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    small = Scale("smoke").config("sft", report_to="wandb", output_dir=tmp_path / "sft")
    train_stage("sft", small)
    assert b"train/loss" in recorded_offline(tmp_path / "sft")
    base = Scale("smoke").base_model
    load_classifier(base).save_pretrained(tmp_path / "judge")
    load_tokenizer(base).save_pretrained(tmp_path / "judge")
    options = {"model": base, "reward_model": tmp_path / "judge", "output_dir": tmp_path / "ppo"}
    train_stage("ppo", Scale("smoke").config("ppo", report_to="wandb", **options))
    assert b"ppo/reward_mean" in recorded_offline(tmp_path / "ppo")
    assert all(list((tmp_path / stage / "logs").iterdir()) for stage in ("sft", "ppo"))


def test_wandb_is_off_unless_asked_for():
    assert all(Scale(name).config("sft").report_to == "none" for name in SCALES)


def test_without_wandb_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = Scale("smoke").config("sft", report_to="wandb", output_dir=tmp_path)
    missing = pytest.raises(ModuleNotFoundError, match=r"wandb is not .*rlhf-helpers\[tracking\]")
    with missing, log_writer(config):
        pass
