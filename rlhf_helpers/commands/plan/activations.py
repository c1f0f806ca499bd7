"""How many bytes of activations a training step keeps for its backward pass.

Activations are what autograd saves (Korthikanti et al. 2022, arXiv:2205.05198, count the same by
hand). The stage's own forward pass runs on tensors that have a shape and no memory, so that every
kind of model, adapter and attention counts as what it is.
"""

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf_helpers.commands.plan.weights import quantised_layers, skeleton
from rlhf_helpers.configs import PPORunConfig, RewardConfig, StageConfig, TRLStageConfig
from rlhf_helpers.logprobs import Tokens, forward_responses

try:  # PyTorch's documentation describes it, yet it lies in a private module
    from torch._subclasses.fake_tensor import FakeTensorMode
except ImportError:
    FakeTensorMode = None  # type: ignore[assignment, misc]

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What one GPU takes at a time: rows of prompt and response, both in tokens."""

    rows: int
    prompt: int
    response: int


class _QuantisedProduct(torch.autograd.Function):
    """Stands for a layer of bitsandbytes: its output has the input's type, and it saves nothing."""

    @staticmethod
    def forward(ctx: Any, width: int, states: torch.Tensor) -> torch.Tensor:
        return states.new_empty(*states.shape[:-1], width)


class _Call(nn.Module):
    """Wraps a function of a model as a module, whose weights `functional_call` can replace."""

    def __init__(self, model: nn.Module, function: Callable[[Any], Any]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self) -> Any:
        return self.function(self.model)


def saved_bytes(model: nn.Module, function: Callable[[Any], Any], half: bool = False) -> int:
    """Bytes that autograd saves for the backward pass of `function(model)`, weights left out.

    The function makes its inputs itself. `half` stands for autocast to 16 bits.
    """
    call = _Call(model, function)
    found: dict[int, torch.UntypedStorage] = {}  # holding a storage keeps its id its own

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[id(storage)] = storage
        return tensor

    with FakeTensorMode():
        weights = {
            name: torch.empty(t.shape, dtype=t.dtype, requires_grad=t.requires_grad)
            for name, t in [*call.named_parameters(), *call.named_buffers()]
        }
        own = [tensor.untyped_storage() for tensor in weights.values()]
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            torch.func.functional_call(call, weights, ())
    for storage in own:
        found.pop(id(storage), None)
    return sum(storage.nbytes() for storage in found.values())


def _trunk(model: PreTrainedModel, config: StageConfig, batch: Batch) -> Any:
    """The forward pass of a stage's training step, up to the last hidden states."""
    rows, prompt, response = batch
    if isinstance(config, PPORunConfig):
        prompts = torch.ones(rows // min(rows, config.samples_per_prompt), prompt, dtype=torch.long)
        answers = torch.ones(rows, response, dtype=torch.long)
        return forward_responses(model, Tokens(prompts, prompts, answers, answers == 1))
    ids = torch.ones(rows, prompt + response, dtype=torch.long)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    cache = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    return model.base_model(input_ids=ids, attention_mask=ids, **cache)


def formula_bytes(shape: PreTrainedConfig, batch: Batch, half: bool) -> int:
    """Activations by Korthikanti et al. 2022, equation 1, without the scores of attention.

    A layer keeps 34 bytes a token and hidden unit in 16 bits, twice as many in float32.
    """
    tokens = batch.rows * (batch.prompt + batch.response)
    return (34 if half else 68) * tokens * shape.hidden_size * shape.num_hidden_layers


def activation_bytes(
    config: StageConfig, shape: PreTrainedConfig, batch: Batch, half: bool = False
) -> int:
    """Bytes saved for the backward pass of a step, extrapolated from one and two layers.

    With gradient checkpointing: the layers' inputs, and all that the layer being computed saves.
    """
    if isinstance(config, RewardConfig) and config.head == "answer_tokens":
        return 0  # the model is frozen
    if FakeTensorMode is None:
        logger.warning("torch has no FakeTensorMode: activations follow a formula, and are rough")
        return formula_bytes(shape, batch, half)

    def saved(layers: int, checkpointing: bool) -> int:
        part = copy.deepcopy(shape)
        part.num_hidden_layers = layers
        model = skeleton(part, config)
        for layer in quantised_layers(model, config.bits).values():
            layer.forward = partial(_QuantisedProduct.apply, layer.out_features)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return saved_bytes(model, lambda m: _trunk(m, config, batch), half)

    checkpointing = isinstance(config, TRLStageConfig) and config.gradient_checkpointing
    one, two = saved(1, checkpointing), saved(2, checkpointing)
    at_work = saved(2, False) - saved(1, False) if checkpointing else 0
    return one + (shape.num_hidden_layers - 1) * (two - one) + at_work
