"""Facts, the posts that tell them, and the search for the facts that a text tells.

A post consists of a few sentences that tell five facts. Since every phrasing holds a key word of
its value (see `phrases`), `find_facts` finds the facts of any text, a post or a summary. So an
annotator knows what a summary leaves out or gets wrong.
"""

import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from functools import cache

from rlhf_helpers.little_world import phrases
from rlhf_helpers.little_world.phrases import Value

SLOTS = ("relation", "problem", "duration", "tried", "question")
GIVEN_SLOTS = SLOTS[:3]  # what the beginning of a post tells
SUMMARY_MARK = "[summary]:"
CONTINUED_MARK = "[continued]:"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Facts:
    """What one post is about: the topic, and for each slot the short wording of its value.

    `point` is the slot that matters most to the post's writer, who says so (see `phrases.CUES`).
    In the facts of a post's beginning, `tried`, `question` and `point` are empty: a completion may
    choose them freely.
    """

    topic: str
    relation: str
    problem: str
    duration: str
    tried: str
    question: str
    point: str = ""


@cache
def values(slot: str) -> dict[str, Value]:
    """Return every value of a slot, over all topics, by its short wording."""
    tables = {
        "relation": [v for topic in phrases.RELATIONS.values() for v in topic],
        "problem": [v for topic in phrases.PROBLEMS.values() for v in topic],
        "duration": phrases.DURATIONS,
        "tried": phrases.TRIED,
        "question": phrases.QUESTIONS,
    }
    return {value.short: value for value in tables[slot]}


@cache
def _keys(slot: str) -> tuple[re.Pattern[str], dict[str, str]]:
    """Return a pattern that finds the slot's keys (longest first), and each key's value."""
    owner = {key: short for short, value in values(slot).items() for key in value.keys}
    by_length = sorted(owner, key=len, reverse=True)
    return re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, by_length)) + r")(?![\w-])"), owner


def find_facts(text: str) -> dict[str, set[str]]:
    """Return, for each slot, the short wordings of all values whose key occurs in the text."""
    lowered = text.lower()
    found = {}
    for slot in SLOTS:
        pattern, owner = _keys(slot)
        found[slot] = {owner[key] for key in pattern.findall(lowered)}
    return found


def find_points(post: str) -> list[str]:
    """Return the slots that the post's writer says matter most: one in a whole post."""
    return [slot for slot, cues in phrases.CUES.items() if any(cue in post for cue in cues)]


def find_post(text: str) -> str:
    """Return the post in a text, `r/topic: ...`, without the text before and after it.

    Raises ValueError if the text holds no post.
    """
    match = re.search(r"r/\w+: .*?(?= ?\[\w+\]:|$)", text, re.DOTALL)
    if not match:
        raise ValueError(f"no post of the little world, so its facts are unknown: {text[:80]!r}")
    return match[0]


def read_post(text: str) -> Facts:
    """Return the facts of the post, or of the post's beginning, that the text holds.

    Raises ValueError unless the post tells exactly one value for each slot and says which one
    matters most; a beginning must tell one value for each of GIVEN_SLOTS and nothing else.
    """
    post = find_post(text)
    found = find_facts(post)
    told, points = tuple(slot for slot in SLOTS if found[slot]), find_points(post)
    shapes = ((SLOTS, 1), (GIVEN_SLOTS, 0))
    if (told, len(points)) not in shapes or any(len(found[slot]) != 1 for slot in told):
        raise ValueError(f"not a post of the little world, so its facts are unknown: {post[:80]!r}")
    topic = post[2 : post.index(":")]
    point = "".join(points)
    return Facts(topic, **{slot: next(iter(found[slot]), "") for slot in SLOTS}, point=point)


def split_of(facts: Facts) -> str:
    """Return the split of a combination of facts: 80% train, 10% validation, 10% test."""
    bucket = zlib.crc32("|".join(astuple(facts)).encode()) % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def draw_facts(rng: random.Random, split: str | None = None) -> Facts:
    """Draw facts uniformly; with `split`, only from the combinations of that split."""
    while True:
        topic = rng.choice(list(phrases.RELATIONS))
        facts = Facts(
            topic,
            rng.choice(phrases.RELATIONS[topic]).short,
            rng.choice(phrases.PROBLEMS[topic]).short,
            rng.choice(phrases.DURATIONS).short,
            rng.choice(phrases.TRIED).short,
            rng.choice(phrases.QUESTIONS).short,
            rng.choice(list(phrases.CUES)),
        )
        if split is None or split_of(facts) == split:
            return facts


def corrupt(facts: Facts, rng: random.Random, count: int, slots: tuple[str, ...] = SLOTS) -> Facts:
    """Return the facts with `count` of the slots changed to other plausible values."""
    changed = {slot: getattr(facts, slot) for slot in SLOTS}
    for slot in rng.sample(slots, count):
        while changed[slot] == getattr(facts, slot):
            other = draw_facts(rng)
            if other.topic == facts.topic or slot not in ("relation", "problem"):
                changed[slot] = getattr(other, slot)
    return replace(facts, **changed)


def capitalise(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def write_post(facts: Facts, rng: random.Random) -> str:
    """Write a post that tells the facts, `r/topic: ...`, of about 60 words."""
    wording = {
        slot: rng.choice(values(slot)[getattr(facts, slot)].phrasings)
        for slot in ("problem", "duration", "tried", "question")
    }
    sentences = _first_sentences(facts, wording, rng)
    sentences.append(rng.choice(phrases.TRIED_SENTENCES).format(**wording))
    asides = rng.sample(phrases.FILLERS, rng.choice([0, 0, 1]))
    tone = phrases.TONES[rng.choice(list(phrases.TONES))]
    asides += rng.sample(tone, min(len(tone), rng.choice([0, 0, 1])))
    for aside in asides:
        sentences.insert(rng.randint(1, len(sentences)), aside)
    sentences += [rng.choice(phrases.CUES[facts.point]), wording["question"] + "?"]
    return f"r/{facts.topic}: " + " ".join(capitalise(sentence) for sentence in sentences)


def write_beginning(facts: Facts, rng: random.Random) -> str:
    """Write a post's beginning of about 35 words in one of three voices: GIVEN_SLOTS only."""
    wording = {
        slot: rng.choice(values(slot)[getattr(facts, slot)].phrasings)
        for slot in ("problem", "duration")
    }
    sentences = _first_sentences(facts, wording, rng)
    tone = phrases.TONES[rng.choice(list(phrases.TONES))]
    sentences.insert(rng.randint(1, 2), rng.choice(tone or phrases.FILLERS))
    return f"r/{facts.topic}: " + " ".join(capitalise(sentence) for sentence in sentences)


def _first_sentences(facts: Facts, wording: dict[str, str], rng: random.Random) -> list[str]:
    name = rng.choice(values("relation")[facts.relation].phrasings)
    who = f"{rng.randint(17, 59)}{rng.choice('FM')}"
    opener = rng.choice(phrases.OPENERS).format(who=who, relation=name)
    problem = rng.choice(phrases.PROBLEM_SENTENCES)
    return [opener, problem.format(relation=facts.relation, **wording)]


def draw_posts(rng: random.Random, split: str | None = None) -> Iterator[tuple[Facts, str]]:
    """Yield (facts, post) without end."""
    while True:
        facts = draw_facts(rng, split)
        yield facts, write_post(facts, rng)


def draw_beginnings(rng: random.Random, split: str | None = None) -> Iterator[tuple[Facts, str]]:
    """Yield (facts, beginning of a post) without end; the given facts decide the split."""
    while True:
        facts = replace(draw_facts(rng), tried="", question="", point="")
        if split in (None, split_of(facts)):
            yield facts, write_beginning(facts, rng)


def as_input_text(post: str) -> str:
    """Return the post with the mark of its task at the end, as an `input_text`.

    A post that ends in its question is to be summarised; a beginning is to be completed.
    """
    return f"{post} {SUMMARY_MARK if post.endswith('?') else CONTINUED_MARK} "
