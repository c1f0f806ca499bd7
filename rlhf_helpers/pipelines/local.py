"""Runs the portable pipeline on this machine and publishes its models into `runs/`.

    runs/<scale>/pipeline/seed<k>/     KFP's own artefacts, its cache, and pipeline.log
    runs/<scale>/<task>/seed<k>/       sft, reward and ppo, as `Scale.dir` names them; pipeline.json

Nothing is published unless every step succeeds.
"""

import io
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from kfp import local

from rlhf_helpers import schemas
from rlhf_helpers.pipelines import parameters, stages
from rlhf_helpers.pipelines.portable import make_pipeline
from rlhf_helpers.runs import runs_dir, write_json
from rlhf_helpers.scales import Scale

PUBLISHED = {"sft": "sft_model", "reward": "reward_model", "ppo": "tuned_model"}
PREDICTIONS = {"sft": "untuned_predictions", "ppo": "tuned_predictions"}
READERS = {
    "preference_dataset": schemas.read_comparisons,
    "prompt_dataset": schemas.read_prompts,
    "eval_dataset": schemas.read_prompts,
    "sft_dataset": schemas.read_demonstrations,
}


class PipelineFailed(Exception):
    """A step has failed; the message names it and shows the end of its log."""


@dataclass(frozen=True)
class LocalRun:
    """The result of a run: the folder that it published to, its metrics and its seconds."""

    folder: Path
    metrics: dict[str, float]  # of the evaluation
    seconds: dict[str, float]  # of each step, the start of its process included


class Progress(io.TextIOBase):
    """Replaces stdout: writes everything to a log file, and shows steps and progress bars."""

    STARTS = re.compile(r"Executing task .*?'([\w-]+)'")
    CACHED = re.compile(r"Task ([\w-]+) cache hit")
    ENDS = re.compile(r"finished with status")
    BAR = re.compile(r"\s*(\d+%\|.*)")

    def __init__(self, log: TextIO, shown: TextIO, names: Mapping[str, str]):
        self.log, self.shown, self.names = log, shown, names
        self.line, self.task, self.started, self.last_bar, self.width = "", "", 0.0, 0.0, 0
        self.seconds: dict[str, float] = {}

    def write(self, text: str) -> int:
        """Write the text to the log, and show its complete lines if they report progress."""
        self.log.write(text)
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            self._show(line)
        return len(text)

    def flush(self) -> None:
        """Flush the log and the screen."""
        self.log.flush()
        self.shown.flush()

    def _show(self, line: str) -> None:
        now = time.perf_counter()
        if found := self.STARTS.search(line):
            self.task, self.started = self.names[found[1]], now
            self._overwrite(f"{self.task} …")
        elif found := self.CACHED.search(line):
            self.seconds[self.names[found[1]]] = 0.0
            self._overwrite(f"{self.names[found[1]]}: from the cache", end="\n")
        elif self.task and self.ENDS.search(line):
            self.seconds[self.task] = now - self.started
            good = "SUCCESS" in line
            end = f"{now - self.started:.0f} s" if good else "failed"
            self._overwrite(f"{self.task}: {end}", end="\n")
            self.task = "" if good else self.task
        elif self.task and (found := self.BAR.match(line)) and now - self.last_bar > 0.5:
            self.last_bar = now
            self._overwrite(f"{self.task} {found[1]}")

    def _overwrite(self, text: str, end: str = "") -> None:
        """Replace the line that is shown last."""
        self.shown.write("\r" + " " * self.width + "\r" + text + end)
        self.shown.flush()
        self.width = 0 if end else len(text)


def run(values: Mapping[str, Any], processes: int = 1, cached: bool = False) -> LocalRun:
    """Run the portable pipeline here with these parameters, and publish its models.

    With several `processes` the training steps share their batches, as they would on that many
    GPUs. `cached` reuses steps of the last run of this scale and seed whose inputs are the same;
    KFP compares parameters and paths, not the content of files. Raises ValueError for bad
    parameters and DataError for bad data sets before anything starts, and PipelineFailed later.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}: it must be a whole number of at least 1")
    gpu_type = "nvidia.com/gpu" if processes > 1 else ""  # the local runner ignores it
    pipeline = make_pipeline(gpu_type=gpu_type, gpu_count=processes if processes > 1 else 0)
    given = {name: value for name, value in values.items() if value is not None}
    parameters.check(given, pipeline)
    for name, read in READERS.items():
        if path := stages.local_path(given.get(name, "")):
            read(path)
    scale = Scale(given.get("scale", "tiny"), "summarize", given.get("seed", 0))
    named = given.get("large_model_reference", "")
    if named and not stages.base_model(named):
        print(f"{named} is a model of Google's component: {scale.base_model} is tuned instead")
    root = runs_dir() / scale.name / "pipeline" / f"seed{scale.seed}"
    if not cached:
        shutil.rmtree(root, ignore_errors=True)
    tasks = pipeline.pipeline_spec.root.dag.tasks
    with _kfp(root, {name: task.task_info.name for name, task in tasks.items()}) as progress:
        outputs = pipeline(**given).outputs
    return _publish(outputs, scale, given, progress.seconds)


@contextmanager
def _kfp(root: Path, names: Mapping[str, str]) -> Iterator[Progress]:
    """Set KFP up to run here, with artefacts, cache and log under `root`, and replace stdout."""
    root.mkdir(parents=True, exist_ok=True)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), enable_caching=True)
    path, logger = root / "pipeline.log", logging.getLogger()
    level = logger.level
    with path.open("w", 1, encoding="utf-8") as log, warnings.catch_warnings():
        # KFP warns for every step that it ignores image, name and GPUs, which is intended here.
        warnings.filterwarnings("ignore", module="kfp")
        progress = Progress(log, sys.stdout, names)
        handler = logging.StreamHandler(progress)  # KFP logs what it takes from its cache
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            with redirect_stdout(progress):
                yield progress
        except RuntimeError as error:
            end = "\n".join(path.read_text(encoding="utf-8").rstrip().splitlines()[-25:])
            raise PipelineFailed(
                f"{progress.task or 'the pipeline'} failed; nothing was published. The log "
                f"({os.path.relpath(path)}) ends:\n{end}"
            ) from error
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


def _publish(
    outputs: Mapping[str, Any], scale: Scale, given: Mapping[str, Any], seconds: dict[str, float]
) -> LocalRun:
    """Copy the models to their stages' folders; `metrics.json`, copied last, marks completion."""
    for stage, name in PUBLISHED.items():
        source, folder = Path(outputs[name].path), scale.dir(stage)
        (folder / "metrics.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "logs", ignore_errors=True)
        shutil.copytree(
            source, folder, ignore=shutil.ignore_patterns("metrics.json"), dirs_exist_ok=True
        )
        if stage in PREDICTIONS:
            shutil.copy(outputs[PREDICTIONS[stage]].path, folder / "predictions.jsonl")
        shutil.copy(source / "metrics.json", folder / "metrics.json")
    result = LocalRun(
        scale.dir("ppo").parent, dict(sorted(outputs["metrics"].metadata.items())), seconds
    )
    report = {"parameters": dict(given), "metrics": result.metrics, "seconds": seconds}
    write_json(result.folder / "pipeline.json", report)
    return result
