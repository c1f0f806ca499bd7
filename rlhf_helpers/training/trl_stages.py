"""How SFT, reward model and DPO call TRL: arguments, rows, progress, and the training itself."""

import inspect
import math
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import DistributedType
from datasets import Dataset, IterableDataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
)
from transformers.integrations import TensorBoardCallback

from rlhf_helpers import processes
from rlhf_helpers.configs import TRLStageConfig
from rlhf_helpers.models import first_not_finite
from rlhf_helpers.models.devices import compute_dtype, default_device
from rlhf_helpers.sources import streams
from rlhf_helpers.training import interrupts, log_writer, read_some
from rlhf_helpers.training.checkpoints import complete_checkpoint, start_stage, step_of

HELD_OUT = 1000  # at most so many records of `eval_data` are used

Encode = Callable[[list], list[dict[str, Any]]]  # rows of tokens from records


def streamed_rows(
    config: TRLStageConfig, kind: str, encode: Encode, limit: int | None
) -> IterableDataset:
    """The records of a stream as rows to train on: shuffled, and read only as they are used."""
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
    """How many steps the epochs take: a stream has no length, so TRL must be told."""
    records = min(limit or math.inf, streams.count_rows(config.data))
    return math.ceil(records * rows_a_record * config.epochs / config.batch_size)


def held_out_rows(config: TRLStageConfig, kind: str, encode: Encode) -> Dataset | None:
    """The first records of the config's `eval_data` as rows; None where there is none."""
    if config.eval_data is None:
        return None
    return Dataset.from_list(encode(read_some(config.eval_data, kind, HELD_OUT)))


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
        "max_length": None,  # the stages cut texts themselves, so that no record disappears
        "bf16": on_gpu and compute_dtype() == torch.bfloat16,
        "fp16": on_gpu and compute_dtype() == torch.float16,
        "use_cpu": default_device().type == "cpu",
        "logging_steps": logging_steps(config),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would make a loss that is not a number 0
        "save_steps": config.save_steps,
        "activation_checkpointing": config.gradient_checkpointing,
        "disable_tqdm": True,  # see `Progress`
        "report_to": "none",  # `run_trainer` logs, into the stage's folder
        "seed": config.seed,
        **(_evaluation_arguments(config) if config.eval_data else {}),
        **arguments,
    }


def logging_steps(config: TRLStageConfig) -> int:
    """Every 5 steps or fewer, and at each checkpoint: a resumed run logs the same means."""
    return max(n for n in range(1, 6) if config.save_steps % n == 0)


def _evaluation_arguments(config: TRLStageConfig) -> dict[str, Any]:
    """Measure the loss on held-out data whenever a checkpoint is written."""
    return {
        "eval_strategy": "steps",
        "eval_steps": config.save_steps,
        "per_device_eval_batch_size": config.batch_size,
        "prediction_loss_only": True,  # the logits of all records would not fit
    }


class ScoredResponses:
    """Stands for a language model where TRL trains it, and scores only what has a label.

    TRL asks its trainers' models for log-probs with `fused_lm_head=True`. Without Triton, which
    GPUs alone have, the head then scores every position, and the prompts' are thrown away: the
    same numbers in 1.7 times the time. Here it scores the positions that have a label in some row.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __call__(self, *, fused_lm_head: bool = False, **inputs: Any) -> Any:
        """TRL's log-probs (B, T - 1) and their statistics, 0 where there is no label."""
        if not fused_lm_head:
            return self.model(**inputs)
        labels = inputs.pop("labels")[:, 1:]
        labelled = labels != -100
        positions = labelled.any(0).nonzero()[:, 0]
        logits = self.model(**inputs, logits_to_keep=positions).logits.float()
        labels, kept = labels[:, positions].clamp(min=0), labelled[:, positions]

        def spread(values: Tensor) -> Tensor:
            everywhere = values.new_zeros(labelled.shape)
            return everywhere.index_copy(1, positions, values.masked_fill(~kept, 0))

        scores = logits.log_softmax(-1)
        with torch.no_grad():
            entropy = -(scores.exp() * scores).sum(-1)
            is_top1 = logits.argmax(-1) == labels
        return SimpleNamespace(
            log_probs=spread(scores.gather(2, labels[:, :, None])[:, :, 0]),
            entropy=spread(entropy),
            mean_logits=spread(logits.detach().mean(-1)),
            is_top1=spread(is_top1),
            label_mask=labelled,
        )


def scored_responses(model: PreTrainedModel) -> Any:
    """The model as `ScoredResponses` where that is faster and its `forward` can do it."""
    inner = getattr(model, "module", model)  # of one wrapped for several processes
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    takes = inspect.signature(type(inner).forward).parameters
    if inner.device.type == "cuda" or "logits_to_keep" not in takes:
        return model
    return ScoredResponses(model)


def last_logged(trainer: Trainer, *names: str) -> dict[str, float]:
    """The last logged value of each of these names that has been logged."""
    log = trainer.state.log_history
    found = {name: [row[name] for row in log if name in row] for name in names}
    return {name: values[-1] for name, values in found.items() if values}


class Progress(TrainerCallback):
    """A progress bar with the latest loss, in place of the Trainer's long table."""

    bar: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Open the bar; a resumed run starts where it was."""
        self.bar = tqdm(total=state.max_steps, initial=state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Move the bar by the steps done since."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Show the loss."""
        if "loss" in state.log_history[-1]:
            self.bar.set_postfix(loss=f"{float(state.log_history[-1]['loss']):.3f}")

    def close(self) -> None:
        """Close the bar, which leaves its last line."""
        if self.bar is not None:
            self.bar.close()


def diverged(config: TRLStageConfig, found: str, step: int, steps: int) -> FloatingPointError:
    """The error of a training that has left the finite numbers, with its remedy."""
    return FloatingPointError(
        f"training diverged: {found} at step {step} of {steps}. Lower learning_rate (now "
        f"{config.learning_rate:g}), or raise warmup_steps (now {config.warmup_steps})"
    )


class StopWhenDiverged(TrainerCallback):
    """Stops training where the loss, or a weight that would be saved, is no longer a number."""

    def __init__(self, config: TRLStageConfig):
        self.config = config

    def on_log(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Check the losses of the steps since the last log."""
        row = state.log_history[-1]
        losses = {name: float(row[name]) for name in ("loss", "eval_loss") if name in row}
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise diverged(self.config, f"{name} is {loss}", state.global_step, state.max_steps)

    def on_step_end(
        self, args: Any, state: TrainerState, control: Any, model: torch.nn.Module, **_: Any
    ) -> None:
        """Check the weights before they are saved over those of the last checkpoint."""
        name = first_not_finite(model) if control.should_save else None
        if name is not None:
            found = f"the weight {name} is not a finite number"
            raise diverged(self.config, found, state.global_step, state.max_steps)


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint as whole once all processes have written their part of it.

    A run that is asked to stop writes one after its step. TRL counts a resumed run's tokens from 0:
    those before the checkpoint are added.
    """

    tokens = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Note how many tokens were counted before the checkpoint."""
        counts = [row["num_tokens"] for row in state.log_history if "num_tokens" in row]
        self.tokens = max(counts, default=0)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float], **_: Any
    ) -> None:
        """Add them to the count since."""
        for row in (logs, state.log_history[-1]):
            if "num_tokens" in row:
                row["num_tokens"] += self.tokens

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Save and stop where a signal has asked for it."""
        if interrupts.is_asked_to_stop():
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Hash its files, and remove the checkpoint before it."""
        processes.wait()
        if processes.rank() == 0:
            complete_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def run_trainer(trainer: Trainer, config: TRLStageConfig, resume: bool) -> float:
    """Train, with logs in the stage's folder; returns the seconds it took."""
    checkpoint = start_stage(config, resume)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # TRL rounds what is trained above quantised weights
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(CompleteCheckpoints())
    trainer.add_callback(StopWhenDiverged(config))  # it checks what is to be saved
    started = time.perf_counter()
    step = step_of(checkpoint) + 1 if checkpoint else None
    with log_writer(config, step) as writer, closing(Progress()) as progress:
        if writer is not None:
            trainer.add_callback(progress)
            trainer.add_callback(TensorBoardCallback(writer))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    interrupts.stop_if_asked()
    return time.perf_counter() - started


def whole_weights(trainer: Trainer) -> dict[str, Tensor] | None:
    """All weights of a model that FSDP or ZeRO has spread over the processes; else None."""
    accelerator = trainer.accelerator
    if accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return None
    return accelerator.get_state_dict(trainer.model_wrapped)
