"""How many bytes the weights of a model take, and how many operations a token costs.

The models are built on the meta device: they have every layer and adapter, and no memory.
"""

import copy
import math

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from rlhf_helpers.configs import PPORunConfig, RewardConfig, StageConfig, TRLStageConfig
from rlhf_helpers.models import add_lora, without_dropout


def empty_model(
    shape: PreTrainedConfig, classifier: bool, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A whole model on the meta device, where it takes no memory."""
    shape, kind = copy.deepcopy(shape), AutoModelForCausalLM
    if classifier:
        shape.num_labels, kind = 1, AutoModelForSequenceClassification
    with torch.device("meta"):
        return without_dropout(kind.from_config(shape, dtype=dtype))


def skeleton(shape: PreTrainedConfig, config: StageConfig) -> PreTrainedModel:
    """The model that a stage trains, with its adapter, on the meta device."""
    with torch.device("meta"):
        dtype = torch.bfloat16 if config.bits == 16 else torch.float32
        # Beside a frozen language model the few weights of a head of answer tokens do not count.
        frozen = isinstance(config, RewardConfig) and config.head == "answer_tokens"
        classifier = isinstance(config, RewardConfig) and not frozen
        model = empty_model(shape, classifier, dtype).requires_grad_(not frozen)
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
    """Bytes of the weights that are not trained: quantised linear layers, others by their type.

    peft's `prepare_model_for_kbit_training` keeps norms, embeddings and head in float32.
    """
    linear = quantised_layers(model, bits)
    return sum(
        quantised_bytes(p, bits) if name in linear else p.element_size() * p.numel()
        for name, p in model.named_parameters()
        if not p.requires_grad
    )


def parameters(model: nn.Module, trained: bool = False) -> int:
    """How many weights a model has, or how many are trained; tied ones count once.

    A trained one takes 4 bytes, 4 more of gradient, and 8 of Adam's moments.
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def quantised_layers(model: nn.Module, bits: int) -> dict[str, nn.Module]:
    """Quantised layers by the name of their weight: those under an adapter, not the heads."""
    modules = model.named_modules() if bits in (4, 8) else ()
    adapted = {name: m for name, m in modules if isinstance(m, LoraLayer)}
    return {f"{name}.base_layer.weight": m.get_base_layer() for name, m in adapted.items()}


def matrix_parameters(shape: PreTrainedConfig, classifier: bool) -> int:
    """How many weights the linear layers have, the head included: each token passes through all."""
    layers = empty_model(shape, classifier).modules()
    return sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear | Conv1D))
