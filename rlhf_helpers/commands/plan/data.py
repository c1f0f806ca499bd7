"""How large the data sets are: the course's own, and those that a user names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_helpers import scales, schemas
from rlhf_helpers.stages import STAGES

CHARACTERS_A_TOKEN = 4.5  # of English text, where the model's tokenizer is not here
COUNTED = 2000  # records whose lengths are counted; the others are assumed to be like them


class Data(NamedTuple):
    """A data set: records, answers a record, mean and longest length of prompts and answers."""

    records: int
    prompt: int  # tokens
    response: int
    longest_prompt: int = 2048
    longest_response: int = 2048
    answers: int = 1


# The little world's own are counted. The others are approximate: records by their data cards
# (OpenOrca's subset by its name), lengths of hh-rlhf from its bytes at 4.5 a token; those of
# OpenOrca and of Alpaca-OrcaChat are assumed.
DATA = {
    ("summarize", "demonstrations"): Data(3000, 80, 13, 104, 49),
    ("summarize", "preferences"): Data(2000, 80, 14, 104, 44, answers=4),
    ("summarize", "prompts"): Data(2000, 80, 13, 112, 49),
    ("autocomplete", "demonstrations"): Data(2000, 56, 28, 72, 58),
    ("autocomplete", "preferences"): Data(800, 56, 29, 69, 61, answers=4),
    ("autocomplete", "prompts"): Data(1000, 56, 28, 69, 60),
    ("assistant", "demonstrations"): Data(1_000_000, 250, 200),
    ("assistant", "preferences"): Data(160_800, 190, 35, answers=2),
    ("assistant", "prompts"): Data(52_000, 200, 200),
}
READERS: dict[str, Callable[[Path], list]] = {
    "demonstrations": schemas.read_demonstrations,
    "preferences": schemas.read_comparisons,
    "prompts": schemas.read_prompts,
}


def data_of(scale: scales.Scale, stage: str) -> Data:
    """The data that a stage reads at a scale."""
    return DATA[scale.task, STAGES[stage].reads]


def count(kind: str, path: Path, model: str | Path, response: int) -> Data:
    """Count a user's JSONL file; `response` is the mean length of answers to mere prompts.

    Raises DataError for a file that cannot be read as `kind`.
    """
    records = READERS[kind](path)
    length = token_counter(model)
    prompts = [length(schemas.format_prompt(r["input_text"]), True) for r in records[:COUNTED]]
    answers = [_answers(record) for record in records[:COUNTED]]
    texts = [length(schemas.format_response(text)) + 1 for texts in answers for text in texts]
    return Data(
        records=len(records),
        prompt=round(sum(prompts) / len(prompts)),
        response=round(sum(texts) / len(texts)) if texts else response,
        longest_prompt=max(prompts),
        longest_response=max(texts, default=2048),
        answers=max(map(len, answers)) or 1,
    )


def _answers(record: dict[str, Any]) -> list[str]:
    """The answers of a demonstration, a pair, a ranking, or (none) a prompt."""
    if "candidates" in record:
        return record["candidates"]
    return [
        record[name] for name in ("output_text", "candidate_0", "candidate_1") if name in record
    ]


def token_counter(model: str | Path) -> Callable[..., int]:
    """A function that counts a text's tokens, with special ones if asked.

    It uses the model's tokenizer if that is on this machine, and the number of characters if not.
    """
    from rlhf_helpers.models import load_tokenizer

    try:
        tokenizer = load_tokenizer(model)
    except (OSError, ValueError):
        print(f"{model}: no tokenizer here, lengths are taken as {CHARACTERS_A_TOKEN} characters")
        return lambda text, special=False: round(len(text) / CHARACTERS_A_TOKEN)
    return lambda text, special=False: len(tokenizer(text, add_special_tokens=special)["input_ids"])
