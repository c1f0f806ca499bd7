"""How many bytes of each part a training stage needs on one GPU, before anything is loaded.

Weights, gradients and optimiser follow from shapes, on the meta device. Activations are what
autograd saves for the backward pass (Korthikanti et al. 2022, arXiv:2205.05198, count the same by
hand): the stage's own forward pass runs on fake tensors, which have a shape and no memory, so that
every kind of model, adapter and attention counts as what it is. Left out: what single operations
and the gradients of one layer's activations need in between, CUDA's own memory, a separate critic.
"""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from rlhf_helpers import generation
from rlhf_helpers.configs import (
    DPOConfig,
    PPORunConfig,
    RewardConfig,
    SFTConfig,
    StageConfig,
    TRLStageConfig,
)
from rlhf_helpers.models import add_lora, without_dropout

# TRL's chunked loss makes the logits of so many positions and words at a time
# (TOKEN_CHUNK_SIZE and _CHUNKED_LOGPROB_CHUNK_SIZE of trl 1.16).
LOGIT_TILE = (4096, 32_768)
CALIBRATION_ROWS = 128  # responses that `generation.respond` samples at once

# Parts of a training step, and of other moments: sampling, and the end of a stage.
STEP, OTHERWISE = ("activations", "logits"), ("KV cache", "loaded at the end")


class Batch(NamedTuple):
    """What one GPU takes at a time: rows of prompt and response, both in tokens."""

    rows: int
    prompt: int
    response: int


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


def _empty(shape: PreTrainedConfig, classifier: bool) -> PreTrainedModel:
    """A whole model without memory (on the meta device)."""
    shape, kind = copy.deepcopy(shape), AutoModelForCausalLM
    if classifier:
        shape.num_labels, kind = 1, AutoModelForSequenceClassification
    with torch.device("meta"):
        return without_dropout(kind.from_config(shape, dtype=torch.float32))


def skeleton(shape: PreTrainedConfig, config: StageConfig) -> PreTrainedModel:
    """The model that a stage trains, with its adapter, without memory."""
    with torch.device("meta"):
        model = _empty(shape, isinstance(config, RewardConfig))
        if config.lora_rank:
            dropout = config.lora_dropout if isinstance(config, TRLStageConfig) else 0.0
            model = add_lora(model, config.lora_rank, dropout)
    return model.eval() if isinstance(config, PPORunConfig) else model.train()


def quantised_bytes(weight: torch.Tensor, bits: int) -> int:
    """Bytes of a linear layer's weight of 4 or 8 bits, with its constants.

    NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314): a byte of scale for each
    64 weights, 4 more for each 256 scales, and two tables (of 16 and 256 numbers) a layer. Of 8
    bits (Dettmers et al. 2022, arXiv:2208.07339): a scale of 4 bytes for each row.
    """
    count = weight.numel()
    if bits == 8:
        return count + 4 * weight.shape[0]
    blocks = math.ceil(count / 64)
    return math.ceil(count / 2) + blocks + 4 * math.ceil(blocks / 256) + 4 * (16 + 256 + 1)


def frozen_bytes(model: nn.Module, bits: int = 32) -> int:
    """Bytes of the weights that are not trained: linear layers of `bits` bits, others of 32.

    peft's `prepare_model_for_kbit_training` keeps norms, embeddings and head in float32.
    """
    linear = _quantised(model, bits)
    return sum(
        quantised_bytes(p, bits) if name in linear else 4 * p.numel()
        for name, p in model.named_parameters() if not p.requires_grad
    )  # fmt: skip


def parameters(model: nn.Module, trained: bool = False) -> int:
    """How many numbers the weights are, or those that are trained; tied ones count once.

    A trained one takes 4 bytes, 4 more of gradient, and 8 of Adam's moments.
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def _quantised(model: nn.Module, bits: int) -> dict[str, nn.Module]:
    """The quantised layers by the name of their weight: all linear ones but the heads."""
    modules = model.named_modules() if bits in (4, 8) else ()
    adapted = {name: m for name, m in modules if isinstance(m, LoraLayer)}
    return {f"{name}.base_layer.weight": m.get_base_layer() for name, m in adapted.items()}


class _QuantisedProduct(torch.autograd.Function):
    """What a layer of bitsandbytes gives: numbers of its input's kind, and nothing saved."""

    @staticmethod
    def forward(ctx: Any, width: int, states: torch.Tensor) -> torch.Tensor:
        return states.new_empty(*states.shape[:-1], width)


class _Call(nn.Module):
    """A function of a model, as a module whose weights can be swapped."""

    def __init__(self, model: nn.Module, function: Callable[[Any], Any]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self) -> Any:
        return self.function(self.model)


def saved_bytes(model: nn.Module, function: Callable[[Any], Any], half: bool = False) -> int:
    """Bytes that autograd saves for the backward pass of `function(model)`, weights left out.

    The function makes its inputs itself. `half` stands for autocast to 16 bits.
    """
    call, found = _Call(model, function), {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[StorageWeakRef(storage)] = storage.nbytes()
        return tensor

    with FakeTensorMode():
        weights = {
            name: torch.empty(t.shape, dtype=t.dtype, requires_grad=t.requires_grad)
            for name, t in [*call.named_parameters(), *call.named_buffers()]
        }
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            output = torch.func.functional_call(call, weights, ())
        for tensor in weights.values():
            found.pop(StorageWeakRef(tensor.untyped_storage()), None)
        del output  # which has kept all that was saved
    return sum(found.values())


def _trunk(model: PreTrainedModel, config: StageConfig, batch: Batch) -> Any:
    """The forward pass of a stage's training step, up to the last hidden states."""
    rows, prompt, response = batch
    if isinstance(config, PPORunConfig):
        prompts = torch.ones(rows // min(rows, config.samples_per_prompt), prompt, dtype=torch.long)
        answers = torch.ones(rows, response, dtype=torch.long)
        return generation.forward_responses(model, prompts, prompts, answers, answers == 1)
    ids = torch.ones(rows, prompt + response, dtype=torch.long)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    cache = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    return model.base_model(input_ids=ids, attention_mask=ids, **cache)


def activation_bytes(
    config: StageConfig, shape: PreTrainedConfig, batch: Batch, half: bool = False
) -> int:
    """Bytes saved for the backward pass of a step, in models of one and two layers, and so on.

    With gradient checkpointing, the layers' inputs and all that the layer at work saves.
    """

    def saved(layers: int, checkpointing: bool) -> int:
        part = copy.deepcopy(shape)
        part.num_hidden_layers = layers
        model = skeleton(part, config)
        for layer in _quantised(model, config.bits).values():
            layer.forward = partial(_QuantisedProduct.apply, layer.out_features)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return saved_bytes(model, lambda m: _trunk(m, config, batch), half)

    checkpointing = isinstance(config, TRLStageConfig) and config.gradient_checkpointing
    one, two = saved(1, checkpointing), saved(2, checkpointing)
    at_work = saved(2, False) - saved(1, False) if checkpointing else 0
    return one + (shape.num_hidden_layers - 1) * (two - one) + at_work


def logit_bytes(
    config: StageConfig, shape: PreTrainedConfig, batch: Batch, half: bool = False
) -> int:
    """Bytes of the logits: of a tile in SFT and DPO, of all responses in PPO, where probabilities
    and then gradients take their place; a reward model has none.
    """
    if isinstance(config, RewardConfig):
        return 0
    positions = batch.rows * batch.response
    if isinstance(config, PPORunConfig):
        return 4 * positions * shape.vocab_size
    tile = min(positions, LOGIT_TILE[0]) * min(shape.vocab_size, LOGIT_TILE[1])
    return (2 if half else 4) * tile


def cache_bytes(shape: PreTrainedConfig, rows: int, tokens: int) -> int:
    """Bytes of keys and values while `rows` texts of `tokens` tokens are sampled, in float32."""
    heads = shape.num_attention_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    kept = getattr(shape, "num_key_value_heads", None) or heads
    return 2 * 4 * shape.num_hidden_layers * rows * tokens * kept * size


def memory(
    config: StageConfig, policy: PreTrainedConfig, reward: PreTrainedConfig, batch: Batch,
    gpus: int = 1, half: bool = False,
) -> dict[str, int]:  # fmt: skip
    """Bytes of each part on one GPU; `peak` says how much of it is there at once.

    `policy` and `reward` are the shapes of the models, `half` says that TRL's stages use autocast.
    """
    trains_reward = isinstance(config, RewardConfig)
    half = half and isinstance(config, TRLStageConfig)
    shape = reward if trains_reward else policy
    model = skeleton(shape, config)
    trained = parameters(model, trained=True)
    # DistributedDataParallel keeps a second copy of the gradients, to send them in buckets.
    copies = 2 if gpus > 1 and isinstance(config, TRLStageConfig) else 1
    parts = {
        "weights, frozen": frozen_bytes(model, config.bits),
        "weights, trained": 4 * trained,
        "gradients": 4 * trained * copies,
        "optimiser": 8 * trained,
        "other models": 0,
        "activations": activation_bytes(config, shape, batch, half),
        "logits": logit_bytes(config, shape, batch, half),
        "KV cache": 0,
        "loaded at the end": 0,
    }
    if config.bits != 32:  # the full-precision model that the adapter is added to
        parts["loaded at the end"] = 4 * (parameters(model) - trained)
    if isinstance(config, PPORunConfig):
        judge = parameters(_empty(reward, classifier=True))
        reference = 0 if config.lora_rank else trained
        parts["other models"] = 4 * (judge + reference)
        rows = math.ceil(config.batch_size / gpus)
        parts["KV cache"] = cache_bytes(policy, rows, batch.prompt + batch.response)
    if isinstance(config, DPOConfig) and config.lora_rank:
        parts["other models"] = 4 * trained  # TRL's copy of the adapter, the reference
    if isinstance(config, RewardConfig):  # samples of the SFT model standardise the scores
        parts["loaded at the end"] += 4 * parameters(_empty(policy, classifier=False))
        rows = min(CALIBRATION_ROWS, config.calibration_prompts, generation.fitting(policy))
        tokens = batch.prompt + batch.response + config.max_new_tokens
        parts["KV cache"] = cache_bytes(policy, rows, tokens)
    return parts


def peak(parts: dict[str, int]) -> int:
    """Bytes at once: all that stays, and the larger of a training step's and another moment's."""
    stays = sum(size for part, size in parts.items() if part not in STEP + OTHERWISE)
    return stays + max(sum(parts[part] for part in moment) for moment in (STEP, OTHERWISE))


def matrix_parameters(shape: PreTrainedConfig, classifier: bool) -> int:
    """How many numbers the linear layers have, through which every token passes; with the head."""
    layers = _empty(shape, classifier).modules()
    return sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear | Conv1D))
