"""Writes the data sets of the second task, completing a post; `build` writes the first task's.

Both tasks share the pretraining documents, on which the base model was trained.
"""

from functools import partial
from pathlib import Path

from rlhf_helpers.little_world import build
from rlhf_helpers.little_world.grammar import draw_beginnings

DEMONSTRATIONS = {"train": 2000, "validation": 128, "test": 128}
PROMPTS = {"train": 1000, "validation": 128, "test": 512}
PREFERENCES = {"train": 600, "validation": 128, "test": 512}
RANKINGS = {"train": 800, "test": 128}
BY_ALL_ANNOTATORS = 100  # training pairs that every annotator labels

GRAMMAR_FILES = {
    "demonstrations": (partial(build.demonstrations, draw=draw_beginnings), DEMONSTRATIONS),
    "prompts": (partial(build.prompts, draw=draw_beginnings), PROMPTS),
}


def write_grammar_files(folder: Path) -> None:
    """Write the files that depend on the grammar alone."""
    build.write_grammar_files(folder, GRAMMAR_FILES)


def write_sampled_files(folder: Path, sft_model: Path) -> None:
    """Write preferences and rankings; some candidates are the SFT model's, some the writers'."""
    build.write_labelled(
        folder, sft_model, PREFERENCES, RANKINGS, BY_ALL_ANNOTATORS, draw=draw_beginnings
    )
