"""Stage 2: the reward model, which scores a text the way the annotators would.

Any sequence classifier with one label will do. Its tokenizer appends EOS itself, so that a plain
transformers `pipeline` gives the same raw score; ours is standardised besides: 0 is the average
sample of the SFT model, 1 its standard deviation. The constants live in the model's config.
"""

from pathlib import Path

import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import RewardConfig as TRLConfig
from trl import RewardTrainer

from rlhf_helpers import generation
from rlhf_helpers.models import (
    default_device,
    existing,
    load_policy,
    load_tokenizer,
    loading_options,
    without_dropout,
)
from rlhf_helpers.scales import RewardConfig
from rlhf_helpers.schemas import (
    DataError,
    Preference,
    format_prompt,
    format_response,
    read_preferences,
    read_prompts,
)
from rlhf_helpers.training import Result, run_trainer, save_stage, trl_arguments


def pairwise_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected), averaged: Bradley-Terry (Ouyang et al. 2022, eq. 1, K=2).

    `chosen` and `rejected` are raw scores of shape (B,).
    """
    return -logsigmoid(chosen - rejected).mean()


class RewardModel:
    """A trained reward model: call it with texts (prompt and response), get their scores."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "RewardModel":
        """Load a reward model that `train` has saved, or any one-label classifier."""
        model = AutoModelForSequenceClassification.from_pretrained(
            existing(path), **loading_options()
        )
        return cls(without_dropout(model.to(default_device())), load_tokenizer(path))

    @torch.no_grad()
    def raw_scores(self, texts: list[str], batch_size: int = 64) -> Tensor:
        """Scores (B,) as the classifier gives them; texts of like length share a batch."""
        encoded = self.tokenizer(texts, truncation=True)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        scores = torch.zeros(len(texts))
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            batch = self.tokenizer.pad(
                {"input_ids": [encoded[i] for i in chunk]},
                padding_side="right",
                return_tensors="pt",
            ).to(self.model.device)
            scores[chunk] = self.model(**batch).logits[:, 0].float().cpu()
        return scores

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


def candidate_texts(record: Preference, instruction: str = "") -> tuple[str, str]:
    """Prompt and candidate as one text, for both candidates."""
    prompt = format_prompt(record["input_text"], instruction)
    first, second = record["candidate_0"], record["candidate_1"]
    return prompt + format_response(first), prompt + format_response(second)


def encode_pairs(
    records: list[Preference], tokenizer: PreTrainedTokenizerBase, instruction: str = ""
) -> list[dict]:
    """Token ids of the chosen and the rejected text; pairs that became equal are dropped."""
    rows = []
    for record in records:
        ids = tokenizer(list(candidate_texts(record, instruction)), truncation=True)["input_ids"]
        if ids[0] != ids[1]:
            chosen, rejected = ids[record["choice"]], ids[1 - record["choice"]]
            length = max(len(chosen), len(rejected))
            rows.append({"chosen_ids": chosen, "rejected_ids": rejected, "length": length})
    return rows


def train(config: RewardConfig, resume: bool = False) -> Result:
    """Train on pairs with TRL's RewardTrainer, then standardise on samples of the SFT model.

    Raises DataError for a bad data set; pairs equal after cutting are dropped and counted.
    """
    records = read_preferences(config.data)[: config.pairs]
    prompts = read_prompts(config.prompts)[: config.calibration_prompts]
    tokenizer = append_eos(load_tokenizer(config.model), config.max_length)
    rows = encode_pairs(records, tokenizer, config.instruction)
    if not rows:
        raise DataError(
            f"{config.data}: every pair is equal after cutting to {config.max_length} tokens. "
            "Raise --max-length."
        )
    torch.manual_seed(config.seed)  # the new head
    model = AutoModelForSequenceClassification.from_pretrained(
        config.model, num_labels=1, **loading_options()
    )
    model = without_dropout(model.to(default_device()))
    arguments = trl_arguments(
        config,
        weight_decay=config.weight_decay,
        center_rewards_coefficient=config.center_rewards_coefficient,
        remove_unused_columns=False,  # the sampler needs `length`
    )
    trainer = RewardTrainer(
        model,
        TRLConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    seconds = run_trainer(trainer, config, resume)
    reward_model = RewardModel(trainer.model, tokenizer)
    reward_model.standardise(_sft_samples(config, [record["input_text"] for record in prompts]))
    history = [row for row in trainer.state.log_history if "loss" in row]
    metrics = {
        "accuracy": sum(row["accuracy"] for row in history[-10:]) / max(1, len(history[-10:])),
        "pairs": len(rows),
        "dropped_pairs": len(records) - len(rows),
        "seconds": seconds,
    }
    return save_stage(config, reward_model.model, tokenizer, metrics, history)


def _sft_samples(config: RewardConfig, input_texts: list[str]) -> list[str]:
    """One sample of the SFT model to each prompt, prompt and response as one text."""
    policy, tokenizer = load_policy(config.sft_model), load_tokenizer(config.sft_model)
    prompts = [format_prompt(text, config.instruction) for text in input_texts]
    responses = generation.respond(
        policy, tokenizer, prompts, max_new_tokens=config.max_new_tokens, seed=config.seed
    )
    return [prompt + text for prompt, text in zip(prompts, responses.texts, strict=True)]
