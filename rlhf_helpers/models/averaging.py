"""One model from several of the same shape: the average of their weights.

Models that were fine-tuned apart from the same start can be averaged (Wortsman et al. 2022,
arXiv:2203.05482). The average costs no more than one of them. Of reward models it is said to be
harder to exploit (WARM, Ramé et al. 2024, arXiv:2401.12187), of policies to gain as much reward at
less KL (WARP, Ramé et al. 2024, arXiv:2406.16768).
"""

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def average_weights(
    models: Sequence[PreTrainedModel], shares: Sequence[float] | None = None
) -> PreTrainedModel:
    """Return a new model whose every weight is the mean of the models' weights.

    `shares` weigh the models and sum to 1; by default all count alike. With the start as one of
    the models they say how far to go from it. A reward model's constants are those of the first:
    call its `standardise` afterwards. Raises ValueError for models that do not fit together.
    """
    shares = shares or [1 / max(1, len(models))] * len(models)
    if not models or len(shares) != len(models) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"{len(models)} models need as many shares that sum to 1, not {shares}")
    named = [dict(model.named_parameters()) for model in models]
    average = copy.deepcopy(models[0])
    for name, weight in average.named_parameters():
        if not all(name in other and other[name].shape == weight.shape for other in named):
            raise ValueError(f"the models differ in {name}: average models of the same shape")
        parts = [share * other[name].float() for share, other in zip(shares, named, strict=True)]
        weight.copy_(sum(parts))
    if any(other.keys() != named[0].keys() for other in named):
        raise ValueError("the models differ in their weights: average models of the same shape")
    return average
