"""Proximal Policy Optimisation for language models, step by step.

    trainer = PPOTrainer(policy, tokenizer, config)
    for prompts in loader:
        rollout = trainer.rollout(prompts)
        scores = reward_model(rollout.texts)
        stats = trainer.step(rollout, scores)

The maths comes first, as functions of tensors of shape (B, R): B responses, R tokens, `mask` True
on the tokens of a response (its EOS included). `PPOTrainer.step` puts them together.

Sources: Schulman et al. 2017 (PPO), Schulman et al. 2016 (GAE), Ziegler et al. 2019 and Ouyang
et al. 2022 (InstructGPT) for language models, Huang et al. 2024 for the details.
"""

import contextlib
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import trange
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import generation
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.scales import PPOConfig, PPORunConfig
from rlhf_helpers.schemas import Prompt, format_prompt, read_prompts
from rlhf_helpers.training import (
    Result,
    load_checkpoint,
    save_checkpoint,
    save_stage,
    start_stage,
)

# ---- the maths -----------------------------------------------------------------------------


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of the whole batch; a scalar."""
    return (values * mask).sum() / mask.sum()


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over the real tokens; 0 elsewhere."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return (values - mean) * (variance + 1e-8).rsqrt() * mask


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Estimate KL(policy || reference) a token from samples of the policy (Schulman 2020).

    k1 = log pi - log pi_ref: unbiased, can be negative. k3 = exp(-k1) - 1 + k1: unbiased, never
    negative, of lower variance while the two are close. Shape (B, R), nats.
    """
    k1 = logprobs - ref_logprobs
    if estimator == "k1":
        return k1
    if estimator == "k3":
        return torch.exp(-k1) - 1 + k1
    raise ValueError(f"unknown KL estimator {estimator!r}: choose k1 or k3")


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """r_t = -kl_coef * kl_t, plus the score (B,) on the last real token (Ziegler et al. 2019)."""
    rewards = -kl_coef * kl * mask
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), backwards in time.

    delta_t = r_t + gamma V_{t+1} - V_t, and A_t = delta_t + gamma lam A_{t+1}; after the last real
    token V and A are 0. Returns advantages and returns A + V, both (B, R), 0 where masked.
    """
    values = values * mask
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate (Schulman et al. 2017, eq. 7), to be minimised.

    -min(ratio A, clip(ratio, 1 - cliprange, 1 + cliprange) A), averaged over the real tokens.
    Returns the loss and the share of tokens whose gradient the clip has cut.
    """
    ratio = torch.exp((logprobs - old_logprobs) * mask)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = masked_mean(torch.maximum(unclipped, clipped), mask)
    return loss, masked_mean((clipped > unclipped).float(), mask).detach()


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error of the values, clipped around the old ones (Ziegler et al. 2019).

    Returns the loss and the share of tokens on which the clipped error was the larger.
    """
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    error, clipped_error = (values - returns) ** 2, (clipped - returns) ** 2
    loss = 0.5 * masked_mean(torch.maximum(error, clipped_error), mask)
    outside = (values - old_values).abs() > cliprange_value
    return loss, masked_mean((outside & (clipped_error > error)).float(), mask).detach()


# ---- the trainer ---------------------------------------------------------------------------


@dataclass
class Rollout:
    """B responses to B / K prompts, sampled once; what `step` learns from."""

    prompt_ids: Tensor  # (B, P) left padded; each prompt K times in a row
    prompt_mask: Tensor  # (B, P)
    response_ids: Tensor  # (B, R) right padded, EOS included
    response_mask: Tensor  # (B, R) bool, from lengths: a pad token may equal EOS
    logprobs: Tensor  # (B, R) of the sampled tokens under the sampling policy
    ref_logprobs: Tensor  # (B, R) of the same tokens under the reference
    values: Tensor  # (B, R) expected return before each token
    ended: Tensor  # (B,) bool, False if the response was cut off
    responses: list[str]
    texts: list[str]  # prompt and response: what a reward model reads
    seconds: float  # that sampling took


class PPOTrainer:
    """PPO on a causal language model, with a value head on the shared trunk.

    The reference is a frozen copy of the policy, or, for a policy with a LoRA adapter, the policy
    with the adapter switched off. Random numbers come from the trainer's own generators.
    """

    def __init__(
        self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: PPOConfig
    ):
        self.policy, self.tokenizer, self.config = policy, tokenizer, config
        self.device = policy.device
        has_adapter = hasattr(policy, "disable_adapter")
        self.reference = None if has_adapter else copy.deepcopy(policy).eval()
        width = policy.get_output_embeddings().in_features  # of what the value head reads
        self.value_head = torch.nn.Linear(width, 1).to(self.device)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self.trained = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.trained, "lr": config.learning_rate},
                {"params": self.value_head.parameters(), "lr": config.value_learning_rate},
            ],
            betas=(0.9, 0.99),
            weight_decay=0.0,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate)
        self.sampling = torch.Generator(self.device).manual_seed(config.seed)
        self.shuffling = torch.Generator().manual_seed(config.seed)

    def _learning_rate(self, step: int) -> float:
        """Warm-up, then linear to a tenth at the last step."""
        warmup = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        return warmup * (1 - 0.9 * min(1.0, step / self.config.steps))

    def rollout(self, prompts: list[str]) -> Rollout:
        """Sample K responses to each formatted prompt; log-probs and values are kept."""
        started, config = time.perf_counter(), self.config
        prompt_ids, prompt_mask = generation.encode_prompts(self.tokenizer, prompts)
        prompt_ids, prompt_mask = prompt_ids.to(self.device), prompt_mask.to(self.device)
        samples = generation.sample(
            self.policy, self.tokenizer, prompt_ids, prompt_mask,
            max_new_tokens=config.max_new_tokens, temperature=config.temperature,
            samples_per_prompt=config.samples_per_prompt, generator=self.sampling,
            keep_hidden=True,
        )  # fmt: skip
        with torch.no_grad():
            values = self.value_head(samples.hidden).squeeze(-1) * samples.response_mask
        ref_logprobs = self._reference_logprobs(
            prompt_ids, prompt_mask, samples.response_ids, samples.response_mask
        )
        responses = generation.decode(self.tokenizer, samples)
        repeat = config.samples_per_prompt
        repeated = [prompt for prompt in prompts for _ in range(repeat)]
        return Rollout(
            prompt_ids.repeat_interleave(repeat, 0), prompt_mask.repeat_interleave(repeat, 0),
            samples.response_ids, samples.response_mask, samples.logprobs, ref_logprobs, values,
            samples.ended, [response.strip() for response in responses],
            [prompt + response for prompt, response in zip(repeated, responses, strict=True)],
            time.perf_counter() - started,
        )  # fmt: skip

    def _reference_logprobs(self, *batch: Tensor) -> Tensor:
        """Log-probs (B, R) of sampled responses under the reference."""
        own = self.reference is not None
        with contextlib.nullcontext() if own else self.policy.disable_adapter():
            return generation.response_logprobs(
                self.reference if own else self.policy, *batch,
                temperature=self.config.temperature, rows=self.config.mini_batch_size,
            )  # fmt: skip

    def step(self, rollout: Rollout, scores: list[float] | Tensor) -> dict[str, float]:
        """Improve the policy on one rollout; `scores` holds one number a response.

        Returns the statistics of the step as a flat dict. Raises ValueError for scores that are
        not finite or not one a response.
        """
        started, config, mask = time.perf_counter(), self.config, rollout.response_mask
        scores = self._checked(scores, rollout)
        kl = kl_penalty(rollout.logprobs, rollout.ref_logprobs)
        penalised = scores - config.missing_eos_penalty * ~rollout.ended
        rewards = token_rewards(penalised, kl, mask, config.kl_coef)
        advantages, returns = gae(rewards, rollout.values, mask, config.gamma, config.lam)
        advantages = whiten(advantages, mask)

        updates = [
            self._update(rollout, advantages, returns, rows)
            for _ in range(config.ppo_epochs)
            for rows in self._minibatches(len(scores))
        ]
        self.schedule.step()

        lengths, unexplained = (
            mask.sum(1).float(),
            (returns - rollout.values)[mask].var(unbiased=False),
        )
        return {
            "reward_mean": scores.mean().item(),
            "reward_std": scores.std(unbiased=False).item(),
            "kl": (kl * mask).sum(1).mean().item(),
            "kl_coef": config.kl_coef,
            **{key: sum(u[key] for u in updates) / len(updates) for key in updates[0]},
            "explained_variance": (
                1 - unexplained / returns[mask].var(unbiased=False).clamp(min=1e-8)
            ).item(),
            "response_length": lengths.mean().item(),
            "eos_rate": rollout.ended.float().mean().item(),
            "seconds_rollout": rollout.seconds,
            "seconds_update": time.perf_counter() - started,
        }

    def _checked(self, scores: list[float] | Tensor, rollout: Rollout) -> Tensor:
        scores = torch.as_tensor(scores, dtype=torch.float32, device=self.device)
        if scores.shape != rollout.ended.shape:
            raise ValueError(f"{len(rollout.ended)} responses need as many scores: {scores.shape}")
        for i in (~scores.isfinite()).nonzero()[:1, 0].tolist():
            raise ValueError(f"the score of response {i} is {scores[i]}: {rollout.texts[i]!r}")
        return scores

    def _minibatches(self, size: int) -> Iterator[Tensor]:
        """Rows of one epoch's mini-batches; the K samples of a prompt stay together."""
        repeat = self.config.samples_per_prompt
        prompts = torch.randperm(size // repeat, generator=self.shuffling)
        for chosen in prompts.split(self.config.mini_batch_size // repeat):
            yield (chosen[:, None] * repeat + torch.arange(repeat)).flatten().to(self.device)

    def _update(
        self, rollout: Rollout, advantages: Tensor, returns: Tensor, rows: Tensor
    ) -> dict[str, float]:
        """One optimiser step on some rows, without the padding that none of them needs."""
        config, prompts = self.config, rows[:: self.config.samples_per_prompt]
        first = rollout.prompt_mask[prompts].any(0).nonzero()[0, 0]
        width = int(rollout.response_mask[rows].sum(1).max())
        response_ids, mask, old_logprobs, old_values, advantages, returns = (
            x[rows, :width]
            for x in (rollout.response_ids, rollout.response_mask, rollout.logprobs,
                      rollout.values, advantages, returns)
        )  # fmt: skip
        logits, hidden = generation.forward_responses(
            self.policy, rollout.prompt_ids[prompts, first:], rollout.prompt_mask[prompts, first:],
            response_ids, mask,
        )  # fmt: skip
        log_softmax = torch.log_softmax(logits.float() / config.temperature, dim=-1)
        logprobs = log_softmax.gather(-1, response_ids.unsqueeze(-1)).squeeze(-1)
        values = self.value_head(hidden.float()).squeeze(-1)

        pg_loss, clip_fraction = policy_loss(
            logprobs, old_logprobs, advantages, mask, config.cliprange
        )
        vf_loss, _ = value_loss(values, old_values, returns, mask, config.cliprange_value)
        loss = pg_loss + config.vf_coef * vf_loss

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(
            [*self.trained, *self.value_head.parameters()], config.max_grad_norm
        )
        self.optimizer.step()
        with torch.no_grad():
            entropy = -(log_softmax.exp() * log_softmax).sum(-1)
            approx_kl = kl_penalty(old_logprobs, logprobs)
        return {
            "policy_loss": pg_loss.item(),
            "value_loss": vf_loss.item(),
            "entropy": masked_mean(entropy, mask).item(),
            "clip_fraction": clip_fraction.item(),
            "approx_kl": masked_mean(approx_kl, mask).item(),
            "grad_norm": grad_norm.item(),
        }

    def state_dict(self) -> dict:
        """All that changes during training, but for the policy's own weights."""
        return {
            "value_head": self.value_head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "sampling": self.sampling.get_state(),
            "shuffling": self.shuffling.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        for name in ("value_head", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.sampling.set_state(state["sampling"])
        self.shuffling.set_state(state["shuffling"])


# ---- a whole run ---------------------------------------------------------------------------


def prompt_batches(records: list[Prompt], config: PPORunConfig) -> list[list[str]]:
    """The formatted prompts of every step, drawn without repeats until all have been used."""
    per_step = config.batch_size // config.samples_per_prompt
    generator = torch.Generator().manual_seed(config.seed)
    order: list[int] = []
    while len(order) < config.steps * per_step:
        order += torch.randperm(len(records), generator=generator).tolist()
    texts = [format_prompt(records[i]["input_text"], config.instruction) for i in order]
    return [texts[i * per_step : (i + 1) * per_step] for i in range(config.steps)]


def train(config: PPORunConfig, resume: bool = False) -> Result:
    """Run PPO from the SFT model against the reward model; see `PPOTrainer` for the loop.

    Raises DataError for a bad data set.
    """
    batches = prompt_batches(read_prompts(config.data), config)
    reward_model = RewardModel.from_pretrained(config.reward_model)
    tokenizer = load_tokenizer(config.model)
    trainer = PPOTrainer(load_policy(config.model), tokenizer, config)
    start_stage(config, resume)
    history: list[dict] = []
    if resume:
        state = load_checkpoint(config.output_dir, trainer.device)
        trainer.policy.load_state_dict(state["policy"])
        trainer.load_state_dict(state["trainer"])
        history = state["history"]
    with SummaryWriter(config.output_dir / "logs") as writer:
        for step in trange(len(history), config.steps, initial=len(history), total=config.steps):
            rollout = trainer.rollout(batches[step])
            stats = trainer.step(rollout, reward_model(rollout.texts))
            for name, value in stats.items():
                writer.add_scalar(f"ppo/{name}", value, step)
            history.append(stats)
            if (step + 1) % config.save_steps == 0 and step + 1 < config.steps:
                state = {"policy": trainer.policy.state_dict(), "trainer": trainer.state_dict()}
                save_checkpoint(config.output_dir, len(history), state | {"history": history})
    seconds = sum(stats["seconds_rollout"] + stats["seconds_update"] for stats in history)
    metrics = {key: history[-1][key] for key in ("reward_mean", "kl", "eos_rate")}
    metrics |= {"steps": len(history), "seconds": seconds}
    return save_stage(config, trainer.policy, tokenizer, metrics, history)
