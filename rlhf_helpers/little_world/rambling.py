"""Counts what nobody wants to read: empty phrases, repetitions, word pairs that make no sense."""

import re
from functools import cache
from itertools import pairwise, product

from rlhf_helpers.little_world import completions, phrases
from rlhf_helpers.little_world.grammar import SLOTS, values


def count_ramblings(text: str, post: str, completes: bool) -> int:
    """Count odd word pairs (at most 8), plus 2 for each repeated sequence of four words.

    A pair of neighbouring words is odd if it occurs neither in a sensible summary (or completion)
    nor in the post. The words of an empty phrase are odd pairs, so it costs about its length.
    """
    tokens = _tokens(text)
    allowed = (_completion_bigrams() if completes else _known_bigrams()) | _bigrams(post)
    odd = sum(pair not in allowed for pair in pairwise(tokens))
    fours = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
    return min(odd, 8) + 2 * (len(fours) - len(set(fours)))


def _tokens(text: str) -> list[str]:
    return re.findall(r"[a-z0-9'-]+|[.,?!()]", text.lower())


def _bigrams(text: str) -> set[tuple[str, str]]:
    tokens = _tokens(text)
    return set(pairwise(tokens))


@cache
def _completion_bigrams() -> frozenset[tuple[str, str]]:
    """Return every pair of neighbouring words that a sensible completion can hold.

    These are the pairs inside its sentences, and the pairs of a full stop and any first word.
    """
    sentences = list(completions.sentences())
    known = set().union(*map(_bigrams, sentences))
    return frozenset(known | {(".", _tokens(sentence)[0]) for sentence in sentences})


@cache
def _known_bigrams() -> frozenset[tuple[str, str]]:
    """Return every pair of neighbouring words that a sensible summary can hold.

    A summary is a chain of parts (see `writers.tell`). Its pairs are those inside a part,
    and those of a part's last word and the first word of any later part.
    """
    shorts = {slot: list(values(slot)) for slot in SLOTS}
    chain = [
        ["someone", *(f"my {s}" for s in shorts["relation"])],
        [*phrases.VAGUE_PROBLEMS, *shorts["problem"]],
        [text for s in shorts["duration"] for text in (f"for {s}", f"({s})")],
        [text for s in shorts["tried"] for text in (f", tried {s}", f". I tried {s}")],
        [text for s in shorts["question"] for text in (f". {s}?", f", {s}?")],
        [".", ". any advice?"],
    ]
    known = set().union(*(_bigrams(text) for part in chain for text in part))
    firsts = [{_tokens(text)[0] for text in part} for part in chain]
    lasts = [{_tokens(text)[-1] for text in part} for part in chain]
    for i, last in enumerate(lasts):
        for first in firsts[i + 1 :]:
            known |= set(product(last, first))
    return frozenset(known)
