"""The command line: python -m rlhf_helpers, with a command such as course or train.

Exit status: 0, 1 on failure, 2 on bad input. Heavy imports wait until a command needs them, so
that `--help` answers at once.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from rlhf_helpers import scales

# name -> its module, with `add_arguments(parser)` and `run(options)`, and one line of help
COMMANDS = {
    "course": ("course", "run the notebooks, show the results"),
    "lab": ("lab", "open the notebooks in JupyterLab"),
    "data": ("data", "write the data sets of the little world again"),
    "train": ("train", "train one stage"),
    "evaluate": ("evaluate", "measure a policy and the reward model on held-out data"),
    "generate": ("generate", "let a model answer four questions, before and after its tuning"),
    "pipeline": ("pipeline", "the same stages as a cloud pipeline: compile, run here, submit"),
    "plan": ("plan.command", "memory, hours and cost of a scale's stages, before they are run"),
    "doctor": ("doctor", "check packages, data, space and device"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        _set_globals(getattr(options, "scale", "tiny"))
        return options.command(options) or 0
    except (ValueError, FileNotFoundError) as error:  # DataError among them
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _set_globals(scale: str) -> None:
    """Set what libraries read from the environment, and mute one of their warnings."""
    if scale not in scales.POLICIES:
        # Models and data are local files; a name of the hub still works with HF_HUB_OFFLINE=0.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # On CPUs with bfloat16, bitsandbytes looks for a faster kernel and warns that it finds none.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; `options.command` runs it. Only its module is imported."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_helpers",
        description="RLHF step by step: data, SFT, reward model, PPO, evaluation.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name in arguments[:1]:
            found = importlib.import_module(f"rlhf_helpers.commands.{module}")
            command.set_defaults(command=found.run)
            found.add_arguments(command)
    return parser.parse_args(arguments)
