"""What every stage's `train(config, resume)` shares: its data, its logs, its result.

A stage writes into its folder: the model and tokenizer (`from_pretrained` loads the folder),
`metrics.json`, TensorBoard logs under `logs/`, and checkpoints to resume from (see `checkpoints`).
"""

import functools
import itertools
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import chat, processes, sources
from rlhf_helpers.configs import StageConfig
from rlhf_helpers.configs.settings import as_json
from rlhf_helpers.extras import needs_extra
from rlhf_helpers.models import HEAD_FILE, first_not_finite
from rlhf_helpers.next_token import end_ids
from rlhf_helpers.runs import write_json
from rlhf_helpers.sources import streams
from rlhf_helpers.training.checkpoints import check_same, finish_run, read_json, release, status

logger = logging.getLogger(__name__)


@dataclass
class Result:
    """What a stage returns: its folder, its numbers, and one dict a logged step."""

    output_dir: Path
    metrics: dict[str, float]
    history: list[dict[str, Any]] = field(repr=False)


def read_some(data: str | Path, kind: str, limit: int | None) -> list[Any]:
    """The first `limit` records of a file, which is checked whole, or of a stream.

    Of a stream no more than these are read. Raises DataError for a bad record of a file.
    """
    if streams.is_stream(data):
        return list(itertools.islice(streams.stream(data, kind, buffer=0), limit))
    return sources.read_file(data, kind)[:limit]


@contextmanager
def log_writer(config: StageConfig, step: int | None = None) -> Iterator[SummaryWriter | None]:
    """A writer of TensorBoard logs below the stage's folder; None in all processes but the first.

    A resumed run names the first step that it does again: readers drop the earlier points from
    there on.

    With `report_to="wandb"` Weights & Biases gets the same numbers. Without an account nothing
    waits for one: its files stay in the stage's folder, and `wandb sync` sends them later. Raises
    ModuleNotFoundError where W&B is asked for and missing.
    """
    if processes.rank() > 0:
        yield None
        return
    with ExitStack() as stack:
        if config.report_to == "wandb":
            stack.enter_context(_wandb_run(config))
        yield stack.enter_context(SummaryWriter(config.output_dir / "logs", purge_step=step))


def _wandb_run(config: StageConfig) -> AbstractContextManager:
    with needs_extra("tracking"):
        import wandb

    has_account = wandb.login(prompt=False)
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "rlhf_helpers"),
        name=str(config.output_dir.relative_to(config.output_dir.parents[1])),
        dir=config.output_dir,
        config=as_json(config),
        mode=None if has_account or "WANDB_MODE" in os.environ else "offline",
        sync_tensorboard=True,
    )


def resumable(train: Callable[[Any, bool], Result]) -> Callable[..., Result]:
    """Decorate a stage's `train`: resuming a complete run changes nothing and returns its result.

    However the run ends, its folder is released for other processes. Raises ValueError where
    there is no run to resume, or a complete one had other settings.
    """

    @functools.wraps(train)
    def run(config: Any, resume: bool = False) -> Result:
        folder = config.output_dir
        try:
            found = status(folder)
            if resume and found == "nothing":
                raise ValueError(f"{folder}: no run to resume. Start without --resume.")
            if resume and found == "complete":
                check_same(config)
                logger.warning("%s: this run is complete; nothing is left to do", folder)
                report = read_json(folder / "metrics.json")
                return Result(folder, report["metrics"], report["history"])
            return train(config, resume)
        finally:
            release(folder)

    return run


def save_stage(
    config: StageConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    metrics: dict[str, float],
    history: list[dict[str, Any]],
    weights: dict[str, torch.Tensor] | None = None,
    head: torch.nn.Module | None = None,
) -> Result:
    """Write the model, its tokenizer and `metrics.json`, which comes last: it says 'complete'.

    They are written aside, and replace those of an earlier run when they are whole. Of several
    processes the first one writes, and the others wait for it. `weights` are those of a model that
    is spread over the processes, `head` is saved beside the model. Raises FloatingPointError, and
    writes nothing, where a weight or a metric is not a finite number; in the history such a number
    becomes null.
    """
    bad = next((name for name, value in metrics.items() if not math.isfinite(value)), None)
    bad = bad or (first_not_finite(model) if weights is None else None)
    bad = bad or (first_not_finite(head) if head is not None else None)
    if bad is not None:
        raise FloatingPointError(
            f"training diverged: {bad} is not a finite number after the last step. Nothing was "
            f"saved. Lower learning_rate (now {config.learning_rate:g})"
        )
    history = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in history
    ]
    if processes.rank() == 0:
        folder, new = config.output_dir, config.output_dir / "unfinished"
        shutil.rmtree(new, ignore_errors=True)
        _list_ends(model, tokenizer)
        model.save_pretrained(new, state_dict=weights)
        tokenizer.save_pretrained(new)
        if head is not None:
            save_file(head.state_dict(), new / HEAD_FILE)
        run = read_json(folder / "run.json").get("id")
        report = {"metrics": metrics, "config": as_json(config), "history": history, "run": run}
        write_json(new / "metrics.json", report)
        _replace_model(folder, new)
        finish_run(folder)
    processes.wait()
    return Result(config.output_dir, metrics, history)


def _list_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a chat model's answers end elsewhere where they ended in training."""
    generation_config = getattr(model, "generation_config", None)
    if generation_config is not None and model.can_generate() and chat.is_on(tokenizer):
        generation_config.eos_token_id = end_ids(model, tokenizer)


def _replace_model(folder: Path, new: Path) -> None:
    """Move the files of a new model in place of an earlier one's, `metrics.json` last."""
    (folder / "metrics.json").unlink(missing_ok=True)
    for weights in (*folder.glob("model*.safetensors*"), *folder.glob(HEAD_FILE)):
        weights.unlink()
    for path in sorted(new.iterdir(), key=lambda path: path.name == "metrics.json"):
        os.replace(path, folder / path.name)
    new.rmdir()
