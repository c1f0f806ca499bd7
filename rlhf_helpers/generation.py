"""Sampling responses to prompts, with the log-probs of what was drawn.

Shapes: G prompts of P tokens, left padded; K samples of each make B = G * K responses of R tokens,
right padded, the K samples of a prompt side by side. `logprobs` has the forward pass that gives the
same log-probs again for training. Any causal LM of transformers with a key-value cache will do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Cache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import processes
from rlhf_helpers.logprobs import Tokens, response_logprobs, scaled
from rlhf_helpers.prompt_cache import prompt_cache


@dataclass
class Samples:
    """Sampled responses."""

    response_ids: Tensor  # (B, R) right padded; the EOS is part of the response
    response_mask: Tensor  # (B, R) bool, True on real tokens
    logprobs: Tensor  # (B, R) log-probs of the sampled tokens at the sampling temperature, else 0
    hidden: Tensor | None  # (B, R, H) last hidden states, when asked for
    ended: Tensor  # (B,) bool, True if the response ends with one of `end_ids`


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Prompt ids and mask, both (G, P), left padded."""
    batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def seeded(policy: PreTrainedModel, seed: int) -> torch.Generator:
    """A random generator on the policy's device."""
    return torch.Generator(policy.device).manual_seed(seed)


def end_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a response: the tokenizer's EOS and all of the model's generation config.

    Chat models list several there, such as the end of a turn. Raises ValueError for a tokenizer
    without EOS.
    """
    config = getattr(policy, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    listed = listed if isinstance(listed, list) else [listed]
    if tokenizer.eos_token_id is None:
        known = tokenizer.convert_ids_to_tokens([i for i in listed if i is not None])
        raise ValueError(
            "the tokenizer has no EOS token, so no response could end: set tokenizer.eos_token, or "
            f'"eos_token" in its tokenizer_config.json (the model ends at {known or "no token"})'
        )
    return sorted({tokenizer.eos_token_id, *(i for i in listed if i is not None)})


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
    """Sample K responses to each of G prompts (G, P); temperature 0 is greedy.

    A response ends with any of `end_ids`, or at max_new_tokens. With `lengths` (B,), of at most
    max_new_tokens, each gets exactly so many tokens: EOS is a token like any other. Responses that
    have ended leave the batch. Raises FloatingPointError for logits that are NaN or infinite.
    """
    policy.eval()
    chooser = _Chooser(policy, tokenizer, temperature, generator)
    cache = prompt_cache(policy, prompt_ids, prompt_mask, samples_per_prompt, roomy=True)
    token = prompt_ids[:, -1:].repeat_interleave(samples_per_prompt, 0)
    mask = prompt_mask.repeat_interleave(samples_per_prompt, 0)
    found = _blank(len(mask), max_new_tokens, tokenizer.pad_token_id, mask.device)
    rows = torch.arange(len(mask), device=mask.device)  # which responses the batch still holds
    for step in range(max_new_tokens):
        logits, hidden = _read(policy, token, mask, cache, keep_hidden)
        token, logprobs = chooser.choose(logits)
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


class _Chooser:
    """Chooses next tokens, among those that the tokenizer knows.

    Embeddings may have more rows than the tokenizer has tokens; such ids would decode to nothing.
    The log-probs are those of the whole softmax, which the training pass computes again.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        temperature: float,
        generator: torch.Generator | None,
    ):
        self.tokenizer, self.temperature, self.generator = tokenizer, temperature, generator
        self.ends = torch.tensor(end_ids(policy, tokenizer), device=policy.device)
        self.unknown: Tensor | None = None  # (V,) bool, True on ids that are no token

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of each row, drawn from logits (B, V), and its log-prob; both (B, 1)."""
        scores = torch.log_softmax(scaled(logits, self.temperature or 1.0), dim=-1)
        choices = scores
        if scores.shape[-1] > len(self.tokenizer):
            choices = scores.masked_fill(self._unknown(scores.shape[-1]), -torch.inf)
        if self.temperature:
            token = _draw(choices.exp(), self.generator)
        else:
            token = choices.argmax(-1, keepdim=True)
        logprobs = scores.gather(1, token)
        if not logprobs.isfinite().all():  # a NaN or +inf anywhere in a row reaches all of it
            raise FloatingPointError(
                "the policy's logits are NaN or infinite: its weights have diverged, or overflow "
                "16 bits; load an earlier checkpoint, lower the learning rate, or use float32"
            )
        return token, logprobs

    def _unknown(self, words: int) -> Tensor:
        if self.unknown is None:
            self.unknown = torch.ones(words, dtype=torch.bool, device=self.ends.device)
            self.unknown[list(self.tokenizer.get_vocab().values())] = False
        return self.unknown


def _draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """One token a row (B, 1), by inverting the distribution function.

    It takes one random number a row, where torch.multinomial draws one a word: ten times faster.
    """
    cumulated = probabilities.cumsum(-1)
    uniform = torch.rand(len(probabilities), 1, generator=generator, device=probabilities.device)
    token = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)
    return token.clamp(max=probabilities.shape[1] - 1)  # where rounding has made uniform 1


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
    """The responses as texts, as they stand after the prompt (with the blank in front).

    Decoders of the SentencePiece kind drop a blank at the start of a text, so the responses are
    decoded behind a letter, which is then taken away.
    """
    letter = tokenizer("a", add_special_tokens=False)["input_ids"]
    front = tokenizer.decode(letter, skip_special_tokens=True)
    rows = []
    for ids, mask, ended in zip(
        samples.response_ids, samples.response_mask, samples.ended, strict=True
    ):
        real = ids[mask].tolist()
        rows.append(letter + (real[:-1] if ended else real))  # without the token that ended it
    texts = tokenizer.batch_decode(
        rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.removeprefix(front) for text in texts]


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
    starts = range(0, len(prompts), at_once)
    silent = processes.rank() > 0
    # Work of less than `delay` seconds shows no progress.
    for start in tqdm(starts, desc="sampling", leave=False, disable=silent, delay=5):
        ids, mask = encode_prompts(tokenizer, prompts[start : start + at_once])
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
            ratios = logprobs - response_logprobs(reference, tokens)
            found.log_ratios += ratios.sum(1).tolist()
    return found
