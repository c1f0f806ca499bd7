"""A whole PPO run: reads an SFT model and a reward model from folders, writes a better policy."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import processes
from rlhf_helpers.configs import PPORunConfig
from rlhf_helpers.models import (
    add_lora,
    load_policy,
    load_tokenizer,
    load_trained_weights,
    merge_adapter,
    trained_weights,
)
from rlhf_helpers.models.compatibility import check_policy
from rlhf_helpers.ppo import critic
from rlhf_helpers.ppo.trainer import PPOTrainer
from rlhf_helpers.prompts import cut_prompt, prompt_room
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.rewards import Rewards, load_rewards
from rlhf_helpers.schemas import Prompt, format_prompt, read_texts
from rlhf_helpers.sources import read_file, streams
from rlhf_helpers.training import Result, interrupts, log_writer, resumable, save_stage
from rlhf_helpers.training.checkpoints import load_checkpoint, save_checkpoint, start_stage


def prompt_batches(records: list[Prompt], config: PPORunConfig) -> list[list[str]]:
    """The formatted prompts of every step, drawn without repeats until all have been used."""
    batches = record_batches(records, config)
    return [[formatted(record, config) for record in batch] for batch in batches]


def record_batches(records: list[Prompt], config: PPORunConfig) -> list[list[Prompt]]:
    """The records of these prompts, for rewards that read their other fields."""
    per_step = config.batch_size // config.samples_per_prompt
    generator = torch.Generator().manual_seed(config.seed)
    order: list[int] = []
    while len(order) < config.steps * per_step:
        order += torch.randperm(len(records), generator=generator).tolist()
    drawn = [records[i] for i in order]
    return [drawn[i * per_step : (i + 1) * per_step] for i in range(config.steps)]


def formatted(record: Prompt, config: PPORunConfig) -> str:
    """The prompt of a record as the policy reads it."""
    return format_prompt(record["input_text"], config.instruction)


def streamed_batches(config: PPORunConfig) -> Iterator[list[Prompt]]:
    """The same from a named source, read while the steps go on, and from its start again."""
    per_step = config.batch_size // config.samples_per_prompt
    epochs = (streams.stream(config.data, "prompts", config.seed + i) for i in itertools.count())
    records = itertools.chain.from_iterable(epochs)
    for _ in range(config.steps):
        yield list(itertools.islice(records, per_step))


@resumable
def train(config: PPORunConfig, resume: bool = False) -> Result:
    """Run PPO from the SFT model against the reward model; see `PPOTrainer` for the loop.

    With `lora_rank` only a LoRA adapter is trained, on weights of `bits` bits; it is merged into
    the full-precision model at the end. Under `accelerate launch` the processes share every batch.
    Raises DataError for a bad data set.
    """
    processes.start()
    batches, documents = _batches(config), _documents(config)
    functions = load_rewards(config.reward_function)
    check_policy(config.model, config.max_new_tokens)
    reward_model = None
    if config.reward_model_weight:
        reward_model = RewardModel.from_pretrained(config.reward_model)
    rewards = Rewards(reward_model, functions, config.reward_model_weight)
    trainer = _make_trainer(config, reward_model, documents)
    room = prompt_room(trainer.tokenizer, config.max_new_tokens, config.max_prompt_length)
    checkpoint = start_stage(config, resume)
    history = _load(checkpoint, trainer) if checkpoint else []
    batches = itertools.islice(batches, len(history), None)
    main = processes.rank() == 0
    with log_writer(config, len(history) if checkpoint else None) as writer:
        steps = range(len(history), config.steps)
        progress = tqdm(steps, initial=len(history), total=config.steps, disable=not main)
        for step, batch in zip(progress, batches, strict=False):
            records = batch[processes.rank() :: processes.count()]
            prompts = [cut_prompt(formatted(r, config), trainer.tokenizer, room) for r in records]
            rollout = trainer.rollout(prompts, records)
            scores, means = rewards(rollout)
            history.append(trainer.step(rollout, scores) | means)
            if writer is not None:
                for name, value in history[-1].items():
                    writer.add_scalar(f"ppo/{name}", value, step)
            due = (step + 1) % config.save_steps == 0 or interrupts.is_asked_to_stop()
            if due and step + 1 < config.steps:
                _save(config, trainer, history)
                interrupts.stop_if_asked()
    policy = trainer.policy
    if config.lora_rank:
        policy = merge_adapter(policy, config.model)
    return _finish(config, policy, trainer.tokenizer, history)


def _batches(config: PPORunConfig) -> Iterable[list[Prompt]]:
    """The records of every step, from a file or a stream."""
    if streams.is_stream(config.data):
        return streamed_batches(config)
    return record_batches(read_file(config.data, "prompts"), config)


def _documents(config: PPORunConfig) -> list[str] | None:
    """The pretraining documents of PPO-ptx, or None where it is off."""
    if not config.ptx_coef or config.ptx_data is None:
        return None
    return [record["text"] for record in read_texts(config.ptx_data)]


def _make_trainer(
    config: PPORunConfig, reward_model: RewardModel | None, documents: list[str] | None
) -> PPOTrainer:
    """Load the policy and its tokenizer, and make a trainer."""
    tokenizer = load_tokenizer(config.model, config.chat, config.system_prompt)
    policy = _load_policy(config)
    critic_start = _critic_start(config, reward_model, policy, tokenizer)
    return PPOTrainer(policy, tokenizer, config, critic=critic_start, documents=documents)


def _load_policy(config: PPORunConfig) -> PreTrainedModel:
    policy = load_policy(config.model, config.bits)
    if not config.lora_rank:
        return policy
    torch.manual_seed(config.seed)  # the adapter
    return add_lora(policy, config.lora_rank)


def _critic_start(
    config: PPORunConfig,
    reward_model: RewardModel | None,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedModel | None:
    """What a separate critic starts from: the reward model if it fits, else (None) the policy."""
    if config.critic != "separate" or reward_model is None:
        return None
    fits = critic.fits(reward_model.model, reward_model.tokenizer, policy, tokenizer)
    return reward_model.model if fits else None


def _save(config: PPORunConfig, trainer: PPOTrainer, history: list[dict]) -> None:
    """Write a checkpoint; its state is the same in all processes, so the first one writes it."""
    state = {"trainer": trainer.state_dict(), "policy": trained_weights(trainer.policy)}
    if processes.rank() == 0:
        save_checkpoint(config.output_dir, len(history), state | {"history": history})


def _load(checkpoint: Path, trainer: PPOTrainer) -> list[dict]:
    """Set the trainer to a checkpoint; returns the history so far."""
    state = load_checkpoint(checkpoint, trainer.device)
    load_trained_weights(trainer.policy, state["policy"])
    trainer.load_state_dict(state["trainer"])
    return state["history"]


def _finish(
    config: PPORunConfig,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    history: list[dict],
) -> Result:
    """Write the model and its numbers."""
    seconds = sum(stats["seconds_rollout"] + stats["seconds_update"] for stats in history)
    metrics = {key: history[-1][key] for key in ("reward_mean", "kl", "eos_rate")}
    metrics |= {"steps": len(history), "seconds": seconds}
    return save_stage(config, policy, tokenizer, metrics, history)
