"""PPO on a language model: sample, score, advantages, then several updates of policy and critic.

    rollout = trainer.rollout(prompts)      # responses with log-probs, reference log-probs, values
    stats = trainer.step(rollout, scores)   # one score a response; improves the policy

Read `PPOTrainer.step` from top to bottom: its losses are in `maths`, and where their log-probs
come from is in `rlhf_helpers.logprobs`. Weights are not sharded over GPUs: each process holds the
whole model.
"""

import time

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import generation, processes
from rlhf_helpers.configs import PPOConfig
from rlhf_helpers.configs.ppo import OF_GROUPS
from rlhf_helpers.logprobs import training_pass
from rlhf_helpers.models import trainable, without_dropout
from rlhf_helpers.models.compatibility import check_prompt_cache
from rlhf_helpers.ppo.critic import separate_critic, token_values, value_head
from rlhf_helpers.ppo.estimators import critic_free, minibatch_weights
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
from rlhf_helpers.ppo.optimizer import make_optimizer
from rlhf_helpers.ppo.pretraining import Pretraining
from rlhf_helpers.ppo.reference import frozen_reference, trained_adapter
from rlhf_helpers.ppo.rollout import Records, Rollout, sample_rollout
from rlhf_helpers.ppo.state import load_trainer_state, trainer_state
from rlhf_helpers.ppo.statistics import (
    checked_scores,
    compare_groups,
    step_statistics,
    stop_unless_finite,
)


class PPOTrainer:
    """PPO on a causal language model, with a value head on the shared trunk or on its own.

    Random numbers come from the trainer's own generators. With several processes each rolls out
    its own share of the prompts; everything that is computed over a batch (whitening, losses,
    gradients, statistics) is computed over the whole of it.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: PPOConfig,
        *,
        reference: PreTrainedModel | None = None,
        critic: PreTrainedModel | None = None,
        documents: list[str] | None = None,
    ):
        """Make a trainer of `policy`, which it changes in place.

        `reference` is the model that the KL is measured to. By default it is a frozen copy of the
        policy, or, for one with an adapter, the policy with that adapter as it is now: switched off
        if it is new, else with the weights that it has been given.
        `critic` is what a separate critic starts from, by default the policy. `documents` are the
        pretraining texts that a `ptx_coef` needs. Raises ValueError for what does not fit together.
        """
        self.policy, self.tokenizer, self.config = policy, tokenizer, config
        self.device, self.kl_coef = policy.device, config.kl_coef
        self.share, self.part = processes.shares(
            config.mini_batch_size, config.gradient_accumulation_steps, config.samples_per_prompt
        )
        # Where lengths are drawn no response can end by itself, so none is to blame.
        self.eos_penalty = 0.0 if config.draw_lengths else config.missing_eos_penalty
        if getattr(policy, "is_activation_checkpointing", False):  # acts in training mode alone
            without_dropout(policy)
        generation.end_ids(policy, tokenizer)  # raises ValueError where no response could end
        check_prompt_cache(policy, tokenizer)
        self.reference = frozen_reference(policy, reference, tokenizer)
        self.first_adapter = None if self.reference else trained_adapter(policy)
        separate = config.critic == "separate"
        self.critic = separate_critic(critic or policy) if separate else None
        start = (self.critic or policy, config.value_head_std, config.seed)
        self.value_head = value_head(*start) if config.has_critic else None
        actor, critics = trainable(policy), trainable(self.value_head) + trainable(self.critic)
        self.trained = actor + critics
        processes.copy_from_first(self.trained)
        self.optimizer, self.schedule = make_optimizer(actor, critics, config)
        seed = config.seed + 100_003 * processes.rank()  # each process samples for itself
        self.sampling = torch.Generator(self.device).manual_seed(seed)
        self.shuffling = torch.Generator().manual_seed(seed)
        self.pretraining = None
        if config.ptx_coef:
            self.pretraining = Pretraining(policy, tokenizer, documents, config.ptx_coef, seed)

    def rollout(self, prompts: list[str], records: Records | None = None) -> Rollout:
        """Sample K responses to each formatted prompt, with all that `step` needs of them.

        `records` are those of the prompts, one each, for rewards that read their other fields.
        """
        return sample_rollout(
            self.policy,
            self.tokenizer,
            prompts,
            self.config,
            self.sampling,
            records=records,
            reference=self.reference,
            first_adapter=self.first_adapter,
            critic=self.critic,
            value_head=self.value_head,
        )

    def step(self, rollout: Rollout, scores: list[float] | Tensor) -> dict[str, float]:
        """Improve the policy on one rollout; `scores` holds one number a response.

        Returns the statistics of the step as a flat dict. Raises ValueError for scores that are
        not finite or not one a response, FloatingPointError for a loss that is not finite.
        """
        started, config = time.perf_counter(), self.config
        scores = checked_scores(scores, rollout, self.schedule.last_epoch)

        # 1. Advantages: was what followed a token better than the critic had expected?
        advantages, returns = self.advantages(rollout, scores)
        groups: dict[str, float] = {}
        if config.advantages in OF_GROUPS:
            final = final_scores(scores, rollout.ended, config.score_clip, self.eos_penalty)
            rollout, groups = compare_groups(rollout, final, config, self.schedule.last_epoch)

        # 2. Several passes over the rollout in mini-batches, with an optimiser step for each.
        updates = []
        for rows in rollout.minibatches(self.share, config, self.shuffling):
            updates.append(self._set_gradients(rollout, advantages, returns, rows))
            if self._too_far(updates[-1]["approx_kl"]):
                break
            if not updates[-1]["grad_norm"]:
                self.optimizer.zero_grad()  # else momentum alone would move the policy
            self.optimizer.step()

        # 3. What the step says about itself, and the settings of the next one.
        stats = step_statistics(rollout, scores, returns, updates) | groups
        stats |= self._settings(updates)
        self.schedule.step()
        if config.adaptive_kl:
            self.kl_coef = adapted_kl_coef(
                self.kl_coef,
                stats["kl"],
                config.kl_target,
                len(scores) * processes.count(),
                config.kl_horizon,
            )
        return stats | {"seconds_update": time.perf_counter() - started}

    def rewards(self, rollout: Rollout, scores: Tensor) -> Tensor:
        """A reward (B, R) for each token: minus the price of leaving the reference, and on the
        last token the score (B,), clipped and lowered where the response did not end.
        """
        config = self.config
        kl_coef = 0.0 if config.kl_is_in_loss else self.kl_coef
        kl = kl_penalty(rollout.logprobs, rollout.ref_logprobs)
        final = final_scores(scores, rollout.ended, config.score_clip, self.eos_penalty)
        return token_rewards(final, kl, rollout.response_mask, kl_coef)

    def advantages(self, rollout: Rollout, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages and returns, both (B, R) and 0 on padding, from one score (B,) a response.

        The policy learns the advantages and the critic, if there is one, the returns. They are
        those of `config.advantages`: GAE whitened over the batch, or one of `estimators`. Override
        this method for another: REINFORCE (Williams 1992) with the batch's mean as baseline, say.

            class BatchMean(PPOTrainer):
                def advantages(self, rollout, scores):
                    mask = rollout.response_mask
                    rewards = self.rewards(rollout, scores)
                    returns = rewards.flip(1).cumsum(1).flip(1) * mask
                    baseline = masked_mean(returns, mask)
                    return (returns - baseline) * mask, returns
        """
        config, mask = self.config, rollout.response_mask
        rewards = self.rewards(rollout, scores)
        if rollout.values is None:
            returns, samples = (rewards * mask).sum(1), config.samples_per_prompt
            rollout.check_groups(1 if config.advantages == "reinforce" else samples)
            found = critic_free(config.advantages, returns, samples, processes.total)
            return found[:, None] * mask, returns[:, None] * mask
        advantages, returns = gae(rewards, rollout.values, mask, config.gamma, config.lam)
        return whiten(advantages, mask, processes.total), returns

    def _set_gradients(
        self, rollout: Rollout, advantages: Tensor, returns: Tensor, rows: Tensor
    ) -> dict[str, float]:
        """Compute the clipped gradients of one mini-batch; returns its statistics.

        Its parts, one after the other and on other processes, weigh as much as they have tokens:
        the gradient is that of the whole, however it is cut.
        """
        self.optimizer.zero_grad(set_to_none=True)
        tokens, weights = minibatch_weights(
            rollout.response_mask, rollout.counted, rows, self.config, processes.total
        )
        sums: dict[str, Tensor] = {}
        for part in rows.split(self.part):
            loss, stats = self._loss(rollout, advantages, returns, weights, part)
            weight = rollout.response_mask[part].sum() / tokens
            (weight * loss).backward()
            for name, value in stats.items():
                sums[name] = sums.get(name, 0.0) + weight * value
        totals = processes.total(torch.stack(list(sums.values()))).tolist()
        update = dict(zip(sums, totals, strict=True))
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
        self,
        rollout: Rollout,
        advantages: Tensor,
        returns: Tensor,
        weights: Tensor,
        rows: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on some responses, policy's and critic's together, and its statistics."""
        config = self.config
        tokens = rollout.part(rows, config.samples_per_prompt)
        mask, weights = tokens.response_mask, weights[rows]
        width = mask.shape[1]
        old_logprobs, advantages = rollout.logprobs[rows, :width], advantages[rows, :width]
        logprobs, entropy, hidden = training_pass(self.policy, tokens, config.temperature)
        loss, clip_fraction = policy_loss(
            logprobs,
            old_logprobs,
            weights * advantages,
            mask,
            config.cliprange,
            config.cliprange_high,
        )
        with torch.no_grad():
            stats = {
                "policy_loss": loss.detach(),
                "entropy": masked_mean(entropy, mask),
                "clip_fraction": clip_fraction,
                "approx_kl": masked_mean(kl_penalty(old_logprobs, logprobs), mask),
            }
        if rollout.values is not None:
            values = token_values(self.value_head, self.critic, hidden, tokens)
            vf_loss, _ = value_loss(
                values,
                rollout.values[rows, :width],
                returns[rows, :width],
                mask,
                config.cliprange_value,
            )
            loss, stats["value_loss"] = loss + config.vf_coef * vf_loss, vf_loss.detach()
        if config.kl_is_in_loss:  # its gradient is that of KL(reference || policy)
            kl = kl_penalty(logprobs, rollout.ref_logprobs[rows, :width], "k3")
            loss = loss + self.kl_coef * masked_mean(weights * kl, mask)
        return loss, stats

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

    def state_dict(self) -> dict:
        """All that changes during training, but for the policy's own weights.

        All processes must call it; each has random numbers of its own.
        """
        return trainer_state(self)

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError for the state of another number of processes."""
        load_trainer_state(self, state)
