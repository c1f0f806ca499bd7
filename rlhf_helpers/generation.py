"""Sampling with log-probs kept, and the forward pass that reproduces them for training.

Shapes: G prompts of P tokens, left padded; K samples of each make B = G * K responses of R
tokens, right padded, the K samples of a prompt side by side. A prompt is encoded once for its K
samples, in sampling and in training alike. Any causal LM of transformers that keeps a key-value
cache will do.

Alignment: position t of `logprobs` and `hidden` belongs to the prediction of response token t,
so it comes from the state before that token; the first one comes from the prompt's last token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from tqdm.auto import trange
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_helpers import processes
from rlhf_helpers.prompt_cache import positions, prompt_cache


@dataclass
class Samples:
    """Sampled responses."""

    response_ids: Tensor  # (B, R) padded with pad_token_id; the EOS is part of the response
    response_mask: Tensor  # (B, R) bool, True on real tokens
    logprobs: Tensor  # (B, R) log-probs of the sampled tokens at the sampling temperature, else 0
    hidden: Tensor | None  # (B, R, H) last hidden states, when asked for
    ended: Tensor  # (B,) bool, True if the response ends with EOS


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Prompt ids and mask, both (G, P), left padded."""
    batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def forward_responses(
    policy: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Logits (B, R, V) and last hidden states (B, R, H) that predict the response tokens.

    `prompt_ids` and `prompt_mask` are (G, P); B must be a multiple of G. Gradients flow through
    the shared encoding of the prompts.
    """
    samples = len(response_ids) // len(prompt_ids)
    # Matrices multiply and attend faster at lengths that are divisible by 8.
    spare = (1 - prompt_ids.shape[1]) % 8
    prompt_ids, prompt_mask = (pad(x, (spare, 0)) for x in (prompt_ids, prompt_mask))
    cache = prompt_cache(policy, prompt_ids, prompt_mask, samples)
    last_ids, prompt_mask = (
        x.repeat_interleave(samples, 0) for x in (prompt_ids[:, -1:], prompt_mask)
    )
    mask = torch.cat([prompt_mask, response_mask[:, :-1].to(prompt_mask.dtype)], 1)
    output = policy(
        input_ids=torch.cat([last_ids, response_ids[:, :-1]], 1),
        attention_mask=mask,
        position_ids=positions(mask)[:, prompt_mask.shape[1] - 1 :],
        past_key_values=cache,
        use_cache=True,
        output_hidden_states=True,
    )
    return output.logits, output.hidden_states[-1]


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Logits in float32; for temperature 1, no pass over them is spent on dividing."""
    return logits.float() if temperature == 1.0 else logits.float() / temperature


def token_logprobs(logits: Tensor, response_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs (B, R) of the response tokens under logits (B, R, V) at a temperature."""
    words = torch.log_softmax(_scaled(logits, temperature), dim=-1)
    return words.gather(-1, response_ids.unsqueeze(-1)).squeeze(-1)


class _LogprobsAndEntropy(torch.autograd.Function):
    """Probabilities take the place of the logits, and the gradient then takes theirs.

    Autograd would make three more tensors of that size, the largest of a training step.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logprobs, entropy = [], []
        for row, tokens in zip(logits, ids, strict=True):  # a row fits the processor's cache
            words = torch.log_softmax(row, dim=-1)
            logprobs.append(words.gather(-1, tokens))
            entropy.append(-torch.linalg.vecdot(torch.exp(words, out=row), words))
        ctx.save_for_backward(logits, ids)
        result = torch.stack(logprobs), torch.stack(entropy)
        ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        probabilities, ids = ctx.saved_tensors
        return probabilities.mul_(-gradient).scatter_add_(-1, ids, gradient), None


def logprobs_and_entropy(
    logits: Tensor, response_ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """`token_logprobs`, and the policy's entropy (B, R) at each token, nats, without a gradient.

    It uses the logits up: in float32 at temperature 1 they are overwritten.
    """
    logits, ids = _scaled(logits, temperature), response_ids.unsqueeze(-1)
    logprobs, entropy = _LogprobsAndEntropy.apply(logits, ids)
    return logprobs.squeeze(-1), entropy


@torch.no_grad()
def response_logprobs(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    *,
    temperature: float = 1.0,
    rows: int = 64,
) -> Tensor:
    """Log-probs (B, R) of responses, 0 on padding, in chunks of about `rows` responses.

    Shapes as in `forward_responses`.
    """
    samples, chunks = len(response_ids) // len(prompt_ids), []
    prompts = max(1, rows // samples)
    for ids, mask, answers, answer_mask in zip(
        prompt_ids.split(prompts),
        prompt_mask.split(prompts),
        response_ids.split(prompts * samples),
        response_mask.split(prompts * samples),
        strict=True,
    ):
        logits, _ = forward_responses(model, ids, mask, answers, answer_mask)
        chunks.append(token_logprobs(logits, answers, temperature) * answer_mask)
    return torch.cat(chunks)


def seeded(policy: PreTrainedModel, seed: int) -> torch.Generator:
    """A random generator on the policy's device."""
    return torch.Generator(policy.device).manual_seed(seed)


def _draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """One token a row (B, 1), by inverting the distribution function.

    It takes one random number a row, where torch.multinomial draws one a word: ten times faster.
    """
    cumulated = probabilities.cumsum(-1)
    uniform = torch.rand(len(probabilities), 1, generator=generator, device=probabilities.device)
    token = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)
    return token.clamp(max=probabilities.shape[1] - 1)  # where rounding has made uniform 1


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
    lengths: Tensor | None = None,
) -> Samples:
    """Sample K responses to each of G prompts; temperature 0 is greedy.

    With `lengths` (B,), of at most max_new_tokens, each response gets exactly so many tokens: EOS
    is a token like any other. Rows that have ended leave the batch, so that short responses cost
    little.
    """
    policy.eval()
    cache = prompt_cache(policy, prompt_ids, prompt_mask, samples_per_prompt, roomy=True)
    token, mask = (
        x.repeat_interleave(samples_per_prompt, 0) for x in (prompt_ids[:, -1:], prompt_mask)
    )
    size, device = (len(mask), max_new_tokens), mask.device
    ids = torch.full(size, tokenizer.pad_token_id, device=device)
    logprobs, states = torch.zeros(size, device=device), None
    limits, lengths = lengths, torch.zeros(size[0], dtype=torch.long, device=device)
    ended = torch.zeros(size[0], dtype=torch.bool, device=device)
    rows = torch.arange(size[0], device=device)  # which responses the batch still holds
    for step in range(max_new_tokens):
        output = policy(
            input_ids=token,
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=keep_hidden,
        )
        logits = _scaled(output.logits[:, -1], temperature or 1.0)
        scores = torch.log_softmax(logits, dim=-1)
        token = _draw(scores.exp(), generator) if temperature else scores.argmax(-1, keepdim=True)
        ids[rows, step] = token[:, 0]
        logprobs[rows, step] = scores.gather(1, token)[:, 0]
        if keep_hidden:
            hidden = output.hidden_states[-1][:, -1].float()
            states = hidden.new_zeros(*size, hidden.shape[-1]) if states is None else states
            states[rows, step] = hidden
        lengths[rows] = step + 1
        ended[rows] = token[:, 0] == tokenizer.eos_token_id
        on = ~ended[rows] if limits is None else limits[rows] > step + 1
        going = on.nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(rows):
            rows, token, mask = (x[going] for x in (rows, token, mask))
            cache.batch_select_indices(going)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    longest = int(lengths.max())
    response_mask = torch.arange(longest, device=device) < lengths[:, None]
    return Samples(
        ids[:, :longest],
        response_mask,
        logprobs[:, :longest],
        states[:, :longest] if states is not None else None,
        ended,
    )


def decode(tokenizer: PreTrainedTokenizerBase, samples: Samples) -> list[str]:
    """The responses as texts, as they stand after the prompt (with the blank in front)."""
    rows = zip(samples.response_ids, samples.response_mask, strict=True)
    return tokenizer.batch_decode([ids[keep] for ids, keep in rows], skip_special_tokens=True)


@dataclass
class Responses:
    """Responses to many prompts, those of a prompt side by side."""

    texts: list[str]  # as they stand after the prompt, with the blank in front
    ended: list[bool]
    lengths: list[int]  # tokens, EOS included
    log_ratios: list[float]  # log policy - log reference of the whole response, nats; or empty


def fitting(config: PreTrainedConfig) -> int:
    """How many responses' keys and values fit 8 GiB, were each as long as the model can read."""
    positions = getattr(config, "max_position_embeddings", None) or 2048
    bytes_each = 2 * config.num_hidden_layers * config.hidden_size * 4 * positions
    return max(1, 2**33 // bytes_each)


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
    decoding is the limit of a low temperature: q gives its answer probability 1.
    """
    generator, found = seeded(policy, seed), Responses([], [], [], [])
    at_once = max(1, min(batch_size, fitting(policy.config)) // samples_per_prompt)
    for start in trange(
        0, len(prompts), at_once, desc="sampling", leave=False, disable=processes.rank() > 0,
        delay=5,  # seconds: short work shows nothing
    ):  # fmt: skip
        encoded = encode_prompts(tokenizer, prompts[start : start + at_once])
        ids, mask = (x.to(policy.device) for x in encoded)
        samples = sample(
            policy, tokenizer, ids, mask, max_new_tokens=max_new_tokens, temperature=temperature,
            samples_per_prompt=samples_per_prompt, generator=generator,
        )  # fmt: skip
        found.texts += decode(tokenizer, samples)
        found.ended += samples.ended.tolist()
        found.lengths += samples.response_mask.sum(1).tolist()
        if reference is not None:
            batch = (ids, mask, samples.response_ids, samples.response_mask)
            logprobs = samples.logprobs if temperature else 0.0
            ratios = logprobs - response_logprobs(reference, *batch)
            found.log_ratios += ratios.sum(1).tolist()
    return found
