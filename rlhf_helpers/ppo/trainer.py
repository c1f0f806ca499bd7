"""The PPO step on a language model: rollout, then rewards, advantages and several updates.

Start reading at `PPOTrainer.step`; the maths it calls is in `maths`. What it leaves out of the
course's sources: weights sharded over several GPUs (each process holds the whole model).
"""

import copy
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import generation, processes
from rlhf_helpers.configs import PPOConfig
from rlhf_helpers.models import load_trained_weights, trainable, trained_weights
from rlhf_helpers.ppo.critic import response_states, separate_critic, value_head
from rlhf_helpers.ppo.maths import (
    adapted_kl_coef,
    final_scores,
    gae,
    kl_penalty,
    masked_mean,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from rlhf_helpers.ppo.pretraining import Pretraining
from rlhf_helpers.ppo.rollout import (
    Rollout,
    comparable_logprobs,
    draw_lengths,
    reference_logprobs,
)
from rlhf_helpers.ppo.statistics import step_statistics, stop_unless_finite

UPDATE_STATS = ("policy_loss", "value_loss", "entropy", "clip_fraction", "approx_kl")


class PPOTrainer:
    """PPO on a causal language model, with a value head on the shared trunk or on its own.

    The reference is a frozen copy of the policy, or, for a policy with a LoRA adapter, the policy
    with the adapter switched off. Random numbers come from the trainer's own generators. With
    several processes each rolls out its own share of the prompts; everything that is computed over
    a batch (whitening, losses, gradients, statistics) is computed over the whole of it.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: PPOConfig,
        *,
        critic: PreTrainedModel | None = None,
        documents: list[str] | None = None,
    ):
        """`critic` is what a separate critic starts from, the policy if not given; `documents`
        are the pretraining texts that a `ptx_coef` needs.
        """
        self.policy, self.tokenizer, self.config = policy, tokenizer, config
        self.device, self.kl_coef = policy.device, config.kl_coef
        self.share, self.part = processes.shares(
            config.mini_batch_size, config.gradient_accumulation_steps, config.samples_per_prompt
        )
        # Where lengths are drawn no response can end by itself, so none is to blame.
        self.eos_penalty = 0.0 if config.min_new_tokens else config.missing_eos_penalty
        has_adapter = hasattr(policy, "disable_adapter")
        self.reference = None if has_adapter else copy.deepcopy(policy).eval()
        separate = config.critic == "separate"
        self.critic = separate_critic(critic or policy) if separate else None
        self.value_head = value_head(self.critic or policy, config.value_head_std, config.seed)
        actor, critics = trainable(policy), trainable(self.value_head) + trainable(self.critic)
        self.trained = actor + critics
        processes.copy_from_first(self.trained)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": actor, "lr": config.learning_rate},
                {"params": critics, "lr": config.value_learning_rate},
            ],
            betas=(0.9, 0.99),
            weight_decay=0.0,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate)
        seed = config.seed + 100_003 * processes.rank()  # each process samples for itself
        self.sampling = torch.Generator(self.device).manual_seed(seed)
        self.shuffling = torch.Generator().manual_seed(seed)
        self.pretraining = None
        if config.ptx_coef:
            if not documents:
                raise ValueError("ptx_coef needs pretraining documents: pass some")
            self.pretraining = Pretraining(policy, tokenizer, documents, config.ptx_coef, seed)

    def _learning_rate(self, step: int) -> float:
        """Warm-up, then linear to a tenth at the last step."""
        warmup = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        return warmup * (1 - 0.9 * min(1.0, step / self.config.steps))

    def rollout(self, prompts: list[str]) -> Rollout:
        """Sample K responses to each formatted prompt; log-probs and values are kept."""
        started, config, repeat = time.perf_counter(), self.config, self.config.samples_per_prompt
        prompt_ids, prompt_mask = generation.encode_prompts(self.tokenizer, prompts)
        prompt_ids, prompt_mask = prompt_ids.to(self.device), prompt_mask.to(self.device)
        samples = generation.sample(
            self.policy, self.tokenizer, prompt_ids, prompt_mask,
            max_new_tokens=config.max_new_tokens, temperature=config.temperature,
            samples_per_prompt=repeat, generator=self.sampling, keep_hidden=not self.critic,
            lengths=draw_lengths(
                config.min_new_tokens, config.max_new_tokens, len(prompts) * repeat, self.sampling
            ),
        )  # fmt: skip
        batch = [prompt_ids, prompt_mask, samples.response_ids, samples.response_mask]
        with torch.no_grad():
            values = self._values(samples.hidden, *batch) * samples.response_mask
        how = (config.temperature, config.mini_batch_size)
        logprobs, gap = comparable_logprobs(self.policy, samples.logprobs, batch, *how)
        ref_logprobs = reference_logprobs(self.policy, self.reference, batch, *how)
        responses = generation.decode(self.tokenizer, samples)
        repeated = [prompt for prompt in prompts for _ in range(repeat)]
        return Rollout(
            prompt_ids.repeat_interleave(repeat, 0), prompt_mask.repeat_interleave(repeat, 0),
            samples.response_ids, samples.response_mask, logprobs, ref_logprobs, values,
            samples.ended, [response.strip() for response in responses],
            [prompt + response for prompt, response in zip(repeated, responses, strict=True)],
            time.perf_counter() - started, gap,
        )  # fmt: skip

    def _values(self, hidden: Tensor | None, *batch: Tensor) -> Tensor:
        """Values (B, R) from the policy's hidden states, or from a separate critic's."""
        states = hidden if self.critic is None else response_states(self.critic, *batch)
        assert states is not None  # sampling keeps them for the shared trunk
        return self.value_head(states.float()).squeeze(-1)

    def step(self, rollout: Rollout, scores: list[float] | Tensor) -> dict[str, float]:
        """Improve the policy on one rollout; `scores` holds one number a response.

        Returns the statistics of the step as a flat dict. Raises ValueError for scores that are
        not finite or not one a response, FloatingPointError for a loss that is not finite.
        """
        started, config, mask = time.perf_counter(), self.config, rollout.response_mask
        scores = self._checked(scores, rollout)

        # 1. A reward for each token: the score on the last, minus the price of leaving the
        #    reference on every one.
        kl = kl_penalty(rollout.logprobs, rollout.ref_logprobs)
        final = final_scores(scores, rollout.ended, config.score_clip, self.eos_penalty)
        rewards = token_rewards(final, kl, mask, self.kl_coef)

        # 2. Advantages: was what followed a token better than the critic had expected?
        advantages, returns = gae(rewards, rollout.values, mask, config.gamma, config.lam)
        advantages = whiten(advantages, mask, processes.total)

        # 3. Several passes over the rollout in mini-batches, with an optimiser step for each.
        updates = []
        for rows in self._minibatches(len(scores)):
            updates.append(self._set_gradients(rollout, advantages, returns, rows))
            if self._too_far(updates[-1]["approx_kl"]):
                break
            self.optimizer.step()

        # 4. What the step says about itself, and the settings of the next one.
        stats = step_statistics(rollout, scores, kl, returns, updates) | self._settings(updates)
        self.schedule.step()
        self.kl_coef = self._next_kl_coef(stats["kl"], len(scores) * processes.count())
        return stats | {"seconds_update": time.perf_counter() - started}

    def _checked(self, scores: list[float] | Tensor, rollout: Rollout) -> Tensor:
        scores = torch.as_tensor(scores, dtype=torch.float32, device=self.device)
        if scores.shape != rollout.ended.shape:
            raise ValueError(f"{len(rollout.ended)} responses need as many scores: {scores.shape}")
        for i in (~scores.isfinite()).nonzero()[:1, 0].tolist():
            raise ValueError(
                f"step {self.schedule.last_epoch}: the score of response {i} is {scores[i]}: "
                f"{rollout.texts[i]!r}"
            )
        if len(set(processes.gather(len(scores)))) > 1:
            raise ValueError("every process must bring as many responses to a step")
        return scores

    def _minibatches(self, size: int) -> Iterator[Tensor]:
        """Rows of the mini-batches of every epoch; the K samples of a prompt stay together."""
        repeat = self.config.samples_per_prompt
        for _ in range(self.config.ppo_epochs):
            prompts = torch.randperm(size // repeat, generator=self.shuffling)
            for chosen in prompts.split(self.share // repeat):
                yield (chosen[:, None] * repeat + torch.arange(repeat)).flatten().to(self.device)

    def _set_gradients(
        self, rollout: Rollout, advantages: Tensor, returns: Tensor, rows: Tensor
    ) -> dict[str, float]:
        """Compute the clipped gradients of one mini-batch; returns its statistics.

        Its parts, one after the other and on other processes, weigh as much as they have tokens:
        the gradient is that of the whole, however it is cut.
        """
        self.optimizer.zero_grad(set_to_none=True)
        tokens = processes.total(rollout.response_mask[rows].sum())
        sums = torch.zeros(len(UPDATE_STATS), device=self.device)
        for part in rows.split(self.part):
            loss, stats = self._loss(rollout, advantages, returns, part)
            weight = rollout.response_mask[part].sum() / tokens
            (weight * loss).backward()
            sums += weight * stats
        update = dict(zip(UPDATE_STATS, processes.total(sums).tolist(), strict=True))
        if self.pretraining is not None:
            documents = len(rows) // self.config.samples_per_prompt  # as many as prompts
            ptx_loss = self.pretraining.add_gradients(documents, self.part)
            update["ptx_loss"] = processes.total(ptx_loss).item()
        processes.total_gradients(self.trained)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm)
        update["grad_norm"] = norm.item()
        stop_unless_finite(update, self.schedule.last_epoch, rollout, rows)
        return update

    def _loss(
        self, rollout: Rollout, advantages: Tensor, returns: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss on some responses, without the padding that none of them needs.

        Returns it with the values of `UPDATE_STATS`.
        """
        config, prompts = self.config, rows[:: self.config.samples_per_prompt]
        first = rollout.prompt_mask[prompts].any(0).nonzero()[0, 0]
        width = int(rollout.response_mask[rows].sum(1).max())
        response_ids, mask, old_logprobs, old_values, advantages, returns = (
            x[rows, :width]
            for x in (rollout.response_ids, rollout.response_mask, rollout.logprobs,
                      rollout.values, advantages, returns)
        )  # fmt: skip
        batch = (rollout.prompt_ids[prompts, first:], rollout.prompt_mask[prompts, first:],
                 response_ids, mask)  # fmt: skip
        logits, hidden = generation.forward_responses(self.policy, *batch)
        logprobs, entropy = generation.logprobs_and_entropy(
            logits, response_ids, config.temperature
        )
        values = self._values(hidden, *batch)

        pg_loss, clip_fraction = policy_loss(
            logprobs, old_logprobs, advantages, mask, config.cliprange
        )
        vf_loss, _ = value_loss(values, old_values, returns, mask, config.cliprange_value)
        with torch.no_grad():
            approx_kl = masked_mean(kl_penalty(old_logprobs, logprobs), mask)
            stats = torch.stack(
                [pg_loss, vf_loss, masked_mean(entropy, mask), clip_fraction, approx_kl]
            )
        return pg_loss + config.vf_coef * vf_loss, stats

    def _too_far(self, approx_kl: float) -> bool:
        """Whether to stop updating: the policy has moved 1.5 times `target_kl` from its rollout.

        The mean of log pi_old - log pi over the tokens of a mini-batch, before its optimiser step,
        as in Spinning Up (Achiam 2018) and the older TRL.
        """
        target = self.config.target_kl
        return target is not None and approx_kl > 1.5 * target

    def _settings(self, updates: list[dict[str, float]]) -> dict[str, float]:
        """What held in this step and may be another in the next."""
        settings = {"kl_coef": self.kl_coef}
        if self.config.target_kl is not None:
            stopped = self._too_far(updates[-1]["approx_kl"])
            settings["optimizer_steps"] = float(len(updates) - stopped)
        return settings

    def _next_kl_coef(self, kl: float, responses: int) -> float:
        config = self.config
        if not config.adaptive_kl:
            return self.kl_coef
        return adapted_kl_coef(self.kl_coef, kl, config.kl_target, responses, config.kl_horizon)

    def _generators(self) -> list[torch.Generator]:
        own = [self.sampling, self.shuffling]
        return own if self.pretraining is None else [*own, self.pretraining.generator]

    def state_dict(self) -> dict:
        """All that changes during training, but for the policy's own weights.

        All processes must call it; each has random numbers of its own.
        """
        return {
            "value_head": self.value_head.state_dict(),
            "critic": trained_weights(self.critic) if self.critic else {},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "kl_coef": self.kl_coef,
            "generators": processes.gather([g.get_state() for g in self._generators()]),
        }

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError for the state of another number of processes."""
        if len(state["generators"]) != processes.count():
            raise ValueError(
                f"the checkpoint is of {len(state['generators'])} processes, not of "
                f"{processes.count()}"
            )
        for name in ("value_head", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        if self.critic:
            load_trained_weights(self.critic, state["critic"])
        self.kl_coef = state["kl_coef"]
        own = state["generators"][processes.rank()]
        for generator, numbers in zip(self._generators(), own, strict=True):
            generator.set_state(numbers.cpu())
