"""Three annotators whose utilities are known, and the noise in the preferences they state.

`measure` counts what is good and bad about a summary, and an `Annotator` weighs the counts. The
annotators weigh them differently, as people do: Ada hates made-up facts, Ben dislikes long texts,
Cleo wants to hear what was tried. `gold` is their mean utility. A perfect summary, all facts in
WORD_BUDGET words, is worth 4.5 to each of them. So is a perfect completion: it repeats the facts
of the post's beginning, tells what was tried, asks a question and has no unkind word.

Stated preferences are noisy: P(a over b) = sigmoid((u(a) - u(b)) / TEMPERATURE), the model of
Bradley and Terry (1952).
"""

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product

from rlhf_helpers.little_world import completions, phrases
from rlhf_helpers.little_world.grammar import (
    CONTINUED_MARK,
    SLOTS,
    SUMMARY_MARK,
    Facts,
    find_facts,
    find_post,
    read_post,
    values,
)

WORD_BUDGET = 24
COMPLETION_BUDGET = 36
TEMPERATURE = 0.5
CLOSE = 0.25  # if two utilities differ by less, `judge` states a tie
MARK = re.compile(f"{re.escape(SUMMARY_MARK)}|{re.escape(CONTINUED_MARK)}")
UNKIND = re.compile(rf"\b(?:{'|'.join(phrases.UNKIND)})\b", re.IGNORECASE)

# How much of each fault `measure` counts.
FAULTS: dict[str, Callable[[Mapping[str, float]], float]] = {
    "missing fact": lambda measured: -measured["covered"],
    "wrong fact": lambda measured: measured["wrong"],
    "too long": lambda measured: measured["over_budget"],
    "rambling": lambda measured: measured["rambling"],
}


@dataclass(frozen=True)
class Annotator:
    """The weights of a linear utility: the worth of covered facts, minus the costs of faults."""

    name: str
    covered: dict[str, float]  # worth of each slot that is told correctly; the sum is 4.5
    wrong: float  # cost of a fact that contradicts the post
    over_budget: float  # cost of a word over WORD_BUDGET
    rambling: float  # cost of one filler phrase, repetition or odd pair of words
    unfinished: float  # cost of a text that does not end in . ? or !
    unkind: float  # cost of an unkind word in a completion

    def utility(self, measured: dict[str, float]) -> float:
        """Return the utility of a text with these counts (see `measure`); at most 4.5."""
        worth = sum(self.covered[slot] * measured[f"covered_{slot}"] for slot in SLOTS)
        costs = ("wrong", "over_budget", "rambling", "unfinished", "unkind")
        return worth - sum(getattr(self, cost) * measured.get(cost, 0.0) for cost in costs)


def _worth(
    relation: float, problem: float, duration: float, tried: float, question: float
) -> dict[str, float]:
    return dict(zip(SLOTS, (relation, problem, duration, tried, question), strict=True))


ANNOTATORS = (
    Annotator("ada", _worth(0.5, 1.5, 0.5, 1.0, 1.0), 2.0, 0.10, 0.25, 1.0, 0.8),
    Annotator("ben", _worth(0.4, 2.0, 0.3, 0.6, 1.2), 0.7, 0.25, 0.40, 0.5, 0.5),
    Annotator("cleo", _worth(0.6, 1.0, 0.7, 1.4, 0.8), 0.9, 0.10, 0.25, 1.5, 1.1),
)


def measure(facts: Facts, text: str, post: str) -> dict[str, float]:
    """Count what the annotators look at in a summary, or in the completion of a beginning.

    Returns `covered_<slot>` (0 or 1), `covered` (0 to 5), `wrong` (facts that contradict the
    post), `words`, `over_budget` (words), `rambling` (see `_ramblings`), `unfinished` (0 or 1) and,
    for a completion, `unkind` (words). A completion may fill the slots that its beginning leaves
    open with any fact.
    """
    found, told, wrong = find_facts(text), {}, 0
    for slot in SLOTS:
        fact = getattr(facts, slot)
        told[f"covered_{slot}"] = float(fact in found[slot] if fact else bool(found[slot]))
        wrong += len(found[slot] - {fact}) if fact else 0
    words = len(text.split())
    completes = not facts.question
    measured = told | {
        "covered": sum(told.values()),
        "wrong": float(wrong),
        "words": float(words),
        "over_budget": float(max(0, words - (COMPLETION_BUDGET if completes else WORD_BUDGET))),
        "rambling": float(_ramblings(text, post, completes)),
        "unfinished": float(words < 3 or text.rstrip()[-1:] not in (".", "?", "!")),
    }
    if completes:
        measured["unkind"] = float(len(UNKIND.findall(text)))
    return measured


def gold(input_text: str, text: str) -> float:
    """Return the mean utility of a summary or completion over the annotators; at most 4.5.

    `input_text` holds the post; text around the post is ignored. Raises ValueError without a post.
    """
    return _mean_utility(_measured(input_text, text))


def _measured(input_text: str, text: str) -> dict[str, float]:
    return measure(read_post(input_text), text, find_post(input_text))


def _mean_utility(measured: dict[str, float]) -> float:
    return sum(annotator.utility(measured) for annotator in ANNOTATORS) / len(ANNOTATORS)


def choose(utilities: tuple[float, float], rng: random.Random) -> int:
    """Choose noisily between two candidates with these utilities: 0 or 1 (Bradley-Terry)."""
    gap = (utilities[1] - utilities[0]) / TEMPERATURE
    return int(rng.random() < 1 / (1 + math.exp(-max(-50.0, min(50.0, gap)))))


def rank(
    input_text: str, candidates: Sequence[str], annotator: Annotator, rng: random.Random
) -> list[int]:
    """Return the candidates' indices from best to worst, with the same noise as `choose`.

    Gumbel noise on the utilities makes every pair of the ranking a Bradley-Terry choice
    (Plackett-Luce). Raises ValueError if `input_text` holds no post.
    """
    facts, post = read_post(input_text), find_post(input_text)
    noisy = [
        annotator.utility(measure(facts, text, post)) / TEMPERATURE
        - math.log(-math.log(rng.random()))
        for text in candidates
    ]
    return sorted(range(len(candidates)), key=lambda i: -noisy[i])


def gold_scores(texts: list[str]) -> list[float]:
    """Return `gold` of texts that hold prompt and answer, the input of a reward model.

    The answer is what follows the mark of the task. Raises ValueError if a text has no mark or no
    post.
    """
    split = [MARK.split(text, maxsplit=1) for text in texts]
    for text, parts in zip(texts, split, strict=True):
        if len(parts) < 2:
            raise ValueError(
                f"no answer to score in {text!r}: write it after {SUMMARY_MARK!r} or "
                f"{CONTINUED_MARK!r}"
            )
    return [gold(prompt, answer) for prompt, answer in split]


def gold_columns(input_texts: Sequence[str], responses: Sequence[str]) -> dict[str, list[float]]:
    """`gold` of each response, and the counts behind it that lessons show: a column each.

    The counts are `covered` (facts, of 5), `wrong` (facts), `words`, and of completions `unkind`
    (words). This is the `gold` that `evaluation` asks for. Raises ValueError for an `input_text`
    that holds no post.
    """
    measured = [_measured(*pair) for pair in zip(input_texts, responses, strict=True)]
    counts = ("covered", "wrong", "unkind", "words")
    columns = {
        name: [row.get(name, math.nan) for row in measured]
        for name in counts
        if any(name in row for row in measured)
    }
    return columns | {"gold": [_mean_utility(row) for row in measured]}


def fault_columns(input_texts: Sequence[str], responses: Sequence[str]) -> dict[str, list[float]]:
    """How much of each fault each response has: a column a fault, for `trust.accuracy_by_fault`.

    Raises ValueError for an `input_text` that holds no post.
    """
    measured = [_measured(*pair) for pair in zip(input_texts, responses, strict=True)]
    return {name: [fault(row) for row in measured] for name, fault in FAULTS.items()}


def judge(
    pairs: Iterable[Mapping[str, str]], annotator: Annotator, rng: random.Random
) -> Iterator[dict]:
    """Yield the judgements that an annotator would make of pairs (see `annotation.judgements`).

    They are as noisy as `choose`, and a tie where the utilities differ by less than CLOSE.
    """
    for pair in pairs:
        post, candidates = pair["input_text"], (pair["candidate_0"], pair["candidate_1"])
        measured = [measure(read_post(post), text, find_post(post)) for text in candidates]
        utilities = (annotator.utility(measured[0]), annotator.utility(measured[1]))
        tie = abs(utilities[0] - utilities[1]) < CLOSE
        yield {
            "input_text": post,
            "candidate_0": candidates[0],
            "candidate_1": candidates[1],
            "shown_first": rng.randrange(2),
            "annotator": annotator.name,
            "choice": None if tie else choose(utilities, rng),
        }


# ---- rambling ------------------------------------------------------------------------------


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

    A summary is a chain of parts (see `writers.state_facts`). Its pairs are those inside a part,
    and those of a part's last word and the first word of any later part.
    """
    shorts = {slot: list(values(slot)) for slot in SLOTS}
    chain = [
        ["someone", *(f"my {s}" for s in shorts["relation"])],
        [*phrases.VAGUE_PROBLEMS, *shorts["problem"]],
        [text for s in shorts["duration"] for text in (f"for {s}", f"({s})")],
        [
            text
            for s in shorts["tried"]
            for text in (f", tried {s}", f". I tried {s}", f". {s} did not work")
        ],
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


def _ramblings(text: str, post: str, completes: bool) -> int:
    """Count odd word pairs (at most 8), plus 2 for each repeated sequence of four words.

    A pair of neighbouring words is odd if it occurs neither in a sensible summary (or completion)
    nor in the post. The words of an empty phrase are odd pairs, so it costs about its length.
    """
    tokens = _tokens(text)
    allowed = (_completion_bigrams() if completes else _known_bigrams()) | _bigrams(post)
    odd = sum(pair not in allowed for pair in pairwise(tokens))
    fours = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
    return min(odd, 8) + 2 * (len(fours) - len(set(fours)))
