"""Preferences of other makers, mapped to our records; and rankings turned into pairs or scores.

Three schemas are known by their fields: Vertex AI's (`candidate_0`, `candidate_1`, `choice`, which
is ours too), hh-rlhf's whole dialogues (`chosen`, `rejected`), and rankings (`candidates`,
`ranking`). Other people's files are read tolerantly: a record that cannot be used is dropped, and
counted by reason. What comes out can be written with `schemas.write_jsonl` and trained on.
"""

import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_helpers.schemas import (
    DataError,
    Preference,
    Record,
    check_preference,
    check_ranking,
    ranking_to_pairs,
)

ASSISTANT, HUMAN = "\n\nAssistant:", "\n\nHuman:"


@dataclass
class Loaded:
    """Preferences from elsewhere, and what became of the rest."""

    records: list[Preference] = field(default_factory=list)
    read: int = 0  # records of the source; a ranking gives several pairs
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> records not used
    notes: Counter[str] = field(default_factory=Counter)  # remark -> records used all the same

    def __str__(self) -> str:
        counts = {"dropped": self.dropped, "kept though": self.notes}
        remarks = [f"{what} {n}: {why}" for what, c in counts.items() for why, n in c.most_common()]
        return "; ".join([f"{len(self.records)} pairs from {self.read} records", *remarks])


def load_preferences(path: str | os.PathLike[str]) -> Loaded:
    """Read a JSONL file (also .gz) of any known schema.

    Raises DataError if the file cannot be read, or if not one record of it can be used.
    """
    loaded = to_preferences(_lines(Path(path)))
    if not loaded.records:
        raise DataError(f"{path}: no usable preference. {loaded}. See `rlhf_helpers.sources`.")
    return loaded


def to_preferences(rows: Iterable[Any]) -> Loaded:
    """Map records of any known schema, e.g. the rows of a data set of the hub."""
    loaded = Loaded()
    for row in rows:
        loaded.read += 1
        try:
            pairs = _pairs(row)
            for pair in pairs:
                check_preference(dict(pair))
        except DataError as error:
            loaded.dropped[reason(error)] += 1
        else:
            loaded.records += pairs
            if "chosen" in row and not pairs[0]["input_text"].endswith(ASSISTANT):
                loaded.notes["no turn of the assistant in common"] += 1
    return loaded


def _pairs(row: Any) -> list[Preference]:
    """The preferences that one record states; raises DataError, with the reason, if none."""
    if not isinstance(row, dict):
        raise DataError("not a JSON object")
    if "candidates" in row:
        check_ranking(row)
        if pairs := ranking_to_pairs(row):  # type: ignore[arg-type]
            return pairs
        raise DataError("a ranking that prefers nothing")
    if {"chosen", "rejected"} <= set(row):
        row = _from_dialogues(row)
    elif "candidate_0" not in row:
        raise DataError("fields of no known schema")
    answers = [row.get("candidate_0"), row.get("candidate_1")]
    if any(isinstance(answer, str) and not answer.strip() for answer in answers):
        raise DataError("an empty answer")
    if all(isinstance(a, str) for a in answers) and answers[0].strip() == answers[1].strip():
        raise DataError("equal answers")
    return [row]


def _from_dialogues(row: Record) -> Record:
    """hh-rlhf: two whole dialogues; the prompt is what they share, up to `Assistant:`.

    A few pairs share no turn of the assistant. Their prompt ends at the last `Human:` that they
    share, so that they are not lost, and they are noted. Which candidate is the better one goes by
    the parity of its length, so that `choice` is not always 0.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise DataError("a dialogue that is no text")
    if chosen.strip() == rejected.strip():
        raise DataError("equal answers")
    prompt = shared_prompt(chosen, rejected)
    if not prompt.strip():
        raise DataError("no common beginning")
    answers = [text[len(prompt) :].strip() for text in (chosen, rejected)]
    choice = len(answers[0]) % 2
    others = {key: value for key, value in row.items() if key not in ("chosen", "rejected")}
    return {
        **others,
        "input_text": prompt,
        "candidate_0": answers[choice],
        "candidate_1": answers[1 - choice],
        "choice": choice,
    }


def shared_prompt(chosen: str, rejected: str) -> str:
    """What two dialogues share, cut after its last `Assistant:`, or else its last `Human:`."""
    common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - characters are meant
    for marker in (ASSISTANT, HUMAN):
        if marker in common:
            return common[: common.rindex(marker) + len(marker)]
    return ""


def _lines(path: Path) -> Iterator[Any]:
    """The JSON values of a file, one a line; None for a line that is none, or not UTF-8."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Check the path.") from None
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if line.strip():
            try:
                value = json.loads(line.decode("utf-8"))
                json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
                yield value
            except (ValueError, RecursionError):
                yield None


def reason(error: DataError) -> str:
    """A short reason: ours as it is, a check's message cut down to the field that it names."""
    named = re.search(r"`(\w+)", str(error))
    return f"bad or missing `{named[1]}`" if named else str(error)


def rankings_to_preferences(rankings: Iterable[Record]) -> list[Preference]:
    """All pairs of all rankings, one by one."""
    return [pair for ranking in rankings for pair in ranking_to_pairs(ranking)]  # type: ignore[arg-type]


def rank_scores(ranking: Sequence[int | Sequence[int]]) -> list[float]:
    """Ranks as scores, in the order of the candidates: 1 for the best, 0 for the last.

    In between they are evenly spaced, and tied candidates share the mean of their places.
    """
    groups = [group if isinstance(group, Sequence) else [group] for group in ranking]
    count, above = sum(map(len, groups)), 0
    scores: dict[int, float] = {}
    for group in groups:
        place = above + (len(group) - 1) / 2
        scores |= {candidate: 1 - place / max(1, count - 1) for candidate in group}
        above += len(group)
    return [scores[candidate] for candidate in range(count)]


def standardise_by_annotator(scores: Sequence[float], annotators: Sequence[str]) -> list[float]:
    """Scores with mean 0 and deviation 1 for every annotator, since some are milder than others.

    An annotator who gives one score to everything has said nothing: 0 throughout.
    """
    groups = pd.Series(scores, dtype=float).groupby(list(annotators))
    deviation = groups.transform("std", ddof=0)
    centred = pd.Series(scores, dtype=float) - groups.transform("mean")
    return centred.div(deviation.where(deviation > 1e-12, 1.0)).tolist()
