"""Which models a command measures: the policy, and the models that it may be compared with.

A policy is a stage of the run that `--scale`, `--task` and `--seed` name, or any model of yours. It
is compared only with models that belong to it: those of its run, those that its folder says it was
trained with, or those that you name.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_helpers import scales
from rlhf_helpers.commands.options import add_common, describe_chat
from rlhf_helpers.configs.base import CHAT
from rlhf_helpers.stages import STAGES

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Models:
    """Folders (or names of the hub) of a policy and of the models that it is compared with."""

    policy: str
    reference: str | None
    reward_model: str | None
    of_run: bool  # whether the policy is a stage of the run that the options name


def add_models(
    parser: argparse.ArgumentParser, policy: str, max_new_tokens: int, temperatures: list[float]
) -> None:
    """Add the options that both commands share, with these defaults."""
    add_common(parser)
    parser.add_argument(
        "--policy",
        default=policy,
        help=f"a stage, a folder, or a name of the hub (default: {policy})",
    )
    parser.add_argument(
        "--reference",
        help="the model to compare with (default: that of the policy's run, or the one from which "
        "the policy's folder says it was trained)",
    )
    parser.add_argument("--prompts", type=Path, help="your own prompts, a JSONL file")
    parser.add_argument(
        "--chat",
        default="auto",
        choices=CHAT,
        help="whether prompts go through the chat template of each model's tokenizer (default: "
        "auto, as the model was trained here, else wherever there is a template)",
    )
    parser.add_argument(
        "--system-prompt",
        help="in front of every conversation of a chat model (default: as it was trained)",
    )
    parser.add_argument("--instruction", default="", help="a sentence in front of every prompt")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        help=f"the longest answer, in tokens (default: {max_new_tokens})",
    )
    parser.add_argument(
        "--temperatures",
        type=float,
        nargs="+",
        metavar="T",
        default=temperatures,
        help="1 samples as trained, 0 is greedy"
        + (f" (default: {' '.join(f'{t:g}' for t in temperatures)})" if temperatures else ""),
    )
    parser.add_argument("--output-dir", type=Path, help="write the results there too")


def find_models(options: argparse.Namespace, scale: scales.Scale) -> Models:
    """Return the models that the options name, or else those that belong to the policy.

    Raises ValueError for one that was trained on another version of the data.
    """
    from rlhf_helpers.training.checkpoints import check_data

    policy = _model(options.policy, scale)
    of_run = Path(policy).resolve().is_relative_to(scale.dir("sft").parent.resolve())
    reference, reward_model = _trained_with(Path(policy))
    if of_run:
        reference, reward_model = str(scale.dir("sft")), str(scale.dir("reward"))
    if options.reference:
        reference = _model(options.reference, scale)
    if getattr(options, "reward_model", None):
        reward_model = _model(options.reward_model, scale)
    for folder in filter(None, (policy, reference, reward_model)):
        check_data(Path(folder))
    return Models(policy, reference, reward_model, of_run)


def _model(name: str, scale: scales.Scale) -> str:
    """The folder of a stage, or the folder or name of the hub that was given."""
    if name in STAGES:
        return str(scale.dir(name))
    if "/" in name or Path(name).is_dir():
        return name
    raise ValueError(
        f"{name!r} is neither a stage ({', '.join(STAGES)}) nor a folder, nor a name of the hub "
        "such as facebook/opt-125m"
    )


def _trained_with(policy: Path) -> tuple[str | None, str | None]:
    """The reference and the reward model that a policy's own folder says it was trained with."""
    path = policy / "metrics.json"
    if not path.is_file():
        return None, None
    config = json.loads(path.read_text(encoding="utf-8")).get("config", {})
    model, reward_model = config.get("model"), config.get("reward_model")
    return model, reward_model if reward_model and Path(reward_model).is_dir() else None


def describe(models: Models, source: object, count: int, options: argparse.Namespace) -> None:
    """Print which models are compared and on which prompts, before the work begins."""
    print(describe_chat(models.policy, options.chat, options.system_prompt))
    reference = models.reference or "none, so no KL and no win rate (--reference names one)"
    reward_model = models.reward_model or "none, so no reward (--reward-model names one)"
    print(f"policy        {models.policy}")
    print(f"reference     {reference}")
    print(f"reward model  {reward_model}")
    print(f"prompts       {count} of {source}")


def check_settings(options: argparse.Namespace) -> None:
    """Raise ValueError for a negative temperature, or a maximum of less than one token."""
    for temperature in options.temperatures:
        if not temperature >= 0:
            raise ValueError(f"--temperatures: {temperature} is below 0. Give 0 (greedy) or more.")
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens: {options.max_new_tokens} is below 1")


def print_rows(table: "pd.DataFrame") -> None:
    """Print a table of texts, one line for each cell."""
    for _, row in table.iterrows():
        print(*(f"{name}: {text}\n" for name, text in row.items()), sep="")
