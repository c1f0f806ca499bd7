"""PPO-ptx: some pretraining with every optimiser step (Ouyang et al. 2022, eq. 2).

The policy goes on learning to write the documents that it was pretrained on, so that it forgets
less of them (the alignment tax) than by PPO alone.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import processes
from rlhf_helpers.ppo.maths import pretraining_loss

MAX_TOKENS = 512  # of a document; what is longer loses its end


class Pretraining:
    """Documents, and the gradients of the language model's loss on random ones among them."""

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        documents: list[str] | None,
        coef: float,
        seed: int,
    ):
        if not documents:
            raise ValueError("ptx_coef needs pretraining documents: pass some")
        self.policy, self.tokenizer, self.documents = policy, tokenizer, documents
        self.coef = coef
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Ids and mask (size, T) of documents drawn at random, each with EOS at its end."""
        chosen = torch.randint(len(self.documents), (size,), generator=self.generator)
        texts = [self.documents[i] + self.tokenizer.eos_token for i in chosen.tolist()]
        batch = self.tokenizer(
            texts,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(self.policy.device)
        return batch["input_ids"], batch["attention_mask"]

    def add_gradients(self, size: int, rows: int) -> Tensor:
        """Add the gradient of coef * loss on `size` new documents, `rows` of them at a time.

        Returns the loss, without coef: nats a token, this process's share of the mean over all.
        """
        ids, mask = self.draw(size)
        tokens = processes.total(mask[:, 1:].sum())
        share_of_loss = torch.zeros((), device=ids.device)
        for part, part_mask in zip(ids.split(rows), mask.split(rows), strict=True):
            logits = self.policy(input_ids=part, attention_mask=part_mask, use_cache=False).logits
            loss = pretraining_loss(logits, part, part_mask) * (part_mask[:, 1:].sum() / tokens)
            (self.coef * loss).backward()
            share_of_loss += loss.detach()
        return share_of_loss
