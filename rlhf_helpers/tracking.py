"""Where a run's numbers go besides its files: TensorBoard always, Weights & Biases if asked for."""

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from rlhf_helpers.configs import StageConfig
from rlhf_helpers.extras import needs_extra


@contextmanager
def log_writer(config: StageConfig) -> Iterator[SummaryWriter]:
    """Writes TensorBoard logs below the stage's folder, and what goes there to W&B if asked to.

    Without an account nothing waits for one: W&B's files stay in the stage's folder then, and
    `wandb sync` sends them later. Raises ModuleNotFoundError where W&B is asked for and missing.
    """
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
        config=settings(config),
        mode=None if has_account or "WANDB_MODE" in os.environ else "offline",
        sync_tensorboard=True,
    )


def settings(config: StageConfig) -> dict[str, Any]:
    """The config as JSON can hold it."""
    return json.loads(json.dumps(asdict(config), default=str))
