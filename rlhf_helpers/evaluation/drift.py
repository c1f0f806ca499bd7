"""How far a policy has moved: from its reference (KL), and from its pretraining (perplexity)."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import generation
from rlhf_helpers.evaluation.metrics import standard_error
from rlhf_helpers.logprobs import Tokens, forward_responses
from rlhf_helpers.ppo.maths import pretraining_loss
from rlhf_helpers.ppo.pretraining import MAX_TOKENS


@torch.no_grad()
def kl_from_reference(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    seed: int = 0,
    batch_size: int = 16,
) -> tuple[dict[str, float], pd.DataFrame]:
    """KL(policy || reference) of one response to each formatted prompt, at temperature 1.

    Returns the means with their standard errors (`_se`) and `kl_token`, the exact KL per token;
    and a table with a row a response: `tokens`, and in nats `estimated`, log pi - log pi_ref of the
    sampled tokens, and `exact`, the sum over its positions of KL(pi(. | prefix) || pi_ref(. |
    prefix)), which needs the probabilities of the whole vocabulary. By the chain rule the mean of
    either is the KL of a response; the exact one is never negative and varies much less.
    """
    generator, rows = generation.seeded(policy, seed), []
    reference.eval()
    for start in range(0, len(prompts), batch_size):
        encoded = generation.encode_prompts(tokenizer, list(prompts[start : start + batch_size]))
        ids, mask = (x.to(policy.device) for x in encoded)
        samples = generation.sample(
            policy, tokenizer, ids, mask, max_new_tokens=max_new_tokens, generator=generator
        )
        tokens = Tokens(ids, mask, samples.response_ids, samples.response_mask)
        log_pi, log_ref = (
            forward_responses(model, tokens)[0].float().log_softmax(-1)
            for model in (policy, reference)
        )
        exact = (log_pi.exp() * (log_pi - log_ref)).sum(-1)
        chosen = samples.response_ids[..., None]
        estimated = (log_pi - log_ref).gather(-1, chosen)[..., 0]
        real = samples.response_mask.float()
        rows.append(torch.stack([(x * real).sum(1) for x in (real, exact, estimated)], 1))
    table = pd.DataFrame(torch.cat(rows).tolist(), columns=["tokens", "exact", "estimated"])
    metrics = {}
    for name in ("exact", "estimated"):
        metrics[f"kl_{name}"] = float(table[name].mean())
        metrics[f"kl_{name}_se"] = standard_error(table[name])
    metrics["kl_token"] = float(table["exact"].sum() / table["tokens"].sum())
    return metrics, table


@torch.no_grad()
def perplexity(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int = 16,
) -> float:
    """exp of the mean -log pi per token: among how many tokens the policy seems to choose.

    On held-out pretraining documents its rise over the base model's is the alignment tax: what
    tuning has made the policy forget (Askell et al. 2021). Each text ends with EOS, as documents
    do in training, and is cut at `MAX_TOKENS`; every token but the first of a text has the same
    weight. Only models with the same tokenizer can be compared. Raises ValueError if `texts` is
    empty.
    """
    if not texts:
        raise ValueError("no text to measure the perplexity of: pass at least one")
    policy.eval()
    ordered = sorted(texts, key=len)  # texts of a batch are about as long: less padding
    total, tokens = 0.0, 0
    for start in range(0, len(ordered), batch_size):
        batch = tokenizer(
            [text + tokenizer.eos_token for text in ordered[start : start + batch_size]],
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(policy.device)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = policy(input_ids=ids, attention_mask=mask, use_cache=False).logits
        counted = int(mask[:, 1:].sum())
        total += float(pretraining_loss(logits, ids, mask)) * counted
        tokens += counted
    return math.exp(total / tokens)
