"""What one sampling leaves for several updates, and the log-probs that go with it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import generation, processes
from rlhf_helpers.configs import PPOConfig
from rlhf_helpers.logprobs import Tokens, response_logprobs
from rlhf_helpers.models import is_exact
from rlhf_helpers.ppo.critic import token_values
from rlhf_helpers.ppo.maths import masked_mean
from rlhf_helpers.ppo.reference import reference_logprobs
from rlhf_helpers.schemas import join

Records = Sequence[Mapping[str, Any]]


@dataclass(kw_only=True)
class Rollout(Tokens):
    """B responses, sampled once, each with a prompt of its own row; `PPOTrainer.step` learns them.

    The K responses to a prompt stand side by side, so that a prompt stands K times in a row:
    `prompt_ids` and `prompt_mask` are (B, P).
    """

    logprobs: Tensor  # (B, R) of the sampled tokens under the sampling policy, nats
    ref_logprobs: Tensor  # (B, R) of the same tokens under the reference
    values: Tensor | None  # (B, R) expected return before each token; None without a critic
    ended: Tensor  # (B,) bool, False if the response was cut off
    counted: Tensor  # (B,) bool, False if the policy is not to learn from the response
    prompts: list[str]  # formatted, one for each response
    responses: list[str]
    texts: list[str]  # prompt and response: what a reward function reads
    records: list[Mapping[str, Any]]  # the data's record of each prompt: what a program may check
    seconds: float  # that sampling took
    logprob_gap: float | None = None  # mean |sampled - recomputed| log-prob, where recomputed

    @property
    def answers(self) -> list[str]:
        """The responses as they follow their prompts, with the blank in front."""
        pairs = zip(self.texts, self.prompts, strict=True)
        return [text[len(prompt) :] for text, prompt in pairs]

    def select(self, rows: Tensor) -> "Rollout":
        """The rollout of some responses, in the order of `rows`: to filter or to reorder it."""
        chosen: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                chosen[field.name] = value[rows]
            elif isinstance(value, list):
                chosen[field.name] = [value[i] for i in rows.tolist()]
        return replace(self, **chosen)

    def is_grouped(self, rows: Tensor, samples_per_prompt: int) -> bool:
        """Whether `rows` are whole groups of K responses to one prompt, side by side."""
        if len(rows) % samples_per_prompt:
            return False
        ids = self.prompt_ids[rows].unflatten(0, (-1, samples_per_prompt))
        mask = self.prompt_mask[rows].unflatten(0, (-1, samples_per_prompt))
        return bool((ids == ids[:, :1]).all() and (mask == mask[:, :1]).all())

    def check_groups(self, samples_per_prompt: int) -> None:
        """Raise ValueError unless the K responses to each prompt stand side by side."""
        rows = torch.arange(len(self.ended), device=self.ended.device)
        if not self.is_grouped(rows, samples_per_prompt):
            raise ValueError(
                f"the rollout is not in groups of {samples_per_prompt} responses to one prompt, "
                "which this estimator compares: keep or drop whole groups"
            )

    def minibatches(
        self, size: int, config: PPOConfig, generator: torch.Generator
    ) -> Iterator[Tensor]:
        """Rows of the mini-batches of every epoch; the K samples of a prompt stay together.

        Where a filter or another order has torn them apart, each response goes by itself.
        """
        count, device, repeat = len(self.ended), self.ended.device, config.samples_per_prompt
        if not self.is_grouped(torch.arange(count, device=device), repeat):
            repeat = 1
        for _ in range(config.ppo_epochs):
            prompts = torch.randperm(count // repeat, generator=generator)
            for chosen in prompts.split(size // repeat):
                yield (chosen[:, None] * repeat + torch.arange(repeat)).flatten().to(device)

    def part(self, rows: Tensor, samples_per_prompt: int) -> Tokens:
        """The tokens of some responses, each prompt once for its K responses.

        Where `rows` are not whole groups of K responses to one prompt, each response has a prompt
        of its own. Padding that none of the responses needs is left out.
        """
        prompts = rows[::samples_per_prompt] if self.is_grouped(rows, samples_per_prompt) else rows
        first = self.prompt_mask[prompts].any(0).nonzero()[0, 0]
        width = int(self.response_mask[rows].sum(1).max())
        return Tokens(
            prompt_ids=self.prompt_ids[prompts, first:],
            prompt_mask=self.prompt_mask[prompts, first:],
            response_ids=self.response_ids[rows, :width],
            response_mask=self.response_mask[rows, :width],
        )


@torch.no_grad()
def sample_rollout(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    config: PPOConfig,
    generator: torch.Generator,
    *,
    records: Records | None = None,
    reference: PreTrainedModel | None,
    first_adapter: dict[str, Tensor] | None,
    critic: PreTrainedModel | None,
    value_head: torch.nn.Linear | None,
) -> Rollout:
    """Sample K responses to each prompt and keep what their updates need; see `Rollout`."""
    started, repeat = time.perf_counter(), config.samples_per_prompt
    keep_hidden = value_head is not None and critic is None
    tokens, samples = _sample(policy, tokenizer, prompts, config, generator, keep_hidden)
    logprobs, gap = comparable_logprobs(policy, samples.logprobs, tokens, config)
    values = None
    if value_head is not None:
        values = token_values(value_head, critic, samples.hidden, tokens) * samples.response_mask
    responses = generation.decode(tokenizer, samples)
    records = [{"input_text": prompt} for prompt in prompts] if records is None else records
    prompts = [prompt for prompt in prompts for _ in range(repeat)]
    return Rollout(
        prompt_ids=tokens.prompt_ids.repeat_interleave(repeat, 0),
        prompt_mask=tokens.prompt_mask.repeat_interleave(repeat, 0),
        response_ids=samples.response_ids,
        response_mask=samples.response_mask,
        logprobs=logprobs,
        ref_logprobs=reference_logprobs(policy, reference, first_adapter, tokens, config),
        values=values,
        ended=samples.ended,
        counted=torch.ones_like(samples.ended),
        prompts=prompts,
        responses=[response.strip() for response in responses],
        texts=[join(*pair) for pair in zip(prompts, responses, strict=True)],
        records=[record for record in records for _ in range(repeat)],
        seconds=time.perf_counter() - started,
        logprob_gap=gap,
    )


def _sample(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    config: PPOConfig,
    generator: torch.Generator,
    keep_hidden: bool,
) -> tuple[Tokens, generation.Samples]:
    """K samples of each prompt, and their tokens together with those of the prompts."""
    prompt_ids, prompt_mask = generation.encode_prompts(tokenizer, prompts)
    prompt_ids, prompt_mask = prompt_ids.to(policy.device), prompt_mask.to(policy.device)
    samples = generation.sample(
        policy,
        tokenizer,
        prompt_ids,
        prompt_mask,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        samples_per_prompt=config.samples_per_prompt,
        generator=generator,
        keep_hidden=keep_hidden,
        min_new_tokens=config.min_new_tokens,
        lengths=draw_lengths(config, len(prompts) * config.samples_per_prompt, generator),
    )
    tokens = Tokens(prompt_ids, prompt_mask, samples.response_ids, samples.response_mask)
    return tokens, samples


def draw_lengths(config: PPOConfig, size: int, generator: torch.Generator) -> Tensor | None:
    """Lengths (size,) drawn evenly from min_new_tokens to max_new_tokens; None lets EOS decide.

    After TRL's LengthSampler, which drew one length for every few responses and stopped at no EOS
    either: the answers of a batch then differ in length by chance, not by the policy's choice.
    """
    if not config.draw_lengths:
        return None
    low, high = config.min_new_tokens, config.max_new_tokens
    return torch.randint(low, high + 1, (size,), generator=generator, device=generator.device)


def comparable_logprobs(
    policy: PreTrainedModel, sampled: Tensor, tokens: Tokens, config: PPOConfig
) -> tuple[Tensor, float | None]:
    """The log-probs (B, R) that ratios start from, and how far the sampled ones are from them.

    In float32 those of sampling will do. A bf16 or quantised policy rounds differently token by
    token than in one pass, so they are computed again, else the first ratio would not be 1.
    """
    if is_exact(policy):
        return sampled, None
    logprobs = response_logprobs(
        policy, tokens, temperature=config.temperature, rows=config.mini_batch_size
    )
    difference = (sampled - logprobs).abs()
    return logprobs, masked_mean(difference, tokens.response_mask, processes.total).item()
