"""The reward model: it scores an answer to a prompt the way the annotators would.

There are two kinds, and `RewardModel.from_pretrained` loads either of them. `RewardModel` is any
sequence classifier with one label, whose head reads the last token's state. Its tokenizer appends
EOS itself, so that a plain transformers `pipeline` gives the same raw score. In an
`AnswerTokenRewardModel` a head scores every token of the answer (see `answer_tokens`).

Scores are standardised: 0 is the average sample of the SFT model, 1 the standard deviation of its
samples. The constants live in the config of the classifier or language model, and so does the kind.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import chat
from rlhf_helpers.models import load_classifier, load_policy, load_tokenizer, loading
from rlhf_helpers.prompts import whole_tokens
from rlhf_helpers.reward_model.answer_tokens import (
    AnswerTokenHead,
    encode_answers,
    feature_batches,
    feature_size,
    load_head,
)
from rlhf_helpers.reward_model.kwise import can_share, shared_prompt_scores

PROMPT_END = re.compile(r"\[(summary|continued)\]:")  # the little world's prompts end with one


class RewardModel:
    """A trained reward model: `score` takes prompts and responses, a call takes whole texts."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.shares_prompts: bool | None = None  # known after the first texts that begin alike

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "RewardModel":
        """Load a reward model that `train` has saved, or any trained one-label classifier."""
        with loading(path):
            config = AutoConfig.from_pretrained(path)
        if getattr(config, "reward_head", "last_token") == "answer_tokens":
            model = load_policy(path)
            head = load_head(path, feature_size(model))
            return AnswerTokenRewardModel(model, load_tokenizer(path), head)
        return RewardModel(load_classifier(path, trained=True), load_tokenizer(path))

    def raw_scores(self, texts: list[str], batch_size: int = 16) -> Tensor:
        """Scores (B,) of whole texts as the classifier gives them; see `raw_answer_scores`.

        Raises ValueError where this model reads conversations.
        """
        if chat.is_on(self.tokenizer):
            raise ValueError(
                "this reward model reads conversations, and cannot tell prompt and response apart "
                "in one text: call score(prompts, responses)"
            )
        return self._scores(self.tokenizer(texts, truncation=True)["input_ids"], batch_size)

    @torch.no_grad()
    def _scores(self, encoded: list[list[int]], batch_size: int) -> Tensor:
        """Scores (B,) of texts, at least `batch_size` at a time.

        Texts of like length share a batch, and those that begin alike (answers to one prompt) are
        read as one up to where they part, if the classifier gives the same scores so.
        """
        scores, batch = torch.zeros(len(encoded)), []
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

    def raw_answer_scores(
        self, prompts: Sequence[str], responses: Sequence[str], batch_size: int = 16
    ) -> Tensor:
        """Raw scores (B,) of responses as they stand after their prompt, with the blank in front.

        The prompts are formatted, and there is one for each response. Both go through the chat
        template of this model's own tokenizer, if it has one; else they are one text.
        """
        return self._scores(whole_tokens(self.tokenizer, prompts, responses), batch_size)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Standardised scores of responses, each with its prompt: see `raw_answer_scores`."""
        return self._standardised(self.raw_answer_scores(prompts, responses))

    def __call__(self, texts: list[str]) -> list[float]:
        """Standardised scores of whole texts, each a prompt and its response."""
        return self._standardised(self.raw_scores(texts))

    def _standardised(self, scores: Tensor) -> list[float]:
        """Scores in standard deviations of the SFT model's samples."""
        mean = getattr(self.model.config, "reward_mean", 0.0)
        deviation = getattr(self.model.config, "reward_std", 1.0)
        return ((scores - mean) / deviation).tolist()

    def standardise(self, scores: Tensor) -> None:
        """Set the constants so that these raw scores (B,) get mean 0 and standard deviation 1."""
        self.model.config.reward_mean = scores.mean().item()
        self.model.config.reward_std = max(scores.std().item(), 1e-6)


class AnswerTokenRewardModel(RewardModel):
    """A frozen language model `model`, and the `head` that scores the tokens of answers."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, head: AnswerTokenHead
    ):
        super().__init__(model, tokenizer)
        self.head = head.to(model.device).eval()
        model.config.reward_head = "answer_tokens"

    @torch.no_grad()
    def raw_answer_scores(
        self, prompts: Sequence[str], responses: Sequence[str], batch_size: int = 64
    ) -> Tensor:
        """Raw scores (B,), about `batch_size` answers at a time; each prompt is read once."""
        encoded, scores = encode_answers(self.tokenizer, prompts, responses), []
        order: list[int] = []
        batches = feature_batches(self.model, self.tokenizer, encoded, batch_size)
        for numbers, features, lengths in batches:
            order += numbers
            scores.append(self.head(features, lengths).cpu())
        found = torch.zeros(len(encoded))
        found[order] = torch.cat(scores) if scores else found
        return found

    def raw_scores(self, texts: list[str], batch_size: int = 64) -> Tensor:
        """Raw scores (B,) of texts whose prompt ends with a mark such as `[summary]:`.

        Raises ValueError for a text without one: call `score` with prompts and responses then.
        """
        parts = [split_text(text) for text in texts]
        prompts, responses = [part[0] for part in parts], [part[1] for part in parts]
        return self.raw_answer_scores(prompts, responses, batch_size)


def split_text(text: str) -> tuple[str, str]:
    """Split a whole text behind the first `[summary]:` or `[continued]:`: prompt and response.

    Raises ValueError for a text without such a mark.
    """
    mark = PROMPT_END.search(text)
    if mark is None:
        raise ValueError(
            f"where the prompt ends is unknown, since no [summary]: or [continued]: stands in "
            f"{text[:60]!r}. Give prompts and responses apart: reward_model.score(prompts, "
            "responses)"
        )
    return text[: mark.end()], text[mark.end() :]


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

    A text that is too long loses its beginning, since what is judged stands at the end. A chat
    template ends its conversations itself.
    """
    tokenizer.truncation_side = "left"
    tokenizer.model_max_length = min(max_length, tokenizer.model_max_length)
    ids, ends = tokenizer("a")["input_ids"], (tokenizer.eos_token_id, tokenizer.sep_token_id)
    if not chat.is_on(tokenizer) and ids[-1] not in ends:
        special = {tokenizer.eos_token: tokenizer.eos_token_id}
        begin = tokenizer.convert_ids_to_tokens(ids[0]) if ids[0] == tokenizer.bos_token_id else ""
        special |= {begin: ids[0]} if begin else {}
        template = f"{begin} $A {tokenizer.eos_token}".strip()
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=list(special.items())
        )
    return tokenizer
