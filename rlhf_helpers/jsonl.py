"""JSONL files, one JSON object a line in UTF-8: strict reading, and writing that is all or nothing.

Every problem of a file is a `DataError` whose one sentence names file, line and remedy.
"""

import codecs
import gzip
import json
import os
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

StrPath = str | os.PathLike[str]
Record = dict[str, Any]

RESTORE = (
    "The data sets shipped with the project are restored with `git checkout data` "
    "or regenerated with `python -m rlhf_helpers data`."
)


class DataError(ValueError):
    """A data set cannot be used; the message names file, line and remedy."""


def read_records(path: StrPath, check: Callable[[Record], None]) -> list[Any]:
    """Read a file whose records must all pass `check`, which raises `DataError`.

    The error of the first bad record is raised with file and line in front.
    """
    records = []
    for number, line in read_lines(path):
        try:
            record = parse(line)
            check(record)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        records.append(record)
    if not records:
        raise DataError(f"{path}, line 1: the file is empty, not even one record. {RESTORE}")
    return records


def read_lines(path: StrPath) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each line that is not blank; a `.gz` file is decompressed."""
    content = _read_bytes(Path(path)).removeprefix(codecs.BOM_UTF8)
    # Not str.splitlines, which also breaks at U+2028, U+2029 and U+0085 inside a text.
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def read_text(path: StrPath) -> str:
    """Return the text of a file in UTF-8; raises `DataError` if it cannot be read."""
    try:
        return _read_bytes(Path(path)).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8. Save the file as UTF-8.") from None


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Check the path. {RESTORE}") from None
    except (OSError, EOFError, zlib.error) as error:
        if path.is_dir():
            raise DataError(f"{path}: a folder. Name one JSONL file in it.") from None
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: cannot be read ({reason}). Check the path and your right to read it."
        ) from None


def parse(line: bytes) -> Record:
    """Return the JSON object in one line; it can be written again.

    Raises `DataError` with the problem and its remedy for any other line.
    """
    if line.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise DataError(
            "a web page (HTML) saved by mistake, not a data set. Download the file itself, by the "
            f"link that says `raw` or `download`. {RESTORE}"
        )
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=_without_duplicates)
        encode(record)
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 (byte {error.start + 1} of the line). Save the file as UTF-8."
    except UnicodeEncodeError:
        problem = (
            "half of a surrogate pair (\\ud800 to \\udfff), which no tokenizer takes. Delete that "
            "escape or write the whole character."
        )
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        # The message counts within the line; its "line 1" would be mistaken for the file's.
        reason = str(error).replace("line 1 ", "")
        problem = f"not JSON ({reason}). Write one JSON object on this line or delete the line."
    else:
        if isinstance(record, dict):
            return record
        problem = f"{shown(record)} is not a JSON object. Write one {{...}} a line."
    raise DataError(problem)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the field {shown(twice)} occurs twice. Delete one of the two.")
    return record


def encode(record: Any) -> bytes:
    """Return the record as JSON; raises `ValueError` for what is not JSON or not UTF-8."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")


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


def shown(value: Any) -> str:
    """Return a value as an error message shows it: as JSON, at most 63 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "..."


def required(record: Record, name: str) -> Any:
    """Return a field's value; raise `DataError`, naming the fields found, if it is missing."""
    if name not in record:
        found = ", ".join(record) or "none"
        raise DataError(f"the field `{name}` is missing. Add it or rename one (found: {found}).")
    return record[name]


def check_texts(record: Record, *names: str) -> None:
    """Raise `DataError` unless the record has these fields, and each is a text."""
    for name in names:
        check_text(name, required(record, name))


def check_text(name: str, value: Any, may_be_empty: bool = False) -> None:
    """Raise `DataError` unless the value of a field is a text that shows something."""
    if not isinstance(value, str):
        raise DataError(f"`{name}` is {shown(value)}. Write a text in quotation marks.")
    if is_blank(value) and not may_be_empty:
        raise DataError(f"`{name}` is empty. Fill it or delete this line.")


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing: white space, control and zero-width characters alone."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)
