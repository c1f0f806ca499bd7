"""Direct preference optimisation: from preferences to a policy, without a reward model.

L1's optimum pi* = pi_ref exp(r / beta) / Z, solved for the reward, is r = beta log(pi* / pi_ref)
+ beta log Z. In a pair Z cancels, so that Bradley and Terry's loss can be written with the policy
alone (Rafailov et al. 2023, arXiv:2305.18290, eq. 7). `ipo` regresses the difference of the log
ratios on 1 / (2 beta) instead, so that it stays finite where labels never vary (Azar et al. 2023,
arXiv:2310.12036, eq. 17); as its authors do, TRL takes these ratios per token.
"""

import time
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from datasets.fingerprint import get_temporary_cache_files_directory
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig as TRLConfig
from trl import DPOTrainer

from rlhf_helpers import processes
from rlhf_helpers.configs import DPOConfig
from rlhf_helpers.models import add_lora, load_policy, load_tokenizer, merge_adapter
from rlhf_helpers.schemas import (
    DataError,
    Preference,
    format_prompt,
    format_response,
    ranking_to_pairs,
)
from rlhf_helpers.training import (
    Result,
    held_out_rows,
    read_some,
    run_trainer,
    save_stage,
    score_only_responses,
    trl_arguments,
    whole_weights,
)


class PairTrainer(DPOTrainer):
    """TRL's DPOTrainer on rows of `encode_pair`."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        """The rows as they are: TRL would make them of texts, in its own way."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *arguments: Any, **keywords: Any) -> Dataset:
        """What the reference thinks of the rows, in a file that the first process writes.

        TRL names it by rows and reference, so that the runs of a sweep share it; but a data set in
        memory would look for it in another place each time, and in each process. A run that finds
        the file draws no random numbers for it, so one that does not must leave them as they were.
        """
        folder = processes.gather(get_temporary_cache_files_directory())[0]
        shared = mock.patch.object(
            dataset, "_get_cache_file_path", lambda name: f"{folder}/{name}.arrow"
        )
        with shared, torch.random.fork_rng():
            return super()._precompute_ref_logps(dataset, *arguments, **keywords)


def train(config: DPOConfig, resume: bool = False) -> Result:
    """Train the SFT model, which is also the reference, on pairs.

    Of a ranking its best answer is set against its worst. With `lora_rank` only a LoRA adapter is
    trained, on weights of `bits` bits, and merged at the end. Raises DataError for a bad data set;
    pairs that cutting makes equal are dropped and counted.
    """
    records = read_some(config.data, "preferences", config.pairs)
    tokenizer = load_tokenizer(config.model)
    rows = encode_pairs(records, tokenizer, config)
    if not rows:
        raise DataError(
            f"{config.data}: every pair ties, or is equal after cutting to {config.max_length} "
            "tokens. Raise --max-length."
        )
    started = time.perf_counter()
    with score_only_responses():
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
    """A row for every preference, and for the ends of every ranking, that still differ."""
    pairs = [pair for record in records for pair in pairs_of(record)]
    rows = [encode_pair(pair, tokenizer, config) for pair in pairs]
    return [row for row in rows if row["chosen_ids"] != row["rejected_ids"]]


def encode_pair(
    pair: Preference, tokenizer: PreTrainedTokenizerBase, config: DPOConfig
) -> dict[str, Any]:
    """Token ids of the prompt and of both answers with EOS, as PPO samples them.

    Where they are too long, the prompt loses its beginning, and the same for both.
    """
    texts = [
        format_response(pair[name]) + tokenizer.eos_token for name in ("candidate_0", "candidate_1")
    ]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    answers = [answer[: config.max_length] for answer in ids]
    prompt = tokenizer(format_prompt(pair["input_text"], config.instruction))["input_ids"]
    longest = max(map(len, answers))
    prompt = prompt[max(0, len(prompt) + longest - config.max_length) :]
    return {
        "prompt_ids": prompt,
        "chosen_ids": answers[pair["choice"]],
        "rejected_ids": answers[1 - pair["choice"]],
        "length": len(prompt) + longest,
    }


def pairs_of(record: Any) -> list[Preference]:
    """A preference itself; of a ranking the best against the worst, or nothing if all tie.

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
    """The loss in TRL's words.

    The conservative loss (Mitchell 2023, "A note on DPO with noisy preferences") expects the share
    `label_smoothing` of the labels to be wrong. TRL's sigmoid loss ignores that setting, but its
    unbiased `robust` one (Chowdhury et al. 2024) is made of the same two terms, with other weights.
    """
    share = config.label_smoothing
    if not share:
        return {"loss_type": config.loss_type, "beta": config.beta}
    weights = [2 * (1 - share), 2 * share - 1]
    return {
        "loss_type": ["sigmoid", "robust"], "loss_weights": weights,
        "label_smoothing": share, "beta": config.beta,
    }  # fmt: skip


def preference_trainer(
    config: DPOConfig, rows: list[dict], tokenizer: PreTrainedTokenizerBase
) -> PairTrainer:
    """The trainer for rows of `encode_pair`; what the reference thinks of them is computed here."""
    torch.manual_seed(config.seed)  # the adapter
    model = load_policy(config.model, config.bits)
    if config.lora_rank:
        model = add_lora(model, config.lora_rank, config.lora_dropout)

    def encode(records: list) -> list[dict]:
        return encode_pairs(records, tokenizer, config)

    arguments = trl_arguments(
        config,
        logging_steps=1,  # the numbers are computed anyway, and runs are short
        precompute_ref_log_probs=True,  # once, not at every epoch
        remove_unused_columns=False,  # the sampler needs `length`
        **trl_loss(config),
    )
    return PairTrainer(
        model, args=TRLConfig(**arguments), train_dataset=Dataset.from_list(rows),
        eval_dataset=held_out_rows(config, "preferences", encode), processing_class=tokenizer,
    )  # fmt: skip
