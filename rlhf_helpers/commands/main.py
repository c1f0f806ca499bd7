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

# name -> the module that defines `add_arguments(parser)` and `run(options)`, and one line of help
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
    options = argparse.Namespace()  # parsing itself raises an error where an extra is missing
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        _set_globals(getattr(options, "scale", "tiny"))
        return options.command(options) or 0
    except (Exception, KeyboardInterrupt) as error:
        told = _tell(error, can_resume=hasattr(options, "resume"))
        if told is None or getattr(options, "debug", False):
            raise
        status, message = told
        if message:
            print(message, file=sys.stderr)
        return status


def _tell(error: BaseException, can_resume: bool) -> tuple[int, str] | None:
    """Return exit status and message for an error that the user can mend; None for any other."""
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, ""
    if isinstance(error, KeyboardInterrupt):
        how = "; the same command with --resume continues" if can_resume else ""
        return getattr(error, "status", 130), f"stopped{how}"
    if isinstance(error, ValueError | FileNotFoundError):  # DataError among them
        return 2, f"error: {error}"
    if isinstance(error, FloatingPointError | ModuleNotFoundError):
        return 1, f"error: {error}"
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"error: {where}{error.strerror}. Choose another folder, or make room in it."
    if "No space left on device" in text or "PytorchStreamWriter failed" in text:
        return 1, "error: a file could not be written: the disk is full. Make room, then --resume."
    if isinstance(error, MemoryError) or "out of memory" in text:
        return 1, (
            "error: out of memory. Lower batch_size (ppo: raise gradient_accumulation_steps), or "
            "set gradient_checkpointing or lora_rank; `plan` predicts what each stage needs."
        )
    return None


def _set_globals(scale: str) -> None:
    """Set environment variables that libraries read, and silence one warning of theirs."""
    if scale not in scales.POLICIES:
        # Models and data are local files; a name of the hub still works with HF_HUB_OFFLINE=0.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # On CPUs with bfloat16, bitsandbytes looks for a faster kernel and warns that it finds none.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; `options.command` runs it. Only its own module is imported."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_helpers",
        description="RLHF step by step: data, SFT, reward model, PPO, evaluation.",
    )
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    arguments = sorted(arguments, key=lambda argument: argument != "--debug")
    command_name = next((a for a in arguments if not a.startswith("-")), "")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name == command_name:
            found = importlib.import_module(f"rlhf_helpers.commands.{module}")
            command.set_defaults(command=found.run)
            found.add_arguments(command)
    return parser.parse_args(arguments)
