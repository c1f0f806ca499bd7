"""What every stage's `train(config, resume)` shares: its data, its logs, its result.

A stage writes into its folder: the model and tokenizer (`from_pretrained` loads the folder),
`metrics.json`, TensorBoard logs under `logs/`, and checkpoints to resume from (see `checkpoints`).
"""

import itertools
import json
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import processes, sources, streams
from rlhf_helpers.configs import StageConfig
from rlhf_helpers.extras import needs_extra
from rlhf_helpers.models import first_not_finite
from rlhf_helpers.runs import write_json


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
def log_writer(config: StageConfig) -> Iterator[SummaryWriter | None]:
    """A writer of TensorBoard logs below the stage's folder; None in all processes but the first.

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
        yield stack.enter_context(SummaryWriter(config.output_dir / "logs"))


def _wandb_run(config: StageConfig) -> AbstractContextManager:
    with needs_extra("tracking"):
        import wandb

    has_account = wandb.login(prompt=False)
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "rlhf_helpers"),
        name=str(config.output_dir.relative_to(config.output_dir.parents[1])),
        dir=config.output_dir,
        config=settings_as_json(config),
        mode=None if has_account or "WANDB_MODE" in os.environ else "offline",
        sync_tensorboard=True,
    )


def settings_as_json(config: StageConfig) -> dict[str, Any]:
    """The settings in types that JSON has; paths become texts."""
    return json.loads(json.dumps(asdict(config), default=str))


def save_stage(
    config: StageConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    metrics: dict[str, float],
    history: list[dict[str, Any]],
    weights: dict[str, torch.Tensor] | None = None,
) -> Result:
    """Write the model, its tokenizer and `metrics.json`, which comes last: it says 'complete'.

    Of several processes the first one writes, and the others wait for it. `weights` are those of
    a model that is spread over the processes. Raises FloatingPointError, and writes nothing, where
    a weight or a metric is not a finite number; in the history such a number becomes null.
    """
    bad = next((name for name, value in metrics.items() if not math.isfinite(value)), None)
    bad = bad or (first_not_finite(model) if weights is None else None)
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
        model.save_pretrained(config.output_dir, state_dict=weights)
        tokenizer.save_pretrained(config.output_dir)
        report = {"metrics": metrics, "config": settings_as_json(config), "history": history}
        write_json(config.output_dir / "metrics.json", report)
    processes.wait()
    return Result(config.output_dir, metrics, history)
