"""Training on pairs: their rows, and TRL's trainer with margins and label smoothing."""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardTrainer

from rlhf_helpers.prompts import whole_tokens
from rlhf_helpers.reward_model.losses import pairwise_loss
from rlhf_helpers.schemas import Preference, candidate_answers


def encode_pairs(
    records: list[Preference], tokenizer: PreTrainedTokenizerBase, instruction: str = ""
) -> list[dict]:
    """Token ids of the chosen and the rejected text; pairs that became equal are dropped.

    Where preferences are graded, rows carry a `margin` too (0 where one is not).
    """
    rows, graded = [], any("margin" in record for record in records)
    for record in records:
        ids = whole_tokens(tokenizer, *candidate_answers([record], instruction))
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
