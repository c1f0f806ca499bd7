"""Reward models from rankings: one forward pass an answer, all pairs of a prompt in one batch.

Ouyang et al. (2022, section 3.5): K answers make C(K,2) pairs. Shuffled as single pairs, each
answer would be read K - 1 times an epoch, and overfitted; here it is read once. Since the K texts
begin alike, a decoder reads that beginning once for all of them, where its classifier takes a
key-value cache; other models read the texts whole.
"""

import inspect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import RewardConfig as TRLConfig

from rlhf_helpers import processes
from rlhf_helpers.prompts import whole_tokens
from rlhf_helpers.reward_model.losses import Places, kwise_loss, ranked_pairs
from rlhf_helpers.schemas import Ranking, format_prompt, format_response


def encode_rankings(
    records: list[Ranking], tokenizer: PreTrainedTokenizerBase, instruction: str = ""
) -> list[dict]:
    """Token ids of the K texts of each prompt, and their ranking with every place as a list.

    Of texts that cutting made equal the best placed one stays. A ranking that then compares
    nothing (one text, or all tied) is dropped.
    """
    rows = []
    for record in records:
        prompt = format_prompt(record["input_text"], instruction)
        answers = [format_response(candidate) for candidate in record["candidates"]]
        ids = whole_tokens(tokenizer, [prompt] * len(answers), answers)
        kept, ranking = distinct(ids, record["ranking"])
        if len(ranking) > 1:
            annotator, length = record.get("annotator", ""), max(map(len, kept))
            row = {"candidate_ids": kept, "ranking": ranking, "length": length}
            rows.append(row | {"annotator": annotator})
    return rows


def distinct(candidates: Sequence[Any], ranking: Places) -> tuple[list[Any], list[list[int]]]:
    """Return the different candidates, best first, and their ranking with every place as a list.

    Of equal candidates the best placed one stays.
    """
    kept: list[Any] = []
    places: list[list[int]] = []
    for group in ranking:
        place = []
        for candidate in group if isinstance(group, Sequence) else [group]:
            if candidates[candidate] not in kept:
                place.append(len(kept))
                kept.append(candidates[candidate])
        places += [place] if place else []
    return kept, places


def add_rank_scores(rows: list[dict]) -> None:
    """Give each row the `targets` of regression: its ranks as scores, standardised by annotator."""
    scores = [score for row in rows for score in rank_scores(row["ranking"])]
    annotators = [row["annotator"] for row in rows for _ in row["candidate_ids"]]
    targets = iter(standardise_by_annotator(scores, annotators))
    for row in rows:
        row["targets"] = [next(targets) for _ in row["candidate_ids"]]


def rank_scores(ranking: Sequence[int | Sequence[int]]) -> list[float]:
    """Return ranks as scores, in the order of the candidates: 1 for the best, 0 for the last.

    Scores are evenly spaced, and tied candidates share the mean of their places.
    """
    groups = [group if isinstance(group, Sequence) else [group] for group in ranking]
    count, above = sum(map(len, groups)), 0
    scores: dict[int, float] = {}
    for group in groups:
        place = above + (len(group) - 1) / 2
        scores |= {candidate: 1 - place / max(1, count - 1) for candidate in group}
        above += len(group)
    return [scores[candidate] for candidate in range(count)]


def standardise_by_annotator(scores: Sequence[float], annotators: Sequence[str]) -> list[float]:
    """Return scores with mean 0 and deviation 1 for each annotator, since some are milder.

    If an annotator gives the same score to everything, all of these scores become 0.
    """
    groups = pd.Series(scores, dtype=float).groupby(list(annotators))
    deviation = groups.transform("std", ddof=0)
    centred = pd.Series(scores, dtype=float) - groups.transform("mean")
    return centred.div(deviation.where(deviation > 1e-12, 1.0)).tolist()


class KwiseTrainer(Trainer):
    """transformers' Trainer on rows of `encode_rankings`; a batch holds whole rankings."""

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TRLConfig,
        rows: list[dict],
        tokenizer: PreTrainedTokenizerBase,
        label_smoothing: float = 0.0,
        objective: str = "order",
    ):
        model.config.pad_token_id = tokenizer.pad_token_id  # the head is read off before it
        super().__init__(
            model,
            arguments,
            data_collator=self.collate,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        self.label_smoothing, self.objective = label_smoothing, objective
        self.numbers: dict[str, list[float]] = defaultdict(list)
        self.shares_prompts: bool | None = None  # known after the first batch

    def collate(self, rows: list[dict]) -> dict[str, Any]:
        """Pad the texts of all prompts, one after the other; `sizes` says how many each has."""
        texts = [ids for row in rows for ids in row["candidate_ids"]]
        batch = self.processing_class.pad(
            {"input_ids": texts}, padding_side="right", return_tensors="pt"
        )
        sizes = torch.tensor([len(row["candidate_ids"]) for row in rows])
        targets = torch.tensor([score for row in rows for score in row.get("targets", [])])
        rankings = [row["ranking"] for row in rows]
        return {**batch, "sizes": sizes, "targets": targets, "rankings": rankings}

    def compute_loss(
        self, model: PreTrainedModel, inputs: dict, return_outputs: bool = False, **_: Any
    ) -> Any:
        """`kwise_loss` (or squared error, for the objective `scores`), and the centring."""
        batch = (inputs["input_ids"], inputs["attention_mask"], inputs["sizes"])
        scores = self.raw_scores(model, *batch)
        if self.objective == "scores":
            loss = mse_loss(scores, inputs["targets"])
        else:
            split, rankings = scores.split(inputs["sizes"].tolist()), inputs["rankings"]
            loss = kwise_loss(split, rankings, self.label_smoothing)
            loss = loss + self.args.center_rewards_coefficient * centring(scores, rankings)
        for name, value in ranking_metrics(scores, inputs["rankings"]).items():
            self.numbers[name].append(value)
        return (loss, {"logits": scores[:, None]}) if return_outputs else loss

    def raw_scores(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, sizes: Tensor
    ) -> Tensor:
        """Scores (B,): with shared prompts if this model gives the same ones so, else plainly."""
        if self.shares_prompts is None:
            self.shares_prompts = can_share(self.model, input_ids, attention_mask, sizes)
        if self.shares_prompts:
            return shared_prompt_scores(model, input_ids, attention_mask, sizes)
        return model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last time, over all processes."""
        for name in list(self.numbers):
            values = [value for part in processes.gather(self.numbers[name]) for value in part]
            logs[name] = sum(values) / len(values)
        self.numbers.clear()
        super().log(logs, start_time)


def centring(scores: Tensor, rankings: Sequence[Places]) -> Tensor:
    """Mean squared sum of a pair's scores (Eisenstein et al. 2023), as TRL weighs it."""
    better, worse, weights = ranked_pairs(rankings)
    return (weights.to(scores) * (scores[better] + scores[worse]) ** 2).sum()


def ranking_metrics(scores: Tensor, rankings: Sequence[Places]) -> dict[str, float]:
    """What is logged of a batch of raw scores: accuracy and mean gap of pairs, mean score."""
    better, worse, weights = ranked_pairs(rankings)
    gaps, weights = (scores[better] - scores[worse]).detach(), weights.to(scores)
    return {
        "accuracy": (weights * (gaps > 0)).sum().item(),
        "margin": (weights * gaps).sum().item(),
        "mean_reward": scores.mean().item(),
    }


@torch.no_grad()
def can_share(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, sizes: Tensor
) -> bool:
    """Whether a model takes a key-value cache and gives the same scores with one."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    taken = inspect.signature(base.forward).parameters
    if "position_ids" not in taken or not {"cache", "past_key_values"} & set(taken):
        return False  # transformers 5.24 renames `past_key_values` to `cache`, and takes both
    plain = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0]
    shared = shared_prompt_scores(model, input_ids, attention_mask, sizes)
    return torch.allclose(shared, plain, rtol=0, atol=0.01 * float(plain.std()))


def shared_prompt_scores(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, sizes: Tensor
) -> Tensor:
    """Scores (B,) of right-padded texts (B, T), the common beginning of each prompt's read once.

    `sizes` (G,) says how many consecutive rows belong to each prompt; it may differ. Gradients
    flow through the shared beginnings, which are padded on the left, P tokens wide.
    """
    device, lengths = input_ids.device, attention_mask.sum(1)
    config = getattr(model, "module", model).config  # also of one wrapped for several processes
    owner = torch.repeat_interleave(sizes)  # (B,) which prompt a row belongs to
    first = sizes.cumsum(0) - sizes
    alike = (input_ids == input_ids[first][owner]).long().cumprod(1).sum(1)
    # Two tokens stay with every text: the last one, and one before it in case pad equals EOS.
    alike = torch.minimum(alike, lengths - 2)
    common = torch.full_like(sizes, input_ids.shape[1]).scatter_reduce(0, owner, alike, "amin")
    if int(common.min()) < 1:
        return model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0]

    steps = torch.arange(int(common.max()), device=device)
    positions = common[:, None] - len(steps) + steps  # (G, P), negative on padding
    prefix_mask, positions = (positions >= 0).long(), positions.clamp(min=0)
    cache = DynamicCache(config=config)
    model(
        input_ids=input_ids[first].gather(1, positions),
        attention_mask=prefix_mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    cache.batch_select_indices(owner)

    start = common[owner, None]
    positions = start + torch.arange(int((lengths - start[:, 0]).max()), device=device)
    mask = (positions < lengths[:, None]).long()
    positions = torch.minimum(positions, lengths[:, None] - 1)  # padding has no place of its own
    rest = input_ids.gather(1, positions)
    return model(
        input_ids=rest.masked_fill(mask == 0, config.pad_token_id),
        attention_mask=torch.cat([prefix_mask[owner], mask], 1),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).logits[:, 0]
