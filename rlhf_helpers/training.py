"""What every stage's `train(config)` shares: its result, its files, and how TRL is called.

A stage writes into its folder: the model and tokenizer (`from_pretrained` loads the folder),
`metrics.json`, TensorBoard logs under `logs/`, and checkpoints to resume from under `checkpoints/`.
"""

import importlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
)
from transformers.integrations import TensorBoardCallback

from rlhf_helpers import processes
from rlhf_helpers.runs import write_json
from rlhf_helpers.scales import DPOConfig, RewardConfig, Scale, SFTConfig, StageConfig

# stage -> module with its `train`
STAGES = {"sft": "sft", "reward": "reward_model", "ppo": "ppo", "dpo": "dpo"}

TRLStageConfig = SFTConfig | RewardConfig | DPOConfig


@dataclass
class Result:
    """What a stage returns: its folder, its numbers, and one dict a logged step."""

    output_dir: Path
    metrics: dict[str, float]
    history: list[dict[str, Any]] = field(repr=False)


def train_stage(stage: str, config: StageConfig, resume: bool = False) -> Result:
    """Run the stage of this name: `train(config)` of its module."""
    return importlib.import_module(f"rlhf_helpers.{STAGES[stage]}").train(config, resume)


def train_missing(scale: Scale, *stages: str) -> None:
    """Train, with the scale's settings, those of `stages` whose results are not in `runs/` yet."""
    for stage in stages:
        if not (scale.dir(stage) / "metrics.json").exists():
            train_stage(stage, scale.config(stage))


def trl_arguments(config: TRLStageConfig, **arguments: Any) -> dict[str, Any]:
    """The settings that SFT, reward model and DPO pass on to TRL in the same way."""
    return {
        "output_dir": str(config.output_dir / "checkpoints"),
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "accelerator_config": {"split_batches": True},  # all processes together take one batch
        "ddp_find_unused_parameters": False,  # there are none, and looking for them takes time
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "lr_scheduler_type": "linear",
        "adam_beta2": 0.98,
        "train_sampling_strategy": "group_by_length",
        "max_length": None,  # cut by us, so that no record disappears
        "bf16": False,
        "use_cpu": not torch.cuda.is_available() and not torch.backends.mps.is_available(),
        "logging_steps": 5,
        "logging_first_step": True,
        "save_steps": config.save_steps,
        "save_total_limit": 1,
        "activation_checkpointing": False,  # TRL would trade a fifth of the speed for memory
        "disable_tqdm": True,  # see `Progress`
        "report_to": "none",  # the log folder is ours to name: see `run_trainer`
        "seed": config.seed,
        **arguments,
    }


class Progress(TrainerCallback):
    """A progress bar with the latest loss, in place of the Trainer's long table."""

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Open the bar; a resumed run starts where it was."""
        self.bar = tqdm(total=state.max_steps, initial=state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """One step further."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Show the loss."""
        if "loss" in state.log_history[-1]:
            self.bar.set_postfix(loss=f"{float(state.log_history[-1]['loss']):.3f}")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Close the bar, which leaves its last line."""
        self.bar.close()


@contextmanager
def score_only_responses() -> Iterator[None]:
    """Keep TRL from running the language-model head over the prompts too.

    Where Triton is missing it scores every position and masks those without a label afterwards:
    the same numbers, in 1.7 times the time.
    """
    with mock.patch("trl.trainer.utils._use_triton", return_value=True):
        yield


def run_trainer(trainer: Trainer, config: TRLStageConfig, resume: bool) -> float:
    """Train, with logs in the stage's folder; returns the seconds it took."""
    start_stage(config, resume)
    trainer.remove_callback(PrinterCallback)
    if processes.rank() == 0:
        trainer.add_callback(Progress())
        trainer.add_callback(TensorBoardCallback(SummaryWriter(config.output_dir / "logs")))
    started = time.perf_counter()
    with score_only_responses():
        trainer.train(resume_from_checkpoint=resume)
    return time.perf_counter() - started


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


def save_stage(
    config: StageConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    metrics: dict[str, float],
    history: list[dict[str, Any]],
) -> Result:
    """Write the model, its tokenizer and `metrics.json`, which comes last: it says 'complete'.

    Of several processes the first one writes, and the others wait for it.
    """
    if processes.rank() == 0:
        model.save_pretrained(config.output_dir)
        tokenizer.save_pretrained(config.output_dir)
        settings = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(config).items()}
        report = {"metrics": metrics, "config": settings, "history": history}
        write_json(config.output_dir / "metrics.json", report)
    processes.wait()
    return Result(config.output_dir, metrics, history)
