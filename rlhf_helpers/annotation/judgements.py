"""Judgements of pairs of answers by people or rules: the record and its file.

A judgement file is a JSONL file that only ever grows: each judgement is one line, safe on the disk
before the next pair is shown. To undo one, a line is added that retracts it. Several annotators may
write to the same file at the same time.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NotRequired, TypedDict

from filelock import FileLock

from rlhf_helpers.jsonl import DataError, Record, StrPath, encode, read_records, required, shown
from rlhf_helpers.schemas import check_preference

ACTIONS = ("skip", "undo")
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
    """Read the judgements that are in force, skips included; raise `DataError` on a bad record.

    Retracted judgements are left out; of several by one annotator on one pair the last one counts.
    """
    standing: dict[tuple[str, Pair], Judgement] = {}
    for record in read_records(path, check_judgement):
        key = (record["annotator"], pair_of(record))
        standing.pop(key, None)  # so that what is judged again moves to the end
        if record.get("action") != "undo":
            standing[key] = record
    return list(standing.values())


def resume_judgements(path: StrPath) -> list[Judgement]:
    """Read a file that will be appended to; it need not exist yet.

    A half-written last line, left behind by a crash, is cut off with a warning. Raises `DataError`
    if the file cannot be written, before anybody spends time on judging.
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
    """Open a file to append to, creating and repairing it if need be, under a lock."""
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
    """Make the file end in a whole line."""
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
