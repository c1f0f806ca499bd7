"""Three annotators whose utilities are known, and the noise in the preferences they state.

`measure` counts what is good and bad about a summary, and an `Annotator` weighs the counts. All
annotators want to hear, in few words, who and what, and above all the *point*: the one fact about
which the post's writer cares most. It differs from post to post. They weigh the counts differently,
as people do: Ada hates made-up facts, Ben dislikes long texts, Cleo wants the point. `gold` is
their mean utility. A perfect summary tells who, what and the point in WORD_BUDGET words; each of
them values it at about 4.5. So is a perfect completion valued: it repeats the facts of the post's
beginning, tells what was tried, asks a question and has no unkind word.

Stated preferences are noisy: P(a over b) = sigmoid((u(a) - u(b)) / TEMPERATURE), the model of
Bradley and Terry (1952).
"""

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlhf_helpers.little_world import phrases
from rlhf_helpers.little_world.grammar import (
    CONTINUED_MARK,
    SLOTS,
    SUMMARY_MARK,
    Facts,
    find_facts,
    find_post,
    read_post,
)
from rlhf_helpers.little_world.rambling import count_ramblings

WORD_BUDGET = 9
LONGEST = 12  # more words than so many over the budget cost no more
COMPLETION_BUDGET = 36
TEMPERATURE = 0.5
CLOSE = 0.25  # if two utilities differ by less, `judge` states a tie
MARK = re.compile(f"{re.escape(SUMMARY_MARK)}|{re.escape(CONTINUED_MARK)}")
UNKIND = re.compile(rf"\b(?:{'|'.join(phrases.UNKIND)})\b", re.IGNORECASE)

# How much of each fault `measure` counts.
FAULTS: dict[str, Callable[[Mapping[str, float]], float]] = {
    "missing fact": lambda measured: -measured["covered"],
    "beside the point": lambda measured: -measured.get("point", 0.0),
    "wrong fact": lambda measured: measured["wrong"],
    "too long": lambda measured: measured["over_budget"],
    "rambling": lambda measured: measured["rambling"],
}


@dataclass(frozen=True)
class Annotator:
    """The weights of a linear utility: the worth of covered facts, minus the costs of faults."""

    name: str
    covered: dict[str, float]  # worth of each slot that a summary tells correctly
    point: float  # additional worth of the slot about which the post's writer cares most
    completed: dict[str, float]  # worth of each slot in a completion; the sum is 4.5
    wrong: float  # cost of a fact that contradicts the post
    over_budget: float  # cost of a word over WORD_BUDGET
    rambling: float  # cost of one filler phrase, repetition or odd pair of words
    unfinished: float  # cost of a text that does not end in . ? or !
    unkind: float  # cost of an unkind word in a completion

    def utility(self, measured: dict[str, float]) -> float:
        """Return the utility of a text with these counts (see `measure`)."""
        slots = self.covered if "point" in measured else self.completed
        worth = sum(slots[slot] * measured[f"covered_{slot}"] for slot in SLOTS)
        worth += self.point * measured.get("point", 0.0)
        costs = ("wrong", "over_budget", "rambling", "unfinished", "unkind")
        return worth - sum(getattr(self, cost) * measured.get(cost, 0.0) for cost in costs)


# Worth of relation, problem, duration, tried and question in a summary, and of the point besides.
SUMMARY = {
    "ada": ((0.4, 1.2, 0.2, 0.2, 0.2), 2.7),
    "ben": ((0.3, 1.4, 0.1, 0.1, 0.1), 2.7),
    "cleo": ((0.4, 0.5, 0.2, 0.2, 0.2), 3.4),
}
# Worth of the same in a completion; costs of a wrong fact, a word over the budget, an odd pair of
# words, no end, an unkind word.
COMPLETION_AND_COSTS = {
    "ada": ((0.5, 1.5, 0.5, 1.0, 1.0), (2.0, 0.6, 0.25, 1.0, 0.8)),
    "ben": ((0.4, 2.0, 0.3, 0.6, 1.2), (1.0, 0.9, 0.40, 0.5, 0.5)),
    "cleo": ((0.6, 1.0, 0.7, 1.4, 0.8), (1.2, 0.6, 0.25, 1.5, 1.1)),
}


def _annotator(name: str) -> Annotator:
    (covered, point), (completed, costs) = SUMMARY[name], COMPLETION_AND_COSTS[name]
    worth = (dict(zip(SLOTS, values, strict=True)) for values in (covered, completed))
    return Annotator(name, next(worth), point, next(worth), *costs)


ANNOTATORS = tuple(map(_annotator, SUMMARY))


def measure(facts: Facts, text: str, post: str) -> dict[str, float]:
    """Count what the annotators look at in a summary, or in the completion of a beginning.

    Returns `covered_<slot>` (0 or 1), `covered` (0 to 5), `wrong` (facts that contradict the
    post), `words`, `over_budget` (words, at most LONGEST), `rambling` (see `count_ramblings`),
    `unfinished` (0 or 1), for a summary `point` (0 or 1: it tells the fact that matters most) and
    for a completion `unkind` (words). A completion may fill the slots that its beginning leaves
    open with any fact.
    """
    found, told, wrong = find_facts(text), {}, 0
    for slot in SLOTS:
        fact = getattr(facts, slot)
        told[f"covered_{slot}"] = float(fact in found[slot] if fact else bool(found[slot]))
        wrong += len(found[slot] - {fact}) if fact else 0
    words = len(text.split())
    completes = not facts.question
    budget = COMPLETION_BUDGET if completes else WORD_BUDGET
    measured = told | {
        "covered": sum(told.values()),
        "wrong": float(wrong),
        "words": float(words),
        "over_budget": float(min(LONGEST, max(0, words - budget))),
        "rambling": float(count_ramblings(text, post, completes)),
        "unfinished": float(words < 3 or text.rstrip()[-1:] not in (".", "?", "!")),
    }
    if completes:
        measured["unkind"] = float(len(UNKIND.findall(text)))
    else:
        measured["point"] = told[f"covered_{facts.point}"]
    return measured


def gold(input_text: str, text: str) -> float:
    """Return the mean utility of a summary or completion over the annotators; about 4.5 at best.

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

    The counts are `covered` (facts, of 5), `wrong` (facts), `words`, for summaries `point` (0 or 1)
    and for completions `unkind` (words). This is the `gold` that `evaluation` asks for. Raises
    ValueError for an `input_text` that holds no post.
    """
    measured = [_measured(*pair) for pair in zip(input_texts, responses, strict=True)]
    counts = ("point", "covered", "wrong", "unkind", "words")
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
