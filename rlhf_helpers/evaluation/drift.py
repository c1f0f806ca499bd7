"""How far a policy has moved: from the documents of its pretraining."""

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers.ppo.maths import pretraining_loss
from rlhf_helpers.ppo.pretraining import MAX_TOKENS


@torch.no_grad()
def perplexity(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int = 16,
) -> float:
    """exp of the mean -log pi a token: among how many tokens the policy seems to choose.

    On held-out pretraining documents its rise over the base model's is the alignment tax: what
    tuning has made the policy forget (Askell et al. 2021). Each text ends with EOS, as documents
    do in training, and is cut at `MAX_TOKENS`; every token but a text's first counts alike. Only
    models with the same tokenizer can be compared. Raises ValueError where there is no text.
    """
    if not texts:
        raise ValueError("no text to measure the perplexity of: pass at least one")
    policy.eval()
    ordered = sorted(texts, key=len)  # texts of a batch are about as long: less padding
    total, tokens = 0.0, 0
    for start in range(0, len(ordered), batch_size):
        batch = tokenizer(
            [text + tokenizer.eos_token for text in ordered[start : start + batch_size]],
            padding=True, padding_side="right", truncation=True, max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(policy.device)  # fmt: skip
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = policy(input_ids=ids, attention_mask=mask, use_cache=False).logits
        counted = int(mask[:, 1:].sum())
        total += float(pretraining_loss(logits, ids, mask)) * counted
        tokens += counted
    return math.exp(total / tokens)
