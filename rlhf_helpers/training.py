"""What every stage's `train(config)` shares: its result, its files, and how TRL is called.

A stage writes into its folder: the model and tokenizer (`from_pretrained` loads the folder),
`metrics.json`, TensorBoard logs under `logs/`, and checkpoints to resume from under `checkpoints/`.
"""

import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import DistributedType
from datasets import Dataset, IterableDataset
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

from rlhf_helpers import processes, sources, streams
from rlhf_helpers.configs import StageConfig, TRLStageConfig
from rlhf_helpers.models import compute_dtype, default_device
from rlhf_helpers.runs import write_json
from rlhf_helpers.tracking import log_writer, settings

# kind of record -> what reads a whole JSONL file of them, strictly
HELD_OUT = 1000  # records of `eval_data` that are looked at, at most

Encode = Callable[[list], list[dict[str, Any]]]  # rows of tokens from records


@dataclass
class Result:
    """What a stage returns: its folder, its numbers, and one dict a logged step."""

    output_dir: Path
    metrics: dict[str, float]
    history: list[dict[str, Any]] = field(repr=False)


def read_some(data: str | Path, kind: str, limit: int | None) -> list[Any]:
    """The first records of a file, or of a named source, of which no more is read."""
    if streams.is_stream(data):
        return list(itertools.islice(streams.stream(data, kind, buffer=0), limit))
    return sources.read_file(data, kind)[:limit]


def streamed_rows(
    config: TRLStageConfig, kind: str, encode: Encode, limit: int | None
) -> IterableDataset:
    """The records of a named source as rows to train on: read as they are used, and shuffled."""
    if limit is None:  # one long pass, which can be resumed anywhere
        epochs = math.ceil(config.epochs)
        records = streams.stream(config.data, kind, config.seed, epochs=epochs)
    else:
        records = streams.stream(config.data, kind, config.seed).take(limit)

    def rows_of(columns: dict[str, list]) -> dict[str, list]:
        batch = zip(*columns.values(), strict=True)
        rows = encode([dict(zip(columns, record, strict=True)) for record in batch])
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}

    return records.map(rows_of, batched=True, batch_size=64, remove_columns=records.column_names)


def stream_steps(config: TRLStageConfig, limit: int | None, rows_a_record: float = 1) -> int:
    """A stream has no length, so TRL is told how many steps the epochs take."""
    records = min(limit or math.inf, streams.count_rows(config.data))
    return math.ceil(records * rows_a_record * config.epochs / config.batch_size)


def trl_arguments(config: TRLStageConfig, **arguments: Any) -> dict[str, Any]:
    """The settings that SFT, reward model and DPO pass on to TRL in the same way."""
    on_gpu = default_device().type == "cuda"
    return {
        "output_dir": str(config.output_dir / "checkpoints"),
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "accelerator_config": {"split_batches": True},  # all processes together take one batch
        "ddp_find_unused_parameters": False,  # there are none, and looking for them takes time
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "lr_scheduler_type": config.lr_scheduler_type,
        "weight_decay": config.weight_decay,
        "adam_beta2": 0.98,
        "train_sampling_strategy": "group_by_length",
        "max_length": None,  # cut by us, so that no record disappears
        "bf16": on_gpu and compute_dtype() == torch.bfloat16,
        "fp16": on_gpu and compute_dtype() == torch.float16,
        "use_cpu": default_device().type == "cpu",
        "logging_steps": 5,
        "logging_first_step": True,
        "save_steps": config.save_steps,
        "save_total_limit": 1,
        "activation_checkpointing": config.gradient_checkpointing,
        "disable_tqdm": True,  # see `Progress`
        "report_to": "none",  # the log folder is ours to name: see `run_trainer`
        "seed": config.seed,
        **(_evaluation_arguments(config) if config.eval_data else {}),
        **arguments,
    }


def _evaluation_arguments(config: TRLStageConfig) -> dict[str, Any]:
    """Measure the loss on held-out data whenever a checkpoint is written."""
    return {
        "eval_strategy": "steps",
        "eval_steps": config.save_steps,
        "per_device_eval_batch_size": config.batch_size,
        "prediction_loss_only": True,  # the logits of all records would not fit
    }


def held_out_rows(config: TRLStageConfig, kind: str, encode: Encode) -> Dataset | None:
    """The first records of the config's `eval_data` as rows."""
    if config.eval_data is None:
        return None
    return Dataset.from_list(encode(read_some(config.eval_data, kind, HELD_OUT)))


def last_logged(trainer: Trainer, *names: str) -> dict[str, float]:
    """What was logged last under these names, as far as it was."""
    log = trainer.state.log_history
    found = {name: [row[name] for row in log if name in row] for name in names}
    return {name: values[-1] for name, values in found.items() if values}


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
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # TRL rounds what is trained above quantised weights
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    main = processes.rank() == 0
    with score_only_responses(), log_writer(config) if main else nullcontext() as writer:
        if writer is not None:
            trainer.add_callback(Progress())
            trainer.add_callback(TensorBoardCallback(writer))
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


def whole_weights(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """The weights of a model that FSDP or ZeRO has spread over the processes, in the first one."""
    accelerator = trainer.accelerator
    if accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return None
    return accelerator.get_state_dict(trainer.model_wrapped)


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
    a model that is spread over the processes.
    """
    if processes.rank() == 0:
        model.save_pretrained(config.output_dir, state_dict=weights)
        tokenizer.save_pretrained(config.output_dir)
        report = {"metrics": metrics, "config": settings(config), "history": history}
        write_json(config.output_dir / "metrics.json", report)
    processes.wait()
    return Result(config.output_dir, metrics, history)
