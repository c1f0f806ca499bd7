"""Whether a model can be used: every stage asks before it loads one, and PPO once it is loaded."""

import math
from pathlib import Path

import torch
from peft import PeftConfig
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import generation
from rlhf_helpers.logprobs import Tokens, forward_responses
from rlhf_helpers.models import is_exact, load_tokenizer, loading
from rlhf_helpers.models.adapters import is_adapter
from rlhf_helpers.prompts import prompt_room

# Parts of the names of architectures that generate text; the last are those that see images too.
LANGUAGE_MODELS = ("CausalLM", "LMHead", "ConditionalGeneration")


def check_policy(path: str | Path, max_new_tokens: int = 0) -> None:
    """Raise ValueError where this model cannot be a policy that answers in so many tokens.

    A policy has a language-model head, and a tokenizer with an EOS whose tokens it all embeds.
    Longer prompts are cut to what the model reads beside the answer.
    """
    tokenizer = load_tokenizer(path)
    heads = _config(path).architectures or []
    if heads and not any(kind in head for kind in LANGUAGE_MODELS for head in heads):
        raise ValueError(
            f"{path}: {', '.join(heads)} has no trained language-model head. Name a causal "
            "language model as policy."
        )
    if tokenizer.eos_token is None:
        raise ValueError(
            f"{path}: its tokenizer has no EOS token, so no answer could end. Set `eos_token` in "
            "the model's tokenizer_config.json."
        )
    check_vocabulary(path, tokenizer)
    prompt_room(tokenizer, max_new_tokens)


def check_vocabulary(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where the tokenizer has tokens that the model does not embed."""
    largest, embedded = max(tokenizer.get_vocab().values()), _config(path).vocab_size
    if largest >= embedded:
        raise ValueError(
            f"{path}: its tokenizer has a token {largest}, but the model embeds {embedded} tokens "
            "only. Use the tokenizer that the model was trained with."
        )


def check_prompt_cache(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless sharing the encoding of prompts leaves the logits as they are.

    The model is asked: it samples, and its logits are compared with those of plain passes. Models
    with linear attention or another recurrent state keep no keys and values that the samples of a
    prompt could share, and read the padding in front of it.
    """
    try:
        gap, cause = _largest_gap(policy, tokenizer), None
    except FloatingPointError:  # logits that are NaN are another fault, with a message of its own
        raise
    except Exception as error:  # each model fails in its own way
        gap, cause = math.inf, error
    if not gap <= (1e-2 if is_exact(policy) else 1.0):
        found = f"{type(cause).__name__}: {cause}" if cause else f"logits differ by {gap:.2g}"
        raise ValueError(
            f"{policy.config.model_type}: in this model the responses to a prompt cannot share its "
            "encoding, as where attention is linear or a state recurrent. Choose one with a "
            f"key-value cache, such as Llama, Qwen3, GPT-2 or OPT ({found.splitlines()[0]})"
        ) from cause


@torch.no_grad()
def _largest_gap(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Between logits with a shared prompt and without: two padded prompts, two samples of each."""
    size, seeded = policy.config.get_text_config().vocab_size, torch.Generator().manual_seed(0)
    ids = torch.randint(size // 2, size, (2, 6), generator=seeded).to(policy.device)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    lengths = torch.tensor([4, 2, 4, 4], device=ids.device)  # a row leaves the batch
    sampled = generation.sample(
        policy,
        tokenizer,
        ids,
        mask,
        max_new_tokens=4,
        temperature=0.0,
        samples_per_prompt=2,
        lengths=lengths,
    )
    tokens = Tokens(ids, mask, sampled.response_ids, sampled.response_mask)
    shared, _ = forward_responses(policy, tokens)
    gaps = []
    for row, start in ((0, 3), (2, 0)):
        text = torch.cat([ids[row // 2, start:], sampled.response_ids[row]])
        plain = policy(input_ids=text[None], use_cache=False).logits[0, -5:-1]
        gaps.append((shared[row].float() - plain.float()).abs().max().item())
    return max(gaps)


def _config(path: str | Path) -> PreTrainedConfig:
    """The config of a model, or of the base model of an adapter."""
    with loading(path):
        if is_adapter(path):
            path = PeftConfig.from_pretrained(path).base_model_name_or_path or path
        return AutoConfig.from_pretrained(path).get_text_config()
