"""Completions of posts: good ones, which keep the writer's voice, and five kinds of bad ones.

`write_completion` draws one of the six kinds. `DEMONSTRATION_MIX` has a systematic fault on
purpose: many completions are angry, whatever the writer's voice, and some break off or leave the
post's subject. So a model that imitates the demonstrations well can still be improved by
preferences.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain, product

from rlhf_helpers.little_world import phrases
from rlhf_helpers.little_world.grammar import (
    GIVEN_SLOTS,
    Facts,
    capitalise,
    corrupt,
    draw_facts,
)

DEMONSTRATION_MIX = {  # kind -> probability
    "faithful": 0.20,
    "heated": 0.36,
    "drifting": 0.16,
    "contradicting": 0.08,
    "off_topic": 0.02,
    "broken_off": 0.18,
}


def voice_of(post: str) -> str:
    """Return the voice in which a post's beginning is written: plain, gentle or angry."""
    return next((v for v, tone in phrases.TONES.items() if any(s in post for s in tone)), "plain")


def _recall(facts: Facts, voice: str, rng: random.Random) -> str:
    return rng.choice(phrases.RECALLS[voice]).format(**asdict(facts))


def _tried(rng: random.Random) -> str:
    tried = rng.choice(rng.choice(phrases.TRIED).phrasings)
    return capitalise(rng.choice(phrases.TRIED_SENTENCES).format(tried=tried))


def _question(rng: random.Random) -> str:
    return rng.choice(rng.choice(phrases.QUESTIONS).phrasings) + "?"


def _some(rng: random.Random, *likely: tuple[float, str]) -> str:
    """Keep each sentence with its own probability, and join those that are kept."""
    return " ".join(sentence for chance, sentence in likely if rng.random() < chance)


def _faithful(facts: Facts, post: str, rng: random.Random) -> str:
    recall = _recall(facts, voice_of(post), rng)
    return _some(rng, (1, recall), (0.6, _tried(rng)), (0.8, _question(rng)))


def _heated(facts: Facts, post: str, rng: random.Random) -> str:
    one, two = rng.sample(phrases.TONES["angry"], 2)
    recall = _recall(facts, "angry", rng)
    return _some(
        rng, (0.9, recall), (1, one), (0.4, _tried(rng)), (0.3, two), (0.4, _question(rng))
    )


def _drifting(facts: Facts, post: str, rng: random.Random) -> str:
    one, two, three = rng.sample(phrases.FILLERS, 3)
    return _some(rng, (1, one), (0.4, _tried(rng)), (1, two), (0.4, three), (0.5, _question(rng)))


def _contradicting(facts: Facts, post: str, rng: random.Random) -> str:
    return _faithful(corrupt(facts, rng, rng.choice([1, 1, 2]), GIVEN_SLOTS), post, rng)


def _off_topic(facts: Facts, post: str, rng: random.Random) -> str:
    return _faithful(draw_facts(rng), post, rng)


def _broken_off(facts: Facts, post: str, rng: random.Random) -> str:
    words = rng.choice([_faithful, _heated, _drifting])(facts, post, rng).split()
    return " ".join(words[: rng.randint(3, max(3, len(words) - 1))]).rstrip(".?")


KINDS: dict[str, Callable[[Facts, str, random.Random], str]] = {
    "faithful": _faithful,
    "heated": _heated,
    "drifting": _drifting,
    "contradicting": _contradicting,
    "off_topic": _off_topic,
    "broken_off": _broken_off,
}


def write_completion(facts: Facts, post: str, rng: random.Random) -> str:
    """Write how a post could go on after its beginning; the mix decides the kind."""
    (kind,) = rng.choices(list(DEMONSTRATION_MIX), list(DEMONSTRATION_MIX.values()))
    return KINDS[kind](facts, post, rng)


def differ_in_truth(facts: Facts, post: str, rng: random.Random, count: int = 4) -> list[str]:
    """Write completions alike in every word, but with 0, 1, 1 and 2 of the given facts wrong."""
    seed, told = rng.random(), GIVEN_SLOTS[:2]  # who and what, to which every completion comes back
    wrong = [corrupt(facts, rng, n, told) if n else facts for n in [0, 1, 1, 2][:count]]
    texts = [_faithful(facts, post, random.Random(seed)) for facts in wrong]
    rng.shuffle(texts)
    return texts


def sentences() -> Iterator[str]:
    """Yield sentences that together hold every word pair which a completion's sentence can hold."""
    yield from phrases.FILLERS
    for tone in phrases.TONES.values():
        yield from tone
    for template, value in product(phrases.TRIED_SENTENCES, phrases.TRIED):
        yield from (template.format(tried=tried) for tried in value.phrasings)
    for value in phrases.QUESTIONS:
        yield from (f"{question}?" for question in value.phrasings)
    durations = [value.short for value in phrases.DURATIONS]
    for topic in phrases.PROBLEMS:
        names = [value.short for value in phrases.RELATIONS[topic]]
        problems = [value.short for value in phrases.PROBLEMS[topic]]
        # The words next to a duration are fixed, so each duration needs only one relation and
        # one problem beside it.
        wordings = [
            *product(names, problems, durations[:1]),
            *product(names[:1], problems[:1], durations),
        ]
        for recall in ("My {relation} {problem}.", *chain(*phrases.RECALLS.values())):
            yield from (recall.format(relation=r, problem=p, duration=d) for r, p, d in wordings)
