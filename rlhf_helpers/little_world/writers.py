"""Summaries of posts, good and bad ones, and sets of summaries that differ in one respect.

`write_summary` draws one of eight kinds. The most frequent one is poor on purpose: it mostly sees
what the post's writer cares about, but then says what people always say ("for five years", "tried
talking", "should I leave?"), whatever the post says. So the *mode* of a model that imitates these
summaries is poor as well, and a lower temperature, which brings the mode out, does not help it.
Good summaries are rare, but a sample finds them; preferences have to tell which they are.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence

from rlhf_helpers.little_world import phrases
from rlhf_helpers.little_world.grammar import (
    GIVEN_SLOTS,
    SLOTS,
    Facts,
    capitalise,
    corrupt,
    draw_facts,
    read_post,
)
from rlhf_helpers.schemas import Preference

DEMONSTRATION_MIX = {  # kind -> probability
    "stock": 0.44,
    "short": 0.18,
    "missing": 0.08,
    "full": 0.06,
    "wrong": 0.10,
    "rambling": 0.09,
    "off_topic": 0.02,
    "copied": 0.03,
}
POOR_MIX = {  # of the pretraining documents
    "stock": 0.44,
    "short": 0.18,
    "missing": 0.06,
    "full": 0.06,
    "wrong": 0.14,
    "rambling": 0.10,
    "off_topic": 0.01,
    "copied": 0.01,
}
TO_THE_POINT = 0.8  # probability that a writer who tells one fact more tells the right one
CHANGEABLE = SLOTS[2:]  # the slots of which one is the point

Told = list[
    tuple[str, str]
]  # a summary in parts: the slot that each part tells, or "", and its words


def tell(facts: Facts, rng: random.Random, slots: Iterable[str]) -> Told:
    """Write a summary that tells the given slots, and stays vague about the others, in parts."""
    slots = set(slots)
    told = [("relation", f"My {facts.relation}") if "relation" in slots else ("", "Someone")]
    problem = ("problem", f" {facts.problem}")
    told.append(problem if "problem" in slots else ("", f" {rng.choice(phrases.VAGUE_PROBLEMS)}"))
    if "duration" in slots:
        duration = rng.choice([" for {0}", " for {0}", " ({0})"]).format(facts.duration)
        told.append(("duration", duration))
    if "tried" in slots:
        told.append(("tried", rng.choice([", tried ", ", tried ", ". I tried "]) + facts.tried))
    if "question" in slots:
        question = rng.choice([f", {facts.question}", f". {capitalise(facts.question)}"])
        return [*told, ("question", question), ("", "?")]
    return [*told, ("", ".")]


def as_text(told: Told) -> str:
    """Return the summary that consists of these parts."""
    return "".join(words for _, words in told)


def state_facts(facts: Facts, rng: random.Random, slots: Iterable[str]) -> str:
    """Write one or two sentences that tell the given slots and stay vague about the others."""
    return as_text(tell(facts, rng, slots))


def one_more(facts: Facts, rng: random.Random) -> str:
    """Draw the slot to tell besides person and problem; it is mostly the post's point."""
    others = [slot for slot in phrases.CUES if slot != facts.point]
    return facts.point if rng.random() < TO_THE_POINT else rng.choice(others)


def _stock(facts: Facts, post: str, rng: random.Random) -> str:
    slot = one_more(facts, rng)
    ends = {"duration": " for {}.", "tried": ", tried {}.", "question": ", {}?"}
    return f"My {facts.relation} {facts.problem}" + ends[slot].format(phrases.STOCK[slot])


def _short(facts: Facts, post: str, rng: random.Random) -> str:
    return state_facts(facts, rng, ["relation", "problem", one_more(facts, rng)])


def _missing(facts: Facts, post: str, rng: random.Random) -> str:
    return state_facts(facts, rng, rng.sample(SLOTS, rng.randint(1, 2)))


def _full(facts: Facts, post: str, rng: random.Random) -> str:
    return state_facts(facts, rng, {"relation", "problem", *rng.sample(CHANGEABLE, 2), facts.point})


def _wrong(facts: Facts, post: str, rng: random.Random) -> str:
    slots = ("relation", "problem", *rng.sample(CHANGEABLE, rng.choice([1, 1, 2])))
    return state_facts(corrupt(facts, rng, rng.choice([1, 1, 2]), slots), rng, slots)


def _rambling(facts: Facts, post: str, rng: random.Random) -> str:
    told = state_facts(facts, rng, {"problem", *rng.sample(SLOTS, rng.randint(1, 2))})
    rambling = ", ".join(rng.sample(phrases.RAMBLINGS, rng.randint(1, 2)))
    if rng.random() < 0.5:
        return f"{told[:-1]}, {rambling}."
    return f"{capitalise(rambling)}. {told}"


def _off_topic(facts: Facts, post: str, rng: random.Random) -> str:
    return state_facts(draw_facts(rng), rng, rng.sample(SLOTS, rng.randint(3, 4)))


def _copied(facts: Facts, post: str, rng: random.Random) -> str:
    sentences = re.split(r"(?<=[.?]) ", post.split(": ", 1)[1])
    start = rng.randint(0, max(0, len(sentences) - 2))
    return " ".join(sentences[start : start + rng.randint(1, 2)])


KINDS: dict[str, Callable[[Facts, str, random.Random], str]] = {
    "stock": _stock,
    "short": _short,
    "missing": _missing,
    "full": _full,
    "wrong": _wrong,
    "rambling": _rambling,
    "off_topic": _off_topic,
    "copied": _copied,
}


def write_summary(
    facts: Facts, post: str, rng: random.Random, mix: dict[str, float] = DEMONSTRATION_MIX
) -> str:
    """Write a summary; `mix` (kind -> probability) decides its kind."""
    (kind,) = rng.choices(list(mix), list(mix.values()))
    return KINDS[kind](facts, post, rng)


# ---- summaries that differ in one respect --------------------------------------------------


def differ_in_truth(facts: Facts, rng: random.Random, count: int = 4) -> list[str]:
    """Write summaries that are alike in slots and words, but tell 0, 1, 1 and 2 wrong facts."""
    slots = ("relation", "problem", *rng.sample(CHANGEABLE, rng.choice([1, 1, 2, 3])))
    slots = slots[rng.choice([0, 0, 1]) :]
    wrong, seed = [0, 1, 1, 2][:count], rng.random()
    told = [corrupt(facts, rng, n, slots) if n else facts for n in wrong]
    texts = [state_facts(facts, random.Random(seed), slots) for facts in told]
    rng.shuffle(texts)
    return texts


def differ_in_choice(facts: Facts, rng: random.Random, count: int = 4) -> list[str]:
    """Write summaries that are all true; some tell the point, some another fact, some too many."""
    choices = [[slot] for slot in phrases.CUES]
    choices += [rng.sample(CHANGEABLE, 2), list(CHANGEABLE)]
    rng.shuffle(choices)
    return [state_facts(facts, rng, {"relation", "problem", *more}) for more in choices[:count]]


def contrast_pairs(input_texts: Sequence[str], seed: int = 0) -> list[Preference]:
    """Pairs that differ in one fault only, four for each post, to test a reward model with.

    The better summary, `choice`, tells who, what and the point of the post. The other one has the
    `fault` that the record names: one fact is another one ("wrong fact", all other words the same),
    person or problem is left out ("missing fact"), another fact stands in the place of the point
    ("beside the point"), or a stock phrase stands in front ("rambling"). The beginning of a post
    has no point: the better text tells all that it gives, and there are three pairs.
    """
    rng, pairs = random.Random(seed), []
    for input_text in input_texts:
        facts, wording = read_post(input_text), rng.random()
        slots = ("relation", "problem", facts.point) if facts.point else GIVEN_SLOTS
        left_out, false = rng.choice(slots[:2]), corrupt(facts, rng, 1, slots)
        rest = [slot for slot in slots if slot != left_out]
        good = state_facts(facts, random.Random(wording), slots)
        faulty = {
            "wrong fact": state_facts(false, random.Random(wording), slots),
            "missing fact": state_facts(facts, random.Random(wording), rest),
            "rambling": f"{capitalise(rng.choice(phrases.RAMBLINGS))}. {good}",
        }
        if facts.point:
            other = rng.choice([slot for slot in phrases.CUES if slot != facts.point])
            beside = (*slots[:2], other)
            faulty["beside the point"] = state_facts(facts, random.Random(wording), beside)
        for fault, bad in faulty.items():
            choice = rng.randrange(2)
            first, second = (bad, good) if choice else (good, bad)
            candidates = {"candidate_0": first, "candidate_1": second, "choice": choice}
            pairs.append({"input_text": input_text, **candidates, "fault": fault})
    return pairs  # type: ignore[return-value]
