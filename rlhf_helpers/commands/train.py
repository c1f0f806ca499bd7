"""The command `train sft | … | rlaif`: an option for every field of a stage's config."""

import argparse
import dataclasses
import os
from typing import Any

from rlhf_helpers import scales
from rlhf_helpers.commands.options import add_common, describe_chat, print_table
from rlhf_helpers.configs import StageConfig
from rlhf_helpers.configs.settings import Option, options
from rlhf_helpers.stages import STAGES, Stage, train_stage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for every stage."""
    parser.description = (
        "Train one stage. Every setting has a default for the scale; the stages find each other's "
        "models in runs/<scale>/<task>/seed<k>/."
    )
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    for stage in STAGES.values():
        described = stage.help[0].upper() + stage.help[1:] + "."
        subcommand = stages.add_parser(stage.name, help=stage.help, description=described)
        add_common(subcommand)
        subcommand.add_argument(
            "--resume", action="store_true", help="continue from the last checkpoint"
        )
        for option in options_of(stage):
            _add_option(subcommand, option)
        subcommand.set_defaults(stage=stage.name)


def options_of(stage: Stage) -> list[Option]:
    """Return the settings of a stage that the command line offers as options.

    `--seed` is an option of every command. The scale sets the config of another stage inside it.
    Settings that do nothing in the stage are left out.
    """
    hidden = ("seed", *stage.without)
    return [
        option
        for option in options(stage.config)
        if option.name not in hidden and not issubclass(option.kind, StageConfig)
    ]


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    """Add the option of one setting. Without the option, the setting keeps the scale's value."""
    default = "by scale" if option.default is dataclasses.MISSING else option.default
    form: dict[str, Any] = {"type": option.kind}
    if option.kind is bool:
        form = {"action": argparse.BooleanOptionalAction}
    elif option.setting.choices:
        form["choices"] = option.setting.choices
    elif option.repeated:
        form["action"], default = "append", "none"
    parser.add_argument(
        "--" + option.name.replace("_", "-"),
        default=argparse.SUPPRESS,
        help=f"{option.setting.help} (default: {default})",
        **form,
    )


def run(arguments: argparse.Namespace) -> None:
    """Train the stage; print its metrics and the folder that holds them."""
    given = vars(arguments)
    names = [option.name for option in options_of(STAGES[arguments.stage])]
    changes = {name: given[name] for name in names if name in given}
    scale = scales.Scale(arguments.scale, arguments.task, arguments.seed)
    config = scale.config(arguments.stage, **changes)
    from rlhf_helpers import processes
    from rlhf_helpers.models import devices
    from rlhf_helpers.training import interrupts

    if int(os.environ.get("RANK", "0")) == 0:
        print(describe_chat(config.model, config.chat, config.system_prompt))
        print(devices.describe_device())
    with interrupts.stop_after_step():
        result = train_stage(arguments.stage, config, arguments.resume)
    if processes.rank() == 0:
        print_table(result.metrics)
        print(f"\nmodel, metrics.json and logs: {result.output_dir}")
