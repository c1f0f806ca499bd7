"""The reward model: it scores a text the way the annotators would.

Any sequence classifier with one label will do. Its tokenizer appends EOS itself, so that a plain
transformers `pipeline` gives the same raw score; ours is standardised besides: 0 is the average
sample of the SFT model, 1 its standard deviation. The constants live in the model's config.
"""

from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers.models import load_classifier, load_tokenizer
from rlhf_helpers.reward_model.kwise import can_share, shared_prompt_scores


class RewardModel:
    """A trained reward model: call it with texts (prompt and response), get their scores."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.shares_prompts: bool | None = None  # known after the first texts that begin alike

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "RewardModel":
        """Load a reward model that `train` has saved, or any trained one-label classifier."""
        return cls(load_classifier(path, trained=True), load_tokenizer(path))

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
    tokenizer.model_max_length = min(max_length, tokenizer.model_max_length)
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
