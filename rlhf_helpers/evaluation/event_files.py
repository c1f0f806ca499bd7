"""Read training curves from TensorBoard's event files, whoever wrote them."""

import warnings
from pathlib import Path

import pandas as pd
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from rlhf_helpers.schemas import DataError, StrPath

RECORD_FRAME = 16  # bytes around a record: its length (8), and two checksums (4 each)


def read_tensorboard(logdir: StrPath) -> pd.DataFrame:
    """Every scalar in the event files of a folder and the folders below it.

    Columns `run` (the sub-folder, "." for `logdir` itself), `tag`, `step`, `wall_time` (seconds
    since 1970) and `value`, a row a point; none is thinned out. Scalars that TPU and Vertex AI jobs
    store as tensors count too. What a restarted job has logged again is there once if the job
    marks its sessions, as TensorFlow's do, else twice: as in TensorBoard. A file that breaks off
    gives what is readable, with a warning. Raises DataError where there is no scalar at all.
    """
    root = Path(logdir)
    files = sorted(path for path in root.rglob("*tfevents*") if path.is_file())
    if not files:
        raise DataError(
            f"{logdir}: no TensorBoard event file (events.out.tfevents…) in this folder or below. "
            "Name the folder that the job has written its logs to; copy it here first if it lies "
            "in a bucket."
        )
    for path in files:
        _warn_if_broken(path)
    rows: list[tuple] = []
    for folder in sorted({path.parent for path in files}):
        rows += _scalars(folder, folder.relative_to(root).as_posix())
    if not rows:
        raise DataError(
            f"{logdir}: no scalar in {len(files)} event files. The job has logged none yet, or "
            "these are the logs of something else."
        )
    return pd.DataFrame(rows, columns=["run", "tag", "step", "wall_time", "value"])


def _scalars(folder: Path, run: str) -> list[tuple]:
    """A tuple a point. The library turns old-style scalars into tensors, so that all are alike."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})  # 0: keep all
    events.Reload()
    rows = []
    for tag in events.Tags()["tensors"]:
        for event in events.Tensors(tag):
            tensor = make_ndarray(event.tensor_proto)
            if tensor.size == 1 and tensor.dtype.kind in "biuf":  # no histogram, text or picture
                rows.append((run, tag, event.step, event.wall_time, float(tensor.item())))
    return rows


def _warn_if_broken(path: Path) -> None:
    """The library stops at a broken record without a word, so count the bytes that it has read."""
    records = RawEventFileLoader(str(path)).Load()
    unread = path.stat().st_size - sum(len(record) + RECORD_FRAME for record in records)
    if unread:
        warnings.warn(
            f"{path}: the last {unread} bytes are unreadable, as when a job was killed or is still "
            "writing; what comes before them is there.",
            stacklevel=3,
        )
