"""The records of RLHF, their strict readers, and the format of every prompt.

A data set is a JSONL file with the field names of Vertex AI. Records are plain dicts; fields not
named here are kept. Reading is strict: the first bad record raises one `DataError` that names file,
line and remedy, before any training starts. `sources` maps other people's records to these.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any, NotRequired, TypedDict

from rlhf_helpers.jsonl import (
    DataError,
    Record,
    StrPath,
    check_text,
    check_texts,
    is_blank,
    read_records,
    required,
    shown,
)
from rlhf_helpers.jsonl import write_jsonl as write_jsonl  # for those who also read records

Scorer = Callable[[list[str]], Sequence[float]]  # of whole texts, or a `RewardModel`


class Preference(TypedDict):
    """Two answers to one prompt; `choice` is 0 or 1, the number of the better candidate.

    `margin` says how much better it is, from 0 (hardly) to 1 (a lot), if the annotator graded that.
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


class Thumb(TypedDict):
    """One answer to a prompt; `label` is true if it is good, false if it is bad."""

    input_text: str
    output_text: str
    label: bool


class Ranking(TypedDict):
    """K >= 2 answers to one prompt; `ranking` lists their indices, best first.

    A list inside is a tie: `[2, [0, 3], 1]` puts candidate 2 first, then 0 and 3 alike, then 1.
    """

    input_text: str
    candidates: list[str]
    ranking: list[int | list[int]]
    annotator: NotRequired[str]


class Prediction(TypedDict):
    """A model's answer to a prompt, as Vertex AI's bulk inference writes it.

    `inputs` holds the prompt as `inputs_pretokenized`.
    """

    inputs: dict[str, str]
    prediction: str


class Document(TypedDict):
    """A text for pretraining."""

    text: str


def format_prompt(input_text: str, instruction: str = "") -> str:
    """Return the prompt as every stage gives it to a model.

    The instruction, if there is one, comes first. Blanks at the end are cut, because the one in
    `[summary]: ` belongs to the response. Otherwise the prompt's tokens would not be a prefix of
    the tokens of `join(format_prompt(...), format_response(...))`. A line break at the end stays.
    """
    instruction = instruction.strip()
    prompt = f"{instruction} {input_text}" if instruction else input_text
    kept = prompt.rstrip()
    white = prompt[len(kept) :]
    return kept + white[: white.rfind("\n") + 1]


def format_response(output_text: str) -> str:
    """Return the response as it follows a formatted prompt: one blank, then the text."""
    return " " + output_text.strip()


def join(prompt: str, response: str) -> str:
    """Return prompt and response as one text; no blank comes between them after a line break."""
    return prompt + (response.lstrip(" ") if prompt.endswith("\n") else response)


def score_answers(
    scorer: Scorer, prompts: Sequence[str], answers: Sequence[str]
) -> Sequence[float]:
    """Return the scores of answers as they stand after their formatted prompts.

    A reward model gets prompts and answers apart, any other scorer whole texts.
    """
    if hasattr(scorer, "score"):
        return scorer.score(prompts, answers)
    return scorer([join(*pair) for pair in zip(prompts, answers, strict=True)])


def candidate_answers(
    records: Sequence[Preference], instruction: str = ""
) -> tuple[list[str], list[str]]:
    """Return formatted prompts and answers (2 N) of N pairs, candidates 0 and 1 in turn."""
    prompts = [format_prompt(record["input_text"], instruction) for record in records]
    both = [(record["candidate_0"], record["candidate_1"]) for record in records]
    answers = [format_response(answer) for pair in both for answer in pair]
    return [prompt for prompt in prompts for _ in range(2)], answers


def candidate_texts(record: Preference, instruction: str = "") -> tuple[str, str]:
    """Return prompt and candidate as one text, for both candidates."""
    prompt = format_prompt(record["input_text"], instruction)
    first, second = record["candidate_0"], record["candidate_1"]
    return join(prompt, format_response(first)), join(prompt, format_response(second))


def read_preferences(path: StrPath) -> list[Preference]:
    """Read pairs of answers with the better one marked; raise `DataError` on a bad record."""
    return read_records(path, check_preference)


def read_prompts(path: StrPath) -> list[Prompt]:
    """Read prompts; raise `DataError` on a bad record."""
    return read_records(path, check_prompt)


def read_demonstrations(path: StrPath) -> list[Demonstration]:
    """Read prompts with the answers to imitate; raise `DataError` on a bad record."""
    return read_records(path, check_demonstration)


def read_thumbs(path: StrPath) -> list[Thumb]:
    """Read answers that are marked good or bad; raise `DataError` on a bad record."""
    return read_records(path, check_thumb)


def read_rankings(path: StrPath) -> list[Ranking]:
    """Read prompts with K ranked answers; raise `DataError` on a bad record."""
    return read_records(path, check_ranking)


def read_predictions(path: StrPath) -> list[Prediction]:
    """Read prompts with a model's answers; raise `DataError` on a bad record."""
    return read_records(path, check_prediction)


def read_comparisons(path: StrPath) -> list[Preference] | list[Ranking]:
    """Read preferences or rankings; the first record decides which of them the file must hold."""
    kind: list[Callable[[Record], None]] = []

    def check(record: Record) -> None:
        kind.append(check_ranking if "candidates" in record else check_preference)
        kind[0](record)

    return read_records(path, check)


def read_texts(path: StrPath) -> list[Document]:
    """Read documents for pretraining; raise `DataError` on a bad record."""
    return read_records(path, check_document)


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


def rankings_to_preferences(rankings: Iterable[Ranking]) -> list[Preference]:
    """Return the preferences that all the rankings imply; see `ranking_to_pairs`."""
    return [pair for ranking in rankings for pair in ranking_to_pairs(ranking)]


def check_preference(record: Record) -> None:
    """Raise `DataError` unless the record is a `Preference`."""
    check_texts(record, "input_text", "candidate_0", "candidate_1")
    _check_annotator(record)
    margin = record.get("margin", 0.0)
    if type(margin) not in (int, float) or not 0 <= margin <= sys.float_info.max:
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
    check_texts(record, "input_text")


def check_demonstration(record: Record) -> None:
    """Raise `DataError` unless the record is a `Demonstration`."""
    check_texts(record, "input_text", "output_text")


def check_thumb(record: Record) -> None:
    """Raise `DataError` unless the record is a `Thumb`."""
    check_texts(record, "input_text", "output_text")
    label = required(record, "label")
    if type(label) is not bool:
        raise DataError(f"`label` is {shown(label)}. Write true for a good answer, else false.")


def check_ranking(record: Record) -> None:
    """Raise `DataError` unless the record is a `Ranking`."""
    check_texts(record, "input_text")
    _check_annotator(record)
    candidates = required(record, "candidates")
    if not isinstance(candidates, list) or len(candidates) < 2:
        raise DataError(
            f"`candidates` is {shown(candidates)}. Write a list of at least two answers."
        )
    for index, candidate in enumerate(candidates):
        check_text(f"candidates[{index}]", candidate)
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
    check_text("prediction", required(record, "prediction"), may_be_empty=True)
    inputs = required(record, "inputs")
    prompt = inputs.get("inputs_pretokenized") if isinstance(inputs, dict) else None
    if not isinstance(prompt, str) or is_blank(prompt):
        raise DataError(
            f"`inputs` is {shown(inputs)}. Write an object that holds the prompt as text: "
            '{"inputs_pretokenized": …}.'
        )


def check_document(record: Record) -> None:
    """Raise `DataError` unless the record is a `Document`."""
    check_texts(record, "text")


def _check_annotator(record: Record) -> None:
    if "annotator" in record:
        check_text("annotator", record["annotator"])
