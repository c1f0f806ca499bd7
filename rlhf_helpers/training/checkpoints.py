"""A stage's folder: whose it is, whether its run is complete, and from where it can be resumed.

    run.json                        the run that was started here last: its id, its beginning
    metrics.json                    written last, with the id of its run: that run is complete
    checkpoints/checkpoint-<step>/  whole where its `complete.json` has a hash of every file
    .lock                           held by the process that trains here

The model of a complete run stays until that of the next one is whole (see `training.save_stage`).
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from rlhf_helpers import processes
from rlhf_helpers.configs import StageConfig
from rlhf_helpers.configs.settings import as_json
from rlhf_helpers.models.devices import default_device, matmul_precision
from rlhf_helpers.runs import data_dir, write_json

logger = logging.getLogger(__name__)
PACKAGES = ("rlhf-helpers", "torch", "transformers", "trl", "peft")
FREE = ("output_dir", "report_to", "save_steps")  # settings that may change when a run is resumed
COMPLETE = "complete.json"
_LOCKS: dict[Path, FileLock] = {}  # those that this process holds


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none.

    Raises ValueError, which names the file, where it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: damaged, it is no JSON. Remove it and run again.") from error


def status(folder: Path) -> str:
    """What a stage's folder holds: `nothing`, a `complete` run, or one that is `unfinished`."""
    run, metrics = read_json(folder / "run.json"), read_json(folder / "metrics.json")
    if metrics and run.get("id") == metrics.get("run"):
        return "complete"
    return "unfinished" if run or metrics or (folder / "checkpoints").exists() else "nothing"


def began_with(config: StageConfig) -> dict[str, Any]:
    """What decides the numbers of a run: settings, files, versions, precision, processes.

    A file, or a folder with a model, counts by its content, so that it may be moved.
    """
    found = {}
    for name, value in _flat(as_json(config)):
        if name.rpartition(".")[2] not in FREE:
            content = _content(value) if isinstance(value, str) else None
            found[name if content is None else f"content of {name}"] = content or value
            for path in _programs(value):
                found[f"content of {path}"] = _content(path)
    versions = {f"version of {name}": importlib.metadata.version(name) for name in PACKAGES}
    precision = {"matmul precision": matmul_precision(), "device": default_device().type}
    return found | versions | precision | {"processes": processes.count()}


def _flat(values: dict[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{start}{name}.")
        else:
            yield start + name, value


def _programs(value: Any) -> list[str]:
    """The files of a list of reward functions, each named as `file.py:function`."""
    names = value if isinstance(value, list) else []
    return [name.partition(".py:")[0] + ".py" for name in names if ".py:" in name]


def _content(text: str) -> str | None:
    """The hash of a file, or of the weights in a folder; None where there is neither."""
    path = Path(text)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if text else []
    return hashlib.sha256("".join(map(_hash, files)).encode()).hexdigest() if files else None


def check_same(config: StageConfig) -> None:
    """Raise ValueError, which names the difference, where the run in the folder began otherwise."""
    before = read_json(config.output_dir / "run.json").get("began_with", {})
    now = began_with(config)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{config.output_dir}: {name} was {before.get(name)}, now {now.get(name)}: resume "
                "with the same, or start anew without --resume"
            )


def check_data(folder: Path) -> None:
    """Raise ValueError where a run was trained on a file of `data/` that has changed since.

    Its model then belongs to another little world, or to another version of it.
    """
    before = read_json(folder / "run.json").get("began_with", {})
    for name, value in _flat(read_json(folder / "metrics.json").get("config", {})):
        content = before.get(f"content of {name}")
        if content is None or not Path(value).is_relative_to(data_dir()):
            continue
        if _content(value) not in (content, None):
            raise ValueError(
                f"{folder} was trained on another version of {value}. Train it again, or move the "
                "folder away."
            )


def claim(folder: Path) -> None:
    """Take a folder for this process, until it is released or the process ends.

    Raises ValueError, which names the other process, where one trains there already.
    """
    if folder in _LOCKS:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / ".lock"), folder / ".owner"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        other = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise ValueError(
            f"{folder}: {other} is training here. Wait for it, or choose another --output-dir."
        ) from None
    owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    _LOCKS[folder] = lock


def release(folder: Path) -> None:
    """Give a folder back; nothing happens where this process does not hold it."""
    if folder in _LOCKS:
        (folder / ".owner").unlink(missing_ok=True)
        _LOCKS.pop(folder).release()


def start_stage(config: StageConfig, resume: bool) -> Path | None:
    """Begin a run in the stage's folder; returns the checkpoint to go on from, None for a new run.

    A new run puts the checkpoints and logs of an earlier one aside. Of several processes the first
    one does so, and the others wait for it. Raises ValueError where another process trains here,
    where the run to resume began otherwise, or where its newest checkpoint is damaged.
    """
    folder = config.output_dir
    if processes.rank() == 0:
        claim(folder)
    if resume:
        check_same(config)
    checkpoint = newest_checkpoint(folder) if resume else None
    processes.wait()  # all have seen what is there
    if processes.rank() == 0:
        if checkpoint is None:
            if resume:
                logger.warning("%s: no whole checkpoint yet, so the run starts anew", folder)
            _set_aside(folder / "checkpoints")
            _set_aside(folder / "logs")
            run = {"id": uuid.uuid4().hex, "began_with": began_with(config)}
            write_json(folder / "run.json", run)
        else:
            _remove_others(checkpoint)
    processes.wait()
    return checkpoint


def _set_aside(folder: Path) -> None:
    """Rename a folder to `….earlier`, unless that holds something of a complete run already."""
    earlier = folder.with_name(folder.name + ".earlier")
    if folder.exists() and earlier.exists():
        shutil.rmtree(folder)
    elif folder.exists():
        folder.rename(earlier)


def finish_run(folder: Path) -> None:
    """Remove what was put aside for a run that is complete now, and release its folder."""
    for name in ("checkpoints.earlier", "logs.earlier"):
        shutil.rmtree(folder / name, ignore_errors=True)
    release(folder)


def step_of(checkpoint: Path) -> int:
    """How many steps were done when a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage's folder, or None.

    Raises ValueError, which names the file, where one of its files has changed or is missing.
    """
    found = (folder / "checkpoints").glob("checkpoint-*")
    whole = [path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)]
    whole = [path for path in whole if (path / COMPLETE).exists()]
    if not whole:
        return None
    newest = max(whole, key=step_of)
    for name, expected in read_json(newest / COMPLETE)["files"].items():
        path = newest / name
        if not path.exists() or _hash(path) != expected:
            raise ValueError(
                f"{path}: {'damaged' if path.exists() else 'missing'}. Remove the folder {newest} "
                "to resume from an earlier checkpoint if there is one, or start without --resume."
            )
    return newest


def complete_checkpoint(checkpoint: Path) -> None:
    """Mark a checkpoint, all of whose files are written, as whole; it replaces all others."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    hashes = {str(path.relative_to(checkpoint)): _hash(path) for path in files}
    write_json(checkpoint / COMPLETE, {"files": hashes})
    _remove_others(checkpoint)


def _remove_others(checkpoint: Path) -> None:
    """Remove all checkpoints but this one, also those that a kill has cut short."""
    for other in checkpoint.parent.iterdir():
        if other != checkpoint and other.is_dir():
            shutil.rmtree(other)
    shutil.rmtree(checkpoint.parent.with_name("checkpoints.earlier"), ignore_errors=True)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(output_dir: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state of a loop of ours after `step` steps; it replaces the one before."""
    checkpoint = output_dir / "checkpoints" / f"checkpoint-{step}"
    shutil.rmtree(checkpoint, ignore_errors=True)
    checkpoint.mkdir(parents=True)
    torch.save(state, checkpoint / "state.pt")
    complete_checkpoint(checkpoint)


def load_checkpoint(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote."""
    return torch.load(checkpoint / "state.pt", map_location=device)
