"""The work of the portable pipeline's steps, each of which runs in its own process or container.

The components of `portable.py` call these functions. An empty text or 0 means the scale's own
setting. Data sets are local files, or `gs://` addresses, which Vertex AI mounts under `/gcs/`.
Heavy imports stand in the functions, so that each step imports only what it needs.
"""

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_helpers.configs import PPORunConfig, RewardConfig, StageConfig
from rlhf_helpers.pipelines.google_models import MODELS, model_key
from rlhf_helpers.runs import write_json
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import (
    Preference,
    Prompt,
    format_prompt,
    ranking_to_pairs,
    read_comparisons,
    read_preferences,
    read_prompts,
    write_jsonl,
)

logger = logging.getLogger(__name__)

PAIRS_A_STEP = 64  # in Google's component
MAX_NEW_TOKENS = 48  # unless target_sequence_length or a config says otherwise


def local_path(data_set: str) -> Path | None:
    """The file of a data set: Vertex AI mounts `gs://bucket/…` as `/gcs/bucket/…`."""
    if not data_set:
        return None
    return Path(data_set.replace("gs://", "/gcs/", 1) if data_set.startswith("gs://") else data_set)


def base_model(large_model_reference: str) -> str | None:
    """A folder or a name of the hub; None, the scale's own model, for Google's names.

    Only Google has the weights behind its names: that they are replaced is logged.
    """
    if large_model_reference and model_key(large_model_reference) in MODELS:
        logger.warning(
            "%s is a model of Google's component: the scale's own is tuned", large_model_reference
        )
        return None
    return large_model_reference or None


def stage_config(
    stage: str,
    scale: Scale,
    output_dir: Path,
    steps: int = 0,
    learning_rate_multiplier: float = 1.0,
    prompt_sequence_length: int = 0,
    target_sequence_length: int = 0,
    **changes: Any,
) -> StageConfig:
    """A stage's config at this scale, with Google's parameters translated into ours.

    A step of the reward model is a batch of 64 pairs: steps become epochs. A step of PPO is a
    rollout: of 64 responses in Google's component, of the scale's `batch_size` here.
    """
    changes = {name: value for name, value in changes.items() if value not in (None, "")}
    if prompt_sequence_length and stage != "ppo":  # PPO does not cut its prompts
        answer = target_sequence_length or MAX_NEW_TOKENS
        changes["max_length"] = prompt_sequence_length + answer
    if target_sequence_length and stage != "sft":
        changes["max_new_tokens"] = target_sequence_length
    config = scale.config(stage, output_dir=output_dir, **changes)
    changes = {"learning_rate": config.learning_rate * learning_rate_multiplier}
    if steps and isinstance(config, RewardConfig):
        changes["epochs"] = steps * PAIRS_A_STEP / _pairs(config)
    elif steps and isinstance(config, PPORunConfig):
        changes["steps"] = steps
    return replace(config, **changes)


def _pairs(config: RewardConfig) -> int:
    """How many pairs an epoch has; a ranking of K answers counts as the pairs that it implies."""
    records: list[Any] = read_comparisons(config.data)[: config.pairs]
    return sum(len(ranking_to_pairs(r)) if "ranking" in r else 1 for r in records)


def launch_command(stage: str, scale: Scale, config: StageConfig, processes: int) -> list[str]:
    """The command that trains a stage in several processes, one for each GPU."""
    command: list[Any] = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--multi_gpu",
        "--num_processes",
        processes,
        "--num_machines",
        1,
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "-m",
        "rlhf_helpers",
        "train",
        stage,
        "--scale",
        scale.name,
        "--task",
        scale.task,
    ]
    for name, value in asdict(config).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, tuple):
            command += [f"--{option}={part}" for part in value]
        elif value is not None:
            command.append(f"--{option}={value}")
    return list(map(str, command))


def train(
    stage: str, output_dir: str, scale: str, seed: int, processes: int = 1, **parameters: Any
) -> dict[str, float]:
    """Train a stage, copy its model, logs and `metrics.json` to `output_dir`, return its metrics.

    It trains in a temporary folder: a mounted bucket cannot rename the folders of checkpoints, and
    a run that fails must not leave half a model in `output_dir`.
    """
    from rlhf_helpers.stages import train_stage

    place = Scale(scale, "summarize", seed)
    with tempfile.TemporaryDirectory() as temporary:
        config = stage_config(stage, place, Path(temporary) / stage, **parameters)
        if processes > 1:
            subprocess.run(launch_command(stage, place, config, processes), check=True)
        else:
            train_stage(stage, config)
        ignored = shutil.ignore_patterns("checkpoints")
        shutil.copytree(config.output_dir, output_dir, ignore=ignored, dirs_exist_ok=True)
    return json.loads((Path(output_dir) / "metrics.json").read_text())["metrics"]


@dataclass(frozen=True)
class HeldOut:
    """The evaluation prompts and pairs, and how a model answers them.

    Of the course's own data, 256 prompts and 500 pairs are used; a given data set is used whole.
    """

    scale: str
    seed: int
    eval_dataset: str = ""
    instruction: str = ""
    target_sequence_length: int = 0

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of an answer."""
        return self.target_sequence_length or MAX_NEW_TOKENS

    def records(self) -> tuple[list[Prompt], list[Preference]]:
        """Distinct prompts, and pairs; no pairs if the data set has prompts alone."""
        scale, given = Scale(self.scale, "summarize", self.seed), local_path(self.eval_dataset)
        prompts = read_prompts(given or scale.data("prompts", "test"))
        pairs: list[Preference] = []
        if given is None or "choice" in prompts[0]:
            pairs = read_preferences(given or scale.data("preferences", "test"))
        prompts = list({record["input_text"]: record for record in prompts}.values())
        if scale.name == "smoke":
            return prompts[:16], pairs[:32]
        return (prompts, pairs) if given else (prompts[:256], pairs[:500])

    def predict(self, model: str, output_path: str) -> dict[str, float]:
        """Answer the prompts, and write the answers as Vertex AI's bulk inference does."""
        from rlhf_helpers import generation
        from rlhf_helpers.models import load_policy, load_tokenizer

        prompts = [format_prompt(p["input_text"], self.instruction) for p in self.records()[0]]
        found = generation.respond(
            load_policy(model),
            load_tokenizer(model),
            prompts,
            seed=self.seed,
            max_new_tokens=self.max_new_tokens,
        )
        pairs = zip(prompts, found.texts, strict=True)
        answers = (
            {"inputs": {"inputs_pretokenized": p}, "prediction": t.strip()} for p, t in pairs
        )
        write_jsonl(output_path, answers)
        return {"prompts": len(prompts)}

    def evaluate(self, models: dict[str, str], predictions: dict[str, str]) -> dict[str, float]:
        """Measure the tuned policy and the reward model, and compare both models' answers.

        `models` maps `tuned`, `untuned` and `reward` to folders, `predictions` maps `tuned` and
        `untuned` to files. The reward model judges `win_rate`. The annotators' true taste, where
        it is known, judges `win_rate_gold`.
        """
        from rlhf_helpers import evaluation
        from rlhf_helpers.models import load_policy, load_tokenizer
        from rlhf_helpers.reward_model import RewardModel

        prompts, pairs = self.records()
        reward_model = RewardModel.from_pretrained(models["reward"])
        metrics, _ = evaluation.evaluate_policy(
            load_policy(models["tuned"]),
            load_tokenizer(models["tuned"]),
            prompts,
            reward_model=reward_model,
            reference=load_policy(models["untuned"]),
            seed=self.seed,
            instruction=self.instruction,
            max_new_tokens=self.max_new_tokens,
        )
        if pairs:
            found, _ = evaluation.evaluate_reward_model(reward_model, pairs, self.instruction)
            metrics |= found
        table = evaluation.side_by_side(predictions["tuned"], predictions["untuned"])
        return metrics | _compare(table, reward_model, metrics.get("gold"))


def _compare(table: Any, reward_model: Any, gold_tuned: float | None) -> dict[str, float]:
    """Win rates of the tuned model's answers, and the gain in gold where gold is known."""
    from rlhf_helpers import evaluation
    from rlhf_helpers.annotation import judges
    from rlhf_helpers.little_world.annotators import gold_columns

    prompts, untuned, tuned = (table[name].tolist() for name in ("prompt", "untuned", "tuned"))
    asked = {"win_rate": judges.reward_judge(reward_model)}
    asked |= {"win_rate_gold": judges.gold_judge(gold_columns)} if gold_tuned is not None else {}
    metrics: dict[str, float] = {}
    for name, judge in asked.items():  # neither depends on the order of the answers
        better = judge(prompts, untuned, tuned)
        better = [round(share, 6) for share in better]  # rounding must not decide a tie
        won = evaluation.win_rate(better, [1 - share for share in better])
        metrics |= {name: won.rate, f"{name}_low": won.low, f"{name}_high": won.high}
    if gold_tuned is not None:
        golds = gold_columns(prompts, untuned)["gold"]
        metrics["gold_untuned"] = sum(golds) / len(golds)
        metrics["gold_gain"] = gold_tuned - metrics["gold_untuned"]
    return metrics


def log(artefact: Any, metrics: dict[str, float]) -> None:
    """Log metrics for the tables of KFP and Vertex AI, and write them to the artefact's file.

    Without that file KFP's local cache considers the artefact lost, and runs its step again.
    """
    for name, value in metrics.items():
        artefact.log_metric(name, value)
    write_json(artefact.path, metrics)
