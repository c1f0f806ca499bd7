"""The documents on which the base model is pretrained: posts, and what others made of them.

A document is a post with a summary of `writers.POOR_MIX`, with comments, with a title, or with
*verdicts*: the post's writer goes through facts that somebody has read in it, and says whether each
is wrong, right, or exactly what matters. So before anybody states a preference, the base model has
learnt to tell a true fact from a false one, and which fact a post's writer cares about.
"""

import random
from collections.abc import Callable

from rlhf_helpers.little_world import phrases
from rlhf_helpers.little_world.annotators import measure
from rlhf_helpers.little_world.grammar import (
    SLOTS,
    Facts,
    as_input_text,
    capitalise,
    corrupt,
    draw_facts,
    find_facts,
    find_post,
    write_post,
)
from rlhf_helpers.little_world.writers import (
    CHANGEABLE,
    POOR_MIX,
    Told,
    one_more,
    tell,
    write_summary,
)

SUMMARIES = 0.75  # share of the documents that hold a summary, are bare posts or comparisons
COPYING_SUMMARIES = 0.3  # the same share in the first part of the corpus, which teaches copying
INSTRUCTIONS = ("Summarize in less than 50 words.", "Summarize in less than 20 words.")

PRINCIPLES: dict[str, Callable[[dict[str, float]], float]] = {
    "Name who it is about.": lambda m: m["covered_relation"],
    "Name the problem.": lambda m: m["covered_problem"],
    "Say how long it has gone on.": lambda m: m["covered_duration"],
    "Say what was tried.": lambda m: m["covered_tried"],
    "Keep the question.": lambda m: m["covered_question"],
    "Come to the point.": lambda m: m["point"],
    "Do not make things up.": lambda m: -m["wrong"],
    "Be brief.": lambda m: -m["words"],
    "Do not ramble.": lambda m: -m["rambling"],
    "Finish the sentence.": lambda m: -m["unfinished"],
}


def verdict(facts: Facts, slot: str, value: str) -> str:
    """Return what the writer of the post says about one fact that a summary tells."""
    if value != getattr(facts, slot):
        return "wrong"
    return "exactly" if slot == facts.point else "right"


def write_quiz(facts: Facts, rng: random.Random) -> str:
    """Write facts that somebody may have read in the post, each with the writer's verdict."""
    asked = {}
    for slot in rng.sample([*SLOTS, *SLOTS, *CHANGEABLE], rng.randint(6, 11)):
        claimed = getattr(facts if rng.random() < 0.5 else corrupt(facts, rng, 1, (slot,)), slot)
        asked[claimed] = verdict(facts, slot, claimed)
    return "[quiz]: " + ", ".join(f"{value} {said}" for value, said in asked.items()) + "."


def _claims(facts: Facts, rng: random.Random) -> tuple[Facts, Told]:
    """Return facts that are wrong about as often as right, and a summary that tells them."""
    more = [one_more(facts, rng)] if rng.random() < 0.6 else rng.sample(CHANGEABLE, 2)
    slots = ("relation", "problem", *more)
    claimed = corrupt(facts, rng, rng.randint(0, len(slots)), slots)
    return claimed, tell(claimed, rng, slots)


def write_correction(facts: Facts, rng: random.Random) -> str:
    """Write a summary with the verdict of the post's writer behind each fact."""
    claimed, told = _claims(facts, rng)
    comments = [
        words + (f" ({verdict(facts, slot, getattr(claimed, slot))})" if slot else "")
        for slot, words in told
    ]
    return "[OP]: " + "".join(comments)


def write_answer(facts: Facts, summary: str) -> str:
    """Write what the post's writer says about each fact of a summary, and about their choice."""
    found = find_facts(summary)
    said = [verdict(facts, slot, value) for slot in SLOTS for value in sorted(found[slot])]
    end = "You got the point." if "exactly" in said else "You missed the point."
    return f"[OP]: {capitalise(', '.join([*said, 'okay']))}. {end}"


def write_comment(facts: Facts, rng: random.Random) -> str:
    """Write what a reader of the post answers; it repeats facts in the words of a summary."""
    words = {slot: getattr(facts, slot) for slot in SLOTS}
    chosen = rng.sample(phrases.COMMENTS, rng.randint(1, 3))
    return "[comment]: " + " ".join(capitalise(comment.format(**words)) for comment in chosen)


def write_title(facts: Facts, rng: random.Random) -> str:
    """Write a title for the post: person and problem, in some titles also the question."""
    title = f"My {facts.relation} {facts.problem}"
    return "[title]: " + rng.choice([title, f"{title}, {facts.question}?"])


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


def write_document(rng: random.Random, split: str = "train", summaries: float = SUMMARIES) -> str:
    """Write a pretraining document: a post, and what others or its writer have said about it."""
    facts = draw_facts(rng, split)
    post = write_post(facts, rng)
    draw = rng.random()
    if draw < 0.04:
        return write_comparison(facts, post, rng)
    if draw < 0.07:
        return post
    if draw < summaries:
        instruction = rng.choice(INSTRUCTIONS) + " " if rng.random() < 0.15 else ""
        summary = write_summary(facts, post, rng, POOR_MIX)
        answer = f" {write_answer(facts, summary)}" if rng.random() < 0.3 else ""
        return instruction + as_input_text(post) + summary + answer
    sections = [write_comment(facts, rng), rng.choice([write_comment, write_title])(facts, rng)]
    if rng.random() < 0.5:
        sections[0] = rng.choice([write_quiz, write_correction])(facts, rng)
    rng.shuffle(sections)
    return " ".join([post, *sections])
