"""Checkpoints below a stage's folder: `checkpoints/checkpoint-<step>`, the last one alone."""

import shutil
from pathlib import Path
from typing import Any

import torch

from rlhf_helpers import processes
from rlhf_helpers.configs import StageConfig


def start_stage(config: StageConfig, resume: bool) -> None:
    """Clear away what an earlier run left; to resume, make sure that there is a checkpoint.

    Of several processes the first one clears, and the others wait for it. Raises ValueError if
    there is nothing to resume.
    """
    folder = config.output_dir / "checkpoints"
    if resume and not any(folder.glob("checkpoint-*")):
        raise ValueError(f"{folder}: no checkpoint to resume from. Start without --resume.")
    if processes.rank() == 0:
        (config.output_dir / "metrics.json").unlink(missing_ok=True)
        if not resume:
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            for log in (config.output_dir / "logs").glob("events.out.tfevents.*"):
                log.unlink()
    processes.wait()


def save_checkpoint(output_dir: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state of a loop of ours after `step` steps; it replaces the one before."""
    folder = output_dir / "checkpoints"
    unfinished = folder / "unfinished"
    unfinished.mkdir(parents=True, exist_ok=True)
    torch.save(state, unfinished / "state.pt")
    before = list(folder.glob("checkpoint-*"))
    unfinished.rename(folder / f"checkpoint-{step}")
    for old in before:
        shutil.rmtree(old)


def load_checkpoint(output_dir: Path, device: torch.device) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote last."""
    folders = (output_dir / "checkpoints").glob("checkpoint-*")
    last = max(folders, key=lambda folder: int(folder.name.split("-")[1]))
    return torch.load(last / "state.pt", map_location=device)
