"""The command `data`: writes the data sets of the little world, and its models, again."""

import argparse
from pathlib import Path

from rlhf_helpers import runs, scales, schemas


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: what to write, and where."""
    parser.description = (
        "Without an option: the files that the grammar alone decides, bit for bit the same at "
        "every run (demonstrations, prompts, pretraining documents), and judgements."
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        help="where to write (default: data/<task>, data/base_model or data/labeller)",
    )
    parser.add_argument(
        "--task",
        default="summarize",
        choices=scales.LITTLE_WORLD,
        help="whose data sets: to summarize a post, or to complete it (default: summarize)",
    )
    parser.add_argument(
        "--sampled",
        type=Path,
        metavar="SFT_MODEL",
        help="write preferences and rankings instead, with samples of this SFT model (2 minutes)",
    )
    parser.add_argument(
        "--base-model",
        action="store_true",
        help="pretrain the base model instead (40 minutes; continues if stopped)",
    )
    parser.add_argument(
        "--labeller",
        action="store_true",
        help="teach the AI labeller its principles instead (5 minutes; continues if stopped)",
    )


def run(options: argparse.Namespace) -> None:
    """Write the files that the options ask for."""
    from rlhf_helpers.little_world import autocomplete, base_model, build, principles

    files = autocomplete if options.task == "autocomplete" else build
    folder = "base_model" if options.base_model else options.task
    output_dir = options.output_dir or runs.data_dir() / folder
    if options.base_model:
        print(base_model.pretrain(output_dir, runs.runs_dir() / "pretraining"))
    elif options.labeller:
        output_dir = options.output_dir or runs.data_dir() / "labeller"
        print(principles.train_labeller(output_dir, runs.runs_dir() / "labeller"))
    elif options.sampled:
        files.write_sampled_files(output_dir, options.sampled)
    else:
        files.write_grammar_files(output_dir)
        test_pairs = runs.data_dir() / options.task / "preferences_test.jsonl"
        build.write_judgements(output_dir, schemas.read_preferences(test_pairs))
    print(f"written to {output_dir}")
