"""A whole run of stage 2: from preferences or rankings to a standardised reward model."""

from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, Trainer
from trl import RewardConfig as TRLConfig

from rlhf_helpers import generation
from rlhf_helpers.configs import RewardConfig
from rlhf_helpers.models import (
    add_lora,
    load_classifier,
    load_policy,
    load_tokenizer,
    merge_adapter,
)
from rlhf_helpers.models.compatibility import check_policy, check_vocabulary
from rlhf_helpers.prompts import cut_prompt, prompt_room
from rlhf_helpers.reward_model.fit_head import Fitted, count_rows, fit_head
from rlhf_helpers.reward_model.kwise import KwiseTrainer, add_rank_scores, encode_rankings
from rlhf_helpers.reward_model.model import RewardModel, append_eos
from rlhf_helpers.reward_model.pairs import PairTrainer, encode_pairs
from rlhf_helpers.schemas import DataError, format_prompt
from rlhf_helpers.sources import read_file, streams
from rlhf_helpers.training import Result, read_some, resumable, save_stage
from rlhf_helpers.training.trl_stages import (
    Encode,
    held_out_rows,
    run_trainer,
    stream_steps,
    streamed_rows,
    trl_arguments,
    whole_weights,
)


@resumable
def train(config: RewardConfig, resume: bool = False) -> Result:
    """Train the head that `config.head` names on pairs or rankings, then standardise the scores.

    Raises DataError for a bad data set; records of which cutting leaves nothing to compare are
    dropped and counted.
    """
    records = None if streams.is_stream(config.data) else _records(config)
    prompts = _calibration_prompts(config)
    check_policy(config.sft_model, config.max_new_tokens)
    fit = fit_head if config.head == "answer_tokens" else _fit_classifier
    fitted = fit(config, records, resume)
    reward_model = fitted.reward_model
    responses = _sft_samples(config, prompts)
    reward_model.standardise(reward_model.raw_answer_scores(prompts, responses))
    history = [row for row in fitted.history if "loss" in row]
    held_out = [row["eval_loss"] for row in fitted.history if "eval_loss" in row]
    metrics = {
        "accuracy": sum(row["accuracy"] for row in history[-10:]) / max(1, len(history[-10:])),
        **fitted.counts,
        **({"eval_loss": held_out[-1]} if held_out else {}),
        "seconds": fitted.seconds,
    }
    return save_stage(
        config,
        reward_model.model,
        reward_model.tokenizer,
        metrics,
        history,
        fitted.weights,
        head=getattr(reward_model, "head", None),
    )


def _fit_classifier(config: RewardConfig, records: list | None, resume: bool) -> Fitted:
    """Train a classifier by TRL's RewardTrainer on pairs, by `KwiseTrainer` on rankings.

    With `lora_rank` an adapter and the head are trained, and merged into the full-precision model
    at the end.
    """
    tokenizer = load_tokenizer(config.model, config.chat, config.system_prompt)
    tokenizer = append_eos(tokenizer, config.max_length)
    rows, counts = _rows(config, records, tokenizer)
    check_vocabulary(config.model, tokenizer)
    trainer = reward_trainer(config, rows, tokenizer)
    seconds = run_trainer(trainer, config, resume)
    model = trainer.model
    if config.lora_rank:
        model = merge_adapter(model, config.model, load_classifier)
    history = trainer.state.log_history
    return Fitted(RewardModel(model, tokenizer), counts, history, seconds, whole_weights(trainer))


def _records(config: RewardConfig) -> list:
    """All preferences or rankings of a file; ranks are needed to learn scores."""
    records = read_file(config.data, "preferences")[: config.pairs]
    if config.objective == "scores" and "candidates" not in records[0]:
        raise ValueError(f"{config.data}: pairs have no ranks to score. Give rankings.")
    return records


def _rows(
    config: RewardConfig, records: list | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict] | IterableDataset, dict[str, int]]:
    """The rows to train on; of a file also how many there are, and how many were dropped."""
    encode = _encoder(config, tokenizer)
    if records is None:
        return streamed_rows(config, "preferences", encode, config.pairs), {}
    rows = encode(records)
    return rows, count_rows(config, records, rows)


def _encoder(config: RewardConfig, tokenizer: PreTrainedTokenizerBase) -> Encode:
    def encode(records: list) -> list[dict]:
        encode_all: Any = encode_rankings if "candidates" in records[0] else encode_pairs
        return encode_all(records, tokenizer, config.instruction)

    return encode


def reward_trainer(
    config: RewardConfig, rows: list[dict] | IterableDataset, tokenizer: PreTrainedTokenizerBase
) -> Trainer:
    """The trainer for these rows, with a new head on the model."""
    torch.manual_seed(config.seed)  # the new head, and the adapter
    model = load_classifier(config.model, config.bits)
    if config.lora_rank:
        model = add_lora(model, config.lora_rank, config.lora_dropout)
    streamed = not isinstance(rows, list)
    arguments = TRLConfig(
        **trl_arguments(
            config,
            center_rewards_coefficient=config.center_rewards_coefficient,
            remove_unused_columns=False,  # the sampler needs `length`
            **({"max_steps": stream_steps(config, config.pairs)} if streamed else {}),
        )
    )
    if isinstance(rows, list) and "ranking" in rows[0]:
        if config.eval_data:
            raise ValueError(f"{config.data}: rankings are trained on without eval_data")
        if config.objective == "scores":
            add_rank_scores(rows)
        return KwiseTrainer(
            model, arguments, rows, tokenizer, config.label_smoothing, config.objective
        )
    return PairTrainer(
        model,
        arguments,
        label_smoothing=config.label_smoothing,
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        eval_dataset=held_out_rows(config, "preferences", _encoder(config, tokenizer)),
        processing_class=tokenizer,
    )


def _calibration_prompts(config: RewardConfig) -> list[str]:
    """The formatted prompts that the SFT model answers, cut to what it can read."""
    records = read_some(config.prompts, "prompts", config.calibration_prompts)
    if len(records) < 2:
        raise DataError(f"{config.prompts}: one prompt gives scores no deviation. Give more.")
    tokenizer = load_tokenizer(config.sft_model)
    room = prompt_room(tokenizer, config.max_new_tokens)
    texts = [format_prompt(record["input_text"], config.instruction) for record in records]
    return [cut_prompt(text, tokenizer, room) for text in texts]


def _sft_samples(config: RewardConfig, prompts: list[str]) -> list[str]:
    """One sample of the SFT model to each prompt, as it stands after the prompt."""
    policy, tokenizer = load_policy(config.sft_model), load_tokenizer(config.sft_model)
    return generation.respond(
        policy, tokenizer, prompts, max_new_tokens=config.max_new_tokens, seed=config.seed
    ).texts
