"""Data sets of other makers as our records, by the columns that `shapes` lists.

`read_file` reads a JSONL file for a stage. A file with our columns, which are Vertex AI's, is read
strictly. One with other known columns is read tolerantly: a row that cannot be used is dropped and
counted by reason. What comes out can be written with `schemas.write_jsonl`. `streams` reads data
sets that are too large for memory in the same way.
"""

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rlhf_helpers import schemas
from rlhf_helpers.jsonl import DataError, Record, StrPath, parse, read_lines
from rlhf_helpers.sources.conversations import ASSISTANT
from rlhf_helpers.sources.shapes import HELPSTEER, SHAPES, find_shape

logger = logging.getLogger(__name__)

READERS: dict[str, Callable[[StrPath], list]] = {  # strict ones
    "demonstrations": schemas.read_demonstrations,
    "preferences": schemas.read_comparisons,
    "prompts": schemas.read_prompts,
    "thumbs": schemas.read_thumbs,
}
CHECKS = {
    "demonstrations": schemas.check_demonstration,
    "preferences": schemas.check_preference,
    "prompts": schemas.check_prompt,
    "thumbs": schemas.check_thumb,
}
FIELDS = {  # those that every record of a kind has
    "demonstrations": ("input_text", "output_text"),
    "preferences": ("input_text", "candidate_0", "candidate_1", "choice"),
    "prompts": ("input_text",),
    "thumbs": ("input_text", "output_text", "label"),
}
OURS = {"input_text", "output_text", "candidate_0", "candidate_1", "candidates"}
OPTIONAL = {"annotator", "margin"}  # with a meaning of ours, which another maker's may not have


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


def read_file(path: StrPath, kind: str) -> list[Any]:
    """Read a JSONL file (also .gz); `kind` is demonstrations, preferences, prompts or thumbs.

    The first row decides: with a field of ours, the whole file is read strictly; with the columns
    of another maker it is read by `load`. Raises DataError for unknown columns, with those that
    are known.
    """
    first = next(_rows(path), None)
    if not first or OURS & set(first):  # no object, or an empty one, is for the strict reader
        return READERS[kind](path)
    if find_shape(first, kind) is None:
        raise unknown_columns(path, kind, first)
    loaded = load(path, kind)
    logger.log(logging.WARNING if loaded.dropped else logging.INFO, "%s: %s", path, loaded)
    return loaded.records


def load(path: StrPath, kind: str) -> Loaded:
    """Read the usable rows of a JSONL file (also .gz) whose columns `SHAPES` lists.

    Raises DataError if the file cannot be read, or if not one row of it can be used.
    """
    loaded = convert(_rows(path), kind)
    if not loaded.records:
        raise DataError(f"{path}: no usable {kind}. {loaded}. {known_columns(kind)}")
    return loaded


def load_preferences(path: StrPath) -> Loaded:
    """Read preferences with `load`."""
    return load(path, "preferences")


def _rows(path: StrPath) -> Iterator[Record | None]:
    """Yield the JSON object of each line, or None for a line that is none."""
    for _, line in read_lines(path):
        try:
            yield parse(line)
        except DataError:
            yield None


def unknown_columns(data: StrPath, kind: str, found: Iterable[str]) -> DataError:
    """Return the error for a data set without columns that this kind can be made of."""
    columns = ", ".join(found) or "none"
    return DataError(f"{data}: no columns for {kind}. Found: {columns}. {known_columns(kind)}")


def known_columns(kind: str) -> str:
    """Return the sentence of an error message that lists the columns known for a kind."""
    known = "; ".join(f"{', '.join(shape.columns)} ({shape.name})" for shape in SHAPES[kind])
    return f"Known: {known}. Rename the columns, or write a file with ours."


def convert(rows: Iterable[Any], kind: str) -> Loaded:
    """Map rows of known shapes to records of a kind."""
    loaded = Loaded()
    for row, count in _joined(rows, kind):
        loaded.read += count
        try:
            records = _records(row, kind)
        except DataError as error:
            loaded.dropped[_reason(error)] += count
            continue
        loaded.records += records
        text = isinstance(row.get("chosen"), str) and "prompt" not in row and "question" not in row
        if text and kind == "preferences" and not records[0]["input_text"].endswith(ASSISTANT):
            loaded.notes["no turn of the assistant in common"] += 1
    return loaded


def _joined(rows: Iterable[Any], kind: str) -> Iterator[tuple[Any, int]]:
    """Yield rows with the number of source rows: HelpSteer's answers to one prompt are one row."""

    def key(numbered: tuple[int, Any]) -> Any:
        number, row = numbered
        scored = kind == "preferences" and isinstance(row, dict) and set(HELPSTEER) <= set(row)
        return ("prompt", row["prompt"]) if scored else ("row", number)

    for (what, _), group in itertools.groupby(enumerate(rows), key):
        answers = [row for _, row in group]
        yield (answers[0] | {"answers": answers} if what == "prompt" else answers[0]), len(answers)


def _records(row: Any, kind: str) -> list[Record]:
    """Return the records that a row holds; raises DataError with the reason if it holds none."""
    if not isinstance(row, dict):
        raise DataError("not a JSON object")
    shape = find_shape(row, kind)
    if shape is None:
        raise DataError("fields of no known shape")
    used = {*shape.columns, *shape.optional, "answers", *OPTIONAL}
    others = {name: value for name, value in row.items() if name not in used}
    records = [others | record for record in shape.convert(row)]
    for record in records:
        CHECKS[kind](record)
    return records


def _reason(error: DataError) -> str:
    """Return our own reasons as they are, and of a check's message the field that it names."""
    named = re.search(r"`(\w+)", str(error))
    return f"bad or missing `{named[1]}`" if named else str(error)
