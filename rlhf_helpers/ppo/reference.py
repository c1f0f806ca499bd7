"""The reference that the KL is measured to: a model, or the policy with its adapter as it was."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers.configs import PPOConfig
from rlhf_helpers.logprobs import Tokens, response_logprobs
from rlhf_helpers.models import load_trained_weights, trained_weights


def frozen_reference(
    policy: PreTrainedModel, reference: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel | None:
    """The model that the KL is measured to: the given one, or a copy of the policy.

    None stands for a policy with an adapter: see `trained_adapter`. Raises ValueError for a
    reference that cannot be one.
    """
    if reference is None:
        has_adapter = hasattr(policy, "disable_adapter")
        return None if has_adapter else copy.deepcopy(policy).eval()
    if reference is policy:
        raise ValueError("the reference is the policy itself, which changes: pass a copy, or none")
    words = reference.get_input_embeddings().weight.shape[0]
    if words < len(tokenizer):
        raise ValueError(
            f"the reference knows {words} tokens, the tokenizer has {len(tokenizer)}: "
            "pass a reference with the policy's tokenizer"
        )
    return reference.eval()


def trained_adapter(policy: PreTrainedModel) -> dict[str, Tensor] | None:
    """A copy of the trained weights of a policy with an adapter, or None for a new adapter.

    A new LoRA adapter changes nothing, since its B is 0 (Hu et al. 2021), so that the reference is
    the policy with it switched off. One that has been trained before is part of the reference.
    """
    weights = trained_weights(policy)
    new = all("lora_" in name for name in weights) and not any(
        weight.any() for name, weight in weights.items() if "lora_B" in name
    )
    return None if new else {name: weight.clone() for name, weight in weights.items()}


@contextmanager
def as_it_was(policy: PreTrainedModel, first_adapter: dict[str, Tensor] | None) -> Iterator[None]:
    """Give a policy its first adapter for a while, or (None) none."""
    if first_adapter is None:
        with policy.disable_adapter():
            yield
        return
    now = {name: weight.clone() for name, weight in trained_weights(policy).items()}
    load_trained_weights(policy, first_adapter)
    try:
        yield
    finally:
        load_trained_weights(policy, now)


def reference_logprobs(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    first_adapter: dict[str, Tensor] | None,
    tokens: Tokens,
    config: PPOConfig,
) -> Tensor:
    """Log-probs (B, R) under the reference, or (None) the policy with its adapter as it was."""
    temperature, rows = config.temperature, config.mini_batch_size
    if reference is not None:
        return response_logprobs(reference, tokens, temperature=temperature, rows=rows)
    with as_it_was(policy, first_adapter):
        return response_logprobs(policy, tokens, temperature=temperature, rows=rows)
