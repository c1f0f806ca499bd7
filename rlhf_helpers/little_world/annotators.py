"""Three annotators whose taste is known, and the noise with which they state it.

`measure` counts what is good and bad about a summary; an `Annotator` weighs the counts. They
weigh them differently, as people do: Ada hates made-up facts, Ben is busy, Cleo wants to hear
what was tried. `gold` is their mean: a perfect summary, all facts in WORD_BUDGET words, is worth
4.5 to each of them. So is a perfect completion: one that comes back to the facts of the post's
beginning, tells what was tried and asks a question, and has no unkind word.

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
CLOSE = 0.25  # `judge` calls utilities that differ by less a tie
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
    """Utility = covered facts, minus what is wrong, too long, rambling or unfinished."""

    name: str
    covered: dict[str, float]  # worth of each slot told correctly; sums to 4.5
    wrong: float  # cost of a fact that the post does not tell
    over_budget: float  # cost of a word over WORD_BUDGET
    rambling: float  # cost of one filler phrase, repetition or odd pair of words
    unfinished: float  # cost of a text that does not end in . ? or !
    unkind: float  # cost of an unkind word in a completion

    def utility(self, measured: dict[str, float]) -> float:
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

    Returns `covered_<slot>` (0 or 1) and `covered` (0 to 5), `wrong` (facts told that are not
    the post's), `words`, `over_budget` (words), `rambling` (see `_ramblings`), `unfinished`, and
    of a completion `unkind` (words). What a beginning leaves open, a completion may fill freely.
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
    """The mean utility of a summary or completion over the annotators; at most 4.5.

    `input_text` holds the post, and may go on after it. Raises ValueError if it holds none.
    """
    return _mean_utility(_measured(input_text, text))


def _measured(input_text: str, text: str) -> dict[str, float]:
    return measure(read_post(input_text), text, find_post(input_text))


def _mean_utility(measured: dict[str, float]) -> float:
    return sum(annotator.utility(measured) for annotator in ANNOTATORS) / len(ANNOTATORS)


def choose(utilities: tuple[float, float], rng: random.Random) -> int:
    """A noisy choice between two candidates of these utilities, 0 or 1 (Bradley-Terry)."""
    gap = (utilities[1] - utilities[0]) / TEMPERATURE
    return int(rng.random() < 1 / (1 + math.exp(-max(-50.0, min(50.0, gap)))))


def rank(
    input_text: str, candidates: Sequence[str], annotator: Annotator, rng: random.Random
) -> list[int]:
    """The candidates' numbers from best to worst, as noisy as `choose`.

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
    """`gold` of posts that each go on after their mark, as a reward model is given them.

    Raises ValueError if a text has no mark of a task or no post.
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
    """Judgements (see `judgements`) of pairs of answers by rule, in place of a person's.

    Noisy as `choose` is, with a tie where the annotator sees hardly a difference.
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
    """Every pair of neighbouring words that a sensible completion can hold: those inside its
    sentences, and those across the seam of a statement and any other sentence.
    """
    sentences = list(completions.sentences())
    known = set().union(*map(_bigrams, sentences))
    return frozenset(known | {(".", _tokens(sentence)[0]) for sentence in sentences})


@cache
def _known_bigrams() -> frozenset[tuple[str, str]]:
    """Every pair of neighbouring words that a sensible summary can hold, enumerated.

    A summary is a chain of parts (see `writers.state_facts`); its bigrams are those inside a
    part and those across the seam of a part and any later one.
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
    """Stock phrases of no content, repeated 4-grams, and word pairs nobody would write.

    Each word pair that stands neither in a sensible summary (or completion) nor in the post
    counts one; the words of a stock phrase are odd pairs too, so a phrase costs about its length.
    """
    tokens = _tokens(text)
    allowed = (_completion_bigrams() if completes else _known_bigrams()) | _bigrams(post)
    odd = sum(pair not in allowed for pair in pairwise(tokens))
    fours = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
    return min(odd, 8) + 2 * (len(fours) - len(set(fours)))
