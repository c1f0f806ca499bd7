"""Measures of texts alone: length, repetition, diversity, and likeness to reference texts."""

from collections.abc import Iterable, Sequence

import numpy as np

from rlhf_helpers.extras import needs_extra


def text_metrics(
    responses: Sequence[str], references: Sequence[str] | None = None
) -> dict[str, float]:
    """Means over responses (N,): `words`, `repetition`, `distinct_1` and `distinct_2`.

    With references (N,) also `rouge1`, `rouge2` and `rougeL`. Raises ValueError if `responses` is
    empty.
    """
    if not responses:
        raise ValueError("no response to measure: pass at least one")
    found = {
        "words": float(np.mean([len(text.split()) for text in responses])),
        "repetition": float(np.mean([repetition(text) for text in responses])),
        "distinct_1": distinct(responses, 1),
        "distinct_2": distinct(responses, 2),
    }
    return found if references is None else found | rouge(responses, references)


def rouge(responses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 of shared words (`rouge1`), pairs of words (`rouge2`) and the longest common
    subsequence (`rougeL`), after stemming (Lin 2004).

    It rewards the words of the one reference, not what is true: another good summary scores low.
    """
    with needs_extra("course"):
        from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(b, a) for a, b in zip(responses, references, strict=True)]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in scores[0]}


def repetition(text: str, n: int = 4) -> float:
    """Share of a text's n-grams that occur earlier in it: 0 for none (Welleck et al. 2020)."""
    found = _ngrams(text, n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def distinct(texts: Iterable[str], n: int) -> float:
    """Share of different n-grams among the n-grams of all texts (distinct-n, Li et al. 2016).

    It falls as texts are added, so compare equal numbers of texts of about equal length. A policy
    that gives one and the same answer to every prompt comes near 0.
    """
    found = [ngram for text in texts for ngram in _ngrams(text, n)]
    return len(set(found)) / len(found) if found else 0.0


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))
