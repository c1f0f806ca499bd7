"""Where log-probs come from: one forward pass over prompts and their responses.

    tokens -> `forward_responses` -> logits (B, R, V) -> log-softmax -> the words of the responses

`response_logprobs` does so without gradient, for the reference; `training_pass` with gradient, for
the losses. Sampling (`generation.sample`) keeps the same numbers for each token that it draws.

Alignment: position t of logits, log-probs and hidden states belongs to the prediction of response
token t. It comes from the state before that token: for t = 0 from the last token of the prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rlhf_helpers.prompt_cache import positions, prompt_cache


@dataclass
class Tokens:
    """G prompts and B = G * K responses to them, the K responses to a prompt side by side."""

    prompt_ids: Tensor  # (G, P) left padded
    prompt_mask: Tensor  # (G, P) 1 on real tokens, 0 on padding
    response_ids: Tensor  # (B, R) right padded, EOS included
    response_mask: Tensor  # (B, R) bool, from lengths: a pad token may equal EOS

    @property
    def samples_per_prompt(self) -> int:
        """K, the number of responses to each prompt."""
        return len(self.response_ids) // len(self.prompt_ids)

    def to(self, device: torch.device) -> "Tokens":
        """The same on another device."""
        return Tokens(
            prompt_ids=self.prompt_ids.to(device),
            prompt_mask=self.prompt_mask.to(device),
            response_ids=self.response_ids.to(device),
            response_mask=self.response_mask.to(device),
        )

    def chunks(self, rows: int) -> Iterator["Tokens"]:
        """The same in parts of about `rows` responses, without separating those of a prompt."""
        samples = self.samples_per_prompt
        prompts = max(1, rows // samples)
        for start in range(0, len(self.prompt_ids), prompts):
            these = slice(start, start + prompts)
            theirs = slice(start * samples, (start + prompts) * samples)
            yield Tokens(
                prompt_ids=self.prompt_ids[these],
                prompt_mask=self.prompt_mask[these],
                response_ids=self.response_ids[theirs],
                response_mask=self.response_mask[theirs],
            )


def forward_responses(policy: PreTrainedModel, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Logits (B, R, V) and last hidden states (B, R, H) that predict the response tokens.

    Each prompt is encoded once for its K responses, and gradients flow through that encoding too.
    With gradient checkpointing, which knows no cache, whole sequences are computed instead.
    """
    if torch.is_grad_enabled() and getattr(policy, "is_activation_checkpointing", False):
        return _checkpointed(policy, tokens)
    samples, prompt_length = tokens.samples_per_prompt, tokens.prompt_ids.shape[1]
    # Matrices multiply and attend faster at lengths that are divisible by 8.
    spare = (1 - prompt_length) % 8
    prompt_ids = pad(tokens.prompt_ids, (spare, 0))
    prompt_mask = pad(tokens.prompt_mask, (spare, 0))
    # The cache holds a prompt but for its last token, which predicts the first of the response.
    cache = prompt_cache(policy, prompt_ids, prompt_mask, samples)
    last_ids = prompt_ids[:, -1:].repeat_interleave(samples, 0)
    ids = torch.cat([last_ids, tokens.response_ids[:, :-1]], 1)
    read = tokens.response_mask[:, :-1].to(prompt_mask.dtype)
    mask = torch.cat([prompt_mask.repeat_interleave(samples, 0), read], 1)
    output = policy(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask)[:, -ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
        output_hidden_states=True,
    )
    return output.logits, output.hidden_states[-1]


def whole_sequences(tokens: Tokens) -> dict[str, Tensor]:
    """What a model reads to predict all response tokens: ids, mask, positions (B, P + R - 1)."""
    samples = tokens.samples_per_prompt
    prompt_ids = tokens.prompt_ids.repeat_interleave(samples, 0)
    prompt_mask = tokens.prompt_mask.repeat_interleave(samples, 0)
    read = tokens.response_mask[:, :-1].to(prompt_mask.dtype)
    mask = torch.cat([prompt_mask, read], 1)
    return {
        "input_ids": torch.cat([prompt_ids, tokens.response_ids[:, :-1]], 1),
        "attention_mask": mask,
        "position_ids": positions(mask),
    }


def _checkpointed(policy: PreTrainedModel, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Logits and states as of `forward_responses`, of which each layer keeps its input alone.

    transformers checkpoints in training mode only, in which the policy must have no dropout.
    """
    width = tokens.response_ids.shape[1]
    training = policy.training
    policy.train()
    output = policy(
        **whole_sequences(tokens), use_cache=False, output_hidden_states=True, logits_to_keep=width
    )
    policy.train(training)
    return output.logits, output.hidden_states[-1][:, -width:]


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """Logits in float32 over a temperature; at temperature 1 in float32 they are not copied."""
    return logits.float() if temperature == 1.0 else logits.float() / temperature


def token_logprobs(logits: Tensor, response_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs (B, R) of the response tokens under logits (B, R, V) at a temperature."""
    words = torch.log_softmax(scaled(logits, temperature), dim=-1)
    return words.gather(-1, response_ids.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def response_logprobs(
    model: PreTrainedModel, tokens: Tokens, *, temperature: float = 1.0, rows: int = 64
) -> Tensor:
    """Log-probs (B, R) of responses, 0 on padding, without gradient; about `rows` at a time."""
    found = []
    for part in tokens.chunks(rows):
        logits, _ = forward_responses(model, part)
        found.append(token_logprobs(logits, part.response_ids, temperature) * part.response_mask)
    return torch.cat(found)


def training_pass(
    policy: PreTrainedModel, tokens: Tokens, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs and entropies (B, R), and last hidden states (B, R, H), of a training step.

    Log-probs and states have gradients, the entropies (nats) have none. The logits do not leave
    this function, so that their memory can be used again: see `_LogprobsAndEntropy`.
    """
    logits, hidden = forward_responses(policy, tokens)
    logprobs, entropy = logprobs_and_entropy(scaled(logits, temperature), tokens.response_ids)
    return logprobs, entropy, hidden


def logprobs_and_entropy(logits: Tensor, response_ids: Tensor) -> tuple[Tensor, Tensor]:
    """`token_logprobs` of float32 logits (B, R, V), which it overwrites, and entropies (B, R)."""
    logprobs, entropy = _LogprobsAndEntropy.apply(logits, response_ids.unsqueeze(-1))
    return logprobs.squeeze(-1), entropy


class _LogprobsAndEntropy(torch.autograd.Function):
    """log softmax at the response tokens, in the memory of the logits.

    The gradient of log p[token] by the logits is onehot(token) - p. So forward keeps p where the
    logits were, and backward turns p into that gradient. Autograd by itself would keep three more
    tensors of this size, the largest one of a training step.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs (B, R, 1) and entropies (B, R) from logits (B, R, V) and ids (B, R, 1)."""
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
        """gradient * (onehot(token) - p), of shape (B, R, V)."""
        probabilities, ids = ctx.saved_tensors
        return probabilities.mul_(-gradient).scatter_add_(-1, ids, gradient), None
