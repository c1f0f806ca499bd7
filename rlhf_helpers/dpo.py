"""Direct preference optimisation: from preferences to a policy, without a reward model.

L1's optimum pi* = pi_ref exp(r / beta) / Z, solved for the reward, is r = beta log(pi* / pi_ref)
+ beta log Z. In a pair Z cancels, so that Bradley and Terry's loss can be written with the policy
alone (Rafailov et al. 2023, arXiv:2305.18290, eq. 7). `ipo` regresses the difference of the log
ratios on 1 / (2 beta) instead, so that it stays finite where labels never vary (Azar et al. 2023,
arXiv:2310.12036, eq. 17); as its authors do, TRL takes these ratios per token.
"""

import functools
import hashlib
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig as TRLConfig
from trl import DPOTrainer

from rlhf_helpers import processes
from rlhf_helpers.configs import DPOConfig
from rlhf_helpers.models import add_lora, load_policy, load_tokenizer, merge_adapter
from rlhf_helpers.models.compatibility import check_policy
from rlhf_helpers.prompts import answer_end, answer_tokens, prompt_tokens
from rlhf_helpers.schemas import (
    DataError,
    Preference,
    format_prompt,
    format_response,
    ranking_to_pairs,
)
from rlhf_helpers.training import Result, read_some, resumable, save_stage
from rlhf_helpers.training.trl_stages import (
    held_out_rows,
    run_trainer,
    scored_responses,
    trl_arguments,
    whole_weights,
)

logger = logging.getLogger(__name__)


class PairTrainer(DPOTrainer):
    """TRL's DPOTrainer on rows of `encode_pair`, whose prompts the head does not score on CPUs."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        """Leave the rows as they are: they are encoded already, which TRL has no way to be told.

        A version of TRL without this method encodes the texts of `_with_texts` instead.
        """
        return dataset

    def compute_loss(self, model: PreTrainedModel, *arguments: Any, **keywords: Any) -> Any:
        """TRL's loss of the batch of pairs."""
        return super().compute_loss(scored_responses(model), *arguments, **keywords)

    def compute_ref_log_probs(self, model: PreTrainedModel, inputs: dict) -> Any:
        """TRL's log-probs of the chosen and of the rejected answers, each (B,)."""
        return super().compute_ref_log_probs(scored_responses(model), inputs)


@resumable
def train(config: DPOConfig, resume: bool = False) -> Result:
    """Train the SFT model, which is also the reference, on pairs.

    A ranking gives one pair, of its best and its worst answer. With `lora_rank` only a LoRA
    adapter is trained, on weights of `bits` bits, and merged at the end. Raises DataError for a
    bad data set; pairs that cutting makes equal are dropped and counted.
    """
    records = read_some(config.data, "preferences", config.pairs)
    tokenizer = load_tokenizer(config.model, config.chat, config.system_prompt)
    rows = encode_pairs(records, tokenizer, config)
    if not rows:
        raise DataError(
            f"{config.data}: every pair ties, or is equal after cutting to {config.max_length} "
            "tokens. Raise --max-length."
        )
    check_policy(config.model)
    started = time.perf_counter()
    trainer = preference_trainer(config, rows, tokenizer)
    run_trainer(trainer, config, resume)
    seconds = time.perf_counter() - started  # with what the reference takes
    model = trainer.model
    if config.lora_rank:
        model.delete_adapter("ref")  # TRL's copy of the adapter as it began
        model = merge_adapter(model, config.model)
    history = [row for row in trainer.state.log_history if "loss" in row]
    last = history[-10:]
    metrics = {
        "accuracy": sum(row["rewards/accuracies"] for row in last) / len(last),
        "margin": sum(row["rewards/margins"] for row in last) / len(last),
        "pairs": len(rows),
        "dropped_pairs": len(records) - len(rows),
        "seconds": seconds,
    }
    return save_stage(config, model, tokenizer, metrics, history, whole_weights(trainer))


def encode_pairs(
    records: list, tokenizer: PreTrainedTokenizerBase, config: DPOConfig
) -> list[dict[str, Any]]:
    """The rows of all preferences, and of the best and worst answer of every ranking.

    Pairs whose answers are equal, or become so by cutting, give none.
    """
    pairs = [pair for record in records for pair in pairs_of(record)]
    rows = [encode_pair(pair, tokenizer, config) for pair in pairs]
    return [row for row in rows if row["chosen_ids"] != row["rejected_ids"]]


def encode_pair(
    pair: Preference, tokenizer: PreTrainedTokenizerBase, config: DPOConfig
) -> dict[str, Any]:
    """Token ids of the prompt and of both answers with their end, as PPO samples them.

    Where they are too long, the prompt loses its beginning, and the same for both.
    """
    text = format_prompt(pair["input_text"], config.instruction)
    texts = [format_response(pair["candidate_0"]), format_response(pair["candidate_1"])]
    length = min(config.max_length, tokenizer.model_max_length)
    ids = answer_tokens(tokenizer, text, texts)
    answers = [[*answer, answer_end(tokenizer)][:length] for answer in ids]
    longest = max(map(len, answers))
    (prompt,) = prompt_tokens(tokenizer, [text], length - longest)
    return {
        "prompt_ids": prompt,
        "chosen_ids": answers[pair["choice"]],
        "rejected_ids": answers[1 - pair["choice"]],
        "length": len(prompt) + longest,
    }


def pairs_of(record: Any) -> list[Preference]:
    """A preference itself, or the best against the worst answer of a ranking; none if all tie.

    At equal numbers, pairs of these ends taught `tiny` more than preferences between any two
    answers (gold 2.56 against 2.37 on the validation prompts): fewer of their labels are noise.
    """
    if "choice" in record:
        return [record]
    ends = [record["ranking"][0], record["ranking"][-1]]
    indices = [place[0] if isinstance(place, list) else place for place in ends]
    candidates = [record["candidates"][index] for index in indices]
    best_and_worst: Any = record | {"candidates": candidates, "ranking": [0, 1]}
    return ranking_to_pairs(best_and_worst)


def trl_loss(config: DPOConfig) -> dict[str, Any]:
    """TRL's arguments for the loss.

    The conservative loss (Mitchell 2023, "A note on DPO with noisy preferences") expects the share
    `label_smoothing` of the labels to be wrong. TRL's sigmoid loss ignores that setting, but its
    unbiased `robust` one (Chowdhury et al. 2024) is made of the same two terms, with other weights.
    """
    share = config.label_smoothing
    if not share:
        return {"loss_type": config.loss_type, "beta": config.beta}
    return {
        "loss_type": ["sigmoid", "robust"],
        "loss_weights": [2 * (1 - share), 2 * share - 1],
        "label_smoothing": share,
        "beta": config.beta,
    }


def preference_trainer(
    config: DPOConfig, rows: list[dict], tokenizer: PreTrainedTokenizerBase
) -> PairTrainer:
    """The trainer for rows of `encode_pair`, with the reference's log-probs of them.

    These are computed here, once for all epochs. TRL keeps them in a file beside the rows, named
    by rows and reference, so that the runs of a sweep in one process share them. A run that finds
    the file draws no random numbers for it, so one that does not must leave them as they were.
    """
    torch.manual_seed(config.seed)  # the adapter
    model = load_policy(config.model, config.bits)
    if config.lora_rank:
        model = add_lora(model, config.lora_rank, config.lora_dropout)

    def encode(records: list) -> list[dict]:
        return encode_pairs(records, tokenizer, config)

    arguments = trl_arguments(
        config,
        logging_steps=1,  # the numbers are computed anyway, and runs are short
        precompute_ref_log_probs=True,
        remove_unused_columns=False,  # the sampler needs `length`
        **trl_loss(config),
    )
    if not hasattr(DPOTrainer, "_prepare_dataset"):
        logger.warning("this version of TRL encodes pairs itself: cut answers get an EOS")
        rows = [_with_texts(row, tokenizer) for row in rows]
    with torch.random.fork_rng():
        return PairTrainer(
            model,
            args=TRLConfig(**arguments),
            train_dataset=_on_disk(Dataset.from_list(rows)),
            eval_dataset=_on_disk(held_out_rows(config, "preferences", encode)),
            processing_class=tokenizer,
        )


def _with_texts(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A row of `encode_pair` with the texts that TRL encodes."""
    texts = {name: tokenizer.decode(row[f"{name}_ids"]) for name in ("chosen", "rejected")}
    prompt = tokenizer.decode(row["prompt_ids"], skip_special_tokens=True)  # it adds its own BOS
    return row | {"prompt": prompt} | texts


@functools.cache
def _shared_folder() -> tempfile.TemporaryDirectory:
    """A folder of this process, removed at its end."""
    return tempfile.TemporaryDirectory(prefix="rlhf_dpo_")


def _on_disk(rows: Dataset | None) -> Dataset | None:
    """The rows from a file in the first process's folder, the same file for the same rows.

    TRL keeps log-probs beside the file of a data set; those of one in memory it would not find
    again, and each process would look in another place.
    """
    if rows is None:
        return None
    name = hashlib.sha256(json.dumps(rows.to_list()).encode()).hexdigest()
    folder = processes.gather(f"{_shared_folder().name}/{name}")[0]
    if processes.rank() == 0 and not Path(folder).exists():
        rows.save_to_disk(folder)
    processes.wait()
    return load_from_disk(folder)
