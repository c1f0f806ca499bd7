"""The command `generate`: answers of a model before and after its tuning."""

import argparse

from rlhf_helpers import scales, schemas
from rlhf_helpers.commands.models import add_models, check_settings, find_models, print_rows
from rlhf_helpers.commands.options import describe_chat


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: which models, on which prompts."""
    parser.description = (
        "Without --temperatures by beam search with sampling, with the settings of the source "
        "course: 4 beams, top_k 10, temperature 0.6. Without --prompts four questions, at smoke "
        "and tiny four posts."
    )
    add_models(parser, "sft", max_new_tokens=128, temperatures=[])


def run(options: argparse.Namespace) -> None:
    """Print the answers of both models to each prompt."""
    from rlhf_helpers.evaluation import QUESTIONS, before_and_after
    from rlhf_helpers.evaluation.report import write_html

    scale = scales.Scale(options.scale, options.task, options.seed)
    check_settings(options)
    models, prompts = find_models(options, scale), QUESTIONS
    if options.prompts or scale.task != "assistant":
        records = schemas.read_prompts(options.prompts or scale.data("prompts", "test"))
        prompts = [record["input_text"] for record in records[: None if options.prompts else 4]]
    before = models.reference
    if models.of_run and not options.reference:
        before = str(scale.base_model)  # what the run's SFT started from
    print(describe_chat(models.policy, options.chat, options.system_prompt))
    named = {"before": before, "after": models.policy} if before else {"after": models.policy}
    table = before_and_after(
        named,
        prompts,
        options.seed,
        temperatures=options.temperatures,
        instruction=options.instruction,
        max_new_tokens=options.max_new_tokens,
        chat=options.chat,
        system_prompt=options.system_prompt,
    )
    print_rows(table)
    if options.output_dir:
        write_html(options.output_dir / "samples.html", models.policy, table)
