"""Data sets of other makers: `SHAPES` lists the columns that are known and how each maps to ours.

Demonstrations and prompts may have the columns of OpenOrca or Alpaca-OrcaChat, preferences those of
hh-rlhf; all may have our own, which are Vertex AI's. Reading is tolerant: a row that cannot be used
is dropped and counted by reason. What comes out can be written with `schemas.write_jsonl` and
trained on. `streams` reads data sets that are too large for memory through the same table.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlhf_helpers.jsonl import parse, read_lines
from rlhf_helpers.schemas import (
    DataError,
    Record,
    check_demonstration,
    check_preference,
    check_prompt,
    check_ranking,
    ranking_to_pairs,
)

ASSISTANT, HUMAN = "\n\nAssistant:", "\n\nHuman:"
CHECKS = {
    "demonstrations": check_demonstration,
    "preferences": check_preference,
    "prompts": check_prompt,
}
FIELDS = {  # those that every record of a kind has
    "demonstrations": ("input_text", "output_text"),
    "preferences": ("input_text", "candidate_0", "candidate_1", "choice"),
    "prompts": ("input_text",),
}


@dataclass
class Loaded:
    """The usable records of a source, and what became of its other rows."""

    records: list[Any] = field(default_factory=list)
    read: int = 0  # rows of the source; a ranking gives several pairs
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows not used
    notes: Counter[str] = field(default_factory=Counter)  # remark -> rows used all the same

    def __str__(self) -> str:
        counts = {"dropped": self.dropped, "kept though": self.notes}
        remarks = [f"{what} {n}: {why}" for what, c in counts.items() for why, n in c.most_common()]
        return "; ".join([f"{len(self.records)} records from {self.read} rows", *remarks])


def load_preferences(path: str | os.PathLike[str]) -> Loaded:
    """Read preferences from a JSONL file (also .gz) of any known shape.

    Raises DataError if the file cannot be read, or if not one row of it can be used.
    """
    loaded = convert(_rows(path), "preferences")
    if not loaded.records:
        raise DataError(f"{path}: no usable preference. {loaded}. See `rlhf_helpers.sources`.")
    return loaded


def _rows(path: str | os.PathLike[str]) -> Iterator[Record | None]:
    """Yield the JSON object of each line, or None for a line that is none."""
    for _, line in read_lines(path):
        try:
            yield parse(line)
        except DataError:
            yield None


def convert(rows: Iterable[Any], kind: str) -> Loaded:
    """Map rows of known shapes to `demonstrations`, `preferences` or `prompts`."""
    loaded = Loaded()
    for row in rows:
        loaded.read += 1
        try:
            records = _records(row, kind)
        except DataError as error:
            loaded.dropped[_reason(error)] += 1
            continue
        loaded.records += records
        if "chosen" in row and not records[0]["input_text"].endswith(ASSISTANT):
            loaded.notes["no turn of the assistant in common"] += 1
    return loaded


def _records(row: Any, kind: str) -> list[Record]:
    """Return the records that a row holds; raises DataError with the reason if it holds none."""
    if not isinstance(row, dict):
        raise DataError("not a JSON object")
    shape = find_shape(row, kind)
    if shape is None:
        raise DataError("fields of no known shape")
    records = shape.convert(row)
    for record in records:
        CHECKS[kind](record)
    return records


def _reason(error: DataError) -> str:
    """Return our own reasons as they are, and of a check's message the field that it names."""
    named = re.search(r"`(\w+)", str(error))
    return f"bad or missing `{named[1]}`" if named else str(error)


# ---- shapes --------------------------------------------------------------------------------


class Shape(NamedTuple):
    """The columns by which a row is recognised, and the function that maps it to our records."""

    columns: tuple[str, ...]
    convert: Callable[[Record], list[Record]]  # raises DataError with the reason
    optional: tuple[str, ...] = ()  # used where they are there


def find_shape(columns: Iterable[str], kind: str) -> Shape | None:
    """Return the first shape of this kind whose columns are all among `columns`."""
    found = set(columns)
    return next((shape for shape in SHAPES[kind] if found.issuperset(shape.columns)), None)


def _ours(row: Record) -> list[Record]:
    return [row]


def _our_preference(row: Record) -> list[Record]:
    answers = [row["candidate_0"], row.get("candidate_1")]
    if all(isinstance(answer, str) for answer in answers):
        _compare(*answers)
    return [row]


def _compare(first: str, second: str) -> None:
    """Raise DataError, with its reason in short, for answers that cannot be compared."""
    if not first.strip() or not second.strip():
        raise DataError("an empty answer")
    if first.strip() == second.strip():
        raise DataError("equal answers")


def _our_ranking(row: Record) -> list[Record]:
    check_ranking(row)
    if pairs := ranking_to_pairs(row):  # type: ignore[arg-type]
        return pairs  # type: ignore[return-value]
    raise DataError("a ranking that prefers nothing")


def _dialogues(row: Record) -> list[Record]:
    """hh-rlhf: two whole dialogues; the prompt is what they share, up to `Assistant:`.

    A few pairs share no turn of the assistant. Their prompt ends at the last `Human:` that they
    share, so that they are not lost, and they are noted. Which candidate is the better one depends
    on the parity of its length, so that `choice` is not always 0.
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
    _compare(*answers)
    choice = len(answers[0]) % 2
    others = {key: value for key, value in row.items() if key not in ("chosen", "rejected")}
    return [
        others
        | {"input_text": prompt, "candidate_0": answers[choice], "candidate_1": answers[1 - choice]}
        | {"choice": choice}
    ]


def shared_prompt(chosen: str, rejected: str) -> str:
    """Return what two dialogues share, up to the last `Assistant:`, else the last `Human:`."""
    common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - characters are meant
    for marker in (ASSISTANT, HUMAN):
        if marker in common:
            return common[: common.rindex(marker) + len(marker)]
    return ""


def _open_orca(row: Record) -> list[Record]:
    return [_question(row["question"], row.get("system_prompt"), row.get("response"))]


def _alpaca(row: Record) -> list[Record]:
    """Alpaca-OrcaChat: with an `input`, the `instruction` is a system prompt, else the question."""
    question, system = row["instruction"], None
    if row.get("input"):
        question, system = row["input"], row["instruction"]
    return [_question(question, system, row.get("output"))]


def _question(question: Any, system: Any, answer: Any) -> Record:
    """Return a record whose prompt follows the template `System: … Question: … Answer:`."""
    if not isinstance(question, str) or not question.strip():
        raise DataError("an empty question")
    given = isinstance(system, str) and system.strip()
    beginning = f"System: {given}\n\n" if given else ""
    prompt = f"{beginning}Question: {question.strip()}\n\nAnswer:"
    return {"input_text": prompt} | ({} if answer is None else {"output_text": answer})


SHAPES = {
    "demonstrations": (
        Shape(("input_text", "output_text"), _ours),
        Shape(("question", "response"), _open_orca, optional=("system_prompt",)),
        Shape(("instruction", "output"), _alpaca, optional=("input",)),
    ),
    "preferences": (
        Shape(FIELDS["preferences"], _our_preference),
        Shape(("candidates", "ranking"), _our_ranking),
        Shape(("chosen", "rejected"), _dialogues),
    ),
    "prompts": (
        Shape(("input_text",), _ours),
        Shape(("question",), _open_orca, optional=("system_prompt",)),
        Shape(("instruction",), _alpaca, optional=("input",)),
    ),
}
