"""Configs refuse every value that makes no sense, in one clear sentence and before any work."""

import dataclasses
import math

import pytest

from rlhf_helpers import configs
from rlhf_helpers.configs.settings import check_settings, options, setting
from rlhf_helpers.scales import SCALES, Scale
from rlhf_helpers.stages import STAGES

COUNT, NOT_NEGATIVE, POSITIVE = (
    "a whole number of at least 1",
    "a number of at least 0",
    "a number above 0",
)
STEPS, SEED = "a whole number of at least 0", "a whole number from 0 to 4294967295"
SHARE, NOISE = "a number from 0 to 1", "a number from 0 to below 0.5"
SCHEDULES = (
    "one of linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup, "
    "inverse_sqrt"
)

# stage, setting, value, what the error says that it must be
BAD = [
    ("sft", "model", None, "a text"),
    ("sft", "data", 7, "a text"),
    ("sft", "seed", -1, SEED),
    ("sft", "seed", 1.5, SEED),
    ("sft", "seed", True, SEED),
    ("sft", "seed", "abc", SEED),
    ("sft", "seed", 2**32, SEED),
    ("sft", "instruction", None, "a text"),
    ("sft", "lora_rank", -1, STEPS),
    ("sft", "bits", 7, "one of 32, 16, 8, 4"),
    ("sft", "batch_size", 0, COUNT),
    ("sft", "batch_size", -8, COUNT),
    ("sft", "batch_size", 8.0, COUNT),
    ("sft", "learning_rate", -1e-4, NOT_NEGATIVE),
    ("sft", "learning_rate", math.nan, NOT_NEGATIVE),
    ("sft", "learning_rate", math.inf, NOT_NEGATIVE),
    ("sft", "learning_rate", "1e-4", NOT_NEGATIVE),
    ("sft", "save_steps", 0, COUNT),
    ("sft", "report_to", "mail", "one of none, wandb"),
    ("sft", "epochs", 0, POSITIVE),
    ("sft", "epochs", -1, POSITIVE),
    ("sft", "epochs", math.nan, POSITIVE),
    ("sft", "lr_scheduler_type", "falling", SCHEDULES),
    ("sft", "warmup_steps", -1, STEPS),
    ("sft", "weight_decay", math.nan, NOT_NEGATIVE),
    ("sft", "weight_decay", -0.1, NOT_NEGATIVE),
    ("sft", "max_length", 0, "a whole number of at least 2"),
    ("sft", "max_length", 1, "a whole number of at least 2"),
    ("sft", "lora_dropout", 1.0, "a number from 0 to below 1"),
    ("sft", "gradient_checkpointing", "yes", "True or False"),
    ("sft", "demonstrations", 0, f"{COUNT} or None"),
    ("sft", "packing", 1, "True or False"),
    ("reward", "pairs", -1, f"{COUNT} or None"),
    ("reward", "pairs", 0, f"{COUNT} or None"),
    ("reward", "objective", "rank", "one of order, scores"),
    ("reward", "center_rewards_coefficient", -1.0, NOT_NEGATIVE),
    ("reward", "label_smoothing", 0.5, NOISE),
    ("reward", "max_new_tokens", 0, COUNT),
    ("reward", "calibration_prompts", 1, "a whole number of at least 2"),
    ("reward", "save_steps", -1, COUNT),
    ("reward", "batch_size", 0, COUNT),
    ("dpo", "pairs", 0, f"{COUNT} or None"),
    ("dpo", "beta", 0.0, POSITIVE),
    ("dpo", "beta", math.nan, POSITIVE),
    ("dpo", "loss_type", "hinge", "one of sigmoid, ipo"),
    ("dpo", "label_smoothing", -0.1, NOISE),
    ("dpo", "max_length", -5, "a whole number of at least 2"),
    ("rest", "grow_steps", 0, COUNT),
    ("rest", "improve_steps", 0, COUNT),
    ("rest", "grow_prompts", 0, COUNT),
    ("rest", "samples_per_prompt", 1, "a whole number of at least 2"),
    ("rest", "max_new_tokens", 0, COUNT),
    ("rest", "learning_rate", math.nan, NOT_NEGATIVE),
    ("ppo", "steps", 0, COUNT),
    ("ppo", "warmup_steps", -1, STEPS),
    ("ppo", "batch_size", 0, COUNT),
    ("ppo", "samples_per_prompt", 0, COUNT),
    ("ppo", "mini_batch_size", 0, COUNT),
    ("ppo", "gradient_accumulation_steps", 0, COUNT),
    ("ppo", "ppo_epochs", 0, COUNT),
    ("ppo", "learning_rate", math.inf, NOT_NEGATIVE),
    ("ppo", "value_learning_rate", -1.0, NOT_NEGATIVE),
    ("ppo", "value_head_std", -1.0, NOT_NEGATIVE),
    ("ppo", "critic", "none", "one of shared, separate"),
    ("ppo", "kl_coef", -0.1, NOT_NEGATIVE),
    ("ppo", "adaptive_kl", None, "True or False"),
    ("ppo", "kl_target", 0.0, POSITIVE),
    ("ppo", "kl_horizon", 0.0, POSITIVE),
    ("ppo", "target_kl", 0.0, f"{POSITIVE} or None"),
    ("ppo", "target_kl", -1.0, f"{POSITIVE} or None"),
    ("ppo", "gamma", 1.1, SHARE),
    ("ppo", "lam", -0.1, SHARE),
    ("ppo", "cliprange", 0.0, POSITIVE),
    ("ppo", "cliprange_high", 0.0, f"{POSITIVE} or None"),
    ("ppo", "draw_lengths", 1, "True or False"),
    ("ppo", "advantages", "ppo", "one of gae, reinforce, rloo, grpo, dr_grpo"),
    ("ppo", "kl_place", "both", "one of reward, loss or None"),
    ("ppo", "aggregation", "mean", "one of token, sequence, constant or None"),
    ("ppo", "cliprange_value", math.nan, POSITIVE),
    ("ppo", "vf_coef", -1.0, NOT_NEGATIVE),
    ("ppo", "max_grad_norm", 0.0, POSITIVE),
    ("ppo", "temperature", 0.0, POSITIVE),
    ("ppo", "temperature", math.nan, POSITIVE),
    ("ppo", "min_new_tokens", -1, STEPS),
    ("ppo", "draw_lengths", 1, "True or False"),
    ("ppo", "max_new_tokens", 0, COUNT),
    ("ppo", "missing_eos_penalty", -1.0, NOT_NEGATIVE),
    ("ppo", "score_clip", 0.0, f"{POSITIVE} or None"),
    ("ppo", "ptx_coef", -1.0, NOT_NEGATIVE),
    ("ppo", "max_prompt_length", 0, COUNT),
    ("ppo", "reward_model_weight", -1.0, NOT_NEGATIVE),
    ("ppo", "reward_function", "mine.py:brevity", "a list"),
    ("rlaif", "reward_function", None, "a list"),
    ("ppo", "save_steps", 0, COUNT),
    ("ppo", "seed", -1, SEED),
    ("ppo", "drop_equal_groups", 1, "True or False"),
    ("rloo", "advantages", "grpo", "one of rloo"),
    ("grpo", "advantages", "rloo", "one of grpo, dr_grpo"),
    ("rlaif", "labels", 0, COUNT),
    ("rlaif", "labels", -3, COUNT),
    ("rlaif", "steps", 0, COUNT),
]

# settings that do not go together
TOGETHER = [
    ("sft", {"bits": 4}, "weights of 4 bits cannot be trained: set lora_rank too"),
    ("ppo", {"bits": 8}, "weights of 8 bits cannot be trained: set lora_rank too"),
    (
        "dpo",
        {"label_smoothing": 0.1, "loss_type": "ipo"},
        "label_smoothing belongs to the sigmoid loss: leave it 0 for ipo",
    ),
    (
        "ppo",
        {"min_new_tokens": 49},
        "min_new_tokens 49 is more than max_new_tokens 48",
    ),
    (
        "ppo",
        {"advantages": "rloo", "critic": "separate"},
        "rloo has no critic: leave critic as it is",
    ),
    (
        "ppo",
        {"advantages": "grpo", "samples_per_prompt": 1},
        "grpo compares the answers to a prompt: set samples_per_prompt to 2 or more",
    ),
    (
        "rloo",
        {"samples_per_prompt": 1},
        "rloo compares the answers to a prompt: set samples_per_prompt to 2 or more",
    ),
    ("grpo", {"gamma": 0.9}, "grpo does not discount: leave gamma 1"),
    (
        "ppo",
        {"drop_equal_groups": True},
        "drop_equal_groups is for rloo, grpo, dr_grpo",
    ),
    (
        "ppo",
        {"draw_lengths": True},
        "draw_lengths needs the shortest length: set min_new_tokens above 0",
    ),
    (
        "ppo",
        {"adaptive_kl": True, "kl_coef": 0.0},
        "adaptive_kl multiplies kl_coef: start it above 0",
    ),
    (
        "ppo",
        {"batch_size": 48},
        "batch_size 48 must be a multiple of mini_batch_size 32, and that of samples_per_prompt 4",
    ),
    (
        "ppo",
        {"gradient_accumulation_steps": 3},
        "mini_batch_size 32 must be a multiple of 12: gradient_accumulation_steps 3 times "
        "samples_per_prompt 4",
    ),
    (
        "ppo",
        {"reward_model_weight": 0.0},
        "reward_model_weight 0 leaves no reward: set reward_function too",
    ),
    (
        "ppo",
        {"reward_function": ["mine.py:brevity", 3]},
        "reward_function is 3: it must be a text",
    ),
    (
        "ppo",
        {"ptx_coef": 1.0, "ptx_data": None},
        "ptx_coef needs pretraining documents: set ptx_data",
    ),
]


@pytest.mark.parametrize(("stage", "name", "value", "wanted"), BAD)
def test_a_bad_value_is_refused_by_name(stage, name, value, wanted):
    with pytest.raises(ValueError) as error:
        Scale().config(stage, **{name: value})
    assert str(error.value) == f"{name} is {value!r}: it must be {wanted}"


@pytest.mark.parametrize(("stage", "changes", "message"), TOGETHER)
def test_values_that_do_not_go_together_are_refused(stage, changes, message):
    with pytest.raises(ValueError) as error:
        Scale().config(stage, **changes)
    assert str(error.value) == message


def test_the_trainer_s_own_config_checks_itself_too():
    with pytest.raises(ValueError, match=r"gamma is 1\.5: it must be a number from 0 to 1"):
        configs.PPOConfig(gamma=1.5)


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_of_a_stage_is_described_and_has_a_bad_value(stage):
    """But for paths, of which any may exist."""
    tried = {name for _, name, _, _ in BAD}
    for option in options(STAGES[stage].config):
        assert len(option.setting.help) > 3, option.name
        if option.kind in (int, float, bool):
            assert option.name in tried, option.name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_settings_for_every_stage(stage, scale):
    config = Scale(scale).config(stage)
    assert type(config) is STAGES[stage].config


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="unknown stage 'dance': choose one of sft, reward, ppo"):
        Scale().config("dance")


def test_a_subclass_that_changes_a_default_keeps_meaning_and_limits():
    @dataclasses.dataclass
    class Base:
        size: int = setting(1, "how large", at_least=1)

        def __post_init__(self):
            check_settings(self)

    @dataclasses.dataclass
    class Larger(Base):
        size: int = 10

    (option,) = options(Larger)
    assert (option.default, option.setting.help) == (10, "how large")
    with pytest.raises(ValueError, match="size is 0: it must be a whole number of at least 1"):
        Larger(0)


def test_a_field_without_a_description_is_a_mistake_of_the_programmer():
    @dataclasses.dataclass
    class Bare:
        size: int = 1

    with pytest.raises(TypeError, match=r"Bare\.size has no description"):
        options(Bare)
