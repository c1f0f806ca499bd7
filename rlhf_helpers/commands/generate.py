"""The command `generate`: answers of a model before and after its tuning."""

import argparse

from rlhf_helpers import scales, schemas
from rlhf_helpers.commands.options import add_common, policy_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: which policy, at which scale."""
    parser.description = (
        "Beam search with sampling, with the settings of the source course: 4 beams, top_k 10, "
        "temperature 0.6, 128 tokens. At smoke and tiny the prompts are posts to summarize."
    )
    add_common(parser)
    parser.add_argument(
        "--policy", default="sft", help="a stage (sft, ppo) or the folder of a model (default: sft)"
    )


def run(options: argparse.Namespace) -> None:
    """Print the answers of both models to each prompt."""
    from rlhf_helpers.evaluation import QUESTIONS, before_and_after

    scale = scales.Scale(options.scale, options.task, options.seed)
    prompts = QUESTIONS
    if scale.task != "assistant":
        records = schemas.read_prompts(scale.data("prompts", "test"))
        prompts = [record["input_text"] for record in records[:4]]
    models = {"before": scale.base_model, "after": policy_folder(options.policy, scale)}
    for _, row in before_and_after(models, prompts, options.seed).iterrows():
        print(*(f"{name}: {text}\n" for name, text in row.items()), sep="")
