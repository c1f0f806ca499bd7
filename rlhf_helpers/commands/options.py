"""The options that several commands share, and how they print metrics."""

import argparse
from pathlib import Path

from rlhf_helpers import scales


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


def describe_chat(model: str | Path, chat: str, system_prompt: str | None) -> str:
    """One line about the format of a model's prompts; a missing model is another's business.

    Raises ValueError for a choice that the model's tokenizer cannot follow.
    """
    from rlhf_helpers.chat import describe
    from rlhf_helpers.models import load_tokenizer

    try:
        return describe(load_tokenizer(model, chat, system_prompt))
    except FileNotFoundError:
        return f"chat format: {chat}"


def print_table(metrics: dict[str, float]) -> None:
    """Print one line for each metric."""
    for name, value in metrics.items():
        print(f"  {name:<22}{value:>12.5g}")
