"""Summaries, good and bad ones, and the documents on which the base model is pretrained.

`write_summary` draws one of seven kinds. `DEMONSTRATION_MIX` has a systematic fault on purpose:
most demonstrations leave out what was tried. So a model that imitates them well can still be
improved by preferences.
"""

import random
import re
from collections.abc import Callable, Sequence

from rlhf_helpers.little_world import phrases
from rlhf_helpers.little_world.annotators import measure
from rlhf_helpers.little_world.grammar import (
    SLOTS,
    Facts,
    as_input_text,
    capitalise,
    corrupt,
    draw_facts,
    find_post,
    read_post,
    write_post,
)
from rlhf_helpers.schemas import Preference

DEMONSTRATION_MIX = {  # kind -> probability
    "good": 0.06,
    "short": 0.34,
    "missing": 0.30,
    "wrong": 0.11,
    "rambling": 0.12,
    "off_topic": 0.02,
    "copied": 0.05,
}
POOR_MIX = {  # of the pretraining documents
    "good": 0.02,
    "short": 0.06,
    "missing": 0.30,
    "wrong": 0.12,
    "rambling": 0.30,
    "off_topic": 0.08,
    "copied": 0.12,
}
INSTRUCTIONS = ("Summarize in less than 50 words.", "Summarize in less than 20 words.")


def state_facts(facts: Facts, rng: random.Random, slots: tuple[str, ...] | list[str]) -> str:
    """Write one or two sentences that tell the given slots and stay vague about the others."""
    text = f"My {facts.relation}" if "relation" in slots else "Someone"
    text += " " + (facts.problem if "problem" in slots else rng.choice(phrases.VAGUE_PROBLEMS))
    if "duration" in slots:
        text += rng.choice([f" for {facts.duration}", f" ({facts.duration})"])
    if "tried" in slots:
        sentence = capitalise(facts.tried) + " did not work"
        text += rng.choice([f", tried {facts.tried}", f". I tried {facts.tried}", f". {sentence}"])
    if "question" in slots:
        return text + rng.choice([f". {capitalise(facts.question)}?", f", {facts.question}?"])
    return text + rng.choice([".", ". Any advice?"])


def _good(facts: Facts, post: str, rng: random.Random) -> str:
    return state_facts(facts, rng, SLOTS)


def _short(facts: Facts, post: str, rng: random.Random) -> str:
    extra = rng.choice([["question"], ["duration"], ["duration", "question"]])
    return state_facts(facts, rng, ["relation", "problem", *extra])


def _missing(facts: Facts, post: str, rng: random.Random) -> str:
    untold = ["relation", "problem", "duration", "question"]
    return state_facts(facts, rng, rng.sample(untold, rng.randint(1, 3)))


def _wrong(facts: Facts, post: str, rng: random.Random) -> str:
    wrong = corrupt(facts, rng, rng.choice([1, 1, 2]))
    return state_facts(wrong, rng, rng.sample(SLOTS, rng.randint(3, 5)))


def _rambling(facts: Facts, post: str, rng: random.Random) -> str:
    told = state_facts(facts, rng, rng.sample(SLOTS, rng.randint(2, 4)))
    rambling = ", ".join(rng.sample(phrases.RAMBLINGS, rng.randint(2, 3)))
    if rng.random() < 0.5:
        return f"{told[:-1]}, {rambling}."
    return f"{capitalise(rambling)}. {told}"


def _off_topic(facts: Facts, post: str, rng: random.Random) -> str:
    return state_facts(draw_facts(rng), rng, rng.sample(SLOTS, rng.randint(3, 5)))


def _copied(facts: Facts, post: str, rng: random.Random) -> str:
    sentences = re.split(r"(?<=[.?]) ", post.split(": ", 1)[1])
    start = rng.randint(0, max(0, len(sentences) - 3))
    return " ".join(sentences[start : start + rng.randint(2, 3)])


KINDS: dict[str, Callable[[Facts, str, random.Random], str]] = {
    "good": _good,
    "short": _short,
    "missing": _missing,
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


def contrast_pairs(input_texts: Sequence[str], seed: int = 0) -> list[Preference]:
    """Pairs that differ in one fault only, three for each post, to test a reward model with.

    The better summary, `choice`, tells all facts of the post. The other one has the `fault` that
    the record names: one fact is another one ("wrong fact", all other words the same), one fact is
    left out ("missing fact"), or a stock phrase stands in front ("rambling").
    """
    rng, pairs = random.Random(seed), []
    for input_text in input_texts:
        facts, wording = read_post(input_text), rng.random()
        slots = tuple(slot for slot in SLOTS if getattr(facts, slot))
        left_out, false = rng.choice(slots), corrupt(facts, rng, 1, slots)
        rest = [slot for slot in slots if slot != left_out]
        good = state_facts(facts, random.Random(wording), slots)
        faulty = {
            "wrong fact": state_facts(false, random.Random(wording), slots),
            "missing fact": state_facts(facts, random.Random(wording), rest),
            "rambling": f"{capitalise(rng.choice(phrases.RAMBLINGS))}. {good}",
        }
        for fault, bad in faulty.items():
            choice = rng.randrange(2)
            first, second = (bad, good) if choice else (good, bad)
            candidates = {"candidate_0": first, "candidate_1": second, "choice": choice}
            pairs.append({"input_text": input_text, **candidates, "fault": fault})
    return pairs  # type: ignore[return-value]


# ---- documents for pretraining -------------------------------------------------------------

PRINCIPLES: dict[str, Callable[[dict[str, float]], float]] = {
    "Name who it is about.": lambda m: m["covered_relation"],
    "Name the problem.": lambda m: m["covered_problem"],
    "Say how long it has gone on.": lambda m: m["covered_duration"],
    "Say what was tried.": lambda m: m["covered_tried"],
    "Keep the question.": lambda m: m["covered_question"],
    "Do not make things up.": lambda m: -m["wrong"],
    "Be brief.": lambda m: -m["words"],
    "Do not ramble.": lambda m: -m["rambling"],
    "Finish the sentence.": lambda m: -m["unfinished"],
}


def write_comment(facts: Facts, rng: random.Random) -> str:
    """Write what a reader of the post answers; it repeats facts in the words of a summary."""
    words = {slot: getattr(facts, slot) for slot in SLOTS}
    chosen = rng.sample(phrases.COMMENTS, rng.randint(1, 3))
    return " ".join(capitalise(comment.format(**words)) for comment in chosen)


def write_title(facts: Facts, rng: random.Random) -> str:
    """Write a title for the post: person and problem, in some titles also the question."""
    title = f"My {facts.relation} {facts.problem}"
    return rng.choice([title, f"{title}, {facts.question}?"])


def principle_question(principle: str) -> Callable[[str, str, str], str]:
    """How to ask the base model which of two summaries follows a principle better.

    Returns a function of prompt, first and second summary, for `judges.language_model_judge`.
    """

    def question(prompt: str, first: str, second: str) -> str:
        post, first, second = find_post(prompt), first.strip(), second.strip()
        return f"[principle]: {principle} [post]: {post} [1]: {first} [2]: {second} [better]:"

    return question


def write_comparison(facts: Facts, post: str, rng: random.Random) -> str:
    """Write an AI labeller's prompt: two summaries, and which one follows a principle better."""
    principle, rule = rng.choice(list(PRINCIPLES.items()))
    while True:
        pair = [write_summary(facts, post, rng, POOR_MIX) for _ in range(2)]
        if rng.random() < 0.2:  # a summary that breaks off
            side = rng.randrange(2)
            words = pair[side].split()
            pair[side] = " ".join(words[: rng.randint(2, len(words) - 1)]) if words[2:] else "My"
        first, second = (rule(measure(facts, summary, post)) for summary in pair)
        if first != second:
            better = 1 if first > second else 2
            return f"{principle_question(principle)(post, *pair)} {better}"


def write_document(rng: random.Random, split: str = "train") -> str:
    """Write a pretraining document: a post, mostly with comments, a title or a poor summary."""
    facts = draw_facts(rng, split)
    post = write_post(facts, rng)
    draw = rng.random()
    if draw < 0.04:
        return write_comparison(facts, post, rng)
    if draw < 0.12:
        return post
    if draw < 0.30:
        instruction = rng.choice(INSTRUCTIONS) + " " if rng.random() < 0.25 else ""
        return instruction + as_input_text(post) + write_summary(facts, post, rng, POOR_MIX)
    sections = [f"[comment]: {write_comment(facts, rng)}" for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.4:
        sections.insert(rng.randrange(len(sections) + 1), f"[title]: {write_title(facts, rng)}")
    return " ".join([post, *sections])
