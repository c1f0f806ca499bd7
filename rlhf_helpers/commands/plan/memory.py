"""How many bytes of each part a training stage needs on one GPU, before anything is loaded.

Weights, gradients and optimiser follow from shapes, activations from what autograd saves. Left
out: what single operations and the gradients of one layer's activations need in between, CUDA's own
memory, a separate critic.
"""

import math
from collections.abc import Mapping

from transformers import PreTrainedConfig

from rlhf_helpers import prompt_cache
from rlhf_helpers.commands.plan.activations import Batch, activation_bytes
from rlhf_helpers.commands.plan.weights import empty_model, frozen_bytes, parameters, skeleton
from rlhf_helpers.configs import (
    DPOConfig,
    PPORunConfig,
    RewardConfig,
    SFTConfig,
    StageConfig,
    TRLStageConfig,
)

# TRL's chunked loss makes the logits of so many positions and words at a time
# (TOKEN_CHUNK_SIZE and _CHUNKED_LOGPROB_CHUNK_SIZE of trl 1.16).
LOGIT_TILE = (4096, 32_768)
CALIBRATION_ROWS = 128  # responses that `generation.respond` samples at once

# Parts of a training step, and of other moments: sampling, and the end of a stage.
STEP, OTHERWISE = ("activations", "logits"), ("KV cache", "loaded at the end")


def batch_of(
    config: StageConfig, prompt: int, response: int, candidates: int = 2, gpus: int = 1
) -> Batch:
    """One GPU's share of a stage's batch, of the longest prompts and responses of the data.

    `candidates` is the number of answers that the reward model compares: 2, or K of a ranking.
    """
    if isinstance(config, PPORunConfig):
        rows = config.mini_batch_size // config.gradient_accumulation_steps
        prompt = min(prompt, config.max_prompt_length)
        return Batch(math.ceil(rows / gpus), prompt, config.max_new_tokens)
    assert isinstance(config, TRLStageConfig)
    texts = {RewardConfig: candidates, DPOConfig: 2}.get(type(config), 1)
    rows, response = texts * math.ceil(config.batch_size / gpus), min(response, config.max_length)
    if isinstance(config, SFTConfig) and config.packing:
        prompt = config.max_length
    return Batch(rows, min(prompt, config.max_length - response), response)


def logit_bytes(
    config: StageConfig, shape: PreTrainedConfig, batch: Batch, half: bool = False
) -> int:
    """Bytes of the logits: a tile in SFT and DPO, all responses in PPO, none in a reward model.

    In PPO probabilities, and then gradients, take the place of the logits.
    """
    if isinstance(config, RewardConfig):
        return 0
    positions = batch.rows * batch.response
    if isinstance(config, PPORunConfig):
        return 4 * positions * shape.vocab_size
    tile = min(positions, LOGIT_TILE[0]) * min(shape.vocab_size, LOGIT_TILE[1])
    return (2 if half else 4) * tile


def cache_bytes(shape: PreTrainedConfig, rows: int, tokens: int, bits: int = 32) -> int:
    """Bytes of keys and values while `rows` texts of `tokens` tokens are sampled.

    They have 2 bytes if the weights have 16 bits, and 4 otherwise.
    """
    return rows * prompt_cache.cache_bytes(shape, tokens) // (2 if bits == 16 else 1)


def memory(
    config: StageConfig,
    policy: PreTrainedConfig,
    reward: PreTrainedConfig,
    batch: Batch,
    gpus: int = 1,
    half: bool = False,
) -> dict[str, int]:
    """Bytes of each part on one GPU; `peak` says how much of it is there at once.

    `policy` and `reward` are the shapes of the models, `half` says that TRL's stages use autocast.
    """
    half = half and isinstance(config, TRLStageConfig)
    shape = reward if isinstance(config, RewardConfig) else policy
    model = skeleton(shape, config)
    trained = parameters(model, trained=True)
    # DistributedDataParallel keeps a second copy of the gradients, to send them in buckets.
    copies = 2 if gpus > 1 and isinstance(config, TRLStageConfig) else 1
    parts = {
        "weights, frozen": frozen_bytes(model, config.bits),
        "weights, trained": 4 * trained,
        "gradients": 4 * trained * copies,
        "optimiser": 8 * trained,
        "other models": other_model_bytes(config, reward, trained),
        "activations": activation_bytes(config, shape, batch, half),
        "logits": logit_bytes(config, shape, batch, half),
        "KV cache": sampling_bytes(config, policy, batch, gpus),
        "loaded at the end": 0,
    }
    if config.bits != 32:  # the full-precision model that the adapter is added to
        parts["loaded at the end"] = 4 * (parameters(model) - trained)
    if isinstance(config, RewardConfig):  # the SFT model, whose samples standardise the scores
        parts["loaded at the end"] += 4 * parameters(empty_model(policy, classifier=False))
    return parts


def other_model_bytes(config: StageConfig, reward: PreTrainedConfig, trained: int) -> int:
    """Bytes of the models beside the one that is trained, which has `trained` trained weights."""
    if isinstance(config, PPORunConfig):  # a frozen base below an adapter is the reference itself
        reference = 0 if config.lora_rank else trained
        return 4 * (parameters(empty_model(reward, classifier=True)) + reference)
    if isinstance(config, DPOConfig) and config.lora_rank:
        return 4 * trained  # TRL's copy of the adapter, the reference
    return 0


def sampling_bytes(config: StageConfig, policy: PreTrainedConfig, batch: Batch, gpus: int) -> int:
    """Bytes of keys and values of PPO's rollouts, and of the samples that calibrate rewards."""
    tokens = batch.prompt + batch.response
    if isinstance(config, PPORunConfig):
        return cache_bytes(policy, math.ceil(config.batch_size / gpus), tokens, config.bits)
    if isinstance(config, RewardConfig):
        tokens += config.max_new_tokens
        fits = prompt_cache.fitting(policy, tokens)
        rows = min(CALIBRATION_ROWS, config.calibration_prompts, fits)
        return cache_bytes(policy, rows, tokens)
    return 0


def peak(parts: Mapping[str, int]) -> int:
    """Bytes at once: all that stays, and the larger of a training step's and another moment's."""
    stays = sum(size for part, size in parts.items() if part not in STEP + OTHERWISE)
    return stays + max(sum(parts[part] for part in moment) for moment in (STEP, OTHERWISE))
