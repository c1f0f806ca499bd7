"""Data sets too large for memory, read as a stream of our records from other makers' columns.

A source is named by a text: `al://org/name` (Deep Lake's cloud), `hf://org/name` or
`hf://org/name:split` (the Hugging Face hub; without a split it is `train`), the folder of a local
Deep Lake data set, a `.parquet` file, a folder or a pattern (`part-*.parquet`) of such files.

    rows = stream("al://genai360/OpenOrca-1M-train-set", "demonstrations")
    next(iter(rows))             # {"input_text": "Question: …\\n\\nAnswer:", "output_text": "…"}
    state = rows.state_dict()    # at any row; later, or in another process:
    rows.load_state_dict(state)  # goes on with the next one

The columns known are OpenOrca's (`question`, `response`, `system_prompt`), Alpaca-OrcaChat's
(`instruction`, `input`, `output`), hh-rlhf's (`chosen`, `rejected`) and our own. Reading is
tolerant: a row that cannot be used is dropped, and counted by reason.
"""

import glob
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from datasets import Features, IterableDataset, Value, load_dataset, load_dataset_builder

from rlhf_helpers.schemas import DataError, Record, check_demonstration, check_prompt
from rlhf_helpers.sources import reason, to_preferences

logger = logging.getLogger(__name__)

READ = 1_000  # rows read from a source at once

# Columns that a source must have for a kind, all those of one tuple; our own fields come first.
KNOWN = {
    "demonstrations": (
        ("input_text", "output_text"), ("question", "response"), ("instruction", "output"),
    ),
    "prompts": (("input_text",), ("question",), ("instruction",)),
    "preferences": (("input_text", "candidate_0", "candidate_1", "choice"), ("chosen", "rejected")),
}  # fmt: skip
OPTIONAL = ("system_prompt", "input")


def is_stream(data: str | Path) -> bool:
    """Whether `data` names a source for `stream`, and not a JSONL file."""
    scheme, name, _ = _parts(data)
    return bool(scheme) or name.endswith(".parquet") or _is_lake(name) or bool(_parquet(name))


def stream(
    data: str | Path,
    kind: str,
    seed: int = 0,
    buffer: int = 10_000,
    epochs: int = 1,
    dropped: Counter[str] | None = None,
) -> IterableDataset:
    """Records of a kind: `demonstrations`, `prompts` or `preferences`; never loaded whole.

    Rows are shuffled within each block of `buffer` rows, in every epoch anew; 0 keeps their order.
    The order depends on seed and row numbers alone, so that a stream resumed with `load_state_dict`
    gives just what was to come. (The shuffle buffer of `datasets` loses its rows on resuming.)

    `dropped` is filled, as the stream is read, with how many rows were not used, by reason, and
    the log (info) tells the sums after each block with such rows; on resuming, the block that it
    was in is counted again. Raises DataError if the source cannot be opened or has other columns;
    and, while reading, if not one row of the first block can be used.
    """
    with _explained(data):
        rows, columns = _rows(data, kind)
    settings = {"data": data, "kind": kind, "seed": seed if buffer else None}
    return rows.repeat(epochs).map(
        _records,
        batched=True,
        batch_size=buffer or READ,
        with_indices=True,
        remove_columns=columns,
        features=_features(KNOWN[kind][0]),
        fn_kwargs=settings | {"dropped": Counter() if dropped is None else dropped},
    )


def count_rows(data: str | Path) -> int:
    """How many rows a source has, usable or not, without reading them.

    Raises DataError if it cannot be opened, or is a data set of the hub that does not tell.
    """
    scheme, name, split = _parts(data)
    with _explained(data):
        if scheme == "hf":
            info = (load_dataset_builder(name).info.splits or {}).get(split)
            if info is None or not info.num_examples:
                raise DataError(f"{data}: the hub does not tell its number of rows. Set the steps.")
            return info.num_examples
        if scheme or _is_lake(name):
            return len(_lake(data))
        return sum(pyarrow.parquet.read_metadata(file).num_rows for file in _parquet(name, True))


def _parts(data: str | Path) -> tuple[str, str, str]:
    """Scheme, name and split; of the two slashes `Path` leaves one."""
    match = re.fullmatch(r"(al|hf|hub):/{1,2}([^:]+):?(.*)", str(data))
    return (match[1], match[2], match[3] or "train") if match else ("", str(data), "train")


def _is_lake(name: str) -> bool:
    """Whether it is the folder of a Deep Lake data set, of version 4 or of version 3."""
    return any((Path(name) / part).exists() for part in ("_deeplake_log", "dataset_meta.json"))


def _parquet(name: str, required: bool = False) -> list[str]:
    """The Parquet files of a file name, a folder or a pattern."""
    pattern = glob.escape(name) if Path(name).exists() else name
    found = glob.glob(f"{pattern}/*.parquet" if Path(name).is_dir() else pattern)
    files = sorted(file for file in found if file.endswith(".parquet"))
    if required and not files:
        raise DataError(f"{name}: no Deep Lake data set and no Parquet file. Check the path.")
    return files


@contextmanager
def _explained(data: str | Path) -> Iterator[None]:
    """Turn any failure to open a source into a DataError that says what to do."""
    remedy = {
        "al": "Go online and log in to Deep Lake (set ACTIVELOOP_TOKEN)",
        "hf": "Go online, set HF_HUB_OFFLINE=0, and log in (`hf auth login`) if it is gated",
        "hub": "Deep Lake 4 spells hub:// as al://: write that",
        "": "Check the path",
    }[_parts(data)[0]]
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # the libraries' own, which share no ancestor
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{data}: not opened ({reason}). {remedy}, or name a local set.") from error


def _rows(data: str | Path, kind: str) -> tuple[IterableDataset, list[str]]:
    """The columns of a source that this kind of record is made of, and their names."""
    scheme, name, split = _parts(data)
    if scheme != "hf" and (scheme or _is_lake(name)):
        lake = _lake(data)
        columns = _used(data, kind, [column.name for column in lake.schema.columns])
        # Each range of rows is a shard to `datasets`, which on resuming skips those that are done.
        ranges = {"lake": lake, "columns": tuple(columns), "starts": [*range(0, len(lake), READ)]}
        return IterableDataset.from_generator(_read_lake, _features(columns), ranges), columns
    if scheme == "hf":
        rows = load_dataset(name, split=split, streaming=True)
    else:  # without a batch size a row group, however large, is one batch
        options: dict = {"data_files": _parquet(name, True), "batch_size": READ}
        rows = load_dataset("parquet", split="train", streaming=True, **options)
    columns = _used(data, kind, rows.column_names or list(next(iter(rows))))
    return rows.select_columns(columns), columns


def _used(data: str | Path, kind: str, found: list[str]) -> list[str]:
    """Those of the columns found that are needed; raises DataError if some are missing."""
    for known in KNOWN[kind]:
        if set(known) <= set(found):
            return [*known, *(name for name in OPTIONAL if name in found)]
    choices = "; or ".join(", ".join(known) for known in KNOWN[kind])
    raise DataError(
        f"{data}: no columns for {kind}. Found: {', '.join(found)}. Needed: {choices}. Rename them."
    )


def _features(columns: Iterable[str]) -> Features:
    """All are texts, but for a preference's choice."""
    return Features({c: Value("int64" if c == "choice" else "string") for c in columns})


def _lake(data: str | Path) -> Any:
    """An open Deep Lake data set. Raises whatever the library does if there is none."""
    import deeplake

    scheme, name, _ = _parts(data)
    if scheme == "hub":
        raise ValueError("an address of Deep Lake 3")
    path = f"al://{name}" if scheme else name
    try:
        return deeplake.open_read_only(path)
    except Exception:  # as it does for a set of version 3, which a query opens
        return deeplake.query(f'SELECT * FROM "{path}"')


def _read_lake(lake: Any, columns: tuple[str, ...], starts: list[int]) -> Iterator[Record]:
    """The rows of some ranges, a range at a time."""
    for start in starts:
        part = lake[start : start + READ]
        values = [np.asarray(part[name], dtype=object).tolist() for name in columns]
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _records(
    batch: dict[str, list], indices: list[int],
    data: str | Path, kind: str, seed: int | None, dropped: Counter[str],
) -> dict[str, list]:  # fmt: skip
    """The usable records of one block of rows, shuffled if there is a seed."""
    rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    records, reasons = _usable(rows, kind)
    dropped.update(reasons)
    if reasons:
        told = ", ".join(f"{count} for {reason}" for reason, count in dropped.most_common())
        logger.warning("%s: rows dropped so far: %s", data, told)
    if not records and indices[0] == 0:
        raise DataError(f"{data}: not one usable row among the first {len(rows)}: {told}.")
    if seed is not None:
        order = np.random.default_rng([seed, indices[0]]).permutation(len(records))
        records = [records[i] for i in order]
    return {name: [record[name] for record in records] for name in KNOWN[kind][0]}


def _usable(rows: Iterable[Record], kind: str) -> tuple[list[Any], Counter[str]]:
    """The rows as records of a kind, and why the others are none."""
    if kind == "preferences":
        loaded = to_preferences(rows)
        return loaded.records, loaded.dropped
    check = check_demonstration if kind == "demonstrations" else check_prompt
    records, reasons = [], Counter[str]()
    for row in rows:
        try:
            answer = row.get("output_text", row.get("response", row.get("output")))
            record = {"input_text": _prompt(row), "output_text": answer}
            check(record)
            records.append(record)
        except DataError as error:
            reasons[reason(error)] += 1
    return records, reasons


def _prompt(row: Record) -> str:
    """The prompt, by the template `Question: …\\n\\nAnswer:`; a system prompt goes in front.

    Alpaca-OrcaChat's `instruction` is one wherever there is an `input`, else the question.
    """
    if "input_text" in row:
        return row["input_text"]
    question, system = row.get("question", row.get("input")), row.get("system_prompt")
    if "instruction" in row:
        question, system = (question, row["instruction"]) if question else (row["instruction"], "")
    if not isinstance(question, str) or not question.strip():
        raise DataError("an empty question")
    given = isinstance(system, str) and system.strip()
    return f"System: {given}\n\n" * bool(given) + f"Question: {question.strip()}\n\nAnswer:"
