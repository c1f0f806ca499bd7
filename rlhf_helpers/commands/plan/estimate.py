"""Estimates the memory and the hours of a scale's stages.

Nothing is downloaded: `facts` holds the shapes of the known models. Hours follow from a measured
rate where there is one; otherwise they are estimated from the GPU's peak, and marked `estimated`.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

from rlhf_helpers import configs, scales
from rlhf_helpers.commands.plan.facts import (
    GPUS,
    LAPTOP,
    MEASURED,
    Data,
    data_of,
    shape_of,
    texts_of,
)
from rlhf_helpers.stages import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# A stage that runs others is planned as these.
PLANNED = [stage.name for stage in STAGES.values() if not stage.runs]
GIB = 2**30
# Assumptions: the share of the peak that training reaches, and the seconds that a GPU takes to
# start the operations of one layer for one sampled token.
SHARE_OF_PEAK, SECONDS_A_LAYER = 0.3, 1e-3


class StagePlan(NamedTuple):
    """What a stage needs: bytes of each part on one GPU, and what there is to do."""

    stage: str
    config: configs.StageConfig
    parts: dict[str, int]
    steps: int
    samples: float
    tokens: float
    hours: float
    how: str  # "measured" or "estimated"


def plan(
    scale: scales.Scale, gpu: str, gpus: int = 1, policy: str = "", reward: str = ""
) -> list[StagePlan]:
    """Plan all stages of a scale on a number of GPUs, for the scale's models or for those named."""
    from rlhf_helpers.commands.plan.memory import batch_of, memory

    judge = reward or scales.REWARD_MODELS.get(scale.name) or policy or scale.base_model
    shapes = (shape_of(policy or scale.base_model), shape_of(judge))
    plans = []
    for stage in PLANNED:
        config, data = scale.config(stage), data_of(scale, stage)
        candidates = texts_of(scale, stage)
        batch = batch_of(config, data.longest_prompt, data.longest_response, candidates, gpus)
        parts = memory(config, *shapes, batch, gpus, half=gpu != LAPTOP)
        steps, samples, tokens = work(config, data, candidates)
        rate = MEASURED.get((machine_name(gpu, gpus), scale.name, scale.task, stage))
        seconds = samples / rate if rate else estimate(config, steps, tokens, *shapes, gpu, gpus)
        how = "measured" if rate else "estimated"
        hours = seconds / 3600
        plans.append(StagePlan(stage, config, parts, steps, samples, tokens, hours, how))
    return plans


def work(config: configs.StageConfig, data: Data, texts: int) -> tuple[int, float, float]:
    """Steps, samples and tokens of a stage. Samples are records, and responses in PPO."""
    if isinstance(config, configs.PPORunConfig):
        drawn = (config.min_new_tokens + config.max_new_tokens) / 2
        response = drawn if config.min_new_tokens else min(data.response, config.max_new_tokens)
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
    return math.ceil(rows / config.batch_size), samples, samples * texts * length


def estimate(
    config: configs.StageConfig,
    steps: int,
    tokens: float,
    policy: "PreTrainedConfig",
    reward: "PreTrainedConfig",
    gpu: str,
    gpus: int,
) -> float:
    """Seconds at the assumed share of the GPU's peak, with 2 FLOP a weight, token and pass.

    A backward pass costs as much as two forward passes, or as one where only an adapter is trained
    (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Sampling also waits for the GPU to start
    the operations of every layer.
    """
    from rlhf_helpers.commands.plan.weights import matrix_parameters

    trains_reward = isinstance(config, configs.RewardConfig)
    weights = matrix_parameters(reward if trains_reward else policy, trains_reward)
    passes = 2.0 if config.lora_rank else 3.0
    waiting, others = 0.0, 0
    if isinstance(config, configs.PPORunConfig):  # sampling, reference, and where log-probs differ
        passes = config.ppo_epochs * passes + 2 + (config.bits != 32)
        others = matrix_parameters(reward, True)
        waiting = steps * config.max_new_tokens * policy.num_hidden_layers * SECONDS_A_LAYER
    elif isinstance(config, configs.TRLStageConfig):  # DPO asks the reference once
        passes += config.gradient_checkpointing + isinstance(config, configs.DPOConfig)
    machine = GPUS[gpu]
    half = isinstance(config, configs.TRLStageConfig) or config.bits < 16
    peak = 1e12 * gpus * (machine.half if half else machine.single)
    flop = 2 * tokens * (passes * weights + others)
    return flop / (SHARE_OF_PEAK * peak) + (waiting if gpu != LAPTOP else 0)


def machine_name(gpu: str, gpus: int) -> str:
    """A machine's name in the prices and among the measured rates."""
    return LAPTOP if gpu == LAPTOP else f"{gpus} x {gpu}"
