"""Sampling responses to prompts, with the log-probs of what was drawn.

Shapes: G prompts of P tokens, left padded; K samples of each make B = G * K responses of R tokens,
right padded, the K samples of a prompt side by side. `logprobs` has the forward pass that gives the
same log-probs again for training. Any causal LM of transformers with a key-value cache will do.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import processes
from rlhf_helpers.logprobs import Tokens, response_logprobs
from rlhf_helpers.next_token import Chooser, end_ids
from rlhf_helpers.prompt_cache import fitting, prompt_cache
from rlhf_helpers.prompts import answer_texts, prompt_room, prompt_tokens

__all__ = [
    "Responses",
    "Samples",
    "decode",
    "encode_prompts",
    "end_ids",
    "respond",
    "sample",
    "seeded",
]


@dataclass
class Samples:
    """Sampled responses."""

    response_ids: Tensor  # (B, R) right padded; the EOS is part of the response
    response_mask: Tensor  # (B, R) bool, True on real tokens
    logprobs: Tensor  # (B, R) log-probs of the sampled tokens at the sampling temperature, else 0
    hidden: Tensor | None  # (B, R, H) last hidden states, when asked for
    ended: Tensor  # (B,) bool, True if the response ends with one of `end_ids`


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Prompt ids and mask, both (G, P), left padded; a longer prompt loses its beginning."""
    rows = prompt_tokens(tokenizer, prompts, max_length)
    batch = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def seeded(policy: PreTrainedModel, seed: int) -> torch.Generator:
    """A random generator on the policy's device."""
    return torch.Generator(policy.device).manual_seed(seed)


@torch.no_grad()
def sample(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    samples_per_prompt: int = 1,
    generator: torch.Generator | None = None,
    keep_hidden: bool = False,
    min_new_tokens: int = 0,
    lengths: Tensor | None = None,
) -> Samples:
    """Sample K responses to each of G prompts (G, P); temperature 0 is greedy.

    A response ends with any of `end_ids`, not before min_new_tokens, or at max_new_tokens. With
    `lengths` (B,), of at most max_new_tokens, each gets exactly so many tokens, EOS among them.
    Responses that have ended leave the batch. Raises FloatingPointError for logits that are NaN.
    """
    policy.eval()
    min_new_tokens = min_new_tokens if lengths is None else 0
    chooser = Chooser(policy, tokenizer, min_new_tokens, temperature, generator)
    cache = prompt_cache(policy, prompt_ids, prompt_mask, samples_per_prompt, roomy=True)
    token = prompt_ids[:, -1:].repeat_interleave(samples_per_prompt, 0)
    mask = prompt_mask.repeat_interleave(samples_per_prompt, 0)
    found = _blank(len(mask), max_new_tokens, tokenizer.pad_token_id, mask.device)
    rows = torch.arange(len(mask), device=mask.device)  # which responses the batch still holds
    for step in range(max_new_tokens):
        logits, hidden = _read(policy, token, mask, cache, keep_hidden)
        token, logprobs = chooser.choose(logits, step)
        _write(found, rows, step, token, logprobs, hidden)
        found.ended[rows] = torch.isin(token[:, 0], chooser.ends)
        on = ~found.ended[rows] if lengths is None else lengths[rows] > step + 1
        going = on.nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(rows):
            rows, token, mask = rows[going], token[going], mask[going]
            cache.batch_select_indices(going)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return _trimmed(found)


def _read(
    policy: PreTrainedModel, token: Tensor, mask: Tensor, cache: Cache, keep_hidden: bool
) -> tuple[Tensor, Tensor | None]:
    """Logits (B, V), and on demand last hidden states (B, H), after one more token (B, 1)."""
    output = policy(
        input_ids=token,
        attention_mask=mask,
        position_ids=mask.sum(1, keepdim=True) - 1,
        past_key_values=cache,
        use_cache=True,
        output_hidden_states=keep_hidden,
    )
    hidden = output.hidden_states[-1][:, -1].float() if keep_hidden else None
    return output.logits[:, -1], hidden


def _blank(rows: int, width: int, pad_token_id: int, device: torch.device) -> Samples:
    """Responses without a token yet, with space for `width` of them."""
    return Samples(
        response_ids=torch.full((rows, width), pad_token_id, device=device),
        response_mask=torch.zeros(rows, width, dtype=torch.bool, device=device),
        logprobs=torch.zeros(rows, width, device=device),
        hidden=None,
        ended=torch.zeros(rows, dtype=torch.bool, device=device),
    )


def _write(
    found: Samples,
    rows: Tensor,
    step: int,
    token: Tensor,
    logprobs: Tensor,
    hidden: Tensor | None,
) -> None:
    """Put the tokens and log-probs (N, 1), and states (N, H), of N rows into column `step`."""
    found.response_ids[rows, step] = token[:, 0]
    found.response_mask[rows, step] = True
    found.logprobs[rows, step] = logprobs[:, 0]
    if hidden is not None:
        if found.hidden is None:
            found.hidden = hidden.new_zeros(*found.response_ids.shape, hidden.shape[-1])
        found.hidden[rows, step] = hidden


def _trimmed(found: Samples) -> Samples:
    """The same, as wide as the longest response."""
    longest = int(found.response_mask.sum(1).max())
    return Samples(
        response_ids=found.response_ids[:, :longest],
        response_mask=found.response_mask[:, :longest],
        logprobs=found.logprobs[:, :longest],
        hidden=found.hidden[:, :longest] if found.hidden is not None else None,
        ended=found.ended,
    )


def decode(tokenizer: PreTrainedTokenizerBase, samples: Samples) -> list[str]:
    """The responses as texts, as they stand after the prompt (with the blank in front)."""
    rows = []
    for ids, mask, ended in zip(
        samples.response_ids, samples.response_mask, samples.ended, strict=True
    ):
        real = ids[mask].tolist()
        rows.append(real[:-1] if ended else real)  # without the token that ended it
    return answer_texts(tokenizer, rows)


@dataclass
class Responses:
    """Responses to many prompts, those of a prompt side by side."""

    texts: list[str]  # as they stand after the prompt, with the blank in front
    ended: list[bool]
    lengths: list[int]  # tokens, EOS included
    log_ratios: list[float]  # log policy - log reference of the whole response, nats; or empty


def _progress(starts: range) -> Iterable[int]:
    """The same numbers, with a progress bar where the work takes more than five seconds."""
    silent = processes.rank() > 0
    return tqdm(starts, desc="sampling", leave=False, disable=silent, delay=5)


@torch.no_grad()
def respond(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    samples_per_prompt: int = 1,
    seed: int = 0,
    reference: PreTrainedModel | None = None,
    batch_size: int = 128,
) -> Responses:
    """Respond to each formatted prompt, in batches of responses; temperature 0 is greedy.

    With a reference, the mean of `log_ratios` estimates KL(q || reference), where q is what is
    sampled from, the policy at `temperature`, and the reference stays at temperature 1. Greedy
    decoding is the limit of a low temperature: q gives its answer probability 1. A prompt that is
    too long for the model's positions loses its beginning.
    """
    generator, found = seeded(policy, seed), Responses([], [], [], [])
    room = prompt_room(tokenizer, max_new_tokens)
    longest = max(map(len, prompt_tokens(tokenizer, prompts)), default=0)
    fits = fitting(policy.config, min(longest, room) + max_new_tokens)
    at_once = max(1, min(batch_size, fits) // samples_per_prompt)
    for start in _progress(range(0, len(prompts), at_once)):
        ids, mask = encode_prompts(tokenizer, prompts[start : start + at_once], room)
        ids, mask = ids.to(policy.device), mask.to(policy.device)
        samples = sample(
            policy,
            tokenizer,
            ids,
            mask,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            samples_per_prompt=samples_per_prompt,
            generator=generator,
        )
        found.texts += decode(tokenizer, samples)
        found.ended += samples.ended.tolist()
        found.lengths += samples.response_mask.sum(1).tolist()
        if reference is not None:
            tokens = Tokens(ids, mask, samples.response_ids, samples.response_mask)
            logprobs = samples.logprobs if temperature else 0.0
            found.log_ratios += (logprobs - response_logprobs(reference, tokens)).sum(1).tolist()
    return found
