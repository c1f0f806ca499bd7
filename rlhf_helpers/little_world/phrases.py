"""The words of the little world: every fact in several phrasings, and what surrounds the facts.

They stand in `phrases.toml` beside this module. A key belongs to one value only and occurs in each
of its phrasings, so that the facts of a text can be found by looking for keys (a test holds this
for the whole table).
"""

import tomllib
from importlib.resources import files
from typing import Any, NamedTuple


class Value(NamedTuple):
    """One value of a fact."""

    short: str  # the wording in a summary
    phrasings: tuple[str, ...]  # the wordings in a post
    keys: tuple[str, ...]  # the words that give the value away in any text


def _named(names: list[str]) -> Value:
    """A value that is recognised by its names themselves; a summary uses the first one."""
    return Value(names[0], tuple(names), tuple(names))


def _value(entry: dict[str, Any]) -> Value:
    return Value(entry["short"], tuple(entry["phrasings"]), tuple(entry["keys"]))


_WORDS = tomllib.loads(files(__package__).joinpath("phrases.toml").read_text(encoding="utf-8"))

# Facts. People and problems are listed by topic.
RELATIONS = {topic: list(map(_named, names)) for topic, names in _WORDS["relations"].items()}
PROBLEMS = {topic: list(map(_value, entries)) for topic, entries in _WORDS["problems"].items()}
DURATIONS = list(map(_named, _WORDS["durations"]))
TRIED = list(map(_value, _WORDS["tried"]))
QUESTIONS = list(map(_value, _WORDS["questions"]))

# The sentences of a post, with gaps for the facts; fillers and tones tell no fact.
OPENERS: list[str] = _WORDS["openers"]
PROBLEM_SENTENCES: list[str] = _WORDS["problem_sentences"]
TRIED_SENTENCES: list[str] = _WORDS["tried_sentences"]
FILLERS: list[str] = _WORDS["fillers"]
TONES: dict[str, list[str]] = _WORDS["tones"]  # by voice: plain, gentle, angry
CUES: dict[str, list[str]] = _WORDS["cues"]  # by slot: the writer cares about this one most

# Completions: how each voice comes back to the beginning, and the words that count as unkind.
RECALLS: dict[str, list[str]] = _WORDS["recalls"]
UNKIND: list[str] = _WORDS["unkind"]

# Summaries and comments.
STOCK: dict[str, str] = _WORDS["stock"]  # by slot: what people say who have not read on
VAGUE_PROBLEMS: list[str] = _WORDS["vague_problems"]
RAMBLINGS: list[str] = _WORDS["ramblings"]
COMMENTS: list[str] = _WORDS["comments"]
