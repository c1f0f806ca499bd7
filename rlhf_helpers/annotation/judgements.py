"""What people (or rules) said of pairs of answers: the record, its file, and who agrees with whom.

A judgement file is a JSONL file that only ever grows: each judgement is one line, safe on the disk
before the next pair is shown. To undo one, a line is added that retracts it. Several annotators may
write to the same file at the same time.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NotRequired, TypedDict

from filelock import FileLock
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from rlhf_helpers.schemas import (
    DataError,
    Record,
    StrPath,
    candidate_texts,
    check_preference,
    encode,
    read_records,
    required,
    shown,
)

ACTIONS = ("skip", "undo")
EQUAL = 1e-9  # scores that differ by less are a tie
Pair = tuple[str, str, str]


class Judgement(TypedDict):
    """Which of two answers is better: `choice` is 0 or 1, the number of the candidate, or None.

    None is a tie, or what `action` says: "skip" (not judged), or "undo" (retracts what the same
    annotator said of the same pair). The candidate number `shown_first` (0 or 1) stood first.
    """

    input_text: str
    candidate_0: str
    candidate_1: str
    shown_first: int
    annotator: str
    choice: int | None
    action: NotRequired[str]


def check_judgement(record: Record) -> None:
    """Raise `DataError` unless the record is a `Judgement`."""
    check_preference({**record, "choice": 0})  # all but the choice has the same rules
    required(record, "annotator")
    first, choice = required(record, "shown_first"), required(record, "choice")
    if type(first) is not int or first not in (0, 1):
        raise DataError(
            f"`shown_first` is {shown(first)}. Write 0 if candidate_0 was shown first, else 1."
        )
    if choice is not None and (type(choice) is not int or choice not in (0, 1)):
        raise DataError(
            f"`choice` is {shown(choice)}. Write 0 or 1, the better candidate, or null for a tie."
        )
    if "action" in record and (record["action"] not in ACTIONS or choice is not None):
        raise DataError(
            f"`action` is {shown(record['action'])} and `choice` {shown(choice)}. Write `skip` or "
            "`undo` with the choice null, or leave `action` out."
        )


def read_judgements(path: StrPath) -> list[Judgement]:
    """Read the judgements that stand, skips among them; raise `DataError` on a bad record.

    What was undone is left out, and of several by one annotator on one pair the last one stands.
    """
    standing: dict[tuple[str, Pair], Judgement] = {}
    for record in read_records(path, check_judgement):
        key = (record["annotator"], pair_of(record))
        standing.pop(key, None)  # so that what is judged again moves to the end
        if record.get("action") != "undo":
            standing[key] = record
    return list(standing.values())


def resume_judgements(path: StrPath) -> list[Judgement]:
    """Read a file that is to be appended to; there may be none yet.

    A half-written last line, left behind by a crash, is cut off with a warning. Raises `DataError`
    where the file cannot be written, before anybody has judged in vain.
    """
    with _open_to_append(path):
        return read_judgements(path) if os.path.getsize(path) else []


def append_judgement(path: StrPath, judgement: Judgement) -> None:
    """Add one line to a file; once this returns, the line survives a crash.

    Raises `DataError` if it cannot be written.
    """
    check_judgement(dict(judgement))
    with _open_to_append(path) as file:
        file.write(encode(judgement) + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _open_to_append(path: StrPath) -> Iterator[BinaryIO]:
    """The file, made if need be, with whole lines only, and nobody else's for the moment."""
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        # Append mode alone keeps writers apart on most disks, but not where half a line is cut off.
        with FileLock(f"{path}.lock", timeout=10), open(path, "ab+") as file:
            _mend(path, file)
            yield file
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}), so judgements would be lost. "
            "Check the path, your right to write there and the room on the disk."
        ) from None


def _mend(path: StrPath, file: BinaryIO) -> None:
    """Let the file end in a whole line."""
    file.seek(0)
    last = file.read().rpartition(b"\n")[2]
    if not last:
        return
    try:
        json.loads(last)  # half an object is never JSON
    except ValueError:
        file.truncate(file.tell() - len(last))
        warnings.warn(
            f"{path}: the last line was only half written and is removed: {last[:80]!r}. "
            "That pair will be asked again.",
            stacklevel=5,
        )
    else:
        file.write(b"\n")
        file.flush()


def pair_of(record: Mapping[str, Any]) -> Pair:
    """The prompt and both candidates, which tell one pair from another."""
    return record["input_text"], record["candidate_0"], record["candidate_1"]


@dataclass(frozen=True)
class Agreement:
    """`share` of `pairs` in which two sides choose alike, with its 95% interval (Wilson 1927).

    `kappa` (Cohen 1960) is 1 for agreement throughout, 0 for as much as chance alone would give,
    NaN where chance would give all of it. Pairs that either side calls a tie or has skipped are
    `left_out`.
    """

    share: float
    low: float
    high: float
    kappa: float
    pairs: int
    left_out: int


def agreement_with_scorer(
    judgements: Sequence[Mapping[str, Any]], scorer: Callable[[list[str]], Sequence[float]]
) -> Agreement:
    """Agreement with a reward model or any other scorer of texts, prompt and answer in one.

    Equal scores are a tie. Raises ValueError where no pair is decided by both.
    """
    texts = [text for record in judgements for text in candidate_texts(record)]  # type: ignore[arg-type]
    scores = scorer(texts)
    gaps = [second - first for first, second in zip(scores[0::2], scores[1::2], strict=True)]
    verdicts = [None if abs(gap) < EQUAL else int(gap > 0) for gap in gaps]
    return _agreement((record["choice"], v) for record, v in zip(judgements, verdicts, strict=True))


def agreement_between(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> Agreement:
    """Agreement of two annotators' judgements (or preferences) on the pairs that both have seen.

    Raises ValueError where no pair is decided by both, or where one side has a pair twice.
    """
    ours, theirs = _choices(first), _choices(second)
    return _agreement((choice, theirs[pair]) for pair, choice in ours.items() if pair in theirs)


def _choices(records: Sequence[Mapping[str, Any]]) -> dict[Pair, int | None]:
    choices = {pair_of(record): record["choice"] for record in records}
    if len(choices) < len(records):
        raise ValueError("A pair is there twice: give the judgements of one annotator, once each.")
    return choices


def _agreement(choices: Iterable[tuple[int | None, int | None]]) -> Agreement:
    both = list(choices)
    decided = [pair for pair in both if None not in pair]
    if not decided:
        raise ValueError(
            f"No pair of answers is decided by both sides ({len(both)} ties or skips), so there is "
            "nothing to compare: judge some more pairs."
        )
    alike = sum(one == other for one, other in decided)
    low, high = binomtest(alike, len(decided)).proportion_ci(method="wilson")
    kappa = cohen_kappa_score(*zip(*decided, strict=True), labels=[0, 1])
    share = alike / len(decided)
    return Agreement(share, low, high, float(kappa), len(decided), len(both) - len(decided))
