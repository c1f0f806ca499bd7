"""Stage 2: the reward model, which scores a text the way the annotators would.

Any sequence classifier with one label will do. Its tokenizer appends EOS itself, so that a plain
transformers `pipeline` gives the same raw score; ours is standardised besides: 0 is the average
sample of the SFT model, 1 its standard deviation. The constants live in the model's config.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import RewardConfig as TRLConfig
from trl import RewardTrainer

from rlhf_helpers import generation, streams
from rlhf_helpers.configs import RewardConfig
from rlhf_helpers.kwise import (
    KwiseTrainer,
    add_rank_scores,
    can_share,
    encode_rankings,
    shared_prompt_scores,
)
from rlhf_helpers.models import (
    add_lora,
    load_classifier,
    load_policy,
    load_tokenizer,
    merge_adapter,
)
from rlhf_helpers.preference_loss import kwise_loss, pairwise_loss
from rlhf_helpers.schemas import (
    DataError,
    Preference,
    candidate_texts,
    format_prompt,
    read_comparisons,
)
from rlhf_helpers.training import (
    Encode,
    Result,
    held_out_rows,
    last_logged,
    read_some,
    run_trainer,
    save_stage,
    stream_steps,
    streamed_rows,
    trl_arguments,
    whole_weights,
)

__all__ = [
    "PairTrainer", "RewardModel", "append_eos", "encode_pairs",
    "encode_rankings", "kwise_loss", "pairwise_loss", "train",
]  # fmt: skip


class RewardModel:
    """A trained reward model: call it with texts (prompt and response), get their scores."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.shares_prompts: bool | None = None  # known after the first texts that begin alike

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "RewardModel":
        """Load a reward model that `train` has saved, or any one-label classifier."""
        return cls(load_classifier(path), load_tokenizer(path))

    @torch.no_grad()
    def raw_scores(self, texts: list[str], batch_size: int = 16) -> Tensor:
        """Scores (B,) as the classifier gives them, at least `batch_size` at a time.

        Texts of like length share a batch, and those that begin alike (answers to one prompt) are
        read as one up to where they part, if the classifier gives the same scores so.
        """
        encoded = self.tokenizer(texts, truncation=True)["input_ids"]
        scores, batch = torch.zeros(len(texts)), []
        groups = sorted(beginning_alike(encoded), key=lambda group: len(encoded[group[0]]))
        for i, group in enumerate(groups):
            batch.append(group)
            if sum(map(len, batch)) >= batch_size or i + 1 == len(groups):
                chosen = [number for group in batch for number in group]
                ids = [encoded[number] for number in chosen]
                scores[chosen] = self._scores_of(ids, torch.tensor([len(group) for group in batch]))
                batch = []
        return scores

    def _scores_of(self, ids: list[list[int]], sizes: Tensor) -> Tensor:
        """Raw scores (B,) of one batch, `sizes` (G,) of whose texts begin alike."""
        padded = self.tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
        padded = padded.to(self.model.device)
        if sizes.max() > 1 and self.shares_prompts is not False:
            batch = (padded["input_ids"], padded["attention_mask"], sizes.to(self.model.device))
            if self.shares_prompts is None:
                self.shares_prompts = can_share(self.model, *batch)
            if self.shares_prompts:
                return shared_prompt_scores(self.model, *batch).float().cpu()
        return self.model(**padded).logits[:, 0].float().cpu()

    def __call__(self, texts: list[str]) -> list[float]:
        """Standardised scores, in standard deviations of the SFT model's samples."""
        mean = getattr(self.model.config, "reward_mean", 0.0)
        deviation = getattr(self.model.config, "reward_std", 1.0)
        return ((self.raw_scores(texts) - mean) / deviation).tolist()

    def standardise(self, texts: list[str]) -> None:
        """Set the constants so that these texts have mean 0 and standard deviation 1."""
        scores = self.raw_scores(texts)
        self.model.config.reward_mean = scores.mean().item()
        self.model.config.reward_std = max(scores.std().item(), 1e-6)


def beginning_alike(encoded: list[list[int]]) -> list[list[int]]:
    """The numbers of the texts, in groups that share more than half of every one's tokens."""
    groups: list[list[int]] = []
    for i in sorted(range(len(encoded)), key=lambda i: encoded[i]):
        half = len(encoded[i]) // 2 + 1
        if groups and encoded[groups[-1][0]][:half] == encoded[i][:half]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def append_eos(tokenizer: PreTrainedTokenizerBase, max_length: int) -> PreTrainedTokenizerBase:
    """Make a tokenizer end every text with EOS, as encoders' tokenizers do with [SEP].

    A text that is too long loses its beginning, since what is judged stands at the end.
    """
    tokenizer.truncation_side = "left"
    tokenizer.model_max_length = max_length
    ids = tokenizer("a")["input_ids"]
    if ids[-1] not in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        special = {tokenizer.eos_token: tokenizer.eos_token_id}
        begin = tokenizer.convert_ids_to_tokens(ids[0]) if ids[0] == tokenizer.bos_token_id else ""
        special |= {begin: ids[0]} if begin else {}
        template = f"{begin} $A {tokenizer.eos_token}".strip()
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=list(special.items())
        )
    return tokenizer


def encode_pairs(
    records: list[Preference], tokenizer: PreTrainedTokenizerBase, instruction: str = ""
) -> list[dict]:
    """Token ids of the chosen and the rejected text; pairs that became equal are dropped.

    Where preferences are graded, rows carry a `margin` too (0 where one is not).
    """
    rows, graded = [], any("margin" in record for record in records)
    for record in records:
        ids = tokenizer(list(candidate_texts(record, instruction)), truncation=True)["input_ids"]
        if ids[0] != ids[1]:
            chosen, rejected = ids[record["choice"]], ids[1 - record["choice"]]
            length = max(len(chosen), len(rejected))
            row = {"chosen_ids": chosen, "rejected_ids": rejected, "length": length}
            rows.append(row | ({"margin": record.get("margin", 0.0)} if graded else {}))
    return rows


class PairTrainer(RewardTrainer):
    """TRL's RewardTrainer, with `pairwise_loss`: margins and label smoothing."""

    def __init__(self, *arguments: Any, label_smoothing: float, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.label_smoothing = label_smoothing

    def compute_loss(
        self, model: PreTrainedModel, inputs: dict, return_outputs: bool = False, **keywords: Any
    ) -> Any:
        """TRL's loss, which is the plain one and the centring, plus what the options change."""
        margin = inputs.pop("margin", None)  # which TRL would hand on to the model
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **keywords)
        if margin is not None or self.label_smoothing:
            chosen, rejected = outputs.logits[:, 0].chunk(2)
            margin = 0.0 if margin is None else margin
            wanted = pairwise_loss(chosen, rejected, margin, self.label_smoothing)
            loss = loss + wanted - pairwise_loss(chosen, rejected)
        return (loss, outputs) if return_outputs else loss


def train(config: RewardConfig, resume: bool = False) -> Result:
    """Train on pairs (TRL's RewardTrainer) or rankings (`KwiseTrainer`), then standardise.

    With `lora_rank` an adapter and the head are trained, and merged into the full-precision model
    at the end. Raises DataError for a bad data set; records of which cutting leaves nothing to
    compare are dropped and counted.
    """
    records = None if streams.is_stream(config.data) else _records(config)
    prompts = read_some(config.prompts, "prompts", config.calibration_prompts)
    tokenizer = append_eos(load_tokenizer(config.model), config.max_length)
    rows, counts = _rows(config, records, tokenizer)
    trainer = _trainer(config, rows, tokenizer)
    seconds = run_trainer(trainer, config, resume)
    model = trainer.model
    if config.lora_rank:
        model = merge_adapter(model, config.model, load_classifier)
    reward_model = RewardModel(model, tokenizer)
    reward_model.standardise(_sft_samples(config, [record["input_text"] for record in prompts]))
    history = [row for row in trainer.state.log_history if "loss" in row]
    metrics = {
        "accuracy": sum(row["accuracy"] for row in history[-10:]) / max(1, len(history[-10:])),
        **counts,
        **last_logged(trainer, "eval_loss"),
        "seconds": seconds,
    }
    return save_stage(
        config, reward_model.model, tokenizer, metrics, history, whole_weights(trainer)
    )


def _records(config: RewardConfig) -> list:
    """All preferences or rankings of a file; ranks are needed to learn scores."""
    records = read_comparisons(config.data)[: config.pairs]
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
    rows, what = encode(records), "ranking" if "candidates" in records[0] else "pair"
    if not rows:
        raise DataError(
            f"{config.data}: every {what} is equal after cutting to {config.max_length} tokens. "
            "Raise --max-length."
        )
    return rows, {f"{what}s": len(rows), f"dropped_{what}s": len(records) - len(rows)}


def _encoder(config: RewardConfig, tokenizer: PreTrainedTokenizerBase) -> Encode:
    def encode(records: list) -> list[dict]:
        encode_all: Any = encode_rankings if "candidates" in records[0] else encode_pairs
        return encode_all(records, tokenizer, config.instruction)

    return encode


def _trainer(
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
        model, arguments, label_smoothing=config.label_smoothing,
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        eval_dataset=held_out_rows(config, "preferences", _encoder(config, tokenizer)),
        processing_class=tokenizer,
    )  # fmt: skip


def _sft_samples(config: RewardConfig, input_texts: list[str]) -> list[str]:
    """One sample of the SFT model to each prompt, prompt and response as one text."""
    policy, tokenizer = load_policy(config.sft_model), load_tokenizer(config.sft_model)
    prompts = [format_prompt(text, config.instruction) for text in input_texts]
    responses = generation.respond(
        policy, tokenizer, prompts, max_new_tokens=config.max_new_tokens, seed=config.seed
    )
    return [prompt + text for prompt, text in zip(prompts, responses.texts, strict=True)]
