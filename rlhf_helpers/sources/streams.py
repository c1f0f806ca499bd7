"""Data sets too large for memory, read row by row from Deep Lake, Parquet files or the hub.

A source is named by a text: `al://org/name` (Deep Lake's cloud), `hf://org/name` or
`hf://org/name:split` (the Hugging Face hub; without a split it is `train`), the folder of a local
Deep Lake data set, a `.parquet` file, a folder or a pattern (`part-*.parquet`) of such files.

    rows = stream("al://genai360/OpenOrca-1M-train-set", "demonstrations")
    next(iter(rows))             # {"input_text": "Question: …\\n\\nAnswer:", "output_text": "…"}
    state = rows.state_dict()    # at any row; later, or in another process:
    rows.load_state_dict(state)  # continues with the next row

`sources` maps the columns to our records. Rows that cannot be used are dropped and counted.
"""

import glob
import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from datasets import Features, IterableDataset, Value, load_dataset, load_dataset_builder

from rlhf_helpers.extras import needs_extra
from rlhf_helpers.schemas import DataError, Record
from rlhf_helpers.sources import FIELDS, convert, unknown_columns
from rlhf_helpers.sources.shapes import find_shape

logger = logging.getLogger(__name__)

READ = 1_000  # rows read from a source at once


def is_stream(data: str | Path) -> bool:
    """Return whether `data` names a source for `stream`, and not a JSONL file."""
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
    """Read a kind of records (see `sources.FIELDS`) as a stream that is never loaded whole.

    Rows are shuffled within each block of `buffer` rows, in another order in every epoch; 0 keeps
    their order. The order depends on seed and row numbers alone, so that a stream resumed with
    `load_state_dict` gives exactly the remaining records. (The shuffle buffer of `datasets` loses
    its rows on resuming.)

    While the stream is read, `dropped` counts the rows that cannot be used, by reason, and a
    warning tells the sums after each block with such rows. After resuming, the current block is
    counted again. Raises DataError if the source cannot be opened or its columns are unknown, and
    while reading if no row of the first block can be used.
    """
    with _explained(data):
        rows, columns = _rows(data, kind)
    settings = {"data": data, "kind": kind, "seed": seed if buffer else None}
    types = {"choice": "int64", "label": "bool"}
    features = {name: Value(types.get(name, "string")) for name in FIELDS[kind]}
    return rows.repeat(epochs).map(
        _records,
        batched=True,
        batch_size=buffer or READ,
        with_indices=True,
        remove_columns=columns,
        features=Features(features),
        fn_kwargs=settings | {"dropped": Counter() if dropped is None else dropped},
    )


def count_rows(data: str | Path) -> int:
    """Return how many rows a source has, usable or not, without reading them.

    Raises DataError if it cannot be opened, or if the hub does not state the number.
    """
    scheme, name, split = _parts(data)
    with _explained(data):
        if scheme == "hf":
            info = (load_dataset_builder(name).info.splits or {}).get(split)
            if info is None or not info.num_examples:
                raise DataError(
                    f"{data}: the hub does not state its number of rows. Set the steps."
                )
            return info.num_examples
        if scheme or _is_lake(name):
            return len(_lake(data))
        return sum(pyarrow.parquet.read_metadata(file).num_rows for file in _parquet(name, True))


def _parts(data: str | Path) -> tuple[str, str, str]:
    """Return scheme, name and split; a `Path` has lost one of the two slashes."""
    match = re.fullmatch(r"(al|hf|hub):/{1,2}([^:]+):?(.*)", str(data))
    return (match[1], match[2], match[3] or "train") if match else ("", str(data), "train")


def _is_lake(name: str) -> bool:
    """Return whether the folder holds a Deep Lake data set, of version 4 or of version 3."""
    return any((Path(name) / part).exists() for part in ("_deeplake_log", "dataset_meta.json"))


def _parquet(name: str, required: bool = False) -> list[str]:
    """Return the Parquet files that a file name, a folder or a pattern stands for."""
    pattern = glob.escape(name) if Path(name).exists() else name
    found = glob.glob(f"{pattern}/*.parquet" if Path(name).is_dir() else pattern)
    files = sorted(file for file in found if file.endswith(".parquet"))
    if required and not files:
        raise DataError(f"{name}: no Deep Lake data set and no Parquet file. Check the path.")
    return files


@contextmanager
def _explained(data: str | Path) -> Iterator[None]:
    """Turn any failure to open a source into a DataError that names the remedy."""
    remedy = {
        "al": "Go online and log in to Deep Lake (set ACTIVELOOP_TOKEN)",
        "hf": "Go online, set HF_HUB_OFFLINE=0, and log in (`hf auth login`) if it is gated",
        "hub": "Deep Lake 4 spells hub:// as al://: write that",
        "": "Check the path",
    }[_parts(data)[0]]
    try:
        yield
    except (DataError, ModuleNotFoundError):
        raise
    except Exception as error:  # the libraries' own, which share no ancestor
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{data}: not opened ({reason}). {remedy}, or name a local set.") from error


def _rows(data: str | Path, kind: str) -> tuple[IterableDataset, list[str]]:
    """Return the rows with the columns that this kind of record needs, and the columns' names."""
    scheme, name, split = _parts(data)
    if scheme != "hf" and (scheme or _is_lake(name)):
        lake = _lake(data)
        columns = _used(data, kind, [column.name for column in lake.schema.columns])
        # `datasets` takes each range of rows for a shard, and skips read shards on resuming.
        ranges = {"lake": lake, "columns": tuple(columns), "starts": [*range(0, len(lake), READ)]}
        return IterableDataset.from_generator(_read_lake, gen_kwargs=ranges), columns
    if scheme == "hf":
        rows = load_dataset(name, split=split, streaming=True)
    else:  # without a batch size, `datasets` reads a whole row group at once
        options: dict = {"data_files": _parquet(name, True), "batch_size": READ}
        rows = load_dataset("parquet", split="train", streaming=True, **options)
    columns = _used(data, kind, rows.column_names or list(next(iter(rows))))
    return rows.select_columns(columns), columns


def _used(data: str | Path, kind: str, found: list[str]) -> list[str]:
    """Return the columns found that records are made of; raises DataError if some are missing."""
    if shape := find_shape(found, kind):
        return [*shape.columns, *(name for name in shape.optional if name in found)]
    raise unknown_columns(data, kind, found)


def _lake(data: str | Path) -> Any:
    """Open a Deep Lake data set; raises the library's own errors."""
    with needs_extra("course"):
        import deeplake

    scheme, name, _ = _parts(data)
    if scheme == "hub":
        raise ValueError("an address of Deep Lake 3")
    path = f"al://{name}" if scheme else name
    try:
        return deeplake.open_read_only(path)
    except Exception:  # a query opens data sets of version 3, which this function refuses
        return deeplake.query(f'SELECT * FROM "{path}"')


def _read_lake(lake: Any, columns: tuple[str, ...], starts: list[int]) -> Iterator[Record]:
    """Yield the rows of the ranges that begin at `starts`."""
    for start in starts:
        rows = range(start, min(start + READ, len(lake)))
        values = [_read_column(lake, name, rows) for name in columns]
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _read_column(lake: Any, name: str, rows: range) -> list[Any]:
    """Return values of a column as Python objects."""
    if lake.schema[name].dtype.is_sequence:  # Deep Lake 4.7 crashes on ranges of such a column
        return [_plain(lake[name][row]) for row in rows]
    return _plain(lake[rows.start : rows.stop][name])


def _plain(value: Any) -> Any:
    """Return Deep Lake's dicts and numpy's arrays as dicts and lists."""
    if hasattr(value, "to_dict"):
        return {key: _plain(item) for key, item in value.to_dict().items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _records(
    batch: dict[str, list],
    indices: list[int],
    data: str | Path,
    kind: str,
    seed: int | None,
    dropped: Counter[str],
) -> dict[str, list]:
    """Return the usable records of one block of rows, shuffled if there is a seed."""
    rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    loaded = convert(rows, kind)
    records = loaded.records
    dropped.update(loaded.dropped)
    if loaded.dropped:
        told = ", ".join(f"{count} for {reason}" for reason, count in dropped.most_common())
        logger.warning("%s: rows dropped so far: %s", data, told)
    if not records and indices[0] == 0:
        raise DataError(f"{data}: not one usable row among the first {len(rows)}: {told}.")
    if seed is not None:
        order = np.random.default_rng([seed, indices[0]]).permutation(len(records))
        records = [records[i] for i in order]
    return {name: [record[name] for record in records] for name in FIELDS[kind]}
