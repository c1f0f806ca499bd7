"""Estimates the work and the hours of a scale's stages.

Nothing is downloaded: `facts` holds the shapes of the known models. Hours follow from a measured
rate for the models, data and settings that were measured; otherwise they are estimated from the
GPU's peak, and marked `estimated`.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from rlhf_helpers import configs, scales
from rlhf_helpers.commands.plan.data import Data, data_of
from rlhf_helpers.commands.plan.facts import (
    GPUS,
    LAPTOP,
    MEASURED,
    REACHED,
    REACHED_ON_CPU,
    SECONDS_A_LAYER,
    name_of,
    shape_of,
)
from rlhf_helpers.stages import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# A stage that runs others is planned as these.
PLANNED = [stage.name for stage in STAGES.values() if not stage.runs]


class StagePlan(NamedTuple):
    """The work of a stage, and how long it takes."""

    stage: str
    config: configs.StageConfig
    data: Data
    steps: int
    samples: float  # records, and responses in PPO
    tokens: float
    hours: float
    how: str  # "measured" or "estimated"


def plan(
    scale: scales.Scale,
    gpu: str,
    gpus: int = 1,
    policy: str = "",
    reward: str = "",
    data: Mapping[str, Data] | None = None,
) -> list[StagePlan]:
    """Plan all stages of a scale on a number of GPUs.

    `policy`, `reward` and `data` (by kind: demonstrations, preferences, prompts) take the place of
    the scale's own.
    """
    models = models_of(scale, policy, reward)
    shapes = (shape_of(models[0]), shape_of(models[1]))
    plans = []
    for stage in PLANNED:
        config, own = scale.config(stage), (data or {}).get(STAGES[stage].reads)
        read = own or data_of(scale, stage)
        steps, samples, tokens = work(config, read)
        rate = None if own else measured_rate(machine_name(gpu, gpus), scale, stage, models)
        seconds = samples / rate if rate else estimate(config, steps, tokens, *shapes, gpu, gpus)
        how = "measured" if rate else "estimated"
        plans.append(StagePlan(stage, config, read, steps, samples, tokens, seconds / 3600, how))
    return plans


def models_of(scale: scales.Scale, policy: str, reward: str) -> tuple[str, str]:
    """The policy and the base of the reward model: those that are named, or else the scale's."""
    policy = policy or str(scale.base_model)
    return policy, reward or scales.REWARD_MODELS.get(scale.name) or policy


def measured_rate(
    machine: str, scale: scales.Scale, stage: str, models: tuple[str, str]
) -> float | None:
    """Samples a second, if they were measured with these very models."""
    policy, reward = map(name_of, models)
    asked = (machine, policy, reward, scale.name, scale.task, stage)
    return next((found.rate for found in MEASURED if found[:-1] == asked), None)


def answers_of(config: configs.StageConfig, data: Data) -> int:
    """How many answers of a record a stage reads: all in the reward model, two in DPO."""
    if isinstance(config, configs.RewardConfig):
        return data.answers
    return 2 if isinstance(config, configs.DPOConfig) else 1


def work(config: configs.StageConfig, data: Data) -> tuple[int, float, float]:
    """Steps, samples and tokens of a stage. Samples are records, and responses in PPO."""
    if isinstance(config, configs.PPORunConfig):
        drawn = (config.min_new_tokens + config.max_new_tokens) / 2
        response = drawn if config.draw_lengths else min(data.response, config.max_new_tokens)
        responses = config.steps * config.batch_size
        length = min(data.prompt, config.max_prompt_length) + response
        return config.steps, responses, responses * length
    assert isinstance(config, configs.TRLStageConfig)
    sft = isinstance(config, configs.SFTConfig)
    limit = getattr(config, "demonstrations" if sft else "pairs")
    samples = min(data.records, limit or data.records) * config.epochs
    length = min(data.prompt + data.response, config.max_length)
    packed = getattr(config, "packing", False)
    rows = samples * length / config.max_length if packed else samples
    tokens = samples * answers_of(config, data) * length
    steps = math.ceil(rows / config.batch_size)
    if reads_once(config):
        return steps, samples / config.epochs, tokens / config.epochs
    return steps, samples, tokens


def reads_once(config: configs.StageConfig) -> bool:
    """Whether a stage's model reads the data once, however many epochs its head is trained for."""
    return isinstance(config, configs.RewardConfig) and config.head == "answer_tokens"


def estimate(
    config: configs.StageConfig,
    steps: int,
    tokens: float,
    policy: "PreTrainedConfig",
    reward: "PreTrainedConfig",
    gpu: str,
    gpus: int,
) -> float:
    """Seconds at a share of the GPU's peak, with 2 FLOP for each weight, token and pass.

    A backward pass costs as much as two forward passes, or as one where only an adapter is trained
    (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Sampling also waits for the GPU to start
    the operations of every layer.
    """
    from rlhf_helpers.commands.plan.weights import matrix_parameters

    trains_reward = isinstance(config, configs.RewardConfig)
    weights = matrix_parameters(reward if trains_reward else policy, trains_reward)
    passes = 1.0 if reads_once(config) else 2.0 if config.lora_rank else 3.0
    waiting, others = 0.0, 0
    if isinstance(config, configs.PPORunConfig):  # sampling, reference, and where log-probs differ
        passes = config.ppo_epochs * passes + 2 + (config.bits != 32)
        others = matrix_parameters(reward, True)
        waiting = steps * config.max_new_tokens * policy.num_hidden_layers
        waiting *= SECONDS_A_LAYER[config.bits]
    elif isinstance(config, configs.TRLStageConfig):  # DPO asks the reference once
        passes += config.gradient_checkpointing + isinstance(config, configs.DPOConfig)
    flop = 2 * tokens * (passes * weights + others)
    if gpu == LAPTOP:
        return flop / (REACHED_ON_CPU * 1e12 * GPUS[gpu].single)
    half = isinstance(config, configs.TRLStageConfig) or config.bits <= 16
    peak = 1e12 * gpus * (GPUS[gpu].half if half else GPUS[gpu].single)
    return flop / (share_of_peak(config) * peak) + waiting


def share_of_peak(config: configs.StageConfig) -> float:
    """The share of the peak that the stage of this config reaches."""
    return next(REACHED[name] for name in PLANNED if isinstance(config, STAGES[name].config))


def machine_name(gpu: str, gpus: int) -> str:
    """A machine's name in the prices and among the measured rates."""
    return LAPTOP if gpu == LAPTOP else f"{gpus} x {gpu}"
