"""The records of RLHF, how they are read and written, and how every prompt is formatted.

A data set is a JSONL file: one JSON object a line, UTF-8, with the field names of Vertex AI.
Records are plain dicts; fields not named here are kept. Reading is strict: the first bad record
raises one `DataError` that names file, line and remedy, before any training starts.
"""

import codecs
import json
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NotRequired, TypedDict

StrPath = str | os.PathLike[str]
Record = dict[str, Any]

RESTORE = (
    "The data sets shipped with the project are restored with `git checkout data` "
    "or regenerated with `python -m rlhf_helpers data`."
)


class DataError(ValueError):
    """A data set cannot be used; the message names file, line and remedy."""


class Preference(TypedDict):
    """Two answers to one prompt; `choice` is 0 or 1, the number of the better candidate.

    `margin` says how much better, if the annotator graded that: 0 for hardly, 1 for a lot.
    """

    input_text: str
    candidate_0: str
    candidate_1: str
    choice: int
    annotator: NotRequired[str]
    margin: NotRequired[float]


class Prompt(TypedDict):
    """A prompt without an answer."""

    input_text: str


class Demonstration(TypedDict):
    """A prompt and the answer to imitate."""

    input_text: str
    output_text: str


class Ranking(TypedDict):
    """K >= 2 answers to one prompt; `ranking` lists their indices, best first.

    A list inside is a tie: `[2, [0, 3], 1]` puts candidate 2 first, then 0 and 3 alike, then 1.
    """

    input_text: str
    candidates: list[str]
    ranking: list[int | list[int]]
    annotator: NotRequired[str]


class Prediction(TypedDict):
    """What a model answered, as Vertex AI's bulk inference writes it.

    `inputs` holds the prompt as `inputs_pretokenized`.
    """

    inputs: dict[str, str]
    prediction: str


class Document(TypedDict):
    """A text for pretraining."""

    text: str


def format_prompt(input_text: str, instruction: str = "") -> str:
    """Return the prompt as every stage feeds it to a model.

    The instruction, if there is one, goes in front. White space at the end is cut, because the
    blank in `[summary]: ` belongs to the response: only so are the tokens of the prompt a prefix
    of the tokens of `format_prompt(...) + format_response(...)`.
    """
    instruction = instruction.strip()
    prompt = f"{instruction} {input_text}" if instruction else input_text
    return prompt.rstrip()


def format_response(output_text: str) -> str:
    """Return the response as it follows a formatted prompt: one blank, then the text."""
    return " " + output_text.strip()


def candidate_texts(record: Preference, instruction: str = "") -> tuple[str, str]:
    """Prompt and candidate as one text, for both candidates."""
    prompt = format_prompt(record["input_text"], instruction)
    first, second = record["candidate_0"], record["candidate_1"]
    return prompt + format_response(first), prompt + format_response(second)


def read_preferences(path: StrPath) -> list[Preference]:
    """Read pairs of answers with the better one marked; raise `DataError` on a bad record."""
    return read_records(path, check_preference)


def read_prompts(path: StrPath) -> list[Prompt]:
    """Read prompts; raise `DataError` on a bad record."""
    return read_records(path, check_prompt)


def read_demonstrations(path: StrPath) -> list[Demonstration]:
    """Read prompts with the answers to imitate; raise `DataError` on a bad record."""
    return read_records(path, check_demonstration)


def read_rankings(path: StrPath) -> list[Ranking]:
    """Read prompts with K ranked answers; raise `DataError` on a bad record."""
    return read_records(path, check_ranking)


def read_predictions(path: StrPath) -> list[Prediction]:
    """Read prompts with a model's answers; raise `DataError` on a bad record."""
    return read_records(path, check_prediction)


def read_comparisons(path: StrPath) -> list[Preference] | list[Ranking]:
    """Read preferences or rankings: the first record's fields tell which, for the whole file."""
    kind: list[Callable[[Record], None]] = []

    def check(record: Record) -> None:
        kind.append(check_ranking if "candidates" in record else check_preference)
        kind[0](record)

    return read_records(path, check)


def read_texts(path: StrPath) -> list[Document]:
    """Read documents for pretraining; raise `DataError` on a bad record."""
    return read_records(path, check_document)


def write_jsonl(path: StrPath, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line; equal records in equal order give equal bytes.

    The file appears whole or not at all. Raises `ValueError` for what is not JSON or not UTF-8
    (NaN, lone surrogates), in which case an older file stays as it was.
    """
    path = Path(path)
    content = b"".join(encode(record) + b"\n" for record in records)
    # In the same folder, since a rename across file systems is not atomic.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def ranking_to_pairs(record: Ranking) -> list[Preference]:
    """Return the preferences that a ranking of K answers implies, at most K (K - 1) / 2.

    Pairs keep the order of the candidates, so that `choice` is not always 0. Tied candidates and
    candidates with equal texts give no pair. The record's other fields go into each pair.
    """
    place = {}
    for position, group in enumerate(record["ranking"]):
        for candidate in group if isinstance(group, list) else [group]:
            place[candidate] = position
    shared = {key: value for key, value in record.items() if key not in ("candidates", "ranking")}
    pairs: list[Any] = []
    for (i, first), (j, second) in combinations(enumerate(record["candidates"]), 2):
        if place[i] != place[j] and first.strip() != second.strip():
            choice = 0 if place[i] < place[j] else 1
            pairs.append({**shared, "candidate_0": first, "candidate_1": second, "choice": choice})
    return pairs


def check_preference(record: Record) -> None:
    """Raise `DataError` unless the record is a `Preference`."""
    _check_texts(record, "input_text", "candidate_0", "candidate_1")
    _check_annotator(record)
    margin = record.get("margin", 0.0)
    if type(margin) not in (int, float) or margin < 0:
        raise DataError(f"`margin` is {shown(margin)}. Write a number, 0 or more, or leave it out.")
    choice = required(record, "choice")
    # Not `choice in (0, 1)` alone: in Python, True == 1 == 1.0.
    if type(choice) is not int or choice not in (0, 1):
        raise DataError(
            f"`choice` is {shown(choice)}. Write 0 if candidate_0 is better, 1 if candidate_1 is."
        )
    if record["candidate_0"].strip() == record["candidate_1"].strip():
        raise DataError(
            "`candidate_0` and `candidate_1` are equal, so that there is nothing to prefer. "
            "Delete this line or give two different answers."
        )


def check_prompt(record: Record) -> None:
    """Raise `DataError` unless the record is a `Prompt`."""
    _check_texts(record, "input_text")


def check_demonstration(record: Record) -> None:
    """Raise `DataError` unless the record is a `Demonstration`."""
    _check_texts(record, "input_text", "output_text")


def check_ranking(record: Record) -> None:
    """Raise `DataError` unless the record is a `Ranking`."""
    _check_texts(record, "input_text")
    _check_annotator(record)
    candidates = required(record, "candidates")
    if not isinstance(candidates, list) or len(candidates) < 2:
        raise DataError(
            f"`candidates` is {shown(candidates)}. Write a list of at least two answers."
        )
    for index, candidate in enumerate(candidates):
        _check_text(f"candidates[{index}]", candidate)
    ranking = required(record, "ranking")
    groups = ranking if isinstance(ranking, list) else []
    groups = [group if isinstance(group, list) else [group] for group in groups]
    indices = [index for group in groups for index in group]
    if (
        not all(groups)
        or any(type(index) is not int for index in indices)
        or sorted(indices) != list(range(len(candidates)))
    ):
        raise DataError(
            f"`ranking` is {shown(ranking)}. Name each of 0 to {len(candidates) - 1} once, best "
            "first; a list inside is a tie, as in [2, [0, 3], 1]."
        )


def check_prediction(record: Record) -> None:
    """Raise `DataError` unless the record is a `Prediction`; a model may have answered nothing."""
    _check_text("prediction", required(record, "prediction"), may_be_empty=True)
    inputs = required(record, "inputs")
    prompt = inputs.get("inputs_pretokenized") if isinstance(inputs, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(
            f"`inputs` is {shown(inputs)}. Write an object that holds the prompt as text: "
            '{"inputs_pretokenized": …}.'
        )


def check_document(record: Record) -> None:
    """Raise `DataError` unless the record is a `Document`."""
    _check_texts(record, "text")


def read_records(path: StrPath, check: Callable[[Record], None]) -> list[Any]:
    """Read records; where `check` raises `DataError`, file and line are put in front of it."""
    records = []
    content = _read_bytes(path).removeprefix(codecs.BOM_UTF8)
    # Not str.splitlines, which also breaks at U+2028, U+2029 and U+0085 inside a text.
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = _parse(line)
            check(record)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        records.append(record)
    if not records:
        raise DataError(f"{path}, line 1: the file is empty, not even one record. {RESTORE}")
    return records


def _read_bytes(path: StrPath) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Check the path. {RESTORE}") from None
    except OSError as error:
        if os.path.isdir(path):
            raise DataError(f"{path}: a folder. Name one JSONL file in it.") from None
        raise DataError(
            f"{path}: cannot be read ({error.strerror}). Check the path and your right to read it."
        ) from None


def _parse(line: bytes) -> Record:
    """Return the JSON object in one line, made sure that it can be written again."""
    if line.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise DataError(
            "a web page (HTML) saved by mistake, not a data set. Download the file itself, by the "
            f"link that says `raw` or `download`. {RESTORE}"
        )
    try:
        record = json.loads(line.decode("utf-8"))
        encode(record)
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 (byte {error.start + 1} of the line). Save the file as UTF-8."
    except UnicodeEncodeError:
        problem = (
            "half of a surrogate pair (\\ud800 to \\udfff), which no tokenizer takes. Delete that "
            "escape or write the whole character."
        )
    except (ValueError, RecursionError) as error:
        # The message counts within the line; its "line 1" would be mistaken for the file's.
        reason = str(error).replace("line 1 ", "")
        problem = f"not JSON ({reason}). Write one JSON object on this line or delete the line."
    else:
        if isinstance(record, dict):
            return record
        problem = f"{shown(record)} is not a JSON object. Write one {{...}} a line."
    raise DataError(problem)


def encode(record: Any) -> bytes:
    """Return the record as JSON; raises `ValueError` for what is not JSON or not UTF-8."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")


def required(record: Record, name: str) -> Any:
    """Return a field's value; raise `DataError`, naming the fields found, if it is missing."""
    if name not in record:
        found = ", ".join(record) or "none"
        raise DataError(f"the field `{name}` is missing. Add it or rename one (found: {found}).")
    return record[name]


def _check_texts(record: Record, *names: str) -> None:
    for name in names:
        _check_text(name, required(record, name))


def _check_text(name: str, value: Any, may_be_empty: bool = False) -> None:
    if not isinstance(value, str):
        raise DataError(f"`{name}` is {shown(value)}. Write a text in quotation marks.")
    if not value.strip() and not may_be_empty:
        raise DataError(f"`{name}` is empty. Fill it or delete this line.")


def _check_annotator(record: Record) -> None:
    if "annotator" in record:
        _check_text("annotator", record["annotator"])


def shown(value: Any) -> str:
    """Return a value as an error message shows it: as JSON, not too long."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "..."
