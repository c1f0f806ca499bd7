"""The command `train sft | … | rlaif`: an option for every field of a stage's config."""

import argparse
import dataclasses
import os
from typing import Any

from rlhf_helpers import scales
from rlhf_helpers.configs import StageConfig
from rlhf_helpers.configs.settings import Option, options
from rlhf_helpers.stages import STAGES, Stage, train_stage


def add_common(parser: argparse.ArgumentParser, task: bool = True) -> None:
    """Add the options that most commands share."""
    parser.add_argument(
        "--scale",
        default="tiny",
        choices=scales.SCALES,
        help="tiny learns in minutes on two cores, small and full on GPUs; smoke only runs every "
        "code path (default: tiny)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    if not task:
        return
    parser.add_argument(
        "--task",
        default="",
        choices=scales.TASKS,
        help="what is learnt: to summarize a post, to complete it, or to assist on the real data "
        "sets (default: summarize, at small and full assistant)",
    )


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add the command, with a subcommand a stage, to the parser of `python -m rlhf_helpers`."""
    train = commands.add_parser(
        "train",
        help="train one stage",
        description="Train one stage. Every setting has a default for the scale; the stages find "
        "each other's models in runs/<scale>/<task>/seed<k>/.",
    )
    stages = train.add_subparsers(required=True, metavar="STAGE")
    for stage in STAGES.values():
        described = stage.help[0].upper() + stage.help[1:] + "."
        subcommand = stages.add_parser(stage.name, help=stage.help, description=described)
        add_common(subcommand)
        subcommand.add_argument(
            "--resume", action="store_true", help="go on from the last checkpoint"
        )
        for option in options_of(stage):
            _add_option(subcommand, option)
        subcommand.set_defaults(command=_train, stage=stage.name)


def options_of(stage: Stage) -> list[Option]:
    """The settings of a stage that have an option of their own.

    `--seed` is common to all commands, and the config of another stage inside it is set by scale.
    """
    return [
        option
        for option in options(stage.config)
        if option.name != "seed" and not issubclass(option.kind, StageConfig)
    ]


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    """One option for one setting; what is not given keeps the scale's value."""
    default = "by scale" if option.default is dataclasses.MISSING else option.default
    form: dict[str, Any] = {"type": option.kind}
    if option.kind is bool:
        form = {"action": argparse.BooleanOptionalAction}
    elif option.setting.choices:
        form["choices"] = option.setting.choices
    parser.add_argument(
        "--" + option.name.replace("_", "-"),
        default=argparse.SUPPRESS,
        help=f"{option.setting.help} (default: {default})",
        **form,
    )


def _train(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    names = [option.name for option in options_of(STAGES[arguments.stage])]
    changes = {name: given[name] for name in names if name in given}
    scale = scales.Scale(arguments.scale, arguments.task, arguments.seed)
    config = scale.config(arguments.stage, **changes)
    from rlhf_helpers import models, processes

    if int(os.environ.get("RANK", "0")) == 0:
        print(models.describe_device())
    result = train_stage(arguments.stage, config, arguments.resume)
    if processes.rank() == 0:
        print_table(result.metrics)
        print(f"\nmodel, metrics.json and logs: {result.output_dir}")


def print_table(metrics: dict[str, float]) -> None:
    """Print names and numbers, one a line."""
    for name, value in metrics.items():
        print(f"  {name:<22}{value:>12.5g}")
